//! What can go wrong, told apart by what the operator must do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::EventId;

/// Why the ledger could not be opened, read or written. Nothing was written by a call that returns one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    #[error("cannot open the ledger {}: its folder does not exist; create the folder first", path.display())]
    MissingFolder { path: PathBuf },
    #[error("there is no ledger at {}; check the path, or let the control plane start there once", path.display())]
    Missing { path: PathBuf },
    #[error("{} is no ledger of troop: {why}; give the path of a ledger, or of a file that does not exist yet", path.display())]
    NotALedger { path: PathBuf, why: String },
    #[error(
        "the ledger {} has schema {found}, and this build knows only {known}; use the newer build that wrote it",
        path.display()
    )]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("the ledger {} cannot be brought to this build's schema", path.display())]
    Schema {
        path: PathBuf,
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    #[error(
        "the ledger {} ends at event {newest}, but event {head} was written once: an old copy was put back. Restore \
         the newest copy; to go on from this one and lose the events after it, remove {}.head and {}-wal",
        path.display(),
        path.display(),
        path.display()
    )]
    OlderThanHead { path: PathBuf, newest: i64, head: i64 },
    #[error("the file {} cannot be understood: {why}; restore it, or remove it to trust the ledger beside it", path.display())]
    HeadUnreadable { path: PathBuf, why: String },
    #[error(
        "event {event} of the ledger was changed or is missing: {why}; restore the ledger from a copy that verifies"
    )]
    Corrupt { event: EventId, why: String },
    #[error("the file of the ledger {} is damaged; restore it from a copy that verifies", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{what} in the ledger cannot be read: {why}; `troop ledger verify` tells more")]
    Unreadable { what: String, why: String },
    #[error("the ledger {} can only be read: make the file and its folder writable for this user", path.display())]
    ReadOnly { path: PathBuf },
    #[error(
        "the ledger {} was replaced or removed while it was in use: nothing is written any more; put back the file that \
         was there, and start the control plane again (below `troop up` it starts by itself)",
        path.display()
    )]
    Replaced { path: PathBuf },
    #[error("the disk under the ledger {} is full: nothing was written; make room", path.display())]
    DiskFull { path: PathBuf },
    #[error("the ledger {} is being written by somebody else for too long; try again", path.display())]
    Busy { path: PathBuf },
    #[error("{what}")]
    Conflict { what: String },
    #[error(
        "the lock `{name}` is no longer this holder's: {} now; stop, and take the lock anew",
        holder_now.as_ref().map_or_else(|| "nobody has it".to_owned(), |h| format!("`{h}` has it"))
    )]
    Fenced { name: String, holder_now: Option<String> },
    #[error("cannot {doing} {}", path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the database under the ledger {} failed", path.display())]
    Database {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    #[error("the task that wrote to the ledger ended; whether it wrote is in the ledger")]
    TaskEnded {
        #[source]
        source: tokio::task::JoinError,
    },
}

impl LedgerError {
    pub(crate) fn conflict(what: impl Into<String>) -> Self {
        Self::Conflict { what: what.into() }
    }

    /// Sorts an error of the file system.
    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let kind = source.kind();
        if matches!(kind, io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) {
            Self::ReadOnly { path }
        } else if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { path }
        } else {
            Self::File { doing, path, source }
        }
    }
}

/// An error of the inner functions, which do not know which file they work on.
#[derive(Debug)]
pub(crate) enum Fault {
    Db(sqlx::Error),
    Ledger(LedgerError),
}

impl From<sqlx::Error> for Fault {
    fn from(e: sqlx::Error) -> Self {
        Self::Db(e)
    }
}

impl From<LedgerError> for Fault {
    fn from(e: LedgerError) -> Self {
        Self::Ledger(e)
    }
}

impl Fault {
    /// Whether the caller asked for what cannot be, and the transaction is as good as before.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Ledger(LedgerError::Conflict { .. } | LedgerError::Fenced { .. }))
    }

    /// The error as callers see it. The numbers are SQLite's primary result codes: <https://sqlite.org/rescode.html>.
    pub(crate) fn on(self, path: &Path) -> LedgerError {
        let source = match self {
            Self::Ledger(e) => return e,
            Self::Db(source) => source,
        };
        let path = path.to_owned();
        match primary_code(&source) {
            Some(5 | 6) => LedgerError::Busy { path },
            Some(8) => LedgerError::ReadOnly { path },
            Some(11) => LedgerError::Damaged { path, source: source.into() },
            Some(13) => LedgerError::DiskFull { path },
            Some(26) => LedgerError::NotALedger { path, why: "it is not a SQLite database".to_owned() },
            Some(_) | None if matches!(source, sqlx::Error::PoolTimedOut) => LedgerError::Busy { path },
            Some(_) | None => LedgerError::Database { path, source },
        }
    }
}

fn primary_code(e: &sqlx::Error) -> Option<i32> {
    let extended: i32 = e.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

pub(crate) trait OnPath<T> {
    fn on(self, path: &Path) -> Result<T, LedgerError>;
}

impl<T> OnPath<T> for Result<T, Fault> {
    fn on(self, path: &Path) -> Result<T, LedgerError> {
        self.map_err(|fault| fault.on(path))
    }
}

impl<T> OnPath<T> for Result<T, sqlx::Error> {
    fn on(self, path: &Path) -> Result<T, LedgerError> {
        self.map_err(|e| Fault::Db(e).on(path))
    }
}
