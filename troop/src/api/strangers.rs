//! Clients of the control socket that say nothing, say it slowly, or say too much: everyone else keeps being served.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::peer::{accept_and_pass, serve_direct};
use super::router::tests::Remembering;
use super::router::{REQUEST_BYTES_MAX, router};
use super::types::LiveView;
use crate::client::{Client, ClientError};
use crate::state::StateDir;

const LIMIT: Duration = Duration::from_secs(60);
/// Four times what is served at once.
const IDLE: usize = 1_000;

fn state(dir: &Path) -> StateDir {
    let state = StateDir::find(Some(dir), |_| None).unwrap();
    state.create().unwrap();
    state
}

fn served(state: &StateDir, stop: &CancellationToken) -> JoinHandle<std::io::Result<()>> {
    let listener = UnixListener::bind(state.control_socket()).unwrap();
    let router: Router = router(Arc::new(Remembering::default()));
    tokio::spawn(serve_direct(listener, router, stop.clone()))
}

async fn says(state: &StateDir, text: &[u8]) -> UnixStream {
    let mut stream = connected(state).await;
    stream.write_all(text).await.unwrap();
    stream
}

/// The socket's queue is short: whoever comes too fast must come again.
async fn connected(state: &StateDir) -> UnixStream {
    let again = async {
        loop {
            if let Ok(stream) = UnixStream::connect(state.control_socket()).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.unwrap()
}

async fn all(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    drop(tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap());
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let (state, stop) = (state(dir.path()), CancellationToken::new());
    let serving = served(&state, &stop);
    let client = Client::new(&state);
    let mut silent = Vec::new();
    for number in 0..IDLE {
        silent.push(connected(&state).await);
        if number % 100 == 99 {
            assert_eq!(client.get::<LiveView>("live").await.unwrap().pid, 7, "after {number}");
        }
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_from_hearing_that_nobody_serves() {
    let dir = tempfile::tempdir().unwrap();
    let state = state(dir.path());
    let listener = UnixListener::bind(state.control_socket()).unwrap();
    let (_passing, nobody) = watch::channel(None);
    let acceptor = tokio::spawn(accept_and_pass(listener, nobody));
    let mut silent = Vec::new();
    for _ in 0..IDLE / 4 {
        silent.push(connected(&state).await);
    }
    let error = Client::new(&state).get::<LiveView>("live").await.unwrap_err();
    assert!(matches!(&error, ClientError::Api(e) if e.message == "the control plane is being started"), "{error:?}");
    acceptor.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_half_closed_and_oversized_requests_end_and_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let (state, stop) = (state(dir.path()), CancellationToken::new());
    let serving = served(&state, &stop);
    let client = Client::new(&state);
    let post = |length: usize, body: &str| {
        format!(
            "POST /api/v1/halt HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
    };
    let mut slow_head = says(&state, b"GET /api/v1/live HTTP/1.1\r\nhost: h\r\n").await;
    let mut slow_body = says(&state, post(100, "{").as_bytes()).await;
    for begun in ["", "GET / HT", &post(100, "{\"reason\"")] {
        let mut half = says(&state, begun.as_bytes()).await;
        half.shutdown().await.unwrap();
        all(&mut half).await;
    }
    let long_head = format!("GET /api/v1/live HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    for (request, status, kind) in [
        (long_head, "431", ""),
        (post(REQUEST_BYTES_MAX + 1, ""), "400", "yours"),
        (post(1 << 40, "x"), "400", "yours"),
    ] {
        let answer = all(&mut says(&state, request.as_bytes()).await).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
        assert!(answer.contains(kind), "{answer}");
    }
    assert_eq!(client.get::<LiveView>("live").await.unwrap().pid, 7);
    let told = all(&mut slow_body).await;
    assert!(told.starts_with("HTTP/1.1 400") && told.contains("was not there within 5 s"), "{told}");
    assert_eq!(all(&mut slow_head).await, "");
    stop.cancel();
    serving.await.unwrap().unwrap();
}
