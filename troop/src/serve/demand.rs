//! An act that a person asks for: the end of an instance, or a fault on its network for a while.

use std::time::Duration;

use troop_policies::fault::FaultSpec;
use troop_policies::gates::{Candidate, Eligible, Purpose, Verdict};
use troop_policies::intent::Outcome;
use troop_policies::spared::Spared;
use troop_policies::step::Step;
use troop_policies::{InstanceId, Location};

use super::act::{self, Struck, Wanted};
use super::control::{Control, Found, SCHEMA, could_not_ask, day_of, error, find};
use super::core::Core;
use super::look::look;
use crate::api::types::{Actor, ApiError, ErrorKind, KillAnswer, KillRequest, LatencyRequest};
use crate::records::Record;
use crate::world::chain;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Demand {
    target: String,
    instance: Option<InstanceId>,
    reason: String,
    outside_window: bool,
    /// Only say what would be done.
    plan: bool,
    /// `None`: the end of the instance.
    fault: Option<(FaultSpec, Duration)>,
}

impl From<KillRequest> for Demand {
    fn from(request: KillRequest) -> Self {
        let KillRequest { target, instance, reason, outside_window, plan } = request;
        Self { target, instance, reason, outside_window, plan, fault: None }
    }
}

impl From<LatencyRequest> for Demand {
    fn from(request: LatencyRequest) -> Self {
        let LatencyRequest { target, instance, fault, lasts, reason, outside_window, plan } = request;
        Self { target, instance, reason, outside_window, plan, fault: Some((fault, lasts)) }
    }
}

/// Carries it out, or says what it would be, if every gate agrees.
pub(super) async fn carry_out(control: &Control, demand: Demand, actor: Actor) -> Result<KillAnswer, ApiError> {
    let core = &control.0;
    if demand.reason.trim().is_empty() {
        let what = if demand.fault.is_some() { "fault" } else { "kill" };
        let message = format!("a {what} on demand needs a reason");
        return Err(error(ErrorKind::Yours, message, Some("--reason \"why\"")));
    }
    let seen = look(core).await;
    let mut all = find(core, &seen, &demand.target)?;
    if all.len() > 1 {
        let keys = all.iter().map(|found| found.scope.draw_key.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("`{}` means several scopes: {keys}", demand.target);
        return Err(error(ErrorKind::Yours, message, Some("name one by its draw key")));
    }
    let Some(found) = all.pop() else {
        return Err(error(ErrorKind::NotFound, format!("nothing is named `{}`", demand.target), None));
    };
    let instance = demand.instance.or_else(|| found.instance.clone());
    let purpose = Purpose::Demand { outside_window: demand.outside_window, instance: instance.clone() };
    let asked = Some((actor.name.clone(), demand.reason));
    let wanted = Wanted { fault: demand.fault, ..control.wanted(&found, purpose, asked) };
    if demand.plan {
        let (_, verdict) = act::ask(core, &wanted).await;
        return match &verdict.result {
            Ok(eligible) => {
                let mut answer = planned(core, &found, eligible, instance, wanted.fault.as_ref());
                answer.calls =
                    calls(core, &answer, |id| eligible.step(id).map(|(step, at)| (step, at.clone()))).await?;
                Ok(answer)
            }
            Err(spared) if wanted.fault.is_none() && verdict.only_leashed_by().is_some() => {
                leashed(core, &found, &verdict, instance, spared).await
            }
            Err(spared) => Err(refused(spared)),
        };
    }
    let monkey = wanted.monkey();
    match act::strike(core, wanted).await {
        Struck::Spared(spared) => {
            note_spared(control, &found, monkey, &spared, &actor.name).await;
            Err(refused(&spared))
        }
        Struck::CouldNot { why } => Err(error(ErrorKind::CouldNotAsk, why, Some("`troop status` says what is wrong"))),
        Struck::Acted { intent, zone, outcome } => {
            let (word, detail) = match outcome {
                Outcome::Done { detail } => ("done", detail),
                Outcome::Refused { why } => ("refused", why),
                Outcome::Unknown { why } => ("unknown", why),
            };
            let Some(victim) = intent.step.victim() else {
                return Err(error(ErrorKind::Bug, format!("a demand became `{}`", intent.step), None));
            };
            Ok(KillAnswer {
                schema: SCHEMA,
                draw_key: found.scope.draw_key,
                eligible: Vec::new(),
                victim: Some(victim.clone()),
                zone: Some(zone),
                group: Some(intent.step.group().clone()),
                steps: vec![intent.step.to_string()],
                calls: Vec::new(),
                intent: Some(intent.id.to_string()),
                outcome: word.to_owned(),
                detail,
            })
        }
    }
}

async fn note_spared(control: &Control, found: &Found, monkey: &str, spared: &Spared, who: &str) {
    let core = &control.0;
    let record = Record::SparedAtAct {
        team: found.team.policy.team.clone(),
        draw_key: found.scope.draw_key.clone(),
        monkey: monkey.to_owned(),
        day: day_of(&found.team, core.calendar_now()),
        gate: spared.gate(),
        why: spared.to_string(),
        demand: true,
    };
    let written = core.record(&record, Some(who)).await;
    core.trouble("ledger", written.err().map(|e| chain(&e)));
}

fn refused(spared: &Spared) -> ApiError {
    let message = format!("spared ({}): {spared}", spared.gate().name());
    error(ErrorKind::Refused, message, Some("`troop explain` shows every gate"))
}

/// The calls that the kill will make. Whom it hits is drawn at the act: of several, by the first one's, whose id is left open.
async fn calls(
    core: &Core,
    answer: &KillAnswer,
    step: impl Fn(&InstanceId) -> Option<(Step, Candidate)>,
) -> Result<Vec<String>, ApiError> {
    let Some((id, (step, at))) =
        answer.victim.as_ref().or(answer.eligible.first()).and_then(|id| Some((id, step(id)?)))
    else {
        return Ok(Vec::new());
    };
    let at = Location { account: at.account, region: at.region };
    let calls = core.world.calls_for(&at, &step).await.map_err(|e| could_not_ask(&e))?;
    let is_open = answer.victim.is_none() && answer.eligible.len() > 1;
    let named = |call: String| if is_open { call.replace(id.as_str(), "INSTANCE") } else { call };
    Ok(calls.into_iter().map(named).collect())
}

/// What a leashed site would do, and that it does not.
async fn leashed(
    core: &Core,
    found: &Found,
    verdict: &Verdict,
    instance: Option<InstanceId>,
    spared: &Spared,
) -> Result<KillAnswer, ApiError> {
    let ids = verdict.candidates.clone();
    let (group, zone) = match instance.as_ref().or(ids.first()).and_then(|id| verdict.considered(id)) {
        Some((step, at)) => (Some(step.group().clone()), instance.is_some().then_some(at.zone)),
        None => (None, None),
    };
    let mut answer = KillAnswer {
        schema: SCHEMA,
        draw_key: found.scope.draw_key.clone(),
        zone,
        group,
        victim: instance,
        steps: Vec::new(),
        calls: Vec::new(),
        eligible: ids,
        intent: None,
        outcome: "leashed".to_owned(),
        detail: format!("spared ({}): {spared}", spared.gate().name()),
    };
    answer.calls = calls(core, &answer, |id| verdict.considered(id)).await?;
    Ok(answer)
}

fn planned(
    core: &Core,
    found: &Found,
    eligible: &Eligible,
    instance: Option<InstanceId>,
    fault: Option<&(FaultSpec, Duration)>,
) -> KillAnswer {
    let step = |id: &InstanceId| match fault {
        None => eligible.step(id),
        Some((fault, lasts)) => eligible.fault(id, fault, *lasts),
    };
    let ids = eligible.ids();
    let named = instance.as_ref().and_then(step);
    let any = ids.first().and_then(step);
    let drawn =
        |what: &str, group| format!("{what} one of {} eligible instances of {group}, drawn at the act", ids.len());
    let first = match (&named, &any) {
        (Some((step, _)), _) => step.to_string(),
        (None, Some((Step::Fault { group, fault, .. }, _))) => drawn(&format!("{fault} on"), group),
        (None, Some((step, _))) => drawn("terminate", step.group()),
        (None, None) => "nothing".to_owned(),
    };
    let then: &[&str] = match fault {
        None if core.world.has_registry() => {
            &["cancel the victim's registry entry", "watch until the group is whole again"]
        }
        None => &["watch until the group is whole again"],
        Some(_) => {
            &["measure the round trip before, with and after it", "renew its lease until its time is over, then end it"]
        }
    };
    let now = core.now();
    KillAnswer {
        schema: SCHEMA,
        draw_key: found.scope.draw_key.clone(),
        zone: named.as_ref().map(|(_, candidate)| candidate.zone.clone()),
        group: any.map(|(_, candidate)| candidate.group.clone()),
        victim: instance,
        steps: [first].into_iter().chain(then.iter().map(|step| (*step).to_owned())).collect(),
        calls: Vec::new(),
        eligible: ids,
        intent: None,
        outcome: "planned".to_owned(),
        detail: format!("asked at {}; nothing was changed", now.strftime("%Y-%m-%d %H:%M:%SZ")),
    }
}
