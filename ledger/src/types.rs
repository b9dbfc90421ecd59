//! The rows of the ledger as callers see them.
//!
//! Every row carries two times, because the demo's calendar runs apart from real time: `at` is where the scheduler's
//! calendar was, `real_at` is real time. Both are cut to microseconds when they are stored.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

/// Tells both times of a row that is being written.
pub type Clock = Arc<dyn Fn() -> Stamp + Send + Sync>;

/// One moment, in both times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Where the scheduler's calendar is.
    pub at: Timestamp,
    /// Real time.
    pub real_at: Timestamp,
}

/// The number of an event. The first is 1, and there are no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct EventId(pub i64);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    pub kind: String,
    /// The version of the body's shape.
    pub version: u32,
    pub key: Option<String>,
    pub team: Option<String>,
    /// The person who caused it, where one did.
    pub actor: Option<String>,
    pub body: Value,
}

/// An event of the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: EventId,
    pub at: Timestamp,
    pub real_at: Timestamp,
    pub kind: String,
    pub version: u32,
    pub key: Option<String>,
    pub team: Option<String>,
    pub actor: Option<String>,
    pub body: Value,
    /// SHA-256 over the previous event's hash and this event, in lower-case hexadecimal.
    pub hash: String,
}

/// Which events are wanted. The default wants all, oldest first.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only events with a greater number.
    pub after: Option<EventId>,
    /// Only events whose `at` is this or later.
    pub since: Option<Timestamp>,
    /// Only events whose `at` is earlier than this.
    pub until: Option<Timestamp>,
    /// Any of these; empty means any kind.
    pub kinds: Vec<String>,
    pub key: Option<String>,
    pub key_prefix: Option<String>,
    pub team: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    pub newest_first: bool,
}

/// An act that is about to be tried.
#[derive(Debug, Clone, PartialEq)]
pub struct NewIntent {
    /// Unique for all time; chosen by the caller.
    pub id: String,
    pub kind: String,
    pub key: String,
    pub team: Option<String>,
    pub body: Value,
}

/// An act that was about to be tried, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct IntentRow {
    pub id: String,
    pub kind: String,
    pub key: String,
    pub team: Option<String>,
    pub body: Value,
    pub at: Timestamp,
    pub real_at: Timestamp,
    /// `None` while the intent is open.
    pub outcome: Option<String>,
    pub outcome_body: Option<Value>,
    pub settled_real_at: Option<Timestamp>,
}

/// Which intents are wanted. The default wants all, oldest first.
#[derive(Debug, Clone, Default)]
pub struct IntentFilter {
    pub kind: Option<String>,
    pub key: Option<String>,
    pub team: Option<String>,
    /// Only intents whose `at` is this or later.
    pub since: Option<Timestamp>,
    /// Only intents settled with this word.
    pub outcome: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
    pub newest_first: bool,
}

/// A lock that somebody holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockRow {
    pub name: String,
    pub holder: String,
    pub fence: i64,
    /// When it was taken.
    pub real_at: Timestamp,
}

/// What came of trying to take a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is the caller's. The fence is greater than that of any earlier holder of this name.
    Yes { fence: i64 },
    /// Somebody else has it.
    HeldBy { holder: String },
}

/// A fact that stands until it is cleared.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkRow {
    pub kind: String,
    pub key: String,
    pub body: Value,
    /// When it was last set.
    pub at: Timestamp,
    pub real_at: Timestamp,
}

/// A push, as it was last saved.
#[derive(Debug, Clone, PartialEq)]
pub struct PushRow {
    pub id: i64,
    pub key: String,
    pub body: Value,
    /// Starts at 1 and grows by one with every save.
    pub version: i64,
    pub ended: bool,
    /// When it was inserted.
    pub at: Timestamp,
    pub real_at: Timestamp,
}

/// A request that waits for an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRow {
    pub id: i64,
    pub kind: String,
    pub key: String,
    pub body: Value,
    pub real_at: Timestamp,
}

/// A day's plan of one team.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPlan {
    /// Whether this very call stored it.
    pub fresh: bool,
    pub day: String,
    pub team: String,
    pub version: u32,
    pub body: Value,
    /// In the scheduler's calendar.
    pub made_at: Timestamp,
    /// The event that was written with it.
    pub event: EventId,
}

/// What [`crate::Ledger::verify`] found whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    pub events: u64,
}
