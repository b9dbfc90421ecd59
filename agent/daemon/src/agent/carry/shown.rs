//! Whether a fault that is up shows, and one that was taken down does not: by connections of the host, or by what the plane counts.

use std::time::Duration;

use troop_agent_core::host::{Live, Phase, Wants, is_shown, wants};
use troop_agent_core::lease::LeaseId;
use troop_agent_core::moment::Moment;
use troop_agent_core::protocol::{Chapter, Measured, MeasuredBy};
use troop_policies::chain;

use super::{Agent, checked, owner_of};
use crate::measure;
use crate::owner::Seeing;
use crate::sockets::{self, Connection};

/// How long connections may take to show a fault, or that it is gone, before the plane is asked instead: ten answers a second show half of it
/// in 600 ms.
const SOCKETS_MAX: Duration = Duration::from_secs(2);

impl Agent {
    /// What the connections that a fault concerns have to say; `None` where they say nothing that could be compared. `within`: only those
    /// that have heard from their peer in this time.
    pub(super) fn by_sockets(&self, lease: &LeaseId, within: Option<Duration>) -> Option<Measured> {
        let live = self.host.live(lease)?;
        if !matches!(wants(&live.spec), Wants::Slower(_)) {
            return None;
        }
        let owner = owner_of(live.spec.of.as_ref()).ok()?;
        let seeing = owner.as_ref().map(|owner| Seeing::here().and_then(|seeing| seeing.within(owner)));
        let cgroups = seeing.transpose().ok()?;
        let fault = checked(&live.spec, &live.peers, owner.map(|owner| owner.cgroup), &self.ends).ok()?;
        let concerned = |seen: &&Connection| {
            let is_of = cgroups.as_ref().is_none_or(|all| seen.cgroup.is_some_and(|cgroup| all.contains(&cgroup)));
            is_of && within.is_none_or(|within| seen.heard_ago < within) && fault.target.matches(&seen.flow)
        };
        // Where the kernel does not tell, its plane will.
        let all = sockets::connections().ok()?;
        measure::of_connections(all.iter().filter(concerned).map(|seen| seen.round_trip).collect())
    }

    /// Whether the fault is gone, by the connections that go on.
    fn look_at_healed(&mut self, lease: &LeaseId, since: Moment, now: Moment) {
        let Some(live) = self.host.live(lease) else { return };
        let baseline = live.story().baseline.clone();
        let gone = self
            .by_sockets(lease, Some(now.since(since)))
            .filter(|found| !is_shown(&live.spec, baseline.as_ref(), found));
        // Those that heard too little of their peer since then cannot tell.
        let silent = Measured { median_us: None, sent: 0, back: 0, by: MeasuredBy::Sockets };
        let found = match gone {
            None if now.since(since) < SOCKETS_MAX => return,
            gone => gone.unwrap_or(silent),
        };
        let todo = self.host.measured(lease, Phase::Healed, found, now);
        self.carry_out(todo);
    }

    /// Whether it shows, or has ended by itself.
    pub(super) fn look_at(&mut self, lease: &LeaseId, now: Moment) {
        let is_healing = self.host.live(lease).is_some_and(|live| live.story().at == Chapter::Healing);
        let since = self.beside.get(lease).and_then(|beside| beside.shows_since);
        if let Some(since) = since.filter(|_| is_healing) {
            return self.look_at_healed(lease, since, now);
        }
        // Before it is up there is nothing to be seen, and what is being healed is not looked at any more.
        let is_up = |live: &Live| matches!(live.story().at, Chapter::Applying | Chapter::Up);
        let Some(beside) = self.beside.get(lease).filter(|_| self.host.live(lease).is_some_and(is_up)) else { return };
        let (Some(plane), by_plane) = (beside.plane, beside.by_plane) else { return };
        let seen = match self.planes[plane].seen(lease) {
            Ok(seen) => seen,
            Err(why) => {
                let todo = self.host.give_up(lease, &chain(&why));
                return self.carry_out(todo);
            }
        };
        if seen.full {
            let todo = self.host.give_up(lease, "it held as much as it may, and let everything go");
            return self.carry_out(todo);
        }
        let Some(until) = by_plane else { return };
        if let Some(since) = since.filter(|since| *since <= now) {
            let live = self.host.live(lease);
            let baseline = live.and_then(|live| live.story().baseline.clone());
            let found = self.by_sockets(lease, Some(now.since(since)));
            let shown = found.filter(|found| live.is_some_and(|live| is_shown(&live.spec, baseline.as_ref(), found)));
            if let Some(found) = shown {
                if let Some(beside) = self.beside.get_mut(lease) {
                    (beside.by_plane, beside.shows_since) = (None, None);
                }
                let todo = self.host.measured(lease, Phase::Applied, found, now);
                return self.carry_out(todo);
            }
            if now.since(since) < SOCKETS_MAX {
                return;
            }
        }
        // A delay is shown by what it has let go; anything else by what it has met.
        let needs_held = matches!(self.host.live(lease).map(|live| wants(&live.spec)), Some(Wants::Slower(_)));
        let has_shown = seen.concerned > 0 && (seen.held_for.is_some() || !needs_held);
        if has_shown || now >= until {
            if let Some(beside) = self.beside.get_mut(lease) {
                (beside.by_plane, beside.shows_since) = (None, None);
            }
            let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let measured = Measured {
                median_us: seen.held_for.map(|held| u64::try_from(held.as_micros()).unwrap_or(u64::MAX)),
                sent: count(seen.concerned),
                back: count(seen.concerned.saturating_sub(seen.lost)),
                by: MeasuredBy::Plane,
            };
            let todo = self.host.measured(lease, Phase::Applied, measured, now);
            self.carry_out(todo);
        }
    }
}
