//! EC2's instance metadata service, version 2: a session token by PUT, then what is asked for by GET. Paths and headers as in the EC2 user
//! guide, "Use the Instance Metadata Service", "Verify the instance identity document" and "Retrieve security credentials from instance metadata".
//! Version 1 is never spoken.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::parameter::Keys;

/// Where EC2 has it.
pub const STANDARD: &str = "http://169.254.169.254";
const TOKEN: &str = "/latest/api/token";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
/// SHA-256 by RSA-2048; `pkcs7` beside it is SHA-1 by DSA, and `signature` RSA-1024.
const SIGNATURE: &str = "/latest/dynamic/instance-identity/rsa2048";
const REGION: &str = "/latest/meta-data/placement/region";
/// The end of the names of AWS's endpoints there.
const DOMAIN: &str = "/latest/meta-data/services/domain";
/// The name of the instance's role; what it gives lies below.
const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
/// As long as five requests may take.
const TTL: &str = "60";

/// How long the service is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For each answer: the service is on the host's own hypervisor and answers within milliseconds.
    pub(crate) answer: Duration,
    /// While an instance boots its service may not be there yet. More is for whoever starts the agent again.
    pub(crate) tries: u32,
    pub(crate) between: Duration,
}

impl Patience {
    pub(crate) const STANDARD: Self =
        Self { answer: Duration::from_secs(2), tries: 3, between: Duration::from_secs(1) };
}

/// What the instance's role gives, and where it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) keys: Keys,
    pub(crate) region: String,
    /// `amazonaws.com`, or what the region's endpoints end in instead.
    pub(crate) domain: String,
}

/// As the service writes it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawKeys {
    access_key_id: String,
    secret_access_key: String,
    token: String,
}

/// A document takes half a kilobyte.
const BODY_MAX_BYTES: usize = 16 * 1024;

/// Why the service does not say what is asked.
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
    Silent { method: Method, path: String, within: Duration },
    #[error("the metadata service answered {method} `{path}` with {status}")]
    Status { method: Method, path: String, status: StatusCode },
    #[error("the metadata service's answer to `{path}` broke off")]
    Http {
        path: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the metadata service's answer to `{path}` is {what}")]
    Body { path: String, what: &'static str },
    #[error("this instance has no role")]
    NoRole,
}

impl ImdsError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Endpoint { .. } => "write http://HOST or http://HOST:PORT, or leave `endpoint` out",
            Self::NoRole => {
                "give it an instance profile whose role may read the parameter (docs/agent.md), or write `token_file` instead"
            }
            Self::Silent { path, .. } if path == TOKEN => {
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
            Self::Endpoint { .. } | Self::Body { .. } | Self::NoRole => false,
        }
    }
}

/// The identity document and its signature, as they came.
///
/// # Errors
/// [`ImdsError`] of the last try.
pub(super) async fn identity(endpoint: &str, patience: Patience) -> Result<(String, String), ImdsError> {
    tried(patience, async || {
        let session = Session::open(endpoint, patience.answer).await?;
        Ok((session.get(DOCUMENT).await?, session.get(SIGNATURE).await?))
    })
    .await
}

/// The instance's role with its keys of now, and where this is.
///
/// # Errors
/// [`ImdsError`] of the last try.
pub(crate) async fn role(endpoint: &str, patience: Patience) -> Result<Role, ImdsError> {
    tried(patience, async || {
        let session = Session::open(endpoint, patience.answer).await?;
        let names = match session.get(ROLE).await {
            Err(ImdsError::Status { status: StatusCode::NOT_FOUND, .. }) => return Err(ImdsError::NoRole),
            other => other?,
        };
        let name = names.lines().next().map(str::trim).filter(|name| !name.is_empty()).ok_or(ImdsError::NoRole)?;
        let path = format!("{ROLE}{name}");
        // A role that cannot be had is told here too, with a `Code` and without keys.
        let keys: Result<RawKeys, _> = serde_json::from_str(&session.get(&path).await?);
        let keys = keys.map_err(|_| ImdsError::Body { path, what: "no credentials" })?;
        let (region, domain) = (session.get(REGION).await?, session.get(DOMAIN).await?);
        for (path, word) in [(REGION, &region), (DOMAIN, &domain)] {
            if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
                return Err(ImdsError::Body { path: path.to_owned(), what: "no name" });
            }
        }
        let keys = Keys { id: keys.access_key_id, secret: keys.secret_access_key, session: Some(keys.token) };
        Ok(Role { name: name.to_owned(), keys, region, domain })
    })
    .await
}

async fn tried<T>(patience: Patience, once: impl AsyncFn() -> Result<T, ImdsError>) -> Result<T, ImdsError> {
    let mut tries = 1;
    loop {
        match once().await {
            Err(error) if error.may_pass() && tries < patience.tries => tries += 1,
            done => return done,
        }
        sleep(patience.between).await;
    }
}

/// Somebody whom the service knows by a token.
struct Session<'a> {
    endpoint: &'a str,
    token: String,
    within: Duration,
}

impl<'a> Session<'a> {
    async fn open(endpoint: &'a str, within: Duration) -> Result<Self, ImdsError> {
        let token = in_time(endpoint, Method::PUT, TOKEN, (TTL_HEADER, TTL), within).await?;
        Ok(Self { endpoint, token, within })
    }

    async fn get(&self, path: &str) -> Result<String, ImdsError> {
        in_time(self.endpoint, Method::GET, path, (TOKEN_HEADER, &self.token), self.within).await
    }
}

async fn in_time(
    endpoint: &str,
    method: Method,
    path: &str,
    header: (&'static str, &str),
    within: Duration,
) -> Result<String, ImdsError> {
    let silent = ImdsError::Silent { method: method.clone(), path: path.to_owned(), within };
    timeout(within, ask(endpoint, method, path, header)).await.unwrap_or(Err(silent))
}

/// One request on a connection of its own.
async fn ask(
    endpoint: &str,
    method: Method,
    path: &str,
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
    let http = |source| ImdsError::Http { path: path.to_owned(), source };
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(async move { drop(connection.await) });
    let answer = requests.send_request(request).await.map_err(http)?;
    if answer.status() != StatusCode::OK {
        return Err(ImdsError::Status { method, path: path.to_owned(), status: answer.status() });
    }
    let body = Limited::new(answer.into_body(), BODY_MAX_BYTES).collect().await;
    let body = body.map_err(|error| {
        let too_long = error.downcast_ref::<LengthLimitError>().is_some();
        ImdsError::Body { path: path.to_owned(), what: if too_long { "too long" } else { "cut off" } }
    })?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| ImdsError::Body { path: path.to_owned(), what: "no text" })
}
