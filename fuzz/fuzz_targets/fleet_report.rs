//! Whatever a record holds, it is read or left out, and what it makes of a provider's health stays within
//! its bounds. What was read is written again as the same.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;

#[path = "../../src"]
#[allow(dead_code, unused_imports)]
mod library {
    pub mod fleet;
    pub mod health;
    pub mod hedge;
    pub mod splice;
}

use fleet::Record;
use fleet::report::{Said, health_record};
use health::{Breaker, HealthTable, Process, State};
// Where they look for each other.
use library::{fleet, health, hedge, splice};

fuzz_target!(|input: (&str, Vec<(u8, &str, u16)>)| {
    let (key, bodies) = input;
    let now = Instant::now();
    let mut health = HealthTable::new(1, Some(Breaker::default()), now, 1);
    health.share(0, Process(0));
    let mut passed = Duration::ZERO;
    for (process, body, pause) in bodies {
        passed += Duration::from_millis(pause.into());
        let now = now + passed;
        for key in [key.to_owned(), format!("a~00000000/{process:016x}")] {
            let Some(record) = Record::new(&key, body) else { continue };
            match Said::parse(&record) {
                None => {}
                Some(Said::Command(command)) => {
                    let again = command.record().expect("what was read can be written");
                    assert_eq!(Said::parse(&again), Some(Said::Command(command)));
                }
                Some(Said::Health { provider, process, report }) => {
                    if let Some(again) = health_record(&provider, process, &report) {
                        let said = Said::Health { provider, process, report: report.clone() };
                        assert_eq!(Said::parse(&again), Some(said));
                    }
                    health.apply_report(0, process, &report, Duration::from_secs(10), now);
                    if let State::Open { until } | State::CoolingDown { until } = health.state(0, now) {
                        assert!(until <= now + Duration::from_secs(301));
                    }
                }
            }
        }
    }
    // It has seen nothing itself, and says nothing.
    assert!(health.own_report(0, now + passed).is_none());
});
