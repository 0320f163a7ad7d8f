//! Chains that share their health: what operators do, what the store may do, and what starts and ends.
//! The rules themselves are tested in `health`, and with every kind of fault in `fleet_simulation`.

use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest_failover::fleet::{
    self, HealthStore, HealthWatch, MemoryStore, MemoryWatch, Record, StoreError,
};
use reqwest_failover::{
    Breaker, Event, FleetSnapshot, Provider, ProviderChain, ProviderChainBuilder, State,
};
use reqwest_failover_testing::terminal::{Harness, Script, lock, ms, now, provider, secs};

fn pod(store: impl HealthStore) -> Harness {
    pod_with(store, |chain| chain)
}

fn pod_with(
    store: impl HealthStore,
    settings: impl FnOnce(ProviderChainBuilder) -> ProviderChainBuilder,
) -> Harness {
    let scripts = ["first", "second"].map(|name| (name, Script::status(200)));
    Harness::with(scripts, |chain| settings(chain.share(store)))
}

async fn synced(pods: &[&Harness]) {
    for pod in pods {
        assert!(pod.chain.synced(secs(5)).await);
    }
}

fn fleet_of(pod: &Harness) -> FleetSnapshot {
    pod.chain.snapshot().fleet().expect("it shares")
}

fn names(pod: &Harness) -> Vec<String> {
    pod.chain.snapshot().providers().iter().map(|provider| provider.name().to_owned()).collect()
}

/// Writes down what is told of the fleet.
fn notes() -> (Arc<Mutex<Vec<String>>>, impl Fn(&Event<'_>) + Send + Sync + 'static) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let written = notes.clone();
    let note = move |event: &Event<'_>| {
        let note = match event {
            Event::FleetJoined => "joined".to_owned(),
            Event::FleetLost { error, .. } => format!("lost: {error}"),
            Event::Steered { provider, heard, .. } => format!("steered: {provider:?} {heard}"),
            Event::BreakerOpened { provider, heard, .. } => format!("opened: {provider} {heard}"),
            Event::CoolingDown { provider, heard, .. } => format!("cooling: {provider} {heard}"),
            _ => return,
        };
        lock(&written).push(note);
    };
    (notes, note)
}

/// A store that does what a test tells it to.
#[derive(Clone, Default)]
struct Scripted {
    store: MemoryStore,
    mode: Arc<Mutex<Mode>>,
    calls: Arc<AtomicUsize>,
    lists: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Up,
    Fails(&'static str),
    /// As a replica, or a server that is full.
    ReadOnly,
    Silent,
    Panics,
    PanicsWhenPolled,
    /// Writes take so long.
    SlowPuts(u64),
    /// It takes so long until all is read.
    SlowLists(u64),
}

impl Scripted {
    fn set(&self, mode: Mode) {
        *lock(&self.mode) = mode;
    }

    async fn call(mode: Mode) -> Result<(), StoreError> {
        match mode {
            Mode::Up | Mode::ReadOnly | Mode::SlowPuts(_) | Mode::SlowLists(_) => Ok(()),
            Mode::Fails(error) => Err(error.into()),
            Mode::Silent => pending().await,
            Mode::Panics | Mode::PanicsWhenPolled => panic!("scripted"),
        }
    }

    /// What it does at once.
    fn enter(&self) -> Mode {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mode = *lock(&self.mode);
        assert!(mode != Mode::Panics, "scripted");
        mode
    }
}

impl HealthStore for Scripted {
    type Watch = ScriptedWatch;

    fn put(
        &self,
        record: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let mode = self.enter();
        async move {
            Self::call(mode).await?;
            match mode {
                Mode::ReadOnly => return Err("it is a replica".into()),
                Mode::SlowPuts(millis) => tokio::time::sleep(ms(millis)).await,
                _ => {}
            }
            self.store.put(record, ttl).await
        }
    }

    fn list(&self) -> impl Future<Output = Result<Vec<(Record, Duration)>, StoreError>> + Send {
        let mode = self.enter();
        self.lists.fetch_add(1, Ordering::Relaxed);
        async move {
            Self::call(mode).await?;
            if let Mode::SlowLists(millis) = mode {
                tokio::time::sleep(ms(millis)).await;
            }
            self.store.list().await
        }
    }

    fn watch(&self) -> impl Future<Output = Result<ScriptedWatch, StoreError>> + Send {
        let mode = self.enter();
        async move {
            Self::call(mode).await?;
            Ok(ScriptedWatch(self.store.watch().await?, self.mode.clone()))
        }
    }
}

struct ScriptedWatch(MemoryWatch, Arc<Mutex<Mode>>);

impl HealthWatch for ScriptedWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        let next = self.0.next().await;
        let mode = *lock(&self.1);
        Scripted::call(mode).await?;
        next
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_does_holds_for_all() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store.clone()));
    synced(&[&one, &other]).await;
    one.chain.isolate("first").unwrap();
    one.chain.set_order(["second", "first"]).unwrap();
    synced(&[&one, &other]).await;
    assert_eq!(other.state("first"), State::Isolated);
    assert_eq!(names(&other), ["second", "first"]);
    other.chain.restore("first").unwrap();
    other.chain.set_order(["first", "second"]).unwrap();
    synced(&[&other, &one]).await;
    assert_eq!(one.state("first"), State::Closed);
    assert_eq!(names(&one), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_arrives_by_itself() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store));
    synced(&[&one, &other]).await;
    one.chain.isolate("second").unwrap();
    tokio::time::sleep(ms(5)).await;
    assert_eq!(other.state("second"), State::Isolated);
}

#[tokio::test(start_paused = true)]
async fn a_report_arrives_by_itself() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store));
    synced(&[&one, &other]).await;
    one.tell("first", Script::hint(429, "retry-after", "20"));
    one.ask().await;
    tokio::time::sleep(ms(5)).await;
    assert!(matches!(other.state("first"), State::CoolingDown { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_command_is_not_overruled_by_one_that_is_read_before_it_is_written() {
    let store = Scripted::default();
    let (notes, note) = notes();
    let one = pod_with(store.clone(), |chain| chain.observe(note));
    let other = pod(store.store.clone());
    synced(&[&one, &other]).await;
    other.chain.isolate("first").unwrap();
    synced(&[&other, &one]).await;
    lock(&notes).clear();
    // While this process reads the store, another one restores the provider, and this one does not want it.
    store.set(Mode::SlowLists(300));
    let lists = store.lists.load(Ordering::Relaxed);
    while store.lists.load(Ordering::Relaxed) == lists {
        tokio::time::sleep(ms(1)).await;
    }
    other.chain.restore("first").unwrap();
    tokio::time::sleep(ms(100)).await;
    one.chain.isolate("first").unwrap();
    store.set(Mode::Up);
    synced(&[&one, &other]).await;
    assert_eq!(*lock(&notes), ["steered: Some(\"first\") false"]);
    assert_eq!([&one, &other].map(|pod| pod.state("first")), [State::Isolated; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_writes_often_reads_no_more_often() {
    let store = Scripted::default();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    // It has more to say at once than it may write, and waits until it may.
    for _ in 0..150 {
        for status in [500, 200, 200, 200].repeat(5) {
            pod.tell("first", Script::status(status));
            pod.ask().await;
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(ms(200)).await;
    }
    let [calls, lists] = [&store.calls, &store.lists].map(|count| count.load(Ordering::Relaxed));
    assert!(calls - lists > 400, "{calls} calls, {lists} of them lists");
    assert!((30..=45).contains(&lists), "{lists} lists in 30 s: one every 0.8 s");
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_handle_to_the_chain() {
    let store = Scripted::default();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    assert!(Arc::strong_count(&store.calls) > 1);
    drop(pod);
    tokio::time::sleep(ms(5)).await;
    assert_eq!(Arc::strong_count(&store.calls), 1, "nothing else has the store");
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn the_gauge_shows_whether_the_store_answers() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let shown = || {
        let text = handle.render();
        let level = text.lines().find_map(|line| line.strip_prefix("failover_fleet_joined "));
        level.map(str::to_owned)
    };
    let store = Scripted::default();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    assert_eq!(shown().as_deref(), Some("1"));
    store.set(Mode::Fails("down"));
    tokio::time::sleep(secs(2)).await;
    assert_eq!(shown().as_deref(), Some("0"));
    store.set(Mode::Up);
    tokio::time::sleep(secs(3)).await;
    assert_eq!(shown().as_deref(), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_later_is_told() {
    let store = MemoryStore::new();
    let one = pod(store.clone());
    one.chain.isolate("first").unwrap();
    one.fail_five_times().await;
    synced(&[&one]).await;
    drop(one);
    let (notes, note) = notes();
    let late = pod_with(store, |chain| chain.observe(note));
    synced(&[&late]).await;
    assert_eq!(late.state("first"), State::Isolated);
    assert_eq!(*lock(&notes), ["steered: Some(\"first\") true", "joined"]);
    assert!(fleet_of(&late).last_heard().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_given_before_the_store_is_read_overrules_older_ones() {
    let store = MemoryStore::new();
    let one = pod(store.clone());
    synced(&[&one]).await;
    for _ in 0..3 {
        one.chain.isolate("first").unwrap();
        synced(&[&one]).await;
    }
    let late = pod(store);
    late.chain.restore("first").unwrap();
    synced(&[&late, &one]).await;
    assert_eq!(late.state("first"), State::Closed);
    assert_eq!(one.state("first"), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn commands_outlive_those_who_gave_them_and_a_store_that_forgets() {
    let store = Scripted::default();
    let (one, other) = (pod(store.clone()), pod(store.clone()));
    one.chain.isolate("first").unwrap();
    synced(&[&one, &other]).await;
    drop(one);
    for (record, _) in store.store.list().await.unwrap() {
        store.store.put(&record, Duration::ZERO).await.unwrap();
    }
    tokio::time::sleep(secs(2)).await;
    let late = pod(store.clone());
    synced(&[&late]).await;
    assert_eq!(late.state("first"), State::Isolated);
    let day = secs(24 * 3600);
    let (record, _) = store.store.list().await.unwrap().remove(0);
    store.store.put(&record, 5 * day).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    let (_, left) = store.store.list().await.unwrap().remove(0);
    assert!(left > 6 * day, "it is kept as long as there is a process: {left:?}");
    synced(&[&other]).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_is_taken_over_as_far_as_its_names_are_known() {
    let store = MemoryStore::new();
    let chain = |names: &[&str]| {
        let providers: Vec<_> = names.iter().map(|name| provider(name)).collect();
        ProviderChain::builder(providers).share(store.clone()).build().unwrap()
    };
    let (one, other) = (chain(&["a", "b", "c"]), chain(&["x", "a", "y", "c"]));
    one.set_order(["c", "b", "a"]).unwrap();
    assert!(one.synced(secs(1)).await && other.synced(secs(1)).await);
    let snapshot = other.snapshot();
    let names: Vec<_> = snapshot.providers().iter().map(|provider| provider.name()).collect();
    assert_eq!(names, ["x", "c", "y", "a"]);
}

#[tokio::test(start_paused = true)]
async fn failures_of_three_processes_open_the_breaker_of_a_fourth() {
    let store = MemoryStore::new();
    let (notes, note) = notes();
    let pods: Vec<_> = (0..3).map(|_| pod(store.clone())).collect();
    let fourth = pod_with(store, |chain| chain.observe(note));
    synced(&[&fourth]).await;
    for pod in &pods {
        pod.tell("first", Script::status(500));
        pod.ask_times(2).await;
        synced(&[pod, &fourth]).await;
    }
    assert!(matches!(fourth.state("first"), State::Open { .. }));
    assert_eq!(fourth.ask().await, "second");
    assert_eq!(fourth.asked("first"), 0);
    assert_eq!(*lock(&notes), ["joined", "opened: first true"]);
    assert_eq!(fleet_of(&fourth).processes_heard(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_rests_the_provider_for_all() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store));
    synced(&[&one, &other]).await;
    one.tell("first", Script::hint(429, "retry-after", "20"));
    one.ask().await;
    synced(&[&one, &other]).await;
    let State::CoolingDown { until, .. } = other.state("first") else {
        panic!("{:?}", other.state("first"));
    };
    assert!((secs(19)..=secs(21)).contains(&(until - now())));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_put_on_a_healthy_day() {
    let store = Scripted::default();
    let pods = [pod(store.clone()), pod(store.clone())];
    for _ in 0..60 {
        for pod in &pods {
            pod.ask_times(10).await;
        }
        tokio::time::sleep(secs(1)).await;
    }
    assert_eq!(store.store.list().await.unwrap(), []);
    let polls = store.calls.load(Ordering::Relaxed);
    assert!((130..=180).contains(&polls), "{polls} calls: a watch and a list every 0.8 s each");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_told_of_once_and_changes_no_request() {
    let store = Scripted::default();
    let (notes, note) = notes();
    let pod = pod_with(store.clone(), |chain| chain.observe(note));
    synced(&[&pod]).await;
    for mode in [Mode::Fails("down"), Mode::Silent, Mode::Panics, Mode::PanicsWhenPolled] {
        let errors = fleet_of(&pod).errors();
        store.set(mode);
        for _ in 0..20 {
            let began = now();
            assert_eq!(pod.ask().await, "first");
            assert_eq!(now(), began, "it waits for nothing");
            tokio::time::sleep(ms(500)).await;
        }
        assert!(!pod.chain.synced(secs(1)).await);
        assert!(!fleet_of(&pod).is_joined());
        assert!(fleet_of(&pod).errors() > errors);
        store.set(Mode::Up);
        assert!(pod.chain.synced(secs(3)).await, "it is joined again within 3 s");
        assert!(fleet_of(&pod).is_joined());
    }
    let notes: Vec<_> =
        lock(&notes).iter().map(|note| note.split(": ").next().unwrap().to_owned()).collect();
    assert_eq!(
        notes,
        ["joined", "lost", "joined", "lost", "joined", "lost", "joined", "lost", "joined"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_only_be_read_is_told_of_once_and_read_all_the_same() {
    let store = Scripted::default();
    let (notes, note) = notes();
    let pod = pod_with(store.clone(), |chain| chain.observe(note));
    let other = self::pod(store.store.clone());
    synced(&[&pod, &other]).await;
    lock(&notes).clear();
    store.set(Mode::ReadOnly);
    pod.chain.isolate("second").unwrap();
    tokio::time::sleep(secs(10)).await;
    let calls = store.calls.load(Ordering::Relaxed);
    tokio::time::sleep(secs(60)).await;
    let calls = store.calls.load(Ordering::Relaxed) - calls;
    // Three calls a try, and a try each second on the average.
    assert!((90..300).contains(&calls), "{calls} calls in a minute");
    let lost: Vec<_> =
        lock(&notes).iter().filter(|note| !note.starts_with("steered")).cloned().collect();
    assert_eq!(lost, ["lost: put: it is a replica"]);
    other.chain.isolate("first").unwrap();
    tokio::time::sleep(secs(3)).await;
    assert_eq!(pod.state("first"), State::Isolated, "what others put is heard");
    store.set(Mode::Up);
    assert!(pod.chain.synced(secs(3)).await);
    assert_eq!(lock(&notes).last().unwrap(), "joined");
    synced(&[&other]).await;
    assert_eq!(other.state("second"), State::Isolated);
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_store_was_away_is_told_when_it_is_back() {
    let store = Scripted::default();
    let (one, other) = (pod(store.clone()), pod(store.clone()));
    synced(&[&one, &other]).await;
    store.set(Mode::Fails("down"));
    tokio::time::sleep(secs(2)).await;
    one.chain.isolate("second").unwrap();
    one.tell("first", Script::hint(429, "retry-after", "100"));
    one.fail_five_times().await;
    store.set(Mode::Up);
    tokio::time::sleep(secs(3)).await;
    assert_eq!(other.state("second"), State::Isolated);
    assert!(matches!(other.state("first"), State::CoolingDown { .. }));
}

#[tokio::test(start_paused = true)]
async fn the_text_of_an_error_holds_no_key() {
    let store = Scripted::default();
    store.set(Mode::Fails("refused: redis://user:key-of-first@host\nkey-of-second"));
    let (notes, note) = notes();
    let pod = pod_with(store, |chain| chain.observe(note));
    pod.ask().await;
    tokio::time::sleep(secs(3)).await;
    let notes = lock(&notes).join("\n");
    assert!(notes.starts_with("lost: watch: refused"), "{notes}");
    assert!(!notes.contains("key-of") && !notes.contains('\n'), "{notes}");
}

#[tokio::test(start_paused = true)]
async fn a_closure_may_change_the_chain_when_it_is_told_of_the_fleet() {
    let store = MemoryStore::new();
    let chain: Arc<Mutex<Option<ProviderChain>>> = Arc::default();
    let of_closure = chain.clone();
    let pod = pod_with(store.clone(), move |builder| {
        builder.observe(move |event| {
            let chain = lock(&of_closure).clone();
            if let (Some(chain), Event::Steered { provider: Some("first"), .. }) = (chain, event) {
                chain.snapshot();
                chain.set_order(["second", "first"]).unwrap();
            }
        })
    });
    *lock(&chain) = Some(pod.chain.clone());
    let other = pod_with(store, |chain| chain);
    other.chain.isolate("first").unwrap();
    synced(&[&other, &pod, &other]).await;
    assert_eq!(names(&pod), ["second", "first"]);
    assert_eq!(names(&other), ["second", "first"]);
    pod.chain.restore("first").unwrap();
    lock(&chain).take();
}

#[tokio::test(start_paused = true)]
async fn a_replaced_list_is_shared_as_well() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store));
    synced(&[&one, &other]).await;
    one.chain.isolate("first").unwrap();
    synced(&[&one, &other]).await;
    let moved = || Provider::new("first", "https://elsewhere.test/v1").bearer_auth("key");
    for pod in [&one, &other] {
        pod.chain.replace([moved(), provider("second"), provider("third")]).unwrap();
    }
    synced(&[&one, &other]).await;
    assert_eq!(other.state("first"), State::Closed, "another base URL is another provider");
    one.chain.isolate("third").unwrap();
    synced(&[&one, &other]).await;
    assert_eq!(other.state("third"), State::Isolated);
    other.chain.replace([provider("first"), provider("second")]).unwrap();
    synced(&[&other]).await;
    assert_eq!(other.state("first"), State::Isolated, "what was said of it holds again");
}

#[tokio::test(start_paused = true)]
async fn without_health_only_commands_are_shared() {
    let store = MemoryStore::new();
    let (one, other) =
        (pod_with(store.clone(), ProviderChainBuilder::without_health), pod(store.clone()));
    one.tell("first", Script::status(500));
    one.ask_times(20).await;
    synced(&[&one, &other]).await;
    assert_eq!(store.list().await.unwrap(), []);
    other.fail_five_times().await;
    other.chain.isolate("second").unwrap();
    synced(&[&other, &one]).await;
    assert_eq!((one.state("first"), one.state("second")), (State::Closed, State::Isolated));
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_does_not_share_is_never_synced() {
    let pod = Harness::of([("first", Script::status(200))]);
    let began = now();
    assert!(!pod.chain.synced(secs(9)).await);
    assert_eq!(now(), began);
    assert!(pod.chain.snapshot().fleet().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_ignored_and_counted() {
    let store = MemoryStore::new();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    let before = fleet_of(&pod).ignored();
    for record in [("order", "2 n=1"), ("nonsense", "x"), ("isolate/first", "1 n=1")] {
        let record = Record::new(record.0, record.1).unwrap();
        store.put(&record, ms(100)).await.unwrap();
    }
    tokio::time::sleep(ms(50)).await;
    assert_eq!(fleet_of(&pod).ignored() - before, 3);
    assert_eq!(fleet_of(&pod).processes_heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_records_is_cut_off() {
    let store = MemoryStore::new();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    for number in 0..900 {
        let record =
            Record::new(&format!("first~00000000/{number:016x}"), "1 n=1 f=9 s=0").unwrap();
        store.put(&record, secs(100)).await.unwrap();
    }
    tokio::time::sleep(ms(50)).await;
    assert_eq!(fleet_of(&pod).ignored(), 700);
    assert_eq!(pod.ask().await, "first");
}

#[test]
fn the_task_starts_with_the_first_request_and_again_on_another_runtime() {
    let store = Scripted::default();
    let pod = pod(store.clone());
    assert_eq!(store.calls.load(Ordering::Relaxed), 0);
    for _ in 0..3 {
        let before = store.calls.load(Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(pod.ask().await, "first");
            assert!(pod.chain.synced(secs(5)).await);
        });
        assert!(fleet_of(&pod).is_joined());
        drop(runtime);
        assert!(!fleet_of(&pod).is_joined());
        assert!(store.calls.load(Ordering::Relaxed) > before);
    }
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_handle() {
    for mode in [Mode::Up, Mode::Fails("down"), Mode::Silent] {
        let store = Scripted::default();
        let pod = pod(store.clone());
        synced(&[&pod]).await;
        store.set(mode);
        tokio::time::sleep(ms(900)).await;
        let clone = pod.chain.clone();
        drop(pod);
        tokio::time::sleep(secs(3)).await;
        assert!(Arc::strong_count(&store.calls) > 1, "a handle is left");
        drop(clone);
        tokio::time::sleep(ms(600)).await;
        assert_eq!(Arc::strong_count(&store.calls), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_holds_no_key_and_no_url() {
    let store = MemoryStore::new();
    let providers = || {
        vec![
            Provider::new("first", "https://first.test/canary-path/v1").bearer_auth("canary-1"),
            Provider::new("second", "https://second.test/{key}/v1").api_key_path("canary-2"),
        ]
    };
    let scripts =
        || [("first", Script::status(500)), ("second", Script::hint(429, "retry-after", "9"))];
    let pods: Vec<_> = (0..3)
        .map(|_| Harness::of_providers(providers(), scripts(), |chain| chain.share(store.clone())))
        .collect();
    for pod in &pods {
        for _ in 0..3 {
            _ = pod.post().header("x-api-key", "canary-3").send().await;
        }
        pod.chain.isolate("first").unwrap();
        pod.chain.set_order(["second", "first"]).unwrap();
        synced(&[pod]).await;
    }
    let records = store.list().await.unwrap();
    assert!(records.len() >= 4, "{records:?}");
    for (record, _) in &records {
        for canary in ["canary", "test", "http", "caller"] {
            assert!(!format!("{record:?}").contains(canary), "{record:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_of_one_process_passes_the_check() {
    let store = MemoryStore::new();
    assert_eq!(fleet::check(&store, &store.clone()).await, Ok(()));
    assert_eq!(store.list().await.unwrap(), [], "nothing is left");
    let failed = fleet::check(&store, &MemoryStore::new()).await.unwrap_err();
    assert!(failed.contains("is not listed"), "{failed}");
}

/// A store that does one thing wrong.
struct Wrong(MemoryStore, &'static str);

impl HealthStore for Wrong {
    type Watch = WrongWatch;

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        let is_new = self.0.list().await?.iter().all(|(kept, _)| kept.key() != record.key());
        let body = match self.1 {
            "trims" => record.body().trim(),
            "cuts" => &record.body()[..record.body().len().min(512)],
            _ => record.body(),
        };
        let record = Record::new(record.key(), body).unwrap();
        match self.1 {
            "keeps the first" if !is_new => Ok(()),
            "never removes" if ttl.is_zero() => Ok(()),
            "never expires" if !ttl.is_zero() => self.0.put(&record, ttl.max(secs(60))).await,
            "keeps the longest" if !is_new && !ttl.is_zero() => {
                self.0.put(&record, secs(120)).await
            }
            "counts in seconds" => self.0.put(&record, ttl * 1_000).await,
            "fails to remove" if ttl.is_zero() && is_new => Err("no such record".into()),
            _ => self.0.put(&record, ttl).await,
        }
    }

    async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
        let mut list = self.0.list().await?;
        if self.1 == "lists twice" {
            list.extend(list.clone());
        }
        Ok(list)
    }

    async fn watch(&self) -> Result<WrongWatch, StoreError> {
        match self.1 {
            "has no watch" => Err("no watch".into()),
            how => Ok(WrongWatch(self.0.watch().await?, how)),
        }
    }
}

struct WrongWatch(MemoryWatch, &'static str);

impl HealthWatch for WrongWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        let (record, ttl) = self.0.next().await?;
        Ok(match self.1 {
            "watches other bodies" => (Record::new(record.key(), "x").unwrap(), ttl),
            "watches other times" => (record, ttl * 2),
            "never watches" => pending().await,
            _ => (record, ttl),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_check_finds_what_a_store_does_wrong() {
    for (wrong, said) in [
        ("trims", "every printable byte"),
        ("cuts", "a body of 1 KiB"),
        ("keeps the first", "must write over"),
        ("never removes", "must remove the record"),
        ("never expires", "must expire"),
        ("keeps the longest", "also a shorter one"),
        ("counts in seconds", "was put for"),
        ("fails to remove", "put failed: no such record"),
        ("lists twice", "twice"),
        ("has no watch", "watch failed: no watch"),
        ("watches other bodies", "what was not put"),
        ("watches other times", "watch returned a record"),
    ] {
        let store = Wrong(MemoryStore::new(), wrong);
        let other = Wrong(store.0.clone(), wrong);
        let result = fleet::check(&store, &other).await;
        let failed = result.expect_err(wrong);
        assert!(failed.contains(said), "{wrong}: {failed}");
    }
    let store = Wrong(MemoryStore::new(), "never watches");
    assert_eq!(fleet::check(&store, &Wrong(store.0.clone(), "")).await, Ok(()));
}

#[test]
fn a_record_is_short_printable_text() {
    let long = |length: usize| "x".repeat(length);
    for (key, body) in
        [("a", String::new()), (&*long(128), long(1024)), ("a~b/c", " !~ \"'\\ ".to_owned())]
    {
        assert!(Record::new(key, &body).is_some(), "{key} {body}");
    }
    for (key, body) in [
        ("", ""),
        (&*long(129), ""),
        ("a b", ""),
        ("a\n", ""),
        ("ä", ""),
        ("a", &*long(1025)),
        ("a", "a\nb"),
        ("a", "\u{7f}"),
        ("a", "é"),
    ] {
        assert!(Record::new(key, body).is_none(), "{key:?} {body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_later_opens_nothing_by_what_was_answered() {
    let store = MemoryStore::new();
    let one = pod(store.clone());
    one.tell("first", Script::status(500));
    one.ask().await;
    synced(&[&one]).await;
    let (record, _) = store.list().await.unwrap().remove(0);
    let key = record.key().split('/').next().unwrap();
    let put = async |process: u64, body: &str| {
        let record = Record::new(&format!("{key}/{process:016x}"), body).unwrap();
        store.put(&record, secs(60)).await.unwrap();
    };
    put(1, "1 n=1 f=3 s=0 o=57000/1").await;
    put(2, "1 n=1 f=3 s=0 o=57000/1").await;
    let late = pod(store.clone());
    synced(&[&late]).await;
    assert!(matches!(late.state("first"), State::Open { .. }));
    put(3, "1 n=1 f=1 s=1 a=0000000000000001:3 a=0000000000000002:3").await;
    let later = pod(store.clone());
    synced(&[&later]).await;
    assert_eq!(later.state("first"), State::Closed);
}

#[test]
fn operators_of_all_threads_and_the_task_wait_for_each_other_for_no_more_than_a_moment() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_time()
            .build()
            .unwrap();
        let pod = runtime.block_on(async { pod(MemoryStore::new()) });
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        pod.chain.isolate("first").unwrap();
                        pod.chain.restore("first").unwrap();
                    }
                });
            }
        });
        assert!(runtime.block_on(pod.chain.synced(secs(10))));
        assert_eq!(pod.state("first"), State::Closed);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(secs(60)).expect("nothing is locked for ever");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_was_taken_back_is_not_obeyed_once_more() {
    let (notes, note) = notes();
    let pod = pod_with(MemoryStore::new(), |chain| chain.observe(note));
    synced(&[&pod]).await;
    pod.chain.isolate("first").unwrap();
    pod.chain.restore("first").unwrap();
    synced(&[&pod]).await;
    let steered = "steered: Some(\"first\") false";
    assert_eq!(*lock(&notes), ["joined", steered, steered]);
}

#[tokio::test(start_paused = true)]
async fn what_is_isolated_stays_so_where_the_list_is_replaced_before_others_are_told() {
    let store = MemoryStore::new();
    let (one, other) = (pod(store.clone()), pod(store));
    synced(&[&one, &other]).await;
    one.chain.isolate("first").unwrap();
    one.chain.replace([provider("second")]).unwrap();
    one.chain.replace([provider("first"), provider("second")]).unwrap();
    synced(&[&one, &other]).await;
    assert_eq!(other.state("first"), State::Isolated);
    assert_eq!(one.state("first"), State::Isolated);
}

/// A store whose watch has a record whenever it is asked.
struct Flood(MemoryStore);

struct FloodWatch;

impl HealthStore for Flood {
    type Watch = FloodWatch;

    async fn put(&self, record: &Record, ttl: Duration) -> Result<(), StoreError> {
        self.0.put(record, ttl).await
    }

    async fn list(&self) -> Result<Vec<(Record, Duration)>, StoreError> {
        self.0.list().await
    }

    async fn watch(&self) -> Result<FloodWatch, StoreError> {
        Ok(FloodWatch)
    }
}

impl HealthWatch for FloodWatch {
    async fn next(&mut self) -> Result<(Record, Duration), StoreError> {
        Ok((Record::new("nonsense", "").unwrap(), secs(1)))
    }
}

#[test]
fn a_watch_that_never_waits_leaves_time_for_requests() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let pod = pod(Flood(MemoryStore::new()));
            for _ in 0..20 {
                assert_eq!(pod.ask().await, "first");
                tokio::task::yield_now().await;
            }
            assert!(pod.chain.synced(secs(5)).await);
        });
        done.send(()).unwrap();
    });
    is_done.recv_timeout(secs(20)).expect("the task lets others run");
}

fn paused_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[test]
fn a_task_that_never_ran_is_started_again() {
    let runtime = paused_runtime();
    let entered = runtime.enter();
    let pod = pod(MemoryStore::new());
    drop(entered);
    drop(runtime);
    paused_runtime().block_on(async { assert!(pod.chain.synced(secs(5)).await) });
}

#[test]
fn what_was_not_written_when_a_runtime_ended_is_written_on_the_next_one() {
    let store = Scripted::default();
    let one = pod(store.clone());
    paused_runtime().block_on(async {
        synced(&[&one]).await;
        store.set(Mode::Fails("down"));
        one.chain.isolate("second").unwrap();
        one.tell("first", Script::hint(429, "retry-after", "100"));
        _ = one.post().send().await;
        tokio::time::sleep(secs(3)).await;
    });
    store.set(Mode::Up);
    paused_runtime().block_on(async {
        let other = pod(store.clone());
        synced(&[&one, &other]).await;
        assert_eq!(other.state("second"), State::Isolated);
        assert!(matches!(other.state("first"), State::CoolingDown { .. }));
    });
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_replaced_while_the_store_is_away_is_synced_when_it_is_back() {
    let store = Scripted::default();
    let pod = pod(store.clone());
    synced(&[&pod]).await;
    store.set(Mode::Fails("down"));
    tokio::time::sleep(secs(2)).await;
    pod.chain.replace([provider("first")]).unwrap();
    store.set(Mode::Up);
    assert!(pod.chain.synced(secs(5)).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_isolated_stays_so_in_a_list_that_comes_while_the_store_is_away() {
    let store = Scripted::default();
    let pod = pod(store.clone());
    pod.chain.isolate("first").unwrap();
    synced(&[&pod]).await;
    pod.chain.replace([provider("second")]).unwrap();
    synced(&[&pod]).await;
    store.set(Mode::Fails("down"));
    tokio::time::sleep(secs(2)).await;
    pod.chain.replace([provider("first"), provider("second")]).unwrap();
    tokio::time::sleep(ms(1)).await;
    assert_eq!(pod.state("first"), State::Isolated);
}

/// A chain whose providers fail all the time and are asked all the same.
fn busy_pod(store: impl HealthStore) -> Harness {
    let never = Breaker::default().consecutive(10_000).ratio(1.0, 10_000);
    let pod = pod_with(store, |chain| chain.breaker(never));
    for name in ["first", "second"] {
        pod.tell(name, Script::status(500));
    }
    pod
}

async fn keep_busy(pod: &Harness) {
    loop {
        _ = pod.post().send().await;
        tokio::time::sleep(ms(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_with_much_to_say_to_a_slow_store_hears_others() {
    let store = Scripted::default();
    let (busy, other) = (busy_pod(store.clone()), pod(store.clone()));
    synced(&[&busy, &other]).await;
    store.set(Mode::SlowPuts(300));
    let heard = async {
        tokio::time::sleep(secs(2)).await;
        other.chain.isolate("second").unwrap();
        tokio::time::sleep(secs(3)).await;
        assert_eq!(busy.state("second"), State::Isolated);
    };
    tokio::select! {
        () = keep_busy(&busy) => {}
        () = heard => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_with_much_to_say_is_synced() {
    let busy = busy_pod(MemoryStore::new());
    let is_synced = async {
        tokio::time::sleep(secs(3)).await;
        busy.chain.set_order(["second", "first"]).unwrap();
        busy.chain.synced(secs(1)).await
    };
    tokio::select! {
        () = keep_busy(&busy) => {}
        is_synced = is_synced => assert!(is_synced),
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_may_replace_the_list_while_reports_are_read() {
    let store = MemoryStore::new();
    let other = pod(store.clone());
    for name in ["first", "second"] {
        other.tell(name, Script::hint(429, "retry-after", "100"));
    }
    _ = other.post().send().await;
    synced(&[&other]).await;
    assert_eq!(store.list().await.unwrap().len(), 2);
    let chain: Arc<Mutex<Option<ProviderChain>>> = Arc::default();
    let of_closure = chain.clone();
    let pod = pod_with(store, move |builder| {
        builder.observe(move |event| {
            let chain = lock(&of_closure).take();
            if let (Some(chain), Event::CoolingDown { provider, .. }) = (chain, event) {
                chain.replace([provider_of(provider)]).unwrap();
            }
        })
    });
    *lock(&chain) = Some(pod.chain.clone());
    assert!(pod.chain.synced(secs(1)).await);
    assert_eq!(names(&pod).len(), 1);
    assert!(matches!(pod.chain.snapshot().providers()[0].state(), State::CoolingDown { .. }));
}

fn provider_of(name: &str) -> Provider {
    provider(if name == "first" { "first" } else { "second" })
}

trait Fails {
    /// Opens or rests its first provider, by what that one does.
    fn fail_five_times(&self) -> impl Future<Output = ()>;
}

impl Fails for Harness {
    async fn fail_five_times(&self) {
        for _ in 0..5 {
            _ = self.post().send().await;
        }
    }
}
