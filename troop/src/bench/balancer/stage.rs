//! The balancer's workers as a supervisor runs them, and the cloud process that tells them where traffic goes, played.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{SplitSink, SplitStream};
use tokio::net::UnixListener;
use tokio::time::Instant;
use troop_cloud::local::balancer;
use troop_cloud::local::protocol::{Check, Frames, FromWorker, Hello, Routes, Target, frames, receive, send};
use troop_policies::ids::BadId;
use troop_policies::{ClusterName, GroupName, InstanceId};

use super::super::BenchError;
use super::super::thread::Part;
use crate::clock;

/// As many as `troop up` runs.
const WORKERS: u32 = 2;
/// How long the workers may take to come, and to follow new routes.
const WITHIN: Duration = Duration::from_secs(10);

/// The cluster that is asked for; the first label of Host names it.
pub(super) const CLUSTER: &str = "web";

/// Workers on one listener.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) address: SocketAddr,
    pub(super) workers: Vec<Part>,
    links: Vec<(SplitSink<Frames, Bytes>, SplitStream<Frames>)>,
    groups: [Vec<Target>; 2],
    version: u64,
    _dir: tempfile::TempDir,
}

impl Stage {
    /// Starts the workers over two groups of instances, all in the first one's service.
    pub(super) async fn start(groups: [&[SocketAddr]; 2]) -> Result<Self, BenchError> {
        let dir = tempfile::tempdir().map_err(BenchError::io("make a folder"))?;
        let socket = dir.path().join("cloud.sock");
        let cloud = UnixListener::bind(&socket).map_err(BenchError::io("open the cloud's socket"))?;
        let io = BenchError::io("open the balancer's listener");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(&io)?;
        let address = listener.local_addr().map_err(&io)?;
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let (listener, socket) = (listener.try_clone().map_err(&io)?, socket.clone());
            workers.push(Part::start("bench-balancer", move |stop| async move {
                let ran = balancer::run(worker, listener, socket, Arc::new(clock::real_now), stop).await;
                ran.map_err(|e| e.to_string())
            })?);
        }
        let mut links = Vec::new();
        for _ in &workers {
            links.push(within("a worker of the balancer", greeted(&cloud)).await?.split());
        }
        let named = |e: BadId| BenchError::Failed { what: "name an instance", why: e.to_string() };
        let groups = [targets(0, groups[0]).map_err(named)?, targets(1, groups[1]).map_err(named)?];
        let mut stage = Self { address, workers, links, groups, version: 0, _dir: dir };
        stage.flip(0).await?;
        Ok(stage)
    }

    /// Sends all traffic to group 0 or 1, and returns once every worker does so, with how long that took.
    pub(super) async fn flip(&mut self, to: usize) -> Result<Duration, BenchError> {
        let began = Instant::now();
        self.version += 1;
        let routes = self.routes(to)?;
        within("the workers' word that they follow new routes", async {
            for (sink, _) in &mut self.links {
                send(sink, &routes).await?;
            }
            for (_, stream) in &mut self.links {
                while !matches!(next(stream).await?, FromWorker::Applied { version } if version == routes.version) {}
            }
            Ok(())
        })
        .await?;
        Ok(began.elapsed())
    }

    /// Reads what the workers report, until it is dropped: the cloud must not be slow to read.
    pub(super) async fn listen(&mut self) -> Infallible {
        let reading = self.links.iter_mut().map(|(_, stream)| async move { while next(stream).await.is_ok() {} });
        futures::future::join_all(reading).await;
        // Both are gone, and whoever asks them something is told so.
        std::future::pending().await
    }

    fn routes(&self, to: usize) -> Result<Routes, BenchError> {
        let cluster =
            ClusterName::new(CLUSTER).map_err(|e| BenchError::Failed { what: "name a cluster", why: e.to_string() })?;
        let check = |target: &Target| Check {
            instance: target.instance.clone(),
            group: target.group.clone(),
            address: target.address,
            health_path: "/health".to_owned(),
        };
        Ok(Routes {
            version: self.version,
            default_cluster: None,
            clusters: [(cluster, self.groups[to % self.groups.len()].clone())].into(),
            checks: self.groups.iter().flatten().map(check).collect(),
            being_killed: Vec::new(),
            drained: Vec::new(),
        })
    }

    /// Time of all workers on a processor so far.
    pub(super) fn cpu(&self) -> Duration {
        self.workers.iter().map(Part::cpu).sum()
    }

    pub(super) fn end(self) -> Result<(), BenchError> {
        self.workers.into_iter().try_for_each(Part::end)
    }
}

async fn within<T>(what: &'static str, waiting: impl Future<Output = std::io::Result<T>>) -> Result<T, BenchError> {
    match tokio::time::timeout(WITHIN, waiting).await {
        Ok(came) => came.map_err(BenchError::io("talk to the balancer's workers")),
        Err(_late) => Err(BenchError::Late { what, within: WITHIN }),
    }
}

async fn greeted(cloud: &UnixListener) -> std::io::Result<Frames> {
    let mut worker = frames(cloud.accept().await?.0);
    match receive(&mut worker).await? {
        Some(Hello::Balancer { .. }) => Ok(worker),
        Some(Hello::Client { .. }) | None => Err(std::io::Error::other("somebody else came")),
    }
}

async fn next(stream: &mut SplitStream<Frames>) -> std::io::Result<FromWorker> {
    receive(stream).await?.ok_or_else(|| std::io::Error::other("a worker went away"))
}

fn targets(group: usize, addresses: &[SocketAddr]) -> Result<Vec<Target>, BadId> {
    let name = GroupName::new(format!("{CLUSTER}-v{group:03}"))?;
    let target = |(number, address): (usize, &SocketAddr)| {
        let instance = InstanceId::new(format!("i-{group:08x}{number:09x}"))?;
        Ok(Target { instance, group: name.clone(), address: *address })
    };
    addresses.iter().enumerate().map(target).collect()
}
