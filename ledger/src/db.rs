//! What every statement's function shares: the driver's types, times and JSON as columns.

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Fault, LedgerError};
use crate::types::Stamp;

/// The driver. A second one would be a second value of these two names.
pub(crate) type Driver = sqlx::Sqlite;
pub(crate) type Conn = sqlx::SqliteConnection;

/// Both times of a row as columns, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) at: i64,
    pub(crate) real_at: i64,
}

impl From<Stamp> for Now {
    fn from(stamp: Stamp) -> Self {
        Self { at: stamp.at.as_microsecond(), real_at: stamp.real_at.as_microsecond() }
    }
}

fn unreadable(what: &dyn Fn() -> String, why: impl ToString) -> Fault {
    LedgerError::Unreadable { what: what(), why: why.to_string() }.into()
}

/// A time from its column.
pub(crate) fn time(micros: i64, what: &dyn Fn() -> String) -> Result<Timestamp, Fault> {
    Timestamp::from_microsecond(micros).map_err(|e| unreadable(what, e))
}

/// A JSON value from its column.
pub(crate) fn json(text: &str, what: &dyn Fn() -> String) -> Result<Value, Fault> {
    serde_json::from_str(text).map_err(|e| unreadable(what, e))
}

/// A version from its column.
pub(crate) fn version(number: i64, what: &dyn Fn() -> String) -> Result<u32, Fault> {
    u32::try_from(number).map_err(|e| unreadable(what, e))
}
