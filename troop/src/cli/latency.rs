//! `troop latency`: a fault on the network of one instance, on demand, followed until it is gone. And `troop agents`.

use std::time::Duration;

use clap::Args;
use troop_cloud::local::agents::secret_file;
use troop_policies::chain;

use super::args::{self, Output};
use super::context::{self, Context};
use super::demand::DemandArgs;
use super::fault_args::FaultArgs;
use super::watch::{self, Wait};
use crate::agents::HostName;
use crate::agents::proof::Keys;
use crate::agents::token::{AgentsSecret, Scope};
use crate::api::types::{AgentView, KillAnswer, LatencyRequest};
use crate::client::ACT_WITHIN;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::records::Record;
use crate::state::StateDir;
use crate::ui;
use crate::views::running;

/// Delay the packets of one instance for a while, and watch them recover
///
/// Passes every gate that a drawn act passes, but the odds, the minimum of workdays and one a day; and it must be on the
/// menu of the app's [apps.NAME.latency]. Exit 0 when it was measured to be there and to be gone, 3 when a gate or the host
/// refuses, 5 when it did not heal, 6 when nobody can say.
#[derive(Debug, Args)]
pub(super) struct LatencyArgs {
    #[command(flatten)]
    demand: DemandArgs,
    #[command(flatten)]
    fault: FaultArgs,
    /// How long it lasts
    #[arg(long = "for", value_name = "TIME", value_parser = args::span, default_value = "60s")]
    lasts: Duration,
    #[command(flatten)]
    output: Output,
}

/// List the agents on the hosts: what they can do, and what they do
///
/// With --token it makes what the agent of a host elsewhere shows to be received, with --forget it lets a host's agent have a new key;
/// both need nobody to run.
#[derive(Debug, Args)]
pub(super) struct AgentsArgs {
    /// Print the token of this host's agent (account/region/instance) instead, or of all agents of a region (account/region): a secret
    #[arg(long, value_name = "SCOPE", conflicts_with = "format")]
    token: Option<String>,
    /// Forget by which key this host's agent (account/region/instance) has proven itself, so that one with another key is received
    #[arg(long, value_name = "HOST", conflicts_with_all = ["format", "token"])]
    forget: Option<String>,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn agents(cx: &Context, args: &AgentsArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    if let Some(scope) = &args.token {
        return token(&state, scope);
    }
    if let Some(host) = &args.forget {
        return forget(&state, host);
    }
    let views: Vec<AgentView> = context::client(&state).get("agents").await?;
    if args.output.is_json() {
        views.iter().for_each(ui::json);
    } else if views.is_empty() {
        ui::note(
            "no agent has ever been connected; the embedded cloud has one beside each instance, where there are namespaces",
        );
    } else {
        ui::line(&running::agents(&views, clock::real_now()));
    }
    Ok(Code::Ok)
}

fn token(state: &StateDir, scope: &str) -> Result<Code, CliError> {
    let hint = "write account/region/instance or account/region, for example prod/us-east-1/i-0a11";
    let scope = Scope::parse(scope)
        .ok_or_else(|| CliError::new(Code::Input, format!("`{scope}` names no host and no region")).hint(hint))?;
    let path = secret_file(state.path());
    let secret = AgentsSecret::keep(&path).map_err(|error| {
        CliError::new(Code::Unavailable, format!("could not keep the agents' secret `{}`: {error}", path.display()))
            .hint("whoever runs the control plane may read it; it is made by `troop up`")
    })?;
    ui::line(&secret.token_of(&scope));
    Ok(Code::Ok)
}

fn forget(state: &StateDir, host: &str) -> Result<Code, CliError> {
    let hint = "write account/region/instance, for example prod/us-east-1/i-0a11";
    let host = HostName::parse(host)
        .ok_or_else(|| CliError::new(Code::Input, format!("`{host}` names no host")).hint(hint))?;
    match Keys::of(state.path()).forget(&host) {
        Ok(true) => {
            ui::note(&format!("the key of `{host}` is forgotten: the next agent that proves itself is the host's"))
        }
        Ok(false) => ui::note(&format!("no key of `{host}` was known")),
        Err(error) => {
            return Err(
                CliError::new(Code::Unavailable, chain(&error)).hint("whoever runs the control plane may do it")
            );
        }
    }
    Ok(Code::Ok)
}

pub(super) async fn run(cx: &Context, args: LatencyArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    let output = args.output;
    let request = LatencyRequest {
        fault: args.fault.spec()?,
        lasts: args.lasts,
        reason: args.demand.reason(),
        target: args.demand.target,
        instance: args.demand.instance,
        outside_window: args.demand.outside_window,
        plan: args.demand.plan,
    };
    let answer: KillAnswer = context::client(&state).post("latency", &request, ACT_WITHIN).await?;
    if output.is_json() {
        ui::json(&answer);
    } else {
        ui::line(&running::latency(&answer));
    }
    match answer.outcome.as_str() {
        "planned" => Ok(Code::Ok),
        "done" => watch(&state, &answer, output).await,
        "refused" => {
            Err(CliError::new(Code::Refused, answer.detail.clone()).hint("`troop agents` shows what each host can do"))
        }
        _ => Err(CliError::new(Code::LeftBehind, "nobody can say whether it is there; its lease lapses by itself")
            .hint("`troop status` shows it until it is known to be gone")),
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Gone(String),
    NotHealed(String),
}

async fn watch(state: &StateDir, answer: &KillAnswer, output: Output) -> Result<Code, CliError> {
    let wait = Wait {
        kinds: ["fault_ended", "not_healed"],
        until: &format!("until it is gone; {}", answer.detail),
        left: "it ends, or lapses, without this command: `troop status` and `troop history` tell",
        never: (
            "its time is over, and the ledger does not say that it is gone",
            "`troop agents` shows what the host still has",
        ),
        unread: "whether it is gone cannot be read",
    };
    let (line, code) = match watch::ended(state, answer, &wait, end).await? {
        End::Gone(how) => (how, Code::Ok),
        End::NotHealed(why) => (format!("not healed: {why}"), Code::CheckFalse),
    };
    if output.is_json() {
        ui::json(&serde_json::json!({ "schema": 1, "intent": answer.intent, "gone": code == Code::Ok, "text": line }));
    } else {
        ui::line(&line);
    }
    Ok(code)
}

fn end(record: Record, id: &str) -> Option<End> {
    if let Record::FaultEnded { intent, how, .. } = &record
        && intent.as_str() == id
    {
        return Some(End::Gone(how.clone()));
    }
    if let Record::NotHealed { intent, why, .. } = record
        && intent.as_str() == id
    {
        return Some(End::NotHealed(why));
    }
    None
}
