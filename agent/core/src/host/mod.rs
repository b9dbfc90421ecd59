//! What an agent does with its leases, from a grant to the proof that nothing is left: without IO.
//!
//! Whoever drives it hands in commands, what measurements found and what became of changes, carries out the [`Do`]s that come back, in order, and
//! calls [`Host::poll`] at [`Host::next_deadline`].
//!
//! A lease's way: baseline, apply, measure; up; heal, measure; over. A fault whose effect cannot be shown is healed and
//! reported failed: a command that did nothing must not read as a fault that did no harm. One that cannot be taken down
//! whole is tried again until it is.

mod judge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use troop_policies::fault::FaultSpec;

use crate::fault::Cidr;
use crate::lease::{Command, Effect, Halter, LeaseId, Table, Ttl};
use crate::moment::Moment;
use crate::protocol::{Answered, Chapter, End, Measured, Ordered, Story, With, cut};
pub use judge::{Wants, is_shown, wants};

/// Stories of ended leases that are kept to be told again.
const TOLD_MAX: usize = 64;
/// How long after a failed heal it is tried again. The kernel's own refusals, a busy device, pass in less.
const HEAL_AGAIN: Duration = Duration::from_secs(1);

/// Which of a lease's three measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Baseline,
    Applied,
    Healed,
}

/// What must be done, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Put on disk what [`Table::highest_number`] and [`Table::halts`] say, before anything that follows.
    Keep,
    Answer {
        number: u64,
        answer: Answered,
    },
    Tell(Story),
    /// To be told by [`Host::measured`]. `after`: when a ramp is over.
    Measure {
        lease: LeaseId,
        phase: Phase,
        after: Duration,
    },
    /// To be told by [`Host::applied`].
    Apply {
        lease: LeaseId,
    },
    Renew {
        lease: LeaseId,
        ttl: Ttl,
        elapsed: Duration,
    },
    Retarget {
        lease: LeaseId,
    },
    /// To be told by [`Host::healed`].
    Heal {
        lease: LeaseId,
    },
}

/// A fault that lives, or is not yet known to be gone.
#[derive(Debug, Clone)]
pub struct Live {
    pub spec: FaultSpec,
    pub peers: Vec<Cidr>,
    pub probes: Vec<SocketAddr>,
    /// How long the kernel may keep it up by itself.
    pub ttl: Ttl,
    story: Story,
    applied_at: Option<Moment>,
    heal_again: Option<Moment>,
}

impl Live {
    pub fn story(&self) -> &Story {
        &self.story
    }
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    table: Table,
    live: BTreeMap<LeaseId, Live>,
    told: VecDeque<Story>,
}

impl Host {
    pub fn new(table: Table) -> Self {
        Self { table, live: BTreeMap::new(), told: VecDeque::new() }
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The faults that are not known to be gone.
    pub fn live(&self, lease: &LeaseId) -> Option<&Live> {
        self.live.get(lease)
    }

    /// Whether nothing is up, measured or healed.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Everything known, for a control plane that has just been reached.
    pub fn stories(&self) -> Vec<Story> {
        self.told.iter().cloned().chain(self.live.values().map(|live| live.story.clone())).collect()
    }

    /// Carries a command out. `check` says whether the host's policy and planes would have a fault at all.
    pub fn handle(
        &mut self,
        ordered: Ordered,
        now: Moment,
        check: impl FnOnce(&FaultSpec, &[Cidr], &Command) -> Result<(), String>,
    ) -> Vec<Do> {
        let Ordered { number, mut command, with } = ordered;
        let mut refused = None;
        if let (Command::Grant { lease, .. }, With::Fault { spec, peers, .. }) = (&command, &with)
            && let Err(why) = check(spec, peers, &command)
        {
            // An end of it instead, so that the number and the lease are used up, and no replay is granted later.
            command = Command::End { lease: lease.clone() };
            refused = Some(Answered::Refused { why: cut(&why) });
        }
        if let With::Refusal(why) = &with {
            refused = Some(Answered::Refused { why: cut(why) });
        }
        let outcome = self.table.handle(number, command.clone(), now);
        let mut todo = vec![Do::Keep];
        let answer = refused.unwrap_or_else(|| outcome.answer.clone().into());
        let renewed = answer == Answered::Renewed;
        todo.push(Do::Answer { number: number.0, answer });
        if let (Command::Grant { lease, ttl, .. }, With::Fault { spec, peers, probes }) = (&command, with.clone())
            && outcome.effects.contains(&Effect::Apply { lease: lease.clone() })
        {
            let story = Story {
                lease: lease.to_string(),
                at: Chapter::Baseline,
                plane: String::new(),
                baseline: None,
                applied: None,
                healed: None,
                end: None,
                trouble: String::new(),
            };
            let live = Live { spec: *spec, peers, probes, ttl: *ttl, story, applied_at: None, heal_again: None };
            self.live.insert(lease.clone(), live);
        }
        todo.extend(self.carry(outcome.effects));
        if let Command::Renew { lease, ttl } = &command
            && renewed
            && let Some(live) = self.live.get_mut(lease)
        {
            live.ttl = *ttl;
            // Before it is up there is nothing in the kernel to be renewed; it is put up with what is known then.
            let up = live.applied_at;
            if let With::Peers(peers) = with
                && live.peers != peers
            {
                live.peers = peers;
                todo.extend(up.map(|_| Do::Retarget { lease: lease.clone() }));
            }
            let elapsed = up.map(|at| now.since(at));
            todo.extend(elapsed.map(|elapsed| Do::Renew { lease: lease.clone(), ttl: *ttl, elapsed }));
        }
        todo
    }

    /// What time has brought.
    pub fn poll(&mut self, now: Moment) -> Vec<Do> {
        let effects = self.table.expire(now);
        let mut todo = self.carry(effects);
        for (lease, live) in &mut self.live {
            if live.heal_again.is_some_and(|at| at <= now) {
                live.heal_again = None;
                todo.push(Do::Heal { lease: lease.clone() });
            }
        }
        todo
    }

    pub fn next_deadline(&self) -> Option<Moment> {
        let again = self.live.values().filter_map(|live| live.heal_again).min();
        self.table.next_deadline().into_iter().chain(again).min()
    }

    /// The host's own halt, by its file.
    pub fn halt(&mut self, now: Moment) -> Vec<Do> {
        let effects = self.table.halt(Halter::Host, now);
        let mut todo = vec![Do::Keep];
        todo.extend(self.carry(effects));
        todo
    }

    /// The halt file is gone.
    pub fn resume(&mut self) -> Vec<Do> {
        self.table.resume(Halter::Host);
        vec![Do::Keep]
    }

    /// The plane cannot keep a fault up any longer: it held too much, or its worker has ended.
    pub fn give_up(&mut self, lease: &LeaseId, why: &str) -> Vec<Do> {
        if let Some(live) = self.live.get_mut(lease) {
            live.story.trouble = cut(why);
        }
        let effect = self.table.give_up(lease);
        self.carry(effect)
    }

    /// Ends every lease, for one reason.
    pub fn give_up_all(&mut self, why: &str) -> Vec<Do> {
        let leases: Vec<LeaseId> = self.table.alive().cloned().collect();
        leases.iter().flat_map(|lease| self.give_up(lease, why)).collect()
    }

    /// What a measurement found. First what time has brought: a host that was frozen while it measured must not put up a fault
    /// whose lease has lapsed.
    pub fn measured(&mut self, lease: &LeaseId, phase: Phase, found: Measured, now: Moment) -> Vec<Do> {
        let mut todo = self.poll(now);
        todo.extend(self.found(lease, phase, found));
        todo
    }

    fn found(&mut self, lease: &LeaseId, phase: Phase, found: Measured) -> Vec<Do> {
        let Some(live) = self.live.get_mut(lease) else { return Vec::new() };
        let story = &mut live.story;
        match (phase, story.at) {
            (Phase::Baseline, Chapter::Baseline) => {
                story.baseline = Some(found);
                story.at = Chapter::Applying;
                vec![Do::Tell(story.clone()), Do::Apply { lease: lease.clone() }]
            }
            (Phase::Applied, Chapter::Applying) => {
                let shown = is_shown(&live.spec, story.baseline.as_ref(), &found);
                story.applied = Some(found);
                if shown {
                    story.at = Chapter::Up;
                    return vec![Do::Tell(story.clone())];
                }
                self.give_up(lease, "its effect could not be shown")
            }
            (Phase::Healed, Chapter::Healing) => {
                let gone = !is_shown(&live.spec, story.baseline.as_ref(), &found);
                story.healed = Some(found);
                if !gone {
                    story.trouble = "it is healed, and the round trip is as slow as with it".to_owned();
                }
                self.over(lease)
            }
            // It ended while it was measured.
            (Phase::Baseline | Phase::Applied | Phase::Healed, _) => Vec::new(),
        }
    }

    /// What became of [`Do::Apply`]: the plane's name, or why not.
    pub fn applied(&mut self, lease: &LeaseId, result: Result<&str, String>, now: Moment) -> Vec<Do> {
        let Some(live) = self.live.get_mut(lease) else { return Vec::new() };
        match result {
            Ok(plane) => {
                live.story.plane = plane.to_owned();
                live.applied_at = Some(now);
                let after = Duration::from_micros(live.spec.ramp_us);
                vec![Do::Measure { lease: lease.clone(), phase: Phase::Applied, after }]
            }
            Err(why) => self.give_up(lease, &why),
        }
    }

    /// What became of [`Do::Heal`]. `measures`: whether a peer can be asked whether it is gone.
    pub fn healed(&mut self, lease: &LeaseId, result: Result<(), String>, measures: bool, now: Moment) -> Vec<Do> {
        let Some(live) = self.live.get_mut(lease) else { return Vec::new() };
        match result {
            Ok(()) if measures => {
                live.story.at = Chapter::Healing;
                let phase = Phase::Healed;
                vec![Do::Measure { lease: lease.clone(), phase, after: Duration::ZERO }]
            }
            Ok(()) => self.over(lease),
            Err(why) => {
                live.story.at = Chapter::Stuck;
                live.story.trouble = cut(&why);
                live.heal_again = Some(now.after(HEAL_AGAIN));
                vec![Do::Tell(live.story.clone())]
            }
        }
    }

    fn carry(&mut self, effects: impl IntoIterator<Item = Effect>) -> Vec<Do> {
        let mut todo = Vec::new();
        for effect in effects {
            match effect {
                Effect::Apply { lease } => {
                    todo.push(Do::Measure { lease, phase: Phase::Baseline, after: Duration::ZERO });
                }
                Effect::Heal { lease, why } => {
                    let Some(live) = self.live.get_mut(&lease) else { continue };
                    live.story.end = Some(End::from(why));
                    if live.story.at == Chapter::Baseline {
                        todo.extend(self.over(&lease));
                        continue;
                    }
                    live.story.at = Chapter::Healing;
                    todo.push(Do::Heal { lease });
                }
            }
        }
        todo
    }

    fn over(&mut self, lease: &LeaseId) -> Vec<Do> {
        let Some(mut live) = self.live.remove(lease) else { return Vec::new() };
        live.story.at = Chapter::Over;
        self.told.push_back(live.story.clone());
        if self.told.len() > TOLD_MAX {
            self.told.pop_front();
        }
        vec![Do::Tell(live.story)]
    }
}
