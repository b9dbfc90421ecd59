//! Carrying out, in order, what the host decides: on the planes, in the journal, over the connection.

mod shown;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use troop_agent_core::fault::{Cgroup, Cidr, Fault};
use troop_agent_core::host::{Do, Host, Phase, Wants, wants};
use troop_agent_core::lease::{Command, LeaseId, Table, Ttl};
use troop_agent_core::moment::Moment;
use troop_agent_core::protocol::{self, FromAgent, Measured, MeasuredBy, Ordered, fault_of};
use troop_policies::fault::{FaultSpec, Owner};

use crate::channel::Sender;
use crate::clock;
use crate::config::HostPolicy;
use crate::guardian::Guardian;
use crate::keep::Keep;
use crate::measure;
use crate::netlink::Netlink;
use crate::owner::{self, Seeing};
use crate::plane::{By, Order, Plane, PlaneError};
use crate::planes;
use crate::undo::{Journal, Report};
use troop_policies::chain;

/// How long a probe without a fault waits for its answer: a peer that takes longer cannot be measured.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a plane may have nothing to say before its fault counts as without effect: a service that calls nobody for so
/// long has nothing that could be hurt.
const PLANE_MAX: Duration = Duration::from_secs(5);

/// How often, and how many times, an agent that ends looks whether everything held has left: for five seconds.
const TEND_EVERY: Duration = Duration::from_millis(50);
const END_TENDS: u32 = 100;

/// Why a fault ended that somebody took down.
const HEALED: &str = "somebody has healed this host by hand";

/// What an agent consists of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) table: Table,
    pub(super) keep: Keep,
    pub(super) journal: Journal,
    pub(super) planes: Vec<Box<dyn Plane>>,
    pub(super) policy: HostPolicy,
    pub(super) guardian: (PathBuf, Vec<String>),
    pub(super) journal_folder: PathBuf,
    /// There when somebody has healed by hand.
    pub(super) mark: PathBuf,
    pub(super) measured: mpsc::Sender<Found>,
}

/// What a measurement found, and at whom it looked.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) lease: LeaseId,
    pub(super) phase: Phase,
    pub(super) measured: Measured,
    pub(super) peer: Option<SocketAddr>,
}

/// What is known of a lease beside what the host knows.
#[derive(Debug, Default)]
struct Beside {
    /// Which plane has it.
    plane: Option<usize>,
    /// Who is asked how long a round trip takes.
    probed: Option<SocketAddr>,
    /// Whether connections of this host have shown how long a round trip takes without it.
    by_sockets: bool,
    /// Since when connections may show it, or that it is gone.
    shows_since: Option<Moment>,
    /// Whose packets it concerns, where that was asked for.
    owner: Option<owner::Found>,
    /// Until when its plane may show that the fault concerns something.
    by_plane: Option<Moment>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Agent {
    host: Host,
    keep: Keep,
    journal: Journal,
    planes: Vec<Box<dyn Plane>>,
    policy: HostPolicy,
    beside: BTreeMap<LeaseId, Beside>,
    guardian: Option<Guardian>,
    guardian_start: (PathBuf, Vec<String>),
    mark: PathBuf,
    sender: Option<Sender>,
    /// The other ends of the agent's own connection.
    ends: Vec<SocketAddr>,
    measured: mpsc::Sender<Found>,
    host_halted: bool,
    /// Whether a plane may have something left of what it healed.
    tends: bool,
}

impl Agent {
    pub(super) fn new(parts: Parts) -> Self {
        let (program, mut args) = parts.guardian;
        args.push(std::process::id().to_string());
        args.push(parts.journal_folder.to_string_lossy().into_owned());
        Self {
            host: Host::new(parts.table),
            keep: parts.keep,
            journal: parts.journal,
            planes: parts.planes,
            policy: parts.policy,
            beside: BTreeMap::new(),
            guardian: None,
            guardian_start: (program, args),
            mark: parts.mark,
            sender: None,
            ends: Vec::new(),
            measured: parts.measured,
            host_halted: false,
            tends: false,
        }
    }

    pub(super) fn highest_number(&self) -> u64 {
        self.host.table().highest_number().0
    }

    pub(super) fn is_idle(&self) -> bool {
        self.host.is_idle() && !self.tends
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        self.host.next_deadline()
    }

    pub(super) fn connected(&mut self, sender: Option<Sender>, ends: Vec<SocketAddr>) {
        // Those of a connection that broke stay spared until there is another: packets of it may still be on their way.
        if sender.is_some() {
            self.ends = ends;
        }
        self.sender = sender;
    }

    pub(super) fn tell_everything(&mut self) {
        for story in self.host.stories() {
            self.send(&FromAgent::Story(story));
        }
    }

    pub(super) fn handle(&mut self, ordered: Ordered) {
        self.read_halt_file();
        self.read_mark();
        let now = clock::now();
        let Self { host, policy, planes, ends, beside, .. } = self;
        let todo = host.handle(ordered, now, |spec, peers, command| {
            let Command::Grant { life, .. } = command else { return Ok(()) };
            policy.check(spec, peers, life.get())?;
            let owner = owner_of(spec.of.as_ref())?;
            one_at_a_time(owner.as_ref(), beside)?;
            let fault = checked(spec, peers, owner.map(|owner| owner.cgroup), ends)?;
            choose(planes, &fault).map(|_| ())
        });
        self.carry_out(todo);
    }

    pub(super) fn measured(&mut self, found: Found) {
        let Found { lease, phase, mut measured, peer } = found;
        if phase == Phase::Baseline {
            let by_sockets = if peer.is_none() { self.by_sockets(&lease, None) } else { None };
            if let Some(beside) = self.beside.get_mut(&lease) {
                (beside.probed, beside.by_sockets) = (peer, by_sockets.is_some());
            }
            measured = by_sockets.unwrap_or(measured);
        }
        let todo = self.host.measured(&lease, phase, measured, clock::now());
        self.carry_out(todo);
    }

    /// Looks at the clock, the planes, the guardian and the halt file.
    pub(super) fn look(&mut self) {
        self.read_halt_file();
        self.read_mark();
        let now = clock::now();
        let todo = self.host.poll(now);
        self.carry_out(todo);
        let leases: Vec<LeaseId> = self.beside.keys().cloned().collect();
        for lease in leases {
            self.look_at(&lease, now);
        }
        self.tend();
        let guardian_died = self.guardian.as_mut().is_some_and(|guardian| !guardian.is_there());
        if guardian_died && !self.replace_guardian() {
            let todo = self.host.give_up_all("its guardian died and could not be replaced");
            self.carry_out(todo);
        }
    }

    /// Heals everything, as the last that an agent does.
    pub(super) fn end(&mut self) {
        let todo = self.host.give_up_all("the agent was told to end");
        self.carry_out(todo);
        // Packets that are held still leave in their time; those of a delay of a minute are the next agent's to see off.
        for _ in 0..END_TENDS {
            self.tend();
            if !self.tends {
                break;
            }
            std::thread::sleep(TEND_EVERY);
        }
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
    }

    fn tend(&mut self) {
        if !self.tends {
            return;
        }
        self.tends = false;
        for plane in &mut self.planes {
            match plane.tend(&mut self.journal) {
                Ok(left) => self.tends |= left,
                Err(why) => {
                    tracing::warn!(plane = plane.name(), why = %chain(&why), "what is left of a fault cannot be taken down");
                    self.tends = true;
                }
            }
        }
    }

    fn read_halt_file(&mut self) {
        let halted = self.policy.is_halted();
        if halted == self.host_halted {
            return;
        }
        self.host_halted = halted;
        let todo = if halted { self.host.halt(clock::now()) } else { self.host.resume() };
        self.carry_out(todo);
    }

    /// Somebody has healed by hand: that is the end of whatever was there until then.
    fn read_mark(&mut self) {
        if !self.mark.exists() {
            return;
        }
        let todo = self.host.give_up_all(HEALED);
        self.carry_out(todo);
        // Where it stays, nothing more is put up here.
        drop(std::fs::remove_file(&self.mark));
    }

    fn carry_out(&mut self, todo: Vec<Do>) {
        let mut todo = VecDeque::from(todo);
        while let Some(next) = todo.pop_front() {
            let more = match next {
                Do::Keep => match self.keep.keep(self.host.table()) {
                    Ok(()) => Vec::new(),
                    // What cannot be remembered must not be done.
                    Err(why) => {
                        tracing::error!(why = %chain(&why), "could not remember a command");
                        todo.clear();
                        self.host.give_up_all("the agent could not remember a command")
                    }
                },
                Do::Answer { number, answer } => {
                    self.send(&FromAgent::Answer { number, answer });
                    Vec::new()
                }
                Do::Tell(story) => {
                    if let Ok(lease) = LeaseId::new(&story.lease)
                        && self.host.live(&lease).is_none()
                    {
                        self.beside.remove(&lease);
                        self.let_guardian_go();
                    }
                    self.send(&FromAgent::Story(story));
                    Vec::new()
                }
                Do::Measure { lease, phase, after } => {
                    self.measure(lease, phase, after);
                    Vec::new()
                }
                Do::Apply { lease } => {
                    let applied = self.apply(&lease);
                    self.host.applied(&lease, applied, clock::now())
                }
                Do::Renew { lease, elapsed, .. } => self.renew(&lease, elapsed),
                Do::Retarget { lease } => self.retarget(&lease),
                Do::Heal { lease } => {
                    let healed = self.heal(&lease);
                    let measures =
                        self.beside.get(&lease).is_some_and(|beside| beside.probed.is_some() || beside.by_sockets);
                    self.host.healed(&lease, healed, measures, clock::now())
                }
            };
            for more in more.into_iter().rev() {
                todo.push_front(more);
            }
        }
    }

    fn send(&mut self, message: &FromAgent) {
        if self.sender.as_ref().is_some_and(|sender| !sender.send(message)) {
            // Dropping the queue ends the request, and with it the connection; everything is told again on the next.
            self.sender = None;
        }
    }

    fn measure(&mut self, lease: LeaseId, phase: Phase, after: Duration) {
        let Some(live) = self.host.live(&lease) else { return };
        let beside = self.beside.entry(lease.clone()).or_default();
        let tell = self.measured.clone();
        if phase == Phase::Baseline {
            // The agent's own handshakes are not the packets of anybody else.
            let probes = if live.spec.of.is_some() { Vec::new() } else { live.probes.clone() };
            tokio::spawn(async move {
                let peer = measure::reachable(&probes, PATIENCE).await;
                let measured = match peer {
                    Some(peer) => measure::handshakes(peer, PATIENCE).await,
                    None => Measured { median_us: None, sent: 0, back: 0, by: MeasuredBy::Plane },
                };
                drop(tell.send(Found { lease, phase, measured, peer }).await);
            });
            return;
        }
        match beside.probed.filter(|_| phase == Phase::Healed || wants(&live.spec) != Wants::Concerned) {
            Some(peer) => {
                let patience = PATIENCE + expected(&live.spec);
                tokio::spawn(async move {
                    sleep(after).await;
                    let measured = measure::handshakes(peer, patience).await;
                    drop(tell.send(Found { lease, phase, measured, peer: Some(peer) }).await);
                });
            }
            None => {
                let begins = clock::now().after(after);
                beside.shows_since = beside.by_sockets.then_some(begins);
                beside.by_plane = Some(begins.after(PLANE_MAX));
            }
        }
    }

    fn apply(&mut self, lease: &LeaseId) -> Result<&'static str, String> {
        let live = self.host.live(lease).ok_or("it has ended")?;
        let owner = owner_of(live.spec.of.as_ref())?;
        one_at_a_time(owner.as_ref(), &self.beside)?;
        let fault = checked(&live.spec, &live.peers, owner.as_ref().map(|owner| owner.cgroup), &self.ends)?;
        let plane = choose(&self.planes, &fault)?;
        let devices = planes::devices(&self.policy).map_err(|e| chain(&e))?;
        let backing = self.planes[plane].backing();
        if [backing.on_death, backing.on_hang].contains(&By::Guardian) {
            self.guard(lease)?;
        }
        // One who does not let go stands still, and takes nothing away.
        let _hold = self.journal.hold().map_err(|e| chain(&e))?;
        if self.mark.exists() {
            return Err(HEALED.to_owned());
        }
        let ttl = self.left(lease)?;
        let order = Order { lease: lease.clone(), fault, devices, ttl };
        let beside = self.beside.entry(lease.clone()).or_default();
        (beside.plane, beside.owner) = (Some(plane), owner);
        self.planes[plane].apply(&order, &mut self.journal).map_err(|e| chain(&e))?;
        tracing::info!(%lease, plane = self.planes[plane].name(), "a fault is up");
        Ok(self.planes[plane].name())
    }

    fn renew(&mut self, lease: &LeaseId, elapsed: Duration) -> Vec<Do> {
        let Some(plane) = self.beside.get(lease).and_then(|beside| beside.plane) else { return Vec::new() };
        if self.guardian.is_some()
            && let Err(why) = self.guard(lease)
        {
            return self.host.give_up(lease, &why);
        }
        let owner = self.beside.get(lease).and_then(|beside| beside.owner.as_ref());
        if let Some(Err(why)) = owner.map(|owner| Seeing::here().and_then(|seeing| seeing.is_still(owner))) {
            return self.host.give_up(lease, &chain(&why));
        }
        let renewed =
            self.left(lease).and_then(|ttl| self.planes[plane].renew(lease, ttl, elapsed).map_err(|why| chain(&why)));
        match renewed {
            Ok(()) => Vec::new(),
            Err(why) => self.host.give_up(lease, &why),
        }
    }

    /// How long a lease lives from now on. The kernel and the guardian are told this, not how long it was when it was granted:
    /// measuring takes its time, and so may the host.
    fn left(&self, lease: &LeaseId) -> Result<Ttl, String> {
        let until = self.host.table().until(lease).ok_or("its lease has ended")?;
        Ttl::new(until.since(clock::now())).map_err(|_| "its lease has lapsed".to_owned())
    }

    fn retarget(&mut self, lease: &LeaseId) -> Vec<Do> {
        let Some(plane) = self.beside.get(lease).and_then(|beside| beside.plane) else { return Vec::new() };
        let peers: Vec<Cidr> = self.host.live(lease).map(|live| live.peers.clone()).unwrap_or_default();
        // Nobody left to concern: the selectors would be empty, which never means all.
        let spared = if peers.is_empty() {
            Err("nobody is left whom it concerns".to_owned())
        } else {
            self.policy.spares(&peers)
        };
        let done = spared.and_then(|()| self.planes[plane].retarget(lease, &peers).map_err(|e| chain(&e)));
        match done {
            Ok(()) => Vec::new(),
            Err(why) => self.host.give_up(lease, &why),
        }
    }

    fn heal(&mut self, lease: &LeaseId) -> Result<(), String> {
        let plane = self.beside.get(lease).and_then(|beside| beside.plane);
        match plane.map(|plane| self.planes[plane].heal(lease, &mut self.journal)) {
            // What it holds longer than a call may wait leaves in its time; nothing new is held.
            Some(Ok(())) => self.tends = true,
            // It never took it, or cannot take it down: whatever the journal holds is undone.
            None | Some(Err(PlaneError::Unknown(_))) => self.undo(lease)?,
            Some(Err(why)) => self.undo(lease).map_err(|more| format!("{}; {more}", chain(&why)))?,
        }
        if let Some(guardian) = &mut self.guardian {
            // A guardian that cannot hear finds nothing to undo.
            drop(guardian.gone(lease));
        }
        tracing::info!(%lease, "a fault is down");
        Ok(())
    }

    fn undo(&mut self, lease: &LeaseId) -> Result<(), String> {
        let mut net = Netlink::route().map_err(|e| chain(&e))?;
        let mut report = Report::default();
        self.journal.undo(&lease.to_string(), &mut net, &mut report).map_err(|e| chain(&e))?;
        match report.failed.first() {
            None => Ok(()),
            Some((_, change, why)) => Err(format!("could not undo {change}: {}", chain(why))),
        }
    }

    /// Sees to it that a guardian knows of the lease.
    fn guard(&mut self, lease: &LeaseId) -> Result<(), String> {
        let until = self.host.table().until(lease).ok_or("its lease has ended")?;
        for fresh in [false, true] {
            if fresh || self.guardian.as_mut().is_none_or(|guardian| !guardian.is_there()) {
                let (program, args) = &self.guardian_start;
                let started =
                    Guardian::start(program, args).map_err(|e| format!("no guardian could be started: {e}"))?;
                self.guardian = Some(started);
            }
            if self.guardian.as_mut().is_some_and(|guardian| guardian.until(lease, until).is_ok()) {
                return Ok(());
            }
        }
        Err("the guardian does not listen".to_owned())
    }

    /// Another guardian for all that is up.
    fn replace_guardian(&mut self) -> bool {
        self.guardian = None;
        let leases: Vec<LeaseId> =
            self.beside.keys().filter(|lease| self.host.table().until(lease).is_some()).cloned().collect();
        leases.iter().all(|lease| self.guard(lease).is_ok())
    }

    fn let_guardian_go(&mut self) {
        if self.host.is_idle()
            && let Some(guardian) = self.guardian.take()
        {
            guardian.dismiss();
        }
    }
}

/// Whose packets are meant, where that was asked for.
fn owner_of(of: Option<&Owner>) -> Result<Option<owner::Found>, String> {
    of.map(|of| Seeing::here().and_then(|seeing| seeing.find(of))).transpose().map_err(|e| chain(&e))
}

/// Packets of all such faults would have one mark, and each fault would concern the others' too.
fn one_at_a_time(owner: Option<&owner::Found>, beside: &BTreeMap<LeaseId, Beside>) -> Result<(), String> {
    match owner {
        Some(_) if beside.values().any(|other| other.owner.is_some()) => {
            Err("a fault on packets of a process, unit or cgroup is up here already; one at a time can be".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

fn checked(spec: &FaultSpec, peers: &[Cidr], cgroup: Option<Cgroup>, channel: &[SocketAddr]) -> Result<Fault, String> {
    fault_of(spec, protocol::Found { peers, cgroup, channel }).map_err(|e| e.to_string())
}

/// The first plane that can do it.
fn choose(planes: &[Box<dyn Plane>], fault: &Fault) -> Result<usize, String> {
    let mut why = "this host has no data plane that may be used".to_owned();
    for (at, plane) in planes.iter().enumerate() {
        match plane.can(fault) {
            Ok(()) => return Ok(at),
            Err(cannot) => why = cannot.to_string(),
        }
    }
    Err(why)
}

/// How much longer a round trip takes with the fault, amply: twice the delay and its jitter, on both ways.
fn expected(spec: &FaultSpec) -> Duration {
    let longest = spec.delay.as_ref().map_or(0, |d| d.mean_us.saturating_add(d.jitter_us.saturating_mul(4)));
    Duration::from_micros(longest.saturating_mul(4))
}
