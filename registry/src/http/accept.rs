//! Who is served at a time, and what one connection may cost.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use troop_http::{Limits, Place, Places, Refused, buffered};

use super::{BODY_BYTES_MAX, answer};

/// What a connection may cost.
const LIMITS: Limits = Limits {
    // A head takes one packet; whoever needs longer holds a place on purpose.
    head_within: Duration::from_secs(10),
    // Eureka's clients send some hundred bytes; metadata may come in a query.
    head_bytes_max: 64 << 10,
    fields_max: 100,
    // Twice Eureka's pause between heartbeats and more, so that their connections last.
    idle_for: Duration::from_secs(75),
    // A list of all entries may be megabytes, but somebody must be taking it.
    silent_for: Duration::from_secs(30),
};
/// How long a body may take. It has 64 KiB at most: the slowest line brings that in a second.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Most connections at a time: one for the heartbeats of each instance of a large site.
const CONNECTIONS_MAX: u64 = 16_384;
/// Descriptors that are no client's: the listener, the table's file, the runtime's.
const OWN_FDS: u64 = 64;
/// Pause after a failed accept: the process is out of descriptors, and trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until `stop`, and then until the last request is answered.
pub(crate) async fn accept(listener: TcpListener, router: Router, stop: CancellationToken) {
    let places = Places::new(connections_max());
    let mut clients = JoinSet::new();
    while let Some(place) = stop.run_until_cancelled(places.take()).await {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                clients.spawn(serve(stream, peer, place, router.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "could not take a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
    // Nobody shall wait for one who takes nobody any more.
    drop(listener);
    while clients.join_next().await.is_some() {}
}

fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(OWN_FDS).min(CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

async fn serve(stream: TcpStream, peer: SocketAddr, place: Place, router: Router, stop: CancellationToken) {
    // Answers are small and wait for nothing.
    if let Err(error) = stream.set_nodelay(true) {
        return tracing::debug!(%peer, %error, "a client left at once");
    }
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let router = router.clone();
        async move {
            match buffered(request, BODY_BYTES_MAX, BODY_WITHIN).await {
                Ok(request) => router.call(request.map(Body::new)).await,
                Err(refused) => Ok(refusal(refused)),
            }
        }
    });
    if let Err(ended) = troop_http::serve(stream, service, place, &LIMITS, stop).await {
        tracing::debug!(%peer, error = &ended as &dyn std::error::Error, "a client's connection");
    }
}

fn refusal(refused: Refused) -> Response {
    let status = match refused {
        Refused::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Refused::TooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
        Refused::BrokeOff => StatusCode::BAD_REQUEST,
    };
    answer::line(status, refused)
}
