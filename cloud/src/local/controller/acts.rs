//! What clients ask for, step by step, and what became of it.
//!
//! Most steps are done when the saved state says so. A crash is done when the instance is gone, a flip when every worker
//! of the balancer follows it; those that take longer than a client waits answer `Unknown`, and are corrected when the
//! effect is seen after all.

use std::time::Duration;

use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::TAG_MARK;
use troop_policies::step::{How, NewGroup, Size, Step};
use troop_policies::{ClusterName, GroupName, InstanceId};

use super::members::Why;
use super::{Controller, Drain, Effect, Group, HEARD_WITHIN, Now, Stage};
use crate::local::state::SavedGroup;

/// How long a crash may take to be seen: the notice to the balancer, SIGKILL, and the kernel's clearing up, which took more
/// than three seconds on a machine whose cores were all taken.
const CRASH_SEEN_WITHIN: Duration = Duration::from_secs(10);
/// How long the balancer's workers may take to follow a flip.
const FLIP_WITHIN: Duration = Duration::from_secs(2);
/// How long a disabled group's requests are waited for before its answer. They may last longer; clients do not.
const DISABLE_ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Most instances of one group: three zones have 735 addresses, and a machine is full long before.
const INSTANCES_MAX: u32 = 200;
/// Most tags of one group, as at AWS.
const TAGS_MAX: usize = 50;

/// A step whose effect is not seen yet.
#[derive(Debug, Clone)]
pub(super) struct Act {
    what: What,
    /// When it is answered `Unknown` at the latest (a drain and a disable: done).
    until: Duration,
    /// `Unknown` was answered; only the effect is of interest any more.
    answered: bool,
}

#[derive(Debug, Clone)]
enum What {
    Crash {
        instance: InstanceId,
    },
    /// Done once the balancer has let go of it: from then on nothing stops its end.
    Drain {
        instance: InstanceId,
        delay: Duration,
    },
    Ended {
        instance: InstanceId,
        status: String,
    },
    Flip(Box<Flip>),
    Disable {
        group: GroupName,
    },
}

#[derive(Debug, Clone)]
struct Flip {
    cluster: ClusterName,
    to: GroupName,
    began: Duration,
    /// The routes that carry it, once they are made.
    version: Option<u64>,
    /// The workers that were there when it began.
    workers: Vec<u32>,
}

impl Controller {
    pub(super) fn perform(&mut self, intent: &Intent, now: Now, out: &mut Vec<Effect>) {
        let begun =
            if self.closing { Err("the cloud is shutting down".to_owned()) } else { self.begin(&intent.step, now) };
        let outcome = match begun {
            Ok(Begun::Done(detail)) => Outcome::done(detail),
            Ok(Begun::Act(what, within)) => {
                let act = Act { what, until: now.mono + within, answered: false };
                self.acts.insert(intent.id.clone(), act);
                return;
            }
            Err(why) => Outcome::refused(why),
        };
        out.push(Effect::Settle { intent: intent.id.clone(), outcome });
    }

    /// Checks a step and, where nothing speaks against it, begins it. An `Err` has changed nothing.
    fn begin(&mut self, step: &Step, now: Now) -> Result<Begun, String> {
        match step {
            Step::Terminate { group, instance, kill } => self.terminate(group, instance, *kill, now),
            Step::CreateGroup { group } => self.create(group, now),
            Step::Resize { group, size } => self.resize(group, *size),
            Step::Flip { cluster, to } => self.flip(cluster, to, now),
            Step::Enable { group } => {
                self.group(group)?;
                self.change(group, |saved| saved.enabled = true);
                self.set_drain(group, Drain::None);
                Ok(Begun::Done(format!("`{group}` is enabled")))
            }
            Step::Disable { group, drain } => self.disable(group, *drain, now),
            Step::Destroy { group } => self.destroy(group),
            Step::OverrideGroup { .. } | Step::CancelEntry { .. } => {
                Err(format!("`{}` is the registry's to do, not the cloud's", step.kind()))
            }
            Step::Fault { .. } => Err("a fault is an agent's to put up, not the cloud's".to_owned()),
        }
    }

    fn terminate(&mut self, group: &GroupName, instance: &InstanceId, kill: How, now: Now) -> Result<Begun, String> {
        self.group(group)?;
        let member = self.members.get(instance).filter(|member| member.group == *group);
        let member = member.ok_or_else(|| format!("`{group}` has no instance `{instance}`"))?;
        if member.ending.is_some() {
            return Err(format!("`{instance}` is ending already"));
        }
        let (instance, id) = (instance.clone(), instance);
        match kill {
            How::Crash => {
                self.begin_end(id, Why::Crash, now);
                Ok(Begun::Act(What::Crash { instance }, CRASH_SEEN_WITHIN))
            }
            How::Drain { delay } => {
                self.begin_end(id, Why::Drain { delay }, now);
                Ok(Begun::Act(What::Drain { instance, delay }, HEARD_WITHIN))
            }
        }
    }

    fn create(&mut self, new: &NewGroup, now: Now) -> Result<Begun, String> {
        let NewGroup { name, image, zones, tags, has_targets } = new;
        if self.groups.contains_key(name) {
            return Err(format!("there is a group `{name}` already"));
        }
        let package = self.packages.get(image).ok_or_else(|| format!("there is no image `{image}`"))?;
        if let Some(why) = self.refuses(package) {
            return Err(why);
        }
        if zones.is_empty() {
            return Err(format!("`{name}` is given no zone"));
        }
        if let Some(zone) = zones.iter().find(|zone| !self.settings.zones.contains(zone)) {
            return Err(format!("there is no zone `{zone}` in `{}`", self.settings.region));
        }
        if tags.len() > TAGS_MAX {
            return Err(format!("`{name}` is given {} tags; {TAGS_MAX} are allowed", tags.len()));
        }
        let saved = SavedGroup {
            created_at: now.at,
            image: image.clone(),
            zones: zones.clone(),
            tags: tags.clone(),
            has_targets: *has_targets,
            size: Size::ZERO,
            enabled: true,
            in_rotation: false,
            destroying: false,
            last_failed_launch: None,
        };
        self.groups.insert(name.clone(), Group::new(saved));
        if *has_targets {
            self.default_cluster.get_or_insert_with(|| name.cluster().clone());
        }
        Ok(Begun::Done(format!("`{name}` is created")))
    }

    fn resize(&mut self, name: &GroupName, size: Size) -> Result<Begun, String> {
        let saved = self.group(name)?;
        if !(size.min <= size.desired && size.desired <= size.max) {
            return Err(format!("{size} is no size: min, desired and max must not fall"));
        }
        if size.desired > INSTANCES_MAX {
            return Err(format!("{} instances are asked for; {INSTANCES_MAX} are allowed in a group", size.desired));
        }
        if size.desired == 0 && saved.size.desired > 0 {
            if saved.in_rotation {
                return Err(format!("`{name}` is in rotation and must not be emptied"));
            }
            if saved.enabled && self.has_members(name) && !self.another_serves(name) {
                return Err(format!("`{name}` is the last enabled group of its cluster and must not be emptied"));
            }
        }
        self.change(name, |saved| saved.size = size);
        if let Some(group) = self.groups.get_mut(name) {
            // A person or push that sizes anew wants a fresh attempt.
            (group.failures, group.launch_after, group.never_healthy) = (0, Duration::ZERO, 0);
        }
        Ok(Begun::Done(format!("`{name}` has {size}")))
    }

    fn flip(&mut self, cluster: &ClusterName, to: &GroupName, now: Now) -> Result<Begun, String> {
        let saved = self.group(to)?;
        if to.cluster() != cluster {
            return Err(format!("`{to}` is no group of `{cluster}`"));
        }
        if !saved.has_targets {
            return Err(format!("`{to}` has no targets at the balancer"));
        }
        if !saved.enabled {
            return Err(format!("`{to}` is disabled; enable it first"));
        }
        let healthy = |m: &super::Member| m.in_service() && m.target.as_ref().is_some_and(|t| t.is_good(now.at));
        if !self.members.values().any(|m| m.group == *to && healthy(m)) {
            return Err(format!("`{to}` has no healthy target; flipping to it would serve nobody"));
        }
        let workers = self.connected_workers();
        if workers.is_empty() {
            return Err("no worker of the balancer is connected; nobody would follow".to_owned());
        }
        let is_flip = |act: &Act| matches!(&act.what, What::Flip(flip) if flip.cluster == *cluster);
        if self.acts.values().any(|act| is_flip(act) && !act.answered) {
            return Err(format!("another flip of `{cluster}` is under way"));
        }
        // An older flip whose end nobody saw: what comes now is not its effect.
        self.acts.retain(|_, act| !is_flip(act));
        for (name, group) in self.groups.iter_mut().filter(|(name, _)| name.cluster() == cluster) {
            group.saved.in_rotation = name == to;
        }
        let (cluster, to) = (cluster.clone(), to.clone());
        let flip = Flip { cluster, to, began: now.mono, version: None, workers };
        Ok(Begun::Act(What::Flip(Box::new(flip)), FLIP_WITHIN))
    }

    fn disable(&mut self, name: &GroupName, drain: Duration, now: Now) -> Result<Begun, String> {
        let saved = self.group(name)?;
        if saved.in_rotation {
            return Err(format!("`{name}` is in rotation and must not be disabled"));
        }
        if !saved.enabled {
            return Ok(Begun::Done(format!("`{name}` was disabled already")));
        }
        if !self.another_is_enabled(name) || self.has_members(name) && !self.another_serves(name) {
            return Err(format!("`{name}` is the last enabled group of its cluster and must not be disabled"));
        }
        self.change(name, |saved| saved.enabled = false);
        self.set_drain(name, Drain::Until(now.mono.saturating_add(drain)));
        Ok(Begun::Act(What::Disable { group: name.clone() }, drain.min(DISABLE_ANSWER_WITHIN)))
    }

    fn set_drain(&mut self, name: &GroupName, drain: Drain) {
        if let Some(group) = self.groups.get_mut(name) {
            group.drain = drain;
        }
    }

    /// Notes which groups' tunnels have had their time.
    pub(super) fn end_drains(&mut self, now: Now) {
        for group in self.groups.values_mut() {
            if matches!(group.drain, Drain::Until(until) if now.mono >= until) {
                group.drain = Drain::Over;
            }
        }
    }

    fn destroy(&mut self, name: &GroupName) -> Result<Begun, String> {
        let saved = self.group(name)?;
        if saved.in_rotation {
            return Err(format!("`{name}` is in rotation and must not be destroyed"));
        }
        if saved.enabled && self.has_members(name) {
            return Err(format!("`{name}` is enabled and has instances; disable it first"));
        }
        // Disabled between the group's enabling and now, it could be all that its cluster has.
        if self.has_members(name) && !self.another_serves(name) {
            return Err(format!("no other enabled group of `{name}`'s cluster serves; it must not be destroyed"));
        }
        self.change(name, |saved| saved.destroying = true);
        Ok(Begun::Done(format!("`{name}` is being destroyed")))
    }

    /// A settled act's mark. A group that is gone needs none.
    pub(super) fn mark(&mut self, name: &GroupName, mark: String) {
        self.change(name, |saved| {
            saved.tags.insert(TAG_MARK.to_owned(), mark);
        });
    }

    pub(crate) fn has_group(&self, name: &GroupName) -> bool {
        self.groups.contains_key(name)
    }

    fn group(&self, name: &GroupName) -> Result<&SavedGroup, String> {
        let group = self.groups.get(name).ok_or_else(|| format!("there is no group `{name}`"))?;
        if group.saved.destroying { Err(format!("`{name}` is being destroyed")) } else { Ok(&group.saved) }
    }

    fn change(&mut self, name: &GroupName, change: impl FnOnce(&mut SavedGroup)) {
        if let Some(group) = self.groups.get_mut(name) {
            change(&mut group.saved);
        }
    }

    fn has_members(&self, name: &GroupName) -> bool {
        self.members.values().any(|member| member.group == *name)
    }

    fn other_enabled<'a>(&'a self, name: &'a GroupName) -> impl Iterator<Item = &'a GroupName> {
        self.groups
            .iter()
            .filter(move |(other, group)| {
                *other != name && other.cluster() == name.cluster() && group.saved.enabled && !group.saved.destroying
            })
            .map(|(other, _)| other)
    }

    fn another_is_enabled(&self, name: &GroupName) -> bool {
        self.other_enabled(name).next().is_some()
    }

    /// Whether another enabled group of the cluster has an instance in service. One that is only there serves nobody.
    fn another_serves(&self, name: &GroupName) -> bool {
        self.other_enabled(name).any(|other| self.members.values().any(|m| m.group == *other && m.in_service()))
    }

    /// An instance is gone: whoever asked for that has what they asked for.
    pub(super) fn ended_of(&mut self, gone: &InstanceId, status: &str) {
        for act in self.acts.values_mut() {
            if let What::Crash { instance } | What::Drain { instance, .. } = &act.what
                && instance == gone
            {
                act.what = What::Ended { instance: gone.clone(), status: status.to_owned() };
            }
        }
    }

    /// Answers what is decided by now.
    pub(super) fn settle_acts(&mut self, now: Now, out: &mut Vec<Effect>) {
        let mut acts = std::mem::take(&mut self.acts);
        acts.retain(|intent, act| {
            if let What::Flip(flip) = &mut act.what {
                flip.version.get_or_insert(self.routes.version);
            }
            let seen = self.seen(act, now);
            let late = now.mono >= act.until && !act.answered;
            let outcome = match (&seen, late) {
                (Some(detail), _) => Outcome::done(detail.clone()),
                (None, true) => Outcome::unknown(self.missing(act)),
                (None, false) => return true,
            };
            out.push(Effect::Settle { intent: intent.clone(), outcome });
            act.answered = true;
            seen.is_none()
        });
        self.acts = acts;
    }

    /// The act's effect in words, where it is seen.
    fn seen(&self, act: &Act, now: Now) -> Option<String> {
        match &act.what {
            What::Crash { .. } => None,
            What::Ended { instance, status } => Some(format!("`{instance}` ended ({status})")),
            What::Drain { instance, delay } => {
                let ending = self.members.get(instance)?.ending?;
                let heard = match ending.stage {
                    Stage::Leaving { version, heard_by, .. } => {
                        now.mono >= heard_by || version.is_some_and(|version| self.all_applied(version))
                    }
                    Stage::Termed { .. } | Stage::Killed => true,
                };
                heard.then(|| format!("`{instance}` gets no new requests and ends within {} s", delay.as_secs() + 2))
            }
            What::Flip(flip) => {
                let Flip { cluster, to, began, version, workers } = &**flip;
                let version = (*version)?;
                let all = self.all_applied(version) && workers.iter().all(|w| self.worker_applied(*w, version));
                let ms = now.mono.saturating_sub(*began).as_millis();
                all.then(|| format!("flipped in {ms} ms: {} workers send `{cluster}` to `{to}`", workers.len()))
            }
            What::Disable { group } => {
                let open: u64 =
                    self.members.iter().filter(|(_, m)| m.group == *group).map(|(id, _)| self.in_flight(id)).sum();
                match open {
                    0 => Some(format!("`{group}` is disabled; no request is in flight to it")),
                    _ if now.mono >= act.until => Some(format!("`{group}` is disabled; {open} requests are in flight")),
                    _ => None,
                }
            }
        }
    }

    /// What has not been seen in time.
    fn missing(&self, act: &Act) -> String {
        match &act.what {
            What::Flip(flip) => {
                let version = flip.version.unwrap_or(self.routes.version);
                let mut late = self.late_workers(version);
                late.extend(flip.workers.iter().filter(|worker| !self.worker_applied(**worker, version)));
                late.sort_unstable();
                late.dedup();
                let late: Vec<String> = late.iter().map(u32::to_string).collect();
                let seconds = FLIP_WITHIN.as_secs();
                format!("after {seconds} s the balancer's worker {} had not followed the flip", late.join(", "))
            }
            What::Crash { instance } | What::Drain { instance, .. } | What::Ended { instance, .. } => {
                format!(
                    "`{instance}` was sent SIGKILL and was not seen to end within {} s",
                    CRASH_SEEN_WITHIN.as_secs()
                )
            }
            What::Disable { group } => format!("`{group}` was disabled, and its requests could not be counted"),
        }
    }
}

/// What a step came to at once.
enum Begun {
    Done(String),
    Act(What, Duration),
}
