//! Carrying out a step: entered in the journal, checked right before, done, and read back.
//!
//! A step is refused as long as nothing of it was sent, or AWS said no to all of it. Whatever else goes wrong is unknown, until
//! [`resolve`] finds it in the journal or in the world.

mod create;
mod destroy;
mod flip;
mod planned;
mod settings;
mod terminate;

use aws_sdk_autoscaling::types::{AutoScalingGroup, Tag};
use jiff::{SignedDuration, Timestamp};
use troop_policies::GroupName;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::step::Step;

use super::calls::{Call, PlannedCall};
use super::fault::{Fault, Kind};
use super::gatekeeper::{ACT_MAX, within};
use super::inventory::Snapshot;
use super::journal::{self, Entered, First, IN_FLIGHT_MAX};
use super::names::RealName;
use super::wire::{Again, Wire};
use super::{Place, groups, tags};

/// Old entries of the journal are looked for this often.
const SWEEP_EVERY: SignedDuration = SignedDuration::from_hours(1);
/// How often what was written is looked for before it is said not to be seen.
const LOOKS: u32 = 10;

/// Why a step did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// Nothing changed.
    Refused(String),
    Unknown(String),
}

impl Stop {
    /// A look that failed before anything was changed.
    fn unseen(fault: Fault) -> Self {
        Self::Refused(format!("it could not be looked at first, so nothing was changed: {fault}"))
    }

    /// A change that failed, where nothing was changed before it.
    fn first_change(fault: Fault) -> Self {
        if fault.may_have_happened() { Self::Unknown(fault.to_string()) } else { Self::Refused(fault.to_string()) }
    }

    /// A change or a look that failed after something had been changed.
    fn half_way(done: &str, fault: Fault) -> Self {
        Self::Unknown(format!("{done}, and then: {fault}"))
    }
}

type Ended = Result<String, Stop>;

/// Carries out an intent's step, whose permit was checked.
pub(super) async fn perform(place: &Place, intent: &Intent) -> Outcome {
    let step = &intent.step;
    if step.is_for_registry() || step.is_for_agent() {
        return Outcome::refused(format!("`{}` is not the cloud's to do", step.kind()));
    }
    let now = place.now();
    let Ok(until) = now.checked_add(ACT_MAX) else { return Outcome::refused("the clock is at its end") };
    let acting = async {
        match journal::enter(&place.wire, intent, First::Begun, now).await {
            Err(fault) if fault.may_have_happened() => {
                return Outcome::unknown(format!("nothing but its entry in the journal was sent: {fault}"));
            }
            Err(fault) => return Outcome::refused(fault.to_string()),
            Ok(Entered::Before(entry)) => return again(intent, entry),
            Ok(Entered::Ours) => {}
        }
        let ended = begin(place, intent).await;
        let outcome = journal::clipped(match ended {
            Ok(detail) => Outcome::done(detail),
            Err(Stop::Refused(why)) => Outcome::refused(why),
            Err(Stop::Unknown(why)) => Outcome::unknown(why),
        });
        if !matches!(outcome, Outcome::Unknown { .. })
            && let Err(fault) = journal::settle(&place.wire, intent, &outcome).await
        {
            // The world shows a thing done; one refused stays unknown to whoever resolves, for a while.
            tracing::warn!(intent = %intent.id, %fault, "the journal did not take what became of an act");
        }
        sweep(place).await;
        outcome
    };
    let outcome = within(until, acting).await;
    place.forget().await;
    outcome
}

/// What to answer to an intent that comes again.
fn again(intent: &Intent, entry: journal::Entry) -> Outcome {
    if entry.begun.as_ref().is_some_and(|(_, step)| *step != journal::step_digest(intent)) {
        return Outcome::refused("its id is taken by another step");
    }
    entry.settled.unwrap_or_else(|| Outcome::unknown("it was begun before, and how it ended was not written"))
}

async fn begin(place: &Place, intent: &Intent) -> Ended {
    match &intent.step {
        Step::Terminate { group, instance, kill } => terminate::terminate(place, group, instance, *kill).await,
        Step::CreateGroup { group } => create::create(place, intent, group).await,
        Step::Resize { group, size } => settings::resize(place, group, *size).await,
        Step::Flip { cluster, to } => flip::flip(place, cluster, to).await,
        Step::Enable { group } => settings::enable(place, group).await,
        Step::Disable { group, drain } => settings::disable(place, group, *drain).await,
        Step::Destroy { group } => destroy::destroy(place, group).await,
        Step::OverrideGroup { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => {
            Err(Stop::Refused(format!("`{}` is not the cloud's to do", intent.step.kind())))
        }
    }
}

/// Says what became of an intent, and refuses from now on what never came. Changes nothing but the journal.
///
/// # Errors
/// [`Fault`]: AWS cannot say.
pub(super) async fn resolve(place: &Place, intent: &Intent) -> Result<Outcome, Fault> {
    let now = place.now();
    let until = now.checked_add(ACT_MAX).unwrap_or(now);
    within(until, async {
        let entry = match journal::enter(&place.wire, intent, First::Refused, now).await? {
            Entered::Ours => return Ok(journal::never_came()),
            Entered::Before(entry) => entry,
        };
        let Some((begun_at, _)) = entry.begun.clone().filter(|_| entry.settled.is_none()) else {
            return Ok(again(intent, entry));
        };
        if let outcome @ Outcome::Refused { .. } = again(intent, entry) {
            return Ok(outcome);
        }
        let found = if seen(place, intent).await? {
            Outcome::done("its effect is seen")
        } else if now.duration_since(begun_at).unsigned_abs() < IN_FLIGHT_MAX {
            let limit = IN_FLIGHT_MAX.as_secs();
            return Ok(Outcome::unknown(format!(
                "begun {begun_at}; its effect is not seen, and may come within {limit} s"
            )));
        } else {
            Outcome::refused("it was begun, and nothing came of it")
        };
        journal::settle(&place.wire, intent, &found).await?;
        // Whoever settled it first has the word.
        let entry = journal::find(&place.wire, intent).await?;
        Ok(entry.and_then(|entry| entry.settled).unwrap_or(found))
    })
    .await
}

/// The calls that a step will make, in their order, by this picture.
///
/// # Errors
/// Why the step would be refused as it is now, for people.
pub(super) async fn planned(place: &Place, snapshot: &Snapshot, step: &Step) -> Result<Vec<PlannedCall>, String> {
    planned::calls(place, snapshot, step).await.map_err(|stop| match stop {
        Stop::Refused(why) | Stop::Unknown(why) => why,
    })
}

/// Whether the world shows the step's effect.
async fn seen(place: &Place, intent: &Intent) -> Result<bool, Fault> {
    if let Step::Terminate { group, instance, kill } = &intent.step {
        return terminate::ended(place, group, instance, *kill).await.map(|ended| ended.is_some());
    }
    let snapshot = place.read().await?;
    let group = snapshot.groups.get(intent.step.group());
    Ok(match &intent.step {
        Step::CreateGroup { .. } => {
            group.is_some_and(|group| groups::tag(group, tags::INTENT) == Some(intent.id.as_str()))
        }
        Step::Destroy { .. } => {
            group.is_none_or(|group| group.status().is_some_and(|status| status.contains("Delete")))
        }
        Step::Resize { .. } | Step::Flip { .. } | Step::Enable { .. } | Step::Disable { .. } => {
            intent.step.seen_in(&snapshot.inventory).unwrap_or(false)
        }
        // Above, and never begun here.
        Step::Terminate { .. } | Step::OverrideGroup { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => false,
    })
}

/// Whether old entries of the journal are looked for by the next step.
fn is_sweep_due(place: &Place) -> bool {
    let swept_at = place.swept_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sweep_is_due(*swept_at, place.now())
}

fn sweep_is_due(swept_at: Option<Timestamp>, now: Timestamp) -> bool {
    swept_at.is_none_or(|at| now.duration_since(at) >= SWEEP_EVERY)
}

async fn sweep(place: &Place) {
    let now = place.now();
    {
        let mut swept_at = place.swept_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !sweep_is_due(*swept_at, now) {
            return;
        }
        *swept_at = Some(now);
    }
    if let Err(fault) = journal::sweep(&place.wire, now).await {
        tracing::debug!(%fault, "old entries of the journal stay for now");
    }
}

/// A group that may be acted on.
fn group<'a>(snapshot: &'a Snapshot, name: &GroupName) -> Result<&'a AutoScalingGroup, Stop> {
    let group = snapshot.groups.get(name).ok_or_else(|| Stop::Refused(format!("there is no group `{name}`")))?;
    if groups::tag(group, tags::DESTROYING).is_some() {
        return Err(Stop::Refused(format!("`{name}` is being destroyed")));
    }
    Ok(group)
}

/// The other enabled groups of the cluster.
fn other_enabled<'a>(snapshot: &'a Snapshot, name: &'a GroupName) -> impl Iterator<Item = &'a GroupName> {
    let groups = snapshot.inventory.groups.iter();
    let others = groups.filter(move |(other, _)| *other != name && other.cluster() == name.cluster());
    others.filter(|(_, group)| group.enabled).map(|(other, _)| other)
}

/// Whether another enabled group of the cluster has an instance in service. One that is only there serves nobody.
fn another_serves(snapshot: &Snapshot, name: &GroupName) -> bool {
    use troop_policies::inventory::Lifecycle::InService;
    other_enabled(snapshot, name)
        .filter_map(|other| snapshot.inventory.groups.get(other))
        .any(|group| group.members.values().any(|member| member.lifecycle == InService))
}

/// Reads one group by its name; `None` also where it is not known by that name any more.
async fn read_group(place: &Place, name: &GroupName) -> Result<Option<AutoScalingGroup>, Fault> {
    let (wire, call) = (&place.wire, Call::DescribeAutoScalingGroups);
    let real = place.real(name).await?;
    let ask = || wire.scaling.describe_auto_scaling_groups().auto_scaling_group_names(real.as_str()).send();
    let found = wire.read(call, ask).await?.auto_scaling_groups().first().cloned();
    Ok(found.filter(|found| place.is_known_as(found, name)))
}

/// Looks until `so` holds of the group.
async fn wait_until(
    place: &Place,
    name: &GroupName,
    so: impl Fn(Option<&AutoScalingGroup>) -> bool,
) -> Result<bool, Fault> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(place.wire.patience.look_every).await;
        }
        if so(read_group(place, name).await?.as_ref()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a tag on a group. Writing it twice is harmless.
pub(super) async fn write_tag(place: &Place, name: &GroupName, key: &str, value: &str) -> Result<(), Fault> {
    // Tags on a group that is not there are taken by some, and are then nobody's.
    let Some(found) = read_group(place, name).await? else {
        let call = Call::DescribeAutoScalingGroups;
        return Err(Fault { call, kind: Kind::NotFound, code: None, message: format!("there is no group `{name}`") });
    };
    let (wire, call, real) = (&place.wire, Call::CreateOrUpdateTags, RealName::of(&found));
    let ask = || {
        let tag = group_tag(&real, key, value, false);
        wire.scaling.create_or_update_tags().tags(tag).send()
    };
    wire.change(call, Again::Harmless, ask).await.map(|_| ())
}

async fn delete_tag(wire: &Wire, name: &RealName, key: &str) -> Result<(), Fault> {
    let ask = || wire.scaling.delete_tags().tags(group_tag(name, key, "", false)).send();
    wire.change(Call::DeleteTags, Again::Harmless, ask).await.map(|_| ())
}

fn group_tag(name: &RealName, key: &str, value: &str, propagate: bool) -> Tag {
    Tag::builder()
        .resource_id(name.as_str())
        .resource_type("auto-scaling-group")
        .key(key)
        .value(value)
        .propagate_at_launch(propagate)
        .build()
}
