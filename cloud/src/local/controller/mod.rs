//! The embedded cloud's decisions, pure: events in, effects out.
//!
//! The cloud process (`super::server`) owns the one [`Controller`], feeds it what happens (a request, an exit, a worker's
//! report, the passing of time) and carries out the [`Effect`]s it answers, in order. Here nothing waits, reads a clock,
//! or draws by itself, so that any history can be replayed.
//!
//! - `acts`: what clients ask for, step by step, and what became of it
//! - `members`: keeps each group at its size
//! - `workers`: what the balancer's workers report
//! - `view`: what is shown: the inventory, the routes, the traffic

mod acts;
mod members;
mod view;
mod workers;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::TargetHealth;
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, InstanceId, IntentId, RegionName, ZoneName};

use self::acts::Act;
use self::workers::Worker;
use super::image::Package;
use super::network::Network;
use super::processes::port_too_low;
use super::protocol::{Routes, Verdict};
use super::runtime::{EndBy, Launch};
use super::state::{Saved, SavedGroup};
use crate::Traffic;

/// Between SIGTERM and SIGKILL.
pub(crate) const TERM_TO_KILL: Duration = Duration::from_secs(2);
/// How long the balancer may take to hear of a kill before it happens anyway: a kill must not hang on a worker that does.
const HEARD_WITHIN: Duration = Duration::from_millis(250);
/// How long requests of an instance that scale-in or a destruction ends may still take.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// A command that ends by itself before it was healthy, or before this without a health check, has not started.
const STARTED_AFTER: Duration = Duration::from_secs(30);
/// Longest pause between two failing launches.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Longest that a member of a group without a healthy one may be unhealthy before it is replaced: once an hour still shows
/// that what ails it is over, and a group that is kept for a day does not write a thousand logs.
const GRACE_MAX: Duration = Duration::from_secs(3600);
/// How long a member that had been healthy may be unhealthy: three health verdicts in a row, and some more.
const UNHEALTHY_MAX: Duration = Duration::from_secs(10);
/// An address is not given to another instance for so long: a balancer's pooled connection must not find a stranger.
const ADDRESS_RESTS: Duration = Duration::from_secs(60);
/// How long a killed instance stays listed after its end, for requests that are seen to fail only then.
const KILLED_LISTED: Duration = Duration::from_secs(5);

/// A moment: the wall's time for what is shown, and a time that only grows for what is waited for. A clock that is set
/// must not end anybody's instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) at: Timestamp,
    pub(crate) mono: Duration,
}

/// Where random numbers come from.
pub(crate) type Random<'a> = &'a mut dyn FnMut() -> u64;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) account: AccountName,
    pub(crate) region: RegionName,
    /// In the order of their networks.
    pub(crate) zones: Vec<ZoneName>,
    pub(crate) boot_delay: Duration,
    pub(crate) grace: Duration,
    pub(crate) eureka_url: String,
    pub(crate) network: Network,
    /// Images with a lower port are refused.
    pub(crate) port_min: u16,
    /// STATE/cloud/images.
    pub(crate) images: PathBuf,
    /// STATE/cloud/logs.
    pub(crate) logs: PathBuf,
}

#[derive(Debug)]
pub(crate) enum Event {
    /// Time has passed.
    Tick,
    /// The token of this intent is on disk.
    Perform(Box<Intent>),
    Mark {
        group: GroupName,
        mark: String,
    },
    Imported(Box<Package>),
    Launched {
        instance: InstanceId,
        pid: u32,
    },
    LaunchFailed {
        instance: InstanceId,
        why: String,
    },
    Exited {
        instance: InstanceId,
        status: String,
    },
    /// `connection` tells a worker's connections apart, `life` the processes that have its number.
    WorkerJoined {
        worker: u32,
        connection: u64,
        life: Option<i32>,
    },
    WorkerLeft {
        worker: u32,
        connection: u64,
    },
    Applied {
        worker: u32,
        connection: u64,
        version: u64,
    },
    Report {
        worker: u32,
        connection: u64,
        health: BTreeMap<InstanceId, Verdict>,
        traffic: BTreeMap<GroupName, Traffic>,
        in_flight: BTreeMap<InstanceId, u64>,
    },
    /// Ends every instance and starts none.
    Close,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// To every worker, now and when it joins.
    Publish(Arc<Routes>),
    Launch(Box<Launch>),
    End {
        instance: InstanceId,
        by: EndBy,
    },
    Clean {
        instance: InstanceId,
    },
    /// What became of an intent. A second one for the same intent corrects an `Unknown`.
    Settle {
        intent: IntentId,
        outcome: Outcome,
    },
}

#[derive(Debug, Clone)]
struct Group {
    saved: SavedGroup,
    failures: u32,
    /// No launch before this.
    launch_after: Duration,
    /// Members that were replaced without having ever been healthy, since the last healthy one.
    never_healthy: u32,
    drain: Drain,
}

impl Group {
    fn new(saved: SavedGroup) -> Self {
        Self { saved, failures: 0, launch_after: Duration::ZERO, never_healthy: 0, drain: Drain::None }
    }
}

/// How far a disabled group's drain is. Requests end by themselves, tunnels may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// It is enabled, or was disabled before this process began, when no tunnel was open.
    None,
    Until(Duration),
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The runtime has been asked.
    Launching,
    /// Its command starts at this time.
    Booting { until: Duration },
    /// Its command has been started.
    Running,
}

/// How far an instance's end has come. There is no way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending {
    stage: Stage,
    /// By a recorded kill: requests that fail because of it are counted apart.
    killed: bool,
    /// It fails like a host: without leaving the balancer first, and its group notices only when it is gone.
    crash: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The balancer is told; `version` are the routes that say so.
    Leaving {
        version: Option<u64>,
        heard_by: Duration,
        drained_by: Duration,
    },
    Termed {
        kill_at: Duration,
    },
    Killed,
}

#[derive(Debug, Clone)]
struct Member {
    group: GroupName,
    zone: usize,
    address: Ipv4Addr,
    launched_at: Timestamp,
    launched: Duration,
    pid: Option<u32>,
    phase: Phase,
    ending: Option<Ending>,
    target: Option<TargetHealth>,
    was_healthy: bool,
    /// Since when every verdict was unhealthy, without a gap.
    unhealthy_since: Option<Duration>,
    /// When its verdict was last reported.
    verdict_heard: Duration,
}

impl Member {
    /// Whether it takes up a place in its group: one that crashes does until it is seen to be gone.
    fn occupies(&self) -> bool {
        self.ending.is_none_or(|ending| ending.crash)
    }

    fn in_service(&self) -> bool {
        self.phase == Phase::Running && self.ending.is_none()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Controller {
    settings: Settings,
    packages: BTreeMap<ImageId, Package>,
    groups: BTreeMap<GroupName, Group>,
    members: BTreeMap<InstanceId, Member>,
    default_cluster: Option<ClusterName>,
    acts: BTreeMap<IntentId, Act>,
    workers: BTreeMap<u32, Worker>,
    routes: Arc<Routes>,
    published: u64,
    /// Until when instances that were killed stay listed.
    killed: BTreeMap<InstanceId, Duration>,
    /// Until when addresses rest.
    resting: BTreeMap<Ipv4Addr, Duration>,
    /// The last host number given out, by zone.
    last_host: Vec<u8>,
    closing: bool,
}

impl Controller {
    /// Begins with the saved groups, without instances. A group that was being destroyed is gone now.
    ///
    /// # Errors
    /// The group whose image or zone is missing.
    pub(crate) fn new(settings: Settings, packages: Vec<Package>, saved: Saved) -> Result<Self, String> {
        let packages: BTreeMap<_, _> = packages.into_iter().map(|p| (p.image.id.clone(), p)).collect();
        let mut groups = BTreeMap::new();
        for (name, saved) in saved.groups.into_iter().filter(|(_, saved)| !saved.destroying) {
            if !packages.contains_key(&saved.image) {
                return Err(format!("group `{name}` needs the image `{}`, which is not stored", saved.image));
            }
            if saved.zones.is_empty() || !saved.zones.iter().all(|zone| settings.zones.contains(zone)) {
                return Err(format!("group `{name}` has a zone that is not in this region"));
            }
            groups.insert(name, Group::new(saved));
        }
        let last_host = vec![members::HOST_MAX; settings.zones.len()];
        Ok(Self {
            settings,
            packages,
            groups,
            members: BTreeMap::new(),
            default_cluster: saved.default_cluster,
            acts: BTreeMap::new(),
            workers: BTreeMap::new(),
            routes: Arc::default(),
            published: 0,
            killed: BTreeMap::new(),
            resting: BTreeMap::new(),
            last_host,
            closing: false,
        })
    }

    /// What is to be on disk before the effects of the last event are carried out.
    pub(crate) fn saved(&self) -> Saved {
        let groups = self.groups.iter().map(|(name, group)| (name.clone(), group.saved.clone())).collect();
        Saved::new(self.default_cluster.clone(), groups)
    }

    /// Takes in what happened and answers what is to be done, in this order.
    pub(crate) fn on(&mut self, event: Event, now: Now, random: Random<'_>) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Tick => {}
            Event::Perform(intent) => self.perform(&intent, now, &mut out),
            Event::Mark { group, mark } => self.mark(&group, mark),
            Event::Imported(package) => {
                self.packages.insert(package.image.id.clone(), *package);
            }
            Event::Launched { instance, pid } => self.launched(&instance, pid, now),
            Event::LaunchFailed { instance, why } => self.launch_failed(&instance, &why, now),
            Event::Exited { instance, status } => self.exited(&instance, &status, now, &mut out),
            Event::WorkerJoined { worker, connection, life } => self.worker_joined(worker, connection, life),
            Event::WorkerLeft { worker, connection } => self.worker_left(worker, connection),
            Event::Applied { worker, connection, version } => self.applied(worker, connection, version),
            Event::Report { worker, connection, health, traffic, in_flight } => {
                self.report(worker, connection, health, traffic, in_flight, now);
            }
            Event::Close => self.closing = true,
        }
        self.advance(now, random, &mut out);
        out
    }

    /// How soon the passing of time could matter again.
    pub(crate) fn tick_in(&self) -> Duration {
        /// Short beside every wait above, so that ends are not noticeably late.
        const BUSY: Duration = Duration::from_millis(25);
        const QUIET: Duration = Duration::from_millis(250);
        let busy = !self.acts.is_empty() || self.members.values().any(|m| !m.in_service());
        if busy { BUSY } else { QUIET }
    }

    /// Why no instance of an image can be here.
    pub(crate) fn refuses(&self, package: &Package) -> Option<String> {
        let Package { image, port, .. } = package;
        (*port < self.settings.port_min).then(|| port_too_low(&image.name, *port))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn advance(&mut self, now: Now, random: Random<'_>, out: &mut Vec<Effect>) {
        self.end_boots(now);
        self.killed.retain(|_, until| now.mono < *until);
        self.resting.retain(|_, until| now.mono < *until);
        if self.closing {
            self.close(now);
        } else {
            self.keep_groups(now, random, out);
        }
        let members = &self.members;
        self.groups.retain(|name, group| !group.saved.destroying || members.values().any(|m| m.group == *name));
        self.end_drains(now);
        self.refresh_routes();
        self.end_members(now, out);
        self.settle_acts(now, out);
        self.forget_traffic();
        if self.routes.version != self.published {
            self.published = self.routes.version;
            out.insert(0, Effect::Publish(Arc::clone(&self.routes)));
        }
    }
}

#[cfg(test)]
mod tests;
