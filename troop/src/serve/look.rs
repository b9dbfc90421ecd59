//! One look at the world: the inventory of every region of every account and the registry, read at the same moment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use troop_policies::gates;
use troop_policies::inventory::Inventory;
use troop_policies::plausible;
use troop_policies::registry_view::{RegistryView, Status};
use troop_policies::situation::{HoldsSeen, InventorySeen, Reading, Shrunk};
use troop_policies::{InstanceId, Location};

use super::core::Core;
use crate::records::Record;
use crate::world::chain;

/// What was seen. Readings that failed say why.
#[derive(Debug, Clone)]
pub struct Look {
    pub at: Timestamp,
    pub regions: Vec<(Location, Reading<Inventory>, Option<Shrunk>)>,
    pub registry: Reading<RegistryView>,
    /// Hold signals, where somebody has asked them for an act.
    pub holds: HoldsSeen,
}

impl Look {
    pub fn inventories(&self) -> impl Iterator<Item = &Inventory> {
        self.regions.iter().filter_map(|(_, reading, _)| reading.as_ref().ok())
    }

    /// The region's picture, as it was read.
    ///
    /// # Errors
    /// Why there is none.
    pub fn inventory(&self, at: &Location) -> Reading<&Inventory> {
        let read = self.regions.iter().find(|(known, _, _)| known == at);
        read.ok_or_else(|| "its region was not read".to_owned())?.1.as_ref().map_err(Clone::clone)
    }

    /// The region's picture, where it may be acted on: read, of a believable size, and not too old.
    ///
    /// # Errors
    /// Why it counts as unread.
    pub fn believed(&self, at: &Location) -> Result<&Inventory, &str> {
        let Some((_, reading, shrunk)) = self.regions.iter().find(|(known, _, _)| known == at) else {
            return Err("its region was not read");
        };
        let inventory = reading.as_ref().map_err(String::as_str)?;
        if shrunk.is_some() {
            return Err("it is implausibly small");
        }
        let age_s = self.at.duration_since(inventory.read_at).as_secs();
        if age_s > gates::INVENTORY_MAX_AGE_S && !troop_policies::sabotaged!("old_picture") {
            return Err("it is too old");
        }
        Ok(inventory)
    }

    /// As the gates want it.
    pub fn seen(&self) -> Vec<InventorySeen<'_>> {
        self.regions
            .iter()
            .map(|(_, reading, shrunk)| InventorySeen {
                inventory: reading.as_ref().map_err(Clone::clone),
                shrunk: *shrunk,
            })
            .collect()
    }

    /// The registry's word on every instance; empty while it is warming or away.
    pub fn statuses(&self) -> BTreeMap<InstanceId, Status> {
        match &self.registry {
            Ok(view) if !view.warming => self.inventories().flat_map(|i| view.statuses(i)).collect(),
            Ok(_) | Err(_) => BTreeMap::new(),
        }
    }
}

/// Reads everything now.
pub async fn look(core: &Core) -> Look {
    // Side by side: a picture is as old as its oldest part.
    let reading = core.world.locations().into_iter().map(async |at| {
        let reading = core.world.inventory(&at).await.map_err(|e| chain(&e));
        let shrunk = match &reading {
            Ok(inventory) => doubt(core, &at, inventory).await,
            Err(_) => None,
        };
        (at, reading, shrunk)
    });
    let regions = futures::future::join_all(reading).await;
    let registry = core.world.registry(core.now()).await;
    let unreadable = regions.iter().find_map(|(at, r, _)| r.as_ref().err().map(|why| format!("{at}: {why}")));
    core.trouble("inventory", unreadable);
    core.trouble("registry", registry.as_ref().err().cloned());
    Look { at: core.now(), regions, registry, holds: HoldsSeen::new() }
}

async fn doubt(core: &Core, at: &Location, inventory: &Inventory) -> Option<Shrunk> {
    match core.plausible(at, inventory.instance_count(), inventory.read_at) {
        plausible::Look::Good => None,
        plausible::Look::Shrunk(shrunk) => Some(shrunk),
        plausible::Look::Accepted(Shrunk { from, to }) => {
            match core.record(&Record::SmallerInventoryAccepted { from, to }, None).await {
                Ok(_) => None,
                // What cannot be recorded is not accepted.
                Err(e) => {
                    core.trouble("ledger", Some(chain(&e)));
                    Some(Shrunk { from, to })
                }
            }
        }
    }
}
