//! What the agent on a host knows without touching it: what a fault is and whom it may concern, how delays are drawn, and
//! what the kernel is told, how the planes in user space delay, and how long a fault may live.
//!
//! Nobody uses this crate yet: the daemon, which has the kernel's side, joins next.
//!
//! **Invariant:** no IO, no clock, no runtime. Time is an argument, and so is chance: a seeded generator.

pub mod distribution;
pub mod fault;
#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
pub mod host;
pub mod lease;
pub mod moment;
pub mod netem;
pub mod protocol;
pub mod shaper;
