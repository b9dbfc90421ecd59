//! One change of the world: the unit that is planned, recorded, permitted, carried out and resolved.
//!
//! What `--plan` prints is the [`std::fmt::Display`] of these steps, and what runs is these steps and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fault::{FaultSpec, in_words};
use crate::ids::{ImageId, InstanceId, ZoneName};
use crate::inventory::Inventory;
use crate::names::{ClusterName, GroupName};

/// A group's bounds and wish, in instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub min: u32,
    pub desired: u32,
    pub max: u32,
}

impl Size {
    pub const ZERO: Self = Self { min: 0, desired: 0, max: 0 };

    /// Held at `count`, so that nothing shrinks or grows the group by itself.
    pub fn pinned(count: u32) -> Self {
        Self { min: count, desired: count, max: count }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "min {}, desired {}, max {}", self.min, self.desired, self.max)
    }
}

/// How an instance is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum How {
    /// At once, like a failing host: SIGKILL.
    Crash,
    /// Out of the balancer first; after the delay SIGTERM, then SIGKILL.
    Drain { delay: Duration },
}

/// A group to be made. It starts enabled, out of rotation, with size zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewGroup {
    pub name: GroupName,
    pub image: ImageId,
    pub zones: BTreeSet<ZoneName>,
    pub tags: BTreeMap<String, String>,
    pub has_targets: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Ends one instance; its group replaces it.
    Terminate {
        group: GroupName,
        instance: InstanceId,
        kill: How,
    },
    CreateGroup {
        group: NewGroup,
    },
    Resize {
        group: GroupName,
        size: Size,
    },
    /// Makes `to` the cluster's one group in rotation, atomically where the balancer can.
    Flip {
        cluster: ClusterName,
        to: GroupName,
    },
    Enable {
        group: GroupName,
    },
    /// No new connections, and those open are drained for at most `drain`. Refused for a group in rotation.
    Disable {
        group: GroupName,
        drain: Duration,
    },
    /// Ends all instances of a group and removes it. Refused for a group in rotation or the last enabled one.
    Destroy {
        group: GroupName,
    },
    /// Sets (`true`) or drops (`false`) the registry's OUT_OF_SERVICE override of a group, which later members inherit.
    OverrideGroup {
        group: GroupName,
        out_of_service: bool,
    },
    /// Cancels the registry entry of an instance that is gone.
    CancelEntry {
        group: GroupName,
        instance: InstanceId,
    },
    /// Puts a fault upon an instance's network, which ends by itself after `lasts` at the latest.
    Fault {
        group: GroupName,
        instance: InstanceId,
        fault: Box<FaultSpec>,
        lasts: Duration,
    },
}

impl Step {
    /// The group the step is about; a flip's is the one that gets the traffic.
    pub fn group(&self) -> &GroupName {
        match self {
            Self::Terminate { group, .. }
            | Self::Resize { group, .. }
            | Self::Enable { group }
            | Self::Disable { group, .. }
            | Self::Destroy { group }
            | Self::OverrideGroup { group, .. }
            | Self::CancelEntry { group, .. }
            | Self::Fault { group, .. }
            | Self::Flip { to: group, .. } => group,
            Self::CreateGroup { group } => &group.name,
        }
    }

    pub fn cluster(&self) -> &ClusterName {
        self.group().cluster()
    }

    /// A short name for tables and events.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Terminate { .. } => "terminate",
            Self::CreateGroup { .. } => "create_group",
            Self::Resize { .. } => "resize",
            Self::Flip { .. } => "flip",
            Self::Enable { .. } => "enable",
            Self::Disable { .. } => "disable",
            Self::Destroy { .. } => "destroy",
            Self::OverrideGroup { .. } => "override_group",
            Self::CancelEntry { .. } => "cancel_entry",
            Self::Fault { .. } => "fault",
        }
    }

    /// Whether the world shows the step's effect: what settles a step of which nobody can say what became of it. `None` where
    /// an inventory does not show it.
    pub fn seen_in(&self, inventory: &Inventory) -> Option<bool> {
        let group = inventory.groups.get(self.group());
        match self {
            Self::CreateGroup { .. } => Some(group.is_some()),
            Self::Resize { size, .. } => Some(group.is_some_and(|g| g.size == *size)),
            Self::Flip { .. } => Some(group.is_some_and(|g| g.in_rotation)),
            Self::Enable { .. } => Some(group.is_some_and(|g| g.enabled)),
            Self::Disable { .. } => Some(group.is_none_or(|g| !g.enabled)),
            Self::Destroy { .. } => Some(group.is_none_or(|g| g.size.desired == 0)),
            Self::Terminate { instance, .. } => Some(inventory.instance(instance).is_none()),
            Self::OverrideGroup { .. } | Self::CancelEntry { .. } | Self::Fault { .. } => None,
        }
    }

    /// Whether an agent on a host carries it out.
    pub fn is_for_agent(&self) -> bool {
        matches!(self, Self::Fault { .. })
    }

    /// The one instance that the step harms, and hence nobody else may count on: killed, or made slow.
    pub fn victim(&self) -> Option<&InstanceId> {
        match self {
            Self::Terminate { instance, .. } | Self::Fault { instance, .. } => Some(instance),
            Self::CreateGroup { .. }
            | Self::Resize { .. }
            | Self::Flip { .. }
            | Self::Enable { .. }
            | Self::Disable { .. }
            | Self::Destroy { .. }
            | Self::OverrideGroup { .. }
            | Self::CancelEntry { .. } => None,
        }
    }

    /// Whether the service registry carries it out; everything else is the cloud's, or an agent's.
    pub fn is_for_registry(&self) -> bool {
        matches!(self, Self::OverrideGroup { .. } | Self::CancelEntry { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Terminate { group, instance, kill: How::Crash } => {
                write!(f, "terminate {instance} of {group}, at once")
            }
            Self::Terminate { group, instance, kill: How::Drain { delay } } => {
                write!(f, "terminate {instance} of {group} after draining for {} s", delay.as_secs())
            }
            Self::CreateGroup { group } => {
                write!(f, "create {} from {}, size 0, zones", group.name, group.image)?;
                group.zones.iter().try_for_each(|zone| write!(f, " {zone}"))
            }
            Self::Resize { group, size } => write!(f, "resize {group} to {size}"),
            Self::Flip { cluster, to } => write!(f, "flip all traffic of {cluster} to {to}"),
            Self::Enable { group } => write!(f, "enable {group}"),
            Self::Disable { group, drain } => write!(f, "disable {group}, draining for at most {} s", drain.as_secs()),
            Self::Destroy { group } => write!(f, "destroy {group}"),
            Self::OverrideGroup { group, out_of_service: true } => {
                write!(f, "override {group} OUT_OF_SERVICE in the registry")
            }
            Self::OverrideGroup { group, out_of_service: false } => {
                write!(f, "drop the override of {group} in the registry")
            }
            Self::CancelEntry { group, instance } => write!(f, "cancel the registry entry of {instance} of {group}"),
            Self::Fault { group, instance, fault, lasts } => {
                let lasts = in_words(u64::try_from(lasts.as_micros()).unwrap_or(u64::MAX));
                write!(f, "{fault} on {instance} of {group}, for {lasts}")
            }
        }
    }
}
