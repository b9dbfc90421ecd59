//! What the ledger says about one scope, read inside one transaction, in the gates' words.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use troop_ledger::{EventId, IntentFilter, IntentRow, LedgerError, MarkRow, Tx};
use troop_policies::intent::Cause;
use troop_policies::inventory::{Inventory, TAG_MARK};
use troop_policies::policy::{NoNotice, Recipient};
use troop_policies::situation::{
    LastKill, LedgerSeen, MarkSeen, NoticesSeen, OpenAct, Reading, ScopeHistory, UnhealedMark,
};
use troop_policies::{ClusterName, GroupName, InstanceId, Location};

use super::policy_store::TeamPolicy;
use crate::records::{
    HealingBody, IntentBody, MARK_ADOPTED, MARK_HEALING, MARK_NOTICES, MARK_UNHEALED, NoticesBody, notices_key,
};

/// How many of a scope's newest kills are looked through for the last that counts.
const KILLS_LOOKED_THROUGH: u32 = 50;

/// Whose view is asked for.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    pub team: &'a TeamPolicy,
    pub draw_key: &'a str,
    /// The scheduler's calendar, now.
    pub calendar_now: Timestamp,
    /// The day a draw belongs to; for a demand the civil date of now.
    pub day: Date,
    /// Which acts the history and the caps a day are about: each monkey has its own.
    pub acts: Acts,
}

/// See [`About::acts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acts {
    Kills,
    Faults,
}

impl Acts {
    /// The kind of their intents' steps.
    fn kind(self) -> &'static str {
        match self {
            Self::Kills => "terminate",
            Self::Faults => "fault",
        }
    }
}

/// Reads everything the gates ask of the ledger.
///
/// # Errors
/// The ledger's; then everything is spared.
pub async fn read(
    tx: &mut Tx,
    about: About<'_>,
    inventories: impl Iterator<Item = &Inventory>,
) -> Result<LedgerSeen, LedgerError> {
    let zone = &about.team.policy.time_zone;
    let marks = marks(tx, inventories).await?;
    let locks = locks(tx).await?;
    let unhealed = open_acts(tx).await?;
    let history = history(tx, about).await?;
    let today = acts_since(tx, about, zone).await?;
    let team = about.team.policy.team.as_str();
    let team_kills_today = count(today.iter().filter(|row| row.team.as_deref() == Some(team)).count());
    let notices = notices(tx, about).await?;
    let site_kills_today = count(today.len());
    let site_acts_last_hour = acts_in_last_hour(tx, about.calendar_now).await?;
    Ok(LedgerSeen { marks, locks, history, team_kills_today, site_kills_today, site_acts_last_hour, unhealed, notices })
}

/// How each recipient of the team stands; nothing is asked where the policy does not want to know.
async fn notices(tx: &mut Tx, about: About<'_>) -> Result<BTreeMap<Recipient, Reading<NoticesSeen>>, LedgerError> {
    let policy = &about.team.policy;
    let mut seen = BTreeMap::new();
    match policy.no_notice {
        NoNotice::Act => return Ok(seen),
        NoNotice::Spare => {}
    }
    for recipient in &policy.notify {
        let mark = tx.mark(MARK_NOTICES, &notices_key(&policy.team, recipient)).await?;
        let read = |mark: MarkRow| serde_json::from_value::<NoticesBody>(mark.body).map_err(|e| e.to_string());
        let stands = match mark.map(read).transpose() {
            Ok(None) => Ok(NoticesSeen::default()),
            Ok(Some(body)) => Ok(NoticesSeen {
                plan_told: body.plans_told.contains(&about.day),
                failing: body.failing.map(|failing| failing.to_string()),
            }),
            Err(why) => Err(why),
        };
        seen.insert(recipient.clone(), stands);
    }
    Ok(seen)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// For each group that carries a mark: whether the ledger holds the event it names, with that very time.
pub(super) async fn marks(
    tx: &mut Tx,
    inventories: impl Iterator<Item = &Inventory>,
) -> Result<BTreeMap<(Location, GroupName), MarkSeen>, LedgerError> {
    let mut seen = BTreeMap::new();
    let tagged: Vec<_> = inventories
        .flat_map(|i| i.groups.values().map(move |g| (i, g)))
        .filter_map(|(i, g)| g.tags.get(TAG_MARK).map(|mark| ((i.location(), g.name.clone()), mark.clone())))
        .collect();
    for (group, mark) in tagged {
        let known = match parse_mark(&mark) {
            Some((id, at)) => tx.event(id).await?.is_some_and(|event| mark_time(event.real_at) == mark_time(at)),
            None => false,
        };
        let known = known || tx.mark(MARK_ADOPTED, &mark).await?.is_some();
        seen.insert(group, MarkSeen { mark, known });
    }
    Ok(seen)
}

/// The text of a mark: `EVENT_ID RFC3339`.
pub fn mark_text(id: EventId, real_at: Timestamp) -> String {
    format!("{} {}", id.0, mark_time(real_at))
}

/// Marks keep microseconds, as the ledger does.
fn mark_time(at: Timestamp) -> String {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at).to_string()
}

fn parse_mark(text: &str) -> Option<(EventId, Timestamp)> {
    let (id, at) = text.split_once(' ')?;
    Some((EventId(id.parse().ok()?), at.parse().ok()?))
}

async fn locks(tx: &mut Tx) -> Result<BTreeMap<(Location, ClusterName), String>, LedgerError> {
    let rows = tx.locks().await?;
    Ok(rows.into_iter().filter_map(|row| lock_cluster(&row.name).map(|cluster| (cluster, row.holder))).collect())
}

/// The name of a cluster's lock: `account/region/cluster`.
pub fn lock_name(inventory: &Inventory, cluster: &ClusterName) -> String {
    format!("{}/{cluster}", inventory.location())
}

fn lock_cluster(name: &str) -> Option<(Location, ClusterName)> {
    let (location, cluster) = name.rsplit_once('/')?;
    Some((location.parse().ok()?, ClusterName::new(cluster).ok()?))
}

/// Acts that took, or may have taken, capacity and are not made good: open terminations, and kills that are healing.
pub async fn open_acts(tx: &mut Tx) -> Result<Vec<OpenAct>, LedgerError> {
    let mut bodies: BTreeMap<String, IntentBody> = BTreeMap::new();
    for row in tx.open_intents().await? {
        if let Ok(body) = serde_json::from_value::<IntentBody>(row.body) {
            bodies.insert(row.id, body);
        }
    }
    for mark in tx.marks(MARK_HEALING).await? {
        if let Ok(HealingBody { intent, zone, .. }) = serde_json::from_value(mark.body) {
            bodies.insert(mark.key, IntentBody { intent, zone });
        }
    }
    let acts = bodies.into_values().filter_map(|IntentBody { intent, zone }| {
        let instance = intent.step.victim()?.clone();
        Some(OpenAct {
            location: intent.location(),
            team: intent.cause.team().cloned(),
            draw_key: intent.cause.draw_key().map(str::to_owned),
            group: intent.step.group().clone(),
            instance,
            zone,
        })
    });
    Ok(acts.collect())
}

/// A kill counts unless the cloud refused it.
fn counts(row: &IntentRow) -> bool {
    let unknown = row.outcome.as_deref() == Some("unknown");
    row.outcome.as_deref() != Some("refused") && !(unknown && troop_policies::sabotaged!("unknown_counts"))
}

/// Acts of every monkey, whoever asked for them.
async fn acts_in_last_hour(tx: &mut Tx, now: Timestamp) -> Result<u32, LedgerError> {
    let since = now.checked_sub(SignedDuration::from_hours(1)).unwrap_or(Timestamp::MIN);
    let mut acts = 0;
    for kind in [Acts::Kills.kind(), Acts::Faults.kind()] {
        let filter = IntentFilter { kind: Some(kind.to_owned()), since: Some(since), ..IntentFilter::default() };
        acts += tx.intents(&filter).await?.iter().filter(|row| counts(row)).count();
    }
    Ok(count(acts))
}

async fn acts_since(tx: &mut Tx, about: About<'_>, zone: &TimeZone) -> Result<Vec<IntentRow>, LedgerError> {
    let start = about.day.to_zoned_datetime(zone.clone()).map_or(Timestamp::MIN, |z| z.timestamp());
    let filter =
        IntentFilter { kind: Some(about.acts.kind().to_owned()), since: Some(start), ..IntentFilter::default() };
    Ok(tx.intents(&filter).await?.into_iter().filter(counts).collect())
}

/// The day a kill belongs to: its draw's or drill's, or the civil date on which a person asked for it.
fn kill_day(body: &IntentBody, zone: &TimeZone) -> Date {
    match &body.intent.cause {
        Cause::Draw { day, .. } | Cause::Drill { day, .. } => *day,
        Cause::Demand { .. } | Cause::Push { .. } | Cause::Upkeep { .. } => {
            body.intent.at.to_zoned_datetime(zone.clone()).date()
        }
    }
}

/// What the planner asks of a scope, which is less than what the gates ask.
///
/// # Errors
/// The ledger's; then everything is spared.
pub async fn history(tx: &mut Tx, about: About<'_>) -> Result<ScopeHistory, LedgerError> {
    let zone = &about.team.policy.time_zone;
    let filter = IntentFilter {
        kind: Some(about.acts.kind().to_owned()),
        key: Some(about.draw_key.to_owned()),
        newest_first: true,
        limit: Some(KILLS_LOOKED_THROUGH),
        ..IntentFilter::default()
    };
    let mut last_kill = None;
    let mut drawn_today = false;
    let mut drilled_today = BTreeSet::new();
    for row in tx.intents(&filter).await? {
        let Ok(body) = IntentBody::deserialize(&row.body) else { continue };
        let today = matches!(&body.intent.cause, Cause::Draw { day, .. } if *day == about.day);
        if today && troop_policies::sabotaged!("one_a_day") {
            continue;
        }
        // One draw a scope and day, whatever became of it: the entry's minute is over.
        drawn_today |= matches!(&body.intent.cause, Cause::Draw { day, .. } if *day == about.day);
        if let Cause::Drill { monkey, day, .. } = &body.intent.cause
            && *day == about.day
        {
            drilled_today.insert(monkey.clone());
        }
        if last_kill.is_none() && counts(&row) {
            let day = kill_day(&body, zone);
            let still_healing = row.outcome.is_none() || tx.mark(MARK_HEALING, &row.id).await?.is_some();
            let step = &body.intent.step;
            let what = step.victim().map_or(step.kind(), InstanceId::as_str);
            let state = if still_healing { "not healed yet" } else { "healed" };
            last_kill = Some(LastKill {
                day,
                workdays_ago: about.team.calendar.workdays_between(day, about.day),
                text: format!("{what}, {state}"),
                still_healing,
            });
        }
    }
    let unhealed = tx.mark(MARK_UNHEALED, about.draw_key).await?;
    let unhealed = unhealed.map(|mark| {
        serde_json::from_value::<UnhealedMark>(mark.body)
            // A mark that cannot be read still marks.
            .unwrap_or(UnhealedMark { since: mark.real_at, why: "its reason cannot be read".to_owned() })
    });
    Ok(ScopeHistory { last_kill, unhealed, drawn_today, drilled_today })
}
