//! What happens in a month: people, trouble and crashes, all from the seed and known beforehand, so that a run can be
//! repeated with fewer of them.

use jiff::Timestamp;

use crate::host::seconds_later;
use crate::people::FRESH;
use crate::policies::Team;
use crate::rng::Rng;

/// Something that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Deploy {
        cluster: String,
        image: String,
        soak_s: u64,
        watch_s: u64,
        plan_first: bool,
    },
    Rollback {
        cluster: String,
    },
    Demand {
        cluster: String,
        outside: bool,
    },
    Halt,
    /// Somebody halts at the very moment at which an act is written.
    HaltAtWrite,
    Resume,
    /// A team changes its file in some way, by this number.
    Policy {
        team: usize,
        change: u64,
    },
    Trouble {
        kind: Trouble,
        lasts_s: i64,
    },
    Crash {
        plane: usize,
    },
    /// The control plane crashes after so many more calls.
    CrashSoon {
        plane: usize,
        calls: i64,
    },
    SecondPlane {
        lasts_s: i64,
    },
    ClockJump {
        by_s: i64,
        lasts_s: i64,
    },
    RegistryRestart,
    Die {
        cluster: String,
    },
    Sick {
        cluster: String,
        lasts_s: i64,
    },
    ZoneDown {
        lasts_s: i64,
    },
    Hand {
        kind: Hand,
        cluster: String,
    },
    Clear,
    Scaler,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    InventoryAway,
    InventoryOld,
    InventoryHalf,
    /// Whole groups are missing, as if an answer's later pages were.
    InventoryCut,
    RegistryAway,
    TrafficAway,
    BalancerSilent,
    Throttled,
    AnswersLost,
    Forgetful,
    /// Hold signals fire.
    HoldFires,
    /// Hold signals cannot be asked.
    HoldAway,
}

/// What a second operator does past Troop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    Kill,
    Grow,
    Mark,
    Spare,
    Standby,
    OtherTeam,
    Leftover,
    FlipAway,
    OtherImage,
    StealLock,
    /// Not by hand at all: an instance dies, and the one that is to replace it does not start.
    LaunchFails,
    /// Makes a group of his own and flips to it, past Troop.
    Deploy,
}

impl What {
    /// The word that `--without` takes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deploy { .. } => "deploy",
            Self::Rollback { .. } => "rollback",
            Self::Demand { .. } => "demand",
            Self::Halt | Self::Resume => "halt",
            Self::HaltAtWrite => "halt-at-write",
            Self::Policy { .. } => "policy",
            Self::Trouble { .. } => "trouble",
            Self::Crash { .. } => "crash",
            Self::CrashSoon { .. } => "crash-soon",
            Self::SecondPlane { .. } => "second-plane",
            Self::ClockJump { .. } => "clock-jump",
            Self::RegistryRestart => "registry-restart",
            Self::Die { .. } => "die",
            Self::Sick { .. } => "sick",
            Self::ZoneDown { .. } => "zone-down",
            Self::Hand { .. } => "hand",
            Self::Clear => "clear",
            Self::Scaler => "scaler",
        }
    }
}

/// All kinds, for whoever leaves one out.
pub const KINDS: [&str; 18] = [
    "deploy",
    "rollback",
    "demand",
    "halt",
    "halt-at-write",
    "policy",
    "trouble",
    "crash",
    "crash-soon",
    "second-plane",
    "clock-jump",
    "registry-restart",
    "die",
    "sick",
    "zone-down",
    "hand",
    "clear",
    "scaler",
];

/// One event of a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Timestamp,
    pub what: What,
}

/// Good images by far more often than others.
const IMAGES: [&str; 10] =
    ["ami-1", "ami-2", "ami-3", "ami-4", "ami-1", "ami-2", "ami-errors", "ami-sick", "ami-slow", "ami-fails"];

/// By how much a wall clock is set at most.
pub const JUMP_MAX_S: i64 = 5_000;

/// By how much at least, where it is to cut a watch short.
const JUMP_LEAST_S: i64 = 600;

/// How long a month is.
pub const DAYS: i64 = 30;

struct Writer<'a> {
    rng: &'a mut Rng,
    start: Timestamp,
    clusters: Vec<String>,
    events: Vec<Event>,
}

impl Writer<'_> {
    fn at(&mut self) -> Timestamp {
        let second = self.rng.between(3_600, DAYS * 86_400);
        seconds_later(self.start, second)
    }

    fn cluster(&mut self) -> String {
        self.rng.pick(&self.clusters).cloned().unwrap_or_default()
    }

    fn put(&mut self, at: Timestamp, what: What) {
        self.events.push(Event { at, what });
    }

    fn some(&mut self, low: i64, high: i64, mut make: impl FnMut(&mut Self) -> What) {
        for _ in 0..self.rng.between(low, high) {
            let (at, what) = (self.at(), make(self));
            self.put(at, what);
        }
    }
}

/// The month of a seed. `calm` leaves out trouble and crashes.
pub fn write(rng: &mut Rng, start: Timestamp, teams: &[Team], calm: bool) -> Vec<Event> {
    let clusters =
        teams.iter().flat_map(|t| t.apps.iter().flat_map(|a| a.clusters.iter().map(|(c, _)| (*c).to_owned())));
    let clusters = clusters.collect();
    let mut writer = Writer { rng, start, clusters, events: Vec::new() };
    deploys(&mut writer, calm);
    people(&mut writer, teams.len(), calm);
    if !calm {
        trouble(&mut writer);
        crashes(&mut writer);
        set_in_a_watch(&mut writer);
        halted_while_booting(&mut writer);
        first_version_is_slow(&mut writer);
    }
    let mut events = writer.events;
    events.sort_by_key(|event| event.at);
    events
}

fn deploys(w: &mut Writer<'_>, calm: bool) {
    for _ in 0..w.rng.between(4, 9) {
        let (mut at, mut cluster) = (w.at(), w.cluster());
        if w.rng.percent(15) {
            FRESH.clone_into(&mut cluster);
        }
        let more = if w.rng.percent(45) { w.rng.between(1, 2) } else { 0 };
        for _ in 0..=more {
            let images = if calm { &IMAGES[..4] } else { &IMAGES[..] };
            let image = (*w.rng.pick(images).unwrap_or(&"ami-1")).to_owned();
            let soak_s = *w.rng.pick(&[30, 60, 120]).unwrap_or(&60);
            let watch_s = *w.rng.pick(&[300, 1_800, 14_400, 43_200]).unwrap_or(&300);
            let plan_first = w.rng.percent(50);
            w.put(at, What::Deploy { cluster: cluster.clone(), image, soak_s, watch_s, plan_first });
            around_a_push(w, at, &cluster, calm);
            let pause = w.rng.between(60, 3_000);
            at = seconds_later(at, pause);
        }
    }
}

/// What likes to happen while a push is under way.
fn around_a_push(w: &mut Writer<'_>, at: Timestamp, cluster: &str, calm: bool) {
    if w.rng.percent(30) {
        let when = seconds_later(at, w.rng.between(20, 1_500));
        w.put(when, What::Rollback { cluster: cluster.to_owned() });
    }
    if w.rng.percent(25) {
        let when = seconds_later(at, w.rng.between(2, 300));
        w.put(when, What::Demand { cluster: cluster.to_owned(), outside: true });
    }
    if w.rng.percent(15) {
        let when = seconds_later(at, w.rng.between(1, 400));
        w.put(when, What::Halt);
        let lasts = w.rng.between(60, 5_400);
        w.put(seconds_later(when, lasts), What::Resume);
    }
    if calm {
        return;
    }
    if w.rng.percent(45) {
        let (when, calls) = (seconds_later(at, w.rng.between(0, 200)), w.rng.between(1, 24));
        let plane = usize::from(w.rng.percent(20));
        w.put(when, What::CrashSoon { plane, calls });
    }
    if w.rng.percent(35) {
        let when = seconds_later(at, w.rng.between(0, 150));
        let kind = *w
            .rng
            .pick(&[
                Trouble::AnswersLost,
                Trouble::Forgetful,
                Trouble::TrafficAway,
                Trouble::BalancerSilent,
                Trouble::InventoryAway,
                Trouble::InventoryOld,
                Trouble::RegistryAway,
            ])
            .unwrap_or(&Trouble::AnswersLost);
        let lasts_s = if kind == Trouble::TrafficAway { w.rng.between(600, 20_000) } else { w.rng.between(30, 700) };
        w.put(when, What::Trouble { kind, lasts_s });
    }
    if w.rng.percent(30) {
        let when = seconds_later(at, w.rng.between(0, 400));
        w.put(when, What::Sick { cluster: cluster.to_owned(), lasts_s: 600 });
    }
    let hand = |w: &mut Writer<'_>, chance: u64, low: i64, high: i64, kind: Hand| {
        if w.rng.percent(chance) {
            let when = seconds_later(at, w.rng.between(low, high));
            w.put(when, What::Hand { kind, cluster: cluster.to_owned() });
        }
    };
    // Right before the flip, or what is to become it.
    hand(w, 6, 5, 50, Hand::OtherImage);
    hand(w, 6, -80, -20, Hand::Deploy);
    hand(w, 4, 5, 120, Hand::StealLock);
    if w.rng.percent(8) {
        let when = seconds_later(at, w.rng.between(5, 500));
        let kind = *w.rng.pick(&[Hand::OtherImage, Hand::FlipAway, Hand::Grow]).unwrap_or(&Hand::Grow);
        w.put(when, What::Hand { kind, cluster: cluster.to_owned() });
    }
    if w.rng.percent(10) {
        w.put(seconds_later(at, -5), What::ZoneDown { lasts_s: 1_200 });
    }
}

fn people(w: &mut Writer<'_>, teams: usize, calm: bool) {
    w.some(10, 24, |w| What::Demand { cluster: w.cluster(), outside: w.rng.percent(30) });
    let teams = u64::try_from(teams).unwrap_or(1);
    let team = move |w: &mut Writer<'_>| usize::try_from(w.rng.below(teams)).unwrap_or(0);
    w.some(2, 6, |w| What::Policy { team: team(w), change: w.rng.draw() });
    for _ in 0..w.rng.between(1, 3) {
        let at = w.at();
        w.put(at, What::Halt);
        // In a long halt people still try.
        for _ in 0..2 {
            let when = seconds_later(at, w.rng.between(30, 7_000));
            let cluster = w.cluster();
            w.put(when, What::Demand { cluster, outside: true });
        }
        let lasts = w.rng.between(7_200, 40_000);
        w.put(seconds_later(at, lasts), What::Resume);
    }
    w.some(6, 12, |_| What::Clear);
    if calm {
        return;
    }
    w.some(2, 5, |_| What::HaltAtWrite);
    w.some(8, 16, |_| What::Scaler);
    w.some(2, 5, |w| What::Hand { kind: Hand::Kill, cluster: w.cluster() });
    w.some(0, 2, |w| What::Hand { kind: Hand::Grow, cluster: w.cluster() });
    for kind in [Hand::Mark, Hand::Spare, Hand::Standby, Hand::OtherTeam, Hand::Leftover] {
        w.some(0, 2, move |w| What::Hand { kind, cluster: w.cluster() });
    }
}

fn trouble(w: &mut Writer<'_>) {
    let kinds = [
        Trouble::InventoryAway,
        Trouble::InventoryOld,
        Trouble::InventoryOld,
        Trouble::InventoryHalf,
        Trouble::InventoryCut,
        Trouble::RegistryAway,
        Trouble::TrafficAway,
        Trouble::BalancerSilent,
        Trouble::Throttled,
        Trouble::AnswersLost,
        Trouble::Forgetful,
        Trouble::HoldFires,
        Trouble::HoldFires,
        Trouble::HoldAway,
    ];
    for _ in 0..w.rng.between(8, 18) {
        let at = w.at();
        let kind = *w.rng.pick(&kinds).unwrap_or(&Trouble::Throttled);
        // A half picture that stands for ten minutes is believed, by design; an incident covers several windows.
        let (least, most) = match kind {
            Trouble::InventoryHalf | Trouble::InventoryCut => (60, 500),
            Trouble::HoldFires => (3_000, 200_000),
            Trouble::InventoryAway
            | Trouble::InventoryOld
            | Trouble::RegistryAway
            | Trouble::TrafficAway
            | Trouble::BalancerSilent
            | Trouble::Throttled
            | Trouble::AnswersLost
            | Trouble::Forgetful
            | Trouble::HoldAway => (60, 3_000),
        };
        let lasts_s = w.rng.between(least, most);
        w.put(at, What::Trouble { kind, lasts_s });
        if w.rng.percent(70) {
            let (when, cluster) = (seconds_later(at, w.rng.between(42, lasts_s.max(43))), w.cluster());
            w.put(when, What::Demand { cluster, outside: true });
        }
    }
    w.some(3, 8, |w| What::Die { cluster: w.cluster() });
    w.some(1, 4, |w| What::Sick { cluster: w.cluster(), lasts_s: w.rng.between(60, 3_600) });
    w.some(0, 2, |w| What::ZoneDown { lasts_s: w.rng.between(600, 20_000) });
    pairs(w);
    w.some(0, 2, |_| What::RegistryRestart);
    for _ in 0..w.rng.between(0, 2) {
        let (at, by_s) = (w.at(), w.rng.between(35, JUMP_MAX_S));
        let by_s = if w.rng.percent(50) { by_s } else { -by_s };
        w.put(at, What::ClockJump { by_s, lasts_s: 7_200 });
        for _ in 0..2 {
            let (when, cluster) = (seconds_later(at, w.rng.between(60, 6_000)), w.cluster());
            w.put(when, What::Demand { cluster, outside: true });
        }
    }
}

/// Troubles that are worst together, or right before somebody asks for a kill.
fn pairs(w: &mut Writer<'_>) {
    let demand = |cluster: &str| What::Demand { cluster: cluster.to_owned(), outside: true };
    for _ in 0..w.rng.between(4, 8) {
        // Two kills while the picture is as old as it may be, of one cluster or of two.
        let (at, first) = (w.at(), w.cluster());
        if w.rng.percent(50) {
            w.put(at, What::Trouble { kind: Trouble::InventoryOld, lasts_s: 28 });
        }
        // The same, its neighbour of the same team, or anybody's.
        let next = w.clusters.iter().position(|c| *c == first).map_or(0, |at| (at + 1) % w.clusters.len());
        let second = match w.rng.below(3) {
            0 => first.clone(),
            1 => w.clusters.get(next).cloned().unwrap_or_default(),
            _ => w.cluster(),
        };
        w.put(seconds_later(at, 2), demand(&first));
        let when = seconds_later(at, w.rng.between(4, 24));
        w.put(when, demand(&second));
    }
    for _ in 0..w.rng.between(0, 2) {
        // The balancer falls silent, and instances are unhealthy that it last called healthy.
        let (at, cluster) = (w.at(), w.cluster());
        w.put(at, What::Trouble { kind: Trouble::BalancerSilent, lasts_s: 900 });
        w.put(seconds_later(at, 5), What::Sick { cluster: cluster.clone(), lasts_s: 600 });
        let when = seconds_later(at, w.rng.between(60, 500));
        w.put(when, demand(&cluster));
    }
    for _ in 0..w.rng.between(1, 3) {
        let (at, cluster) = (w.at(), w.cluster());
        w.put(at, What::Hand { kind: Hand::LaunchFails, cluster: cluster.clone() });
        let when = seconds_later(at, w.rng.between(200, 3_000));
        w.put(when, demand(&cluster));
    }
    for _ in 0..w.rng.between(0, 2) {
        // All launches of a while go to one zone.
        let (at, cluster) = (w.at(), w.cluster());
        w.put(at, What::ZoneDown { lasts_s: 400 });
        for _ in 0..2 {
            w.put(seconds_later(at, 1), What::Die { cluster: cluster.clone() });
        }
        let when = seconds_later(at, w.rng.between(300, 2_000));
        w.put(when, demand(&cluster));
    }
    for _ in 0..w.rng.between(1, 3) {
        // Nobody knows what became of a kill; the next one is asked for on the same day, or drawn on the one after.
        let (at, cluster) = (w.at(), w.cluster());
        w.put(at, What::Trouble { kind: Trouble::Forgetful, lasts_s: 60 });
        w.put(seconds_later(at, 2), demand(&cluster));
        let when = seconds_later(at, w.rng.between(1_500, 9_000));
        w.put(when, demand(&cluster));
    }
    for _ in 0..w.rng.between(0, 2) {
        // Opted out, one after the other, until somebody asks.
        let (at, cluster) = (w.at(), w.cluster());
        for _ in 0..2 {
            w.put(at, What::Hand { kind: Hand::Spare, cluster: cluster.clone() });
        }
        let when = seconds_later(at, w.rng.between(60, 3_000));
        w.put(when, demand(&cluster));
    }
}

/// A clock set forward while a push is watched: the watch seems to be over.
fn set_in_a_watch(w: &mut Writer<'_>) {
    let mut rng = w.rng.fork(1);
    let watches = w.events.iter().filter_map(|event| {
        let What::Deploy { watch_s, .. } = event.what else { return None };
        Some((event.at, i64::try_from(watch_s).ok()?))
    });
    let watches: Vec<_> = watches.filter(|(_, watch_s)| *watch_s >= JUMP_LEAST_S).collect();
    for (at, watch_s) in watches {
        if rng.percent(15) {
            let when = seconds_later(at, rng.between(120, watch_s));
            w.put(when, What::ClockJump { by_s: rng.between(JUMP_LEAST_S, JUMP_MAX_S), lasts_s: 7_200 });
        }
    }
}

/// A halt while instances boot that will never be healthy: its time must not count against their push.
fn halted_while_booting(w: &mut Writer<'_>) {
    let mut rng = w.rng.fork(2);
    if !rng.percent(30) {
        return;
    }
    let at = seconds_later(w.start, rng.between(3_600, DAYS * 86_400));
    let cluster = rng.pick(&w.clusters).cloned().unwrap_or_default();
    let image = (*rng.pick(&["ami-sick", "ami-slow"]).unwrap_or(&"ami-sick")).to_owned();
    w.put(at, What::Deploy { cluster, image, soak_s: 60, watch_s: 1_800, plan_first: false });
    let halted = seconds_later(at, rng.between(30, 200));
    w.put(halted, What::Halt);
    w.put(seconds_later(halted, rng.between(600, 3_000)), What::Resume);
}

/// A cluster's first version is given up as too slow and stays, for no other serves. Somebody puts it into rotation once it
/// has booted, and the next push has it as its way back for longer than it was to be kept.
fn first_version_is_slow(w: &mut Writer<'_>) {
    let mut rng = w.rng.fork(3);
    if !rng.percent(30) {
        return;
    }
    let deploy = |image: &str, watch_s| What::Deploy {
        cluster: FRESH.to_owned(),
        image: image.to_owned(),
        soak_s: 60,
        watch_s,
        plan_first: false,
    };
    let at = seconds_later(w.start, rng.between(3_600, 10 * 86_400));
    w.put(at, deploy("ami-slow", 1_800));
    let by_hand = seconds_later(at, rng.between(900, 2_400));
    w.put(by_hand, What::Hand { kind: Hand::FlipAway, cluster: FRESH.to_owned() });
    let next = seconds_later(by_hand, rng.between(60, 3_000));
    w.put(next, deploy("ami-1", 100_000));
}

fn crashes(w: &mut Writer<'_>) {
    w.some(2, 5, |w| What::Crash { plane: usize::from(w.rng.percent(30)) });
    w.some(4, 10, |w| What::CrashSoon { plane: usize::from(w.rng.percent(30)), calls: w.rng.between(1, 12) });
    w.some(1, 3, |w| What::SecondPlane { lasts_s: w.rng.between(3_600, 400_000) });
}
