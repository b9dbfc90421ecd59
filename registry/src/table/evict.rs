//! Forgetting: leases that ran out, changes too old for the delta, tombstones and remembered steps.
//!
//! The rule that takes the place of Eureka's self-preservation: a lease that ran out is evicted at once. Only in a
//! registry of [`LARGE_FROM`] entries or more are at most half of them evicted within one site's lease, oldest first, so
//! that a broken network cannot empty it in one go, yet every corpse goes within a few leases. A registry of three heals
//! in one. And time in which the registry did not run, or by which its clock was set, counts against no lease.

use jiff::{SignedDuration, Timestamp};

use super::steps::STEPS_KEPT;
use super::{Effect, Key, Save, Table, after};

/// How often [`Table::tick`] is meant to run.
pub(crate) const TICK: SignedDuration = SignedDuration::from_secs(1);

/// A tick later than this means that we did not run, and clients could not renew.
const LATE_TICK: SignedDuration = SignedDuration::from_secs(2);

/// How long a change stays in the delta: Eureka's three minutes, six of its clients' fetches.
pub(crate) const DELTA_KEPT: SignedDuration = SignedDuration::from_mins(3);

/// Where a mass eviction begins to look more like our own fault than like that many deaths.
const LARGE_FROM: usize = 10;

impl Table {
    /// To be called every [`TICK`]. Answers the entries it evicted.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Effect<Vec<Key>> {
        self.make_up_for_lost_time(now);
        self.changes.retain(|_, change| now < after(change.at, DELTA_KEPT));
        self.ended.retain(|_, until| now < *until);
        self.steps.retain(|_, step| now < after(step.at, STEPS_KEPT));
        let evicted = self.evict(now);
        let save = if evicted.is_empty() { Save::No } else { Save::Soon };
        self.effect(evicted, save)
    }

    fn make_up_for_lost_time(&mut self, now: Timestamp) {
        let gap = now.duration_since(self.last_tick);
        self.last_tick = now;
        if !gap.is_negative() && gap <= LATE_TICK {
            return;
        }
        // One tick of the gap still counts, so that leases end even where every tick is late.
        let lost = gap.saturating_sub(TICK);
        for lease in self.entries.values_mut() {
            lease.renewed_at = after(lease.renewed_at, lost).min(now);
        }
        for until in self.ended.values_mut().chain(self.warming_until.as_mut()) {
            *until = after(*until, lost);
        }
        for at in self.steps.values_mut().map(|s| &mut s.at).chain(self.changes.values_mut().map(|c| &mut c.at)) {
            *at = after(*at, lost).min(now);
        }
        for at in &mut self.evictions {
            *at = after(*at, lost).min(now);
        }
    }

    fn evict(&mut self, now: Timestamp) -> Vec<Key> {
        let site_lease = self.site_lease;
        self.evictions.retain(|at| now < after(*at, site_lease));
        let ends =
            |(key, lease): (&Key, &super::Lease)| (after(lease.renewed_at, self.duration(&lease.info)), key.clone());
        let mut expired: Vec<(Timestamp, Key)> = self.entries.iter().map(ends).filter(|(end, _)| *end <= now).collect();
        expired.sort();
        // Counted with those that went a moment ago, for leases run out one by one.
        let whole = self.entries.len() + self.evictions.len();
        let allowed = if whole < LARGE_FROM { whole } else { (whole / 2).saturating_sub(self.evictions.len()) };
        let evicted: Vec<Key> = expired.into_iter().take(allowed).map(|(_, key)| key).collect();
        for key in &evicted {
            self.remove(key, now);
            self.evictions.push_back(now);
        }
        evicted
    }
}
