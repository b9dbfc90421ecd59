//! Two handles on one file, as two processes have it: what must happen once happens once.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may panic as tests do")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use serde_json::json;
use troop_ledger::{Clock, Ledger, LedgerError, NewEvent, NewIntent, Stamp, Taken};

fn clock() -> Clock {
    let ticks = AtomicI64::new(1_800_000_000);
    Arc::new(move || {
        let at = Timestamp::from_second(ticks.fetch_add(1, Ordering::SeqCst)).unwrap();
        Stamp { at, real_at: at }
    })
}

async fn open(path: &Path) -> Ledger {
    Ledger::open(path, clock()).await.unwrap()
}

fn event(kind: &str) -> NewEvent {
    NewEvent { kind: kind.to_owned(), version: 1, key: None, team: None, actor: None, body: json!({}) }
}

const TASKS: usize = 4;
const ROUNDS: usize = 12;

/// Runs `work` on two handles in several tasks each, and collects what each gave.
async fn contend<T, F>(path: &Path, work: impl Fn(Ledger, usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (one, two) = (open(path).await, open(path).await);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..TASKS {
        tasks.spawn(work(one.clone(), 2 * n));
        tasks.spawn(work(two.clone(), 2 * n + 1));
    }
    tasks.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_plan_is_stored_once_whoever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let stored = contend(&path, |ledger, n| async move {
        let mut stored = Vec::new();
        for day in 0..ROUNDS {
            let (day, body) = (format!("day {day}"), json!({ "by": n }));
            stored.push(ledger.store_plan_once(&day, "team", 1, &body, event("plan")).await.unwrap());
        }
        stored
    })
    .await;
    let ledger = open(&path).await;
    for day in 0..ROUNDS {
        let of_day: Vec<_> = stored.iter().map(|by_task| &by_task[day]).collect();
        assert_eq!(of_day.iter().filter(|p| p.fresh).count(), 1, "day {day}");
        assert!(of_day.iter().all(|p| p.body == of_day[0].body && p.event == of_day[0].event), "day {day}");
    }
    assert_eq!(usize::try_from(ledger.verify().await.unwrap().events).unwrap(), ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lock_is_never_held_twice_and_its_fences_never_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let inside = Arc::new(AtomicI64::new(0));
    let fences = contend(&path, |ledger, n| {
        let inside = Arc::clone(&inside);
        async move {
            let holder = format!("holder {n}");
            let mut fences = Vec::new();
            while fences.len() < ROUNDS {
                let mut tx = ledger.begin().await.unwrap();
                let taken = tx.take_lock("cluster", &holder).await.unwrap();
                tx.commit().await.unwrap();
                let Taken::Yes { fence } = taken else {
                    tokio::task::yield_now().await;
                    continue;
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock at once");
                tokio::task::yield_now().await;
                assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                let mut tx = ledger.begin().await.unwrap();
                tx.check_fence("cluster", &holder, fence).await.unwrap();
                tx.release_lock("cluster", &holder, fence).await.unwrap();
                tx.commit().await.unwrap();
                fences.push(fence);
            }
            assert!(fences.is_sorted(), "{fences:?}");
            fences
        }
    })
    .await;
    let mut all: Vec<i64> = fences.into_iter().flatten().collect();
    all.sort_unstable();
    let expected: Vec<i64> = (1..=i64::try_from(2 * TASKS * ROUNDS).unwrap()).collect();
    assert_eq!(all, expected, "every taking has a fence of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_intent_is_settled_by_one_and_refused_to_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let mut tx = open(&path).await.begin().await.unwrap();
    let (id, kind, key) = ("i".to_owned(), "terminate".to_owned(), "k".to_owned());
    tx.insert_intent(NewIntent { id, kind, key, team: None, body: json!({}) }).await.unwrap();
    tx.commit().await.unwrap();
    let results = contend(&path, |ledger, n| async move {
        let mut tx = ledger.begin().await.unwrap();
        tx.settle_intent("i", "done", json!({ "by": n })).await?;
        tx.append(event("settled")).await?;
        tx.commit().await
    })
    .await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(LedgerError::Conflict { .. }))), "{results:?}");
    assert_eq!(open(&path).await.verify().await.unwrap().events, 1);
}
