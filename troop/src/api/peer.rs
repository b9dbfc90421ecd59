//! The control socket's two halves. The supervisor, outside the sandbox, accepts and reads the peer's uid, because only
//! there is it the host's; the control plane, inside, gets the connection with that uid over a socket pair and serves it.
//!
//! What travels over the pair: one message a connection, four bytes of uid in little endian with the connection as
//! `SCM_RIGHTS`. The kernel joins no two messages that carry descriptors, and the reader asks for exactly four bytes.

use std::error::Error;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse as _;
use axum::{Extension, Router};
use bytes::Bytes;
use http::header;
use http_body_util::Full;
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use troop_http::{Limits, Place, Places, buffered};

use super::router::{REQUEST_BYTES_MAX, status, yours};
use super::types::{Actor, ApiError, ErrorKind};

/// What a connection may cost.
const LIMITS: Limits = Limits {
    // Both ends are on one machine.
    head_within: Duration::from_secs(10),
    // Our own client sends some hundred bytes.
    head_bytes_max: 16 << 10,
    fields_max: 64,
    // A command asks at once; the console's page asks every second.
    idle_for: Duration::from_secs(10),
    silent_for: Duration::from_secs(10),
};
/// How long a body may take. It has 64 KiB at most and does not leave the machine.
const BODY_WITHIN: Duration = Duration::from_secs(5);
/// What answers in flight get when the control plane stops. Acts go on in their own tasks.
const FINISH_WITHIN: Duration = Duration::from_millis(400);
/// How long a connection that nobody can serve may take to be told so.
const TURNED_AWAY_WITHIN: Duration = Duration::from_secs(5);
/// Connections being told so at once; when there are more, those that ask nothing leave.
const TURNED_AWAY_MAX: usize = 64;
/// After a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections served at once. A command needs one, for a moment. When there are more, those that keep us waiting leave.
const CONNECTIONS_MAX: usize = 256;

/// Accepts on the control socket and passes each connection with its peer's uid to whoever `passing` names.
///
/// While it names nobody, or that process is gone, the connection is answered 503. Never returns.
pub async fn accept_and_pass(control: UnixListener, passing: watch::Receiver<Option<Arc<OwnedFd>>>) {
    let turned_away = Places::new(TURNED_AWAY_MAX);
    loop {
        let stream = match control.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "could not accept on the control socket");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let serve = passing.borrow().clone();
        let passed = match (&serve, stream.peer_cred()) {
            (Some(serve), Ok(peer)) => pass(serve, &stream, peer.uid()),
            (None, Ok(_)) => Err(io::ErrorKind::NotConnected.into()),
            (_, Err(e)) => Err(e),
        };
        if let Err(error) = passed {
            tracing::debug!(%error, "a connection could not be passed on");
            let place = turned_away.take().await;
            tokio::spawn(turn_away(stream, place));
        }
    }
}

fn pass(serve: &OwnedFd, stream: &UnixStream, uid: u32) -> io::Result<()> {
    let fds = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for the descriptor"));
    }
    // Without waiting: a control plane that takes nothing must not hold up the supervisor.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(serve, &[IoSlice::new(&uid.to_le_bytes())], &mut control, flags)?;
    if sent == size_of::<u32>() { Ok(()) } else { Err(io::Error::other("the uid was cut")) }
}

/// Answers one request with 503 and closes.
async fn turn_away(stream: UnixStream, place: Place) {
    let answer = ApiError {
        kind: ErrorKind::CouldNotAsk,
        message: "the control plane is being started".to_owned(),
        hint: Some("try again in a moment; its log is STATE/logs/serve.log".to_owned()),
    };
    let body = Bytes::from(serde_json::to_vec(&answer).unwrap_or_default());
    let service = service_fn(move |_| {
        let answer = http::Response::builder()
            .status(status(ErrorKind::CouldNotAsk))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body.clone()));
        std::future::ready(answer)
    });
    let connection = troop_http::serve(stream, service, place, &LIMITS, CancellationToken::new());
    match tokio::time::timeout(TURNED_AWAY_WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(ended)) => {
            tracing::debug!(error = &ended as &dyn Error, "a connection was not told that nobody serves");
        }
        Err(_) => tracing::debug!("a connection asked nothing"),
    }
}

/// Serves the connections that come over `connections`, until `stop` or until the supervisor is gone.
///
/// # Errors
/// When the pair cannot be read.
pub async fn serve_passed(connections: OwnedFd, router: Router, stop: CancellationToken) -> io::Result<()> {
    let pair = StdUnixStream::from(connections);
    pair.set_nonblocking(true)?;
    serve_all(Source::Passed(UnixStream::from_std(pair)?), router, stop).await
}

/// Where connections come from.
enum Source {
    /// The end of the pair whose other end the supervisor holds.
    Passed(UnixStream),
    Direct(UnixListener),
}

impl Source {
    /// The next connection with its uid; `None` when there will be no more. Nothing is lost when it is given up.
    async fn next(&self) -> io::Result<Option<(UnixStream, u32)>> {
        loop {
            match self {
                Self::Passed(pair) => {
                    pair.readable().await?;
                    match pair.try_io(Interest::READABLE, || receive(pair)) {
                        Ok(Some((stream, uid))) => {
                            stream.set_nonblocking(true)?;
                            return Ok(Some((UnixStream::from_std(stream)?, uid)));
                        }
                        Ok(None) => return Ok(None),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e),
                    }
                }
                Self::Direct(listener) => match listener.accept().await {
                    Ok((stream, _)) => match stream.peer_cred() {
                        Ok(peer) => return Ok(Some((stream, peer.uid()))),
                        Err(error) => tracing::warn!(%error, "a peer's uid cannot be read; its connection is closed"),
                    },
                    Err(error) => {
                        tracing::error!(%error, "could not accept on the control socket");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
    }
}

/// One connection with its uid; `None` when the other end is gone.
fn receive(pair: &UnixStream) -> io::Result<Option<(StdUnixStream, u32)>> {
    let mut uid = [0; size_of::<u32>()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(pair, &mut [IoSliceMut::new(&mut uid)], &mut control, flags)?;
    let mut fds = control.drain().flat_map(|message| {
        if let RecvAncillaryMessage::ScmRights(fds) = message { fds.collect::<Vec<_>>() } else { Vec::new() }
    });
    match (received.bytes, fds.next()) {
        (0, None) => Ok(None),
        (n, Some(fd)) if n == uid.len() => Ok(Some((StdUnixStream::from(fd), u32::from_le_bytes(uid)))),
        (n, fd) => {
            Err(io::Error::other(format!("a connection was passed with {n} bytes and {} descriptors", fd.iter().len())))
        }
    }
}

/// Serves the control socket directly, where no supervisor stands between: `troop serve` outside a sandbox.
///
/// # Errors
/// None yet: a connection that fails is logged and closed.
pub async fn serve_direct(listener: UnixListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    serve_all(Source::Direct(listener), router, stop).await
}

async fn serve_all(source: Source, router: Router, stop: CancellationToken) -> io::Result<()> {
    let places = Places::new(CONNECTIONS_MAX);
    let mut served = JoinSet::new();
    let ended = loop {
        let Some(place) = stop.run_until_cancelled(places.take()).await else { break Ok(()) };
        let connection = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            connection = source.next() => connection,
        };
        match connection {
            Ok(Some((stream, uid))) => drop(served.spawn(serve_one(stream, uid, place, router.clone(), stop.clone()))),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
        while served.try_join_next().is_some() {}
    };
    // Whoever is left after this is cut off; what it asked for goes on, or was never begun.
    let finished = async { while served.join_next().await.is_some() {} };
    if tokio::time::timeout(FINISH_WITHIN, finished).await.is_err() {
        tracing::debug!("answers were cut off by the stop");
    }
    ended
}

async fn serve_one(stream: UnixStream, uid: u32, place: Place, router: Router, stop: CancellationToken) {
    let router = TowerToHyperService::new(router.layer(Extension(actor(uid).await)));
    let service = service_fn(|request| {
        let router = router.clone();
        async move {
            match buffered(request, REQUEST_BYTES_MAX, BODY_WITHIN).await {
                Ok(request) => router.call(request.map(Body::new)).await,
                Err(refused) => Ok(yours(refused.to_string()).into_response()),
            }
        }
    });
    if let Err(ended) = troop_http::serve(stream, service, place, &LIMITS, stop).await {
        tracing::debug!(error = &ended as &dyn Error, uid, "a connection ended badly");
    }
}

/// A uid with its name, or `uid N` where the host knows none. Names are looked up on a thread of their own, because
/// they may lie in a directory service.
pub(crate) async fn actor(uid: u32) -> Actor {
    let looked_up = tokio::task::spawn_blocking(move || user_name(uid)).await;
    Actor { uid, name: looked_up.unwrap_or_else(|_| format!("uid {uid}")) }
}

/// See [`actor`]; blocks.
pub(crate) fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
    user.ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::api::router::tests::Remembering;
    use crate::api::router::{DoneAnswer, WhyRequest, router};
    use crate::api::types::{ControlPlane, LiveView};
    use crate::client::{ASK_WITHIN, Client, ClientError};
    use crate::state::StateDir;

    fn state(dir: &Path) -> StateDir {
        let state = StateDir::find(Some(dir), |_| None).unwrap();
        state.create().unwrap();
        state
    }

    fn me() -> String {
        let uid = nix::unistd::getuid().as_raw();
        format!("{uid} {}", user_name(uid))
    }

    #[tokio::test]
    async fn a_connection_is_passed_with_the_uid_of_its_peer() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path());
        let listener = UnixListener::bind(state.control_socket()).unwrap();
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let (passing, watched) = watch::channel(Some(Arc::new(OwnedFd::from(ours))));
        let acceptor = tokio::spawn(accept_and_pass(listener, watched));
        let control = Arc::new(Remembering::default());
        let stop = CancellationToken::new();
        let router = router(Arc::clone(&control) as Arc<dyn ControlPlane>);
        let serve = tokio::spawn(serve_passed(theirs.into(), router, stop.clone()));

        let client = Client::new(&state);
        assert_eq!(client.get::<LiveView>("live").await.unwrap().pid, 7);
        let all = (0..20).map(|n| {
            let client = client.clone();
            async move { client.post::<DoneAnswer>("halt", &WhyRequest { reason: format!("r{n}") }, ASK_WITHIN).await }
        });
        for answer in futures::future::join_all(all).await {
            answer.unwrap();
        }
        let mut said = control.0.lock().unwrap().clone();
        said.sort();
        let mut expected: Vec<_> = (0..20).map(|n| format!("halt r{n} by {}", me())).collect();
        expected.sort();
        assert_eq!(said, expected);

        // The control plane stops, and then is started anew.
        stop.cancel();
        serve.await.unwrap().unwrap();
        let error = client.get::<LiveView>("live").await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Api(e) if e.message == "the control plane is being started"),
            "{error:?}"
        );
        passing.send_replace(None);
        let error = client.get::<LiveView>("live").await.unwrap_err();
        assert!(matches!(&error, ClientError::Api(e) if e.kind == ErrorKind::CouldNotAsk), "{error:?}");
        acceptor.abort();
    }

    #[tokio::test]
    async fn serving_ends_when_the_supervisor_is_gone() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        drop(ours);
        let router = router(Arc::new(Remembering::default()));
        let served = serve_passed(theirs.into(), router, CancellationToken::new());
        tokio::time::timeout(Duration::from_secs(10), served).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_message_without_a_descriptor_is_an_error() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        io::Write::write_all(&mut &ours, &[0; 4]).unwrap();
        let router = router(Arc::new(Remembering::default()));
        let served = serve_passed(theirs.into(), router, CancellationToken::new());
        assert!(tokio::time::timeout(Duration::from_secs(10), served).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn without_a_supervisor_the_peer_is_asked_for_directly() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path());
        let listener = UnixListener::bind(state.control_socket()).unwrap();
        let control = Arc::new(Remembering::default());
        let stop = CancellationToken::new();
        let router = router(Arc::clone(&control) as Arc<dyn ControlPlane>);
        let serve = tokio::spawn(serve_direct(listener, router, stop.clone()));
        let client = Client::new(&state);
        client.post::<DoneAnswer>("halt", &WhyRequest { reason: "x".to_owned() }, ASK_WITHIN).await.unwrap();
        assert_eq!(*control.0.lock().unwrap(), [format!("halt x by {}", me())]);
        stop.cancel();
        serve.await.unwrap().unwrap();
    }

    #[test]
    fn a_uid_without_a_name_is_shown_as_a_number() {
        assert_eq!(user_name(3_999_999_999), "uid 3999999999");
        assert_eq!(user_name(0), "root");
    }
}
