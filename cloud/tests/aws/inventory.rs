//! What a read costs, and that who only looks changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use troop_cloud::Cloud as _;
use troop_policies::ClusterName;
use troop_policies::inventory::Lifecycle;
use troop_policies::step::Step;

use crate::stage::{Stage, region};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_region_is_read_whole_in_the_fewest_calls_and_without_a_change() {
    let stage = Stage::with(Duration::from_secs(30), Duration::from_secs(60)).await;
    let groups = [stage.serving("shop-web", 3).await, stage.serving("shop-api", 2).await];
    // Not in play: nobody's team is on it. And one whose name says nothing to us.
    for name in ["legacy-db-v001", "no name of ours"] {
        let group =
            stage.operator.scaling.create_auto_scaling_group().auto_scaling_group_name(name).min_size(1).max_size(1);
        let template = aws_sdk_autoscaling::types::LaunchTemplateSpecification::builder().launch_template_name("base");
        let group = group.launch_template(template.build()).availability_zones("us-east-1a");
        group.send().await.unwrap();
    }
    stage.done(Step::Enable { group: groups[0].clone() }).await;
    stage.proxy.forget_audit();
    let read = stage.inventory().await;
    for (group, size) in groups.iter().zip([3, 2]) {
        let group = &read.groups[group];
        assert!(group.enabled && group.in_rotation && group.has_targets);
        assert_eq!((group.healthy(read.read_at).count(), group.members.len()), (size, size));
        assert_eq!((group.version.as_deref(), &group.image), (Some("hello-1.0.0"), &stage.image));
        let member = group.members.values().next().unwrap();
        assert_eq!((member.port, member.lifecycle), (7001, Lifecycle::InService));
        assert!(member.address.is_some());
    }
    assert_eq!(read.groups.len(), 3);
    assert_eq!(stage.cloud.groups_skipped(&region()).await, Some(1));

    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for seen in stage.proxy.audit() {
        assert!(seen.action.starts_with("Describe"), "{seen:?} changes something");
        *calls.entry(seen.action).or_default() += 1;
    }
    // Pages of everything, one balancer with one listener; health is a call for each of the two groups in play.
    let expected = [
        ("DescribeAutoScalingGroups", 1),
        ("DescribeInstances", 1),
        ("DescribeListeners", 1),
        ("DescribeRules", 1),
        ("DescribeScalingActivities", 1),
        ("DescribeTargetGroups", 1),
        ("DescribeTargetHealth", 2),
    ];
    assert_eq!(calls, expected.map(|(call, count)| (call.to_owned(), count)).into());
    // The picture is handed out again, and after a change it is not.
    stage.inventory().await;
    assert_eq!(stage.proxy.count("DescribeInstances"), 1);
    stage.done(Step::Enable { group: groups[0].clone() }).await;
    stage.proxy.forget_audit();
    stage.inventory().await;
    assert_eq!(stage.proxy.count("DescribeInstances"), 1);

    let images = stage.cloud.images(&region()).await.unwrap();
    let images: Vec<(&str, &str)> = images.iter().map(|image| (image.name.as_str(), image.version.as_str())).collect();
    assert_eq!(images, [("hello", "1.0.0")]);
    let traffic = stage.cloud.traffic(&region(), &ClusterName::new("shop-web").unwrap()).await.unwrap();
    assert_eq!(traffic.keys().collect::<Vec<_>>(), [&groups[0]]);
    assert!(stage.cloud.identity(&region()).await.unwrap().starts_with("arn:aws:"));
    assert!(stage.cloud.calls_sent().values().sum::<u64>() > 50);
}
