//! `troop kill`: one kill on demand, through every gate but the odds, followed until its group is whole again.

use std::time::Duration;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use troop_ledger::{EventFilter, Ledger, LedgerError};
use troop_policies::InstanceId;

use super::args::{self, Output};
use super::context::{self, Context};
use super::progress::Progress;
use super::status;
use crate::api::types::{KillAnswer, KillRequest};
use crate::client::ACT_WITHIN;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::records::Record;
use crate::state::StateDir;
use crate::ui;
use crate::views::{running, time};

/// How often the ledger is asked whether it has healed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long after its limit a kill is still waited for: the control plane writes its verdict within a second, or within
/// its own restart.
const AFTER_LIMIT: SignedDuration = SignedDuration::from_secs(15);
/// A kill whose limit cannot be read is waited for this long.
const WITHOUT_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// Kill one instance, now, and watch its group heal
///
/// Passes every gate that a drawn kill passes, but the odds, the minimum of workdays and one a day. A kill cannot
/// be undone. Exit 0 when the group is whole again, 5 when it has not
/// healed in time, 3 when a gate refuses, 6 when nobody can say.
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// A cluster, an instance id or a draw key
    target: String,
    /// This instance, instead of one drawn from the eligible
    #[arg(long, value_name = "ID")]
    instance: Option<InstanceId>,
    /// Why, for the ledger and for the team
    #[arg(long, value_name = "WORDS", value_parser = args::reason, required_unless_present = "plan", help_heading = "Safety")]
    reason: Option<String>,
    /// Also outside the policy's window; it is recorded
    #[arg(long, help_heading = "Safety")]
    outside_window: bool,
    /// Only say what would be done
    #[arg(long, help_heading = "Safety")]
    plan: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: KillArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let request = KillRequest {
        target: args.target,
        instance: args.instance,
        reason: args.reason.unwrap_or_else(|| "planned only".to_owned()),
        outside_window: args.outside_window,
        plan: args.plan,
    };
    let answer: KillAnswer = context::client(&state).post("kill", &request, ACT_WITHIN).await?;
    if args.output.is_json() {
        ui::json(&answer);
    } else {
        ui::line(&running::kill(&answer));
    }
    match answer.outcome.as_str() {
        "planned" => Ok(Code::Ok),
        "done" => watch(&state, &answer, args.output).await,
        "refused" => Err(CliError::new(Code::Refused, format!("the cloud refused: {}", answer.detail))),
        _ => Err(CliError::new(Code::LeftBehind, "nobody can say whether the instance is gone; it counts as killed")
            .hint("`troop status` shows it until it is resolved")),
    }
}

/// How a kill ended.
#[derive(Debug, Clone, PartialEq)]
enum Healing {
    Healed { seconds: f64 },
    NotHealed { seconds: f64, why: String },
}

async fn watch(state: &StateDir, answer: &KillAnswer, output: Output) -> Result<Code, CliError> {
    let mut progress = Progress::new();
    let left = "it heals, or not, without this command: `troop status` and `troop history` tell";
    let watched = tokio::select! {
        watched = until_known(state, answer, &mut progress) => watched,
        _ = tokio::signal::ctrl_c() => {
            return Err(CliError::new(Code::LeftBehind, "no longer watched").hint(left));
        }
    };
    drop(progress);
    let (line, code) = match watched {
        Ok(Some(Healing::Healed { seconds })) => (format!("healed in {}", time::seconds(seconds)), Code::Ok),
        Ok(Some(Healing::NotHealed { seconds, why })) => {
            let clear = format!("spared until `troop clear {} --reason …`", answer.draw_key);
            (format!("not healed after {}: {why}; {clear}", time::seconds(seconds)), Code::CheckFalse)
        }
        Ok(None) => {
            let what = "the time to heal has passed, and the ledger does not say whether the group is whole again";
            return Err(
                CliError::new(Code::LeftBehind, what).hint("`troop status` says whether the control plane runs")
            );
        }
        Err(e) => {
            let what =
                format!("the instance is gone; whether its group heals cannot be read: {}", crate::world::chain(&e));
            return Err(CliError::new(Code::LeftBehind, what).hint(left));
        }
    };
    if output.is_json() {
        ui::json(
            &serde_json::json!({ "schema": 1, "intent": answer.intent, "healed": code == Code::Ok, "text": line }),
        );
    } else {
        ui::line(&line);
    }
    Ok(code)
}

async fn until_known(
    state: &StateDir,
    answer: &KillAnswer,
    progress: &mut Progress,
) -> Result<Option<Healing>, LedgerError> {
    let intent = answer.intent.as_deref().unwrap_or_default();
    let ledger = Ledger::open_read_only(&state.ledger()).await?;
    let now = clock::real_now();
    let limit = status::heals_until(&ledger, intent).await?;
    let give_up = limit.map_or(after(now, WITHOUT_LIMIT), |limit| after(limit, AFTER_LIMIT));
    loop {
        if let Some(known) = healing(&ledger, &answer.draw_key, intent).await? {
            return Ok(Some(known));
        }
        if clock::real_now() > give_up {
            return Ok(None);
        }
        let limit =
            limit.map(|at| format!(", at the latest {}", time::both(at, &jiff::tz::TimeZone::UTC))).unwrap_or_default();
        progress.waiting(&format!("until the group is whole again{limit}"));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn after(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

async fn healing(ledger: &Ledger, draw_key: &str, id: &str) -> Result<Option<Healing>, LedgerError> {
    let filter = EventFilter {
        kinds: vec!["healed".to_owned(), "not_healed".to_owned()],
        key: Some(draw_key.to_owned()),
        newest_first: true,
        limit: Some(20),
        ..EventFilter::default()
    };
    let events = ledger.events(&filter).await?;
    let records = events.into_iter().filter_map(|e| serde_json::from_value::<Record>(e.body).ok());
    let known = |record| {
        if let Record::Healed { intent, seconds, .. } = &record
            && intent.as_str() == id
        {
            return Some(Healing::Healed { seconds: *seconds });
        }
        if let Record::NotHealed { intent, after_seconds, why, .. } = record
            && intent.as_str() == id
        {
            return Some(Healing::NotHealed { seconds: after_seconds, why });
        }
        None
    };
    Ok(records.into_iter().find_map(known))
}
