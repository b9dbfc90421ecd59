//! The logs of instances, in STATE/cloud/logs: one a life, so that they would pile up for ever.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use troop_policies::InstanceId;

/// Logs of instances that are gone, kept newest first. Enough for the groups of a day's pushes, at most 8 MiB each.
pub(crate) const DEAD_LOGS_KEPT: usize = 64;

/// Removes the logs of the dead but for the [`DEAD_LOGS_KEPT`] that were written to last. Blocks; for a thread that may.
///
/// Only what is named like an instance's log counts: what a person put there is theirs.
pub(crate) fn prune(folder: &Path, lives: impl Fn(&InstanceId) -> bool) -> io::Result<usize> {
    let mut dead: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(instance) = instance_of(&path).filter(|instance| !lives(instance)) else { continue };
        match fs::metadata(&path).and_then(|log| log.modified()) {
            Ok(written) => dead.push((written, path)),
            Err(error) => tracing::debug!(%instance, %error, "a log could not be looked at"),
        }
    }
    dead.sort_unstable();
    let surplus = dead.len().saturating_sub(DEAD_LOGS_KEPT);
    for (_, path) in dead.iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(surplus)
}

/// `i-0a1b….log` is the log of `i-0a1b…`.
fn instance_of(path: &Path) -> Option<InstanceId> {
    let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
    InstanceId::new(name).ok().filter(|id| id.as_str().starts_with("i-"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log(folder: &Path, name: &str, age: u64) -> PathBuf {
        let path = folder.join(name);
        let file = fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age)).unwrap();
        path
    }

    #[test]
    fn of_the_dead_the_last_are_kept_and_the_living_and_what_is_no_log_always() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let alive = log(folder, "i-00000000000000001.log", 900_000);
        let theirs = log(folder, "notes.log", 900_000);
        let dead: Vec<PathBuf> = (0..DEAD_LOGS_KEPT + 3)
            .map(|n| log(folder, &format!("i-0000000000000{n:04x}.log"), u64::try_from(n).unwrap() + 10))
            .filter(|path| *path != alive)
            .collect();
        log(folder, "i-00000000000000001.log", 900_000);
        let lives = |id: &InstanceId| id.as_str() == "i-00000000000000001";
        assert_eq!(prune(folder, lives).unwrap(), dead.len() - DEAD_LOGS_KEPT);
        let kept: Vec<bool> = dead.iter().map(|path| path.exists()).collect();
        let expected: Vec<bool> = (0..dead.len()).map(|n| n < DEAD_LOGS_KEPT).collect();
        assert_eq!(kept, expected, "the newest come first");
        assert!(alive.exists() && theirs.exists());
        assert_eq!(prune(folder, lives).unwrap(), 0);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(prune(&dir.path().join("no"), |_| false).is_err());
    }
}
