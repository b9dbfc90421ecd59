//! One account at AWS, as everyone else sees it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_autoscaling::types::AutoScalingGroup;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::{Inventory, TAG_MARK};
use troop_policies::leash::Permit;
use troop_policies::step::Step;
use troop_policies::{AccountName, ClusterName, GroupName, RegionName};

use super::calls::{Call, PlannedCall};
use super::config::{AwsConfig, Clock, NameTags, RegionConfig};
use super::fault::{Fault, Kind};
use super::gatekeeper::{self, ACT_MAX, Gatekeeper};
use super::inventory::{self, Memory, Snapshot};
use super::names::{RealName, known_as};
use super::wire::Wire;
use super::{acts, claim, images, traffic};
use crate::{Claim, Claimant, Cloud, CloudError, Image, Traffic};

/// One account at AWS.
#[derive(Debug)]
pub struct AwsCloud {
    config: AwsConfig,
    regions: Vec<RegionName>,
    places: BTreeMap<RegionName, Place>,
    gatekeeper: Gatekeeper,
    /// The account's number, once it was asked.
    number: tokio::sync::OnceCell<Option<String>>,
}

/// One region of the account.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) account: AccountName,
    pub(crate) config: RegionConfig,
    pub(crate) wire: Wire,
    name_tags: Option<NameTags>,
    pub(crate) memory: Memory,
    clock: Redacted,
    /// The last picture that was read whole, and when. One read at a time: who comes meanwhile waits for it.
    last: tokio::sync::Mutex<Option<(Arc<Snapshot>, Instant)>>,
    pub(crate) swept_at: std::sync::Mutex<Option<Timestamp>>,
    traffic: traffic::Counters,
}

/// The clock, which prints as nothing.
#[derive(Clone)]
struct Redacted(Clock);

impl std::fmt::Debug for Redacted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a clock")
    }
}

impl Place {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock.0)()
    }

    /// Reads the region anew.
    pub(crate) async fn read(&self) -> Result<Arc<Snapshot>, Fault> {
        let mut last = self.last.lock().await;
        self.read_into(&mut last).await
    }

    /// The last picture where it is young enough, else a new one.
    async fn look(&self) -> Result<Arc<Snapshot>, Fault> {
        let mut last = self.last.lock().await;
        if let Some((snapshot, at)) = &*last
            && at.elapsed() < self.wire.patience.snapshot_reused_for
        {
            return Ok(snapshot.clone());
        }
        self.read_into(&mut last).await
    }

    async fn read_into(&self, last: &mut Option<(Arc<Snapshot>, Instant)>) -> Result<Arc<Snapshot>, Fault> {
        // The picture is as old as its oldest part.
        let (began, now) = (Instant::now(), self.now());
        let read =
            inventory::read(&self.wire, &self.account, &self.config, self.name_tags.as_ref(), &self.memory, now).await;
        let snapshot = read.map_err(|mut fault| {
            if let Some((old, _)) = &*last {
                let age_s = now.duration_since(old.inventory.read_at).as_secs();
                fault.message = format!("{} (the last whole picture is {age_s} s old)", fault.message);
            }
            fault
        })?;
        let snapshot = Arc::new(snapshot);
        *last = Some((snapshot.clone(), began));
        Ok(snapshot)
    }

    /// The name that AWS has for a group, by the last read; without one, after a look.
    pub(crate) async fn real(&self, name: &GroupName) -> Result<RealName, Fault> {
        let names = match (&self.name_tags, self.memory.names()) {
            (None, _) => return Ok(RealName::same(name)),
            (Some(_), Some(names)) => names,
            (Some(_), None) => self.look().await?.names.clone(),
        };
        let call = Call::DescribeAutoScalingGroups;
        names.real(name).map_err(|message| Fault { call, kind: Kind::Refused, code: None, message })
    }

    /// Whether a group that was read just now is still the one that is known by a name: tags may change at any time.
    pub(crate) fn is_known_as(&self, group: &AutoScalingGroup, name: &GroupName) -> bool {
        known_as(group, self.name_tags.as_ref()).as_ref() == Ok(name)
    }

    /// What was changed is to be seen by the next look.
    pub(crate) async fn forget(&self) {
        *self.last.lock().await = None;
    }
}

impl AwsCloud {
    /// Makes the clients. Asks AWS nothing yet, but a role is assumed at the first call.
    pub async fn new(config: AwsConfig) -> Self {
        let gatekeeper = Gatekeeper::new(config.clock.clone());
        let mut places = BTreeMap::new();
        for (name, region) in &config.regions {
            let place = Place {
                account: config.account.clone(),
                config: region.clone(),
                wire: Wire::new(&config, name, gatekeeper.clone()).await,
                name_tags: config.name_tags.clone(),
                memory: Memory::default(),
                clock: Redacted(config.clock.clone()),
                last: tokio::sync::Mutex::default(),
                swept_at: std::sync::Mutex::default(),
                traffic: traffic::Counters::default(),
            };
            places.insert(name.clone(), place);
        }
        Self {
            regions: config.regions.keys().cloned().collect(),
            config,
            places,
            gatekeeper,
            number: tokio::sync::OnceCell::new(),
        }
    }

    /// How many requests of each kind have left so far.
    #[must_use]
    pub fn calls_sent(&self) -> BTreeMap<Call, u64> {
        self.gatekeeper.sent()
    }

    /// As whom AWS knows us: the ARN of a user or an assumed role.
    ///
    /// # Errors
    /// [`CloudError`]: the credentials are not good, or AWS cannot be asked.
    pub async fn identity(&self, region: &RegionName) -> Result<String, CloudError> {
        let (wire, call) = (&self.place(region)?.wire, Call::GetCallerIdentity);
        let answer = self.seen(Box::pin(wire.read(call, || wire.tokens.get_caller_identity().send())).await)?;
        self.seen(answer.arn().map(str::to_owned).ok_or_else(|| Fault::odd(call, "an ARN")))
    }

    /// The calls that [`Cloud::perform`] will make for a step and [`Cloud::mark`] once it is done, in their order, by the picture
    /// that a look would hand out now. Those that change something are exact, with what each is about, as long as nobody else changes
    /// the region meanwhile; those that only read may be made more than once, where something is waited for. Of a step whose group is
    /// itself only planned, ids that do not exist yet are names. Nothing is changed.
    ///
    /// # Errors
    /// [`CloudError`]: the region cannot be seen, or the step would be refused as it is now.
    pub async fn calls_for(&self, region: &RegionName, step: &Step) -> Result<Vec<PlannedCall>, CloudError> {
        let place = self.place(region)?;
        // Boxed, as the trait's methods are: the SDK's futures are large, and would lie on the stack of whoever asks.
        let snapshot = self.seen(Box::pin(place.look()).await)?;
        let refused = |why| CloudError::Refused { account: self.config.account.clone(), why };
        Box::pin(acts::planned(place, &snapshot, step)).await.map_err(refused)
    }

    /// How many groups of a region have names that are none of Troop's, by the last whole picture.
    pub async fn groups_skipped(&self, region: &RegionName) -> Option<usize> {
        let last = self.places.get(region)?.last.lock().await;
        last.as_ref().map(|(snapshot, _)| snapshot.skipped)
    }

    /// What people should know of groups of a region that are not known though they could be, by the last whole picture.
    pub async fn groups_in_doubt(&self, region: &RegionName) -> Vec<String> {
        let Some(place) = self.places.get(region) else { return Vec::new() };
        place.last.lock().await.as_ref().map(|(snapshot, _)| snapshot.names.notes.clone()).unwrap_or_default()
    }

    pub(crate) fn place(&self, region: &RegionName) -> Result<&Place, CloudError> {
        self.places.get(region).ok_or_else(|| CloudError::Refused {
            account: self.config.account.clone(),
            why: format!("region `{region}` is not among those of the account's configuration"),
        })
    }

    fn seen<T>(&self, read: Result<T, Fault>) -> Result<T, CloudError> {
        read.map_err(|fault| fault.into_cloud_error(&self.config.account))
    }
}

#[async_trait]
impl Cloud for AwsCloud {
    fn account(&self) -> &AccountName {
        &self.config.account
    }

    fn regions(&self) -> &[RegionName] {
        &self.regions
    }

    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        let look = self.place(region)?.look().await;
        Ok(self.seen(look)?.inventory.clone())
    }

    async fn images(&self, region: &RegionName) -> Result<Vec<Image>, CloudError> {
        self.seen(images::own(&self.place(region)?.wire).await)
    }

    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        let place = self.place(region)?;
        let snapshot = self.seen(place.look().await)?;
        self.seen(place.traffic.read(&place.wire, &snapshot, cluster, place.now()).await)
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        if let Err(e) = permit.check(&intent.step, now) {
            return Outcome::refused(e.to_string());
        }
        match self.place(&intent.region) {
            Err(e) => Outcome::refused(e.to_string()),
            Ok(place) => acts::perform(place, intent).await,
        }
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        self.seen(acts::resolve(self.place(&intent.region)?, intent).await)
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        let place = self.place(&intent.region)?;
        let until = place.now().saturating_add(ACT_MAX);
        let until = until.map_err(|e| CloudError::Refused { account: place.account.clone(), why: e.to_string() })?;
        let group = intent.step.group();
        let marking = acts::write_tag(place, group, TAG_MARK, mark);
        let marked = gatekeeper::within(until, marking).await;
        place.forget().await;
        match marked {
            // A destroyed group is gone with its tags.
            Err(fault) if fault.kind == Kind::NotFound && matches!(intent.step, Step::Destroy { .. }) => Ok(()),
            other => self.seen(other),
        }
    }

    async fn account_number(&self) -> Result<Option<String>, CloudError> {
        let Some(region) = self.regions.first() else { return Ok(None) };
        let asking = || async {
            let arn = self.identity(region).await?;
            Ok(arn.split(':').nth(4).map(str::to_owned))
        };
        self.number.get_or_try_init(asking).await.cloned()
    }

    fn soak_min(&self) -> Duration {
        self.config.patience.soak_min
    }

    fn clock_offset(&self) -> Option<SignedDuration> {
        self.gatekeeper.clock_offset()
    }

    async fn claim(&self, region: &RegionName, claimant: &Claimant) -> Result<Claim, CloudError> {
        self.seen(claim::take(self.place(region)?, claimant).await)
    }

    async fn calls_for(&self, region: &RegionName, step: &Step) -> Result<Vec<String>, CloudError> {
        let calls = Self::calls_for(self, region, step).await?;
        Ok(calls.iter().map(ToString::to_string).collect())
    }

    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        let why = format!("images at AWS are baked, not imported: `{}` stays where it is", path.display());
        Err(CloudError::Refused { account: self.config.account.clone(), why })
    }
}
