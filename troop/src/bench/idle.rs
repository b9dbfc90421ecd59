//! `troop bench idle`: what a control plane costs while nothing happens.
//!
//! The role `serve` of this very binary, in a process of its own, so that what the kernel counts is its own. Around it a
//! registry that runs, with an entry of every instance, and a cloud process that is played: it answers with an
//! inventory that is made up, over the real socket in the real frames. The policies' window is on another day, so that
//! every plan is made and nothing comes due.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use troop_agent::bench::process::Reading;
use troop_cloud::local::protocol::{Frames, Hello, Request, Response, frames, receive, send};
use troop_cloud::local::role;
use troop_ledger::Ledger;
use troop_policies::inventory::Inventory;

use super::fleet::{Fleet, Window};
use super::thread::Part;
use super::{BenchError, Machine, READS, Report, as_f64, process, rate, ratio, rounded};
use crate::clock;
use crate::state::StateDir;
use crate::supervisor::roles;
use crate::world::chain;

/// How long every plan may take to be made.
const PLANNED_WITHIN: Duration = Duration::from_secs(120);
/// How long it is left alone afterwards before it is measured: what begins has ended then.
const SETTLES_FOR: Duration = Duration::from_secs(3);
const ASK_EVERY: Duration = Duration::from_millis(200);
/// What it gets to end in order.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary whose role `serve` is measured.
    pub exe: PathBuf,
    pub groups: u32,
    pub instances: u32,
    pub lasts: Duration,
}

/// What was found, of the process that serves.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub groups: u32,
    pub instances: u32,
    pub teams: u32,
    pub seconds: f64,
    /// Times a second that a thread of it woke after it had waited.
    pub wakeups_per_second: f64,
    /// Of one processor.
    pub cpu_percent: f64,
    pub rss_mib: f64,
    /// The most that it ever was: while the plans were made, mostly.
    pub peak_mib: f64,
    pub threads: u64,
    /// Readings of the inventory a second.
    pub looks_per_second: f64,
    /// Time on a processor for each.
    pub cpu_ms_per_look: f64,
    /// From its start until every team's plan stood.
    pub ready_ms: f64,
}

/// Runs the bench.
///
/// # Errors
/// [`BenchError`] when the control plane cannot be started, or makes no plans.
pub async fn run(options: Options) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let folder = tempfile::tempdir().map_err(BenchError::io("make a folder"))?;
    let state = StateDir::find(Some(folder.path()), |_| None);
    let state = state.map_err(|e| BenchError::failed("find a state folder")(chain(&e)))?;
    state.create().map_err(|e| BenchError::failed("make a state folder")(chain(&e)))?;
    let policies = folder.path().join("policies");
    std::fs::create_dir(&policies).map_err(BenchError::io("make a folder"))?;
    let now = clock::real_now();
    let fleet = Fleet { scopes: options.groups, instances: options.instances, window: far_from(now) };
    fleet.write_policies(&policies)?;
    let inventory = fleet.inventory(now)?;
    let (registry_at, registry) = super::registry::serving(folder.path(), options.instances).await?;
    let cloud = PlayedCloud::start(&state, inventory)?;
    let began = Instant::now();
    let mut serve = Serve::start(&options.exe, &state, &policies, registry_at)?;
    planned(&mut serve, &state, &fleet).await?;
    let ready_ms = super::millis(began.elapsed());
    tokio::time::sleep(SETTLES_FOR).await;
    let (before, looks_before, since) = (serve.read()?, cloud.looks(), Instant::now());
    tokio::time::sleep(options.lasts).await;
    let (after, looks, took) = (serve.read()?, cloud.looks() - looks_before, since.elapsed());
    serve.end().await;
    cloud.part.end()?;
    registry.end()?;
    let figures = figures(&fleet, (before, after), looks, took, ready_ms);
    Ok(Report::new("idle", machine, figures, Vec::new()))
}

fn figures(fleet: &Fleet, (before, after): (Reading, Reading), looks: u64, took: Duration, ready_ms: f64) -> Figures {
    let cpu = after.cpu.saturating_sub(before.cpu);
    let mib = |kib: u64| rounded(as_f64(kib) / 1_024.0);
    Figures {
        groups: fleet.scopes,
        instances: fleet.instances,
        teams: fleet.teams(),
        seconds: rounded(took.as_secs_f64()),
        wakeups_per_second: rate(after.waits.saturating_sub(before.waits), took),
        cpu_percent: rounded(100.0 * ratio(cpu.as_secs_f64(), took.as_secs_f64())),
        rss_mib: mib(after.rss_kib),
        peak_mib: mib(after.peak_kib),
        threads: after.threads,
        looks_per_second: rate(looks, took),
        cpu_ms_per_look: rounded(1_000.0 * ratio(cpu.as_secs_f64(), as_f64(looks))),
        ready_ms,
    }
}

/// A window on a day that is neither today nor next to it, wherever that day begins.
fn far_from(now: Timestamp) -> Window {
    let later = now.checked_add(SignedDuration::from_hours(3 * 24)).unwrap_or(now);
    let day = match later.to_zoned_datetime(jiff::tz::TimeZone::UTC).weekday() {
        Weekday::Monday => "mon",
        Weekday::Tuesday => "tue",
        Weekday::Wednesday => "wed",
        Weekday::Thursday => "thu",
        Weekday::Friday => "fri",
        Weekday::Saturday => "sat",
        Weekday::Sunday => "sun",
    };
    Window { day, open: "10:00", close: "16:00" }
}

/// Returns once the ledger holds a plan of every team.
async fn planned(serve: &mut Serve, state: &StateDir, fleet: &Fleet) -> Result<(), BenchError> {
    let began = Instant::now();
    loop {
        if let Some(status) = serve.ended()? {
            let log = std::fs::read_to_string(&serve.log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(BenchError::Failed { what: "serve", why: format!("it ended: {status}: {last}") });
        }
        if plans(state).await >= fleet.teams() as usize {
            return Ok(());
        }
        if began.elapsed() > PLANNED_WITHIN {
            return Err(BenchError::Late { what: "the plans of all teams", within: PLANNED_WITHIN });
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// How many plans of today there are. A ledger that is not there yet has none.
async fn plans(state: &StateDir) -> usize {
    let Ok(ledger) = Ledger::open_read_only(&state.ledger()).await else { return 0 };
    let today = clock::real_now().to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
    let plans = ledger.plans(&today.to_string()).await.map(|plans| plans.len());
    ledger.close().await;
    plans.unwrap_or(0)
}

/// The process that is measured. Dropped, it is killed.
struct Serve {
    child: Child,
    log: PathBuf,
    /// Its end tells the role to stop.
    line: Option<UnixStream>,
    _connections: UnixStream,
}

impl Serve {
    /// To be called on a thread that lives as long as it does: the role dies with it.
    fn start(exe: &Path, state: &StateDir, policies: &Path, registry: SocketAddr) -> Result<Self, BenchError> {
        let io = BenchError::io("start the control plane");
        let (ours, theirs) = UnixStream::pair().map_err(&io)?;
        let log = state.path().join("serve.log");
        let mut command = Command::new(exe);
        command.args([roles::ROLE, "serve", "--state"]).arg(state.path());
        command.arg("--registry").arg(registry.to_string()).arg("--policies").arg(policies);
        let line = role::hand(&mut command, &[(roles::CONNECTIONS, theirs.as_fd())]).map_err(&io)?;
        let log_file = std::fs::File::create(&log).map_err(&io)?;
        command.stdout(Stdio::null()).stderr(log_file);
        let child = command.spawn().map_err(&io)?;
        Ok(Self { child, log, line: Some(line), _connections: ours })
    }

    fn read(&self) -> Result<Reading, BenchError> {
        process::read(self.child.id()).map_err(BenchError::io(READS))
    }

    fn ended(&mut self) -> Result<Option<std::process::ExitStatus>, BenchError> {
        self.child.try_wait().map_err(BenchError::io("wait for the control plane"))
    }

    async fn end(mut self) {
        drop(self.line.take());
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < ENDS_WITHIN {
            tokio::time::sleep(ASK_EVERY / 10).await;
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A cloud process that knows one inventory and counts who reads it.
struct PlayedCloud {
    part: Part,
    looks: Arc<AtomicU64>,
}

impl PlayedCloud {
    fn start(state: &StateDir, inventory: Inventory) -> Result<Self, BenchError> {
        let io = BenchError::io("open the cloud's socket");
        let listener = std::os::unix::net::UnixListener::bind(state.cloud_socket()).map_err(&io)?;
        listener.set_nonblocking(true).map_err(&io)?;
        let looks = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&looks);
        let part = Part::start("bench-cloud", move |stop| async move {
            let listener = UnixListener::from_std(listener).map_err(|e| e.to_string())?;
            answer_all(listener, inventory, &counted, stop).await.map_err(|e| e.to_string())
        })?;
        Ok(Self { part, looks })
    }

    fn looks(&self) -> u64 {
        self.looks.load(Ordering::SeqCst)
    }
}

/// Answers one client after the other: a control plane asks one thing at a time.
async fn answer_all(
    listener: UnixListener,
    mut inventory: Inventory,
    looks: &AtomicU64,
    stop: CancellationToken,
) -> std::io::Result<()> {
    loop {
        let client = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            client = listener.accept() => client?.0,
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // Whoever goes away in the middle is no failure of this end.
            _left = answer(frames(client), &mut inventory, looks) => {}
        }
    }
}

async fn answer(mut client: Frames, inventory: &mut Inventory, looks: &AtomicU64) -> std::io::Result<()> {
    let _greeted: Option<Hello> = receive(&mut client).await?;
    while let Some(request) = receive::<_, Request>(&mut client).await? {
        if !matches!(request, Request::Inventory { .. }) {
            send(&mut client, &Response::Error("a played cloud only tells what it holds".to_owned())).await?;
            continue;
        }
        let now = clock::real_now();
        inventory.read_at = now;
        let targets =
            inventory.groups.values_mut().flat_map(|g| g.members.values_mut()).filter_map(|i| i.target.as_mut());
        targets.for_each(|target| target.checked_at = now);
        // The frame's shape is `Response::Inventory`'s; the clone is this end's cost, not that of who is measured.
        send(&mut client, &Response::Inventory(inventory.clone())).await?;
        looks.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_never_today_nor_next_to_it() {
        for (now, day) in [("2026-11-24T23:59:00Z", "fri"), ("2026-11-28T00:00:00Z", "tue")] {
            assert_eq!(far_from(now.parse().unwrap()).day, day);
        }
    }
}
