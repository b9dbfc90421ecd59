//! `troop bench plan`: what it costs to plan a day for a whole site, and what every look and every act cost beside it.
//!
//! Measured for a tenth of the size first and then for all of it, in one process, so that the ratio says how the cost
//! grows. The fleet, the policies and the registry's view are made up; the scheduler, the planner of `troop serve`, its
//! ledger (SQLite, synchronous FULL) and the gates are those that serve.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;
use troop_ledger::{Ledger, Stamp};
use troop_policies::draw::SiteSecret;
use troop_policies::gates::{self, Purpose, Scope};
use troop_policies::inventory::Inventory;
use troop_policies::plan::PlanVerdict;
use troop_policies::policy::Site;
use troop_policies::situation::{InventorySeen, LedgerSeen, SiteLeash, Situation};
use troop_scheduler::plan::{ByTeam, PlanInput, plan_day, scopes_of};

use super::fleet::{self, Fleet, Window};
use super::{BenchError, Machine, READS, Report, Target, as_f64, median, millis, process, ratio, rounded};
use crate::agents::NoAgents;
use crate::clock::{self, Calendar};
use crate::outside::Dial;
use crate::serve;
use crate::serve::core::{Core, Parts};
use crate::serve::look::Look;
use crate::serve::planner;
use crate::serve::policy_store::TeamPolicy;
use crate::state::StateDir;
use crate::world::{World, chain};

/// The size that is promised.
pub const SCOPES: u32 = 10_000;
pub const INSTANCES: u32 = 1_000_000;
/// What is promised of it.
const PLANNED_WITHIN_MS: f64 = 1_000.0;
const PEAK_MIB: f64 = 1_024.0;
/// Ten times as much may cost a fifth more than ten times: a tree is deeper, a cache is smaller.
const RATIO: f64 = 12.0;
/// How much smaller the size is to which it is compared.
const TENTH: u32 = 10;

/// A Tuesday before its window: everything is planned, nothing is due.
const EARLY: &str = "2026-11-24T06:00:00Z";
/// Inside it, for the gates.
const OPEN: &str = "2026-11-24T11:00:00Z";
const WINDOW: Window = Window { day: "tue", open: "10:00", close: "16:00" };
/// How often each thing is done, whose middle counts.
const TIMES: usize = 5;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// A tenth of the size, then all of it.
    pub sizes: Vec<Figure>,
    /// `planned_ms` of all of it to that of a tenth.
    pub ratio: f64,
}

/// The figures of one size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    pub scopes: u32,
    pub instances: u32,
    pub teams: u32,
    /// Every team's scopes found in the inventory, and every team's day planned, in memory.
    pub planned_ms: f64,
    /// Entries of the plans that were chosen.
    pub chosen: u64,
    /// The most memory this process ever held until then, the inventory included.
    pub peak_mib: u64,
    /// As `troop serve` does it once a day: the ledger asked about every scope, every plan stored.
    pub stored_ms: f64,
    /// What the planner of `troop serve` costs at every look afterwards, while every plan stands.
    pub standing_ms: f64,
    /// Every gate asked about one scope, as before every act.
    pub gates_ms: f64,
    /// Instances that passed them.
    pub eligible: usize,
}

/// Runs the bench for so many scopes and instances.
///
/// # Errors
/// [`BenchError`] when a folder or the ledger cannot be had.
pub async fn run(scopes: u32, instances: u32) -> Result<Report<Figures>, BenchError> {
    let machine = Machine::read();
    let mut sizes = Vec::new();
    for (scopes, instances) in [((scopes / TENTH).max(1), (instances / TENTH).max(1)), (scopes, instances)] {
        sizes.push(one(Fleet { scopes, instances, window: WINDOW }).await?);
    }
    let planned: Vec<f64> = sizes.iter().map(|figure| figure.planned_ms).collect();
    let ratio = rounded(ratio(planned[1], planned[0]));
    let targets = if (scopes, instances) == (SCOPES, INSTANCES) {
        vec![
            Target::at_most("planned", "ms", PLANNED_WITHIN_MS, planned[1]),
            Target::at_most("peak memory", "MiB", PEAK_MIB, as_f64(sizes[1].peak_mib)),
            Target::at_most("cost of ten times as much", "times", RATIO, ratio),
        ]
    } else {
        Vec::new()
    };
    Ok(Report::new("plan", machine, Figures { sizes, ratio }, targets))
}

async fn one(fleet: Fleet) -> Result<Figure, BenchError> {
    let io = BenchError::io("make a folder");
    let dir = tempfile::tempdir().map_err(&io)?;
    let policies = dir.path().join("policies");
    std::fs::create_dir(&policies).map_err(&io)?;
    fleet.write_policies(&policies)?;
    let core = control_plane(dir.path()).await?;
    serve::reload(&core).await;
    let loaded = core.policies.load_full();
    let teams: Vec<&Arc<TeamPolicy>> = loaded.good().collect();
    if teams.len() != fleet.teams() as usize {
        let why = format!("{} of {} policies were taken", teams.len(), fleet.teams());
        return Err(BenchError::Failed { what: "read the policies", why });
    }
    let now = clock::real_now();
    let inventories = [fleet.inventory(now)?];
    let mut planned = Vec::new();
    let mut chosen = 0;
    for _ in 0..TIMES {
        let began = Instant::now();
        chosen = plan(&core, &teams, &inventories)?;
        planned.push(millis(began.elapsed()));
    }
    let peak_mib = process::own_peak_mib().map_err(BenchError::io(READS))?;
    let registry = fleet::registry(&inventories[0], now);
    let [inventory] = inventories;
    let seen = Look {
        at: now,
        regions: vec![(inventory.location(), Ok(inventory), None)],
        registry: Ok(registry),
        holds: Default::default(),
    };
    let mut memory = planner::Planner::default();
    let stored_ms = ticked(&core, &mut memory, &seen).await;
    if let Some(trouble) = core.troubles().first() {
        return Err(BenchError::Failed { what: "plan and store", why: trouble.clone() });
    }
    let mut standing = Vec::new();
    for _ in 0..TIMES {
        standing.push(ticked(&core, &mut memory, &seen).await);
    }
    let (gates_ms, eligible) = asked(&teams, &seen)?;
    core.ledger.clone().close().await;
    Ok(Figure {
        scopes: fleet.scopes,
        instances: fleet.instances,
        teams: fleet.teams(),
        planned_ms: median(planned),
        chosen,
        peak_mib,
        stored_ms,
        standing_ms: median(standing),
        gates_ms,
        eligible,
    })
}

/// Every team's day in memory. Returns how many entries were chosen.
fn plan(core: &Core, teams: &[&Arc<TeamPolicy>], inventories: &[Inventory]) -> Result<u64, BenchError> {
    let now = at(EARLY)?;
    let secret = core.secret.as_ref().map_err(|why| BenchError::failed("plan")(why.clone()))?;
    let groups = ByTeam::of(inventories);
    let mut chosen = 0;
    for team in teams {
        let day = team.calendar.civil_day(now);
        let day_key = secret.day_key(day, &team.policy.team);
        let scopes = scopes_of(&team.policy, &groups);
        let plan = plan_day(&PlanInput {
            policy: &team.policy,
            calendar: &team.calendar,
            day,
            day_key: &day_key,
            now,
            site_leashed: false,
            halted: false,
            scopes: &scopes,
        });
        chosen += plan.entries.iter().filter(|entry| entry.verdict == PlanVerdict::Chosen).count() as u64;
    }
    Ok(chosen)
}

async fn ticked(core: &Arc<Core>, memory: &mut planner::Planner, seen: &Look) -> f64 {
    let began = Instant::now();
    planner::tick(core, memory, seen).await;
    millis(began.elapsed())
}

/// The gates of one scope, of teams all over the site: the middle of the times, and how many instances passed the last.
fn asked(teams: &[&Arc<TeamPolicy>], seen: &Look) -> Result<(f64, usize), BenchError> {
    let window = at(OPEN)?;
    let inventories: Vec<&Inventory> = seen.inventories().collect();
    let (mut times, mut eligible) = (Vec::new(), 0);
    for team in teams.iter().step_by((teams.len() / TIMES).max(1)).take(TIMES) {
        let group = inventories.iter().flat_map(|i| i.groups.values().map(move |g| (i, g)));
        let Some((inventory, group)) = group.into_iter().find(|(_, group)| team.policy.owns(group)) else { continue };
        let Some(app) = team.policy.apps.get(group.name.app()) else { continue };
        let draw_key = app.draw_key(&inventory.account, &inventory.region, group.cluster());
        let scope = Scope { app: app.app.clone(), draw_key };
        let began = Instant::now();
        let situation = Situation {
            now: seen.at,
            policy: Ok(&team.policy),
            site_leash: Ok(SiteLeash::Off),
            site_caps: Default::default(),
            site_hold_while: Vec::new(),
            holds: Default::default(),
            site_channels: Default::default(),
            halt: Ok(None),
            clock: Ok(()),
            inventories: inventories.iter().map(|i| InventorySeen { inventory: Ok(*i), shrunk: None }).collect(),
            registry: seen.registry.as_ref().map_err(Clone::clone),
            window: Ok(team.calendar.at(window)),
            ledger: Ok(LedgerSeen::default()),
        };
        let verdict = gates::ask(&situation, &scope, &Purpose::Drawn);
        times.push(millis(began.elapsed()));
        eligible = verdict.result.map(|eligible| eligible.ids().len()).map_err(|spared| BenchError::Failed {
            what: "have a healthy scope pass the gates",
            why: spared.to_string(),
        })?;
    }
    Ok((median(times), eligible))
}

fn at(text: &str) -> Result<Timestamp, BenchError> {
    text.parse().map_err(|e: jiff::Error| BenchError::Failed { what: "read a built-in time", why: e.to_string() })
}

/// A control plane over a new ledger whose calendar stands. Its cloud is never asked.
async fn control_plane(dir: &std::path::Path) -> Result<Arc<Core>, BenchError> {
    let failed = BenchError::failed("make a state folder");
    let state = StateDir::find(Some(&dir.join("state")), |_| None).map_err(|e| failed(chain(&e)))?;
    state.create().map_err(|e| failed(chain(&e)))?;
    let calendar = Calendar::standing(at(EARLY)?);
    let of_ledger = calendar.clone();
    let stamp = move || Stamp { at: of_ledger.at(clock::real_now()), real_at: clock::real_now() };
    let ledger = Ledger::open(&state.ledger(), Arc::new(stamp)).await?;
    Ok(Core::new(
        Parts {
            policies_dir: dir.join("policies"),
            state,
            site: Site::embedded_default(),
            ledger,
            // Planning asks nothing of a cloud.
            world: World::new(Vec::new(), None),
            agents: Arc::new(NoAgents),
            calendar,
            secret: Ok(SiteSecret::from_bytes([7; 32])),
        },
        Dial::Direct,
    ))
}
