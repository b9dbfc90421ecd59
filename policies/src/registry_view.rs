//! What the service registry says, joined with what the cloud says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::inventory::{Group, Instance, Instances, Inventory};

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
    fn instance<'a>(&self, live: &Instances<'a>) -> Option<&'a Instance> {
        if let Some(id) = self.named() {
            return live.by_id(id);
        }
        live.by_id(&self.id).or_else(|| live.by_address(self.ip?))
    }

    /// As [`Self::instance`], if it is one of `some`, whose ids and addresses are there. All live ones are looked at only
    /// where the entry names none and has the address of one of `some`.
    fn instance_among<'a>(
        &self,
        some: &Instances<'a>,
        all: &mut impl FnMut() -> Rc<Instances<'a>>,
    ) -> Option<&'a Instance> {
        if let Some(id) = self.named() {
            return some.by_id(id);
        }
        if let Some(instance) = some.by_id(&self.id) {
            return Some(instance);
        }
        let one = some.by_address(self.ip?)?;
        self.instance(&all()).filter(|instance| instance.id == one.id)
    }
}

impl RegistryView {
    /// The entry status of every live instance that has one. Foreign entries count for nothing.
    pub fn statuses(&self, inventory: &Inventory) -> BTreeMap<InstanceId, Status> {
        let live = inventory.instances();
        let of = |entry: &Entry| Some((entry.instance(&live)?.id.clone(), entry.status));
        self.entries.iter().filter_map(of).collect()
    }

    /// As [`Self::statuses`], of the members of these groups alone: a site's registry is large, and a scope is small.
    pub fn statuses_of<'a>(
        &self,
        groups: impl IntoIterator<Item = &'a Group>,
        inventory: &'a Inventory,
    ) -> BTreeMap<InstanceId, Status> {
        let some = Instances::of(groups);
        let mut kept = None;
        let mut all = || Rc::clone(kept.get_or_insert_with(|| Rc::new(inventory.instances())));
        let mut of = |entry: &Entry| Some((entry.instance_among(&some, &mut all)?.id.clone(), entry.status));
        self.entries.iter().filter_map(&mut of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{group, inventory};

    fn entry(id: &str, named: Option<&str>, ip: Option<&str>, status: Status) -> Entry {
        Entry {
            app: "HELLO".to_owned(),
            id: id.to_owned(),
            ip: ip.map(|ip| ip.parse().unwrap()),
            status,
            data_center_instance_id: None,
            troop_instance_id: named.map(str::to_owned),
            group: None,
        }
    }

    #[test]
    fn an_entry_belongs_to_whom_it_names_else_to_its_id_else_to_an_address_of_one_alone() {
        let mut seen = inventory(vec![group("a-v000", &["i-1", "i-2"]), group("b-v000", &["i-3", "i-4"])]);
        let mut at = |group: &str, id: &str, ip: &str| {
            let group = seen.groups.get_mut(&group.parse().unwrap()).unwrap();
            group.members.get_mut(&id.parse().unwrap()).unwrap().address = Some(ip.parse().unwrap());
        };
        at("a-v000", "i-1", "10.0.0.1");
        at("a-v000", "i-2", "10.0.0.2");
        at("b-v000", "i-3", "10.0.0.2");
        at("b-v000", "i-4", "10.0.0.4");
        let entries = vec![
            // Names another one than its id and its address do.
            entry("i-2", Some("i-1"), Some("10.0.0.4"), Status::Down),
            entry("i-4", None, Some("10.0.0.1"), Status::Starting),
            // Of an address that two have, of one that nobody has, and of a name that nobody has.
            entry("host:1", None, Some("10.0.0.2"), Status::Up),
            entry("host:2", None, Some("10.0.0.9"), Status::Up),
            entry("i-1", Some("i-9"), Some("10.0.0.1"), Status::Up),
            entry("not an id", None, None, Status::Up),
            // The last word counts.
            entry("host:4", None, Some("10.0.0.4"), Status::Up),
        ];
        let view = RegistryView { read_at: crate::fixture::now(), warming: false, entries };
        let text = |statuses: BTreeMap<InstanceId, Status>| {
            statuses.into_iter().map(|(id, status)| format!("{id} {}", status.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(text(view.statuses(&seen)), ["i-1 DOWN", "i-4 UP"]);
        let of = |name: &str| text(view.statuses_of(seen.groups.get(&name.parse().unwrap()), &seen));
        assert_eq!((of("a-v000"), of("b-v000")), (vec!["i-1 DOWN".to_owned()], vec!["i-4 UP".to_owned()]));
    }
}
