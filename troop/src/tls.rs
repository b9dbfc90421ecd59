//! TLS for hold signals and channels: whom to trust, and the handshake over a connection that somebody else has dialled.
//!
//! Trusted are the authorities that this machine trusts, and those of the site's `ca_file`. They are read anew for every
//! question, since a certificate that was exchanged must not need a restart. What cannot be read is an error, and spares.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::outside::Stream;

/// Why nobody, or not this one, can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("could not read the certificates of `{}`", path.display())]
    CaFile {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("`{}` holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("`{}` holds a certificate that cannot be used", path.display())]
    BadCertificate {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("this machine trusts no authority, and there is no `ca_file`: {why}")]
    NoRoots { why: String },
    #[error("could not set up TLS")]
    Config(#[source] rustls::Error),
    #[error("`{host}` is no name that a certificate can have")]
    Name {
        host: String,
        #[source]
        source: InvalidDnsNameError,
    },
    #[error("its certificate is signed by nobody whom this machine or `ca_file` trusts")]
    UnknownIssuer,
    #[error("its certificate is for another name than `{host}`")]
    OtherName { host: String },
    #[error("its certificate has expired")]
    Expired,
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
}

/// Whom hold signals and channels may be signed by.
#[derive(Clone)]
pub struct Trust(TlsConnector);

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

/// Reads the certificates of a PEM file, of which there must be one at least.
///
/// # Errors
/// [`TlsError`] when it cannot be read, or holds none or one that is no authority's.
pub fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::CaFile { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(error)?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    add(&mut RootCertStore::empty(), path, &certificates)?;
    Ok(certificates)
}

fn add(roots: &mut RootCertStore, path: &Path, certificates: &[CertificateDer<'static>]) -> Result<(), TlsError> {
    let bad = |source| TlsError::BadCertificate { path: path.to_owned(), source };
    certificates.iter().try_for_each(|certificate| roots.add(certificate.clone())).map_err(bad)
}

impl Trust {
    /// Reads whom this machine trusts, and the file.
    ///
    /// # Errors
    /// [`TlsError`] when the file cannot be used, or there is nobody to trust.
    pub fn read(ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let machine = rustls_native_certs::load_native_certs();
        // One that is odd harms no other: stores hold certificates of many years.
        roots.add_parsable_certificates(machine.certs);
        if let Some(path) = ca_file {
            add(&mut roots, path, &read_ca_file(path)?)?;
        }
        if roots.is_empty() {
            let why: Vec<_> = machine.errors.iter().map(ToString::to_string).collect();
            let why = if why.is_empty() { "its store is empty".to_owned() } else { why.join("; ") };
            return Err(TlsError::NoRoots { why });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(TlsError::Config)?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Makes a connection a TLS one, with a host that proves to be `host`: a name, or an address, an IPv6 one in brackets.
    ///
    /// # Errors
    /// [`TlsError`] when it cannot prove that, or breaks off.
    pub async fn connect(&self, stream: Box<dyn Stream>, host: &str) -> Result<TlsStream<Box<dyn Stream>>, TlsError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned());
        let name = name.map_err(|source| TlsError::Name { host: host.to_owned(), source })?;
        self.0.connect(name, stream).await.map_err(|error| in_our_words(error, host))
    }
}

/// The three that people mend, in words that say which it is.
fn in_our_words(error: io::Error, host: &str) -> TlsError {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(why)) = tls else { return TlsError::Handshake(error) };
    #[expect(clippy::wildcard_enum_match_arm, reason = "not our enum, and it may grow")]
    match why {
        // The second: an authority of the same name as one that is trusted, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsError::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TlsError::OtherName { host: host.to_owned() }
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired,
        _ => TlsError::Handshake(error),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// An authority of its own.
    pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        pub(crate) fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        pub(crate) fn pem(&self) -> String {
            self.0.pem()
        }

        /// A certificate for `name`, and its private key, as PEM.
        pub(crate) fn issue(&self, name: &str) -> (String, String) {
            let (certificate, key) = self.signed(name);
            (certificate.pem(), key.serialize_pem())
        }

        fn signed(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &self.0).unwrap(), key)
        }

        /// A server with a certificate for `name`.
        pub(crate) fn acceptor(&self, name: &str) -> TlsAcceptor {
            let (certificate, key) = self.signed(name);
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
            TlsAcceptor::from(Arc::new(config))
        }
    }

    /// What the handshake of a server for `name` comes to, for a client that means `host`.
    async fn handshake(trust: &Trust, acceptor: TlsAcceptor, host: &str) -> Result<(), TlsError> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let server = tokio::spawn(async move { acceptor.accept(theirs).await.is_ok() });
        let shaken = trust.connect(Box::new(ours), host).await.map(drop);
        let _accepted = server.await.unwrap();
        shaken
    }

    #[tokio::test]
    async fn only_who_is_signed_by_a_trusted_authority_and_has_the_name_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let (ours, other) = (Authority::new(), Authority::new());
        std::fs::write(&path, ours.pem()).unwrap();
        let trust = Trust::read(Some(&path)).unwrap();
        handshake(&trust, ours.acceptor("alerts.test"), "alerts.test").await.unwrap();
        handshake(&trust, ours.acceptor("127.0.0.1"), "127.0.0.1").await.unwrap();
        handshake(&trust, ours.acceptor("::1"), "[::1]").await.unwrap();
        let unknown = handshake(&trust, other.acceptor("alerts.test"), "alerts.test").await.unwrap_err();
        assert!(matches!(unknown, TlsError::UnknownIssuer), "{unknown:?}");
        let elsewhere = handshake(&trust, ours.acceptor("other.test"), "alerts.test").await.unwrap_err();
        assert!(matches!(elsewhere, TlsError::OtherName { .. }), "{elsewhere:?}");
    }

    #[test]
    fn a_ca_file_that_cannot_be_used_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(matches!(read_ca_file(&path).unwrap_err(), TlsError::CaFile { .. }));
        for (text, expected) in [
            ("no PEM at all", "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "that cannot be used"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "could not read"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_ca_file(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ca.pem"), "{error}");
        }
        std::fs::write(&path, Authority::new().pem()).unwrap();
        assert_eq!(read_ca_file(&path).unwrap().len(), 1);
    }
}
