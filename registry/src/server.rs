//! The registry as a service: its table read from disk, kept while it runs, and left on disk when it stops.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tokio::net::TcpListener;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Clock;
use crate::http;
use crate::saved::{self, SavedError};
use crate::shared::Shared;
use crate::table::{TICK, Table};

/// How long requests in flight may take to end after a stop. Each of them takes milliseconds; a client that hangs must
/// not hold us.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Shortest lease of a site: leases are looked at once a second.
const LEASE_MIN: Duration = Duration::from_secs(1);

/// Longest lease of a site: one that nobody renews for a day is a mistake in the configuration.
const LEASE_MAX: Duration = Duration::from_secs(86_400);

/// Why the registry does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("a lease of {} s is out of range; `registry.lease` must be 1 s to 1 day", .0.as_secs_f64())]
    Lease(Duration),
    #[error("the registry's table cannot be used")]
    Table(#[from] SavedError),
}

/// Serves the registry on `listener` until `stop`, with its table in `table_file`.
///
/// `lease` is for clients that ask for none of their own. Entries whose lease ran out go within a second. Over a saved
/// table that has entries it begins warming, for two leases.
///
/// # Errors
/// [`RegistryError`] when the lease is out of range, the saved table cannot be read (it is never replaced by an empty
/// one), or the last save fails.
pub async fn serve(
    listener: TcpListener,
    table_file: PathBuf,
    lease: Duration,
    clock: Clock,
    stop: CancellationToken,
) -> Result<(), RegistryError> {
    let site_lease = match SignedDuration::try_from(lease) {
        Ok(signed) if (LEASE_MIN..=LEASE_MAX).contains(&lease) => signed,
        Ok(_) | Err(_) => return Err(RegistryError::Lease(lease)),
    };
    let now = clock();
    let table = match saved::load(&table_file)? {
        Some(state) => Table::restored(state, site_lease, now),
        None => Table::new(site_lease, now),
    };
    tracing::info!(entries = table.all().len(), warming = table.is_warming(now), "the registry serves");
    let shared = Shared::new(table, clock, table_file);
    // Says at the start, not at the first override, that the disk does not take the table.
    shared.save_always().await?;

    let server = http::accept(listener, http::router(shared.clone()), stop.clone());
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_WITHIN).await;
    };
    tokio::select! {
        () = server => {}
        () = too_late => {}
        () = keep(&shared) => {}
    }
    shared.save().await?;
    Ok(())
}

/// Evicts, and saves what may wait, once a tick, for ever.
async fn keep(shared: &Arc<Shared>) {
    let mut ticks = tokio::time::interval(TICK.unsigned_abs());
    // Made up ticks would count time in which nobody could renew.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let evicted = shared.change(Table::tick).await.unwrap_or_default();
        for key in evicted {
            tracing::info!(app = key.app, id = key.id, "evicted: its lease ran out");
        }
        match shared.save().await {
            Ok(()) => failing = false,
            Err(e) if !failing => {
                failing = true;
                tracing::error!(
                    error = &e as &dyn std::error::Error,
                    "the registry's table is not saved; trying again"
                );
            }
            Err(_) => {}
        }
    }
}
