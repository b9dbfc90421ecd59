//! Making a group: as the one that serves, with another image; a cluster's first as the configuration says.
//!
//! In this order, so that each thing finds what it needs and AWS checks the targets' health from the first one on: the target
//! group, its place in the route with weight 0, the launch template's version, the group. Until the group itself is asked for,
//! a "no" takes back what came before it.

use std::collections::BTreeSet;

use aws_sdk_autoscaling::types::{AutoScalingGroup, LaunchTemplateSpecification, LifecycleHookSpecification, Tag};
use aws_sdk_ec2::types::{RequestLaunchTemplateData, Subnet};
use aws_sdk_elasticloadbalancingv2::types::{
    Matcher, ProtocolEnum, Tag as BalancingTag, TargetGroup, TargetGroupAttribute, TargetTypeEnum,
};
use troop_policies::ZoneName;
use troop_policies::intent::Intent;
use troop_policies::step::NewGroup;

use super::{Ended, Place, Stop, flip, group_tag, wait_until};
use crate::aws::balancing::{self, Route, RouteId};
use crate::aws::calls::Call;
use crate::aws::config::FirstGroup;
use crate::aws::fault::{Fault, Kind};
use crate::aws::images::{self, template_of};
use crate::aws::inventory::Snapshot;
use crate::aws::names::RealName;
use crate::aws::wire::{Again, Wire};
use crate::aws::{groups, raw, tags};

/// Most tags that AWS takes on a group, less what Troop adds itself over its life.
const TAGS_MAX: usize = 50 - 6;

/// From what the new group is made.
pub(super) enum Model<'a> {
    Group(&'a AutoScalingGroup),
    First(&'a FirstGroup),
}

/// What was made so far, to be taken back.
#[derive(Default)]
struct Made {
    target_group: Option<String>,
    /// The route, and its target groups with weights as they were.
    route: Option<RouteId>,
    version: Option<(String, String)>,
}

pub(super) async fn create(place: &Place, intent: &Intent, new: &NewGroup) -> Ended {
    let wire = &place.wire;
    let name = &new.name;
    let no = |why: String| Err(Stop::Refused(why));
    let looking = futures::try_join!(place.read(), images::one(wire, &new.image));
    let (snapshot, image) = looking.map_err(Stop::unseen)?;
    if snapshot.groups.contains_key(name) {
        return no(format!("there is a group `{name}` already"));
    }
    if let Some(why) = snapshot.names.doubt(name.cluster()) {
        return no(format!("it is not known what `{}` has: {why}", name.cluster()));
    }
    if image.is_none() {
        return no(format!("there is no image `{}` in `{}`", new.image, wire.region));
    }
    if new.zones.is_empty() {
        return no(format!("`{name}` is given no zone"));
    }
    if let Some(zone) = new.zones.iter().find(|zone| !snapshot.inventory.zones.contains(*zone)) {
        return no(format!("there is no zone `{zone}` in `{}`", wire.region));
    }
    if new.tags.len() > TAGS_MAX {
        return no(format!("`{name}` is given {} tags; {TAGS_MAX} are allowed", new.tags.len()));
    }
    let model = model(&snapshot, place, new)?;
    let subnets = subnets(wire, &model, &new.zones).await?;
    let hooks = hooks(wire, &model).await.map_err(Stop::unseen)?;
    let route = if new.has_targets { Some(route(place, &snapshot, new).await?) } else { None };

    let mut made = Made::default();
    match make(place, intent, new, &model, &subnets, hooks, route, &mut made).await {
        Ok(()) => {}
        Err(fault) if fault.may_have_happened() => return Err(Stop::Unknown(fault.to_string())),
        Err(fault) => {
            take_back(wire, made).await.map_err(|f| Stop::half_way(&format!("AWS said no ({fault})"), f))?;
            return Err(Stop::Refused(fault.to_string()));
        }
    }
    let is_ours = |found: Option<&AutoScalingGroup>| {
        found.is_some_and(|found| groups::tag(found, tags::INTENT) == Some(intent.id.as_str()))
    };
    let seen = wait_until(place, name, is_ours).await.map_err(|fault| Stop::half_way("the group was made", fault))?;
    if seen {
        Ok(format!("`{name}` is created"))
    } else {
        Err(Stop::Unknown(format!("AWS took it, and does not show `{name}`")))
    }
}

/// The group that serves the cluster, else its newest, else the configuration.
pub(super) fn model<'a>(snapshot: &'a Snapshot, place: &'a Place, new: &NewGroup) -> Result<Model<'a>, Stop> {
    let cluster = new.name.cluster();
    let serving = snapshot.inventory.serving(cluster).ok();
    let newest = snapshot.inventory.groups_of(cluster).into_iter().rfind(|group| group.has_targets == new.has_targets);
    if let Some(group) = serving.or(newest) {
        if let Some(why) = &group.hold {
            return Err(Stop::Refused(format!("AWS holds `{}`, after which the new group is made: {why}", group.name)));
        }
        let Some(raw) = snapshot.groups.get(&group.name) else {
            return Err(Stop::Refused(format!("`{}` is gone", group.name)));
        };
        return Ok(Model::Group(raw));
    }
    let first = place.config.first.as_ref().ok_or_else(|| {
        Stop::Refused(format!("`{cluster}` has no group yet, and the configuration of this region has no `first`"))
    })?;
    Ok(Model::First(first))
}

/// The model's subnets that are in the zones asked for.
async fn subnets(wire: &Wire, model: &Model<'_>, zones: &BTreeSet<ZoneName>) -> Result<Vec<Subnet>, Stop> {
    let ids: Vec<String> = match model {
        Model::Group(group) => {
            let listed = group.vpc_zone_identifier().unwrap_or_default();
            listed.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
        }
        Model::First(first) => first.subnets.clone(),
    };
    let ask = || wire.ec2.describe_subnets().set_subnet_ids(Some(ids.clone())).send();
    let answer = wire.read(Call::DescribeSubnets, ask).await.map_err(Stop::unseen)?;
    let wanted = |subnet: &&Subnet| {
        let zone = subnet.availability_zone().and_then(|zone| ZoneName::new(zone).ok());
        zone.is_some_and(|zone| zones.contains(&zone))
    };
    let found: Vec<Subnet> = answer.subnets().iter().filter(wanted).cloned().collect();
    for zone in zones {
        if !found.iter().any(|subnet| subnet.availability_zone() == Some(zone.as_str())) {
            return Err(Stop::Refused(format!("none of the subnets {} is in the zone `{zone}`", ids.join(", "))));
        }
    }
    Ok(found)
}

async fn hooks(wire: &Wire, model: &Model<'_>) -> Result<Vec<LifecycleHookSpecification>, Fault> {
    let Model::Group(group) = model else { return Ok(Vec::new()) };
    let name = group.auto_scaling_group_name().unwrap_or_default();
    let ask = || wire.scaling.describe_lifecycle_hooks().auto_scaling_group_name(name).send();
    let answer = wire.read(Call::DescribeLifecycleHooks, ask).await?;
    let mut hooks = Vec::new();
    for hook in answer.lifecycle_hooks() {
        let copied = LifecycleHookSpecification::builder()
            .set_lifecycle_hook_name(hook.lifecycle_hook_name().map(str::to_owned))
            .set_lifecycle_transition(hook.lifecycle_transition().map(str::to_owned))
            .set_notification_metadata(hook.notification_metadata().map(str::to_owned))
            .set_notification_target_arn(hook.notification_target_arn().map(str::to_owned))
            .set_role_arn(hook.role_arn().map(str::to_owned))
            .set_heartbeat_timeout(hook.heartbeat_timeout())
            .set_default_result(hook.default_result().map(str::to_owned))
            .build();
        hooks.push(copied);
    }
    Ok(hooks)
}

/// The route that leads to the cluster: that of its other groups, or the one whose tag names the cluster.
pub(super) async fn route(place: &Place, snapshot: &Snapshot, new: &NewGroup) -> Result<Route, Stop> {
    let cluster = new.name.cluster();
    let route = match flip::led_by(snapshot, cluster)? {
        Some(one) => Some(one.clone()),
        None => {
            let found = balancing::tagged_route(&place.wire, &snapshot.balancing.routes, cluster.as_str()).await;
            found.map_err(Stop::unseen)?
        }
    };
    let route = route.ok_or_else(|| flip::led_by_none(cluster))?;
    let count = balancing::weights(&route.actions).len();
    if count >= balancing::TARGET_GROUPS_MAX {
        return Err(Stop::Refused(format!(
            "{} leads to {count} target groups already, the most AWS takes",
            route.id.arn()
        )));
    }
    Ok(route)
}

#[expect(clippy::too_many_arguments, reason = "one act, whose parts were read one by one")]
async fn make(
    place: &Place,
    intent: &Intent,
    new: &NewGroup,
    model: &Model<'_>,
    subnets: &[Subnet],
    hooks: Vec<LifecycleHookSpecification>,
    route: Option<Route>,
    made: &mut Made,
) -> Result<(), Fault> {
    let (wire, real) = (&place.wire, RealName::same(&new.name));
    if let Some(route) = route {
        let arn = target_group(place, intent, new, model, subnets, made).await?;
        let weights = balancing::with_waiting(&balancing::weights(&route.actions), &arn);
        balancing::write(wire, &route.id, balancing::with_weights(&route.actions, &weights)).await?;
        made.route = Some(route.id);
    }
    let (template, version) = version(wire, intent, new, model).await?;
    made.version = Some((template.clone(), version.clone()));
    let from = LaunchTemplateSpecification::builder().launch_template_id(&template).version(&version).build();
    let group = || {
        let request = wire
            .scaling
            .create_auto_scaling_group()
            .auto_scaling_group_name(real.as_str())
            .min_size(0)
            .max_size(0)
            .desired_capacity(0)
            .vpc_zone_identifier(subnets.iter().filter_map(Subnet::subnet_id).collect::<Vec<_>>().join(","))
            .set_target_group_arns(made.target_group.clone().map(|arn| vec![arn]))
            .set_tags(Some(group_tags(intent, new)))
            .set_lifecycle_hook_specification_list((!hooks.is_empty()).then(|| hooks.clone()));
        match model {
            Model::First(first) => request
                .launch_template(from.clone())
                .health_check_type(if new.has_targets { "ELB" } else { "EC2" })
                .health_check_grace_period(raw::number(first.grace_s)),
            Model::Group(old) => {
                let mixed = old.mixed_instances_policy().cloned().map(|mut policy| {
                    if let Some(template) = &mut policy.launch_template {
                        template.launch_template_specification = Some(from.clone());
                    }
                    policy
                });
                let request = match mixed {
                    Some(policy) => request.mixed_instances_policy(policy),
                    None => request.launch_template(from.clone()),
                };
                let policies = Some(old.termination_policies().to_vec()).filter(|policies| !policies.is_empty());
                request
                    .set_health_check_type(old.health_check_type().map(str::to_owned))
                    .set_health_check_grace_period(old.health_check_grace_period())
                    .set_default_cooldown(old.default_cooldown())
                    .set_default_instance_warmup(old.default_instance_warmup())
                    .set_max_instance_lifetime(old.max_instance_lifetime())
                    .set_capacity_rebalance(old.capacity_rebalance())
                    .set_service_linked_role_arn(old.service_linked_role_arn().map(str::to_owned))
                    .set_termination_policies(policies)
            }
        }
        .send()
    };
    wire.change(Call::CreateAutoScalingGroup, Again::Never, group).await.map(|_| ())
}

fn group_tags(intent: &Intent, new: &NewGroup) -> Vec<Tag> {
    let real = RealName::same(&new.name);
    let asked = new.tags.iter().filter(|(key, _)| !key.starts_with("aws:") && !tags::OWN.contains(&key.as_str()));
    let mut all: Vec<Tag> = asked.map(|(key, value)| group_tag(&real, key, value, true)).collect();
    all.push(group_tag(&real, tags::IMAGE, new.image.as_str(), false));
    all.push(group_tag(&real, tags::INTENT, intent.id.as_str(), false));
    all
}

/// Makes the group's own target group, with the settings of the model's.
async fn target_group(
    place: &Place,
    intent: &Intent,
    new: &NewGroup,
    model: &Model<'_>,
    subnets: &[Subnet],
    made: &mut Made,
) -> Result<String, Fault> {
    let wire = &place.wire;
    let like = match model {
        Model::Group(group) => model_target_group(wire, group).await?,
        Model::First(first) => TargetGroup::builder()
            .protocol(ProtocolEnum::Http)
            .port(i32::from(first.port))
            .target_type(TargetTypeEnum::Instance)
            .health_check_path(&first.health_path)
            .health_check_interval_seconds(i32::from(first.health_every_s))
            .health_check_timeout_seconds(i32::from(first.health_every_s / 2).clamp(2, 120))
            .healthy_threshold_count(2)
            .unhealthy_threshold_count(2)
            .matcher(Matcher::builder().http_code("200").build())
            .set_vpc_id(subnets.first().and_then(Subnet::vpc_id).map(str::to_owned))
            .build(),
    };
    let name = tags::target_group_name(&place.account, &wire.region, &RealName::same(&new.name));
    let tag = |key: &str, value: &str| BalancingTag::builder().key(key).value(value).build();
    let call = Call::CreateTargetGroup;
    let ask = || {
        wire.balancing
            .create_target_group()
            .name(&name)
            .set_protocol(like.protocol().cloned())
            .set_protocol_version(like.protocol_version().map(str::to_owned))
            .set_port(like.port())
            .set_vpc_id(like.vpc_id().map(str::to_owned))
            .set_target_type(like.target_type().cloned())
            .set_ip_address_type(like.ip_address_type().cloned())
            .set_health_check_protocol(like.health_check_protocol().cloned())
            .set_health_check_port(like.health_check_port().map(str::to_owned))
            .set_health_check_enabled(like.health_check_enabled())
            .set_health_check_path(like.health_check_path().map(str::to_owned))
            .set_health_check_interval_seconds(like.health_check_interval_seconds())
            .set_health_check_timeout_seconds(like.health_check_timeout_seconds())
            .set_healthy_threshold_count(like.healthy_threshold_count())
            .set_unhealthy_threshold_count(like.unhealthy_threshold_count())
            .set_matcher(like.matcher().cloned())
            .tags(tag(tags::GROUP, new.name.as_str()))
            .tags(tag(tags::INTENT, intent.id.as_str()))
            .send()
    };
    // The name is the group's alone: asking twice is harmless, and one that is there was made for this group before.
    let arn = match wire.change(call, Again::Harmless, ask).await {
        Ok(answer) => answer.target_groups().first().and_then(|group| group.target_group_arn()).map(str::to_owned),
        Err(fault) if fault.kind == Kind::Exists => {
            let ask = || wire.balancing.describe_target_groups().names(&name).send();
            let answer = wire.read(Call::DescribeTargetGroups, ask).await?;
            answer.target_groups().first().and_then(|group| group.target_group_arn()).map(str::to_owned)
        }
        Err(fault) => return Err(fault),
    };
    let arn = arn.ok_or_else(|| Fault::odd(call, "the target group's ARN"))?;
    made.target_group = Some(arn.clone());
    if let Model::Group(group) = model {
        copy_attributes(wire, group, &arn).await?;
    }
    Ok(arn)
}

async fn model_target_group(wire: &Wire, group: &AutoScalingGroup) -> Result<TargetGroup, Fault> {
    let call = Call::DescribeTargetGroups;
    let arns = Some(group.target_group_arns().to_vec()).filter(|arns| !arns.is_empty());
    let lacks = || Fault { call, kind: Kind::Refused, code: None, message: "the group has no target group".to_owned() };
    let arns = arns.ok_or_else(lacks)?;
    let ask = || wire.balancing.describe_target_groups().set_target_group_arns(Some(arns.clone())).send();
    wire.read(call, ask).await?.target_groups().first().cloned().ok_or_else(lacks)
}

async fn copy_attributes(wire: &Wire, group: &AutoScalingGroup, to: &str) -> Result<(), Fault> {
    let Some(from) = group.target_group_arns().first() else { return Ok(()) };
    let ask = || wire.balancing.describe_target_group_attributes().target_group_arn(from).send();
    let answer = wire.read(Call::DescribeTargetGroupAttributes, ask).await?;
    let attributes: Vec<TargetGroupAttribute> = answer
        .attributes()
        .iter()
        .filter(|attribute| attribute.value().is_some_and(|v| !v.is_empty()))
        .cloned()
        .collect();
    if attributes.is_empty() {
        return Ok(());
    }
    let ask = || {
        let request = wire.balancing.modify_target_group_attributes().target_group_arn(to);
        request.set_attributes(Some(attributes.clone())).send()
    };
    wire.change(Call::ModifyTargetGroupAttributes, Again::Harmless, ask).await.map(|_| ())
}

/// The model's launch template, and the version of it that is taken.
pub(super) fn template(model: &Model<'_>) -> Option<(String, String)> {
    match model {
        Model::First(first) => Some((first.launch_template.clone(), "$Default".to_owned())),
        Model::Group(group) => {
            let from = template_of(group)?;
            Some((from.launch_template_id()?.to_owned(), from.version().unwrap_or("$Default").to_owned()))
        }
    }
}

/// Makes a version of the model's launch template with the new image, and returns its id and number.
async fn version(wire: &Wire, intent: &Intent, new: &NewGroup, model: &Model<'_>) -> Result<(String, String), Fault> {
    let call = Call::CreateLaunchTemplateVersion;
    let Some((template, source)) = template(model) else {
        let message = "the group after which the new one is made has no launch template".to_owned();
        return Err(Fault { call, kind: Kind::Refused, code: None, message });
    };
    let data = RequestLaunchTemplateData::builder().image_id(new.image.as_str()).build();
    let token = &tags::digest(&format!("version/{}", intent.id))[..32];
    let ask = || {
        wire.ec2
            .create_launch_template_version()
            .client_token(token)
            .launch_template_id(&template)
            .source_version(&source)
            .version_description(intent.id.as_str())
            .launch_template_data(data.clone())
            .send()
    };
    // The token makes asking twice harmless.
    let answer = wire.change(call, Again::Harmless, ask).await?;
    let number = answer.launch_template_version().and_then(|version| version.version_number());
    let number = number.ok_or_else(|| Fault::odd(call, "the version's number"))?;
    Ok((template, number.to_string()))
}

/// Takes back what was made for a group that AWS did not take.
async fn take_back(wire: &Wire, made: Made) -> Result<(), Fault> {
    if let Some((template, version)) = made.version {
        let ask = || wire.ec2.delete_launch_template_versions().launch_template_id(&template).versions(&version).send();
        wire.change(Call::DeleteLaunchTemplateVersions, Again::Harmless, ask).await?;
    }
    let Some(arn) = made.target_group else { return Ok(()) };
    if let Some(route) = made.route {
        let actions = balancing::reread(wire, &route).await?;
        // The cluster's first: what the route answered before is not known any more, and nobody is behind it.
        let Some(without) = balancing::without(&actions, &arn) else { return Ok(()) };
        balancing::write(wire, &route, without).await?;
    }
    let ask = || wire.balancing.delete_target_group().target_group_arn(&arn).send();
    wire.change(Call::DeleteTargetGroup, Again::Harmless, ask).await.map(|_| ())
}
