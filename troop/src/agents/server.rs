//! Where agents dial in: HTTP/2, one request a host that stays open, a JSON object a line both ways.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use troop_agent::channel::PATH;
use troop_agent_core::protocol::{self, FromAgent, Hello, MESSAGE_MAX_BYTES, NONCE_HEADER, ToAgent};
use troop_policies::chain;

use super::HostName;
use super::hub::{Hub, WAITING_MAX};
use super::identity::Identity;
use super::proof::{Claim, NotProven, Prover, Standing};
use super::token::{AgentsSecret, Shown};
use crate::clock;

/// Hosts that may be connected at a time. Each takes a few kilobytes; a site with more has several control planes.
const CONNECTIONS_MAX: usize = 16_384;
/// Of those, who has not said yet who it is: as many as a site's hosts may be at once after a restart, and too few to
/// keep the others out.
const STRANGERS_MAX: usize = 1_024;
/// How long a host may take to say who it is.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How often a silent connection is tried, so that a host that is gone is known to be.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);

type Body = BoxBody<Bytes, Infallible>;

/// Why agents cannot be received.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} `{}`", path.display())]
pub struct ServerError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Whom agents are received for, and how many.
#[derive(Debug, Clone)]
pub struct Reception {
    desk: Arc<Desk>,
    room: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    /// How long a host may take to say who it is.
    pub(super) patience: Duration,
    stop: CancellationToken,
}

/// What whoever dials in is measured by.
#[derive(Debug)]
struct Desk {
    hub: Arc<Hub>,
    secret: AgentsSecret,
    prover: Option<Prover>,
}

impl Reception {
    /// Receives until `stop`. Without a `prover` an agent is known by the token of its own host alone: the embedded cloud, which gives it only to
    /// that host.
    pub fn new(hub: Arc<Hub>, secret: AgentsSecret, prover: Option<Prover>, stop: CancellationToken) -> Self {
        let (room, strangers) = (Semaphore::new(CONNECTIONS_MAX), Semaphore::new(STRANGERS_MAX));
        let desk = Arc::new(Desk { hub, secret, prover });
        Self { desk, room: Arc::new(room), strangers: Arc::new(strangers), patience: HELLO_MAX, stop }
    }

    /// Receives agents on a unix socket. A socket of a dead control plane is replaced.
    ///
    /// # Errors
    /// [`ServerError`] when it cannot listen.
    pub async fn on_unix(self, path: &Path) -> Result<(), ServerError> {
        let failed = |doing| move |source| ServerError { doing, path: path.into(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        while let Some((stream, _)) = self.accepted(|| listener.accept()).await {
            self.receive(std::future::ready(Some(stream)));
        }
        Ok(())
    }

    /// Receives agents of other machines, each over TLS.
    pub async fn on_tls(self, listener: TcpListener, identity: Identity) {
        let identity = Arc::new(identity);
        while let Some((stream, from)) = self.accepted(|| listener.accept()).await {
            let identity = Arc::clone(&identity);
            self.receive(async move {
                let shaken = identity.acceptor().accept(stream).await;
                shaken.inspect_err(|error| tracing::debug!(%from, %error, "a TLS handshake failed")).ok()
            });
        }
    }

    /// The next connection; `None` when it is to stop.
    async fn accepted<T, F: Future<Output = io::Result<T>>>(&self, accept: impl Fn() -> F) -> Option<T> {
        loop {
            tokio::select! {
                accepted = accept() => match accepted {
                    Ok(stream) => return Some(stream),
                    Err(error) => {
                        tracing::warn!(%error, "an agent could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                () = self.stop.cancelled() => return None,
            }
        }
    }

    /// Talks with whoever it is, once `stream` has come about. Who does not say in time who it is is sent away.
    fn receive<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: impl Future<Output = Option<S>> + Send + 'static,
    ) {
        let permits = (Arc::clone(&self.room).try_acquire_owned(), Arc::clone(&self.strangers).try_acquire_owned());
        let (Ok(room), Ok(stranger)) = permits else { return };
        let (desk, stop) = (Arc::clone(&self.desk), self.stop.clone());
        let patience = self.patience;
        tokio::spawn(async move {
            let known = CancellationToken::new();
            let told = known.clone();
            let served = async move {
                let Some(stream) = stream.await else { return };
                let service = service_fn(move |request| {
                    let answered = answer(request, Arc::clone(&desk), told.clone());
                    std::future::ready(Ok::<_, Infallible>(answered))
                });
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_MAX)
                    .max_concurrent_streams(1)
                    .serve_connection(TokioIo::new(stream), service);
                drop(connection.await);
            };
            let unknown = async {
                let introduced = tokio::time::timeout(patience, known.cancelled()).await.is_ok();
                drop(stranger);
                if introduced {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = served => {}
                () = unknown => tracing::debug!("somebody who did not say who it is was sent away"),
                () = stop.cancelled() => {}
            }
            drop(room);
        });
    }
}

fn answer(request: Request<Incoming>, desk: Arc<Desk>, known: CancellationToken) -> Response<Body> {
    if request.uri().path() != PATH || request.method() != hyper::Method::POST {
        return short(StatusCode::NOT_FOUND, "agents are received elsewhere");
    }
    let token = request.headers().get(hyper::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = token.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned) else {
        return short(StatusCode::UNAUTHORIZED, "who is it?");
    };
    let Ok(nonce) = nonce() else {
        return short(StatusCode::SERVICE_UNAVAILABLE, "no random numbers");
    };
    let (queue, waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
    let mut response = Response::new(());
    // Hexadecimal digits are a header's value.
    if let Ok(value) = nonce.parse() {
        response.headers_mut().insert(NONCE_HEADER, value);
    }
    tokio::spawn(async move {
        if let Err(why) = converse(request.into_body(), &token, &nonce, queue, &desk, known).await {
            tracing::warn!(why, "an agent was sent away");
        }
    });
    let lines = ReceiverStream::new(waiting).map(|line| Ok(Frame::data(line)));
    response.map(|()| StreamBody::new(lines).boxed())
}

/// What one connection's agent signs: 256 random bits.
fn nonce() -> Result<String, rustix::io::Errno> {
    let mut random = [0; 32];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(hex::encode(random))
}

/// Hears a host until it is silent. When this ends, so does the answer, and the host knows.
async fn converse(
    body: Incoming,
    token: &str,
    nonce: &str,
    queue: mpsc::Sender<Bytes>,
    desk: &Desk,
    known: CancellationToken,
) -> Result<(), String> {
    let mut lines = Lines { body, buffer: Vec::new() };
    let Some(FromAgent::Hello(hello)) = lines.next().await? else {
        return Err("its first word was no hello".to_owned());
    };
    let host = HostName::parse(&hello.instance).ok_or("its name is none")?;
    let Some(shown) = desk.secret.whose(&host, token) else {
        return Err(format!("its token is neither that of `{host}` nor that of its region"));
    };
    let standing = match desk.standing(&host, shown, &hello, nonce).await {
        Ok(standing) => standing,
        Err(why) => {
            let why = chain(&why);
            // Who has a token of this site may know what else it takes.
            let told = protocol::write(&ToAgent::Refused { why: protocol::cut(&why) });
            drop(told.map(|line| queue.try_send(line.into())));
            return Err(why);
        }
    };
    // The queue's other end is the answer: a host that is cut off by the hub sees its end.
    let connection = desk.hub.connect(host, hello, standing, queue, clock::real_now())?;
    known.cancel();
    while let Some(message) = lines.next().await? {
        connection.hear(message);
    }
    Ok(())
}

impl Desk {
    async fn standing(&self, host: &HostName, shown: Shown, hello: &Hello, nonce: &str) -> Result<Standing, NotProven> {
        let claim = Claim { host, identity: hello.identity.as_ref(), nonce };
        match (&self.prover, shown) {
            (Some(prover), Shown::Host | Shown::Region) => prover.check(claim, clock::real_now()).await,
            (None, Shown::Host) => Ok(Standing::Token),
            // It speaks for any name, and nobody could say whether there is such an instance.
            (None, Shown::Region) => Err(NotProven::NoPicture(host.clone())),
        }
    }
}

struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next message; `None` at the end of the connection.
    async fn next(&mut self) -> Result<Option<FromAgent>, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let message = protocol::read::<FromAgent>(&line[..end]).and_then(FromAgent::checked);
                return message.map(Some).map_err(|e| e.to_string());
            }
            if self.buffer.len() > MESSAGE_MAX_BYTES {
                return Err("its message is too long".to_owned());
            }
            match self.body.frame().await {
                None => return Ok(None),
                // It was cut off, which is how hosts end.
                Some(Err(_)) => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn short(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    response
}
