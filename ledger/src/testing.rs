//! A ledger in a folder of its own, and a clock that only these tests move.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

use crate::open::Waits;
use crate::{Clock, Ledger, NewEvent, NewIntent, Stamp};

/// Short, so that a test of waiting in vain is quick.
pub(crate) const SHORT_WAITS: Waits =
    Waits { other_process: Duration::from_millis(200), this_process: Duration::from_millis(400) };

pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) ledger: Ledger,
    ticks: Arc<AtomicI64>,
}

fn stamp(tick: i64) -> Stamp {
    let at = |start: i64| Timestamp::from_nanosecond(i128::from(start + tick) * 1_000_000_000 + 1_234_567).unwrap();
    Stamp { at: at(1_900_000_000), real_at: at(1_800_000_000) }
}

/// A clock that goes on by a second each time it is read.
pub(crate) fn clock(ticks: &Arc<AtomicI64>) -> Clock {
    let ticks = Arc::clone(ticks);
    Arc::new(move || stamp(ticks.fetch_add(1, Ordering::SeqCst)))
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let ticks = Arc::new(AtomicI64::new(0));
        let ledger = Ledger::open(&path, clock(&ticks)).await.unwrap();
        Self { dir, path, ledger, ticks }
    }

    /// A scene on a file, and one in memory that must answer the same.
    pub(crate) async fn both() -> [Self; 2] {
        let in_memory = Self::new().await;
        let ledger = Ledger::in_memory(clock(&in_memory.ticks));
        [Self::new().await, Self { ledger, ..in_memory }]
    }

    /// The time of the row that was written last.
    pub(crate) fn last_stamp(&self) -> Stamp {
        stamp(self.ticks.load(Ordering::SeqCst) - 1)
    }

    /// Runs a statement past the ledger.
    pub(crate) async fn statement(&self, statement: &str) -> Result<(), sqlx::Error> {
        let mut conn = SqliteConnectOptions::new().filename(&self.path).connect().await?;
        let done = conn.execute(AssertSqlSafe(statement.to_owned())).await;
        conn.close().await?;
        done.map(|_| ())
    }

    /// Runs a statement past the ledger and past the schema's own guards.
    pub(crate) async fn tamper(&self, statement: &str) {
        let guards = "drop trigger events_are_never_changed; drop trigger events_are_never_removed";
        self.statement(&format!("{guards}; {statement}")).await.unwrap();
    }
}

pub(crate) fn event(kind: &str) -> NewEvent {
    NewEvent { kind: kind.to_owned(), version: 1, key: None, team: None, actor: None, body: json!({ "n": 1 }) }
}

pub(crate) fn intent(id: &str) -> NewIntent {
    NewIntent {
        id: id.to_owned(),
        kind: "terminate".to_owned(),
        key: "scope".to_owned(),
        team: Some("team".to_owned()),
        body: json!({ "id": id }),
    }
}
