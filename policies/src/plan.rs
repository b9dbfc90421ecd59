//! What is to happen today, as stored in the ledger and printed by `troop plan`: chosen and spared, odds and draws.

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::ids::TeamName;
use crate::names::AppName;

/// The version of [`DayPlan`]'s JSON form.
pub const PLAN_SCHEMA: u32 = 1;

/// One team's plan of one day. Stored whole, also when it is empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DayPlan {
    pub schema: u32,
    pub team: TeamName,
    pub day: Date,
    pub time_zone: String,
    /// Whether `day` is a workday, and if not, why (`holiday`, `no window opens`, `blacked out: …`).
    pub workday: bool,
    pub not_workday_because: Option<String>,
    /// The day's windows as instants, in order of opening.
    pub windows: Vec<WindowSpan>,
    pub made_at: Timestamp,
    /// Made after a window had opened: times before `made_at` never fire.
    pub late: bool,
    pub site_leashed: bool,
    pub halted: bool,
    /// Hexadecimal; null until the day's last window has closed.
    pub day_key: Option<String>,
    pub entries: Vec<PlanEntry>,
    /// Why the whole team is spared, where it is (the file does not parse, the inventory could not be read).
    pub team_spared_because: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSpan {
    pub opens: Timestamp,
    pub shuts: Timestamp,
}

/// One scope and monkey.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    pub day: Date,
    pub team: TeamName,
    pub app: AppName,
    pub draw_key: String,
    pub monkey: String,
    pub verdict: PlanVerdict,
    pub odds: Option<f64>,
    /// The coin's draw; null where nothing was drawn.
    pub unit: Option<f64>,
    /// Whether the coin fell, `unit < odds`; null where nothing was drawn.
    pub fell: Option<bool>,
    /// Minutes in the union of the day's windows, in real elapsed time.
    pub window_minutes: u32,
    /// Index into that union; null where the coin did not fall.
    pub minute: Option<u32>,
    /// The instant of `minute`, or of a drill, which draws none.
    pub at: Option<Timestamp>,
    /// Its minute was past when the plan was made, so it never fires.
    pub missed: bool,
    /// Leashed by app or monkey: the act would only be noted.
    pub leashed: bool,
    /// Why chosen or spared, in words for people.
    pub why: String,
    /// When the entry joined the plan, where that was after the plan was made.
    pub joined_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanVerdict {
    Chosen,
    Spared,
}
