//! The file beside the ledger that remembers its newest event, so that an old copy put back is noticed.
//!
//! `<ledger>.head` holds one line: `troop-ledger-head 1 ID HASH BASE LOG`. It is written after the commit, to a second file
//! that is synced and renamed over the first: so it never names an event that could still be lost, and after a crash it
//! may name an older one than the newest.
//!
//! LOG are the salts of the write-ahead log (16 hexadecimal digits, or `-` without one), which SQLite draws anew whenever
//! it begins the log anew, having folded all of it into the file. BASE is an event that was folded by then: the file
//! alone, without its log, must hold it. So a log is never laid over a file that is older than the one it belongs to.
//! `<ledger>.lock` is locked (`flock`) while it is written, and while a ledger is
//! opened and its schema is made, so that processes do not do these at once.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::chain;
use crate::crash;
use crate::error::LedgerError;

const WORDS: &str = "troop-ledger-head 1";
/// Stands for the salts where there is no log.
const NO_LOG: &str = "-";

/// Only the user that runs the control plane.
pub(crate) const FILE_MODE: u32 = 0o600;

/// An event's number and hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: i64,
    pub(crate) hash: String,
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) head: Head,
    /// 0 when nothing is known to have been folded.
    base: i64,
    log: String,
}

impl Remembered {
    /// The event that the ledger's file must hold by itself when a log waits beside it.
    pub(crate) fn base_below(&self, ledger: &Path) -> i64 {
        // A log begun since then was begun after all that stood in the last one was folded.
        if log_salts(ledger) == self.log { self.base } else { self.head.id }
    }
}

/// The salts in the header of the write-ahead log: <https://sqlite.org/fileformat2.html#walformat>, bytes 16 to 23.
fn log_salts(ledger: &Path) -> String {
    let mut header = [0; 24];
    let read = File::open(beside(ledger, "-wal")).and_then(|mut log| log.read_exact(&mut header));
    if read.is_ok() { hex::encode(&header[16..]) } else { NO_LOG.to_owned() }
}

pub(crate) fn beside(ledger: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(ledger);
    name.push(ending);
    PathBuf::from(name)
}

pub(crate) fn head_path(ledger: &Path) -> PathBuf {
    beside(ledger, ".head")
}

/// The folder that holds the ledger.
pub(crate) fn folder(ledger: &Path) -> &Path {
    match ledger.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Reads the file. `None` when there is none.
pub(crate) fn read(ledger: &Path) -> Result<Option<Remembered>, LedgerError> {
    let path = head_path(ledger);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LedgerError::File { doing: "read", path, source }),
    };
    parse(&text).map(Some).ok_or_else(|| LedgerError::HeadUnreadable {
        path,
        why: format!("it is not one line of the form `{WORDS} ID HASH BASE LOG`"),
    })
}

fn parse(text: &str) -> Option<Remembered> {
    let words: Vec<&str> = text.strip_prefix(WORDS)?.strip_prefix(' ')?.strip_suffix('\n')?.split(' ').collect();
    let [id, hash, base, log] = words.as_slice() else { return None };
    chain::from_hex(hash)?;
    let id: i64 = id.parse().ok().filter(|id| *id > 0)?;
    let base: i64 = base.parse().ok().filter(|base| (0..=id).contains(base))?;
    let is_log = *log == NO_LOG || (log.len() == 16 && log.bytes().all(|b| b.is_ascii_hexdigit()));
    let head = Head { id, hash: (*hash).to_owned() };
    is_log.then(|| Remembered { head, base, log: (*log).to_owned() })
}

/// Waits for the lock beside the ledger. It is free again when the file is dropped, or its process dies.
pub(crate) fn lock(ledger: &Path) -> Result<File, LedgerError> {
    let path = beside(ledger, ".lock");
    let opened = OpenOptions::new().create(true).write(true).truncate(false).mode(FILE_MODE).open(&path);
    let file = opened.map_err(|e| LedgerError::file("open", &path, e))?;
    file.lock().map_err(|e| LedgerError::file("lock", &path, e))?;
    Ok(file)
}

/// The heads of one process's commits on their way to the file: while one is written, those that come meanwhile wait and
/// are then written as one, the newest.
#[derive(Debug, Default)]
pub(crate) struct Advancing {
    /// Of what is committed, whether it is in the file yet or not.
    newest: Mutex<Option<Head>>,
    /// The greatest number that this process knows to be in the file. Held while it is written.
    written: Mutex<i64>,
}

impl Advancing {
    /// Returns once the file names this event or a newer one, which must be committed. Blocks; for a thread that may.
    pub(crate) fn advance(&self, ledger: &Path, head: Head) -> Result<(), LedgerError> {
        let id = head.id;
        {
            let mut newest = unpoisoned(&self.newest);
            if newest.as_ref().is_none_or(|newest| newest.id < id) {
                *newest = Some(head);
            }
        }
        let mut written = unpoisoned(&self.written);
        if *written >= id {
            return Ok(());
        }
        // At least this one, for the newest only grows.
        let Some(newest) = unpoisoned(&self.newest).clone() else { return Ok(()) };
        let held = lock(ledger)?;
        advance_locked(ledger, &newest)?;
        drop(held);
        *written = newest.id;
        Ok(())
    }
}

/// Heads are only ever replaced whole.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the file, for who holds the lock, unless it names this event or a newer one.
pub(crate) fn advance_locked(ledger: &Path, head: &Head) -> Result<(), LedgerError> {
    let old = read(ledger)?;
    if old.as_ref().is_some_and(|old| old.head.id >= head.id) {
        return Ok(());
    }
    let base = old.map_or(0, |old| old.base_below(ledger));
    let log = log_salts(ledger);
    let (path, new) = (head_path(ledger), beside(ledger, ".head.new"));
    let failed = |doing: &'static str| {
        let path = new.clone();
        move |e| LedgerError::file(doing, &path, e)
    };
    let opened = OpenOptions::new().create(true).write(true).truncate(true).mode(FILE_MODE).open(&new);
    let mut file = opened.map_err(failed("create"))?;
    crash::point("head: created");
    file.write_all(format!("{WORDS} {} {} {base} {log}\n", head.id, head.hash).as_bytes()).map_err(failed("write"))?;
    crash::point("head: written");
    file.sync_all().map_err(failed("sync"))?;
    crash::point("head: synced");
    // The folder is not synced: a rename that a power loss undoes leaves the file before it, whole, and an older head is
    // what a crash may leave anyway. It would cost every commit as much as the commit itself.
    fs::rename(&new, &path).map_err(failed("rename"))?;
    crash::point("head: renamed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn head(id: i64) -> Head {
        Head { id, hash: "ab".repeat(32) }
    }

    #[test]
    fn it_reads_what_it_wrote_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.db");
        assert_eq!(read(&ledger).unwrap(), None);
        let written = || read(&ledger).unwrap().map(|remembered| remembered.head);
        let (one, other) = (Advancing::default(), Advancing::default());
        one.advance(&ledger, head(5)).unwrap();
        assert_eq!(written(), Some(head(5)));
        one.advance(&ledger, head(4)).unwrap();
        other.advance(&ledger, head(4)).unwrap();
        assert_eq!(written(), Some(head(5)), "an older head must not replace a newer one");
        let mode = fs::metadata(head_path(&ledger)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, FILE_MODE);
    }

    #[test]
    fn whoever_returns_finds_its_head_or_a_newer_one_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.db");
        let advancing = Advancing::default();
        std::thread::scope(|scope| {
            for id in 1..=24 {
                let (advancing, ledger) = (&advancing, &ledger);
                scope.spawn(move || {
                    advancing.advance(ledger, head(id)).unwrap();
                    assert!(read(ledger).unwrap().unwrap().head.id >= id);
                });
            }
        });
        assert_eq!(read(&ledger).unwrap().unwrap().head, head(24));
    }

    #[test]
    fn a_head_that_could_not_be_written_is_written_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("later/ledger.db");
        let advancing = Advancing::default();
        assert!(advancing.advance(&ledger, head(7)).is_err());
        fs::create_dir(dir.path().join("later")).unwrap();
        advancing.advance(&ledger, head(6)).unwrap();
        assert_eq!(read(&ledger).unwrap().unwrap().head, head(7));
    }

    #[test]
    fn what_was_written_before_a_log_began_anew_is_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.db");
        let log = |salts: u8| fs::write(beside(&ledger, "-wal"), [salts; 32]).unwrap();
        let base = || read(&ledger).unwrap().unwrap().base_below(&ledger);
        let advance = |n| Advancing::default().advance(&ledger, head(n)).unwrap();
        log(1);
        advance(5);
        assert_eq!(base(), 0, "all of it may still be in the first log");
        advance(6);
        log(2);
        assert_eq!(base(), 6, "its writer died before it could tell of the first commit in the new log");
        advance(8);
        advance(9);
        assert_eq!(base(), 6);
        fs::remove_file(beside(&ledger, "-wal")).unwrap();
        assert_eq!(base(), 9, "all of it was folded");
    }

    #[test]
    fn anything_but_its_own_line_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("ledger.db");
        let hash = "ab".repeat(32);
        for bad in [
            String::new(),
            format!("{WORDS} 5 {hash} 0 -"),
            format!("{WORDS} 5 {hash}\n"),
            format!("{WORDS} -5 {hash} 0 -\n"),
            format!("{WORDS} 5 {} 0 -\n", &hash[2..]),
            format!("{WORDS} 5 {hash} 6 -\n"),
            format!("{WORDS} 5 {hash} 0 0011\n"),
            format!("troop-ledger-head 2 5 {hash} 0 -\n"),
            format!("{WORDS} 5 {hash} 0 -\n\n"),
        ] {
            fs::write(head_path(&ledger), &bad).unwrap();
            assert!(matches!(read(&ledger), Err(LedgerError::HeadUnreadable { .. })), "{bad:?} was read");
        }
    }
}
