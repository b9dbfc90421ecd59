//! A site whose groups are known by their tags, from the request of a kill to what AWS is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use troop::api::types::{Actor, ControlPlane as _, DeployRequest, ErrorKind, KillRequest};
use troop::demo::aws::front::{Front, changing};
use troop::serve::control::Control;
use troop_cloud::Cloud as _;
use troop_cloud::aws::operator::{Operator, OtherGroup};
use troop_cloud::aws::{AwsCloud, AwsConfig, Credentials, NameTags};
use troop_policies::policy::{Account, Site};
use troop_policies::{AccountName, ClusterName};

use super::moto::Moto;
use super::{CLUSTER, DEMO, Leashed, REGION, config, region};

const REAL: &str = "CloudFormation-Web-1A2B3C";
const TAGS: [(&str, &str); 3] = [("troop:team", "demo"), ("app", "hello"), ("env", "web")];

/// A site that is unleashed, and a cluster that serves by a group which something else has made.
async fn unleashed(operator: &Operator, moto: Moto) -> (Leashed, Arc<AwsCloud>) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = ClusterName::new(CLUSTER).unwrap();
    let brought = operator.bring(&["hello-1.0.0"], std::slice::from_ref(&cluster)).await.unwrap();
    let target_group = operator.serve(&brought.listener, &cluster).await.unwrap();
    let front = Front::start(&moto.url, REGION).await.unwrap();
    let subnets = &brought.settings.first.as_ref().unwrap().subnets;
    let group = OtherGroup { name: REAL, size: 3, tags: &TAGS, subnets, target_groups: &[target_group] };
    operator.group(&group).await.unwrap();
    tokio::spawn(operator.clone().keep_registering());

    std::fs::create_dir(folder.path().join("policies")).unwrap();
    std::fs::write(folder.path().join("policies/demo.toml"), DEMO).unwrap();
    let account = Account {
        name: AccountName::new("prod").unwrap(),
        role: None,
        regions: BTreeMap::from([(region(), brought.settings.clone())]),
    };
    let site = Site { leashed: false, accounts: vec![account], ..Site::embedded_default() };
    let keys = Credentials::Static { key_id: "AKIATEST".to_owned(), secret: "secret".to_owned() };
    let name_tags = Some(NameTags { app: "app".to_owned(), stack: Some("env".to_owned()), detail: None });
    let config = AwsConfig { name_tags, ..config(&front.url, &brought, keys) };
    let cloud = Arc::new(Box::pin(AwsCloud::new(config)).await);
    (Leashed { moto, front, folder, site, brought }, cloud)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn a_kill_on_demand_in_a_group_that_is_known_by_its_tags_names_the_real_one() {
    let moto = Moto::start().await;
    let operator = Operator::at(&moto.url, &region()).unwrap();
    let (stage, cloud) = unleashed(&operator, moto).await;
    let core = stage.control_plane(&cloud, "2026-11-24T10:30:00Z").await;
    // What a site needs beside is another test's matter.
    core.not_ready.store(Arc::default());
    let control = Control(Arc::clone(&core));
    let ana = || Actor { uid: 1000, name: "ana".to_owned() };
    let kill = |plan| KillRequest {
        target: CLUSTER.to_owned(),
        instance: None,
        reason: "a test".to_owned(),
        outside_window: false,
        plan,
    };

    let planned = control.kill(kill(true), ana()).await.unwrap();
    assert_eq!(planned.group.as_ref().map(ToString::to_string).as_deref(), Some(CLUSTER), "{planned:?}");
    let named: Vec<&String> = planned.calls.iter().filter(|call| call.contains(REAL)).collect();
    assert!(
        named.iter().any(|call| *call == &format!("autoscaling:CreateOrUpdateTags {REAL} troop:mark")),
        "{named:?}"
    );
    assert!(!planned.calls.iter().any(|call| call.contains(CLUSTER)), "{planned:?}");

    let killed = control.kill(kill(false), ana()).await.unwrap();
    assert_eq!(killed.outcome, "done", "{killed:?}");
    assert_eq!(stage.front.calls()["ec2:TerminateInstances"], 1);
    let read = operator.scaling.describe_auto_scaling_groups().auto_scaling_group_names(REAL).send().await.unwrap();
    let tags = read.auto_scaling_groups()[0].tags();
    assert!(tags.iter().any(|tag| tag.key() == Some("troop:mark")), "{tags:?}");

    // A push of it, planned: the new group is named by its cluster, the old one by its own name, to its end.
    let deploy = DeployRequest {
        cluster: CLUSTER.parse().unwrap(),
        image: stage.brought.images[0].to_string(),
        location: None,
        team: None,
        size: None,
        watch: None,
        soak: None,
        ready_within: None,
        errors_above: None,
        drain: None,
        plan: true,
    };
    let before = stage.front.calls();
    let planned = control.deploy(deploy, ana()).await.unwrap();
    assert_eq!((planned.push, planned.group.as_str()), (None, "hello-web-v000"), "{planned:#?}");
    let of = |start: &str| {
        let found = planned.calls.iter().find(|calls| calls.step.starts_with(start));
        found.map(|calls| calls.calls.clone()).unwrap_or_else(|| panic!("no {start}: {planned:#?}"))
    };
    for (step, call) in [
        ("create hello-web-v000", "autoscaling:CreateAutoScalingGroup hello-web-v000".to_owned()),
        ("flip", format!("autoscaling:SuspendProcesses {REAL}, unless they are suspended by then")),
        ("disable hello-web,", format!("autoscaling:CreateOrUpdateTags {REAL} troop:disabled")),
        ("destroy hello-web", format!("autoscaling:DeleteAutoScalingGroup {REAL}")),
    ] {
        assert!(of(step).contains(&call), "{step}: {:#?}", of(step));
    }
    assert!(planned.calls.iter().all(|calls| planned.steps.contains(&calls.step)), "{planned:#?}");
    assert_eq!(changing(&stage.front.calls()), changing(&before), "a plan changes nothing");

    // A copy with the same tags: nobody knows which one is meant, so nobody is hurt.
    let subnets = &stage.brought.settings.first.as_ref().unwrap().subnets;
    let copy = OtherGroup { name: "Copy", size: 1, tags: &TAGS, subnets, target_groups: &[] };
    operator.group(&copy).await.unwrap();
    let spared = control.kill(kill(false), ana()).await.unwrap_err();
    assert_ne!(spared.kind, ErrorKind::Bug, "{spared:?}");
    assert_eq!(stage.front.calls()["ec2:TerminateInstances"], 1);
    assert_eq!(cloud.inventory(&region()).await.unwrap().groups.len(), 0);
    assert_eq!(cloud.groups_in_doubt(&region()).await.len(), 1);
    core.ledger.clone().close().await;
}
