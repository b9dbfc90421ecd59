//! Whether a kill has healed: the instance is gone, so is its registry entry, and the group is whole again.

use jiff::Timestamp;
use troop_policies::inventory::{Group, Inventory};
use troop_policies::registry_view::RegistryView;
use troop_policies::situation::Reading;
use troop_policies::{GroupName, InstanceId, guard};

/// A kill that is being watched.
#[derive(Debug, Clone, Copy)]
pub struct Kill<'a> {
    pub group: &'a GroupName,
    pub instance: &'a InstanceId,
    /// Later than this it has not healed.
    pub deadline: Timestamp,
}

/// What a look at a kill found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healing {
    Waiting {
        why: String,
    },
    Healed,
    /// The deadline passed; `why` is what was still missing.
    NotHealed {
        why: String,
    },
}

/// Judges one look. What cannot be read is "waiting", and after the deadline "not healed": no data never heals.
pub fn judge(
    kill: Kill<'_>,
    inventory: &Reading<Inventory>,
    registry: &Reading<RegistryView>,
    now: Timestamp,
) -> Healing {
    match missing(kill, inventory, registry, now) {
        None => Healing::Healed,
        Some(why) if now >= kill.deadline => Healing::NotHealed { why },
        Some(why) => Healing::Waiting { why },
    }
}

/// The first thing that is not as it was before the kill.
fn missing(
    kill: Kill<'_>,
    inventory: &Reading<Inventory>,
    registry: &Reading<RegistryView>,
    now: Timestamp,
) -> Option<String> {
    let inventory = match inventory {
        Ok(inventory) => inventory,
        Err(why) => return Some(format!("the inventory cannot be read: {why}")),
    };
    if inventory.instance(kill.instance).is_some() {
        return Some(format!("{} is not gone yet", kill.instance));
    }
    let group = match watched(kill, inventory) {
        Ok(group) => group,
        Err(why) => return Some(why),
    };
    let registry = match registry {
        Ok(view) if !view.warming => Some(view),
        Ok(_) | Err(_) if !group.registry_required => None,
        Ok(_) => return Some("the registry is warming up".to_owned()),
        Err(why) => return Some(format!("the registry cannot be read: {why}")),
    };
    let stays = registry.is_some_and(|view| {
        let id = kill.instance.as_str();
        view.entries.iter().any(|e| {
            [e.data_center_instance_id.as_deref(), e.troop_instance_id.as_deref(), Some(e.id.as_str())]
                .contains(&Some(id))
        })
    });
    if stays {
        return Some(format!("the registry still lists {}", kill.instance));
    }
    let statuses = registry.map(|view| view.statuses(inventory)).unwrap_or_default();
    guard::whole(group, &statuses, now).err()
}

/// The group that must be whole: the victim's, or, where a push has moved the traffic on meanwhile, the one that serves.
fn watched<'a>(kill: Kill<'_>, inventory: &'a Inventory) -> Result<&'a Group, String> {
    match inventory.groups.get(kill.group) {
        Some(group) if group.enabled => Ok(group),
        Some(_) | None => inventory.serving(kill.group.cluster()).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use troop_policies::inventory::{Instance, Lifecycle, TargetHealth};
    use troop_policies::registry_view::{Entry, Status};
    use troop_policies::step::Size;
    use troop_policies::{AccountName, ImageId, RegionName, ZoneName};

    fn now() -> Timestamp {
        "2026-11-24T11:00:00Z".parse().unwrap()
    }

    fn instance(id: &str, zone: &str) -> Instance {
        Instance {
            id: InstanceId::new(id).unwrap(),
            zone: ZoneName::new(zone).unwrap(),
            image: ImageId::new("ami-1").unwrap(),
            lifecycle: Lifecycle::InService,
            launched_at: now(),
            address: None,
            port: 80,
            protected: false,
            spare: false,
            target: Some(TargetHealth::new(true, now(), None)),
        }
    }

    fn world(ids: &[&str]) -> (Inventory, RegistryView) {
        let members: BTreeMap<_, _> = ids
            .iter()
            .zip(["r1a", "r1b", "r1c"].iter().cycle())
            .map(|(id, zone)| (InstanceId::new(*id).unwrap(), instance(id, zone)))
            .collect();
        let group = Group {
            name: GroupName::new("hello-web-v000").unwrap(),
            created_at: now(),
            image: ImageId::new("ami-1").unwrap(),
            version: None,
            size: Size::pinned(3),
            zones: BTreeSet::new(),
            tags: BTreeMap::new(),
            enabled: true,
            has_targets: true,
            in_rotation: true,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members,
        };
        let inventory = Inventory {
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            zones: BTreeSet::new(),
            read_at: now(),
            groups: BTreeMap::from([(group.name.clone(), group)]),
        };
        let entries = ids.iter().map(|id| entry(id)).collect();
        (inventory, RegistryView { read_at: now(), warming: false, entries })
    }

    fn entry(id: &str) -> Entry {
        Entry {
            app: "HELLO".to_owned(),
            id: id.to_owned(),
            ip: None,
            status: Status::Up,
            data_center_instance_id: None,
            troop_instance_id: None,
            group: None,
        }
    }

    fn look(inventory: Inventory, registry: RegistryView, at: Timestamp) -> Healing {
        let (group, victim) = (GroupName::new("hello-web-v000").unwrap(), InstanceId::new("i-dead").unwrap());
        let deadline = "2026-11-24T11:00:30Z".parse().unwrap();
        judge(Kill { group: &group, instance: &victim, deadline }, &Ok(inventory), &Ok(registry), at)
    }

    #[test]
    fn healed_needs_the_victim_gone_everywhere_and_the_group_whole() {
        let (inventory, registry) = world(&["i-1", "i-2", "i-3"]);
        assert_eq!(look(inventory, registry, now()), Healing::Healed);
    }

    #[test]
    fn waits_while_anything_is_missing() {
        let waits =
            |(inventory, registry): (Inventory, RegistryView), expected: &str| match look(inventory, registry, now()) {
                Healing::Waiting { why } => assert!(why.contains(expected), "{why}"),
                other @ (Healing::Healed | Healing::NotHealed { .. }) => panic!("{other:?}"),
            };
        waits(world(&["i-1", "i-2"]), "2 of 3 members");
        waits(world(&["i-1", "i-2", "i-dead"]), "not gone yet");
        let mut listed = world(&["i-1", "i-2", "i-3"]);
        listed.1.entries.push(entry("i-dead"));
        waits(listed, "still lists");
        let mut warming = world(&["i-1", "i-2", "i-3"]);
        warming.1.warming = true;
        waits(warming, "warming");
        let mut unregistered = world(&["i-1", "i-2", "i-3"]);
        unregistered.1.entries.pop();
        waits(unregistered, "not registered");
    }

    #[test]
    fn what_cannot_be_read_never_heals() {
        let (group, victim) = (GroupName::new("hello-web-v000").unwrap(), InstanceId::new("i-dead").unwrap());
        let kill = Kill { group: &group, instance: &victim, deadline: now() };
        let (inventory, _) = world(&["i-1", "i-2", "i-3"]);
        let no_registry = judge(kill, &Ok(inventory), &Err("refused".to_owned()), now());
        assert!(matches!(no_registry, Healing::NotHealed { why } if why.contains("refused")));
        let nothing = judge(kill, &Err("down".to_owned()), &Err("down".to_owned()), now());
        assert!(matches!(nothing, Healing::NotHealed { .. }));
    }
}
