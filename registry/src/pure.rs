//! The lease table by itself, for whoever runs it in a time of their own: simulations.
//!
//! Nothing is saved here, nothing listens, and the time is an argument. What is shown, overridden, cancelled and refused
//! is decided by the same table as behind the service.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::registry_view::{RegistryView, Status};
use troop_policies::{GroupName, InstanceId, IntentId};

use crate::info::{DataCenter, Info, Port};
use crate::table::{Changed, Key, Table};

/// See the module.
pub struct Registry {
    table: Table,
    site_lease: SignedDuration,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    pub fn new(site_lease: SignedDuration, now: Timestamp) -> Self {
        Self { table: Table::new(site_lease, now), site_lease }
    }

    /// An instance says what it is. Whether it was taken in: one that was ended is not.
    pub fn register(&mut self, group: &GroupName, instance: &InstanceId, status: Status, now: Timestamp) -> bool {
        let id = instance.to_string();
        let closed = || Port { number: 0, enabled: false };
        let info = Info {
            id: id.clone(),
            app: group.app().as_str().to_uppercase(),
            host_name: id.clone(),
            ip: String::new(),
            status,
            port: Port { number: 80, enabled: true },
            secure_port: closed(),
            country_id: 1,
            data_center: DataCenter {
                class: String::new(),
                name: "MyOwn".to_owned(),
                metadata: BTreeMap::from([("instance-id".to_owned(), id)]),
            },
            renewal_secs: None,
            duration_secs: None,
            metadata: BTreeMap::new(),
            texts: BTreeMap::new(),
            group: Some(group.to_string()),
            last_dirty_ms: None,
        };
        self.table.register(info, now).answer.is_ok()
    }

    /// The instance says goodbye, or its lease runs out. Whether there was an entry.
    pub fn leave(&mut self, group: &GroupName, instance: &InstanceId, now: Timestamp) -> bool {
        let key = Key::new(group.app().as_str(), instance.as_str());
        self.table.cancel(&key, now).answer == Changed::Yes
    }

    pub fn perform(&mut self, intent: &Intent, now: Timestamp) -> Outcome {
        self.table.perform(intent, now).answer
    }

    pub fn resolve(&mut self, id: &IntentId, now: Timestamp) -> Outcome {
        self.table.resolve(id, now).answer
    }

    /// What Troop reads.
    pub fn view(&self, now: Timestamp) -> RegistryView {
        self.table.view(now)
    }

    /// Lets time pass for what is only kept for a while. Leases do not run out by it: whoever drives the table knows who
    /// lives, and lets the others [`Registry::leave`].
    pub fn tick(&mut self, now: Timestamp) {
        // A late tick counts against no lease.
        let _evicted = self.table.tick(now);
    }

    /// The service is started again over what it had saved: it is warming for a while.
    pub fn restart(&mut self, now: Timestamp) {
        self.table = Table::restored(self.table.state(), self.site_lease, now);
    }

    /// Whether the registry shows this instance as UP.
    pub fn is_up(&self, group: &GroupName, instance: &InstanceId) -> bool {
        let key = Key::new(group.app().as_str(), instance.as_str());
        self.table.entry(&key).is_some_and(|shown| shown.status == Status::Up)
    }

    /// Whether there is an entry of this instance at all.
    pub fn lists(&self, group: &GroupName, instance: &InstanceId) -> bool {
        self.table.entry(&Key::new(group.app().as_str(), instance.as_str())).is_some()
    }
}
