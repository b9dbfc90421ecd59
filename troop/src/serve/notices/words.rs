//! From an event of the ledger to what a team is told of it. Most events concern nobody, or another team.

use jiff::Timestamp;
use serde_json::Value;
use troop_agent_core::protocol::{Measured, Story};
use troop_ledger::{Event, LedgerError};
use troop_policies::TeamName;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::plan::{DayPlan, PlanEntry, PlanVerdict};

use crate::records::{IntentBody, Record};
use crate::serve::core::Core;
use crate::views::status::by;
use crate::views::time;

/// The kinds of events that are told.
pub(super) const KINDS: [&str; 9] = [
    "plan_made",
    "plan_joined",
    "intended",
    "settled",
    "healed",
    "not_healed",
    "fault_ended",
    "spared_at_act",
    "would_have",
];
/// Entries of a plan that are told one by one; the rest is a number.
const ENTRIES_TOLD: usize = 20;
/// Longest text: what somebody else said, such as a cloud, is part of it.
const TEXT_CHARS_MAX: usize = 3_000;

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Notice {
    /// The event's number; `None` in a test notice.
    pub(super) event: Option<i64>,
    pub(super) kind: String,
    pub(super) team: TeamName,
    pub(super) draw_key: Option<String>,
    /// On the scheduler's calendar.
    pub(super) at: Timestamp,
    pub(super) text: String,
    pub(super) record: Value,
}

/// What the ledger knows beside the event itself.
#[derive(Debug, Default)]
struct Around {
    /// Whose end, or fault, it was.
    intent: Option<Intent>,
    plan: Option<DayPlan>,
}

/// The notice of an event for a team, where there is something to tell.
///
/// # Errors
/// The ledger's.
pub(super) async fn notice(core: &Core, team: &TeamName, event: &Event) -> Result<Option<Notice>, LedgerError> {
    if event.team.as_ref().is_some_and(|of| of != team.as_str()) {
        return Ok(None);
    }
    let record = match serde_json::from_value::<Record>(event.body.clone()) {
        Ok(record) => record,
        Err(error) => {
            tracing::debug!(event = event.id.0, %error, "an event of another build is not told");
            return Ok(None);
        }
    };
    let around = around(core, &record).await?;
    let concerns = record.team().or_else(|| around.intent.as_ref().and_then(|intent| intent.cause.team()));
    if concerns != Some(team) {
        return Ok(None);
    }
    Ok(text(&record, &around).map(|text| Notice {
        event: Some(event.id.0),
        kind: event.kind.clone(),
        team: team.clone(),
        draw_key: record.key(),
        at: event.at,
        text: harmless(&format!("[{}] {text}", core.site.name)),
        record: event.body.clone(),
    }))
}

/// The day whose plan an event is the making of.
pub(super) fn plan_day(notice: &Notice) -> Option<jiff::civil::Date> {
    match serde_json::from_value(notice.record.clone()) {
        Ok(Record::PlanMade { day, .. }) => Some(day),
        Ok(_) | Err(_) => None,
    }
}

async fn around(core: &Core, record: &Record) -> Result<Around, LedgerError> {
    let mut around = Around::default();
    if let Record::PlanMade { day, team, .. } | Record::PlanJoined { day, team, .. } = record {
        let stored = core.ledger.plan(&day.to_string(), team.as_str()).await?;
        around.plan = stored.and_then(|stored| serde_json::from_value(stored.body).ok());
    }
    if let Record::Healed { intent, .. } | Record::NotHealed { intent, .. } | Record::FaultEnded { intent, .. } = record
    {
        let row = core.ledger.intent(intent.as_str()).await?;
        around.intent = row.and_then(|row| serde_json::from_value::<IntentBody>(row.body).ok()).map(|body| body.intent);
    }
    Ok(around)
}

fn text(record: &Record, around: &Around) -> Option<String> {
    match record {
        Record::PlanMade { day, chosen, spared, late, .. } => {
            let late = if *late { ", made late" } else { "" };
            let head = format!("the plan of {day}: {chosen} chosen, {spared} spared{late}");
            Some(with_entries(head, around.plan.as_ref(), |_| true))
        }
        Record::PlanJoined { day, draw_keys, .. } => {
            let head = format!("{} scopes joined the plan of {day}", draw_keys.len());
            Some(with_entries(head, around.plan.as_ref(), |entry| draw_keys.contains(&entry.draw_key)))
        }
        Record::Intended { intent, .. } => {
            let scope = intent.cause.draw_key()?;
            Some(format!("about to {}; by {}; scope {scope}", intent.step, by(&intent.cause)))
        }
        Record::Settled { intent, outcome } => {
            let scope = intent.cause.draw_key()?;
            let step = &intent.step;
            Some(match outcome {
                Outcome::Done { detail } => format!("done: {step}; {detail}; scope {scope}"),
                Outcome::Refused { why } => format!("refused, nothing was done: {step}; {why}; scope {scope}"),
                Outcome::Unknown { why } => {
                    format!("UNKNOWN whether it was done, it counts as done: {step}; {why}; scope {scope}")
                }
            })
        }
        // The end of a fault is a notice of its own.
        Record::Healed { .. } if around.intent.as_ref().is_some_and(|intent| intent.step.is_for_agent()) => None,
        Record::Healed { draw_key, group, instance, seconds, .. } => {
            let seconds = time::seconds(*seconds);
            Some(format!("healed in {seconds}: {group} is whole again without {instance}; scope {draw_key}"))
        }
        Record::NotHealed { draw_key, group, instance, after_seconds, why, .. } => {
            let after = time::seconds(*after_seconds);
            Some(format!(
                "NOT HEALED after {after}, somebody is needed: {group}, {instance}: {why}; its scope is spared until \
                 `troop clear {draw_key} --reason …`"
            ))
        }
        Record::FaultEnded { draw_key, group, instance, how, story, .. } => {
            let figures = story.as_deref().map(figures).unwrap_or_default();
            Some(format!("the fault on {instance} of {group} has ended: {how}{figures}; scope {draw_key}"))
        }
        Record::SparedAtAct { draw_key, monkey, gate, why, demand, .. } => {
            let whose = if *demand { "on demand" } else { "at its minute" };
            Some(format!("spared {whose} ({}): {why}; {monkey}, scope {draw_key}", gate.name()))
        }
        Record::WouldHave { draw_key, monkey, victim, eligible, leashed_by, .. } => {
            let victim = victim.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
            Some(format!(
                "would have hurt {victim}, one of {eligible} eligible, but for the leash ({leashed_by}); {monkey}, scope {draw_key}"
            ))
        }
        Record::DayKeyPublished { .. }
        | Record::Halted { .. }
        | Record::Resumed { .. }
        | Record::Cleared { .. }
        | Record::PolicyTaken { .. }
        | Record::PolicyBad { .. }
        | Record::PushStarted { .. }
        | Record::PushMoved { .. }
        | Record::PushEnded { .. }
        | Record::RollbackRequested { .. }
        | Record::SmallerInventoryAccepted { .. }
        | Record::ClockJumped { .. }
        | Record::NoticeFailed { .. }
        | Record::Adopted { .. } => None,
    }
}

/// The chosen entries below the head, in the order of their minutes.
fn with_entries(head: String, plan: Option<&DayPlan>, wanted: impl Fn(&PlanEntry) -> bool) -> String {
    let Some(plan) = plan else { return head };
    let zone = time::zone(&plan.time_zone);
    let mut chosen: Vec<_> =
        plan.entries.iter().filter(|entry| entry.verdict == PlanVerdict::Chosen && wanted(entry)).collect();
    chosen.sort_by_key(|entry| entry.at);
    let line = |entry: &&PlanEntry| {
        let at = entry.at.map_or_else(|| "never".to_owned(), |at| time::clock_both(at, &zone));
        let leash = if entry.leashed || plan.site_leashed { " (leashed: only noted)" } else { "" };
        let missed = if entry.missed { " (missed)" } else { "" };
        format!("\n{at} {} {}{leash}{missed}", entry.monkey, entry.draw_key)
    };
    let told: String = chosen.iter().take(ENTRIES_TOLD).map(line).collect();
    match chosen.len().saturating_sub(ENTRIES_TOLD) {
        0 => format!("{head}{told}"),
        more => format!("{head}{told}\nand {more} more; `troop plan` lists them"),
    }
}

/// The round trips that a fault's host measured.
fn figures(story: &Story) -> String {
    let one = |measured: &Option<Measured>| {
        let median = measured.as_ref().and_then(|measured| measured.median_us);
        median.map_or_else(|| "not measured".to_owned(), |us| format!("{}.{:03} ms", us / 1_000, us % 1_000))
    };
    let (before, during, after) = (one(&story.baseline), one(&story.applied), one(&story.healed));
    format!("; round trip before {before}, with it {during}, after {after}")
}

/// Text that is shown as it stands: without control characters but line ends, and cut where it is too long.
pub(super) fn harmless(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c });
    let mut cut: String = plain.take(TEXT_CHARS_MAX).collect();
    if text.chars().nth(TEXT_CHARS_MAX).is_some() {
        cut.push('…');
    }
    cut
}

#[cfg(test)]
mod tests {
    use troop_agent_core::protocol::{Chapter, MeasuredBy};
    use troop_policies::intent::Cause;
    use troop_policies::spared::Gate;
    use troop_policies::step::{How, Step};

    use super::*;

    const SCOPE: &str = "local/r1/hello-web";

    fn intent() -> Intent {
        Intent {
            id: "0a".parse().unwrap(),
            account: "local".parse().unwrap(),
            region: "r1".parse().unwrap(),
            step: Step::Terminate {
                group: "hello-web-v000".parse().unwrap(),
                instance: "i-1".parse().unwrap(),
                kill: How::Crash,
            },
            cause: Cause::Draw {
                team: "demo".parse().unwrap(),
                draw_key: SCOPE.to_owned(),
                monkey: "chaos".to_owned(),
                day: jiff::civil::date(2026, 11, 24),
            },
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn told(record: &Record) -> String {
        text(record, &Around::default()).unwrap()
    }

    fn measured(us: u64) -> Option<Measured> {
        Some(Measured { median_us: Some(us), sent: 5, back: 5, by: MeasuredBy::Handshake })
    }

    #[test]
    fn an_act_says_who_why_and_whom_and_an_outcome_what_became_of_it() {
        let act = told(&Record::Intended { intent: intent(), zone: None });
        assert_eq!(
            act,
            "about to terminate i-1 of hello-web-v000, at once; by chaos's draw of 2026-11-24 (team demo); scope local/r1/hello-web"
        );
        for (outcome, begins) in [
            (Outcome::done("gone"), "done: terminate i-1"),
            (Outcome::refused("no"), "refused, nothing was done: "),
            (Outcome::unknown("lost"), "UNKNOWN whether it was done"),
        ] {
            let text = told(&Record::Settled { intent: intent(), outcome });
            assert!(text.starts_with(begins) && text.ends_with(SCOPE), "{text}");
        }
        let upkeep = Intent { cause: Cause::Upkeep { reason: "x".to_owned() }, ..intent() };
        assert_eq!(text(&Record::Intended { intent: upkeep, zone: None }, &Around::default()), None);
    }

    #[test]
    fn what_has_not_healed_calls_for_somebody_and_a_fault_tells_its_figures() {
        let not_healed = told(&Record::NotHealed {
            intent: intent().id,
            draw_key: SCOPE.to_owned(),
            group: "hello-web-v000".parse().unwrap(),
            instance: "i-1".parse().unwrap(),
            after_seconds: 300.0,
            why: "two of three".to_owned(),
        });
        assert!(not_healed.starts_with("NOT HEALED after 5 min, somebody is needed"), "{not_healed}");
        assert!(not_healed.contains("`troop clear local/r1/hello-web --reason …`"), "{not_healed}");
        let story = Story {
            lease: "0a".to_owned(),
            at: Chapter::Over,
            plane: "kernel".to_owned(),
            baseline: measured(1_234),
            applied: measured(101_000),
            healed: None,
            end: None,
            trouble: String::new(),
        };
        let ended = told(&Record::FaultEnded {
            intent: intent().id,
            draw_key: SCOPE.to_owned(),
            group: "hello-web-v000".parse().unwrap(),
            instance: "i-1".parse().unwrap(),
            how: "its time was over".to_owned(),
            story: Some(Box::new(story)),
        });
        assert!(ended.contains("before 1.234 ms, with it 101.000 ms, after not measured"), "{ended}");
    }

    #[test]
    fn who_was_spared_or_would_have_been_hurt_is_told() {
        let (team, day) = ("demo".parse::<TeamName>().unwrap(), jiff::civil::date(2026, 11, 24));
        let spared = told(&Record::SparedAtAct {
            team: team.clone(),
            draw_key: SCOPE.to_owned(),
            monkey: "chaos".to_owned(),
            day,
            gate: Gate::Floor,
            why: "at its floor".to_owned(),
            demand: false,
        });
        assert_eq!(spared, "spared at its minute (floor): at its floor; chaos, scope local/r1/hello-web");
        let leashed = told(&Record::WouldHave {
            team,
            draw_key: SCOPE.to_owned(),
            monkey: "chaos".to_owned(),
            day,
            victim: Some("i-1".parse().unwrap()),
            eligible: 3,
            leashed_by: "site".to_owned(),
        });
        assert!(leashed.starts_with("would have hurt i-1, one of 3 eligible, but for the leash (site)"), "{leashed}");
    }

    #[test]
    fn what_others_said_is_cut_and_cannot_steer_a_terminal() {
        let text = harmless(&format!("a\u{1b}[31m\nb{}", "x".repeat(5_000)));
        assert!(text.starts_with("a [31m\nbx") && text.ends_with('…') && text.chars().count() == 3_001);
    }
}
