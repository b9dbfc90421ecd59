//! The undo journal: what was changed on the host and how to change it back, on disk before it is changed.
//!
//! A folder with one file a fault, one line a change, newest last. Undone backwards, by whoever finds it: the agent when a fault ends,
//! the guardian when the agent is gone, `heal`, or the agent's next start. Undoing is idempotent: what is gone already is no error, and
//! what is there but is not ours any more is left alone and said.
//!
//! Every line names the boot and the network namespace in which it was written; elsewhere it means nothing and is dropped.

mod change;
mod journal;

pub use change::{Change, Undone};
pub use journal::{Hold, Journal, JournalError, Place, Report};
