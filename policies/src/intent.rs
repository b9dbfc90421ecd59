//! The record written before an act, and the answer recorded after it.

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::ids::{AccountName, IntentId, Location, RegionName, TeamName};
use crate::step::Step;

/// What is about to be done, where, and because of what. On disk before the call goes out; its id is the client token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    pub id: IntentId,
    pub account: AccountName,
    pub region: RegionName,
    pub step: Step,
    pub cause: Cause,
    /// On the scheduler's calendar, as everything the ledger calls `at`.
    pub at: Timestamp,
}

impl Intent {
    /// Where it is to be done.
    pub fn location(&self) -> Location {
        Location { account: self.account.clone(), region: self.region.clone() }
    }
}

/// Why something is done. Operators read it in `history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Cause {
    /// A monkey's draw: it fell on `day` for the scope `draw_key`.
    Draw { team: TeamName, draw_key: String, monkey: String, day: Date },
    /// A drill: the line's minute came. `monkey` is the name of the plan's entry, such as `drill:chaos@10:30`.
    Drill { team: TeamName, draw_key: String, monkey: String, day: Date },
    /// A person asked for it.
    Demand { team: TeamName, draw_key: String, monkey: String, actor: String, reason: String, outside_window: bool },
    /// A step of a push, or of its rollback.
    Push { push: u64, actor: String },
    /// Upkeep that only restores: an entry of an instance that is gone, a group of a push that was given up.
    Upkeep { reason: String },
}

impl Cause {
    /// The scope that a kill of this cause counts for.
    pub fn draw_key(&self) -> Option<&str> {
        match self {
            Self::Draw { draw_key, .. } | Self::Drill { draw_key, .. } | Self::Demand { draw_key, .. } => {
                Some(draw_key)
            }
            Self::Push { .. } | Self::Upkeep { .. } => None,
        }
    }

    pub fn team(&self) -> Option<&TeamName> {
        match self {
            Self::Draw { team, .. } | Self::Drill { team, .. } | Self::Demand { team, .. } => Some(team),
            Self::Push { .. } | Self::Upkeep { .. } => None,
        }
    }
}

/// What became of an act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It took effect; `detail` is what the cloud said, for people.
    Done { detail: String },
    /// It did not take effect and will not: the other side said no.
    Refused { why: String },
    /// Nobody can say. It is never repeated; only `resolve` may turn it into one of the other two.
    Unknown { why: String },
}

impl Outcome {
    pub fn done(detail: impl Into<String>) -> Self {
        Self::Done { detail: detail.into() }
    }

    pub fn refused(why: impl Into<String>) -> Self {
        Self::Refused { why: why.into() }
    }

    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }

    /// Whether it must be counted as if it had happened: done, or nobody can say.
    pub fn may_have_happened(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}
