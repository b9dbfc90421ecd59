//! The signals that end a supervisor: the first in order, the second at once.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::exit::Code;
use crate::ui;

/// A signal so soon after the first is the same wish once more: timeout(1), for one, sends it to the command and to the
/// command's group.
const SAME_WISH: Duration = Duration::from_millis(300);
/// Watches for SIGTERM, SIGINT and SIGHUP from now on. The first cancels the token; the second ends this process at
/// once, and what it started ends with it.
///
/// Must be called within a tokio runtime.
///
/// # Errors
/// When the signals cannot be watched.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut signals =
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
    let stop = CancellationToken::new();
    tokio::spawn({
        let stop = stop.clone();
        async move {
            any(&mut signals).await;
            stop.cancel();
            let first = Instant::now();
            while first.elapsed() < SAME_WISH {
                any(&mut signals).await;
            }
            ui::note("left at once: the sandbox and everything in it end by themselves");
            std::process::exit(i32::from(Code::LeftBehind.number()));
        }
    });
    Ok(stop)
}

async fn any([term, interrupt, hangup]: &mut [Signal; 3]) {
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
}
