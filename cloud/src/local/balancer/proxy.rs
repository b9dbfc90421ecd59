//! One request: to a target, to another one as long as nothing was sent or it makes no difference, and else to an answer that
//! says what failed.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version, request};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use troop_http::Phase;

use super::again;
use super::bodies::{Answer, Given, Late, Lease, Lent};
use super::headers;
use super::table::{NoTarget, Shared};
use super::tunnel::Tunnel;
use super::upstream::{ConnectError, Connection, InFlight, Upstream};

/// Longest search for a target that takes the request: twenty that do not answer a connect.
const FIND_WITHIN: Duration = Duration::from_secs(5);
/// A connection that ended lets go of the request's body at once; this is for a machine under load.
const BODY_BACK_WITHIN: Duration = Duration::from_millis(100);

pub(super) type Reply = Either<Full<Bytes>, Answer>;

/// How one target failed a request.
#[derive(Debug)]
enum Missed {
    /// Nothing was sent, so another target may have it, whatever its method.
    NotSent {
        body: Given,
        why: String,
        at_fault: bool,
    },
    /// It may have arrived. `body`: where it can be given again.
    Lost {
        body: Option<Given>,
        why: String,
    },
    TimedOut,
    ClientStalled,
    ClientBrokeOff,
}

/// Answers one request. `peer` is the client's address. With an answer that upgrades comes the tunnel that it opens.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> (Response<Reply>, Option<Tunnel>) {
    let client = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    if let Some(refusal) = refuse(&parts) {
        return (refusal, None);
    }
    let host = headers::host(&parts).map(str::to_owned);
    let body = Given::new(body);
    // With a body it would be two things at once; to ignore the wish is always right.
    let upgrade = headers::upgrade(&parts.headers).filter(|_| body.is_none() && parts.version == Version::HTTP_11);
    headers::to_upstream(&mut parts, peer, body.is_none());
    if let Some(to) = upgrade {
        headers::set_upgrade(&mut parts.headers, to);
    }
    match find(shared, host.as_deref(), &parts, body).await {
        Ok(found) => found.answer(shared, client),
        Err(failure) => (failure, None),
    }
}

/// An instance's answer, as far as its head.
#[derive(Debug)]
struct Found {
    in_flight: InFlight,
    response: Response<Incoming>,
    connection: Connection,
    took: Duration,
}

/// Sends the request to one instance after the other, until one answers or none may be asked any more.
async fn find(
    shared: &Arc<Shared>,
    host: Option<&str>,
    parts: &request::Parts,
    mut body: Given,
) -> Result<Found, Response<Reply>> {
    let began = Instant::now();
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    // Chosen already, for a request that is sent again.
    let mut next: Option<InFlight> = None;
    let mut lost: Option<Loss> = None;
    loop {
        let assigned = next.take().map_or_else(|| shared.assign(host, &tried), Ok);
        let in_flight = match assigned {
            Ok(in_flight) if began.elapsed() < FIND_WITHIN || lost.is_some() => in_flight,
            Ok(_) => return Err(nowhere("no instance took the request in time", &reasons)),
            Err(none) => {
                return Err(match (lost, none) {
                    // It did reach an instance, which is worse than none.
                    (Some(lost), _) => lost.told(StatusCode::BAD_GATEWAY).await,
                    (None, NoTarget::AllTried { cluster }) => {
                        nowhere(&NoTarget::AllTried { cluster }.to_string(), &reasons)
                    }
                    (None, none) => failure(StatusCode::SERVICE_UNAVAILABLE, "no_target", &none.to_string()),
                });
            }
        };
        let upstream = Arc::clone(&in_flight.0);
        if tried.is_empty() {
            upstream.counters.budget.earn();
        }
        match attempt(&upstream, parts.clone(), body).await {
            Ok((response, connection)) => {
                return Ok(Found { in_flight, response, connection, took: began.elapsed() });
            }
            Err(Missed::NotSent { body: back, why, at_fault }) => {
                tracing::debug!(instance = %upstream.instance, why, "nothing was sent; trying another");
                if at_fault {
                    upstream.pass_over();
                }
                reasons.push(format!("`{}`: {why}", upstream.instance));
                tried.push(upstream);
                body = back;
            }
            Err(Missed::Lost { body: back, why }) => {
                tried.push(upstream);
                let other = || shared.assign(host, &tried).ok();
                let again = go_again(&parts.method, lost.is_some(), back, &in_flight.0, other);
                let loss = Loss::new(shared, in_flight, &format!(": {why}"), again.is_some());
                let Some((given, other)) = again else {
                    return Err(loss.told(StatusCode::BAD_GATEWAY).await);
                };
                tracing::debug!(instance = %loss.upstream.instance, why, "sent again, to another");
                (body, next, lost) = (given, Some(other), Some(loss));
            }
            Err(Missed::TimedOut) => {
                // Not sent again: after half a minute its client has gone, or the request is what makes instances slow.
                return Err(Loss::new(shared, in_flight, " in time", false).told(StatusCode::GATEWAY_TIMEOUT).await);
            }
            Err(Missed::ClientStalled) => {
                return Err(own(StatusCode::REQUEST_TIMEOUT, "the request's body stopped coming"));
            }
            Err(Missed::ClientBrokeOff) => return Err(own(StatusCode::BAD_REQUEST, "the request's body broke off")),
        }
    }
}

/// What a lost request is sent again with, and to whom; `None` where it is lost for good. See [`again`].
fn go_again(
    method: &Method,
    was_lost: bool,
    body: Option<Given>,
    upstream: &Upstream,
    other: impl FnOnce() -> Option<InFlight>,
) -> Option<(Given, InFlight)> {
    let body = body.filter(|_| again::is_idempotent(method) && !was_lost)?;
    let other = other()?;
    // Last, so that nothing is spent on what cannot go.
    upstream.counters.budget.spend(Instant::now()).then_some((body, other))
}

/// Requests that are not proxied.
fn refuse(parts: &request::Parts) -> Option<Response<Reply>> {
    if parts.method == Method::CONNECT {
        return Some(own(StatusCode::NOT_IMPLEMENTED, "the balancer makes no tunnels"));
    }
    if parts.headers.get_all(HOST).iter().count() > 1 {
        return Some(own(StatusCode::BAD_REQUEST, "the request has more than one Host"));
    }
    None
}

/// Sends the request to one instance and waits for the answer's head.
async fn attempt(
    upstream: &Upstream,
    mut parts: request::Parts,
    body: Given,
) -> Result<(Response<Incoming>, Connection), Missed> {
    let may_upgrade = headers::upgrade(&parts.headers).is_some();
    if !parts.headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&upstream.address.to_string())
    {
        parts.headers.insert(HOST, host);
    }
    let mut connection = match upstream.connection().await {
        Ok(connection) => connection,
        Err(error) => {
            let at_fault = !matches!(error, ConnectError::Exhausted(_));
            return Err(Missed::NotSent { body, why: error.to_string(), at_fault });
        }
    };
    let written = connection.written();
    let client = parts.extensions.get::<Arc<Phase>>().cloned();
    let (lent, progress, back) = Lent::new(body, client);
    let sent = tokio::select! {
        sent = connection.sender.try_send_request(Request::from_parts(parts, lent)) => sent,
        late = progress.late() => return Err(match late {
            Late::Client => Missed::ClientStalled,
            Late::Instance => Missed::TimedOut,
        }),
    };
    let mut error = match sent {
        // hyper has no answer of this kind for a client that did not ask.
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !may_upgrade => {
            return Err(Missed::Lost { body: None, why: "it switched protocols unasked".to_owned() });
        }
        Ok(response) => return Ok((response, connection)),
        Err(error) => error,
    };
    if progress.client_broke_off() {
        return Err(Missed::ClientBrokeOff);
    }
    // hyper hands the request back if it never took it up; else the socket knows whether a byte of it went out.
    let untouched = error.take_message().is_some() || connection.written() == written;
    let why = in_words(error.error());
    // The message, dropped above, or the ended connection gives the body back, unless a piece of it is lost.
    let body = tokio::time::timeout(BODY_BACK_WITHIN, back).await.ok().and_then(Result::ok).flatten();
    Err(match body {
        Some(body) if untouched => Missed::NotSent { body, why, at_fault: true },
        body => Missed::Lost { body, why },
    })
}

impl Found {
    fn answer(self, shared: &Arc<Shared>, client: OnUpgrade) -> (Response<Reply>, Option<Tunnel>) {
        let Self { in_flight, mut response, connection, took } = self;
        let shared = Arc::clone(shared);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let instance = hyper::upgrade::on(&mut response);
            let (mut parts, _none) = response.into_parts();
            let to = headers::upgrade(&parts.headers);
            headers::to_client(&mut parts, &in_flight.0);
            if let Some(to) = to {
                headers::set_upgrade(&mut parts.headers, to);
            }
            in_flight.0.counters.answered(parts.status, took);
            let reply = Response::from_parts(parts, Either::Left(Full::default()));
            return (reply, Some(Tunnel { shared, client, instance, in_flight }));
        }
        let (mut parts, body) = response.into_parts();
        headers::to_client(&mut parts, &in_flight.0);
        let lease = Lease { shared, in_flight, connection, status: parts.status, took };
        (Response::from_parts(parts, Either::Right(Answer::new(body, lease))), None)
    }
}

/// A request that was sent and got no answer.
#[derive(Debug)]
struct Loss {
    upstream: Arc<Upstream>,
    /// Whether the instance was being killed.
    counted: JoinHandle<bool>,
    text: String,
}

impl Loss {
    /// `retried`: another instance is asked now.
    fn new(shared: &Arc<Shared>, in_flight: InFlight, why: &str, retried: bool) -> Self {
        let upstream = Arc::clone(&in_flight.0);
        // Not in flight any more; what follows only waits for the reason.
        drop(in_flight);
        let text = format!("`{}` gave no answer{why}", upstream.instance);
        // In a task of its own: it is counted even if the client leaves meanwhile, or has its answer from another instance.
        let (shared, of) = (Arc::clone(shared), Arc::clone(&upstream));
        Self { upstream, counted: tokio::spawn(async move { shared.count_failed(&of, retried).await }), text }
    }

    async fn told(self, status: StatusCode) -> Response<Reply> {
        let killed = self.counted.await.unwrap_or(false);
        let mut response = failure(status, if killed { "in_flight_to_killed" } else { "in_flight" }, &self.text);
        headers::name_instance(response.headers_mut(), &self.upstream);
        response
    }
}

/// No target could be given the request.
fn nowhere(why: &str, reasons: &[String]) -> Response<Reply> {
    failure(StatusCode::SERVICE_UNAVAILABLE, "unreachable", &format!("{why} ({})", reasons.join("; ")))
}

fn failure(status: StatusCode, kind: &'static str, text: &str) -> Response<Reply> {
    let mut response = own(status, text);
    response.headers_mut().insert(headers::TROOP_FAILURE, HeaderValue::from_static(kind));
    response
}

/// One line of text by the balancer itself.
fn own(status: StatusCode, text: &str) -> Response<Reply> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(format!("{text}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An error and its causes in one line.
pub(super) fn in_words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
