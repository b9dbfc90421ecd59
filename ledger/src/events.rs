//! Events: appended at the end of the chain, read by filter, verified from the first on.

use std::path::Path;

use jiff::Timestamp;
use sqlx::{FromRow, QueryBuilder, Row as _};

use crate::chain::{self, GENESIS, Hash, Link};
use crate::db::{self, Conn, Driver, Now};
use crate::error::{Fault, LedgerError};
use crate::head::Head;
use crate::types::{Event, EventFilter, EventId, NewEvent};

const NEWEST: &str = "select id, hash from events order by id desc limit 1";
const INSERT: &str = "insert into events (id, at, real_at, kind, version, key, team, actor, body, hash)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const SELECT: &str = "select id, at, real_at, kind, version, key, team, actor, body, hash from events";
const BY_ID: &str = "select id, at, real_at, kind, version, key, team, actor, body, hash from events where id = $1";
const PAGE: &str = "select id, at, real_at, kind, version, key, team, actor, body, hash from events
    where id > $1 order by id limit $2";
const HASH_OF: &str = "select hash from events where id = $1";

/// How many events are verified at a time: enough to be quick, few enough to hold in memory whatever their bodies.
const PAGE_SIZE: i64 = 500;

#[derive(FromRow)]
struct Row {
    id: i64,
    at: i64,
    real_at: i64,
    kind: String,
    version: i64,
    key: Option<String>,
    team: Option<String>,
    actor: Option<String>,
    body: String,
    hash: String,
}

impl Row {
    fn link(&self) -> Link<'_> {
        Link {
            id: self.id,
            at: self.at,
            real_at: self.real_at,
            version: self.version,
            kind: &self.kind,
            key: self.key.as_deref(),
            team: self.team.as_deref(),
            actor: self.actor.as_deref(),
            body: &self.body,
        }
    }

    fn event(self) -> Result<Event, Fault> {
        let id = self.id;
        let what = || format!("event {id}");
        Ok(Event {
            id: EventId(id),
            at: db::time(self.at, &what)?,
            real_at: db::time(self.real_at, &what)?,
            version: db::version(self.version, &what)?,
            body: db::json(&self.body, &what)?,
            kind: self.kind,
            key: self.key,
            team: self.team,
            actor: self.actor,
            hash: self.hash,
        })
    }
}

pub(crate) fn corrupt(event: i64, why: impl Into<String>) -> LedgerError {
    LedgerError::Corrupt { event: EventId(event), why: why.into() }
}

/// The newest event's number.
pub(crate) async fn newest_id(conn: &mut Conn) -> Result<Option<EventId>, Fault> {
    Ok(newest_head(conn).await?.map(|head| EventId(head.id)))
}

/// The newest event's number and hash.
pub(crate) async fn newest_head(conn: &mut Conn) -> Result<Option<Head>, Fault> {
    let newest: Option<(i64, String)> = sqlx::query_as(NEWEST).fetch_optional(conn).await?;
    Ok(newest.map(|(id, hash)| Head { id, hash }))
}

/// Appends one event. Only inside a transaction that holds the write lock: it reads the end of the chain first.
pub(crate) async fn append(conn: &mut Conn, now: Now, event: NewEvent) -> Result<Head, Fault> {
    let newest = newest_head(conn).await?;
    let (id, previous) = match &newest {
        None => (1, GENESIS),
        Some(head) => {
            let bad = || corrupt(head.id, "its hash is not 64 hexadecimal digits");
            let next = head.id.checked_add(1).ok_or_else(|| corrupt(head.id, "its number is the greatest there is"))?;
            (next, chain::from_hex(&head.hash).ok_or_else(bad)?)
        }
    };
    let body = event.body.to_string();
    let link = Link {
        id,
        at: now.at,
        real_at: now.real_at,
        version: i64::from(event.version),
        kind: &event.kind,
        key: event.key.as_deref(),
        team: event.team.as_deref(),
        actor: event.actor.as_deref(),
        body: &body,
    };
    let hash = chain::to_hex(&chain::hash(&previous, &link));
    sqlx::query(INSERT)
        .bind(id)
        .bind(link.at)
        .bind(link.real_at)
        .bind(link.kind)
        .bind(link.version)
        .bind(link.key)
        .bind(link.team)
        .bind(link.actor)
        .bind(link.body)
        .bind(&hash)
        .execute(conn)
        .await?;
    Ok(Head { id, hash })
}

pub(crate) async fn by_id(conn: &mut Conn, id: EventId) -> Result<Option<Event>, Fault> {
    let row: Option<Row> = sqlx::query_as(BY_ID).bind(id.0).fetch_optional(conn).await?;
    row.map(Row::event).transpose()
}

pub(crate) async fn select(conn: &mut Conn, filter: &EventFilter) -> Result<Vec<Event>, Fault> {
    let mut query = QueryBuilder::<Driver>::new(SELECT);
    query.push(" where true");
    if let Some(EventId(after)) = filter.after {
        query.push(" and id > ").push_bind(after);
    }
    if let Some(since) = filter.since {
        query.push(" and at >= ").push_bind(ceil_micros(since));
    }
    if let Some(until) = filter.until {
        query.push(" and at < ").push_bind(ceil_micros(until));
    }
    if !filter.kinds.is_empty() {
        query.push(" and kind in (");
        let mut kinds = query.separated(", ");
        for kind in &filter.kinds {
            kinds.push_bind(kind.clone());
        }
        kinds.push_unseparated(")");
    }
    if let Some(key) = &filter.key {
        query.push(" and key = ").push_bind(key.clone());
    }
    if let Some(prefix) = &filter.key_prefix {
        let chars = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
        query.push(" and substr(key, 1, ").push_bind(chars).push(") = ").push_bind(prefix.clone());
    }
    if let Some(team) = &filter.team {
        query.push(" and team = ").push_bind(team.clone());
    }
    query.push(if filter.newest_first { " order by id desc" } else { " order by id" });
    if let Some(limit) = filter.limit {
        query.push(" limit ").push_bind(i64::from(limit));
    }
    let rows: Vec<Row> = query.build_query_as().fetch_all(conn).await?;
    rows.into_iter().map(Row::event).collect()
}

/// The first whole microsecond that is not before `time`: stored times are cut, limits are not.
pub(crate) fn ceil_micros(time: Timestamp) -> i64 {
    let micros = time.as_microsecond();
    let cut = Timestamp::from_microsecond(micros).unwrap_or(time);
    if cut < time { micros.saturating_add(1) } else { micros }
}

/// Compares the database with the file that remembers its newest event.
pub(crate) async fn against_head(conn: &mut Conn, head: &Head) -> Result<Behind, Fault> {
    let newest = newest_head(conn).await?.map_or(0, |h| h.id);
    if newest < head.id {
        return Ok(Behind::Yes { newest });
    }
    let hash: Option<String> = sqlx::query_scalar(HASH_OF).bind(head.id).fetch_optional(conn).await?;
    match hash {
        Some(hash) if hash == head.hash => Ok(Behind::No),
        Some(_) => Err(corrupt(head.id, "the file that remembers the newest event holds another hash of it").into()),
        None => Err(corrupt(head.id, "it is gone, while later ones are there").into()),
    }
}

/// Has SQLite look at every page of its file: a part that is missing, or of another time, is found where the tree of the
/// pages does not hold together.
pub(crate) async fn check_pages(conn: &mut Conn, path: &Path) -> Result<(), Fault> {
    let found: Vec<String> = sqlx::query_scalar("pragma integrity_check(1)").fetch_all(conn).await?;
    match found.as_slice() {
        [ok] if ok == "ok" => Ok(()),
        found => {
            let source = found.join("; ").into();
            Err(LedgerError::Damaged { path: path.to_owned(), source }.into())
        }
    }
}

/// Whether the database ends before the event that its head file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    No,
    Yes { newest: i64 },
}

/// Walks the whole chain, and compares its end with `head`, which must have been read before.
pub(crate) async fn verify(conn: &mut Conn, head: Option<&Head>) -> Result<u64, Fault> {
    let (mut last, mut previous, mut events) = (0_i64, GENESIS, 0_u64);
    loop {
        let page = sqlx::query(PAGE).bind(last).bind(PAGE_SIZE).fetch_all(&mut *conn).await?;
        if page.is_empty() {
            break;
        }
        for raw in page {
            let expected = last.saturating_add(1);
            let id: i64 = raw.try_get("id")?;
            if id != expected {
                return Err(corrupt(expected, format!("it is gone, and event {id} follows")).into());
            }
            let row = Row::from_row(&raw).map_err(|e| corrupt(id, format!("a column cannot be read ({e})")))?;
            previous = follow(&previous, row)?;
            last = id;
            events = events.saturating_add(1);
        }
    }
    if let Some(head) = head
        && let Behind::Yes { newest } = against_head(conn, head).await?
    {
        let why = format!("event {} was written once, and this ledger ends at event {newest}", head.id);
        return Err(corrupt(newest.saturating_add(1), why).into());
    }
    Ok(events)
}

/// The hash of a row that follows `previous`, if it is the one that is stored with it.
fn follow(previous: &Hash, row: Row) -> Result<Hash, Fault> {
    let (id, hash) = (row.id, chain::hash(previous, &row.link()));
    if chain::to_hex(&hash) != row.hash {
        return Err(corrupt(id, "its hash does not follow from its content and the event before it").into());
    }
    // What hashes right was written so by us; it must still be readable.
    row.event()?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Scene, event};

    #[tokio::test]
    async fn filters_choose_events_and_keep_their_order() {
        for scene in Scene::both().await {
            for (kind, key) in [("a", "x/1"), ("b", "x/2"), ("a", "y_1"), ("c", "x/1")] {
                let mut new = event(kind);
                new.key = Some(key.to_owned());
                new.team = Some(format!("team-{kind}"));
                scene.ledger.append(new).await.unwrap();
            }
            let ids = async |filter: EventFilter| -> Vec<i64> {
                scene.ledger.events(&filter).await.unwrap().iter().map(|e| e.id.0).collect()
            };
            let base = EventFilter::default;
            let own = str::to_owned;
            assert_eq!(ids(base()).await, [1, 2, 3, 4]);
            assert_eq!(ids(EventFilter { after: Some(EventId(2)), ..base() }).await, [3, 4]);
            assert_eq!(
                ids(EventFilter { kinds: vec![own("a"), own("c")], newest_first: true, ..base() }).await,
                [4, 3, 1]
            );
            assert_eq!(ids(EventFilter { key: Some(own("x/1")), ..base() }).await, [1, 4]);
            assert_eq!(ids(EventFilter { key_prefix: Some(own("x/")), limit: Some(2), ..base() }).await, [1, 2]);
            assert_eq!(ids(EventFilter { key_prefix: Some(own("y%")), ..base() }).await, Vec::<i64>::new());
            assert_eq!(ids(EventFilter { team: Some(own("team-b")), ..base() }).await, [2]);
            let second = scene.ledger.event(EventId(2)).await.unwrap().unwrap();
            assert_eq!(ids(EventFilter { since: Some(second.at), ..base() }).await, [2, 3, 4]);
            assert_eq!(ids(EventFilter { until: Some(second.at), ..base() }).await, [1]);
            let nano_later = second.at + jiff::SignedDuration::from_nanos(1);
            assert_eq!(ids(EventFilter { since: Some(nano_later), ..base() }).await, [3, 4]);
            assert_eq!(scene.ledger.newest_event().await.unwrap().unwrap().id, EventId(4));
        }
    }

    #[tokio::test]
    async fn an_event_comes_back_as_it_was_appended_with_both_times_cut_to_microseconds() {
        for scene in Scene::both().await {
            let new = NewEvent {
                kind: "kind".to_owned(),
                version: 3,
                key: Some("ключ\0".to_owned()),
                team: None,
                actor: Some(String::new()),
                body: json!({"z": 1, "a": [0.1, null, "é"], "big": u64::MAX}),
            };
            let id = scene.ledger.append(new.clone()).await.unwrap();
            let got = scene.ledger.event(id).await.unwrap().unwrap();
            assert_eq!((got.kind, got.version, got.key, got.team), (new.kind, new.version, new.key, new.team));
            assert_eq!((got.actor, got.body.to_string()), (new.actor, new.body.to_string()));
            let stamp = scene.last_stamp();
            assert_ne!(stamp.at.as_nanosecond() % 1_000, 0, "the test's clock must have something to cut");
            assert_eq!(got.at.as_nanosecond(), stamp.at.as_nanosecond() / 1_000 * 1_000);
            assert_eq!(got.real_at.as_nanosecond(), stamp.real_at.as_nanosecond() / 1_000 * 1_000);
        }
    }

    #[tokio::test]
    async fn a_whole_chain_verifies_over_several_pages() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            let count = 2 * PAGE_SIZE + 7;
            for _ in 0..count {
                tx.append(event("e")).await.unwrap();
            }
            tx.commit().await.unwrap();
            assert_eq!(i64::try_from(scene.ledger.verify().await.unwrap().events).unwrap(), count);
        }
    }

    #[tokio::test]
    async fn every_kind_of_tampering_is_found_at_the_event_it_happened_to() {
        for (statement, at) in [
            ("update events set body = '{\"n\":9}' where id = 3", 3),
            ("update events set kind = 'other' where id = 1", 1),
            ("update events set at = at + 1 where id = 5", 5),
            ("update events set actor = '' where id = 2", 2),
            ("update events set hash = upper(hash) where id = 4", 4),
            ("delete from events where id = 2", 2),
            ("delete from events where id = 5", 5),
            ("update events set id = 6 where id = 5", 5),
            ("update events set key = team, team = key where id = 3", 3),
        ] {
            let scene = Scene::new().await;
            for n in 0..5 {
                let mut new = event("e");
                new.key = Some(format!("k{n}"));
                scene.ledger.append(new).await.unwrap();
            }
            scene.tamper(statement).await;
            match scene.ledger.verify().await {
                Err(LedgerError::Corrupt { event, .. }) => assert_eq!(event, EventId(at), "after {statement}"),
                other => panic!("after {statement}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_chain_rewritten_whole_is_found_by_the_head_file() {
        let scene = Scene::new().await;
        scene.ledger.append(event("first")).await.unwrap();
        // What a careful forger would write: a valid chain of another event.
        let row = scene.ledger.newest_event().await.unwrap().unwrap();
        let forged = Link {
            id: 1,
            at: row.at.as_microsecond(),
            real_at: row.real_at.as_microsecond(),
            version: i64::from(row.version),
            kind: "forged",
            key: None,
            team: None,
            actor: None,
            body: &row.body.to_string(),
        };
        let hash = chain::to_hex(&chain::hash(&GENESIS, &forged));
        let statement = format!("update events set kind = 'forged', hash = '{hash}' where id = 1");
        scene.tamper(&statement).await;
        assert!(matches!(scene.ledger.verify().await, Err(LedgerError::Corrupt { event: EventId(1), .. })));
    }

    #[tokio::test]
    async fn the_schema_refuses_to_change_or_remove_an_event() {
        let scene = Scene::new().await;
        scene.ledger.append(event("e")).await.unwrap();
        for statement in ["update events set kind = 'x'", "delete from events"] {
            assert!(scene.statement(statement).await.is_err(), "{statement} was let through");
        }
        assert_eq!(scene.ledger.verify().await.unwrap().events, 1);
    }
}
