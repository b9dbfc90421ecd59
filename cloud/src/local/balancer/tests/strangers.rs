//! Clients that say nothing, say it slowly, or say too much: each has its limit, and everyone else keeps being served.
//!
//! What a limit does, to the second, is tested in troop-http in virtual time; here real sockets meet a real worker.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::client::LIMITS;
use super::stage::{Client, Instance, Stage, host, member, routes, within};

/// As the issue asks; fewer where the hard limit of descriptors leaves no room for both ends.
const IDLE: u64 = 10_000;
/// Descriptors of this process that are not this test's.
const OTHERS: u64 = 1_500;

/// As many connections as may be open from here, with the worker's ends of them in this process too.
fn more_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let served = u64::try_from(super::super::clients_max()).unwrap();
    IDLE.min(hard.saturating_sub(OTHERS + 2 * served).max(hard.saturating_sub(OTHERS) / 3))
}

async fn is_served(stage: &Stage) {
    let mut client = Client::connect(stage.address).await;
    let status = asks(&mut client, stage).await;
    assert_eq!(status, StatusCode::OK);
}

/// Asks once, and comes back where the connection was closed before its request came: HTTP lets either end do that.
async fn asks(client: &mut Client, stage: &Stage) -> StatusCode {
    for _ in 0..20 {
        match client.ask(Method::GET, &host("web"), "/", Bytes::new()).await {
            Ok(answer) => return answer.status,
            Err(_closed) => *client = Client::connect(stage.address).await,
        }
    }
    panic!("closed twenty times");
}

async fn says(stage: &Stage, text: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(stage.address).await.unwrap();
    stream.write_all(text).await.unwrap();
    stream
}

/// What comes until the other end closes.
async fn all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end as well.
    drop(within(stream.read_to_end(&mut answer)).await);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    let idle = more_descriptors();
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    // One asks again and again on one connection, and comes back when it is closed while it was idle.
    let mut regular = Client::connect(stage.address).await;
    let mut silent = Vec::new();
    for number in 0..idle {
        silent.push(within(TcpStream::connect(stage.address)).await.unwrap());
        if number % 500 == 499 {
            is_served(&stage).await;
            let status = asks(&mut regular, &stage).await;
            assert_eq!(status, StatusCode::OK, "after {number}");
        }
    }
    #[expect(clippy::print_stderr, reason = "a machine with fewer descriptors shall say that it showed less")]
    if idle < IDLE {
        eprintln!("only {idle} idle connections: the hard limit of descriptors allows no more");
    }
    is_served(&stage).await;
    drop(silent);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_half_closed_connections_end_and_keep_nobody_out() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        slow.push(says(&stage, b"GET / HTTP/1.1\r\nhost: web\r\n").await);
    }
    for begun in ["", "GET / HT", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\nabc"] {
        let mut half = says(&stage, begun.as_bytes()).await;
        half.shutdown().await.unwrap();
        all(&mut half).await;
        is_served(&stage).await;
    }
    let began = tokio::time::Instant::now();
    while slow
        .iter()
        .any(|stream| matches!(stream.try_read(&mut [0; 8]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock))
    {
        assert!(began.elapsed() < 2 * LIMITS.head_within + Duration::from_secs(10), "slow heads are borne for ever");
        for stream in &mut slow {
            drop(stream.write_all(b"x: y\r\n").await);
        }
        is_served(&stage).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stage.stop().await;
}

#[tokio::test]
async fn heads_past_the_limit_are_refused_and_bodies_of_any_length_are_not_held() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    let fields = |count: usize| "x: y\r\n".repeat(count);
    let field = |bytes: usize| format!("x: {}\r\n", "y".repeat(bytes));
    for (fields, status) in [
        (field(2 * LIMITS.head_bytes_max), "431"),
        (fields(LIMITS.fields_max), "431"),
        (field(LIMITS.head_bytes_max / 2), "200"),
        (fields(LIMITS.fields_max / 2), "200"),
    ] {
        let mut stream =
            says(&stage, format!("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{fields}\r\n").as_bytes()).await;
        let answer = all(&mut stream).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{}", &answer[..answer.len().min(200)]);
        is_served(&stage).await;
    }
    // A terabyte is announced; what came of it went on, and nothing waits for the rest.
    let mut large = says(&stage, b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 1099511627776\r\n\r\nabc").await;
    is_served(&stage).await;
    large.shutdown().await.unwrap();
    all(&mut large).await;
    is_served(&stage).await;
    stage.stop().await;
}
