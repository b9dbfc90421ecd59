//! Pushes: was this step allowed now, by what was seen of this push and of all others?

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use troop_deploy::push::Push;
use troop_policies::intent::Intent;
use troop_policies::inventory::Group;
use troop_policies::step::Step;
use troop_policies::{ClusterName, GroupName};

use super::{Ask, Book, Turn, seen};
use crate::host::{later, seconds_later};
use crate::world::{State, UNSEEN_S};

/// A push needs at least this many good looks before it is believed.
const GOOD_LOOKS: usize = 8;

pub(super) fn asked(book: &mut Book, state: &State, ask: &Ask<'_>, number: u64) {
    let now = state.now;
    let step = &ask.intent.step;
    let Some((_, push)) = &ask.push else {
        return book.wrong(
            "I10",
            now,
            format!("`{step}` was asked for by push {number}, which has ended or never was"),
        );
    };
    let mut wrong = Vec::new();
    wrong.extend(lock(ask, number, now));
    wrong.extend(match step {
        Step::CreateGroup { group } => create(book, state, ask, &group.name),
        Step::Resize { group, size } => {
            let mut wrong = shrink(book, state, group, size.desired);
            let made = book.pushes.get(&number).is_some_and(|p| p.created.is_some());
            if group == push.group() && !made {
                wrong.push(("I13", format!("{group} was made by somebody else")));
            }
            wrong
        }
        Step::Flip { to, .. } if to == push.group() => onward(book, state, ask, number, push),
        Step::Flip { to, .. } => back(book, state, number, push, to),
        Step::Disable { group, .. } | Step::OverrideGroup { group, out_of_service: true } => {
            take_out(book, state, push, group)
        }
        Step::Destroy { group } => destroy(book, state, ask, number, push, group),
        Step::Enable { .. } | Step::OverrideGroup { out_of_service: false, .. } => Vec::new(),
        Step::Terminate { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => {
            vec![("I5", "a push does not do that".to_owned())]
        }
    });
    for (invariant, what) in wrong {
        book.wrong(invariant, now, format!("push {number}, `{step}`: {what}"));
    }
    let takes_out = matches!(step, Step::Disable { .. } | Step::OverrideGroup { out_of_service: true, .. });
    if takes_out && step.group() == push.group() {
        book.given_up.entry(number).or_insert(now);
    }
    book.pushes.entry(number).or_default().steps.push(step.to_string());
}

type Wrong = (&'static str, String);

/// I9: whoever changes a cluster holds its lock. The upkeep of the way back goes only upwards, and needs none.
fn lock(ask: &Ask<'_>, number: u64, _: Timestamp) -> Option<Wrong> {
    if matches!(ask.intent.step, Step::Resize { .. }) {
        return None;
    }
    let holder = ask.holder(ask.intent.step.cluster()).map(|lock| lock.holder.clone());
    let own = format!("push {number}");
    (holder.as_deref() != Some(own.as_str()))
        .then(|| ("I9", format!("{} holds the cluster", holder.unwrap_or_else(|| "nobody".to_owned()))))
}

/// I13 and I16: a new group has a new name, and nothing new starts in a halt.
fn create(book: &Book, state: &State, ask: &Ask<'_>, name: &GroupName) -> Vec<Wrong> {
    let mut wrong = halted(ask, state.now);
    let stood = state.groups.get(name).is_some_and(|group| seen(group.created_at, state.now));
    let saw = book.seen_ill.get(&ask.plane).is_none_or(|since| *since > seconds_later(state.now, -UNSEEN_S));
    if stood && saw && !book.touched_since(name.cluster(), seconds_later(state.now, -UNSEEN_S)) {
        wrong.push(("I13", format!("{name} is in use")));
    }
    let own = ask.push.as_ref().map(|(number, _)| *number);
    let spoken = ask
        .open
        .iter()
        .find(|(number, push)| Some(*number) != own && (push.group() == name || push.previous_group() == Some(name)));
    if let Some((number, _)) = spoken {
        wrong.push(("I13", format!("push {number} still speaks of {name}")));
    }
    wrong
}

fn halted(ask: &Ask<'_>, now: Timestamp) -> Vec<Wrong> {
    // Asked for the last time right before the call.
    match &ask.halted {
        Some(halted) if halted.at <= now => vec![("I16", "halted".to_owned())],
        Some(_) | None => Vec::new(),
    }
}

/// I5 and I6: nothing of ours makes a group smaller.
fn shrink(book: &Book, state: &State, name: &GroupName, desired: u32) -> Vec<Wrong> {
    let Some(group) = state.groups.get(name) else { return Vec::new() };
    let touched = book.touched_since(name.cluster(), seconds_later(state.now, -UNSEEN_S));
    if desired < group.size.desired && !touched {
        return vec![("I6", format!("{name} shrinks from {} to {desired}", group.size.desired))];
    }
    Vec::new()
}

/// I4, I9 and I16: the flip to the new group.
fn onward(book: &Book, state: &State, ask: &Ask<'_>, number: u64, push: &Push) -> Vec<Wrong> {
    let now = state.now;
    let mut wrong = halted(ask, now);
    let to = push.group();
    let seen_push = book.pushes.get(&number);
    let rotation = book.turn(&push.cluster);
    if let (Some(turn), Some(seen_push)) = (rotation, seen_push)
        && seen(turn.at, now)
        && seen_push.created.is_some()
        && Some(&turn.group) != seen_push.previous.as_ref()
        && turn.group != *to
    {
        wrong.push(("I9", format!("{} serves now, not the group from which it was to take over", turn.group)));
    }
    let Some(group) = state.groups.get(to) else {
        wrong.push(("I4", "it does not exist".to_owned()));
        return wrong;
    };
    let previous = seen_push.and_then(|p| p.previous_size).map_or(0, |size| size.desired);
    let need = usize::try_from(previous.min(push.size).max(3)).unwrap_or(3);
    let killed = book.kills.iter().filter(|k| k.group == *to && k.healed.is_none()).count();
    let believed = state.believed(to);
    if believed + killed < need {
        wrong.push(("I4", format!("{believed} serve of {need}")));
    }
    let in_zones: std::collections::BTreeSet<_> = group.members.values().map(|m| &m.zone).collect();
    let settled = |group: &Group| {
        state.lives.values().all(|l| l.group != group.name || l.ended_at.is_none_or(|at| seen(at, now)))
    };
    if in_zones.len() < 2 && settled(group) {
        wrong.push(("I4", format!("it is in {} zones", in_zones.len())));
    }
    let other = group.members.values().find(|m| m.image != push.image && seen(m.launched_at, now));
    if let Some(other) = other {
        wrong.push(("I4", format!("{} runs {}", other.id, other.image)));
    }
    wrong
}

/// I3 and I7: the way back leads to the recorded group only, enabled and able to serve.
fn back(book: &Book, state: &State, number: u64, push: &Push, to: &GroupName) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let now = state.now;
    let seen_push = book.pushes.get(&number);
    if let Some(previous) = seen_push.and_then(|p| p.previous.as_ref()).filter(|previous| *previous != to) {
        wrong.push(("I7", format!("{previous} served before, not {to}")));
    }
    let Some(group) = state.groups.get(to) else {
        wrong.push(("I7", "it is gone".to_owned()));
        return wrong;
    };
    let touched = book.touched_since(&push.cluster, seconds_later(now, -UNSEEN_S));
    if !group.enabled && !touched {
        wrong.push(("I3", "the group that is to serve is disabled".to_owned()));
    }
    if book.out.contains(to) {
        wrong.push(("I3", "the group that is to serve is OUT_OF_SERVICE in the registry".to_owned()));
    }
    let killed = book.kills.iter().filter(|k| k.group == *to && k.healed.is_none()).count();
    let need = usize::try_from(group.size.desired).unwrap_or(usize::MAX);
    let (has, leaves) = (state.believed(to), state.serving(push.group()));
    if has + killed < need && has <= leaves && !touched {
        wrong.push(("I7", format!("{has} of {need} serve, and {leaves} do in the group that is left")));
    }
    if has == 0 {
        wrong.push(("I3", "nobody would serve".to_owned()));
    }
    wrong
}

/// I1, I2, I3 and I8: the group that serves is never taken out, nor the last one enabled.
fn take_out(book: &Book, state: &State, push: &Push, name: &GroupName) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let now = state.now;
    let Some(group) = state.groups.get(name) else { return wrong };
    let stood = book.turn(name.cluster()).is_none_or(|turn| seen(turn.at, now));
    if group.in_rotation && stood {
        let invariant = if name == push.group() { "I8" } else { "I3" };
        wrong.push((invariant, format!("{name} is in rotation")));
    }
    let touched = book.touched_since(name.cluster(), seconds_later(now, -UNSEEN_S));
    if state.is_last_enabled(name) && !touched {
        wrong.push(("I2", format!("{name} is the last enabled group")));
    }
    if let Some(rotation) = state.in_rotation(name.cluster()).filter(|g| g.name != *name) {
        let believed = state.believed(&rotation.name);
        if believed == 0 && state.serving(name) > 0 && !touched {
            wrong.push(("I1", format!("nobody of {} serves", rotation.name)));
        }
    }
    wrong
}

/// I2, I5, I11, I16 and I21: when a group may go.
fn destroy(book: &Book, state: &State, ask: &Ask<'_>, number: u64, push: &Push, name: &GroupName) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    let now = state.now;
    if ask.halted.as_ref().is_some_and(|halted| halted.at < seconds_later(now, -1)) {
        wrong.push(("I16", "halted: a destroy waits".to_owned()));
    }
    let touched = book.touched_since(name.cluster(), seconds_later(now, -UNSEEN_S));
    let stood = book.turn(name.cluster()).is_none_or(|turn| seen(turn.at, now));
    let Some(group) = state.groups.get(name) else { return wrong };
    if group.in_rotation && stood {
        wrong.push(("I2", format!("{name} is in rotation")));
    }
    if state.is_last_enabled(name) && !touched {
        wrong.push(("I2", format!("{name} is the last enabled group")));
    }
    let claims = |(other, push): &&(u64, Push)| *other > number && push.previous_group() == Some(name);
    if let Some((other, _)) = ask.open.iter().find(claims).filter(|_| name == push.group()) {
        wrong.push(("I5", format!("{name} is the way back of push {other}")));
    }
    let drained = book.disabled.get(name).map(|at| later(*at, span(push.settings.drain)));
    if name == push.group() {
        // A cluster's only version is disabled right before its end, when another one serves.
        let long_ago = |at: &Timestamp| *at < seconds_later(now, -600);
        let created = book.pushes.get(&number).and_then(|p| p.created);
        let since = book.disabled.get(name).copied().filter(long_ago).or(created);
        let kept = later(since.unwrap_or(now), span(push.settings.keep_failed));
        // What a control plane decided by a wrong clock comes earlier by as much.
        let skewed = book.skewed(since.unwrap_or(now), now);
        let kept = if skewed { seconds_later(kept, -crate::script::JUMP_MAX_S) } else { kept };
        if !touched && (now < kept || group.enabled) {
            wrong.push(("I21", format!("{name} failed and is to be kept until {kept}")));
        }
        return wrong;
    }
    if group.enabled && !touched {
        wrong.push(("I5", format!("{name} is not disabled")));
    } else if drained.is_some_and(|drained| now < drained) {
        wrong.push(("I5", format!("{name} has not drained")));
    }
    if !touched_since_flip(book, number, &push.cluster) {
        wrong.extend(promoted(book, number, push, now));
    }
    wrong
}

fn touched_since_flip(book: &Book, number: u64, cluster: &ClusterName) -> bool {
    let flipped = book.pushes.get(&number).and_then(|p| p.flipped);
    flipped.is_some_and(|at| book.touched_since(cluster, at))
}

fn span(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// I5 and I11: watched to the end, or superseded by a push that has soaked; and something good was seen.
fn promoted(book: &Book, number: u64, push: &Push, now: Timestamp) -> Vec<Wrong> {
    let Some(flipped) = book.pushes.get(&number).and_then(|p| p.flipped) else {
        return vec![("I5", "its push has never flipped".to_owned())];
    };
    let turns = book.turns.get(&push.cluster).map(Vec::as_slice).unwrap_or_default();
    let watched = now >= later(flipped, span(push.settings.soak) + span(push.settings.watch));
    let by = |at: usize, turn: &Turn| {
        let newer = turn.push.filter(|newer| *newer > number)?;
        let until = turns.get(at + 1).map_or(now, |next| next.at);
        let soak = book_soak(book, newer);
        (later(turn.at, soak) <= until).then_some(newer)
    };
    let superseded = turns.iter().enumerate().any(|(at, turn)| by(at, turn).is_some());
    if !watched && !superseded {
        let s = now.duration_since(flipped).as_secs();
        return vec![("I5", format!("it was watched for {s} s only, and no newer push has soaked"))];
    }
    let looks = book.counts.get(&push.cluster).map_or(0, |c| c.iter().filter(|at| **at >= flipped).count());
    if !superseded && looks < GOOD_LOOKS {
        return vec![("I11", format!("only {looks} looks at its traffic since the flip"))];
    }
    Vec::new()
}

/// What soak a push was begun with.
fn book_soak(book: &Book, number: u64) -> SignedDuration {
    book.soaks.get(&number).copied().unwrap_or(SignedDuration::ZERO)
}

/// After a step took effect.
pub(super) fn done(book: &mut Book, state: &State, intent: &Intent, number: u64, before: Option<usize>) {
    let (now, step) = (state.now, &intent.step);
    let cluster = step.cluster().clone();
    let rotation = state.in_rotation(&cluster);
    if !matches!(step, Step::Flip { .. } | Step::Terminate { .. }) {
        let after = rotation.map(|group| state.serving(&group.name));
        if after < before {
            let what = format!("push {number}, `{step}`: {before:?} served before, {after:?} after");
            book.wrong("I12", now, what);
        }
    }
    let previous = rotation.map(|g| (g.name.clone(), g.size, state.serving(&g.name)));
    match step {
        Step::CreateGroup { group } => {
            let entry = book.pushes.entry(number).or_default();
            let twice = entry.created.is_some();
            entry.created = Some(now);
            entry.group = Some(group.name.clone());
            if let Some((name, size, serving)) = previous {
                let had = entry.previous_size;
                // Its size before this push pinned it.
                entry.previous_size = had.or(Some(size));
                (entry.previous, entry.serving) = (Some(name), serving);
            }
            book.disabled.remove(&group.name);
            book.has_served.remove(&group.name);
            if twice {
                book.wrong("I22", now, format!("push {number} made a second group, {}", group.name));
            }
        }
        Step::Flip { to, .. } => {
            book.flips_done += 1;
            let is_new = book.pushes.get(&number).and_then(|p| p.group.as_ref()) == Some(to);
            let entry = book.pushes.entry(number).or_default();
            if is_new {
                entry.flipped = Some(now);
            } else {
                entry.went_back = true;
            }
            book.has_served.insert(to.clone());
            let turn = Turn { at: now, group: to.clone(), push: is_new.then_some(number) };
            book.turns.entry(cluster).or_default().push(turn);
            if state.serving(to) == 0 && state.believed(to) == 0 {
                book.wrong("I3", now, format!("push {number}, `{step}`: nobody serves now"));
            }
        }
        Step::Disable { group, .. } => {
            book.disabled.entry(group.clone()).or_insert(now);
        }
        Step::Enable { group } => {
            book.disabled.remove(group);
        }
        Step::OverrideGroup { group, out_of_service } => {
            if *out_of_service {
                book.out.insert(group.clone());
            } else {
                book.out.remove(group);
            }
        }
        Step::Destroy { .. }
        | Step::Resize { .. }
        | Step::Terminate { .. }
        | Step::CancelEntry { .. }
        | Step::Fault { .. } => {}
    }
}
