//! The certificate by which agents on other machines know their control plane.
//!
//! Both files are looked at with every connection, since a certificate that was exchanged must not need a restart. While what
//! they hold cannot be used, the one from before is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use troop_policies::chain;
use troop_policies::policy::AgentsListener;

/// Why nobody could know this control plane.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("could not look at `{}`", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not read `{}`", path.display())]
    Pem {
        path: PathBuf,
        #[source]
        source: pem::Error,
    },
    #[error("`{}` holds no certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("the certificate of `{}` and the key of `{}` cannot be used together", certificate.display(), key.display())]
    Unusable {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// When each file was changed last, and its length.
type Versions = [(Option<SystemTime>, u64); 2];

/// See the module.
pub struct Identity {
    files: AgentsListener,
    now: Mutex<(Versions, TlsAcceptor)>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn read(files: &AgentsListener) -> Result<Self, IdentityError> {
        let now = Mutex::new((versions(files)?, acceptor(files)?));
        Ok(Self { files: files.clone(), now })
    }

    /// What answers the next handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match versions(&self.files) {
            Ok(found) if found == now.0 => {}
            Ok(found) => match acceptor(&self.files) {
                Ok(acceptor) => *now = (found, acceptor),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the certificate for agents stays the one from before")
                }
            },
            Err(error) => tracing::warn!(error = chain(&error), "the certificate for agents stays the one from before"),
        }
        now.1.clone()
    }
}

fn versions(files: &AgentsListener) -> Result<Versions, IdentityError> {
    let version = |path: &Path| {
        let found = fs::metadata(path).map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
        Ok((found.modified().ok(), found.len()))
    };
    Ok([version(&files.certificate_file)?, version(&files.key_file)?])
}

fn acceptor(files: &AgentsListener) -> Result<TlsAcceptor, IdentityError> {
    let (certificate, key) = (&files.certificate_file, &files.key_file);
    let pem = |path: &PathBuf| {
        let path = path.clone();
        move |source| IdentityError::Pem { path, source }
    };
    let read = CertificateDer::pem_file_iter(certificate).map_err(pem(certificate))?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(pem(certificate))?;
    if certificates.is_empty() {
        return Err(IdentityError::NoCertificate { path: certificate.clone() });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem(key))?;
    let unusable = |source| IdentityError::Unusable { certificate: certificate.clone(), key: key.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(unusable)?;
    let mut config = config.with_no_client_auth().with_single_cert(certificates, private).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
