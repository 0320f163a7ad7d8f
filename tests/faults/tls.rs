//! An authority of our own, and the certificates that it should not have signed, or did not.

use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Which certificate a server shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certificate {
    Good,
    /// Signed by itself only.
    SelfSigned,
    Expired,
    OtherName,
}

/// The authority that clients trust, in DER.
pub(crate) fn authority() -> &'static [u8] {
    world().authority.as_ref()
}

/// What a server with this certificate is set up with.
pub(crate) fn server(certificate: Certificate) -> Arc<ServerConfig> {
    let TlsHarness { good, self_signed, expired, other_name, .. } = world();
    match certificate {
        Certificate::Good => good.clone(),
        Certificate::SelfSigned => self_signed.clone(),
        Certificate::Expired => expired.clone(),
        Certificate::OtherName => other_name.clone(),
    }
}

struct TlsHarness {
    authority: CertificateDer<'static>,
    good: Arc<ServerConfig>,
    self_signed: Arc<ServerConfig>,
    expired: Arc<ServerConfig>,
    other_name: Arc<ServerConfig>,
}

fn world() -> &'static TlsHarness {
    static WORLD: OnceLock<TlsHarness> = OnceLock::new();
    WORLD.get_or_init(|| make_world().expect("certificates"))
}

fn make_world() -> Result<TlsHarness, rcgen::Error> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?.der().clone();
    let issuer = Issuer::new(params, key);

    let named = |name: &str| CertificateParams::new([name.to_owned()]);
    let signed = |params: CertificateParams| {
        let key = KeyPair::generate()?;
        Ok::<_, rcgen::Error>(config(params.signed_by(&key, &issuer)?.der().clone(), &key))
    };
    let mut old = named("127.0.0.1")?;
    (old.not_before, old.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let own_key = KeyPair::generate()?;
    let own = named("127.0.0.1")?.self_signed(&own_key)?.der().clone();
    Ok(TlsHarness {
        authority,
        good: signed(named("127.0.0.1")?)?,
        self_signed: config(own, &own_key),
        expired: signed(old)?,
        other_name: signed(named("elsewhere.test")?)?,
    })
}

fn config(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a key that fits its certificate");
    Arc::new(config)
}
