//! Runs a month: control planes on one ledger and one cloud, the script's events at their times, and the checker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use troop::serve::policy_store;
use troop::serve::take_up;
use troop_deploy::push::Push;
use troop_ledger::{IntentFilter, Ledger, Stamp};
use troop_policies::inventory::TAG_TEAM;
use troop_policies::policy::Site as SiteFile;
use troop_policies::situation::Halted;
use troop_policies::step::Size;
use troop_policies::{ClusterName, ImageId};

use crate::check::{self, Book, Drawn, End, Turn, Violation};
use crate::host::{Halt, Time, seconds_later};
use crate::people::{self, Deploy};
use crate::plane::{Begin, Plane};
use crate::policies::{self, Team};
use crate::rng::Rng;
use crate::script::{self, DAYS, Event, Hand, What};
use crate::world::calls::Site;
use crate::world::{Image, State};

/// The quiet time after the month: the longest watch, the time that failed groups are kept, and some more.
const QUIET_S: i64 = 44 * 3_600;
/// The longest time between two looks of the checker.
const LOOK_S: i64 = 4 * 3_600;

/// Which month, and what is left out of it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub seed: u64,
    /// Kinds of events that do not happen.
    pub without: BTreeSet<String>,
    /// Only so many of the events happen.
    pub first: Option<usize>,
    pub saboteur: Option<&'static str>,
    /// Keep every event and call in the report.
    pub trace: bool,
}

/// What came of a month.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub violations: Vec<Violation>,
    /// How many events happened.
    pub events: usize,
    pub last: Option<Event>,
    pub effects: u64,
    pub looks: u64,
    pub drawn: Drawn,
    pub kills: u64,
    pub flips: u64,
    pub pushes: usize,
    pub trace: Vec<String>,
}

/// Runs the month of a seed on a runtime of its own, whose time is virtual.
///
/// # Errors
/// When the runtime cannot be made, or a name in the simulation's own tables is no name.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    #[cfg(troop_sabotage)]
    troop_policies::sabotage::choose(options.saboteur);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let report = runtime.block_on(async { Month::new(options)?.run().await });
    #[cfg(troop_sabotage)]
    troop_policies::sabotage::choose(None);
    report
}

/// A control plane's end or beginning that is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Later {
    Begin { plane: usize, skew_ms: i64 },
    Stop { plane: usize },
}

struct Month {
    site: Arc<Site>,
    ledger: Ledger,
    planes: [Option<Plane>; 2],
    teams: Vec<Team>,
    file: SiteFile,
    events: Vec<Event>,
    later: Vec<(Timestamp, Later)>,
    halt_at_write: Arc<AtomicI64>,
    rng: Rng,
    start: Timestamp,
}

/// Dates around changes of the clocks in one zone or another, and a few ordinary ones.
const STARTS: [&str; 6] = [
    "2026-03-01T00:00:00Z",
    "2026-10-15T00:00:00Z",
    "2027-03-20T00:00:00Z",
    "2027-01-04T00:00:00Z",
    "2026-09-10T00:00:00Z",
    "2027-06-02T00:00:00Z",
];

fn image(fails: u64, sick: u64, errors: u64, boot_s: i64) -> Image {
    Image { fails, sick, errors, boot_s }
}

impl Month {
    fn new(options: &Options) -> anyhow::Result<Self> {
        let seed = Rng::new(options.seed);
        let mut rng = seed.fork(1);
        let start: Timestamp = rng.pick(&STARTS).unwrap_or(&STARTS[0]).parse()?;
        let start = seconds_later(start, rng.between(0, 6) * 86_400);
        let teams = policies::teams(&mut rng);
        let calm = rng.percent(12);
        let mut events = script::write(&mut rng, start, &teams, calm);
        events.retain(|event| !options.without.contains(event.what.kind()));
        events.truncate(options.first.unwrap_or(usize::MAX));

        let time = Time::new(start);
        let state = State::new(start, seed.fork(2))?;
        let site = Site::new(state, Book::default(), time, Halt::default());
        let mut file = SiteFile::embedded_default();
        file.leashed = rng.percent(5);
        file.caps.kills_per_day = rng.percent(40).then_some(2);
        let ledger = Ledger::in_memory(Arc::new(move || Stamp { at: time.now(), real_at: time.now() }));
        let month = Self {
            site,
            ledger,
            planes: [None, None],
            teams,
            file,
            events,
            later: Vec::new(),
            halt_at_write: Arc::default(),
            rng: seed.fork(3),
            start,
        };
        month.furnish(options.trace)?;
        Ok(month)
    }

    /// The clusters as they were before Troop came.
    fn furnish(&self, trace: bool) -> anyhow::Result<()> {
        let mut state = self.site.now();
        let mut book = self.site.book();
        book.trace = trace.then(Vec::new);
        for (name, image) in [
            ("ami-0", image(0, 0, 0, 20)),
            ("ami-1", image(1, 0, 0, 20)),
            ("ami-2", image(0, 1, 1, 35)),
            ("ami-3", image(2, 0, 0, 25)),
            ("ami-4", image(0, 0, 2, 20)),
            ("ami-errors", image(0, 0, 30, 20)),
            ("ami-sick", image(0, 40, 0, 20)),
            ("ami-slow", image(0, 0, 0, 400)),
            ("ami-fails", image(50, 0, 0, 20)),
            ("ami-hand", image(0, 0, 0, 20)),
        ] {
            state.images.insert(ImageId::new(name)?, image);
        }
        for team in &self.teams {
            for (cluster, size) in team.apps.iter().flat_map(|app| app.clusters.iter()) {
                let cluster = ClusterName::new(*cluster)?;
                // Some names are about to begin anew.
                let group = cluster.group(if state.rng.percent(15) { 998 } else { 4 });
                let size = Size { min: size.saturating_sub(2).max(1), desired: *size, max: size + 2 };
                let tags = BTreeMap::from([(TAG_TEAM.to_owned(), team.name.to_owned())]);
                state.add_group(&group, &ImageId::new("ami-0")?, size, tags);
                if let Some(group) = state.groups.get_mut(&group) {
                    group.in_rotation = true;
                    group.created_at = seconds_later(self.start, -30 * 86_400);
                }
                book.turns.entry(cluster).or_default().push(Turn { at: self.start, group, push: None });
            }
        }
        book.site_leashed = self.file.leashed;
        book.site_kills_per_day = self.file.caps.kills_per_day;
        Ok(())
    }

    fn policies(&self) -> policy_store::Policies {
        policy_store::from_texts(&policies::texts(&self.teams))
    }

    /// Puts the policies in force, everywhere at once.
    async fn put_policies(&self) {
        let policies = self.policies();
        for plane in self.planes.iter().flatten() {
            take_up(&plane.core, policies.clone()).await;
        }
        let good = policies.good().map(|team| (team.policy.team.clone(), team.policy.clone())).collect();
        self.site.book().policies = good;
    }

    async fn begin(&mut self, plane: usize, skew_ms: i64) {
        let begin = Begin {
            site: &self.site,
            ledger: &self.ledger,
            plane,
            rng: self.rng.fork(u64::try_from(self.site.time.now().as_millisecond()).unwrap_or(0)),
            file: self.file.clone(),
            policies: self.policies(),
            skew_ms,
            halt_at_write: Arc::clone(&self.halt_at_write),
        };
        let begun = Plane::begin(begin).await;
        self.site.book().gone(plane);
        if let Some(slot) = self.planes.get_mut(plane) {
            *slot = begun;
        }
    }

    fn stop(&mut self, plane: usize) {
        if let Some(plane) = self.planes.get_mut(plane).and_then(Option::take) {
            plane.crash();
            self.site.book().gone(plane.connection.plane);
        }
    }

    /// A process that is gone comes back after a while.
    fn come_back(&mut self, plane: usize) {
        let after = self.rng.between(1, 400);
        self.later.push((seconds_later(self.site.time.now(), after), Later::Begin { plane, skew_ms: 0 }));
    }

    async fn run(mut self) -> anyhow::Result<Report> {
        self.put_policies().await;
        self.begin(0, 0).await;
        let mut report = Report::default();
        for event in std::mem::take(&mut self.events) {
            if !self.wait_until(event.at).await {
                break;
            }
            self.happen(&event.what).await;
            self.look().await;
            if let Some(trace) = &mut self.site.book().trace {
                trace.push(format!("{} {:?}", event.at, event.what));
            }
            report.events += 1;
            report.last = Some(event);
        }
        self.wait_until(seconds_later(self.start, DAYS * 86_400)).await;
        self.end().await;
        let book = self.site.book();
        report.violations.clone_from(&book.violations);
        report.trace = book.trace.clone().unwrap_or_default();
        (report.effects, report.kills, report.flips) = (book.effects, book.kills_done, book.flips_done);
        (report.looks, report.drawn) = (book.looks, book.drawn);
        report.pushes = book.pushes.len();
        drop(book);
        for plane in self.planes.iter().flatten() {
            plane.crash();
        }
        Ok(report)
    }

    /// Lets time pass. Whether everything was right.
    async fn wait_until(&mut self, at: Timestamp) -> bool {
        loop {
            if !self.site.book().violations.is_empty() {
                return false;
            }
            let now = self.site.time.now();
            self.bury();
            if let Some(due) = self.later.iter().position(|(when, _)| *when <= now) {
                match self.later.remove(due).1 {
                    Later::Begin { plane, skew_ms } => {
                        self.stop(plane);
                        self.begin(plane, skew_ms).await;
                    }
                    Later::Stop { plane } => self.stop(plane),
                }
                continue;
            }
            if now >= at {
                return true;
            }
            let next = self.later.iter().map(|(when, _)| *when).min().unwrap_or(at).min(at);
            let next = next.min(seconds_later(now, LOOK_S));
            let wait = Duration::try_from(next.duration_since(now)).unwrap_or(Duration::ZERO);
            drop(tokio::time::timeout(wait.max(Duration::from_millis(1)), self.site.crashed.notified()).await);
            self.look().await;
        }
    }

    /// Takes away what has crashed.
    fn bury(&mut self) {
        for number in 0..self.planes.len() {
            let dead = self.planes.get(number).and_then(Option::as_ref);
            if dead.is_some_and(|plane| plane.connection.dead.load(Ordering::Relaxed)) {
                self.stop(number);
                self.come_back(number);
            }
        }
    }

    async fn look(&self) {
        let open = check::open_pushes(&self.ledger).await;
        let state = self.site.now();
        let mut book = self.site.book();
        book.quiet(&state);
        check::pinned(&mut book, &state, &open);
    }

    /// The control plane that people talk to.
    fn plane(&self) -> Option<&Plane> {
        self.planes.iter().flatten().next()
    }

    async fn happen(&mut self, what: &What) {
        match what {
            What::Deploy { cluster, image, soak_s, watch_s, plan_first } => {
                if let Some(plane) = self.plane() {
                    let (cluster, image) = (cluster.clone(), image.clone());
                    let deploy = Deploy { cluster, image, soak_s: *soak_s, watch_s: *watch_s, plan_first: *plan_first };
                    people::deploy(&self.site, plane, deploy);
                }
            }
            What::Rollback { cluster } => {
                if let Some(plane) = self.plane() {
                    people::rollback(plane, cluster);
                }
            }
            What::Demand { cluster, outside } => {
                if let Some(plane) = self.plane() {
                    people::demand(plane, cluster, *outside);
                }
            }
            What::Clear => {
                if let Some(plane) = self.plane() {
                    people::clear(&self.site, plane);
                }
            }
            What::Halt => {
                let halted = Halted { who: "eve".to_owned(), at: self.site.time.now(), why: "sim".to_owned() };
                self.site.book().halted(halted.at, true);
                self.site.halt.set(Some(self.site.halt.get().unwrap_or(halted)));
            }
            What::HaltAtWrite => self.halt_at_write.store(self.rng.between(1, 6), Ordering::Relaxed),
            What::Resume => {
                self.site.book().halted(self.site.time.now(), false);
                self.site.halt.set(None);
            }
            What::Policy { team, change } => {
                let today = self.site.time.now().to_zoned_datetime(jiff::tz::TimeZone::UTC).date();
                if let Some(team) = self.teams.get_mut(*team) {
                    people::edit(team, *change, today);
                }
                self.put_policies().await;
            }
            What::Trouble { kind, lasts_s } => people::trouble(&self.site, *kind, *lasts_s),
            What::Crash { plane } => {
                if self.planes.get(*plane).is_some_and(Option::is_some) {
                    self.stop(*plane);
                    self.come_back(*plane);
                }
            }
            What::CrashSoon { plane, calls } => {
                if let Some(Some(plane)) = self.planes.get(*plane) {
                    plane.connection.fuse.store(*calls, Ordering::Relaxed);
                }
            }
            What::SecondPlane { lasts_s } => {
                if self.planes[1].is_none() {
                    self.begin(1, 0).await;
                    let until = seconds_later(self.site.time.now(), *lasts_s);
                    self.later.push((until, Later::Stop { plane: 1 }));
                }
            }
            What::ClockJump { by_s, lasts_s } => {
                if let Some(plane) = &self.planes[0] {
                    plane.host.skew_ms.store(by_s * 1_000, Ordering::Relaxed);
                    let now = self.site.time.now();
                    let until = seconds_later(now, *lasts_s);
                    self.site.book().skews.push((now, until));
                    self.later.push((until, Later::Begin { plane: 0, skew_ms: 0 }));
                }
            }
            What::RegistryRestart => {
                let mut state = self.site.now();
                let now = state.now;
                state.registry.restart(now);
            }
            What::Die { cluster } => {
                let mut state = self.site.now();
                let somebody = ClusterName::new(cluster.as_str()).ok().and_then(|c| people::somebody(&mut state, &c));
                if let Some(id) = somebody {
                    state.end(&id);
                    state.note_serving();
                }
            }
            What::Sick { cluster, lasts_s } => people::sick(&self.site, cluster, *lasts_s),
            What::ZoneDown { lasts_s } => {
                let mut state = self.site.now();
                state.troubles.zones_down = seconds_later(state.now, *lasts_s);
            }
            What::Hand { kind: Hand::StealLock, cluster } => self.steal(cluster).await,
            What::Hand { kind, cluster } => people::by_hand(&self.site, *kind, cluster),
            What::Scaler => people::scale(&self.site),
        }
        for plane in self.planes.iter().flatten() {
            plane.wake.notify_one();
        }
    }

    /// Somebody breaks a lock and takes it: whoever held it must never act on it again.
    async fn steal(&mut self, cluster: &str) {
        let Ok(mut tx) = self.ledger.begin().await else { return };
        let locks = tx.locks().await.unwrap_or_default();
        let Some(lock) = locks.into_iter().find(|lock| lock.name.rsplit('/').next() == Some(cluster)) else { return };
        let stolen = async {
            tx.release_lock(&lock.name, &lock.holder, lock.fence).await?;
            tx.take_lock(&lock.name, "eve").await?;
            tx.commit().await
        };
        if stolen.await.is_ok() {
            self.site.book().stolen.insert(cluster.to_owned());
        }
    }

    /// All trouble ends, and everything has time to come to rest.
    async fn end(&mut self) {
        if !self.site.book().violations.is_empty() {
            return;
        }
        self.later.clear();
        self.site.book().halted(self.site.time.now(), false);
        self.site.halt.set(None);
        self.halt_at_write.store(0, Ordering::Relaxed);
        for number in [0, 1] {
            self.stop(number);
        }
        self.begin(0, 0).await;
        let until = seconds_later(self.site.time.now(), QUIET_S);
        if !self.wait_until(until).await {
            return;
        }
        let rows = self.ledger.pushes(1_000).await.unwrap_or_default();
        let parse = |row: troop_ledger::PushRow| {
            let push = serde_json::from_value::<Push>(row.body).ok()?;
            Some((u64::try_from(row.id).unwrap_or(0), push, row.ended))
        };
        let mut plans = Vec::new();
        for back in 0..DAYS + 3 {
            let Ok(day) =
                self.start.to_zoned_datetime(jiff::tz::TimeZone::UTC).date().checked_add(jiff::Span::new().days(back))
            else {
                continue;
            };
            plans.extend(self.ledger.plans(&day.to_string()).await.unwrap_or_default());
        }
        let end = End {
            intents: self.ledger.intents(&IntentFilter::default()).await.unwrap_or_default(),
            pushes: rows.into_iter().filter_map(parse).collect(),
            locks: self.ledger.locks().await.unwrap_or_default(),
            plans,
        };
        let verified = self.ledger.verify().await;
        let state = self.site.now();
        let mut book = self.site.book();
        book.end(&state, &end);
        if let Err(e) = verified {
            book.wrong("I10", state.now, format!("the ledger does not verify: {e}"));
        }
    }
}
