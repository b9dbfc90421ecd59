//! What one connection is doing, and since when we have been waiting for its client.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::places::Places;
use super::{Limits, lock};

/// How often a connection's limits are looked at: what is over is noticed that much later at most.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a connection is doing. It holds the connection's place: the place is free when the last of it is gone.
#[derive(Debug)]
pub struct Phase {
    state: Mutex<State>,
    leave: CancellationToken,
    /// Bytes both ways, for a connection that has left HTTP.
    moved: AtomicU64,
    place: (Weak<Places>, u64),
}

#[derive(Debug, Clone, Copy)]
struct State {
    now: Now,
    /// Whether a request has ever come.
    has_asked: bool,
    /// Since when the client has given nothing of a body that we want.
    wants_body: Option<Instant>,
    /// Since when the client has taken nothing of what we have for it.
    has_answer: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Between requests, since then.
    Idle(Instant),
    /// The first byte of a head came then.
    Head(Instant),
    /// A request is with us.
    Busy,
}

/// In which order connections leave when there is no place: those first that lose least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// It never asked anything.
    Silent,
    /// HTTP lets either end close it between requests.
    Idle,
    /// Its request is lost, by its own slowness.
    Slow,
    /// Only just come; it may be about to ask.
    New,
}

/// From when on a connection that has said nothing yet counts as silent.
const NEW_FOR: Duration = Duration::from_secs(1);
/// Before this nobody can have said anything: it stays, for it may be asking right now.
const JUST_COME: Duration = Duration::from_millis(100);

impl Phase {
    pub(crate) fn new(place: (Weak<Places>, u64)) -> Self {
        let state = State { now: Now::Idle(Instant::now()), has_asked: false, wants_body: None, has_answer: None };
        Self { state: Mutex::new(state), leave: CancellationToken::new(), moved: AtomicU64::new(0), place }
    }

    /// The client is here. Its place was taken before it came, by a listener that may have waited for hours.
    pub(crate) fn arrives(&self) {
        lock(&self.state).now = Now::Idle(Instant::now());
    }

    /// The connection has left HTTP: it is busy for good, and leaves for others only where it takes nothing of what we have
    /// for it.
    pub fn upgraded(&self) {
        self.begin();
    }

    /// How many bytes have gone either way so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, bytes: usize) {
        self.moved.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Returns when it is asked to leave for others.
    pub async fn left(&self) {
        self.leave.cancelled().await;
    }

    /// Bytes came.
    pub(crate) fn heard(&self) {
        let mut state = lock(&self.state);
        if let Now::Idle(_) = state.now {
            state.now = Now::Head(Instant::now());
        }
    }

    /// A request's head is whole.
    pub(crate) fn begin(&self) {
        let mut state = lock(&self.state);
        (state.now, state.has_asked, state.wants_body) = (Now::Busy, true, None);
    }

    /// The request is over.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        (state.now, state.wants_body) = (Now::Idle(Instant::now()), None);
    }

    /// Says whether the request's body is being waited for. Whoever reads the body calls this at each piece.
    pub fn wants_body(&self, waiting: bool) {
        note(&mut lock(&self.state).wants_body, waiting);
    }

    /// Whether something is written that the client does not take. The service may have given all of its answer long
    /// before: only when it is taken the connection is idle.
    pub(crate) fn has_answer(&self, waiting: bool) {
        let mut state = lock(&self.state);
        if let (Now::Idle(_), Some(_)) = (state.now, state.has_answer) {
            state.now = Now::Idle(Instant::now());
        }
        note(&mut state.has_answer, waiting);
    }

    /// Whether, and how soon, it should leave for another; `None` while it waits for us, or has only just come. The earlier, the sooner.
    pub(crate) fn rank(&self, now: Instant) -> Option<(Rank, Instant)> {
        let state = *lock(&self.state);
        if let Some(since) = state.wants_body.min_some(state.has_answer) {
            return Some((Rank::Slow, since));
        }
        match state.now {
            Now::Idle(since) if state.has_asked => Some((Rank::Idle, since)),
            Now::Idle(since) if now.duration_since(since) < JUST_COME => None,
            Now::Idle(since) if now.duration_since(since) < NEW_FOR => Some((Rank::New, since)),
            Now::Idle(since) => Some((Rank::Silent, since)),
            Now::Head(since) => Some((Rank::Slow, since)),
            Now::Busy => None,
        }
    }

    pub(crate) fn ask_to_leave(&self) {
        self.leave.cancel();
    }

    pub(crate) fn was_asked_to_leave(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Returns when the connection is to be closed, and why.
    pub(crate) async fn over(&self, limits: &Limits) -> &'static str {
        tokio::select! {
            () = self.leave.cancelled() => "its place was needed",
            why = self.overdue(limits) => why,
        }
    }

    async fn overdue(&self, limits: &Limits) -> &'static str {
        loop {
            let state = *lock(&self.state);
            let is = |since: Option<Instant>, limit: Duration| since.is_some_and(|s| s.elapsed() >= limit);
            if is(state.has_answer, limits.silent_for) {
                return "it took nothing of its answer";
            }
            if is(state.wants_body, limits.silent_for) {
                return "its request's body stopped coming";
            }
            match state.now {
                // It is being taken, or the limit above would hold.
                Now::Idle(_) if state.has_answer.is_some() => {}
                Now::Idle(since) if since.elapsed() >= limits.idle_for => return "it asked nothing",
                Now::Head(since) if since.elapsed() >= limits.head_within => return "its request's head took too long",
                Now::Idle(_) | Now::Head(_) | Now::Busy => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some(places) = self.place.0.upgrade() {
            places.free(self.place.1);
        }
    }
}

fn note(since: &mut Option<Instant>, waiting: bool) {
    match waiting {
        true => drop(since.get_or_insert_with(Instant::now)),
        false => *since = None,
    }
}

trait MinSome {
    fn min_some(self, other: Self) -> Self;
}

impl MinSome for Option<Instant> {
    /// The earlier of those that are there.
    fn min_some(self, other: Self) -> Self {
        self.into_iter().chain(other).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head_within: Duration::from_secs(10),
        head_bytes_max: 8_192,
        fields_max: 100,
        idle_for: Duration::from_secs(75),
        silent_for: Duration::from_secs(30),
    };

    fn phase() -> Phase {
        Phase::new((Weak::new(), 0))
    }

    /// How long it may stay as it is, if not an hour.
    async fn lasts(phase: &Phase) -> Option<Duration> {
        let began = Instant::now();
        let over = tokio::time::timeout(Duration::from_secs(3600), phase.over(&LIMITS)).await;
        over.ok().map(|_| began.elapsed())
    }

    fn is_about(lasted: Option<Duration>, limit: Duration) -> bool {
        lasted.is_some_and(|lasted| lasted >= limit && lasted <= limit + LOOK_EVERY)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_client_may_stay_and_a_slow_head_may_not() {
        let phase = phase();
        assert!(is_about(lasts(&phase).await, LIMITS.idle_for));
        phase.heard();
        assert!(is_about(lasts(&phase).await, LIMITS.head_within));
        phase.begin();
        assert_eq!(lasts(&phase).await, None, "it waits for us");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_byte_begins_a_head_and_later_ones_do_not_prolong_it() {
        let phase = phase();
        phase.heard();
        let trickle = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                phase.heard();
            }
        };
        let lasted = tokio::select! { lasted = lasts(&phase) => lasted, () = trickle => None };
        assert!(is_about(lasted, LIMITS.head_within), "{lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_must_give_its_body_and_take_its_answer() {
        let phase = phase();
        phase.begin();
        phase.wants_body(true);
        assert!(is_about(lasts(&phase).await, LIMITS.silent_for));
        phase.wants_body(false);
        assert_eq!(lasts(&phase).await, None);
        phase.has_answer(true);
        assert!(is_about(lasts(&phase).await, LIMITS.silent_for));
        // Also when the request is over, and its answer lies in our buffer.
        phase.end();
        assert!(is_about(lasts(&phase).await, Duration::ZERO));
        // One that takes it piece by piece is not idle meanwhile, and is from then on.
        let pieces = async {
            for _ in 0..60 {
                phase.has_answer(false);
                phase.has_answer(true);
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            phase.has_answer(false);
        };
        phase.has_answer(false);
        let lasted = tokio::select! { biased; lasted = lasts(&phase) => lasted, () = pieces => None };
        assert_eq!(lasted, None);
        assert!(is_about(lasts(&phase).await, LIMITS.idle_for));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_asked_to_leave_leaves_at_once() {
        let phase = phase();
        phase.ask_to_leave();
        assert_eq!(lasts(&phase).await, Some(Duration::ZERO));
    }
}
