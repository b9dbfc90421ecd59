//! Bodies on their way through, streamed piece by piece, and what is known of a request by how they end.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::lock;
use super::table::Shared;
use super::upstream::{Connection, InFlight};

/// How long an instance may take to answer, counted from the last piece of the request that it took, or that the
/// client gave. Longer than any answer of a service that still serves.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A request's body, lent to a connection. Comes back unless the connection has taken a piece of it.
#[derive(Debug)]
pub(super) struct Lent {
    body: Option<Incoming>,
    touched: bool,
    progress: Arc<Progress>,
    back: Option<oneshot::Sender<Option<Incoming>>>,
}

/// How far a request's body is.
#[derive(Debug)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    last: Instant,
    waits_for_client: bool,
    client_broke_off: bool,
}

impl Lent {
    /// The receiver gets the body back when the connection has done with it.
    pub(super) fn new(body: Option<Incoming>) -> (Self, Arc<Progress>, oneshot::Receiver<Option<Incoming>>) {
        let state = State { last: Instant::now(), waits_for_client: false, client_broke_off: false };
        let progress = Arc::new(Progress(Mutex::new(state)));
        let (back, receiver) = oneshot::channel();
        (Self { body, touched: false, progress: Arc::clone(&progress), back: Some(back) }, progress, receiver)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = self.body.take().filter(|_| !self.touched);
        if let Some(back) = self.back.take() {
            // Nobody waits for it when the request went well.
            drop(back.send(body));
        }
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        let mut state = lock(&self.progress.0);
        state.waits_for_client = polled.is_pending();
        if let Poll::Ready(piece) = &polled {
            state.last = Instant::now();
            state.client_broke_off = matches!(piece, Some(Err(_)));
        }
        drop(state);
        self.touched |= polled.is_ready();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
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

    /// Returns once nothing has moved for [`ANSWER_WITHIN`].
    pub(super) async fn late(&self) -> Late {
        loop {
            let seen = *lock(&self.0);
            tokio::time::sleep_until(seen.last + ANSWER_WITHIN).await;
            let now = *lock(&self.0);
            if now.last == seen.last {
                return if now.waits_for_client { Late::Client } else { Late::Instance };
            }
        }
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
        tokio::spawn(async move { self.shared.count_failed(&upstream).await });
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_late_only_after_its_time_and_a_client_is_not_mistaken_for_it() {
        let (_lent, progress, _back) = Lent::new(None);
        let began = Instant::now();
        assert_eq!(progress.late().await, Late::Instance);
        assert_eq!(began.elapsed(), ANSWER_WITHIN);
        lock(&progress.0).waits_for_client = true;
        assert_eq!(progress.late().await, Late::Client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_gives_the_instance_its_time_anew() {
        let (_lent, progress, _back) = Lent::new(None);
        let began = Instant::now();
        let moves = async {
            tokio::time::sleep(ANSWER_WITHIN / 2).await;
            lock(&progress.0).last = Instant::now();
        };
        let (late, ()) = tokio::join!(progress.late(), moves);
        assert_eq!((late, began.elapsed()), (Late::Instance, ANSWER_WITHIN * 3 / 2));
    }

    #[tokio::test]
    async fn no_body_comes_back_as_none_when_the_connection_lets_go() {
        let (lent, _progress, back) = Lent::new(None);
        assert!(lent.is_end_stream());
        drop(lent);
        assert!(back.await.unwrap().is_none());
    }
}
