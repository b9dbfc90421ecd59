//! When things happen: calendars, the day's plan, forecasts.
//!
//! Everything here is pure. A policy and the texts of its calendars come in, days, windows and plans go out; `now`, the
//! day's key and a forecast's seed are arguments. One definition of a window, in [`calendar`], serves the odds, the
//! minutes of a draw and the gate at the act.
//!
//! **Invariant:** this crate knows what a monkey is called and how often it may act, never what it does; it reads no
//! clock, no file and no network.

pub mod calendar;
pub mod cron_line;
pub mod drills;
#[cfg(test)]
mod fixture;
pub mod forecast;
#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
pub mod holidays;
mod ics;
pub mod plan;
mod scopes;
