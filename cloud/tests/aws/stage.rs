//! An account at moto with what an operator brings: subnets, an image, a launch template, a balancer with rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use aws_sdk_ec2::types::RequestLaunchTemplateData;
use jiff::{SignedDuration, Timestamp};
use troop_cloud::Cloud as _;
use troop_cloud::aws::operator::{Brought, Operator};
use troop_cloud::aws::{AwsCloud, AwsConfig, Credentials, Patience};
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::inventory::{Group, Inventory};
use troop_policies::leash::{Permit, Unleashed, Warrant};
use troop_policies::step::{How, NewGroup, Size, Step};
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, InstanceId, IntentId, RegionName};

use crate::moto::Moto;
use crate::proxy::Proxy;

/// How long an attempt may take where answers are held back on purpose: longer than a busy machine takes for one.
const ATTEMPT_OF_FAULTS: Duration = Duration::from_secs(3);

/// Waits in tests are short; moto shows at once what was written.
fn impatient(attempt: Duration, snapshot_reused_for: Duration) -> Patience {
    let ms = Duration::from_millis;
    Patience {
        attempt,
        backoff: ms(20),
        look_every: ms(20),
        settle: ms(1),
        snapshot_reused_for,
        pace: 1_000,
        ..Patience::default()
    }
}

/// Everything that a test needs.
pub(crate) struct Stage {
    pub(crate) cloud: AwsCloud,
    pub(crate) proxy: Proxy,
    pub(crate) image: ImageId,
    /// Straight to moto, past the proxy: what the operator and the world do.
    pub(crate) operator: Operator,
    /// The listener whose rules lead to clusters.
    pub(crate) listener: String,
    /// As whom and how `cloud` asks.
    pub(crate) config: AwsConfig,
    priority: AtomicI32,
    intents: AtomicI32,
    // Last: what talks to it ends first.
    pub(crate) moto: Moto,
}

pub(crate) fn region() -> RegionName {
    RegionName::new("us-east-1").unwrap()
}

#[expect(clippy::disallowed_methods, reason = "signatures and permits are made by the real clock")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

impl Stage {
    /// A stage for faults.
    pub(crate) async fn new() -> Self {
        Self::with(ATTEMPT_OF_FAULTS, Duration::ZERO).await
    }

    /// A stage whose cloud waits this long for an answer, and hands a picture out again for this long.
    pub(crate) async fn with(attempt: Duration, snapshot_reused_for: Duration) -> Self {
        Self::at(Moto::start().await, attempt, snapshot_reused_for).await
    }

    /// A stage at this moto.
    pub(crate) async fn at(moto: Moto, attempt: Duration, snapshot_reused_for: Duration) -> Self {
        let proxy = Proxy::start(&moto.url).await;
        let operator = Operator::at(&moto.url, &region()).unwrap();
        let Brought { settings, images, listener } = operator.bring(&["hello-1.0.0"], &[]).await.unwrap();
        tokio::spawn(operator.clone().keep_registering());
        let config = AwsConfig {
            account: AccountName::new("prod").unwrap(),
            role_arn: None,
            regions: BTreeMap::from([(region(), settings)]),
            credentials: keys(),
            name_tags: None,
            endpoint_url: Some(proxy.url.clone()),
            patience: impatient(attempt, snapshot_reused_for),
            seed: 1,
            clock: Arc::new(now),
        };
        Self {
            cloud: Box::pin(AwsCloud::new(config.clone())).await,
            config,
            proxy,
            image: images[0].clone(),
            operator,
            listener,
            priority: AtomicI32::new(1),
            intents: AtomicI32::new(0),
            moto,
        }
    }

    /// Makes the rule that leads to a cluster, as an operator would.
    pub(crate) async fn route(&self, cluster: &ClusterName) {
        let priority = self.priority.fetch_add(1, Ordering::Relaxed);
        self.operator.route(&self.listener, cluster, priority).await.unwrap();
    }

    pub(crate) fn intent(&self, step: Step) -> Intent {
        let number = self.intents.fetch_add(1, Ordering::Relaxed);
        Intent {
            id: IntentId::new(format!("test.{number}")).unwrap(),
            account: self.cloud.account().clone(),
            region: region(),
            step,
            cause: Cause::Push { push: 1, actor: "a test".to_owned() },
            at: now(),
        }
    }

    pub(crate) async fn perform(&self, intent: &Intent) -> Outcome {
        let unleashed = Unleashed::for_step(intent, Warrant::Push { halted_before_flip: false }, now()).unwrap();
        self.cloud.perform(intent, Permit::Unleashed(&unleashed), now()).await
    }

    pub(crate) async fn done(&self, step: Step) -> Intent {
        let intent = self.intent(step);
        let outcome = self.perform(&intent).await;
        assert!(outcome.is_done(), "`{}`: {outcome:?}", intent.step);
        intent
    }

    pub(crate) async fn inventory(&self) -> Inventory {
        self.cloud.inventory(&region()).await.unwrap()
    }

    pub(crate) async fn look(&self, name: &GroupName) -> Group {
        self.inventory().await.groups.remove(name).unwrap()
    }

    pub(crate) async fn create(&self, name: &GroupName, size: u32) {
        let group = NewGroup {
            name: name.clone(),
            image: self.image.clone(),
            zones: self.inventory().await.zones,
            tags: BTreeMap::from([("troop:team".to_owned(), "web".to_owned())]),
            has_targets: true,
        };
        self.done(Step::CreateGroup { group }).await;
        self.done(Step::Resize { group: name.clone(), size: Size::pinned(size) }).await;
    }

    /// A cluster whose v000 serves with `size` members.
    pub(crate) async fn serving(&self, cluster: &str, size: u32) -> GroupName {
        let cluster = ClusterName::new(cluster).unwrap();
        self.route(&cluster).await;
        let group = cluster.group(0);
        self.create(&group, size).await;
        self.done(Step::Flip { cluster, to: group.clone() }).await;
        group
    }

    pub(crate) async fn members(&self, group: &GroupName) -> Vec<InstanceId> {
        self.look(group).await.members.into_keys().collect()
    }

    pub(crate) async fn crash(&self, group: &GroupName) -> Intent {
        let instance = self.members(group).await.remove(0);
        self.intent(Step::Terminate { group: group.clone(), instance, kill: How::Crash })
    }

    /// Moves the beginning of an intent in the journal this far back, as if it had lain there for so long.
    pub(crate) async fn age(&self, intent: &Intent, by: SignedDuration) {
        let filter = aws_sdk_ec2::types::Filter::builder().name("tag:troop:intent").values(intent.id.as_str()).build();
        let found = self.operator.ec2.describe_launch_templates().filters(filter).send().await.unwrap();
        let name = found.launch_templates()[0].launch_template_name().unwrap().to_owned();
        let read =
            self.operator.ec2.describe_launch_template_versions().launch_template_name(&name).send().await.unwrap();
        let text = read.launch_template_versions()[0].version_description().unwrap().to_owned();
        let [word, at, step] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
        let at = at.parse::<Timestamp>().unwrap().checked_sub(by).unwrap();
        self.operator.ec2.delete_launch_template().launch_template_name(&name).send().await.unwrap();
        let data = read.launch_template_versions()[0].launch_template_data().unwrap().clone();
        let data = RequestLaunchTemplateData::builder()
            .set_instance_initiated_shutdown_behavior(data.instance_initiated_shutdown_behavior().cloned())
            .build();
        let again = self.operator.ec2.create_launch_template().launch_template_name(&name).launch_template_data(data);
        again.version_description(format!("{word} {at} {step}")).send().await.unwrap();
    }
}

pub(crate) fn keys() -> Credentials {
    Credentials::Static { key_id: "AKIATESTTESTTEST".to_owned(), secret: "secret".to_owned() }
}
