//! What the controller shows: the inventory to clients, the routes to the balancer's workers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use troop_policies::inventory::{Group, Instance, Inventory, Lifecycle, TAG_SPARE};
use troop_policies::{ClusterName, GroupName, InstanceId, RegionName};

use super::{Controller, Drain, Member, Phase};
use crate::local::protocol::{Check, ProcessRow, Routes, Target};
use crate::{Image, Traffic};

impl Controller {
    pub(crate) fn region(&self) -> &RegionName {
        &self.settings.region
    }

    pub(crate) fn images(&self) -> Vec<Image> {
        self.packages.values().map(|package| package.image.clone()).collect()
    }

    pub(crate) fn inventory(&self, read_at: Timestamp) -> Inventory {
        Inventory {
            account: self.settings.account.clone(),
            region: self.settings.region.clone(),
            zones: self.settings.zones.iter().cloned().collect(),
            read_at,
            groups: self.groups.iter().map(|(name, group)| (name.clone(), self.show(name, group))).collect(),
        }
    }

    fn show(&self, name: &GroupName, group: &super::Group) -> Group {
        let saved = &group.saved;
        let package = self.packages.get(&saved.image);
        let members = self.members.iter().filter(|(_, m)| m.group == *name);
        let port = package.map_or(0, |package| package.port);
        let instance = |(id, member): (&InstanceId, &Member)| {
            let instance = Instance {
                id: id.clone(),
                zone: self.settings.zones[member.zone].clone(),
                image: saved.image.clone(),
                lifecycle: lifecycle(member),
                launched_at: member.launched_at,
                address: Some(IpAddr::V4(member.address)),
                port,
                protected: false,
                spare: saved.tags.contains_key(TAG_SPARE),
                target: member.target.clone(),
            };
            (id.clone(), instance)
        };
        Group {
            name: name.clone(),
            created_at: saved.created_at,
            image: saved.image.clone(),
            version: package.map(|package| format!("{}-{}", package.image.name, package.image.version)),
            size: saved.size,
            zones: saved.zones.clone(),
            tags: saved.tags.clone(),
            enabled: saved.enabled,
            has_targets: saved.has_targets,
            in_rotation: saved.in_rotation,
            registry_required: package.is_none_or(|package| package.image.registry_required),
            last_failed_launch: saved.last_failed_launch,
            hold: None,
            members: members.map(instance).collect(),
        }
    }

    pub(crate) fn traffic(&self, cluster: &ClusterName) -> BTreeMap<GroupName, Traffic> {
        let groups = self.groups.keys().filter(|name| name.cluster() == cluster);
        groups.map(|name| (name.clone(), self.traffic_of(name))).collect()
    }

    pub(crate) fn processes(&self) -> Vec<ProcessRow> {
        let row = |(id, member): (&InstanceId, &Member)| ProcessRow {
            instance: id.clone(),
            group: member.group.clone(),
            pid: member.pid,
            log: self.settings.logs.join(format!("{id}.log")),
        };
        self.members.iter().map(row).collect()
    }

    /// Makes new routes where they differ from those that are in force.
    pub(super) fn refresh_routes(&mut self) {
        let mut routes = Routes {
            version: self.routes.version,
            default_cluster: self.default_cluster.clone(),
            clusters: BTreeMap::new(),
            checks: Vec::new(),
            being_killed: self.killed.keys().cloned().collect(),
            drained: Vec::new(),
        };
        let drained = |member: &Member| self.groups.get(&member.group).is_some_and(|g| g.drain == Drain::Over);
        routes.drained.extend(self.members.iter().filter(|(_, m)| drained(m)).map(|(id, _)| id.clone()));
        for (name, group) in self.groups.iter().filter(|(_, group)| group.saved.has_targets) {
            let Some(package) = self.packages.get(&group.saved.image) else { continue };
            let address = |member: &Member| SocketAddr::from((member.address, package.port));
            let members: Vec<(&InstanceId, &Member)> = self.members.iter().filter(|(_, m)| m.group == *name).collect();
            for (instance, member) in members.iter().filter(|(_, m)| m.phase == Phase::Running && m.occupies()) {
                routes.checks.push(Check {
                    instance: (*instance).clone(),
                    group: name.clone(),
                    address: address(member),
                    health_path: package.health_path.clone(),
                });
            }
            if group.saved.in_rotation {
                let target = |(instance, member): &(&InstanceId, &Member)| Target {
                    instance: (*instance).clone(),
                    group: name.clone(),
                    address: address(member),
                };
                routes.clusters.insert(name.cluster().clone(), targets(&members).iter().map(target).collect());
            }
        }
        let ending = self.members.iter().filter(|(_, m)| m.ending.is_some_and(|ending| ending.killed));
        routes.being_killed.extend(ending.map(|(id, _)| id.clone()));
        if routes != *self.routes {
            routes.version += 1;
            self.routes = Arc::new(routes);
        }
    }
}

fn lifecycle(member: &Member) -> Lifecycle {
    match (member.ending, member.phase) {
        (Some(_), _) => Lifecycle::Terminating,
        (None, Phase::Launching | Phase::Booting { .. }) => Lifecycle::Pending,
        (None, Phase::Running) => Lifecycle::InService,
    }
}

/// The members that get traffic: the healthy ones; where none is, those that once were, since an empty set serves
/// nobody. A verdict that went stale counts as it was: workers that are away have not made anybody ill.
fn targets<'a>(members: &[(&'a InstanceId, &'a Member)]) -> Vec<(&'a InstanceId, &'a Member)> {
    let those = |keep: fn(&Member) -> bool| -> Vec<(&'a InstanceId, &'a Member)> {
        members.iter().filter(|(_, m)| m.phase == Phase::Running && m.occupies() && keep(m)).copied().collect()
    };
    let healthy = those(|m| m.target.as_ref().is_some_and(|t| t.healthy));
    if healthy.is_empty() { those(|m| m.was_healthy) } else { healthy }
}
