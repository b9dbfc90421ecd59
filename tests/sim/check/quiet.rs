//! What must hold at any moment, and what must have come true in the end.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use troop_deploy::push::{Phase, Push};
use troop_ledger::{IntentRow, LockRow, StoredPlan};
use troop_policies::draw::DayKey;
use troop_policies::plan::DayPlan;

use super::{Book, Drawn, seen};
use crate::host::seconds_later;
use crate::world::State;

/// How long an entry of a killed instance may still be listed: crashes and a registry that is away included.
const CANCELLED_WITHIN_S: i64 = 1_800;

pub(super) fn always(book: &mut Book, state: &State) {
    let now = state.now;
    let mut wrong = Vec::new();
    for (cluster, turns) in &book.turns {
        let in_rotation = state.groups.values().filter(|g| g.cluster() == cluster && g.in_rotation).count();
        let touched = book.touched_since(cluster, turns.last().map_or(now, |turn| turn.at));
        if in_rotation != 1 && !touched {
            wrong.push(("I3", format!("{in_rotation} groups of {cluster} are in rotation")));
        }
        let enabled = state.groups.values().any(|g| g.cluster() == cluster && g.enabled && g.size.desired > 0);
        if !enabled && !touched {
            wrong.push(("I2", format!("no group of {cluster} is enabled")));
        }
    }
    for group in book.out.iter().filter_map(|name| state.groups.get(name)) {
        if let Some(member) = group.members.keys().find(|id| state.registry.is_up(&group.name, id)) {
            wrong.push(("I14", format!("{member} of {}, which is out of service, is UP", group.name)));
        }
    }
    for (invariant, what) in wrong {
        book.wrong(invariant, now, what);
    }
}

/// What the ledger says when everything has been quiet for long.
#[derive(Debug)]
pub struct End {
    pub intents: Vec<IntentRow>,
    pub pushes: Vec<(u64, Push, bool)>,
    pub locks: Vec<LockRow>,
    pub plans: Vec<StoredPlan>,
}

pub(super) fn in_the_end(book: &mut Book, state: &State, end: &End) {
    let mut wrong = open_ends(book, state, end);
    wrong.extend(halts(book, end));
    wrong.extend(entries(book, state));
    wrong.extend(replayed(end));
    book.drawn = drawn(end);
    wrong.extend(kept_promises(book, end));
    for (invariant, what) in wrong {
        book.wrong(invariant, state.now, what);
    }
}

type Wrong = (&'static str, String);

/// I10, I6 and I21: no loose ends after a quiet day and a half.
fn open_ends(book: &Book, state: &State, end: &End) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let now = state.now;
    let stolen = |text: &str| book.stolen.iter().any(|cluster| text.contains(cluster.as_str()));
    for row in &end.intents {
        if row.outcome.is_none() && seconds_later(row.real_at, 3_600) < now {
            wrong.push(("I10", format!("the intent {} of {} is still open: {}", row.id, row.key, row.kind)));
        }
    }
    for (number, push, ended) in &end.pushes {
        // By design: the only version that a cluster ever had stays until another one serves.
        let is_last = push.phase == Phase::Reap && push.note.contains("the last enabled group");
        let rests =
            is_last || matches!(push.phase, Phase::Watch { .. } | Phase::Keep { .. } | Phase::Stuck | Phase::Ended);
        let touched = book.touched_since(&push.cluster, push.started_at);
        if !rests && !touched && !stolen(push.cluster.as_str()) {
            let phase = push.phase.name();
            wrong.push(("I10", format!("push {number} is still in `{phase}`: {}", push.note)));
        }
        let gone_by = seconds_later(push.phase_since, 600);
        if *ended && push.result.is_some_and(|r| matches!(r, troop_deploy::push::PushResult::Cancelled)) {
            let stays = state.groups.contains_key(push.group()) && gone_by < now;
            let flipped = book.pushes.get(number).is_some_and(|p| p.flipped.is_some());
            let again = end.pushes.iter().any(|(n, other, _)| n > number && other.group() == push.group());
            if stays && !touched && !flipped && !again {
                wrong.push(("I21", format!("push {number} was cancelled and {} was not reaped", push.group())));
            }
        }
    }
    for lock in &end.locks {
        let held = end.pushes.iter().any(|(n, _, ended)| !ended && lock.holder == format!("push {n}"));
        if !held && !stolen(&lock.name) {
            wrong.push(("I9", format!("{} still holds {}", lock.holder, lock.name)));
        }
    }
    wrong
}

/// I16: no kill was even intended in a halt. I10: a halt's time counts against no push.
fn halts(book: &Book, end: &End) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let by_a_right_clock = |at: Timestamp| {
        let most = crate::script::JUMP_MAX_S;
        !book.skewed(seconds_later(at, -most), seconds_later(at, most))
    };
    for row in end.intents.iter().filter(|row| row.kind == "terminate" && by_a_right_clock(row.real_at)) {
        let in_it = |(from, until): &(Timestamp, Option<Timestamp>)| {
            *from < row.real_at && until.is_none_or(|until| row.real_at < until)
        };
        if book.halts.iter().any(in_it) {
            wrong.push(("I16", format!("the kill {} was intended while halted", row.id)));
        }
    }
    for (number, push, _) in &end.pushes {
        let late = push.because.as_deref().is_some_and(|why| why.starts_with("not ready within"));
        let created = book.pushes.get(number).and_then(|p| p.created);
        let given_up = book.given_up.get(number).copied();
        let (Some(created), Some(given_up), true) = (created, given_up, late) else { continue };
        if book.skewed(created, given_up) {
            continue;
        }
        let had = given_up.duration_since(created) - book.halted_for(created, given_up);
        let within = SignedDuration::try_from(push.settings.ready_within).unwrap_or(SignedDuration::MAX);
        if had < within - SignedDuration::from_secs(30) {
            let had = had.as_secs();
            wrong.push(("I10", format!("push {number} was given up after {had} s of its {} s", within.as_secs())));
        }
    }
    wrong
}

/// I14: whoever terminates cancels.
fn entries(book: &Book, state: &State) -> Vec<Wrong> {
    let late = |at: Timestamp| seconds_later(at, CANCELLED_WITHIN_S) < state.now;
    let kills = book.kills.iter().filter(|k| late(k.at) && state.member(&k.instance).is_none());
    let stays = kills.filter(|k| state.registry.lists(&k.group, &k.instance));
    stays.map(|k| ("I14", format!("the registry still lists {}, killed at {}", k.instance, k.at))).collect()
}

/// I20: every draw of a day whose key is published can be drawn again.
fn replayed(end: &End) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for stored in &end.plans {
        let Ok(plan) = DayPlan::deserialize(&stored.body) else {
            wrong.push(("I20", format!("the plan of {} cannot be read", stored.day)));
            continue;
        };
        let Some(key) = plan.day_key.as_deref() else { continue };
        let Some(key) = DayKey::from_hex(key) else {
            wrong.push(("I20", format!("the key of {} cannot be read", stored.day)));
            continue;
        };
        for entry in plan.entries.iter().filter(|entry| entry.unit.is_some()) {
            let mut draw = key.stream(&entry.draw_key, &entry.monkey);
            let unit = draw.unit();
            let fell = entry.odds.is_some_and(|odds| unit < odds);
            let minute = if fell { draw.below(u64::from(entry.window_minutes)) } else { None };
            let same = entry.unit == Some(unit) && entry.fell == Some(fell);
            if !same || minute != entry.minute.map(u64::from) {
                wrong.push(("I20", format!("{} {}: another draw than the key gives", stored.day, entry.draw_key)));
            }
        }
    }
    wrong
}

/// I17: what the coins of every plan were to show, and did.
fn drawn(end: &End) -> Drawn {
    let plans = end.plans.iter().filter_map(|stored| DayPlan::deserialize(&stored.body).ok());
    let mut drawn = Drawn::default();
    for entry in plans.flat_map(|plan| plan.entries) {
        let (Some(odds), Some(fell)) = (entry.odds, entry.fell) else { continue };
        drawn.add(Drawn { coins: 1, fell: u64::from(fell), expected: odds, variance: odds * (1.0 - odds) });
    }
    drawn
}

/// I19: a push that went well, with nobody else about, did what `--plan` said.
fn kept_promises(book: &Book, end: &End) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for (number, promised) in &book.promised {
        let Some((_, push, true)) = end.pushes.iter().find(|(n, _, _)| n == number) else { continue };
        let went_well = push.result == Some(troop_deploy::push::PushResult::Succeeded);
        let Some(did) = book.pushes.get(number).map(|p| &p.steps) else { continue };
        if !went_well || book.touched_since(&push.cluster, push.started_at) {
            continue;
        }
        let steps: Vec<_> =
            promised.iter().filter(|line| !line.starts_with("wait") && !line.starts_with("soak")).collect();
        let mut ran = did.clone();
        ran.dedup();
        // The way back may have grown with the serving group; nothing else may be added.
        let more = ran.iter().find(|line| !steps.contains(line) && !line.starts_with("resize"));
        let less = steps.iter().find(|line| !ran.contains(line));
        if let Some(line) = more {
            wrong.push(("I19", format!("push {number} did `{line}`, which its plan did not say")));
        } else if let Some(line) = less {
            wrong.push(("I19", format!("push {number} did not do `{line}`, as its plan said")));
        }
    }
    wrong
}

/// I6: while it is the way back the old group keeps its size, whatever a scaler would like.
pub fn pinned(book: &mut Book, state: &State, open: &[(u64, Push)]) {
    let now = state.now;
    let mut wrong = Vec::new();
    for (number, push) in open {
        let Some(flipped) = book.pushes.get(number).and_then(|p| p.flipped) else { continue };
        let on_the_way = matches!(push.phase, Phase::Soak { .. } | Phase::Watch { .. });
        let (Some(previous), true) = (&push.previous, on_the_way) else { continue };
        let Some(group) = state.groups.get(&previous.group) else { continue };
        let touched =
            book.touched_since(&push.cluster, flipped.checked_sub(SignedDuration::from_mins(30)).unwrap_or(flipped));
        if group.size.desired < previous.size.desired && seen(flipped, now) && !touched {
            wrong.push(format!("{} is the way back of push {number} and shrank to {}", group.name, group.size.desired));
        }
    }
    for what in wrong {
        book.wrong("I6", now, what);
    }
}
