//! The join token out of a parameter of AWS Systems Manager, read once at the agent's start with the role of the instance that it runs on.
//!
//! One request, `GetParameter` with decryption, signed here: the SDK would be larger than the agent. It leaves over TLS alone, to the region's own
//! endpoint, whose certificate the machine's authorities must have signed.

mod sign;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

use crate::channel;
use crate::clock;
use crate::identity::ImdsError;
use crate::identity::imds::{self, Patience, Role};

pub(crate) use sign::Keys;
use sign::Scope;

/// For one answer; AWS's come within a second.
const ANSWER: Duration = Duration::from_secs(10);
/// A throttle or a fault of AWS's own passes; more is for whoever starts the agent again.
const TRIES: u32 = 3;
const BETWEEN: Duration = Duration::from_secs(2);
/// A parameter holds at most eight kilobytes.
const BODY_MAX_BYTES: usize = 32 * 1024;
/// As long as a name may be, with the ARN before it.
const NAME_MAX_CHARS: usize = 2_048;
/// Longest token, as in a file.
const TOKEN_MAX_BYTES: usize = 4 * 1024;
/// Of an answer that is not AWS's.
const SAID_MAX_CHARS: usize = 200;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    #[error("could not read the parameter `{name}`")]
    Imds {
        name: String,
        #[source]
        source: ImdsError,
    },
    #[error("could not read the parameter `{name}`: could not reach `{host}`")]
    Dial {
        name: String,
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("could not read the parameter `{name}`: the certificates to trust could not be read: {what}")]
    Trust { name: String, what: String },
    #[error("could not read the parameter `{name}`: `{host}` did not answer within {ANSWER:?}")]
    Silent { name: String, host: String },
    #[error("could not read the parameter `{name}`: the answer of `{host}` broke off")]
    Http {
        name: String,
        host: String,
        #[source]
        source: hyper::Error,
    },
    #[error("role `{role}` may not read the parameter `{name}`: its policy lacks {statement} (AWS: {said})")]
    Denied { name: String, role: String, statement: String, said: String },
    #[error("there is no parameter `{name}` in {region}")]
    NotFound { name: String, region: String },
    #[error("could not read the parameter `{name}`: AWS does not take the signature: {said}")]
    Signature { name: String, said: String },
    #[error("could not read the parameter `{name}`: AWS answered {status}: {said}")]
    Refused { name: String, status: StatusCode, said: String },
    #[error("the parameter `{name}` {what}")]
    Value { name: String, what: &'static str },
}

impl ParameterError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Imds { source, .. } => source.hint(),
            Self::Dial { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                "none of this machine's authorities has signed that certificate: is it a proxy's, or does ca-certificates lack here?"
            }
            Self::Dial { .. } | Self::Silent { .. } | Self::Http { .. } => {
                "the instance needs a way to Systems Manager: a NAT, or a VPC endpoint for `ssm`"
            }
            Self::Trust { .. } => "install this machine's authorities (ca-certificates)",
            Self::Denied { .. } => "add that statement to the role's policy; docs/agent.md",
            Self::NotFound { .. } => {
                "`aws ssm put-parameter --type SecureString --name NAME --value TOKEN` makes it, with what `troop agents --token` prints"
            }
            Self::Signature { .. } => "is this machine's clock right? More than five minutes off is refused",
            Self::Refused { .. } => "the words are AWS's; docs/agent.md says what is needed",
            Self::Value { .. } => {
                "put what `troop agents --token` prints there, alone, with `--type SecureString --overwrite`"
            }
        }
    }

    /// Whether another try might find it otherwise.
    fn may_pass(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Silent { .. } | Self::Http { .. } => true,
            Self::Refused { status, said, .. } => status.is_server_error() || said.contains("Throttl"),
            Self::Imds { .. }
            | Self::Trust { .. }
            | Self::Denied { .. }
            | Self::NotFound { .. }
            | Self::Signature { .. }
            | Self::Value { .. } => false,
        }
    }
}

/// Whether this may be a parameter's name or ARN.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ':');
    !text.is_empty() && text.len() <= NAME_MAX_CHARS && text.chars().all(allowed)
}

/// The token in a parameter, as the role of the instance reads it whose metadata service this is.
///
/// # Errors
/// [`ParameterError`] of the last try.
pub(crate) async fn token(name: &str, imds: &str) -> Result<String, ParameterError> {
    token_by(name, imds, Patience::STANDARD, BETWEEN, async |host: &str| tls(name, host, (host, 443), None).await).await
}

/// The same, with `dial` for the way to a host.
async fn token_by<S>(
    name: &str,
    imds: &str,
    patience: Patience,
    between: Duration,
    dial: impl AsyncFn(&str) -> Result<S, ParameterError>,
) -> Result<String, ParameterError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let role = imds::role(imds, patience).await;
    let role = role.map_err(|source| ParameterError::Imds { name: name.to_owned(), source })?;
    let host = format!("ssm.{}.{}", role.region, role.domain);
    let mut tries = 1;
    loop {
        let at = Timestamp::from_nanosecond(clock::real_nanos().into()).unwrap_or(Timestamp::UNIX_EPOCH);
        let asking = async { ask(dial(&host).await?, name, &host, &role, at).await };
        let silent = || ParameterError::Silent { name: name.to_owned(), host: host.clone() };
        match timeout(ANSWER, asking).await.unwrap_or_else(|_| Err(silent())) {
            Err(error) if error.may_pass() && tries < TRIES => tries += 1,
            done => return done,
        }
        sleep(between).await;
    }
}

/// TLS to `at` with whoever shows to be `host`.
async fn tls(
    name: &str,
    host: &str,
    at: impl ToSocketAddrs,
    ca_file: Option<&PathBuf>,
) -> Result<TlsStream<TcpStream>, ParameterError> {
    let trusted = |what: String| ParameterError::Trust { name: name.to_owned(), what };
    let dialled = |source| ParameterError::Dial { name: name.to_owned(), host: host.to_owned(), source };
    let trust = channel::trust(ca_file, b"http/1.1").map_err(|e| trusted(e.to_string()))?;
    let server = ServerName::try_from(host.to_owned()).map_err(|e| trusted(e.to_string()))?;
    let stream = TcpStream::connect(at).await.map_err(dialled)?;
    trust.connect(server, stream).await.map_err(dialled)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    parameter: Parameter,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameter {
    r#type: String,
    value: String,
}

/// What AWS says instead.
#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(default, rename = "__type")]
    kind: String,
    #[serde(default, alias = "Message")]
    message: String,
}

async fn ask<S>(stream: S, name: &str, host: &str, role: &Role, at: Timestamp) -> Result<String, ParameterError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http = |source| ParameterError::Http { name: name.to_owned(), host: host.to_owned(), source };
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    tokio::spawn(async move { drop(connection.await) });
    let answer = requests.send_request(request(name, host, role, at)?).await.map_err(http)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_MAX_BYTES).collect().await;
    let value = |what| ParameterError::Value { name: name.to_owned(), what };
    let body = body.map_err(|_| value("came cut off, or is too long"))?.to_bytes();
    if status != StatusCode::OK {
        return Err(refused(name, role, status, &body));
    }
    let Answer { parameter } = serde_json::from_slice(&body).map_err(|_| value("is not in the answer"))?;
    if parameter.r#type != "SecureString" {
        return Err(value("is no SecureString: whoever may list parameters' values reads it"));
    }
    match parameter.value.trim() {
        "" => Err(value("is empty")),
        token if token.len() > TOKEN_MAX_BYTES || !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(value("holds something else than a token"))
        }
        token => Ok(token.to_owned()),
    }
}

fn request(name: &str, host: &str, role: &Role, at: Timestamp) -> Result<Request<Full<Bytes>>, ParameterError> {
    let body = serde_json::json!({ "Name": name, "WithDecryption": true }).to_string();
    let scope = Scope { region: &role.region, service: "ssm", at };
    let time = scope.time();
    let mut headers = vec![
        ("content-type", "application/x-amz-json-1.1"),
        ("host", host),
        ("x-amz-date", time.as_str()),
        ("x-amz-target", "AmazonSSM.GetParameter"),
    ];
    headers.extend(role.keys.session.as_deref().map(|session| ("x-amz-security-token", session)));
    let authorization = sign::authorization(&role.keys, scope, "POST", &headers, body.as_bytes());
    let mut request = Request::post("/").header("authorization", authorization);
    for (key, value) in headers {
        request = request.header(key, value);
    }
    let bad = |_| ParameterError::Value { name: name.to_owned(), what: "cannot be asked for with these credentials" };
    request.body(Full::new(Bytes::from(body))).map_err(bad)
}

fn refused(name: &str, role: &Role, status: StatusCode, body: &[u8]) -> ParameterError {
    let name = name.to_owned();
    let Refusal { kind, message } = serde_json::from_slice(body).unwrap_or_default();
    // Some write a namespace before it.
    let kind = kind.rsplit('#').next().unwrap_or_default();
    let said = match (kind, message.as_str()) {
        // A proxy's words, or nothing.
        ("", _) => String::from_utf8_lossy(body).chars().take(SAID_MAX_CHARS).collect(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    };
    match kind {
        "AccessDeniedException" => {
            let statement = statement(&message, &name, &role.region);
            ParameterError::Denied { name, role: role.name.clone(), statement, said }
        }
        "ParameterNotFound" => ParameterError::NotFound { name, region: role.region.clone() },
        "InvalidSignatureException" | "SignatureDoesNotMatch" | "RequestExpired" => {
            ParameterError::Signature { name, said }
        }
        _ => ParameterError::Refused { name, status, said },
    }
}

/// The statement that the role's policy lacks: the action and the resource that AWS names, else those of the request.
fn statement(said: &str, name: &str, region: &str) -> String {
    let after = |start: &str| {
        let (_, rest) = said.split_once(start)?;
        rest.split_whitespace().next().map(|word| word.trim_end_matches(['.', ',']))
    };
    let action = after("not authorized to perform: ");
    // Whoever cannot decrypt is told of the key in other words.
    let action = action.unwrap_or(if said.contains("kms") { "kms:Decrypt" } else { "ssm:GetParameter" });
    let resource = match after("on resource: ").filter(|resource| resource.starts_with("arn:")) {
        Some(resource) => resource.to_owned(),
        None if action.starts_with("kms:") => "the ARN of the key that encrypts it".to_owned(),
        None if name.starts_with("arn:") => name.to_owned(),
        None => format!("arn:aws:ssm:{region}:*:parameter/{}", name.trim_start_matches('/')),
    };
    format!(r#"{{"Effect": "Allow", "Action": "{action}", "Resource": "{resource}"}}"#)
}

#[cfg(test)]
mod tests;
