//! A write transaction: what is done in it is there whole after the commit, or not at all.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sqlx::Transaction;

use crate::db::{Conn, Driver};
use crate::error::{Fault, LedgerError, OnPath as _};
use crate::head::Head;
use crate::ledger::{Shared, Store};
use crate::memory::{self, Tables};
use crate::open::Pools;
use crate::plans::Which;
use crate::types::{
    Event, EventId, IntentFilter, IntentRow, LockRow, MarkRow, NewEvent, NewIntent, PushRow, RequestRow, StoredPlan,
    Taken,
};
use crate::{crash, events, intents, locks, marks, plans, pushes};

/// A transaction that holds the write lock. Dropped without [`Tx::commit`], it leaves nothing.
///
/// After an error other than [`LedgerError::Conflict`] and [`LedgerError::Fenced`], or when a step's future was dropped
/// before it ended, nobody knows how much of that step was done, and SQLite may have rolled back by itself, so that a
/// later step would stand alone: every later step, and the commit, then refuse.
pub struct Tx {
    open: Open,
    shared: Arc<Shared>,
    /// A step has begun and not ended well.
    in_doubt: bool,
    /// The newest event of this transaction.
    newest: Option<Head>,
}

/// Where the transaction is open.
enum Open {
    File(Transaction<'static, Driver>),
    Memory(Box<memory::Open>),
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { open: _, shared, in_doubt, newest } = self;
        let mut debug = f.debug_struct("Tx");
        debug.field("path", &shared.path).field("in_doubt", in_doubt).field("newest", newest).finish_non_exhaustive()
    }
}

/// Runs one step on the transaction's connection, see [`Tx`].
macro_rules! step {
    ($self:ident, $conn:ident => $work:expr, $tables:ident => $in_memory:expr) => {{
        $self.enter()?;
        let result = match &mut $self.open {
            Open::File(tx) => {
                let $conn: &mut Conn = tx;
                $work.await
            }
            Open::Memory(open) => {
                let $tables: &mut Tables = &mut open.tables;
                $in_memory
            }
        };
        crash::point("after a statement");
        $self.leave(result)
    }};
}

impl Tx {
    /// Begins. To be run in a task of its own: a begin that is dropped half way must not leave a connection inside a
    /// transaction that nobody owns.
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self, LedgerError> {
        let writer = match &shared.store {
            Store::Memory(memory) => {
                let open = Open::Memory(Box::new(memory.begin().await));
                return Ok(Self { open, shared, in_doubt: false, newest: None });
            }
            Store::File(Pools { writer: Some(writer), .. }) => writer,
            Store::File(Pools { writer: None, .. }) => {
                return Err(LedgerError::ReadOnly { path: shared.path.clone() });
            }
        };
        // Immediate: a transaction that reads first and writes later would be refused when another wrote meanwhile.
        let tx = writer.begin_with("BEGIN IMMEDIATE").await.on(&shared.path)?;
        shared.is_in_place()?;
        crash::point("in a transaction");
        Ok(Self { open: Open::File(tx), shared, in_doubt: false, newest: None })
    }

    fn enter(&mut self) -> Result<(), LedgerError> {
        if self.in_doubt {
            let what = "an earlier step of this transaction failed or was given up; begin a new one";
            return Err(LedgerError::conflict(what));
        }
        self.in_doubt = true;
        Ok(())
    }

    fn leave<T>(&mut self, result: Result<T, Fault>) -> Result<T, LedgerError> {
        self.in_doubt = result.as_ref().is_err_and(|fault| !fault.is_answer());
        result.on(&self.shared.path)
    }

    /// Makes everything of this transaction stand, and safe on disk.
    ///
    /// # Errors
    /// [`LedgerError::DiskFull`], [`LedgerError::Conflict`] after a step that failed, or the database's. Then nothing
    /// of it stands.
    pub async fn commit(self) -> Result<(), LedgerError> {
        if matches!(self.open, Open::Memory(_)) {
            return self.commit_here().await;
        }
        // In a task: whoever gives up waiting gets either all of it or nothing, and the head file follows.
        let task = tokio::spawn(self.commit_here());
        task.await.map_err(|source| LedgerError::TaskEnded { source })?
    }

    /// [`Tx::commit`] for who runs in a task already.
    pub(crate) async fn commit_here(mut self) -> Result<(), LedgerError> {
        self.enter()?;
        let Self { open, shared, newest, in_doubt: _ } = self;
        let tx = match open {
            Open::File(tx) => tx,
            Open::Memory(open) => {
                open.commit();
                return Ok(());
            }
        };
        crash::point("before a commit");
        tx.commit().await.on(&shared.path)?;
        crash::point("after a commit");
        let Some(newest) = newest else { return Ok(()) };
        let for_head = Arc::clone(&shared);
        let advanced = tokio::task::spawn_blocking(move || for_head.heads.advance(&for_head.path, newest)).await;
        let failed = match advanced {
            Ok(advanced) => advanced,
            Err(source) => Err(LedgerError::TaskEnded { source }),
        };
        if let Err(e) = failed {
            // The commit stands, so this call must not fail. The next commit, or the next start, writes the file.
            let error: &dyn std::error::Error = &e;
            tracing::warn!(path = %shared.path.display(), error, "cannot remember the newest event beside the ledger");
        }
        Ok(())
    }
}

/// Events and plans.
impl Tx {
    /// Appends one event.
    ///
    /// # Errors
    /// The database's; so for every step below that says no more.
    pub async fn append(&mut self, event: NewEvent) -> Result<EventId, LedgerError> {
        let now = self.shared.now()?;
        let head = step!(self, conn => events::append(conn, now, event), t => t.append(now, event))?;
        let id = EventId(head.id);
        self.newest = Some(head);
        Ok(id)
    }

    /// # Errors
    /// The database's.
    pub async fn event(&mut self, id: EventId) -> Result<Option<Event>, LedgerError> {
        step!(self, conn => events::by_id(conn, id), t => Ok(t.event(id)))
    }

    pub(crate) async fn store_plan_once(
        &mut self,
        which: Which<'_>,
        version: u32,
        body: &Value,
        event: NewEvent,
    ) -> Result<StoredPlan, LedgerError> {
        let now = self.shared.now()?;
        let (stored, head) = step!(self, conn => plans::store_once(conn, now, which, version, body, event), t => t.store_plan_once(now, which, version, body, event))?;
        self.newest = head.or(self.newest.take());
        Ok(stored)
    }

    pub(crate) async fn replace_plan_body(
        &mut self,
        which: Which<'_>,
        old_and_new: (&Value, &Value),
        event: NewEvent,
    ) -> Result<(), LedgerError> {
        let now = self.shared.now()?;
        let head = step!(self, conn => plans::replace_body(conn, now, which, old_and_new, event), t => t.replace_plan_body(now, which, old_and_new, event))?;
        self.newest = Some(head);
        Ok(())
    }

    /// Whether anything was written.
    pub(crate) async fn publish_day_key(
        &mut self,
        which: Which<'_>,
        key: &str,
        event: NewEvent,
    ) -> Result<bool, LedgerError> {
        let now = self.shared.now()?;
        let head = step!(self, conn => plans::publish_day_key(conn, now, which, key, event), t => t.publish_day_key(now, which, key, event))?;
        let written = head.is_some();
        self.newest = head.or(self.newest.take());
        Ok(written)
    }

    pub(crate) async fn set_meta_once(&mut self, name: &str, value: &str) -> Result<String, LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => marks::set_meta_once(conn, now, name, value), t => Ok(t.set_meta_once(name, value)))
    }
}

/// Intents and locks.
impl Tx {
    /// Intents without an outcome, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_intents(&mut self) -> Result<Vec<IntentRow>, LedgerError> {
        step!(self, conn => intents::open(conn), t => Ok(t.open_intents()))
    }

    /// # Errors
    /// The database's.
    pub async fn intents(&mut self, filter: &IntentFilter) -> Result<Vec<IntentRow>, LedgerError> {
        step!(self, conn => intents::select(conn, filter), t => Ok(t.intents(filter)))
    }

    /// # Errors
    /// The database's.
    pub async fn intent(&mut self, id: &str) -> Result<Option<IntentRow>, LedgerError> {
        step!(self, conn => intents::by_id(conn, id), t => Ok(t.intent(id)))
    }

    /// Writes an intent, which is open until it is settled.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when its id was used before, or the database's.
    pub async fn insert_intent(&mut self, new: NewIntent) -> Result<(), LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => intents::insert(conn, now, new), t => t.insert_intent(now, new))
    }

    /// Says what became of an intent. An open one takes any outcome, and one that is `unknown` becomes `done` or
    /// `refused`.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when it is settled already or was never written, or the database's.
    pub async fn settle_intent(&mut self, id: &str, outcome: &str, body: Value) -> Result<(), LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => intents::settle(conn, now, id, outcome, &body), t => t.settle_intent(now, id, outcome, &body))
    }

    /// The locks that are held, by name.
    ///
    /// # Errors
    /// The database's.
    pub async fn locks(&mut self) -> Result<Vec<LockRow>, LedgerError> {
        step!(self, conn => locks::all_held(conn), t => Ok(t.locks()))
    }

    /// Takes a lock, unless somebody else holds it. Who holds it already gets its own fence again.
    ///
    /// # Errors
    /// The database's.
    pub async fn take_lock(&mut self, name: &str, holder: &str) -> Result<Taken, LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => locks::take(conn, now, name, holder), t => t.take_lock(now, name, holder))
    }

    /// Makes sure that the lock is still this holder's, with this fence.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] when it is not, or the database's.
    pub async fn check_fence(&mut self, name: &str, holder: &str, fence: i64) -> Result<(), LedgerError> {
        step!(self, conn => locks::check(conn, name, holder, fence), t => t.check_fence(name, holder, fence))
    }

    /// Gives a lock back.
    ///
    /// # Errors
    /// [`LedgerError::Fenced`] when it is not this holder's with this fence, or the database's.
    pub async fn release_lock(&mut self, name: &str, holder: &str, fence: i64) -> Result<(), LedgerError> {
        step!(self, conn => locks::release(conn, name, holder, fence), t => t.release_lock(name, holder, fence))
    }
}

/// Pushes, requests and marks.
impl Tx {
    /// Writes a push at version 1, and returns its number.
    ///
    /// # Errors
    /// The database's.
    pub async fn insert_push(&mut self, key: &str, body: Value) -> Result<i64, LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => pushes::insert(conn, now, key, &body), t => t.insert_push(now, key, body))
    }

    /// Saves a push over the version that the caller read, and returns the new version.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when it is at another version, does not exist, or has ended and `ended` is false; or
    /// the database's.
    pub async fn save_push(
        &mut self,
        id: i64,
        expected_version: i64,
        body: Value,
        ended: bool,
    ) -> Result<i64, LedgerError> {
        step!(self, conn => pushes::save(conn, id, expected_version, &body, ended), t => t.save_push(id, expected_version, body, ended))
    }

    /// # Errors
    /// The database's.
    pub async fn push(&mut self, id: i64) -> Result<Option<PushRow>, LedgerError> {
        step!(self, conn => pushes::by_id(conn, id), t => Ok(t.push(id)))
    }

    /// The pushes that have not ended, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_pushes(&mut self) -> Result<Vec<PushRow>, LedgerError> {
        step!(self, conn => pushes::open(conn), t => Ok(t.open_pushes()))
    }

    /// The newest pushes of a key, newest first, at most `limit`.
    ///
    /// # Errors
    /// The database's.
    pub async fn pushes_of(&mut self, key: &str, limit: u32) -> Result<Vec<PushRow>, LedgerError> {
        step!(self, conn => pushes::of_key(conn, key, limit), t => Ok(t.pushes_of(key, limit)))
    }

    /// Writes a request, and returns its number.
    ///
    /// # Errors
    /// The database's.
    pub async fn insert_request(&mut self, kind: &str, key: &str, body: Value) -> Result<i64, LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => pushes::request(conn, now, kind, key, &body), t => t.insert_request(now, kind, key, body))
    }

    /// The unanswered requests of a kind, oldest first.
    ///
    /// # Errors
    /// The database's.
    pub async fn open_requests(&mut self, kind: &str) -> Result<Vec<RequestRow>, LedgerError> {
        step!(self, conn => pushes::open_requests(conn, kind), t => Ok(t.open_requests(kind)))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when it is answered already or was never made, or the database's.
    pub async fn close_request(&mut self, id: i64, body: Value) -> Result<(), LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => pushes::close_request(conn, now, id, &body), t => t.close_request(id))
    }

    /// Sets a mark, or replaces it.
    ///
    /// # Errors
    /// The database's.
    pub async fn set_mark(&mut self, kind: &str, key: &str, body: Value) -> Result<(), LedgerError> {
        let now = self.shared.now()?;
        step!(self, conn => marks::set(conn, now, kind, key, &body), t => t.set_mark(now, kind, key, body))
    }

    /// # Errors
    /// The database's.
    pub async fn mark(&mut self, kind: &str, key: &str) -> Result<Option<MarkRow>, LedgerError> {
        step!(self, conn => marks::one(conn, kind, key), t => Ok(t.mark(kind, key)))
    }

    /// All marks of a kind, by key.
    ///
    /// # Errors
    /// The database's.
    pub async fn marks(&mut self, kind: &str) -> Result<Vec<MarkRow>, LedgerError> {
        step!(self, conn => marks::of_kind(conn, kind), t => Ok(t.marks(kind)))
    }

    /// Clears a mark. One that is not there is clear already.
    ///
    /// # Errors
    /// The database's.
    pub async fn clear_mark(&mut self, kind: &str, key: &str) -> Result<(), LedgerError> {
        step!(self, conn => marks::clear(conn, kind, key), t => {
            t.clear_mark(kind, key);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Ledger;
    use crate::events::newest_head;
    use crate::head;
    use crate::testing::{SHORT_WAITS, Scene, clock, event, intent};

    /// Everything that a transaction can leave behind.
    async fn leave_traces(tx: &mut Tx) {
        tx.append(event("e")).await.unwrap();
        tx.insert_intent(intent("i")).await.unwrap();
        tx.set_mark("k", "m", json!(1)).await.unwrap();
        tx.insert_push("p", json!(1)).await.unwrap();
        tx.insert_request("r", "r", json!(1)).await.unwrap();
        assert_eq!(tx.take_lock("l", "me").await.unwrap(), Taken::Yes { fence: 1 });
    }

    async fn traces(ledger: &Ledger) -> [usize; 6] {
        [
            ledger.events(&crate::EventFilter::default()).await.unwrap().len(),
            ledger.open_intents().await.unwrap().len(),
            ledger.marks("k").await.unwrap().len(),
            ledger.open_pushes().await.unwrap().len(),
            ledger.open_requests("r").await.unwrap().len(),
            ledger.locks().await.unwrap().len(),
        ]
    }

    #[tokio::test]
    async fn a_dropped_transaction_leaves_nothing_and_a_committed_one_everything() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            leave_traces(&mut tx).await;
            assert_eq!(traces(&scene.ledger).await, [0; 6], "readers must not see what is not committed");
            drop(tx);
            let mut tx = scene.ledger.begin().await.unwrap();
            assert_eq!(tx.open_intents().await.unwrap(), []);
            assert_eq!(tx.locks().await.unwrap(), []);
            drop(tx);
            assert_eq!(traces(&scene.ledger).await, [0; 6]);
            assert_eq!(head::read(&scene.path).unwrap(), None);
            let mut tx = scene.ledger.begin().await.unwrap();
            leave_traces(&mut tx).await;
            tx.commit().await.unwrap();
            assert_eq!(traces(&scene.ledger).await, [1; 6]);
        }
    }

    #[tokio::test]
    async fn the_head_file_names_the_newest_event_after_every_commit() {
        let scene = Scene::new().await;
        for n in 1..4 {
            let mut tx = scene.ledger.begin().await.unwrap();
            tx.append(event("e")).await.unwrap();
            tx.append(event("e")).await.unwrap();
            tx.commit().await.unwrap();
            let mut conn = scene.ledger.0.pools().readers.acquire().await.unwrap();
            let newest = newest_head(&mut conn).await.unwrap();
            assert_eq!(newest.as_ref().map(|h| h.id), Some(2 * n));
            assert_eq!(head::read(&scene.path).unwrap().map(|r| r.head), newest);
        }
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_half_way_leaves_no_open_transaction() {
        let scene = Scene::new().await;
        for polls in 0..60 {
            let mut begin = Box::pin(scene.ledger.begin());
            let mut append = Box::pin(scene.ledger.append(event("given up")));
            for _ in 0..polls {
                if poll_once(&mut begin).await || poll_once(&mut append).await {
                    break;
                }
            }
            drop(begin);
            drop(append);
        }
        // Were a transaction left open, this would wait in vain.
        let other = Ledger::open_waiting(&scene.path, clock(&std::sync::Arc::default()), SHORT_WAITS).await.unwrap();
        other.append(event("by another")).await.unwrap();
        scene.ledger.append(event("by the first")).await.unwrap();
        scene.ledger.verify().await.unwrap();
    }

    /// Polls once, and lets everything else run. Whether it was ready.
    async fn poll_once<F: Future + Unpin>(future: &mut F) -> bool {
        let ready =
            std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready()))
                .await;
        tokio::task::yield_now().await;
        ready
    }

    #[tokio::test]
    async fn a_step_that_is_given_up_takes_its_transaction_with_it() {
        let scene = Scene::new().await;
        let mut tx = scene.ledger.begin().await.unwrap();
        tx.append(event("first")).await.unwrap();
        // The database's thread may be quick enough to answer within one poll; then nothing was given up yet.
        while poll_once(&mut Box::pin(tx.append(event("second")))).await {}
        assert!(matches!(tx.append(event("third")).await, Err(LedgerError::Conflict { .. })));
        assert!(matches!(tx.commit().await, Err(LedgerError::Conflict { .. })));
        assert_eq!(scene.ledger.verify().await.unwrap().events, 0);
    }

    #[tokio::test]
    async fn a_refused_step_leaves_the_transaction_usable() {
        for scene in Scene::both().await {
            let mut tx = scene.ledger.begin().await.unwrap();
            tx.insert_intent(intent("i")).await.unwrap();
            assert!(matches!(tx.insert_intent(intent("i")).await, Err(LedgerError::Conflict { .. })));
            assert!(matches!(tx.check_fence("l", "me", 1).await, Err(LedgerError::Fenced { .. })));
            tx.append(event("e")).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(scene.ledger.verify().await.unwrap().events, 1);
        }
    }

    #[tokio::test]
    async fn a_writer_that_waits_too_long_for_another_is_told_so() {
        let scene = Scene::new().await;
        let ticks = std::sync::Arc::default();
        let other = Ledger::open_waiting(&scene.path, clock(&ticks), SHORT_WAITS).await.unwrap();
        let held = scene.ledger.begin().await.unwrap();
        assert!(matches!(other.append(event("e")).await, Err(LedgerError::Busy { .. })));
        drop(held);
        let held = other.begin().await;
        let held = match held {
            Ok(held) => held,
            Err(e) => panic!("the lock was not given back: {e}"),
        };
        assert!(matches!(other.append(event("e")).await, Err(LedgerError::Busy { .. })), "the same within one process");
        drop(held);
        other.append(event("e")).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_told_apart_and_leaves_nothing() {
        let scene = Scene::new().await;
        scene.ledger.append(event("small")).await.unwrap();
        let fill = async || {
            let writer = scene.ledger.0.pools().writer.clone().unwrap();
            let pages: i64 = sqlx::query_scalar("pragma page_count").fetch_one(&writer).await.unwrap();
            let limit = sqlx::AssertSqlSafe(format!("pragma max_page_count = {}", pages + 2));
            sqlx::query(limit).execute(&writer).await.unwrap();
        };
        fill().await;
        let mut big = event("big");
        big.body = json!("x".repeat(100_000));
        let refused = scene.ledger.append(big.clone()).await;
        assert!(matches!(refused, Err(LedgerError::DiskFull { .. })), "{refused:?}");
        // The limit is the connection's, and this connection was given up.
        fill().await;
        let mut tx = scene.ledger.begin().await.unwrap();
        tx.insert_intent(intent("i")).await.unwrap();
        assert!(matches!(tx.append(big).await, Err(LedgerError::DiskFull { .. })));
        assert!(matches!(tx.set_mark("k", "m", json!(1)).await, Err(LedgerError::Conflict { .. })));
        let committed = tx.commit().await;
        assert!(committed.is_err(), "an intent must not stand without the event that was to follow it");
        assert_eq!(scene.ledger.open_intents().await.unwrap(), []);
        assert_eq!(scene.ledger.marks("k").await.unwrap(), []);
        scene.ledger.append(event("small again")).await.unwrap();
        assert_eq!(scene.ledger.verify().await.unwrap().events, 2);
    }
}
