//! What a cloud was seen to hold at one moment, in our words.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{AccountName, ImageId, InstanceId, Location, RegionName, TeamName, ZoneName};
use crate::names::{ClusterName, GroupName};
use crate::step::Size;

/// The tag that says whose a group is. A policy reaches only groups whose tag equals its team.
pub const TAG_TEAM: &str = "troop:team";
/// The tag by which an instance or a group opts out of every monkey.
pub const TAG_SPARE: &str = "troop:spare";
/// The tag that names the last settled act, `EVENT_ID RFC3339`; a ledger that lacks it is not this site's newest.
pub const TAG_MARK: &str = "troop:mark";

/// One region of one account, read in one go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    pub account: AccountName,
    pub region: RegionName,
    pub zones: BTreeSet<ZoneName>,
    pub read_at: Timestamp,
    pub groups: BTreeMap<GroupName, Group>,
}

/// An Auto Scaling group with its members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub name: GroupName,
    pub created_at: Timestamp,
    pub image: ImageId,
    /// The image's appversion, where it has one.
    pub version: Option<String>,
    pub size: Size,
    pub zones: BTreeSet<ZoneName>,
    pub tags: BTreeMap<String, String>,
    /// False once disabled: it takes no new connections, and its registry entries are overridden OUT_OF_SERVICE.
    pub enabled: bool,
    /// Whether a balancer has targets for this group's cluster at all.
    pub has_targets: bool,
    /// Whether the balancer sends traffic to it now. Never true where `has_targets` is false.
    pub in_rotation: bool,
    /// Whether the image's manifest says `registry = "required"`.
    pub registry_required: bool,
    pub last_failed_launch: Option<Timestamp>,
    /// Why the cloud itself would not replace what is lost here, or replaces it already; nobody is hurt meanwhile.
    #[serde(default)]
    pub hold: Option<String>,
    /// Every member that is not gone yet, whatever its lifecycle.
    pub members: BTreeMap<InstanceId, Instance>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub id: InstanceId,
    pub zone: ZoneName,
    pub image: ImageId,
    pub lifecycle: Lifecycle,
    pub launched_at: Timestamp,
    pub address: Option<IpAddr>,
    pub port: u16,
    /// Scale-in or termination protection.
    pub protected: bool,
    /// Carries the tag `troop:spare`.
    pub spare: bool,
    /// The balancer's verdict; `None` where there is none yet.
    pub target: Option<TargetHealth>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    Pending,
    InService,
    Standby,
    Terminating,
}

impl Lifecycle {
    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::InService => "in service",
            Self::Standby => "in standby",
            Self::Terminating => "terminating",
        }
    }
}

/// What the balancer last found when it asked the instance's `health_path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetHealth {
    pub healthy: bool,
    pub checked_at: Timestamp,
    /// Why it is not healthy, in the balancer's words (`503`, `no answer within 1 s`).
    pub reason: Option<String>,
    /// For how long after `checked_at` the verdict may be believed.
    #[serde(default = "health_good_for_ms")]
    pub good_for_ms: u32,
}

/// How long a verdict is good for where the balancer checks once a second: three checks.
pub const HEALTH_GOOD_FOR_MS: u32 = 3_000;

fn health_good_for_ms() -> u32 {
    HEALTH_GOOD_FOR_MS
}

impl TargetHealth {
    /// The verdict of a balancer that checks once a second.
    pub fn new(healthy: bool, checked_at: Timestamp, reason: Option<String>) -> Self {
        Self { healthy, checked_at, reason, good_for_ms: HEALTH_GOOD_FOR_MS }
    }

    /// Whether the verdict is healthy and young enough at `now` to be believed.
    pub fn is_good(&self, now: Timestamp) -> bool {
        let age_ms = now.as_millisecond().saturating_sub(self.checked_at.as_millisecond());
        self.healthy && (age_ms <= i64::from(self.good_for_ms) || crate::sabotaged!("health_age"))
    }
}

impl Group {
    pub fn cluster(&self) -> &ClusterName {
        self.name.cluster()
    }

    /// The team in the tag `troop:team`, if there is one and it is a name.
    pub fn team(&self) -> Option<TeamName> {
        self.tags.get(TAG_TEAM).and_then(|team| TeamName::new(team.clone()).ok())
    }

    /// Members in service and healthy by a fresh verdict; without targets, in service alone.
    pub fn healthy(&self, now: Timestamp) -> impl Iterator<Item = &Instance> {
        self.members.values().filter(move |i| {
            i.lifecycle == Lifecycle::InService
                && (!self.has_targets || i.target.as_ref().is_some_and(|t| t.is_good(now)))
        })
    }
}

impl Inventory {
    /// Where it was read.
    pub fn location(&self) -> Location {
        Location { account: self.account.clone(), region: self.region.clone() }
    }

    /// The groups of a cluster, oldest first (by creation, then sequence; never by text).
    pub fn groups_of<'a>(&'a self, cluster: &ClusterName) -> Vec<&'a Group> {
        let mut groups: Vec<_> = self.groups.values().filter(|g| g.cluster() == cluster).collect();
        groups.sort_by_key(|g| (g.created_at, g.name.sequence()));
        groups
    }

    pub fn clusters(&self) -> BTreeSet<&ClusterName> {
        self.groups.values().map(Group::cluster).collect()
    }

    /// The group that serves a cluster: the one enabled group to which the balancer sends traffic, or, where the cluster
    /// has no targets, the one enabled group with instances.
    ///
    /// # Errors
    /// [`NotServing`] when there is none or more than one.
    pub fn serving(&self, cluster: &ClusterName) -> Result<&Group, NotServing> {
        let groups = self.groups_of(cluster);
        let has_targets = groups.iter().any(|g| g.has_targets);
        let mut serving = groups
            .iter()
            .filter(|g| g.enabled && if has_targets { g.in_rotation } else { !g.members.is_empty() })
            .copied();
        match (serving.next(), serving.next()) {
            (Some(group), None) => Ok(group),
            (None, _) => Err(NotServing::None { cluster: cluster.to_string() }),
            (Some(a), Some(b)) => Err(NotServing::Several {
                cluster: cluster.to_string(),
                first: a.name.to_string(),
                second: b.name.to_string(),
            }),
        }
    }

    /// Every instance, to be found by its id or address. Worth it for more than a few: it is made from all of them.
    pub fn instances(&self) -> Instances<'_> {
        Instances::of(self.groups.values())
    }

    /// The group and instance with this id.
    pub fn instance(&self, id: &InstanceId) -> Option<(&Group, &Instance)> {
        self.groups.values().find_map(|g| g.members.get(id).map(|i| (g, i)))
    }

    pub fn instance_count(&self) -> usize {
        self.groups.values().map(|g| g.members.len()).sum()
    }
}

/// The members of some groups by id and by address.
#[derive(Debug)]
pub struct Instances<'a> {
    by_id: HashMap<&'a str, &'a Instance>,
    /// `None` where two or more have the address: it then says nothing.
    by_address: HashMap<IpAddr, Option<&'a Instance>>,
}

impl<'a> Instances<'a> {
    pub fn of(groups: impl IntoIterator<Item = &'a Group>) -> Self {
        let mut instances = Self { by_id: HashMap::new(), by_address: HashMap::new() };
        for instance in groups.into_iter().flat_map(|group| group.members.values()) {
            instances.by_id.insert(instance.id.as_str(), instance);
            if let Some(address) = instance.address {
                instances.by_address.entry(address).and_modify(|one| *one = None).or_insert(Some(instance));
            }
        }
        instances
    }

    pub fn by_id(&self, id: &str) -> Option<&'a Instance> {
        self.by_id.get(id).copied()
    }

    /// The one instance that has this address; none where several do.
    pub fn by_address(&self, address: IpAddr) -> Option<&'a Instance> {
        self.by_address.get(&address).copied().flatten()
    }
}

/// Why no single group can be said to serve a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServing {
    #[error("no enabled group of `{cluster}` serves")]
    None { cluster: String },
    #[error("`{first}` and `{second}` of `{cluster}` both serve")]
    Several { cluster: String, first: String, second: String },
}
