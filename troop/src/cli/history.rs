//! `troop history`: what was done, spared and undone, from the ledger alone.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use troop_ledger::{EventFilter, Ledger};
use troop_policies::TeamName;

use super::args::{self, Output};
use super::context::{self, Context};
use super::rows::{self, Rows};
use super::stored;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::ui;
use crate::views::history::{self, HistoryRow};

/// Events read where no `--since` says how far back: far more than the lines that are shown.
const EVENTS_READ: u32 = 5_000;
/// What `--would-have` shows.
const WOULD_HAVE_KINDS: [&str; 2] = ["would_have", "spared_at_act"];
/// How far back `--would-have` sums up unless told: the two weeks that a new site is leashed.
const WOULD_HAVE_SINCE: Duration = Duration::from_secs(14 * 86_400);

/// Show what was done, spared and undone, with reasons
///
/// Reads the ledger, and so works while nothing runs. The newest line is the last.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Only what leashed monkeys would have done and what was spared at its minute, with a sum (14d unless --since says more)
    #[arg(long)]
    would_have: bool,
    /// How far back, such as 14d or 2h
    #[arg(long, value_name = "DURATION", value_parser = args::span)]
    since: Option<Duration>,
    /// Only lines of this team
    #[arg(long, value_name = "TEAM")]
    team: Option<TeamName>,
    /// At most so many lines, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: &HistoryArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let ledger = context::ledger_that_is_there(&state).await?;
    let since = args.since.or(args.would_have.then_some(WOULD_HAVE_SINCE));
    let kinds: &[&str] = if args.would_have { &WOULD_HAVE_KINDS } else { &rows::KINDS };
    let Rows { mut rows, unreadable, .. } = read_kinds(&ledger, since.map(ago), kinds).await?;
    if unreadable > 0 {
        ui::note(&format!("{unreadable} events were written by another build of troop and are not shown"));
    }
    if let Some(team) = &args.team {
        rows.retain(|row| row.team.as_deref() == Some(team.as_str()));
    }
    let summary = args.would_have.then(|| history::would_have_summary(&rows));
    let left_out = rows.len().saturating_sub(args.limit);
    rows.drain(..left_out);
    if args.output.is_json() {
        rows.iter().for_each(ui::json);
    } else {
        if let Some(summary) = summary {
            ui::line(&summary);
        }
        show(&rows, &ledger, args.team.as_ref()).await;
    }
    if left_out > 0 {
        ui::note(&format!("{left_out} older lines are not shown; `--limit` takes more"));
    }
    Ok(Code::Ok)
}

async fn show(rows: &[HistoryRow], ledger: &Ledger, team: Option<&TeamName>) {
    if rows.is_empty() {
        let whose = team.map(|t| format!(" of team `{t}`")).unwrap_or_default();
        return ui::note(&format!("nothing was done, spared or undone{whose} in that time"));
    }
    ui::line(&history::text(rows, &stored::zones(ledger).await));
}

/// Every line since a moment of the scheduler's calendar, or the newest.
pub(super) async fn read(ledger: &Ledger, since: Option<Timestamp>) -> Result<Rows, CliError> {
    read_kinds(ledger, since, &rows::KINDS).await
}

async fn read_kinds(ledger: &Ledger, since: Option<Timestamp>, kinds: &[&str]) -> Result<Rows, CliError> {
    let filter = EventFilter {
        kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
        since,
        newest_first: true,
        limit: since.is_none().then_some(EVENTS_READ),
        ..EventFilter::default()
    };
    let mut events = ledger.events(&filter).await?;
    events.reverse();
    if kinds == WOULD_HAVE_KINDS {
        // What a person asked for and was refused is no draw, and would distort the sum.
        events.retain(|event| event.body.get("demand") != Some(&serde_json::Value::Bool(true)));
    }
    Ok(rows::rows(events))
}

fn ago(span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    clock::real_now().checked_sub(span).unwrap_or(Timestamp::MIN)
}
