//! A client that sends as many requests as it can, or so many a second, over connections that it keeps.
//!
//! As many as it can: each connection has one request at a time, and the time is that of the answer. So many a second:
//! the times of sending are fixed beforehand, and a latency counts from there; a client that waited for answers would
//! send least while things are worst.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{BenchError, Spread, Times, as_f64, rate};

/// A request without a whole answer by then has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a failed request, so that a target that is gone does not take the processor from those that are there.
const AFTER_FAILURE: Duration = Duration::from_millis(10);
/// Failures kept in words: enough to see a pattern.
const REASONS_KEPT: usize = 10;

/// Makes request number `n` of connection `connection`.
pub(super) type Make = Arc<dyn Fn(u32, u64) -> Request<Full<Bytes>> + Send + Sync>;

/// What is sent, and where.
#[derive(Clone)]
pub(super) struct Load {
    /// Connections are dealt out to them in turn.
    pub(super) targets: Vec<SocketAddr>,
    pub(super) connections: u32,
    /// Requests a second over all connections; `None`: as many as it can.
    pub(super) per_second: Option<u32>,
    /// So many requests of each connection at most.
    pub(super) each_at_most: u64,
    pub(super) make: Make,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) answered: u64,
    /// Without a whole answer in time, or answered with a status of 400 and above.
    pub(super) failed: u64,
    pub(super) reasons: Vec<String>,
    times: Times,
    took: Duration,
}

impl Sample {
    pub(super) fn per_second(&self) -> f64 {
        rate(self.answered, self.took)
    }

    pub(super) fn times(&self) -> Spread {
        self.times.spread()
    }

    /// Microseconds of each answer's share in `spent`.
    pub(super) fn share_us(&self, spent: Duration) -> f64 {
        super::rounded(super::ratio(spent.as_secs_f64() * 1e6, as_f64(self.answered)))
    }

    fn new() -> Result<Self, BenchError> {
        Ok(Self { answered: 0, failed: 0, reasons: Vec::new(), times: Times::new()?, took: Duration::ZERO })
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.reasons.len() < REASONS_KEPT {
            self.reasons.push(why);
        }
    }

    /// Adds what other connections, or another round, saw.
    pub(super) fn merge(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.times.merge(&other.times);
        self.took = self.took.max(other.took);
        self.reasons.extend(other.reasons);
        self.reasons.truncate(REASONS_KEPT);
    }
}

impl Load {
    /// Sends for so long. Needs a tokio runtime.
    pub(super) async fn run(&self, lasts: Duration) -> Result<Sample, BenchError> {
        let stop = CancellationToken::new();
        let end = async {
            tokio::time::sleep(lasts).await;
            stop.cancel();
        };
        let (sample, ()) = tokio::join!(self.until(&stop), end);
        sample
    }

    /// Sends until `stop`; requests in flight are waited for.
    pub(super) async fn until(&self, stop: &CancellationToken) -> Result<Sample, BenchError> {
        let began = Instant::now();
        let mut connections = JoinSet::new();
        for number in 0..self.connections {
            let (load, stop) = (self.clone(), stop.clone());
            connections.spawn(async move { load.one(number, began, &stop).await });
        }
        let mut all = Sample::new()?;
        while let Some(ended) = connections.join_next().await {
            let one = ended.map_err(|e| BenchError::Failed { what: "send requests", why: e.to_string() })?;
            all.merge(one?);
        }
        all.took = began.elapsed();
        Ok(all)
    }

    async fn one(&self, number: u32, began: Instant, stop: &CancellationToken) -> Result<Sample, BenchError> {
        let mut sample = Sample::new()?;
        let Some(target) = self.targets.get(number as usize % self.targets.len().max(1)) else {
            return Err(BenchError::Failed { what: "send requests", why: "there is no target".to_owned() });
        };
        let mut due = self.per_second.map(|per_second| {
            let each = Duration::from_secs(1) / per_second.max(1);
            // Connections take turns, so that they do not all send at once.
            let mut due = tokio::time::interval_at(began + each * (number + 1), each * self.connections.max(1));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            due
        });
        let mut connection: Option<Connection> = None;
        for n in 0..self.each_at_most {
            let intended = match &mut due {
                None if stop.is_cancelled() => return Ok(sample),
                None => Instant::now(),
                Some(due) => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(sample),
                    intended = due.tick() => intended,
                },
            };
            let kept = connection.take();
            match tokio::time::timeout(PATIENCE, exchange(kept, *target, (self.make)(number, n))).await {
                Ok(Ok(kept)) => {
                    sample.answered += 1;
                    sample.times.add(intended.elapsed());
                    connection = Some(kept);
                }
                Ok(Err(why)) => sample.fail(why),
                Err(_late) => sample.fail(format!("no whole answer within {} s", PATIENCE.as_secs())),
            }
            if connection.is_none() {
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
        Ok(sample)
    }
}

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

/// One request and its whole answer. Gives the connection back if it can be used again.
async fn exchange(
    kept: Option<Connection>,
    target: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Connection, String> {
    let mut connection = match kept {
        Some(kept) => kept,
        None => connect(target).await.map_err(|e| format!("no connection: {e}"))?,
    };
    connection.sender.ready().await.map_err(|e| format!("the connection ended: {e}"))?;
    let answer = connection.sender.send_request(request).await.map_err(|e| format!("no answer: {e}"))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| format!("{status}, and its body broke off: {e}"))?;
    if status.is_client_error() || status.is_server_error() {
        let body = body.to_bytes();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).lines().next().unwrap_or_default()));
    }
    Ok(connection)
}

async fn connect(target: SocketAddr) -> std::io::Result<Connection> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, driver) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let driver = tokio::spawn(async move {
        // Its end is seen by the next request.
        let _ended = driver.await;
    });
    Ok(Connection { sender, _driver: AbortOnDropHandle::new(driver) })
}

#[cfg(test)]
mod tests {
    use super::super::balancer::instance;
    use super::*;

    fn load(targets: Vec<SocketAddr>, per_second: Option<u32>) -> Load {
        let make: Make = Arc::new(|_, _| Request::get("/").header("host", "web").body(Full::default()).unwrap());
        Load { targets, connections: 3, per_second, each_at_most: u64::MAX, make }
    }

    #[tokio::test]
    async fn requests_are_counted_and_a_target_that_is_gone_is_a_failure_in_words() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(instance::serve(listener));
        for per_second in [None, Some(200)] {
            let sample = load(vec![address], per_second).run(Duration::from_millis(200)).await.unwrap();
            assert!(sample.answered > 0 && sample.failed == 0, "{sample:?}");
            assert_eq!(sample.times().count, sample.answered);
        }
        serving.abort();
        let _aborted = serving.await;
        let sample = load(vec![address], None).run(Duration::from_millis(50)).await.unwrap();
        assert_eq!(sample.answered, 0);
        assert!(sample.reasons.iter().any(|why| why.contains("no connection")), "{:?}", sample.reasons);
    }
}
