//! What the balancer's workers report, merged: the worst verdict, the sum of traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use troop_policies::inventory::{HEALTH_GOOD_FOR_MS, TargetHealth};
use troop_policies::{GroupName, InstanceId};

use super::{Controller, Now};
use crate::Traffic;
use crate::local::protocol::Verdict;

/// A worker that has not reported for so long has no say: as long as a verdict is believed at all.
const REPORT_MAX_AGE: Duration = Duration::from_millis(HEALTH_GOOD_FOR_MS as u64);

#[derive(Debug, Clone, Default)]
pub(super) struct Worker {
    /// `None` while it is away. It goes on serving by the last routes it had.
    connection: Option<u64>,
    life: Option<i32>,
    applied: u64,
    /// The routes it followed when it last reported.
    reported_under: u64,
    reported: Option<Duration>,
    health: BTreeMap<InstanceId, Verdict>,
    in_flight: BTreeMap<InstanceId, u64>,
    traffic: BTreeMap<GroupName, Counted>,
}

/// One worker's counts for one group over all its lives.
#[derive(Debug, Clone, Default)]
struct Counted {
    before: Traffic,
    now: Traffic,
}

impl Controller {
    pub(super) fn worker_joined(&mut self, worker: u32, connection: u64, life: Option<i32>) {
        let entry = self.workers.entry(worker).or_default();
        if entry.life != life {
            entry.traffic.values_mut().for_each(Counted::begin_anew);
            entry.health.clear();
        }
        *entry = Worker {
            connection: Some(connection),
            life,
            applied: 0,
            reported_under: 0,
            reported: None,
            health: std::mem::take(&mut entry.health),
            in_flight: BTreeMap::new(),
            traffic: std::mem::take(&mut entry.traffic),
        };
    }

    pub(super) fn worker_left(&mut self, worker: u32, connection: u64) {
        if let Some(worker) = self.current(worker, connection) {
            worker.connection = None;
            worker.in_flight.clear();
            worker.traffic.values_mut().for_each(|counted| counted.now.in_flight = 0);
        }
    }

    pub(super) fn applied(&mut self, worker: u32, connection: u64, version: u64) {
        let newest = self.routes.version;
        if let Some(worker) = self.current(worker, connection) {
            worker.applied = version.min(newest);
        }
    }

    pub(super) fn report(
        &mut self,
        worker: u32,
        connection: u64,
        health: BTreeMap<InstanceId, Verdict>,
        traffic: BTreeMap<GroupName, Traffic>,
        in_flight: BTreeMap<InstanceId, u64>,
        now: Now,
    ) {
        let Some(worker) = self.current(worker, connection) else { return };
        worker.reported = Some(now.mono);
        worker.reported_under = worker.applied;
        worker.health = health;
        worker.in_flight = in_flight;
        for (group, counts) in traffic {
            worker.traffic.entry(group).or_default().take(counts);
        }
        self.judge(now);
    }

    /// A worker's newest connection; an older one has no say any more.
    fn current(&mut self, worker: u32, connection: u64) -> Option<&mut Worker> {
        self.workers.get_mut(&worker).filter(|worker| worker.connection == Some(connection))
    }

    /// Takes the workers' verdicts over. An instance that nobody reported lately keeps its old one, which goes stale.
    fn judge(&mut self, now: Now) {
        let heard = |worker: &&Worker| worker.reported.is_some_and(|at| now.mono.saturating_sub(at) <= REPORT_MAX_AGE);
        for (instance, member) in &mut self.members {
            let verdicts = self.workers.values().filter(heard).filter_map(|worker| worker.health.get(instance));
            let Some(worst) = worst(verdicts) else { continue };
            // Since unhealthy verdicts before a silence, what was in between is not known.
            let silence = now.mono.saturating_sub(member.verdict_heard) > REPORT_MAX_AGE;
            member.verdict_heard = now.mono;
            if worst.healthy {
                member.was_healthy = true;
                member.unhealthy_since = None;
                if let Some(group) = self.groups.get_mut(&member.group) {
                    (group.failures, group.never_healthy) = (0, 0);
                }
            } else if silence || member.unhealthy_since.is_none() {
                member.unhealthy_since = Some(now.mono);
            }
            let Verdict { healthy, checked_at, reason } = worst.clone();
            member.target = Some(TargetHealth::new(healthy, checked_at, reason));
        }
    }

    /// Whether every worker that is there follows these routes or newer ones.
    pub(super) fn all_applied(&self, version: u64) -> bool {
        self.late_workers(version).is_empty()
    }

    /// The workers that are there and do not follow these routes yet.
    pub(super) fn late_workers(&self, version: u64) -> Vec<u32> {
        let late = |worker: &Worker| worker.connection.is_some() && worker.applied < version;
        self.workers.iter().filter(|(_, worker)| late(worker)).map(|(number, _)| *number).collect()
    }

    /// Whether this worker has told that it follows these routes, be it there now or not.
    pub(super) fn worker_applied(&self, worker: u32, version: u64) -> bool {
        self.workers.get(&worker).is_some_and(|worker| worker.applied >= version)
    }

    pub(super) fn connected_workers(&self) -> Vec<u32> {
        self.workers.iter().filter(|(_, worker)| worker.connection.is_some()).map(|(number, _)| *number).collect()
    }

    /// Whether no request is in flight to an instance, by reports made after the routes of `version` were followed.
    /// Without any worker nobody knows.
    pub(super) fn is_drained(&self, instance: &InstanceId, version: u64) -> bool {
        let mut any = false;
        for worker in self.workers.values().filter(|worker| worker.connection.is_some()) {
            any = true;
            if worker.reported_under < version || worker.in_flight.get(instance).is_some_and(|count| *count > 0) {
                return false;
            }
        }
        any
    }

    pub(super) fn in_flight(&self, instance: &InstanceId) -> u64 {
        self.workers.values().filter_map(|worker| worker.in_flight.get(instance)).sum()
    }

    /// Sums what the workers counted for a group.
    pub(super) fn traffic_of(&self, group: &GroupName) -> Traffic {
        let mut sum = Traffic::default();
        for counted in self.workers.values().filter_map(|worker| worker.traffic.get(group)) {
            add(&mut sum, &counted.before);
            add(&mut sum, &counted.now);
            sum.in_flight += counted.now.in_flight;
        }
        sum
    }

    /// Drops the counts of groups that are gone.
    pub(super) fn forget_traffic(&mut self) {
        for worker in self.workers.values_mut() {
            worker.traffic.retain(|group, _| self.groups.contains_key(group));
        }
    }
}

impl Counted {
    /// Takes a worker's newest counts. Counts that fell are those of a new life.
    fn take(&mut self, counts: Traffic) {
        let fell = counts.answers < self.now.answers
            || counts.server_errors < self.now.server_errors
            || counts.failed < self.now.failed
            || counts.failed_in_flight_to_killed < self.now.failed_in_flight_to_killed
            || counts.retried < self.now.retried;
        if fell {
            self.begin_anew();
        }
        self.now = counts;
    }

    fn begin_anew(&mut self) {
        let now = std::mem::take(&mut self.now);
        add(&mut self.before, &now);
    }
}

/// Adds all that only grows.
fn add(sum: &mut Traffic, more: &Traffic) {
    sum.answers += more.answers;
    sum.server_errors += more.server_errors;
    sum.failed += more.failed;
    sum.failed_in_flight_to_killed += more.failed_in_flight_to_killed;
    sum.retried += more.retried;
    if sum.buckets.len() < more.buckets.len() {
        sum.buckets.resize(more.buckets.len(), 0);
    }
    sum.buckets.iter_mut().zip(&more.buckets).for_each(|(sum, more)| *sum += more);
    if let Some(more) = more.timed {
        sum.timed.get_or_insert_default().add(more);
    }
}

/// An unhealthy verdict before a healthy one, the older before the younger: what is said of health is true of all.
fn worst<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Option<&'a Verdict> {
    verdicts.min_by_key(|verdict| (verdict.healthy, verdict.checked_at))
}
