//! The leases of a host: which faults may live on it, and until when.
//!
//! A fault lives as long as its lease is renewed, and never beyond its life, which is fixed when it is granted. Everything
//! here is decided on the host's own clock; what comes over the wire are durations. Each call says what must be done, as
//! [`Effect`]s: whoever drives the table carries them out, in order, and comes back at [`Table::next_deadline`].
//!
//! **Replays.** A command carries a number that is used once. One that comes again has no effect and its first answer; one so
//! old that it may have been forgotten is refused. So a granted fault never comes back by an old message.
//!
//! **Frozen hosts.** Leases that ran out while nothing ran are found at the next call, before what it asks for is done: a
//! renewal that waited in a buffer does not bring back a fault whose lease has lapsed. A clock that stands changes nothing,
//! and one that runs backwards counts as standing.

mod answers;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use crate::moment::Moment;
use answers::Answers;
pub use terms::{BadTerm, LEASE_MAX, LIFE_MAX, Life, Ttl};

/// Most faults at a time: each has its own filters in the kernel, and a host that needs more is better halted.
pub const LEASES_MAX: usize = 64;
/// Ended leases of which the end is still known.
const ENDED_MAX: usize = 256;
/// Longest name of a lease, in bytes.
pub const ID_MAX_BYTES: usize = 64;

/// Why a text is no name of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a lease's name has 1 to {ID_MAX_BYTES} letters, digits, `-` or `_`")]
pub struct BadLeaseId;

impl BadLeaseId {
    pub fn hint(&self) -> &'static str {
        "use the id of the intent"
    }
}

/// The name of a lease, and of the fault that it lets live. Used once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(Arc<str>);

impl LeaseId {
    /// # Errors
    /// [`BadLeaseId`] when empty, too long, or holding anything but ASCII letters, digits, `-` and `_`.
    pub fn new(text: &str) -> Result<Self, BadLeaseId> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !plain || text.is_empty() || text.len() > ID_MAX_BYTES {
            return Err(BadLeaseId);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a command. Later commands have greater ones; 0 is none's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CommandNumber(pub u64);

/// What a control plane asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Grant { lease: LeaseId, ttl: Ttl, life: Life },
    Renew { lease: LeaseId, ttl: Ttl },
    End { lease: LeaseId },
    Halt,
    Resume,
}

/// Who halts. Each takes back only its own halt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Halter {
    ControlPlane,
    /// The halt file on the host itself.
    Host,
}

/// Why a fault ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Nobody renewed its lease.
    Lapsed,
    /// It has had its life.
    LifeOver,
    /// It was asked to.
    Ended,
    Halted,
    /// The host could not keep it up: it had no effect, or held too much.
    GivenUp,
}

/// What must be done on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Apply { lease: LeaseId },
    Heal { lease: LeaseId, why: Why },
}

/// What is answered to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Granted,
    Renewed,
    /// The fault lives no more, or never did; the end, where it is still known.
    Gone(Option<Why>),
    Halted,
    Resumed,
    Refused(Refusal),
}

/// Why a command has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the host is halted")]
    Halted,
    #[error("the lease's name has been used")]
    Exists,
    #[error("{LEASES_MAX} faults live on the host already")]
    TooMany,
    #[error("the command is older than those that are remembered")]
    Stale,
    #[error("the command's number is another command's")]
    NumberReused,
}

impl Refusal {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Halted => "resume first, with a reason",
            Self::Exists => "every fault has a name of its own",
            Self::TooMany => "end some, or wait until they lapse",
            Self::Stale | Self::NumberReused => "ask again with a new number",
        }
    }
}

/// An answer, and what must be done. Also a command without effect may find leases that have lapsed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    pub answer: Answer,
    pub effects: Vec<Effect>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    until: Moment,
    /// `until` is never after it.
    life_ends: Moment,
}

impl Lease {
    fn end(&self, now: Moment) -> Option<Why> {
        let why = if self.until == self.life_ends { Why::LifeOver } else { Why::Lapsed };
        (self.until <= now).then_some(why)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    now: Moment,
    leases: BTreeMap<LeaseId, Lease>,
    ended: VecDeque<(LeaseId, Why)>,
    halts: BTreeSet<Halter>,
    answers: Answers,
}

impl Table {
    /// A table without leases, as after every start of the agent: what lived before it is healed.
    ///
    /// `used`: the highest number of a command that an agent on this host ever carried out, so that a restart forgets no
    /// replay. `halts`: who had halted.
    pub fn new(used: CommandNumber, halts: BTreeSet<Halter>, now: Moment) -> Self {
        let answers = Answers::after(used);
        Self { now, leases: BTreeMap::new(), ended: VecDeque::new(), halts, answers }
    }

    /// Carries a command out, unless it came before.
    pub fn handle(&mut self, number: CommandNumber, command: Command, now: Moment) -> Outcome {
        let mut effects = self.expire(now);
        if let Some(answer) = self.answers.known(number, &command) {
            return Outcome { answer, effects };
        }
        let (answer, more) = match &command {
            Command::Grant { lease, ttl, life } => self.grant(lease, *ttl, *life),
            Command::Renew { lease, ttl } => (self.renew(lease, *ttl), Vec::new()),
            Command::End { lease } => self.end(lease),
            Command::Halt => (Answer::Halted, self.heal_all(Halter::ControlPlane)),
            Command::Resume => {
                self.halts.remove(&Halter::ControlPlane);
                (Answer::Resumed, Vec::new())
            }
        };
        effects.extend(more);
        self.answers.remember(number, command, answer.clone());
        Outcome { answer, effects }
    }

    /// Heals what has lapsed or had its life. To be called at [`Table::next_deadline`].
    pub fn expire(&mut self, now: Moment) -> Vec<Effect> {
        self.now = self.now.max(now);
        let over: Vec<(LeaseId, Why)> =
            self.leases.iter().filter_map(|(id, lease)| Some((id.clone(), lease.end(self.now)?))).collect();
        over.iter().filter_map(|(id, why)| self.heal(id, *why)).collect()
    }

    /// The first moment at which a fault must be healed.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.leases.values().map(|lease| lease.until).min()
    }

    /// Until when a lease lives, unless it is renewed or ended. `None`: it lives no more.
    pub fn until(&self, lease: &LeaseId) -> Option<Moment> {
        self.leases.get(lease).map(|lease| lease.until)
    }

    /// Ends every lease, and lets none begin until the same one resumes.
    pub fn halt(&mut self, halter: Halter, now: Moment) -> Vec<Effect> {
        let mut effects = self.expire(now);
        effects.extend(self.heal_all(halter));
        effects
    }

    /// Takes a halt back. The other one's stays.
    pub fn resume(&mut self, halter: Halter) {
        self.halts.remove(&halter);
    }

    /// Ends a lease because the host cannot keep its fault up. `None` when it lives no more.
    pub fn give_up(&mut self, lease: &LeaseId) -> Option<Effect> {
        self.heal(lease, Why::GivenUp)
    }

    /// Who has halted; to be kept over a restart.
    pub fn halts(&self) -> &BTreeSet<Halter> {
        &self.halts
    }

    /// The highest number used; to be kept over a restart, before the effects of its command are carried out.
    pub fn highest_number(&self) -> CommandNumber {
        self.answers.highest()
    }

    /// Which faults live.
    pub fn alive(&self) -> impl Iterator<Item = &LeaseId> {
        self.leases.keys()
    }

    fn grant(&mut self, id: &LeaseId, ttl: Ttl, life: Life) -> (Answer, Vec<Effect>) {
        let refused = |refusal| (Answer::Refused(refusal), Vec::new());
        if !self.halts.is_empty() {
            return refused(Refusal::Halted);
        }
        if self.leases.contains_key(id) || self.end_of(id).is_some() {
            return refused(Refusal::Exists);
        }
        if self.leases.len() >= LEASES_MAX {
            return refused(Refusal::TooMany);
        }
        let life_ends = self.now.after(life.get());
        let until = self.now.after(ttl.get()).min(life_ends);
        self.leases.insert(id.clone(), Lease { until, life_ends });
        (Answer::Granted, vec![Effect::Apply { lease: id.clone() }])
    }

    /// A renewal counts from now and can shorten a lease too: the last word holds.
    fn renew(&mut self, id: &LeaseId, ttl: Ttl) -> Answer {
        let now = self.now;
        match self.leases.get_mut(id) {
            Some(lease) => {
                lease.until = now.after(ttl.get()).min(lease.life_ends);
                Answer::Renewed
            }
            None => Answer::Gone(self.end_of(id)),
        }
    }

    /// Ends a lease. One that is not known counts as used up all the same: its grant may still be on its way.
    fn end(&mut self, id: &LeaseId) -> (Answer, Vec<Effect>) {
        let effect = self.heal(id, Why::Ended);
        let answer = Answer::Gone(self.end_of(id));
        if answer == Answer::Gone(None) {
            self.note_end(id, Why::Ended);
        }
        (answer, effect.into_iter().collect())
    }

    fn heal(&mut self, id: &LeaseId, why: Why) -> Option<Effect> {
        self.leases.remove(id)?;
        self.note_end(id, why);
        Some(Effect::Heal { lease: id.clone(), why })
    }

    fn note_end(&mut self, id: &LeaseId, why: Why) {
        self.ended.push_back((id.clone(), why));
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_front();
        }
    }

    fn heal_all(&mut self, halter: Halter) -> Vec<Effect> {
        self.halts.insert(halter);
        let ids: Vec<LeaseId> = self.leases.keys().cloned().collect();
        ids.iter().filter_map(|id| self.heal(id, Why::Halted)).collect()
    }

    fn end_of(&self, id: &LeaseId) -> Option<Why> {
        self.ended.iter().find(|(ended, _)| ended == id).map(|(_, why)| *why)
    }
}
