//! One client's connection.
//!
//! hyper has one limit for both an idle connection and a head that is slow to come; a browser's idle connection may
//! last, a head that trickles in may not. So both are watched here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::proxy::{self, Reply};
use super::table::Shared;
use super::tunnel::Tunnel;
use super::{lock, proxy::in_words};

/// A head takes one packet, mostly; whoever needs longer holds a place on purpose.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may keep a connection without a request. Longer than clients do by themselves, who then close it
/// before it is closed under them.
const IDLE_FOR: Duration = Duration::from_secs(75);
/// How often the two limits are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A client that takes nothing of its answer for so long, or has vanished, is cut off: its request counts as in flight
/// and would hold up a drain.
const SILENT_MS: u32 = 30_000;
/// How long a connection is quiet before the client's kernel is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);

/// Serves one client until it leaves, dawdles, or `stop`: then the request in flight is finished.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, stop: CancellationToken) {
    if let Err(error) = set_up(&stream) {
        return tracing::debug!(%peer, %error, "a client left at once");
    }
    let phase = Arc::new(Phase::new(Now::Idle(Instant::now())));
    // At most one: a connection that is upgraded has had its last request.
    let opened: Arc<Mutex<Option<Tunnel>>> = Arc::default();
    let watched = Watched { stream, phase: Arc::clone(&phase) };
    let service = service_fn(|request| {
        let (shared, phase, opened) = (Arc::clone(&shared), Arc::clone(&phase), Arc::clone(&opened));
        phase.set(Now::Busy);
        async move {
            let (response, tunnel) = proxy::serve(&shared, peer.ip(), request).await;
            *lock(&opened) = tunnel;
            Ok::<_, Infallible>(response.map(|body| Ending { body, phase }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(watched), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, error = in_words(&error), "a client's connection ended");
                }
                break;
            }
            () = phase.overdue() => return tracing::debug!(%peer, "a client dawdled"),
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    let tunnel = lock(&opened).take();
    if let Some(tunnel) = tunnel {
        tunnel.run(|| phase.moved.load(Ordering::Relaxed)).await;
    }
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, SILENT_MS)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    Ok(())
}

/// What a client's connection is doing.
#[derive(Debug)]
struct Phase {
    now: Mutex<Now>,
    /// Bytes both ways, for a tunnel, which knows no requests.
    moved: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Between requests, since then.
    Idle(Instant),
    /// The first byte of a head came then.
    Head(Instant),
    /// A request is with us; its limits are others.
    Busy,
}

impl Phase {
    fn new(now: Now) -> Self {
        Self { now: Mutex::new(now), moved: AtomicU64::new(0) }
    }

    fn count(&self, bytes: usize) {
        self.moved.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn set(&self, now: Now) {
        *lock(&self.now) = now;
    }

    fn heard(&self) {
        let mut now = lock(&self.now);
        if let Now::Idle(_) = *now {
            *now = Now::Head(Instant::now());
        }
    }

    async fn overdue(&self) {
        loop {
            let is_overdue = match *lock(&self.now) {
                Now::Idle(since) => since.elapsed() >= IDLE_FOR,
                Now::Head(since) => since.elapsed() >= HEAD_WITHIN,
                Now::Busy => false,
            };
            if is_overdue {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// The client's stream, which tells the phase that something came.
#[derive(Debug)]
struct Watched {
    stream: TcpStream,
    phase: Arc<Phase>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.phase.count(buf.filled().len() - before);
            self.phase.heard();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.phase.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.phase.count(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A reply's body; with its end the connection is idle again.
#[derive(Debug)]
struct Ending {
    body: Reply,
    phase: Arc<Phase>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.phase.set(Now::Idle(Instant::now()));
    }
}

impl Body for Ending {
    type Data = Bytes;
    type Error = <Reply as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lasts(now: Now) -> Duration {
        let began = Instant::now();
        Phase::new(now).overdue().await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_client_may_stay_and_a_slow_head_may_not() {
        let idle = lasts(Now::Idle(Instant::now())).await;
        assert!(idle >= IDLE_FOR && idle <= IDLE_FOR + LOOK_EVERY, "{idle:?}");
        let head = lasts(Now::Head(Instant::now())).await;
        assert!(head >= HEAD_WITHIN && head <= HEAD_WITHIN + LOOK_EVERY, "{head:?}");
        let busy = Duration::from_secs(3600);
        assert!(tokio::time::timeout(busy, lasts(Now::Busy)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_begins_a_head_and_later_ones_do_not_prolong_it() {
        let phase = Phase::new(Now::Idle(Instant::now()));
        let first = Instant::now();
        phase.heard();
        tokio::time::advance(Duration::from_secs(1)).await;
        phase.heard();
        assert_eq!(*lock(&phase.now), Now::Head(first));
        phase.set(Now::Busy);
        phase.heard();
        assert_eq!(*lock(&phase.now), Now::Busy);
    }
}
