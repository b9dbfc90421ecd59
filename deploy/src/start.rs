//! Whether a push may begin, and what it will be: everything it decides is decided here, from one look.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use troop_policies::inventory::{Group, Inventory, NotServing, TAG_MARK, TAG_TEAM};
use troop_policies::registry_view::Status;
use troop_policies::step::NewGroup;
use troop_policies::{ClusterName, GroupName, ImageId, InstanceId, TeamName, guard};

use crate::push::{PUSH_SCHEMA, Phase, Previous, Push, Settings};
use crate::ready::{INSTANCES_MIN, ZONES_MIN};

/// What a person asked for.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    pub cluster: &'a ClusterName,
    pub image: &'a ImageId,
    pub version: Option<String>,
    pub team: Option<&'a TeamName>,
    pub size: Option<u32>,
    pub settings: Settings,
    pub actor: &'a str,
}

/// Why a push may not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    #[error("`{first}` and `{second}` of `{cluster}` both serve: nobody can say from which one a push would take over")]
    Several { cluster: ClusterName, first: String, second: String },
    #[error("`{cluster}` has no group yet: whose is it?")]
    NeedsTeam { cluster: ClusterName },
    #[error("`{group}` belongs to team `{theirs}`, not to `{team}`")]
    OtherTeam { group: GroupName, theirs: String, team: TeamName },
    #[error("{size} instances are too few: {least} is the least{why}")]
    TooSmall { size: u32, least: u32, why: String },
    #[error("`{cluster}` would run in {zones} zone; {ZONES_MIN} are the least")]
    TooFewZones { cluster: ClusterName, zones: usize },
    #[error("all 1000 names of `{cluster}` are in use")]
    NoName { cluster: ClusterName },
}

/// Makes the push that was asked for. `taken` are names of groups that pushes on record still speak of.
///
/// # Errors
/// [`NotStarted`]; nothing is changed by asking.
pub fn start(
    asked: &Asked<'_>,
    inventory: &Inventory,
    statuses: &BTreeMap<InstanceId, Status>,
    taken: &BTreeSet<GroupName>,
    now: Timestamp,
) -> Result<Push, NotStarted> {
    let cluster = asked.cluster;
    let serving = match inventory.serving(cluster) {
        Ok(group) => Some(group),
        Err(NotServing::None { .. }) => None,
        Err(NotServing::Several { first, second, .. }) => {
            return Err(NotStarted::Several { cluster: cluster.clone(), first, second });
        }
    };
    let groups = inventory.groups_of(cluster);
    let tags = tags(asked, serving, &groups)?;
    let size = size(asked, serving)?;
    let zones = serving.map_or_else(|| inventory.zones.clone(), |group| group.zones.clone());
    if zones.len() < ZONES_MIN {
        return Err(NotStarted::TooFewZones { cluster: cluster.clone(), zones: zones.len() });
    }
    let in_use: BTreeSet<GroupName> = inventory.groups.keys().chain(taken).cloned().collect();
    let newest = groups.last().map(|group| &group.name);
    let name = cluster.next_group(newest, &in_use).ok_or_else(|| NotStarted::NoName { cluster: cluster.clone() })?;
    let floor = serving.map_or(0, |group| guard::serving(group, statuses, now).len());
    Ok(Push {
        schema: PUSH_SCHEMA,
        account: inventory.account.clone(),
        region: inventory.region.clone(),
        cluster: cluster.clone(),
        actor: asked.actor.to_owned(),
        image: asked.image.clone(),
        version: asked.version.clone(),
        new: NewGroup {
            name,
            image: asked.image.clone(),
            zones,
            tags,
            has_targets: serving.is_none_or(|group| group.has_targets),
        },
        previous: serving.map(|group| Previous { group: group.name.clone(), size: group.size }),
        size,
        floor: u32::try_from(floor).unwrap_or(u32::MAX),
        settings: asked.settings,
        started_at: now,
        phase: Phase::Create,
        phase_since: now,
        in_flight: None,
        index: 0,
        attempts: 0,
        retry_at: None,
        held_since: None,
        fence: None,
        ready_at: None,
        flipped_at: None,
        flip_ms: None,
        taken_out_at: None,
        soaked: false,
        because: None,
        result: None,
        note: "begins".to_owned(),
    })
}

/// The serving group's tags, but for what Troop writes there itself; for a first push the team's alone.
fn tags(asked: &Asked<'_>, serving: Option<&Group>, groups: &[&Group]) -> Result<BTreeMap<String, String>, NotStarted> {
    if let Some(team) = asked.team {
        // Also a group that does not serve says whose the cluster is.
        let foreign = groups.iter().find(|group| group.team().as_ref() != Some(team));
        if let Some(group) = foreign {
            let theirs = group.tags.get(TAG_TEAM).cloned().unwrap_or_else(|| "nobody".to_owned());
            return Err(NotStarted::OtherTeam { group: group.name.clone(), theirs, team: team.clone() });
        }
    }
    if let Some(group) = serving {
        return Ok(group
            .tags
            .iter()
            .filter(|(key, _)| *key != TAG_MARK)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect());
    }
    let Some(team) = asked.team else { return Err(NotStarted::NeedsTeam { cluster: asked.cluster.clone() }) };
    Ok(BTreeMap::from([(TAG_TEAM.to_owned(), team.to_string())]))
}

/// As many as the serving group is to have, not those alive, and three at least.
fn size(asked: &Asked<'_>, serving: Option<&Group>) -> Result<u32, NotStarted> {
    let desired = serving.map_or(0, |group| group.size.desired);
    let least = desired.max(INSTANCES_MIN);
    let size = asked.size.unwrap_or(least);
    if size < least {
        let why = serving
            .filter(|_| desired > INSTANCES_MIN)
            .map(|group| format!(", as many as {} has", group.name))
            .unwrap_or_default();
        return Err(NotStarted::TooSmall { size, least, why });
    }
    Ok(size)
}
