//! A small world that pushes are driven in: groups, instances, a registry and a balancer that follow what is asked of
//! them, and lose what a test wants lost. Time is whatever the test says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use troop_cloud::Traffic;
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::inventory::{Group, Instance, Inventory, Lifecycle, TAG_TEAM, TargetHealth};
use troop_policies::registry_view::Status;
use troop_policies::situation::OpenAct;
use troop_policies::step::{Size, Step};
use troop_policies::{
    AccountName, ClusterName, GroupName, ImageId, InstanceId, IntentId, Location, RegionName, TeamName, ZoneName,
};
use troop_policies::{guard, inventory};

use crate::judge::Memory;
use crate::machine::{self, Move, Newer, Seen};
use crate::outcome;
use crate::push::{Phase, Push, Settings};
use crate::start::{Asked, start};

pub(super) fn cluster() -> ClusterName {
    ClusterName::new("hello-web").unwrap()
}

/// Where the cluster of all tests is.
pub(super) fn at() -> Location {
    "local/r1".parse().unwrap()
}

pub(super) fn group(n: u32) -> GroupName {
    cluster().group(n)
}

pub(super) fn image(text: &str) -> ImageId {
    ImageId::new(text).unwrap()
}

/// Short times: a test's step is a quarter of a second.
pub(super) fn settings() -> Settings {
    Settings {
        ready_within: Duration::from_secs(20),
        soak: Duration::from_secs(5),
        watch: Duration::from_secs(10),
        errors_above: 5,
        drain: Duration::from_secs(1),
        keep_failed: Duration::from_secs(5),
    }
}

pub(super) struct World {
    pub(super) inventory: Inventory,
    pub(super) statuses: BTreeMap<InstanceId, Status>,
    pub(super) overrides: BTreeSet<GroupName>,
    pub(super) traffic: BTreeMap<GroupName, Traffic>,
    pub(super) now: Timestamp,
    pub(super) halted: bool,
    pub(super) clock: Result<(), String>,
    pub(super) newer: Newer,
    pub(super) way_back_of: Option<u64>,
    pub(super) open_acts: Vec<OpenAct>,
    /// Images whose instances never become healthy.
    pub(super) sick: BTreeSet<ImageId>,
    /// Percent of a group's answers that are errors.
    pub(super) errors: BTreeMap<GroupName, u64>,
    /// Refuses steps of these kinds.
    pub(super) refuses: BTreeSet<&'static str>,
    /// Answers `Unknown` to the next step after it took effect.
    pub(super) lose_next_answer: bool,
    pub(super) done: Vec<Step>,
    next_id: u32,
    /// Boots take so many ticks.
    pub(super) boot_ticks: u32,
    ages: BTreeMap<InstanceId, u32>,
}

impl World {
    /// An empty region, or one where `hello-web-v000` serves with `size` instances.
    pub(super) fn new(size: u32) -> Self {
        let zones: BTreeSet<_> = ["r1a", "r1b", "r1c"].map(|z| ZoneName::new(z).unwrap()).into();
        let now: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
        let inventory = Inventory {
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            zones,
            read_at: now,
            groups: BTreeMap::new(),
        };
        let mut world = Self {
            inventory,
            statuses: BTreeMap::new(),
            overrides: BTreeSet::new(),
            traffic: BTreeMap::new(),
            now,
            halted: false,
            clock: Ok(()),
            newer: Newer::None,
            way_back_of: None,
            open_acts: Vec::new(),
            sick: BTreeSet::new(),
            errors: BTreeMap::new(),
            refuses: BTreeSet::new(),
            lose_next_answer: false,
            done: Vec::new(),
            next_id: 0,
            boot_ticks: 4,
            ages: BTreeMap::new(),
        };
        if size > 0 {
            world.add_group(&group(0), &image("ami-0"), &BTreeMap::from([(TAG_TEAM.to_owned(), "demo".to_owned())]));
            world.group_mut(0).size = Size { min: 1, desired: size, max: size + 3 };
            world.group_mut(0).in_rotation = true;
            for _ in 0..10 {
                world.tick();
            }
        }
        world
    }

    pub(super) fn group_mut(&mut self, n: u32) -> &mut Group {
        self.inventory.groups.get_mut(&group(n)).unwrap()
    }

    pub(super) fn has(&self, n: u32) -> bool {
        self.inventory.groups.contains_key(&group(n))
    }

    pub(super) fn add_group(&mut self, name: &GroupName, image: &ImageId, tags: &BTreeMap<String, String>) {
        let group = Group {
            name: name.clone(),
            created_at: self.now,
            image: image.clone(),
            version: None,
            size: Size::ZERO,
            zones: self.inventory.zones.clone(),
            tags: tags.clone(),
            enabled: true,
            has_targets: true,
            in_rotation: false,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members: BTreeMap::new(),
        };
        self.inventory.groups.insert(name.clone(), group);
        self.traffic.insert(name.clone(), Traffic::default());
    }

    /// A quarter of a second passes: launches, boots, ends, checks, requests.
    pub(super) fn tick(&mut self) {
        self.now = self.now.checked_add(SignedDuration::from_millis(250)).unwrap();
        self.inventory.read_at = self.now;
        let zones: Vec<_> = self.inventory.zones.iter().cloned().collect();
        let mut gone = Vec::new();
        for group in self.inventory.groups.values_mut() {
            let desired = usize::try_from(group.size.desired).unwrap();
            while group.members.len() < desired {
                let id = InstanceId::new(format!("i-{:04}", self.next_id)).unwrap();
                self.next_id += 1;
                let least = |z: &&ZoneName| group.members.values().filter(|i| i.zone == **z).count();
                let zone = zones.iter().min_by_key(least).unwrap().clone();
                let instance = Instance {
                    id: id.clone(),
                    zone,
                    image: group.image.clone(),
                    lifecycle: Lifecycle::Pending,
                    launched_at: self.now,
                    address: None,
                    port: 80,
                    protected: false,
                    spare: false,
                    target: None,
                };
                group.members.insert(id.clone(), instance);
                self.ages.insert(id, 0);
            }
            while group.members.len() > desired {
                let id = group.members.keys().next().unwrap().clone();
                group.members.remove(&id);
                self.statuses.remove(&id);
            }
            if desired == 0 && group.tags.contains_key("ending") {
                gone.push(group.name.clone());
            }
            let sick = self.sick.contains(&group.image);
            for instance in group.members.values_mut() {
                let age = self.ages.entry(instance.id.clone()).or_default();
                *age += 1;
                if *age >= self.boot_ticks || instance.lifecycle == Lifecycle::InService {
                    instance.lifecycle = Lifecycle::InService;
                    let reason = sick.then(|| "503".to_owned());
                    instance.target = Some(TargetHealth::new(!sick, self.now, reason));
                    let out = self.overrides.contains(&group.name);
                    self.statuses.insert(instance.id.clone(), if out { Status::OutOfService } else { Status::Up });
                }
            }
            if group.in_rotation {
                let traffic = self.traffic.get_mut(&group.name).unwrap();
                traffic.answers += 50;
                traffic.server_errors += 50 * self.errors.get(&group.name).copied().unwrap_or(0) / 100;
            }
        }
        for name in gone {
            self.inventory.groups.remove(&name);
        }
    }

    /// So much time passes.
    pub(super) fn pass(&mut self, time: SignedDuration) {
        let until = self.now.checked_add(time).unwrap();
        while self.now < until {
            self.tick();
        }
    }

    /// Ends an instance by hand, as a crash would.
    pub(super) fn lose_instance(&mut self, n: u32) -> InstanceId {
        let id = self.group_mut(n).members.keys().next().unwrap().clone();
        self.group_mut(n).members.remove(&id);
        self.statuses.remove(&id);
        id
    }

    /// The intent of a step that a push takes now.
    pub(super) fn intent(&self, step: Step) -> Intent {
        Intent {
            id: IntentId::new(format!("t{}", self.done.len())).unwrap(),
            account: self.inventory.account.clone(),
            region: self.inventory.region.clone(),
            step,
            cause: Cause::Push { push: 1, actor: "ana".to_owned() },
            at: self.now,
        }
    }

    pub(super) fn perform(&mut self, step: &Step) -> Outcome {
        if self.refuses.contains(step.kind()) {
            return Outcome::refused("the test says no");
        }
        self.done.push(step.clone());
        let name = step.group().clone();
        match step {
            Step::CreateGroup { group } => {
                assert!(!self.inventory.groups.contains_key(&name), "a name in use was given again");
                self.add_group(&name, &group.image, &group.tags);
            }
            Step::Resize { size, .. } => self.inventory.groups.get_mut(&name).unwrap().size = *size,
            Step::Flip { to, .. } => {
                for group in self.inventory.groups.values_mut() {
                    group.in_rotation = group.name == *to;
                }
            }
            Step::Enable { .. } => self.inventory.groups.get_mut(&name).unwrap().enabled = true,
            Step::Disable { .. } => {
                let group = self.inventory.groups.get_mut(&name).unwrap();
                assert!(!group.in_rotation, "a group in rotation was disabled");
                group.enabled = false;
            }
            Step::Destroy { .. } => {
                let group = self.inventory.groups.get_mut(&name).unwrap();
                assert!(!group.in_rotation && !group.enabled, "a group that serves was destroyed");
                group.size = Size::ZERO;
                group.tags.insert("ending".to_owned(), String::new());
            }
            Step::OverrideGroup { out_of_service, .. } => {
                let changed =
                    if *out_of_service { self.overrides.insert(name.clone()) } else { self.overrides.remove(&name) };
                let status = if *out_of_service { Status::OutOfService } else { Status::Up };
                let members = self.inventory.groups.get(&name).map(|g| g.members.keys().cloned().collect::<Vec<_>>());
                for id in members.unwrap_or_default().into_iter().filter(|_| changed) {
                    self.statuses.insert(id, status);
                }
            }
            Step::Terminate { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => {
                panic!("a push does not `{step}`")
            }
        }
        if std::mem::take(&mut self.lose_next_answer) { Outcome::unknown("lost") } else { Outcome::done("ok") }
    }

    /// How many instances serve through the balancer now.
    pub(super) fn serving_now(&self) -> usize {
        let serving = self.inventory.serving(&cluster());
        serving.map_or(0, |group| guard::serving(group, &self.statuses, self.now).len())
    }

    pub(super) fn serving_group(&self) -> Result<String, inventory::NotServing> {
        self.inventory.serving(&cluster()).map(|group| group.name.to_string())
    }
}

pub(super) fn begin(world: &World, image_id: &str) -> Push {
    let image = image(image_id);
    let team = TeamName::new("demo").unwrap();
    let asked = Asked {
        cluster: &cluster(),
        image: &image,
        version: None,
        team: Some(&team),
        size: None,
        settings: settings(),
        actor: "ana",
    };
    start(&asked, &world.inventory, &world.statuses, &BTreeSet::new(), world.now).unwrap()
}

/// Drives one push as the control plane would, one look at a time.
pub(super) struct Driver {
    pub(super) push: Push,
    pub(super) memory: Memory,
    /// Checked after every look.
    pub(super) floor: usize,
}

impl Driver {
    pub(super) fn new(push: Push, world: &World) -> Self {
        Self { push, memory: Memory::default(), floor: world.serving_now() }
    }

    pub(super) fn look(&mut self, world: &World) -> Move {
        let seen = Seen {
            push: 1,
            inventory: Ok(&world.inventory),
            statuses: Some(&world.statuses),
            traffic: Ok(&world.traffic),
            open_acts: &world.open_acts,
            halted: world.halted,
            clock: world.clock.as_ref().copied().map_err(String::as_str),
            newer: world.newer,
            way_back_of: world.way_back_of,
            now: world.now,
        };
        machine::next(&self.push, &mut self.memory, &seen)
    }

    /// One look, its step, its outcome, and a tick.
    pub(super) fn step(&mut self, world: &mut World) {
        if let Some(intent) = self.push.in_flight.clone() {
            // What became of a lost answer is asked, never done again.
            let seen = intent.step.seen_in(&world.inventory).unwrap_or(true);
            let outcome = if seen { Outcome::done("seen") } else { Outcome::refused("not seen") };
            self.push = outcome::settled(&self.push, &outcome, Duration::from_millis(5), world.now);
        }
        // The saved form is what a restarted control plane would go on from.
        let saved = serde_json::to_string(&self.push).unwrap();
        self.push = serde_json::from_str(&saved).unwrap();
        let Move { push, act } = self.look(world);
        self.push = push;
        if let Some(act) = act {
            self.push.in_flight = Some(world.intent(act.step.clone()));
            let outcome = world.perform(&act.step);
            self.push = outcome::settled(&self.push, &outcome, Duration::from_millis(5), world.now);
        } else {
            world.tick();
        }
        self.check(world);
    }

    fn check(&self, world: &World) {
        let serving = world.serving_now();
        assert!(serving >= self.floor, "{serving} serve, {} must (I1), in {:?}", self.floor, self.push.phase);
        if self.floor > 0 {
            let enabled = world.inventory.groups.values().filter(|g| g.enabled && !g.members.is_empty()).count();
            assert!(enabled >= 1, "the last enabled group is gone (I2)");
        }
    }

    /// Looks until `until` says so.
    pub(super) fn run(&mut self, world: &mut World, until: impl Fn(&Push) -> bool) {
        for _ in 0..2_000 {
            if until(&self.push) {
                return;
            }
            self.step(world);
        }
        panic!("never came there; {:?}: {}", self.push.phase, self.push.note);
    }

    pub(super) fn run_to_end(&mut self, world: &mut World) {
        self.run(world, |push| push.phase == Phase::Ended);
    }
}
