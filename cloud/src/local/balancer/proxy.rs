//! One request: to a target, to another one as long as nothing was sent, and else to an answer that says what failed.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Incoming};
use tokio::time::Instant;
use troop_http::Phase;

use super::bodies::{Answer, Late, Lease, Lent};
use super::headers;
use super::table::{NoTarget, Shared};
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
        body: Option<Incoming>,
        why: String,
        at_fault: bool,
    },
    /// It may have arrived.
    Lost {
        why: String,
    },
    TimedOut,
    ClientStalled,
    ClientBrokeOff,
}

/// Answers one request. `peer` is the client's address.
pub(super) async fn serve(shared: &Arc<Shared>, peer: IpAddr, request: Request<Incoming>) -> Response<Reply> {
    let began = Instant::now();
    let (mut parts, body) = request.into_parts();
    if let Some(refusal) = refuse(&parts) {
        return refusal;
    }
    let host = headers::host(&parts).map(str::to_owned);
    let mut body = Some(body).filter(|body| !body.is_end_stream());
    headers::to_upstream(&mut parts, peer, body.is_none());
    let mut tried: Vec<Arc<Upstream>> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    loop {
        let in_flight = match shared.assign(host.as_deref(), &tried) {
            Ok(in_flight) if began.elapsed() < FIND_WITHIN => in_flight,
            Ok(_) => return nowhere("no instance took the request in time", &reasons),
            Err(NoTarget::AllTried { cluster }) => {
                return nowhere(&NoTarget::AllTried { cluster }.to_string(), &reasons);
            }
            Err(none) => return failure(StatusCode::SERVICE_UNAVAILABLE, "no_target", &none.to_string()),
        };
        let upstream = Arc::clone(&in_flight.0);
        match attempt(&upstream, parts.clone(), body.take()).await {
            Ok((response, connection)) => return answer(shared, in_flight, response, connection, began.elapsed()),
            Err(Missed::NotSent { body: back, why, at_fault }) => {
                tracing::debug!(instance = %upstream.instance, why, "nothing was sent; trying another");
                if at_fault {
                    upstream.pass_over();
                }
                reasons.push(format!("`{}`: {why}", upstream.instance));
                tried.push(upstream);
                body = back;
            }
            Err(Missed::Lost { why }) => {
                let text = format!("`{}` gave no answer: {why}", upstream.instance);
                return lost(shared, in_flight, StatusCode::BAD_GATEWAY, &text).await;
            }
            Err(Missed::TimedOut) => {
                let text = format!("`{}` gave no answer in time", upstream.instance);
                return lost(shared, in_flight, StatusCode::GATEWAY_TIMEOUT, &text).await;
            }
            Err(Missed::ClientStalled) => return own(StatusCode::REQUEST_TIMEOUT, "the request's body stopped coming"),
            Err(Missed::ClientBrokeOff) => return own(StatusCode::BAD_REQUEST, "the request's body broke off"),
        }
    }
}

/// Requests that are not proxied.
fn refuse(parts: &request::Parts) -> Option<Response<Reply>> {
    if parts.method == Method::CONNECT {
        return Some(own(StatusCode::NOT_IMPLEMENTED, "the balancer makes no tunnels"));
    }
    if headers::asks_for_upgrade(&parts.headers) {
        return Some(own(StatusCode::NOT_IMPLEMENTED, "the balancer upgrades no connections; use plain HTTP/1.1"));
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
    body: Option<Incoming>,
) -> Result<(Response<Incoming>, Connection), Missed> {
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
    let bodyless = body.is_none();
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
        // Never asked for, and hyper has no answer of this kind for our client.
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            return Err(Missed::Lost { why: "it switched protocols unasked".to_owned() });
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
    if untouched {
        // The message, dropped above, or the ended connection gives the body back, unless a piece of it is lost.
        match tokio::time::timeout(BODY_BACK_WITHIN, back).await {
            Ok(Ok(body)) if bodyless || body.is_some() => {
                return Err(Missed::NotSent { body, why, at_fault: true });
            }
            Ok(_) | Err(_) => {}
        }
    }
    Err(Missed::Lost { why })
}

fn answer(
    shared: &Arc<Shared>,
    in_flight: InFlight,
    response: Response<Incoming>,
    connection: Connection,
    took: Duration,
) -> Response<Reply> {
    let (mut parts, body) = response.into_parts();
    headers::to_client(&mut parts, &in_flight.0);
    let lease = Lease { shared: Arc::clone(shared), in_flight, connection, status: parts.status, took };
    Response::from_parts(parts, Either::Right(Answer::new(body, lease)))
}

/// The request was sent and no answer came.
async fn lost(shared: &Arc<Shared>, in_flight: InFlight, status: StatusCode, text: &str) -> Response<Reply> {
    let upstream = Arc::clone(&in_flight.0);
    // Not in flight any more; what follows only waits for the reason.
    drop(in_flight);
    // In a task of its own: it is counted even if the client leaves meanwhile.
    let count = {
        let (shared, upstream) = (Arc::clone(shared), Arc::clone(&upstream));
        tokio::spawn(async move { shared.count_failed(&upstream).await })
    };
    let killed = count.await.unwrap_or(false);
    let mut response = failure(status, if killed { "in_flight_to_killed" } else { "in_flight" }, text);
    headers::name_instance(response.headers_mut(), &upstream);
    response
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
