//! What Troop writes into the ledger. The ledger keeps kind, version and JSON; the meaning is here.

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::policy::Recipient;
use troop_policies::spared::Gate;
use troop_policies::{ClusterName, GroupName, InstanceId, IntentId, TeamName, ZoneName};

/// The version written with every event of this build.
pub const RECORD_VERSION: u32 = 1;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record")]
pub enum Record {
    PlanMade {
        day: Date,
        team: TeamName,
        chosen: u32,
        spared: u32,
        late: bool,
    },
    /// Scopes that appeared or opted in after the plan was made.
    PlanJoined {
        day: Date,
        team: TeamName,
        draw_keys: Vec<String>,
    },
    DayKeyPublished {
        day: Date,
        team: TeamName,
    },
    /// Written in the transaction that checked guard and fence, before the act.
    Intended {
        intent: Intent,
        zone: Option<ZoneName>,
    },
    Settled {
        intent: Intent,
        outcome: Outcome,
    },
    Healed {
        intent: IntentId,
        draw_key: String,
        group: GroupName,
        instance: InstanceId,
        seconds: f64,
    },
    NotHealed {
        intent: IntentId,
        draw_key: String,
        group: GroupName,
        instance: InstanceId,
        after_seconds: f64,
        why: String,
    },
    /// A fault on an instance's network is over; `story` is what its host measured, where it told.
    FaultEnded {
        intent: IntentId,
        draw_key: String,
        group: GroupName,
        instance: InstanceId,
        how: String,
        story: Option<Box<troop_agent_core::protocol::Story>>,
    },
    /// An entry of the plan, drawn or a drill's, or a kill on demand, that a gate spared at the act.
    SparedAtAct {
        team: TeamName,
        draw_key: String,
        monkey: String,
        day: Date,
        gate: Gate,
        why: String,
        demand: bool,
    },
    /// Every gate but the leash was passed: this is what would have been killed.
    WouldHave {
        team: TeamName,
        draw_key: String,
        monkey: String,
        day: Date,
        victim: Option<InstanceId>,
        eligible: u32,
        leashed_by: String,
    },
    Halted {
        who: String,
        why: String,
    },
    Resumed {
        who: String,
        why: String,
    },
    Cleared {
        draw_key: String,
        who: String,
        why: String,
    },
    PolicyTaken {
        file: String,
        team: TeamName,
    },
    PolicyBad {
        file: String,
        team: Option<TeamName>,
        why: String,
    },
    PushStarted {
        push: u64,
        cluster: ClusterName,
        group: GroupName,
        actor: String,
        image: String,
    },
    PushMoved {
        push: u64,
        cluster: ClusterName,
        phase: String,
        note: String,
    },
    PushEnded {
        push: u64,
        cluster: ClusterName,
        result: String,
        note: String,
    },
    RollbackRequested {
        push: Option<u64>,
        cluster: ClusterName,
        actor: String,
        reason: String,
    },
    /// The same smaller picture in three reads over ten minutes became the good one.
    SmallerInventoryAccepted {
        from: usize,
        to: usize,
    },
    ClockJumped {
        by_ms: i64,
    },
    /// A notice that was given up: of `event`, to `recipient`.
    NoticeFailed {
        team: TeamName,
        /// As the policy writes it.
        recipient: String,
        event: i64,
        /// The event's own kind, and its scope where it has one.
        of: String,
        draw_key: Option<String>,
        why: String,
    },
    /// Marks of another ledger, accepted by a person: `GROUP MARK`.
    Adopted {
        who: String,
        why: String,
        marks: Vec<String>,
    },
}

impl Record {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PlanMade { .. } => "plan_made",
            Self::PlanJoined { .. } => "plan_joined",
            Self::DayKeyPublished { .. } => "day_key_published",
            Self::Intended { .. } => "intended",
            Self::Settled { .. } => "settled",
            Self::Healed { .. } => "healed",
            Self::NotHealed { .. } => "not_healed",
            Self::FaultEnded { .. } => "fault_ended",
            Self::SparedAtAct { .. } => "spared_at_act",
            Self::WouldHave { .. } => "would_have",
            Self::Halted { .. } => "halted",
            Self::Resumed { .. } => "resumed",
            Self::Cleared { .. } => "cleared",
            Self::PolicyTaken { .. } => "policy_taken",
            Self::PolicyBad { .. } => "policy_bad",
            Self::PushStarted { .. } => "push_started",
            Self::PushMoved { .. } => "push_moved",
            Self::PushEnded { .. } => "push_ended",
            Self::RollbackRequested { .. } => "rollback_requested",
            Self::SmallerInventoryAccepted { .. } => "smaller_inventory_accepted",
            Self::ClockJumped { .. } => "clock_jumped",
            Self::NoticeFailed { .. } => "notice_failed",
            Self::Adopted { .. } => "adopted",
        }
    }

    /// The scope or cluster the event is filed under.
    pub fn key(&self) -> Option<String> {
        match self {
            Self::Intended { intent, .. } | Self::Settled { intent, .. } => Some(intent_key(intent)),
            Self::Healed { draw_key, .. }
            | Self::NotHealed { draw_key, .. }
            | Self::FaultEnded { draw_key, .. }
            | Self::SparedAtAct { draw_key, .. }
            | Self::WouldHave { draw_key, .. }
            | Self::Cleared { draw_key, .. } => Some(draw_key.clone()),
            Self::NoticeFailed { draw_key, .. } => draw_key.clone(),
            Self::PushStarted { cluster, .. }
            | Self::PushMoved { cluster, .. }
            | Self::PushEnded { cluster, .. }
            | Self::RollbackRequested { cluster, .. } => Some(cluster.to_string()),
            Self::PlanMade { .. }
            | Self::PlanJoined { .. }
            | Self::DayKeyPublished { .. }
            | Self::Halted { .. }
            | Self::Resumed { .. }
            | Self::PolicyTaken { .. }
            | Self::PolicyBad { .. }
            | Self::SmallerInventoryAccepted { .. }
            | Self::ClockJumped { .. }
            | Self::Adopted { .. } => None,
        }
    }

    pub fn team(&self) -> Option<&TeamName> {
        match self {
            Self::PlanMade { team, .. }
            | Self::PlanJoined { team, .. }
            | Self::DayKeyPublished { team, .. }
            | Self::SparedAtAct { team, .. }
            | Self::WouldHave { team, .. }
            | Self::NoticeFailed { team, .. }
            | Self::PolicyTaken { team, .. } => Some(team),
            Self::PolicyBad { team, .. } => team.as_ref(),
            Self::Intended { intent, .. } | Self::Settled { intent, .. } => intent.cause.team(),
            Self::Healed { .. }
            | Self::NotHealed { .. }
            | Self::FaultEnded { .. }
            | Self::Halted { .. }
            | Self::Resumed { .. }
            | Self::Cleared { .. }
            | Self::PushStarted { .. }
            | Self::PushMoved { .. }
            | Self::PushEnded { .. }
            | Self::RollbackRequested { .. }
            | Self::SmallerInventoryAccepted { .. }
            | Self::ClockJumped { .. }
            | Self::Adopted { .. } => None,
        }
    }
}

/// What an intent counts for: a kill's scope by its draw key, everything else by its cluster.
pub fn intent_key(intent: &Intent) -> String {
    intent.cause.draw_key().map_or_else(|| intent.step.cluster().to_string(), str::to_owned)
}

/// The body of an intent's row in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentBody {
    pub intent: Intent,
    pub zone: Option<ZoneName>,
}

/// Mark of kind [`MARK_HEALING`], keyed by intent id: a kill whose group is not whole again yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HealingBody {
    pub intent: Intent,
    pub zone: Option<ZoneName>,
    pub killed_at: Timestamp,
    /// Real time; later than that it has not healed.
    pub deadline: Timestamp,
}

pub const MARK_HEALING: &str = "healing";
/// Mark keyed by the text of another ledger's mark on a group, which a person has accepted; body: null.
pub const MARK_ADOPTED: &str = "adopted";
/// Mark keyed by draw key, body [`troop_policies::situation::UnhealedMark`].
pub const MARK_UNHEALED: &str = "unhealed";
/// Mark keyed by [`notices_key`], body [`NoticesBody`].
pub const MARK_NOTICES: &str = "notices";

/// The key of a recipient's mark. Names of teams hold no space.
pub fn notices_key(team: &TeamName, recipient: &Recipient) -> String {
    format!("{team} {recipient}")
}

/// How far a recipient of a team has been told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticesBody {
    /// The newest event that is settled for it: told and taken, given up, or nothing to be told.
    pub cursor: i64,
    /// The newest days whose plan was told and taken.
    pub plans_told: Vec<Date>,
    /// Set from a notice that was not taken until one is.
    pub failing: Option<NoticesFailing>,
    /// When a notice was taken last, in real time.
    #[serde(default)]
    pub taken_at: Option<Timestamp>,
}

/// See [`NoticesBody::failing`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticesFailing {
    /// Real time.
    pub since: Timestamp,
    pub why: String,
}

impl std::fmt::Display for NoticesFailing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, since {}", self.why, self.since.strftime("%Y-%m-%d %H:%M:%SZ"))
    }
}
/// Request rows of kind `rollback`, keyed by cluster, body [`RollbackBody`].
pub const REQUEST_ROLLBACK: &str = "rollback";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackBody {
    pub cluster: ClusterName,
    /// The push that goes back.
    pub push: u64,
    pub actor: String,
    pub reason: String,
    /// Why it was closed, once it was.
    pub closed: Option<String>,
}
