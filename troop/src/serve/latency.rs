//! The latency monkey on demand, and the agents as they are shown.

use std::time::Duration;

use jiff::Timestamp;
use troop_policies::InstanceId;
use troop_policies::gates::{Eligible, Purpose};
use troop_policies::intent::Outcome;
use troop_policies::step::Step;

use super::act::{self, Struck};
use super::control::{Control, Found, SCHEMA, error, find, refused};
use super::look::look;
use crate::api::types::{Actor, AgentView, ApiError, ErrorKind, KillAnswer, LatencyRequest};

/// Puts a fault on one instance, if every gate agrees.
pub(super) async fn demand(control: &Control, request: LatencyRequest, actor: Actor) -> Result<KillAnswer, ApiError> {
    if request.reason.trim().is_empty() {
        return Err(error(ErrorKind::Yours, "a fault on demand needs a reason", Some("--reason \"why\"")));
    }
    let seen = look(&control.0).await;
    let mut all = find(&control.0, &seen, &request.target)?;
    let (Some(found), None) = (all.pop(), all.pop()) else {
        let hint = "name one by its draw key, as `troop explain` shows it";
        return Err(error(ErrorKind::Yours, format!("`{}` means several scopes", request.target), Some(hint)));
    };
    let instance = request.instance.clone().or_else(|| found.instance.clone());
    let purpose = Purpose::Demand { outside_window: request.outside_window, instance: instance.clone() };
    let demand = Some((actor.name.clone(), request.reason.clone()));
    let fault = Some((request.fault.clone(), request.lasts));
    let wanted = act::Wanted { fault, ..control.wanted(&found, purpose, demand) };
    if request.plan {
        let (_, verdict) = act::ask(&control.0, &wanted).await;
        let eligible = verdict.result.map_err(|spared| refused(&spared))?;
        return Ok(planned(&found, &eligible, instance, &request, control.0.now()));
    }
    match act::strike(&control.0, wanted.clone()).await {
        Struck::Spared(spared) => {
            control.note_spared(&found, wanted.monkey(), &spared, &actor.name).await;
            Err(refused(&spared))
        }
        Struck::CouldNot { why } => Err(error(ErrorKind::CouldNotAsk, why, Some("`troop status` says what is wrong"))),
        Struck::Acted { intent, zone, outcome } => {
            let (word, detail) = match &outcome {
                Outcome::Done { detail } => ("done", detail.clone()),
                Outcome::Refused { why } => ("refused", why.clone()),
                Outcome::Unknown { why } => ("unknown", why.clone()),
            };
            Ok(KillAnswer {
                schema: SCHEMA,
                draw_key: found.scope.draw_key,
                eligible: Vec::new(),
                victim: intent.step.victim().cloned(),
                zone: Some(zone),
                group: Some(intent.step.group().clone()),
                steps: vec![intent.step.to_string()],
                intent: Some(intent.id.to_string()),
                outcome: word.to_owned(),
                detail,
            })
        }
    }
}

fn planned(
    found: &Found,
    eligible: &Eligible,
    instance: Option<InstanceId>,
    request: &LatencyRequest,
    now: Timestamp,
) -> KillAnswer {
    let step = |id: &InstanceId| eligible.fault(id, &request.fault, request.lasts);
    let named = instance.as_ref().and_then(step);
    let any = eligible.ids().first().and_then(step);
    let first = match (&named, &any) {
        (Some((step, _)), _) => step.to_string(),
        (None, Some((Step::Fault { group, fault, .. }, _))) => {
            let count = eligible.ids().len();
            format!("{fault} on one of {count} eligible instances of {group}, drawn at the act")
        }
        (None, _) => "nothing".to_owned(),
    };
    KillAnswer {
        schema: SCHEMA,
        draw_key: found.scope.draw_key.clone(),
        eligible: eligible.ids(),
        zone: named.as_ref().map(|(_, candidate)| candidate.zone.clone()),
        group: any.map(|(_, candidate)| candidate.group.clone()),
        victim: instance,
        steps: vec![
            first,
            "measure the round trip before, with and after it".to_owned(),
            "renew its lease until its time is over, then end it".to_owned(),
        ],
        intent: None,
        outcome: "planned".to_owned(),
        detail: format!("asked at {}; nothing was changed", now.strftime("%Y-%m-%d %H:%M:%SZ")),
    }
}

/// The agents, as `troop agents` shows them.
pub(super) fn agents(control: &Control) -> Vec<AgentView> {
    let view = |seen: crate::agents::AgentSeen| AgentView {
        schema: SCHEMA,
        host: seen.host.to_string(),
        instance: seen.host.instance().to_owned(),
        release: seen.release,
        kernel: seen.capabilities.kernel,
        planes: seen
            .capabilities
            .planes
            .iter()
            .map(|plane| format!("{} (killed: {}, hung: {})", plane.name, plane.on_death, plane.on_hang))
            .collect(),
        allows: seen.capabilities.allows,
        lacks: seen.capabilities.lacks,
        since: seen.since,
        live: seen.live,
    };
    control.0.agents.seen().into_iter().map(view).collect()
}

/// How long a fault may be asked to last: a working day, as in a policy.
pub const LASTS_MAX: Duration = Duration::from_secs(8 * 3600);
