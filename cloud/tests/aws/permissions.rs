//! The IAM policy that `troop aws policy` prints, enforced by moto: with it everything goes; without any one action something fails, and
//! names that action.
//!
//! Moto checks names of actions and nothing else: no condition, and no resource but `*`. So the policy is held here without
//! them, and that it is narrow enough is not shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_elasticloadbalancingv2::types::Tag;
use jiff::SignedDuration;
use serde_json::Value;
use troop_cloud::Cloud as _;
use troop_cloud::aws::iam::{Allows, allowed, policy};
use troop_cloud::aws::{AwsCloud, AwsConfig};
use troop_policies::intent::Outcome;
use troop_policies::step::{How, NewGroup, Size, Step};
use troop_policies::{ClusterName, GroupName, InstanceId, ZoneName};

use crate::moto::Moto;
use crate::stage::{Stage, now, region};
use crate::user::User;

/// Actions of the policy that moto never asks for, and why.
const NOT_AT_MOTO: [(&str, &str); 8] = [
    ("autoscaling:DescribeAccountLimits", "only doctor asks, and moto has no such call"),
    ("cloudwatch:GetMetricData", "moto does not speak the protocol in which the SDK asks for it (CBOR)"),
    ("autoscaling:DescribeInstanceRefreshes", "moto has no such call; the proxy answers it"),
    ("ec2:DeleteLaunchTemplateVersions", "moto has no such call; the proxy answers it"),
    ("ec2:CreateTags", "AWS asks for it when something is tagged as it is made"),
    ("ec2:RunInstances", "AWS asks for it when a group is made from a launch template"),
    ("elasticloadbalancing:AddTags", "AWS asks for it when a target group is tagged as it is made"),
    ("iam:PassRole", "AWS asks for it when a launch template has an instance profile"),
];
/// Longer than a settled entry of the journal is kept.
const LATER: SignedDuration = SignedDuration::from_hours(24 * 8);
const SIZE: Size = Size { min: 2, desired: 2, max: 2 };

/// A client that is this user, knows nothing yet, and whose clock is ahead.
async fn client(user: &User, stage: &Stage, ahead: SignedDuration) -> AwsCloud {
    let credentials = user.credentials();
    let clock = Arc::new(move || now().checked_add(ahead).unwrap());
    // Boxed, as what follows: a debug build keeps every future that a function makes on its stack, and those of the SDKs are large.
    Box::pin(AwsCloud::new(AwsConfig { credentials, clock, ..stage.config.clone() })).await
}

struct Clusters {
    /// Led to by a rule, by the listener itself, and by a rule while it has no group.
    shop: ClusterName,
    front: ClusterName,
    other: ClusterName,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn the_policy_is_enough_and_without_any_one_action_it_is_not() {
    let moto = Moto::start_without_signatures().await;
    let mut stage = Box::pin(Stage::at(moto, Duration::from_secs(30), Duration::ZERO)).await;
    let name = |text: &str| ClusterName::new(text).unwrap();
    let clusters = Clusters { shop: name("shop-web"), front: name("front-door"), other: name("shop-api") };
    for cluster in [&clusters.shop, &clusters.other] {
        stage.route(cluster).await;
    }
    let tag = Tag::builder().key("troop:cluster").value(clusters.front.as_str()).build();
    Box::pin(stage.operator.balancing.add_tags().resource_arns(&stage.listener).tags(tag).send()).await.unwrap();
    let user = User::new(&stage.moto.url).await;
    let whole: BTreeSet<String> = allowed(&policy(Allows::Unleashed)).into_iter().collect();
    let not_at_moto = NOT_AT_MOTO.map(|(action, _)| action.to_owned()).into();
    let checked: BTreeSet<String> = whole.difference(&not_at_moto).cloned().collect();

    user.may(&checked).await;
    stage.proxy.forget_audit();
    Box::pin(story(&mut stage, &user, &clusters)).await;
    let mut called = BTreeSet::new();
    for seen in stage.proxy.audit() {
        assert!(!seen.passed_on || seen.status == 200 || is_taken_name(&seen.action, seen.status), "{seen:?}");
        if seen.passed_on && seen.action != "GetCallerIdentity" {
            called.insert(format!("{}:{}", seen.service, seen.action));
        }
    }
    assert_eq!(called, checked, "what the story calls, and what the policy allows");

    for action in &checked {
        user.may(&checked).await;
        stage.cloud = client(&user, &stage, SignedDuration::ZERO).await;
        Box::pin(arrange(&stage, &clusters, action)).await;
        user.may(&checked.iter().filter(|other| *other != action).cloned().collect()).await;
        stage.proxy.forget_audit();
        let said = Box::pin(without(&mut stage, &user, &clusters, action)).await;
        let refused: BTreeSet<String> = stage
            .proxy
            .audit()
            .into_iter()
            .filter(|seen| seen.status == 403)
            .map(|seen| format!("{}:{}", seen.service, seen.action))
            .collect();
        assert_eq!(refused, [action.clone()].into(), "without `{action}`: {said:?}");
        if let Some(said) = said {
            assert!(said.contains(&format!("allow `{action}`")), "without `{action}`: {said}");
        }
    }
}

/// Whose name is taken is asked by making it.
fn is_taken_name(action: &str, status: u16) -> bool {
    action == "CreateLaunchTemplate" && status == 400
}

fn new(stage: &Stage, cluster: &ClusterName, number: u32, zones: &BTreeSet<ZoneName>) -> Step {
    let group = NewGroup {
        name: cluster.group(number),
        image: stage.image.clone(),
        zones: zones.clone(),
        tags: [("troop:team".to_owned(), "web".to_owned())].into(),
        has_targets: true,
    };
    Step::CreateGroup { group }
}

fn kill(group: &GroupName, instance: &InstanceId, how: How) -> Step {
    Step::Terminate { group: group.clone(), instance: instance.clone(), kill: how }
}

const DRAIN: How = How::Drain { delay: Duration::ZERO };

/// Everything that Troop does, as far as moto can carry it. It ends with v000 and v002 of the shop, the first in rotation, the second enabled.
async fn story(stage: &mut Stage, user: &User, clusters: &Clusters) {
    stage.cloud = client(user, stage, SignedDuration::ZERO).await;
    stage.cloud.identity(&region()).await.unwrap();
    assert_eq!(stage.cloud.images(&region()).await.unwrap().len(), 1);
    let zones = stage.inventory().await.zones;
    let Clusters { shop, front, .. } = clusters;
    let [old, next, third] = [0, 1, 2].map(|number| shop.group(number));
    let flip = |to: &GroupName| Step::Flip { cluster: to.cluster().clone(), to: to.clone() };
    stage.done(new(stage, front, 0, &zones)).await;
    for (number, group) in [(0, &old), (1, &next)] {
        stage.done(new(stage, shop, number, &zones)).await;
        stage.done(Step::Resize { group: group.clone(), size: SIZE }).await;
        stage.done(flip(group)).await;
    }
    // The way back, and what was begun is done away with.
    stage.done(flip(&old)).await;
    stage.done(disable(&next)).await;
    stage.done(Step::Destroy { group: next }).await;
    stage.done(new(stage, shop, 2, &zones)).await;
    stage.done(Step::Resize { group: third.clone(), size: SIZE }).await;
    stage.done(Step::Enable { group: third }).await;
    for how in [How::Crash, DRAIN] {
        let instance = stage.members(&old).await.remove(0);
        let intent = stage.done(kill(&old, &instance, how)).await;
        stage.cloud.mark(&intent, "1 2026-11-24T10:30:00Z").await.unwrap();
        assert!(stage.cloud.resolve(&intent).await.unwrap().is_done());
    }

    // A week later old entries of the journal go.
    stage.cloud = client(user, stage, LATER).await;
    stage.done(Step::Enable { group: old }).await;
}

fn disable(group: &GroupName) -> Step {
    Step::Disable { group: group.clone(), drain: Duration::ZERO }
}

/// Brings about what has to be there so that something needs this action.
async fn arrange(stage: &Stage, Clusters { shop, .. }: &Clusters, action: &str) {
    let [third, fourth] = [2, 4].map(|number| shop.group(number));
    match action.split_once(':').unwrap().1 {
        // The tag goes, and then what was suspended comes back.
        "DeleteTags" | "ResumeProcesses" => {
            stage.done(disable(&third)).await;
        }
        "SuspendProcesses" => {
            stage.done(Step::Enable { group: third }).await;
        }
        // It is denied first that the group is deleted, so it is there the second time.
        "DeleteAutoScalingGroup" => {
            stage.done(new(stage, shop, 4, &zone())).await;
            stage.done(disable(&fourth)).await;
        }
        _ => {}
    }
}

fn zone() -> BTreeSet<ZoneName> {
    [ZoneName::new("us-east-1a").unwrap()].into()
}

/// Does something that needs this action, and returns what was said, where somebody hears it.
async fn without(stage: &mut Stage, user: &User, clusters: &Clusters, action: &str) -> Option<String> {
    let Clusters { shop, front, other } = clusters;
    let [old, third, fourth] = [0, 2, 4].map(|number| shop.group(number));
    let zones = zone();
    let (_, name) = action.split_once(':').unwrap();
    let step = match name {
        "DescribeAutoScalingGroups"
        | "DescribeInstances"
        | "DescribeScalingActivities"
        | "DescribeSubnets"
        | "DescribeTargetGroups"
        | "DescribeTargetHealth"
        | "DescribeListeners"
        | "DescribeRules"
        | "DescribeImages" => {
            return Some(stage.cloud.inventory(&region()).await.unwrap_err().to_string());
        }
        "DescribeLaunchTemplateVersions" => {
            let intent = stage.done(Step::Enable { group: old }).await;
            return Some(stage.cloud.resolve(&intent).await.unwrap_err().to_string());
        }
        "CreateOrUpdateTags" => {
            let intent = stage.intent(Step::Enable { group: old });
            return Some(stage.cloud.mark(&intent, "1 2026-11-24T10:30:00Z").await.unwrap_err().to_string());
        }
        // Old entries are swept aside, and that it does not come off is nobody's concern.
        "DescribeLaunchTemplates" | "DeleteLaunchTemplate" => {
            stage.cloud = client(user, stage, LATER).await;
            stage.done(Step::Enable { group: old }).await;
            return None;
        }
        "TerminateInstances"
        | "DescribeAutoScalingInstances"
        | "DescribeInstanceAttribute"
        | "CreateLaunchTemplate" => kill(&old, &stage.members(&old).await[0], How::Crash),
        "TerminateInstanceInAutoScalingGroup" => kill(&old, &stage.members(&old).await[0], DRAIN),
        "UpdateAutoScalingGroup" => Step::Resize { group: third, size: SIZE },
        "DescribeLifecycleHooks"
        | "DescribeTargetGroupAttributes"
        | "CreateTargetGroup"
        | "ModifyTargetGroupAttributes"
        | "ModifyRule"
        | "CreateLaunchTemplateVersion"
        | "CreateAutoScalingGroup" => new(stage, shop, 5, &zones),
        // Its permission is what the place in the listener needs.
        "ModifyListener" => new(stage, front, 1, &zones),
        "DescribeTags" => new(stage, other, 0, &zones),
        "SuspendProcesses" => disable(&third),
        "DeleteTags" | "ResumeProcesses" => Step::Enable { group: third },
        "DeleteAutoScalingGroup" | "DeleteTargetGroup" => Step::Destroy { group: fourth },
        _ => panic!("nothing here needs `{action}`"),
    };
    let intent = stage.intent(step);
    Some(match stage.perform(&intent).await {
        Outcome::Done { detail } => detail,
        Outcome::Refused { why } | Outcome::Unknown { why } => why,
    })
}

#[test]
fn what_moto_cannot_check_is_in_the_policy_all_the_same() {
    let whole: Vec<String> = allowed(&policy(Allows::Unleashed));
    for (action, why) in NOT_AT_MOTO {
        assert!(whole.iter().any(|allowed| allowed == action), "{action}: {why}");
    }
    let leashed: Value = policy(Allows::Leashed);
    assert!(!allowed(&leashed).iter().any(|action| action.contains(":Create")));
}
