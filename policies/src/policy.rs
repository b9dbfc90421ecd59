//! A team's policy and the site's settings, after parsing: every value here has been checked.
//!
//! The text form, its diagnostics and its JSON Schema are in [`crate::file`]; what the rules make of it in [`crate::gates`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::fault::Owner;
use crate::ids::{AccountName, RegionName, TeamName};
use crate::inventory::Group;
use crate::names::{AppName, ClusterName};

/// Where in a file something was said, for reasons that operators read (`shop.toml:42`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub file: String,
    /// 1-based.
    pub line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One team's policy file.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub place: Place,
    pub team: TeamName,
    pub owner: Option<String>,
    /// Who is told of what is planned and done.
    pub notify: Vec<Recipient>,
    /// What holds while nobody could be told.
    pub no_notice: NoNotice,
    pub time_zone: TimeZone,
    /// The zone's IANA name, as written.
    pub time_zone_name: String,
    pub windows: Vec<Window>,
    pub holidays: Holidays,
    pub blackouts: Vec<Blackout>,
    pub caps: TeamCaps,
    pub apps: BTreeMap<AppName, AppPolicy>,
}

/// Who is told: a target on a channel of the site file. Written `CHANNEL:TARGET`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Recipient {
    pub channel: String,
    /// What the channel calls it, such as the name of a room.
    pub target: String,
}

impl std::fmt::Display for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.channel, self.target)
    }
}

/// What a team wants while it could not be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoNotice {
    /// Monkeys act all the same.
    #[default]
    Act,
    /// Nothing of the team is hurt until it was told of the day's plan, or while a channel of it fails.
    Spare,
}

/// When monkeys may act: from `open` up to, not including, `close`, on these days. `close` before `open` means overnight,
/// and such a window belongs to its first day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub days: Vec<Weekday>,
    pub open: Time,
    pub close: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holidays {
    /// Built-in calendars, such as `us-federal`.
    pub calendars: Vec<String>,
    /// iCalendar files, relative to the policy file.
    pub files: Vec<PathBuf>,
    pub dates: Vec<Date>,
}

/// Nothing happens from `from` up to, not including, `until`, both civil in the policy's zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    pub from: DateTime,
    pub until: DateTime,
    pub reason: String,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TeamCaps {
    /// Kills a day over all apps of the file; `None` means no bound but one a scope.
    pub kills_per_day: Option<u32>,
    /// Acts of the team that have not healed yet, at most. 1 unless the file says otherwise.
    pub unhealed_at_once: u32,
}

impl Default for TeamCaps {
    fn default() -> Self {
        Self { kills_per_day: None, unhealed_at_once: 1 }
    }
}

/// What a scope is: a cluster, a stack or an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    Cluster,
    Stack,
    App,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppPolicy {
    pub place: Place,
    pub app: AppName,
    pub grouping: Grouping,
    pub regions_independent: bool,
    /// The floor. Required wherever a monkey is named; 0 where none is.
    pub min_serving: u32,
    pub heals_within: Duration,
    /// Clusters whose name ends with one of these are never hurt.
    pub never_suffixes: Vec<String>,
    pub hold_while: Vec<String>,
    pub chaos: Option<ChaosPolicy>,
    pub latency: Option<LatencyPolicy>,
    pub exceptions: Vec<Exception>,
    pub drills: Vec<Drill>,
    /// Two policy files name this app: refused in both, with this reason.
    pub refused: Option<String>,
}

/// How often a monkey acts on one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub mean_workdays: u32,
    pub min_workdays: u32,
}

impl Rate {
    /// The odds on each workday from the min-th after the last kill: `1 / (mean - min + 1)`, so that the gap is geometric
    /// from `min` on and its mean is `mean`.
    pub fn odds(self) -> f64 {
        1.0 / f64::from(self.mean_workdays.saturating_sub(self.min_workdays) + 1)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ChaosPolicy {
    pub place: Place,
    pub leashed: bool,
    pub rate: Rate,
    pub kill: KillStyle,
    /// How long a drain kill waits between taking the instance out of the balancer and SIGTERM.
    pub drain: Duration,
    /// Whether it may also act while a push holds the cluster.
    pub during_push: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KillStyle {
    Crash,
    Drain,
}

/// Longest that a fault may be asked to last: one that outlives a working day has been forgotten.
pub const FAULT_LASTS_MAX: Duration = Duration::from_secs(8 * 3600);

/// The latency monkey's menu, from which a drawn fault is drawn and which none exceeds.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyPolicy {
    pub place: Place,
    pub leashed: bool,
    pub rate: Rate,
    pub delay: (Duration, Duration),
    pub jitter: Option<(Duration, Duration)>,
    pub loss_percent: Option<(f64, f64)>,
    pub lasts: Duration,
    pub instances: u32,
    /// As [`crate::fault::Peer`]s are written.
    pub to: Vec<String>,
    /// Only the packets of this on the instance's host.
    pub of: Option<Owner>,
    /// What may be done to its name resolution, on demand: never drawn.
    pub dns: Vec<DnsFault>,
    pub abort_when: Option<AbortWhen>,
    pub during_push: bool,
}

/// What may befall name resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsFault {
    /// As slow as the menu's delay lets it be.
    Slow,
    /// No question arrives.
    Fail,
}

impl DnsFault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Fail => "fail",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AbortWhen {
    pub errors_above_percent: f64,
    pub over: Duration,
}

/// Where an app is never hurt. `*` matches anything, an empty text only what is absent; all four must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub place: Place,
    pub account: String,
    pub region: String,
    pub stack: String,
    pub detail: String,
    pub reason: String,
}

impl Exception {
    pub fn matches(&self, account: &AccountName, region: &RegionName, cluster: &ClusterName) -> bool {
        let one = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        one(&self.account, account.as_str())
            && one(&self.region, region.as_str())
            && one(&self.stack, cluster.stack().unwrap_or(""))
            && one(&self.detail, cluster.detail().unwrap_or(""))
    }
}

/// An act on a cron line, beside the drawn ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drill {
    pub place: Place,
    /// Five fields, single spaces, lower case; read in the policy's zone.
    pub cron: String,
    pub monkey: String,
}

impl AppPolicy {
    /// The draw key of the scope that a cluster in a region belongs to: `account/region/KEY`, or `account/KEY` where
    /// regions are not independent; KEY is the cluster, `app-stack` or the app.
    pub fn draw_key(&self, account: &AccountName, region: &RegionName, cluster: &ClusterName) -> String {
        let key = match self.grouping {
            Grouping::Cluster => cluster.as_str().to_owned(),
            // A cluster without a stack is a scope of its own, never "any stack".
            Grouping::Stack => match cluster.stack() {
                Some(stack) => format!("{}-{stack}", cluster.app()),
                None => cluster.app().to_string(),
            },
            Grouping::App => cluster.app().to_string(),
        };
        if self.regions_independent { format!("{account}/{region}/{key}") } else { format!("{account}/{key}") }
    }

    /// The first reason in the policy itself never to touch this cluster.
    pub fn exempt(&self, account: &AccountName, region: &RegionName, cluster: &ClusterName) -> Option<String> {
        if let Some(why) = &self.refused {
            return Some(why.clone());
        }
        if crate::sabotaged!("exception") {
            return None;
        }
        if let Some(exception) = self.exceptions.iter().find(|e| e.matches(account, region, cluster)) {
            return Some(format!("exception at {}: {}", exception.place, exception.reason));
        }
        let suffix = self.never_suffixes.iter().find(|s| cluster.as_str().ends_with(s.as_str()))?;
        Some(format!("`never_suffixes` at {} lists `{suffix}`", self.place))
    }
}

impl Policy {
    /// Whether a group opted in to this policy: its app stands here and its tag `troop:team` equals the file's team.
    pub fn owns(&self, group: &Group) -> bool {
        self.apps.contains_key(group.name.app())
            && (group.team().as_ref() == Some(&self.team) || crate::sabotaged!("tag"))
    }
}

/// How long an entry of the embedded cloud's registry lives without a heartbeat: its sample app renews every second.
pub const EMBEDDED_LEASE: Duration = Duration::from_secs(3);

/// The site file `troop.toml`, or the embedded defaults. Paths are as written: relative to the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    pub name: String,
    /// Leashed unless the file says `leashed = false`; without a file, the embedded cloud alone is unleashed.
    pub leashed: bool,
    /// The folder of the policy files.
    pub policies: PathBuf,
    /// The folder of the state, where the file names one.
    pub state: Option<PathBuf>,
    pub caps: SiteCaps,
    pub registry_lease: Duration,
    /// The registry of the accounts' instances; the embedded cloud has its own.
    pub registry_url: Option<String>,
    /// None: the embedded cloud.
    pub accounts: Vec<Account>,
    pub aws: Aws,
    /// The SQLite file of the ledger, where the file names one.
    pub ledger: Option<PathBuf>,
    /// Where the embedded balancer listens, always on the loopback, where the file says so.
    pub balancer: Option<SocketAddr>,
    /// Where agents on other machines dial in, where the file says so.
    pub agents: Option<AgentsListener>,
    /// The base address of the Alertmanager that hold signals mean.
    pub alertmanager: Option<String>,
    /// Certificates of authorities that hold signals may be signed by, beside those of the machine.
    pub signals_ca_file: Option<PathBuf>,
    pub hold_while: Vec<String>,
    /// Where teams are told, by name.
    pub channels: BTreeMap<String, Channel>,
}

impl Site {
    /// What holds without a site file: the embedded cloud alone, unleashed, because it can only hurt what it started.
    pub fn embedded_default() -> Self {
        Self {
            name: "embedded".to_owned(),
            leashed: false,
            policies: PathBuf::from("policies"),
            state: None,
            caps: SiteCaps::default(),
            registry_lease: EMBEDDED_LEASE,
            accounts: Vec::new(),
            aws: Aws::default(),
            registry_url: None,
            ledger: None,
            balancer: None,
            agents: None,
            alertmanager: None,
            signals_ca_file: None,
            hold_while: Vec::new(),
            channels: BTreeMap::new(),
        }
    }
}

/// A listener for agents, over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentsListener {
    pub address: SocketAddr,
    /// PEM: the certificate that agents check, its issuers' after it.
    pub certificate_file: PathBuf,
    /// PEM: the certificate's private key.
    pub key_file: PathBuf,
}

/// A channel on which teams are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    pub kind: ChannelKind,
    /// Holds the address to post to; the address is a secret and stands nowhere else.
    pub url_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelKind {
    /// An incoming webhook of Slack's form: `channel` and `text`.
    Slack,
    /// JSON of our own, signed as the Standard Webhooks specification says.
    Webhook {
        /// Holds the signing secret, `whsec_` and base64.
        secret_file: PathBuf,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: AccountName,
    pub role: Option<String>,
    pub regions: BTreeMap<RegionName, RegionSettings>,
}

/// AWS, over all accounts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aws {
    /// Where every request goes instead of AWS.
    pub endpoint: Option<String>,
    /// By region, a PEM file with the certificates by which EC2 signs instance identity documents. Agents of a region that is not here cannot
    /// prove which instance they are on.
    pub identity_certs: BTreeMap<RegionName, PathBuf>,
    /// The tags by which groups are known whose own names say nothing.
    pub name_tags: Option<NameTags>,
}

/// The keys of the tags of a group that hold the parts of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameTags {
    pub app: String,
    pub stack: Option<String>,
    pub detail: Option<String>,
}

/// What a region of an account has to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegionSettings {
    /// ARNs of load balancers whose listeners Troop may route on. Those that already send to a group of Troop's are found
    /// by themselves; a cluster's first group needs its balancer here.
    pub load_balancers: Vec<String>,
    /// From what a cluster's first group is made. Later ones are made as the one before.
    pub first: Option<FirstGroup>,
}

/// The settings of a cluster's first group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstGroup {
    /// The id of the launch template whose default version is taken, with another image.
    pub launch_template: String,
    /// Ids of subnets; those in the group's zones are taken.
    pub subnets: Vec<String>,
    /// The port on which instances answer.
    pub port: u16,
    /// The path that the balancer asks for.
    pub health_path: String,
    /// How often the balancer asks, in seconds (5 to 300).
    pub health_every_s: u16,
    /// How long a new instance may take before its health counts, in seconds.
    pub grace_s: u32,
}

/// Caps over all teams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteCaps {
    pub kills_per_day: Option<u32>,
    /// Acts an hour, of all monkeys over all teams.
    pub acts_per_hour: Option<u32>,
    /// Unhealed acts an account over all teams.
    pub unhealed_per_account: Option<u32>,
    /// Unhealed acts a zone over all teams. 1 by default, so that two teams' kills never add up to a lost zone.
    pub unhealed_per_zone: u32,
}

impl SiteCaps {
    /// The keys of the caps that a site of accounts must set before it harms anybody, and has not.
    pub fn unset(&self) -> Vec<&'static str> {
        let wanted = [("acts_per_hour", self.acts_per_hour), ("unhealed_per_account", self.unhealed_per_account)];
        wanted.iter().filter(|(_, cap)| cap.is_none()).map(|(key, _)| *key).collect()
    }
}

impl Default for SiteCaps {
    fn default() -> Self {
        Self { kills_per_day: None, acts_per_hour: None, unhealed_per_account: None, unhealed_per_zone: 1 }
    }
}
