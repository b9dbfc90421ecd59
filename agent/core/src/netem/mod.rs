//! What the kernel's netem is told, and what it says it was told.
//!
//! [`Options`] are its settings as values: made from a fault's parts, written as bytes for rtnetlink, read back from a dump
//! and compared. The bytes are held against what iproute2's `tc` sends (`captures/`).

mod attributes;
mod limit;
mod options;
mod prio;
#[cfg(test)]
mod tests;
mod wire;

pub use limit::{Line, limit_packets};
pub use options::{BadOptions, Difference, LossModel, Options, RateOptions, Slot};
pub use prio::Prio;
pub use wire::Write;
