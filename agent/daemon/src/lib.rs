//! The agent on a host: puts faults upon its packets, keeps their leases, and leaves the host as it was found.
//!
//! [`plane`] is how packets are hurt, [`undo`] the journal that is written before each change and undoes it. What may be done at all, and
//! until when, is decided without IO in `troop-agent-core`.
//!
//! **Invariant:** `unsafe` is in [`sys`] only, the clock is read in the agent's loop only.

pub mod netlink;
pub mod nft;
pub mod plane;
pub mod undo;
