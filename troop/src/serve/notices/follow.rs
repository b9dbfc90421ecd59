//! One recipient: the events after its cursor are told in their order, each until it is taken, refused or too old.
//!
//! The cursor is a mark in the ledger and moves after a notice was taken, so that a crash tells one twice rather than never;
//! both carry the same id.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;
use sha2::{Digest as _, Sha256};
use troop_ledger::{Event, EventFilter, EventId, LedgerError};
use troop_policies::TeamName;
use troop_policies::policy::{Channel, Recipient};

use super::channel::{self, Sent};
use super::words::{self, KINDS, Notice};
use crate::records::{MARK_NOTICES, NoticesBody, NoticesFailing, Record, notices_key};
use crate::serve::core::{Core, body, event};
use crate::world::chain;

/// Events looked at in one turn, after which others have theirs.
const EVENTS_A_TURN: u32 = 50;
/// How long a notice is tried, from when it was written, or from when its channel began to fail. What is older is in the
/// ledger, and nobody acts on it any more.
const TRIED_FOR: SignedDuration = SignedDuration::from_hours(1);
/// The pause before the second try, which doubles with each, up to the longest; a channel may ask for another up to that.
const PAUSE_MIN: Duration = Duration::from_secs(1);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After a notice that was given up the next one waits as well, and counts as of a channel that fails.
const GAVE_UP: (u32, Duration) = (1, PAUSE_MIN);
/// Days whose plan is remembered as told: a night's window belongs to the day before.
const PLAN_DAYS_KEPT: usize = 4;
/// How many events that are not told the cursor may lag behind: each is looked at again after a restart.
const LAG_MAX: i64 = 1_000;

/// How far a turn came.
#[derive(Debug)]
pub(super) struct Turn {
    /// Nothing up to this event is left to be told.
    pub(super) scanned: EventId,
    /// How often the notice after it was tried in vain, and the pause before the next try; `None`: there is none.
    pub(super) waits: Option<(u32, Duration)>,
}

/// Tells the events after the cursor, and after `scanned`, until one is not taken.
///
/// # Errors
/// Why the ledger could not be asked, or the mark not be understood. Nothing is told then.
pub(super) async fn turn(
    core: &Core,
    team: &TeamName,
    to: &Recipient,
    channel: &Channel,
    (scanned, mut tries): (Option<EventId>, u32),
) -> Result<Turn, String> {
    let failed = |e: LedgerError| chain(&e);
    let newest = core.ledger.newest_id().await.map_err(failed)?.unwrap_or(EventId(0));
    let Some(standing) = standing(core, team, to).await? else {
        // The first start: what was before it is history.
        update(core, team, to, |standing| standing.cursor = newest.0).await.map_err(failed)?;
        return Ok(Turn { scanned: newest, waits: None });
    };
    let after = scanned.map_or(standing.cursor, |scanned| scanned.0.max(standing.cursor));
    let filter = EventFilter {
        after: Some(EventId(after)),
        kinds: KINDS.map(str::to_owned).to_vec(),
        limit: Some(EVENTS_A_TURN),
        ..EventFilter::default()
    };
    let events = core.ledger.events(&filter).await.map_err(failed)?;
    let is_all = u32::try_from(events.len()).is_ok_and(|len| len < EVENTS_A_TURN);
    let mut scanned = EventId(after);
    for told in &events {
        if let Some(notice) = words::notice(core, team, told).await.map_err(failed)? {
            match send(core, to, channel, &notice, &id_of(told, team, to)).await {
                Sent::Taken { .. } => taken(core, team, to, &notice, told.id).await.map_err(failed)?,
                Sent::Refused { why } => {
                    give_up(core, team, to, &notice, (told.id, why)).await.map_err(failed)?;
                    return Ok(Turn { scanned: told.id, waits: Some(GAVE_UP) });
                }
                Sent::NotNow { why, after } => {
                    let again = not_now(core, team, to, &notice, (told, why)).await.map_err(failed)?;
                    return Ok(if again {
                        Turn { scanned, waits: Some((tries.saturating_add(1), pause(tries, after))) }
                    } else {
                        Turn { scanned: told.id, waits: Some(GAVE_UP) }
                    });
                }
            }
            tries = 0;
        }
        scanned = told.id;
    }
    if is_all {
        scanned = scanned.max(newest);
    }
    if scanned.0 > standing.cursor + LAG_MAX {
        update(core, team, to, |standing| standing.cursor = standing.cursor.max(scanned.0)).await.map_err(failed)?;
    }
    Ok(Turn { scanned, waits: None })
}

/// The same for each try of one event to one recipient, and for no other: receivers tell repeats by it. The event's hash
/// covers all events before it, so that no other ledger has it.
fn id_of(event: &Event, team: &TeamName, to: &Recipient) -> String {
    let digest = Sha256::digest(format!("{}|{team}|{to}", event.hash));
    format!("msg_{}", hex::encode(&digest[..16]))
}

/// Posts a notice once.
pub(super) async fn send(core: &Core, to: &Recipient, channel: &Channel, notice: &Notice, id: &str) -> Sent {
    let not_now = |why: String| Sent::NotNow { why, after: None };
    let files = channel.clone();
    let open = match tokio::task::spawn_blocking(move || channel::read(&files)).await {
        Ok(Ok(open)) => open,
        Ok(Err(e)) => return not_now(chain(&e)),
        Err(e) => return not_now(e.to_string()),
    };
    let now = core.now();
    let post = match open.put(notice, to, id, now) {
        Ok(post) => post,
        Err(why) => return Sent::Refused { why },
    };
    match core.host.post(post).await {
        Ok(answer) => open.meaning(&answer, now),
        Err(why) => not_now(why),
    }
}

async fn standing(core: &Core, team: &TeamName, to: &Recipient) -> Result<Option<NoticesBody>, String> {
    let mark = core.ledger.mark(MARK_NOTICES, &notices_key(team, to)).await.map_err(|e| chain(&e))?;
    let read = mark.map(|mark| serde_json::from_value(mark.body)).transpose();
    read.map_err(|e| format!("its mark in the ledger cannot be read: {e}"))
}

/// Changes what the mark says, in one transaction: a test notice and another control plane change it too.
async fn update(
    core: &Core,
    team: &TeamName,
    to: &Recipient,
    change: impl FnOnce(&mut NoticesBody),
) -> Result<(), LedgerError> {
    write(core, team, to, change, None).await
}

async fn write(
    core: &Core,
    team: &TeamName,
    to: &Recipient,
    change: impl FnOnce(&mut NoticesBody),
    record: Option<Record>,
) -> Result<(), LedgerError> {
    let key = notices_key(team, to);
    let mut tx = core.ledger.begin().await?;
    let mark = tx.mark(MARK_NOTICES, &key).await?;
    let mut standing = mark.and_then(|mark| serde_json::from_value::<NoticesBody>(mark.body).ok()).unwrap_or_default();
    change(&mut standing);
    tx.set_mark(MARK_NOTICES, &key, body(&standing)).await?;
    if let Some(record) = record {
        tx.append(event(&record, None)).await?;
    }
    tx.commit().await
}

async fn taken(core: &Core, team: &TeamName, to: &Recipient, notice: &Notice, id: EventId) -> Result<(), LedgerError> {
    let (day, now) = (words::plan_day(notice), core.now());
    update(core, team, to, |standing| {
        standing.cursor = standing.cursor.max(id.0);
        standing.failing = None;
        standing.taken_at = Some(now);
        if let Some(day) = day {
            standing.plans_told.retain(|told| *told != day);
            standing.plans_told.push(day);
            let old = standing.plans_told.len().saturating_sub(PLAN_DAYS_KEPT);
            standing.plans_told.drain(..old);
        }
    })
    .await
}

/// Notes why it was not taken, or gives it up. Returns whether to try again.
async fn not_now(
    core: &Core,
    team: &TeamName,
    to: &Recipient,
    notice: &Notice,
    (told, why): (&Event, String),
) -> Result<bool, LedgerError> {
    let now = core.now();
    let stands = core.ledger.mark(MARK_NOTICES, &notices_key(team, to)).await?;
    let stands = stands.and_then(|mark| serde_json::from_value::<NoticesBody>(mark.body).ok());
    let failing = stands.and_then(|standing| standing.failing);
    let since = failing.as_ref().map_or(now, |failing| failing.since);
    if now.duration_since(since.max(told.real_at)) >= TRIED_FOR {
        give_up(core, team, to, notice, (told.id, format!("tried for an hour; {why}"))).await?;
        return Ok(false);
    }
    if failing.is_none_or(|failing| failing.why != why) {
        update(core, team, to, |standing| standing.failing = Some(NoticesFailing { since, why })).await?;
    }
    Ok(true)
}

/// A second, and twice as long after each try; or what the channel asked for. A minute at most.
fn pause(tries: u32, wanted: Option<Duration>) -> Duration {
    let growing = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(tries));
    wanted.unwrap_or(growing).clamp(PAUSE_MIN, PAUSE_MAX)
}

/// Records that a notice was given up, and goes on after it. The channel counts as failing until it takes one.
async fn give_up(
    core: &Core,
    team: &TeamName,
    to: &Recipient,
    notice: &Notice,
    (id, why): (EventId, String),
) -> Result<(), LedgerError> {
    tracing::warn!(%team, recipient = %to, event = id.0, why, "a notice was given up");
    let record = Record::NoticeFailed {
        team: team.clone(),
        recipient: to.to_string(),
        event: id.0,
        of: notice.kind.clone(),
        draw_key: notice.draw_key.clone(),
        why: why.clone(),
    };
    let now = core.now();
    let change = |standing: &mut NoticesBody| {
        standing.cursor = standing.cursor.max(id.0);
        let since = standing.failing.as_ref().map_or(now, |failing| failing.since);
        standing.failing = Some(NoticesFailing { since, why });
    };
    write(core, team, to, change, Some(record)).await
}

/// A test notice was taken: the channel does not fail any more.
///
/// # Errors
/// The ledger's.
pub(super) async fn works(core: &Core, team: &TeamName, to: &Recipient) -> Result<(), LedgerError> {
    let key = notices_key(team, to);
    let is_new = core.ledger.mark(MARK_NOTICES, &key).await?.is_none();
    let (newest, now) = (core.ledger.newest_id().await?, core.now());
    update(core, team, to, |standing| {
        if is_new {
            // What was before is history, as at a first start.
            standing.cursor = standing.cursor.max(newest.map_or(0, |id| id.0));
        }
        standing.failing = None;
        standing.taken_at = Some(now);
    })
    .await
}

/// Whether any recipient of the policies in force, on a channel of the site, took the last notice that it was sent.
///
/// # Errors
/// The ledger's.
pub async fn any_works(core: &Core) -> Result<bool, LedgerError> {
    let marks = core.ledger.marks(MARK_NOTICES).await?;
    let works = |mark: troop_ledger::MarkRow| {
        let standing = serde_json::from_value::<NoticesBody>(mark.body).ok()?;
        (standing.failing.is_none() && standing.taken_at.is_some()).then_some(mark.key)
    };
    let working: BTreeSet<String> = marks.into_iter().filter_map(works).collect();
    let policies = core.policies.load();
    let named = super::recipients(&policies).filter(|(_, to)| core.site.channels.contains_key(&to.channel));
    Ok(named.into_iter().any(|(team, to)| working.contains(&notices_key(&team, &to))))
}

/// Whose marks say that they fail, and why, by key.
///
/// # Errors
/// The ledger's.
pub(super) async fn failing(core: &Core) -> Result<BTreeMap<String, NoticesFailing>, LedgerError> {
    let marks = core.ledger.marks(MARK_NOTICES).await?;
    let failing = marks.into_iter().filter_map(|mark| {
        let standing = serde_json::from_value::<NoticesBody>(mark.body).ok()?;
        Some((mark.key, standing.failing?))
    });
    Ok(failing.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_a_channel_may_ask_for_another_up_to_that() {
        let seconds = |tries, wanted: Option<u64>| pause(tries, wanted.map(Duration::from_secs)).as_secs();
        assert_eq!([0, 1, 2, 5, 6, 40].map(|tries| seconds(tries, None)), [1, 2, 4, 32, 60, 60]);
        assert_eq!([0, 7, 3_600].map(|wanted| seconds(3, Some(wanted))), [1, 7, 60]);
    }
}
