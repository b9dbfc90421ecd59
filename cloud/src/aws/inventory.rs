//! One region, read in the fewest calls: groups, the instances of groups and failed launches at once, then the balancers' side
//! of the groups in play, and whatever is not known yet of images and templates.
//!
//! In play are the clusters of which a group carries `troop:team`: nobody else's can be hurt or pushed, and target health
//! costs a call a target group. A read that fails in any part fails as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aws_sdk_autoscaling::types::{Activity, AutoScalingGroup, ScalingActivityStatusCode};
use aws_sdk_ec2::types::{Filter, Instance as Ec2Instance};
use jiff::{SignedDuration, Timestamp};
use troop_policies::inventory::{Inventory, TAG_TEAM};
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, RegionName, ZoneName};

use super::balancing::{self, Balancing};
use super::calls::Call;
use super::config::{NameTags, RegionConfig};
use super::fault::{Fault, Kind};
use super::images::Known;
use super::names::Names;
use super::wire::Wire;
use super::{groups, raw};

/// As many groups a page as AWS gives.
const GROUPS_A_PAGE: i32 = 100;
const INSTANCES_A_PAGE: i32 = 1_000;
/// Failed launches older than this hold nobody back.
const ACTIVITIES_FOR: SignedDuration = SignedDuration::from_hours(1);
/// Most pages of activities: a hundred each, newest first.
const ACTIVITY_PAGES_MAX: usize = 10;
/// Most pages of anything; more than that is a server that never ends.
const PAGES_MAX: usize = 1_000;

/// One region as it was read: in Troop's words, and in AWS's for those who act.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) inventory: Inventory,
    pub(crate) groups: BTreeMap<GroupName, AutoScalingGroup>,
    pub(crate) balancing: Balancing,
    /// Groups whose names are no names of ours.
    pub(crate) skipped: usize,
    /// Which group of AWS's is meant by a name.
    pub(crate) names: Arc<Names>,
}

/// What is known of a region and does not change.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) images: Known,
    zones: tokio::sync::OnceCell<BTreeSet<ZoneName>>,
    /// Instances that were found to be protected from termination, which only a call an instance tells.
    pub(crate) protected: std::sync::Mutex<BTreeSet<String>>,
    /// The names of the last read.
    names: std::sync::Mutex<Option<Arc<Names>>>,
}

impl Memory {
    /// The names of the last read, if there was one.
    pub(crate) fn names(&self) -> Option<Arc<Names>> {
        self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Keeps the names that were read, and says what is new to people.
    fn keep(&self, names: Arc<Names>, region: &RegionName) {
        let mut last = self.names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let told = last.as_ref().map(|last| last.notes.as_slice()).unwrap_or_default();
        for note in names.notes.iter().filter(|note| !told.contains(note)) {
            tracing::info!(%region, note, "a group is not known");
        }
        *last = Some(names);
    }
}

/// Reads everything of a region.
///
/// # Errors
/// The first [`Fault`].
pub(crate) async fn read(
    wire: &Wire,
    account: &AccountName,
    config: &RegionConfig,
    name_tags: Option<&NameTags>,
    memory: &Memory,
    now: Timestamp,
) -> Result<Snapshot, Fault> {
    let (all, instances, activities, zones) = futures::try_join!(
        auto_scaling_groups(wire),
        instances(wire),
        activities(wire, now),
        zones(wire, config, memory)
    )?;
    let total = all.len();
    let (groups, names) = Names::sort(all.into_values(), name_tags);
    let names = Arc::new(names);
    memory.keep(names.clone(), &wire.region);
    let skipped = total - groups.len();

    let in_play = in_play(&groups);
    let of_play = groups.iter().filter(|(name, _)| in_play.contains(name.cluster()));
    let arns = of_play.flat_map(|(_, group)| group.target_group_arns().iter().cloned()).collect();
    let image_ids: BTreeSet<ImageId> = instances.values().filter_map(|i| ImageId::new(i.image_id()?).ok()).collect();
    let (balancing, templates) = futures::try_join!(
        balancing::read(wire, &arns, &config.load_balancers, now),
        memory.images.of_groups(wire, groups.values()),
    )?;
    let images = image_ids.into_iter().chain(templates.values().cloned()).collect();
    memory.images.learn(wire, images).await?;

    let protected = memory.protected.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let context = groups::Context {
        instances: &instances,
        failed_launches: &failed_launches(&activities),
        balancing: &balancing,
        in_rotation: &balancing.in_rotation(),
        templates: &templates,
        images: &memory.images,
        protected: &protected,
    };
    let mut shown = BTreeMap::new();
    for (name, group) in &groups {
        let odd = |why: String| Fault {
            call: Call::DescribeAutoScalingGroups,
            kind: Kind::Unanswered,
            code: None,
            message: format!("`{name}`: {why}"),
        };
        let mut group = groups::show(name, group, &context).map_err(odd)?;
        group.hold = group.hold.or_else(|| names.doubt(name.cluster()));
        shown.insert(name.clone(), group);
    }
    // Without them no first group is made, and every other one is made in the zones of its cluster's.
    let zones = zones.unwrap_or_else(|| shown.values().flat_map(|group| group.zones.iter().cloned()).collect());
    let inventory =
        Inventory { account: account.clone(), region: wire.region.clone(), zones, read_at: now, groups: shown };
    Ok(Snapshot { inventory, groups, balancing, skipped, names })
}

fn in_play(groups: &BTreeMap<GroupName, AutoScalingGroup>) -> BTreeSet<ClusterName> {
    let has_team = |group: &AutoScalingGroup| group.tags().iter().any(|tag| tag.key() == Some(TAG_TEAM));
    groups.iter().filter(|(_, group)| has_team(group)).map(|(name, _)| name.cluster().clone()).collect()
}

/// Every group, by its name: a page may show one again. Listed anew, once, where a page's token was not taken any more: half a
/// list is no list.
async fn auto_scaling_groups(wire: &Wire) -> Result<BTreeMap<String, AutoScalingGroup>, Fault> {
    match list_groups(wire).await {
        Err(fault) if token_died(&fault) => list_groups(wire).await,
        other => other,
    }
}

async fn list_groups(wire: &Wire) -> Result<BTreeMap<String, AutoScalingGroup>, Fault> {
    let call = Call::DescribeAutoScalingGroups;
    let mut found = BTreeMap::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let ask = || {
            let request = wire.scaling.describe_auto_scaling_groups().max_records(GROUPS_A_PAGE);
            request.set_next_token(token.clone()).send()
        };
        let page = wire.read(call, ask).await?;
        for group in page.auto_scaling_groups() {
            let name = group.auto_scaling_group_name().ok_or_else(|| Fault::odd(call, "a group's name"))?;
            found.insert(name.to_owned(), group.clone());
        }
        token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
    Err(Fault::odd(call, "an end"))
}

async fn instances(wire: &Wire) -> Result<BTreeMap<String, Ec2Instance>, Fault> {
    match list_instances(wire).await {
        Err(fault) if token_died(&fault) => list_instances(wire).await,
        other => other,
    }
}

async fn list_instances(wire: &Wire) -> Result<BTreeMap<String, Ec2Instance>, Fault> {
    let call = Call::DescribeInstances;
    let of_groups = Filter::builder().name("tag-key").values("aws:autoscaling:groupName").build();
    let mut found = BTreeMap::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let ask = || {
            let request = wire.ec2.describe_instances().filters(of_groups.clone()).max_results(INSTANCES_A_PAGE);
            request.set_next_token(token.clone()).send()
        };
        let page = wire.read(call, ask).await?;
        for instance in page.reservations().iter().flat_map(|reservation| reservation.instances()) {
            let id = instance.instance_id().ok_or_else(|| Fault::odd(call, "an instance's id"))?;
            found.insert(id.to_owned(), instance.clone());
        }
        token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(found);
        }
    }
    Err(Fault::odd(call, "an end"))
}

fn token_died(fault: &Fault) -> bool {
    let codes = ["InvalidNextToken", "InvalidPaginationToken", "InvalidPaginationTokenException"];
    fault.code.as_deref().is_some_and(|code| codes.contains(&code))
}

/// The activities of the last hour, of all groups: the only place where a failed launch shows.
async fn activities(wire: &Wire, now: Timestamp) -> Result<Vec<Activity>, Fault> {
    let call = Call::DescribeScalingActivities;
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..ACTIVITY_PAGES_MAX {
        let ask = || {
            let request = wire.scaling.describe_scaling_activities().max_records(100);
            request.set_next_token(token.clone()).send()
        };
        let page = wire.read(call, ask).await?;
        let recent = |activity: &Activity| {
            let began = activity.start_time().and_then(|at| raw::time(at).ok());
            began.is_none_or(|at| now.duration_since(at) <= ACTIVITIES_FOR)
        };
        let all = page.activities().len();
        let before = found.len();
        found.extend(page.activities().iter().filter(|activity| recent(activity)).cloned());
        token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        // Newest first: an old one on the page ends it.
        if token.is_none() || found.len() - before < all {
            return Ok(found);
        }
    }
    Ok(found)
}

/// The latest failed launch of each group.
fn failed_launches(activities: &[Activity]) -> BTreeMap<String, Timestamp> {
    let mut failed = BTreeMap::new();
    for activity in activities {
        let is_failed = activity.status_code() == Some(&ScalingActivityStatusCode::Failed);
        let is_launch = activity.description().is_some_and(|text| text.starts_with("Launching"));
        let at = activity.start_time().and_then(|at| raw::time(at).ok());
        let (Some(group), Some(at), true) = (activity.auto_scaling_group_name(), at, is_failed && is_launch) else {
            continue;
        };
        failed.entry(group.to_owned()).and_modify(|last: &mut Timestamp| *last = at.max(*last)).or_insert(at);
    }
    failed
}

/// The zones in which a cluster's first group may be: those of the subnets that are named for it, if any are.
async fn zones(wire: &Wire, config: &RegionConfig, memory: &Memory) -> Result<Option<BTreeSet<ZoneName>>, Fault> {
    let Some(first) = &config.first else { return Ok(None) };
    let asking = || async {
        let ask = || wire.ec2.describe_subnets().set_subnet_ids(Some(first.subnets.clone())).send();
        let answer = wire.read(Call::DescribeSubnets, ask).await?;
        let zones = answer.subnets().iter().filter_map(|subnet| ZoneName::new(subnet.availability_zone()?).ok());
        Ok(zones.collect())
    };
    memory.zones.get_or_try_init(asking).await.cloned().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(group: &str, status: ScalingActivityStatusCode, description: &str, second: i64) -> Activity {
        Activity::builder()
            .activity_id("a")
            .auto_scaling_group_name(group)
            .cause("a test")
            .start_time(aws_smithy_types::DateTime::from_secs(second))
            .status_code(status)
            .description(description)
            .build()
    }

    #[test]
    fn the_latest_failed_launch_of_a_group_counts_and_nothing_else_does() {
        use ScalingActivityStatusCode::{Failed, Successful};
        let activities = [
            activity("a-v001", Failed, "Launching a new EC2 instance.  Status Reason: no capacity", 50),
            activity("a-v001", Failed, "Launching a new EC2 instance.", 60),
            activity("a-v001", Successful, "Launching a new EC2 instance: i-1", 70),
            activity("b-v001", Failed, "Terminating EC2 instance: i-2", 70),
        ];
        let expected = BTreeMap::from([("a-v001".to_owned(), Timestamp::from_second(60).unwrap())]);
        assert_eq!(failed_launches(&activities), expected);
    }
}
