//! A cloud and its service registry as one: steps go to whichever of the two carries them out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use troop_cloud::{Cloud, CloudError, Image, Traffic, World};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::registry_view::RegistryView;
use troop_policies::{AccountName, ClusterName, GroupName, RegionName};
use troop_registry::client::RegistryClient;

/// See the module.
#[derive(Debug)]
pub struct Joined {
    pub cloud: Arc<dyn Cloud>,
    pub registry: RegistryClient,
}

#[async_trait]
impl World for Joined {
    async fn registry(&self) -> Result<RegistryView, CloudError> {
        let view = self.registry.view().await;
        view.map_err(|e| CloudError::Refused { account: self.cloud.account().clone(), why: chain(&e) })
    }
}

#[async_trait]
impl Cloud for Joined {
    fn account(&self) -> &AccountName {
        self.cloud.account()
    }

    fn regions(&self) -> &[RegionName] {
        self.cloud.regions()
    }

    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        self.cloud.inventory(region).await
    }

    async fn images(&self, region: &RegionName) -> Result<Vec<Image>, CloudError> {
        self.cloud.images(region).await
    }

    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        self.cloud.traffic(region, cluster).await
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        if intent.step.is_for_registry() {
            self.registry.perform(intent, permit, now).await
        } else {
            self.cloud.perform(intent, permit, now).await
        }
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        if intent.step.is_for_registry() {
            Ok(self.registry.resolve(intent).await)
        } else {
            self.cloud.resolve(intent).await
        }
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.cloud.mark(intent, mark).await
    }

    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        self.cloud.import_image(path).await
    }
}

/// Where most of this crate has it from.
pub use troop_policies::chain;
