//! The agent's one connection: it dials out, over a unix socket or TLS, and speaks HTTP/2 over it.
//!
//! One request lies open as long as the connection does: its body are the agent's messages, the answer's body those of the
//! control plane, a JSON object a line each (`troop_agent_core::protocol`). Neither side may send more than the other reads: HTTP/2's
//! windows hold the control plane back, a bounded queue the agent.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use troop_agent_core::protocol::{self, FromAgent, MESSAGE_MAX_BYTES, NONCE_HEADER, ToAgent};

/// Where agents are received.
pub const PATH: &str = "/agent/v1/channel";
/// How long dialling, the handshake and the answer's head may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How often a silent connection is tried, so that one that is cut is noticed.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_MAX: Duration = Duration::from_secs(10);
/// Pauses between two attempts, doubled each time: a control plane that restarts is found soon, one that is gone for a day
/// costs nothing.
const AGAIN_MIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// Messages that may wait to be sent. A story of each lease and an answer to each command fit; an agent with more is
/// talking to nobody, and begins anew.
const WAITING_MAX: usize = 256;

/// Whom to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The control plane on this very machine.
    Unix(PathBuf),
    /// TLS, with the name that its certificate must bear.
    Tls { host: String, port: u16, ca_file: Option<PathBuf> },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("could not reach the control plane")]
    Dial(#[source] io::Error),
    #[error("it took longer than {CONNECT_MAX:?}")]
    TooLong,
    #[error("the certificates to trust could not be read: {0}")]
    Trust(String),
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("the request could not be made")]
    Request(#[from] hyper::http::Error),
    #[error("the control plane answered {0}")]
    Refused(hyper::StatusCode),
    #[error(transparent)]
    Message(#[from] protocol::BadMessage),
    #[error("the control plane closed the connection")]
    Closed,
}

/// The sending half.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    /// Puts a message into the queue. `false`: there is no connection any more, or nobody reads it.
    pub fn send(&self, message: &FromAgent) -> bool {
        protocol::write(message).is_ok_and(|line| self.0.try_send(line.into()).is_ok())
    }
}

/// What the connection tells the agent's loop.
#[derive(Debug)]
pub enum Event {
    /// It is there. `ends`: of a connection over IP, which no fault may touch. `nonce`: what the control plane wants signed by who shows which
    /// instance it is.
    Up {
        sender: Sender,
        ends: Vec<SocketAddr>,
        nonce: Option<String>,
    },
    Message(ToAgent),
    Down(ChannelError),
}

/// Keeps one connection for ever.
pub async fn keep(endpoint: Endpoint, token: String, events: mpsc::Sender<Event>) {
    let mut pause = AGAIN_MIN;
    loop {
        let why = match connect(&endpoint, &token).await {
            Ok(open) => {
                let up = Event::Up { sender: open.sender, ends: open.ends, nonce: open.nonce };
                if events.send(up).await.is_err() {
                    return;
                }
                // Who is turned away waits ever longer, as who reaches nobody does.
                let received = || pause = AGAIN_MIN;
                match read(open.body, &events, received).await {
                    Ok(()) => ChannelError::Closed,
                    Err(why) => why,
                }
            }
            Err(why) => why,
        };
        if events.send(Event::Down(why)).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

struct Open {
    sender: Sender,
    ends: Vec<SocketAddr>,
    nonce: Option<String>,
    body: hyper::body::Incoming,
}

async fn connect(endpoint: &Endpoint, token: &str) -> Result<Open, ChannelError> {
    let dialled = async {
        match endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(ChannelError::Dial)?;
                request(stream, "http://control-plane", token, Vec::new()).await
            }
            Endpoint::Tls { host, port, ca_file } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(ChannelError::Dial)?;
                let end = stream.peer_addr().map_err(ChannelError::Dial)?;
                let trust = trust(ca_file.as_ref(), b"h2")?;
                let name = ServerName::try_from(host.clone()).map_err(|e| ChannelError::Trust(e.to_string()))?;
                let stream = trust.connect(name, stream).await.map_err(ChannelError::Dial)?;
                request(stream, &format!("https://{host}:{port}"), token, vec![end]).await
            }
        }
    };
    timeout(CONNECT_MAX, dialled).await.unwrap_or(Err(ChannelError::TooLong))
}

async fn request(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    base: &str,
    token: &str,
    ends: Vec<SocketAddr>,
) -> Result<Open, ChannelError> {
    let (mut requests, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await?;
    // It ends with the request; what it ends of, the answer's body says as well.
    tokio::spawn(async move { drop(connection.await) });
    let (queue, waiting) = mpsc::channel::<Bytes>(WAITING_MAX);
    let body = StreamBody::new(ReceiverStream::new(waiting).map(|line| Ok::<_, Infallible>(Frame::data(line))));
    let request = hyper::Request::post(format!("{base}{PATH}"))
        .header(hyper::header::AUTHORIZATION, format!("Bearer {token}"))
        .header(hyper::header::CONTENT_TYPE, "application/jsonl")
        .body(body)?;
    let answer = requests.send_request(request).await?;
    if answer.status() != hyper::StatusCode::OK {
        return Err(ChannelError::Refused(answer.status()));
    }
    let nonce = answer.headers().get(NONCE_HEADER).and_then(|nonce| nonce.to_str().ok());
    let nonce = nonce.filter(|nonce| protocol::is_nonce(nonce)).map(str::to_owned);
    Ok(Open { sender: Sender(queue), ends, nonce, body: answer.into_body() })
}

/// Passes the control plane's messages on, until it closes. `received`: called when it has welcomed this agent.
async fn read(
    mut body: hyper::body::Incoming,
    events: &mpsc::Sender<Event>,
    mut received: impl FnMut(),
) -> Result<(), ChannelError> {
    let mut buffer = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let message = protocol::heard(&line[..end])?;
            if matches!(message, ToAgent::Welcome { .. }) {
                received();
            }
            if events.send(Event::Message(message)).await.is_err() {
                return Ok(());
            }
        }
        if buffer.len() > MESSAGE_MAX_BYTES {
            return Err(protocol::BadMessage::TooLong { bytes: buffer.len() }.into());
        }
    }
    Ok(())
}

/// TLS by these authorities, or by the machine's own, for what `protocol` names in ALPN.
pub(crate) fn trust(ca_file: Option<&PathBuf>, protocol: &[u8]) -> Result<tokio_rustls::TlsConnector, ChannelError> {
    let bad = |what: String| ChannelError::Trust(what);
    let mut roots = rustls::RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
            for certificate in certificates {
                roots.add(certificate.map_err(|e| bad(e.to_string()))?).map_err(|e| bad(e.to_string()))?;
            }
        }
        // Whatever of the machine's own cannot be used is left out: what remains must do.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    if roots.is_empty() {
        return Err(bad("there is none".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}
