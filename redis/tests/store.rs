//! `RedisHealth` against a real server: what a store must do, what Redis holds of it, and every way in which
//! Redis can fail. `REDIS_SERVER` names another program, such as `valkey-server`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use redis::{Client, Connection, cmd};
use reqwest_failover::fleet::{self, HealthStore, HealthWatch, Record};
use reqwest_failover_redis::RedisHealth;
use reqwest_failover_testing::redis::{Mode, Proxy, RedisServer};
use reqwest_failover_testing::support::canary;
use tokio::time::{sleep, timeout};

const HASH: &str = "reqwest-failover:{test}:1";
const MINUTE: Duration = Duration::from_secs(60);

/// The server, or the end of the test where none is installed.
macro_rules! server {
    ($($setting:expr),*) => {
        match RedisServer::start(&[$($setting),*]) {
            Some(server) => server,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn does_what_a_store_must() {
    let server = server!();
    assert_eq!(fleet::check(&store(&server), &store(&server)).await, Ok(()));
    assert_eq!(fields(&server), BTreeMap::new(), "the check removes what it wrote");
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_a_record_as_one_field_with_its_end_and_publishes_it() {
    let server = server!();
    let store = store(&server);
    let mut channel = Subscribed::to(&server, HASH);
    let began = server_time(&server);
    store.put(&record("a/1", "1 n=2"), Duration::from_nanos(60_000_000_001)).await.unwrap();

    let fields = fields(&server);
    let (until, body) = fields["a/1"].split_once(' ').unwrap();
    let until: u64 = until.parse().unwrap();
    assert_eq!(body, "1 n=2");
    assert!((60_001..61_001).contains(&(until - began)), "{until} is not a minute after {began}");
    assert_eq!(channel.next(), "a/1 60001 1 n=2", "a part of a millisecond counts as a whole one");
    let left: i64 = cmd("PTTL").arg(HASH).query(&mut admin(&server)).unwrap();
    assert!((59_000..=60_001).contains(&left), "the hash has {left} ms left");

    store.put(&record("a/1", "1 n=3"), Duration::ZERO).await.unwrap();
    assert_eq!(channel.next(), "a/1 0 1 n=3");
    assert!(self::fields(&server).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hash_lives_as_long_as_its_longest_record() {
    let server = server!();
    let store = store(&server);
    for seconds in [60, 600, 5] {
        let ttl = Duration::from_secs(seconds);
        store.put(&record(&format!("for/{seconds}"), "1"), ttl).await.unwrap();
    }
    let left: i64 = cmd("PTTL").arg(HASH).query(&mut admin(&server)).unwrap();
    assert!((590_000..=600_000).contains(&left), "{left} ms");
    store.put(&record("for/ever", "1"), Duration::MAX).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_what_others_put() {
    let server = server!();
    let (writer, reader) = (store(&server), store(&server));
    let mut watch = reader.watch().await.unwrap();
    for number in 0..100 {
        writer.put(&record("a", &format!("1 n={number}")), MINUTE).await.unwrap();
        assert_eq!(next(&mut watch).await, ("a".into(), format!("1 n={number}"), MINUTE));
    }
    writer.put(&record("a", "gone"), Duration::ZERO).await.unwrap();
    assert_eq!(next(&mut watch).await, ("a".into(), "gone".into(), Duration::ZERO));
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_do_not_see_each_other() {
    let server = server!();
    let (one, other) = (store(&server), RedisHealth::new(&server.url(), "other").unwrap());
    let mut watch = other.watch().await.unwrap();
    one.put(&record("a", "1"), MINUTE).await.unwrap();
    assert_eq!(other.list().await.unwrap(), []);
    other.put(&record("b", "1"), MINUTE).await.unwrap();
    assert_eq!(next(&mut watch).await.0, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_always_room_for_commands() {
    let server = server!();
    let (store, mut admin) = (store(&server), admin(&server));
    let value = format!("{} 1", server_time(&server) + 60_000);
    for number in 0..1_000 {
        cmd("HSET").arg(HASH).arg(format!("full{number}")).arg(&value).exec(&mut admin).unwrap();
    }
    store.put(&record("report", "1"), 10 * MINUTE).await.unwrap();
    store.put(&record("command", "1"), 7 * 24 * 60 * MINUTE).await.unwrap();
    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 1_001);
    assert!(listed.iter().any(|(record, _)| record.key() == "command"));
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_out_and_removes_what_is_no_record() {
    let server = server!();
    let store = store(&server);
    let mut watch = store.watch().await.unwrap();
    let (mut admin, end) = (admin(&server), server_time(&server) + 60_000);
    for number in 0..995 {
        let value = format!("{{\"foreign\": {number}}}");
        cmd("HSET").arg(HASH).arg(format!("foreign{number}")).arg(value).exec(&mut admin).unwrap();
    }
    // These have not ended, and so they stay.
    for (field, body) in [("with space", "1"), ("tab\t", "1"), ("odd", "\u{e4}"), ("nul", "\0")] {
        cmd("HSET").arg(HASH).arg(field).arg(format!("{end} {body}")).exec(&mut admin).unwrap();
    }
    cmd("HSET").arg(HASH).arg(&b"\xff\xfe"[..]).arg(format!("{end} 1")).exec(&mut admin).unwrap();
    assert_eq!(cmd("HLEN").arg(HASH).query(&mut admin), Ok(1000));

    // There is no room for it, but it is heard.
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    assert_eq!(next(&mut watch).await.0, "a");
    assert_eq!(store.list().await.unwrap(), []);
    store.put(&record("a", "2"), MINUTE).await.unwrap();
    let listed = store.list().await.unwrap();
    assert_eq!(listed.iter().map(|(record, _)| record.body()).collect::<Vec<_>>(), ["2"]);
    assert_eq!(cmd("HLEN").arg(HASH).query(&mut admin), Ok(6));

    for message in
        ["", "a", "a 5", "a b c", " 5 1", "a -5 1", "a 99999999999999999999 1", "\u{e4} 5 1"]
    {
        cmd("PUBLISH").arg(HASH).arg(message).exec(&mut admin).unwrap();
    }
    cmd("PUBLISH").arg(HASH).arg("b 5 1").exec(&mut admin).unwrap();
    assert_eq!(next(&mut watch).await.0, "a");
    assert_eq!(next(&mut watch).await.0, "b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_an_error() {
    let server = server!();
    let store = store(&server);
    cmd("SET").arg(HASH).arg("foreign").exec(&mut admin(&server)).unwrap();
    let error = store.list().await.unwrap_err().to_string();
    assert!(error.contains("WRONGTYPE"), "{error}");
    cmd("FLUSHALL").exec(&mut admin(&server)).unwrap();
    assert_eq!(store.list().await.unwrap(), []);
}

// Where Redis fails.

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_ends_the_watch_and_the_next_call_finds_a_new_one() {
    let mut server = server!();
    let store = store(&server);
    let mut watch = store.watch().await.unwrap();
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    next(&mut watch).await;
    server.kill();
    ends_within(&mut watch, Duration::from_millis(200)).await;
    let error = store.put(&record("a", "1"), MINUTE).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");

    server.restart();
    let mut watch = store.watch().await.expect("the first call connects");
    assert_eq!(store.list().await.unwrap(), [], "it was restarted empty");
    store.put(&record("a", "2"), MINUTE).await.unwrap();
    assert_eq!(next(&mut watch).await.1, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_that_no_call_met_the_first_call_is_answered() {
    let mut server = server!();
    let store = store(&server);
    let mut watch = store.watch().await.unwrap();
    server.kill();
    server.restart();
    ends_within(&mut watch, Duration::from_millis(200)).await;
    store.list().await.expect("a connection that is lost is not used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_fails_each_call_in_time() {
    let server = server!();
    fails_in_time(&server, || server.pause(), || server.resume()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_server_fails_each_call_in_time() {
    let server = server!();
    let pause = || cmd("CLIENT").arg("PAUSE").arg(2500).exec(&mut admin(&server)).unwrap();
    // Answered when the pause is over.
    let resume = || cmd("PING").exec(&mut admin(&server)).unwrap();
    fails_in_time(&server, pause, resume).await;
}

/// From `stop` to `resume`, all calls fail in time, and the first one after it does not.
async fn fails_in_time(server: &RedisServer, stop: impl Fn(), resume: impl Fn()) {
    let store = store(server);
    let mut watch = store.watch().await.unwrap();
    store.list().await.unwrap();
    stop();
    let began = Instant::now();
    store.put(&record("a", "1"), MINUTE).await.unwrap_err();
    let took = began.elapsed();
    assert!((400..900).contains(&took.as_millis()), "{took:?}");
    let began = Instant::now();
    store.list().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    ends_within(&mut watch, Duration::ZERO).await;
    resume();
    store.list().await.expect("it answers again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_response_timeout_is_the_callers_wish() {
    let server = server!();
    let store = store(&server).response_timeout(Duration::from_millis(100));
    store.list().await.unwrap();
    server.pause();
    let began = Instant::now();
    store.list().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_is_a_failed_one() {
    let server = server!();
    let store = store(&server);
    let mut watch = store.watch().await.unwrap();
    store.list().await.unwrap();
    server.pause();
    let put = record("a", "1");
    assert!(timeout(Duration::from_millis(50), store.put(&put, MINUTE)).await.is_err());
    server.resume();
    store.list().await.expect("it has a new connection");
    ends_within(&mut watch, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_server_keeps_the_watch() {
    let server = server!();
    let store = store(&server);
    let mut watch = store.watch().await.unwrap();
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    next(&mut watch).await;
    cmd("FLUSHALL").exec(&mut admin(&server)).unwrap();
    assert_eq!(store.list().await.unwrap(), []);
    store.put(&record("a", "2"), MINUTE).await.unwrap();
    assert_eq!(next(&mut watch).await.1, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_fails_each_call_in_time_and_then_is_forgotten() {
    let server = server!();
    let proxy = Proxy::start(server.addr()).await;
    let store = RedisHealth::new(&proxy.url(), "test").unwrap();
    let mut watch = store.watch().await.unwrap();
    proxy.set(Mode::BlackHole);
    for _ in 0..2 {
        let began = Instant::now();
        store.list().await.unwrap_err();
        assert!(began.elapsed() < Duration::from_millis(1300), "{:?}", began.elapsed());
    }
    ends_within(&mut watch, Duration::ZERO).await;
    // As a chain does, which waits for 500 ms.
    assert!(timeout(Duration::from_millis(500), store.list()).await.is_err());
    sleep(Duration::from_millis(700)).await;
    proxy.set(Mode::Pass);
    store.list().await.expect("what it began in the black hole is begun again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_replaced_after_one_call() {
    let server = server!();
    let proxy = Proxy::start(server.addr()).await;
    let store = RedisHealth::new(&proxy.url(), "test").unwrap();
    let mut watch = store.watch().await.unwrap();
    proxy.set(Mode::HalfOpen);
    store.list().await.unwrap_err();
    store.list().await.unwrap();
    ends_within(&mut watch, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_the_watch() {
    let server = server!();
    let proxy = Proxy::start(server.addr()).await;
    let store = RedisHealth::new(&proxy.url(), "test").unwrap();
    let mut watch = store.watch().await.unwrap();
    proxy.set(Mode::Reset);
    ends_within(&mut watch, Duration::from_millis(200)).await;
    store.list().await.unwrap_err();
    proxy.set(Mode::Pass);
    store.list().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_network_connects_although_each_call_is_cut_off() {
    let server = server!();
    let proxy = Proxy::start(server.addr()).await;
    proxy.set(Mode::Delay(Duration::from_millis(300)));
    let store = RedisHealth::new(&proxy.url(), "test").unwrap();
    // To connect takes one answer and to subscribe another, together longer than a call has.
    let mut watch = None;
    for _ in 0..3 {
        watch = timeout(Duration::from_millis(500), store.watch()).await.ok();
        if watch.is_some() {
            break;
        }
    }
    let mut watch = watch.expect("connecting goes on with the next call").unwrap();
    timeout(Duration::from_millis(500), store.put(&record("a", "1"), MINUTE))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(next(&mut watch).await.0, "a");
    assert_eq!(store.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_read_and_refuses_what_is_put() {
    let server = server!();
    let port = server.port().to_string();
    let replica = server!("--replicaof", "127.0.0.1", &port);
    let (store, on_replica) = (store(&server), store(&replica));
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    for _ in 0..100 {
        if on_replica.list().await.is_ok_and(|listed| listed.len() == 1) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(on_replica.list().await.unwrap().len(), 1);
    let error = on_replica.put(&record("b", "1"), MINUTE).await.unwrap_err().to_string();
    assert!(error.contains("ReadOnly"), "{error}");
}

// Without pushes.

#[tokio::test(flavor = "multi_thread")]
async fn without_resp3_it_is_polled_only() {
    let server = server!("--rename-command", "HELLO", "");
    polls_only(&server.url(), &server, "the server does not speak RESP3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_channel_it_is_polled_only() {
    let server = server!();
    let acl = ["resetchannels", "~reqwest-failover:{test}:*", "-@all"];
    set_user(&server, &[&acl[..], COMMANDS].concat());
    let reason = "the user may not subscribe to the channel";
    polls_only(&url_of_user(&server), &server, reason).await;
}

async fn polls_only(url: &str, server: &RedisServer, reason: &str) {
    canary::keep_logs();
    let open = |namespace| RedisHealth::new(url, namespace).unwrap();
    assert_eq!(fleet::check(&open("test"), &open("test")).await, Ok(()));
    let store = open("test");
    let mut watch = store.watch().await.unwrap();
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    assert!(timeout(Duration::from_millis(200), watch.next()).await.is_err(), "it stays pending");
    let before = count_warnings(reason);
    assert!(before >= 1, "it is said");
    // A new connection says nothing new.
    server.pause();
    store.list().await.unwrap_err();
    server.resume();
    store.list().await.unwrap();
    assert_eq!(count_warnings(reason), before, "it is said once");
}

fn count_warnings(reason: &str) -> usize {
    canary::logs().lines().filter(|line| line.contains("WARN") && line.contains(reason)).count()
}

// Rights and secrets.

const PASSWORD: &str = "sesame-Kq7x-open";
const CHANNEL: &str = "&reqwest-failover:{test}:*";
const KEYS: &str = "~reqwest-failover:{test}:*";
/// What docs/fleet.md names.
const COMMANDS: &[&str] = &[
    "+eval",
    "+time",
    "+hset",
    "+hdel",
    "+hexists",
    "+hlen",
    "+hgetall",
    "+pttl",
    "+pexpire",
    "+publish",
    "+subscribe",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_suffice() {
    let server = server!();
    let rights = [&["resetchannels", CHANNEL, KEYS, "-@all"], COMMANDS].concat();
    set_user(&server, &rights);
    let open = || RedisHealth::new(&url_of_user(&server), "test").unwrap();
    assert_eq!(fleet::check(&open(), &open()).await, Ok(()));
    let store = open();
    let mut watch = store.watch().await.unwrap();
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    assert_eq!(next(&mut watch).await.0, "a");

    let page = include_str!("../../docs/fleet.md");
    let rights = rights.join(" ").replace("{test}", "{payments}");
    assert!(page.contains(&rights), "docs/fleet.md names other rights than {rights}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_the_documented_rights_is_needed() {
    let server = server!();
    let rights = [&[CHANNEL, KEYS, "-@all"], COMMANDS].concat();
    for left_out in [&[CHANNEL, KEYS], COMMANDS].concat() {
        let fewer = rights.iter().filter(|right| **right != left_out);
        let fewer: Vec<&str> = ["reset", "resetchannels"].iter().chain(fewer).copied().collect();
        set_user(&server, &fewer);
        cmd("FLUSHALL").exec(&mut admin(&server)).unwrap();
        assert_ne!(uses_all(&server).await, Ok(()), "it does without {left_out}");
    }
    let all = ["reset", "resetchannels"].iter().chain(&rights).copied().collect::<Vec<_>>();
    set_user(&server, &all);
    cmd("FLUSHALL").exec(&mut admin(&server)).unwrap();
    assert_eq!(uses_all(&server).await, Ok(()));
}

/// Everything that a store can do, with pushes.
async fn uses_all(server: &RedisServer) -> Result<(), String> {
    let text = |error: fleet::StoreError| error.to_string();
    let store = RedisHealth::new(&url_of_user(server), "test").unwrap();
    let mut watch = store.watch().await.map_err(text)?;
    store.put(&record("a", "1"), MINUTE).await.map_err(text)?;
    store.put(&record("a", "2"), Duration::ZERO).await.map_err(text)?;
    store.list().await.map_err(text)?;
    let push = timeout(Duration::from_millis(300), watch.next()).await;
    push.map_err(|_| "no push".to_owned())?.map(drop).map_err(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_an_error_that_does_not_show_it() {
    let server = server!("--requirepass", "another");
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let store = RedisHealth::new(&url, "test").unwrap();
    let error = store.list().await.unwrap_err();
    assert!(error.to_string().contains("WRONGPASS"), "{error}");
    let without = RedisHealth::new(&server.url(), "test").unwrap();
    let error_without = without.list().await.unwrap_err();
    assert!(error_without.to_string().contains("NOAUTH"), "{error_without}");
    hides_password(&format!("{error} {error:?} {store:?}"));
}

/// As Redis before 6 does with the command that logs in.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_quotes_the_password_does_not_show_it() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut asked = [0; 1024];
            let length = socket.read(&mut asked).await.unwrap();
            assert!(String::from_utf8_lossy(&asked[..length]).contains(PASSWORD));
            let answer = format!("-ERR cannot do HELLO 3 AUTH user {PASSWORD} now\r\n").repeat(3);
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let url = format!("redis://user:{PASSWORD}@127.0.0.1:{port}");
    let error = RedisHealth::new(&url, "test").unwrap().list().await.unwrap_err();
    assert!(error.to_string().contains("HELLO 3 AUTH user ... now"), "{error}");
    hides_password(&format!("{error} {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_hash_the_monitor_output_or_the_logs() {
    let server = server!("--requirepass", PASSWORD);
    canary::keep_logs();
    let monitor = Monitor::of(&server);
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let (store, other) =
        (RedisHealth::new(&url, "test").unwrap(), RedisHealth::new(&url, "test").unwrap());
    assert_eq!(fleet::check(&store, &other).await, Ok(()));
    store.put(&record("a", "1"), MINUTE).await.unwrap();
    let client = Client::open(url).unwrap();
    let fields: BTreeMap<String, String> =
        cmd("HGETALL").arg(HASH).query(&mut client.get_connection().unwrap()).unwrap();
    assert_eq!(fields.len(), 1);
    let monitored = monitor.text();
    assert!(monitored.contains("EVAL") && monitored.contains(HASH), "{monitored}");
    hides_password(&format!("{fields:?} {monitored} {} {store:?}", canary::logs()));
}

fn hides_password(text: &str) {
    assert!(!text.contains("Kq7x"), "{text}");
}

#[test]
fn no_error_of_new_shows_the_url() {
    let secret = "Kq7x-user:Kq7x-password@Kq7x-host";
    for url in [
        format!("http://{secret}"),
        format!("redis://{secret}:port"),
        format!("redis://{secret}/Kq7x"),
        format!("redis://{secret}/?protocol=Kq7x"),
        format!("redis://{secret} /"),
        "Kq7x".to_owned(),
        String::new(),
    ] {
        let error = RedisHealth::new(&url, "test").unwrap_err();
        hides_password(&format!("{error} {error:?}"));
        assert!(error.to_string().len() > 10, "{url}: {error}");
    }
}

#[test]
fn a_namespace_is_a_short_name() {
    let with = |namespace: &str| RedisHealth::new("redis://127.0.0.1", namespace);
    for right in ["a", "Payments-2.eu_west", &"n".repeat(64)] {
        assert!(with(right).is_ok(), "{right}");
    }
    for wrong in ["", "a b", "a:b", "{a}", "a*", "\u{e4}", &"n".repeat(65)] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(error.starts_with("a namespace has 1 to 64 characters"), "{error}");
    }
}

// What does not work, with the error that it gives. docs/fleet.md quotes them.

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_refuses() {
    let config = format!("nodes-{:x}.conf", fastrand::u64(..));
    let node = server!("--cluster-enabled", "yes", "--cluster-config-file", &config);
    let mut admin = admin(&node);
    quoted(&store(&node).list().await.unwrap_err().to_string(), "ClusterDown: ");

    // The hash's slot is at another node.
    let other_config = format!("nodes-{:x}.conf", fastrand::u64(..));
    let other = server!("--cluster-enabled", "yes", "--cluster-config-file", &other_config);
    let mut other_admin = self::admin(&other);
    let slot: u16 = cmd("CLUSTER").arg("KEYSLOT").arg(HASH).query(&mut admin).unwrap();
    let slots = (0..16384).filter(|of| *of != slot).collect::<Vec<_>>();
    cmd("CLUSTER").arg("ADDSLOTS").arg(slots).exec(&mut admin).unwrap();
    cmd("CLUSTER").arg("ADDSLOTS").arg(slot).exec(&mut other_admin).unwrap();
    let meet = ["MEET", "127.0.0.1", &other.port().to_string()].map(str::to_owned);
    cmd("CLUSTER").arg(&meet[..]).exec(&mut admin).unwrap();
    let mut error = String::new();
    for _ in 0..150 {
        error = store(&node).list().await.map_or_else(|error| error.to_string(), |_| String::new());
        if error.starts_with("Moved") {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    quoted(&error, "Moved: ");
    store(&other).list().await.expect("the node that has the key works");
    for config in [config, other_config] {
        _ = std::fs::remove_file(std::env::temp_dir().join(config));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_refuses() {
    let config = std::env::temp_dir().join(format!("sentinel-{:x}.conf", fastrand::u64(..)));
    std::fs::write(&config, "").unwrap();
    let sentinel = server!(config.to_str().unwrap(), "--sentinel");
    quoted(&store(&sentinel).list().await.unwrap_err().to_string(), "unknown command");
    drop(sentinel);
    std::fs::remove_file(config).unwrap();
}

/// The page has this part of the error.
fn quoted(error: &str, part: &str) {
    println!("{error}");
    assert!(error.contains(part), "{error}");
    let page = include_str!("../../docs/fleet.md");
    assert!(page.contains(part), "docs/fleet.md does not have {part:?}");
}

// What the tests use.

fn store(server: &RedisServer) -> RedisHealth {
    RedisHealth::new(&server.url(), "test").unwrap()
}

fn record(key: &str, body: &str) -> Record {
    Record::new(key, body).unwrap()
}

fn admin(server: &RedisServer) -> Connection {
    Client::open(server.url()).unwrap().get_connection().unwrap()
}

fn set_user(server: &RedisServer, rights: &[&str]) {
    let mut set = cmd("ACL");
    set.arg("SETUSER").arg("app").arg(rights).arg("on").arg(format!(">{PASSWORD}"));
    set.exec(&mut admin(server)).unwrap();
}

fn url_of_user(server: &RedisServer) -> String {
    format!("redis://app:{PASSWORD}@127.0.0.1:{}", server.port())
}

fn fields(server: &RedisServer) -> BTreeMap<String, String> {
    cmd("HGETALL").arg(HASH).query(&mut admin(server)).unwrap()
}

/// In milliseconds, by the server's clock.
fn server_time(server: &RedisServer) -> u64 {
    let (seconds, micros): (u64, u64) = cmd("TIME").query(&mut admin(server)).unwrap();
    seconds * 1000 + micros / 1000
}

async fn next(watch: &mut impl HealthWatch) -> (String, String, Duration) {
    let next = timeout(Duration::from_secs(5), watch.next()).await.expect("a push").unwrap();
    (next.0.key().to_owned(), next.0.body().to_owned(), next.1)
}

async fn ends_within(watch: &mut impl HealthWatch, time: Duration) {
    loop {
        // What was pushed before comes first.
        match timeout(time.max(Duration::from_millis(1)), watch.next()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                assert_eq!(error.to_string(), "the connection to Redis is lost");
                return;
            }
            Err(_) => panic!("the watch goes on after {time:?}"),
        }
    }
}

/// A plain subscriber of one channel.
struct Subscribed(BufReader<TcpStream>);

impl Subscribed {
    fn to(server: &RedisServer, channel: &str) -> Self {
        let mut socket = TcpStream::connect(server.addr()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(socket, "SUBSCRIBE {channel}\r\n").unwrap();
        let mut lines = BufReader::new(socket);
        for _ in 0..6 {
            line(&mut lines);
        }
        Self(lines)
    }

    /// The next message: the last of its seven lines.
    fn next(&mut self) -> String {
        (0..7).map(|_| line(&mut self.0)).last().unwrap()
    }
}

/// What `MONITOR` says of all commands.
struct Monitor(BufReader<TcpStream>);

impl Monitor {
    fn of(server: &RedisServer) -> Self {
        let mut socket = TcpStream::connect(server.addr()).unwrap();
        write!(socket, "AUTH {PASSWORD}\r\nMONITOR\r\n").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut lines = BufReader::new(socket);
        assert_eq!([line(&mut lines), line(&mut lines)], ["+OK", "+OK"]);
        Self(lines)
    }

    fn text(mut self) -> String {
        let mut text = String::new();
        // It ends when nothing comes for half a second.
        while self.0.read_line(&mut text).is_ok_and(|read| read > 0) {}
        text
    }
}

fn line(lines: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line.trim_end_matches(['\r', '\n']).to_owned()
}
