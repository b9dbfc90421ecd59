//! Everything the gates ask, read at one moment. A field that could not be read says so, and spares.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::ids::{InstanceId, Location, TeamName, ZoneName};
use crate::inventory::Inventory;
use crate::names::{ClusterName, GroupName};
use crate::policy::{Policy, Recipient, SiteCaps};
use crate::registry_view::RegistryView;

/// A reading, or why there is none.
pub type Reading<T> = Result<T, String>;

#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Real time, for ages and health. The scheduler's calendar comes in through `window` and `history` alone.
    pub now: Timestamp,
    pub policy: Reading<&'a Policy>,
    pub site_leash: Reading<SiteLeash>,
    pub site_caps: SiteCaps,
    /// Hold signals of the whole site, beside those of the app.
    pub site_hold_while: Vec<String>,
    /// The site file's channels, by name. A recipient on another one can never be told.
    pub site_channels: BTreeSet<String>,
    /// What the signals said, by their text. One that is not here was not asked, which spares.
    pub holds: HoldsSeen,
    pub halt: Reading<Option<Halted>>,
    pub clock: Reading<()>,
    pub inventories: Vec<InventorySeen<'a>>,
    pub registry: Reading<&'a RegistryView>,
    pub window: Reading<WindowSeen>,
    pub ledger: Reading<LedgerSeen>,
}

/// For each hold signal what fires, or `None` where it is quiet.
pub type HoldsSeen = BTreeMap<String, Reading<Option<String>>>;

/// Who halted everything, when and why: the content of STATE/halt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halted {
    pub who: String,
    pub at: Timestamp,
    pub why: String,
}

/// One region as last read, with the reader's memory of what it held before.
#[derive(Debug, Clone)]
pub struct InventorySeen<'a> {
    pub inventory: Reading<&'a Inventory>,
    /// Set while the picture is implausibly smaller than the last good one.
    pub shrunk: Option<Shrunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shrunk {
    pub from: usize,
    pub to: usize,
}

/// What the calendar says about now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowSeen {
    Open { day: Date, shuts: Timestamp, shuts_in: String, next_holiday: Option<String> },
    Shut { why: String, opens: Option<Timestamp> },
}

/// What the ledger says that concerns one scope, read in one go; read again inside the intent's transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LedgerSeen {
    /// For each group that carries a mark: whether the ledger holds the event it names.
    pub marks: BTreeMap<(Location, GroupName), MarkSeen>,
    /// Who holds which cluster's lock.
    pub locks: BTreeMap<(Location, ClusterName), String>,
    pub history: ScopeHistory,
    /// Kills today, on the calendar of the policy's zone, of the team and of the site.
    pub team_kills_today: u32,
    pub site_kills_today: u32,
    /// Acts of all monkeys in the hour before now, of all teams.
    pub site_acts_last_hour: u32,
    /// Acts that have not healed: open intents, and kills whose group is not whole yet.
    pub unhealed: Vec<OpenAct>,
    /// How each recipient of the team stands, where the policy wants nothing to happen while it is not told. One that is not
    /// here was not looked up, which spares.
    pub notices: BTreeMap<Recipient, Reading<NoticesSeen>>,
}

/// The site's leash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteLeash {
    On,
    Off,
    /// The site file says that it is off, but what a site needs before it may harm anybody is not there.
    NotYet {
        missing: String,
    },
}

/// How it stands with one recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoticesSeen {
    /// Whether the plan of the day asked about was told, and taken.
    pub plan_told: bool,
    /// Why the last notice was not taken, while none after it was.
    pub failing: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkSeen {
    pub mark: String,
    pub known: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScopeHistory {
    pub last_kill: Option<LastKill>,
    /// Set by a kill that did not heal in time; ends by `troop clear`.
    pub unhealed: Option<UnhealedMark>,
    /// Whether a drawn act of this scope was already made today.
    pub drawn_today: bool,
    /// The drills of today whose act was made already, by the names of their entries.
    pub drilled_today: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastKill {
    pub day: Date,
    pub workdays_ago: u32,
    /// For people: `i-0b7e, healed in 74 s`.
    pub text: String,
    pub still_healing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnhealedMark {
    pub since: Timestamp,
    pub why: String,
}

/// An act that took, or may take, capacity and has not been made good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAct {
    pub location: Location,
    pub team: Option<TeamName>,
    pub draw_key: Option<String>,
    pub group: GroupName,
    pub instance: InstanceId,
    pub zone: Option<ZoneName>,
}
