//! What runs: instances, images and pushes, as `troop ps`, `images` and `pushes` show them.

use jiff::Timestamp;
use troop_deploy::push::{Phase, Push};
use troop_ledger::PushRow;

use super::time;
use crate::api::types::{
    AgentView, DeployAnswer, ImageView, InstanceView, KillAnswer, PushTraffic, PushView, RollbackAnswer, StepCalls,
};
use crate::ui;

fn or_dash(text: Option<&str>) -> String {
    text.filter(|t| !t.is_empty()).unwrap_or("-").to_owned()
}

pub fn instances(views: &[InstanceView], now: Timestamp) -> String {
    let header =
        ["INSTANCE", "GROUP", "VERSION", "ZONE", "ADDRESS", "LIFECYCLE", "REGISTRY", "HEALTH", "TRAFFIC", "UP FOR"];
    let row = |i: &InstanceView| {
        vec![
            i.instance.to_string(),
            i.group.to_string(),
            or_dash(i.version.as_deref()),
            i.zone.to_string(),
            or_dash(i.address.as_deref()),
            i.lifecycle.clone(),
            or_dash(Some(&i.registry)),
            i.health.clone(),
            i.traffic.clone(),
            time::since(i.launched_at, now),
        ]
    };
    ui::table(&header, &views.iter().map(row).collect::<Vec<_>>())
}

pub fn images(views: &[ImageView]) -> String {
    let row = |i: &ImageView| {
        let created = time::day_and_clock(i.created_at, &jiff::tz::TimeZone::UTC);
        vec![i.image.to_string(), i.name.clone(), i.version.clone(), created]
    };
    ui::table(&["IMAGE", "NAME", "VERSION", "STORED"], &views.iter().map(row).collect::<Vec<_>>())
}

pub fn pushes(views: &[PushView]) -> String {
    let header = ["PUSH", "GROUP", "FROM", "IMAGE", "BY", "STARTED (UTC)", "PHASE", "RESULT", "READY", "FLIP", "NOTE"];
    let row = |p: &PushView| {
        let mut note = p.note.clone();
        if let Some(until) = p.watch_until.filter(|_| !p.ended) {
            note = format!("watched until {}; {note}", time::both(until, &jiff::tz::TimeZone::UTC));
        }
        if let Some(traffic) = &p.traffic {
            note = format!("{note}; {}", answered(traffic));
        }
        vec![
            p.push.to_string(),
            p.group.to_string(),
            p.previous.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            match &p.version {
                Some(version) => format!("{} ({version})", p.image),
                None => p.image.to_string(),
            },
            p.actor.clone(),
            time::day_and_clock(p.started_at, &jiff::tz::TimeZone::UTC).trim_end_matches(" UTC").to_owned(),
            p.phase.clone(),
            p.result.as_deref().map_or_else(|| "-".to_owned(), |r| r.replace('_', " ")),
            p.ready_seconds.map_or_else(|| "-".to_owned(), time::seconds),
            p.flip_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms")),
            note,
        ]
    };
    ui::table(&header, &views.iter().map(row).collect::<Vec<_>>())
}

/// A saved push as the API shows it, for when no control plane can.
///
/// # Errors
/// When the row is of another build.
pub fn push_of(row: &PushRow) -> Result<PushView, String> {
    let push: Push = serde_json::from_value(row.body.clone())
        .map_err(|e| format!("push {} in the ledger cannot be read: {e}", row.id))?;
    let seconds = |at: Timestamp| at.duration_since(push.started_at).as_secs_f64();
    let watch_until = push.phase.watched_until();
    Ok(PushView {
        schema: 1,
        push: u64::try_from(row.id).map_err(|e| format!("push {}: {e}", row.id))?,
        cluster: push.cluster.clone(),
        group: push.group().clone(),
        previous: push.previous_group().cloned(),
        actor: push.actor.clone(),
        image: push.image.clone(),
        version: push.version.clone(),
        started_at: push.started_at,
        phase: push.phase.name().to_owned(),
        note: push.because.clone().unwrap_or_else(|| push.note.clone()),
        ended: push.result.is_some() || push.phase == Phase::Ended,
        result: push.result.map(|r| r.as_str().to_owned()),
        ready_seconds: push.ready_at.map(seconds),
        flip_ms: push.flip_ms,
        watch_until,
        traffic: None,
    })
}

/// What a new group has answered: `1240 answers, 3 errors, 12.5 ms on average`.
pub fn answered(traffic: &PushTraffic) -> String {
    let mean = traffic.mean_ms.map(|ms| format!(", {ms:.1} ms on average")).unwrap_or_default();
    format!("{} answers, {} errors{mean}", traffic.answers, traffic.errors)
}

/// What a kill came to.
pub fn kill(answer: &KillAnswer) -> String {
    let of = answer.group.as_ref().map(|g| format!(" of {g}")).unwrap_or_default();
    let zone = answer.zone.as_ref().map(|z| format!(" in {z}")).unwrap_or_default();
    if matches!(answer.outcome.as_str(), "planned" | "leashed") {
        let ids: Vec<_> = answer.eligible.iter().map(ToString::to_string).collect();
        let mut lines =
            vec![format!("{}: would kill one of {} eligible: {}", answer.draw_key, ids.len(), ids.join(" "))];
        if let Some(victim) = &answer.victim {
            lines = vec![format!("{}: would kill {victim}{of}{zone}", answer.draw_key)];
        }
        lines.extend(steps(&answer.steps));
        lines.extend(answer.calls.iter().map(|call| format!("     call {call}")));
        lines.push(answer.detail.clone());
        return lines.join("\n");
    }
    let victim = answer.victim.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
    let intent = answer.intent.as_deref().map(|id| format!(" (intent {id})")).unwrap_or_default();
    format!("{victim}{of}{zone}: {}: {}{intent}", answer.outcome, answer.detail)
}

/// What a fault came to.
pub fn latency(answer: &KillAnswer) -> String {
    let of = answer.group.as_ref().map(|g| format!(" of {g}")).unwrap_or_default();
    if answer.outcome == "planned" {
        let ids: Vec<_> = answer.eligible.iter().map(ToString::to_string).collect();
        let mut lines =
            vec![format!("{}: would delay one of {} eligible: {}", answer.draw_key, ids.len(), ids.join(" "))];
        if let Some(victim) = &answer.victim {
            lines = vec![format!("{}: would delay {victim}{of}", answer.draw_key)];
        }
        lines.extend(steps(&answer.steps));
        lines.push(answer.detail.clone());
        return lines.join("\n");
    }
    let intent = answer.intent.as_deref().map(|id| format!(" (intent {id})")).unwrap_or_default();
    format!("{}: {}: {}{intent}", answer.steps.join("; "), answer.outcome, answer.detail)
}

pub fn agents(views: &[AgentView], now: Timestamp) -> String {
    let header = ["INSTANCE", "CONNECTED", "IDENTITY", "PLANES", "ALLOWS", "FAULTS", "KERNEL", "RELEASE"];
    let row = |agent: &AgentView| {
        let planes =
            if agent.planes.is_empty() { format!("none: {}", agent.lacks.join("; ")) } else { agent.planes.join(", ") };
        vec![
            agent.instance.clone(),
            agent.since.map_or_else(|| "no".to_owned(), |since| format!("for {}", time::since(since, now))),
            agent.identity.clone(),
            planes,
            agent.allows.clone(),
            if agent.live.is_empty() { "-".to_owned() } else { agent.live.join(" ") },
            agent.kernel.clone(),
            agent.release.clone(),
        ]
    };
    ui::table(&header, &views.iter().map(row).collect::<Vec<_>>())
}

pub fn deploy(answer: &DeployAnswer) -> String {
    let from = answer.previous.as_ref().map_or_else(|| "the cluster's first".to_owned(), |p| format!("from {p}"));
    let what = format!("{}, {from}, {} instances of {}", answer.group, answer.size, answer.image);
    match answer.push {
        Some(push) => format!("push {push}  {what}"),
        None => [vec![format!("would push {what}")], with_calls(&answer.steps, &answer.calls)].concat().join("\n"),
    }
}

pub fn rollback(answer: &RollbackAnswer, is_plan: bool) -> String {
    let first = format!("push {}{}: {}", answer.push, if is_plan { ", planned" } else { "" }, answer.effect);
    if is_plan { [vec![first], with_calls(&answer.steps, &answer.calls)].concat().join("\n") } else { first }
}

/// Each step, and below it the calls that it will make.
fn with_calls(all: &[String], calls: &[StepCalls]) -> Vec<String> {
    let (mut lines, mut calls) = (Vec::new(), calls.iter().peekable());
    for line in steps(all) {
        let of_it = calls.next_if(|calls| line.ends_with(&format!(". {}", calls.step)));
        lines.push(line);
        lines.extend(of_it.iter().flat_map(|of_it| &of_it.calls).map(|call| format!("     call {call}")));
    }
    lines
}

fn steps(steps: &[String]) -> Vec<String> {
    steps.iter().enumerate().map(|(n, step)| format!("  {}. {step}", n + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push() -> PushView {
        PushView {
            schema: 1,
            push: 3,
            cluster: "hello-web".parse().unwrap(),
            group: "hello-web-v001".parse().unwrap(),
            previous: Some("hello-web-v000".parse().unwrap()),
            actor: "ana".to_owned(),
            image: "ami-0a".parse().unwrap(),
            version: Some("1.1.0".to_owned()),
            started_at: "2026-11-24T10:00:00Z".parse().unwrap(),
            phase: "watch".to_owned(),
            note: "errors 0.02 %".to_owned(),
            ended: false,
            result: None,
            ready_seconds: Some(3.81),
            flip_ms: Some(10.6),
            watch_until: Some("2026-11-24T22:00:00Z".parse().unwrap()),
            traffic: None,
        }
    }

    #[test]
    fn a_push_is_one_row() {
        let ended =
            PushView { ended: true, result: Some("rolled_back".to_owned()), phase: "ended".to_owned(), ..push() };
        let counted = |mean_ms| Some(PushTraffic { answers: 1_240, errors: 3, mean_ms });
        let told = pushes(&[PushView { traffic: counted(Some(12.46)), ..push() }]);
        assert!(told.ends_with("; errors 0.02 %; 1240 answers, 3 errors, 12.5 ms on average"), "{told}");
        let told = pushes(&[PushView { traffic: counted(None), ..push() }]);
        assert!(told.ends_with("; 1240 answers, 3 errors"), "{told}");
        assert_eq!(
            pushes(&[push(), ended]),
            "\
PUSH  GROUP           FROM            IMAGE           BY   STARTED (UTC)        PHASE  RESULT       READY  FLIP   NOTE
3     hello-web-v001  hello-web-v000  ami-0a (1.1.0)  ana  2026-11-24 10:00:00  watch  -            3.8 s  11 ms  watched until Tue 2026-11-24 22:00:00 UTC; errors 0.02 %
3     hello-web-v001  hello-web-v000  ami-0a (1.1.0)  ana  2026-11-24 10:00:00  ended  rolled back  3.8 s  11 ms  errors 0.02 %"
        );
    }

    #[test]
    fn instances_say_where_they_are_and_how() {
        let view = InstanceView {
            schema: 1,
            instance: "i-4f21".parse().unwrap(),
            group: "hello-web-v001".parse().unwrap(),
            version: None,
            zone: "r1b".parse().unwrap(),
            address: Some("10.77.2.11:7001".to_owned()),
            lifecycle: "in service".to_owned(),
            registry: "UP".to_owned(),
            health: "healthy".to_owned(),
            traffic: "serving".to_owned(),
            launched_at: "2026-11-24T10:00:00Z".parse().unwrap(),
            log: None,
        };
        assert_eq!(
            instances(&[view], "2026-11-24T10:05:03Z".parse().unwrap()),
            "\
INSTANCE  GROUP           VERSION  ZONE  ADDRESS          LIFECYCLE   REGISTRY  HEALTH   TRAFFIC  UP FOR
i-4f21    hello-web-v001  -        r1b   10.77.2.11:7001  in service  UP        healthy  serving  5 min 3 s"
        );
    }

    #[test]
    fn a_planned_push_prints_the_calls_of_each_step_below_it() {
        let steps = ["create", "wait until it is ready", "flip", "flip"].map(str::to_owned);
        let of = |step: &str, calls: &[&str]| StepCalls {
            step: step.to_owned(),
            calls: calls.iter().map(|call| (*call).to_owned()).collect(),
        };
        let calls = [of("create", &["a:B c", "a:D e"]), of("flip", &["a:F"]), of("flip", &["a:G"])];
        let expected = [
            "  1. create",
            "     call a:B c",
            "     call a:D e",
            "  2. wait until it is ready",
            "  3. flip",
            "     call a:F",
            "  4. flip",
            "     call a:G",
        ];
        assert_eq!(with_calls(&steps, &calls), expected);
        assert_eq!(with_calls(&steps[..1], &[]), ["  1. create"]);
    }

    #[test]
    fn a_planned_kill_prints_its_steps_and_a_done_one_its_outcome() {
        let mut answer = KillAnswer {
            schema: 1,
            draw_key: "local/r1/hello-web".to_owned(),
            eligible: vec!["i-1".parse().unwrap(), "i-2".parse().unwrap()],
            victim: None,
            zone: None,
            group: Some("hello-web-v001".parse().unwrap()),
            steps: vec!["terminate".to_owned(), "cancel".to_owned()],
            calls: vec!["ec2:TerminateInstances INSTANCE".to_owned()],
            intent: None,
            outcome: "planned".to_owned(),
            detail: "nothing was changed".to_owned(),
        };
        let text = kill(&answer);
        assert_eq!(
            text,
            "local/r1/hello-web: would kill one of 2 eligible: i-1 i-2\n  1. terminate\n  2. cancel\n     call ec2:TerminateInstances INSTANCE\nnothing was changed"
        );
        answer.victim = Some("i-1".parse().unwrap());
        answer.zone = Some("r1a".parse().unwrap());
        answer.outcome = "done".to_owned();
        answer.detail = "gone".to_owned();
        assert_eq!(kill(&answer), "i-1 of hello-web-v001 in r1a: done: gone");
    }
}
