//! An upgraded connection: bytes both ways between a client and the instance that agreed, until one of them ends it.
//!
//! A tunnel counts as in flight to its instance: a drain waits for it, and ends it when its time is over. It is part of its
//! client's task, so that it holds the client's place, and a worker that stops cuts it with the rest.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use troop_http::Phase;

use super::table::Shared;
use super::upstream::InFlight;

/// How long the two sides may take to leave HTTP after the answer said so: no more than the answer's way to the client.
const AGREED_WITHIN: Duration = Duration::from_secs(10);
/// A tunnel on which nothing moves for so long is ended: it was forgotten, and holds a place. Whoever means to keep one open
/// pings far more often.
const IDLE_FOR: Duration = Duration::from_secs(3600);
/// How long a side that has ended waits for the other's last words. Mostly it is gone altogether, and cannot say so.
const HALF_OPEN_FOR: Duration = Duration::from_secs(30);

/// Both sides, which are about to leave HTTP.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) shared: Arc<Shared>,
    pub(super) client: OnUpgrade,
    pub(super) instance: OnUpgrade,
    pub(super) in_flight: InFlight,
}

impl Tunnel {
    /// Passes bytes until either side ends, nothing moves for an hour, the instance's drain is over, or the client's place is
    /// needed and it takes nothing.
    pub(super) async fn run(self, client_is: &Phase) {
        client_is.upgraded();
        let Self { shared, client, instance, in_flight } = self;
        let id = &in_flight.0.instance;
        let both = async { tokio::join!(client, instance) };
        let (client, instance) = match tokio::time::timeout(AGREED_WITHIN, both).await {
            Ok((Ok(client), Ok(instance))) => (client, instance),
            Ok(_) | Err(_) => return tracing::debug!(instance = %id, "an upgrade came to nothing"),
        };
        let why = tokio::select! {
            () = pass(TokioIo::new(client), TokioIo::new(instance)) => "one side ended it",
            () = shared.drained(id) => "the drain is over",
            () = idle(|| client_is.moved()) => "nothing moved",
            () = client_is.left() => "its place was needed",
        };
        tracing::debug!(instance = %id, why, "a tunnel ended");
    }
}

/// Passes bytes until both sides have said all, one of them breaks off, or one waits too long for the other's end.
async fn pass(client: impl AsyncRead + AsyncWrite, instance: impl AsyncRead + AsyncWrite) {
    let ((from_client, to_client), (from_instance, to_instance)) =
        (tokio::io::split(client), tokio::io::split(instance));
    let (mut up, mut down) = (pin!(one_way(from_client, to_instance)), pin!(one_way(from_instance, to_client)));
    let rest = async {
        tokio::select! {
            ended = &mut up => if ended.is_ok() { Some(tokio::time::timeout(HALF_OPEN_FOR, down).await) } else { None },
            ended = &mut down => if ended.is_ok() { Some(tokio::time::timeout(HALF_OPEN_FOR, up).await) } else { None },
        }
    };
    let whole = matches!(rest.await, Some(Ok(Ok(()))));
    tracing::trace!(whole, "a tunnel has passed all that it will");
}

async fn one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn idle(moved: impl Fn() -> u64) {
    let mut seen = moved();
    loop {
        tokio::time::sleep(IDLE_FOR).await;
        let now = moved();
        if now == seen {
            return;
        }
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::io::AsyncReadExt as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_ended_waits_a_while_for_the_others_last_words() {
        let ((mut client, ours), (mut instance, theirs)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let began = Instant::now();
        let tunnel = tokio::spawn(pass(ours, theirs));
        client.shutdown().await.unwrap();
        instance.write_all(b"last").await.unwrap();
        let mut words = [0; 4];
        client.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"last");
        tunnel.await.unwrap();
        assert_eq!(began.elapsed(), HALF_OPEN_FOR);
        // Where both have, it ends at once.
        let ((mut client, ours), (mut instance, theirs)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let began = Instant::now();
        client.shutdown().await.unwrap();
        instance.shutdown().await.unwrap();
        pass(ours, theirs).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_is_idle_once_an_hour_brought_nothing() {
        let (began, moved) = (Instant::now(), AtomicU64::new(0));
        let moves = async {
            tokio::time::sleep(IDLE_FOR / 2).await;
            moved.store(1, Ordering::SeqCst);
        };
        tokio::join!(idle(|| moved.load(Ordering::SeqCst)), moves);
        assert_eq!(began.elapsed(), IDLE_FOR * 2);
    }
}
