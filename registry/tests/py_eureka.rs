//! A client that others wrote: py-eureka-client against the registry on a real socket.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use troop_registry::server::serve;

/// How long the script may take; it waits for about six heartbeats of a second each.
const SCRIPT_WITHIN: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3 with py-eureka-client"]
async fn py_eureka_client_registers_renews_fetches_is_overridden_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let began = tokio::time::Instant::now();
    let epoch: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
    let clock = Arc::new(move || epoch.checked_add(began.elapsed()).unwrap());
    let file = folder.path().join("registry.json");
    let server = tokio::spawn(serve(listener, file, Duration::from_secs(90), clock, stop.clone()));

    let python = std::env::var("TROOP_TEST_PYTHON").ok().filter(|p| !p.is_empty()).unwrap_or("python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/py/eureka_client.py");
    let run = Command::new(python).arg(script).arg(&url).kill_on_drop(true).output();
    let output = tokio::time::timeout(SCRIPT_WITHIN, run).await.expect("the script hangs").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    // The client logs to standard output from a thread of its own, also after our last line.
    assert!(out.lines().any(|line| line == "all as expected"), "{out}\n{err}");
    stop.cancel();
    server.await.unwrap().unwrap();
}
