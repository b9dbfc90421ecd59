//! One client's connection: what it may cost, and what the kernel is told about it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use troop_http::{Ended, Limits, Phase, Place};

use super::lock;
use super::proxy::{self, in_words};
use super::table::Shared;
use super::tunnel::Tunnel;

/// What a client's connection may cost.
pub(super) const LIMITS: Limits = Limits {
    // A head takes one packet, mostly; whoever needs longer holds a place on purpose.
    head_within: Duration::from_secs(10),
    // Cookies and tokens of large sites reach 16 KiB; instances mostly refuse what is longer.
    head_bytes_max: 64 << 10,
    fields_max: 100,
    // Longer than clients keep a connection by themselves, who then close it before it is closed under them.
    idle_for: Duration::from_secs(75),
    // Its request counts as in flight and would hold up a drain. A body that stops while an answer is awaited is told so
    // sooner, after `bodies::ANSWER_WITHIN`.
    silent_for: Duration::from_secs(40),
};
/// A client whose kernel acknowledges nothing for so long has vanished.
const VANISHED_MS: u32 = 30_000;
/// How long a connection is quiet before the client's kernel is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);

/// A tunnel, and the connection that it holds the place of.
type Opened = Option<(Tunnel, Arc<Phase>)>;

/// Serves one client until it leaves, dawdles, must leave for others, or `stop`: then the request in flight is finished.
pub(super) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    if let Err(error) = set_up(&stream) {
        return tracing::debug!(%peer, %error, "a client left at once");
    }
    // At most one: a connection that is upgraded has had its last request.
    let opened: Arc<Mutex<Opened>> = Arc::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, opened) = (Arc::clone(&shared), Arc::clone(&opened));
        let phase = request.extensions().get::<Arc<Phase>>().cloned();
        async move {
            let (response, tunnel) = proxy::serve(&shared, peer.ip(), request).await;
            *lock(&opened) = tunnel.zip(phase);
            Ok::<_, Infallible>(response)
        }
    });
    match troop_http::serve(stream, service, place, &LIMITS, stop).await {
        Ok(()) => {}
        Err(Ended::Closed(why)) => tracing::debug!(%peer, why, "a client's connection was closed"),
        Err(Ended::Broken(error)) => tracing::debug!(%peer, error = in_words(&error), "a client's connection ended"),
    }
    let tunnel = lock(&opened).take();
    if let Some((tunnel, phase)) = tunnel {
        tunnel.run(&phase).await;
    }
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_tcp_user_timeout(stream, VANISHED_MS)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_AFTER)?;
    Ok(())
}
