//! `rediss://`, with a certificate that only the client is told to trust.

#![cfg(feature = "tls-rustls")]

use std::path::Path;
use std::time::Duration;

use redis::{Client, TlsCertificates};
use reqwest_failover::fleet::{self, HealthStore, Record};
use reqwest_failover_redis::RedisHealth;
use reqwest_failover_testing::redis::{RedisServer, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn does_over_tls_what_a_store_must() {
    let folder = std::env::temp_dir().join(format!("fleet-tls-{:x}", fastrand::u64(..)));
    std::fs::create_dir(&folder).unwrap();
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = signed.cert.pem();
    std::fs::write(folder.join("cert.pem"), &certificate).unwrap();
    std::fs::write(folder.join("key.pem"), signed.signing_key.serialize_pem()).unwrap();
    speaks_tls(&folder, &certificate).await;
    std::fs::remove_dir_all(folder).unwrap();
}

async fn speaks_tls(folder: &Path, certificate: &str) {
    let path = |name| folder.join(name).display().to_string();
    let (port, cert, key) = (free_port().to_string(), path("cert.pem"), path("key.pem"));
    let settings = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let settings = [&settings[..], &["--tls-auth-clients", "no"]].concat();
    if std::env::var_os("REDIS_SERVER").is_some() {
        println!("SKIPPED: not every server is built with TLS");
        return;
    }
    let Some(_server) = RedisServer::start(&settings) else { return };
    let url = format!("rediss://localhost:{port}");
    let open = || {
        let root_cert = Some(certificate.as_bytes().to_vec());
        let tls = TlsCertificates { client_tls: None, root_cert };
        let client = Client::build_with_tls(url.as_str(), tls).unwrap();
        RedisHealth::with_client(client, "test").unwrap()
    };
    assert_eq!(fleet::check(&open(), &open()).await, Ok(()));

    // By the URL alone it is not trusted.
    let untrusting = RedisHealth::new(&url, "test").unwrap();
    let record = Record::new("a", "1").unwrap();
    let error = untrusting.put(&record, Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
}
