//! What the control plane's picture of its clouds says of the instance that an agent speaks for.

use std::sync::Arc;

use async_trait::async_trait;
use troop_policies::gates::INVENTORY_MAX_AGE_S;
use troop_policies::{AccountName, InstanceId, Location, RegionName};

use super::core::Core;
use crate::agents::proof::{Sighting, Sightings};
use crate::world::chain;

/// See the module.
#[derive(Debug)]
pub(super) struct Seen(pub(super) Arc<Core>);

#[async_trait]
impl Sightings for Seen {
    async fn account_number(&self, account: &AccountName) -> Option<String> {
        match self.0.world.account_number(account).await {
            Ok(number) => number,
            Err(error) => {
                tracing::warn!(%account, error = chain(&error), "an account's number is not known");
                None
            }
        }
    }

    async fn instance(&self, account: &AccountName, region: &RegionName, instance: &InstanceId) -> Sighting {
        let at = Location { account: account.clone(), region: region.clone() };
        match self.0.world.inventory(&at).await {
            Ok(inventory) => {
                let age_s = self.0.now().duration_since(inventory.read_at).as_secs();
                if age_s > INVENTORY_MAX_AGE_S {
                    return Sighting::Unknown(format!("the picture is {age_s} s old"));
                }
                Sighting::of(&inventory, instance)
            }
            Err(error) => Sighting::Unknown(chain(&error)),
        }
    }
}
