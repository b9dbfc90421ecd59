//! Why something was left alone, in words an operator reads as they stand.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{AccountName, InstanceId, ZoneName};
use crate::names::GroupName;

/// The gates, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    Policy,
    Leash,
    Halt,
    Clock,
    Ledger,
    Inventory,
    Hold,
    Window,
    Push,
    History,
    Caps,
    Group,
    Floor,
    Instance,
}

impl Gate {
    pub const ALL: [Self; 14] = [
        Self::Policy,
        Self::Leash,
        Self::Halt,
        Self::Clock,
        Self::Ledger,
        Self::Inventory,
        Self::Hold,
        Self::Window,
        Self::Push,
        Self::History,
        Self::Caps,
        Self::Group,
        Self::Floor,
        Self::Instance,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Leash => "leash",
            Self::Halt => "halt",
            Self::Clock => "clock",
            Self::Ledger => "ledger",
            Self::Inventory => "inventory",
            Self::Hold => "hold",
            Self::Window => "window",
            Self::Push => "push",
            Self::History => "history",
            Self::Caps => "caps",
            Self::Group => "group",
            Self::Floor => "floor",
            Self::Instance => "instance",
        }
    }
}

/// Why something was spared. One variant a reason, so that tests can tell them apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Spared {
    #[error("the policy cannot be used: {why}")]
    NoPolicy { why: String },
    #[error("no policy of team `{team}` names {what}")]
    NotNamed { team: String, what: String },
    #[error("no group of `{what}` carries the tag `troop:team` = `{team}`")]
    NotTheirs { what: String, team: String },
    #[error("{why}")]
    Exempt { why: String },
    #[error("leashed ({by}): it would only be noted")]
    Leashed { by: &'static str },
    #[error("unleashed by the site file, but not ready: {missing}; it would only be noted")]
    NotReady { missing: String },
    #[error("halted since {since} by {who}: {why}")]
    Halted { who: String, since: String, why: String },
    #[error("{what} cannot be known: {why}")]
    Unknown { what: &'static str, why: String },
    #[error("the clock cannot be trusted: {why}")]
    Clock { why: String },
    #[error(
        "`{group}` carries mark {mark}, which this ledger does not hold; `troop ledger adopt --reason …` ends this"
    )]
    ForeignMark { group: GroupName, mark: String },
    #[error("the inventory of `{account}` is {age_s} s old; {limit_s} s is the limit")]
    StaleInventory { account: AccountName, age_s: i64, limit_s: i64 },
    #[error(
        "the inventory shrank from {from} to {to} instances at once; three such reads over ten minutes make it the good one"
    )]
    Shrunk { from: usize, to: usize },
    #[error("hold signal `{signal}`: {what}")]
    Held { signal: String, what: String },
    #[error("hold signal `{signal}` cannot be asked: {why}")]
    HoldNotAsked { signal: String, why: String },
    #[error("`no_notice` of team `{team}` spares: {why}")]
    NoNotice { team: String, why: String },
    #[error("{why}")]
    WindowShut { why: String, opens: Option<Timestamp> },
    #[error("{holder} holds `{cluster}`")]
    PushInFlight { cluster: String, holder: String },
    #[error("{why}")]
    NotServing { why: String },
    #[error("the last kill was {workdays} workdays ago; {min} is the minimum")]
    TooSoon { workdays: u32, min: u32 },
    #[error("already drawn today: one drawn kill a scope and day")]
    DrawnToday,
    #[error("`{entry}` was carried out today already")]
    DrilledToday { entry: String },
    #[error("the last kill, of {what}, has not healed yet")]
    StillHealing { what: String },
    #[error("unhealed since {since}: {why}; `troop clear {draw_key} --reason …` ends this")]
    Unhealed { draw_key: String, since: String, why: String },
    #[error("{kills} kills today; {cap} a day is the cap of {whose}")]
    DayCap { kills: u32, cap: u32, whose: String },
    #[error("{open} acts of team `{team}` have not healed; {cap} at once is its cap")]
    UnhealedCap { open: u32, cap: u32, team: String },
    #[error("{acts} acts in the last hour; {cap} is the site's cap")]
    HourCap { acts: u32, cap: u32 },
    #[error("{open} unhealed acts in account {account}; {cap} is the site's cap")]
    AccountCap { account: AccountName, open: u32, cap: u32 },
    #[error("{open} unhealed acts in zone {zone}; {cap} is the site's cap")]
    ZoneCap { zone: ZoneName, open: u32, cap: u32 },
    #[error("`{group}` is not whole: {why}")]
    NotWhole { group: GroupName, why: String },
    #[error("`{group}` is uneven over its zones: {spread}")]
    Uneven { group: GroupName, spread: String },
    #[error("the cloud holds `{group}`: {why}")]
    HeldByCloud { group: GroupName, why: String },
    #[error("a launch of `{group}` failed {minutes} minutes ago; an hour must pass")]
    FailedLaunch { group: GroupName, minutes: i64 },
    #[error("`{group}` has {serving} serving, {open} of them already being ended, and must keep {floor}")]
    AtFloor { group: GroupName, serving: u32, open: u32, floor: u32 },
    #[error("no instance of `{group}` may be hurt: {why}")]
    NoInstance { group: GroupName, why: String },
    #[error("`{instance}` may not be hurt: {why}")]
    ThisInstance { instance: InstanceId, why: String },
    #[error("the policy does not allow it: {why}")]
    NotOnMenu { why: String },
}

impl Spared {
    /// The gate that spares for this reason.
    pub fn gate(&self) -> Gate {
        match self {
            Self::NoPolicy { .. }
            | Self::NotNamed { .. }
            | Self::NotTheirs { .. }
            | Self::Exempt { .. }
            | Self::NotOnMenu { .. } => Gate::Policy,
            Self::Leashed { .. } | Self::NotReady { .. } => Gate::Leash,
            Self::Halted { .. } => Gate::Halt,
            Self::Clock { .. } => Gate::Clock,
            Self::ForeignMark { .. } => Gate::Ledger,
            Self::StaleInventory { .. } | Self::Shrunk { .. } => Gate::Inventory,
            Self::Held { .. } | Self::HoldNotAsked { .. } | Self::NoNotice { .. } => Gate::Hold,
            Self::WindowShut { .. } => Gate::Window,
            Self::PushInFlight { .. } | Self::NotServing { .. } => Gate::Push,
            Self::TooSoon { .. }
            | Self::DrawnToday
            | Self::DrilledToday { .. }
            | Self::StillHealing { .. }
            | Self::Unhealed { .. } => Gate::History,
            Self::DayCap { .. }
            | Self::HourCap { .. }
            | Self::UnhealedCap { .. }
            | Self::AccountCap { .. }
            | Self::ZoneCap { .. } => Gate::Caps,
            Self::NotWhole { .. } | Self::Uneven { .. } | Self::HeldByCloud { .. } | Self::FailedLaunch { .. } => {
                Gate::Group
            }
            Self::AtFloor { .. } => Gate::Floor,
            Self::NoInstance { .. } | Self::ThisInstance { .. } => Gate::Instance,
            Self::Unknown { what, .. } => match *what {
                "the leash" => Gate::Leash,
                "the halt state" => Gate::Halt,
                "the ledger" => Gate::Ledger,
                "the window" => Gate::Window,
                "the locks" => Gate::Push,
                "the history" => Gate::History,
                "the caps" => Gate::Caps,
                "the notices" => Gate::Hold,
                "the registry" => Gate::Group,
                _ => Gate::Inventory,
            },
        }
    }
}
