//! `troop kill`: one kill on demand, through every gate but the odds, followed until its group is whole again.

use clap::Args;

use super::args::Output;
use super::context::{self, Context};
use super::demand::DemandArgs;
use super::watch::{self, Wait};
use crate::api::types::{KillAnswer, KillRequest};
use crate::client::ACT_WITHIN;
use crate::exit::{CliError, Code};
use crate::records::Record;
use crate::state::StateDir;
use crate::ui;
use crate::views::{running, time};

/// Kill one instance, now, and watch its group heal
///
/// Passes every gate that a drawn kill passes, but the odds, the minimum of workdays and one a day. A kill cannot
/// be undone. Exit 0 when the group is whole again, 5 when it has not
/// healed in time, 3 when a gate refuses, 6 when nobody can say.
#[derive(Debug, Args)]
pub(super) struct KillArgs {
    #[command(flatten)]
    demand: DemandArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn run(cx: &Context, args: KillArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let request = KillRequest {
        reason: args.demand.reason(),
        target: args.demand.target,
        instance: args.demand.instance,
        outside_window: args.demand.outside_window,
        plan: args.demand.plan,
    };
    let answer: KillAnswer = context::client(&state).post("kill", &request, ACT_WITHIN).await?;
    if args.output.is_json() {
        ui::json(&answer);
    } else {
        ui::line(&running::kill(&answer));
    }
    match answer.outcome.as_str() {
        "planned" => Ok(Code::Ok),
        "leashed" => Err(CliError::new(Code::Refused, "leashed: nothing of it is done")
            .hint("`leashed = false` in the site file and in the policy, once what it would do is what you want")),
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
    let wait = Wait {
        kinds: ["healed", "not_healed"],
        until: "until the group is whole again",
        left: "it heals, or not, without this command: `troop status` and `troop history` tell",
        never: (
            "the time to heal has passed, and the ledger does not say whether the group is whole again",
            "`troop status` says whether the control plane runs",
        ),
        unread: "the instance is gone; whether its group heals cannot be read",
    };
    let (line, code) = match watch::ended(state, answer, &wait, healing).await? {
        Healing::Healed { seconds } => (format!("healed in {}", time::seconds(seconds)), Code::Ok),
        Healing::NotHealed { seconds, why } => {
            let clear = format!("spared until `troop clear {} --reason …`", answer.draw_key);
            (format!("not healed after {}: {why}; {clear}", time::seconds(seconds)), Code::CheckFalse)
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

fn healing(record: Record, id: &str) -> Option<Healing> {
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
}
