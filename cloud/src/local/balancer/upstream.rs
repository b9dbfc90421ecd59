//! One instance as the proxy sees it: its pooled connections, what is in flight to it, and whether it is passed over.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use troop_policies::{GroupName, InstanceId};

use super::bodies::Lent;
use super::counters::Counters;
use super::lock;

/// On one machine a connect takes well under 1 ms; an address that vanished would otherwise take 3 s to say so.
const CONNECT_WITHIN: Duration = Duration::from_millis(250);
/// For so long others are tried first. Longer than a burst of retries, shorter than the health checks need to notice.
const PASS_OVER_FOR: Duration = Duration::from_secs(1);
/// Idle connections kept per instance: a worker's share of a load of some thousand requests a second.
const IDLE_MAX: usize = 32;
/// Below the 30 s and more for which servers keep idle connections, so that it is us who close.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// How long a connection may take to be ready again after its answer, else it is closed: the request's body, which the
/// instance did not wait for, may still be on its way.
const READY_WITHIN: Duration = Duration::from_secs(1);
/// A peer that has acknowledged nothing for so long is gone; a hung process's kernel still acknowledges.
const PEER_SILENT_MS: u32 = 5_000;
/// How long a connection is quiet before the peer's kernel is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) instance: InstanceId,
    pub(super) group: GroupName,
    pub(super) address: SocketAddr,
    pub(super) counters: Arc<Counters>,
    /// Requests from their being assigned until their answer's last byte.
    in_flight: AtomicU64,
    /// Whether the routes name it; if not, its connections are closed rather than kept.
    listed: AtomicBool,
    idle: Mutex<Vec<Idle>>,
    passed_over_until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection with no request on it, or lent to one.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Lent>,
    socket: Arc<Socket>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection within {} ms", CONNECT_WITHIN.as_millis())]
    TimedOut,
    #[error("{0}")]
    Refused(io::Error),
    /// The instance is not at fault.
    #[error("this machine has no room for another connection: {0}")]
    Exhausted(io::Error),
}

impl Upstream {
    pub(super) fn new(instance: InstanceId, group: GroupName, address: SocketAddr, counters: Arc<Counters>) -> Self {
        Self {
            instance,
            group,
            address,
            counters,
            in_flight: AtomicU64::new(0),
            listed: AtomicBool::new(true),
            idle: Mutex::new(Vec::new()),
            passed_over_until: Mutex::new(None),
        }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::SeqCst)
    }

    pub(super) fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::SeqCst);
        if !listed {
            lock(&self.idle).clear();
        }
    }

    pub(super) fn pass_over(&self) {
        *lock(&self.passed_over_until) = Some(Instant::now() + PASS_OVER_FOR);
    }

    pub(super) fn is_passed_over(&self) -> bool {
        lock(&self.passed_over_until).is_some_and(|until| Instant::now() < until)
    }

    /// A pooled connection that is still open, else a new one.
    pub(super) async fn connection(&self) -> Result<Connection, ConnectError> {
        match self.pooled() {
            Some(connection) => Ok(connection),
            None => connect(self.address).await,
        }
    }

    /// The connection used last: the others may then grow old enough to be closed.
    fn pooled(&self) -> Option<Connection> {
        loop {
            let idle = lock(&self.idle).pop()?;
            if idle.is_usable() {
                return Some(idle.connection);
            }
        }
    }

    /// Keeps the connection once it has finished with its request, if there is still a use for it.
    pub(super) fn give_back(self: &Arc<Self>, mut connection: Connection) {
        if connection.sender.is_ready() {
            return self.keep(connection);
        }
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(READY_WITHIN, connection.sender.ready()).await {
                upstream.keep(connection);
            }
        });
    }

    fn keep(&self, connection: Connection) {
        let mut idle = lock(&self.idle);
        // Asked under the lock: whoever unlists it afterwards finds the connection and drops it.
        if self.is_listed() && idle.len() < IDLE_MAX {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }

    pub(super) fn sweep(&self) {
        lock(&self.idle).retain(|idle| idle.since.elapsed() < IDLE_FOR && !idle.connection.sender.is_closed());
    }
}

impl Idle {
    fn is_usable(&self) -> bool {
        self.since.elapsed() < IDLE_FOR && self.connection.sender.is_ready() && self.connection.socket.is_quiet()
    }
}

impl Connection {
    /// Bytes written so far. Unchanged after a failure, nothing of the request was sent.
    pub(super) fn written(&self) -> u64 {
        self.socket.written.load(Ordering::SeqCst)
    }
}

/// A request that counts as in flight to an instance, for as long as this lives.
#[derive(Debug)]
pub(super) struct InFlight(pub(super) Arc<Upstream>);

impl InFlight {
    pub(super) fn begin(upstream: Arc<Upstream>) -> Self {
        upstream.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(upstream)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connect(address: SocketAddr) -> Result<Connection, ConnectError> {
    let stream = match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
        Err(_elapsed) => return Err(ConnectError::TimedOut),
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if is_our_own(&error) => return Err(ConnectError::Exhausted(error)),
        Ok(Err(error)) => return Err(ConnectError::Refused(error)),
    };
    notice_silence(&stream).map_err(ConnectError::Refused)?;
    let socket = Arc::new(Socket { stream, written: AtomicU64::new(0) });
    let io = TokioIo::new(SocketIo(Arc::clone(&socket)));
    let (sender, connection) =
        http1::Builder::new().handshake(io).await.map_err(|error| ConnectError::Refused(io::Error::other(error)))?;
    // Ends when the sender is dropped and the request on it, if any, is over or given up.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%address, %error, "a connection to an instance ended");
        }
    });
    Ok(Connection { sender, socket })
}

fn is_our_own(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(error).is_some_and(|errno| ours.contains(&errno))
}

/// Makes a peer that vanished without a word an error of the connection, rather than a wait for ever.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, PEER_SILENT_MS)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_AFTER / 2)?;
    Ok(())
}

/// A TCP stream that both hyper and the pool hold.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    written: AtomicU64,
}

impl Socket {
    /// Whether the peer has neither closed the connection nor said anything. Asked of the kernel, since hyper may not
    /// have had its turn yet: a request must not go to an instance that has already said that it is gone.
    fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        let peeked = rustix::net::recv(&self.stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(error) if error == Errno::AGAIN)
    }

    fn count(&self, result: &io::Result<usize>) {
        if let Ok(bytes) = result {
            self.written.fetch_add(u64::try_from(*bytes).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }
}

/// hyper's end of a [`Socket`]. Only one of these exists for each, so one waker each way is enough.
#[derive(Debug)]
struct SocketIo(Arc<Socket>);

impl AsyncRead for SocketIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(cx))?;
            match self.0.stream.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|_| ())),
            }
        }
    }
}

impl AsyncWrite for SocketIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(&self.0.stream, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl SocketIo {
    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.stream.poll_write_ready(cx))?;
            match write(&self.0.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.0.count(&result);
                    return Poll::Ready(result);
                }
            }
        }
    }
}
