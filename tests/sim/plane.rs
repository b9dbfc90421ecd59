//! One simulated process: a control plane's parts, run in turn as often as something may have changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use tokio::sync::Notify;
use troop::clock::Calendar;
use troop::records::MARK_HEALING;
use troop::serve::core::{Core, Parts};
use troop::serve::host::Host;
use troop::serve::policy_store::Policies;
use troop::serve::pushes::{Driver, Turn, turn};
use troop::serve::{healer, janitor::Janitor, look::look, planner, resolver, take_up};
use troop::state::StateDir;
use troop::world::World;
use troop_deploy::push::{Phase, Push};
use troop_ledger::{Clock, Ledger, Stamp};
use troop_policies::draw::SiteSecret;
use troop_policies::plan::{DayPlan, PlanVerdict};
use troop_policies::policy::Site as SiteFile;

use crate::host::{SimHost, later, seconds_later};
use crate::rng::Rng;
use crate::world::calls::{Connection, Site};

/// Turns of one push without a pause; more would be a loop.
const TURNS_MAX: usize = 40;

/// See the module.
#[derive(Debug)]
pub struct Plane {
    pub core: Arc<Core>,
    pub connection: Arc<Connection>,
    pub host: Arc<SimHost>,
    pub wake: Arc<Notify>,
}

/// What a control plane begins with.
#[derive(Debug)]
pub struct Begin<'a> {
    pub site: &'a Arc<Site>,
    pub ledger: &'a Ledger,
    pub plane: usize,
    pub rng: Rng,
    pub file: SiteFile,
    pub policies: Policies,
    pub skew_ms: i64,
    pub halt_at_write: Arc<AtomicI64>,
}

/// The clock of a ledger, which may be where a halt comes in between.
fn clock(site: &Arc<Site>, host: &Arc<SimHost>, halt_at_write: Arc<AtomicI64>) -> Clock {
    let (site, host) = (Arc::clone(site), Arc::clone(host));
    Arc::new(move || {
        if halt_at_write.load(Ordering::Relaxed) > 0 && halt_at_write.fetch_sub(1, Ordering::Relaxed) == 1 {
            site.book().halted(site.time.now(), true);
            site.halt.set(Some(troop_policies::situation::Halted {
                who: "eve".to_owned(),
                at: site.time.now(),
                why: "at the very moment".to_owned(),
            }));
        }
        let now = host.now();
        Stamp { at: now, real_at: now }
    })
}

impl Plane {
    pub async fn begin(begin: Begin<'_>) -> Option<Self> {
        let host = SimHost::new(begin.site.time, begin.site.halt.clone(), begin.site.signals.clone(), begin.rng);
        host.skew_ms.store(begin.skew_ms, Ordering::Relaxed);
        let ledger = begin.ledger.shared_in_memory(clock(begin.site, &host, begin.halt_at_write))?;
        let connection = Arc::new(Connection {
            site: Arc::clone(begin.site),
            host: Arc::clone(&host),
            plane: begin.plane,
            ledger: ledger.clone(),
            fuse: AtomicI64::new(0),
            dead: AtomicBool::new(false),
        });
        let parts = Parts {
            state: StateDir::find(Some(Path::new("nowhere")), |_| None).ok()?,
            site: begin.file,
            policies_dir: PathBuf::new(),
            ledger,
            world: World::new(vec![connection.clone()], Some(connection.clone())),
            agents: Arc::new(troop::agents::NoAgents),
            calendar: Calendar::real(),
            secret: Ok(SiteSecret::from_bytes([7; 32])),
        };
        let core = Core::on(Arc::clone(&host) as Arc<dyn Host>, parts);
        take_up(&core, begin.policies).await;
        let wake = Arc::new(Notify::new());
        let life = tokio::spawn(live(Arc::clone(&core), Arc::clone(&wake)));
        host.keep(life.abort_handle());
        Some(Self { core, connection, host, wake })
    }

    /// Ends at once, with everything in its hands.
    pub fn crash(&self) {
        self.host.crash();
    }
}

/// How long the planner is left alone where nothing is due; a change of the world or a policy wakes it.
const PLANNER_RESTS_S: i64 = 2 * 3_600;
/// How often open intents are asked about.
const RESOLVE_EVERY_S: i64 = 20;

async fn live(core: Arc<Core>, wake: Arc<Notify>) {
    resolver::tick(&core, true).await;
    let (mut planner, mut janitor) = (planner::Planner::default(), Janitor::default());
    let mut drivers = BTreeMap::new();
    let (mut planned_at, mut resolved_at) = (Timestamp::MIN, core.now());
    let (mut policies, mut looks_at) = (core.policies.load_full(), Timestamp::MIN);
    loop {
        // In the binary everybody looks at every turn, and mostly finds nothing to do.
        let changed = !Arc::ptr_eq(&policies, &core.policies.load_full());
        let now = core.now();
        if changed || looks_at.min(planned_at) <= now {
            let seen = look(&core).await;
            healer::tick(&core, &mut troop::serve::faults::Follower::default(), &seen).await;
            if changed || planned_at <= now {
                policies = core.policies.load_full();
                planner::tick(&core, &mut planner, &seen).await;
                planned_at = next_minute(&core).await;
            }
            janitor.tick(&core, &seen).await;
            looks_at = later(core.now(), busy(&core).await);
        }
        if seconds_later(resolved_at, RESOLVE_EVERY_S) <= core.now() {
            resolver::tick(&core, false).await;
            resolved_at = core.now();
        }
        let next = looks_at.min(planned_at);
        let next = next.min(pushes(&core, &mut drivers).await.unwrap_or(next));
        let pause = Duration::try_from(next.duration_since(core.now())).unwrap_or(Duration::ZERO);
        let woken = tokio::time::timeout(pause.max(Duration::from_millis(200)), wake.notified()).await.is_ok();
        if woken {
            looks_at = looks_at.min(later(core.now(), busy(&core).await));
        }
    }
}

/// After so many looks at which nothing changed, a push is looked at more and more seldom: it waits for people.
const LOOKS_IN_VAIN: u32 = 120;

/// One push's turns.
#[derive(Debug)]
struct Driven {
    driver: Driver,
    due: Timestamp,
    version: i64,
    in_vain: u32,
}

/// Lets every push have its turn that is due, and says when the next is.
async fn pushes(core: &Arc<Core>, drivers: &mut BTreeMap<i64, Driven>) -> Option<Timestamp> {
    let open = core.ledger.open_pushes().await.unwrap_or_default();
    drivers.retain(|id, _| open.iter().any(|row| row.id == *id));
    let mut soonest: Option<Timestamp> = None;
    for row in open {
        let fresh = || Driven { driver: Driver::default(), due: Timestamp::MIN, version: 0, in_vain: 0 };
        let driven = drivers.entry(row.id).or_insert_with(fresh);
        if driven.due <= core.now() {
            for _ in 0..TURNS_MAX {
                match turn(core, row.id, &mut driven.driver).await {
                    Ok(Turn::Again) => {}
                    Ok(Turn::Later(_) | Turn::Ended) | Err(_) => break,
                }
            }
            let pause = match core.ledger.push(row.id).await {
                Ok(Some(row)) => {
                    driven.in_vain = if row.version == driven.version { driven.in_vain + 1 } else { 0 };
                    driven.version = row.version;
                    let more = SignedDuration::from_secs(i64::from(driven.in_vain.saturating_sub(LOOKS_IN_VAIN)) * 5);
                    pause(&row.body, core.now()) + more.min(SignedDuration::from_mins(30))
                }
                Ok(None) | Err(_) => SignedDuration::from_secs(5),
            };
            driven.due = later(core.now(), pause);
        }
        soonest = Some(soonest.map_or(driven.due, |at| at.min(driven.due)));
    }
    soonest
}

/// How soon a push wants to look again: often while it moves, seldom while it only watches or keeps.
fn pause(body: &serde_json::Value, now: Timestamp) -> SignedDuration {
    let Ok(push) = Push::deserialize(body) else { return SignedDuration::from_mins(10) };
    let until = |at: Timestamp, most: i64| {
        let left = at.duration_since(now).max(SignedDuration::from_secs(1));
        left.min(SignedDuration::from_secs(most))
    };
    match push.phase {
        Phase::Ready { .. } | Phase::BackReady { .. } => SignedDuration::from_secs(5),
        Phase::Soak { until: at } => until(at, 5),
        // Often at first, when what is bad shows, then by a twentieth of what is left.
        Phase::Watch { until: at } => until(at, at.duration_since(now).as_secs().div_euclid(20).clamp(60, 1_800)),
        Phase::Keep { until: at } => until(at, 28_800),
        Phase::Stuck => SignedDuration::from_mins(20),
        Phase::Create
        | Phase::Flip
        | Phase::Disable
        | Phase::Destroy
        | Phase::BackEnable
        | Phase::BackFlip
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Reap
        | Phase::Ended => SignedDuration::from_secs(2),
    }
}

/// How soon what heals, or is open, wants to be looked at again.
async fn busy(core: &Arc<Core>) -> SignedDuration {
    let healing = core.ledger.marks(MARK_HEALING).await;
    if healing.is_ok_and(|marks| !marks.is_empty()) {
        return SignedDuration::from_secs(9);
    }
    let open = core.ledger.open_intents().await.unwrap_or_default();
    SignedDuration::from_secs(if open.is_empty() { PLANNER_RESTS_S } else { RESOLVE_EVERY_S })
}

/// The next drawn minute, or the time at which a new day's plan is looked for.
async fn next_minute(core: &Arc<Core>) -> Timestamp {
    let now = core.now();
    let mut next = seconds_later(now, PLANNER_RESTS_S);
    for team in core.policies.load_full().good() {
        for day in team.calendar.planning_days(now) {
            let stored = core.ledger.plan(&day.to_string(), team.policy.team.as_str()).await.ok().flatten();
            let plan = stored.and_then(|stored| serde_json::from_value::<DayPlan>(stored.body).ok());
            for entry in plan.iter().flat_map(|plan| &plan.entries) {
                let due = entry.at.filter(|_| entry.verdict == PlanVerdict::Chosen && !entry.missed);
                next = due.filter(|at| *at > now).map_or(next, |at| next.min(at));
            }
        }
    }
    next
}
