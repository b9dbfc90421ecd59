//! A ledger in memory, for simulations: the same promises as the file's within one process, and none beyond it.
//!
//! A transaction works on a copy of the tables that shares every row with what is committed, and a commit puts the copy
//! in place. So a transaction that is dropped leaves nothing, readers see only what is committed and never wait, and one
//! transaction is open at a time. Nothing of the command line can ask for it.

mod tables;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Mutex, OwnedMutexGuard};

pub(crate) use tables::Tables;

/// See the module. Cheap to clone; all clones are the same ledger.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    committed: Arc<RwLock<Tables>>,
    writer: Arc<Mutex<()>>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    /// What is committed now.
    pub(crate) fn read(&self) -> Tables {
        self.committed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn begin(&self) -> Open {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        Open { memory: self.clone(), tables: self.read(), writer }
    }

    /// A ledger of its own with what is committed here now, as a copy of the file would be.
    pub(crate) fn copy(&self) -> Self {
        Self { committed: Arc::new(RwLock::new(self.read())), writer: Arc::default() }
    }
}

/// An open transaction.
pub(crate) struct Open {
    memory: Memory,
    pub(crate) tables: Tables,
    writer: OwnedMutexGuard<()>,
}

impl Open {
    pub(crate) fn commit(self) {
        let Self { memory, tables, writer } = self;
        *memory.committed.write().unwrap_or_else(PoisonError::into_inner) = tables;
        drop(writer);
    }
}
