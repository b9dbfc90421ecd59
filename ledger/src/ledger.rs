//! The ledger's handle: what may be done in one call.
//!
//! Every write runs in a task of its own. A caller that gives up, for a timeout or a closed connection, so never leaves
//! a transaction half done: the task ends what it began.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::db::Now;
use crate::error::{LedgerError, OnPath as _};
use crate::memory::Memory;
use crate::open::{self, Pools, Waits};
use crate::plans::Which;
use crate::tx::Tx;
use crate::types::{
    Clock, Event, EventFilter, EventId, IntentFilter, IntentRow, LockRow, MarkRow, NewEvent, PushRow, RequestRow,
    StoredPlan, Verified,
};
use crate::{events, head, intents, locks, marks, plans, pushes};

/// An open ledger. Cheap to clone; all clones share their connections.
#[derive(Clone)]
pub struct Ledger(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    /// `None` when opened for reading only.
    clock: Option<Clock>,
    pub(crate) store: Store,
    pub(crate) heads: head::Advancing,
    /// Which file this is, whatever its name comes to mean; `None` in memory.
    file: Option<FileId>,
}

pub(crate) enum Store {
    File(Pools),
    Memory(Memory),
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Result<FileId, LedgerError> {
    let file = fs::metadata(path).map_err(|e| LedgerError::file("look at", path, e))?;
    Ok((file.dev(), file.ino()))
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read_only = self.0.clock.is_none();
        f.debug_struct("Ledger").field("path", &self.0.path).field("read_only", &read_only).finish_non_exhaustive()
    }
}

impl Shared {
    /// Both times of a row that is written now.
    pub(crate) fn now(&self) -> Result<Now, LedgerError> {
        let clock = self.clock.as_ref().ok_or_else(|| LedgerError::ReadOnly { path: self.path.clone() })?;
        Ok(clock().into())
    }

    #[cfg(test)]
    pub(crate) fn pools(&self) -> &Pools {
        match &self.store {
            Store::File(pools) => pools,
            Store::Memory(_) => panic!("a ledger in memory has no connections"),
        }
    }

    /// Makes sure that the file's name is still the file's: what is written to one without a name is lost.
    pub(crate) fn is_in_place(&self) -> Result<(), LedgerError> {
        let Some(opened) = self.file else { return Ok(()) };
        match file_id(&self.path) {
            Ok(now) if now == opened => Ok(()),
            Ok(_) | Err(_) => Err(LedgerError::Replaced { path: self.path.clone() }),
        }
    }
}

/// Reads what is committed: by a query, or from the tables in memory.
macro_rules! read {
    ($self:ident, $conn:ident => $query:expr, $tables:ident => $in_memory:expr) => {
        match &$self.0.store {
            Store::File(pools) => {
                let mut reader = pools.readers.acquire().await.on(&$self.0.path)?;
                let $conn = &mut *reader;
                $query.await.on(&$self.0.path)
            }
            Store::Memory(memory) => {
                let $tables = memory.read();
                Ok($in_memory)
            }
        }
    };
}

/// Opening and transactions.
impl Ledger {
    /// Opens the ledger at `path` for writing, and makes it if there is none. Its files are for this user only.
    ///
    /// # Errors
    /// [`LedgerError::MissingFolder`], [`LedgerError::NotALedger`], [`LedgerError::NewerSchema`],
    /// [`LedgerError::OlderThanHead`], [`LedgerError::HeadUnreadable`], [`LedgerError::Corrupt`] when the head file and
    /// the chain disagree, [`LedgerError::ReadOnly`], [`LedgerError::DiskFull`], [`LedgerError::Busy`], or the file
    /// system's.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, LedgerError> {
        Self::open_waiting(path, clock, Waits::default()).await
    }

    pub(crate) async fn open_waiting(path: &Path, clock: Clock, waits: Waits) -> Result<Self, LedgerError> {
        let pools = open::writable(path, waits).await?;
        let file = file_id(path)?;
        Ok(Self::of(path, Some(clock), Store::File(pools), Some(file)))
    }

    fn of(path: &Path, clock: Option<Clock>, store: Store, file: Option<FileId>) -> Self {
        Self(Arc::new(Shared { path: path.to_owned(), clock, store, heads: head::Advancing::default(), file }))
    }

    /// A new ledger in memory, for simulations. It promises what a file does, but that nothing of it outlives the
    /// process.
    pub fn in_memory(clock: Clock) -> Self {
        Self::of_memory(Memory::default(), clock)
    }

    fn of_memory(memory: Memory, clock: Clock) -> Self {
        Self::of(Path::new("memory"), Some(clock), Store::Memory(memory), None)
    }

    /// The same ledger in memory as another control plane with a clock of its own opens it. `None` for a file, which is
    /// opened by its path.
    #[must_use]
    pub fn shared_in_memory(&self, clock: Clock) -> Option<Self> {
        match &self.0.store {
            Store::Memory(memory) => Some(Self::of_memory(memory.clone(), clock)),
            Store::File(_) => None,
        }
    }

    /// A copy of a ledger in memory, as somebody puts a copy of the file in its place. `None` for a file.
    #[must_use]
    pub fn copied_in_memory(&self, clock: Clock) -> Option<Self> {
        match &self.0.store {
            Store::Memory(memory) => Some(Self::of_memory(memory.copy(), clock)),
            Store::File(_) => None,
        }
    }

    /// Opens the ledger at `path` for reading. Every write then answers [`LedgerError::ReadOnly`].
    ///
    /// # Errors
    /// As [`Ledger::open`], and [`LedgerError::Missing`].
    pub async fn open_read_only(path: &Path) -> Result<Self, LedgerError> {
        let pools = open::read_only(path).await?;
        let file = file_id(path)?;
        Ok(Self::of(path, None, Store::File(pools), Some(file)))
    }

    /// Begins a transaction, which holds the write lock at once: no other process writes until it ends.
    ///
    /// Only one transaction runs at a time, so a caller that holds one must not wait for another write.
    ///
    /// # Errors
    /// [`LedgerError::Busy`], [`LedgerError::ReadOnly`], [`LedgerError::Replaced`], or the database's.
    pub async fn begin(&self) -> Result<Tx, LedgerError> {
        self.in_task(Tx::begin(Arc::clone(&self.0))).await
    }

    /// Whether the file that was opened still has its name. Every write asks this for itself.
    ///
    /// # Errors
    /// [`LedgerError::Replaced`].
    pub fn is_in_place(&self) -> Result<(), LedgerError> {
        self.0.is_in_place()
    }

    /// Closes the ledger for all its clones, once what is running has ended, and folds the write-ahead log into the
    /// file. A process that ends without it loses nothing; the next opening reads the log.
    pub async fn close(self) {
        let Store::File(pools) = &self.0.store else { return };
        pools.readers.close().await;
        // Last: only a connection that may write can fold the log in, and only when nobody else is left.
        if let Some(writer) = &pools.writer {
            writer.close().await;
        }
    }

    /// Runs the work in a task of its own. In memory no step waits, so that a caller that is dropped leaves nothing half
    /// done by itself.
    async fn in_task<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LedgerError>> + Send + 'static,
    ) -> Result<T, LedgerError> {
        if matches!(self.0.store, Store::Memory(_)) {
            return work.await;
        }
        tokio::spawn(work).await.map_err(|source| LedgerError::TaskEnded { source })?
    }
}

/// Events.
impl Ledger {
    /// Appends one event, and returns its number once it is safe on disk.
    ///
    /// # Errors
    /// As [`Ledger::begin`], and [`LedgerError::DiskFull`].
    pub async fn append(&self, event: NewEvent) -> Result<EventId, LedgerError> {
        let shared = Arc::clone(&self.0);
        self.in_task(async move {
            let mut tx = Tx::begin(shared).await?;
            let id = tx.append(event).await?;
            tx.commit_here().await?;
            Ok(id)
        })
        .await
    }

    /// # Errors
    /// The database's, or [`LedgerError::Unreadable`].
    pub async fn events(&self, filter: &EventFilter) -> Result<Vec<Event>, LedgerError> {
        read!(self, c => events::select(c, filter), t => t.events(filter))
    }

    /// # Errors
    /// As [`Ledger::events`].
    pub async fn event(&self, id: EventId) -> Result<Option<Event>, LedgerError> {
        read!(self, c => events::by_id(c, id), t => t.event(id))
    }

    /// # Errors
    /// As [`Ledger::events`].
    pub async fn newest_event(&self) -> Result<Option<Event>, LedgerError> {
        let newest = EventFilter { newest_first: true, limit: Some(1), ..EventFilter::default() };
        Ok(self.events(&newest).await?.into_iter().next())
    }

    /// The number of the newest event. Cheap: whoever keeps what it read can see whether anything was written since.
    ///
    /// # Errors
    /// As [`Ledger::events`].
    pub async fn newest_id(&self) -> Result<Option<EventId>, LedgerError> {
        read!(self, c => events::newest_id(c), t => t.newest().map(|event| event.id))
    }

    /// Walks the whole chain, compares its end with the file that remembers the newest event, and has the database look
    /// at every page of its file. Reads everything, so it takes a while with much.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] at the first event that is not what was written, [`LedgerError::Damaged`],
    /// [`LedgerError::Replaced`], or the database's.
    pub async fn verify(&self) -> Result<Verified, LedgerError> {
        let pools = match &self.0.store {
            Store::File(pools) => pools,
            Store::Memory(memory) => return Ok(Verified { events: memory.read().verify().on(&self.0.path)? }),
        };
        // Before the database, so that an event committed meanwhile is no contradiction.
        let head = head::read(&self.0.path)?.map(|remembered| remembered.head);
        let read = async {
            let mut conn = pools.readers.acquire().await.on(&self.0.path)?;
            let events = events::verify(&mut conn, head.as_ref()).await.on(&self.0.path)?;
            events::check_pages(&mut conn, &self.0.path).await.on(&self.0.path)?;
            Ok(Verified { events })
        };
        let read = read.await;
        // What was found in another file says nothing about this one.
        self.0.is_in_place()?;
        read
    }
}

/// Plans.
impl Ledger {
    /// Stores the plan of a day and team with its event, in one transaction. Whoever comes second gets the first's,
    /// with `fresh` false, and no event is written.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub async fn store_plan_once(
        &self,
        day: &str,
        team: &str,
        version: u32,
        body: &Value,
        event: NewEvent,
    ) -> Result<StoredPlan, LedgerError> {
        let (shared, day, team, body) = (Arc::clone(&self.0), day.to_owned(), team.to_owned(), body.clone());
        self.in_task(async move {
            let mut tx = Tx::begin(shared).await?;
            let stored = tx.store_plan_once(Which { day: &day, team: &team }, version, &body, event).await?;
            if stored.fresh {
                tx.commit_here().await?;
            }
            Ok(stored)
        })
        .await
    }

    /// # Errors
    /// The database's, or [`LedgerError::Unreadable`].
    pub async fn plan(&self, day: &str, team: &str) -> Result<Option<StoredPlan>, LedgerError> {
        read!(self, c => plans::one(c, Which { day, team }), t => t.plan(Which { day, team }))
    }

    /// All teams' plans of one day, by team.
    ///
    /// # Errors
    /// As [`Ledger::plan`].
    pub async fn plans(&self, day: &str) -> Result<Vec<StoredPlan>, LedgerError> {
        read!(self, c => plans::of_day(c, day), t => t.plans_of(day))
    }

    /// Replaces the body of a stored plan, and writes its event.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when there is no plan or its body is not `old` any more; else as [`Ledger::append`].
    pub async fn replace_plan_body(
        &self,
        day: &str,
        team: &str,
        old: &Value,
        new: &Value,
        event: NewEvent,
    ) -> Result<(), LedgerError> {
        let (shared, day, team) = (Arc::clone(&self.0), day.to_owned(), team.to_owned());
        let (old, new) = (old.clone(), new.clone());
        self.in_task(async move {
            let mut tx = Tx::begin(shared).await?;
            tx.replace_plan_body(Which { day: &day, team: &team }, (&old, &new), event).await?;
            tx.commit_here().await
        })
        .await
    }

    /// Writes the day's key, in hexadecimal, into `day_key` of the stored plan's body, with its event. Does nothing if
    /// that very key is there.
    ///
    /// # Errors
    /// [`LedgerError::Conflict`] when there is no plan, or another key is there; else as [`Ledger::append`].
    pub async fn publish_day_key(&self, day: &str, team: &str, hex: &str, event: NewEvent) -> Result<(), LedgerError> {
        let (shared, day, team, hex) = (Arc::clone(&self.0), day.to_owned(), team.to_owned(), hex.to_owned());
        self.in_task(async move {
            let mut tx = Tx::begin(shared).await?;
            if tx.publish_day_key(Which { day: &day, team: &team }, &hex, event).await? {
                tx.commit_here().await?;
            }
            Ok(())
        })
        .await
    }
}

/// Reads of what stands now, and the ledger's words about itself.
impl Ledger {
    /// Intents without an outcome, oldest first.
    ///
    /// # Errors
    /// The database's, or [`LedgerError::Unreadable`]. So for all reads below.
    pub async fn open_intents(&self) -> Result<Vec<IntentRow>, LedgerError> {
        read!(self, c => intents::open(c), t => t.open_intents())
    }

    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn intents(&self, filter: &IntentFilter) -> Result<Vec<IntentRow>, LedgerError> {
        read!(self, c => intents::select(c, filter), t => t.intents(filter))
    }

    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn intent(&self, id: &str) -> Result<Option<IntentRow>, LedgerError> {
        read!(self, c => intents::by_id(c, id), t => t.intent(id))
    }

    /// All marks of a kind, by key.
    ///
    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn marks(&self, kind: &str) -> Result<Vec<MarkRow>, LedgerError> {
        read!(self, c => marks::of_kind(c, kind), t => t.marks(kind))
    }

    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn mark(&self, kind: &str, key: &str) -> Result<Option<MarkRow>, LedgerError> {
        read!(self, c => marks::one(c, kind, key), t => t.mark(kind, key))
    }

    /// The locks that are held, by name.
    ///
    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn locks(&self) -> Result<Vec<LockRow>, LedgerError> {
        read!(self, c => locks::all_held(c), t => t.locks())
    }

    /// The newest pushes, newest first, at most `limit`.
    ///
    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn pushes(&self, limit: u32) -> Result<Vec<PushRow>, LedgerError> {
        read!(self, c => pushes::newest(c, limit), t => t.newest_pushes(limit))
    }

    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn push(&self, id: i64) -> Result<Option<PushRow>, LedgerError> {
        read!(self, c => pushes::by_id(c, id), t => t.push(id))
    }

    /// The pushes that have not ended, oldest first.
    ///
    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn open_pushes(&self) -> Result<Vec<PushRow>, LedgerError> {
        read!(self, c => pushes::open(c), t => t.open_pushes())
    }

    /// The unanswered requests of a kind, oldest first.
    ///
    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn open_requests(&self, kind: &str) -> Result<Vec<RequestRow>, LedgerError> {
        read!(self, c => pushes::open_requests(c, kind), t => t.open_requests(kind))
    }

    /// # Errors
    /// As [`Ledger::open_intents`].
    pub async fn meta(&self, name: &str) -> Result<Option<String>, LedgerError> {
        read!(self, c => marks::meta(c, name), t => t.meta(name))
    }

    /// Stores a word about the ledger itself unless there is one of this name, and returns what is stored then.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub async fn set_meta_once(&self, name: &str, value: &str) -> Result<String, LedgerError> {
        let (shared, name, value) = (Arc::clone(&self.0), name.to_owned(), value.to_owned());
        self.in_task(async move {
            let mut tx = Tx::begin(shared).await?;
            let stored = tx.set_meta_once(&name, &value).await?;
            tx.commit_here().await?;
            Ok(stored)
        })
        .await
    }
}
