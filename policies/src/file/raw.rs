//! The policy file as it is written: the source of its JSON Schema, of its allowed keys and of their descriptions.
//!
//! Every key is an `Option` here, also a required one: what is missing or wrong has been told by [`super::tree`] before
//! these types are filled, and is left out, so that one mistake hides no other.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::scalar::{
    CalendarName, CronText, DateText, DateTimeText, DurationText, OneOrRange, PercentText, Sp, TimeText,
};

/// A team's policy file: what Troop's monkeys may do to this team's apps, when and how often.
///
/// Without such a file nothing of the team is ever touched by a monkey.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Troop policy file")]
pub(crate) struct RawPolicy {
    /// The version of this file's form: 1.
    #[schemars(required, range(min = 1, max = 1))]
    #[expect(dead_code, reason = "its bounds say all that it means")]
    pub format: Option<Sp<u32>>,
    /// The team. It must equal the tag `troop:team` on every group named here: a team can opt in only its own.
    #[schemars(required, length(max = 128))]
    pub team: Option<Sp<String>>,
    /// Whom to ask; shown beside what was done.
    #[schemars(length(max = 200))]
    pub owner: Option<Sp<String>>,
    /// Channels of the site file, as `CHANNEL:TARGET`, told at plan time, at the act and at the outcome.
    #[serde(default)]
    #[schemars(length(max = 20), extend("uniqueItems" = true))]
    pub notify: Vec<Sp<String>>,
    /// `act` (the default): monkeys also act while nobody can be told. `spare`: only once the day's plan was told on a channel, and
    /// while none of them fails.
    pub no_notice: Option<Sp<RawNoNotice>>,
    /// The IANA time zone in which every day, time and date of this file is read.
    #[schemars(required, extend("examples" = ["Europe/Berlin"]))]
    pub timezone: Option<Sp<String>>,
    /// `true` (the default): plan and explain, change nothing. An app or a monkey may say otherwise for itself.
    pub leashed: Option<Sp<bool>>,
    /// When monkeys may act. A workday is a day on which a window opens and which is no holiday.
    #[serde(default)]
    #[schemars(length(max = 50))]
    pub windows: Vec<Sp<RawWindow>>,
    /// Days without windows.
    pub holidays: Option<Sp<RawHolidays>>,
    /// Spans of time in which nothing happens.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub blackouts: Vec<Sp<RawBlackout>>,
    /// Bounds over all apps of this file.
    pub caps: Option<Sp<RawCaps>>,
    /// What is opted in, by application name: the first part of the groups' names.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 1000))]
    pub apps: BTreeMap<Sp<String>, Sp<RawApp>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawNoNotice {
    Act,
    Spare,
}

/// From `open` up to, not including, `close`, on these days.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWindow {
    /// The days on which the window opens.
    #[schemars(required, length(min = 1, max = 7), extend("uniqueItems" = true))]
    pub days: Option<Vec<Sp<Day>>>,
    /// The first minute.
    #[schemars(required)]
    pub open: Option<Sp<TimeText>>,
    /// The first minute that is outside again. Before `open` it means overnight; the window belongs to its first day.
    #[schemars(required)]
    pub close: Option<Sp<TimeText>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Days on which no window opens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHolidays {
    /// Built-in calendars of public holidays.
    #[serde(default)]
    #[schemars(length(max = 10), extend("uniqueItems" = true))]
    pub calendars: Vec<Sp<CalendarName>>,
    /// iCalendar files (`.ics`), relative to this file.
    #[serde(default)]
    #[schemars(length(max = 50), extend("uniqueItems" = true))]
    pub files: Vec<Sp<String>>,
    /// Single days, such as `"2026-12-23"`.
    #[serde(default)]
    #[schemars(length(max = 5000))]
    pub dates: Vec<Sp<DateText>>,
}

/// Nothing happens from `from` up to, not including, `until`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawBlackout {
    /// The first moment, in the policy's zone; a date alone means its midnight.
    #[schemars(required)]
    pub from: Option<Sp<DateTimeText>>,
    /// The first moment after it.
    #[schemars(required)]
    pub until: Option<Sp<DateTimeText>>,
    /// Why; operators read it where something was spared for it.
    #[schemars(required, length(min = 1, max = 500))]
    pub reason: Option<Sp<String>>,
}

/// Bounds over all apps of the file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCaps {
    /// Kills a day, at most. Without it only the bound of one drawn kill a scope and day holds.
    #[schemars(range(min = 1, max = 100_000))]
    pub kills_per_day: Option<Sp<u32>>,
    /// Acts that have not healed yet, at most (1 unless said otherwise).
    #[schemars(range(min = 1, max = 100_000))]
    pub unhealed_at_once: Option<Sp<u32>>,
}

/// One application and what may be done to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawApp {
    /// Whether this app's monkeys only plan and explain; inherited from the file unless said here.
    pub leashed: Option<Sp<bool>>,
    /// What one draw is made for: each cluster (the default), each stack, or the app as a whole.
    pub grouping: Option<Sp<RawGrouping>>,
    /// `true` (the default): each region draws for itself.
    pub regions_independent: Option<Sp<bool>>,
    /// The floor: serving instances of each serving group that must remain. Required where a monkey is named.
    #[schemars(range(min = 1, max = 100_000))]
    pub min_serving: Option<Sp<u32>>,
    /// How soon a group must be whole again after an act (`5m` unless said otherwise); later, its scope is spared until cleared.
    pub heals_within: Option<Sp<DurationText>>,
    /// Clusters whose name ends with one of these are never hurt.
    #[serde(default)]
    #[schemars(length(max = 50), extend("uniqueItems" = true))]
    pub never_suffixes: Vec<Sp<String>>,
    /// Alerts that hold everything while they fire or cannot be asked, as `SOURCE:MATCHER`.
    #[serde(default)]
    #[schemars(length(max = 20), extend("uniqueItems" = true))]
    pub hold_while: Vec<Sp<String>>,
    /// The chaos monkey: terminates instances.
    pub chaos: Option<Sp<RawChaos>>,
    /// The latency monkey: delays the packets of instances for a while.
    pub latency: Option<Sp<RawLatency>>,
    /// Where this app is never hurt.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    pub exceptions: Vec<Sp<RawException>>,
    /// Acts on a cron line, beside the drawn ones.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub drills: Vec<Sp<RawDrill>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawGrouping {
    Cluster,
    Stack,
    App,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawKill {
    Crash,
    Drain,
}

/// Terminates one instance of the serving group.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawChaos {
    /// Inherited from the app, then the file; `true` where none says anything.
    pub leashed: Option<Sp<bool>>,
    /// Workdays between two kills of one scope, on average.
    #[schemars(required, range(min = 1, max = 10_000))]
    pub mean_workdays: Option<Sp<u32>>,
    /// Workdays between two kills of one scope, at least.
    #[schemars(required, range(min = 1, max = 10_000))]
    pub min_workdays: Option<Sp<u32>>,
    /// `crash` (the default): at once, like a failing host. `drain`: the balancer finishes requests first.
    pub kill: Option<Sp<RawKill>>,
    /// How long `drain` waits between leaving the balancer and the end (`30s` unless said otherwise).
    pub drain: Option<Sp<DurationText>>,
    /// `true`: also while a push holds the cluster.
    pub during_push: Option<Sp<bool>>,
}

/// Delays the packets of some instances for a while.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLatency {
    /// Inherited from the app, then the file; `true` where none says anything.
    pub leashed: Option<Sp<bool>>,
    /// Workdays between two acts on one scope, on average.
    #[schemars(required, range(min = 1, max = 10_000))]
    pub mean_workdays: Option<Sp<u32>>,
    /// Workdays between two acts on one scope, at least.
    #[schemars(required, range(min = 1, max = 10_000))]
    pub min_workdays: Option<Sp<u32>>,
    /// How much each packet is delayed: one value, or a range from which one is drawn.
    #[schemars(required)]
    pub delay: Option<Sp<OneOrRange<DurationText>>>,
    /// By how much the delay varies from packet to packet.
    pub jitter: Option<Sp<OneOrRange<DurationText>>>,
    /// The share of packets lost.
    pub loss: Option<Sp<OneOrRange<PercentText>>>,
    /// How long one act lasts.
    #[schemars(required)]
    pub lasts: Option<Sp<DurationText>>,
    /// Instances delayed at once (1 unless said otherwise).
    #[schemars(range(min = 1, max = 1_000))]
    pub instances: Option<Sp<u32>>,
    /// Only this traffic is delayed: `app:NAME`, `host:NAME`, an address or a range of them.
    #[schemars(required, length(min = 1, max = 50), extend("uniqueItems" = true, "examples" = [["app:payments"]]))]
    pub to: Option<Vec<Sp<String>>>,
    /// Only packets of this on the host: `unit:NAME`, `process:NAME` or `cgroup:PATH` (of everything on it unless said otherwise).
    #[schemars(extend("examples" = ["unit:checkout.service"]))]
    pub of: Option<Sp<String>>,
    /// What `troop latency --dns` may do: `slow`, within `delay`, and `fail`. Never drawn.
    #[schemars(length(min = 1, max = 2), extend("uniqueItems" = true))]
    pub dns: Option<Vec<Sp<RawDns>>>,
    /// When to stop before the time.
    pub abort_when: Option<Sp<RawAbortWhen>>,
    /// `true`: also while a push holds the cluster.
    pub during_push: Option<Sp<bool>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawDns {
    Slow,
    Fail,
}

/// The error rate at the balancer that ends an act early.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAbortWhen {
    /// The share of failed answers.
    #[schemars(required)]
    pub errors_above: Option<Sp<PercentText>>,
    /// Over how long it is measured.
    #[schemars(required)]
    pub over: Option<Sp<DurationText>>,
}

/// Where the app is never hurt. `"*"` matches anything, `""` only what is absent; all four must match.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawException {
    /// An account's name, or `"*"`.
    #[schemars(required, extend("examples" = ["*"]))]
    pub account: Option<Sp<String>>,
    /// A region's name, or `"*"`.
    #[schemars(required, extend("examples" = ["*"]))]
    pub region: Option<Sp<String>>,
    /// The second part of a group's name, `""` for groups without one, or `"*"`.
    #[schemars(required, extend("examples" = ["*"]))]
    pub stack: Option<Sp<String>>,
    /// The rest of a cluster's name, `""` for clusters without one, or `"*"`.
    #[schemars(required, extend("examples" = ["*"]))]
    pub detail: Option<Sp<String>>,
    /// Why; operators read it in plans.
    #[schemars(required, length(min = 1, max = 500))]
    pub reason: Option<Sp<String>>,
}

/// An act at a fixed time. It passes every gate but the odds, the minimum gap and the bound of one a day.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDrill {
    /// Minute, hour, day of the month, month and weekday (by name), in the policy's zone.
    #[schemars(required)]
    pub cron: Option<Sp<CronText>>,
    /// The monkey that acts; it must be configured for the app.
    #[schemars(required)]
    pub monkey: Option<Sp<RawMonkey>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RawMonkey {
    Chaos,
    Latency,
}

impl RawMonkey {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chaos => "chaos",
            Self::Latency => "latency",
        }
    }
}
