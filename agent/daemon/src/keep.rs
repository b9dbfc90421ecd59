//! What an agent remembers over its own end: the highest number of a command, and who had halted.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use troop_agent_core::lease::{CommandNumber, Halter, Table};
use troop_agent_core::moment::Moment;

/// Why it could not be read or written. Then the agent does nothing: a replay might be taken for news.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{}`", path.display())]
pub struct KeepError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl KeepError {
    pub fn hint(&self) -> &'static str {
        "the agent needs a folder of its own to write to; a file that cannot be read is removed by hand, with no fault up"
    }
}

/// By how much the number on disk is ahead of the one that was used: a renewal then waits for no disk, most of the time. After a
/// restart none of those between is taken, and the control plane is told to go on behind them.
const AHEAD: u64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Kept {
    /// No number that was used is greater.
    highest_number: u64,
    halted_by_control_plane: bool,
}

/// The file.
#[derive(Debug)]
pub struct Keep {
    path: PathBuf,
    last: Kept,
}

impl Keep {
    /// Reads what an earlier agent on this host has kept in `folder`.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn open(folder: &Path) -> Result<Self, KeepError> {
        let path = folder.join("kept.json");
        let failed = |doing| {
            let path = path.clone();
            move |source| KeepError { doing, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
        let last = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(failed("understand"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(failed("read")(error)),
        };
        Ok(Self { path, last })
    }

    /// The lease table of a start.
    pub fn table(&self, now: Moment) -> Table {
        let halts =
            if self.last.halted_by_control_plane { BTreeSet::from([Halter::ControlPlane]) } else { BTreeSet::new() };
        Table::new(CommandNumber(self.last.highest_number), halts, now)
    }

    /// Writes what has changed; on disk when it returns.
    ///
    /// # Errors
    /// [`KeepError`].
    pub fn keep(&mut self, table: &Table) -> Result<(), KeepError> {
        let used = table.highest_number().0;
        let ahead = if used > self.last.highest_number { used.saturating_add(AHEAD) } else { self.last.highest_number };
        let kept =
            Kept { highest_number: ahead, halted_by_control_plane: table.halts().contains(&Halter::ControlPlane) };
        if kept == self.last {
            return Ok(());
        }
        let fresh = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(&serde_json::to_vec(&kept)?)?;
            file.sync_data()?;
            fs::rename(&fresh, &self.path)
        };
        write().map_err(|source| KeepError { doing: "write", path: self.path.clone(), source })?;
        self.last = kept;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use troop_agent_core::lease::{Answer, Command, Refusal};

    use super::*;

    #[test]
    fn a_restart_forgets_no_number_and_no_halt() {
        let dir = tempfile::tempdir().unwrap();
        let now = Moment::from_millis(1);
        let mut keep = Keep::open(dir.path()).unwrap();
        let mut table = keep.table(now);
        assert_eq!(table.handle(CommandNumber(41), Command::Halt, now).answer, Answer::Halted);
        keep.keep(&table).unwrap();
        let mut later = Keep::open(dir.path()).unwrap().table(now);
        assert_eq!(later.halts(), &BTreeSet::from([Halter::ControlPlane]));
        let replayed = later.handle(CommandNumber(41), Command::Resume, now);
        assert_eq!(replayed.answer, Answer::Refused(Refusal::Stale));
        let next = later.highest_number().0 + 1;
        assert_eq!(later.handle(CommandNumber(next), Command::Resume, now).answer, Answer::Resumed);
    }

    #[test]
    fn a_number_is_on_disk_before_it_is_used_and_most_are_there_already() {
        let dir = tempfile::tempdir().unwrap();
        let now = Moment::from_millis(1);
        let mut keep = Keep::open(dir.path()).unwrap();
        let mut table = keep.table(now);
        let mut written = 0;
        for number in 1..3_000 {
            drop(table.handle(CommandNumber(number), Command::Resume, now));
            let before = keep.last.clone();
            keep.keep(&table).unwrap();
            written += u32::from(keep.last != before);
            assert!(Keep::open(dir.path()).unwrap().last.highest_number >= number);
        }
        assert_eq!(written, 3);
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error_and_no_beginning() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kept.json"), "{").unwrap();
        assert!(Keep::open(dir.path()).unwrap_err().to_string().starts_with("could not understand"));
    }
}
