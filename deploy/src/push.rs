//! One push as it is saved in the ledger: everything a restarted control plane needs to go on.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use troop_policies::intent::Intent;
use troop_policies::step::{NewGroup, Size};
use troop_policies::{AccountName, ClusterName, GroupName, ImageId, Location, RegionName};

/// The version of [`Push`]'s JSON form.
pub const PUSH_SCHEMA: u32 = 1;

/// One deployment in one region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Push {
    pub schema: u32,
    pub account: AccountName,
    pub region: RegionName,
    pub cluster: ClusterName,
    pub actor: String,
    pub image: ImageId,
    pub version: Option<String>,
    /// The group that is made.
    pub new: NewGroup,
    /// The group that served when the push began, and its size then; none at a cluster's first push.
    pub previous: Option<Previous>,
    /// How many instances the new group must have.
    pub size: u32,
    /// How many served when the push began: the floor of every step (invariant I1).
    pub floor: u32,
    pub settings: Settings,
    pub started_at: Timestamp,
    pub phase: Phase,
    pub phase_since: Timestamp,
    /// The intent that is recorded and not settled yet.
    pub in_flight: Option<Intent>,
    /// Which step of the phase's script comes next.
    pub index: usize,
    /// How often the present step was tried without being done.
    pub attempts: u32,
    pub retry_at: Option<Timestamp>,
    /// Set while a halt holds a push that has not flipped; its deadlines stand still meanwhile.
    pub held_since: Option<Timestamp>,
    /// The fence of the cluster's lock, while this push holds it.
    pub fence: Option<i64>,
    pub ready_at: Option<Timestamp>,
    pub flipped_at: Option<Timestamp>,
    pub flip_ms: Option<f64>,
    /// When this push last took a group's entries or targets out: from then on its clients drain (invariant I5).
    #[serde(default)]
    pub taken_out_at: Option<Timestamp>,
    /// The soak ended well.
    pub soaked: bool,
    /// Why it goes back, was cancelled, or is stuck.
    pub because: Option<String>,
    pub result: Option<PushResult>,
    /// For people: what it waits for, or what came last.
    pub note: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub group: GroupName,
    pub size: Size,
}

/// What the person who deployed may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub ready_within: Duration,
    pub soak: Duration,
    pub watch: Duration,
    /// Percent of the new group's answers that may be errors.
    pub errors_above: u32,
    pub drain: Duration,
    /// How long a group that failed is kept before it is reaped (invariant I21).
    pub keep_failed: Duration,
}

impl Default for Settings {
    /// Boots take minutes on a real cloud; half a workday of soak would hold the lock too long, so five minutes; the
    /// watch covers a night; drains as Eureka's clients need to refetch (30 s); 5 % as the judges in the field.
    fn default() -> Self {
        Self {
            ready_within: Duration::from_secs(600),
            soak: Duration::from_secs(300),
            watch: Duration::from_secs(12 * 3_600),
            errors_above: 5,
            drain: Duration::from_secs(30),
            keep_failed: Duration::from_secs(24 * 3_600),
        }
    }
}

/// Where a push is. Phases before [`Phase::Disable`] have not moved any traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Pin the old group, make the new one, grow it.
    Create,
    /// Wait until every check of [`crate::ready`] passes.
    Ready {
        deadline: Timestamp,
    },
    Flip,
    /// Take the old group out of the registry and of new connections. It stays warm.
    Disable,
    /// Judged, holding the cluster's lock.
    Soak {
        until: Timestamp,
    },
    /// Judged, without the lock. The old group is pinned and is the way back.
    Watch {
        until: Timestamp,
    },
    /// The old group goes; takes the lock.
    Destroy,
    /// Bring the old group back before traffic moves; holds the lock, as all of the way back.
    BackEnable,
    BackReady {
        deadline: Timestamp,
    },
    BackFlip,
    BackDisable,
    /// Not flipped and given up: the new group is disabled, no traffic moves.
    Cancel,
    /// Over for people; the group that failed is kept until then.
    Keep {
        until: Timestamp,
    },
    Reap,
    /// It could not go back: the new group keeps serving, and a person decides (`troop rollback` tries again).
    Stuck,
    Ended,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Ready { .. } => "ready",
            Self::Flip => "flip",
            Self::Disable => "disable old",
            Self::Soak { .. } => "soak",
            Self::Watch { .. } => "watch",
            Self::Destroy => "destroy old",
            Self::BackEnable => "back: enable",
            Self::BackReady { .. } => "back: ready",
            Self::BackFlip => "back: flip",
            Self::BackDisable => "back: disable",
            Self::Cancel => "cancel",
            Self::Keep { .. } => "kept",
            Self::Reap => "reap",
            Self::Stuck => "stuck",
            Self::Ended => "ended",
        }
    }

    /// Whether no traffic has been moved, nor asked to, when the push is in this phase and no intent is in flight.
    pub fn is_before_flip(self) -> bool {
        matches!(self, Self::Create | Self::Ready { .. } | Self::Flip)
    }

    /// Until when it is watched, while it is.
    pub fn watched_until(self) -> Option<Timestamp> {
        if let Self::Watch { until } = self { Some(until) } else { None }
    }

    pub fn is_going_back(self) -> bool {
        matches!(self, Self::BackEnable | Self::BackReady { .. } | Self::BackFlip | Self::BackDisable)
    }
}

/// How a push ended, for people. The machine may still have a group to keep and reap after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushResult {
    Succeeded,
    /// A newer push flipped and soaked.
    Superseded,
    RolledBack,
    /// Given up before the flip: no traffic moved.
    Cancelled,
    /// Judged bad with nothing to go back to: the new group keeps serving.
    KeptServing,
}

impl PushResult {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Superseded => "superseded",
            Self::RolledBack => "rolled_back",
            Self::Cancelled => "cancelled",
            Self::KeptServing => "kept_serving",
        }
    }
}

impl Push {
    /// Where its cluster is.
    pub fn location(&self) -> Location {
        Location { account: self.account.clone(), region: self.region.clone() }
    }

    pub fn group(&self) -> &GroupName {
        &self.new.name
    }

    pub fn previous_group(&self) -> Option<&GroupName> {
        self.previous.as_ref().map(|p| &p.group)
    }

    /// Whether traffic was asked to move to the new group, whatever became of it.
    pub fn flip_was_asked(&self) -> bool {
        self.flipped_at.is_some() || (self.phase == Phase::Flip && (self.in_flight.is_some() || self.attempts > 0))
    }

    /// Whether traffic is with the new group because of this push, as far as the push knows.
    pub fn is_serving(&self) -> bool {
        self.flipped_at.is_some() && self.result.is_none() && !matches!(self.phase, Phase::BackDisable)
    }

    /// Moves to another phase.
    #[must_use]
    pub fn into_phase(self, phase: Phase, now: Timestamp, note: impl Into<String>) -> Self {
        let note = note.into();
        Self { phase, phase_since: now, index: 0, attempts: 0, retry_at: None, note, ..self }
    }

    /// `for` this long after `now`.
    pub(crate) fn after(now: Timestamp, wait: Duration) -> Timestamp {
        SignedDuration::try_from(wait).ok().and_then(|w| now.checked_add(w).ok()).unwrap_or(Timestamp::MAX)
    }
}
