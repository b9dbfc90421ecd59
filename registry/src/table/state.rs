//! What of the table is saved, and how it comes back.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use troop_policies::IntentId;
use troop_policies::registry_view::Status;

use super::steps::Remembered;
use super::{Key, Lease, Table, after};

/// How many leases of the site's the registry is warming after a start: one for a client that had just renewed when we
/// stopped, and one for it to notice that it must register.
const WARMING_LEASES: i32 = 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedOverride {
    #[serde(flatten)]
    key: Key,
    status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedEnd {
    instance: String,
    until: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedStep {
    id: IntentId,
    #[serde(flatten)]
    remembered: Remembered,
}

/// The table as a file holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableState {
    version: u64,
    entries: Vec<Lease>,
    overrides: Vec<SavedOverride>,
    groups_out_of_service: Vec<String>,
    ended: Vec<SavedEnd>,
    steps: Vec<SavedStep>,
}

impl Table {
    /// All that a restart must know. When a lease was last renewed is not kept up to date in it.
    pub(crate) fn state(&self) -> TableState {
        let overrides = self.overrides.iter().map(|(key, status)| SavedOverride { key: key.clone(), status: *status });
        let ended = self.ended.iter().map(|(id, until)| SavedEnd { instance: id.clone(), until: *until });
        let steps = self.steps.iter().map(|(id, step)| SavedStep { id: id.clone(), remembered: step.clone() });
        TableState {
            version: self.version,
            entries: self.entries.values().cloned().collect(),
            overrides: overrides.collect(),
            groups_out_of_service: self.groups_out.iter().cloned().collect(),
            ended: ended.collect(),
            steps: steps.collect(),
        }
    }

    /// A table that goes on where a saved one stopped. All leases begin anew, for nobody could renew while we were
    /// away; while there are any, it is warming.
    pub(crate) fn restored(state: TableState, site_lease: SignedDuration, now: Timestamp) -> Self {
        let mut table = Self::new(site_lease, now);
        // What was shown after the last save may have had this version; nothing shown from now on may.
        table.version = state.version.saturating_add(1_000_000);
        if !state.entries.is_empty() {
            table.warming_until = Some(after(now, site_lease.saturating_mul(WARMING_LEASES)));
        }
        for lease in state.entries {
            table.entries.insert(Key::new(&lease.info.app, &lease.info.id), Lease { renewed_at: now, ..lease });
        }
        table.overrides = state.overrides.into_iter().map(|o| (o.key, o.status)).collect();
        table.groups_out = state.groups_out_of_service.into_iter().collect();
        table.ended = state.ended.into_iter().map(|e| (e.instance, e.until)).collect();
        table.steps = state.steps.into_iter().map(|s| (s.id, s.remembered)).collect();
        table
    }
}
