//! Control planes without processes: real ledger, real policies on disk, and a small cloud in memory that counts what
//! was asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use jiff::Timestamp;
use troop_cloud::{Cloud, CloudError, Image, Traffic};
use troop_ledger::{Ledger, Stamp};
use troop_policies::draw::SiteSecret;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::{Group, Instance, Inventory, Lifecycle, TAG_MARK, TAG_TEAM, TargetHealth};
use troop_policies::leash::Permit;
use troop_policies::policy::Site;
use troop_policies::registry_view::{Entry, RegistryView, Status};
use troop_policies::step::{Size, Step};
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, InstanceId, IntentId, RegionName, ZoneName};

use crate::agents::{Agents, NoAgents};
use crate::clock::{self, Calendar};
use crate::outside::Dial;
use crate::serve::core::{Core, Parts};
use crate::state::StateDir;
use crate::world::{Registry, World};

/// A Tuesday, at a minute inside the demo policy's window.
pub(super) const IN_WINDOW: &str = "2026-11-24T10:30:00Z";

/// The cloud in memory: instances are in service and healthy at once.
#[derive(Debug)]
pub(super) struct Fake {
    account: AccountName,
    regions: Vec<RegionName>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) groups: BTreeMap<GroupName, Group>,
    pub(super) overrides: BTreeSet<GroupName>,
    /// Entries of instances that are gone stay until they are cancelled.
    pub(super) corpses: BTreeMap<InstanceId, GroupName>,
    pub(super) answered: BTreeMap<IntentId, Outcome>,
    /// Every step that took effect, in order.
    pub(super) done: Vec<Step>,
    /// A killed member is not replaced.
    pub(super) no_launches: bool,
    /// The next answer of this kind is lost after its effect.
    pub(super) lose_answer_of: Option<&'static str>,
    /// What nobody can say even when asked.
    pub(super) forgets: bool,
    /// The next step of this kind is refused.
    pub(super) refuse: Option<&'static str>,
    pub(super) away: bool,
    next: u32,
    answers: u64,
}

fn zones() -> BTreeSet<ZoneName> {
    ["r1a", "r1b", "r1c"].map(|z| ZoneName::new(z).unwrap()).into()
}

impl State {
    fn launch(&mut self, name: &GroupName) {
        let id = InstanceId::new(format!("i-{:017x}", self.next)).unwrap();
        self.next += 1;
        let group = self.groups.get_mut(name).unwrap();
        let in_zone = |z: &ZoneName| group.members.values().filter(|i| i.zone == *z).count();
        let zone = zones().into_iter().min_by_key(in_zone).unwrap();
        let instance = Instance {
            id: id.clone(),
            zone,
            image: group.image.clone(),
            lifecycle: Lifecycle::InService,
            launched_at: clock::real_now(),
            address: Some(std::net::Ipv4Addr::from_bits(0x0a00_0001 + self.next).into()),
            port: 80,
            protected: false,
            spare: false,
            target: None,
        };
        group.members.insert(id, instance);
    }

    fn settle(&mut self) {
        let wanting: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in wanting {
            let desired = usize::try_from(self.groups[&name].size.desired).unwrap();
            while !self.no_launches && self.groups[&name].members.len() < desired {
                self.launch(&name);
            }
            while self.groups[&name].members.len() > desired {
                self.groups.get_mut(&name).unwrap().members.pop_first();
            }
            if self.groups[&name].tags.contains_key("ending") {
                self.groups.remove(&name);
            }
        }
        self.answers += 50;
    }

    fn act(&mut self, step: &Step) -> Result<String, String> {
        let name = step.group().clone();
        let missing = || format!("there is no `{name}`");
        match step {
            Step::Terminate { instance, .. } => {
                let group = self.groups.get_mut(&name).ok_or_else(missing)?;
                group.members.remove(instance).ok_or("no such instance")?;
                self.corpses.insert(instance.clone(), name.clone());
            }
            Step::CreateGroup { group } => {
                let made = Group {
                    name: name.clone(),
                    created_at: clock::real_now(),
                    image: group.image.clone(),
                    version: None,
                    size: Size::ZERO,
                    zones: group.zones.clone(),
                    tags: group.tags.clone(),
                    enabled: true,
                    has_targets: true,
                    in_rotation: false,
                    registry_required: true,
                    last_failed_launch: None,
                    hold: None,
                    members: BTreeMap::new(),
                };
                if self.groups.insert(name.clone(), made).is_some() {
                    return Err("it is there already".to_owned());
                }
            }
            Step::Resize { size, .. } => self.groups.get_mut(&name).ok_or_else(missing)?.size = *size,
            Step::Flip { cluster, to } => {
                for group in self.groups.values_mut().filter(|g| g.cluster() == cluster) {
                    group.in_rotation = group.name == *to;
                }
            }
            Step::Enable { .. } => self.groups.get_mut(&name).ok_or_else(missing)?.enabled = true,
            Step::Disable { .. } => self.groups.get_mut(&name).ok_or_else(missing)?.enabled = false,
            Step::Destroy { .. } => {
                let group = self.groups.get_mut(&name).ok_or_else(missing)?;
                group.size = Size::ZERO;
                group.tags.insert("ending".to_owned(), String::new());
            }
            Step::OverrideGroup { out_of_service: true, .. } => {
                self.overrides.insert(name.clone());
            }
            Step::OverrideGroup { out_of_service: false, .. } => {
                self.overrides.remove(&name);
            }
            Step::CancelEntry { instance, .. } => {
                self.corpses.remove(instance);
            }
            Step::Fault { .. } => return Err("the stage has no agents".to_owned()),
        }
        self.done.push(step.clone());
        self.settle();
        Ok("done".to_owned())
    }
}

impl Fake {
    /// `hello-web-v000` of team demo serves with three instances.
    pub(super) fn new() -> Arc<Self> {
        Self::of("local")
    }

    /// The same in an account of its own, whose instances have ids of their own.
    pub(super) fn of(account: &str) -> Arc<Self> {
        let fake = Self {
            account: AccountName::new(account).unwrap(),
            regions: vec![RegionName::new("r1").unwrap()],
            state: Mutex::new(State { next: u32::from(account.as_bytes()[0]) << 16, ..State::default() }),
        };
        let name = GroupName::new("hello-web-v000").unwrap();
        let group = Group {
            name: name.clone(),
            created_at: clock::real_now(),
            image: ImageId::new("ami-0").unwrap(),
            version: None,
            size: Size::pinned(3),
            zones: zones(),
            tags: BTreeMap::from([(TAG_TEAM.to_owned(), "demo".to_owned())]),
            enabled: true,
            has_targets: true,
            in_rotation: true,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members: BTreeMap::new(),
        };
        let mut state = fake.lock();
        state.groups.insert(name, group);
        state.settle();
        drop(state);
        Arc::new(fake)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// How many steps of a kind took effect.
    pub(super) fn count(&self, kind: &str) -> usize {
        self.lock().done.iter().filter(|step| step.kind() == kind).count()
    }
}

#[async_trait]
impl Registry for Fake {
    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        Cloud::perform(self, intent, permit, now).await
    }

    async fn resolve(&self, intent: &Intent) -> Outcome {
        Cloud::resolve(self, intent).await.unwrap()
    }

    async fn view(&self) -> Result<RegistryView, String> {
        let state = self.lock();
        let entry = |id: &InstanceId, group: &GroupName| Entry {
            app: "HELLO".to_owned(),
            id: id.to_string(),
            ip: None,
            status: if state.overrides.contains(group) { Status::OutOfService } else { Status::Up },
            data_center_instance_id: None,
            troop_instance_id: Some(id.to_string()),
            group: Some(group.to_string()),
        };
        let live = state.groups.values().flat_map(|g| g.members.keys().map(|id| entry(id, &g.name)));
        let dead = state.corpses.iter().map(|(id, group)| entry(id, group));
        let entries = live.chain(dead).collect();
        Ok(RegistryView { read_at: clock::real_now(), warming: false, entries })
    }
}

#[async_trait]
impl Cloud for Fake {
    fn account(&self) -> &AccountName {
        &self.account
    }

    fn regions(&self) -> &[RegionName] {
        &self.regions
    }

    async fn inventory(&self, region: &RegionName) -> Result<Inventory, CloudError> {
        let mut state = self.lock();
        if state.away {
            return Err(CloudError::Refused { account: self.account.clone(), why: "away".to_owned() });
        }
        state.settle();
        let now = clock::real_now();
        let mut groups = state.groups.clone();
        for instance in groups.values_mut().flat_map(|g| g.members.values_mut()) {
            instance.target = Some(TargetHealth::new(true, now, None));
        }
        Ok(Inventory { account: self.account.clone(), region: region.clone(), zones: zones(), read_at: now, groups })
    }

    async fn images(&self, _: &RegionName) -> Result<Vec<Image>, CloudError> {
        let image = |id: &str| Image {
            id: ImageId::new(id).unwrap(),
            name: "hello".to_owned(),
            version: "1".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
            registry_required: true,
        };
        Ok(vec![image("ami-0"), image("ami-1")])
    }

    async fn traffic(&self, _: &RegionName, _: &ClusterName) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        let state = self.lock();
        let traffic = Traffic { answers: state.answers, ..Traffic::default() };
        Ok(state.groups.keys().map(|name| (name.clone(), traffic.clone())).collect())
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        // A call takes a moment: two control planes get the chance to meet.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let mut state = self.lock();
        if let Err(why) = permit.check(&intent.step, now) {
            return Outcome::refused(why.to_string());
        }
        if let Some(answered) = state.answered.get(&intent.id) {
            return answered.clone();
        }
        if state.refuse == Some(intent.step.kind()) {
            state.refuse = None;
            return Outcome::refused("the test says no");
        }
        let outcome = match state.act(&intent.step) {
            Ok(detail) => Outcome::done(detail),
            Err(why) => Outcome::refused(why),
        };
        let kept = if state.forgets { Outcome::unknown("forgotten") } else { outcome.clone() };
        state.answered.insert(intent.id.clone(), kept);
        if state.lose_answer_of == Some(intent.step.kind()) {
            state.lose_answer_of = None;
            return Outcome::unknown("the answer was lost");
        }
        outcome
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        let mut state = self.lock();
        let never = || Outcome::refused("it never came, and is refused from now on");
        Ok(state.answered.entry(intent.id.clone()).or_insert_with(never).clone())
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        if let Some(group) = self.lock().groups.get_mut(intent.step.group()) {
            group.tags.insert(TAG_MARK.to_owned(), mark.to_owned());
        }
        Ok(())
    }

    async fn import_image(&self, _: &Path) -> Result<Image, CloudError> {
        Err(CloudError::Refused { account: self.account.clone(), why: "not here".to_owned() })
    }
}

/// STATE and policies of one site.
pub(super) struct Home {
    pub(super) dir: tempfile::TempDir,
}

/// Odds of one, from 10:00 to 12:00 UTC on weekdays.
pub(super) const POLICY: &str = include_str!("../../../../policies/examples/demo.toml");

impl Home {
    pub(super) fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(home.dir.path().join("policies")).unwrap();
        home.write_policy(POLICY);
        home
    }

    pub(super) fn write_policy(&self, text: &str) {
        std::fs::write(self.dir.path().join("policies/demo.toml"), text).unwrap();
    }

    pub(super) fn state(&self) -> StateDir {
        StateDir::find(Some(self.dir.path()), |_| None).unwrap()
    }

    /// One control plane of this site, its calendar standing at `calendar`.
    pub(super) async fn control_plane(&self, world: &Arc<Fake>, calendar: &str) -> Arc<Core> {
        self.control_plane_with(world, Arc::new(NoAgents), calendar).await
    }

    /// One of a site with a file of its own.
    pub(super) async fn control_plane_of(&self, site: Site, world: &Arc<Fake>, calendar: &str) -> Arc<Core> {
        self.core(site, world, Arc::new(NoAgents), calendar).await
    }

    /// One whose hosts have agents.
    pub(super) async fn control_plane_with(
        &self,
        world: &Arc<Fake>,
        agents: Arc<dyn Agents>,
        calendar: &str,
    ) -> Arc<Core> {
        self.core(Site::embedded_default(), world, agents, calendar).await
    }

    async fn core(&self, site: Site, world: &Arc<Fake>, agents: Arc<dyn Agents>, calendar: &str) -> Arc<Core> {
        let world = World::new(vec![world.clone()], Some(world.clone()));
        self.core_of(site, world, agents, calendar).await
    }

    /// One of a site of several accounts, without a registry.
    pub(super) async fn control_plane_over(&self, accounts: &[&Arc<Fake>], calendar: &str) -> Arc<Core> {
        let clouds = accounts.iter().map(|cloud| Arc::clone(cloud) as Arc<dyn Cloud>).collect();
        self.core_of(Site::embedded_default(), World::new(clouds, None), Arc::new(NoAgents), calendar).await
    }

    async fn core_of(&self, site: Site, world: World, agents: Arc<dyn Agents>, calendar: &str) -> Arc<Core> {
        let calendar = Calendar::standing(calendar.parse().unwrap());
        let state = self.state();
        state.create().unwrap();
        let of_ledger = calendar.clone();
        let stamp = move || Stamp { at: of_ledger.at(clock::real_now()), real_at: clock::real_now() };
        let ledger = Ledger::open(&state.ledger(), Arc::new(stamp)).await.unwrap();
        let core = Core::new(
            Parts {
                policies_dir: self.dir.path().join("policies"),
                state,
                site,
                ledger,
                world,
                agents,
                calendar,
                secret: Ok(SiteSecret::from_bytes([7; 32])),
            },
            Dial::Direct,
        );
        super::super::reload(&core).await;
        core
    }
}
