//! The state machine of a push: from a look at the world to the one thing to do now, and from an outcome to the next state.
//!
//! [`next`] and [`settled`](crate::outcome::settled) are pure. Whoever drives a push saves what they return before acting on it: an [`Act`]
//! with its intent in one transaction, the outcome with [`settled`](crate::outcome::settled)'s push in another. The cluster's lock
//! follows from the phase alone ([`holds_lock`]), so that taking and releasing it can be part of the same transactions.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use troop_cloud::Traffic;
use troop_policies::inventory::Inventory;
use troop_policies::registry_view::Status;
use troop_policies::situation::OpenAct;
use troop_policies::step::Step;
use troop_policies::{GroupName, InstanceId, guard};

use crate::judge::{self, GOOD_LOOKS_MIN, Memory, Verdict};
use crate::push::{Phase, Push, PushResult};
use crate::ready::{self, Wanted, ZONES_MIN};
use crate::script::{self, Need};

/// After this long in a state that the guard forbids to leave, the traffic goes back.
const UNSAFE_FOR: SignedDuration = SignedDuration::from_secs(30);
/// After this long an old group that is not whole, but serves more than the new one, gets the traffic.
const BACK_PATIENCE: SignedDuration = SignedDuration::from_secs(10);
/// A soak that has seen nothing for so long after its end goes back: no data never promotes, and the lock is not held
/// for ever.
const NO_DATA_FOR: SignedDuration = SignedDuration::from_secs(600);

/// What a newer push of the same cluster means for this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// There is none, or it has not flipped, or it went back.
    None,
    /// It has flipped and not soaked: this push's watch is suspended.
    Flipped { push: u64 },
    /// It has flipped and soaked: this push is over.
    Soaked { push: u64 },
}

/// One look at the world, as a push needs it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its own number, for words.
    pub push: u64,
    pub inventory: Result<&'a Inventory, &'a str>,
    /// `None` while the registry cannot be read or is warming.
    pub statuses: Option<&'a BTreeMap<InstanceId, Status>>,
    pub traffic: Result<&'a BTreeMap<GroupName, Traffic>, &'a str>,
    /// Recorded kills that have not healed.
    pub open_acts: &'a [OpenAct],
    pub halted: bool,
    /// Whether the wall clock can be believed, else why not. One that was set ends no soak, no watch and no keeping early.
    pub clock: Result<(), &'a str>,
    pub newer: Newer,
    /// The open push whose way back is the group that this one made.
    pub way_back_of: Option<u64>,
    pub now: Timestamp,
}

/// On what right a step is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// It goes on with the push; held by a halt while the push has not flipped.
    Onward { before_flip: bool },
    /// It restores; never held.
    Undo,
}

/// What to do now: save the push where it differs, with the act's intent in the same transaction; then act.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Move {
    pub push: Push,
    /// `None`: look again later.
    pub act: Option<Act>,
}

/// A step to take, and by what right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    pub step: Step,
    pub right: Right,
}

impl Move {
    fn wait(push: Push) -> Self {
        Self { push, act: None }
    }

    fn act(push: Push, step: Step, right: Right) -> Self {
        Self { push, act: Some(Act { step, right }) }
    }
}

/// Whether a push in this phase holds its cluster's lock.
pub fn holds_lock(phase: Phase) -> bool {
    match phase {
        Phase::Create
        | Phase::Ready { .. }
        | Phase::Flip
        | Phase::Disable
        | Phase::Soak { .. }
        | Phase::Destroy
        | Phase::BackEnable
        | Phase::BackReady { .. }
        | Phase::BackFlip
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Reap => true,
        Phase::Watch { .. } | Phase::Keep { .. } | Phase::Stuck | Phase::Ended => false,
    }
}

/// Says what to do now. A push with a step in flight waits for its outcome.
pub fn next(push: &Push, memory: &mut Memory, seen: &Seen<'_>) -> Move {
    if push.in_flight.is_some() || push.phase == Phase::Ended {
        return Move::wait(push.clone());
    }
    let push = match hold(push, seen) {
        Held::Yes(push) => return Move::wait(*push),
        Held::No(push) => *push,
    };
    let judges = matches!(push.phase, Phase::Soak { .. } | Phase::Watch { .. });
    if let (Err(why), Phase::Destroy | Phase::Reap | Phase::Keep { .. }) = (clock(seen), push.phase) {
        return wait(push, format!("held: the clock is in doubt: {why}"));
    }
    if let (Some(other), Phase::Reap, false) = (seen.way_back_of, push.phase, troop_policies::sabotaged!("way_back")) {
        let note = format!("{} is the way back of push {other}, whose it is now", push.group());
        return wait(push, note);
    }
    // Upkeep that was refused must not hold up a verdict.
    if !judges && push.retry_at.is_some_and(|at| seen.now < at) {
        return Move::wait(push);
    }
    match push.phase {
        Phase::Create
        | Phase::Disable
        | Phase::Destroy
        | Phase::BackEnable
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Reap => scripted(push, seen),
        Phase::Ready { deadline } => ready(push, memory, seen, deadline),
        // Only ever with its step in flight, or after a crash between the two: the checks are asked anew.
        Phase::Flip => {
            let deadline = Push::after(seen.now, push.settings.ready_within);
            Move::wait(push.into_phase(Phase::Ready { deadline }, seen.now, "judged ready anew"))
        }
        Phase::Soak { until } => judged(push, memory, seen, until),
        Phase::Watch { until } => match seen.newer {
            Newer::None => judged(push, memory, seen, until),
            Newer::Flipped { .. } | Newer::Soaked { .. } => outlived(push, memory, seen),
        },
        Phase::Stuck => match seen.newer {
            Newer::Soaked { .. } => outlived(push, memory, seen),
            Newer::None | Newer::Flipped { .. } => Move::wait(push),
        },
        Phase::BackReady { deadline } => back_ready(push, seen, deadline),
        Phase::BackFlip => {
            let deadline = Push::after(seen.now, push.settings.ready_within);
            Move::wait(push.into_phase(Phase::BackReady { deadline }, seen.now, "the old group is judged anew"))
        }
        Phase::Keep { until } if seen.now >= until => {
            let note = format!("{} goes", push.group());
            Move::wait(push.into_phase(Phase::Reap, seen.now, note))
        }
        Phase::Keep { .. } | Phase::Ended => Move::wait(push),
    }
}

/// A time that has come by a clock that was set may not have come at all.
fn clock<'a>(seen: &Seen<'a>) -> Result<(), &'a str> {
    seen.clock.or_else(|why| if troop_policies::sabotaged!("push_clock") { Ok(()) } else { Err(why) })
}

enum Held {
    Yes(Box<Push>),
    No(Box<Push>),
}

/// What a halt does: before the flip everything stands still, deadlines too; after it only a destroy waits.
fn hold(push: &Push, seen: &Seen<'_>) -> Held {
    let stands = push.phase.is_before_flip() || matches!(push.phase, Phase::Destroy | Phase::Reap);
    if seen.halted && stands && !troop_policies::sabotaged!("halt_hold") {
        let note = "held: halted; `troop resume --reason …` lets it go on".to_owned();
        return Held::Yes(Box::new(Push { held_since: push.held_since.or(Some(seen.now)), note, ..push.clone() }));
    }
    let Some(since) = push.held_since else { return Held::No(Box::new(push.clone())) };
    let stood = seen.now.duration_since(since);
    let later = |at: Timestamp| at.checked_add(stood).unwrap_or(Timestamp::MAX);
    let phase = if let Phase::Ready { deadline } = push.phase {
        let deadline = if troop_policies::sabotaged!("deadline_shift") { deadline } else { later(deadline) };
        Phase::Ready { deadline }
    } else {
        push.phase
    };
    Held::No(Box::new(Push { held_since: None, phase, note: "goes on after a halt".to_owned(), ..push.clone() }))
}

fn wait(push: Push, note: impl Into<String>) -> Move {
    Move::wait(Push { note: note.into(), ..push })
}

/// The next step of a phase that is a list of steps.
fn scripted(push: Push, seen: &Seen<'_>) -> Move {
    let inventory = match seen.inventory {
        Ok(inventory) => inventory,
        Err(why) => return wait(push, format!("the inventory cannot be read: {why}")),
    };
    // What is not needed is passed over for this look only: whether it is needed may change while another waits.
    for (index, action) in script::actions(push.phase).iter().enumerate().skip(push.index) {
        match script::need(*action, &push, inventory) {
            Need::Nothing => {}
            Need::Wait(why) => return wait(push, why),
            Need::Never(why) => return Move::wait(ended(push, why, seen.now)),
            Need::Step(step) => {
                let floor = floor(&push, seen);
                let statuses = seen.statuses.cloned().unwrap_or_default();
                if let Err(why) = guard::push_step(inventory, &statuses, seen.open_acts, &step, floor, seen.now) {
                    return forbidden(push, why.to_string(), seen);
                }
                let right = match push.phase {
                    Phase::Create => Right::Onward { before_flip: true },
                    Phase::Disable | Phase::Destroy | Phase::Reap => Right::Onward { before_flip: false },
                    Phase::BackEnable
                    | Phase::BackDisable
                    | Phase::Cancel
                    | Phase::Ready { .. }
                    | Phase::Flip
                    | Phase::Soak { .. }
                    | Phase::Watch { .. }
                    | Phase::BackReady { .. }
                    | Phase::BackFlip
                    | Phase::Keep { .. }
                    | Phase::Stuck
                    | Phase::Ended => Right::Undo,
                };
                let note = step.to_string();
                return Move::act(Push { note, index, ..push }, step, right);
            }
        }
    }
    Move::wait(finished(push, seen.now))
}

/// The guard forbids the step now. After a flip that must not last: the traffic goes back to where it was safe.
fn forbidden(push: Push, why: String, seen: &Seen<'_>) -> Move {
    let lasted = seen.now.duration_since(push.phase_since);
    if push.phase == Phase::Disable && lasted >= UNSAFE_FOR {
        return Move::wait(going_back(push, format!("not safe for {} s: {why}", UNSAFE_FOR.as_secs()), seen.now));
    }
    wait(push, format!("not safe now: {why}"))
}

/// What comes after the last step of a phase.
fn finished(push: Push, now: Timestamp) -> Push {
    match push.phase {
        Phase::Create => {
            let deadline = Push::after(now, push.settings.ready_within);
            push.into_phase(Phase::Ready { deadline }, now, "booting")
        }
        Phase::Disable => soaking(push, now),
        Phase::Destroy => {
            let result = if push.result.is_some() { push.result } else { Some(PushResult::Succeeded) };
            Push { result, ..push }.into_phase(Phase::Ended, now, "done")
        }
        Phase::BackEnable => {
            let deadline = Push::after(now, push.settings.ready_within);
            push.into_phase(Phase::BackReady { deadline }, now, "the old group is checked before it gets the traffic")
        }
        Phase::BackDisable => kept(Push { result: Some(PushResult::RolledBack), ..push }, now),
        Phase::Cancel => kept(Push { result: Some(PushResult::Cancelled), ..push }, now),
        Phase::Reap => push.into_phase(Phase::Ended, now, "its group is gone"),
        Phase::Ready { .. }
        | Phase::Flip
        | Phase::Soak { .. }
        | Phase::Watch { .. }
        | Phase::BackReady { .. }
        | Phase::BackFlip
        | Phase::Keep { .. }
        | Phase::Stuck
        | Phase::Ended => push,
    }
}

fn kept(push: Push, now: Timestamp) -> Push {
    let until = Push::after(now, push.settings.keep_failed);
    let until = if troop_policies::sabotaged!("keep_failed") { now } else { until };
    let note = format!("{} is kept for a look until {}", push.group(), until.strftime("%Y-%m-%d %H:%M:%SZ"));
    push.into_phase(Phase::Keep { until }, now, note)
}

pub(crate) fn soaking(push: Push, now: Timestamp) -> Push {
    let until = Push::after(now, push.settings.soak);
    push.into_phase(Phase::Soak { until }, now, "judged by errors and health")
}

/// Flips once every check passes; gives up at the deadline.
fn ready(push: Push, memory: &mut Memory, seen: &Seen<'_>, deadline: Timestamp) -> Move {
    let late = seen.now >= deadline;
    let missing = match seen.inventory {
        Err(why) => Some(format!("the inventory cannot be read: {why}")),
        Ok(inventory) => {
            let wanted = Wanted {
                group: push.group(),
                count: push.size,
                image: Some(&push.image),
                zones: ZONES_MIN.min(push.new.zones.len()),
                open: seen.open_acts,
            };
            ready::missing(&ready::checks(wanted, inventory, seen.statuses, seen.now))
        }
    };
    match (missing, seen.inventory) {
        (None, Ok(inventory)) => {
            *memory = Memory::default();
            if let Some(why) = moved_on(&push, inventory).filter(|_| !troop_policies::sabotaged!("moved_on")) {
                return Move::wait(cancelled(push, why, seen.now));
            }
            let step = script::flip(&push);
            let statuses = seen.statuses.cloned().unwrap_or_default();
            match guard::push_step(inventory, &statuses, seen.open_acts, &step, floor(&push, seen), seen.now) {
                Ok(()) => {
                    let attempts = push.attempts;
                    let ready_at = push.ready_at.or(Some(seen.now));
                    let push = Push { ready_at, ..push.into_phase(Phase::Flip, seen.now, "flipping") };
                    Move::act(Push { attempts, ..push }, step, Right::Onward { before_flip: true })
                }
                Err(why) if late => Move::wait(cancelled(push, format!("not safe to flip: {why}"), seen.now)),
                Err(why) => wait(push, format!("ready, but not safe to flip: {why}")),
            }
        }
        (Some(why), _) if late => {
            let within = push.settings.ready_within.as_secs();
            Move::wait(cancelled(push, format!("not ready within {within} s: {why}"), seen.now))
        }
        (Some(why), _) => wait(push, format!("not ready: {why}")),
        (None, Err(why)) => wait(push, format!("the inventory cannot be read: {why}")),
    }
}

/// Why the traffic is not where this push found it.
fn moved_on(push: &Push, inventory: &Inventory) -> Option<String> {
    match (inventory.serving(&push.cluster), push.previous_group()) {
        (Ok(serving), Some(old)) if serving.name == *old => None,
        (Ok(serving), Some(old)) => {
            Some(format!("{} serves now, not {old}, from which it was to take over", serving.name))
        }
        (Ok(serving), None) => Some(format!("{} serves now; this was to be the cluster's first push", serving.name)),
        (Err(why), Some(_)) => Some(why.to_string()),
        (Err(_), None) => None,
    }
}

pub(crate) fn cancelled(push: Push, because: String, now: Timestamp) -> Push {
    // Its group is made first, so nothing is there yet: whoever makes one of that name later shall keep it.
    if push.phase == Phase::Create && push.index == 0 {
        return ended(push, because, now);
    }
    let note = because.clone();
    Push { because: Some(because), ..push }.into_phase(Phase::Cancel, now, note)
}

/// Given up before anything was done: the group of that name is not this push's to disable, keep or reap.
fn ended(push: Push, because: String, now: Timestamp) -> Push {
    let note = because.clone();
    let push = Push { because: Some(because), result: Some(PushResult::Cancelled), ..push };
    push.into_phase(Phase::Ended, now, note)
}

/// Begins the way back, or, where there is none, ends with the new group serving.
pub(crate) fn going_back(push: Push, because: String, now: Timestamp) -> Push {
    let note = because.clone();
    let has_way_back = push.previous.is_some();
    let push = Push { because: Some(because), ..push };
    if has_way_back {
        return push.into_phase(Phase::BackEnable, now, note);
    }
    let note = format!("{note}; there is no older group to go back to");
    Push { result: Some(PushResult::KeptServing), ..push }.into_phase(Phase::Ended, now, note)
}

/// Soak and watch: upkeep of the way back, then the verdict.
fn judged(push: Push, memory: &mut Memory, seen: &Seen<'_>, until: Timestamp) -> Move {
    let inventory = match seen.inventory {
        Ok(inventory) => inventory,
        Err(why) => {
            memory.good_looks = 0;
            return no_data(push, format!("the inventory cannot be read: {why}"), seen, until);
        }
    };
    let group = inventory.groups.get(push.group());
    let wanted = Wanted {
        group: push.group(),
        count: group.map_or(push.size, |g| g.size.desired).max(1),
        image: None,
        zones: ZONES_MIN.min(push.new.zones.len()),
        open: seen.open_acts,
    };
    let missing = ready::missing(&ready::checks(wanted, inventory, seen.statuses, seen.now));
    let none = Traffic::default();
    let traffic = match seen.traffic {
        Ok(by_group) => match by_group.get(push.group()) {
            Some(traffic) => Ok(traffic),
            None if group.is_some_and(|g| !g.has_targets) => Ok(&none),
            None => Err("the balancer counts nothing for the new group"),
        },
        Err(why) => Err(why),
    };
    let verdict = judge::look(memory, traffic, missing.as_deref(), push.settings.errors_above, seen.now);
    let upkeep = upkeep(&push, inventory).filter(|_| push.retry_at.is_none_or(|at| seen.now >= at));
    match (verdict, upkeep) {
        (Verdict::Bad { why }, _) => Move::wait(going_back(push, why, seen.now)),
        (Verdict::Good | Verdict::NoData { .. }, Some(step)) => {
            Move::act(push, step, Right::Onward { before_flip: false })
        }
        (Verdict::NoData { why }, None) => no_data(push, why, seen, until),
        (Verdict::Good, None) if seen.now >= until && memory.good_looks >= GOOD_LOOKS_MIN => match clock(seen) {
            Ok(()) => Move::wait(passed(push, seen.now)),
            Err(why) => wait(push, format!("good so far, but the clock is in doubt: {why}")),
        },
        (Verdict::Good, None) => wait(push, "good so far"),
    }
}

/// The soak or the watch ended well.
fn passed(push: Push, now: Timestamp) -> Push {
    if !matches!(push.phase, Phase::Soak { .. }) {
        return push.into_phase(Phase::Destroy, now, "watched well; the old group goes");
    }
    let push = Push { soaked: true, ..push };
    if push.previous.is_none() {
        // Nothing to watch for: there is no way back.
        let push = Push { result: Some(PushResult::Succeeded), ..push };
        return push.into_phase(Phase::Ended, now, "soaked well; the cluster's first version");
    }
    let until = Push::after(now, push.settings.watch);
    let until = if troop_policies::sabotaged!("watch") { now } else { until };
    push.into_phase(Phase::Watch { until }, now, "soaked well; the lock is released, the next push may come")
}

fn no_data(push: Push, why: String, seen: &Seen<'_>, until: Timestamp) -> Move {
    let is_soak = matches!(push.phase, Phase::Soak { .. });
    if troop_policies::sabotaged!("no_data") && seen.now >= until {
        return Move::wait(passed(push, seen.now));
    }
    if is_soak && seen.now.duration_since(until) >= NO_DATA_FOR {
        let why =
            format!("nothing good was seen for {} s after the soak should have ended: {why}", NO_DATA_FOR.as_secs());
        return Move::wait(going_back(push, why, seen.now));
    }
    wait(push, format!("no verdict: {why}"))
}

/// The old group is held at no less than the new one has, for as long as it is the way back (invariant I6).
fn upkeep(push: &Push, inventory: &Inventory) -> Option<Step> {
    let old = push.previous_group().and_then(|name| inventory.groups.get(name))?;
    let serving = inventory.groups.get(push.group()).map(|g| g.size.desired);
    script::pin(old, serving)
}

/// A watch that a newer push has overtaken: suspended while that one soaks, over once it has soaked well.
fn outlived(push: Push, memory: &mut Memory, seen: &Seen<'_>) -> Move {
    *memory = Memory::default();
    match seen.newer {
        Newer::Soaked { push: newer } => {
            let push = Push { result: Some(PushResult::Superseded), ..push };
            let note = format!("push {newer} has flipped and soaked; the old group goes");
            Move::wait(push.into_phase(Phase::Destroy, seen.now, note))
        }
        Newer::Flipped { push: newer } => {
            let step = seen.inventory.ok().and_then(|inventory| {
                let old = push.previous_group().and_then(|name| inventory.groups.get(name))?;
                script::pin(old, None)
            });
            match step {
                Some(step) => Move::act(push, step, Right::Onward { before_flip: false }),
                None => wait(push, format!("suspended while push {newer} soaks")),
            }
        }
        Newer::None => Move::wait(push),
    }
}

/// The old group gets the traffic back once it is whole, or once it serves more than the new one.
fn back_ready(push: Push, seen: &Seen<'_>, deadline: Timestamp) -> Move {
    let (inventory, old) = match (seen.inventory, push.previous.clone()) {
        (Ok(inventory), Some(old)) => (inventory, old),
        (Err(why), _) => return wait(push, format!("the inventory cannot be read: {why}")),
        (Ok(_), None) => return Move::wait(going_back(push, "no older group".to_owned(), seen.now)),
    };
    let Some(group) = inventory.groups.get(&old.group) else {
        return Move::wait(stuck(push, &format!("{} is gone", old.group), seen.now));
    };
    let count = group.size.desired.max(old.size.desired);
    let wanted = Wanted { group: &old.group, count, image: None, zones: 1, open: seen.open_acts };
    let missing = ready::missing(&ready::checks(wanted, inventory, seen.statuses, seen.now));
    let missing = missing.filter(|_| !troop_policies::sabotaged!("back_ready"));
    let serves = |name: &GroupName| inventory.groups.get(name).map_or(0, |g| script::serving(g, seen));
    let is_better =
        serves(&old.group) > serves(push.group()) && seen.now.duration_since(push.phase_since) >= BACK_PATIENCE;
    match (missing, script::flip_back(&push)) {
        (None, Some(step)) => flip_back(push, step, seen),
        (Some(_), Some(step)) if is_better => flip_back(push, step, seen),
        (why, _) if seen.now >= deadline => {
            let why = why.unwrap_or_else(|| "it cannot be flipped to".to_owned());
            Move::wait(stuck(push, &format!("{} did not become ready: {why}", old.group), seen.now))
        }
        (why, _) => wait(push, format!("{} is not ready: {}", old.group, why.unwrap_or_default())),
    }
}

fn flip_back(push: Push, step: Step, seen: &Seen<'_>) -> Move {
    let attempts = push.attempts;
    let push = push.into_phase(Phase::BackFlip, seen.now, "flipping back");
    Move::act(Push { attempts, ..push }, step, Right::Undo)
}

/// The new group keeps serving (invariant I8).
pub(crate) fn stuck(push: Push, why: &str, now: Timestamp) -> Push {
    let note = format!(
        "could not go back: {why}; {} keeps serving. `troop rollback {}` tries again",
        push.group(),
        push.cluster
    );
    push.into_phase(Phase::Stuck, now, note)
}

/// What must keep serving through a step (invariant I1): the number serving when the push began, less what recorded
/// kills took and less what died on its own.
fn floor(push: &Push, seen: &Seen<'_>) -> u32 {
    let Ok(inventory) = seen.inventory else { return push.floor };
    let kills = |group: &GroupName| {
        u32::try_from(seen.open_acts.iter().filter(|act| act.group == *group).count()).unwrap_or(u32::MAX)
    };
    match push.phase {
        // The traffic is with the new group, and only recorded kills excuse it.
        Phase::Disable | Phase::Soak { .. } | Phase::Watch { .. } | Phase::Destroy => {
            push.floor.saturating_sub(kills(push.group()))
        }
        Phase::Create
        | Phase::Ready { .. }
        | Phase::Flip
        | Phase::BackEnable
        | Phase::BackReady { .. }
        | Phase::BackFlip
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Keep { .. }
        | Phase::Reap
        | Phase::Stuck
        | Phase::Ended => {
            let serving = inventory.serving(&push.cluster).map_or(0, |group| script::serving(group, seen));
            push.floor.min(serving)
        }
    }
}
