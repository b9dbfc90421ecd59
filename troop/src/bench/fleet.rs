//! A fleet that is made up: teams, their policies, groups and instances, all well. The same numbers make the same fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use jiff::Timestamp;
use troop_policies::ids::BadId;
use troop_policies::inventory::{Group, Instance, Inventory, Lifecycle, TAG_TEAM, TargetHealth};
use troop_policies::registry_view::{Entry, RegistryView, Status};
use troop_policies::step::Size;
use troop_policies::{AccountName, GroupName, ImageId, InstanceId, RegionName, ZoneName};

use super::BenchError;

/// Scopes of one team at most: ten services of ten clusters each.
const SCOPES_PER_TEAM: u32 = 100;
const CLUSTERS_PER_APP: u32 = 10;

/// How large it is. Each scope is a cluster with one group, which serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fleet {
    pub scopes: u32,
    pub instances: u32,
    /// The policies' one window: days of the week and its hours, in UTC.
    pub window: Window,
}

/// When the policies let monkeys act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub day: &'static str,
    pub open: &'static str,
    pub close: &'static str,
}

impl Fleet {
    pub fn teams(&self) -> u32 {
        self.scopes.div_ceil(SCOPES_PER_TEAM)
    }

    fn team(scope: u32) -> String {
        format!("team{:04}", scope / SCOPES_PER_TEAM)
    }

    fn app(scope: u32) -> String {
        format!("app{:05}", scope / CLUSTERS_PER_APP)
    }

    fn group(scope: u32) -> Result<GroupName, BadId> {
        GroupName::new(format!("{}-web-c{}-v007", Self::app(scope), scope % CLUSTERS_PER_APP))
    }

    /// Instances of scope number `scope`: the same for all, one more for the first where they do not go up.
    fn members(&self, scope: u32) -> u32 {
        let (each, more) = (self.instances / self.scopes.max(1), self.instances % self.scopes.max(1));
        each + u32::from(scope < more)
    }

    /// Every team's policy file: name and text. Each app is unleashed, with odds of a quarter a workday.
    pub fn policies(&self) -> Vec<(String, String)> {
        let team = |number: u32| {
            let first = number * SCOPES_PER_TEAM;
            let scopes = first..(first + SCOPES_PER_TEAM).min(self.scopes);
            let team = Self::team(first);
            let Window { day, open, close } = self.window;
            let mut text = format!(
                "format = 1\nteam = \"{team}\"\ntimezone = \"UTC\"\n\n\
                 [[windows]]\ndays = [\"{day}\"]\nopen = \"{open}\"\nclose = \"{close}\"\n"
            );
            let apps: BTreeSet<String> = scopes.map(Self::app).collect();
            for app in apps {
                // Writing to a String cannot fail.
                let _written = write!(
                    text,
                    "\n[apps.{app}]\nmin_serving = 2\n\n[apps.{app}.chaos]\nleashed = false\n\
                     mean_workdays = 5\nmin_workdays = 2\n"
                );
            }
            (format!("{team}.toml"), text)
        };
        (0..self.teams()).map(team).collect()
    }

    /// Writes the policy files into a folder.
    ///
    /// # Errors
    /// [`BenchError::Io`].
    pub fn write_policies(&self, folder: &Path) -> Result<(), BenchError> {
        for (name, text) in self.policies() {
            std::fs::write(folder.join(name), text).map_err(BenchError::io("write a policy"))?;
        }
        Ok(())
    }

    /// The whole fleet as one region, read `now`.
    ///
    /// # Errors
    /// When there are more scopes than there are names for.
    pub fn inventory(&self, now: Timestamp) -> Result<Inventory, BenchError> {
        self.made(now).map_err(|e| BenchError::Failed { what: "make up a fleet", why: e.to_string() })
    }

    fn made(&self, now: Timestamp) -> Result<Inventory, BadId> {
        let zones = ["r1a", "r1b", "r1c"].map(ZoneName::new);
        let zones: Vec<ZoneName> = zones.into_iter().collect::<Result<_, _>>()?;
        let image = ImageId::new("ami-00000000000000007")?;
        let mut groups = Vec::new();
        let mut next = 0_u32;
        for scope in 0..self.scopes {
            let members = self.members(scope);
            let member = |number: u32| {
                let bytes = number.to_be_bytes();
                let id = InstanceId::new(format!("i-{number:017x}"))?;
                let instance = Instance {
                    id: id.clone(),
                    zone: zones[number as usize % zones.len()].clone(),
                    image: image.clone(),
                    lifecycle: Lifecycle::InService,
                    launched_at: now,
                    address: Some(IpAddr::V4(Ipv4Addr::new(10, bytes[1], bytes[2], bytes[3]))),
                    port: 8_080,
                    protected: false,
                    spare: false,
                    target: Some(TargetHealth::new(true, now, None)),
                };
                Ok::<_, BadId>((id, instance))
            };
            let group = Group {
                name: Self::group(scope)?,
                created_at: now,
                image: image.clone(),
                version: Some("web-1.0.0".to_owned()),
                size: Size::pinned(members),
                zones: zones.iter().cloned().collect(),
                tags: BTreeMap::from([(TAG_TEAM.to_owned(), Self::team(scope))]),
                enabled: true,
                has_targets: true,
                in_rotation: true,
                registry_required: true,
                last_failed_launch: None,
                hold: None,
                members: (next..next + members).map(member).collect::<Result<_, _>>()?,
            };
            next += members;
            groups.push((group.name.clone(), group));
        }
        Ok(Inventory {
            account: AccountName::new("local")?,
            region: RegionName::new("r1")?,
            zones: zones.into_iter().collect(),
            read_at: now,
            groups: groups.into_iter().collect(),
        })
    }
}

/// The registry's word on every instance of an inventory: all UP.
pub fn registry(inventory: &Inventory, now: Timestamp) -> RegistryView {
    let entry = |group: &Group, instance: &Instance| Entry {
        app: group.name.app().as_str().to_uppercase(),
        id: instance.id.to_string(),
        ip: instance.address,
        status: Status::Up,
        data_center_instance_id: None,
        troop_instance_id: Some(instance.id.to_string()),
        group: Some(group.name.to_string()),
    };
    let entries = inventory.groups.values().flat_map(|g| g.members.values().map(|i| entry(g, i))).collect();
    RegistryView { read_at: now, warming: false, entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { day: "mon", open: "10:00", close: "16:00" };

    #[test]
    fn a_fleet_has_what_was_asked_for_and_every_policy_owns_its_groups() {
        let fleet = Fleet { scopes: 250, instances: 1_003, window: WINDOW };
        let now = Timestamp::UNIX_EPOCH;
        let inventory = fleet.inventory(now).unwrap();
        assert_eq!((inventory.groups.len(), inventory.instance_count()), (250, 1_003));
        assert_eq!(registry(&inventory, now).entries.len(), 1_003);
        let policies = fleet.policies();
        assert_eq!(policies.len(), 3);
        let mut owned = 0;
        for (name, text) in policies {
            let (policy, warnings) = troop_policies::file::parse_policy(&name, &text).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            owned += inventory.groups.values().filter(|g| policy.owns(g)).count();
        }
        assert_eq!(owned, 250);
    }
}
