//! The sandbox's first process: finishes the set-up, becomes the cloud process, and reaps what is orphaned. And its like
//! where there is no sandbox.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::agents::Agents;
use super::helper::{runtime, signals};
use super::namespaces::Namespaces;
use super::network::Network;
use super::processes::{self, Processes};
use super::reaper::{PlainSpec, adopt_orphans};
use super::runtime::{Exit, Runtime};
use super::sandbox::SandboxSpec;
use super::server::{self, ServerSpec};
use super::steps::{
    CLOUD_STEP, Report, Step as _, StepFailed, complain, die_with, die_with_parent, own_stdin, report_up, reports_end,
};
use super::{mounts, netlink, trial};

/// How the wall clock is read; troop has the only one that does.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What runs as first process once everything is set up.
pub(crate) enum Body {
    /// The cloud process.
    Cloud(Clock),
    /// What STATE/trial.json lists: for tests of the sandbox alone.
    Trial,
}

/// Sets up the sandbox from within and runs `body` until it ends or SIGTERM asks it to. Returns the exit code.
pub(crate) fn run(spec: &SandboxSpec, body: Body) -> Result<u8, StepFailed> {
    begin(&spec.state_dir)?;
    runtime()?.block_on(async {
        let net = make_networks().await?;
        let (tell, exits) = mpsc::unbounded_channel();
        let place = format!("{}/{}", server::ACCOUNT, server::REGION);
        let agents = spec.agents.then(|| Agents::prepare(&spec.state_dir, place)).transpose()?;
        let namespaces = Arc::new(Namespaces::new(net, spec.state_dir.clone(), tell, agents));
        let reaper = tokio::spawn(Arc::clone(&namespaces).reap());
        let server = server_spec(spec, Network::SANDBOX, 0);
        let ended = run_body(body, server, namespaces, exits).await;
        reaper.abort();
        ended
    })
}

/// As [`run`], where instances are plain processes.
pub(crate) fn run_plain(spec: &PlainSpec, body: Body) -> Result<u8, StepFailed> {
    die_with(spec.parent)?;
    adopt_orphans()?;
    let state_dir = &spec.sandbox.state_dir;
    processes::make_scene(state_dir)?;
    runtime()?.block_on(async {
        let (tell, exits) = mpsc::unbounded_channel();
        let plain = Arc::new(Processes::new(state_dir.clone(), tell));
        let watcher = tokio::spawn(Arc::clone(&plain).watch());
        let server = server_spec(&spec.sandbox, spec.network, processes::PORT_MIN);
        let ended = run_body(body, server, plain, exits).await;
        watcher.abort();
        ended
    })
}

fn server_spec(spec: &SandboxSpec, network: Network, port_min: u16) -> ServerSpec {
    ServerSpec {
        state_dir: spec.state_dir.clone(),
        boot_delay: spec.boot_delay,
        grace: spec.grace,
        eureka_url: format!("http://{}:{}/eureka/v2", network.roles(), spec.registry_port),
        network,
        port_min,
    }
}

async fn run_body(
    body: Body,
    spec: ServerSpec,
    runtime: Arc<dyn Runtime>,
    exits: mpsc::UnboundedReceiver<Exit>,
) -> Result<u8, StepFailed> {
    let stop = CancellationToken::new();
    let stopper = tokio::spawn(stop_on_signal(stop.clone()));
    let ready = Box::new(|| {
        report_up(&Report::Ready);
        reports_end();
    });
    let ended = match body {
        Body::Cloud(clock) => {
            let ended = server::run(spec, runtime, exits, clock, ready, stop).await;
            ended.map_err(|error| StepFailed {
                step: CLOUD_STEP.to_owned(),
                errno: 0,
                detail: troop_policies::chain(&error),
            })
        }
        Body::Trial => trial::run(&spec.state_dir, runtime, exits, ready, stop).await,
    };
    stopper.abort();
    ended.map(|()| 0)
}

/// The whole set-up, and nothing run in it.
pub(crate) fn probe() -> Result<u8, StepFailed> {
    mounts::scratch(Path::new("/tmp"))?;
    begin(Path::new("/tmp"))?;
    runtime()?.block_on(make_networks())?;
    report_up(&Report::Ready);
    Ok(0)
}

fn begin(state_dir: &Path) -> Result<(), StepFailed> {
    die_with_parent(own_stdin().step("own stdin")?)?;
    if std::process::id() != 1 {
        return Err(StepFailed { step: "start".into(), errno: 0, detail: "not the first of its pid namespace".into() });
    }
    // In this order: the executable is looked up by /proc/self, which the old /proc does not know by our new number.
    mounts::fresh_proc(Path::new("/proc"))?;
    mounts::make_scene(state_dir)?;
    nix::unistd::sethostname("troop").step("sethostname")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").step("ip_forward")
}

async fn make_networks() -> Result<rtnetlink::Handle, StepFailed> {
    let net = netlink::open()?;
    netlink::loopback_up(&net).await?;
    for zone in 0..netlink::ZONES {
        netlink::make_zone(&net, zone).await?;
    }
    Ok(net)
}

async fn stop_on_signal(stop: CancellationToken) {
    match signals() {
        Ok(mut signals) => {
            signals.next().await;
            stop.cancel();
        }
        Err(failed) => complain("cloud", &failed),
    }
}
