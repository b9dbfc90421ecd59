//! The end of a group: its instances, then what was made for it and for nothing else.

use aws_sdk_autoscaling::types::AutoScalingGroup;
use jiff::Timestamp;
use troop_policies::GroupName;

use super::{Ended, Place, Stop, another_serves, settings, write_tag};
use crate::aws::balancing::{self, Route};
use crate::aws::calls::Call;
use crate::aws::fault::{Fault, Kind};
use crate::aws::images::template_of;
use crate::aws::inventory::Snapshot;
use crate::aws::names::RealName;
use crate::aws::wire::{Again, Wire};
use crate::aws::{groups, tags};

pub(super) async fn destroy(place: &Place, name: &GroupName) -> Ended {
    let snapshot = place.read().await.map_err(Stop::unseen)?;
    let no = |why: String| Err(Stop::Refused(why));
    // One that was being destroyed when somebody stopped is destroyed again.
    let (Some(group), Some(shown)) = (snapshot.groups.get(name), snapshot.inventory.groups.get(name)) else {
        return no(format!("there is no group `{name}`"));
    };
    settings::may_be_emptied(&snapshot, name, "destroyed")?;
    if shown.enabled && !shown.members.is_empty() {
        return no(format!("`{name}` is enabled and has instances; disable it first"));
    }
    // Disabled between the group's enabling and now, it could be all that its cluster has.
    if !shown.members.is_empty() && !another_serves(&snapshot, name) {
        return no(format!("no other enabled group of `{name}`'s cluster serves; it must not be destroyed"));
    }
    if let Some(protection) = group.deletion_protection().filter(|protection| protection.as_str() != "none") {
        return no(format!("`{name}` has the deletion protection `{protection}`"));
    }
    if let Some(until) = drains_until(groups::tag(group, tags::DISABLED))
        && place.now() < until
    {
        return no(format!("`{name}` drains until {until}"));
    }

    let (wire, real) = (&place.wire, RealName::of(group));
    write_tag(place, name, tags::DESTROYING, &place.now().to_string()).await.map_err(Stop::first_change)?;
    let ask = || {
        let request = wire.scaling.delete_auto_scaling_group().auto_scaling_group_name(real.as_str());
        // Its members go with it. Without force, AWS refuses as long as one of them is there.
        request.force_delete(true).send()
    };
    match wire.change(Call::DeleteAutoScalingGroup, Again::Harmless, ask).await {
        Ok(_) => {}
        // Asked a second time after the answer was lost.
        Err(fault) if fault.kind == Kind::NotFound => {}
        Err(fault) => return Err(Stop::half_way("it was marked as being destroyed", fault)),
    }
    let mut left = Vec::new();
    if let Err(fault) = drop_target_group(place, &snapshot, name).await {
        left.push(format!("its target group: {fault}"));
    }
    if let Err(fault) = drop_version(wire, group).await {
        left.push(format!("its launch template's version: {fault}"));
    }
    let left = if left.is_empty() { String::new() } else { format!("; left behind, {}", left.join("; ")) };
    Ok(format!("`{name}` is being destroyed{left}"))
}

/// When a group's drain is over, by its tag.
fn drains_until(tag: Option<&str>) -> Option<Timestamp> {
    let (since, seconds) = tag?.split_once(' ')?;
    let since: Timestamp = since.parse().ok()?;
    since.checked_add(jiff::SignedDuration::from_secs(seconds.parse().ok()?)).ok()
}

/// The ARN of the target group that was made for the group, and the routes that name it.
pub(super) fn own_target_group<'a>(
    place: &Place,
    snapshot: &'a Snapshot,
    name: &GroupName,
) -> Option<(&'a str, Vec<&'a Route>)> {
    let real = RealName::of(snapshot.groups.get(name)?);
    let own = tags::target_group_name(&place.account, &place.wire.region, &real);
    let all = snapshot.balancing.target_groups.values();
    let mut named = all.filter(|group| group.target_group_name() == Some(own.as_str()));
    let arn = named.find_map(|group| group.target_group_arn())?;
    let names = |route: &&Route| balancing::weights(&route.actions).iter().any(|(other, _)| *other == arn);
    Some((arn, snapshot.balancing.routes.iter().filter(names).collect()))
}

/// Takes the group's own target group out of its route, and deletes it.
async fn drop_target_group(place: &Place, snapshot: &Snapshot, name: &GroupName) -> Result<(), Fault> {
    let wire = &place.wire;
    let Some((arn, routes)) = own_target_group(place, snapshot, name) else { return Ok(()) };
    for route in routes {
        // As it is now: nothing compares before it sets.
        let actions = balancing::reread(wire, &route.id).await?;
        let serves = balancing::weights(&actions).iter().any(|(other, weight)| *other == arn && *weight > 0);
        let Some(without) = balancing::without(&actions, arn).filter(|_| !serves) else {
            // A route must lead somewhere.
            return Err(Fault::odd(Call::ModifyRule, "another target group in the route"));
        };
        balancing::write(wire, &route.id, without).await?;
    }
    let ask = || wire.balancing.delete_target_group().target_group_arn(arn).send();
    match wire.change(Call::DeleteTargetGroup, Again::Harmless, ask).await {
        Err(fault) if fault.kind != Kind::NotFound => Err(fault),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The intent by which the group was made, and the launch template with the version that it launches from.
pub(super) fn own_version(group: &AutoScalingGroup) -> Option<(&str, &str, &str)> {
    let from = template_of(group)?;
    Some((groups::tag(group, tags::INTENT)?, from.launch_template_id()?, from.version()?))
}

/// Deletes the version of the launch template that was made for the group.
async fn drop_version(wire: &Wire, group: &AutoScalingGroup) -> Result<(), Fault> {
    let Some((intent, template, version)) = own_version(group) else { return Ok(()) };
    let ask = || wire.ec2.describe_launch_template_versions().launch_template_id(template).versions(version).send();
    let read = wire.read(Call::DescribeLaunchTemplateVersions, ask).await?;
    // The push's own, and not what somebody made the template's default since.
    let ours = read
        .launch_template_versions()
        .first()
        .is_some_and(|found| found.version_description() == Some(intent) && !found.default_version().unwrap_or(true));
    if !ours {
        return Ok(());
    }
    let ask = || wire.ec2.delete_launch_template_versions().launch_template_id(template).versions(version).send();
    wire.change(Call::DeleteLaunchTemplateVersions, Again::Harmless, ask).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_ends_when_its_tag_says() {
        let until = drains_until(Some("2026-11-24T10:30:00Z 90"));
        assert_eq!(until, Some("2026-11-24T10:31:30Z".parse().unwrap()));
        assert_eq!((drains_until(None), drains_until(Some("by hand"))), (None, None));
    }
}
