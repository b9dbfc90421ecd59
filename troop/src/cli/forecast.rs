//! `troop forecast`: how often, before it happens. Needs no cloud, no ledger and no secret.

use std::path::PathBuf;

use clap::Args;
use jiff::civil::Date;
use troop_scheduler::forecast::{self, DAYS_MAX};

use super::args::Output;
use super::policy_files;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::ui;
use crate::views::forecast::{Forecast, Row, text};

/// Play policies through, to see how often they would kill
///
/// A row stands for each app and monkey, leashed or not. The mean gap comes from 200,000 complete gaps, whatever --days
/// is, and lies within 1 % of the mean that the policy asks for.
#[derive(Debug, Args)]
pub(super) struct ForecastArgs {
    /// A policy file, or a folder of *.toml
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// How many calendar days to play
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// The first day [default: today in the policy's zone]
    #[arg(long, value_name = "DATE")]
    from: Option<Date>,
    /// The same seed plays the same years
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also print the kills of each month, and how often each gap came
    #[arg(long)]
    detail: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &ForecastArgs) -> Result<Code, CliError> {
    let files = policy_files::read(&args.path)?;
    if files.iter().any(policy_files::PolicyFile::is_bad) {
        policy_files::tell(&files);
        return Err(policy_files::bad(&files).hint("a forecast of the others alone would look like all of it"));
    }
    let mut rows = Vec::new();
    for file in &files {
        let Ok((policy, calendar)) = &file.result else { continue };
        let today = clock::real_now().to_zoned_datetime(policy.time_zone.clone()).date();
        let from = args.from.unwrap_or(today);
        let played = forecast::forecast(policy, calendar, &[], from, args.days, args.seed);
        rows.extend(played.into_iter().map(|row| Row {
            team: policy.team.to_string(),
            file: file.name.clone(),
            from,
            row,
        }));
    }
    let played = Forecast { schema: 1, days: args.days, seed: args.seed, note: forecast::NOTE, rows };
    if args.output.is_json() {
        ui::json(&played);
    } else if played.rows.is_empty() {
        ui::note("no app of these policies names a monkey: nothing would ever be killed");
    } else {
        ui::line(&text(&played, args.detail));
    }
    Ok(Code::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_played_and_a_bad_file_stops_it() {
        let args = |path: PathBuf| ForecastArgs {
            path,
            days: 30,
            from: Some("2026-11-24".parse().unwrap()),
            seed: 1,
            detail: false,
            output: Output { format: super::super::args::Format::Json },
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, "format = 1\n").unwrap();
        assert_eq!(run(&args(path)).unwrap_err().code, Code::Input);
    }
}
