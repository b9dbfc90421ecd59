//! What befalls a host, its agent or its control plane, and when.

use std::fmt;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};
use troop_policies::fault::Direction;

use crate::control::Asked;
use crate::probe::TARGETED;
use crate::world::ms;

pub(crate) const TTL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// SIGKILL.
    Agent,
    /// SIGKILL, and a little later the agent's; at once where the plane needs no guardian.
    Guardian,
    /// SIGKILL to both; the agent's only where the plane needs no guardian.
    Both,
    /// SIGKILL.
    ControlPlane,
    /// The control plane says nothing any more, and its connection stays.
    Connection,
    /// SIGSTOP of the agent and its guardian, and SIGCONT later.
    Host,
    HaltFile,
    /// `troop-agent heal` while the agent runs.
    HandHeal,
    /// SIGTERM.
    Term,
}

impl Cause {
    pub(crate) const ALL: [Self; 9] = [
        Self::Agent,
        Self::Guardian,
        Self::Both,
        Self::ControlPlane,
        Self::Connection,
        Self::Host,
        Self::HaltFile,
        Self::HandHeal,
        Self::Term,
    ];
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent killed",
            Self::Guardian => "guardian killed",
            Self::Both => "both killed",
            Self::ControlPlane => "control plane killed",
            Self::Connection => "connection cut",
            Self::Host => "host frozen, thawed",
            Self::HaltFile => "halt file made",
            Self::HandHeal => "healed by hand",
            Self::Term => "SIGTERM",
        })
    }
}

/// How far the fault is when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    BeforeGrant,
    Baseline,
    Applying,
    Up,
    Healing,
}

/// A trial, as its seed has it.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    pub(crate) cause: Cause,
    pub(crate) phase: Phase,
    /// Since the phase began.
    pub(crate) after: Duration,
    pub(crate) asked: Asked,
    /// Between a guardian's death and its agent's.
    pub(crate) between: Duration,
    /// For how long a host stands still: longer than the lease, so that it has lapsed.
    pub(crate) frozen: Duration,
    /// Whether a dead agent is started anew; otherwise `troop-agent heal` is run.
    pub(crate) restarts: bool,
}

impl Drawn {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |end: u64| random.next_u64() % end;
        // By turns, so that twenty in a row have each at least twice.
        let cause = Cause::ALL[usize::try_from(seed % 9).unwrap()];
        let phase = match below(8) {
            0 => Phase::BeforeGrant,
            1 => Phase::Baseline,
            2 => Phase::Applying,
            3 => Phase::Healing,
            _ => Phase::Up,
        };
        let after = match phase {
            Phase::BeforeGrant | Phase::Baseline | Phase::Healing => 150,
            Phase::Applying => 400,
            Phase::Up => 1_500,
        };
        let after = Duration::from_micros(below(after * 1_000));
        let direction = [Direction::Egress, Direction::Ingress, Direction::Both][usize::try_from(below(3)).unwrap()];
        let asked = Asked { delay: ms(100 + below(200)), direction, port: TARGETED, ttl: TTL };
        Self {
            cause,
            phase,
            after,
            asked,
            between: ms(below(400)),
            frozen: ms(1_050 + below(1_950)),
            restarts: below(2) == 0,
        }
    }
}
