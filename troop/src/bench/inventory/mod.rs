//! `troop bench inventory`: what it costs to read a whole account at AWS, all regions at once: calls, time, memory.
//!
//! What reads is the client that serves, at the pace at which it serves. What answers is an account that is made up, on a thread of
//! its own, or whatever speaks AWS's protocols at an address that is given (moto does).

mod answers;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use troop_cloud::Cloud as _;
use troop_cloud::aws::scope::signed_for;
use troop_cloud::aws::{AwsCloud, AwsConfig, Credentials, Patience, RegionConfig};
use troop_policies::inventory::{Inventory, TAG_TEAM};
use troop_policies::{AccountName, RegionName};

use self::answers::{Account, Size};
use super::thread::Part;
use super::{BenchError, Machine, READS, Report, millis, process};
use crate::clock;
use crate::world::chain;

const ASKS: &str = "read the inventory";

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    pub regions: Vec<RegionName>,
    /// Who answers; an account that is made up where there is none.
    pub endpoint: Option<String>,
    /// Of the account that is made up.
    pub groups: u32,
    pub instances: u32,
    pub in_play: u32,
    /// How often everything is read.
    pub looks: u32,
    /// Between two looks.
    pub pause: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub cloud: &'static str,
    /// Who answered.
    pub answered_by: String,
    pub groups: usize,
    /// Groups of clusters that have a team: only of these the balancer's side is read.
    pub in_play: usize,
    pub instances: usize,
    pub regions: Vec<OfRegion>,
    pub looks: Vec<Look>,
    /// The most memory this process ever held: before the first look, and at all. The account that is made up is in both, a page at a time.
    pub before_mib: u64,
    pub peak_mib: u64,
    /// Of the account that is made up: its time on a processor, and how often it was asked beyond AWS's published limits.
    pub answering: Option<Answering>,
}

/// What one region holds.
#[derive(Debug, Serialize)]
pub struct OfRegion {
    pub region: RegionName,
    pub groups: usize,
    pub instances: usize,
}

/// One reading of everything.
#[derive(Debug, Serialize)]
pub struct Look {
    /// From the first call to the last answer, all regions at once.
    pub took_ms: f64,
    /// Each region's own time.
    pub regions_ms: BTreeMap<RegionName, f64>,
    pub calls: u64,
    pub calls_by_kind: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize)]
pub struct Answering {
    pub cpu_ms: f64,
    pub throttled: u64,
}

/// Runs the bench.
///
/// # Errors
/// [`BenchError`] when nobody answers, or a region cannot be read whole.
pub async fn run(options: Options) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let answering = match &options.endpoint {
        Some(_) => None,
        None => Some(start(&options)?),
    };
    let made_up = answering.as_ref().map(|(url, ..)| url.clone());
    let url = options.endpoint.clone().or(made_up).unwrap_or_default();
    let cloud = client(&options, url.clone()).await?;
    let before_mib = process::own_peak_mib().map_err(BenchError::io(READS))?;
    let mut looks = Vec::new();
    let mut inventories = Vec::new();
    for number in 0..options.looks {
        if number > 0 {
            tokio::time::sleep(options.pause).await;
        }
        // As it is when serving: the last picture is there until the next one is whole.
        let (look, read) = look(&cloud).await?;
        looks.push(look);
        inventories = read;
    }
    let peak_mib = process::own_peak_mib().map_err(BenchError::io(READS))?;
    let answering = match answering {
        None => None,
        Some((_, part, throttled)) => {
            let cpu_ms = millis(part.cpu());
            part.end()?;
            Some(Answering { cpu_ms, throttled: throttled.load(Ordering::Relaxed) })
        }
    };
    let of_region = |inventory: &Inventory| OfRegion {
        region: inventory.region.clone(),
        groups: inventory.groups.len(),
        instances: inventory.instance_count(),
    };
    let in_play = inventories.iter().flat_map(|inventory| inventory.groups.values());
    let in_play = in_play.filter(|group| group.tags.contains_key(TAG_TEAM)).count();
    let regions: Vec<OfRegion> = inventories.iter().map(of_region).collect();
    let figures = Figures {
        cloud: "aws",
        answered_by: options.endpoint.unwrap_or_else(|| "an account that is made up".to_owned()),
        groups: regions.iter().map(|region| region.groups).sum(),
        in_play,
        instances: regions.iter().map(|region| region.instances).sum(),
        regions,
        looks,
        before_mib,
        peak_mib,
        answering,
    };
    Ok(Report::new("inventory", machine, figures, Vec::new()))
}

async fn client(options: &Options, url: String) -> Result<AwsCloud, BenchError> {
    let account = AccountName::new("bench").map_err(|e| BenchError::failed(ASKS)(e.to_string()))?;
    let regions = options.regions.iter().map(|region| (region.clone(), RegionConfig::default())).collect();
    let cloud = AwsCloud::new(AwsConfig {
        account,
        role_arn: None,
        regions,
        // Made up, too: nobody's keys are sent to an address that was typed in.
        credentials: Credentials::Static { key_id: "AKIATROOPBENCH".to_owned(), secret: "bench".to_owned() },
        name_tags: None,
        endpoint_url: Some(url),
        // As when serving, but that every look is a new one.
        patience: Patience { snapshot_reused_for: Duration::ZERO, ..Patience::default() },
        seed: 1,
        clock: Arc::new(clock::real_now),
    });
    Ok(cloud.await)
}

/// Reads all regions at once.
async fn look(cloud: &AwsCloud) -> Result<(Look, Vec<Inventory>), BenchError> {
    let before = cloud.calls_sent();
    let began = Instant::now();
    let each = cloud.regions().iter().map(|region| async move {
        let read = cloud.inventory(region).await;
        (region.clone(), began.elapsed(), read)
    });
    let all = join_all(each).await;
    let took_ms = millis(began.elapsed());
    let mut regions_ms = BTreeMap::new();
    let mut inventories = Vec::new();
    for (region, took, read) in all {
        let read = read.map_err(|e| BenchError::failed(ASKS)(format!("{region}: {}", chain(&e))))?;
        regions_ms.insert(region, millis(took));
        inventories.push(read);
    }
    let sent = cloud.calls_sent().into_iter();
    let calls_by_kind: BTreeMap<String, u64> = sent
        .map(|(call, count)| (call.to_string(), count - before.get(&call).copied().unwrap_or(0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    Ok((Look { took_ms, regions_ms, calls: calls_by_kind.values().sum(), calls_by_kind }, inventories))
}

/// Starts an account that is made up, and returns its address and the count of throttled calls.
fn start(options: &Options) -> Result<(String, Part, Arc<AtomicU64>), BenchError> {
    let io = BenchError::io("open the listener of an account that is made up");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(&io)?;
    let url = format!("http://{}", listener.local_addr().map_err(&io)?);
    listener.set_nonblocking(true).map_err(&io)?;
    let regions = options.regions.iter().map(ToString::to_string).collect();
    let Options { groups, instances, in_play, .. } = *options;
    let account = Arc::new(Account::new(&Size { regions, groups, instances, in_play }, clock::real_now()));
    let throttled = Arc::new(AtomicU64::new(0));
    let count = throttled.clone();
    let part = Part::start("bench-aws", move |stop| async move {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
        serve(listener, account, count, stop).await
    })?;
    Ok((url, part, throttled))
}

async fn serve(
    listener: tokio::net::TcpListener,
    account: Arc<Account>,
    throttled: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Result<(), String> {
    let local = tokio::task::LocalSet::new();
    let accepting = async {
        loop {
            let (stream, _) = listener.accept().await.map_err(|e| e.to_string())?;
            let (account, throttled) = (account.clone(), throttled.clone());
            let service = service_fn(move |request| answer(request, account.clone(), throttled.clone()));
            // A connection ends as its client pleases.
            tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    };
    local
        .run_until(async {
            tokio::select! { ended = accepting => ended, () = stop.cancelled() => Ok(()) }
        })
        .await
}

async fn answer(
    request: Request<Incoming>,
    account: Arc<Account>,
    throttled: Arc<AtomicU64>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let form = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let (region, service) = signed_for(&parts.headers).unwrap_or_default();
    let (status, text) = account.answer(region, service, &form, Instant::now());
    if status != 200 && (text.contains("RequestLimitExceeded") || text.contains("Throttling")) {
        throttled.fetch_add(1, Ordering::Relaxed);
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/xml;charset=UTF-8"));
    Ok(response)
}
