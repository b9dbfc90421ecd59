//! The calls that are said beforehand are those that leave.

use std::collections::BTreeSet;
use std::time::Duration;

use troop_cloud::Cloud as _;
use troop_cloud::aws::calls::PlannedCall;
use troop_policies::ClusterName;
use troop_policies::intent::Intent;
use troop_policies::step::{How, NewGroup, Size, Step};

use crate::proxy::Seen;
use crate::stage::{Stage, region};

/// Asks for the calls of a step, performs and marks it, and compares.
pub(crate) async fn performs_as_planned(stage: &Stage, step: Step) -> Intent {
    let planned = stage.cloud.calls_for(&region(), &step).await.unwrap();
    let listed: Vec<String> = planned.iter().map(ToString::to_string).collect();
    stage.proxy.forget_audit();
    let intent = stage.done(step).await;
    stage.cloud.mark(&intent, "1 2026-11-24T10:30:00Z").await.unwrap();
    let sent = stage.proxy.audit();

    // What changes something: each in its turn, about what was said, and nothing else. Only what had a condition may be missing.
    let mut changes = sent.iter().filter(|seen| mutates(seen)).peekable();
    for call in planned.iter().filter(|planned| planned.call.mutates()) {
        match changes.next_if(|seen| is_it(call, seen)) {
            Some(_) => {}
            None => assert!(call.when.is_some(), "`{call}` is not what left next: {:?}\n{listed:#?}", changes.peek()),
        }
    }
    assert_eq!(changes.next(), None, "left, and was not said: {listed:#?}");

    // What only reads: of the kinds that were said.
    let kinds = |planned: &mut dyn Iterator<Item = &PlannedCall>| {
        planned.filter(|planned| !planned.call.mutates()).map(|planned| planned.call.name().to_owned()).collect()
    };
    let read: BTreeSet<String> = sent.iter().filter(|seen| !mutates(seen)).map(|seen| seen.action.clone()).collect();
    let all: BTreeSet<String> = kinds(&mut planned.iter());
    let certain: BTreeSet<String> = kinds(&mut planned.iter().filter(|planned| planned.when.is_none()));
    assert!(read.is_subset(&all) && certain.is_subset(&read), "read {read:?}\n{listed:#?}");
    intent
}

fn mutates(seen: &Seen) -> bool {
    !["Describe", "Get"].iter().any(|start| seen.action.starts_with(start))
}

/// Whether a call that left is this one: its service and action, and a field of its form that holds every word of what it is about.
fn is_it(planned: &PlannedCall, seen: &Seen) -> bool {
    let is_on = |word: &str| match word.strip_suffix('…') {
        Some(start) => seen.fields().any(|value| value.starts_with(start)),
        // An ARN holds the name of what is only named beforehand.
        None => seen.fields().any(|value| value == word || value.contains(&format!("/{word}/"))),
    };
    let service = planned.call.service().iam_prefix();
    (seen.service.as_str(), seen.action.as_str()) == (service, planned.call.name()) && planned.on.split(' ').all(is_on)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn what_a_step_is_said_to_send_is_what_it_sends() {
    let stage = Stage::with(Duration::from_secs(30), Duration::ZERO).await;
    let cluster = ClusterName::new("shop-web").unwrap();
    stage.route(&cluster).await;
    let new = |number, image: &troop_policies::ImageId, zones| NewGroup {
        name: cluster.group(number),
        image: image.clone(),
        zones,
        tags: [("troop:team".to_owned(), "web".to_owned())].into(),
        has_targets: true,
    };
    let zones = stage.inventory().await.zones;
    let (old, next) = (cluster.group(0), cluster.group(1));
    let flip = |to: &troop_policies::GroupName| Step::Flip { cluster: cluster.clone(), to: to.clone() };
    let size = Size::pinned(2);
    let drain = Duration::ZERO;

    // A cluster's first group, made as the configuration says, and its second, made after the first.
    performs_as_planned(&stage, Step::CreateGroup { group: new(0, &stage.image, zones.clone()) }).await;
    performs_as_planned(&stage, Step::Resize { group: old.clone(), size }).await;
    performs_as_planned(&stage, flip(&old)).await;
    performs_as_planned(&stage, Step::CreateGroup { group: new(1, &stage.image, zones) }).await;
    performs_as_planned(&stage, Step::Resize { group: next.clone(), size }).await;
    performs_as_planned(&stage, Step::Enable { group: next.clone() }).await;
    performs_as_planned(&stage, flip(&next)).await;
    // There and back: what was suspended while it was the way back is resumed.
    performs_as_planned(&stage, flip(&old)).await;
    performs_as_planned(&stage, flip(&old)).await;

    for kill in [How::Crash, How::Drain { delay: drain }] {
        let instance = stage.members(&old).await.remove(0);
        let step = Step::Terminate { group: old.clone(), instance: instance.clone(), kill };
        let planned = stage.cloud.calls_for(&region(), &step).await.unwrap();
        let changes: Vec<String> = planned
            .iter()
            .filter(|planned| planned.call.mutates() && planned.when.is_none())
            .map(ToString::to_string)
            .collect();
        let ends = match kill {
            How::Crash => format!("ec2:TerminateInstances {instance}"),
            How::Drain { .. } => format!("autoscaling:TerminateInstanceInAutoScalingGroup {instance}"),
        };
        let around = |call: &str| format!("ec2:{call} troop-intent-…");
        let mark = format!("autoscaling:CreateOrUpdateTags {old} troop:mark");
        assert_eq!(changes, [around("CreateLaunchTemplate"), ends, around("CreateLaunchTemplateVersion"), mark]);
        performs_as_planned(&stage, step).await;
    }

    performs_as_planned(&stage, Step::Disable { group: next.clone(), drain }).await;
    performs_as_planned(&stage, Step::Enable { group: next.clone() }).await;
    performs_as_planned(&stage, Step::Disable { group: next.clone(), drain }).await;
    let destroy = Step::Destroy { group: next.clone() };
    performs_as_planned(&stage, destroy).await;

    // A push that is only planned: its group is not there yet.
    let third = cluster.group(2);
    for step in [Step::Resize { group: third.clone(), size }, flip(&third), Step::Disable { group: old, drain }] {
        let planned = stage.cloud.calls_for(&region(), &step).await.unwrap();
        assert!(planned.iter().any(|planned| planned.call.mutates()), "{step}");
    }
    // And one of which it is known that it would be refused.
    let elsewhere = ClusterName::new("nobody-knows").unwrap();
    let refused = stage.cloud.calls_for(&region(), &Step::Flip { to: elsewhere.group(0), cluster: elsewhere }).await;
    assert!(refused.unwrap_err().to_string().contains("no rule of a balancer leads to `nobody-knows`"));
}
