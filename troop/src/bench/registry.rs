//! `troop bench registry`: how many heartbeats a second the registry takes, and how long each waits, while it is alone and
//! while a control plane reads all of it four times a second.
//!
//! The registry runs on one thread, as the role of `troop up` does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Full;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use troop_registry::client::RegistryClient;

use super::load::{Load, Make, Sample};
use super::thread::Part;
use super::{BenchError, Machine, Report, Spread, Times, rounded};
use crate::clock;

/// How often the control plane looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What Eureka's clients do unless they are told otherwise.
const HEARTBEAT_EVERY_S: u32 = 30;
/// A lease that no bench outlives, so that an instance without its heartbeat stays.
const LEASE_S: u32 = 86_400;
/// Connections over which a fleet is registered for another bench.
const CONNECTIONS: u32 = 16;
/// Instances of one app.
const APP_OF: u32 = 100;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub instances: u32,
    pub connections: u32,
    pub round: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub instances: u32,
    pub connections: u32,
    pub round_s: f64,
    /// Registrations a second, JSON of the size that clients send.
    pub registered_per_second: f64,
    /// Heartbeats a second that so many instances need at one each 30 s.
    pub needed_per_second: f64,
    /// As many heartbeats as it takes.
    pub alone: Beats,
    /// The same while a control plane reads.
    pub read: Beats,
    /// As many as are needed, while a control plane reads: what an instance meets.
    pub needed: Beats,
    /// The control plane's reading of everything, during the two rounds before.
    pub view: Spread,
}

/// Heartbeats of one round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Beats {
    pub per_second: f64,
    pub took: Spread,
    /// The registry's time on a processor for each, what else it does included.
    pub cpu_us: f64,
    pub failed: u64,
    pub reasons: Vec<String>,
}

/// Runs the bench.
///
/// # Errors
/// [`BenchError`] when the registry cannot be had, or refuses to register an instance.
pub async fn run(options: Options) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let dir = tempfile::tempdir().map_err(BenchError::io("make a folder"))?;
    let (address, registry) = start(dir.path())?;
    let registered_per_second = register(address, options).await?;
    let client = RegistryClient::new(format!("http://{address}"));
    let client = client.map_err(|e| BenchError::failed("reach the registry")(e.to_string()))?;
    let needed = f64::from(options.instances) / f64::from(HEARTBEAT_EVERY_S);
    let pace = options.instances.div_ceil(HEARTBEAT_EVERY_S);
    let beat = |per_second: Option<u32>| Load {
        targets: vec![address],
        connections: options.connections,
        per_second,
        each_at_most: u64::MAX,
        make: heartbeats(options),
    };
    let spent = registry.cpu();
    let sample = beat(None).run(options.round).await?;
    let alone = beats(&sample, registry.cpu() - spent);
    let mut views = Times::new()?;
    let spent = registry.cpu();
    let sample = while_read(&client, &mut views, beat(None), options.round).await?;
    let read = beats(&sample, registry.cpu() - spent);
    let spent = registry.cpu();
    let sample = while_read(&client, &mut views, beat(Some(pace.max(1))), options.round).await?;
    let paced = beats(&sample, registry.cpu() - spent);
    registry.end()?;
    let Options { instances, connections, round } = options;
    let figures = Figures {
        instances,
        connections,
        round_s: rounded(round.as_secs_f64()),
        registered_per_second,
        needed_per_second: rounded(needed),
        alone,
        read,
        needed: paced,
        view: views.spread(),
    };
    Ok(Report::new("registry", machine, figures, Vec::new()))
}

/// A registry that runs, with an entry of each of the first `instances` of a fleet.
pub(super) async fn serving(folder: &Path, instances: u32) -> Result<(SocketAddr, Part), BenchError> {
    let (address, part) = start(folder)?;
    register(address, Options { instances, connections: CONNECTIONS, round: Duration::ZERO }).await?;
    Ok((address, part))
}

fn start(folder: &Path) -> Result<(SocketAddr, Part), BenchError> {
    let io = BenchError::io("open the registry's listener");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(&io)?;
    let address = listener.local_addr().map_err(&io)?;
    listener.set_nonblocking(true).map_err(&io)?;
    let table = folder.join("registry.json");
    let part = Part::start("bench-registry", move |stop| async move {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
        let lease = Duration::from_secs(90);
        let served = troop_registry::server::serve(listener, table, lease, Arc::new(clock::real_now), stop).await;
        served.map_err(|e| e.to_string())
    })?;
    Ok((address, part))
}

fn app(instance: u32) -> String {
    format!("APP{:04}", instance / APP_OF)
}

fn id(instance: u32) -> String {
    format!("i-{instance:017x}")
}

/// The instance of request `n` of a connection: each connection has every so-manieth, and begins anew after its last.
fn instance(options: Options, connection: u32, n: u64) -> u32 {
    let (instances, connections) = (options.instances.max(1), options.connections.max(1));
    let of_each = u64::from(instances.div_ceil(connections));
    let turn = u32::try_from(n % of_each).unwrap_or(0);
    (turn * connections + connection) % instances
}

/// Registers every instance. Returns how many a second.
async fn register(address: SocketAddr, options: Options) -> Result<f64, BenchError> {
    let make: Make = Arc::new(move |connection, n| {
        let instance = instance(options, connection, n);
        let request = Request::post(format!("/eureka/v2/apps/{}", app(instance)))
            .header(HOST, "registry")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(registration(instance).to_string())));
        request.unwrap_or_default()
    });
    let connections = options.connections.max(1);
    let each_at_most = u64::from(options.instances.div_ceil(connections));
    let load = Load { targets: vec![address], connections, per_second: None, each_at_most, make };
    let sample = load.until(&CancellationToken::new()).await?;
    if sample.failed > 0 {
        let why = format!("{} were refused: {}", sample.failed, sample.reasons.join("; "));
        return Err(BenchError::Failed { what: "register every instance", why });
    }
    Ok(sample.per_second())
}

/// What Spring Cloud's client sends, less what is never read.
fn registration(instance: u32) -> serde_json::Value {
    let [_, b, c, d] = instance.to_be_bytes();
    let ip = format!("10.{b}.{c}.{d}");
    let id = id(instance);
    json!({"instance": {
        "instanceId": id,
        "app": app(instance),
        "hostName": ip,
        "ipAddr": ip,
        "status": "UP",
        "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": "false"},
        "vipAddress": app(instance).to_lowercase(),
        "homePageUrl": format!("http://{ip}:8080/"),
        "statusPageUrl": format!("http://{ip}:8080/actuator/info"),
        "healthCheckUrl": format!("http://{ip}:8080/health"),
        "asgName": format!("{}-v001", app(instance).to_lowercase()),
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": LEASE_S},
        "metadata": {"troop.instance-id": id, "management.port": "8080", "zone": "r1a"},
    }})
}

fn heartbeats(options: Options) -> Make {
    Arc::new(move |connection, n| {
        let instance = instance(options, connection, n);
        let request = Request::put(format!("/eureka/v2/apps/{}/{}?status=UP", app(instance), id(instance)))
            .header(HOST, "registry")
            .body(Full::new(Bytes::new()));
        request.unwrap_or_default()
    })
}

/// Sends while everything is read four times a second.
async fn while_read(
    client: &RegistryClient,
    views: &mut Times,
    load: Load,
    lasts: Duration,
) -> Result<Sample, BenchError> {
    let reading = async {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let began = Instant::now();
            if let Err(e) = client.view().await {
                return BenchError::failed("read the registry")(crate::world::chain(&e));
            }
            views.add(began.elapsed());
        }
    };
    tokio::select! {
        sample = load.run(lasts) => sample,
        failed = reading => Err(failed),
    }
}

fn beats(sample: &Sample, spent: Duration) -> Beats {
    Beats {
        per_second: sample.per_second(),
        took: sample.times(),
        cpu_us: sample.share_us(spent),
        failed: sample.failed,
        reasons: sample.reasons.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_instance_has_its_turn() {
        for (instances, connections) in [(10, 3), (3, 10), (1, 1), (100, 32)] {
            let options = Options { instances, connections, round: Duration::ZERO };
            let turns = u64::from(instances.div_ceil(connections));
            let all: BTreeSet<u32> =
                (0..connections).flat_map(|c| (0..turns).map(move |n| instance(options, c, n))).collect();
            assert_eq!(all, (0..instances).collect(), "{instances} over {connections}");
        }
    }
}
