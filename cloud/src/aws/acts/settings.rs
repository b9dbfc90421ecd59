//! A group's size, and whether it takes new connections.

use std::time::Duration;

use aws_sdk_autoscaling::types::AutoScalingGroup;
use troop_policies::GroupName;
use troop_policies::step::Size;

use super::{Ended, Place, Stop, another_serves, delete_tag, group, other_enabled, read_group, wait_until, write_tag};
use crate::aws::calls::Call;
use crate::aws::fault::Fault;
use crate::aws::inventory::Snapshot;
use crate::aws::names::RealName;
use crate::aws::wire::Again;
use crate::aws::{groups, raw, tags};

/// Most instances of one group that Troop asks for. A slip of the keyboard ends here.
const INSTANCES_MAX: u32 = 1_000;
/// What could shrink or shift a group that has to be able to take the traffic back. What replaces its dead stays on.
const PAUSED: [&str; 3] = ["AZRebalance", "AlarmNotification", "ScheduledActions"];

pub(super) async fn resize(place: &Place, name: &GroupName, size: Size) -> Ended {
    if !(size.min <= size.desired && size.desired <= size.max) {
        return Err(Stop::Refused(format!("{size} is no size: min, desired and max must not fall")));
    }
    if size.desired > INSTANCES_MAX {
        let asked = size.desired;
        return Err(Stop::Refused(format!("{asked} instances are asked for; {INSTANCES_MAX} are allowed in a group")));
    }
    let snapshot = place.read().await.map_err(Stop::unseen)?;
    let found = group(&snapshot, name)?;
    if size.desired == 0 && groups::size(found).desired > 0 {
        may_be_emptied(&snapshot, name, "emptied")?;
    }
    let (wire, real) = (&place.wire, RealName::of(found));
    let (min, desired, max) = (raw::number(size.min), raw::number(size.desired), raw::number(size.max));
    let ask = || {
        let request = wire.scaling.update_auto_scaling_group().auto_scaling_group_name(real.as_str());
        request.min_size(min).desired_capacity(desired).max_size(max).send()
    };
    wire.change(Call::UpdateAutoScalingGroup, Again::Harmless, ask).await.map_err(Stop::first_change)?;

    // Twice, since one look may be at a copy that has it and the next at one that has not.
    for look in 0..2 {
        if look > 0 {
            tokio::time::sleep(wire.patience.settle).await;
        }
        let has_it = wait_until(place, name, |found| found.is_some_and(|found| groups::size(found) == size)).await;
        if !has_it.map_err(|fault| Stop::half_way("the size was set", fault))? {
            return Err(Stop::Unknown(format!("AWS took {size}, and `{name}` does not show it")));
        }
    }
    // The group has the traffic again, so nothing of ours need hold it any more.
    let in_rotation = snapshot.inventory.groups.get(name).is_some_and(|group| group.in_rotation);
    if in_rotation && groups::tag(found, tags::SUSPENDED).is_some() {
        resume(place, name).await.map_err(|fault| Stop::half_way("the size was set", fault))?;
    }
    Ok(format!("`{name}` has {size}"))
}

pub(super) async fn enable(place: &Place, name: &GroupName) -> Ended {
    let snapshot = place.read().await.map_err(Stop::unseen)?;
    let real = RealName::of(group(&snapshot, name)?);
    delete_tag(&place.wire, &real, tags::DISABLED).await.map_err(Stop::first_change)?;
    let half_way = |fault| Stop::half_way("it was enabled", fault);
    resume(place, name).await.map_err(half_way)?;
    let enabled =
        wait_until(place, name, |found| found.is_some_and(|found| groups::tag(found, tags::DISABLED).is_none()));
    if !enabled.await.map_err(half_way)? {
        return Err(Stop::Unknown(format!("AWS took it, and `{name}` still shows as disabled")));
    }
    Ok(format!("`{name}` is enabled"))
}

pub(super) async fn disable(place: &Place, name: &GroupName, drain: Duration) -> Ended {
    let snapshot = place.read().await.map_err(Stop::unseen)?;
    let found = group(&snapshot, name)?;
    let in_rotation = snapshot.inventory.groups.get(name).is_some_and(|group| group.in_rotation);
    if in_rotation {
        return Err(Stop::Refused(format!("`{name}` is in rotation and must not be disabled")));
    }
    if groups::tag(found, tags::DISABLED).is_some() {
        return Ok(format!("`{name}` was disabled already"));
    }
    let another = other_enabled(&snapshot, name).next().is_some();
    if !another || !found.instances().is_empty() && !another_serves(&snapshot, name) {
        let why = format!("`{name}` is the last enabled group of its cluster and must not be disabled");
        return Err(Stop::Refused(why));
    }
    let value = format!("{} {}", place.now(), drain.as_secs());
    write_tag(place, name, tags::DISABLED, &value).await.map_err(Stop::first_change)?;
    let half_way = |fault| Stop::half_way("it was disabled", fault);
    pause(place, name).await.map_err(half_way)?;
    let disabled =
        wait_until(place, name, |found| found.is_some_and(|found| groups::tag(found, tags::DISABLED).is_some()));
    if !disabled.await.map_err(half_way)? {
        return Err(Stop::Unknown(format!("AWS took it, and `{name}` still shows as enabled")));
    }
    let seconds = drain.as_secs();
    Ok(format!("`{name}` is disabled: no balancer sends to it; what is open has {seconds} s"))
}

/// Whether the group may lose all its instances.
pub(super) fn may_be_emptied(snapshot: &Snapshot, name: &GroupName, what: &str) -> Result<(), Stop> {
    let Some(group) = snapshot.inventory.groups.get(name) else { return Ok(()) };
    if group.in_rotation {
        return Err(Stop::Refused(format!("`{name}` is in rotation and must not be {what}")));
    }
    if group.enabled && !group.members.is_empty() && !another_serves(snapshot, name) {
        let why = format!("`{name}` is the last enabled group of its cluster and must not be {what}");
        return Err(Stop::Refused(why));
    }
    Ok(())
}

/// Suspends what could shrink or shift the group, and writes down first what was not suspended before.
pub(super) async fn pause(place: &Place, name: &GroupName) -> Result<(), Fault> {
    let Some(found) = read_group(place, name).await? else { return Ok(()) };
    let Some((all, missing)) = to_pause(&found) else { return Ok(()) };
    write_tag(place, name, tags::SUSPENDED, &all.join(" ")).await?;
    let (wire, real) = (&place.wire, RealName::of(&found));
    let ask = || {
        let request = wire.scaling.suspend_processes().auto_scaling_group_name(real.as_str());
        request.set_scaling_processes(Some(missing.clone())).send()
    };
    wire.change(Call::SuspendProcesses, Again::Harmless, ask).await.map(|_| ())
}

/// Which processes are noted as suspended by Troop, and which of those still have to be; `None` where none has.
pub(super) fn to_pause(found: &AutoScalingGroup) -> Option<(Vec<&'static str>, Vec<String>)> {
    let suspended = groups::suspended(found);
    let already_ours = ours(found);
    let mut all = already_ours.clone();
    all.extend(PAUSED.into_iter().filter(|process| !suspended.contains(process) && !already_ours.contains(process)));
    let missing: Vec<String> =
        all.iter().filter(|process| !suspended.contains(*process)).map(|process| (*process).to_owned()).collect();
    (!missing.is_empty()).then_some((all, missing))
}

/// Resumes what Troop suspended, and nothing else.
pub(super) async fn resume(place: &Place, name: &GroupName) -> Result<(), Fault> {
    let Some(found) = read_group(place, name).await? else { return Ok(()) };
    if groups::tag(&found, tags::SUSPENDED).is_none() {
        return Ok(());
    }
    let (wire, real) = (&place.wire, RealName::of(&found));
    let ours: Vec<String> = ours(&found).into_iter().map(str::to_owned).collect();
    // An empty list would mean every process there is.
    if !ours.is_empty() {
        let ask = || {
            let request = wire.scaling.resume_processes().auto_scaling_group_name(real.as_str());
            request.set_scaling_processes(Some(ours.clone())).send()
        };
        wire.change(Call::ResumeProcesses, Again::Harmless, ask).await?;
    }
    delete_tag(wire, &real, tags::SUSPENDED).await
}

/// The processes that the group's tag says we suspended, of those that we ever suspend.
pub(super) fn ours(group: &AutoScalingGroup) -> Vec<&'static str> {
    let listed = groups::tag(group, tags::SUSPENDED).unwrap_or_default();
    PAUSED.into_iter().filter(|process| listed.split(' ').any(|word| word == *process)).collect()
}
