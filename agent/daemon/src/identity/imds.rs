//! EC2's instance metadata service, version 2: a session token by PUT, then what is asked for by GET. Paths and headers as in the EC2 user
//! guide, "Use the Instance Metadata Service" and "Verify the instance identity document". Version 1 is never spoken.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Where EC2 has it.
pub const STANDARD: &str = "http://169.254.169.254";
const TOKEN: &str = "/latest/api/token";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
/// SHA-256 by RSA-2048; `pkcs7` beside it is SHA-1 by DSA, and `signature` RSA-1024.
const SIGNATURE: &str = "/latest/dynamic/instance-identity/rsa2048";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
/// As long as three requests may take.
const TTL: &str = "60";

/// How long the service is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For each answer: the service is on the host's own hypervisor and answers within milliseconds.
    pub(super) answer: Duration,
    /// While an instance boots its service may not be there yet. More is for whoever starts the agent again.
    pub(super) tries: u32,
    pub(super) between: Duration,
}

impl Patience {
    pub(super) const STANDARD: Self =
        Self { answer: Duration::from_secs(2), tries: 3, between: Duration::from_secs(1) };
}

/// A document takes half a kilobyte.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// Why there is no identity document.
#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    #[error("`{endpoint}` is no address of a metadata service")]
    Endpoint { endpoint: String },
    #[error("could not reach the metadata service at `{endpoint}`")]
    Dial {
        endpoint: String,
        #[source]
        source: io::Error,
    },
    #[error("the metadata service did not answer {method} `{path}` within {within:?}")]
    Silent { method: Method, path: &'static str, within: Duration },
    #[error("the metadata service answered {method} `{path}` with {status}")]
    Status { method: Method, path: &'static str, status: StatusCode },
    #[error("the metadata service's answer to `{path}` broke off")]
    Http {
        path: &'static str,
        #[source]
        source: hyper::Error,
    },
    #[error("the metadata service's answer to `{path}` is {what}")]
    Body { path: &'static str, what: &'static str },
}

impl ImdsError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => "write http://HOST or http://HOST:PORT, or leave `endpoint` out",
            Self::Silent { path: TOKEN, .. } => {
                "in a container, or behind another hop, the instance's metadata hop limit must be 2 or more: \
                 `aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2`; or run the agent on the host itself"
            }
            Self::Status { status: StatusCode::FORBIDDEN, .. } => {
                "the metadata service is switched off: `aws ec2 modify-instance-metadata-options --http-endpoint enabled`"
            }
            Self::Dial { .. } | Self::Silent { .. } | Self::Status { .. } | Self::Http { .. } | Self::Body { .. } => {
                "is this an EC2 instance, and does no firewall of it stand before 169.254.169.254? `[identity]` in agent.toml is for \
                 such hosts only"
            }
        }
    }

    /// Whether another try might find it otherwise.
    fn may_pass(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Silent { .. } | Self::Http { .. } => true,
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Endpoint { .. } | Self::Body { .. } => false,
        }
    }
}

/// The identity document and its signature, as they came.
///
/// # Errors
/// [`ImdsError`] of the last try.
pub(super) async fn identity(endpoint: &str, patience: Patience) -> Result<(String, String), ImdsError> {
    let mut tries = 1;
    loop {
        match once(endpoint, patience.answer).await {
            Err(error) if error.may_pass() && tries < patience.tries => tries += 1,
            done => return done,
        }
        sleep(patience.between).await;
    }
}

async fn once(endpoint: &str, within: Duration) -> Result<(String, String), ImdsError> {
    let ask = |method: Method, path, header| {
        let silent = ImdsError::Silent { method: method.clone(), path, within };
        async move { timeout(within, ask(endpoint, method, path, header)).await.unwrap_or(Err(silent)) }
    };
    let token = ask(Method::PUT, TOKEN, (TTL_HEADER, TTL)).await?;
    let document = ask(Method::GET, DOCUMENT, (TOKEN_HEADER, &token)).await?;
    let signature = ask(Method::GET, SIGNATURE, (TOKEN_HEADER, &token)).await?;
    Ok((document, signature))
}

/// One request on a connection of its own.
async fn ask(
    endpoint: &str,
    method: Method,
    path: &'static str,
    (name, value): (&'static str, &str),
) -> Result<String, ImdsError> {
    let bad = || ImdsError::Endpoint { endpoint: endpoint.to_owned() };
    let host = endpoint.strip_prefix("http://").filter(|host| !host.contains('/')).ok_or_else(bad)?;
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let request = Request::builder().method(method.clone()).uri(path).header(HOST, host).header(name, value);
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| bad())?;
    let dial = |source| ImdsError::Dial { endpoint: endpoint.to_owned(), source };
    let stream = TcpStream::connect(with_port).await.map_err(dial)?;
    let http = |source| ImdsError::Http { path, source };
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(async move { drop(connection.await) });
    let answer = requests.send_request(request).await.map_err(http)?;
    if answer.status() != StatusCode::OK {
        return Err(ImdsError::Status { method, path, status: answer.status() });
    }
    let body = Limited::new(answer.into_body(), BODY_MAX_BYTES).collect().await;
    let body = body.map_err(|error| {
        let too_long = error.downcast_ref::<LengthLimitError>().is_some();
        ImdsError::Body { path, what: if too_long { "too long" } else { "cut off" } }
    })?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| ImdsError::Body { path, what: "no text" })
}
