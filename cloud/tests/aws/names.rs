//! Groups that are known by their tags: every call still names the group that AWS has.

use std::time::Duration;

use aws_sdk_autoscaling::types::Tag;
use troop_cloud::aws::operator::OtherGroup;
use troop_cloud::aws::{AwsCloud, AwsConfig, NameTags};
use troop_policies::step::{How, NewGroup, Size, Step};
use troop_policies::{ClusterName, GroupName};

use crate::planned::performs_as_planned;
use crate::stage::{Stage, region};

const REAL: &str = "CloudFormation-Web-1A2B3C";

/// A stage whose cloud knows groups by the tags `app`, `env` and `role`.
async fn stage() -> Stage {
    let mut stage = Stage::with(Duration::from_secs(30), Duration::ZERO).await;
    let key = |key: &str| Some(key.to_owned());
    let keys = NameTags { app: "app".to_owned(), stack: key("env"), detail: key("role") };
    stage.config = AwsConfig { name_tags: Some(keys), ..stage.config.clone() };
    stage.cloud = Box::pin(AwsCloud::new(stage.config.clone())).await;
    stage
}

/// Makes a group as other tools do, before `target_groups`.
async fn make(stage: &Stage, name: &str, size: i32, tags: &[(&str, &str)], target_groups: &[String]) {
    let subnets = &stage.config.regions[&region()].first.as_ref().unwrap().subnets;
    stage.operator.group(&OtherGroup { name, size, tags, subnets, target_groups }).await.unwrap();
}

/// What AWS has of a group: its tags and its suspended processes.
async fn at_aws(stage: &Stage, name: &str) -> Option<(Vec<(String, String)>, usize)> {
    let read = stage.operator.scaling.describe_auto_scaling_groups().auto_scaling_group_names(name).send();
    let read = read.await.unwrap();
    let group = read.auto_scaling_groups().first()?;
    let tags = group.tags().iter().map(|tag| (tag.key().unwrap().to_owned(), tag.value().unwrap().to_owned()));
    Some((tags.collect(), group.suspended_processes().len()))
}

fn has(tags: &[(String, String)], key: &str) -> bool {
    tags.iter().any(|(found, _)| found == key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_group_known_by_its_tags_is_hurt_pushed_and_destroyed_by_its_own_name() {
    let stage = stage().await;
    let cluster = ClusterName::new("shop-web").unwrap();
    let tags = [("troop:team", "web"), ("app", "shop"), ("env", "web")];
    stage.route(&cluster).await;
    let target_group = stage.operator.serve(&stage.listener, &cluster).await.unwrap();
    make(&stage, REAL, 3, &tags, &[target_group]).await;
    let known = GroupName::new("shop-web").unwrap();
    let seen = stage.look(&known).await;
    assert!(seen.in_rotation && seen.members.len() == 3 && seen.name == known, "{seen:?}");

    // A kill names the real group wherever it names one, is counted there, and is marked there.
    for kill in [How::Crash, How::Drain { delay: Duration::ZERO }] {
        let instance = stage.members(&known).await.remove(0);
        let step = Step::Terminate { group: known.clone(), instance, kill };
        let planned = stage.cloud.calls_for(&region(), &step).await.unwrap();
        let named: Vec<String> = planned.iter().map(ToString::to_string).filter(|call| call.contains(REAL)).collect();
        assert!(named.contains(&format!("autoscaling:CreateOrUpdateTags {REAL} troop:mark")), "{named:?}");
        assert!(!planned.iter().any(|call| call.to_string().contains("shop-web")), "{planned:?}");
        performs_as_planned(&stage, step).await;
    }
    assert!(has(&at_aws(&stage, REAL).await.unwrap().0, "troop:mark"));
    assert!(stage.look(&known).await.tags.contains_key("troop:mark"));

    // The next version is of the same cluster: named as its cluster, and with the tags.
    let next = cluster.next_group(Some(&known), &stage.inventory().await.groups.into_keys().collect()).unwrap();
    assert_eq!(next.as_str(), "shop-web-v000");
    let group = NewGroup {
        name: next.clone(),
        image: stage.image.clone(),
        zones: seen.zones.clone(),
        tags: stage.look(&known).await.tags,
        has_targets: true,
    };
    performs_as_planned(&stage, Step::CreateGroup { group }).await;
    performs_as_planned(&stage, Step::Resize { group: next.clone(), size: Size::pinned(2) }).await;
    performs_as_planned(&stage, Step::Flip { cluster: cluster.clone(), to: next.clone() }).await;
    let both: Vec<GroupName> =
        stage.inventory().await.groups_of(&cluster).into_iter().map(|group| group.name.clone()).collect();
    assert_eq!(both, [known.clone(), next.clone()]);
    assert!(stage.look(&next).await.in_rotation);
    let (tags, suspended) = at_aws(&stage, REAL).await.unwrap();
    assert!(has(&tags, "troop:suspended") && suspended == 3, "it is the way back: {tags:?}");

    // There and back, then the end of what was there before.
    performs_as_planned(&stage, Step::Flip { cluster: cluster.clone(), to: known.clone() }).await;
    assert_eq!(at_aws(&stage, REAL).await.unwrap().1, 0);
    performs_as_planned(&stage, Step::Flip { cluster: cluster.clone(), to: next.clone() }).await;
    performs_as_planned(&stage, Step::Resize { group: known.clone(), size: Size::pinned(2) }).await;
    performs_as_planned(&stage, Step::Disable { group: known.clone(), drain: Duration::ZERO }).await;
    performs_as_planned(&stage, Step::Enable { group: known.clone() }).await;
    performs_as_planned(&stage, Step::Disable { group: known.clone(), drain: Duration::ZERO }).await;
    performs_as_planned(&stage, Step::Destroy { group: known.clone() }).await;
    assert_eq!(at_aws(&stage, REAL).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_group_that_is_not_known_for_certain_is_not_touched() {
    let stage = stage().await;
    let cluster = ClusterName::new("shop-web").unwrap();
    let tags = [("troop:team", "web"), ("app", "shop"), ("env", "web")];
    make(&stage, REAL, 2, &tags, &[]).await;
    make(&stage, "shop-web-v007", 2, &[("troop:team", "web")], &[]).await;
    make(&stage, "Front-9", 1, &[("troop:team", "web"), ("app", "shop front")], &[]).await;
    let known = GroupName::new("shop-web").unwrap();
    let kill = stage.crash(&known).await;

    // A second group of the same name comes: from then on neither is known, and the cluster is held.
    make(&stage, "Copy-of-Web", 1, &tags, &[]).await;
    let seen = stage.inventory().await;
    let names: Vec<&str> = seen.groups.keys().map(GroupName::as_str).collect();
    assert_eq!(names, ["shop-web-v007"]);
    let both = format!("`{REAL}` and `Copy-of-Web` would each be known as `shop-web`, so none of them is");
    let hold = seen.groups.values().next().unwrap().hold.clone().unwrap();
    let notes = stage.cloud.groups_in_doubt(&region()).await;
    let [bad, twice] = &notes[..] else { panic!("{notes:?}") };
    assert!(bad.starts_with("`Front-9` is not known: by its tags, `shop front` is no application name"), "{bad}");
    assert_eq!(stage.cloud.groups_skipped(&region()).await, Some(3));
    assert_eq!((twice, &hold), (&both, &both));
    let refused = stage.perform(&kill).await;
    assert!(format!("{refused:?}").contains("would each be known as"), "{refused:?}");
    let group = NewGroup {
        name: cluster.group(8),
        image: stage.image.clone(),
        zones: seen.zones.clone(),
        tags: [].into(),
        has_targets: false,
    };
    let create = stage.perform(&stage.intent(Step::CreateGroup { group })).await;
    assert!(format!("{create:?}").contains("it is not known what `shop-web` has"), "{create:?}");

    // Known again, and then by another name, which a kill that was meant for the first does not hurt.
    let retag = |value: &'static str| {
        let tag = Tag::builder().resource_id("Copy-of-Web").resource_type("auto-scaling-group").key("env").value(value);
        stage.operator.scaling.create_or_update_tags().tags(tag.propagate_at_launch(true).build()).send()
    };
    retag("api").await.unwrap();
    assert_eq!(stage.inventory().await.groups.len(), 3);
    let api = GroupName::new("shop-api").unwrap();
    let kill = stage.crash(&api).await;
    retag("batch").await.unwrap();
    let refused = stage.perform(&kill).await;
    assert!(format!("{refused:?}").contains("there is no group `shop-api`"), "{refused:?}");
    assert_eq!(stage.proxy.count("TerminateInstances"), 0);
}
