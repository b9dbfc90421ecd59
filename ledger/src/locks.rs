//! Locks: one holder a name, and a fence that tells an old holder from the new one.

use crate::db::{self, Conn, Now};
use crate::error::{Fault, LedgerError};
use crate::types::{LockRow, Taken};

/// Takes a lock that is new or free. The row outlives its holder, so that the fence only ever grows.
const TAKE: &str = "insert into locks (name, holder, fence, at, real_at) values ($1, $2, 1, $3, $4)
    on conflict (name) do update
    set holder = excluded.holder, fence = locks.fence + 1, at = excluded.at, real_at = excluded.real_at
    where locks.holder is null
    returning fence";
const ONE: &str = "select holder, fence from locks where name = $1";
const HELD: &str = "select name, holder, fence, real_at from locks where holder is not null order by name";
const RELEASE: &str = "update locks set holder = null where name = $1 and holder = $2 and fence = $3";

pub(crate) async fn take(conn: &mut Conn, now: Now, name: &str, holder: &str) -> Result<Taken, Fault> {
    let taken: Option<i64> = sqlx::query_scalar(TAKE)
        .bind(name)
        .bind(holder)
        .bind(now.at)
        .bind(now.real_at)
        .fetch_optional(&mut *conn)
        .await?;
    if let Some(fence) = taken {
        return Ok(Taken::Yes { fence });
    }
    match held(conn, name).await? {
        Some((by, fence)) if by == holder => Ok(Taken::Yes { fence }),
        Some((holder, _)) => Ok(Taken::HeldBy { holder }),
        // Inside one write transaction a lock that could not be taken is held.
        None => Err(LedgerError::conflict(format!("the lock `{name}` is neither free nor held")).into()),
    }
}

async fn held(conn: &mut Conn, name: &str) -> Result<Option<(String, i64)>, Fault> {
    let row: Option<(Option<String>, i64)> = sqlx::query_as(ONE).bind(name).fetch_optional(conn).await?;
    Ok(row.and_then(|(holder, fence)| holder.map(|holder| (holder, fence))))
}

fn fenced(name: &str, now: Option<(String, i64)>) -> Fault {
    LedgerError::Fenced { name: name.to_owned(), holder_now: now.map(|(holder, _)| holder) }.into()
}

pub(crate) async fn check(conn: &mut Conn, name: &str, holder: &str, fence: i64) -> Result<(), Fault> {
    match held(conn, name).await? {
        Some((by, its)) if by == holder && its == fence => Ok(()),
        other => Err(fenced(name, other)),
    }
}

pub(crate) async fn release(conn: &mut Conn, name: &str, holder: &str, fence: i64) -> Result<(), Fault> {
    let released = sqlx::query(RELEASE).bind(name).bind(holder).bind(fence).execute(&mut *conn).await?;
    if released.rows_affected() == 1 {
        return Ok(());
    }
    Err(fenced(name, held(conn, name).await?))
}

pub(crate) async fn all_held(conn: &mut Conn) -> Result<Vec<LockRow>, Fault> {
    let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(HELD).fetch_all(conn).await?;
    rows.into_iter()
        .map(|(name, holder, fence, real_at)| {
            let real_at = db::time(real_at, &|| format!("lock `{name}`"))?;
            Ok(LockRow { name, holder, fence, real_at })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scene;

    async fn take(scene: &Scene, name: &str, holder: &str) -> Taken {
        let mut tx = scene.ledger.begin().await.unwrap();
        let taken = tx.take_lock(name, holder).await.unwrap();
        tx.commit().await.unwrap();
        taken
    }

    async fn release(scene: &Scene, name: &str, holder: &str, fence: i64) -> Result<(), LedgerError> {
        let mut tx = scene.ledger.begin().await?;
        tx.release_lock(name, holder, fence).await?;
        tx.commit().await
    }

    #[tokio::test]
    async fn a_lock_has_one_holder_and_its_fence_only_grows() {
        for scene in Scene::both().await {
            assert_eq!(take(&scene, "a", "one").await, Taken::Yes { fence: 1 });
            assert_eq!(take(&scene, "a", "one").await, Taken::Yes { fence: 1 }, "the same holder keeps its fence");
            assert_eq!(take(&scene, "a", "two").await, Taken::HeldBy { holder: "one".to_owned() });
            assert_eq!(take(&scene, "b", "two").await, Taken::Yes { fence: 1 }, "another name is another lock");
            release(&scene, "a", "one", 1).await.unwrap();
            assert_eq!(take(&scene, "a", "two").await, Taken::Yes { fence: 2 });
            release(&scene, "a", "two", 2).await.unwrap();
            assert_eq!(take(&scene, "a", "one").await, Taken::Yes { fence: 3 }, "a fence is never used again");
            let held: Vec<_> =
                scene.ledger.locks().await.unwrap().into_iter().map(|l| (l.name, l.holder, l.fence)).collect();
            assert_eq!(held, [("a".to_owned(), "one".to_owned(), 3), ("b".to_owned(), "two".to_owned(), 1)]);
        }
    }

    #[tokio::test]
    async fn an_old_fence_neither_passes_nor_releases() {
        for scene in Scene::both().await {
            take(&scene, "a", "one").await;
            release(&scene, "a", "one", 1).await.unwrap();
            let nobody = release(&scene, "a", "one", 1).await;
            assert!(matches!(nobody, Err(LedgerError::Fenced { holder_now: None, .. })), "{nobody:?}");
            take(&scene, "a", "two").await;
            let mut tx = scene.ledger.begin().await.unwrap();
            tx.check_fence("a", "two", 2).await.unwrap();
            for (holder, fence) in [("one", 1), ("one", 2), ("two", 1), ("two", 3)] {
                match tx.check_fence("a", holder, fence).await {
                    Err(LedgerError::Fenced { name, holder_now }) => {
                        assert_eq!((name.as_str(), holder_now.as_deref()), ("a", Some("two")));
                    }
                    other => panic!("{holder} {fence}: {other:?}"),
                }
            }
            assert!(matches!(
                tx.check_fence("never", "one", 1).await,
                Err(LedgerError::Fenced { holder_now: None, .. })
            ));
            drop(tx);
            assert!(matches!(release(&scene, "a", "two", 1).await, Err(LedgerError::Fenced { .. })));
            release(&scene, "a", "two", 2).await.unwrap();
        }
    }
}
