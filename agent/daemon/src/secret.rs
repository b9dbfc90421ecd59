//! Files that hold a secret: only their owner may read them, and the owner is this process's user or root.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Longest token: ours has 64 digits.
const TOKEN_MAX_BYTES: u64 = 4 * 1024;
/// What everybody but the owner must not have.
const OTHERS: u32 = 0o077;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("could not read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` has mode {mode:04o}: others than its owner may use it", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("`{}` belongs to user {owner}, who is neither root nor the agent's own", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("`{}` is empty", path.display())]
    Empty { path: PathBuf },
}

impl SecretError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "may the agent's user read it?",
            Self::Open { .. } => {
                "chmod 600, and if it was ever readable make another: whoever has it speaks for this host"
            }
            Self::Owner { .. } => "chown root, and if it was not you who wrote it make another",
            Self::Empty { .. } => "`troop agents --token` on the control plane's machine makes one",
        }
    }
}

/// Whether nobody else may read, or could have written, this file.
///
/// # Errors
/// [`SecretError`].
pub(crate) fn check(file: &File, path: &Path) -> Result<(), SecretError> {
    let found = file.metadata().map_err(|source| SecretError::Read { path: path.to_owned(), source })?;
    let mode = found.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode });
    }
    let owner = found.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(SecretError::Owner { path: path.to_owned(), owner });
    }
    Ok(())
}

/// The token in a file, without the blanks around it.
///
/// # Errors
/// [`SecretError`].
pub(crate) fn token(path: &Path) -> Result<String, SecretError> {
    let failed = |source| SecretError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    check(&file, path)?;
    let mut text = String::new();
    file.take(TOKEN_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() { Err(SecretError::Empty { path: path.to_owned() }) } else { Ok(token.to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "ab12\n").unwrap();
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(token(&path).unwrap(), "ab12");
        }
        for mode in [0o644, 0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = token(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("has mode {mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, " \n").unwrap();
        assert!(matches!(token(&path), Err(SecretError::Empty { .. })));
        assert!(matches!(token(&dir.path().join("none")), Err(SecretError::Read { .. })));
    }
}
