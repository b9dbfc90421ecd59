//! The service registry: Eureka's wire protocol over a pure lease table.
//!
//! Troop needs one to know which instances serve, to take a whole group out of service with one word, and to drop the
//! entry of an instance it has ended. Eureka's own server forgets overrides and, when small, never lets go of the dead;
//! this one does neither. [`server`] is the service, [`client`] is how the control plane reads and changes it.
//!
//! **Invariant:** the lease table is pure. Time is an argument, and every change says how it must be saved.

use std::sync::Arc;

pub mod client;
#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
mod http;
mod info;
pub mod pure;
pub mod saved;
pub mod server;
mod shared;
mod table;

/// Where the time comes from. Called for every request and every tick.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;
