//! The table's file: one JSON document, replaced whole, readable by its owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::table::state::TableState;

/// What the file says it is. Another number is another layout.
const FORMAT: u32 = 1;

/// The owner's alone: metadata of instances may hold secrets.
const MODE: u32 = 0o600;

/// Why the table's file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    #[error("cannot read the registry's table {}; it is not replaced by an empty one, for that would drop overrides", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the registry's table {} is damaged; restore it, or move it away to begin with an empty registry without overrides", .path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("the registry's table {} has format {format}, and this version reads format {FORMAT}; use the version that wrote it", .path.display())]
    Format { path: PathBuf, format: u32 },
    #[error("cannot save the registry's table {}; see to the disk's space and to the folder's permissions", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot write the registry's table {} as JSON", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("saving the registry's table {} was cut short", .path.display())]
    CutShort { path: PathBuf },
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Document<T> {
    format: u32,
    table: T,
}

/// Reads the table; `None` when there is no file yet.
pub(crate) fn load(path: &Path) -> Result<Option<TableState>, SavedError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SavedError::Read { path: path.to_owned(), source }),
    };
    let damaged = |source| SavedError::Damaged { path: path.to_owned(), source };
    let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(SavedError::Format { path: path.to_owned(), format });
    }
    let document: Document<TableState> = serde_json::from_slice(&bytes).map_err(damaged)?;
    Ok(Some(document.table))
}

/// Replaces the table's file. When this returns, a crash of the machine leaves the new one.
pub(crate) fn save(path: &Path, table: &TableState) -> Result<(), SavedError> {
    let document = Document { format: FORMAT, table };
    let json = serde_json::to_vec(&document).map_err(|source| SavedError::Json { path: path.to_owned(), source })?;
    replace(path, &json).map_err(|source| SavedError::Write { path: path.to_owned(), source })
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
    // One left by a crash may have any mode; ours is made anew.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::table::Table;

    #[test]
    fn a_saved_table_comes_back_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        assert!(load(&path).unwrap().is_none());
        let mut table = Table::new(SignedDuration::from_secs(90), Timestamp::UNIX_EPOCH);
        let _effect = table.override_group("shop-v001", true, Timestamp::UNIX_EPOCH);
        for _ in 0..2 {
            save(&path, &table.state()).unwrap();
        }
        assert_eq!(load(&path).unwrap(), Some(table.state()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_damaged_table_is_an_error_and_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("registry.json");
        for damaged in ["", "{", "[]", "{\"format\":1}", "{\"format\":1,\"table\":{\"version\":1}}"] {
            fs::write(&path, damaged).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, SavedError::Damaged { .. }), "{damaged:?}: {error}");
            assert!(error.to_string().contains("is damaged; restore it"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
        fs::write(&path, "{\"format\":2,\"table\":{}}").unwrap();
        assert!(matches!(load(&path).unwrap_err(), SavedError::Format { format: 2, .. }));
    }

    #[test]
    fn a_table_that_cannot_be_saved_names_its_file() {
        let table = Table::new(SignedDuration::from_secs(90), Timestamp::UNIX_EPOCH);
        let error = save(Path::new("/proc/no-such-folder/registry.json"), &table.state()).unwrap_err();
        assert!(error.to_string().contains("/proc/no-such-folder/registry.json"), "{error}");
    }
}
