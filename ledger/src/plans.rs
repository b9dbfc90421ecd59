//! Plans: one a day and team, stored by whoever is first.

use serde_json::Value;
use sqlx::FromRow;

use crate::db::{self, Conn, Now};
use crate::error::{Fault, LedgerError};
use crate::events;
use crate::head::Head;
use crate::types::{EventId, NewEvent, StoredPlan};

const ONE: &str = "select day, team, version, body, at, event from plans where day = $1 and team = $2";
const OF_DAY: &str = "select day, team, version, body, at, event from plans where day = $1 order by team";
const INSERT: &str = "insert into plans (day, team, version, body, at, real_at, event)
    values ($1, $2, $3, $4, $5, $6, $7)";
const REPLACE: &str = "update plans set body = $3 where day = $1 and team = $2";

/// The member of a plan's body that [`publish_day_key`] fills in.
const DAY_KEY: &str = "day_key";

/// Which plan is meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Which<'a> {
    pub(crate) day: &'a str,
    pub(crate) team: &'a str,
}

#[derive(FromRow)]
struct Row {
    day: String,
    team: String,
    version: i64,
    body: String,
    at: i64,
    event: i64,
}

fn plan(row: Row) -> Result<StoredPlan, Fault> {
    let what = || format!("the plan of {} for team {}", row.day, row.team);
    Ok(StoredPlan {
        fresh: false,
        version: db::version(row.version, &what)?,
        body: db::json(&row.body, &what)?,
        made_at: db::time(row.at, &what)?,
        event: EventId(row.event),
        day: row.day,
        team: row.team,
    })
}

async fn row(conn: &mut Conn, which: Which<'_>) -> Result<Option<Row>, Fault> {
    Ok(sqlx::query_as(ONE).bind(which.day).bind(which.team).fetch_optional(conn).await?)
}

pub(crate) async fn one(conn: &mut Conn, which: Which<'_>) -> Result<Option<StoredPlan>, Fault> {
    row(conn, which).await?.map(plan).transpose()
}

pub(crate) async fn of_day(conn: &mut Conn, day: &str) -> Result<Vec<StoredPlan>, Fault> {
    let rows: Vec<Row> = sqlx::query_as(OF_DAY).bind(day).fetch_all(conn).await?;
    rows.into_iter().map(plan).collect()
}

/// Stores a plan and its event, unless there is a plan: then that one comes back, and nothing is written.
pub(crate) async fn store_once(
    conn: &mut Conn,
    now: Now,
    which: Which<'_>,
    version: u32,
    body: &Value,
    event: NewEvent,
) -> Result<(StoredPlan, Option<Head>), Fault> {
    if let Some(stored) = one(conn, which).await? {
        return Ok((stored, None));
    }
    let head = events::append(conn, now, event).await?;
    let text = body.to_string();
    sqlx::query(INSERT)
        .bind(which.day)
        .bind(which.team)
        .bind(i64::from(version))
        .bind(&text)
        .bind(now.at)
        .bind(now.real_at)
        .bind(head.id)
        .execute(conn)
        .await?;
    let row = Row {
        day: which.day.to_owned(),
        team: which.team.to_owned(),
        version: i64::from(version),
        body: text,
        at: now.at,
        event: head.id,
    };
    Ok((StoredPlan { fresh: true, ..plan(row)? }, Some(head)))
}

async fn replace(conn: &mut Conn, which: Which<'_>, body: &Value) -> Result<(), Fault> {
    sqlx::query(REPLACE).bind(which.day).bind(which.team).bind(body.to_string()).execute(conn).await?;
    Ok(())
}

fn missing(which: Which<'_>) -> Fault {
    LedgerError::conflict(format!("there is no plan of {} for team {}", which.day, which.team)).into()
}

/// Replaces the body of a plan that is still `old`.
pub(crate) async fn replace_body(
    conn: &mut Conn,
    now: Now,
    which: Which<'_>,
    (old, new): (&Value, &Value),
    event: NewEvent,
) -> Result<Head, Fault> {
    let stored = row(conn, which).await?.ok_or_else(|| missing(which))?;
    // The text first: a number may read back a little different from what it was written from.
    let old_text = old.to_string();
    if stored.body != old_text && plan(stored)?.body != *old {
        let what = format!("the plan of {} for team {} was changed by somebody else", which.day, which.team);
        return Err(LedgerError::Conflict { what }.into());
    }
    replace(conn, which, new).await?;
    events::append(conn, now, event).await
}

/// Writes the day's key into a plan that has none. `None` when this very key is there already.
pub(crate) async fn publish_day_key(
    conn: &mut Conn,
    now: Now,
    which: Which<'_>,
    key: &str,
    event: NewEvent,
) -> Result<Option<Head>, Fault> {
    let mut stored = one(conn, which).await?.ok_or_else(|| missing(which))?;
    if !put_day_key(&mut stored, key)? {
        return Ok(None);
    }
    replace(conn, which, &stored.body).await?;
    events::append(conn, now, event).await.map(Some)
}

/// Puts the key into the plan's body. Whether it was not there yet.
pub(crate) fn put_day_key(stored: &mut StoredPlan, key: &str) -> Result<bool, Fault> {
    let what = format!("the plan of {} for team {}", stored.day, stored.team);
    let Some(members) = stored.body.as_object_mut() else {
        return Err(LedgerError::Unreadable { what, why: "its body is no JSON object".to_owned() }.into());
    };
    match members.get(DAY_KEY) {
        Some(Value::String(published)) if published == key => return Ok(false),
        None | Some(Value::Null) => {}
        Some(_) => {
            let what = format!("{what} has another key published already; the site secret was changed");
            return Err(LedgerError::Conflict { what }.into());
        }
    }
    members.insert(DAY_KEY.to_owned(), Value::String(key.to_owned()));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Scene, event};

    #[tokio::test]
    async fn the_second_plan_of_a_day_and_team_is_the_first_and_writes_no_event() {
        for scene in Scene::both().await {
            let ledger = &scene.ledger;
            let first = ledger.store_plan_once("2026-03-02", "a", 1, &json!({"n": 1}), event("plan")).await.unwrap();
            let second = ledger.store_plan_once("2026-03-02", "a", 1, &json!({"n": 2}), event("plan")).await.unwrap();
            assert!(first.fresh && !second.fresh);
            assert_eq!(StoredPlan { fresh: true, ..second }, first);
            assert_eq!(first.body, json!({"n": 1}));
            assert!(ledger.store_plan_once("2026-03-02", "b", 1, &json!({}), event("plan")).await.unwrap().fresh);
            assert!(ledger.store_plan_once("2026-03-03", "a", 1, &json!({}), event("plan")).await.unwrap().fresh);
            assert_eq!(ledger.verify().await.unwrap().events, 3);
            let teams: Vec<String> = ledger.plans("2026-03-02").await.unwrap().into_iter().map(|p| p.team).collect();
            assert_eq!(teams, ["a", "b"]);
            assert_eq!(ledger.plan("2026-03-02", "c").await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_plan_is_replaced_only_over_the_body_that_was_read() {
        for scene in Scene::both().await {
            let ledger = &scene.ledger;
            let (one, two) = (json!({"f": 0.1, "n": [1]}), json!({"f": 0.1, "n": [1, 2]}));
            ledger.store_plan_once("d", "t", 1, &one, event("plan")).await.unwrap();
            ledger.replace_plan_body("d", "t", &one, &two, event("joined")).await.unwrap();
            let again = ledger.replace_plan_body("d", "t", &one, &json!({}), event("joined")).await;
            assert!(matches!(again, Err(LedgerError::Conflict { .. })), "{again:?}");
            let nobody = ledger.replace_plan_body("d", "nobody", &one, &two, event("joined")).await;
            assert!(matches!(nobody, Err(LedgerError::Conflict { .. })), "{nobody:?}");
            assert_eq!(ledger.plan("d", "t").await.unwrap().unwrap().body, two);
            assert_eq!(ledger.verify().await.unwrap().events, 2, "what was refused must leave no event");
        }
    }

    #[tokio::test]
    async fn a_day_key_is_published_once_and_never_replaced() {
        for scene in Scene::both().await {
            let ledger = &scene.ledger;
            ledger.store_plan_once("d", "t", 1, &json!({"day_key": null, "z": 1}), event("plan")).await.unwrap();
            ledger.publish_day_key("d", "t", "abcd", event("published")).await.unwrap();
            ledger.publish_day_key("d", "t", "abcd", event("published")).await.unwrap();
            let other = ledger.publish_day_key("d", "t", "ffff", event("published")).await;
            assert!(matches!(other, Err(LedgerError::Conflict { .. })), "{other:?}");
            let nobody = ledger.publish_day_key("d", "nobody", "abcd", event("published")).await;
            assert!(matches!(nobody, Err(LedgerError::Conflict { .. })), "{nobody:?}");
            let body = ledger.plan("d", "t").await.unwrap().unwrap().body;
            assert_eq!(body.to_string(), r#"{"day_key":"abcd","z":1}"#, "the order of the members stays");
            assert_eq!(ledger.verify().await.unwrap().events, 2);
        }
    }
}
