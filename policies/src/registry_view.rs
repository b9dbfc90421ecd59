//! What the service registry says, joined with what the cloud says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::inventory::{Instance, Inventory};

/// One reading of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryView {
    pub read_at: Timestamp,
    /// Just started over a saved table: entries may be missing, so everything waits and is spared.
    pub warming: bool,
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Upper case, as Eureka keeps it.
    pub app: String,
    /// Eureka's `instanceId`.
    pub id: String,
    pub ip: Option<IpAddr>,
    pub status: Status,
    /// `dataCenterInfo.metadata.instance-id`.
    pub data_center_instance_id: Option<String>,
    /// Metadata `troop.instance-id`.
    pub troop_instance_id: Option<String>,
    /// Eureka's `asgName`.
    pub group: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    Up,
    Down,
    Starting,
    OutOfService,
    Unknown,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Starting => "STARTING",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Reads a status as Eureka does: what is not known is UNKNOWN.
    pub fn parse(text: &str) -> Self {
        match text {
            "UP" => Self::Up,
            "DOWN" => Self::Down,
            "STARTING" => Self::Starting,
            "OUT_OF_SERVICE" => Self::OutOfService,
            _ => Self::Unknown,
        }
    }
}

impl Entry {
    /// The instance this entry names by itself, before any inventory is asked.
    fn named(&self) -> Option<&str> {
        self.data_center_instance_id.as_deref().or(self.troop_instance_id.as_deref())
    }

    /// The live instance the entry belongs to, in the order of design.md's Identity: the data centre's instance id, the
    /// metadata `troop.instance-id`, the entry's own id, else an address that exactly one live instance has.
    pub fn instance<'a>(&self, inventory: &'a Inventory) -> Option<&'a Instance> {
        let by_id = |id: &str| InstanceId::new(id).ok().and_then(|id| inventory.instance(&id)).map(|(_, i)| i);
        if let Some(id) = self.named() {
            return by_id(id);
        }
        if let Some(instance) = by_id(&self.id) {
            return Some(instance);
        }
        let ip = self.ip?;
        let mut same = inventory.groups.values().flat_map(|g| g.members.values()).filter(|i| i.address == Some(ip));
        match (same.next(), same.next()) {
            (Some(one), None) => Some(one),
            _ => None,
        }
    }
}

impl RegistryView {
    /// The entry status of every live instance that has one. Foreign entries count for nothing.
    pub fn statuses(&self, inventory: &Inventory) -> BTreeMap<InstanceId, Status> {
        let mut statuses = BTreeMap::new();
        for entry in &self.entries {
            if let Some(instance) = entry.instance(inventory) {
                statuses.insert(instance.id.clone(), entry.status);
            }
        }
        statuses
    }
}
