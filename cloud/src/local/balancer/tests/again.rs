//! Requests that were lost and are sent again, and those that are not.

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::lost::take;
use super::stage::{Client, Instance, Stage, host, instance_id, member, read_until, routes, within};

const WEB: &str = "web-v000";

/// An instance that loses what it is asked, and its address.
async fn loser() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn an_idempotent_request_that_was_lost_goes_to_another_instance_with_its_body() {
    let long = "x".repeat(64 * 1024);
    for (method, body) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::PUT, "once or twice"), (Method::PUT, &long)]
    {
        let mut stage = Stage::start(1).await;
        let (listener, bad) = loser().await;
        let good = Instance::serve().await;
        stage.push(routes(1, &[member(1, WEB, bad), member(2, WEB, good.address)])).await;
        let mut client = Client::connect(stage.address).await;
        let web = host("web");
        let asked = client.ask(method.clone(), &web, "/", Bytes::copy_from_slice(body.as_bytes()));
        let (answer, ()) = tokio::join!(asked, async { drop(take(&listener, body.as_bytes()).await) });
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("x-troop-instance")), (StatusCode::OK, instance_id(2).as_str()));
        assert!(answer.text().ends_with(&format!("\n{body}")), "{method}: the body came whole");
        assert_eq!(good.requests(), 1);
        // A loss is counted as one, whoever made it good.
        let report = stage.report(|report| report.traffic[WEB].failed == 1 && report.traffic[WEB].answers == 1).await;
        assert_eq!((report.traffic[WEB].retried, report.traffic[WEB].in_flight), (1, 0));
        stage.stop().await;
    }
}

#[tokio::test]
async fn what_is_too_long_or_not_idempotent_is_not_sent_again() {
    let long = "x".repeat(64 * 1024 + 1);
    for (method, body) in [(Method::POST, "once"), (Method::PATCH, "once"), (Method::PUT, &long)] {
        let mut stage = Stage::start(1).await;
        let (listener, bad) = loser().await;
        let good = Instance::serve().await;
        stage.push(routes(1, &[member(1, WEB, bad), member(2, WEB, good.address)])).await;
        let mut client = Client::connect(stage.address).await;
        let web = host("web");
        let asked = client.ask(method.clone(), &web, "/", Bytes::copy_from_slice(body.as_bytes()));
        let (answer, ()) = tokio::join!(asked, async { drop(take(&listener, body.as_bytes()).await) });
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("x-troop-failure")), (StatusCode::BAD_GATEWAY, "in_flight"));
        assert_eq!(good.requests(), 0, "{method}");
        let report = stage.report(|report| report.traffic[WEB].failed == 1).await;
        assert_eq!(report.traffic[WEB].retried, 0);
        stage.stop().await;
    }
}

#[tokio::test]
async fn a_request_is_sent_twice_at_most() {
    let mut stage = Stage::start(1).await;
    let ((first, one), (second, two)) = (loser().await, loser().await);
    let good = Instance::serve().await;
    stage.push(routes(1, &[member(1, WEB, one), member(2, WEB, two), member(3, WEB, good.address)])).await;
    let mut client = Client::connect(stage.address).await;
    let web = host("web");
    let (answer, (), ()) = tokio::join!(client.get(&web, "/"), async { drop(take(&first, b"").await) }, async {
        drop(take(&second, b"").await)
    });
    assert_eq!((answer.status, answer.header("x-troop-failure")), (StatusCode::BAD_GATEWAY, "in_flight"));
    assert_eq!(answer.header("x-troop-instance"), instance_id(2).as_str());
    assert_eq!(good.requests(), 0, "it must not go through all of them");
    let report = stage.report(|report| report.traffic[WEB].failed == 2).await;
    assert_eq!(report.traffic[WEB].retried, 1);
    stage.stop().await;
}

#[tokio::test]
async fn what_was_lost_and_finds_nobody_else_is_told_as_lost() {
    let mut stage = Stage::start(1).await;
    let (listener, bad) = loser().await;
    let (_, refuses) = loser().await;
    stage.push(routes(1, &[member(1, WEB, bad), member(2, WEB, refuses)])).await;
    let mut client = Client::connect(stage.address).await;
    let web = host("web");
    let (answer, ()) = tokio::join!(client.get(&web, "/"), async { drop(take(&listener, b"").await) });
    assert_eq!((answer.status, answer.header("x-troop-failure")), (StatusCode::BAD_GATEWAY, "in_flight"));
    assert_eq!(answer.header("x-troop-instance"), instance_id(1).as_str());
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_budget_ends_a_storm_of_retries() {
    const CLIENTS: u64 = 8;
    const REQUESTS: u64 = 10;
    let mut stage = Stage::start(1).await;
    let (listener, bad) = loser().await;
    let loses = tokio::spawn(async move {
        loop {
            drop(take(&listener, b"").await);
        }
    });
    let good = Instance::serve().await;
    stage.push(routes(1, &[member(1, WEB, bad), member(2, WEB, good.address)])).await;
    let began = Instant::now();
    let address = stage.address;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await;
                let mut failed = 0;
                for _ in 0..REQUESTS {
                    failed += u64::from(client.get(&host("web"), "/").await.status != StatusCode::OK);
                }
                failed
            })
        })
        .collect();
    let mut failed = 0;
    for client in clients {
        failed += within(client).await.unwrap();
    }
    let all = CLIENTS * REQUESTS;
    let is_all = |traffic: &crate::Traffic| {
        traffic.answers + failed == all && traffic.failed.checked_sub(traffic.retried) == Some(failed)
    };
    let report = stage.report(|report| is_all(&report.traffic[WEB])).await;
    let traffic = &report.traffic[WEB];
    // Ten at first, a tenth of the requests, one a second.
    let earned = 10 + all / 10 + began.elapsed().as_secs() + 1;
    assert!((10..=earned).contains(&traffic.retried), "{traffic:?}");
    assert!(failed > 0, "{traffic:?}");
    assert_eq!(good.requests(), traffic.answers);
    loses.abort();
    stage.stop().await;
}

/// What could be kept of a body that is still coming is given again, and the rest follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_still_coming_goes_on_to_the_other_instance() {
    use tokio::io::AsyncWriteExt as _;
    let mut stage = Stage::start(1).await;
    let (listener, bad) = loser().await;
    let good = Instance::serve().await;
    stage.push(routes(1, &[member(1, WEB, bad), member(2, WEB, good.address)])).await;
    let mut client = tokio::net::TcpStream::connect(stage.address).await.unwrap();
    client.write_all(b"PUT / HTTP/1.1\r\nhost: web\r\ncontent-length: 12\r\n\r\nfirst").await.unwrap();
    drop(take(&listener, b"first").await);
    client.write_all(b" second").await.unwrap();
    within(good.asked(1)).await;
    let answer = read_until(&mut client, b"\nfirst second").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stage.stop().await;
}
