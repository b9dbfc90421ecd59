//! `troop bench`: what Troop costs and how far it goes, measured on the machine in front of you.
//!
//! Every bench runs the parts that serve (the scheduler, the balancer's workers, the registry, the ledger, a whole
//! control plane) and none made for it; only what stands around them is made up. What is compared is measured in one
//! run, turn by turn, and told as a ratio: figures of two machines, or of two hours on one, say little beside each other.
//! docs/performance.md says what was seen, and what bounds it.

pub mod balancer;
pub mod fleet;
pub mod idle;
#[cfg(feature = "aws")]
pub mod inventory;
pub mod ledger;
mod load;
pub mod plan;
pub mod registry;
mod thread;

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

pub use troop_agent::bench::machine::Machine;

use troop_agent::bench::figures::{as_f64, median, ratio, rounded};
use troop_agent::bench::process;

/// The version of every report's shape.
const SCHEMA: u32 = 1;
/// Longest time that is told apart, in microseconds: a minute, beyond which nothing waits.
const TIME_MAX_US: u64 = 60_000_000;
/// Digits of a time that are kept.
const TIME_DIGITS: u8 = 3;

/// What cannot be done where /proc is not as it should be.
const READS: &str = "read the kernel's counts of a process";

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{what} did not come within {} s", within.as_secs())]
    Late { what: &'static str, within: Duration },
    #[error("could not {what}: {why}")]
    Failed { what: &'static str, why: String },
    #[error(transparent)]
    Ledger(#[from] troop_ledger::LedgerError),
}

impl BenchError {
    fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    fn failed(what: &'static str) -> impl Fn(String) -> Self {
        move |why| Self::Failed { what, why }
    }
}

/// What a bench found.
#[derive(Debug, Serialize)]
pub struct Report<F> {
    pub schema: u32,
    pub bench: &'static str,
    pub machine: Machine,
    #[serde(flatten)]
    pub figures: F,
    /// What is promised of these figures. Empty where the size asked for is not the one the promise is about.
    pub targets: Vec<Target>,
}

impl<F> Report<F> {
    fn new(bench: &'static str, machine: Machine, figures: F, targets: Vec<Target>) -> Self {
        Self { schema: SCHEMA, bench, machine, figures, targets }
    }

    /// Whether every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.targets.iter().all(|target| target.met)
    }
}

/// A promise, and whether this run kept it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Target {
    pub name: &'static str,
    pub unit: &'static str,
    /// No more than this.
    pub at_most: f64,
    pub measured: f64,
    pub met: bool,
}

impl Target {
    fn at_most(name: &'static str, unit: &'static str, limit: f64, measured: f64) -> Self {
        Self { name, unit, at_most: limit, measured, met: measured <= limit }
    }
}

/// Times of one kind of thing, in microseconds.
#[derive(Debug, Clone)]
struct Times(Histogram<u64>);

/// How long something took, over all that was seen of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Times {
    fn new() -> Result<Self, BenchError> {
        let made = Histogram::new_with_bounds(1, TIME_MAX_US, TIME_DIGITS);
        made.map(Self).map_err(|e| BenchError::Failed { what: "count times", why: e.to_string() })
    }

    fn add(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn count(&self) -> u64 {
        self.0.len()
    }

    fn merge(&mut self, other: &Self) {
        // Of the same bounds, so that nothing is refused.
        let _same = self.0.add(&other.0);
    }

    fn spread(&self) -> Spread {
        if self.0.is_empty() {
            return Spread::default();
        }
        let at = |quantile| millis(Duration::from_micros(self.0.value_at_quantile(quantile)));
        Spread { count: self.0.len(), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

fn millis(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1_000.0)
}

/// How many a second.
fn rate(count: u64, took: Duration) -> f64 {
    rounded(ratio(as_f64(count), took.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_tells_the_middle_and_the_slow_ones() {
        let mut times = Times::new().unwrap();
        assert_eq!(times.spread(), Spread::default());
        for ms in 1..=100 {
            times.add(Duration::from_millis(ms));
        }
        let mut all = Times::new().unwrap();
        all.merge(&times);
        let Spread { count, p50_ms, p99_ms, max_ms } = all.spread();
        assert_eq!(count, 100);
        let near = |figure: f64, wanted: f64| (figure - wanted).abs() <= wanted / 500.0;
        assert!(near(p50_ms, 50.0) && near(p99_ms, 99.0) && near(max_ms, 100.0), "{p50_ms} {p99_ms} {max_ms}");
    }

    #[test]
    fn a_promise_is_kept_up_to_its_limit() {
        assert!(Target::at_most("x", "ms", 2.0, 2.0).met);
        assert!(!Target::at_most("x", "ms", 2.0, 2.1).met);
    }
}
