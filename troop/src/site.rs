//! The site file, read from disk: its values, what it warns of, and its paths as they are meant.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use troop_policies::file::{self, Diagnostic};
use troop_policies::policy::{ChannelKind, Site};

use crate::agents::identity::{Identity, IdentityError};
use crate::agents::proof::{CertificatesError, read_certificates};
use crate::serve::notices::channel::{self, ChannelError};
use crate::tls::{self, TlsError};

/// Why nothing may start on a site file.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("could not read the site file `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The mistakes as a person is shown them, each with its line of the file.
    #[error("the site file `{}` has mistakes:\n{text}", path.display())]
    Bad { path: PathBuf, text: String },
    #[error("the `ca_file` of the site file `{}` cannot be used", path.display())]
    CaFile {
        path: PathBuf,
        #[source]
        source: TlsError,
    },
    #[error("channel `{name}` of the site file `{}` cannot be used", path.display())]
    Channel {
        path: PathBuf,
        name: String,
        #[source]
        source: ChannelError,
    },
    #[error("the table `agents` of the site file `{}` cannot be used", path.display())]
    Agents {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
    #[error("agents could not be checked by `aws.identity_certs` of `{}`", path.display())]
    IdentityCerts {
        path: PathBuf,
        #[source]
        source: CertificatesError,
    },
}

/// A site with its paths made absolute, and what its file warns of.
#[derive(Debug)]
pub struct Read {
    pub site: Site,
    /// As a person is shown them.
    pub warnings: Vec<String>,
}

/// Reads the site file, or takes the embedded defaults where there is none. Paths in the file are relative to it.
///
/// # Errors
/// [`SiteError`]; nothing may start then.
pub fn read(path: Option<&Path>) -> Result<Read, SiteError> {
    let Some(path) = path else {
        return Ok(Read { site: Site::embedded_default(), warnings: Vec::new() });
    };
    let io = |source| SiteError::Io { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(io)?;
    let name = path.display().to_string();
    let shown = |found: &[Diagnostic]| {
        let text = String::from_utf8_lossy(&bytes);
        found.iter().map(|diagnostic| diagnostic.render(&text)).collect::<Vec<_>>()
    };
    let bad = |found: Vec<Diagnostic>| SiteError::Bad { path: path.to_owned(), text: shown(&found).join("\n") };
    let text = file::text_of(&name, &bytes).map_err(bad)?;
    let (mut site, warnings) = file::parse_site(&name, text).map_err(bad)?;
    let absolute = std::path::absolute(path).map_err(io)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    site.policies = folder.join(&site.policies);
    site.state = site.state.map(|state| folder.join(state));
    site.signals_ca_file = site.signals_ca_file.map(|ca_file| folder.join(ca_file));
    if let Some(ca_file) = &site.signals_ca_file {
        tls::read_ca_file(ca_file).map_err(|source| SiteError::CaFile { path: path.to_owned(), source })?;
    }
    if let Some(agents) = &mut site.agents {
        agents.certificate_file = folder.join(&agents.certificate_file);
        agents.key_file = folder.join(&agents.key_file);
        Identity::read(agents).map_err(|source| SiteError::Agents { path: path.to_owned(), source })?;
    }
    for file in site.aws.identity_certs.values_mut() {
        *file = folder.join(&*file);
        read_certificates(file).map_err(|source| SiteError::IdentityCerts { path: path.to_owned(), source })?;
    }
    for (name, channel) in &mut site.channels {
        channel.url_file = folder.join(&channel.url_file);
        match &mut channel.kind {
            ChannelKind::Slack => {}
            ChannelKind::Webhook { secret_file } => *secret_file = folder.join(&*secret_file),
        }
        channel::read(channel).map_err(|source| SiteError::Channel {
            path: path.to_owned(),
            name: name.clone(),
            source,
        })?;
    }
    site.ledger = site.ledger.map(|ledger| folder.join(ledger));
    Ok(Read { site, warnings: shown(&warnings) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_embedded_defaults_hold() {
        let read = read(None).unwrap();
        assert_eq!((read.site, read.warnings.len()), (Site::embedded_default(), 0));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("troop.toml");
        fs::write(&path, "site = \"acme\"\npolicies = \"teams\"\n").unwrap();
        let read = read(Some(&path)).unwrap();
        assert!(read.site.leashed);
        assert_eq!(read.site.policies, folder.path().join("teams"));
    }

    #[test]
    fn a_ca_file_is_read_when_the_site_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("troop.toml");
        fs::write(&path, "site = \"acme\"\n[signals]\nca_file = \"ca.pem\"\n").unwrap();
        assert!(matches!(read(Some(&path)).unwrap_err(), SiteError::CaFile { .. }));
        fs::write(folder.path().join("ca.pem"), crate::tls::tests::Authority::new().pem()).unwrap();
        assert_eq!(read(Some(&path)).unwrap().site.signals_ca_file, Some(folder.path().join("ca.pem")));
    }

    #[test]
    fn the_files_of_a_channel_are_read_when_the_site_file_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("troop.toml");
        fs::write(&path, "site = \"acme\"\n[channels.slack]\nkind = \"slack\"\nurl_file = \"slack.url\"\n").unwrap();
        assert!(matches!(read(Some(&path)).unwrap_err(), SiteError::Channel { .. }));
        fs::write(folder.path().join("slack.url"), "https://hooks.test/T/B/x\n").unwrap();
        assert_eq!(read(Some(&path)).unwrap().site.channels["slack"].url_file, folder.path().join("slack.url"));
    }

    #[test]
    fn every_mistake_is_shown_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("troop.toml");
        fs::write(&path, "site = \"acme\"\nleashed = \"yes\"\n").unwrap();
        let text = read(Some(&path)).unwrap_err().to_string();
        assert!(text.contains("troop.toml:2:") && text.contains("leashed = \"yes\""), "{text}");
        assert!(matches!(super::read(Some(&folder.path().join("no"))), Err(SiteError::Io { .. })));
    }
}
