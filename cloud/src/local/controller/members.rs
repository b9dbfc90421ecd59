//! Keeps each group at its size: launches what is missing, replaces the dead and the unhealthy, ends what is too much.
//!
//! The unhealthy are replaced one at a time in a group, and only on a fresh verdict: when all of a group is unhealthy
//! because of something else, replacing all of it would make an outage of a slowness.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use troop_policies::inventory::HEALTH_GOOD_FOR_MS;
use troop_policies::{GroupName, InstanceId};

use super::{
    ADDRESS_RESTS, BACKOFF_MAX, Controller, Effect, Ending, GRACE_MAX, HEARD_WITHIN, KILLED_LISTED, LEAVE_WITHIN,
    Member, Now, Phase, Random, STARTED_AFTER, Stage, TERM_TO_KILL, UNHEALTHY_MAX,
};
use crate::local::image::root_of;
use crate::local::runtime::{EndBy, Launch};

/// Host numbers of instances in a zone's network; below lie the gateway and room for roles.
pub(super) const HOST_MIN: u8 = 10;
pub(super) const HOST_MAX: u8 = 254;

/// Why a member is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Crash,
    /// A recorded kill that lets requests finish.
    Drain {
        delay: Duration,
    },
    ScaleIn,
    Unhealthy,
    Closing,
}

impl Controller {
    /// Begins a member's end. One that is ending already goes on as it was.
    pub(super) fn begin_end(&mut self, instance: &InstanceId, why: Why, now: Now) {
        let Some(member) = self.members.get_mut(instance) else { return };
        if member.ending.is_some() {
            return;
        }
        let drain = match why {
            Why::Crash | Why::Unhealthy | Why::Closing => Duration::ZERO,
            Why::Drain { delay } => delay,
            Why::ScaleIn => LEAVE_WITHIN,
        };
        let stage = Stage::Leaving { version: None, heard_by: now.mono + HEARD_WITHIN, drained_by: now.mono + drain };
        let killed = matches!(why, Why::Crash | Why::Drain { .. });
        member.ending = Some(Ending { stage, killed, crash: why == Why::Crash });
    }

    pub(super) fn close(&mut self, now: Now) {
        let all: Vec<InstanceId> = self.members.keys().cloned().collect();
        for instance in all {
            self.begin_end(&instance, Why::Closing, now);
        }
        for member in self.members.values_mut() {
            if let Some(Ending { stage: Stage::Leaving { heard_by, drained_by, .. }, .. }) = &mut member.ending {
                (*heard_by, *drained_by) = ((*heard_by).min(now.mono), (*drained_by).min(now.mono));
            }
        }
    }

    pub(super) fn launched(&mut self, instance: &InstanceId, pid: u32, now: Now) {
        let boot_delay = self.settings.boot_delay;
        // One that is gone already: its exit came first.
        if let Some(member) = self.members.get_mut(instance) {
            member.pid = Some(pid);
            member.phase = Phase::Booting { until: now.mono + boot_delay };
        }
    }

    pub(super) fn end_boots(&mut self, now: Now) {
        for member in self.members.values_mut() {
            if let Phase::Booting { until } = member.phase
                && now.mono >= until
            {
                member.phase = Phase::Running;
            }
        }
    }

    pub(super) fn launch_failed(&mut self, instance: &InstanceId, why: &str, now: Now) {
        if let Some(member) = self.remove(instance, now) {
            tracing::warn!(%instance, group = %member.group, why, "an instance could not be launched");
            self.failed(&member.group, now);
            self.ended_of(instance, "it had never started");
        }
    }

    pub(super) fn exited(&mut self, instance: &InstanceId, status: &str, now: Now, out: &mut Vec<Effect>) {
        out.push(Effect::Clean { instance: instance.clone() });
        let Some(member) = self.remove(instance, now) else { return };
        self.ended_of(instance, status);
        if member.ending.is_some() {
            return;
        }
        tracing::warn!(%instance, group = %member.group, status, "an instance ended by itself");
        let has_targets = self.groups.get(&member.group).is_some_and(|group| group.saved.has_targets);
        let started = if has_targets {
            member.was_healthy
        } else {
            now.mono.saturating_sub(member.launched) >= self.settings.boot_delay + STARTED_AFTER
        };
        if !started {
            self.failed(&member.group, now);
        }
    }

    fn remove(&mut self, instance: &InstanceId, now: Now) -> Option<Member> {
        let member = self.members.remove(instance)?;
        self.resting.insert(member.address, now.mono + ADDRESS_RESTS);
        if member.ending.is_some_and(|ending| ending.killed) {
            self.killed.insert(instance.clone(), now.mono + KILLED_LISTED);
        }
        Some(member)
    }

    /// Notes a failed launch: 1 s pause, then 2, 4 and so on. Members that fail together are one failure.
    fn failed(&mut self, group: &GroupName, now: Now) {
        let Some(group) = self.groups.get_mut(group) else { return };
        group.saved.last_failed_launch = Some(now.at);
        if now.mono >= group.launch_after {
            let pause = Duration::from_secs(1 << group.failures.min(10)).min(BACKOFF_MAX);
            group.launch_after = now.mono + pause;
            group.failures = group.failures.saturating_add(1);
        }
    }

    pub(super) fn keep_groups(&mut self, now: Now, random: Random<'_>, out: &mut Vec<Effect>) {
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in names {
            self.keep_group(&name, now, random, out);
        }
    }

    fn keep_group(&mut self, name: &GroupName, now: Now, random: Random<'_>, out: &mut Vec<Effect>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let of_group = |m: &&Member| m.group == *name;
        let desired = if group.saved.destroying { 0 } else { usize::try_from(group.saved.size.desired).unwrap_or(0) };
        let active = self.members.values().filter(of_group).filter(|m| m.ending.is_none()).count();
        let occupied = self.members.values().filter(of_group).filter(|m| m.occupies()).count();
        if !group.saved.has_targets {
            let settled = |m: &Member| now.mono.saturating_sub(m.launched) >= STARTED_AFTER + self.settings.boot_delay;
            if self.members.values().filter(of_group).any(settled) {
                group.failures = 0;
            }
        }
        if active > desired {
            for _ in desired..active {
                if let Some(instance) = self.newest_of_the_fullest_zone(name) {
                    self.begin_end(&instance, Why::ScaleIn, now);
                }
            }
        } else if occupied < desired {
            if now.mono >= group.launch_after {
                for _ in occupied..desired {
                    self.launch(name, now, random, out);
                }
            }
        } else if let Some(instance) = self.unhealthy_too_long(name, now) {
            tracing::warn!(%instance, group = %name, "replacing an unhealthy instance");
            self.begin_end(&instance, Why::Unhealthy, now);
            let was_healthy = self.members.get(&instance).is_some_and(|member| member.was_healthy);
            if let Some(group) = self.groups.get_mut(name).filter(|_| !was_healthy) {
                group.never_healthy = group.never_healthy.saturating_add(1);
            }
        }
    }

    fn newest_of_the_fullest_zone(&self, group: &GroupName) -> Option<InstanceId> {
        let active = || self.members.iter().filter(|(_, m)| m.group == *group && m.ending.is_none());
        let mut by_zone: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, member) in active() {
            *by_zone.entry(member.zone).or_default() += 1;
        }
        let fullest = by_zone.iter().max_by_key(|(_, count)| **count).map(|(zone, _)| *zone)?;
        active().filter(|(_, m)| m.zone == fullest).max_by_key(|(_, m)| m.launched).map(|(id, _)| id.clone())
    }

    /// At most one, and none while another of the group is on its way in or out.
    fn unhealthy_too_long(&self, group: &GroupName, now: Now) -> Option<InstanceId> {
        let mut found = None;
        let grace = self.grace(group);
        for (instance, member) in self.members.iter().filter(|(_, m)| m.group == *group) {
            if !member.in_service() {
                return None;
            }
            let fresh = |checked_at: jiff::Timestamp| {
                now.at.as_millisecond().saturating_sub(checked_at.as_millisecond()) <= i64::from(HEALTH_GOOD_FOR_MS)
            };
            let too_long = if member.was_healthy {
                member.unhealthy_since.is_some_and(|since| now.mono.saturating_sub(since) >= UNHEALTHY_MAX)
            } else {
                now.mono.saturating_sub(member.launched) >= grace
            };
            if too_long && member.target.as_ref().is_some_and(|t| !t.healthy && fresh(t.checked_at)) {
                found.get_or_insert(instance);
            }
        }
        found.cloned()
    }

    /// How long a new member may be unhealthy: the grace period, doubled with each that was replaced in vain.
    pub(super) fn grace(&self, group: &GroupName) -> Duration {
        let grace = self.settings.grace;
        let in_vain = self.groups.get(group).map_or(0, |group| group.never_healthy);
        grace.saturating_mul(1 << in_vain.min(16)).min(GRACE_MAX.max(grace))
    }

    fn launch(&mut self, name: &GroupName, now: Now, random: Random<'_>, out: &mut Vec<Effect>) {
        let Some(zone) = self.emptiest_zone(name) else { return };
        let Some(address) = self.free_address(zone) else {
            tracing::warn!(group = %name, zone = %self.settings.zones[zone], "no address is free");
            self.failed(name, now);
            return;
        };
        let Some(instance) = self.new_id(random) else { return };
        let Some(launch) = self.describe(name, &instance, zone, address) else { return };
        let member = Member {
            group: name.clone(),
            zone,
            address,
            launched_at: now.at,
            launched: now.mono,
            pid: None,
            phase: Phase::Launching,
            ending: None,
            target: None,
            was_healthy: false,
            unhealthy_since: None,
            verdict_heard: now.mono,
        };
        self.members.insert(instance, member);
        out.push(Effect::Launch(Box::new(launch)));
    }

    fn emptiest_zone(&self, group: &GroupName) -> Option<usize> {
        let wanted = &self.groups.get(group)?.saved.zones;
        let count =
            |zone: usize| self.members.values().filter(|m| m.group == *group && m.zone == zone && m.occupies()).count();
        (0..self.settings.zones.len())
            .filter(|zone| wanted.contains(&self.settings.zones[*zone]))
            .min_by_key(|zone| count(*zone))
    }

    /// The next address in turn that is neither in use nor resting.
    fn free_address(&mut self, zone: usize) -> Option<Ipv4Addr> {
        let number = u8::try_from(zone).ok()?;
        let last = self.last_host.get_mut(zone)?;
        for _ in HOST_MIN..=HOST_MAX {
            *last = if *last >= HOST_MAX { HOST_MIN } else { *last + 1 };
            let address = self.settings.network.address(number, *last);
            let taken = self.resting.contains_key(&address) || self.members.values().any(|m| m.address == address);
            if !taken {
                return Some(address);
            }
        }
        None
    }

    /// `i-` and 17 hexadecimal digits, as at AWS.
    fn new_id(&self, random: Random<'_>) -> Option<InstanceId> {
        /// A generator that only ever repeats itself is broken; the group tries again at the next tick.
        const TRIES: usize = 8;
        (0..TRIES).find_map(|_| {
            let digits = (u128::from(random()) << 64 | u128::from(random())) & ((1 << 68) - 1);
            InstanceId::new(format!("i-{digits:017x}")).ok().filter(|id| !self.members.contains_key(id))
        })
    }

    fn describe(&self, name: &GroupName, instance: &InstanceId, zone: usize, address: Ipv4Addr) -> Option<Launch> {
        let group = self.groups.get(name)?;
        let package = self.packages.get(&group.saved.image)?;
        let settings = &self.settings;
        let env = [
            ("HOST", address.to_string()),
            ("PORT", package.port.to_string()),
            ("TROOP_INSTANCE_ID", instance.to_string()),
            ("TROOP_APP", name.app().to_string()),
            ("TROOP_CLUSTER", name.cluster().to_string()),
            ("TROOP_GROUP", name.to_string()),
            ("TROOP_ACCOUNT", settings.account.to_string()),
            ("TROOP_REGION", settings.region.to_string()),
            ("TROOP_ZONE", settings.zones[zone].to_string()),
            ("TROOP_IMAGE", package.image.id.to_string()),
            ("TROOP_VERSION", package.image.version.clone()),
            ("EUREKA_URL", settings.eureka_url.clone()),
        ];
        Some(Launch {
            instance: instance.clone(),
            zone: u8::try_from(zone).ok()?,
            address,
            image_root: root_of(&settings.images, &package.image.id),
            command: package.command.clone(),
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            boot_delay: settings.boot_delay,
            log: settings.logs.join(format!("{instance}.log")),
        })
    }

    /// Takes every ending member as far as it can go now. The routes are those of now.
    pub(super) fn end_members(&mut self, now: Now, out: &mut Vec<Effect>) {
        let version = self.routes.version;
        let ending: Vec<(InstanceId, Ending)> =
            self.members.iter().filter_map(|(id, m)| Some((id.clone(), m.ending?))).collect();
        for (instance, ending) in ending {
            let stage = match ending.stage {
                Stage::Leaving { version: None, heard_by, drained_by } => {
                    Stage::Leaving { version: Some(version), heard_by, drained_by }
                }
                stage @ (Stage::Leaving { .. } | Stage::Termed { .. } | Stage::Killed) => stage,
            };
            let launching = self.members.get(&instance).is_some_and(|m| m.phase == Phase::Launching);
            let next = match stage {
                // There is nobody yet to be signalled.
                stage if launching => stage,
                Stage::Leaving { version: Some(version), heard_by, drained_by } => {
                    let heard = self.all_applied(version) || now.mono >= heard_by;
                    let drained = now.mono >= drained_by || self.is_drained(&instance, version);
                    match (heard, ending.crash, drained) {
                        (true, true, _) => Stage::Killed,
                        (true, false, true) => Stage::Termed { kill_at: now.mono + TERM_TO_KILL },
                        (true, false, false) | (false, ..) => stage,
                    }
                }
                Stage::Termed { kill_at } if now.mono >= kill_at => Stage::Killed,
                Stage::Leaving { version: None, .. } | Stage::Termed { .. } | Stage::Killed => stage,
            };
            let by = match next {
                Stage::Leaving { .. } => None,
                Stage::Termed { .. } => Some(EndBy::Term),
                Stage::Killed => Some(EndBy::Kill),
            };
            if let Some(by) = by.filter(|_| next != stage) {
                out.push(Effect::End { instance: instance.clone(), by });
            }
            if let Some(member) = self.members.get_mut(&instance) {
                member.ending = Some(Ending { stage: next, ..ending });
            }
        }
    }
}
