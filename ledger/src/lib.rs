//! Remembers: an append-only ledger in SQLite, so that what was decided and done outlives the process that did it.
//!
//! It stores a kind, a version and JSON, and knows no meaning. What it does promise:
//!
//! - events form a hash chain, and a changed, removed or inserted one is found by [`Ledger::verify`];
//! - an old copy put back over a newer ledger is refused, by a small file beside it that remembers the newest event;
//! - a day's plan is stored once, a lock has one holder, an intent is settled once, whatever number of processes share
//!   the file;
//! - what was committed outlives a power loss, and what was not leaves nothing behind.
//!
//! For simulations there is the same in memory ([`Ledger::in_memory`]), which nothing of the command line can ask for.
//!
//! The statements keep to what SQLite and PostgreSQL share, so that a second driver needs its own connections and
//! migrations and nothing else.

mod chain;
mod crash;
mod db;
mod error;
mod events;
mod head;
mod intents;
mod ledger;
mod locks;
mod marks;
mod memory;
mod open;
mod plans;
mod pushes;
mod tx;
mod types;

pub use error::LedgerError;
pub use ledger::Ledger;
pub use tx::Tx;
pub use types::{
    Clock, Event, EventFilter, EventId, IntentFilter, IntentRow, LockRow, MarkRow, NewEvent, NewIntent, PushRow,
    RequestRow, Stamp, StoredPlan, Taken, Verified,
};

#[cfg(test)]
mod testing;
