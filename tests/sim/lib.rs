//! Simulated months: the real control plane on a simulated cloud, in virtual time.
//!
//! What is simulated is everything around `troop::serve`: the clock, chance, the ledger's file, the cloud and its
//! registry, people, and trouble of every kind. What runs on it is the code that runs in the binary: planner, gates,
//! acts, healer, janitor, resolver, pushes and their API. After every effect the checker looks at the world as it is.
//!
//! - [`script`]: what happens in a month, from a seed
//! - [`month`]: runs it, with control planes that crash and come back
//! - [`world`]: the cloud as it is, as it is shown, and how calls fare
//! - [`check`]: the invariants
//! - [`shrink`]: the fewest events that still show a violation

pub mod check;
pub mod host;
pub mod month;
pub mod people;
pub mod plane;
pub mod policies;
pub mod rng;
pub mod saboteurs;
pub mod script;
pub mod shrink;
pub mod world;
