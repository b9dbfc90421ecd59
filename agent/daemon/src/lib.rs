//! The agent on a host: puts faults upon its packets, keeps their leases, and leaves the host as it was found.
//!
//! [`plane`] is how packets are hurt, [`undo`] the journal that is written before each change and undoes it. What may be done at all, and
//! until when, is decided without IO in `troop-agent-core`.
//!
//! **Invariant:** `unsafe` is in `sys` only; the clock is read in the agent's loop, and by the forwarder's threads, which are loops of their own.

pub mod agent;
pub mod bench;
pub mod channel;
pub mod cli;
mod clock;
pub mod config;
#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
pub mod guardian;
pub mod identity;
pub mod join;
pub mod keep;
mod measure;
pub mod netlink;
pub mod nft;
mod owner;
pub mod packet;
pub mod parameter;
pub mod plane;
pub mod planes;
pub mod secret;
mod sockets;
mod sys;
pub mod undo;
