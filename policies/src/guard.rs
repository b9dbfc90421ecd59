//! The capacity guard: the one floor that monkeys and pushes both ask.
//!
//! Serving is counted from the world (invariant I1): in service, healthy by a fresh verdict of the balancer where the
//! group has targets, UP in the registry where the image requires it. What is being ended counts as gone already.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::ids::{InstanceId, ZoneName};
use crate::inventory::{Group, Instance, Inventory, Lifecycle};
use crate::names::GroupName;
use crate::registry_view::Status;
use crate::situation::OpenAct;
use crate::spared::Spared;
use crate::step::Step;

/// How far the numbers of a group's members in its zones may differ before it is uneven.
const MAX_ZONE_DIFFERENCE: usize = 1;
/// After a launch failed, monkeys stay away for this long: the next replacement may fail too.
const FAILED_LAUNCH_REST_MINUTES: i64 = 60;

/// Whether one instance serves, and if not, the first reason.
pub fn serves(group: &Group, instance: &Instance, status: Option<Status>, now: Timestamp) -> Result<(), String> {
    if instance.lifecycle != Lifecycle::InService {
        return Err(format!("{} is {}", instance.id, instance.lifecycle.as_str()));
    }
    if group.has_targets && !crate::sabotaged!("health") {
        match &instance.target {
            None => return Err(format!("{} has no health verdict yet", instance.id)),
            Some(target) if !target.healthy => {
                return Err(format!(
                    "{} is unhealthy: {}",
                    instance.id,
                    target.reason.as_deref().unwrap_or("no reason given")
                ));
            }
            Some(target) if !target.is_good(now) => {
                return Err(format!("the health verdict on {} is too old", instance.id));
            }
            Some(_) => {}
        }
    }
    if group.registry_required && status != Some(Status::Up) && !crate::sabotaged!("registry") {
        let seen = status.map_or("not registered", Status::as_str);
        return Err(format!("{} is {seen} in the registry, not UP", instance.id));
    }
    Ok(())
}

/// The instances of a group that serve now.
pub fn serving<'a>(
    group: &'a Group,
    statuses: &BTreeMap<InstanceId, Status>,
    now: Timestamp,
) -> BTreeMap<&'a InstanceId, &'a Instance> {
    let serves = |i: &Instance| serves(group, i, statuses.get(&i.id).copied(), now).is_ok();
    group.members.iter().filter(|(_, i)| serves(i)).collect()
}

/// How many instances of a group serve and are hurt by no open act: one that is being ended is as good as gone, and one that is
/// made slow serves nobody well.
pub fn unhurt(group: &Group, statuses: &BTreeMap<InstanceId, Status>, open: &[OpenAct], now: Timestamp) -> u32 {
    let hurt = hurt(open);
    count(serving(group, statuses, now).into_keys().filter(|id| !hurt.contains(id)).count())
}

/// Whom these acts hurt.
pub fn hurt(open: &[OpenAct]) -> BTreeSet<&InstanceId> {
    open.iter().map(|act| &act.instance).collect()
}

/// Whether a group is whole: as many members as desired, every one of them serving.
///
/// # Errors
/// What is missing, for people. The same rule decides whether a kill has healed.
pub fn whole(group: &Group, statuses: &BTreeMap<InstanceId, Status>, now: Timestamp) -> Result<(), String> {
    let desired = usize::try_from(group.size.desired).unwrap_or(usize::MAX);
    if desired == 0 {
        return Err("its desired size is 0".to_owned());
    }
    for instance in group.members.values() {
        serves(group, instance, statuses.get(&instance.id).copied(), now)?;
    }
    if group.members.len() != desired {
        return Err(format!("{} of {desired} members", group.members.len()));
    }
    Ok(())
}

/// The gate "group": whole, even over its zones, not held by the cloud, no launch failed within the hour.
///
/// # Errors
/// [`Spared::NotWhole`], [`Spared::Uneven`], [`Spared::HeldByCloud`] or [`Spared::FailedLaunch`].
pub fn sound(group: &Group, statuses: &BTreeMap<InstanceId, Status>, now: Timestamp) -> Result<(), Spared> {
    let whole = if crate::sabotaged!("whole") { Ok(()) } else { whole(group, statuses, now) };
    whole.map_err(|why| Spared::NotWhole { group: group.name.clone(), why })?;
    let mut zones: BTreeMap<&ZoneName, usize> = group.zones.iter().map(|z| (z, 0)).collect();
    for instance in group.members.values() {
        *zones.entry(&instance.zone).or_default() += 1;
    }
    let (least, most) = (zones.values().min().copied().unwrap_or(0), zones.values().max().copied().unwrap_or(0));
    if most - least > MAX_ZONE_DIFFERENCE && !crate::sabotaged!("uneven") {
        let spread = zones.iter().map(|(z, n)| format!("{z} {n}")).collect::<Vec<_>>().join(", ");
        return Err(Spared::Uneven { group: group.name.clone(), spread });
    }
    if let Some(why) = &group.hold {
        return Err(Spared::HeldByCloud { group: group.name.clone(), why: why.clone() });
    }
    if let Some(failed) = group.last_failed_launch {
        let minutes = now.as_second().saturating_sub(failed.as_second()) / 60;
        if minutes < FAILED_LAUNCH_REST_MINUTES && !crate::sabotaged!("failed_launch") {
            return Err(Spared::FailedLaunch { group: group.name.clone(), minutes });
        }
    }
    Ok(())
}

/// The gate "floor": whether one more instance may be taken. Returns how many would keep serving.
///
/// # Errors
/// [`Spared::AtFloor`].
pub fn floor(
    group: &Group,
    statuses: &BTreeMap<InstanceId, Status>,
    open: &[OpenAct],
    floor: u32,
    now: Timestamp,
) -> Result<u32, Spared> {
    let have = count(serving(group, statuses, now).len());
    let unhurt = unhurt(group, statuses, open, now);
    let (lost, left) = (have.saturating_sub(unhurt), unhurt.saturating_sub(1));
    // The last serving instance is never taken, whatever floor is asked for.
    if have == 0 || (left < floor.max(1) && !crate::sabotaged!("floor")) {
        return Err(Spared::AtFloor { group: group.name.clone(), serving: have, open: lost, floor });
    }
    Ok(left)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Why a step of a push is not safe to take now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    #[error("`{group}` does not exist")]
    NoGroup { group: GroupName },
    #[error("`{group}` is in rotation: traffic would have nowhere to go")]
    InRotation { group: GroupName },
    #[error("`{group}` is the last enabled group of its cluster")]
    LastEnabled { group: GroupName },
    #[error("`{group}` serves with {serving}, and {floor} must be kept")]
    BelowFloor { group: GroupName, serving: u32, floor: u32 },
    #[error("`{group}` is not disabled")]
    StillEnabled { group: GroupName },
}

/// Whether a step of a push keeps the floor and the last serving group (invariants I1 and I2).
///
/// `floor` is the number that served when the push began, less what died on its own or by a recorded kill. Whom an open act hurts
/// does not serve.
///
/// # Errors
/// [`Unsafe`] naming the group and the numbers.
pub fn push_step(
    inventory: &Inventory,
    statuses: &BTreeMap<InstanceId, Status>,
    open: &[OpenAct],
    step: &Step,
    floor: u32,
    now: Timestamp,
) -> Result<(), Unsafe> {
    let name = step.group();
    let group = || inventory.groups.get(name).ok_or_else(|| Unsafe::NoGroup { group: name.clone() });
    let others_enabled = || {
        crate::sabotaged!("last_enabled")
            || inventory.groups_of(name.cluster()).iter().any(|g| g.name != *name && g.enabled && !g.members.is_empty())
    };
    let keeps = |group: &Group, left: u32| {
        if left < floor { Err(Unsafe::BelowFloor { group: group.name.clone(), serving: left, floor }) } else { Ok(()) }
    };
    match step {
        Step::CreateGroup { .. } | Step::Enable { .. } | Step::CancelEntry { .. } => Ok(()),
        Step::OverrideGroup { out_of_service: false, .. } => Ok(()),
        Step::Flip { .. } => {
            let group = group()?;
            keeps(group, unhurt(group, statuses, open, now))
        }
        Step::OverrideGroup { out_of_service: true, .. } | Step::Disable { .. } => {
            let Ok(group) = group() else { return Ok(()) };
            if group.in_rotation {
                return Err(Unsafe::InRotation { group: name.clone() });
            }
            if group.enabled && !others_enabled() {
                return Err(Unsafe::LastEnabled { group: name.clone() });
            }
            if let Ok(serving_group) = inventory.serving(name.cluster()) {
                keeps(serving_group, unhurt(serving_group, statuses, open, now))?;
            }
            Ok(())
        }
        Step::Resize { size, .. } => {
            let group = group()?;
            let serves_now = inventory.serving(name.cluster()).is_ok_and(|g| g.name == *name);
            if serves_now && size.desired < group.size.desired { keeps(group, size.desired) } else { Ok(()) }
        }
        Step::Destroy { .. } => {
            let Ok(group) = group() else { return Ok(()) };
            if group.in_rotation {
                return Err(Unsafe::InRotation { group: name.clone() });
            }
            if group.enabled && !group.members.is_empty() {
                return Err(Unsafe::StillEnabled { group: name.clone() });
            }
            Ok(())
        }
        Step::Terminate { .. } | Step::Fault { .. } => {
            let group = group()?;
            keeps(group, unhurt(group, statuses, open, now).saturating_sub(1))
        }
    }
}

#[cfg(test)]
mod tests;
