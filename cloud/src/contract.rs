//! The contract of [`Cloud`] as tests that any implementation must pass, also over a connection that loses things.
//!
//! An implementation provides a [`Subject`]; [`run_all`] drives it and tells what it broke. Each case uses clusters of
//! its own, so that one cloud can be tested again and again.

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::inventory::{Group, Inventory, TAG_MARK};
use troop_policies::leash::{Permit, Unleashed, Warrant};
use troop_policies::step::{NewGroup, Size, Step};
use troop_policies::{ClusterName, GroupName, ImageId, IntentId, RegionName};

use crate::Cloud;

/// How long anything that takes time may take: instances boot and become healthy.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// Pause between two looks at what takes time.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a connection loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The request, before it reaches the cloud.
    Request,
    /// The answer, after the effect.
    Answer,
}

/// A cloud under test.
#[async_trait]
pub trait Subject: Send + Sync {
    fn cloud(&self) -> &dyn Cloud;

    /// The same cloud by a way that can lose things.
    fn losing(&self) -> &dyn Cloud;

    /// Loses this of the next call by [`Subject::losing`].
    fn lose_next(&self, loss: Loss);

    /// The time by which permits are made and checked.
    fn now(&self) -> Timestamp;

    /// An image whose instances become healthy.
    fn image(&self) -> ImageId;

    /// Letters and digits that no earlier run against the same cloud has used.
    fn run_id(&self) -> String;

    /// Makes what has to be there before a cluster's first group: at AWS a balancer's rule, which is not Troop's to make.
    ///
    /// # Errors
    /// Why it could not be made.
    async fn prepare(&self, _cluster: &ClusterName) -> Result<(), String> {
        Ok(())
    }

    /// Whether members are spread over their group's zones. A double of AWS (moto) puts all of a group into its first zone,
    /// so that the spread is not Troop's to show there; AWS itself spreads.
    fn spreads_over_zones(&self) -> bool {
        true
    }
}

/// A part of the contract that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub case: &'static str,
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.why)
    }
}

/// Runs every case, one after the other, and returns what was broken.
pub async fn run_all(subject: &dyn Subject) -> Vec<Failure> {
    /// Runs one case and notes why it broke.
    macro_rules! run {
        ($($case:ident),+ $(,)?) => {{
            let mut failures = Vec::new();
            $(
                let desk = Desk::new(subject, stringify!($case));
                let result = match desk {
                    Ok(desk) => match subject.prepare(&desk.cluster).await {
                        Ok(()) => cases::$case(&desk).await,
                        Err(why) => Err(why),
                    },
                    Err(why) => Err(why),
                };
                if let Err(why) = result {
                    failures.push(Failure { case: stringify!($case), why });
                }
            )+
            failures
        }};
    }
    run!(
        the_same_intent_twice_takes_effect_once,
        a_refused_step_changes_nothing,
        without_a_valid_permit_nothing_changes,
        the_group_in_rotation_is_protected,
        the_last_enabled_group_is_protected,
        resolving_what_never_came_never_acts,
        a_lost_request_has_no_effect,
        a_lost_answer_leaves_one_effect,
        a_flip_moves_the_rotation_whole,
        a_group_is_kept_at_its_size,
        a_destroyed_group_goes_with_its_instances,
        a_mark_written_twice_is_one_mark,
    )
}

type Checked = Result<(), String>;

/// What a case works with.
struct Desk<'a> {
    subject: &'a dyn Subject,
    region: RegionName,
    cluster: ClusterName,
    count: AtomicU64,
}

impl<'a> Desk<'a> {
    fn new(subject: &'a dyn Subject, case: &str) -> Result<Self, String> {
        let region = subject.cloud().regions().first().cloned().ok_or("the cloud has no region")?;
        let cluster = ClusterName::new(format!("{case}.{}", subject.run_id())).map_err(|e| e.to_string())?;
        Ok(Self { subject, region, cluster, count: AtomicU64::new(0) })
    }

    fn cloud(&self) -> &dyn Cloud {
        self.subject.cloud()
    }

    fn group(&self, sequence: u32) -> GroupName {
        self.cluster.group(sequence)
    }

    fn intent(&self, step: Step) -> Result<Intent, String> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}.{number}", self.cluster);
        Ok(Intent {
            id: IntentId::new(id).map_err(|e| e.to_string())?,
            account: self.cloud().account().clone(),
            region: self.region.clone(),
            step,
            cause: Cause::Push { push: 1, actor: "contract".to_owned() },
            at: self.subject.now(),
        })
    }

    /// A permit as a recorded push gives it, made `age` ago.
    fn permit(&self, intent: &Intent, age: SignedDuration) -> Result<Unleashed, String> {
        let made_at = self.subject.now().checked_sub(age).map_err(|e| e.to_string())?;
        Unleashed::for_step(intent, Warrant::Push { halted_before_flip: false }, made_at).map_err(|e| e.to_string())
    }

    async fn perform_by(&self, cloud: &dyn Cloud, intent: &Intent) -> Result<Outcome, String> {
        let unleashed = self.permit(intent, SignedDuration::ZERO)?;
        Ok(cloud.perform(intent, Permit::Unleashed(&unleashed), self.subject.now()).await)
    }

    async fn perform(&self, intent: &Intent) -> Result<Outcome, String> {
        self.perform_by(self.cloud(), intent).await
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, String> {
        self.cloud().resolve(intent).await.map_err(|e| e.to_string())
    }

    async fn done(&self, step: Step) -> Result<Intent, String> {
        let intent = self.intent(step)?;
        let outcome = self.perform(&intent).await?;
        if outcome.is_done() {
            Ok(intent)
        } else {
            Err(format!("`{}` should be done and was {outcome:?}", intent.step))
        }
    }

    async fn refused(&self, step: Step) -> Checked {
        let intent = self.intent(step)?;
        let outcome = self.perform(&intent).await?;
        let is_refused = matches!(outcome, Outcome::Refused { .. });
        that(is_refused, &format!("`{}` is refused; it was {outcome:?}", intent.step))
    }

    async fn inventory(&self) -> Result<Inventory, String> {
        self.cloud().inventory(&self.region).await.map_err(|e| e.to_string())
    }

    async fn look(&self, name: &GroupName) -> Result<Group, String> {
        self.inventory().await?.groups.remove(name).ok_or_else(|| format!("there is no group `{name}`"))
    }

    /// Looks until `so` holds of the region.
    async fn wait_for(&self, what: &str, so: impl Fn(&Inventory) -> bool) -> Result<Inventory, String> {
        let looking = async {
            loop {
                let inventory = self.inventory().await?;
                if so(&inventory) {
                    return Ok(inventory);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let late = || format!("after {} s: not {what}", SETTLES_WITHIN.as_secs());
        tokio::time::timeout(SETTLES_WITHIN, looking).await.map_err(|_| late())?
    }

    fn new_group(&self, name: &GroupName, inventory: &Inventory, has_targets: bool) -> Step {
        let tags = BTreeMap::from([("troop:team".to_owned(), "contract".to_owned())]);
        let zones = inventory.zones.clone();
        Step::CreateGroup {
            group: NewGroup { name: name.clone(), image: self.subject.image(), zones, tags, has_targets },
        }
    }

    async fn create(&self, sequence: u32, has_targets: bool) -> Result<GroupName, String> {
        let name = self.group(sequence);
        self.done(self.new_group(&name, &self.inventory().await?, has_targets)).await?;
        Ok(name)
    }

    /// A group with `size` healthy instances.
    async fn start(&self, sequence: u32, size: u32, has_targets: bool) -> Result<GroupName, String> {
        let name = self.create(sequence, has_targets).await?;
        self.done(Step::Resize { group: name.clone(), size: Size::pinned(size) }).await?;
        self.whole(&name, size).await?;
        Ok(name)
    }

    /// Waits until a group has exactly `size` members, all healthy.
    async fn whole(&self, name: &GroupName, size: u32) -> Result<Group, String> {
        let size = usize::try_from(size).map_err(|e| e.to_string())?;
        let is_whole = |inventory: &Inventory| {
            let at = inventory.read_at;
            inventory.groups.get(name).is_some_and(|g| g.members.len() == size && g.healthy(at).count() == size)
        };
        let mut inventory = self.wait_for(&format!("`{name}` has {size} healthy instances"), is_whole).await?;
        inventory.groups.remove(name).ok_or_else(|| format!("there is no group `{name}`"))
    }

    /// A cluster whose v000 is in rotation.
    async fn serving(&self, size: u32) -> Result<GroupName, String> {
        let name = self.start(0, size, true).await?;
        self.flip(&name).await?;
        Ok(name)
    }

    async fn flip(&self, to: &GroupName) -> Result<Intent, String> {
        self.done(Step::Flip { cluster: self.cluster.clone(), to: to.clone() }).await
    }

    /// All of this case's groups but what changes by itself (health, lifecycles).
    async fn shape(&self) -> Result<Vec<(GroupName, String)>, String> {
        let inventory = self.inventory().await?;
        let of_case = inventory.groups.into_iter().filter(|(name, _)| *name.cluster() == self.cluster);
        let shape = |(name, g): (GroupName, Group)| {
            let members: BTreeSet<_> = g.members.into_keys().collect();
            let text = format!(
                "{} {} {:?} {:?} {} {} {} {members:?}",
                g.image, g.size, g.zones, g.tags, g.enabled, g.in_rotation, g.has_targets
            );
            (name, text)
        };
        Ok(of_case.map(shape).collect())
    }
}

fn same<T: PartialEq + fmt::Debug>(what: &str, expected: &T, found: &T) -> Checked {
    if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

fn that(holds: bool, what: &str) -> Checked {
    if holds { Ok(()) } else { Err(format!("it does not hold that {what}")) }
}
