//! `troop plan`: a day's plans, as stored. Nothing is ever drawn here.

use clap::Args;
use jiff::civil::Date;
use troop_policies::TeamName;
use troop_policies::plan::DayPlan;

use super::args::Output;
use super::context::{self, Context};
use super::stored::{self, Planned};
use crate::api::types::LiveView;
use crate::client::Client;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::state::StateDir;
use crate::ui;
use crate::views;

/// Show what is to happen today, and why
///
/// Chosen and spared, with odds and draws. With --date the stored plan of another day; its day key stands there once
/// that day's last window has closed, so that anyone can replay its draws. A day without a stored plan is never drawn.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Only this team's
    #[arg(long, value_name = "TEAM")]
    team: Option<TeamName>,
    /// A day, such as 2026-11-24
    #[arg(long, value_name = "DATE")]
    date: Option<Date>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: &PlanArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let mut plans = match args.date {
        Some(day) => of_day(&state, day, args.team.as_ref()).await?,
        None => today(&state, args.team.as_ref()).await?,
    };
    plans.sort_by(|a, b| a.plan.team.cmp(&b.plan.team));
    for (n, Planned { plan, event }) in plans.iter().enumerate() {
        if args.output.is_json() {
            ui::json(plan);
        } else {
            if n > 0 {
                ui::line("");
            }
            ui::line(&views::plan::text(plan, event.map(|e| e.0)));
        }
    }
    Ok(Code::Ok)
}

/// The stored plans of one day. None stored: it is said, and never made up.
pub(super) async fn of_day(state: &StateDir, day: Date, team: Option<&TeamName>) -> Result<Vec<Planned>, CliError> {
    let ledger = context::ledger_that_is_there(state).await?;
    let mut plans = stored::plans_of_day(&ledger, day).await?;
    if let Some(team) = team.filter(|_| !plans.is_empty()) {
        stored::known_team(team, plans.iter().map(|p| &p.plan.team))?;
    }
    plans.retain(|p| team.is_none_or(|team| p.plan.team == *team));
    if plans.is_empty() {
        let what = format!("no plan of {day} is stored, and a day without a stored plan is never drawn");
        return Err(CliError::new(Code::Input, what)
            .hint("plans are made on their day, by a control plane that runs; `troop plan` shows today's"));
    }
    Ok(plans)
}

async fn today(state: &StateDir, team: Option<&TeamName>) -> Result<Vec<Planned>, CliError> {
    let client = context::client(state);
    let mut plans = match context::if_running(client.get::<Vec<DayPlan>>("plans").await)? {
        Some(plans) => {
            let bad = tell_bad_policies(&client, plans.is_empty() && team.is_none()).await?;
            if let Some(why) = team.and_then(|team| bad.iter().find(|(t, _)| t.as_ref() == Some(team))) {
                let what = format!(
                    "team `{}` has no plan: its policy is bad, {}",
                    why.0.as_ref().map_or("", TeamName::as_str),
                    why.1
                );
                return Err(CliError::new(Code::Input, what).hint("`troop policy check` shows every mistake"));
            }
            with_events(state, plans).await
        }
        None => newest(state).await?,
    };
    if let Some(team) = team {
        stored::known_team(team, plans.iter().map(|p| &p.plan.team))?;
        plans.retain(|p| p.plan.team == *team);
    }
    Ok(plans)
}

/// The numbers of the plans' events. A ledger that we may not read takes only these away.
async fn with_events(state: &StateDir, plans: Vec<DayPlan>) -> Vec<Planned> {
    let ledger = context::ledger(state).await.ok().flatten();
    let mut planned = Vec::new();
    for plan in plans {
        let event = match &ledger {
            Some(ledger) => {
                ledger.plan(&plan.day.to_string(), plan.team.as_str()).await.ok().flatten().map(|s| s.event)
            }
            None => None,
        };
        planned.push(Planned { plan, event });
    }
    planned
}

/// Teams whose policy cannot be used have no plan; that must not look like a quiet day.
async fn tell_bad_policies(client: &Client, is_empty: bool) -> Result<Vec<(Option<TeamName>, String)>, CliError> {
    let live: LiveView = client.get("live").await?;
    let mut bad = Vec::new();
    for policy in &live.policies {
        if let Some(problem) = &policy.problem {
            let team = policy.team.as_ref().map_or_else(|| "its team".to_owned(), |t| format!("team {t}"));
            ui::note(&format!("{}: {team} is spared as a whole: {problem}", policy.file));
            bad.push((policy.team.clone(), problem.clone()));
        }
    }
    if is_empty && live.policies.is_empty() {
        ui::note("no policy names a team: no monkey touches anything; `troop policy init --team T` writes one");
    } else if is_empty && bad.len() < live.policies.len() {
        ui::note(
            "no plan is made yet; a new policy is planned within a few seconds, and `troop status` tells what is in the way",
        );
    }
    Ok(bad)
}

async fn newest(state: &StateDir) -> Result<Vec<Planned>, CliError> {
    let ledger = context::ledger_that_is_there(state).await?;
    let plans = stored::newest_plans(&ledger).await?;
    ui::note(
        "the control plane does not run; these are the newest plans in the ledger, and none of it will happen meanwhile",
    );
    for Planned { plan, .. } in &plans {
        let today = clock::real_now().to_zoned_datetime(views::time::zone(&plan.time_zone)).date();
        if plan.day < today {
            ui::note(&format!(
                "team {}: no plan of today, {today}, was made; the newest is of {}",
                plan.team, plan.day
            ));
        }
    }
    if plans.is_empty() {
        ui::note("no plan was ever made here");
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use troop_ledger::{Ledger, Stamp};

    use super::*;
    use crate::records::Record;
    use crate::serve::core::{body, event};
    use crate::views::plan::tests::plan;

    async fn state_with_a_plan() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        let clock = Arc::new(|| Stamp { at: jiff::Timestamp::UNIX_EPOCH, real_at: jiff::Timestamp::UNIX_EPOCH });
        let ledger = Ledger::open(&state.ledger(), clock).await.unwrap();
        let plan = plan();
        let record = Record::PlanMade { day: plan.day, team: plan.team.clone(), chosen: 1, spared: 2, late: false };
        let (day, team) = (plan.day.to_string(), plan.team.to_string());
        ledger.store_plan_once(&day, &team, 1, &body(&plan), event(&record, None)).await.unwrap();
        ledger.close().await;
        (dir, state)
    }

    #[tokio::test]
    async fn a_stored_day_is_shown_while_nothing_runs_and_another_day_is_never_drawn() {
        let (_dir, state) = state_with_a_plan().await;
        let day = plan().day;
        let found = of_day(&state, day, None).await.unwrap();
        assert_eq!((found.len(), found[0].event.map(|e| e.0)), (1, Some(1)));
        let error = of_day(&state, day.tomorrow().unwrap(), None).await.unwrap_err();
        assert_eq!(error.code, Code::Input);
        assert!(error.what.contains("never drawn"), "{error}");
        let newest = today(&state, None).await.unwrap();
        assert_eq!(newest[0].plan, plan());
    }

    #[tokio::test]
    async fn a_wrong_team_is_told_with_the_nearest() {
        let (_dir, state) = state_with_a_plan().await;
        let wrong = "shpo".parse().unwrap();
        for error in [
            of_day(&state, plan().day, Some(&wrong)).await.unwrap_err(),
            today(&state, Some(&wrong)).await.unwrap_err(),
        ] {
            assert_eq!((error.code, error.hint.as_deref()), (Code::Input, Some("did you mean `shop`?")));
        }
    }
}
