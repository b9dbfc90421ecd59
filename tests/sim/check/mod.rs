//! The checker: every invariant of the design, on the world as it is.
//!
//! [`Book`] is its own record of what happened, kept from the calls and their effects and not from what the ledger
//! believes; the ledger is read only where an invariant speaks of it (intents, locks, plans, marks). What could not have
//! been seen by whoever asked, because it happened a moment ago, is held against nobody.
//!
//! - `kills`: I1 of monkeys, I15, I16, I17, I20
//! - `pushes`: I1 of pushes, I2 to I5, I7 to I9, I12, I13, I16, I21, I22
//! - `quiet`: what must hold at any moment and in the end: I2, I3, I6, I10, I11, I14, I17, I19 to I21

pub mod calendar;
mod kills;
mod pushes;
mod quiet;

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use troop::records::MARK_UNHEALED;
use troop_deploy::push::Push;
use troop_ledger::{IntentRow, Ledger, LockRow};
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::inventory::Lifecycle;
use troop_policies::plan::DayPlan;
use troop_policies::policy::Policy;
use troop_policies::situation::Halted;
use troop_policies::step::{Size, Step};
use troop_policies::{ClusterName, GroupName, InstanceId, IntentId, TeamName, ZoneName};

use crate::host::{Spells, seconds_later};
use crate::world::calls::Connection;
use crate::world::view::Flaws;
use crate::world::{State, UNSEEN_S};

/// What was found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub at: Timestamp,
    pub what: String,
}

/// A call as it was made, with what the ledger said at that moment.
#[derive(Debug)]
pub struct Ask<'a> {
    pub plane: usize,
    pub intent: &'a Intent,
    pub skew_ms: i64,
    pub halted: Option<Halted>,
    pub spells: Spells,
    pub row: Option<IntentRow>,
    pub locks: Vec<LockRow>,
    /// The push that asks.
    pub push: Option<(u64, Push)>,
    /// Pushes that have not ended.
    pub open: Vec<(u64, Push)>,
    pub plan: Option<DayPlan>,
    /// The scope's unhealed mark was set then.
    pub unhealed_since: Option<Timestamp>,
}

/// The pushes that have not ended, as the ledger has them.
pub async fn open_pushes(ledger: &Ledger) -> Vec<(u64, Push)> {
    let parse = |row: troop_ledger::PushRow| {
        let push = serde_json::from_value::<Push>(row.body).ok()?;
        Some((u64::try_from(row.id).unwrap_or(0), push))
    };
    ledger.open_pushes().await.unwrap_or_default().into_iter().filter_map(parse).collect()
}

impl<'a> Ask<'a> {
    pub async fn new(connection: &Connection, intent: &'a Intent) -> Self {
        let ledger = &connection.ledger;
        let open = open_pushes(ledger).await;
        let push = match &intent.cause {
            Cause::Push { push, .. } => open.iter().find(|(number, _)| number == push).cloned(),
            Cause::Draw { .. } | Cause::Drill { .. } | Cause::Demand { .. } | Cause::Upkeep { .. } => None,
        };
        let plan = match &intent.cause {
            Cause::Draw { team, day, .. } | Cause::Drill { team, day, .. } => {
                let stored = ledger.plan(&day.to_string(), team.as_str()).await.ok().flatten();
                stored.and_then(|stored| serde_json::from_value(stored.body).ok())
            }
            Cause::Demand { .. } | Cause::Push { .. } | Cause::Upkeep { .. } => None,
        };
        let unhealed = match intent.cause.draw_key() {
            Some(key) => ledger.mark(MARK_UNHEALED, key).await.ok().flatten(),
            None => None,
        };
        Self {
            plane: connection.plane,
            intent,
            skew_ms: connection.host.skew_ms.load(std::sync::atomic::Ordering::Relaxed),
            halted: connection.site.halt.get(),
            spells: connection.site.signals.get(),
            row: ledger.intent(intent.id.as_str()).await.ok().flatten(),
            locks: ledger.locks().await.unwrap_or_default(),
            push,
            open,
            plan,
            unhealed_since: unhealed.map(|mark| mark.real_at),
        }
    }

    fn holder(&self, cluster: &ClusterName) -> Option<&LockRow> {
        self.locks.iter().find(|lock| lock.name.rsplit('/').next() == Some(cluster.as_str()))
    }
}

/// A kill that Troop asked for and that was not refused.
#[derive(Debug, Clone)]
pub struct Kill {
    pub id: IntentId,
    pub at: Timestamp,
    pub team: TeamName,
    pub draw_key: String,
    pub day: Date,
    pub drawn: bool,
    /// The plan's entry that it was a drill of.
    pub drill: Option<String>,
    pub group: GroupName,
    pub instance: InstanceId,
    pub zone: Option<ZoneName>,
    pub deadline: Timestamp,
    pub healed: Option<Timestamp>,
}

/// What a push was seen to do.
#[derive(Debug, Clone, Default)]
pub struct PushSeen {
    pub group: Option<GroupName>,
    pub created: Option<Timestamp>,
    /// What served when its group was made.
    pub previous: Option<GroupName>,
    pub previous_size: Option<Size>,
    pub serving: usize,
    pub flipped: Option<Timestamp>,
    pub went_back: bool,
    pub steps: Vec<String>,
}

/// The group in rotation, since when, and by which push.
#[derive(Debug, Clone)]
pub struct Turn {
    pub at: Timestamp,
    pub group: GroupName,
    pub push: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Book {
    pub violations: Vec<Violation>,
    pub policies: BTreeMap<TeamName, Policy>,
    pub site_leashed: bool,
    pub site_kills_per_day: Option<u32>,
    pub kills: Vec<Kill>,
    pub pushes: BTreeMap<u64, PushSeen>,
    pub turns: BTreeMap<ClusterName, Vec<Turn>>,
    /// When somebody last changed a cluster by hand.
    pub by_hand: BTreeMap<ClusterName, Timestamp>,
    /// Groups whose tag names no event of this ledger, and since when.
    pub foreign: BTreeMap<GroupName, Timestamp>,
    /// Opted out by hand, and since when.
    pub spared: BTreeMap<InstanceId, Timestamp>,
    /// Overridden OUT_OF_SERVICE by Troop.
    pub out: BTreeSet<GroupName>,
    /// Disabled by Troop, and when.
    pub disabled: BTreeMap<GroupName, Timestamp>,
    /// Groups that have had traffic.
    pub has_served: BTreeSet<GroupName>,
    /// When a control plane last saw the world whole and fresh.
    pub seen_well: BTreeMap<usize, Timestamp>,
    /// Since when every look of a control plane was flawed.
    pub seen_ill: BTreeMap<usize, Timestamp>,
    pub counts: BTreeMap<ClusterName, Vec<Timestamp>>,
    /// What soak each push was begun with.
    pub soaks: BTreeMap<u64, SignedDuration>,
    /// What `--plan` said a push would do.
    pub promised: BTreeMap<u64, Vec<String>>,
    /// Clusters whose lock was taken by hand: nobody else may ever change them again.
    pub stolen: BTreeSet<String>,
    /// When a push was first seen to take its own new group out.
    pub given_up: BTreeMap<u64, Timestamp>,
    /// Halts: since when, and until when.
    pub halts: Vec<(Timestamp, Option<Timestamp>)>,
    /// A wall clock was wrong, from when until when: times that a control plane wrote meanwhile prove nothing.
    pub skews: Vec<(Timestamp, Timestamp)>,
    /// Victims whose registry entries are to be cancelled by this control plane, and since when.
    cancels_due: Vec<(InstanceId, usize, Timestamp)>,
    asked_for: BTreeSet<IntentId>,
    serving_before: Option<usize>,
    /// Every call, where somebody wants to read them.
    pub trace: Option<Vec<String>>,
    pub effects: u64,
    /// How often a control plane was shown the inventory.
    pub looks: u64,
    pub kills_done: u64,
    pub flips_done: u64,
    pub drawn: Drawn,
}

/// The coins of the month's plans, to be judged over many months (invariant I17): a single one says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Drawn {
    pub coins: u64,
    pub fell: u64,
    /// How many were to fall by their odds.
    pub expected: f64,
    /// The variance of that number.
    pub variance: f64,
}

impl Drawn {
    pub fn add(&mut self, other: Self) {
        self.coins += other.coins;
        self.fell += other.fell;
        self.expected += other.expected;
        self.variance += other.variance;
    }

    /// How many standard deviations more fell than were to; `None` without a coin whose side was open.
    pub fn deviation(&self) -> Option<f64> {
        let fell = f64::from(u32::try_from(self.fell).unwrap_or(u32::MAX));
        (self.variance > 0.0).then(|| (fell - self.expected) / self.variance.sqrt())
    }
}

impl Book {
    pub fn wrong(&mut self, invariant: &'static str, at: Timestamp, what: impl Into<String>) {
        self.violations.push(Violation { invariant, at, what: what.into() });
    }

    /// A control plane was shown the inventory.
    pub fn shown(&mut self, plane: usize, at: Timestamp, flaws: Flaws) {
        self.looks += 1;
        let ill = flaws.age_s > troop_policies::gates::INVENTORY_MAX_AGE_S
            || (flaws.missing >= 5 && flaws.missing * 5 >= flaws.of);
        if ill {
            let since = flaws.since.unwrap_or(at);
            self.seen_ill.entry(plane).or_insert(since);
        } else {
            self.seen_ill.remove(&plane);
            self.seen_well.insert(plane, at);
        }
    }

    /// The balancer's counters were read.
    pub fn counted(&mut self, cluster: &ClusterName, at: Timestamp) {
        let counts = self.counts.entry(cluster.clone()).or_default();
        counts.push(at);
        if counts.len() > 64 {
            counts.drain(..32);
        }
    }

    /// A call is being made.
    pub fn asked(&mut self, state: &State, ask: &Ask<'_>) {
        let intent = ask.intent;
        if !self.asked_for.insert(intent.id.clone()) {
            self.wrong("I10", state.now, format!("`{}` was asked for a second time with {}", intent.step, intent.id));
        }
        if ask.row.as_ref().is_none_or(|row| row.outcome.is_some()) {
            self.wrong("I10", state.now, format!("`{}` was asked for without an open intent", intent.step));
        }
        match &intent.cause {
            Cause::Draw { .. } | Cause::Drill { .. } | Cause::Demand { .. } => kills::asked(self, state, ask),
            Cause::Push { push, .. } => pushes::asked(self, state, ask, *push),
            Cause::Upkeep { .. } => {
                if let Step::CancelEntry { instance, .. } = &intent.step {
                    let lives =
                        state.member(instance).is_some_and(|(_, member)| member.lifecycle == Lifecycle::InService);
                    if lives {
                        self.wrong("I1", state.now, format!("the entry of {instance}, which lives, was cancelled"));
                    }
                    self.cancels_due.retain(|(due, _, _)| due != instance);
                } else {
                    self.wrong("I16", state.now, format!("upkeep did `{}`", intent.step));
                }
            }
        }
    }

    /// Right before an effect.
    pub fn before(&mut self, state: &State, intent: &Intent) {
        let rotation = state.in_rotation(intent.step.cluster());
        self.serving_before = rotation.map(|group| state.serving(&group.name));
    }

    /// Right after an effect.
    pub fn after(&mut self, state: &State, intent: &Intent, outcome: &Outcome) {
        if let Some(trace) = &mut self.trace {
            let by = match &intent.cause {
                Cause::Push { push, .. } => format!("push {push}"),
                Cause::Draw { .. } => "draw".to_owned(),
                Cause::Drill { .. } => "drill".to_owned(),
                Cause::Demand { .. } => "demand".to_owned(),
                Cause::Upkeep { .. } => "upkeep".to_owned(),
            };
            trace.push(format!("{} {by}: {}: {outcome:?}", state.now, intent.step));
        }
        if !outcome.is_done() {
            return;
        }
        self.effects += 1;
        if matches!(intent.step, Step::Terminate { .. }) {
            self.kills_done += 1;
        }
        if let Cause::Push { push, .. } = &intent.cause {
            let before = self.serving_before;
            pushes::done(self, state, intent, *push, before);
        }
    }

    /// A control plane was told that its kill is done.
    pub fn told(&mut self, plane: usize, intent: &Intent, outcome: &Outcome, now: Timestamp) {
        if let (Step::Terminate { instance, .. }, true) = (&intent.step, outcome.is_done()) {
            self.cancels_due.push((instance.clone(), plane, now));
        }
    }

    /// A control plane is gone, with whatever it was about to do.
    pub fn gone(&mut self, plane: usize) {
        self.cancels_due.retain(|(_, whose, _)| *whose != plane);
        self.seen_ill.remove(&plane);
        self.seen_well.remove(&plane);
    }

    /// The halt begins or ends.
    pub fn halted(&mut self, now: Timestamp, halted: bool) {
        match self.halts.last_mut() {
            Some((_, until @ None)) if !halted => *until = Some(now),
            Some((_, None)) => {}
            Some(_) | None if halted => self.halts.push((now, None)),
            Some(_) | None => {}
        }
    }

    /// Whether a wall clock was wrong at any time between two moments.
    pub fn skewed(&self, from: Timestamp, to: Timestamp) -> bool {
        self.skews.iter().any(|(since, until)| *since <= to && from <= *until)
    }

    /// How long it was halted between two moments.
    pub fn halted_for(&self, from: Timestamp, to: Timestamp) -> SignedDuration {
        let within = |(since, until): &(Timestamp, Option<Timestamp>)| {
            let (since, until) = ((*since).max(from), until.unwrap_or(to).min(to));
            until.duration_since(since).max(SignedDuration::ZERO)
        };
        self.halts.iter().map(within).fold(SignedDuration::ZERO, SignedDuration::saturating_add)
    }

    /// An answer came, or was asked for.
    pub fn answered(&mut self, intent: &Intent, outcome: &Outcome) {
        if matches!(outcome, Outcome::Refused { .. }) {
            self.kills.retain(|kill| kill.id != intent.id);
        }
    }

    /// Takes in how the world is now.
    pub fn note(&mut self, state: &State) {
        kills::note_healed(self, state);
        let late = |(_, _, at): &&(InstanceId, usize, Timestamp)| seconds_later(*at, CANCEL_WITHIN_S) < state.now;
        if let Some((instance, plane, _)) = self.cancels_due.iter().find(late).cloned() {
            self.cancels_due.clear();
            let what = format!("control plane {plane} terminated {instance} and did not cancel its entry");
            self.wrong("I14", state.now, what);
        }
    }

    /// Somebody changes a cluster by hand.
    pub fn by_hand(&mut self, cluster: &ClusterName, at: Timestamp) {
        self.by_hand.insert(cluster.clone(), at);
    }

    /// Whether a cluster was changed by hand at or after this moment.
    pub fn touched_since(&self, cluster: &ClusterName, at: Timestamp) -> bool {
        self.by_hand.get(cluster).is_some_and(|touched| *touched >= at)
    }

    /// The last turn of a cluster.
    pub fn turn(&self, cluster: &ClusterName) -> Option<&Turn> {
        self.turns.get(cluster).and_then(|turns| turns.last())
    }

    pub fn quiet(&mut self, state: &State) {
        quiet::always(self, state);
    }

    pub fn end(&mut self, state: &State, end: &End) {
        quiet::in_the_end(self, state, end);
    }
}

pub use quiet::{End, pinned};

/// How soon after its kill a victim's entry is cancelled, calls whose answers are lost included.
const CANCEL_WITHIN_S: i64 = 60;

/// Whether what began then can have been seen by now.
fn seen(since: Timestamp, now: Timestamp) -> bool {
    now > seconds_later(since, UNSEEN_S)
}
