//! Clients that say nothing, say it slowly, or say too much: each has its limit, and everyone else keeps being served.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use troop_registry::client::RegistryClient;
use troop_registry::server::{RegistryError, serve};

/// No wait lasts longer.
const LIMIT: Duration = Duration::from_secs(60);
/// As the issue asks; fewer where the hard limit of descriptors leaves no room for both ends.
const IDLE: u64 = 10_000;
/// Descriptors of this process that are no end of an idle connection.
const OTHERS: u64 = 300;

struct Registry {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RegistryError>>,
    _folder: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let clock = Arc::new(|| Timestamp::UNIX_EPOCH);
        let file = folder.path().join("registry.json");
        let task = tokio::spawn(serve(listener, file, Duration::from_secs(90), clock, stop.clone()));
        Self { address, stop, task, _folder: folder }
    }

    async fn is_served(&self) {
        let client = RegistryClient::new(format!("http://{}", self.address)).unwrap();
        tokio::time::timeout(LIMIT, client.view()).await.unwrap().unwrap();
    }

    async fn says(&self, text: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text).await.unwrap();
        stream
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// What comes until the other end closes.
async fn all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    drop(tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap());
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    // The registry would bear them all; with their other ends in this process there are fewer places than connections.
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let idle = IDLE.min(hard.saturating_sub(OTHERS) / 2);
    let registry = Registry::start().await;
    let mut silent = Vec::new();
    for number in 0..idle {
        silent.push(TcpStream::connect(registry.address).await.unwrap());
        if number % 500 == 499 {
            registry.is_served().await;
        }
    }
    #[expect(clippy::print_stderr, reason = "a machine with fewer descriptors shall say that it showed less")]
    if idle < IDLE {
        eprintln!("only {idle} idle connections: the hard limit of descriptors allows no more");
    }
    registry.is_served().await;
    drop(silent);
    registry.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_half_closed_connections_end_and_keep_nobody_out() {
    let registry = Registry::start().await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(registry.says(b"GET /eureka/apps HTTP/1.1\r\nhost: h\r\n").await);
        slow.push(
            registry.says(b"POST /eureka/apps/A HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await,
        );
    }
    for begun in ["", "GET / HT", "POST /eureka/apps/A HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc"] {
        let mut half = registry.says(begun.as_bytes()).await;
        half.shutdown().await.unwrap();
        all(&mut half).await;
        registry.is_served().await;
    }
    // One byte a second would last for ever; the head and the body have ten seconds each.
    let (mut answers, began) = (Vec::new(), std::time::Duration::ZERO);
    let mut waited = began;
    while answers.len() < slow.len() {
        assert!(waited < LIMIT, "{} of {} were closed", answers.len(), slow.len());
        answers.clear();
        for (number, stream) in slow.iter_mut().enumerate() {
            let piece: &[u8] = if number % 2 == 0 { b"x: y\r\n" } else { b"1\r\nx\r\n" };
            if stream.write_all(piece).await.is_err() {
                answers.push(number);
            }
        }
        registry.is_served().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        waited += Duration::from_secs(1);
    }
    registry.stop().await;
}

#[tokio::test]
async fn heads_and_bodies_past_their_limits_are_refused() {
    let registry = Registry::start().await;
    let head = |fields: &str| format!("GET /eureka/apps HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{fields}\r\n");
    let body = |bytes: usize, sent: &str| {
        format!("POST /eureka/apps/A HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n{sent}")
    };
    for (request, status) in [
        (head(&format!("x: {}\r\n", "y".repeat(200_000))), "431"),
        (head(&"x: y\r\n".repeat(200)), "431"),
        (head("x: y\r\n"), "200"),
        (body(64 * 1_024 + 1, ""), "413"),
        (body(1 << 40, "abc"), "413"),
        (body(64 * 1_024, &"x".repeat(64 * 1_024)), "400"),
    ] {
        let mut stream = registry.says(request.as_bytes()).await;
        let answer = all(&mut stream).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{}", &answer[..answer.len().min(200)]);
        registry.is_served().await;
    }
    registry.stop().await;
}
