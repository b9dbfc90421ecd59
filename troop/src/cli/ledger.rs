//! `ledger export`, `ledger verify` and `ledger adopt`: what stands in the ledger, whether it is whole, and whose it is.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use troop_ledger::{Event, EventFilter, EventId, LedgerError};

use super::args::{self, Output};
use super::context::{self, Context};
use crate::api::router::{AdoptAnswer, WhyRequest};
use crate::client::ACT_WITHIN;
use crate::exit::{CliError, Code};
use crate::ui;
use crate::views::time;
use crate::world::chain;

/// Events read at a time: the ledger of years does not fit into memory at once.
const PAGE: u32 = 1_000;

/// Read the ledger whole, check it, or adopt a cloud
#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    Export(ExportArgs),
    Verify(VerifyArgs),
    Adopt(AdoptArgs),
}

/// Print every event as one JSON object a line, oldest first
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Only events after this number
    #[arg(long, value_name = "NUMBER")]
    after: Option<i64>,
}

/// Check the chain of events: a changed, removed or inserted one, and an old file put back, are found
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    output: Output,
}

/// Accept the marks of a cloud that another ledger has written
///
/// A group's tag `troop:mark` names the last act on it. Where this ledger does not hold that act, every monkey spares the
/// group and no push begins: another site may be at work, or this ledger may be an old copy. Adopt once you know why.
#[derive(Debug, Args)]
pub(super) struct AdoptArgs {
    /// Why this ledger is the right one, for the ledger
    #[arg(long, value_name = "WORDS", value_parser = args::reason, help_heading = "Safety")]
    reason: String,
}

pub(super) fn run(cx: &Context, command: LedgerCommand) -> Result<Code, CliError> {
    match command {
        LedgerCommand::Export(args) => context::block_on(export(cx, &args)),
        LedgerCommand::Verify(args) => context::block_on(verify(cx, &args)),
        LedgerCommand::Adopt(args) => context::block_on(adopt(cx, &args)),
    }
}

/// One event as it is printed.
#[derive(Debug, Serialize)]
struct Exported<'a> {
    schema: u32,
    id: i64,
    at: Timestamp,
    real_at: Timestamp,
    kind: &'a str,
    version: u32,
    key: Option<&'a str>,
    team: Option<&'a str>,
    actor: Option<&'a str>,
    body: &'a serde_json::Value,
    hash: &'a str,
}

fn exported(event: &Event) -> Exported<'_> {
    Exported {
        schema: 1,
        id: event.id.0,
        at: event.at,
        real_at: event.real_at,
        kind: &event.kind,
        version: event.version,
        key: event.key.as_deref(),
        team: event.team.as_deref(),
        actor: event.actor.as_deref(),
        body: &event.body,
        hash: &event.hash,
    }
}

async fn export(cx: &Context, args: &ExportArgs) -> Result<Code, CliError> {
    let ledger = context::ledger_that_is_there(&cx.state()?).await?;
    let mut after = args.after.map(EventId);
    loop {
        let page = EventFilter { after, limit: Some(PAGE), ..EventFilter::default() };
        let events = ledger.events(&page).await?;
        let Some(last) = events.last() else { return Ok(Code::Ok) };
        after = Some(last.id);
        events.iter().for_each(|event| ui::json(&exported(event)));
    }
}

#[derive(Debug, Serialize)]
struct VerifiedView {
    schema: u32,
    whole: bool,
    events: Option<u64>,
    newest: Option<i64>,
    newest_real_at: Option<Timestamp>,
    problem: Option<String>,
}

async fn verify(cx: &Context, args: &VerifyArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let found = async {
        let Some(ledger) = context::ledger(&state).await? else { return Ok(None) };
        let verified = ledger.verify().await?;
        Ok::<_, LedgerError>(Some((verified.events, ledger.newest_event().await?)))
    };
    let view = match found.await {
        Ok(None) => return Err(context::nothing_was_done(&state)),
        Ok(Some((events, newest))) => VerifiedView {
            schema: 1,
            whole: true,
            events: Some(events),
            newest: newest.as_ref().map(|e| e.id.0),
            newest_real_at: newest.as_ref().map(|e| e.real_at),
            problem: None,
        },
        Err(e @ (LedgerError::Corrupt { .. } | LedgerError::Damaged { .. } | LedgerError::OlderThanHead { .. })) => {
            VerifiedView {
                schema: 1,
                whole: false,
                events: None,
                newest: None,
                newest_real_at: None,
                problem: Some(chain(&e)),
            }
        }
        Err(e) => return Err(e.into()),
    };
    let code = if view.whole { Code::Ok } else { Code::CheckFalse };
    if args.output.is_json() {
        ui::json(&view);
        return Ok(code);
    }
    match (&view.problem, view.events, view.newest_real_at) {
        (Some(problem), _, _) => {
            let hint = "restore the newest backup, or keep this file for a look; nothing is done on a ledger that is not whole";
            return Err(CliError::new(code, format!("the ledger is not whole: {problem}")).hint(hint));
        }
        (None, Some(events), Some(newest)) => {
            let newest = time::both(newest, &jiff::tz::TimeZone::UTC);
            ui::line(&format!("whole: {events} events, each chained to the one before; the newest of {newest}"));
        }
        (None, _, _) => ui::line("whole: no events yet"),
    }
    Ok(code)
}

async fn adopt(cx: &Context, args: &AdoptArgs) -> Result<Code, CliError> {
    let request = WhyRequest { reason: args.reason.clone() };
    let answer: AdoptAnswer = context::client(&cx.state()?).post("adopt", &request, ACT_WITHIN).await?;
    for mark in &answer.adopted {
        ui::line(&format!("adopted {}: mark {}", mark.group, mark.mark));
    }
    ui::line(&format!("{} marks adopted; the groups may be hurt and deployed to again", answer.adopted.len()));
    Ok(Code::Ok)
}
