//! A worker of the balancer: the reverse proxy through which people reach the instances, and which asks for their health.
//!
//! Several workers, each a process, accept from one listener; each decides by itself and reports to the cloud process.
//! A flip must lose no request, so what a request follows is one table, replaced whole:
//! - `table`: the routes as they are looked up, and which target is next.
//! - `upstream`: one instance: its pooled connections, what is in flight to it, whether it is passed over.
//! - `proxy`: one request, from its head to the choice between another target and a failure that is told.
//! - `again`: whether a request that was sent and lost goes to another one.
//! - `bodies`, `headers`: what of a message goes on, both ways.
//! - `tunnel`: what becomes of a connection that client and instance agree to upgrade.
//! - `client`: one client's connection, and what it may cost.
//! - `health`: the checks and their verdicts.
//! - `link`: the connection to the cloud process: routes in, reports out.
//!
//! A request that may have reached an instance is sent again only where that makes no difference, and under a budget. Troop
//! kills instances on purpose, and what was in flight to them must be seen as lost, not papered over: it is counted as
//! failed all the same.

mod again;
mod bodies;
mod client;
mod counters;
mod headers;
mod health;
mod link;
mod proxy;
mod table;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use troop_http::Places;

use self::health::Checks;
use self::link::Link;
use self::table::Shared;
pub use super::init::Clock;

/// How long requests in flight may take to finish once the worker is to stop. The supervisor waits no longer than 2 s.
const FINISH_WITHIN: Duration = Duration::from_secs(1);
/// How long the last report may take to be written. It carries at most 250 ms of counts: not worth a slow end.
const LAST_REPORT_WITHIN: Duration = Duration::from_millis(200);
/// A worker that has just begun leaves clients to the others until it has routes; after this long it takes them all the
/// same, to tell them that the cloud is away.
const ROUTES_WITHIN: Duration = Duration::from_secs(1);
/// Pause after a failed accept: the process is out of descriptors, and trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most clients at a time. When there are more, those that keep us waiting leave; while none does, clients wait in the
/// listener's backlog, where the other worker may take them.
const CLIENTS_MAX: u64 = 4096;
/// Descriptors that are not a client's or its upstream's: the listener, the cloud's socket, checks, the runtime's.
const OWN_FDS: u64 = 128;
/// How often idle connections that are too old or closed are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Why a worker ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum BalancerError {
    #[error("could not listen on the inherited listener; it must be a TCP listener")]
    Listener(#[source] io::Error),
    #[error(
        "the task that talks to the cloud process ended; routes would go stale, so the worker ends: start it again"
    )]
    Link(#[source] JoinError),
}

/// Serves clients of `listener`, which other workers may share, until `stop`; then finishes what is in flight for at
/// most 1 s. `worker` is this worker's number in [`Hello::Balancer`](super::protocol::Hello::Balancer).
///
/// Connects to the cloud process at `cloud_socket` again and again, and serves by the last routes while it is away.
/// Needs a tokio runtime with time and IO; `clock` dates the verdicts on health.
///
/// # Errors
/// [`BalancerError`] when the listener cannot be used, or the worker could not go on.
pub async fn run(
    worker: u32,
    listener: std::net::TcpListener,
    cloud_socket: PathBuf,
    clock: Clock,
    stop: CancellationToken,
) -> Result<(), BalancerError> {
    listener.set_nonblocking(true).map_err(BalancerError::Listener)?;
    let listener = TcpListener::from_std(listener).map_err(BalancerError::Listener)?;
    let shared = Arc::new(Shared::new());
    let checks = Arc::new(Mutex::new(Checks::new(worker, clock)));
    let end = CancellationToken::new();
    let link = Link { worker, socket: cloud_socket, shared: Arc::clone(&shared), checks, end: end.clone() };
    let mut link = AbortOnDropHandle::new(tokio::spawn(link.run()));
    let _sweeper = AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(&shared))));
    let mut clients = JoinSet::new();
    tokio::select! {
        () = accept(listener, &shared, &mut clients, &stop) => {}
        ended = &mut link => if let Err(error) = ended { return Err(BalancerError::Link(error)) },
    }
    let finish = async { while clients.join_next().await.is_some() {} };
    if tokio::time::timeout(FINISH_WITHIN, finish).await.is_err() {
        tracing::info!(worker, open = clients.len(), "clients were cut off: their requests took too long");
        clients.shutdown().await;
    }
    end.cancel();
    if tokio::time::timeout(LAST_REPORT_WITHIN, link).await.is_err() {
        tracing::debug!(worker, "the cloud did not take the last report in time");
    }
    Ok(())
}

/// Takes clients until `stop`. The listener is closed with the return, so nobody waits for a worker that has stopped.
async fn accept(listener: TcpListener, shared: &Arc<Shared>, clients: &mut JoinSet<()>, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => return,
        _or_not = tokio::time::timeout(ROUTES_WITHIN, shared.routed()) => {}
    }
    let places = Places::new(clients_max());
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            place = places.take() => place,
        };
        let accepted = loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(_) = clients.join_next() => {}
                accepted = listener.accept() => break accepted,
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                clients.spawn(client::serve(stream, peer, place, Arc::clone(shared), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// As many clients as there are descriptors for: each may need one more towards an instance.
fn clients_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((limit.saturating_sub(OWN_FDS) / 2).clamp(1, CLIENTS_MAX)).unwrap_or(1)
}

async fn sweep(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SWEEP_EVERY);
    loop {
        ticks.tick().await;
        shared.sweep();
    }
}

/// Locks what is only ever changed by short code that cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
