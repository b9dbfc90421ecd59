//! Registry upkeep: entries whose instance the cloud shows gone, by whatever hand, are cancelled. Auto Scaling never
//! does that, and a corpse that stays UP is sent requests for as long as its lease runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use troop_policies::inventory::{Instances, Inventory};
use troop_policies::registry_view::Entry;
use troop_policies::step::Step;
use troop_policies::{GroupName, InstanceId};

use super::core::Core;
use super::look::Look;

/// An entry must be seen without its instance in this many looks in a row: one look may be older than a fresh launch.
const LOOKS_BEFORE_CANCEL: u32 = 3;

/// Entries seen without an instance, and in how many looks in a row.
#[derive(Debug, Default)]
pub struct Janitor {
    orphans: BTreeMap<String, u32>,
}

impl Janitor {
    /// Takes one look and cancels what has been an orphan for long enough.
    pub async fn tick(&mut self, core: &Arc<Core>, seen: &Look) {
        let Ok(view) = &seen.registry else { return };
        // With any region unread, or a picture that is old or in doubt, absence proves nothing.
        let all_read = seen.regions.iter().all(|(at, _, _)| seen.believed(at).is_ok());
        if view.warming || !all_read {
            self.orphans.clear();
            return;
        }
        let live = Instances::of(seen.inventories().flat_map(|inventory| inventory.groups.values()));
        let mut orphans = BTreeMap::new();
        for entry in &view.entries {
            // Asked first: of thousands of entries hardly any is an orphan.
            if live.by_id(named(entry)).is_some() {
                continue;
            }
            let Some((group, instance)) = ours(entry) else { continue };
            let looks = self.orphans.get(&entry.id).copied().unwrap_or(0) + 1;
            if looks == LOOKS_BEFORE_CANCEL {
                if let Some(inventory) = seen.inventories().next() {
                    cancel(core, inventory, group, instance).await;
                }
                // If the cancellation did not take, the count begins anew.
                continue;
            }
            orphans.insert(entry.id.clone(), looks);
        }
        self.orphans = orphans;
    }
}

fn named(entry: &Entry) -> &str {
    entry.data_center_instance_id.as_deref().or(entry.troop_instance_id.as_deref()).unwrap_or(&entry.id)
}

/// The group and instance that an entry names, if they are shaped as ours. Foreign entries are left alone.
fn ours(entry: &Entry) -> Option<(GroupName, InstanceId)> {
    let instance = InstanceId::new(named(entry)).ok().filter(|id| id.as_str().starts_with("i-"))?;
    let group = GroupName::new(entry.group.clone()?).ok()?;
    Some((group, instance))
}

async fn cancel(core: &Arc<Core>, inventory: &Inventory, group: GroupName, instance: InstanceId) {
    tracing::info!(%instance, %group, "cancelling the registry entry of an instance that is gone");
    let step = Step::CancelEntry { group, instance };
    super::act::upkeep(core, &inventory.account, &inventory.region, step, "its instance is gone").await;
}
