//! From the ledger's events to the lines of `troop history`: an act, its outcome and its healing are one line.

use std::collections::BTreeMap;

use jiff::civil::Date;
use troop_ledger::Event;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::{IntentId, ZoneName};
use troop_scheduler::drills;

use crate::records::Record;
use crate::views::history::HistoryRow;
use crate::views::status::by;

/// The kinds of events that become lines, or parts of one.
pub(super) const KINDS: [&str; 19] = [
    "intended",
    "settled",
    "healed",
    "not_healed",
    "fault_ended",
    "spared_at_act",
    "would_have",
    "halted",
    "resumed",
    "cleared",
    "adopted",
    "policy_bad",
    "push_started",
    "push_moved",
    "push_ended",
    "rollback_requested",
    "smaller_inventory_accepted",
    "clock_jumped",
    "notice_failed",
];

/// What the events come to.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Oldest first.
    pub(super) rows: Vec<HistoryRow>,
    /// Events of these kinds that this build cannot read.
    pub(super) unreadable: usize,
    kills: BTreeMap<String, usize>,
    pushes: BTreeMap<u64, usize>,
}

/// Joins events, oldest first. A part whose beginning lies before the first event gets a line of its own.
pub(super) fn rows(events: Vec<Event>) -> Rows {
    let mut rows = Rows::default();
    for event in events {
        match serde_json::from_value::<Record>(event.body.clone()) {
            Ok(record) => rows.take(&event, record),
            Err(_) => rows.unreadable += 1,
        }
    }
    rows
}

impl Rows {
    fn take(&mut self, event: &Event, record: Record) {
        match record {
            Record::Intended { intent, zone } => {
                self.kill(event, &intent, zone);
            }
            Record::Settled { intent, outcome } => {
                if let Some(row) = self.kill(event, &intent, None) {
                    settle(row, outcome);
                }
            }
            Record::Healed { intent, draw_key, group, instance, seconds } => {
                let row = self.healing(event, &intent, draw_key, (group.to_string(), instance.to_string()));
                row.healing = Some("healed");
                row.heal_seconds = Some(seconds);
            }
            Record::NotHealed { intent, draw_key, group, instance, after_seconds, why } => {
                let row = self.healing(event, &intent, draw_key, (group.to_string(), instance.to_string()));
                row.healing = Some("not_healed");
                row.heal_seconds = Some(after_seconds);
                row.detail = Some(why);
            }
            Record::FaultEnded { intent, draw_key, group, instance, how, .. } => {
                let row = self.healing(event, &intent, draw_key, (group.to_string(), instance.to_string()));
                row.what = "latency";
                row.detail = Some(how);
            }
            Record::SparedAtAct { team, draw_key, monkey, day, gate, why, demand } => {
                let row = self.add("spared", event);
                row.team = Some(team.to_string());
                row.scope = Some(draw_key);
                row.by = if demand { event.actor.clone() } else { Some(entry_of(&monkey, day)) };
                row.outcome = Some(gate.name().to_owned());
                row.detail = Some(why);
            }
            Record::WouldHave { team, draw_key, monkey, day, victim, eligible, leashed_by } => {
                let row = self.add("would_have", event);
                row.team = Some(team.to_string());
                row.scope = Some(draw_key);
                row.instance = victim.map(|v| v.to_string());
                row.by = Some(entry_of(&monkey, day));
                row.detail = Some(format!("leashed ({leashed_by}); one of {eligible} eligible"));
            }
            Record::Halted { who, why } => self.words("halted", event, who, why),
            Record::Resumed { who, why } => self.words("resumed", event, who, why),
            Record::Cleared { draw_key, who, why } => {
                self.words("cleared", event, who, why);
                if let Some(row) = self.rows.last_mut() {
                    row.scope = Some(draw_key);
                }
            }
            Record::PolicyBad { file, team, why } => {
                let row = self.add("policy_bad", event);
                row.team = team.map(|t| t.to_string());
                row.detail = Some(format!("{file}: {why}"));
            }
            Record::PushStarted { push, cluster, group, actor, image } => {
                let row = self.push(event, push, cluster.to_string());
                row.group = Some(group.to_string());
                row.by = Some(actor);
                row.outcome = Some("started".to_owned());
                row.detail = Some(image);
            }
            Record::PushMoved { push, cluster, phase, note } => {
                let row = self.push(event, push, cluster.to_string());
                row.outcome = Some(phase);
                row.detail = Some(note);
            }
            Record::PushEnded { push, cluster, result, note } => {
                let row = self.push(event, push, cluster.to_string());
                row.outcome = Some(result);
                row.detail = Some(note);
            }
            Record::RollbackRequested { push, cluster, actor, reason } => {
                let row = self.add("rollback", event);
                row.scope = Some(cluster.to_string());
                row.push = push;
                row.by = Some(actor);
                row.detail = Some(match push {
                    Some(push) => format!("of push {push}: {reason}"),
                    None => reason,
                });
            }
            Record::SmallerInventoryAccepted { from, to } => {
                let detail = format!("{to} instances, where there were {from}, are taken for the truth");
                self.add("smaller_inventory_accepted", event).detail = Some(detail);
            }
            Record::ClockJumped { by_ms } => {
                let detail = format!("the wall clock was set by {:.1} s", clock_seconds(by_ms));
                self.add("clock_jumped", event).detail = Some(detail);
            }
            Record::NoticeFailed { team, recipient, event: number, of, draw_key, why } => {
                let row = self.add("notice_failed", event);
                row.team = Some(team.to_string());
                row.scope = draw_key;
                row.by = Some(recipient);
                row.detail = Some(format!("of event {number} ({of}): {why}"));
            }
            Record::Adopted { who, why, marks } => {
                self.words("adopted", event, who, format!("{why}: {}", marks.join(", ")));
            }
            Record::PlanMade { .. }
            | Record::PlanJoined { .. }
            | Record::DayKeyPublished { .. }
            | Record::PolicyTaken { .. } => {}
        }
    }

    fn add(&mut self, what: &'static str, event: &Event) -> &mut HistoryRow {
        let index = self.rows.len();
        self.rows.push(HistoryRow::new(what, event.at, event.real_at));
        &mut self.rows[index]
    }

    fn words(&mut self, what: &'static str, event: &Event, who: String, why: String) {
        let row = self.add(what, event);
        row.by = Some(who);
        row.detail = Some(why);
    }

    /// The line of a kill. Other steps belong to a push, or only restore: they have no line.
    fn kill(&mut self, event: &Event, intent: &Intent, zone: Option<ZoneName>) -> Option<&mut HistoryRow> {
        let instance = intent.step.victim()?;
        let what = if intent.step.is_for_agent() { "latency" } else { "kill" };
        if let Some(index) = self.kills.get(intent.id.as_str()) {
            return self.rows.get_mut(*index);
        }
        self.kills.insert(intent.id.to_string(), self.rows.len());
        let row = self.add(what, event);
        row.team = intent.cause.team().map(ToString::to_string);
        row.scope = intent.cause.draw_key().map(str::to_owned);
        row.group = Some(intent.step.group().to_string());
        row.instance = Some(instance.to_string());
        row.zone = zone.map(|z| z.to_string());
        row.by = Some(by(&intent.cause));
        row.outcome = Some("open".to_owned());
        row.intent = Some(intent.id.to_string());
        Some(row)
    }

    fn healing(
        &mut self,
        event: &Event,
        intent: &IntentId,
        draw_key: String,
        (group, instance): (String, String),
    ) -> &mut HistoryRow {
        if let Some(index) = self.kills.get(intent.as_str()) {
            return &mut self.rows[*index];
        }
        self.kills.insert(intent.to_string(), self.rows.len());
        let row = self.add("kill", event);
        row.scope = Some(draw_key);
        row.group = Some(group);
        row.instance = Some(instance);
        row.intent = Some(intent.to_string());
        row
    }

    fn push(&mut self, event: &Event, push: u64, cluster: String) -> &mut HistoryRow {
        if let Some(index) = self.pushes.get(&push) {
            return &mut self.rows[*index];
        }
        self.pushes.insert(push, self.rows.len());
        let row = self.add("push", event);
        row.scope = Some(cluster);
        row.push = Some(push);
        row
    }
}

/// Whose minute it was: a monkey's draw, or a drill.
fn entry_of(monkey: &str, day: Date) -> String {
    match drills::drilled(monkey) {
        None => format!("{monkey}'s draw of {day}"),
        Some(_) => format!("{monkey} of {day}"),
    }
}

fn settle(row: &mut HistoryRow, outcome: Outcome) {
    let (word, detail, may_be_gone) = match outcome {
        Outcome::Done { detail } => ("done", detail, true),
        Outcome::Refused { why } => ("refused", why, false),
        Outcome::Unknown { why } => ("unknown", why, true),
    };
    row.outcome = Some(word.to_owned());
    row.detail = Some(detail);
    if may_be_gone && row.healing.is_none() {
        row.healing = Some("healing");
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people")]
fn clock_seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
pub(super) mod tests {
    use troop_ledger::EventId;
    use troop_policies::intent::Cause;
    use troop_policies::spared::Gate;
    use troop_policies::step::{How, Step};

    use super::*;
    use crate::serve::core::body;

    pub(in crate::cli) fn event(id: i64, record: &Record) -> Event {
        let at = jiff::Timestamp::from_second(1_795_000_000 + id).unwrap();
        Event {
            id: EventId(id),
            at,
            real_at: at,
            kind: record.kind().to_owned(),
            version: 1,
            key: record.key(),
            team: record.team().map(ToString::to_string),
            actor: Some("ana".to_owned()),
            body: body(record),
            hash: String::new(),
        }
    }

    pub(in crate::cli) fn kill_intent() -> Intent {
        Intent {
            id: "aa".parse().unwrap(),
            account: "local".parse().unwrap(),
            region: "r1".parse().unwrap(),
            step: Step::Terminate {
                group: "hello-web-v001".parse().unwrap(),
                instance: "i-4f21".parse().unwrap(),
                kill: How::Crash,
            },
            cause: Cause::Draw {
                team: "shop".parse().unwrap(),
                draw_key: "local/r1/hello-web".to_owned(),
                monkey: "chaos".to_owned(),
                day: "2026-11-24".parse().unwrap(),
            },
            at: "2026-11-24T18:07:00Z".parse().unwrap(),
        }
    }

    fn healed() -> Record {
        let intent = kill_intent();
        Record::Healed {
            intent: intent.id.clone(),
            draw_key: "local/r1/hello-web".to_owned(),
            group: intent.step.group().clone(),
            instance: "i-4f21".parse().unwrap(),
            seconds: 2.9,
        }
    }

    #[test]
    fn an_act_its_outcome_and_its_healing_are_one_row_at_the_time_of_the_act() {
        let intent = kill_intent();
        let all = vec![
            event(1, &Record::Intended { intent: intent.clone(), zone: Some("r1b".parse().unwrap()) }),
            event(2, &Record::Settled { intent, outcome: Outcome::done("gone") }),
            event(3, &healed()),
        ];
        let open = rows(all[..1].to_vec());
        assert_eq!((open.rows[0].outcome.as_deref(), open.rows[0].healing), (Some("open"), None));
        let settled = rows(all[..2].to_vec());
        assert_eq!((settled.rows[0].outcome.as_deref(), settled.rows[0].healing), (Some("done"), Some("healing")));
        let joined = rows(all.clone());
        assert_eq!(joined.rows.len(), 1);
        let row = &joined.rows[0];
        assert_eq!((row.at, row.healing, row.heal_seconds), (all[0].at, Some("healed"), Some(2.9)));
        assert_eq!((row.team.as_deref(), row.zone.as_deref()), (Some("shop"), Some("r1b")));
    }

    #[test]
    fn a_healing_whose_act_lies_before_the_first_event_is_not_lost() {
        let alone = rows(vec![event(9, &healed())]);
        assert_eq!(alone.rows.len(), 1);
        assert_eq!((alone.rows[0].what, alone.rows[0].instance.as_deref()), ("kill", Some("i-4f21")));
    }

    #[test]
    fn a_push_is_one_row_with_its_last_word() {
        let cluster: troop_policies::ClusterName = "hello-web".parse().unwrap();
        let started = Record::PushStarted {
            push: 3,
            cluster: cluster.clone(),
            group: "hello-web-v001".parse().unwrap(),
            actor: "ana".to_owned(),
            image: "ami-1".to_owned(),
        };
        let moved =
            Record::PushMoved { push: 3, cluster: cluster.clone(), phase: "soak".to_owned(), note: "5 m".to_owned() };
        let ended = Record::PushEnded { push: 3, cluster, result: "rolled_back".to_owned(), note: "31 %".to_owned() };
        let joined = rows(vec![event(1, &started), event(2, &moved), event(3, &ended)]);
        assert_eq!(joined.rows.len(), 1);
        let row = &joined.rows[0];
        assert_eq!((row.outcome.as_deref(), row.detail.as_deref()), (Some("rolled_back"), Some("31 %")));
        assert_eq!((row.group.as_deref(), row.push), (Some("hello-web-v001"), Some(3)));
    }

    #[test]
    fn what_was_spared_says_the_gate_and_who_wanted_it() {
        let spared = |monkey: &str, demand| Record::SparedAtAct {
            team: "shop".parse().unwrap(),
            draw_key: "local/r1/hello-web".to_owned(),
            monkey: monkey.to_owned(),
            day: "2026-11-24".parse().unwrap(),
            gate: Gate::Floor,
            why: "at its floor".to_owned(),
            demand,
        };
        let all = [spared("chaos", false), spared("chaos", true), spared("drill:chaos@10:30", false)];
        let joined = rows((1..).zip(&all).map(|(n, record)| event(n, record)).collect());
        assert_eq!(joined.rows[0].by.as_deref(), Some("chaos's draw of 2026-11-24"));
        assert_eq!(joined.rows[1].by.as_deref(), Some("ana"));
        assert_eq!(joined.rows[2].by.as_deref(), Some("drill:chaos@10:30 of 2026-11-24"));
        assert_eq!(joined.rows[0].outcome.as_deref(), Some("floor"));
    }

    #[test]
    fn an_event_of_another_build_is_counted_and_steps_of_pushes_have_no_row() {
        let mut strange = event(1, &Record::ClockJumped { by_ms: 40_000 });
        strange.body = serde_json::json!({"record": "from_the_future"});
        let mut resize = kill_intent();
        resize.step = Step::Enable { group: "hello-web-v001".parse().unwrap() };
        let joined = rows(vec![strange, event(2, &Record::Intended { intent: resize, zone: None })]);
        assert_eq!((joined.rows.len(), joined.unreadable), (0, 1));
    }

    #[test]
    fn every_kind_that_becomes_a_row_is_asked_for() {
        let named = [healed().kind(), "push_moved", "clock_jumped", "rollback_requested", "would_have"];
        assert!(named.iter().all(|kind| KINDS.contains(kind)));
        assert!(!KINDS.contains(&"plan_made"));
    }
}
