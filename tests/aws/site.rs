//! A whole site on the calls of AWS, against moto: the demo's story from the binary, and a leashed week.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

mod commands;
#[path = "../../cloud/tests/aws/moto.rs"]
#[expect(dead_code, reason = "shared with the tests of the library, which need more of it")]
mod moto;
mod tags;
#[path = "../../cloud/tests/aws/user.rs"]
mod user;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use troop::api::types::{Actor, ControlPlane as _, DeployRequest, ErrorKind, KillRequest};
use troop::clock::{self, Calendar};
use troop::demo::aws::front::{Calls, Front, changing};
use troop::outside::Dial;
use troop::serve::control::Control;
use troop::serve::core::Core;
use troop::serve::faults::Follower;
use troop::serve::janitor::Janitor;
use troop::serve::process::{self, Opening};
use troop::serve::{healer, look, planner, reload, resolver};
use troop::state::StateDir;
use troop::world::World;
use troop_cloud::Cloud;
use troop_cloud::aws::operator::{Brought, Operator};
use troop_cloud::aws::{AwsCloud, AwsConfig, Credentials, Patience, iam};
use troop_ledger::EventFilter;
use troop_policies::intent::{Cause, Intent};
use troop_policies::leash::{Permit, Unleashed, Warrant};
use troop_policies::plan::DayPlan;
use troop_policies::policy::{Account, Site};
use troop_policies::step::{NewGroup, Size, Step};
use troop_policies::{AccountName, ClusterName, IntentId, RegionName};

use self::moto::Moto;
use self::user::User;

const REGION: &str = "us-east-1";
const CLUSTER: &str = "hello-web";
const DEMO: &str = include_str!("../../policies/examples/demo.toml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn the_demo_tells_its_story_on_the_calls_of_aws() {
    let (moto, folder) = (Moto::start().await, tempfile::tempdir().unwrap());
    let summary = folder.path().join("summary.json");
    let demo = Command::new(env!("CARGO_BIN_EXE_troop"))
        .args(["demo", "--cloud", "aws", "--endpoint", &moto.url, "--summary"])
        .arg(&summary)
        // Nobody who tries it out has an account.
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .output()
        .unwrap();
    let told = format!("{}\n{}", String::from_utf8_lossy(&demo.stdout), String::from_utf8_lossy(&demo.stderr));
    assert!(demo.status.success(), "{told}");
    let summary: Value = serde_json::from_slice(&std::fs::read(&summary).unwrap()).unwrap();
    let kills: Vec<_> = summary["kills"].as_array().unwrap().iter().map(|kill| kill["how"].as_str().unwrap()).collect();
    assert_eq!(kills, ["draw", "demand"], "{told}");
    assert!(summary["kills"].as_array().unwrap().iter().all(|kill| kill["healed"] == true), "{told}");
    assert_eq!(summary["pushes"].as_array().unwrap().len(), 2, "{told}");
    let calls: Calls = serde_json::from_value(summary["calls"].clone()).unwrap();
    assert_eq!(calls["ec2:TerminateInstances"], 2, "one call a kill: {calls:?}");
    assert_eq!(calls["autoscaling:CreateAutoScalingGroup"], 2, "{calls:?}");
    // The target groups' places at weight 0, two flips and the way back.
    assert_eq!(calls["elasticloadbalancing:ModifyRule"], 5, "{calls:?}");
    assert!(told.contains("made just them: "), "{told}");
}

/// A leashed site on a region in which a cluster serves, by a user who may only read.
struct Leashed {
    moto: Moto,
    front: Front,
    folder: tempfile::TempDir,
    site: Site,
    brought: Brought,
}

fn region() -> RegionName {
    RegionName::new(REGION).unwrap()
}

fn config(endpoint: &str, brought: &Brought, credentials: Credentials) -> AwsConfig {
    AwsConfig {
        account: AccountName::new("prod").unwrap(),
        role_arn: None,
        regions: BTreeMap::from([(region(), brought.settings.clone())]),
        credentials,
        name_tags: None,
        endpoint_url: Some(endpoint.to_owned()),
        patience: Patience { snapshot_reused_for: Duration::ZERO, ..Patience::with_a_stand_in() },
        seed: 1,
        clock: Arc::new(clock::real_now),
    }
}

/// Makes the cluster that serves, as another Troop would have, before anybody is asked for permissions.
async fn serving(endpoint: &str, brought: &Brought) {
    let keys = Credentials::Static { key_id: "AKIATEST".to_owned(), secret: "secret".to_owned() };
    let cloud = AwsCloud::new(config(endpoint, brought, keys)).await;
    let cluster = ClusterName::new(CLUSTER).unwrap();
    let group = NewGroup {
        name: cluster.group(0),
        image: brought.images[0].clone(),
        zones: cloud.inventory(&region()).await.unwrap().zones,
        tags: BTreeMap::from([("troop:team".to_owned(), "demo".to_owned())]),
        has_targets: true,
    };
    let steps = [
        Step::CreateGroup { group },
        Step::Resize { group: cluster.group(0), size: Size::pinned(3) },
        Step::Flip { to: cluster.group(0), cluster },
    ];
    for (number, step) in steps.into_iter().enumerate() {
        let intent = Intent {
            id: IntentId::new(format!("before.{number}")).unwrap(),
            account: cloud.account().clone(),
            region: region(),
            step,
            cause: Cause::Push { push: 1, actor: "a test".to_owned() },
            at: clock::real_now(),
        };
        let warrant = Warrant::Push { halted_before_flip: false };
        let unleashed = Unleashed::for_step(&intent, warrant, clock::real_now()).unwrap();
        let outcome = cloud.perform(&intent, Permit::Unleashed(&unleashed), clock::real_now()).await;
        assert!(outcome.is_done(), "{}: {outcome:?}", intent.step);
    }
}

impl Leashed {
    async fn new() -> Self {
        let (moto, folder) = (Moto::start().await, tempfile::tempdir().unwrap());
        let operator = Operator::at(&moto.url, &region()).unwrap();
        let brought = operator.bring(&["hello-1.0.0"], &[ClusterName::new(CLUSTER).unwrap()]).await.unwrap();
        // The front spreads the members over zones from the first look on.
        let front = Front::start(&moto.url, REGION).await.unwrap();
        serving(&front.url, &brought).await;
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        std::fs::write(folder.path().join("policies/demo.toml"), DEMO).unwrap();
        let account = Account {
            name: AccountName::new("prod").unwrap(),
            role: None,
            regions: BTreeMap::from([(region(), brought.settings.clone())]),
        };
        let site = Site { leashed: true, accounts: vec![account], ..Site::embedded_default() };
        Self { moto, front, folder, site, brought }
    }

    /// From now on only who may is answered. Returns the keys of one who may do what a leashed site needs.
    async fn may_only_read(&self) -> Credentials {
        let user = User::new(&self.moto.url).await;
        let policy = iam::policy(iam::Allows::Leashed);
        user.may(&iam::allowed(&policy).into_iter().collect()).await;
        user.credentials()
    }

    /// The control plane at a moment of the week.
    async fn control_plane(&self, cloud: &Arc<AwsCloud>, at: &str) -> Arc<Core> {
        let state = StateDir::find(Some(&self.folder.path().join("state")), |_| None).unwrap();
        state.create().unwrap();
        let opening = Opening {
            state,
            site: self.site.clone(),
            policies_dir: self.folder.path().join("policies"),
            world: World::new(vec![Arc::clone(cloud) as Arc<dyn Cloud>], None),
            agents: Arc::new(troop::agents::NoAgents),
            calendar: Calendar::standing(at.parse::<Timestamp>().unwrap()),
        };
        let core = process::open(opening, Dial::Direct).await.unwrap();
        reload(&core).await;
        core
    }
}

/// The minute at which the day's kill was drawn to be.
async fn drawn(core: &Arc<Core>, day: &str) -> Option<Timestamp> {
    let plan = core.ledger.plan(day, "demo").await.unwrap()?;
    let plan: DayPlan = serde_json::from_value(plan.body).unwrap();
    plan.entries.iter().find(|entry| entry.monkey == "chaos").and_then(|entry| entry.at)
}

/// Waits until the day's draw is noted, which is done beside everything else.
async fn noted_for(core: &Arc<Core>, day: &str) {
    for _ in 0..400 {
        let filter = EventFilter { kinds: vec!["would_have".to_owned()], ..EventFilter::default() };
        let noted = core.ledger.events(&filter).await.unwrap();
        if noted.iter().any(|event| event.body["day"] == day) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the draw of {day} was not noted: {:?}", core.ledger.events(&EventFilter::default()).await.unwrap());
}

/// Everything that a control plane does of itself at a look.
async fn look_around(core: &Arc<Core>) {
    resolver::tick(core, true).await;
    let seen = look::look(core).await;
    healer::tick(core, &mut Follower::default(), &seen).await;
    planner::tick(core, &mut planner::Planner::default(), &seen).await;
    Janitor::default().tick(core, &seen).await;
}

/// What people ask of it meanwhile.
async fn pester(core: &Arc<Core>, image: &str) {
    let control = Control(Arc::clone(core));
    let ana = || Actor { uid: 1000, name: "ana".to_owned() };
    let kill = |plan| KillRequest {
        target: CLUSTER.to_owned(),
        instance: None,
        reason: "a test".to_owned(),
        outside_window: true,
        plan,
    };
    let planned = control.kill(kill(true), ana()).await.unwrap();
    assert_eq!(planned.outcome, "leashed", "{planned:?}");
    assert!(planned.calls.iter().any(|call| call.starts_with("ec2:TerminateInstances INSTANCE")), "{planned:?}");
    assert_eq!(control.kill(kill(false), ana()).await.unwrap_err().kind, ErrorKind::Refused);
    let deploy = DeployRequest {
        cluster: CLUSTER.parse().unwrap(),
        image: image.to_owned(),
        location: None,
        team: None,
        size: None,
        watch: None,
        soak: None,
        ready_within: None,
        errors_above: None,
        drain: None,
        plan: false,
    };
    assert_eq!(control.deploy(deploy.clone(), ana()).await.unwrap_err().kind, ErrorKind::Refused);
    let planned = control.deploy(DeployRequest { plan: true, ..deploy }, ana()).await.unwrap();
    assert!(planned.leashed.is_some_and(|why| why.starts_with("leashed (site)")) && planned.push.is_none());
    let creates = |call: &String| call.starts_with("autoscaling:CreateAutoScalingGroup ");
    assert!(planned.calls.iter().flat_map(|step| &step.calls).any(creates));
    assert_eq!(control.instances().await.unwrap().len(), 3);
    assert!(!control.explain(CLUSTER).await.unwrap().is_empty());
    assert_eq!(control.images().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn in_a_leashed_week_no_call_leaves_that_changes_anything() {
    let leashed = Leashed::new().await;
    let before = leashed.front.calls();
    assert!(!changing(&before).is_empty(), "the front sees what changes something");
    let keys = leashed.may_only_read().await;
    let cloud = Arc::new(AwsCloud::new(config(&leashed.front.url, &leashed.brought, keys)).await);
    let image = leashed.brought.images[0].to_string();
    // Monday to Sunday: early, in the window, at the minute that was drawn on a workday, and late.
    for day in 23..30 {
        let date = format!("2026-11-{day}");
        let mut moments: Vec<String> =
            ["00:05", "10:30", "11:59", "23:00"].iter().map(|time| format!("{date}T{time}:00Z")).collect();
        let (mut next, mut due) = (0, None);
        while next < moments.len() {
            let core = leashed.control_plane(&cloud, &moments[next]).await;
            look_around(&core).await;
            if next == 0 {
                let drawn = drawn(&core, &date).await.map(|at| at.to_string());
                let after = moments.iter().position(|at| drawn.as_ref().is_some_and(|drawn| drawn < at));
                moments.splice(after.unwrap_or(1)..after.unwrap_or(1), drawn.clone());
                due = drawn;
                pester(&core, &image).await;
            }
            if due.as_ref() == Some(&moments[next]) {
                noted_for(&core, &date).await;
            }
            assert_eq!(core.troubles(), Vec::<String>::new(), "{}", moments[next]);
            core.ledger.clone().close().await;
            next += 1;
        }
    }
    let calls = leashed.front.calls();
    assert_eq!(changing(&calls), changing(&before), "only what was made before the week");
    assert!(calls["autoscaling:DescribeAutoScalingGroups"] > before["autoscaling:DescribeAutoScalingGroups"] + 40);

    let core = leashed.control_plane(&cloud, "2026-11-30T00:00:00Z").await;
    let events = core.ledger.events(&EventFilter::default()).await.unwrap();
    let of = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!((of("plan_made"), of("intended")), (7, 0), "a plan each day, and no act");
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(of("would_have"), 5, "one that was drawn each workday: {kinds:?}");
}
