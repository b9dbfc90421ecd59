//! The world as the control plane meets it: a cloud an account, and the service registry beside them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use troop_cloud::{Cloud, CloudError, Image, Traffic};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::registry_view::RegistryView;
use troop_policies::step::Step;
use troop_policies::{AccountName, ClusterName, GroupName, Location};
use troop_registry::client::RegistryClient;

/// Where most of this crate has it from.
pub use troop_policies::chain;

/// The service registry, as monkeys and pushes meet it.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug {
    /// All of it.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    async fn view(&self) -> Result<RegistryView, String>;

    /// Carries out a step that is for the registry ([`troop_policies::step::Step::is_for_registry`]).
    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome;

    /// What became of such an intent, without doing anything.
    async fn resolve(&self, intent: &Intent) -> Outcome;
}

#[async_trait]
impl Registry for RegistryClient {
    async fn view(&self) -> Result<RegistryView, String> {
        RegistryClient::view(self).await.map_err(|e| chain(&e))
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        RegistryClient::perform(self, intent, permit, now).await
    }

    async fn resolve(&self, intent: &Intent) -> Outcome {
        RegistryClient::resolve(self, intent).await
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct World {
    clouds: Vec<Arc<dyn Cloud>>,
    /// None where the site has none: then no entry counts for or against anybody.
    registry: Option<Arc<dyn Registry>>,
}

impl World {
    /// A world of these accounts, one cloud each.
    pub fn new(clouds: Vec<Arc<dyn Cloud>>, registry: Option<Arc<dyn Registry>>) -> Self {
        Self { clouds, registry }
    }

    pub fn clouds(&self) -> &[Arc<dyn Cloud>] {
        &self.clouds
    }

    /// Every region of every account.
    pub fn locations(&self) -> Vec<Location> {
        let of = |cloud: &Arc<dyn Cloud>| {
            let account = cloud.account().clone();
            cloud.regions().to_vec().into_iter().map(move |region| Location { account: account.clone(), region })
        };
        self.clouds.iter().flat_map(of).collect()
    }

    fn cloud(&self, account: &AccountName) -> Result<&Arc<dyn Cloud>, CloudError> {
        self.clouds.iter().find(|cloud| cloud.account() == account).ok_or_else(|| CloudError::Refused {
            account: account.clone(),
            why: "it is not among the site's accounts".to_owned(),
        })
    }

    /// One region's groups, instances and target health.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn inventory(&self, at: &Location) -> Result<Inventory, CloudError> {
        self.cloud(&at.account)?.inventory(&at.region).await
    }

    /// # Errors
    /// [`CloudError`].
    pub async fn images(&self, at: &Location) -> Result<Vec<Image>, CloudError> {
        self.cloud(&at.account)?.images(&at.region).await
    }

    /// What the balancer counted, by group of the cluster.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn traffic(
        &self,
        at: &Location,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        self.cloud(&at.account)?.traffic(&at.region, cluster).await
    }

    /// How long a soak there lasts at least ([`Cloud::soak_min`]).
    pub fn soak_min(&self, at: &Location) -> Duration {
        self.cloud(&at.account).map_or(Duration::ZERO, |cloud| cloud.soak_min())
    }

    /// Carries out the intent's step, in the registry or in its account's cloud.
    pub async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        if intent.step.is_for_registry() {
            return match &self.registry {
                Some(registry) => registry.perform(intent, permit, now).await,
                None => Outcome::done(NO_REGISTRY),
            };
        }
        match self.cloud(&intent.account) {
            Ok(cloud) => cloud.perform(intent, permit, now).await,
            Err(e) => Outcome::refused(e.to_string()),
        }
    }

    /// What became of an intent, without doing anything.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        if intent.step.is_for_registry() {
            return Ok(match &self.registry {
                Some(registry) => registry.resolve(intent).await,
                None => Outcome::done(NO_REGISTRY),
            });
        }
        self.cloud(&intent.account)?.resolve(intent).await
    }

    /// The number that an account's cloud knows it by ([`Cloud::account_number`]).
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn account_number(&self, account: &AccountName) -> Result<Option<String>, CloudError> {
        self.cloud(account)?.account_number().await
    }

    /// The calls that a step of the cloud's will make ([`Cloud::calls_for`]).
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn calls_for(&self, at: &Location, step: &Step) -> Result<Vec<String>, CloudError> {
        self.cloud(&at.account)?.calls_for(&at.region, step).await
    }

    /// Writes the tag `troop:mark` on the intent's group.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.cloud(&intent.account)?.mark(intent, mark).await
    }

    /// # Errors
    /// [`CloudError`]: most clouds take none.
    pub async fn import_image(&self, at: &Location, path: &Path) -> Result<Image, CloudError> {
        self.cloud(&at.account)?.import_image(path).await
    }

    /// Whether there is a registry whose entries count.
    pub fn has_registry(&self) -> bool {
        self.registry.is_some()
    }

    /// All of the registry; none is an empty one.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub async fn registry(&self, now: Timestamp) -> Result<RegistryView, String> {
        match &self.registry {
            Some(registry) => registry.view().await,
            None => Ok(RegistryView { read_at: now, warming: false, entries: Vec::new() }),
        }
    }
}

/// There is no entry that a step of the registry could be about, so that all it wants is so. A way back must not fail for it.
const NO_REGISTRY: &str = "the site has no service registry: nothing to be done there";
