//! The vocabulary and the rules of Troop.
//!
//! Everything here is pure: no clock, no network, no file, no runtime. A policy file comes in as text, the world
//! as an [`inventory::Inventory`] and a [`situation::Situation`], time as an argument, chance as a [`draw::DayKey`];
//! answers come out as values that say why. Other crates carry these answers out and choose nothing themselves.
//!
//! **Invariant:** this crate knows no cloud, no ledger and no runtime, and never reads the time.

mod chain;
pub mod draw;
pub mod fault;
pub mod file;
#[cfg(test)]
mod fixture;
#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
pub mod gates;
pub mod guard;
pub mod harm;
pub mod hold;
pub mod ids;
pub mod intent;
pub mod inventory;
pub mod leash;
pub mod names;
pub mod plan;
pub mod plausible;
pub mod policy;
pub mod registry_view;
pub mod sabotage;
pub mod situation;
pub mod spared;
pub mod step;

pub use chain::chain;
pub use ids::{AccountName, ImageId, InstanceId, IntentId, Location, RegionName, TeamName, ZoneName};
pub use names::{AppName, ClusterName, GroupName};
