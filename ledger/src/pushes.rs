//! Pushes, saved over and over by whoever drives them, and requests, which wait for an answer.

use sqlx::FromRow;

use crate::db::{self, Conn, Now};
use crate::error::{Fault, LedgerError};
use crate::types::{PushRow, RequestRow};

const INSERT: &str = "insert into pushes (key, body, version, ended, at, real_at) values ($1, $2, 1, $3, $4, $5)
    returning id";
/// A push that has ended stays so, though its body may still be saved.
const SAVE: &str = "update pushes set body = $3, version = version + 1, ended = $4
    where id = $1 and version = $2 and (ended = $5 or ended = $4)
    returning version";
const BY_ID: &str = "select id, key, body, version, ended, at, real_at from pushes where id = $1";
const OPEN: &str = "select id, key, body, version, ended, at, real_at from pushes where ended = $1 order by id";
const NEWEST: &str = "select id, key, body, version, ended, at, real_at from pushes order by id desc limit $1";
const OF_KEY: &str = "select id, key, body, version, ended, at, real_at from pushes
    where key = $1 order by id desc limit $2";
const REQUEST: &str = "insert into requests (kind, key, body, at, real_at) values ($1, $2, $3, $4, $5) returning id";
const OPEN_REQUESTS: &str = "select id, kind, key, body, real_at from requests
    where kind = $1 and answered_real_at is null order by id";
const ANSWER: &str =
    "update requests set answer = $2, answered_real_at = $3 where id = $1 and answered_real_at is null";

#[derive(FromRow)]
struct Row {
    id: i64,
    key: String,
    body: String,
    version: i64,
    ended: bool,
    at: i64,
    real_at: i64,
}

fn push(row: Row) -> Result<PushRow, Fault> {
    let Row { id, key, body, version, ended, at, real_at } = row;
    let what = || format!("push {id}");
    let (body, at, real_at) = (db::json(&body, &what)?, db::time(at, &what)?, db::time(real_at, &what)?);
    Ok(PushRow { id, key, body, version, ended, at, real_at })
}

fn pushes(rows: Vec<Row>) -> Result<Vec<PushRow>, Fault> {
    rows.into_iter().map(push).collect()
}

pub(crate) async fn insert(conn: &mut Conn, now: Now, key: &str, body: &serde_json::Value) -> Result<i64, Fault> {
    let insert = sqlx::query_scalar(INSERT).bind(key).bind(body.to_string()).bind(false);
    Ok(insert.bind(now.at).bind(now.real_at).fetch_one(conn).await?)
}

pub(crate) async fn save(
    conn: &mut Conn,
    id: i64,
    expected: i64,
    body: &serde_json::Value,
    ended: bool,
) -> Result<i64, Fault> {
    let save = sqlx::query_scalar(SAVE).bind(id).bind(expected).bind(body.to_string()).bind(ended).bind(false);
    if let Some(version) = save.fetch_optional(&mut *conn).await? {
        return Ok(version);
    }
    let what = match by_id(conn, id).await? {
        None => format!("there is no push {id}"),
        Some(row) if row.version != expected => {
            format!("push {id} was saved by somebody else: it is at version {}, not {expected}", row.version)
        }
        Some(_) => format!("push {id} has ended and cannot go on"),
    };
    Err(LedgerError::Conflict { what }.into())
}

pub(crate) async fn by_id(conn: &mut Conn, id: i64) -> Result<Option<PushRow>, Fault> {
    let row: Option<Row> = sqlx::query_as(BY_ID).bind(id).fetch_optional(conn).await?;
    row.map(push).transpose()
}

pub(crate) async fn open(conn: &mut Conn) -> Result<Vec<PushRow>, Fault> {
    pushes(sqlx::query_as(OPEN).bind(false).fetch_all(conn).await?)
}

pub(crate) async fn newest(conn: &mut Conn, limit: u32) -> Result<Vec<PushRow>, Fault> {
    pushes(sqlx::query_as(NEWEST).bind(i64::from(limit)).fetch_all(conn).await?)
}

pub(crate) async fn of_key(conn: &mut Conn, key: &str, limit: u32) -> Result<Vec<PushRow>, Fault> {
    pushes(sqlx::query_as(OF_KEY).bind(key).bind(i64::from(limit)).fetch_all(conn).await?)
}

pub(crate) async fn request(
    conn: &mut Conn,
    now: Now,
    kind: &str,
    key: &str,
    body: &serde_json::Value,
) -> Result<i64, Fault> {
    let insert = sqlx::query_scalar(REQUEST).bind(kind).bind(key).bind(body.to_string());
    Ok(insert.bind(now.at).bind(now.real_at).fetch_one(conn).await?)
}

pub(crate) async fn open_requests(conn: &mut Conn, kind: &str) -> Result<Vec<RequestRow>, Fault> {
    let rows: Vec<(i64, String, String, String, i64)> =
        sqlx::query_as(OPEN_REQUESTS).bind(kind).fetch_all(conn).await?;
    rows.into_iter()
        .map(|(id, kind, key, body, real_at)| {
            let what = || format!("request {id}");
            let (body, real_at) = (db::json(&body, &what)?, db::time(real_at, &what)?);
            Ok(RequestRow { id, kind, key, body, real_at })
        })
        .collect()
}

pub(crate) async fn close_request(conn: &mut Conn, now: Now, id: i64, answer: &serde_json::Value) -> Result<(), Fault> {
    let closed = sqlx::query(ANSWER).bind(id).bind(answer.to_string()).bind(now.real_at).execute(conn).await?;
    if closed.rows_affected() == 0 {
        return Err(LedgerError::conflict(format!("request {id} is answered already, or was never made")).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Scene;

    #[tokio::test]
    async fn a_push_is_saved_only_over_the_version_that_was_read() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            let id = tx.insert_push("app", json!({"phase": 1})).await.unwrap();
            assert_eq!(tx.save_push(id, 1, json!({"phase": 2}), false).await.unwrap(), 2);
            for wrong in [0, 1, 3] {
                let result = tx.save_push(id, wrong, json!({}), false).await;
                assert!(matches!(result, Err(LedgerError::Conflict { .. })), "{result:?}");
            }
            assert!(matches!(tx.save_push(id + 1, 1, json!({}), false).await, Err(LedgerError::Conflict { .. })));
            assert_eq!(tx.open_pushes().await.unwrap().len(), 1);
            assert_eq!(tx.save_push(id, 2, json!({"phase": 3}), true).await.unwrap(), 3);
            assert!(matches!(tx.save_push(id, 3, json!({}), false).await, Err(LedgerError::Conflict { .. })));
            assert_eq!(tx.save_push(id, 3, json!({"phase": 4}), true).await.unwrap(), 4);
            tx.commit().await.unwrap();
            let row = scene.ledger.push(id).await.unwrap().unwrap();
            assert_eq!((row.version, row.ended, row.body), (4, true, json!({"phase": 4})));
            assert_eq!(scene.ledger.open_pushes().await.unwrap(), []);
        }
    }

    #[tokio::test]
    async fn pushes_come_newest_first_and_by_key() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            let mut ids = Vec::new();
            for key in ["a", "b", "a", "a"] {
                ids.push(tx.insert_push(key, json!(null)).await.unwrap());
            }
            let of_a: Vec<i64> = tx.pushes_of("a", 2).await.unwrap().iter().map(|p| p.id).collect();
            assert_eq!(of_a, [ids[3], ids[2]]);
            assert_eq!(tx.push(ids[1]).await.unwrap().unwrap().key, "b");
            tx.commit().await.unwrap();
            let newest: Vec<i64> = scene.ledger.pushes(3).await.unwrap().iter().map(|p| p.id).collect();
            assert_eq!(newest, [ids[3], ids[2], ids[1]]);
        }
    }

    #[tokio::test]
    async fn a_request_is_open_until_it_is_answered_once() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            let id = tx.insert_request("abort", "push 1", json!({"why": "w"})).await.unwrap();
            tx.insert_request("other", "push 1", json!({})).await.unwrap();
            tx.commit().await.unwrap();
            let open = scene.ledger.open_requests("abort").await.unwrap();
            assert_eq!(open.iter().map(|r| (r.id, r.key.as_str())).collect::<Vec<_>>(), [(id, "push 1")]);
            let mut tx = scene.ledger.begin().await.unwrap();
            assert_eq!(tx.open_requests("abort").await.unwrap().len(), 1);
            tx.close_request(id, json!({"ok": true})).await.unwrap();
            assert!(matches!(tx.close_request(id, json!({})).await, Err(LedgerError::Conflict { .. })));
            tx.commit().await.unwrap();
            assert_eq!(scene.ledger.open_requests("abort").await.unwrap(), []);
        }
    }
}
