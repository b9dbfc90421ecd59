//! `troop bench balancer`: what a request costs through the balancer against straight to an instance, and against HAProxy;
//! and whether ten flips a second lose one.
//!
//! Two workers, each with a thread of its own as in production; six instances that answer at once share one thread, and
//! the load comes from the main one. All share the machine's processors, so the ratio is what is left of them: on a
//! machine with more cores the balancer looks better. Time on a processor for each request does not depend on that.

mod haproxy;
pub(super) mod instance;
mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::Full;
use serde::Serialize;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::haproxy::HaProxy;
use self::instance::Instances;
use self::stage::{CLUSTER, Stage};
use super::load::{Load, Make, Sample};
use super::{BenchError, Machine, Report, Spread, Target, Times, as_f64, median, ratio, rounded};

/// Instances of each of the two groups.
const INSTANCES: usize = 3;
/// Flips a second, as the issue of this bench asks.
const FLIP_EVERY: Duration = Duration::from_millis(100);
/// For so long each way is used before it counts: connections are made, caches are filled.
const WARM_UP: Duration = Duration::from_millis(500);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub connections: u32,
    /// Requests a second of the paced rounds.
    pub per_second: u32,
    pub rounds: u32,
    pub round: Duration,
    pub flips_for: Duration,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub connections: u32,
    pub rounds: u32,
    pub round_s: f64,
    /// One row a way, `direct` first.
    pub ways: Vec<Way>,
    pub flips: Flips,
}

/// One way to the instances.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Way {
    /// `direct`, `balancer` or `haproxy`.
    pub way: &'static str,
    /// HAProxy's; `absent` where this machine has none. Then every figure is null.
    pub version: Option<String>,
    #[serde(flatten)]
    pub measured: Option<Measured>,
}

/// The figures of a way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// As many as it can: the middle of the rounds.
    pub per_second: f64,
    /// To `direct` of the same round: the middle of the rounds, and the least and greatest.
    pub ratio: f64,
    pub ratio_min: f64,
    pub ratio_max: f64,
    /// From a request's sending to its whole answer, at full load.
    pub full: Spread,
    /// Time on a processor of the proxy alone for each request.
    pub cpu_us: Option<f64>,
    pub paced_per_second: u32,
    /// From a request's intended sending to its whole answer, at that pace.
    pub paced: Spread,
    pub failed: u64,
    pub reasons: Vec<String>,
}

/// Flips under full load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flips {
    /// Ten a second.
    pub asked: u64,
    /// Fewer on a machine that has no time for them: then this run has not shown what was asked.
    pub flips: u64,
    pub seconds: f64,
    /// From the cloud's sending to both workers' word that they follow.
    pub took: Spread,
    pub answered: u64,
    pub per_second: f64,
    pub failed: u64,
    pub reasons: Vec<String>,
}

/// Runs the bench.
///
/// # Errors
/// [`BenchError`] when something around it cannot be had. A request that fails is a figure.
pub async fn run(options: Options) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let instances = Instances::start(2 * INSTANCES)?;
    let (first, second) = instances.addresses.split_at(INSTANCES);
    let mut stage = Stage::start([first, second]).await?;
    let haproxy = HaProxy::start(first).await?;
    let mut rows = vec![Row::new("direct", first.to_vec()), Row::new("balancer", vec![stage.address])];
    rows.extend(haproxy.iter().map(|haproxy| Row::new("haproxy", vec![haproxy.address])));
    for _ in 0..options.rounds {
        for row in &mut rows {
            let cpu = |stage: &Stage| match row.way {
                "balancer" => Some(stage.cpu()),
                "haproxy" => haproxy.as_ref().map(HaProxy::cpu),
                _ => None,
            };
            let load = load(options, &row.targets, None);
            listening(&mut stage, load.run(WARM_UP.min(options.round))).await?;
            let before = cpu(&stage);
            let full = listening(&mut stage, load.run(options.round)).await?;
            row.spent = row.spent.zip(before).zip(cpu(&stage)).map(|((spent, from), to)| spent + (to - from));
            row.rates.push(full.per_second());
            row.full.push(full);
        }
        for row in &mut rows {
            let load = self::load(options, &row.targets, Some(options.per_second));
            row.paced.push(listening(&mut stage, load.run(options.round)).await?);
        }
    }
    let direct = rows.first().map(|row| row.rates.clone()).unwrap_or_default();
    let version = haproxy.as_ref().map(|haproxy| haproxy.version.clone());
    drop(haproxy);
    let mut ways: Vec<Way> = rows.into_iter().map(|row| row.way(&direct, options)).collect::<Result<_, _>>()?;
    match ways.iter_mut().find(|way| way.way == "haproxy") {
        Some(way) => way.version = version,
        None => ways.push(Way { way: "haproxy", version: Some("absent".to_owned()), measured: None }),
    }
    let flips = flips(&mut stage, options).await?;
    stage.end()?;
    instances.part.end()?;
    let failed = flips.failed + ways.iter().filter_map(|w| w.measured.as_ref()).map(|m| m.failed).sum::<u64>();
    let targets = vec![
        Target::at_most("failed requests at 10 flips a second", "requests", 0.0, as_f64(flips.failed)),
        Target::at_most("failed requests in all", "requests", 0.0, as_f64(failed)),
    ];
    let Options { connections, rounds, round, .. } = options;
    let figures = Figures { connections, rounds, round_s: rounded(round.as_secs_f64()), ways, flips };
    Ok(Report::new("balancer", machine, figures, targets))
}

/// Runs the load while the cloud takes in what the workers report.
async fn listening<T>(stage: &mut Stage, load: impl Future<Output = T>) -> T {
    tokio::select! {
        done = load => done,
        never = stage.listen() => match never {},
    }
}

fn load(options: Options, targets: &[SocketAddr], per_second: Option<u32>) -> Load {
    let make: Make = Arc::new(|_, _| {
        let request = Request::get("/").header(HOST, format!("{CLUSTER}.localhost")).body(Full::new(Bytes::new()));
        request.unwrap_or_default()
    });
    Load { targets: targets.to_vec(), connections: options.connections, per_second, each_at_most: u64::MAX, make }
}

/// A way while it is measured.
struct Row {
    way: &'static str,
    targets: Vec<SocketAddr>,
    rates: Vec<f64>,
    full: Vec<Sample>,
    paced: Vec<Sample>,
    /// Time of the proxy on a processor while at full load; none where there is none.
    spent: Option<Duration>,
}

impl Row {
    fn new(way: &'static str, targets: Vec<SocketAddr>) -> Self {
        let spent = (way != "direct").then_some(Duration::ZERO);
        Self { way, targets, rates: Vec::new(), full: Vec::new(), paced: Vec::new(), spent }
    }

    fn way(self, direct: &[f64], options: Options) -> Result<Way, BenchError> {
        let ratios: Vec<f64> = self.rates.iter().zip(direct).map(|(own, direct)| ratio(*own, *direct)).collect();
        let (full, paced) = (all(self.full)?, all(self.paced)?);
        let reasons = full.reasons.iter().chain(&paced.reasons).cloned().collect();
        let measured = Measured {
            per_second: median(self.rates),
            ratio: rounded(median(ratios.clone())),
            ratio_min: rounded(ratios.iter().copied().reduce(f64::min).unwrap_or(0.0)),
            ratio_max: rounded(ratios.iter().copied().reduce(f64::max).unwrap_or(0.0)),
            cpu_us: self.spent.map(|spent| full.share_us(spent)),
            full: full.times(),
            paced_per_second: options.per_second,
            paced: paced.times(),
            failed: full.failed + paced.failed,
            reasons,
        };
        Ok(Way { way: self.way, version: None, measured: Some(measured) })
    }
}

fn all(samples: Vec<Sample>) -> Result<Sample, BenchError> {
    let mut samples = samples.into_iter();
    let none = || BenchError::Failed { what: "measure", why: "there was no round".to_owned() };
    let mut all = samples.next().ok_or_else(none)?;
    samples.for_each(|one| all.merge(one));
    Ok(all)
}

/// Flips to and fro under full load.
async fn flips(stage: &mut Stage, options: Options) -> Result<Flips, BenchError> {
    let load = load(options, &[stage.address], None);
    let stop = CancellationToken::new();
    let mut took = Times::new()?;
    let mut flips = 0;
    let flipping = async {
        let mut due = tokio::time::interval(FLIP_EVERY);
        // Late ones are made up for: so many a second are promised.
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = tokio::time::Instant::now() + options.flips_for;
        let mut to = 0;
        while tokio::time::Instant::now() < end {
            tokio::select! {
                _ = due.tick() => {}
                never = stage.listen() => match never {},
            }
            to = 1 - to;
            took.add(stage.flip(to).await?);
            flips += 1;
        }
        Ok::<_, BenchError>(())
    };
    // However the flips end, the load ends with them.
    let flipping = async {
        let flipped = flipping.await;
        stop.cancel();
        flipped
    };
    let (sample, flipped) = tokio::join!(load.until(&stop), flipping);
    flipped?;
    let sample = sample?;
    let asked = options.flips_for.as_millis() / FLIP_EVERY.as_millis();
    Ok(Flips {
        asked: u64::try_from(asked).unwrap_or(u64::MAX),
        flips,
        seconds: rounded(options.flips_for.as_secs_f64()),
        took: took.spread(),
        answered: sample.answered,
        per_second: sample.per_second(),
        failed: sample.failed,
        reasons: sample.reasons,
    })
}
