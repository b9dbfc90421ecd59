//! Asks every instance of the routes for its health, in rotation or not, each second.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::task::AbortOnDropHandle;
use troop_policies::InstanceId;

use super::proxy::in_words;
use super::{Clock, lock};
use crate::local::protocol::{Check, Verdict};

const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A check that takes longer counts as failed; equal to the pace, so that checks never pile up.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Checks in a row that make a verdict, the first one too: one answer may be luck, good or bad.
const IN_A_ROW: u32 = 2;
/// Shift between an instance's check and the next one's, in thousandths of the pace: by the golden ratio, so that any
/// number of instances is spread evenly.
const STAGGER: u64 = 382;

/// The checks that run, one task each.
pub(super) struct Checks {
    worker: u32,
    clock: Clock,
    running: BTreeMap<InstanceId, Running>,
    begun: u64,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Running {
    check: Check,
    judge: Arc<Mutex<Judge>>,
    _task: AbortOnDropHandle<()>,
}

impl Checks {
    pub(super) fn new(worker: u32, clock: Clock) -> Self {
        Self { worker, clock, running: BTreeMap::new(), begun: 0, changed: Arc::new(Notify::new()) }
    }

    /// Begins checks that are new, and ends those that are not wanted any more. Needs a runtime.
    pub(super) fn update(&mut self, checks: &[Check]) {
        let wanted: BTreeMap<&InstanceId, &Check> = checks.iter().map(|check| (&check.instance, check)).collect();
        self.running.retain(|instance, running| wanted.get(instance).is_some_and(|check| **check == running.check));
        for (instance, check) in wanted {
            if !self.running.contains_key(instance) {
                let running = self.begin(check.clone());
                self.running.insert(instance.clone(), running);
            }
        }
    }

    fn begin(&mut self, check: Check) -> Running {
        let judge = Arc::new(Mutex::new(Judge::default()));
        // Workers are half a pace apart: together they look twice as often.
        let thousandths = (self.begun * STAGGER + u64::from(self.worker) * 500) % 1000;
        self.begun += 1;
        let first = Instant::now() + Duration::from_micros(thousandths * 1000);
        let keep_asking =
            keep_asking(check.clone(), first, Arc::clone(&judge), Arc::clone(&self.clock), Arc::clone(&self.changed));
        Running { check, judge, _task: AbortOnDropHandle::new(tokio::spawn(keep_asking)) }
    }

    /// What is known, by instance. One that has not been asked often enough is not in it.
    pub(super) fn verdicts(&self) -> BTreeMap<InstanceId, Verdict> {
        let verdict = |(instance, running): (&InstanceId, &Running)| {
            lock(&running.judge).verdict.clone().map(|verdict| (instance.clone(), verdict))
        };
        self.running.iter().filter_map(verdict).collect()
    }

    /// Rings when a verdict turned.
    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

async fn keep_asking(check: Check, first: Instant, judge: Arc<Mutex<Judge>>, clock: Clock, changed: Arc<Notify>) {
    let mut ticks = tokio::time::interval_at(first, CHECK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match tokio::time::timeout(ANSWER_WITHIN, ask(check.address, &check.health_path)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
        };
        let at = clock();
        let turned = lock(&judge).take(result, at);
        if let Some(Verdict { healthy, reason, .. }) = turned {
            let reason = reason.as_deref().unwrap_or("-");
            tracing::info!(instance = %check.instance, group = %check.group, healthy, reason, "health turned");
            changed.notify_one();
        }
    }
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checks").field("worker", &self.worker).field("running", &self.running).finish_non_exhaustive()
    }
}

/// One instance's checks so far.
#[derive(Debug, Default)]
struct Judge {
    passes: u32,
    failures: u32,
    verdict: Option<Verdict>,
}

impl Judge {
    /// Takes one check's result, with the reason if it failed. Returns the verdict if it turned by it.
    ///
    /// A verdict is as old as the last check that agreed with it: one that disagrees is not enough for another verdict,
    /// but does not keep the old one fresh.
    fn take(&mut self, result: Result<(), String>, at: Timestamp) -> Option<Verdict> {
        (self.passes, self.failures) = match result {
            Ok(()) => (self.passes.saturating_add(1), 0),
            Err(_) => (0, self.failures.saturating_add(1)),
        };
        let healthy = result.is_ok();
        let turns = self.verdict.as_ref().is_none_or(|verdict| verdict.healthy != healthy);
        if turns && self.passes.max(self.failures) < IN_A_ROW {
            return None;
        }
        let verdict = Verdict { healthy, checked_at: at, reason: result.err() };
        self.verdict = Some(verdict.clone());
        turns.then_some(verdict)
    }
}

/// Asks once, over a connection of its own: an instance that takes no more of them is not healthy.
async fn ask(address: SocketAddr, path: &str) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| in_short(&error))?;
    stream.set_nodelay(true).map_err(|error| in_short(&error))?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "troop-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("`{path}` cannot be asked for: {error}"))?;
    let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| in_words(&error))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(|error| {
        if error.is_incomplete_message() { "connection closed without an answer".to_owned() } else { in_words(&error) }
    })?;
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(status.as_str().to_owned()) }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a library's enum; whatever else fails says so itself")]
fn in_short(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn bad(why: &str) -> Result<(), String> {
        Err(why.to_owned())
    }

    #[test]
    fn two_in_a_row_make_a_verdict_and_two_turn_it() {
        let mut judge = Judge::default();
        assert_eq!(judge.take(bad("503"), at(1)), None);
        assert_eq!(judge.take(Ok(()), at(2)), None);
        assert_eq!(judge.verdict, None);
        let healthy = judge.take(Ok(()), at(3)).unwrap();
        assert_eq!(healthy, Verdict { healthy: true, checked_at: at(3), reason: None });
        assert_eq!(judge.take(Ok(()), at(4)), None);
        assert_eq!(judge.verdict.as_ref().unwrap().checked_at, at(4));
        assert_eq!(judge.take(bad("503"), at(5)), None);
        assert_eq!(judge.verdict.as_ref().unwrap().checked_at, at(4), "a doubt does not keep it fresh");
        let ill = judge.take(bad("connection refused"), at(6)).unwrap();
        assert_eq!(ill, Verdict { healthy: false, checked_at: at(6), reason: Some("connection refused".into()) });
        assert_eq!(judge.take(bad("503"), at(7)), None);
        assert_eq!(judge.verdict.as_ref().unwrap().reason.as_deref(), Some("503"));
        assert_eq!(judge.take(Ok(()), at(8)), None);
        assert!(judge.take(Ok(()), at(9)).unwrap().healthy);
    }

    /// A server that reads a request and answers these bytes.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /health HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn reasons_are_in_words() {
        let ok = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(ask(ok, "/health").await, Ok(()));
        let ill = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(ask(ill, "/health").await, bad("503"));
        let mute = server("").await;
        assert_eq!(ask(mute, "/health").await, bad("connection closed without an answer"));
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(ask(gone, "/health").await, bad("connection refused"));
    }

    #[tokio::test]
    async fn checks_that_are_not_wanted_any_more_end_and_are_not_reported() {
        // Takes connections and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let check = Check {
            instance: InstanceId::new("i-1").unwrap(),
            group: troop_policies::GroupName::new("a-v000").unwrap(),
            address: listener.local_addr().unwrap(),
            health_path: "/health".into(),
        };
        let mut checks = Checks::new(0, Arc::new(|| at(7)));
        checks.update(std::slice::from_ref(&check));
        let (mut taken, _) = listener.accept().await.unwrap();
        let turned = checks.changed();
        turned.notified().await;
        let verdict = &checks.verdicts()[&check.instance];
        assert_eq!((verdict.healthy, verdict.checked_at), (false, at(7)));
        assert_eq!(verdict.reason.as_deref(), Some("no answer within 1 s"));
        checks.update(&[]);
        assert!(checks.verdicts().is_empty());
        let mut rest = Vec::new();
        taken.read_to_end(&mut rest).await.unwrap();
        assert!(rest.starts_with(b"GET /health"));
    }
}
