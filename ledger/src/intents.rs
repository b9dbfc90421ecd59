//! Intents: written before an act, settled after it, once.

use sqlx::{FromRow, QueryBuilder};

use crate::db::{self, Conn, Driver, Now};
use crate::error::{Fault, LedgerError};
use crate::events::ceil_micros;
use crate::types::{IntentFilter, IntentRow, NewIntent};

const INSERT: &str = "insert into intents (id, kind, key, team, body, at, real_at) values ($1, $2, $3, $4, $5, $6, $7)
    on conflict (id) do nothing";
/// An open intent takes any outcome; an unknown one only what is known.
const SETTLE: &str = "update intents set outcome = $2, outcome_body = $3, settled_at = $4, settled_real_at = $5
    where id = $1 and (outcome is null or (outcome = 'unknown' and $2 in ('done', 'refused')))";
const SELECT: &str =
    "select id, kind, key, team, body, at, real_at, outcome, outcome_body, settled_real_at from intents";
const BY_ID: &str = "select id, kind, key, team, body, at, real_at, outcome, outcome_body, settled_real_at
    from intents where id = $1";
const OPEN: &str = "select id, kind, key, team, body, at, real_at, outcome, outcome_body, settled_real_at
    from intents where outcome is null order by seq";

#[derive(FromRow)]
struct Row {
    id: String,
    kind: String,
    key: String,
    team: Option<String>,
    body: String,
    at: i64,
    real_at: i64,
    outcome: Option<String>,
    outcome_body: Option<String>,
    settled_real_at: Option<i64>,
}

impl Row {
    fn intent(self) -> Result<IntentRow, Fault> {
        let id = self.id.clone();
        let what = || format!("intent {id}");
        Ok(IntentRow {
            body: db::json(&self.body, &what)?,
            at: db::time(self.at, &what)?,
            real_at: db::time(self.real_at, &what)?,
            outcome_body: self.outcome_body.map(|body| db::json(&body, &what)).transpose()?,
            settled_real_at: self.settled_real_at.map(|at| db::time(at, &what)).transpose()?,
            id: self.id,
            kind: self.kind,
            key: self.key,
            team: self.team,
            outcome: self.outcome,
        })
    }
}

fn intents(rows: Vec<Row>) -> Result<Vec<IntentRow>, Fault> {
    rows.into_iter().map(Row::intent).collect()
}

pub(crate) async fn insert(conn: &mut Conn, now: Now, new: NewIntent) -> Result<(), Fault> {
    let inserted = sqlx::query(INSERT)
        .bind(&new.id)
        .bind(new.kind)
        .bind(new.key)
        .bind(new.team)
        .bind(new.body.to_string())
        .bind(now.at)
        .bind(now.real_at)
        .execute(conn)
        .await?;
    if inserted.rows_affected() == 0 {
        return Err(LedgerError::conflict(format!("intent {} is in the ledger already", new.id)).into());
    }
    Ok(())
}

pub(crate) async fn settle(
    conn: &mut Conn,
    now: Now,
    id: &str,
    outcome: &str,
    body: &serde_json::Value,
) -> Result<(), Fault> {
    let settled = sqlx::query(SETTLE)
        .bind(id)
        .bind(outcome)
        .bind(body.to_string())
        .bind(now.at)
        .bind(now.real_at)
        .execute(&mut *conn)
        .await?;
    if settled.rows_affected() == 1 {
        return Ok(());
    }
    let what = match by_id(conn, id).await? {
        None => format!("there is no intent {id} to settle as {outcome}"),
        Some(row) => {
            let is = row.outcome.unwrap_or_else(|| "open".to_owned());
            format!("intent {id} is {is} and cannot become {outcome}")
        }
    };
    Err(LedgerError::Conflict { what }.into())
}

pub(crate) async fn by_id(conn: &mut Conn, id: &str) -> Result<Option<IntentRow>, Fault> {
    let row: Option<Row> = sqlx::query_as(BY_ID).bind(id).fetch_optional(conn).await?;
    row.map(Row::intent).transpose()
}

pub(crate) async fn open(conn: &mut Conn) -> Result<Vec<IntentRow>, Fault> {
    intents(sqlx::query_as(OPEN).fetch_all(conn).await?)
}

pub(crate) async fn select(conn: &mut Conn, filter: &IntentFilter) -> Result<Vec<IntentRow>, Fault> {
    let mut query = QueryBuilder::<Driver>::new(SELECT);
    query.push(" where true");
    for (condition, wanted) in [
        (" and kind = ", &filter.kind),
        (" and key = ", &filter.key),
        (" and team = ", &filter.team),
        (" and outcome = ", &filter.outcome),
    ] {
        if let Some(wanted) = wanted {
            query.push(condition).push_bind(wanted.clone());
        }
    }
    if let Some(since) = filter.since {
        query.push(" and at >= ").push_bind(ceil_micros(since));
    }
    // `+seq` is no column, so that a day's few intents are found by their time and then sorted; with `seq` SQLite would
    // rather walk through all of them in order.
    query.push(if filter.since.is_some() { " order by +seq" } else { " order by seq" });
    if filter.newest_first {
        query.push(" desc");
    }
    if let Some(limit) = filter.limit {
        query.push(" limit ").push_bind(i64::from(limit));
    }
    intents(query.build_query_as().fetch_all(conn).await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Scene, intent};

    async fn settle(scene: &Scene, id: &str, outcome: &str) -> Result<(), LedgerError> {
        let mut tx = scene.ledger.begin().await?;
        tx.settle_intent(id, outcome, json!({ "is": outcome })).await?;
        tx.commit().await
    }

    async fn insert(scene: &Scene, new: NewIntent) -> Result<(), LedgerError> {
        let mut tx = scene.ledger.begin().await?;
        tx.insert_intent(new).await?;
        tx.commit().await
    }

    #[tokio::test]
    async fn an_intent_is_settled_once_and_an_unknown_one_only_by_what_is_known() {
        for scene in Scene::both().await {
            let steps = |path: &[&'static str]| path.to_vec();
            for (i, (path, fails_at)) in [
                (steps(&["done", "done"]), Some(1)),
                (steps(&["done", "refused"]), Some(1)),
                (steps(&["done", "unknown"]), Some(1)),
                (steps(&["refused", "done"]), Some(1)),
                (steps(&["unknown", "unknown"]), Some(1)),
                (steps(&["unknown", "done"]), None),
                (steps(&["unknown", "refused", "done"]), Some(2)),
            ]
            .into_iter()
            .enumerate()
            {
                let id = format!("i{i}");
                insert(&scene, intent(&id)).await.unwrap();
                for (n, outcome) in path.iter().enumerate() {
                    let result = settle(&scene, &id, outcome).await;
                    let conflict = matches!(result, Err(LedgerError::Conflict { .. }));
                    assert_eq!(conflict, fails_at == Some(n), "{path:?} step {n}: {result:?}");
                    assert!(conflict || result.is_ok(), "{result:?}");
                }
                let last = path[fails_at.map_or(path.len(), |n| n) - 1];
                let row = scene.ledger.intent(&id).await.unwrap().unwrap();
                assert_eq!(row.outcome.as_deref(), Some(last));
                assert_eq!(row.outcome_body, Some(json!({ "is": last })));
                assert!(row.settled_real_at.unwrap() > row.real_at);
            }
            assert!(matches!(settle(&scene, "nobody", "done").await, Err(LedgerError::Conflict { .. })));
        }
    }

    #[tokio::test]
    async fn an_id_is_taken_once_for_all_time() {
        for scene in Scene::both().await {
            insert(&scene, intent("a")).await.unwrap();
            settle(&scene, "a", "done").await.unwrap();
            assert!(matches!(insert(&scene, intent("a")).await, Err(LedgerError::Conflict { .. })));
        }
    }

    #[tokio::test]
    async fn filters_choose_intents_and_open_ones_are_those_without_an_outcome() {
        for scene in Scene::both().await {
            for (id, kind, key) in [("b", "terminate", "x"), ("a", "resize", "x"), ("c", "terminate", "y")] {
                let mut new = intent(id);
                (new.kind, new.key) = (kind.to_owned(), key.to_owned());
                insert(&scene, new).await.unwrap();
            }
            settle(&scene, "a", "unknown").await.unwrap();
            let ids = |rows: Vec<IntentRow>| rows.into_iter().map(|r| r.id).collect::<Vec<_>>();
            let chosen = async |filter: IntentFilter| ids(scene.ledger.intents(&filter).await.unwrap());
            let base = IntentFilter::default;
            assert_eq!(ids(scene.ledger.open_intents().await.unwrap()), ["b", "c"]);
            assert_eq!(chosen(base()).await, ["b", "a", "c"]);
            let terminate = Some("terminate".to_owned());
            let newest = IntentFilter { kind: terminate, newest_first: true, limit: Some(1), ..base() };
            assert_eq!(chosen(newest).await, ["c"]);
            assert_eq!(chosen(IntentFilter { key: Some("x".to_owned()), ..base() }).await, ["b", "a"]);
            assert_eq!(chosen(IntentFilter { outcome: Some("unknown".to_owned()), ..base() }).await, ["a"]);
            assert_eq!(chosen(IntentFilter { team: Some("nobody".to_owned()), ..base() }).await, Vec::<String>::new());
            let since = Some(scene.ledger.intent("a").await.unwrap().unwrap().at);
            assert_eq!(chosen(IntentFilter { since, ..base() }).await, ["a", "c"]);
            assert_eq!(chosen(IntentFilter { since, newest_first: true, ..base() }).await, ["c", "a"]);
        }
    }
}
