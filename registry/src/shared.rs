//! The table as requests share it: changed in memory under a lock, and saved as its effects ask.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::Clock;
use crate::saved::{self, SavedError};
use crate::table::{Effect, Save, Table};

/// See the module.
pub(crate) struct Shared {
    table: Mutex<Table>,
    clock: Clock,
    file: PathBuf,
    /// The revision that the file holds. Held while writing, so that an older table never replaces a newer one.
    written: Mutex<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(table: Table, clock: Clock, file: PathBuf) -> Arc<Self> {
        let written = Mutex::new(table.revision());
        Arc::new(Self { table: Mutex::new(table), clock, file, written })
    }

    /// Reads the table.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Table, Timestamp) -> T) -> T {
        let now = (self.clock)();
        look(&lock(&self.table), now)
    }

    /// Changes the table, and returns once what must be saved first is on disk.
    ///
    /// When saving fails the change stays in memory and is saved with the next tick that can; the asker gets the error
    /// and must ask again.
    pub(crate) async fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Table, Timestamp) -> Effect<T>,
    ) -> Result<T, SavedError> {
        let now = (self.clock)();
        let effect = change(&mut lock(&self.table), now);
        match effect.save {
            Save::First => self.save().await?,
            Save::Soon | Save::No => {}
        }
        Ok(effect.answer)
    }

    /// Saves the table if the file is behind. The writing goes on even if the asker goes away.
    pub(crate) async fn save(self: &Arc<Self>) -> Result<(), SavedError> {
        self.write(false).await
    }

    /// Saves the table even if the file holds it.
    pub(crate) async fn save_always(self: &Arc<Self>) -> Result<(), SavedError> {
        self.write(true).await
    }

    async fn write(self: &Arc<Self>, always: bool) -> Result<(), SavedError> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut written = lock(&shared.written);
            let (revision, state) = {
                let table = lock(&shared.table);
                if table.revision() == *written && !always {
                    return Ok(());
                }
                (table.revision(), table.state())
            };
            saved::save(&shared.file, &state)?;
            *written = revision;
            Ok(())
        });
        done.await.unwrap_or_else(|_| Err(SavedError::CutShort { path: self.file.clone() }))
    }
}
