//! The cloud process over its real socket, with instances that are only noted down and a worker that believes what it
//! is told.

mod stage;

use std::os::unix::fs::PermissionsExt as _;

use troop_policies::intent::Cause;
use troop_policies::inventory::Inventory;
use troop_policies::leash::Permit;
use troop_policies::step::{How, Size};
use troop_policies::{ClusterName, GroupName, ImageId};

use self::stage::{Proxy, Stage, Worker, real_time};
use super::*;
use crate::contract::{self, Loss, Subject};
use crate::local::client::LocalCloud;
use crate::local::protocol::{Hello, PROTOCOL_VERSION, frames, receive, send};
use crate::{Cloud as _, CloudError, Image, Traffic};

struct Local<C> {
    cloud: C,
    losing: C,
    proxy: Proxy,
    image: ImageId,
}

impl<C: crate::Cloud> Subject for Local<C> {
    fn cloud(&self) -> &dyn crate::Cloud {
        &self.cloud
    }

    fn losing(&self) -> &dyn crate::Cloud {
        &self.losing
    }

    fn lose_next(&self, loss: Loss) {
        self.proxy.lose_next(loss);
    }

    fn now(&self) -> jiff::Timestamp {
        real_time()
    }

    fn image(&self) -> ImageId {
        self.image.clone()
    }

    fn run_id(&self) -> String {
        "t".into()
    }
}

#[tokio::test]
async fn the_embedded_cloud_keeps_the_contract_of_every_cloud() {
    let stage = Stage::start().await;
    let workers = [Worker::join(&stage, 0).await, Worker::join(&stage, 1).await];
    let image = stage.import().await;
    let proxy = Proxy::start(&stage);
    let cloud = LocalCloud::new(stage.state());
    let losing = LocalCloud::at(proxy.path.clone());
    let failures = contract::run_all(&Local { cloud, losing, proxy, image }).await;
    assert!(failures.is_empty(), "{failures:#?}");
    drop(workers);
    stage.shutdown().await;
}

#[tokio::test]
async fn logs_of_earlier_lives_are_removed_at_the_start_but_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cloud/logs");
    fs::create_dir_all(&folder).unwrap();
    for n in 0..logs::DEAD_LOGS_KEPT + 5 {
        fs::write(folder.join(format!("i-{n:017x}.log")), "of an earlier life\n").unwrap();
    }
    let stage = Stage::start_in(dir).await;
    let removed = async {
        while fs::read_dir(&folder).unwrap().count() > logs::DEAD_LOGS_KEPT {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), removed).await.unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), logs::DEAD_LOGS_KEPT);
    stage.shutdown().await;
}

/// A cloud that forgets its tokens: every intent seems new to it.
#[derive(Debug)]
struct Forgetful {
    cloud: LocalCloud,
    calls: std::sync::atomic::AtomicU32,
}

impl Forgetful {
    fn anew(&self, intent: &Intent) -> Intent {
        let call = self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Intent { id: IntentId::new(format!("{}.{call}", intent.id)).unwrap(), ..intent.clone() }
    }
}

#[async_trait::async_trait]
impl crate::Cloud for Forgetful {
    fn account(&self) -> &AccountName {
        self.cloud.account()
    }
    fn regions(&self) -> &[RegionName] {
        self.cloud.regions()
    }
    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        self.cloud.inventory(region).await
    }
    async fn images(&self, region: &RegionName) -> Result<Vec<Image>, CloudError> {
        self.cloud.images(region).await
    }
    async fn traffic(
        &self,
        region: &RegionName,
        cluster: &ClusterName,
    ) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        self.cloud.traffic(region, cluster).await
    }
    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: jiff::Timestamp) -> Outcome {
        self.cloud.perform(&self.anew(intent), permit, now).await
    }
    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        self.cloud.resolve(&self.anew(intent)).await
    }
    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.cloud.mark(intent, mark).await
    }
    async fn import_image(&self, path: &Path) -> Result<Image, CloudError> {
        self.cloud.import_image(path).await
    }
}

#[tokio::test]
async fn the_contract_notices_a_cloud_that_forgets_its_tokens() {
    let stage = Stage::start().await;
    let _worker = Worker::join(&stage, 0).await;
    let image = stage.import().await;
    let proxy = Proxy::start(&stage);
    let forgetful = |cloud| Forgetful { cloud, calls: Default::default() };
    let cloud = forgetful(LocalCloud::new(stage.state()));
    let losing = forgetful(LocalCloud::at(proxy.path.clone()));
    let failures = contract::run_all(&Local { cloud, losing, proxy, image }).await;
    let broken: Vec<_> = failures.iter().map(|failure| failure.case).collect();
    let expected = [
        "the_same_intent_twice_takes_effect_once",
        "resolving_what_never_came_never_acts",
        "a_lost_answer_leaves_one_effect",
    ];
    assert_eq!(broken, expected, "{failures:#?}");
    stage.shutdown().await;
}

fn intent(id: &str, step: Step) -> Box<Intent> {
    Box::new(Intent {
        id: IntentId::new(id).unwrap(),
        account: AccountName::new(ACCOUNT).unwrap(),
        region: RegionName::new(REGION).unwrap(),
        step,
        cause: Cause::Upkeep { reason: "test".into() },
        at: real_time(),
    })
}

fn group() -> GroupName {
    GroupName::new("hello-web-v000").unwrap()
}

#[tokio::test]
async fn a_restart_keeps_groups_and_tokens_and_begins_instances_anew() {
    let stage = Stage::start().await;
    let image = stage.import().await;
    let create = intent("0a", stage.new_group(&group(), &image));
    let resize = intent("0b", Step::Resize { group: group(), size: Size::pinned(2) });
    for intent in [&create, &resize] {
        assert!(stage.perform(intent).await.is_done());
    }
    let before: Vec<_> = stage.wait_for_members(&group(), 2).await;
    // As a kill -9 in the middle would leave them: begun, with no result.
    let shown = intent("0c", Step::Enable { group: group() });
    let not_shown = intent("0d", Step::Resize { group: group(), size: Size::pinned(3) });
    let kill = intent("0e", Step::Terminate { group: group(), instance: before[0].clone(), kill: How::Crash });
    let tokens = stage.state().join("cloud/tokens");
    for half in [&shown, &not_shown, &kill] {
        let begun = serde_json::json!({
            "step": half.step, "intent_at": half.at, "begun_at": half.at, "result": null
        });
        std::fs::write(tokens.join(format!("{}.json", half.id)), begun.to_string()).unwrap();
    }
    let stage = stage.restart().await;
    let after = stage.wait_for_members(&group(), 2).await;
    assert!(before.iter().all(|id| !after.contains(id)));
    assert!(stage.resolve(&create).await.is_done());
    assert!(stage.perform(&create).await.is_done(), "answered, not done again");
    for _ in 0..2 {
        assert!(stage.resolve(&shown).await.is_done());
        assert!(matches!(stage.resolve(&not_shown).await, Outcome::Refused { .. }));
        assert!(matches!(stage.perform(&not_shown).await, Outcome::Refused { .. }), "never carried out again");
        assert!(matches!(stage.resolve(&kill).await, Outcome::Unknown { .. }), "every instance is gone");
        // What was said stays true, whatever comes after.
        assert!(stage.perform(&intent("0f", Step::Resize { group: group(), size: Size::pinned(3) })).await.is_done());
        stage.wait_for_members(&group(), 3).await;
    }
    assert_eq!(stage.cloud().images(&RegionName::new(REGION).unwrap()).await.unwrap()[0].id, image);
    let rows = stage.cloud().processes().await.unwrap();
    assert!(rows.iter().all(|row| row.pid.is_some() && row.log.ends_with(format!("{}.log", row.instance))));
    assert_eq!(rows.len(), 3);
    stage.shutdown().await;
}

#[tokio::test]
async fn an_end_in_order_terminates_then_kills_and_returns() {
    let stage = Stage::start().await;
    let image = stage.import().await;
    stage.perform(&intent("0a", stage.new_group(&group(), &image))).await;
    stage.perform(&intent("0b", Step::Resize { group: group(), size: Size::pinned(3) })).await;
    let ids = stage.wait_for_members(&group(), 3).await;
    stage.runtime.ignore_term(&ids[0]);
    let began = Instant::now();
    stage.cloud().shutdown().await.unwrap();
    assert!(began.elapsed() >= TERM_TO_KILL);
    let ended = stage.runtime.ended();
    assert_eq!(ended.iter().filter(|(_, status)| status == "exit code 0").count(), 2);
    assert_eq!(ended.iter().find(|(id, _)| *id == ids[0]).unwrap().1, "signal 9");
    stage.ended().await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_refused_since_nothing_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = LocalCloud::new(dir.path());
    let enable = intent("0a", Step::Enable { group: group() });
    let undo = troop_policies::leash::Undo::for_step(&enable.step).unwrap();
    let permit = Permit::Undo(undo);
    let Outcome::Refused { why } = cloud.perform(&enable, permit, real_time()).await else { panic!() };
    assert!(why.contains("nothing was sent"), "{why}");
    assert!(cloud.resolve(&enable).await.is_err());
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_path(dir.path());
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let stage = Stage::start_in(dir).await;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(stage.cloud().processes().await.unwrap().is_empty());
    stage.shutdown().await;
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_state_that_cannot_be_used_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("cloud")).unwrap();
    std::fs::write(dir.path().join("cloud/state.json"), "{\"schema\": 1,").unwrap();
    let error = stage::run_in(dir.path()).await.unwrap_err();
    assert!(chain(&error).contains("state.json"), "{error}");
    assert!(!socket_path(dir.path()).exists());
    let long = dir.path().join("x".repeat(100));
    assert!(matches!(stage::run_in(&long).await, Err(ServerError::PathTooLong { .. })));
}

#[tokio::test]
async fn a_peer_that_speaks_otherwise_is_told_so() {
    let stage = Stage::start().await;
    let socket = socket_path(stage.state());
    let mut old = frames(tokio::net::UnixStream::connect(&socket).await.unwrap());
    send(&mut old, &Hello::Client { version: PROTOCOL_VERSION + 1 }).await.unwrap();
    let Some(Response::Error(why)) = receive(&mut old).await.unwrap() else { panic!() };
    assert!(why.contains("version"), "{why}");
    let mut rude = frames(tokio::net::UnixStream::connect(&socket).await.unwrap());
    send(&mut rude, &Hello::Client { version: PROTOCOL_VERSION }).await.unwrap();
    send(&mut rude, &serde_json::json!({"request": "dance"})).await.unwrap();
    assert!(matches!(receive(&mut rude).await.unwrap(), Some(Response::Error(_))));
    assert!(stage.cloud().processes().await.is_ok(), "the others are served on");
    let elsewhere = RegionName::new("r2").unwrap();
    assert!(stage.cloud().inventory(&elsewhere).await.is_err());
    let foreign = Intent { region: elsewhere, ..*intent("0a", Step::Enable { group: group() }) };
    assert!(matches!(stage.perform(&foreign).await, Outcome::Refused { .. }));
    stage.shutdown().await;
}

#[tokio::test]
async fn a_disk_that_refuses_the_token_or_the_state_lets_nothing_happen() {
    // Writing fails where the temporary file's name is taken by a folder, also for root.
    let stage = Stage::start().await;
    let image = stage.import().await;
    let create = intent("0a", stage.new_group(&group(), &image));
    let block = |path: &str| {
        let path = stage.state().join("cloud").join(path);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let token = block("tokens/0a.json~");
    assert!(matches!(stage.perform(&create).await, Outcome::Refused { .. }));
    std::fs::remove_dir(token).unwrap();
    let state = block("state.json~");
    assert!(matches!(stage.perform(&create).await, Outcome::Refused { .. }));
    let inventory = stage.cloud().inventory(&RegionName::new(REGION).unwrap()).await.unwrap();
    assert!(inventory.groups.is_empty());
    std::fs::remove_dir(state).unwrap();
    assert!(matches!(stage.perform(&create).await, Outcome::Refused { .. }), "a refusal stays one");
    assert!(stage.perform(&intent("0b", create.step.clone())).await.is_done());
    stage.shutdown().await;
}
