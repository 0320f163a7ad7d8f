//! The key-isolation table: which key arrived at which server, for every form of credential and
//! everything that moves a request about.
//!
//! `cargo test --test isolation -- --nocapture` prints it.

use reqwest_failover_testing::support;

mod below;
mod echoes;
mod forms;
mod harness;
mod scenarios;
mod table;

use forms::Form;
use harness::{Harness, PLACES};
use scenarios::SCENARIOS;
use table::Table;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_arrives_at_a_server_that_it_is_not_for() {
    let beyond = below::table().await;
    println!("\nWhat is done below every middleware, and what no layer can prevent:\n");
    println!("{beyond}");
    println!(
        "{} combinations below the layer, {} keys at a foreign server, as is documented\n",
        beyond.combinations(),
        beyond.foreign()
    );

    let mut table = Table::default();
    for form in Form::EACH {
        for scenario in SCENARIOS {
            let harness = Harness::of(form, scenario).await;
            scenario.play(&harness).await;
            table.add(harness.into_row(form.name(), scenario));
        }
    }
    println!("What the chain is answerable for:\n\n{table}");
    println!("{} combinations, {} keys at a foreign server", table.combinations(), table.foreign());
    let wrong = [table.wrong(), beyond.wrong()].concat();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(table.foreign(), 0);
    assert_eq!(table.combinations(), Form::EACH.len() * SCENARIOS.len() * PLACES.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_is_shown_however_its_provider_says_it() {
    let echoes = echoes::Echoes::of_each_form().await;
    println!("How many messages show a part of the key that the provider said:\n\n{echoes}");
    println!("{} messages, {} show a part of a key", echoes.said(), echoes.shown.len());
    assert!(echoes.shown.is_empty(), "{:#?}", &echoes.shown[..echoes.shown.len().min(20)]);
}
