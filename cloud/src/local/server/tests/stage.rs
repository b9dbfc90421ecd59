//! A running cloud process in a folder of its own, and those who talk to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::step::{NewGroup, Step};
use troop_policies::{GroupName, ImageId, InstanceId, RegionName, ZoneName};

use crate::Cloud as _;
use crate::contract::Loss;
use crate::local::client::{LocalCloud, socket_path};
use crate::local::network::Network;
use crate::local::protocol::{
    FromWorker, Hello, PROTOCOL_VERSION, Request, Response, Routes, Verdict, frames, receive, send,
};
use crate::local::runtime::{EndBy, Exit, Launch, Runtime};
use crate::local::server::{REGION, ServerError, ServerSpec, ZONES, run};
use crate::local::steps::StepFailed;

#[expect(clippy::disallowed_methods, reason = "the worker's verdicts and the cloud's answers need one clock")]
pub(super) fn real_time() -> Timestamp {
    Timestamp::now()
}

/// Instances that are only noted down.
#[derive(Debug)]
pub(super) struct FakeRuntime {
    exits: mpsc::UnboundedSender<Exit>,
    running: Mutex<BTreeSet<InstanceId>>,
    deaf: Mutex<BTreeSet<InstanceId>>,
    ended: Mutex<Vec<(InstanceId, String)>>,
}

impl FakeRuntime {
    fn new(exits: mpsc::UnboundedSender<Exit>) -> Arc<Self> {
        Arc::new(Self { exits, running: Mutex::default(), deaf: Mutex::default(), ended: Mutex::default() })
    }

    pub(super) fn ignore_term(&self, instance: &InstanceId) {
        self.deaf.lock().unwrap().insert(instance.clone());
    }

    pub(super) fn ended(&self) -> Vec<(InstanceId, String)> {
        self.ended.lock().unwrap().clone()
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn launch(&self, launch: Launch) -> Result<u32, StepFailed> {
        assert!(launch.image_root.join("troop-image.toml").is_file());
        assert!(self.running.lock().unwrap().insert(launch.instance));
        Ok(100)
    }

    fn end(&self, instance: &InstanceId, by: EndBy) {
        if by == EndBy::Term && self.deaf.lock().unwrap().contains(instance) {
            return;
        }
        if self.running.lock().unwrap().remove(instance) {
            let status = if by == EndBy::Kill { "signal 9" } else { "exit code 0" }.to_owned();
            self.ended.lock().unwrap().push((instance.clone(), status.clone()));
            self.exits.send(Exit { instance: instance.clone(), status }).unwrap();
        }
    }

    async fn clean(&self, instance: &InstanceId) {
        assert!(!self.running.lock().unwrap().contains(instance));
    }
}

fn spec(state_dir: &Path) -> ServerSpec {
    ServerSpec {
        state_dir: state_dir.to_owned(),
        boot_delay: Duration::from_millis(20),
        grace: Duration::from_secs(30),
        eureka_url: "http://10.77.0.1:8761/eureka/v2".into(),
        network: Network::SANDBOX,
        port_min: 0,
    }
}

/// For starts that are expected to fail.
pub(super) async fn run_in(state_dir: &Path) -> Result<(), ServerError> {
    let (tell, exits) = mpsc::unbounded_channel();
    let ready = Box::new(|| panic!("it must not be ready"));
    run(spec(state_dir), FakeRuntime::new(tell), exits, Arc::new(real_time), ready, CancellationToken::new()).await
}

pub(super) struct Stage {
    dir: TempDir,
    pub(super) runtime: Arc<FakeRuntime>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), ServerError>>,
}

impl Stage {
    pub(super) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub(super) async fn start_in(dir: TempDir) -> Self {
        let (tell, exits) = mpsc::unbounded_channel();
        let runtime = FakeRuntime::new(tell);
        let stop = CancellationToken::new();
        let (say, ready) = oneshot::channel();
        let ready_now = Box::new(move || say.send(()).unwrap());
        let server = tokio::spawn(run(
            spec(dir.path()),
            Arc::clone(&runtime) as Arc<dyn Runtime>,
            exits,
            Arc::new(real_time),
            ready_now,
            stop.clone(),
        ));
        ready.await.unwrap();
        Self { dir, runtime, stop, server }
    }

    /// Ends it as SIGTERM does and starts it again on what is on disk.
    pub(super) async fn restart(self) -> Self {
        self.stop.cancel();
        self.server.await.unwrap().unwrap();
        Self::start_in(self.dir).await
    }

    pub(super) fn state(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn cloud(&self) -> LocalCloud {
        LocalCloud::new(self.state())
    }

    pub(super) async fn ended(self) {
        self.server.await.unwrap().unwrap();
    }

    pub(super) async fn shutdown(self) {
        self.cloud().shutdown().await.unwrap();
        self.ended().await;
    }

    pub(super) async fn import(&self) -> ImageId {
        let source = self.state().join("source");
        std::fs::create_dir_all(&source).unwrap();
        let manifest = "name = \"hello\"\nversion = \"1.0.0\"\ncommand = [\"troop\", \"sample-app\"]\n\
                        port = 8080\nhealth_path = \"/health\"\n";
        std::fs::write(source.join("troop-image.toml"), manifest).unwrap();
        self.cloud().import_image(&source).await.unwrap().id
    }

    pub(super) fn new_group(&self, name: &GroupName, image: &ImageId) -> Step {
        let zones = ZONES.map(|zone| ZoneName::new(zone).unwrap()).into();
        let (name, image) = (name.clone(), image.clone());
        Step::CreateGroup { group: NewGroup { name, image, zones, tags: BTreeMap::new(), has_targets: true } }
    }

    async fn ask(&self, request: Request) -> Outcome {
        let mut cloud = frames(UnixStream::connect(socket_path(self.state())).await.unwrap());
        send(&mut cloud, &Hello::Client { version: PROTOCOL_VERSION }).await.unwrap();
        send(&mut cloud, &request).await.unwrap();
        match receive(&mut cloud).await.unwrap() {
            Some(Response::Outcome(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Without a permit: those are checked on the client's side.
    pub(super) async fn perform(&self, intent: &Intent) -> Outcome {
        self.ask(Request::Perform { intent: Box::new(intent.clone()) }).await
    }

    pub(super) async fn resolve(&self, intent: &Intent) -> Outcome {
        self.cloud().resolve(intent).await.unwrap()
    }

    /// Waits until a group has so many instances in service, for 10 s.
    pub(super) async fn wait_for_members(&self, group: &GroupName, count: usize) -> Vec<InstanceId> {
        use troop_policies::inventory::Lifecycle::InService;
        for _ in 0..1000 {
            let inventory = self.cloud().inventory(&RegionName::new(REGION).unwrap()).await.unwrap();
            let members = &inventory.groups[group].members;
            if members.len() == count && members.values().all(|m| m.lifecycle == InService) {
                return members.keys().cloned().collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("`{group}` never had {count} members");
    }
}

/// A worker of the balancer that follows routes at once and finds everybody healthy.
pub(super) struct Worker {
    task: JoinHandle<()>,
}

impl Worker {
    pub(super) async fn join(stage: &Stage, worker: u32) -> Self {
        let mut cloud = frames(UnixStream::connect(socket_path(stage.state())).await.unwrap());
        send(&mut cloud, &Hello::Balancer { version: PROTOCOL_VERSION, worker }).await.unwrap();
        let first: Routes = receive(&mut cloud).await.unwrap().unwrap();
        let task = tokio::spawn(async move {
            let mut routes = first;
            let mut report = tokio::time::interval(Duration::from_millis(50));
            loop {
                let said = tokio::select! {
                    newer = receive::<_, Routes>(&mut cloud) => {
                        let Ok(Some(newer)) = newer else { return };
                        assert!(newer.version > routes.version, "versions only grow");
                        routes = newer;
                        FromWorker::Applied { version: routes.version }
                    }
                    _ = report.tick() => {
                        let verdict = Verdict { healthy: true, checked_at: real_time(), reason: None };
                        let health = routes.checks.iter().map(|c| (c.instance.clone(), verdict.clone())).collect();
                        FromWorker::Report { health, traffic: BTreeMap::new(), in_flight: BTreeMap::new() }
                    }
                };
                if send(&mut cloud, &said).await.is_err() {
                    return;
                }
            }
        });
        Self { task }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A way to the cloud that loses what it is told to lose.
pub(super) struct Proxy {
    pub(super) path: PathBuf,
    lose: Arc<AtomicU8>,
    task: JoinHandle<()>,
}

const NOTHING: u8 = 0;
const REQUEST: u8 = 1;
const ANSWER: u8 = 2;

impl Proxy {
    pub(super) fn start(stage: &Stage) -> Self {
        let path = stage.state().join("proxy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let lose = Arc::new(AtomicU8::new(NOTHING));
        let (cloud, losing) = (socket_path(stage.state()), Arc::clone(&lose));
        let task = tokio::spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                calls.spawn(pass(client, cloud.clone(), losing.swap(NOTHING, Ordering::SeqCst)));
            }
        });
        Self { path, lose, task }
    }

    pub(super) fn lose_next(&self, loss: Loss) {
        let what = match loss {
            Loss::Request => REQUEST,
            Loss::Answer => ANSWER,
        };
        self.lose.store(what, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: UnixStream, cloud: PathBuf, lose: u8) {
    let (mut client, mut cloud) = (frames(client), frames(UnixStream::connect(cloud).await.unwrap()));
    let hello: Hello = receive(&mut client).await.unwrap().unwrap();
    send(&mut cloud, &hello).await.unwrap();
    let request: Request = receive(&mut client).await.unwrap().unwrap();
    if lose == REQUEST {
        return;
    }
    send(&mut cloud, &request).await.unwrap();
    let answer: Response = receive(&mut cloud).await.unwrap().unwrap();
    if lose == ANSWER {
        return;
    }
    send(&mut client, &answer).await.unwrap();
}
