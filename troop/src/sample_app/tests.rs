//! The whole service over real sockets, against a registry that writes down what it is told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A registry that knows one application, and the calls that it saw.
#[derive(Debug, Default)]
struct Notes {
    calls: Mutex<Vec<String>>,
    bodies: Mutex<Vec<Value>>,
    forgets: AtomicBool,
    away: AtomicBool,
    /// Calls that were refused while away.
    refused: AtomicU32,
    /// The answer to GET apps/APP.
    known: Mutex<Option<Value>>,
}

impl Notes {
    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|c| c.starts_with(call)).count()
    }
}

/// Writes the call down, a registration with its status, and answers as Eureka does.
async fn answer(notes: Arc<Notes>, request: Request) -> axum::response::Response {
    if notes.away.load(Ordering::SeqCst) {
        notes.refused.fetch_add(1, Ordering::SeqCst);
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let call = match parts.method.as_str() {
        "POST" => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let call = format!("POST {} {}", parts.uri.path(), body["instance"]["status"].as_str().unwrap());
            notes.bodies.lock().unwrap().push(body);
            call
        }
        method => format!("{method} {}", parts.uri),
    };
    notes.calls.lock().unwrap().push(call);
    match parts.method.as_str() {
        "POST" => StatusCode::NO_CONTENT.into_response(),
        "GET" => match notes.known.lock().unwrap().clone() {
            Some(known) => axum::Json(known).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        "PUT" if notes.forgets.swap(false, Ordering::SeqCst) => StatusCode::NOT_FOUND.into_response(),
        _ => StatusCode::OK.into_response(),
    }
}

async fn registry() -> (Arc<Notes>, String) {
    let notes = Arc::new(Notes::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/eureka/v2", listener.local_addr().unwrap());
    let handler = {
        let notes = Arc::clone(&notes);
        move |request: Request| answer(Arc::clone(&notes), request)
    };
    tokio::spawn(axum::serve(listener, Router::new().fallback(handler)).into_future());
    (notes, base)
}

#[derive(Debug)]
struct Running {
    url: String,
    stop: CancellationToken,
    task: JoinHandle<Result<(), SampleError>>,
}

impl Running {
    async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// An address that no other test of this process uses, with a port that was free on it a moment ago.
fn free_address() -> (String, u16) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let own = NEXT.fetch_add(1, Ordering::SeqCst).to_be_bytes()[3];
    let host = format!("127.{}.{high}.{low}", 64 + own);
    let port = std::net::TcpListener::bind((host.as_str(), 0)).unwrap().local_addr().unwrap().port();
    (host, port)
}

fn identity(eureka: Option<String>) -> Identity {
    let (host, port) = free_address();
    Identity::from_env(|name| match name {
        "HOST" => Some(host.clone()),
        "PORT" => Some(port.to_string()),
        "TROOP_APP" => Some("hello".to_owned()),
        "TROOP_VERSION" => Some("1.0.0".to_owned()),
        "TROOP_CLUSTER" => Some("hello-web".to_owned()),
        "TROOP_GROUP" => Some("hello-web-v000".to_owned()),
        "TROOP_INSTANCE_ID" => Some("i-4f21".to_owned()),
        "TROOP_ZONE" => Some("r1b".to_owned()),
        "EUREKA_URL" => eureka.clone(),
        _ => None,
    })
    .unwrap()
}

async fn start(eureka: Option<String>, behaviour: Behaviour) -> Running {
    let identity = identity(eureka);
    let url = format!("http://{}:{}", identity.host, identity.port);
    let address = (identity.host.clone(), identity.port);
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(identity, behaviour, stop.clone()));
    eventually("the service listens", async || tokio::net::TcpStream::connect(address.clone()).await.is_ok()).await;
    Running { url, stop, task }
}

async fn eventually(what: &str, mut met: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !met().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn its_pages_say_who_it_is() {
    let running = start(None, Behaviour::default()).await;
    let (status, text) = running.get("/").await;
    assert_eq!(status, 200);
    assert_eq!(text, "hello\napp hello\nversion 1.0.0\ngroup hello-web-v000\ninstance i-4f21\nzone r1b\n");
    let version = running.json("/version").await;
    assert_eq!((&version["version"], &version["instance"]), (&json!("1.0.0"), &json!("i-4f21")));
    assert_eq!(running.get("/health").await, (200, "ok\n".to_owned()));
    assert_eq!(running.get("/?delay_ms=5001").await.0, 400);
    assert_eq!(running.get("/nowhere").await.0, 404);
    running.end().await;
}

#[tokio::test]
async fn a_bad_version_fails_its_share_and_stays_healthy() {
    let running = start(None, Behaviour { error_rate: 0.31, ..Behaviour::default() }).await;
    let mut errors = 0;
    for _ in 0..100 {
        errors += u32::from(running.get("/").await.0 == 500);
        assert_eq!(running.get("/health").await.0, 200);
    }
    assert_eq!(errors, 31);
    running.end().await;
}

#[tokio::test]
async fn a_version_that_is_never_ready_says_so_and_still_answers() {
    let running = start(None, Behaviour { health_status: 503, ..Behaviour::default() }).await;
    assert_eq!(running.get("/health").await.0, 503);
    assert_eq!(running.get("/").await.0, 200);
    running.end().await;
}

fn since_of(instance: &Value) -> i64 {
    instance["lastDirtyTimestamp"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn it_registers_as_starting_then_up_renews_and_leaves() {
    let (notes, base) = registry().await;
    let running = start(Some(base), Behaviour::default()).await;
    eventually("two renewals", async || notes.count("PUT") >= 2).await;
    running.end().await;

    let calls = notes.calls();
    let app = "/eureka/v2/apps/HELLO";
    assert_eq!(calls[0], format!("POST {app} STARTING"));
    assert_eq!(calls[1], format!("POST {app} UP"));
    let since: Vec<i64> = notes.bodies.lock().unwrap().iter().map(|b| since_of(&b["instance"])).collect();
    assert!(since[0] < since[1], "its newer word is told from its older one by their times: {since:?}");
    assert_eq!(calls[2], format!("PUT {app}/i-4f21?status=UP&lastDirtyTimestamp={}", since[1]));
    assert_eq!(calls.last().unwrap(), &format!("DELETE {app}/i-4f21"));
    assert_eq!((notes.count("POST"), notes.count("DELETE")), (2, 1));

    let instance = notes.bodies.lock().unwrap()[1]["instance"].clone();
    assert_eq!(instance["instanceId"], "i-4f21");
    assert_eq!(instance["asgName"], "hello-web-v000");
    assert_eq!(instance["vipAddress"], "hello-web");
    assert_eq!(instance["metadata"], json!({ "troop.instance-id": "i-4f21" }));
    assert_eq!(instance["leaseInfo"], json!({ "renewalIntervalInSecs": 1, "durationInSecs": 3 }));
    assert_eq!(instance["dataCenterInfo"]["@class"], "com.netflix.appinfo.AmazonInfo");
    assert_eq!(instance["dataCenterInfo"]["metadata"]["instance-id"], "i-4f21");
    assert_eq!(instance["port"]["@enabled"], "true");
}

#[tokio::test]
async fn a_registry_that_forgot_it_is_told_again() {
    let (notes, base) = registry().await;
    notes.forgets.store(true, Ordering::SeqCst);
    let running = start(Some(base), Behaviour::default()).await;
    eventually("a third registration", async || notes.count("POST") == 3).await;
    let app = "/eureka/v2/apps/HELLO";
    let calls = notes.calls();
    assert!(calls[2].starts_with(&format!("PUT {app}/i-4f21?status=UP&lastDirtyTimestamp=")), "{}", calls[2]);
    assert_eq!(calls[3], format!("POST {app} UP"));
    running.end().await;
}

/// A killed registry goes on with what it had saved: an entry of the time before the service was UP.
#[tokio::test]
async fn a_registry_that_kept_only_its_older_word_learns_the_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.json");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/eureka/v2", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let lease = Duration::from_secs(3);
    let clock = Arc::new(crate::clock::real_now);
    let served = tokio::spawn(troop_registry::server::serve(listener, file, lease, clock, stop.clone()));
    let client = reqwest::Client::new();
    let entry = format!("{base}/apps/HELLO/i-4f21");
    let status = async || {
        let answer = client.get(&entry).header("accept", "application/json").send().await.unwrap();
        answer.json::<Value>().await.ok().and_then(|v| v["instance"]["status"].as_str().map(str::to_owned))
    };
    let running = start(Some(base.clone()), Behaviour::default()).await;
    eventually("it is UP", async || status().await.as_deref() == Some("UP")).await;
    let older = json!({ "instance": {
        "instanceId": "i-4f21", "hostName": "127.0.0.1", "app": "HELLO", "ipAddr": "127.0.0.1", "status": "STARTING",
        "lastDirtyTimestamp": "1000", "port": { "$": 80, "@enabled": "true" },
        "dataCenterInfo": { "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn" },
    } });
    let put_back = client.post(format!("{base}/apps/HELLO")).json(&older).send().await.unwrap();
    assert!(put_back.status().is_success(), "{}", put_back.text().await.unwrap());
    eventually("it is UP again", async || status().await.as_deref() == Some("UP")).await;
    running.end().await;
    stop.cancel();
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn it_serves_while_the_registry_is_away_and_enters_when_it_is_back() {
    let (notes, base) = registry().await;
    notes.away.store(true, Ordering::SeqCst);
    let running = start(Some(base), Behaviour::default()).await;
    eventually("two tries", async || notes.refused.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(running.get("/").await.0, 200);
    notes.away.store(false, Ordering::SeqCst);
    eventually("registered", async || notes.count("POST") == 1).await;
    assert_eq!(notes.calls()[0], "POST /eureka/v2/apps/HELLO UP");
    running.end().await;
}

#[tokio::test]
async fn a_request_in_flight_at_the_stop_is_finished_and_the_registry_hears_of_it_first() {
    let (notes, base) = registry().await;
    let running = start(Some(base), Behaviour::default()).await;
    eventually("registered", async || notes.count("POST") == 2).await;
    let url = format!("{}/?delay_ms=2500", running.url);
    let mut slow = tokio::spawn(async move { reqwest::get(url).await.unwrap().status().as_u16() });
    // Long enough to be sent, and so short that what is left of its delay is less than FINISH_WITHIN.
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut slow).await.is_err());
    let url = running.url.clone();
    running.end().await;
    assert_eq!(slow.await.unwrap(), 200);
    assert_eq!(notes.count("DELETE"), 1);
    assert!(reqwest::get(url).await.is_err(), "it still accepts");
}

#[tokio::test]
async fn a_request_that_takes_too_long_does_not_hold_the_stop() {
    let running = start(None, Behaviour::default()).await;
    let url = format!("{}/?delay_ms=5000", running.url);
    let mut slow = tokio::spawn(reqwest::get(url));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut slow).await.is_err());
    let began = tokio::time::Instant::now();
    running.end().await;
    assert!(began.elapsed() >= FINISH_WITHIN, "it waited only {:?}", began.elapsed());
    assert!(!slow.is_finished(), "it waited for the answer");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_no_entry_stays() {
    let (notes, base) = registry().await;
    let identity = identity(Some(base));
    let _taken = std::net::TcpListener::bind((identity.host.as_str(), identity.port)).unwrap();
    let error = serve(identity, Behaviour::default(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SampleError::Listen { .. }), "{error}");
    assert_eq!(notes.calls().last().unwrap(), "DELETE /eureka/v2/apps/HELLO/i-4f21");
}

#[tokio::test]
async fn a_downstream_service_is_found_by_the_registry_and_called() {
    let callee = start(None, Behaviour::default()).await;
    let (notes, base) = registry().await;
    let caller = start(Some(base), Behaviour::default()).await;

    let (status, text) = caller.get("/downstream?app=pricing").await;
    assert_eq!((status, text.as_str()), (502, "the registry knows no instance of pricing that is UP\n"));

    let (host, port) = callee.url.trim_start_matches("http://").split_once(':').unwrap();
    let port: u16 = port.parse().unwrap();
    *notes.known.lock().unwrap() = Some(json!({ "application": { "name": "PRICING", "instance": [
        { "status": "UP", "ipAddr": host, "port": { "$": port, "@enabled": "true" } },
    ] } }));
    let both = caller.json("/downstream?app=pricing").await;
    assert_eq!(both["caller"]["app"], "hello");
    assert_eq!(both["downstream"]["version"], "1.0.0");
    assert_eq!(notes.count("GET /eureka/v2/apps/PRICING"), 2);

    callee.end().await;
    assert_eq!(caller.get("/downstream?app=pricing").await.0, 502);
    assert_eq!(caller.get("/downstream?app=../x").await.0, 400);
    assert_eq!(caller.get("/downstream").await.0, 400);
    caller.end().await;
}

#[tokio::test]
async fn a_downstream_service_of_the_file_is_called_without_a_registry() {
    let callee = start(None, Behaviour::default()).await;
    let behaviour = Behaviour { downstream: Some(format!("{}/", callee.url)), ..Behaviour::default() };
    let caller = start(None, behaviour).await;
    assert_eq!(caller.json("/downstream").await["downstream"]["instance"], "i-4f21");
    assert_eq!(caller.get("/downstream?app=pricing").await.0, 502);
    caller.end().await;
    callee.end().await;
}
