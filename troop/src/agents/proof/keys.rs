//! The agents' own public keys, each kept from its first use: a file a host below STATE/agents/keys, with the key in hexadecimal and when it came.
//!
//! What EC2 signs stays good for as long as the instance lives, and for anybody who has read it there. Whoever comes first with it is the
//! instance's agent; a second key is somebody else.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::rand::{GetRandomFlags, getrandom};

use super::super::HostName;

/// Why a key cannot be kept or looked up. Then its agent is not received.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{}`", path.display())]
pub struct KeysError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The folder in which they lie, in the state's.
fn folder(state: &Path) -> PathBuf {
    state.join("agents").join("keys")
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Keys(PathBuf);

impl Keys {
    /// Those in the state's folder.
    pub fn of(state: &Path) -> Self {
        Self(folder(state))
    }

    /// The key by which this host's agent is known: `key`, if there was none.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn keep(&self, host: &HostName, key: &str, now: Timestamp) -> Result<String, KeysError> {
        let path = self.path(host);
        if let Some(known) = read(&path)? {
            return Ok(known);
        }
        let failed = |doing| {
            let path = path.clone();
            move |source| KeysError { doing, path, source }
        };
        let folder = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        // Beside the names of hosts, none of which begins with a dot.
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|e| failed("draw a name for")(e.into()))?;
        let fresh = folder.join(format!(".{}", hex::encode(random)));
        let write = || {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&fresh)?;
            writeln!(file, "{key} {now}")?;
            file.sync_all()
        };
        // A link is made once: of two that come together, one is first.
        let linked = write().and_then(|()| fs::hard_link(&fresh, &path));
        let removed = fs::remove_file(&fresh);
        match linked {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => linked.map_err(failed("write"))?,
        }
        removed.map_err(failed("tidy up beside"))?;
        Ok(read(&path)?.unwrap_or_else(|| key.to_owned()))
    }

    /// Forgets a host's key, so that its next agent may have another. `false`: there was none.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn forget(&self, host: &HostName) -> Result<bool, KeysError> {
        let path = self.path(host);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(KeysError { doing: "remove", path, source }),
        }
    }

    /// Three folders deep. The parts of a host's name hold no slash and begin with no dot.
    fn path(&self, host: &HostName) -> PathBuf {
        self.0.join(host.as_str())
    }
}

fn read(path: &Path) -> Result<Option<String>, KeysError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.split_ascii_whitespace().next().unwrap_or_default().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(KeysError { doing: "read", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_kept_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::of(dir.path());
        let now = Timestamp::UNIX_EPOCH;
        let [one, other] = ["prod/us-east-1/i-1", "prod/us-east-1/i-2"].map(|host| HostName::parse(host).unwrap());
        assert_eq!(keys.keep(&one, "aa", now).unwrap(), "aa");
        assert_eq!(keys.keep(&one, "bb", now).unwrap(), "aa");
        assert_eq!(keys.keep(&other, "bb", now).unwrap(), "bb");
        assert_eq!(Keys::of(dir.path()).keep(&one, "cc", now).unwrap(), "aa", "over a restart");
        assert!(keys.forget(&one).unwrap() && !keys.forget(&one).unwrap());
        assert_eq!(keys.keep(&one, "cc", now).unwrap(), "cc");
        assert_eq!(fs::read_dir(folder(dir.path()).join("prod/us-east-1")).unwrap().count(), 2);
    }
}
