//! Bodies on their way through, streamed piece by piece, and what is known of a request by how they end.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Instant;
use troop_http::Phase;

use super::lock;
use super::table::Shared;
use super::upstream::{Connection, InFlight};

/// How long an instance may take to answer, counted from the last piece of the request that it took, or that the
/// client gave. Longer than any answer of a service that still serves.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How much of a body that was given on is kept for another try. Forms and JSON are far below; what is above is mostly a
/// file, and is worth a client's own decision.
const KEPT_MAX: usize = 64 * 1024;

/// A request's body before an attempt: what an earlier one took of it, then the rest. Without both there is none.
#[derive(Debug, Default)]
pub(super) struct Given {
    again: Bytes,
    rest: Option<Incoming>,
}

impl Given {
    /// A body that nobody has taken anything of yet.
    pub(super) fn new(body: Incoming) -> Self {
        let rest = Some(body).filter(|body| !body.is_end_stream());
        Self { again: Bytes::new(), rest }
    }

    pub(super) fn is_none(&self) -> bool {
        self.again.is_empty() && self.rest.is_none()
    }
}

/// What a client that sends slowly must bring, in bytes for each second that it was waited for: a tenth of what a bad
/// mobile connection does. Less holds a connection to an instance on purpose.
const BODY_BYTES_PER_S_MIN: f64 = 1_024.0;
/// How long a client may be waited for in all before its pace is asked for: it may think between two pieces.
const PACE_AFTER: Duration = Duration::from_secs(30);

/// A request's body, lent to a connection. Comes back unless the connection has taken more of it than is kept.
#[derive(Debug)]
pub(super) struct Lent {
    /// Goes first.
    again: Bytes,
    rest: Option<Incoming>,
    /// All that went or goes before `rest`; `None` once that is too much, or what cannot be kept.
    kept: Option<BytesMut>,
    progress: Arc<Progress>,
    /// The client's connection, which must know when we wait for it.
    client: Option<Arc<Phase>>,
    back: Option<oneshot::Sender<Option<Given>>>,
}

/// How far a request's body is.
#[derive(Debug)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    last: Instant,
    waits_for_client: Option<Instant>,
    /// How long the client was waited for, before that.
    waited: Duration,
    bytes: u64,
    client_broke_off: bool,
}

impl Lent {
    /// The receiver gets the body back when the connection has done with it, as far as it can be given again.
    /// `client` is the connection that the body comes from, where it is known.
    pub(super) fn new(
        given: Given,
        client: Option<Arc<Phase>>,
    ) -> (Self, Arc<Progress>, oneshot::Receiver<Option<Given>>) {
        let progress = Arc::new(Progress(Mutex::new(State::new())));
        let (back, receiver) = oneshot::channel();
        let Given { again, rest } = given;
        let kept = Some(BytesMut::from(&again[..]));
        let lent = Self { again, rest, kept, progress: Arc::clone(&progress), client, back: Some(back) };
        (lent, progress, receiver)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(client) = &self.client {
            client.wants_body(false);
        }
        let rest = self.rest.take();
        let given = self.kept.take().map(|kept| Given { again: kept.freeze(), rest });
        if let Some(back) = self.back.take() {
            // Nobody waits for it when the request went well.
            drop(back.send(given));
        }
    }
}

impl Lent {
    fn keep(&mut self, piece: &Result<Frame<Bytes>, hyper::Error>) {
        let data = piece.as_ref().ok().and_then(Frame::data_ref);
        self.kept = match (self.kept.take(), data) {
            (Some(mut kept), Some(data)) if kept.len() + data.len() <= KEPT_MAX => {
                kept.extend_from_slice(data);
                Some(kept)
            }
            // Trailers, a body that broke off, or too much.
            (Some(_) | None, Some(_) | None) => None,
        };
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if !self.again.is_empty() {
            lock(&self.progress.0).last = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.again)))));
        }
        let Some(body) = &mut self.rest else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        lock(&self.progress.0).polled(&polled);
        if let Some(client) = &self.client {
            client.wants_body(polled.is_pending());
        }
        if let Poll::Ready(Some(piece)) = &polled {
            self.keep(piece);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let again = u64::try_from(self.again.len()).unwrap_or(u64::MAX);
        let mut both = SizeHint::new();
        both.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper() {
            both.set_upper(upper.saturating_add(again));
        }
        both
    }
}

/// Who kept a request waiting for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Client,
    Instance,
}

impl Progress {
    pub(super) fn client_broke_off(&self) -> bool {
        lock(&self.0).client_broke_off
    }

    /// Returns once nothing has moved for [`ANSWER_WITHIN`], or the client's pace is none.
    pub(super) async fn late(&self) -> Late {
        loop {
            let (at, late) = lock(&self.0).late_at();
            if at <= Instant::now() {
                return late;
            }
            tokio::time::sleep_until(at).await;
        }
    }
}

impl State {
    fn new() -> Self {
        let waited = Duration::ZERO;
        Self { last: Instant::now(), waits_for_client: None, waited, bytes: 0, client_broke_off: false }
    }

    fn polled(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>) {
        let now = Instant::now();
        match polled {
            Poll::Pending => drop(self.waits_for_client.get_or_insert(now)),
            Poll::Ready(piece) => {
                self.last = now;
                self.waited += self.waits_for_client.take().map_or(Duration::ZERO, |since| now - since);
                let bytes = piece.iter().flatten().filter_map(Frame::data_ref).map(Bytes::len).sum::<usize>();
                self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
                self.client_broke_off = matches!(piece, Some(Err(_)));
            }
        }
    }

    /// When somebody is late if nothing moves until then, and who.
    fn late_at(&self) -> (Instant, Late) {
        let still = self.last + ANSWER_WITHIN;
        let Some(since) = self.waits_for_client else { return (still, Late::Instance) };
        #[expect(clippy::cast_precision_loss, reason = "an estimate; a body of 2^53 bytes is fast enough")]
        let paid_for = Duration::try_from_secs_f64(self.bytes as f64 / BODY_BYTES_PER_S_MIN).unwrap_or(Duration::MAX);
        let patience = paid_for.max(PACE_AFTER).saturating_sub(self.waited);
        (still.min(since.checked_add(patience).unwrap_or(still)), Late::Client)
    }
}

/// An answer's body. Until its end the request is in flight.
#[derive(Debug)]
pub(super) struct Answer {
    body: Incoming,
    lease: Option<Lease>,
}

/// What an answer holds until its end.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) shared: Arc<Shared>,
    pub(super) in_flight: InFlight,
    pub(super) connection: Connection,
    pub(super) status: StatusCode,
    /// From the request's arrival to the answer's head.
    pub(super) took: Duration,
}

impl Answer {
    pub(super) fn new(body: Incoming, lease: Lease) -> Self {
        let mut answer = Self { body, lease: Some(lease) };
        answer.end_if_whole();
        answer
    }

    fn end_if_whole(&mut self) {
        if self.body.is_end_stream()
            && let Some(lease) = self.lease.take()
        {
            lease.whole();
        }
    }
}

impl Lease {
    fn whole(self) {
        let upstream = &self.in_flight.0;
        upstream.counters.answered(self.status, self.took);
        upstream.give_back(self.connection);
    }

    /// The instance broke off. The client sees that by the connection's end.
    fn broken(self) {
        let upstream = Arc::clone(&self.in_flight.0);
        tracing::debug!(instance = %upstream.instance, "an answer broke off");
        tokio::spawn(async move { self.shared.count_failed(&upstream, false).await });
    }

    /// The client went away: the instance did answer. Dropping the connection cancels what it still sends.
    fn abandoned(self) {
        self.in_flight.0.counters.answered(self.status, self.took);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.abandoned();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(_))) => self.end_if_whole(),
            Poll::Ready(None) => self.lease.take().into_iter().for_each(Lease::whole),
            Poll::Ready(Some(Err(_))) => self.lease.take().into_iter().for_each(Lease::broken),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_late_only_after_its_time_and_a_client_is_not_mistaken_for_it() {
        let (_lent, progress, _back) = Lent::new(Given::default(), None);
        let began = Instant::now();
        assert_eq!(progress.late().await, Late::Instance);
        assert_eq!(began.elapsed(), ANSWER_WITHIN);
        lock(&progress.0).polled(&Poll::Pending);
        assert_eq!(progress.late().await, Late::Client);
    }

    /// Gives `piece` once every `pause`, until it is too late or an hour has passed.
    async fn sends(piece: &'static [u8], pause: Duration) -> Option<Duration> {
        let (_lent, progress, _back) = Lent::new(Given::default(), None);
        let began = Instant::now();
        let client = async {
            loop {
                lock(&progress.0).polled(&Poll::Pending);
                tokio::time::sleep(pause).await;
                lock(&progress.0).polled(&Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece))))));
            }
        };
        let hour = Duration::from_secs(3600);
        tokio::select! {
            late = progress.late() => { assert_eq!(late, Late::Client); Some(began.elapsed()) }
            () = client => None,
            () = tokio::time::sleep(hour) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_late_and_one_with_pauses_is_not() {
        let trickle = sends(b"x", Duration::from_secs(1)).await.unwrap();
        assert!(trickle >= PACE_AFTER && trickle <= PACE_AFTER + ANSWER_WITHIN, "{trickle:?}");
        assert_eq!(sends(&[0; 64 * 1_024], Duration::from_secs(25)).await, None);
        assert_eq!(sends(b"x", ANSWER_WITHIN * 2).await, Some(ANSWER_WITHIN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_gives_the_instance_its_time_anew() {
        let (_lent, progress, _back) = Lent::new(Given::default(), None);
        let began = Instant::now();
        let moves = async {
            tokio::time::sleep(ANSWER_WITHIN / 2).await;
            lock(&progress.0).last = Instant::now();
        };
        let (late, ()) = tokio::join!(progress.late(), moves);
        assert_eq!((late, began.elapsed()), (Late::Instance, ANSWER_WITHIN * 3 / 2));
    }

    #[tokio::test]
    async fn what_was_kept_goes_first_and_comes_back_again() {
        let given = Given { again: Bytes::from_static(b"abc"), rest: None };
        let (mut lent, _progress, back) = Lent::new(given, None);
        assert_eq!((lent.size_hint().exact(), lent.is_end_stream()), (Some(3), false));
        let piece = lent.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((&piece[..], lent.size_hint().exact(), lent.is_end_stream()), (&b"abc"[..], Some(0), true));
        assert!(lent.frame().await.is_none());
        drop(lent);
        assert_eq!(&back.await.unwrap().unwrap().again[..], b"abc");
    }

    #[test]
    fn no_more_is_kept_than_the_limit_and_no_trailers() {
        let (mut lent, _progress, _back) = Lent::new(Given::default(), None);
        let piece = |bytes: usize| Ok(Frame::data(Bytes::from(vec![0; bytes])));
        lent.keep(&piece(KEPT_MAX - 1));
        lent.keep(&piece(1));
        assert_eq!(lent.kept.as_ref().map(BytesMut::len), Some(KEPT_MAX));
        lent.keep(&piece(1));
        assert_eq!(lent.kept, None);
        lent.keep(&piece(1));
        assert_eq!(lent.kept, None, "what is lost stays lost");
        let (mut lent, _progress, _back) = Lent::new(Given::default(), None);
        lent.keep(&Ok(Frame::trailers(http::HeaderMap::new())));
        assert_eq!(lent.kept, None);
    }

    #[tokio::test]
    async fn no_body_comes_back_as_such_when_the_connection_lets_go() {
        let (lent, _progress, back) = Lent::new(Given::default(), None);
        assert!(lent.is_end_stream());
        drop(lent);
        assert!(back.await.unwrap().unwrap().is_none());
    }
}
