//! `troop bench ledger`: how many acts a second can be recorded, each with what `troop serve` writes of a kill: its
//! intent in one transaction and its outcome in another, both safe on disk before they return.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;
use troop_ledger::{Ledger, Stamp};
use troop_policies::ids::BadId;
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::step::{How, Step};
use troop_policies::{AccountName, GroupName, InstanceId, RegionName, TeamName, ZoneName};

use super::{BenchError, Machine, Report, Spread, Times, rate};
use crate::clock;
use crate::serve::act;
use crate::serve::core::intent_id;
use crate::serve::host;

/// Acts at a time, in the rounds one after the other: alone, and as many as a busy control plane ever has in hand.
const AT_ONCE: [u32; 2] = [1, 8];
/// What is written to tell how long this disk takes to be sure: a page of SQLite.
const PAGE_BYTES: usize = 4_096;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// The type of the file system; on `tmpfs` nothing is ever waited for, and the figures say little.
    pub filesystem: String,
    /// One page written to the end of a file and synced, the least that a commit can cost here.
    pub sync: Spread,
    pub rounds: Vec<Round>,
}

/// So many writers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    pub at_once: u32,
    pub acts: u64,
    pub acts_per_second: f64,
    /// Intent and event, until they are safe.
    pub intent: Spread,
    /// Outcome and event, until they are safe.
    pub settle: Spread,
}

/// Runs the bench with a ledger in a new folder of `dir`, each round for so long.
///
/// # Errors
/// [`BenchError`] when the ledger cannot be had or written.
pub async fn run(dir: &Path, lasts: Duration) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let folder = tempfile::tempdir_in(dir).map_err(BenchError::io("make a folder"))?;
    let filesystem = filesystem(folder.path())?;
    let sync = sync(folder.path(), lasts / 10)?;
    let stamp = || Stamp { at: clock::real_now(), real_at: clock::real_now() };
    let ledger = Ledger::open(&folder.path().join("ledger.db"), Arc::new(stamp)).await?;
    let mut rounds = Vec::new();
    for at_once in AT_ONCE {
        rounds.push(round(&ledger, at_once, lasts).await?);
    }
    // What was written must also be whole.
    let verified = ledger.verify().await?;
    let written: u64 = rounds.iter().map(|round| round.acts).sum();
    ledger.close().await;
    if verified.events != 2 * written {
        let why = format!("{written} acts left {} events", verified.events);
        return Err(BenchError::Failed { what: "record every act", why });
    }
    Ok(Report::new("ledger", machine, Figures { filesystem, sync, rounds }, Vec::new()))
}

async fn round(ledger: &Ledger, at_once: u32, lasts: Duration) -> Result<Round, BenchError> {
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..at_once {
        let ledger = ledger.clone();
        writers.spawn(async move {
            let (mut acts, mut intents, mut settles) = (0, Times::new()?, Times::new()?);
            while began.elapsed() < lasts || acts == 0 {
                let (intent, settle) = record(&ledger).await?;
                intents.add(intent);
                settles.add(settle);
                acts += 1;
            }
            Ok::<_, BenchError>((acts, intents, settles))
        });
    }
    let (mut acts, mut intents, mut settles) = (0, Times::new()?, Times::new()?);
    while let Some(ended) = writers.join_next().await {
        let ended = ended.map_err(|e| BenchError::Failed { what: "record acts", why: e.to_string() })?;
        let (more, intent, settle) = ended?;
        acts += more;
        intents.merge(&intent);
        settles.merge(&settle);
    }
    let acts_per_second = rate(acts, began.elapsed());
    Ok(Round { at_once, acts, acts_per_second, intent: intents.spread(), settle: settles.spread() })
}

/// One act: recorded, and settled as done. How long each took.
async fn record(ledger: &Ledger) -> Result<(Duration, Duration), BenchError> {
    let intent = kill().map_err(BenchError::failed("make up an act"))?;
    let zone = ZoneName::new("r1a").map_err(|e| BenchError::failed("make up an act")(e.to_string()))?;
    let began = Instant::now();
    let mut tx = ledger.begin().await?;
    act::insert(&mut tx, &intent, Some(zone)).await?;
    tx.commit().await?;
    let intended = began.elapsed();
    let mut tx = ledger.begin().await?;
    act::settle_in(&mut tx, &intent, &Outcome::done("ended within 3 ms")).await?;
    tx.commit().await?;
    Ok((intended, began.elapsed() - intended))
}

fn kill() -> Result<Intent, String> {
    let id = intent_id(host::random()?)?;
    let made = || {
        Ok::<_, BadId>(Intent {
            id,
            account: AccountName::new("local")?,
            region: RegionName::new("r1")?,
            step: Step::Terminate {
                group: GroupName::new("checkout-web-v041")?,
                instance: InstanceId::new("i-0123456789abcdef0")?,
                kill: How::Crash,
            },
            cause: Cause::Draw {
                team: TeamName::new("shop")?,
                draw_key: "local/r1/checkout-web".to_owned(),
                monkey: "chaos".to_owned(),
                day: jiff::civil::date(2026, 11, 24),
            },
            at: clock::real_now(),
        })
    };
    made().map_err(|e| e.to_string())
}

/// Appends pages to a file and syncs each, for so long and at least ten times.
fn sync(folder: &Path, lasts: Duration) -> Result<Spread, BenchError> {
    let io = BenchError::io("write and sync a file");
    let mut times = Times::new()?;
    let mut file = std::fs::File::create(folder.join("sync")).map_err(&io)?;
    let began = Instant::now();
    while began.elapsed() < lasts || times.count() < 10 {
        let before = Instant::now();
        file.write_all(&[b'.'; PAGE_BYTES]).and_then(|()| file.sync_data()).map_err(&io)?;
        times.add(before.elapsed());
    }
    Ok(times.spread())
}

/// The type of the file system that holds `folder`: of the mount with the longest path that leads there.
fn filesystem(folder: &Path) -> Result<String, BenchError> {
    let io = BenchError::io("find the file system");
    let folder = folder.canonicalize().map_err(&io)?;
    let mounts = std::fs::read_to_string("/proc/mounts").map_err(&io)?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let ours = mounts.filter(|(at, _)| folder.starts_with(at)).max_by_key(|(at, _)| at.len());
    Ok(ours.map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned()))
}
