//! The connection to the cloud process: routes come in and are put in force, reports go out.
//!
//! While it is away the worker serves by the last routes, and tries again. Reading and writing are apart: a cloud that
//! is slow to read reports must not delay a flip.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::health::Checks;
use super::lock;
use super::table::Shared;
use crate::local::protocol::{FromWorker, Hello, PROTOCOL_VERSION, Routes, frames, receive, send};

const REPORT_EVERY: Duration = Duration::from_millis(250);
/// Pause before another try to reach the cloud: it is on this machine, and back within a second when it restarts.
const RETRY_AFTER: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Link {
    pub(super) worker: u32,
    pub(super) socket: PathBuf,
    pub(super) shared: Arc<Shared>,
    pub(super) checks: Arc<Mutex<Checks>>,
    /// Cancelled when the worker has served its last request: one more report, and the end.
    pub(super) end: CancellationToken,
}

impl Link {
    pub(super) async fn run(self) {
        while !self.end.is_cancelled() {
            let (spoke, why) = match UnixStream::connect(&self.socket).await {
                Ok(stream) => self.talk(stream).await,
                Err(error) => (false, error.to_string()),
            };
            if self.end.is_cancelled() {
                return;
            }
            // Once for each time that it goes away, not once for each try.
            if spoke {
                let (worker, socket) = (self.worker, self.socket.display());
                tracing::warn!(worker, %socket, why, "the cloud is away; serving by the last routes and trying again");
            } else {
                tracing::debug!(worker = self.worker, why, "the cloud cannot be reached");
            }
            tokio::select! {
                () = self.end.cancelled() => return,
                () = tokio::time::sleep(RETRY_AFTER) => {}
            }
        }
    }

    /// Talks until the connection ends. Returns whether the cloud spoke at all, and why it ended.
    async fn talk(&self, stream: UnixStream) -> (bool, String) {
        let (applied, newest) = watch::channel(None);
        let (mut to, mut from) = frames(stream).split();
        let follow = async {
            while let Some(routes) = receive::<_, Routes>(&mut from).await? {
                self.shared.apply(&routes);
                lock(&self.checks).update(&routes.checks);
                tracing::debug!(worker = self.worker, version = routes.version, "routes are in force");
                applied.send_replace(Some(routes.version));
            }
            Ok::<_, io::Error>(())
        };
        let ended = tokio::select! {
            followed = follow => followed,
            told = self.tell(&mut to, newest) => told,
        };
        let spoke = applied.borrow().is_some();
        (spoke, ended.map_or_else(|error| error.to_string(), |()| "it closed the connection".to_owned()))
    }

    async fn tell(
        &self,
        to: &mut (impl futures::Sink<bytes::Bytes, Error = io::Error> + Unpin),
        mut applied: watch::Receiver<Option<u64>>,
    ) -> io::Result<()> {
        send(to, &Hello::Balancer { version: PROTOCOL_VERSION, worker: self.worker }).await?;
        let turned = lock(&self.checks).changed();
        let mut ticks = tokio::time::interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.end.cancelled() => return send(to, &self.report()).await,
                Ok(()) = applied.changed() => {
                    // If the cloud is slow to read, only the newest is told: the ones before are in the past.
                    let version = *applied.borrow_and_update();
                    if let Some(version) = version {
                        send(to, &FromWorker::Applied { version }).await?;
                    }
                }
                () = turned.notified() => send(to, &self.report()).await?,
                _ = ticks.tick() => send(to, &self.report()).await?,
            }
        }
    }

    fn report(&self) -> FromWorker {
        let health = lock(&self.checks).verdicts();
        let (traffic, in_flight) = self.shared.report();
        FromWorker::Report { health, traffic, in_flight }
    }
}
