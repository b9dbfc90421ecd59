//! From an Auto Scaling group as AWS shows it to a group as Troop knows it.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_autoscaling::types::{AutoScalingGroup, Instance as Member};
use aws_sdk_ec2::types::Instance as Ec2Instance;
use jiff::Timestamp;
use troop_policies::inventory::{Group, Instance, TAG_SPARE};
use troop_policies::step::Size;
use troop_policies::{GroupName, ImageId, InstanceId, ZoneName};

use super::balancing::Balancing;
use super::images::Known;
use super::names::RealName;
use super::{raw, tags};

/// Processes without which what is lost is not replaced, or replaced all at once later. (While `AddToLoadBalancer` is
/// suspended new members never get traffic, not even afterwards.)
const NEEDED: [&str; 5] = ["Launch", "Terminate", "ReplaceUnhealthy", "HealthCheck", "AddToLoadBalancer"];

/// What was read beside the group.
pub(crate) struct Context<'a> {
    pub(crate) instances: &'a BTreeMap<String, Ec2Instance>,
    pub(crate) failed_launches: &'a BTreeMap<String, Timestamp>,
    pub(crate) balancing: &'a Balancing,
    pub(crate) in_rotation: &'a BTreeSet<&'a str>,
    pub(crate) templates: &'a BTreeMap<String, ImageId>,
    pub(crate) images: &'a Known,
    pub(crate) protected: &'a BTreeSet<String>,
}

/// Shows a group.
///
/// # Errors
/// What of it cannot be read, for people.
pub(crate) fn show(name: &GroupName, group: &AutoScalingGroup, context: &Context<'_>) -> Result<Group, String> {
    let created_at = group.created_time().ok_or("it has no creation time").map_err(str::to_owned)?;
    let mut members = BTreeMap::new();
    for member in group.instances() {
        let shown = instance(group, member, context)?;
        members.insert(shown.id.clone(), shown);
    }
    let of_members = || {
        let oldest = members.values().min_by_key(|i: &&Instance| (i.launched_at, &i.id))?;
        Some(oldest.image.clone())
    };
    let tagged = || ImageId::new(tag(group, tags::IMAGE)?).ok();
    let real = RealName::of(group);
    let of_template = || context.templates.get(real.as_str()).cloned();
    let image = tagged().or_else(of_members).or_else(of_template);
    let image = image.map_or_else(|| ImageId::new("unknown").map_err(|e| e.to_string()), Ok)?;
    let about = context.images.about(&image).unwrap_or_default();
    let has_targets = !group.target_group_arns().is_empty();
    Ok(Group {
        name: name.clone(),
        created_at: raw::time(created_at)?,
        version: about.appversion,
        size: size(group),
        zones: group.availability_zones().iter().filter_map(|zone| ZoneName::new(zone).ok()).collect(),
        tags: group.tags().iter().filter_map(|t| Some((t.key()?.to_owned(), t.value()?.to_owned()))).collect(),
        enabled: tag(group, tags::DISABLED).is_none() && tag(group, tags::DESTROYING).is_none(),
        has_targets,
        in_rotation: group.target_group_arns().iter().any(|arn| context.in_rotation.contains(arn.as_str())),
        registry_required: about.registry_required,
        last_failed_launch: context.failed_launches.get(real.as_str()).copied(),
        hold: hold(group),
        image,
        members,
    })
}

/// The value of a group's tag.
pub(crate) fn tag<'a>(group: &'a AutoScalingGroup, key: &str) -> Option<&'a str> {
    group.tags().iter().find(|tag| tag.key() == Some(key)).map(|tag| tag.value().unwrap_or_default())
}

pub(crate) fn size(group: &AutoScalingGroup) -> Size {
    Size {
        min: raw::count(group.min_size()),
        desired: raw::count(group.desired_capacity()),
        max: raw::count(group.max_size()),
    }
}

/// The names of the processes that are suspended.
pub(crate) fn suspended(group: &AutoScalingGroup) -> BTreeSet<&str> {
    group.suspended_processes().iter().filter_map(|process| process.process_name()).collect()
}

/// Why AWS would not replace what is lost in the group, or has its own hands in it.
pub(crate) fn hold(group: &AutoScalingGroup) -> Option<String> {
    if let Some(status) = group.status().filter(|status| !status.is_empty()) {
        return Some(format!("its status is `{status}`"));
    }
    let suspended = suspended(group);
    let missing: Vec<&str> = NEEDED.into_iter().filter(|process| suspended.contains(process)).collect();
    if !missing.is_empty() {
        return Some(format!("{} suspended: what dies would not be replaced as usual", missing.join(", ")));
    }
    if !group.load_balancer_names().is_empty() {
        return Some("it hangs on a Classic Load Balancer, whose health Troop does not read".to_owned());
    }
    None
}

fn instance(group: &AutoScalingGroup, member: &Member, context: &Context<'_>) -> Result<Instance, String> {
    let id = member.instance_id().ok_or("a member has no id")?;
    let ec2 = context.instances.get(id);
    let state = ec2.and_then(|instance| instance.state()?.name()).map(|name| name.as_str());
    let lifecycle_state = member.lifecycle_state().map_or("", |state| state.as_str());
    let lifecycle = raw::lifecycle(lifecycle_state, member.health_status().unwrap_or_default(), state);
    let launched = ec2.and_then(|instance| instance.launch_time()).map_or(Ok(Timestamp::UNIX_EPOCH), raw::time)?;
    let zone = member.availability_zone().ok_or("a member has no zone")?;
    let image = ec2.and_then(|instance| instance.image_id()).or(member.image_id()).unwrap_or("unknown");
    let tagged_spare = ec2.is_some_and(|i| i.tags().iter().any(|tag| tag.key() == Some(TAG_SPARE)));
    let target_groups = || group.target_group_arns().iter();
    let target = target_groups().find_map(|arn| context.balancing.health.get(arn)?.get(id).cloned());
    let port = target_groups().find_map(|arn| context.balancing.target_groups.get(arn)?.port());
    Ok(Instance {
        id: InstanceId::new(id).map_err(|e| e.to_string())?,
        zone: ZoneName::new(zone).map_err(|e| e.to_string())?,
        image: ImageId::new(image).map_err(|e| e.to_string())?,
        lifecycle,
        launched_at: launched,
        address: ec2.and_then(|instance| instance.private_ip_address()).and_then(|text| text.parse().ok()),
        port: port.and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        protected: member.protected_from_scale_in().unwrap_or(false) || context.protected.contains(id),
        spare: tagged_spare || tag(group, TAG_SPARE).is_some(),
        target,
    })
}
