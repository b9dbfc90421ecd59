//! STATE: where it is, what lies in it, the halt file and the site's secret.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use troop_policies::draw::SiteSecret;
use troop_policies::situation::Halted;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("no state folder: neither --state, $TROOP_STATE, $XDG_STATE_HOME nor $HOME is set")]
    Nowhere,
    #[error("could not {what} `{}`", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` cannot be read as a site secret: {why}", path.display())]
    BadSecret { path: PathBuf, why: String },
}

/// The state folder and the names of what lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// `--state`, else $TROOP_STATE, else $XDG_STATE_HOME/troop, else $HOME/.local/state/troop.
    ///
    /// # Errors
    /// [`StateError::Nowhere`].
    pub fn find(flag: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self, StateError> {
        let set = |name| env(name).filter(|v| !v.is_empty());
        let path = flag
            .map(Path::to_path_buf)
            .or_else(|| set("TROOP_STATE").map(PathBuf::from))
            .or_else(|| set("XDG_STATE_HOME").map(|x| PathBuf::from(x).join("troop")))
            .or_else(|| set("HOME").map(|h| PathBuf::from(h).join(".local/state/troop")))
            .ok_or(StateError::Nowhere)?;
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder and `run` in it, readable by nobody else.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn create(&self) -> Result<(), StateError> {
        for path in [self.0.clone(), self.run()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| StateError::Io { what: "make", path, source })?;
        }
        Ok(())
    }

    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    /// Locked by the supervisor for as long as it lives.
    pub fn lock_file(&self) -> PathBuf {
        self.run().join("lock")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    pub fn cloud_socket(&self) -> PathBuf {
        self.run().join("cloud.sock")
    }

    /// The supervisor's way out of the sandbox, for hold signals.
    pub fn outside_socket(&self) -> PathBuf {
        self.run().join("outside.sock")
    }

    pub fn cloud(&self) -> PathBuf {
        self.0.join("cloud")
    }

    pub fn ledger(&self) -> PathBuf {
        self.0.join("ledger.db")
    }

    pub fn registry_table(&self) -> PathBuf {
        self.0.join("registry.json")
    }

    pub fn halt_file(&self) -> PathBuf {
        self.0.join("halt")
    }

    pub fn secret_file(&self) -> PathBuf {
        self.0.join("site-secret")
    }

    /// What a running supervisor says about itself: pid, addresses. JSON.
    pub fn up_file(&self) -> PathBuf {
        self.run().join("up.json")
    }

    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }
}

/// Writes a file whole: a temporary beside it, fsynced, renamed, and the folder fsynced. Nothing in between is seen.
///
/// # Errors
/// [`StateError::Io`]; the old file stands.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let io = |what, source| StateError::Io { what, path: path.to_path_buf(), source };
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path)
    };
    write().map_err(|source| io("write", source))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads the halt file: present or unreadable means halted.
///
/// # Errors
/// Why it cannot be read, which callers must take for a halt.
pub fn read_halt(path: &Path) -> Result<Option<Halted>, String> {
    match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => match path.parent().map(fs::symlink_metadata) {
            // Without the folder nobody can say whether there was a halt file in it.
            Some(Err(e)) => Err(format!("the state folder cannot be read: {e}")),
            None | Some(Ok(_)) => Ok(None),
        },
        Err(e) => Err(format!("{} cannot be read: {e}", path.display())),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(halted) => Ok(Some(halted)),
            Err(e) => Err(format!("{} is there and cannot be read: {e}", path.display())),
        },
    }
}

/// Halts: writes the file, fsynced, before anything else. A halt that stands is kept, with who and why of the first.
///
/// # Errors
/// [`StateError::Io`].
pub fn write_halt(path: &Path, halted: &Halted) -> Result<(), StateError> {
    if matches!(read_halt(path), Ok(Some(_))) {
        return Ok(());
    }
    let bytes = serde_json::to_vec(halted).unwrap_or_else(|_| b"halted".to_vec());
    write_whole(path, &bytes)
}

/// Ends a halt.
///
/// # Errors
/// [`StateError::Io`], and then the halt stands.
pub fn remove_halt(path: &Path) -> Result<(), StateError> {
    let remove = || -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => sync_folder(path),
        }
    };
    remove().map_err(|source| StateError::Io { what: "remove", path: path.to_path_buf(), source })
}

/// Reads the site secret. `Ok(None)` when there is no file.
///
/// # Errors
/// [`StateError`] when it cannot be read or is no secret.
pub fn read_secret(path: &Path) -> Result<Option<SiteSecret>, StateError> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io { what: "read", path: path.to_path_buf(), source }),
        Ok(text) => SiteSecret::parse(&text)
            .map(Some)
            .map_err(|e| StateError::BadSecret { path: path.to_path_buf(), why: e.to_string() }),
    }
}

/// Makes a new site secret from the system's random numbers, mode 0600.
///
/// # Errors
/// [`StateError::Io`]; also when a file is there already.
pub fn make_secret(path: &Path) -> Result<SiteSecret, StateError> {
    let io = |what, source| StateError::Io { what, path: path.to_path_buf(), source };
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| io("draw random numbers for", e.into()))?;
    let secret = SiteSecret::from_bytes(bytes);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(secret.to_text().as_bytes())?;
        file.sync_all()?;
        sync_folder(path)
    };
    write().map_err(|source| io("write", source))?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halted(who: &str) -> Halted {
        Halted { who: who.to_owned(), at: "2026-11-24T10:00:00Z".parse().unwrap(), why: "drill".to_owned() }
    }

    #[test]
    fn a_halt_stands_until_removed_and_keeps_its_first_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("halt");
        assert_eq!(read_halt(&path), Ok(None));
        write_halt(&path, &halted("ana")).unwrap();
        write_halt(&path, &halted("bob")).unwrap();
        assert_eq!(read_halt(&path).unwrap().unwrap().who, "ana");
        remove_halt(&path).unwrap();
        remove_halt(&path).unwrap();
        assert_eq!(read_halt(&path), Ok(None));
    }

    #[test]
    fn an_unreadable_halt_is_an_error_and_never_no_halt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("halt");
        fs::write(&path, "{").unwrap();
        assert!(read_halt(&path).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read_halt(&path).is_err());
        assert!(read_halt(Path::new("/nonexistent/state/halt")).is_err());
    }

    #[test]
    fn a_secret_is_made_once_and_only_for_us() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("site-secret");
        assert_eq!(read_secret(&path).unwrap(), None);
        let made = make_secret(&path).unwrap();
        assert!(make_secret(&path).is_err());
        assert_eq!(read_secret(&path).unwrap(), Some(made));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap().len(), 65);
    }

    #[test]
    fn the_state_folder_is_found_in_the_stated_order() {
        let env = |name: &str| match name {
            "XDG_STATE_HOME" => Some("/x".to_owned()),
            "HOME" => Some("/h".to_owned()),
            _ => None,
        };
        assert_eq!(StateDir::find(Some(Path::new("/s")), env).unwrap().path(), Path::new("/s"));
        assert_eq!(StateDir::find(None, env).unwrap().path(), Path::new("/x/troop"));
        assert!(StateDir::find(None, |_| None).is_err());
    }
}
