//! The registry as a process sees it: a real socket, a real file, and the client the control plane uses.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::leash::{Permit, Undo};
use troop_policies::registry_view::Status;
use troop_policies::step::{How, Step};
use troop_policies::{AccountName, GroupName, InstanceId, IntentId, RegionName};
use troop_registry::client::{ClientError, RegistryClient};
use troop_registry::saved::SavedError;
use troop_registry::server::{RegistryError, serve};

const LEASE: Duration = Duration::from_secs(90);

struct Running {
    url: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RegistryError>>,
    now_ms: Arc<AtomicI64>,
}

impl Running {
    async fn over(file: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let now_ms = Arc::new(AtomicI64::new(1_795_514_400_000));
        let clock_ms = now_ms.clone();
        let clock = Arc::new(move || Timestamp::from_millisecond(clock_ms.load(Ordering::SeqCst)).unwrap());
        let task = tokio::spawn(serve(listener, file.to_owned(), LEASE, clock, stop.clone()));
        Self { url, stop, task, now_ms }
    }

    fn client(&self) -> RegistryClient {
        RegistryClient::new(&self.url).unwrap()
    }

    async fn register(&self, id: &str) -> u16 {
        self.register_for(id, 90).await
    }

    async fn register_for(&self, id: &str, secs: u32) -> u16 {
        let body = serde_json::json!({"instance": {"instanceId": id, "app": "SHOP", "hostName": "h", "ipAddr": "10.0.0.1",
            "dataCenterInfo": {"name": "MyOwn"}, "asgName": "shop-v001", "leaseInfo": {"durationInSecs": secs}}});
        let url = format!("{}/eureka/v2/apps/SHOP", self.url);
        reqwest::Client::new().post(url).json(&body).send().await.unwrap().status().as_u16()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn intent(id: &str, step: Step) -> Intent {
    Intent {
        id: IntentId::new(id).unwrap(),
        account: AccountName::new("local").unwrap(),
        region: RegionName::new("r1").unwrap(),
        step,
        cause: Cause::Upkeep { reason: "a test".to_owned() },
        at: Timestamp::UNIX_EPOCH,
    }
}

fn group() -> GroupName {
    GroupName::new("shop-v001").unwrap()
}

fn out(id: &str) -> Intent {
    intent(id, Step::OverrideGroup { group: group(), out_of_service: true })
}

async fn perform(client: &RegistryClient, intent: &Intent) -> Outcome {
    let undo = Undo::for_step(&intent.step).unwrap();
    client.perform(intent, Permit::Undo(undo), Timestamp::UNIX_EPOCH).await
}

#[tokio::test]
async fn what_troop_does_survives_a_restart_over_which_the_registry_warms() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.json");
    let first = Running::over(&file).await;
    let client = first.client();
    assert!(client.view().await.unwrap().entries.is_empty());
    assert_eq!(first.register("a").await, 204);
    let done = perform(&client, &out("aa")).await;
    assert_eq!(done, Outcome::done("shop-v001 is OUT_OF_SERVICE; it has 1 entries now"));
    let view = client.view().await.unwrap();
    assert_eq!((view.warming, view.entries[0].status), (false, Status::OutOfService));
    first.stop().await;

    let second = Running::over(&file).await;
    let client = second.client();
    let view = client.view().await.unwrap();
    assert!(view.warming);
    assert_eq!(view.entries[0].status, Status::OutOfService);
    assert_eq!(second.register("b").await, 204);
    assert_eq!(client.view().await.unwrap().entries[1].status, Status::OutOfService);
    assert_eq!(client.resolve(&out("aa")).await, done);
    let cancel = intent("bb", Step::CancelEntry { group: group(), instance: InstanceId::new("a").unwrap() });
    assert_eq!(perform(&client, &cancel).await, Outcome::done("cancelled SHOP/a"));
    assert_eq!(second.register("a").await, 409);
    second.stop().await;
}

#[tokio::test]
async fn leases_run_out_while_it_serves() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::over(&folder.path().join("registry.json")).await;
    let client = running.client();
    assert_eq!(running.register_for("a", 2).await, 204);
    let evicted = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while !client.view().await.unwrap().entries.is_empty() {
            ticks.tick().await;
            running.now_ms.fetch_add(10, Ordering::SeqCst);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), evicted).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn what_the_registry_never_saw_is_refused_for_good() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::over(&folder.path().join("registry.json")).await;
    let client = running.client();
    let never = Outcome::refused("the registry never saw it");
    assert_eq!(client.resolve(&out("aa")).await, never);
    assert_eq!(perform(&client, &out("aa")).await, never, "a call that comes late changes nothing");
    assert_eq!(running.register("a").await, 204);
    assert_eq!(client.view().await.unwrap().entries[0].status, Status::Up);
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_without_a_permit_or_for_a_step_of_the_cloud() {
    // Nobody listens: an answer other than these would say so.
    let client = RegistryClient::new("http://127.0.0.1:1").unwrap();
    let kill = Step::Terminate { group: group(), instance: InstanceId::new("i-1").unwrap(), kill: How::Crash };
    let undo = Permit::Undo(Undo::for_step(&out("aa").step).unwrap());
    let refused = client.perform(&intent("aa", kill), undo, Timestamp::UNIX_EPOCH).await;
    assert!(matches!(&refused, Outcome::Refused { why } if why.contains("is no undo")), "{refused:?}");
    let enable = intent("aa", Step::Enable { group: group() });
    let refused = client.perform(&enable, undo, Timestamp::UNIX_EPOCH).await;
    assert!(matches!(&refused, Outcome::Refused { why } if why.contains("does not carry out")), "{refused:?}");
}

#[tokio::test]
async fn what_was_certainly_not_sent_is_refused_and_what_was_not_answered_is_unknown() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let client = RegistryClient::new(&url).unwrap();
    let outcome = perform(&client, &out("aa")).await;
    assert!(matches!(&outcome, Outcome::Refused { why } if why.contains("nothing was sent")), "{outcome:?}");
    assert!(
        matches!(client.resolve(&out("aa")).await, Outcome::Unknown { .. }),
        "of the first sending nothing is known"
    );
    assert!(matches!(client.view().await, Err(ClientError::Call { .. })));

    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = RegistryClient::new(format!("http://{}", mute.local_addr().unwrap())).unwrap();
    let hang_up = tokio::spawn(async move {
        let (mut stream, _) = mute.accept().await.unwrap();
        let mut buffer = [0; 64];
        stream.read(&mut buffer).await.unwrap()
    });
    let outcome = perform(&client, &out("aa")).await;
    assert!(matches!(&outcome, Outcome::Unknown { why } if why.contains("did not answer")), "{outcome:?}");
    assert!(hang_up.await.unwrap() > 0);
}

#[test]
fn an_address_that_is_none_is_refused() {
    for bad in ["", "127.0.0.1:8761", "https://127.0.0.1", "http://h/?a=b"] {
        assert!(matches!(RegistryClient::new(bad), Err(ClientError::Address { .. })), "{bad}");
    }
}

#[tokio::test]
async fn a_damaged_table_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.json");
    std::fs::write(&file, "{\"format\":1,").unwrap();
    let running = Running::over(&file).await;
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Table(SavedError::Damaged { .. })), "{error:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"format\":1,");
}

#[tokio::test]
async fn a_table_that_cannot_be_saved_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::over(&folder.path().join("no-such-folder/registry.json")).await;
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Table(SavedError::Write { .. })), "{error:?}");
}
