//! What is asked of the bench.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Shortest and longest round: below nothing has begun, and a lease would end beyond.
const ROUND_MIN: Duration = Duration::from_millis(50);
const ROUND_MAX: Duration = Duration::from_secs(10);

/// Options of `troop-agent bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For people, or for programs
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
    #[command(flatten)]
    pub(super) options: Options,
}

/// What is measured, and for how long.
#[derive(Debug, Clone, clap::Args, Serialize, Deserialize)]
pub(super) struct Options {
    /// Rounds of every way; the middle one is told
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: u32,
    /// How long a round of each way lasts
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = round)]
    round: Milliseconds,
    /// How many connections carry at a time, one count after the other
    #[arg(long, value_name = "N,N", default_value = "1,8,16", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) flows: Vec<u32>,
    /// Measure one thing
    #[arg(long, value_enum)]
    pub(super) only: Option<Only>,
    /// The plane [default: the best that this host has]
    #[arg(long, value_name = "NAME")]
    pub(super) plane: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Milliseconds(u64);

impl Options {
    pub(super) fn round(&self) -> Duration {
        Duration::from_millis(self.round.0)
    }
}

fn round(text: &str) -> Result<Milliseconds, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write a number and a unit, such as `500ms` or `2s`")?;
    let span = Duration::try_from(span).ok().filter(|span| (ROUND_MIN..=ROUND_MAX).contains(span));
    let span = span.ok_or_else(|| format!("a round lasts {ROUND_MIN:?} to {ROUND_MAX:?}"))?;
    Ok(Milliseconds(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// A thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Only {
    Throughput,
    Packets,
    Rtt,
    Delay,
    Memory,
    Idle,
}

/// What the bench starts itself again for.
#[derive(Debug, clap::Args)]
pub struct PartArgs {
    #[command(subcommand)]
    pub(super) part: Part,
}

#[derive(Debug, Subcommand)]
pub(super) enum Part {
    /// Measure, in namespaces of its own
    Inside {
        #[arg(long)]
        parent: u32,
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        options: String,
    },
    /// Become a program that ends with who started it
    Attached {
        #[arg(long)]
        parent: u32,
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Connect and write
    Send { to: SocketAddr, flows: u32, lasts_ms: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_a_number_and_a_unit_and_has_limits() {
        assert_eq!(round("500ms").unwrap().0, 500);
        assert_eq!(round("2s").unwrap().0, 2_000);
        for wrong in ["", "5", "1ms", "11s", "-1s", "soon"] {
            assert!(round(wrong).is_err(), "{wrong}");
        }
    }
}
