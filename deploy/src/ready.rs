//! Ready (invariant I4): the checks a group must pass before traffic may be sent to it. Zero, unknown or stale is not ready.

use std::collections::BTreeMap;

use jiff::Timestamp;
use troop_policies::inventory::{Group, Inventory, Lifecycle};
use troop_policies::registry_view::Status;
use troop_policies::situation::OpenAct;
use troop_policies::{GroupName, ImageId, InstanceId, ZoneName, guard};

/// A new version must run in at least this many instances, so that one may die.
pub const INSTANCES_MIN: u32 = 3;
/// And in at least this many zones.
pub const ZONES_MIN: usize = 2;

/// One check's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub result: Result<String, String>,
}

/// What a group is held to.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub group: &'a GroupName,
    pub count: u32,
    pub image: Option<&'a ImageId>,
    /// How many zones it must span: fewer for a group that never had more.
    pub zones: usize,
    /// Recorded acts that have not healed yet: the instances that they hurt are not held against the group, and do not count for it.
    pub open: &'a [OpenAct],
}

/// Asks all seven checks. `statuses` is `None` while the registry cannot be read or is warming.
pub fn checks(
    wanted: Wanted<'_>,
    inventory: &Inventory,
    statuses: Option<&BTreeMap<InstanceId, Status>>,
    now: Timestamp,
) -> Vec<Check> {
    let Some(group) = inventory.groups.get(wanted.group) else {
        return vec![Check { name: "count", result: Err(format!("{} does not exist", wanted.group)) }];
    };
    let lost = lost_to_acts(wanted, group);
    let hurt = guard::hurt(wanted.open);
    let need = wanted.count.saturating_sub(lost).max(1);
    let need = if troop_policies::sabotaged!("ready_count") { 1 } else { need };
    let members = || group.members.values().filter(|i| !hurt.contains(&i.id));
    let in_service = || members().filter(|i| i.lifecycle == Lifecycle::InService);
    let enough = |what: &str, have: u32| {
        if have >= need { Ok(format!("{have} of {need} {what}")) } else { Err(format!("{have} of {need} {what}")) }
    };
    let up = || match statuses {
        _ if !group.registry_required => Ok("not required by the image".to_owned()),
        _ if troop_policies::sabotaged!("registry") => Ok("not asked".to_owned()),
        None => Err("the registry cannot be read, or is warming up".to_owned()),
        Some(statuses) => {
            let up = in_service().filter(|i| statuses.get(&i.id) == Some(&Status::Up)).count();
            enough("registered UP", count(up))
        }
    };
    let healthy = || match group.healthy(now).filter(|i| !hurt.contains(&i.id)).count() {
        _ if troop_policies::sabotaged!("health") => Ok("not asked".to_owned()),
        have => enough("healthy", count(have)),
    };
    let serving = || match statuses {
        None if group.registry_required => Err("the registry cannot be read, or is warming up".to_owned()),
        None | Some(_) => {
            let empty = BTreeMap::new();
            enough("able to serve", guard::unhurt(group, statuses.unwrap_or(&empty), wanted.open, now))
        }
    };
    vec![
        Check { name: "count", result: enough("members", count(members().count())) },
        Check { name: "lifecycle", result: enough("in service", count(in_service().count())) },
        Check { name: "registry", result: up() },
        Check { name: "health", result: healthy() },
        Check { name: "balancer", result: serving() },
        Check { name: "zones", result: zones(group, wanted, lost) },
        Check { name: "image", result: image(group, wanted) },
    ]
}

/// The first check that does not pass, in words.
pub fn missing(checks: &[Check]) -> Option<String> {
    checks.iter().find_map(|c| c.result.as_ref().err().map(|why| format!("{}: {why}", c.name)))
}

/// How many members of the group acts on record hurt, or have hurt.
fn lost_to_acts(wanted: Wanted<'_>, group: &Group) -> u32 {
    count(wanted.open.iter().filter(|act| act.group == group.name).count())
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn zones(group: &Group, wanted: Wanted<'_>, lost: u32) -> Result<String, String> {
    let mut spread: BTreeMap<&ZoneName, u32> = group.zones.iter().map(|z| (z, 0)).collect();
    for instance in group.members.values().filter(|i| i.lifecycle == Lifecycle::InService) {
        *spread.entry(&instance.zone).or_default() += 1;
    }
    let text = spread.values().map(u32::to_string).collect::<Vec<_>>().join("+");
    let used = spread.values().filter(|n| **n > 0).count();
    let (least, most) = (spread.values().min().copied().unwrap_or(0), spread.values().max().copied().unwrap_or(0));
    if troop_policies::sabotaged!("ready_zones") {
        return Ok(text);
    }
    if used < wanted.zones {
        return Err(format!("{text}: in {used} zones, {} are the least", wanted.zones));
    }
    if most - least > 1 + lost {
        return Err(format!("{text}: uneven"));
    }
    Ok(text)
}

fn image(group: &Group, wanted: Wanted<'_>) -> Result<String, String> {
    let Some(image) = wanted.image else { return Ok("not asked".to_owned()) };
    match group.members.values().find(|i| i.image != *image && !troop_policies::sabotaged!("ready_image")) {
        Some(other) => Err(format!("{} runs {}, not {image}", other.id, other.image)),
        None => Ok(image.to_string()),
    }
}
