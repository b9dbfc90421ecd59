//! A cloud in Troop's words: what it holds, and the few ways to change it.
//!
//! [`Cloud`] is implemented by [`local`], the embedded cloud of real processes, and with the feature `aws` by `aws`. Both are held to
//! the same contract tests ([`contract`]). Decisions are made elsewhere; nothing here chooses.

pub mod aws;
pub mod contract;
pub mod local;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::step::Step;
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, RegionName};

/// Why a cloud could not be asked. (What it answered to a change is an [`Outcome`].)
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error("could not reach the cloud of account `{account}`")]
    Unreachable {
        account: AccountName,
        #[source]
        source: std::io::Error,
    },
    #[error("the cloud of account `{account}` answered what cannot be read: {why}")]
    Garbled { account: AccountName, why: String },
    #[error("the cloud of account `{account}` refused to answer: {why}")]
    Refused { account: AccountName, why: String },
}

/// An immutable image: base and package, named by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub id: ImageId,
    /// The package's name; with `version` the appversion.
    pub name: String,
    pub version: String,
    pub created_at: Timestamp,
    pub registry_required: bool,
}

/// What the balancer counted for one group since the group was made. All counts only grow, but `in_flight`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Requests that were passed to the group's instances and answered by them.
    pub answers: u64,
    /// Of those, answers with a status of 500 to 599.
    pub server_errors: u64,
    /// Requests that had been sent to an instance of the group and got no answer.
    pub failed: u64,
    /// Of those, requests whose instance Troop was ending at that moment by a recorded kill.
    pub failed_in_flight_to_killed: u64,
    /// Of `failed`, requests that were then sent to another instance: their clients saw no failure.
    #[serde(default)]
    pub retried: u64,
    pub in_flight: u64,
    /// Counts of answers by their time in milliseconds: `buckets[i]` took less than `TRAFFIC_BUCKETS_MS[i]`, the last
    /// one longer. Subtract two readings for a window's.
    pub buckets: Vec<u64>,
    /// How long answers took; `None` where nobody times them.
    #[serde(default)]
    pub timed: Option<Timed>,
}

/// Answers that were timed, and how long all of them took: from the request's arrival to the answer's head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    pub answers: u64,
    pub took: Duration,
}

impl Timed {
    /// Adds others to these.
    pub fn add(&mut self, more: Self) {
        self.answers += more.answers;
        self.took = self.took.saturating_add(more.took);
    }

    /// How long an answer took on average, of those that came after `earlier` was read. `None` without any.
    pub fn mean_since(self, earlier: Self) -> Option<Duration> {
        let answers = self.answers.checked_sub(earlier.answers).filter(|answers| *answers > 0)?;
        let took = self.took.checked_sub(earlier.took)?;
        let mean_ns = took.as_nanos() / u128::from(answers);
        Some(Duration::from_nanos(u64::try_from(mean_ns).unwrap_or(u64::MAX)))
    }
}

/// Upper bounds of [`Traffic::buckets`], in milliseconds.
pub const TRAFFIC_BUCKETS_MS: [u32; 15] = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 987, 2584];

/// A site that wants to be the only one in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The site's name, which another site is told.
    pub site: String,
    /// What tells it from another site of the same name: the fingerprint of its secret.
    pub fingerprint: String,
}

/// Who may harm in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    Ours,
    /// Another site was first.
    Theirs {
        site: String,
        /// How people give that claim up.
        release: String,
    },
}

/// One account's cloud.
///
/// # Contract
/// - Every changing call takes its [`Intent`], whose id is the client token: the same intent performed twice takes
///   effect once, and answers the second time what became of the first.
/// - The [`Permit`] is checked before anything else; a call without a valid one changes nothing and answers `Refused`.
/// - An answer `Refused` means that nothing changed and nothing will.
/// - The last enabled group of a cluster, and the group in rotation, is never disabled, emptied or destroyed.
#[async_trait]
pub trait Cloud: Send + Sync + fmt::Debug {
    fn account(&self) -> &AccountName;

    fn regions(&self) -> &[RegionName];

    /// Reads one region's groups, instances and target health.
    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError>;

    async fn images(&self, region: &RegionName) -> Result<Vec<Image>, CloudError>;

    /// What the balancer counted, by group of the cluster.
    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError>;

    /// Carries out the intent's step. Never an error: what cannot be said is `Unknown`.
    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome;

    /// Reads back what became of an intent, without doing anything. `Unknown` when the cloud cannot say.
    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError>;

    /// Writes the tag `troop:mark` on the intent's group after the intent was settled. Writing it twice is harmless.
    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError>;

    /// The number that the cloud itself knows the account by, twelve digits at AWS; `None` where accounts have none.
    async fn account_number(&self) -> Result<Option<String>, CloudError> {
        Ok(None)
    }

    /// How long a judgment of [`Cloud::traffic`] takes at least, since counts come late and in lumps.
    fn soak_min(&self) -> Duration {
        Duration::ZERO
    }

    /// How far the cloud's clock was ahead of this host's when it last answered, as far as its answers tell; `None` where the
    /// cloud shares this host's clock, or has not answered yet.
    fn clock_offset(&self) -> Option<SignedDuration> {
        None
    }

    /// Claims a region for a site, so that no other site harms anybody there. A cloud that only this site can reach
    /// needs no claim.
    async fn claim(&self, region: &RegionName, claimant: &Claimant) -> Result<Claim, CloudError> {
        let (_, _) = (region, claimant);
        Ok(Claim::Ours)
    }

    /// The calls that performing a step will make, in their order and in words, for whoever wants to know before; none where the
    /// cloud's own way of being called is nobody's business.
    async fn calls_for(&self, region: &RegionName, step: &Step) -> Result<Vec<String>, CloudError> {
        let (_, _) = (region, step);
        Ok(Vec::new())
    }

    /// Stores a directory or tarball as an image; the same content gives the same id. The embedded cloud only.
    async fn import_image(&self, path: &Path) -> Result<Image, CloudError>;
}
