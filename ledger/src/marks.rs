//! Marks, which stand until they are cleared, and the ledger's few words about itself, which are set once.

use crate::db::{self, Conn, Now};
use crate::error::{Fault, LedgerError};
use crate::types::MarkRow;

const SET: &str = "insert into marks (kind, key, body, at, real_at) values ($1, $2, $3, $4, $5)
    on conflict (kind, key) do update set body = excluded.body, at = excluded.at, real_at = excluded.real_at";
const CLEAR: &str = "delete from marks where kind = $1 and key = $2";
const ONE: &str = "select kind, key, body, at, real_at from marks where kind = $1 and key = $2";
const OF_KIND: &str = "select kind, key, body, at, real_at from marks where kind = $1 order by key";
const META: &str = "select value from meta where name = $1";
const META_SET: &str = "insert into meta (name, value, real_at) values ($1, $2, $3) on conflict (name) do nothing";

type Row = (String, String, String, i64, i64);

fn mark((kind, key, body, at, real_at): Row) -> Result<MarkRow, Fault> {
    let what = || format!("mark `{key}` of kind {kind}");
    let (body, at, real_at) = (db::json(&body, &what)?, db::time(at, &what)?, db::time(real_at, &what)?);
    Ok(MarkRow { kind, key, body, at, real_at })
}

pub(crate) async fn set(
    conn: &mut Conn,
    now: Now,
    kind: &str,
    key: &str,
    body: &serde_json::Value,
) -> Result<(), Fault> {
    sqlx::query(SET).bind(kind).bind(key).bind(body.to_string()).bind(now.at).bind(now.real_at).execute(conn).await?;
    Ok(())
}

pub(crate) async fn clear(conn: &mut Conn, kind: &str, key: &str) -> Result<(), Fault> {
    sqlx::query(CLEAR).bind(kind).bind(key).execute(conn).await?;
    Ok(())
}

pub(crate) async fn one(conn: &mut Conn, kind: &str, key: &str) -> Result<Option<MarkRow>, Fault> {
    let row: Option<Row> = sqlx::query_as(ONE).bind(kind).bind(key).fetch_optional(conn).await?;
    row.map(mark).transpose()
}

pub(crate) async fn of_kind(conn: &mut Conn, kind: &str) -> Result<Vec<MarkRow>, Fault> {
    let rows: Vec<Row> = sqlx::query_as(OF_KIND).bind(kind).fetch_all(conn).await?;
    rows.into_iter().map(mark).collect()
}

pub(crate) async fn meta(conn: &mut Conn, name: &str) -> Result<Option<String>, Fault> {
    Ok(sqlx::query_scalar(META).bind(name).fetch_optional(conn).await?)
}

/// Returns what is stored after it, which is `value` only if nothing was stored before.
pub(crate) async fn set_meta_once(conn: &mut Conn, now: Now, name: &str, value: &str) -> Result<String, Fault> {
    sqlx::query(META_SET).bind(name).bind(value).bind(now.real_at).execute(&mut *conn).await?;
    let stored = meta(conn, name).await?;
    let gone = || LedgerError::Unreadable { what: format!("`{name}`"), why: "it is gone again".to_owned() };
    Ok(stored.ok_or_else(gone)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::Scene;

    #[tokio::test]
    async fn a_mark_stands_until_it_is_cleared_and_setting_it_again_replaces_it() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            tx.set_mark("k", "b", json!(1)).await.unwrap();
            tx.set_mark("k", "a", json!(2)).await.unwrap();
            tx.set_mark("other", "a", json!(3)).await.unwrap();
            tx.set_mark("k", "b", json!(4)).await.unwrap();
            assert_eq!(tx.mark("k", "b").await.unwrap().unwrap().body, json!(4));
            assert_eq!(tx.marks("k").await.unwrap().len(), 2);
            tx.clear_mark("k", "a").await.unwrap();
            tx.clear_mark("k", "never there").await.unwrap();
            tx.commit().await.unwrap();
            let marks = scene.ledger.marks("k").await.unwrap();
            assert_eq!(marks.iter().map(|m| (m.key.as_str(), &m.body)).collect::<Vec<_>>(), [("b", &json!(4))]);
            assert_eq!(scene.ledger.mark("k", "a").await.unwrap(), None);
            assert_eq!(scene.ledger.mark("other", "a").await.unwrap().unwrap().body, json!(3));
        }
    }

    #[tokio::test]
    async fn what_is_set_once_stays() {
        for scene in Scene::both().await {
            assert_eq!(scene.ledger.meta("secret").await.unwrap(), None);
            assert_eq!(scene.ledger.set_meta_once("secret", "first").await.unwrap(), "first");
            assert_eq!(scene.ledger.set_meta_once("secret", "second").await.unwrap(), "first");
            assert_eq!(scene.ledger.meta("secret").await.unwrap().as_deref(), Some("first"));
        }
    }
}
