//! The journal's folder.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_agent_core::lease::LeaseId;

use super::change::{Change, Undone};
use crate::netlink::{Netlink, NetlinkError};

/// Why the journal could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{}`", path.display())]
pub struct JournalError {
    pub doing: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Where changes hold: this boot of this host, in one of its network namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub boot: String,
    pub namespace: u64,
}

impl Place {
    /// Where this thread is.
    ///
    /// # Errors
    /// Any of reading /proc.
    pub fn here() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot, namespace: fs::metadata("/proc/thread-self/ns/net")?.ino() })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    place: Place,
    #[serde(flatten)]
    change: Change,
}

/// What undoing a fault found, change by change, and what could not be undone.
#[derive(Debug, Default)]
pub struct Report {
    pub undone: Vec<(String, Change, Undone)>,
    pub failed: Vec<(String, Change, NetlinkError)>,
    /// Lines that cannot be read, of files cut short by a crash: the change after such a line was never made.
    pub unread: usize,
}

impl Report {
    /// Nothing of ours is left.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && self.undone.iter().all(|(_, _, undone)| *undone != Undone::NotOurs)
    }
}

/// A fault is put up within a tenth of a second; a second is for a busy host.
const HOLD_EVERY: Duration = Duration::from_millis(10);
const HOLD_TRIES: u32 = 100;

/// See [`Journal::hold`].
#[derive(Debug)]
pub struct Hold {
    /// The lock is the open file's.
    _file: File,
}

/// See the module above.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    place: Place,
}

impl Journal {
    /// Opens, or makes, the journal in `folder`.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(folder: &Path, place: Place) -> Result<Self, JournalError> {
        fs::create_dir_all(folder).map_err(|source| JournalError { doing: "make", path: folder.into(), source })?;
        Ok(Self { folder: folder.into(), place })
    }

    /// Keeps the journal to this process until the answer is dropped: whoever puts a fault up holds it, and whoever undoes by hand, so
    /// that nothing is made whose line has just been forgotten. `None` where its holder does not let go in time: one that stands still
    /// must not keep anybody from undoing.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn hold(&self) -> Result<Option<Hold>, JournalError> {
        let path = self.folder.join("lock");
        let failed = |source| JournalError { doing: "lock", path: path.clone(), source };
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        for _ in 0..HOLD_TRIES {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Hold { _file: file })),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(HOLD_EVERY),
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(None)
    }

    /// To be called before the change is made; on disk when it returns.
    ///
    /// # Errors
    /// [`JournalError`]; then the change must not be made.
    pub fn before(&mut self, lease: &LeaseId, change: &Change) -> Result<(), JournalError> {
        let path = self.file(lease);
        let failed = |doing| {
            let path = path.clone();
            move |source| JournalError { doing, path, source }
        };
        let line = Line { place: self.place.clone(), change: change.clone() };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::from).map_err(failed("write"))?;
        text.push(b'\n');
        let mut file = File::options().create(true).append(true).open(&path).map_err(failed("open"))?;
        file.write_all(&text).map_err(failed("write"))?;
        file.sync_data().map_err(failed("sync"))
    }

    /// Undoes everything of a fault, newest first, and forgets what is undone. What could not be stays for the next one.
    ///
    /// # Errors
    /// [`JournalError`] when the journal itself cannot be read or written.
    pub fn undo(&mut self, lease: &str, net: &mut Netlink, report: &mut Report) -> Result<(), JournalError> {
        let path = self.folder.join(format!("{lease}.jsonl"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(JournalError { doing: "read", path, source }),
        };
        let mut failed = false;
        for line in text.lines().rev() {
            let Ok(line) = serde_json::from_str::<Line>(line) else {
                report.unread += 1;
                continue;
            };
            if line.place != self.place || self.others_hold(lease, &line.change)? {
                continue;
            }
            match line.change.undo(net) {
                Ok(undone) => report.undone.push((lease.to_owned(), line.change, undone)),
                Err(error) => {
                    failed = true;
                    report.failed.push((lease.to_owned(), line.change, error));
                }
            }
        }
        if failed {
            return Ok(());
        }
        match fs::remove_file(&path) {
            // Somebody else has undone it at the same time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|source| JournalError { doing: "remove", path, source }),
        }
    }

    /// Undoes everything of every fault.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn undo_all(&mut self, net: &mut Netlink) -> Result<Report, JournalError> {
        let mut report = Report::default();
        for lease in self.leases()? {
            self.undo(&lease, net, &mut report)?;
        }
        Ok(report)
    }

    /// Whether another fault than `lease` rests on this change too: then it is not undone before that one ends.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn others_hold(&self, lease: &str, change: &Change) -> Result<bool, JournalError> {
        for other in self.leases()?.iter().filter(|other| *other != lease) {
            let path = self.folder.join(format!("{other}.jsonl"));
            let text = fs::read_to_string(&path).map_err(|source| JournalError { doing: "read", path, source })?;
            let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
            if lines.any(|line| line.place == self.place && line.change == *change) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The faults that have changed something which is not undone.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn leases(&self) -> Result<Vec<String>, JournalError> {
        let failed = |source| JournalError { doing: "list", path: self.folder.clone(), source };
        let mut leases = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let lease = path.extension().filter(|e| *e == "jsonl").and(path.file_stem()).and_then(|s| s.to_str());
            leases.extend(lease.map(str::to_owned));
        }
        leases.sort();
        Ok(leases)
    }

    fn file(&self, lease: &LeaseId) -> PathBuf {
        self.folder.join(format!("{lease}.jsonl"))
    }
}
