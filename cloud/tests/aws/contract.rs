//! The contract of every cloud, on AWS as moto doubles it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use troop_cloud::contract::{self, Loss, Subject};
use troop_cloud::{Cloud, CloudError, Image, Traffic};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, RegionName};

use crate::stage::{Stage, now};

/// AWS by a way that loses a call, before or after its effect.
struct OnMoto {
    losing: Losing,
}

struct Losing {
    stage: Stage,
    next: Mutex<Option<Loss>>,
}

impl std::fmt::Debug for Losing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Losing").finish_non_exhaustive()
    }
}

#[async_trait]
impl Cloud for Losing {
    fn account(&self) -> &AccountName {
        self.stage.cloud.account()
    }

    fn regions(&self) -> &[RegionName] {
        self.stage.cloud.regions()
    }

    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        self.stage.cloud.inventory(region).await
    }

    async fn images(&self, region: &RegionName) -> Result<Vec<Image>, CloudError> {
        self.stage.cloud.images(region).await
    }

    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        self.stage.cloud.traffic(region, cluster).await
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        let loss = self.next.lock().unwrap().take();
        match loss {
            None => self.stage.cloud.perform(intent, permit, now).await,
            Some(Loss::Request) => Outcome::unknown("the request was lost"),
            Some(Loss::Answer) => {
                self.stage.cloud.perform(intent, permit, now).await;
                Outcome::unknown("the answer was lost")
            }
        }
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        self.stage.cloud.resolve(intent).await
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.stage.cloud.mark(intent, mark).await
    }

    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        self.stage.cloud.import_image(path).await
    }
}

#[async_trait]
impl Subject for OnMoto {
    fn cloud(&self) -> &dyn Cloud {
        &self.losing.stage.cloud
    }

    fn losing(&self) -> &dyn Cloud {
        &self.losing
    }

    fn lose_next(&self, loss: Loss) {
        *self.losing.next.lock().unwrap() = Some(loss);
    }

    fn now(&self) -> Timestamp {
        now()
    }

    fn image(&self) -> ImageId {
        self.losing.stage.image.clone()
    }

    fn run_id(&self) -> String {
        "1".to_owned()
    }

    async fn prepare(&self, cluster: &ClusterName) -> Result<(), String> {
        self.losing.stage.route(cluster).await;
        Ok(())
    }

    fn spreads_over_zones(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn aws_keeps_the_contract_on_moto() {
    let stage = Stage::with(Duration::from_secs(30), Duration::ZERO).await;
    let failures = contract::run_all(&OnMoto { losing: Losing { stage, next: Mutex::default() } }).await;
    let failures: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert_eq!(failures, Vec::<String>::new());
}
