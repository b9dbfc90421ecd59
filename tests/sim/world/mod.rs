//! The cloud and the registry as they really are, in virtual time.
//!
//! [`State`] holds the truth: groups, members, who serves, and what is still to come (boots, registrations, leases that
//! run out). It does what it is asked as the contract of `Cloud` says, and otherwise leaves every mistake possible. What
//! control planes get to see of it, late, old or in part, is in `view`; how their calls fare is in `calls`.

pub mod acts;
pub mod calls;
pub mod view;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use jiff::{SignedDuration, Timestamp};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::{Group, Instance, Lifecycle, TargetHealth};
use troop_policies::registry_view::Status;
use troop_policies::step::Size;
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, InstanceId, IntentId, RegionName, ZoneName};
use troop_registry::pure::Registry;

use crate::host::seconds_later;
use crate::rng::Rng;

/// A lease of the registry, as Eureka's clients ask for by default.
pub const LEASE_S: i64 = 90;
/// What happened no longer ago may not have been seen yet by whoever asks: the greatest age of an inventory that is
/// acted on, a health verdict's, and a few seconds of the calls themselves.
pub const UNSEEN_S: i64 = 40;

/// How long an instance is remembered after its end.
const FORGOTTEN_AFTER_S: i64 = 7_200;

/// What an image's instances are like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Image {
    /// Percent of launches that fail.
    pub fails: u64,
    /// Percent of its instances that never become healthy.
    pub sick: u64,
    /// Percent of its answers that are errors.
    pub errors: u64,
    /// Seconds that a boot takes at least.
    pub boot_s: i64,
}

/// What is known of an instance beside the inventory, also after its end.
#[derive(Debug, Clone)]
pub struct Life {
    pub group: GroupName,
    pub zone: ZoneName,
    pub serves: bool,
    /// When it last stopped serving.
    pub lost_at: Option<Timestamp>,
    pub ended_by_troop: bool,
    pub ended_at: Option<Timestamp>,
    /// The balancer's verdict, once there is one.
    pub healthy: Option<bool>,
    /// Never becomes healthy.
    pub sick: bool,
}

/// What is still to come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coming {
    Boot(InstanceId),
    Checked(InstanceId),
    Register(InstanceId),
    Ended(InstanceId),
    LeaseEnd(InstanceId),
    Keep(GroupName),
    GroupGone(GroupName),
    Well(InstanceId),
    /// A call whose answer was given up arrives after all.
    Arrive(IntentId),
    /// The second operator flips to the group that he made, once it serves.
    HandFlip(GroupName),
}

/// Until when what is out of order.
#[derive(Debug, Clone, Copy)]
pub struct Troubles {
    pub inventory_away: Timestamp,
    pub inventory_old: Timestamp,
    pub inventory_half: Timestamp,
    pub inventory_cut: Timestamp,
    pub registry_away: Timestamp,
    pub traffic_away: Timestamp,
    pub balancer_silent: Timestamp,
    pub throttled: Timestamp,
    pub answers_lost: Timestamp,
    pub forgetful: Timestamp,
    /// Launches go to one zone alone.
    pub zones_down: Timestamp,
    /// Old views are of this moment.
    pub old_since: Timestamp,
    /// Since when pictures are halved or cut.
    pub short_since: Timestamp,
    pub silent_since: Timestamp,
}

impl Troubles {
    fn none() -> Self {
        let no = Timestamp::MIN;
        Self {
            inventory_away: no,
            inventory_old: no,
            inventory_half: no,
            inventory_cut: no,
            registry_away: no,
            traffic_away: no,
            balancer_silent: no,
            throttled: no,
            answers_lost: no,
            forgetful: no,
            zones_down: no,
            old_since: no,
            short_since: no,
            silent_since: no,
        }
    }
}

/// What a group's answers were counted up to.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub answers: u64,
    pub errors: u64,
    pub at: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub struct State {
    pub now: Timestamp,
    pub rng: Rng,
    pub account: AccountName,
    pub region: RegionName,
    pub zones: BTreeSet<ZoneName>,
    pub groups: BTreeMap<GroupName, Group>,
    pub lives: BTreeMap<InstanceId, Life>,
    pub registry: Registry,
    pub images: BTreeMap<ImageId, Image>,
    pub troubles: Troubles,
    pub counted: BTreeMap<GroupName, Counted>,
    /// Health verdicts as the balancer last told them, while it is silent.
    pub silent: BTreeMap<InstanceId, bool>,
    /// The inventory that is shown while it is old.
    pub old: Option<BTreeMap<GroupName, Group>>,
    /// Groups whose next launch fails.
    pub fails_next: BTreeSet<GroupName>,
    /// Flips by hand that nobody has noted yet.
    pub flipped_by_hand: Vec<(Timestamp, GroupName)>,
    /// Groups that are being destroyed.
    pub ending: BTreeSet<GroupName>,
    pub answered: BTreeMap<IntentId, Outcome>,
    arriving: BTreeMap<IntentId, Intent>,
    coming: BinaryHeap<Reverse<(Timestamp, u64, Coming)>>,
    order: u64,
    next_id: u32,
}

impl State {
    pub fn new(now: Timestamp, rng: Rng) -> Result<Self, troop_policies::ids::BadId> {
        let zones = ["r1a", "r1b", "r1c"].into_iter().map(ZoneName::new).collect::<Result<_, _>>()?;
        Ok(Self {
            now,
            rng,
            account: AccountName::new("sim")?,
            region: RegionName::new("r1")?,
            zones,
            groups: BTreeMap::new(),
            lives: BTreeMap::new(),
            registry: Registry::new(SignedDuration::from_secs(LEASE_S), now),
            images: BTreeMap::new(),
            troubles: Troubles::none(),
            counted: BTreeMap::new(),
            silent: BTreeMap::new(),
            old: None,
            fails_next: BTreeSet::new(),
            flipped_by_hand: Vec::new(),
            ending: BTreeSet::new(),
            answered: BTreeMap::new(),
            arriving: BTreeMap::new(),
            coming: BinaryHeap::new(),
            order: 0,
            next_id: 0,
        })
    }

    /// Something is to happen in so many seconds.
    pub fn in_seconds(&mut self, seconds: i64, what: Coming) {
        self.order += 1;
        self.coming.push(Reverse((seconds_later(self.now, seconds), self.order, what)));
    }

    /// When the next of what is to come comes.
    pub fn next_at(&self) -> Option<Timestamp> {
        self.coming.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Lets everything happen that is due by `now`. Answers the intents that arrive late.
    pub fn advance(&mut self, now: Timestamp) -> Vec<Intent> {
        let mut arrived = Vec::new();
        while self.next_at().is_some_and(|at| at <= now) {
            let Some(Reverse((at, _, what))) = self.coming.pop() else { break };
            self.now = self.now.max(at);
            arrived.extend(self.happen(what));
            self.note_serving();
        }
        self.now = self.now.max(now);
        arrived
    }

    fn happen(&mut self, what: Coming) -> Option<Intent> {
        match what {
            Coming::Boot(id) => self.boot(&id),
            Coming::Checked(id) => self.checked(&id),
            Coming::Register(id) => {
                if let Some(group) = self.member(&id).map(|(group, _)| group.name.clone()) {
                    let now = self.now;
                    self.registry.register(&group, &id, Status::Up, now);
                }
            }
            Coming::Ended(id) => self.end(&id),
            Coming::LeaseEnd(id) => {
                let gone = self.member(&id).is_none();
                if let Some(life) = self.lives.get(&id).filter(|_| gone) {
                    self.registry.leave(&life.group.clone(), &id, self.now);
                }
            }
            Coming::Keep(group) => self.keep(&group),
            Coming::GroupGone(group) => {
                if self.groups.get(&group).is_some_and(|g| g.members.is_empty()) && self.ending.remove(&group) {
                    self.groups.remove(&group);
                    self.counted.remove(&group);
                }
            }
            Coming::Well(id) => {
                if let Some(life) = self.lives.get_mut(&id).filter(|life| !life.sick) {
                    life.healthy = Some(true);
                }
            }
            Coming::Arrive(id) => return self.arriving.remove(&id),
            Coming::HandFlip(group) => self.hand_flip(&group),
        }
        None
    }

    /// All traffic of its cluster goes to this group from now on.
    pub fn rotate(&mut self, to: &GroupName) {
        self.count_traffic();
        for group in self.groups.values_mut().filter(|g| g.cluster() == to.cluster()) {
            group.in_rotation = group.name == *to;
        }
    }

    /// By hand, as a console does it: the balancer's targets alone.
    fn hand_flip(&mut self, to: &GroupName) {
        let Some(wanted) = self.groups.get(to).map(|g| g.size.desired) else { return };
        if self.serving(to) < usize::try_from(wanted).unwrap_or(usize::MAX) {
            return self.in_seconds(5, Coming::HandFlip(to.clone()));
        }
        self.rotate(to);
        self.flipped_by_hand.push((self.now, to.clone()));
    }

    fn boot(&mut self, id: &InstanceId) {
        let Some(name) = self.member(id).map(|(group, _)| group.name.clone()) else { return };
        let image = self.groups.get(&name).and_then(|g| self.images.get(&g.image)).copied().unwrap_or_default();
        if self.fails_next.remove(&name) || self.rng.percent(image.fails) {
            let now = self.now;
            if let Some(group) = self.groups.get_mut(&name) {
                group.last_failed_launch = Some(now);
            }
            self.end(id);
            return;
        }
        if let Some(member) = self.groups.get_mut(&name).and_then(|g| g.members.get_mut(id)) {
            member.lifecycle = Lifecycle::InService;
        }
        let (checks, registers) = (self.rng.between(1, 6), self.rng.between(1, 25));
        self.in_seconds(checks, Coming::Checked(id.clone()));
        self.in_seconds(registers, Coming::Register(id.clone()));
    }

    fn checked(&mut self, id: &InstanceId) {
        if let Some(life) = self.lives.get_mut(id) {
            life.healthy = Some(!life.sick);
        }
    }

    /// The instance and its group, while it is a member.
    pub fn member(&self, id: &InstanceId) -> Option<(&Group, &Instance)> {
        let group = self.groups.get(&self.lives.get(id)?.group)?;
        group.members.get(id).map(|member| (group, member))
    }

    /// An instance is gone. Its entry stays in the registry until somebody cancels it, or its lease runs out.
    pub fn end(&mut self, id: &InstanceId) {
        let Some(name) = self.member(id).map(|(group, _)| group.name.clone()) else { return };
        if let Some(group) = self.groups.get_mut(&name) {
            group.members.remove(id);
        }
        let now = self.now;
        if let Some(life) = self.lives.get_mut(id) {
            life.ended_at = Some(now);
        }
        // Nobody asks about those that ended long ago.
        let long_ago = seconds_later(now, -FORGOTTEN_AFTER_S);
        self.lives.retain(|_, life| life.ended_at.is_none_or(|at| at > long_ago));
        self.in_seconds(LEASE_S, Coming::LeaseEnd(id.clone()));
        let notices = self.rng.between(2, 40);
        self.in_seconds(notices, Coming::Keep(name.clone()));
        if self.ending.contains(&name) {
            self.in_seconds(1, Coming::GroupGone(name));
        }
    }

    /// Brings a group to its size.
    pub fn keep(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get(name) else { return };
        let desired = usize::try_from(group.size.desired).unwrap_or(usize::MAX);
        let occupied = group.members.values().filter(|m| m.lifecycle != Lifecycle::Terminating).count();
        for _ in occupied..desired {
            self.launch(name);
        }
        // Scale-in ends the youngest.
        let youngest = |group: &Group| {
            let stays = group.members.values().filter(|m| m.lifecycle != Lifecycle::Terminating);
            stays.max_by_key(|m| (m.launched_at, m.id.clone())).map(|m| m.id.clone())
        };
        for _ in desired..occupied {
            if let Some(id) = self.groups.get(name).and_then(youngest) {
                self.end(&id);
            }
        }
        self.note_serving();
    }

    fn launch(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get(name) else { return };
        let fewest = |zone: &&ZoneName| group.members.values().filter(|m| m.zone == **zone).count();
        let open = if self.now < self.troubles.zones_down { 1 } else { usize::MAX };
        let Some(zone) = group.zones.iter().take(open).min_by_key(fewest).cloned() else { return };
        let Ok(id) = InstanceId::new(format!("i-{:08x}", self.next_id)) else { return };
        self.next_id += 1;
        let image = self.images.get(&group.image).copied().unwrap_or_default();
        let member = Instance {
            id: id.clone(),
            zone: zone.clone(),
            image: group.image.clone(),
            lifecycle: Lifecycle::Pending,
            launched_at: self.now,
            address: None,
            port: 80,
            protected: false,
            spare: false,
            target: None,
        };
        let life = Life {
            group: name.clone(),
            zone,
            serves: false,
            lost_at: None,
            ended_by_troop: false,
            ended_at: None,
            healthy: None,
            sick: self.rng.percent(image.sick),
        };
        if let Some(group) = self.groups.get_mut(name) {
            group.members.insert(id.clone(), member);
        }
        self.lives.insert(id.clone(), life);
        let boots = image.boot_s + self.rng.between(0, 40);
        self.in_seconds(boots, Coming::Boot(id));
    }

    /// Whether an instance serves, as it is: in service, healthy by the balancer, UP in the registry.
    pub fn serves(&self, group: &Group, member: &Instance) -> bool {
        member.lifecycle == Lifecycle::InService
            && self.lives.get(&member.id).is_some_and(|life| life.healthy == Some(true))
            && (!group.registry_required || self.registry.is_up(&group.name, &member.id))
    }

    /// Notes who has begun, and who has stopped, to serve.
    pub fn note_serving(&mut self) {
        let mut serving = BTreeSet::new();
        for group in self.groups.values() {
            serving.extend(group.members.values().filter(|m| self.serves(group, m)).map(|m| m.id.clone()));
        }
        for (id, life) in &mut self.lives {
            let serves = serving.contains(id);
            if life.serves && !serves {
                life.lost_at = Some(self.now);
            }
            life.serves = serves;
        }
    }

    /// How many of a group serve.
    pub fn serving(&self, group: &GroupName) -> usize {
        self.lives.values().filter(|life| life.group == *group && life.serves).count()
    }

    /// How many of a group whoever looked within [`UNSEEN_S`] may have seen serving, without those that Troop ended.
    pub fn believed(&self, group: &GroupName) -> usize {
        let seen = |life: &&Life| {
            let lately = life.lost_at.is_some_and(|at| self.now <= seconds_later(at, UNSEEN_S));
            life.group == *group && !life.ended_by_troop && (life.serves || lately)
        };
        self.lives.values().filter(seen).count()
    }

    /// The group in rotation of a cluster.
    pub fn in_rotation(&self, cluster: &ClusterName) -> Option<&Group> {
        self.groups.values().find(|group| group.cluster() == cluster && group.in_rotation)
    }

    pub fn verdict(&self, id: &InstanceId, now: Timestamp) -> Option<TargetHealth> {
        let (healthy, checked_at) = if self.now < self.troubles.balancer_silent {
            (*self.silent.get(id)?, self.troubles.silent_since)
        } else {
            (self.lives.get(id)?.healthy?, now)
        };
        Some(TargetHealth::new(healthy, checked_at, (!healthy).then(|| "503".to_owned())))
    }

    /// A group as somebody makes it by hand, whole in a while.
    pub fn add_group(&mut self, name: &GroupName, image: &ImageId, size: Size, tags: BTreeMap<String, String>) {
        let group = Group {
            name: name.clone(),
            created_at: self.now,
            image: image.clone(),
            version: None,
            size,
            zones: self.zones.clone(),
            tags,
            enabled: true,
            has_targets: true,
            in_rotation: false,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members: BTreeMap::new(),
        };
        self.groups.insert(name.clone(), group);
        self.counted.insert(name.clone(), Counted { answers: 0, errors: 0, at: self.now });
        self.keep(name);
    }
}
