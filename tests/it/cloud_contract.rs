//! The contract of every cloud, on the embedded cloud as people run it: real processes, in a real sandbox and without.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod stage;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use async_trait::async_trait;
use jiff::Timestamp;
use stage::{Machine, Up, image};
use troop::clock;
use troop_cloud::contract::{self, Loss, Subject};
use troop_cloud::local::client::LocalCloud;
use troop_cloud::{Cloud, CloudError, Image, Traffic};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, RegionName};

/// A way to the cloud that loses one call, before or after its effect.
#[derive(Debug)]
struct Losing {
    cloud: LocalCloud,
    next: Mutex<Option<Loss>>,
}

#[async_trait]
impl Cloud for Losing {
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
        let loss = self.next.lock().unwrap().take();
        match loss {
            None => self.cloud.perform(intent, permit, now).await,
            Some(Loss::Request) => Outcome::unknown("the request was lost"),
            Some(Loss::Answer) => {
                self.cloud.perform(intent, permit, now).await;
                Outcome::unknown("the answer was lost")
            }
        }
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        self.cloud.resolve(intent).await
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.cloud.mark(intent, mark).await
    }

    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        self.cloud.import_image(path).await
    }
}

struct Embedded {
    cloud: LocalCloud,
    losing: Losing,
    image: ImageId,
}

#[async_trait]
impl Subject for Embedded {
    fn cloud(&self) -> &dyn Cloud {
        &self.cloud
    }

    fn losing(&self) -> &dyn Cloud {
        &self.losing
    }

    fn lose_next(&self, loss: Loss) {
        *self.losing.next.lock().unwrap() = Some(loss);
    }

    fn now(&self) -> Timestamp {
        clock::real_now()
    }

    fn image(&self) -> ImageId {
        self.image.clone()
    }

    fn run_id(&self) -> String {
        clock::boot_ms().to_string()
    }
}

async fn keeps_the_contract_on(machine: Machine, isolation: &str) {
    let up = Up::start_on(machine);
    assert_eq!(up.info()["isolation"], isolation);
    let cloud = LocalCloud::new(&up.state);
    let image = image(&up.state, "1.0.0", "greeting = \"hello\"\n");
    let image = cloud.import_image(&image).await.unwrap().id;
    let losing = Losing { cloud: cloud.clone(), next: Mutex::default() };
    let failures = contract::run_all(&Embedded { cloud, losing, image }).await;
    assert_eq!(failures, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs user namespaces"]
async fn the_embedded_cloud_keeps_the_contract_on_real_processes() {
    keeps_the_contract_on(Machine::AsItIs, "namespaces").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs user namespaces"]
async fn the_embedded_cloud_keeps_the_contract_where_namespaces_are_forbidden() {
    keeps_the_contract_on(Machine::Container, "processes").await;
}
