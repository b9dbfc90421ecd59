//! `troop explain`: every gate of a scope, as it answers now; or what is stored of it.

use clap::Args;
use jiff::civil::Date;
use troop_ledger::Ledger;
use troop_policies::plan::PlanEntry;
use troop_policies::situation::UnhealedMark;

use super::args::Output;
use super::context::{self, Context};
use super::{history, plan, stored};
use crate::api::types::{ExplainView, GateView};
use crate::client::query_value;
use crate::exit::{CliError, Code};
use crate::records::MARK_UNHEALED;
use crate::state::{self, StateDir};
use crate::ui;
use crate::views::{self, history::HistoryRow};

/// Lines of a scope's past shown while nothing runs.
const PAST_LINES: usize = 10;

/// Show every gate of a scope, today's draw and today's drills
///
/// The same gates are asked again at the act. With --date, or while
/// nothing runs, what the ledger keeps: the plan's entry, and what came of it.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// A cluster, an instance id or a draw key
    target: String,
    /// A day of the past, such as 2026-11-24
    #[arg(long, value_name = "DATE")]
    date: Option<Date>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: &ExplainArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    if let Some(day) = args.date {
        return past(&state, args, day).await;
    }
    let path = format!("explain?target={}", query_value(&args.target));
    match context::if_running(context::client(&state).get::<Vec<ExplainView>>(&path).await)? {
        Some(views) => show(&views, args.output),
        None => stored_parts(&state, args).await?,
    }
    Ok(Code::Ok)
}

fn show(views: &[ExplainView], output: Output) {
    for (n, view) in views.iter().enumerate() {
        if output.is_json() {
            ui::json(view);
        } else {
            if n > 0 {
                ui::line("");
            }
            ui::line(&views::explain::text(view));
        }
    }
}

/// The stored entries of a day that `target` names, with what came of them.
async fn past(state: &StateDir, args: &ExplainArgs, day: Date) -> Result<Code, CliError> {
    let ledger = context::ledger_that_is_there(state).await?;
    let mut plans = plan::of_day(state, day, None).await?;
    let keys = keys_of(&ledger, &args.target).await?;
    let all: Vec<_> = plans.iter().flat_map(|p| &p.plan.entries).map(|e| e.draw_key.clone()).collect();
    for planned in &mut plans {
        planned.plan.entries.retain(|e| keys.iter().any(|key| names(key, &e.draw_key)));
    }
    plans.retain(|p| !p.plan.entries.is_empty());
    if plans.is_empty() {
        return Err(unknown(&args.target, &all, &format!("the plan of {day}")));
    }
    if args.output.is_json() {
        plans.iter().flat_map(|p| &p.plan.entries).for_each(ui::json);
        return Ok(Code::Ok);
    }
    let mut windows = Vec::new();
    for planned in &plans {
        ui::line(&views::plan::text(&planned.plan, planned.event.map(|e| e.0)));
        windows.extend(planned.plan.windows.iter().copied());
    }
    let entries: Vec<_> = plans.iter().flat_map(|p| &p.plan.entries).collect();
    let day_of = |row: &HistoryRow| {
        let zone = row.team.as_ref().and_then(|team| plans.iter().find(|p| p.plan.team.as_str() == team));
        let zone = zone.map_or(jiff::tz::TimeZone::UTC, |p| views::time::zone(&p.plan.time_zone));
        row.at.to_zoned_datetime(zone).date()
    };
    let in_window = |row: &HistoryRow| windows.iter().any(|w| w.opens <= row.at && row.at < w.shuts);
    let mut rows = history::read(&ledger, None).await?.rows;
    rows.retain(|row| {
        let ours = row.scope.as_ref().is_some_and(|scope| entries.iter().any(|e| e.draw_key == *scope));
        ours && (day_of(row) == day || in_window(row))
    });
    past_lines(&rows, &ledger).await;
    Ok(Code::Ok)
}

async fn past_lines(rows: &[HistoryRow], ledger: &Ledger) {
    if rows.is_empty() {
        ui::line("nothing was done to it");
    } else {
        ui::line(&views::history::text(rows, &stored::zones(ledger).await));
    }
}

/// What can be said while no gate can be asked.
async fn stored_parts(state: &StateDir, args: &ExplainArgs) -> Result<(), CliError> {
    let ledger = context::ledger_that_is_there(state).await?;
    let plans = stored::newest_plans(&ledger).await?;
    let keys = keys_of(&ledger, &args.target).await?;
    let entries = plans.iter().flat_map(|p| &p.plan.entries);
    let (found, others): (Vec<_>, Vec<_>) = entries.partition(|e| keys.iter().any(|key| names(key, &e.draw_key)));
    if found.is_empty() {
        let all: Vec<_> = others.iter().map(|e| e.draw_key.clone()).collect();
        return Err(unknown(&args.target, &all, "the newest plans, and the control plane does not run"));
    }
    ui::note("the control plane does not run, so the gates cannot be asked; this is what is stored");
    let mut views = Vec::new();
    for entry in &found {
        views.push(stored_view(state, &ledger, entry).await?);
    }
    show(&views, args.output);
    if !args.output.is_json() {
        let mut rows = history::read(&ledger, None).await?.rows;
        rows.retain(|row| row.scope.as_ref().is_some_and(|scope| found.iter().any(|e| e.draw_key == *scope)));
        rows.drain(..rows.len().saturating_sub(PAST_LINES));
        past_lines(&rows, &ledger).await;
    }
    Ok(())
}

async fn stored_view(state: &StateDir, ledger: &Ledger, entry: &PlanEntry) -> Result<ExplainView, CliError> {
    let halt = match state::read_halt(&state.halt_file()) {
        Ok(None) => (true, "not halted".to_owned()),
        Ok(Some(halted)) => (false, {
            let since = views::time::both(halted.at, &jiff::tz::TimeZone::UTC);
            format!("halted since {since} by {}: {}", halted.who, halted.why)
        }),
        Err(why) => (false, why),
    };
    let history = match ledger.mark(MARK_UNHEALED, &entry.draw_key).await? {
        None => (true, "not marked unhealed".to_owned()),
        Some(mark) => {
            let why = serde_json::from_value::<UnhealedMark>(mark.body)
                .map_or_else(|_| "its reason cannot be read".to_owned(), |m| m.why);
            (false, format!("unhealed: {why}; `troop clear {} --reason …` ends this", entry.draw_key))
        }
    };
    let gate = |gate: &str, (ok, text): (bool, String)| GateView { gate: gate.to_owned(), ok, text };
    Ok(ExplainView {
        schema: 1,
        draw_key: entry.draw_key.clone(),
        monkey: entry.monkey.clone(),
        team: Some(entry.team.clone()),
        gates: vec![gate("halt", halt), gate("history", history)],
        eligible: Vec::new(),
        verdict: "the other gates cannot be asked: nothing happens while the control plane does not run".to_owned(),
        today: Some(entry.clone()),
        drills: Vec::new(),
    })
}

/// Whether a word of the command line means this draw key: the key itself, or what stands after account and region.
fn names(word: &str, draw_key: &str) -> bool {
    draw_key == word || draw_key.rsplit('/').next() == Some(word)
}

/// The words that `target` stands for: itself, its cluster where it is a group, its scope where it is an instance that
/// was hurt.
async fn keys_of(ledger: &Ledger, target: &str) -> Result<Vec<String>, CliError> {
    let mut keys = vec![target.to_owned()];
    if let Ok(group) = troop_policies::GroupName::new(target) {
        keys.push(group.cluster().to_string());
    }
    let rows = history::read(ledger, None).await?.rows;
    let scope = |row: &HistoryRow| (row.instance.as_deref() == Some(target)).then(|| row.scope.clone()).flatten();
    keys.extend(rows.iter().filter_map(scope));
    Ok(keys)
}

fn unknown(target: &str, all: &[String], place: &str) -> CliError {
    let words = all.iter().flat_map(|key| [key.as_str(), key.rsplit('/').next().unwrap_or(key)]);
    let near = troop_policies::file::nearest(target, words);
    let hint =
        near.map_or_else(|| "`troop plan` lists the scopes".to_owned(), |near| format!("did you mean `{near}`?"));
    CliError::new(Code::Input, format!("`{target}` is not in {place}")).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_or_the_whole_key_names_a_scope_and_a_part_does_not() {
        assert!(names("local/r1/hello-web", "local/r1/hello-web"));
        assert!(names("hello-web", "local/r1/hello-web"));
        assert!(names("hello-web", "local/hello-web"));
        assert!(!names("web", "local/r1/hello-web"));
        assert!(!names("r1/hello-web", "local/r1/hello-web"));
    }

    #[test]
    fn an_unknown_target_is_told_with_the_nearest() {
        let error = unknown("helo-web", &["local/r1/hello-web".to_owned()], "the plan of 2026-11-24");
        assert_eq!(error.hint.as_deref(), Some("did you mean `hello-web`?"));
        assert!(unknown("zzz", &[], "the plan").hint.unwrap().contains("troop plan"));
    }
}
