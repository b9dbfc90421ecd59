//! A worker over real sockets, between a cloud that is played and instances that answer or misbehave.

mod again;
mod lost;
mod stage;
mod strangers;
mod tunnels;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use troop_policies::InstanceId;

use self::stage::{Client, Instance, LIMIT, Stage, host, instance_id, member, routes, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_flips_lose_no_request_and_are_followed_once_applied() {
    const FLIPS: u64 = 50;
    const CLIENTS: usize = 8;
    const SURE_PER_FLIP: u64 = 20;
    let mut stage = Stage::start(2).await;
    let sets = [[1, 2, 3], [4, 5, 6]];
    let mut targets = Vec::new();
    for (set, numbers) in sets.iter().enumerate() {
        let mut members = Vec::new();
        for number in numbers {
            let instance = Instance::serve().await;
            members.push(member(*number, &format!("hello-web-v00{set}"), instance.address));
        }
        targets.push(members);
    }
    let serving = |version: u64| usize::try_from(version % 2).unwrap();
    stage.push(routes(1, &targets[serving(1)])).await;
    // What is in force for sure, what was begun, and how many answers came while there was no doubt.
    let (applied, pushed, sure) =
        (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (applied, pushed, sure, done) = (applied.clone(), pushed.clone(), sure.clone(), done.clone());
        let mut client = Client::connect(stage.address).await;
        clients.push(tokio::spawn(async move {
            let mut answers = 0u64;
            while !done.load(Ordering::SeqCst) {
                let method = if number % 2 == 0 { Method::GET } else { Method::POST };
                let earliest = applied.load(Ordering::SeqCst);
                let answer = client.ask(method, &host("hello-web"), "/", Bytes::from_static(b"body")).await.unwrap();
                let latest = pushed.load(Ordering::SeqCst);
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                let group = answer.header("x-troop-group");
                if earliest == latest {
                    assert_eq!(group, format!("hello-web-v00{}", serving(earliest)), "after the flip to {earliest}");
                    sure.fetch_add(1, Ordering::SeqCst);
                }
                answers += 1;
            }
            answers
        }));
    }
    for version in 2..FLIPS + 2 {
        pushed.store(version, Ordering::SeqCst);
        stage.push(routes(version, &targets[serving(version)])).await;
        applied.store(version, Ordering::SeqCst);
        let enough = sure.load(Ordering::SeqCst) + SURE_PER_FLIP;
        within(async {
            while sure.load(Ordering::SeqCst) < enough && !clients.iter().any(|client| client.is_finished()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    done.store(true, Ordering::SeqCst);
    let mut answers = 0;
    for client in clients {
        answers += client.await.unwrap();
    }
    assert!(answers >= FLIPS * SURE_PER_FLIP, "{answers}");
    stage.stop().await;
}

#[tokio::test]
async fn a_worker_that_begins_leaves_clients_to_the_others_until_it_has_routes() {
    let mut stage = Stage::start(1).await;
    let instance = Instance::serve().await;
    let mut client = Client::connect(stage.address).await;
    let routes = routes(1, &[member(1, "hello-web-v000", instance.address)]);
    let (answer, ()) = tokio::join!(client.get("hello-web", "/"), stage.push(routes));
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    stage.stop().await;
}

#[tokio::test]
async fn the_host_names_the_cluster_and_the_answer_names_the_instance() {
    let mut stage = Stage::start(1).await;
    let (web, api) = (Instance::serve().await, Instance::serve().await);
    let mut client = Client::connect(stage.address).await;
    let answer = client.get("hello-web.localhost:8080", "/").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("x-troop-failure"), "no_target");
    assert!(answer.text().contains("has not heard from the cloud"), "{answer:?}");
    let members = [member(1, "hello-web-v000", web.address), member(2, "api-v003", api.address)];
    stage.push(routes(1, &members)).await;
    for (host, group, number) in [
        ("hello-web.localhost:8080", "hello-web-v000", 1),
        ("api.localhost", "api-v003", 2),
        ("api", "api-v003", 2),
        ("127.0.0.1:8080", "hello-web-v000", 1),
        ("other.example", "hello-web-v000", 1),
    ] {
        let answer = client.get(host, "/path?query=1").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("x-troop-group"), group, "{host}");
        assert_eq!(answer.header("x-troop-instance"), instance_id(number).as_str(), "the instance's own is replaced");
        assert_eq!(answer.header("via"), "1.1 troop");
        let seen = answer.text();
        assert!(seen.starts_with("GET /path?query=1\n"), "{seen}");
        for line in [&format!("host: {host}"), &format!("x-forwarded-host: {host}"), "x-forwarded-for: 127.0.0.1"] {
            assert!(seen.lines().any(|l| l == line), "{line} in {seen}");
        }
    }
    let mut empty = routes(2, &members);
    empty.clusters.values_mut().for_each(Vec::clear);
    stage.push(empty).await;
    let answer = client.get("api", "/").await;
    assert_eq!(
        (answer.status, answer.text()),
        (StatusCode::SERVICE_UNAVAILABLE, "no instance of `api` is in rotation\n")
    );
    stage.stop().await;
}

#[tokio::test]
async fn upgrades_and_doubled_hosts_are_refused() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    for (head, status) in [
        // The instance does not care to.
        ("GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "200"),
        ("CONNECT web:80 HTTP/1.1\r\nhost: web:80\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nhost: web\r\nhost: other\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", "200"),
        ("GET / HTTP/1.0\r\n\r\n", "200"),
    ] {
        let answer = stage.raw(head).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head} {answer}");
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_stream_through_both_ways() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    let mut client = Client::connect(stage.address).await;
    let long: Bytes = (0..3_000_000u32).map(|n| n.to_be_bytes()[3]).collect();
    for method in [Method::POST, Method::PUT, Method::GET] {
        // A piece of the answer comes back before the last one of the request is sent.
        let (status, back) = client.echo(method.clone(), &host("web"), long.clone()).await;
        assert_eq!(status, StatusCode::OK);
        assert!(back == long, "{method}: {} bytes came back", back.len());
    }
    let head = client.ask(Method::HEAD, &host("web"), "/", Bytes::new()).await.unwrap();
    assert_eq!((head.status, head.text()), (StatusCode::OK, ""));
    assert_ne!(head.header("content-length"), "");
    stage.stop().await;
}

#[tokio::test]
async fn an_address_that_refuses_or_does_not_answer_costs_no_request_and_is_passed_over() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (vanished, _full) = stage::vanished().await;
    let members = [member(1, "web-v000", refuses), member(2, "web-v000", vanished), member(3, "web-v000", web.address)];
    stage.push(routes(1, &members)).await;
    let mut client = Client::connect(stage.address).await;
    let began = Instant::now();
    for _ in 0..12 {
        let answer = client.ask(Method::POST, &host("web"), "/", Bytes::from_static(b"once")).await.unwrap();
        assert_eq!((answer.status, answer.header("x-troop-instance")), (StatusCode::OK, instance_id(3).as_str()));
        assert!(answer.text().ends_with("\nonce"), "{answer:?}");
    }
    // Twelve requests in turn would have met the silent address four times.
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(web.requests(), 12, "none was sent twice");
    let report = stage.report(|report| report.traffic["web-v000"].answers == 12).await;
    assert_eq!(report.traffic["web-v000"].failed, 0);

    stage.push(routes(2, &members[..1])).await;
    for _ in 0..2 {
        // Passed over, and tried all the same: there is no other.
        let answer = client.get(&host("web"), "/").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.header("x-troop-failure"), "unreachable");
        assert!(answer.text().starts_with("no instance of `web` could be reached (`i-"), "{answer:?}");
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_to_an_old_target_is_finished_and_reported_until_then() {
    let mut stage = Stage::start(1).await;
    let gate = Arc::new(Semaphore::new(0));
    let (old, new) = (Instance::gated(Arc::clone(&gate)).await, Instance::serve().await);
    stage.push(routes(1, &[member(1, "web-v000", old.address)])).await;
    let mut slow = Client::connect(stage.address).await;
    // The head comes at once, the body when the gate opens: a body counts as in flight too.
    let waiting = tokio::spawn(async move { slow.get(&host("web"), "/").await });
    within(old.asked(1)).await;
    stage.push(routes(2, &[member(2, "web-v001", new.address)])).await;
    let busy =
        |number: u8| move |report: &stage::Report| report.in_flight.get(instance_id(number).as_str()) == Some(&1);
    let report = stage.report(busy(1)).await;
    assert_eq!(report.traffic["web-v000"].in_flight, 1);
    let mut client = Client::connect(stage.address).await;
    for _ in 0..5 {
        assert_eq!(client.get(&host("web"), "/").await.header("x-troop-group"), "web-v001");
    }
    gate.add_permits(1);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.header("x-troop-group")), (StatusCode::OK, "web-v000"));
    let report = stage.report(move |report| !busy(1)(report)).await;
    assert_eq!((report.traffic["web-v000"].in_flight, report.traffic["web-v000"].answers), (0, 1));
    within(old.closed()).await;
    stage.stop().await;
}

#[tokio::test]
async fn verdicts_are_reported_as_they_turn_and_end_with_the_check() {
    let mut stage = Stage::start(1).await;
    let web = Instance::serve().await;
    let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (good, bad) = (instance_id(1), instance_id(2));
    let mut both = routes(1, &[]);
    both.checks = vec![stage::check(&good, web.address), stage::check(&bad, refuses)];
    stage.push(both.clone()).await;
    let known = |id: InstanceId| move |report: &stage::Report| report.health.contains_key(&id);
    let report = stage.report(|report| known(good.clone())(report) && known(bad.clone())(report)).await;
    assert!(report.health[&good].healthy);
    assert_eq!(report.health[&good].checked_at, stage::clock()());
    assert_eq!(report.health[&bad].reason.as_deref(), Some("connection refused"));
    web.be_ill();
    let report = stage.report(|report| !report.health[&good].healthy).await;
    assert_eq!(report.health[&good].reason.as_deref(), Some("503"));
    both.version = 2;
    both.checks.truncate(1);
    stage.push(both).await;
    let report = stage.report(|_| true).await;
    assert!(!report.health.contains_key(&bad) && report.health.contains_key(&good));
    stage.stop().await;
}

#[tokio::test]
async fn the_last_routes_serve_while_the_cloud_is_away_and_new_ones_are_followed_when_it_is_back() {
    let mut stage = Stage::start(1).await;
    let (old, new) = (Instance::serve().await, Instance::serve().await);
    stage.push(routes(7, &[member(1, "web-v000", old.address)])).await;
    stage.lose_cloud();
    let mut client = Client::connect(stage.address).await;
    for _ in 0..5 {
        assert_eq!(client.get(&host("web"), "/").await.header("x-troop-group"), "web-v000");
    }
    stage.restore_cloud().await;
    // A cloud that was started again may count from the beginning.
    stage.push(routes(1, &[member(2, "web-v001", new.address)])).await;
    assert_eq!(client.get(&host("web"), "/").await.header("x-troop-group"), "web-v001");
    let report = stage.report(|report| report.traffic.get("web-v000").is_some_and(|t| t.answers == 5)).await;
    assert_eq!(report.traffic["web-v000"].failed, 0);
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_finishes_what_is_in_flight_but_waits_no_longer_than_a_second() {
    let mut stage = Stage::start(1).await;
    let gate = Arc::new(Semaphore::new(0));
    let web = Instance::gated(Arc::clone(&gate)).await;
    stage.push(routes(1, &[member(1, "web-v000", web.address)])).await;
    let _idle = Client::connect(stage.address).await;
    let mut clients = Vec::new();
    for number in 1..=2 {
        let mut client = Client::connect(stage.address).await;
        clients.push(tokio::spawn(async move { client.ask(Method::GET, &host("web"), "/", Bytes::new()).await }));
        within(web.asked(number)).await;
    }
    let began = Instant::now();
    stage.ask_to_stop();
    within(async { while tokio::net::TcpStream::connect(stage.address).await.is_ok() {} }).await;
    gate.add_permits(1);
    stage.stopped().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < LIMIT, "{took:?}");
    let mut whole = 0;
    for client in clients {
        whole += u32::from(client.await.unwrap().is_ok());
    }
    assert_eq!(whole, 1, "one had its answer, the other would not have had it");
}
