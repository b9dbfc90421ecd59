//! The demo's client: it sends at a fixed pace, whatever the service does, and says of every failed request whose fault it was.
//!
//! Open loop: the times of sending are fixed before the first answer, and a latency counts from the time at which the
//! request was meant to be sent. A client that waited for answers would send least while things are worst.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Name of the phase before the first call of [`Load::phase`].
pub const WARM_UP: &str = "warm-up";
/// A request without a whole answer by then has failed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Reasons of failures of the kind `other` that are kept in words, for each phase: enough to see a pattern.
const REASONS_KEPT: usize = 20;
/// Idle connections are kept this long: shorter than the balancer keeps them, so that the client is who closes.
const IDLE: Duration = Duration::from_secs(10);
/// Idle connections kept: a burst after a stall needs more than the steady pace, but not for ever.
const IDLE_KEPT: usize = 64;
/// An answer's body may be this long; the sample service's are some hundred bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// So much of an error's body is kept as a reason.
const QUOTED_CHARS: usize = 100;
/// Largest latency that the histogram tells apart, in microseconds: well above [`TIMEOUT`].
const MAX_LATENCY_US: u64 = 60_000_000;
/// Digits of a latency that are kept.
const LATENCY_DIGITS: u8 = 3;

/// Set by the balancer on an answer that it made itself because an instance gave none.
const FAILURE_HEADER: &str = "x-troop-failure";
/// Set by the balancer: the group that answered.
const GROUP_HEADER: &str = "x-troop-group";
/// Value of [`FAILURE_HEADER`]: the instance was ended on purpose while it had the request.
const IN_FLIGHT_TO_KILLED: &str = "in_flight_to_killed";

/// Requests sent while one phase ran, and how they ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhaseCounts {
    pub name: String,
    pub sent: u64,
    /// The sum of the three that follow.
    pub failed: u64,
    /// The instance was ended on purpose while it had the request.
    pub in_flight_to_killed: u64,
    /// Answers of 500 and above by a group that [`Load::mark_bad`] named.
    pub by_bad_version: u64,
    /// Everything else, answers that never came included.
    pub other: u64,
    /// The first 20 of `other`, in words.
    pub reasons: Vec<String>,
}

/// What was sent and answered so far, over all phases.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    pub sent: u64,
    /// Requests that got a whole answer, of whatever status.
    pub answered: u64,
    pub failed: u64,
    pub in_flight_to_killed: u64,
    pub by_bad_version: u64,
    pub other: u64,
    /// Answers by the group that gave them, of whatever status.
    pub by_group: BTreeMap<String, u64>,
    /// 99 % of the answers came within this many milliseconds of the intended time of sending; none without answers.
    pub p99_ms: Option<f64>,
}

/// A running client. Dropped, it stops at once; [`Load::finish`] waits for what is in flight.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    any_ok: watch::Receiver<bool>,
    stop: CancellationToken,
    pacer: AbortOnDropHandle<()>,
}

impl Load {
    /// Sends `GET /` to `target` with `host` as its Host, `per_second` times a second (at least once), from now on and
    /// over connections that are kept.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(target: SocketAddr, host: String, per_second: u32) -> Self {
        Self::start_with(target, host, per_second, TIMEOUT)
    }

    fn start_with(target: SocketAddr, host: String, per_second: u32, patience: Duration) -> Self {
        let (ok, any_ok) = watch::channel(false);
        let shared = Arc::new(Shared { state: Mutex::new(State::new()), ok, began: Instant::now() });
        let stop = CancellationToken::new();
        let sender = Arc::new(Sender { client: client(), target, host, patience, shared: Arc::clone(&shared) });
        let pacer = AbortOnDropHandle::new(tokio::spawn(pace(sender, per_second, stop.clone())));
        Self { shared, any_ok, stop, pacer }
    }

    /// Waits until one request was answered with a status below 500; does not give up by itself.
    pub async fn wait_until_first_ok(&self) {
        let mut any_ok = self.any_ok.clone();
        // The other end lives in `self`, so an error cannot come.
        let _closed = any_ok.wait_for(|seen| *seen).await.is_err();
    }

    /// From now on answers of 500 and above by this group, without the balancer's own mark, are the bad version's.
    ///
    /// Counts when an answer comes: name the group before it gets traffic.
    pub fn mark_bad(&self, group: impl Into<String>) {
        self.shared.lock().bad.insert(group.into());
    }

    /// Requests sent from now on belong to the phase `name`. A name that was there before goes on where it left off.
    pub fn phase(&self, name: &str) {
        self.shared.lock().begin(name);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> Counts {
        self.shared.lock().counts()
    }

    /// Stops sending, waits for the answers in flight (at most 5 s), and returns the phases in the order in which they
    /// began, [`WARM_UP`] first.
    pub async fn finish(self) -> Vec<PhaseCounts> {
        self.stop.cancel();
        if self.pacer.await.is_err() {
            tracing::error!("the load client ended abnormally; its counts stop where it did");
        }
        self.shared.lock().phases.clone()
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ok: watch::Sender<bool>,
    began: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    /// Never empty, and only grows: a request keeps the index of its own.
    phases: Vec<PhaseCounts>,
    current: usize,
    answered: u64,
    by_group: BTreeMap<String, u64>,
    bad: BTreeSet<String>,
    /// Microseconds; none if the constants of its bounds were refused, which a test rules out.
    latency: Option<Histogram<u64>>,
}

impl State {
    fn new() -> Self {
        Self {
            phases: vec![PhaseCounts { name: WARM_UP.to_owned(), ..PhaseCounts::default() }],
            current: 0,
            answered: 0,
            by_group: BTreeMap::new(),
            bad: BTreeSet::new(),
            latency: Histogram::new_with_bounds(1, MAX_LATENCY_US, LATENCY_DIGITS).ok(),
        }
    }

    fn begin(&mut self, name: &str) {
        self.current = self.phases.iter().position(|phase| phase.name == name).unwrap_or_else(|| {
            self.phases.push(PhaseCounts { name: name.to_owned(), ..PhaseCounts::default() });
            self.phases.len() - 1
        });
    }

    /// Counts a request as sent; the result is its phase.
    fn sent(&mut self) -> usize {
        if let Some(phase) = self.phases.get_mut(self.current) {
            phase.sent += 1;
        }
        self.current
    }

    fn ended(&mut self, phase: usize, end: &End, latency: Duration, at: Duration) {
        if let End::Answer(answer) = end {
            self.answered += 1;
            if let Some(group) = &answer.group {
                *self.by_group.entry(group.clone()).or_default() += 1;
            }
            if let Some(histogram) = &mut self.latency {
                histogram.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
            }
        }
        let verdict = end.verdict(&self.bad);
        let Some(phase) = self.phases.get_mut(phase) else { return };
        match verdict {
            Verdict::Ok => return,
            Verdict::InFlightToKilled => phase.in_flight_to_killed += 1,
            Verdict::ByBadVersion => phase.by_bad_version += 1,
            Verdict::Other => {
                phase.other += 1;
                if phase.reasons.len() < REASONS_KEPT {
                    phase.reasons.push(format!("{} at +{:.1} s", end.reason(), at.as_secs_f64()));
                }
            }
        }
        phase.failed += 1;
    }

    fn counts(&self) -> Counts {
        let sum = |field: fn(&PhaseCounts) -> u64| self.phases.iter().map(field).sum();
        let p99 = self.latency.as_ref().filter(|latency| !latency.is_empty()).map(|latency| {
            let micros = latency.value_at_quantile(0.99);
            Duration::from_micros(micros).as_secs_f64() * 1_000.0
        });
        Counts {
            sent: sum(|phase| phase.sent),
            answered: self.answered,
            failed: sum(|phase| phase.failed),
            in_flight_to_killed: sum(|phase| phase.in_flight_to_killed),
            by_bad_version: sum(|phase| phase.by_bad_version),
            other: sum(|phase| phase.other),
            by_group: self.by_group.clone(),
            p99_ms: p99,
        }
    }
}

/// How a request ended.
#[derive(Debug)]
enum End {
    Answer(Answer),
    /// No whole answer; why, in words.
    Nothing(String),
}

#[derive(Debug)]
struct Answer {
    status: u16,
    failure: Option<String>,
    group: Option<String>,
    /// The first line of an error's body.
    words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    InFlightToKilled,
    ByBadVersion,
    Other,
}

impl End {
    fn verdict(&self, bad: &BTreeSet<String>) -> Verdict {
        let Self::Answer(answer) = self else { return Verdict::Other };
        if answer.status < 500 {
            return Verdict::Ok;
        }
        match (&answer.failure, &answer.group) {
            (Some(mark), _) if mark == IN_FLIGHT_TO_KILLED => Verdict::InFlightToKilled,
            (None, Some(group)) if bad.contains(group) => Verdict::ByBadVersion,
            (Some(_) | None, _) => Verdict::Other,
        }
    }

    fn reason(&self) -> String {
        match self {
            Self::Nothing(why) => why.clone(),
            Self::Answer(answer) => {
                let mut text = answer.status.to_string();
                if let Some(mark) = &answer.failure {
                    text.push_str(&format!(" {FAILURE_HEADER}={mark}"));
                }
                text.push_str(&format!(" group={}", answer.group.as_deref().unwrap_or("-")));
                if !answer.words.is_empty() {
                    text.push_str(&format!(" ({})", answer.words));
                }
                text
            }
        }
    }
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    // hyper sends a request again only where a kept connection closed before a byte of it was written: that is the
    // ordinary race with a server that closes idle connections, and no failure of the service.
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_KEPT)
        .build(connector)
}

#[derive(Debug)]
struct Sender {
    client: HttpClient,
    target: SocketAddr,
    host: String,
    patience: Duration,
    shared: Arc<Shared>,
}

/// Sends at fixed times until `stop`, then waits for what is in flight. Aborted, it aborts all of it.
async fn pace(sender: Arc<Sender>, per_second: u32, stop: CancellationToken) {
    let mut in_flight = JoinSet::new();
    let mut due = interval(Duration::from_secs(1) / per_second.max(1));
    // After a stall of this process the requests that were due are sent at once, with their intended times.
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            intended = due.tick() => {
                let phase = sender.shared.lock().sent();
                in_flight.spawn(one(Arc::clone(&sender), phase, intended));
            }
            Some(ended) = in_flight.join_next() => note_panic(ended),
        }
    }
    while let Some(ended) = in_flight.join_next().await {
        note_panic(ended);
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a request of the load client ended abnormally and is not counted");
    }
}

async fn one(sender: Arc<Sender>, phase: usize, intended: Instant) {
    let end = match timeout(sender.patience, exchange(&sender)).await {
        Ok(Ok(answer)) => End::Answer(answer),
        Ok(Err(why)) => End::Nothing(why),
        Err(_) => End::Nothing(format!("no whole answer within {:.1} s", sender.patience.as_secs_f64())),
    };
    let now = Instant::now();
    let ok = matches!(&end, End::Answer(answer) if answer.status < 500);
    let shared = &sender.shared;
    shared.lock().ended(phase, &end, now.duration_since(intended), now.duration_since(shared.began));
    if ok {
        shared.ok.send_if_modified(|seen| !std::mem::replace(seen, true));
    }
}

async fn exchange(sender: &Sender) -> Result<Answer, String> {
    let request = Request::get(format!("http://{}/", sender.target))
        .header(HOST, &sender.host)
        .body(Empty::new())
        .map_err(|error| format!("the request could not be made: {error}"))?;
    let response = sender.client.request(request).await.map_err(|error| {
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    })?;
    answer_of(response).await
}

async fn answer_of(response: Response<Incoming>) -> Result<Answer, String> {
    let header =
        |name| response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let (status, failure, group) = (response.status().as_u16(), header(FAILURE_HEADER), header(GROUP_HEADER));
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    let body = body.map_err(|error| {
        format!("{status} group={} and then its body broke off: {error}", group.as_deref().unwrap_or("-"))
    })?;
    let words = match status {
        500.. => String::from_utf8_lossy(&body.to_bytes()).lines().next().unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let words = words.chars().filter(|c| !c.is_control()).take(QUOTED_CHARS).collect();
    Ok(Answer { status, failure, group, words })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use axum::Router;
    use axum::extract::Request as AxumRequest;
    use axum::response::{IntoResponse as _, Response as AxumResponse};
    use http::StatusCode;
    use tokio::net::TcpListener;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn server<F>(answer: impl Fn(u64, AxumRequest) -> F + Clone + Send + Sync + 'static) -> SocketAddr
    where
        F: Future<Output = AxumResponse> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let number = Arc::new(AtomicU64::new(0));
        let handler = move |request: AxumRequest| answer(number.fetch_add(1, Ordering::SeqCst), request);
        tokio::spawn(axum::serve(listener, Router::new().fallback(handler)).into_future());
        address
    }

    fn reply(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> AxumResponse {
        let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        response
    }

    async fn eventually(what: &str, met: impl Fn() -> bool) {
        let wait = async {
            while !met() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
    }

    /// Sends until `enough` holds, and returns the totals and the only phase.
    async fn until(load: Load, enough: impl Fn(&Counts) -> bool) -> (Counts, PhaseCounts) {
        eventually("enough", || enough(&load.snapshot())).await;
        let shared = Arc::clone(&load.shared);
        let mut phases = load.finish().await;
        assert_eq!(phases.len(), 1);
        let counts = shared.lock().counts();
        (counts, phases.remove(0))
    }

    #[tokio::test]
    async fn good_answers_are_counted_by_group_with_their_latency() {
        let address = server(async |n, request: AxumRequest| {
            assert_eq!(request.headers()["host"], "hello-web.localhost");
            reply(if n % 2 == 0 { 200 } else { 404 }, &[("x-troop-group", "hello-web-v000")], "hello\n")
        })
        .await;
        let load = Load::start(address, "hello-web.localhost".to_owned(), 200);
        timeout(PATIENCE, load.wait_until_first_ok()).await.unwrap();
        let (counts, phase) = until(load, |counts| counts.answered >= 20).await;
        assert_eq!(phase.name, WARM_UP);
        assert_eq!((counts.sent, counts.failed, phase.failed), (counts.answered, 0, 0));
        assert_eq!(counts.by_group, BTreeMap::from([("hello-web-v000".to_owned(), counts.answered)]));
        assert!(counts.p99_ms.is_some_and(|ms| ms > 0.0 && ms < 20_000.0), "{counts:?}");
    }

    #[tokio::test]
    async fn failures_are_told_apart_by_whose_they_are() {
        let address = server(async |n, _| match n % 5 {
            0 => reply(502, &[("x-troop-failure", "in_flight_to_killed"), ("x-troop-group", "bad-v003")], ""),
            1 => reply(500, &[("x-troop-group", "bad-v003")], ""),
            2 => reply(502, &[("x-troop-group", "bad-v003"), ("x-troop-failure", "in_flight")], ""),
            3 => reply(500, &[("x-troop-group", "good-v001")], "a bug\nand more"),
            _ => reply(503, &[], "no target\n"),
        })
        .await;
        let load = Load::start(address, "web".to_owned(), 100);
        load.mark_bad("bad-v003");
        let (counts, phase) = until(load, |counts| counts.answered >= 10).await;
        // The numbers are the server's; requests ended after them are at most a few.
        assert_eq!((phase.sent, phase.failed), (counts.answered, counts.answered));
        assert!(phase.in_flight_to_killed >= 2 && phase.by_bad_version >= 2 && phase.other >= 6, "{phase:?}");
        assert_eq!(phase.failed, phase.in_flight_to_killed + phase.by_bad_version + phase.other);
        let has = |start: &str| phase.reasons.iter().any(|r| r.starts_with(start) && r.ends_with(" s"));
        assert!(has("502 x-troop-failure=in_flight group=bad-v003 at +"), "{phase:?}");
        assert!(has("500 group=good-v001 (a bug) at +"), "{phase:?}");
        assert!(has("503 group=- (no target) at +"), "{phase:?}");
        assert!(!phase.reasons.iter().any(|r| r.contains("in_flight_to_killed")), "{phase:?}");
        assert_eq!(phase.reasons.len(), usize::try_from(phase.other).unwrap().min(REASONS_KEPT));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_failure_without_an_answer_and_only_some_reasons_are_kept() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let load = Load::start(closed, "web".to_owned(), 200);
        let (counts, phase) = until(load, |counts| counts.failed > 25).await;
        assert_eq!((counts.answered, counts.p99_ms, phase.other), (0, None, phase.sent));
        assert_eq!(phase.reasons.len(), REASONS_KEPT);
        assert!(phase.reasons[0].contains("refused"), "{}", phase.reasons[0]);
    }

    #[tokio::test]
    async fn a_silent_server_is_a_failure_after_the_timeout() {
        let address = server(async |_, _| std::future::pending().await).await;
        let load = Load::start_with(address, "web".to_owned(), 20, Duration::from_millis(100));
        let (counts, phase) = until(load, |counts| counts.failed >= 2).await;
        assert_eq!((counts.answered, phase.other), (0, phase.sent));
        assert!(phase.reasons[0].starts_with("no whole answer within 0.1 s at +"), "{}", phase.reasons[0]);
    }

    #[tokio::test]
    async fn the_pace_is_kept_while_the_server_is_slow() {
        // 200 a second with answers after 1 s: a client that waited for its answers would send a few.
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let address = server({
            let (open, most) = (Arc::clone(&open), Arc::clone(&most));
            move |_, _| {
                let (open, most) = (Arc::clone(&open), Arc::clone(&most));
                async move {
                    most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    open.fetch_sub(1, Ordering::SeqCst);
                    reply(200, &[], "")
                }
            }
        })
        .await;
        let began = Instant::now();
        let load = Load::start(address, "web".to_owned(), 200);
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..100 {
            // A machine that stalled wakes this task before the one that sends.
            tokio::task::yield_now().await;
        }
        let sent = load.snapshot().sent;
        // Against the time that really passed: a busy machine sleeps longer.
        let due = began.elapsed().as_secs_f64() * 200.0;
        let phases = load.finish().await;
        let sent = f64::from(u32::try_from(sent).unwrap());
        assert!((sent - due).abs() <= 0.05 * due, "sent {sent}, due {due}");
        assert_eq!(phases[0].failed, 0, "{phases:?}");
        assert!(most.load(Ordering::SeqCst) > 100, "only {} at once", most.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_request_belongs_to_the_phase_in_which_it_was_sent() {
        let gate = CancellationToken::new();
        let address = server({
            let gate = gate.clone();
            move |_, _| {
                let gate = gate.clone();
                async move {
                    gate.cancelled().await;
                    reply(500, &[], "")
                }
            }
        })
        .await;
        let load = Load::start(address, "web".to_owned(), 100);
        load.phase("steady");
        eventually("some held", || load.snapshot().sent >= 5).await;
        load.phase("kill");
        let held = load.snapshot().sent;
        // Every answer to what was held comes while `kill` runs, and must count in `steady` all the same.
        gate.cancel();
        eventually("some failed in kill", || load.snapshot().failed >= held + 3).await;
        load.phase("steady");
        let before = load.snapshot().sent;
        eventually("more in steady", || load.snapshot().sent >= before + 3).await;
        let phases = timeout(PATIENCE, load.finish()).await.unwrap();

        let names: Vec<_> = phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, [WARM_UP, "steady", "kill"]);
        for phase in &phases {
            assert_eq!(phase.failed, phase.sent, "{phases:?}");
        }
        assert_eq!(phases[2].sent, before - held, "{phases:?}");
        assert!(phases[0].sent + phases[1].sent >= held + 3, "{phases:?}");
    }

    #[tokio::test]
    async fn connections_are_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = {
            use axum::serve::ListenerExt as _;
            let accepted = Arc::clone(&accepted);
            listener.tap_io(move |_| {
                accepted.fetch_add(1, Ordering::SeqCst);
            })
        };
        let router = Router::new().fallback(async || "hello");
        tokio::spawn(axum::serve(counted, router).into_future());
        let (counts, _) = until(Load::start(address, "web".to_owned(), 100), |counts| counts.answered >= 50).await;
        assert!(
            u64::try_from(accepted.load(Ordering::SeqCst)).unwrap() < counts.sent / 2,
            "{accepted:?} of {counts:?}"
        );
    }
}
