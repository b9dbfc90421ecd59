//! The agent's own key, Ed25519: made at its first start on an instance, and kept.
//!
//! Its file names the instance that it was made for. An image that was taken of a running instance holds that one's key; whoever starts from it
//! makes another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};

use crate::secret::{self, SecretError};

/// A key takes a hundred bytes.
const FILE_MAX_BYTES: u64 = 4 * 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("could not {doing} `{}`", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` holds no key of an agent", path.display())]
    Bad { path: PathBuf },
    #[error("this host gave no random numbers for a key")]
    Random,
}

impl KeyError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Secret(e) => e.hint(),
            Self::File { .. } => "the folder of `key_file` must be the agent's to write to, and outlive a boot",
            Self::Bad { .. } => {
                "remove the file to have another one made, then let the control plane know: `troop agents --forget HOST`"
            }
            Self::Random => "it is asked for again at the next start",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    instance: String,
    /// PKCS #8, in base64.
    private_key: String,
}

/// See the module.
pub(super) struct Key(Ed25519KeyPair);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.public())
    }
}

impl Key {
    /// Reads the key of `instance`; makes it where there is none, or another instance's.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(super) fn keep(path: &Path, instance: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::Bad { path: path.to_owned() };
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(path, instance),
            Err(source) => Err(KeyError::File { doing: "read", path: path.to_owned(), source }),
            Ok(file) => {
                secret::check(&file, path)?;
                let mut text = String::new();
                let read = file.take(FILE_MAX_BYTES).read_to_string(&mut text);
                read.map_err(|source| KeyError::File { doing: "read", path: path.to_owned(), source })?;
                let kept: Kept = serde_json::from_str(&text).map_err(|_| bad())?;
                if kept.instance != instance {
                    tracing::info!(
                        of = kept.instance,
                        "the key of another instance, from whose image this one was made, is replaced"
                    );
                    return Self::make(path, instance);
                }
                let bytes = BASE64_STANDARD.decode(&kept.private_key).map_err(|_| bad())?;
                Ed25519KeyPair::from_pkcs8(&bytes).map(Self).map_err(|_| bad())
            }
        }
    }

    fn make(path: &Path, instance: &str) -> Result<Self, KeyError> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
        let kept = Kept { instance: instance.to_owned(), private_key: BASE64_STANDARD.encode(&made) };
        let fresh = path.with_extension("new");
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&serde_json::to_vec(&kept)?)?;
            // On disk before anybody is shown it: one that is lost with the power is refused ever after.
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
        };
        write().map_err(|source| KeyError::File { doing: "write", path: path.to_owned(), source })?;
        Ed25519KeyPair::from_pkcs8(made.as_ref()).map(Self).map_err(|_| KeyError::Bad { path: path.to_owned() })
    }

    /// In hexadecimal.
    pub(super) fn public(&self) -> String {
        hex::encode(self.0.public_key())
    }

    /// The signature, in hexadecimal.
    pub(super) fn sign(&self, statement: &[u8]) -> String {
        hex::encode(self.0.sign(statement))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_an_instance_and_read_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below").join("identity.key");
        let made = Key::keep(&path, "i-1").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Key::keep(&path, "i-1").unwrap().public(), made.public());
        // The image of that instance, started as another.
        let cloned = Key::keep(&path, "i-2").unwrap();
        assert_ne!(cloned.public(), made.public());
        assert_eq!(Key::keep(&path, "i-2").unwrap().public(), cloned.public());
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let _kept = Key::keep(&path, "i-1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Key::keep(&path, "i-1"), Err(KeyError::Secret(SecretError::Open { mode: 0o640, .. }))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "{}", r#"{"instance":"i-1","private_key":"AAAA"}"#] {
            fs::write(&path, text).unwrap();
            assert!(matches!(Key::keep(&path, "i-1"), Err(KeyError::Bad { .. })), "{text}");
        }
    }
}
