//! Whether a request that was sent, and lost, is sent to another instance. Decided here and nowhere else.
//!
//! A request is sent again only where nobody can tell the difference: its method is idempotent (RFC 9110, section 9.2.2), no
//! byte of an answer went to the client, its body can still be given whole, and another instance is there to take it. It is
//! sent twice at most, since a request that ends its instance must not go through all of them.
//!
//! The loss stays a loss in the counts of the group that lost it: a version that drops requests is judged by them, and what a
//! kill cost is told, also where no client saw it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::lock;

/// Parts of a retry in which the budget counts.
const ONE: u64 = 1_000;
/// What a request adds: a tenth of a retry. Retries then never make more than a tenth of the load again, however many
/// requests are lost.
const A_REQUEST_ADDS: u64 = ONE / 10;
/// What a second adds, so that a group with hardly any requests may retry too.
const A_SECOND_ADDS: u64 = ONE;
/// Saved at most: what was in flight to one instance under a load that this machine can carry.
const SAVED_MAX: u64 = 100 * ONE;
/// There from the beginning: the first kill may come before the first hundred requests.
const SAVED_AT_FIRST: u64 = 10 * ONE;

/// Methods that may be carried out twice with the effect of once. TRACE is one too, and nobody serves it.
pub(super) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}

/// How many retries a group's requests have earned.
#[derive(Debug)]
pub(super) struct Budget {
    /// Counted on every request, so it is no more than one addition.
    requests: AtomicU64,
    saved: Mutex<Saved>,
}

#[derive(Debug)]
struct Saved {
    parts: u64,
    /// As of when, and of how many requests.
    since: Instant,
    requests: u64,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        let saved = Saved { parts: SAVED_AT_FIRST, since: now, requests: 0 };
        Self { requests: AtomicU64::new(0), saved: Mutex::new(saved) }
    }

    /// A request came, whatever becomes of it.
    pub(super) fn earn(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry. Returns whether there was one.
    pub(super) fn spend(&self, now: Instant) -> bool {
        let mut saved = lock(&self.saved);
        let requests = self.requests.load(Ordering::Relaxed);
        let earned = requests.saturating_sub(saved.requests).saturating_mul(A_REQUEST_ADDS);
        let passed = now.saturating_duration_since(saved.since);
        let parts = saved.parts.saturating_add(earned).saturating_add(parts_of(passed)).min(SAVED_MAX);
        let left = parts.checked_sub(ONE);
        *saved = Saved { parts: left.unwrap_or(parts), since: now, requests };
        left.is_some()
    }
}

fn parts_of(passed: Duration) -> u64 {
    u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(A_SECOND_ADDS) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(budget: &Budget, now: Instant) -> usize {
        (0..1_000).filter(|_| budget.spend(now)).count()
    }

    #[test]
    fn only_what_may_happen_twice_goes_again() {
        for (method, may) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::OPTIONS, true),
            (Method::PUT, true),
            (Method::DELETE, true),
            (Method::POST, false),
            (Method::PATCH, false),
            (Method::TRACE, false),
            (Method::from_bytes(b"get").unwrap(), false),
        ] {
            assert_eq!(is_idempotent(&method), may, "{method}");
        }
    }

    #[test]
    fn ten_requests_earn_a_retry_and_nothing_else_does_at_once() {
        let now = Instant::now();
        let budget = Budget::new(now);
        assert_eq!(spent(&budget, now), 10, "there from the beginning");
        (0..200).for_each(|_| budget.earn());
        assert_eq!(spent(&budget, now), 20);
        (0..9).for_each(|_| budget.earn());
        assert_eq!(spent(&budget, now), 0);
        budget.earn();
        assert_eq!(spent(&budget, now), 1, "parts are kept");
    }

    #[test]
    fn a_second_earns_one_and_no_more_than_a_hundred_are_saved() {
        let now = Instant::now();
        let budget = Budget::new(now);
        spent(&budget, now);
        assert_eq!(spent(&budget, now + Duration::from_millis(2_999)), 2);
        assert_eq!(spent(&budget, now + Duration::from_millis(3_000)), 1);
        (0..5_000).for_each(|_| budget.earn());
        assert_eq!(spent(&budget, now + Duration::from_secs(3_600)), 100);
    }
}
