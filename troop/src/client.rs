//! The command line's side of the control socket: JSON over HTTP over STATE/run/control.sock.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::api::types::ApiError;
use crate::state::StateDir;

/// What a question may take: the control plane answers from memory, or asks its cloud, which itself has five seconds.
pub const ASK_WITHIN: Duration = Duration::from_secs(10);
/// What an act may take: a drain before a kill, the import of an image.
pub const ACT_WITHIN: Duration = Duration::from_secs(60);
/// Largest answer taken: a hundred thousand instances are some forty megabytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the control plane does not run: nobody listens at `{}`", socket.display())]
    NotRunning { socket: PathBuf },
    #[error("the control socket `{}` belongs to another user", socket.display())]
    Forbidden { socket: PathBuf },
    #[error("could not connect to the control socket `{}`", socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the control plane did not answer {what} within {} s; nobody can say here whether it will be done", limit.as_secs())]
    TimedOut { what: String, limit: Duration },
    #[error("the connection broke while {what} was being answered; nobody can say here whether it was done")]
    Broken {
        what: String,
        #[source]
        source: hyper::Error,
    },
    /// The control plane answered, and said no.
    #[error("{}", .0.message)]
    Api(ApiError),
    #[error("the answer to {what} cannot be understood: {why}")]
    Garbled { what: String, why: String },
}

impl ClientError {
    /// Whether there is certainly no control plane, so that files may be read or written without it.
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::NotRunning { .. })
    }
}

/// Asks one control plane. A connection a request: a command sends few.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(state: &StateDir) -> Self {
        Self { socket: state.control_socket() }
    }

    /// Asks a question.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, Bytes::new(), ASK_WITHIN).await
    }

    /// Asks for an act, which may take `limit`.
    ///
    /// # Errors
    /// [`ClientError`]. After any but `NotRunning`, `Forbidden`, `Connect` and `Api` nobody knows whether it was done.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|e| ClientError::Garbled { what: format!("POST {path}"), why: e.to_string() })?;
        self.call(Method::POST, path, body.into(), limit).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let what = format!("{method} {path}");
        let asked = tokio::time::timeout(limit, self.exchange(method, path, body, &what));
        let (status, body) = asked.await.map_err(|_| ClientError::TimedOut { what: what.clone(), limit })??;
        understand(&what, status, &body)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        what: &str,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source| ClientError::Broken { what: what.to_owned(), source };
        let garbled = |why: String| ClientError::Garbled { what: what.to_owned(), why };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| connect_error(&self.socket, e))?;
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{path}"))
            .header(header::HOST, "troop")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| garbled(e.to_string()))?;
        let wanted = BodyWanted::Whole { bytes_max: ANSWER_BYTES_MAX };
        let answer = exchange(stream, request, wanted).await.map_err(|e| match e {
            NoAnswer::Broken(source) => broken(source),
            NoAnswer::Body(why) => garbled(why),
        })?;
        let (head, body) = answer.into_parts();
        Ok((head.status, body))
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    #[error("the answer's body could not be read: {0}")]
    Body(String),
}

/// How much of an answer's body is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BodyWanted {
    /// All of it; a longer one is an error.
    Whole { bytes_max: usize },
    /// Of an answer that is not 2xx its first bytes, of any other nothing: the status alone is the answer, also where the
    /// body is longer or breaks off.
    StartOfRefusal { bytes_max: usize },
}

impl BodyWanted {
    async fn of(self, status: StatusCode, mut body: Incoming) -> Result<Bytes, NoAnswer> {
        let bytes_max = match self {
            Self::Whole { bytes_max } => {
                let body = Limited::new(body, bytes_max).collect().await;
                return Ok(body.map_err(|e| NoAnswer::Body(e.to_string()))?.to_bytes());
            }
            Self::StartOfRefusal { .. } if status.is_success() => return Ok(Bytes::new()),
            Self::StartOfRefusal { bytes_max } => bytes_max,
        };
        let mut start = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            start.extend(frame.into_data().unwrap_or_default());
            if start.len() >= bytes_max {
                start.truncate(bytes_max);
                break;
            }
        }
        Ok(start.into())
    }
}

/// Sends one request over a connection of its own, and reads as much of the answer as is wanted.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    request: Request<Full<Bytes>>,
    wanted: BodyWanted,
) -> Result<Response<Bytes>, NoAnswer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(NoAnswer::Broken)?;
    // The connection lives as long as this exchange, so that nothing is left behind when it is given up.
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(NoAnswer::Broken)?.into_parts();
        let body = wanted.of(head.status, body).await?;
        Ok(Response::from_parts(head, body))
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answered = &mut answer => answered,
        ended = &mut connection => match ended {
            // The request's own side says how it went.
            Ok(()) => answer.await,
            Err(e) => Err(NoAnswer::Broken(e)),
        },
    }
}

fn connect_error(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_path_buf();
    let kind = source.kind();
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        ClientError::NotRunning { socket }
    } else if kind == io::ErrorKind::PermissionDenied {
        ClientError::Forbidden { socket }
    } else {
        ClientError::Connect { socket, source }
    }
}

fn understand<T: DeserializeOwned>(what: &str, status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
    let garbled = |why: String| ClientError::Garbled { what: what.to_owned(), why };
    if status.is_success() {
        return serde_json::from_slice(body).map_err(|e| garbled(e.to_string()));
    }
    match serde_json::from_slice::<ApiError>(body) {
        Ok(error) => Err(ClientError::Api(error)),
        Err(e) => Err(garbled(format!("status {status}, and its body is no error of ours: {e}"))),
    }
}

/// Text as it may stand in a query: everything but letters, digits, `.`, `_`, `-` and `/` is percent-encoded.
pub(crate) fn query_value(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;
    use crate::api::types::ErrorKind;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        state.create().unwrap();
        (dir, state)
    }

    /// Answers one request with these bytes and closes.
    fn answering(state: &StateDir, answer: &'static str) -> tokio::task::JoinHandle<()> {
        let listener = UnixListener::bind(state.control_socket()).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            assert!(stream.read(&mut asked).await.unwrap() > 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
    }

    #[tokio::test]
    async fn no_socket_and_a_socket_nobody_listens_on_both_mean_not_running() {
        let (_dir, state) = state();
        let client = Client::new(&state);
        assert!(client.get::<u32>("live").await.unwrap_err().is_not_running());
        drop(UnixListener::bind(state.control_socket()).unwrap());
        assert!(client.get::<u32>("live").await.unwrap_err().is_not_running());
    }

    #[tokio::test]
    async fn an_error_of_the_control_plane_is_told_as_it_was_said() {
        let (_dir, state) = state();
        let body = r#"{"kind":"refused","message":"leashed","hint":null}"#;
        let text = format!("HTTP/1.1 409 Conflict\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let server = answering(&state, text.leak());
        match Client::new(&state).get::<u32>("live").await {
            Err(ClientError::Api(error)) => {
                assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Refused, "leashed"))
            }
            other => panic!("{other:?}"),
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_no_answer_is_garbled_and_never_taken_for_not_running() {
        for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{", "HTTP/1.1 502 x\r\ncontent-length: 0\r\n\r\n"] {
            let (_dir, state) = state();
            let server = answering(&state, answer);
            let error = Client::new(&state).get::<u32>("live").await.unwrap_err();
            assert!(matches!(error, ClientError::Garbled { .. }), "{error:?}");
            server.await.unwrap();
        }
        let (_dir, state) = state();
        let server = answering(&state, "");
        let error = Client::new(&state).get::<u32>("live").await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_control_plane_that_says_nothing_is_given_up() {
        let (_dir, state) = state();
        let _listener = UnixListener::bind(state.control_socket()).unwrap();
        let limit = Duration::from_millis(50);
        let client = Client::new(&state);
        let error = client.call::<u32>(Method::GET, "live", Bytes::new(), limit).await.unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    }

    #[test]
    fn a_query_value_cannot_end_the_query() {
        assert_eq!(query_value("local/r1/a-b_c.d"), "local/r1/a-b_c.d");
        assert_eq!(query_value("a b&c=é"), "a%20b%26c%3D%C3%A9");
    }
}
