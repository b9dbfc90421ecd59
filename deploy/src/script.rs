//! The steps of each phase, in order. What `--plan` prints is made by [`planned`] from the same lists as what runs.

use std::fmt;
use std::time::Duration;

use troop_policies::inventory::{Group, Inventory};
use troop_policies::step::{Size, Step};
use troop_policies::{GroupName, guard};

use crate::push::{Phase, Push};

/// One thing a phase does. Which step that is, if any is needed at all, depends on what is seen at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Hold the old group at its size, so that it can take the traffic back at any moment (invariant I6).
    PinOld,
    CreateNew,
    GrowNew,
    OverrideOld,
    DisableOld,
    DestroyOld,
    OldIsGone,
    /// A destroyed group's name may come again; its override must not wait for it.
    ForgetOld,
    /// Bring the old group's capacity back before traffic comes back to it (invariant I7).
    RestoreOld,
    DropOverrideOld,
    EnableOld,
    OverrideNew,
    DisableNew,
    UnpinOld,
    DestroyNew,
    NewIsGone,
    ForgetNew,
}

/// What an action needs now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Need {
    Step(Step),
    /// It is so already.
    Nothing,
    /// It has to wait, for this.
    Wait(String),
    /// It can never be done, for this.
    Never(String),
}

/// The actions of a phase. Phases that wait or judge have none; a flip is asked for by the checks before it.
pub(crate) fn actions(phase: Phase) -> &'static [Action] {
    match phase {
        // The name first: where somebody else has taken it, nothing is to be undone.
        Phase::Create => &[Action::CreateNew, Action::PinOld, Action::GrowNew],
        // Its clients first: a registry's readers take a while to notice.
        Phase::Disable => &[Action::OverrideOld, Action::DisableOld],
        Phase::Destroy => {
            &[Action::OverrideOld, Action::DisableOld, Action::DestroyOld, Action::OldIsGone, Action::ForgetOld]
        }
        // Enable before disable, in both directions (invariant I3).
        Phase::BackEnable if troop_policies::sabotaged!("enable_first") => {
            &[Action::RestoreOld, Action::DropOverrideOld]
        }
        Phase::BackEnable => &[Action::RestoreOld, Action::DropOverrideOld, Action::EnableOld],
        Phase::BackDisable => &[Action::OverrideNew, Action::DisableNew, Action::UnpinOld],
        Phase::Cancel => &[Action::OverrideNew, Action::DisableNew, Action::UnpinOld],
        Phase::Reap => {
            &[Action::OverrideNew, Action::DisableNew, Action::DestroyNew, Action::NewIsGone, Action::ForgetNew]
        }
        Phase::Ready { .. }
        | Phase::Flip
        | Phase::Soak { .. }
        | Phase::Watch { .. }
        | Phase::BackReady { .. }
        | Phase::BackFlip
        | Phase::Keep { .. }
        | Phase::Stuck
        | Phase::Ended => &[],
    }
}

/// What `action` needs, as the world is seen now.
pub(crate) fn need(action: Action, push: &Push, inventory: &Inventory) -> Need {
    let new = push.group();
    let new_seen = inventory.groups.get(new);
    let old = push.previous_group();
    let old_seen = old.and_then(|name| inventory.groups.get(name));
    match action {
        Action::PinOld => old_seen.and_then(|old| pin(old, None)).map_or(Need::Nothing, Need::Step),
        Action::CreateNew => match new_seen {
            None => Need::Step(Step::CreateGroup { group: push.new.clone() }),
            // Asked only until this push has made it, so this one is somebody else's (invariant I13).
            Some(group) => Need::Never(format!("somebody else has made {} since", group.name)),
        },
        Action::GrowNew => match new_seen {
            Some(group) if group.size.desired >= push.size => Need::Nothing,
            Some(_) | None => Need::Step(Step::Resize { group: new.clone(), size: new_size(push) }),
        },
        Action::OverrideOld => override_out(old_seen, inventory),
        Action::OverrideNew => override_out(new_seen, inventory),
        Action::DisableOld => disable(old_seen, inventory, push),
        Action::DisableNew => disable(new_seen, inventory, push),
        Action::DestroyOld => destroy(old_seen, inventory, push),
        Action::DestroyNew => destroy(new_seen, inventory, push),
        Action::OldIsGone => gone(old_seen),
        Action::NewIsGone => gone(new_seen),
        Action::ForgetOld => old.map_or(Need::Nothing, |name| drop_override(name.clone())),
        Action::ForgetNew => drop_override(new.clone()),
        Action::RestoreOld => match (old, old_seen) {
            (Some(_), Some(group)) => {
                let wanted = new_seen.map_or(0, |g| g.size.desired);
                let wanted = wanted.max(push.previous.as_ref().map_or(0, |p| p.size.desired));
                pin(group, Some(wanted)).map_or(Need::Nothing, Need::Step)
            }
            (_, None) | (None, _) => Need::Nothing,
        },
        Action::DropOverrideOld => old.map_or(Need::Nothing, |name| drop_override(name.clone())),
        Action::EnableOld => match old_seen {
            Some(group) if !group.enabled => Need::Step(Step::Enable { group: group.name.clone() }),
            Some(_) | None => Need::Nothing,
        },
        Action::UnpinOld => unpin(push, old_seen),
    }
}

/// The size a new group is grown to: as many as asked for, with the bounds of the group before it.
pub(crate) fn new_size(push: &Push) -> Size {
    let (min, max) = push.previous.as_ref().map_or((push.size, push.size), |p| (p.size.min, p.size.max));
    Size { min: min.min(push.size), desired: push.size, max: max.max(push.size) }
}

/// The step that holds a group at no less than its present size and `at_least`, if it is not held so already. It only
/// ever goes upwards.
pub(crate) fn pin(group: &Group, at_least: Option<u32>) -> Option<Step> {
    let desired = group.size.desired.max(at_least.unwrap_or(0));
    if troop_policies::sabotaged!("pin") {
        return None;
    }
    if group.size.min >= desired && group.size.desired >= desired {
        return None;
    }
    let size = Size { min: desired, desired, max: group.size.max.max(desired) };
    Some(Step::Resize { group: group.name.clone(), size })
}

/// Gives the old group its own bounds back. It keeps what it has grown to: shrinking is not ours to decide.
fn unpin(push: &Push, old: Option<&Group>) -> Need {
    let (Some(previous), Some(group)) = (&push.previous, old) else { return Need::Nothing };
    let desired = group.size.desired;
    let size = Size { min: previous.size.min.min(desired), desired, max: previous.size.max.max(desired) };
    if size == group.size { Need::Nothing } else { Need::Step(Step::Resize { group: group.name.clone(), size }) }
}

fn is_last_enabled(group: &Group, inventory: &Inventory) -> bool {
    !troop_policies::sabotaged!("last_enabled")
        && !inventory
            .groups_of(group.cluster())
            .iter()
            .any(|g| g.name != group.name && g.enabled && !g.members.is_empty())
}

fn override_out(group: Option<&Group>, inventory: &Inventory) -> Need {
    match group {
        // A group that was disabled had its override before that.
        Some(group) if group.enabled && group.registry_required && !is_last_enabled(group, inventory) => {
            Need::Step(Step::OverrideGroup { group: group.name.clone(), out_of_service: true })
        }
        Some(_) | None => Need::Nothing,
    }
}

fn disable(group: Option<&Group>, inventory: &Inventory, push: &Push) -> Need {
    match group {
        // A cluster's first push that failed: it never served, and it is all that its cluster has (invariant I2).
        Some(group) if group.enabled && !is_last_enabled(group, inventory) => {
            Need::Step(Step::Disable { group: group.name.clone(), drain: push.settings.drain })
        }
        Some(_) | None => Need::Nothing,
    }
}

fn destroy(group: Option<&Group>, inventory: &Inventory, push: &Push) -> Need {
    // Mostly it was taken out hours ago; but where that was refused and given up, it was done right before this.
    let drained_at = push.taken_out_at.map(|at| Push::after(at, push.settings.drain));
    let drains = drained_at.filter(|at| inventory.read_at < *at && !troop_policies::sabotaged!("drain"));
    match group {
        None => Need::Nothing,
        Some(group) if group.enabled && is_last_enabled(group, inventory) => Need::Wait(format!(
            "{} is the last enabled group of its cluster: it stays until another one serves",
            group.name
        )),
        Some(group) if drains.is_some() => Need::Wait(format!("{} drains", group.name)),
        Some(group) => Need::Step(Step::Destroy { group: group.name.clone() }),
    }
}

fn gone(group: Option<&Group>) -> Need {
    match group {
        Some(group) => {
            Need::Wait(format!("{} has {} instances that are still ending", group.name, group.members.len()))
        }
        None => Need::Nothing,
    }
}

fn drop_override(group: GroupName) -> Need {
    Need::Step(drop_override_step(group))
}

fn drop_override_step(group: GroupName) -> Step {
    Step::OverrideGroup { group, out_of_service: false }
}

/// What a push is going to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Planned {
    Step(Step),
    /// What it waits for meanwhile, for people.
    Wait(String),
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(step) => step.fmt(f),
            Self::Wait(text) => text.fmt(f),
        }
    }
}

/// The steps of a push that goes well, from the world as it is before it begins (invariant I19).
pub fn planned(push: &Push, inventory: &Inventory) -> Vec<Planned> {
    let mut lines = steps_of(Phase::Create, push, inventory);
    let settings = &push.settings;
    let ready = format!("wait until {} is ready by 7 checks, at most {}", push.group(), span(settings.ready_within));
    lines.push(Planned::Wait(ready));
    lines.push(Planned::Step(flip(push)));
    lines.extend(disable_old(push, inventory));
    let way_back = push.previous_group().map(|old| format!("; {old} stays warm and pinned")).unwrap_or_default();
    lines.push(Planned::Wait(format!(
        "soak for {}, then watch for {}: back if over {} % of at least 50 answers in 10 s are errors{way_back}",
        span(settings.soak),
        span(settings.watch),
        settings.errors_above
    )));
    lines.extend(destroy_old(push));
    lines
}

/// A duration as people say it: `12 h`, `5 min`, `90 s`, `250 ms`.
fn span(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match seconds {
        0 if millis > 0 => format!("{millis} ms"),
        s if s >= 3_600 && s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s >= 120 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

/// The steps of going back, as the world is now.
pub fn planned_back(push: &Push, inventory: &Inventory) -> Vec<Planned> {
    if push.phase.is_before_flip() {
        return steps_of(Phase::Cancel, push, inventory);
    }
    let mut lines = steps_of(Phase::BackEnable, push, inventory);
    if let Some(step) = flip_back(push) {
        lines.push(Planned::Wait(format!("wait until {} is ready", step.group())));
        lines.push(Planned::Step(step));
    }
    let group = push.group().clone();
    if inventory.groups.get(&group).is_some_and(|g| g.registry_required) {
        lines.push(Planned::Step(Step::OverrideGroup { group: group.clone(), out_of_service: true }));
    }
    lines.push(Planned::Step(Step::Disable { group, drain: push.settings.drain }));
    // As the old group will be then, not as it is now.
    let old = push.previous_group().and_then(|old| inventory.groups.get(old)).map(|old| Group {
        size: match need(Action::RestoreOld, push, inventory) {
            Need::Step(Step::Resize { size, .. }) => size,
            Need::Step(_) | Need::Nothing | Need::Wait(_) | Need::Never(_) => old.size,
        },
        ..old.clone()
    });
    if let Need::Step(step) = unpin(push, old.as_ref()) {
        lines.push(Planned::Step(step));
    }
    lines
}

pub(crate) fn flip(push: &Push) -> Step {
    Step::Flip { cluster: push.cluster.clone(), to: push.group().clone() }
}

pub(crate) fn flip_back(push: &Push) -> Option<Step> {
    push.previous_group().map(|to| Step::Flip { cluster: push.cluster.clone(), to: to.clone() })
}

fn steps_of(phase: Phase, push: &Push, inventory: &Inventory) -> Vec<Planned> {
    let step = |action: &Action| match need(*action, push, inventory) {
        Need::Step(step) => Some(Planned::Step(step)),
        Need::Nothing | Need::Wait(_) | Need::Never(_) => None,
    };
    actions(phase).iter().filter_map(step).collect()
}

/// What happens to the old group once it no longer serves.
fn disable_old(push: &Push, inventory: &Inventory) -> Vec<Planned> {
    let Some(old) = push.previous_group().and_then(|name| inventory.groups.get(name)) else { return Vec::new() };
    let out = Step::OverrideGroup { group: old.name.clone(), out_of_service: true };
    let disable = Step::Disable { group: old.name.clone(), drain: push.settings.drain };
    let out = old.registry_required.then_some(out);
    out.into_iter().chain([disable]).map(Planned::Step).collect()
}

fn destroy_old(push: &Push) -> Vec<Planned> {
    let Some(old) = push.previous_group() else { return Vec::new() };
    [Step::Destroy { group: old.clone() }, drop_override_step(old.clone())].map(Planned::Step).into()
}

/// How many instances of a group serve now and are hurt by no open act; none where the registry's word is needed and missing.
pub(crate) fn serving(group: &Group, seen: &crate::machine::Seen<'_>) -> u32 {
    let empty = std::collections::BTreeMap::new();
    let statuses = seen.statuses.unwrap_or(&empty);
    guard::unhurt(group, statuses, seen.open_acts, seen.now)
}
