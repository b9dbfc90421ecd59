//! The monkeys: what each would do, and one step of doing it.
//!
//! A folder a monkey. `plan` parts are pure and choose; `apply` carries out one step and chooses nothing. Saving intents
//! and outcomes is `troop`'s, which joins the monkeys with the ledger.

pub mod chaos;
pub mod latency;
