//! Requests that reached an instance and got no answer, and those that only nearly did.

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::stage::{Client, Instance, Stage, host, instance_id, member, routes, within};
use crate::Traffic;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";

/// Takes the next connection and reads a whole request of `body` bytes' body.
pub(super) async fn take(listener: &TcpListener, body: &[u8]) -> TcpStream {
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    read_request(&mut stream, body).await;
    stream
}

pub(super) async fn read_request(stream: &mut TcpStream, body: &[u8]) {
    let mut request = Vec::new();
    within(async {
        while !request.ends_with(&[b"\r\n\r\n", body].concat()) {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0, "the connection ended early: {request:?}");
        }
    })
    .await;
}

async fn failures(stage: &mut Stage, expected: u64) -> Traffic {
    let failed = |traffic: &Traffic| traffic.failed == expected;
    let mut report = stage.report(|report| report.traffic.get("web-v000").is_some_and(failed)).await;
    report.traffic.remove("web-v000").unwrap()
}

#[tokio::test]
async fn an_instance_that_closes_after_it_was_asked_fails_the_request_and_nobody_else_gets_it() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = Instance::serve().await;
    let bad = member(1, "web-v000", listener.local_addr().unwrap());
    stage.push(routes(1, &[bad, member(2, "web-v000", other.address)])).await;
    let mut client = Client::connect(stage.address).await;
    let web = host("web");
    let once = client.ask(Method::POST, &web, "/", Bytes::from_static(b"once"));
    let (answer, ()) = tokio::join!(once, async { drop(take(&listener, b"once").await) });
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.header("x-troop-failure")), (StatusCode::BAD_GATEWAY, "in_flight"));
    assert_eq!(answer.header("x-troop-group"), "web-v000");
    assert_eq!(answer.header("x-troop-instance"), instance_id(1).as_str());
    assert_eq!(other.requests(), 0);
    assert_eq!(failures(&mut stage, 1).await.failed_in_flight_to_killed, 0);
    assert_eq!(client.get(&host("web"), "/").await.status, StatusCode::OK, "the next one's turn, same connection");
    stage.stop().await;
}

#[tokio::test]
async fn an_instance_that_accepts_and_closes_never_hangs_and_every_request_has_one_end() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad = member(1, "web-v000", listener.local_addr().unwrap());
    let closer = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let other = Instance::serve().await;
    stage.push(routes(1, &[bad, member(2, "web-v000", other.address)])).await;
    let mut client = Client::connect(stage.address).await;
    let (mut answered, mut failed) = (0, 0);
    for _ in 0..20 {
        let answer = client.ask(Method::POST, &host("web"), "/", Bytes::from_static(b"x")).await.unwrap();
        match answer.status {
            StatusCode::OK => answered += 1,
            // Whether the close came before the first byte was written is chance; each way is right.
            StatusCode::BAD_GATEWAY => {
                assert_eq!(answer.header("x-troop-failure"), "in_flight");
                failed += 1;
            }
            status => panic!("{status} {answer:?}"),
        }
    }
    assert_eq!(other.requests(), answered);
    let traffic = failures(&mut stage, failed).await;
    assert_eq!((traffic.answers, traffic.in_flight), (answered, 0));
    closer.abort();
    stage.stop().await;
}

#[tokio::test]
async fn a_request_in_flight_to_a_killed_instance_is_told_and_counted_as_such() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let victim = member(1, "web-v000", listener.local_addr().unwrap());
    let mut killing = routes(1, &[victim]);
    stage.push(killing.clone()).await;
    let mut client = Client::connect(stage.address).await;

    // Listed before it dies, without its answer's head.
    let kill = async {
        let stream = take(&listener, b"").await;
        killing.version = 2;
        killing.being_killed = vec![instance_id(1)];
        stage.push(killing.clone()).await;
        drop(stream);
    };
    let web = host("web");
    let (answer, ()) = tokio::join!(client.get(&web, "/"), kill);
    assert_eq!((answer.status, answer.header("x-troop-failure")), (StatusCode::BAD_GATEWAY, "in_flight_to_killed"));

    // Listed just after, in the middle of its answer: the client sees the answer break off.
    killing.version = 3;
    killing.being_killed.clear();
    stage.push(killing.clone()).await;
    let kill = async {
        let mut stream = take(&listener, b"").await;
        stream.write_all(&[HEAD, b"abc"].concat()).await.unwrap();
        drop(stream);
        killing.version = 4;
        killing.being_killed = vec![instance_id(1)];
        stage.push(killing.clone()).await;
    };
    let (answer, ()) = tokio::join!(client.ask(Method::GET, &web, "/", Bytes::new()), kill);
    assert!(answer.is_err(), "{answer:?}");
    let traffic = failures(&mut stage, 2).await;
    assert_eq!((traffic.failed_in_flight_to_killed, traffic.answers, traffic.in_flight), (2, 0, 0));
    stage.stop().await;
}

#[tokio::test]
async fn a_pooled_connection_that_the_instance_has_closed_costs_no_request() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (closed, mut closes) = mpsc::channel(1);
    let instance = tokio::spawn(async move {
        for round in 0u32.. {
            let mut stream = take(&listener, b"body").await;
            stream.write_all(&[HEAD, b"hello"].concat()).await.unwrap();
            if round % 2 == 1 {
                // Bytes that were not read make it a reset.
                stream.write_all(b"?").await.unwrap();
            }
            drop(stream);
            closed.send(()).await.unwrap();
        }
    });
    stage.push(routes(1, &[member(1, "web-v000", address)])).await;
    let mut client = Client::connect(stage.address).await;
    for _ in 0..20 {
        let answer = client.ask(Method::POST, &host("web"), "/", Bytes::from_static(b"body")).await.unwrap();
        assert_eq!((answer.status, answer.text()), (StatusCode::OK, "hello"));
        within(closes.recv()).await.unwrap();
    }
    let all = stage.report(|report| report.traffic["web-v000"].answers == 20).await;
    assert_eq!(all.traffic["web-v000"].failed, 0);
    instance.abort();
    stage.stop().await;
}

#[tokio::test]
async fn connections_are_used_again_and_closed_when_their_instance_leaves_the_routes() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.push(routes(1, &[member(1, "web-v000", listener.local_addr().unwrap())])).await;
    let mut client = Client::connect(stage.address).await;
    let instance = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            read_request(&mut stream, b"").await;
            stream.write_all(&[HEAD, b"hello"].concat()).await.unwrap();
        }
        stream
    };
    let asks = async {
        for _ in 0..3 {
            assert_eq!(client.get(&host("web"), "/").await.text(), "hello");
            // Given back once hyper is ready for the next, which is a moment after the last byte.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let (mut stream, ()) = tokio::join!(instance, asks);
    stage.push(routes(2, &[])).await;
    assert_eq!(within(stream.read(&mut [0; 8])).await.unwrap(), 0, "the only connection was closed by the worker");
    stage.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request_and_is_nobodys_failure() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.push(routes(1, &[member(1, "web-v000", listener.local_addr().unwrap())])).await;
    for head in [None, Some([HEAD, b"ab"].concat())] {
        let mut client = TcpStream::connect(stage.address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.unwrap();
        let mut stream = take(&listener, b"").await;
        if let Some(head) = &head {
            stream.write_all(head).await.unwrap();
            assert!(client.read(&mut [0; 1024]).await.unwrap() > 0);
        }
        stage.report(|report| report.in_flight[instance_id(1).as_str()] == 1).await;
        drop(client);
        let end = within(stream.read(&mut [0; 8])).await;
        assert!(end.as_ref().is_ok_and(|read| *read == 0) || end.is_err(), "{end:?}");
        let report = stage.report(|report| report.in_flight[instance_id(1).as_str()] == 0).await;
        assert_eq!(report.traffic["web-v000"].failed, 0);
        assert_eq!(report.traffic["web-v000"].answers, u64::from(head.is_some()), "it did answer, the client left");
    }
    stage.stop().await;
}

#[tokio::test]
async fn a_body_that_breaks_off_at_the_client_is_not_the_instances_failure() {
    let mut stage = Stage::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.push(routes(1, &[member(1, "web-v000", listener.local_addr().unwrap())])).await;
    let mut client = TcpStream::connect(stage.address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    let mut stream = take(&listener, b"3\r\nabc\r\n").await;
    client.write_all(b"no length\r\n").await.unwrap();
    let end = within(stream.read(&mut [0; 8])).await;
    assert!(end.as_ref().is_ok_and(|read| *read == 0) || end.is_err(), "{end:?}");
    let report = stage.report(|report| report.in_flight[instance_id(1).as_str()] == 0).await;
    assert_eq!((report.traffic["web-v000"].failed, report.traffic["web-v000"].answers), (0, 0));
    stage.stop().await;
}
