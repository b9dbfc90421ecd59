//! Which calls a step will make, in their order, as the last picture of the region shows it.
//!
//! It asks what the acts ask (whom a flip pauses, after what a group is made, what was made for a group), so that it cannot say
//! something else. What is asked only at the act (a protection, a refresh) may still refuse the step, which then ends there, and a "no" of
//! AWS's on the way takes back what came before it; neither is in the list. A step that would be refused already now has none.

use troop_policies::inventory::TAG_MARK;
use troop_policies::step::{How, NewGroup, Step};
use troop_policies::{ClusterName, GroupName};

use super::create::{self, Model};
use super::{Place, Stop, destroy, flip, settings};
use crate::aws::balancing::RouteId;
use crate::aws::calls::{Call, PlannedCall};
use crate::aws::inventory::Snapshot;
use crate::aws::names::RealName;
use crate::aws::{balancing, groups, journal, tags};

/// The calls of [`super::perform`] and of the mark that is set once a step is done.
///
/// # Errors
/// [`Stop`]: what the step would be refused for now.
pub(super) async fn calls(place: &Place, snapshot: &Snapshot, step: &Step) -> Result<Vec<PlannedCall>, Stop> {
    if step.is_for_registry() || step.is_for_agent() {
        return Ok(Vec::new());
    }
    let mut list = List { place, snapshot, calls: Vec::new() };
    let entry = format!("{}…", journal::NAME_START);
    list.add(Call::CreateLaunchTemplate, &entry);
    match step {
        Step::Terminate { group, instance, kill } => list.terminate(group, instance.as_str(), *kill),
        Step::CreateGroup { group } => list.create(group).await?,
        Step::Resize { group, .. } => list.resize(group),
        Step::Flip { cluster, to } => list.flip(cluster, to).await?,
        Step::Enable { group } => list.enable(group),
        Step::Disable { group, .. } => list.disable(group),
        Step::Destroy { group } => list.destroy(group),
        Step::OverrideGroup { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => {}
    }
    list.add(Call::CreateLaunchTemplateVersion, &entry);
    if super::is_sweep_due(place) {
        list.add(Call::DescribeLaunchTemplates, &entry);
        list.only(Call::DeleteLaunchTemplate, &entry, "for entries older than a week");
    }
    if !matches!(step, Step::Destroy { .. }) {
        list.write_tag(step.group(), TAG_MARK);
    }
    Ok(list.calls)
}

struct List<'a> {
    place: &'a Place,
    snapshot: &'a Snapshot,
    calls: Vec<PlannedCall>,
}

impl List<'_> {
    fn add(&mut self, call: Call, on: &str) {
        self.calls.push(PlannedCall { call, on: on.to_owned(), when: None });
    }

    /// What AWS calls a group.
    fn real(&self, name: &GroupName) -> String {
        self.snapshot.names.real(name).map_or_else(|_| name.to_string(), |real| real.to_string())
    }

    fn only(&mut self, call: Call, on: &str, when: &'static str) {
        self.calls.push(PlannedCall { call, on: on.to_owned(), when: Some(when) });
    }

    fn look(&mut self) {
        let (region, balancing) = (self.place.wire.region.to_string(), &self.snapshot.balancing);
        let (targets, routes) = (!balancing.target_groups.is_empty(), !balancing.routes.is_empty());
        self.add(Call::DescribeAutoScalingGroups, &region);
        self.add(Call::DescribeInstances, &region);
        self.add(Call::DescribeScalingActivities, &region);
        if self.place.config.first.is_some() {
            self.only(Call::DescribeSubnets, &region, "the first time");
        }
        for (call, is_asked) in [
            (Call::DescribeTargetGroups, targets),
            (Call::DescribeListeners, routes),
            (Call::DescribeRules, routes),
            (Call::DescribeTargetHealth, targets),
        ] {
            if is_asked {
                self.add(call, &region);
            }
        }
        self.only(Call::DescribeLaunchTemplateVersions, &region, "for groups that do not show their image");
        self.only(Call::DescribeImages, &region, "for images that are not known yet");
    }

    fn terminate(&mut self, group: &GroupName, instance: &str, kill: How) {
        self.add(Call::DescribeAutoScalingGroups, &self.real(group));
        self.add(Call::DescribeAutoScalingInstances, instance);
        self.add(Call::DescribeInstances, instance);
        self.add(Call::DescribeInstanceAttribute, instance);
        self.add(Call::DescribeInstanceRefreshes, &self.real(group));
        let call = match kill {
            How::Crash => Call::TerminateInstances,
            How::Drain { .. } => Call::TerminateInstanceInAutoScalingGroup,
        };
        self.add(call, instance);
        self.add(Call::DescribeInstances, instance);
        if kill != How::Crash {
            self.only(Call::DescribeAutoScalingInstances, instance, "while it drains");
        }
    }

    async fn create(&mut self, new: &NewGroup) -> Result<(), Stop> {
        let name = new.name.as_str();
        let model = create::model(self.snapshot, self.place, new)?;
        let route = if new.has_targets { Some(create::route(self.place, self.snapshot, new).await?) } else { None };
        let after = match &model {
            Model::Group(group) => group.auto_scaling_group_name(),
            Model::First(_) => None,
        };
        let real = RealName::same(&new.name);
        let own = tags::target_group_name(&self.place.account, &self.place.wire.region, &real);
        self.look();
        self.add(Call::DescribeImages, new.image.as_str());
        self.add(Call::DescribeSubnets, name);
        if let Some(after) = after {
            self.add(Call::DescribeLifecycleHooks, after);
        }
        if let Some(route) = route {
            if flip::led_by(self.snapshot, new.name.cluster())?.is_none() {
                self.add(Call::LoadBalancingDescribeTags, new.name.cluster().as_str());
            }
            if let Some(after) = after {
                self.add(Call::DescribeTargetGroups, after);
            }
            self.add(Call::CreateTargetGroup, &own);
            if let Some(after) = after {
                self.add(Call::DescribeTargetGroupAttributes, after);
                self.add(Call::ModifyTargetGroupAttributes, &own);
            }
            self.write_route(&route.id);
        }
        if let Some((template, _)) = create::template(&model) {
            self.add(Call::CreateLaunchTemplateVersion, &template);
        }
        self.add(Call::CreateAutoScalingGroup, name);
        self.add(Call::DescribeAutoScalingGroups, name);
        Ok(())
    }

    fn resize(&mut self, name: &GroupName) {
        self.look();
        self.add(Call::UpdateAutoScalingGroup, &self.real(name));
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
        if self.snapshot.inventory.groups.get(name).is_some_and(|group| group.in_rotation) {
            self.resume(name);
        }
    }

    async fn flip(&mut self, cluster: &ClusterName, to: &GroupName) -> Result<(), Stop> {
        let route = if self.snapshot.groups.contains_key(to) || flip::led_by(self.snapshot, cluster)?.is_some() {
            flip::route(self.snapshot, cluster)?.clone()
        } else {
            // The cluster's first group is itself only planned: it will be in the route that is tagged for it.
            let routes = &self.snapshot.balancing.routes;
            let tagged = balancing::tagged_route(&self.place.wire, routes, cluster.as_str()).await;
            tagged.map_err(Stop::unseen)?.ok_or_else(|| flip::led_by_none(cluster))?
        };
        self.look();
        for name in flip::who_has_it(self.snapshot, to) {
            self.pause(name);
        }
        let weights = balancing::weights(&route.actions);
        // One that is only planned has none, and does not lead.
        let target = self.snapshot.groups.get(to).and_then(|group| group.target_group_arns().first());
        if !target.is_some_and(|target| flip::leads_only_to(&weights, target)) {
            self.write_route(&route.id);
            self.read_route(&route.id);
        }
        self.resume(to);
        Ok(())
    }

    fn enable(&mut self, name: &GroupName) {
        self.look();
        self.add(Call::DeleteTags, &self.real(name));
        self.resume(name);
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
    }

    fn disable(&mut self, name: &GroupName) {
        self.look();
        if self.snapshot.groups.get(name).is_some_and(|group| groups::tag(group, tags::DISABLED).is_some()) {
            return;
        }
        self.write_tag(name, tags::DISABLED);
        self.pause(name);
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
    }

    fn destroy(&mut self, name: &GroupName) {
        self.look();
        self.write_tag(name, tags::DESTROYING);
        self.add(Call::DeleteAutoScalingGroup, &self.real(name));
        if let Some((arn, routes)) = destroy::own_target_group(self.place, self.snapshot, name) {
            for route in routes {
                self.read_route(&route.id);
                self.write_route(&route.id);
            }
            self.add(Call::DeleteTargetGroup, arn);
        }
        if let Some((_, template, _)) = self.snapshot.groups.get(name).and_then(destroy::own_version) {
            self.add(Call::DescribeLaunchTemplateVersions, template);
            let when = "if the version was made for this group and is not the template's default";
            self.only(Call::DeleteLaunchTemplateVersions, template, when);
        }
    }

    fn write_tag(&mut self, name: &GroupName, key: &str) {
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
        self.add(Call::CreateOrUpdateTags, &format!("{} {key}", self.real(name)));
    }

    /// What suspends, of a group that is there: an earlier step of the same push may do it first.
    fn pause(&mut self, name: &GroupName) {
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
        if self.snapshot.groups.get(name).and_then(settings::to_pause).is_some() {
            let when = "unless they are suspended by then";
            self.only(Call::CreateOrUpdateTags, &format!("{} {}", self.real(name), tags::SUSPENDED), when);
            self.only(Call::SuspendProcesses, &self.real(name), when);
        }
    }

    fn resume(&mut self, name: &GroupName) {
        self.add(Call::DescribeAutoScalingGroups, &self.real(name));
        let Some(group) = self.snapshot.groups.get(name) else { return };
        if groups::tag(group, tags::SUSPENDED).is_none() {
            return;
        }
        if !settings::ours(group).is_empty() {
            self.add(Call::ResumeProcesses, &self.real(name));
        }
        self.add(Call::DeleteTags, &self.real(name));
    }

    fn write_route(&mut self, id: &RouteId) {
        match id {
            RouteId::Rule(arn) => self.add(Call::ModifyRule, arn),
            RouteId::Listener(arn) => self.add(Call::ModifyListener, arn),
        }
    }

    fn read_route(&mut self, id: &RouteId) {
        match id {
            RouteId::Rule(arn) => self.add(Call::DescribeRules, arn),
            RouteId::Listener(arn) => self.add(Call::DescribeListeners, arn),
        }
    }
}
