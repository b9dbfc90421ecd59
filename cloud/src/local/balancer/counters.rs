//! What is counted of one group's traffic.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::again::Budget;
use super::lock;
use crate::{TRAFFIC_BUCKETS_MS, Timed, Traffic};

/// A group that left the routes is counted on for so long: what was in flight to it ends and is reported.
const KEPT_AFTER_LEAVING: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Counters {
    traffic: Mutex<Traffic>,
    /// Whether a report has named this group. The first one says zero: the cloud may hold counts of an earlier time,
    /// and notices a new beginning only where counts fall.
    announced: AtomicBool,
    /// When the group left the routes, while it is out of them.
    left: Mutex<Option<Instant>>,
    /// What its requests have earned for those of them that are lost.
    pub(super) budget: Budget,
}

impl Counters {
    pub(super) fn new() -> Self {
        let traffic = Traffic {
            buckets: vec![0; TRAFFIC_BUCKETS_MS.len() + 1],
            timed: Some(Timed::default()),
            ..Traffic::default()
        };
        Self {
            traffic: Mutex::new(traffic),
            announced: AtomicBool::new(false),
            left: Mutex::new(None),
            budget: Budget::new(Instant::now()),
        }
    }

    /// `took` is the time from the request's arrival to the answer's head: the body's depends on the client too.
    pub(super) fn answered(&self, status: StatusCode, took: Duration) {
        let mut traffic = lock(&self.traffic);
        traffic.answers += 1;
        traffic.server_errors += u64::from(status.is_server_error());
        if let Some(bucket) = traffic.buckets.get_mut(bucket(took)) {
            *bucket += 1;
        }
        traffic.timed.get_or_insert_default().add(Timed { answers: 1, took });
    }

    /// `retried`: another instance was asked then.
    pub(super) fn failed(&self, to_killed: bool, retried: bool) {
        let mut traffic = lock(&self.traffic);
        traffic.failed += 1;
        traffic.retried += u64::from(retried);
        traffic.failed_in_flight_to_killed += u64::from(to_killed);
    }

    /// The counts for a report.
    pub(super) fn report(&self, in_flight: u64) -> Traffic {
        if !self.announced.swap(true, Ordering::Relaxed) {
            let buckets = vec![0; TRAFFIC_BUCKETS_MS.len() + 1];
            return Traffic { in_flight, buckets, ..Traffic::default() };
        }
        Traffic { in_flight, ..lock(&self.traffic).clone() }
    }

    pub(super) fn set_routed(&self, routed: bool) {
        let mut left = lock(&self.left);
        *left = if routed { None } else { left.or_else(|| Some(Instant::now())) };
    }

    pub(super) fn may_be_forgotten(&self) -> bool {
        lock(&self.left).is_some_and(|left| left.elapsed() > KEPT_AFTER_LEAVING)
    }
}

fn bucket(took: Duration) -> usize {
    let slower = |bound: &&u32| took >= Duration::from_millis(u64::from(**bound));
    TRAFFIC_BUCKETS_MS.iter().take_while(slower).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_falls_below_its_bound_and_the_longest_into_the_last_bucket() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_micros(999)), 0);
        assert_eq!(bucket(Duration::from_millis(1)), 1);
        assert_eq!(bucket(Duration::from_millis(2583)), TRAFFIC_BUCKETS_MS.len() - 1);
        assert_eq!(bucket(Duration::from_millis(2584)), TRAFFIC_BUCKETS_MS.len());
    }

    #[test]
    fn answers_and_failures_are_counted_by_kind_after_a_first_report_of_zero() {
        let counters = Counters::new();
        counters.answered(StatusCode::OK, Duration::from_millis(4));
        counters.answered(StatusCode::BAD_GATEWAY, Duration::from_secs(9));
        counters.failed(false, true);
        counters.failed(true, false);
        let first = counters.report(3);
        assert_eq!((first.answers, first.failed, first.in_flight), (0, 0, 3));
        let traffic = counters.report(1);
        assert_eq!((traffic.answers, traffic.server_errors), (2, 1));
        assert_eq!((traffic.failed, traffic.failed_in_flight_to_killed, traffic.in_flight), (2, 1, 1));
        assert_eq!(traffic.retried, 1);
        assert_eq!((traffic.buckets[3], traffic.buckets[15]), (1, 1));
        assert_eq!(traffic.buckets.iter().sum::<u64>(), 2);
        assert_eq!(traffic.timed, Some(Timed { answers: 2, took: Duration::from_millis(9_004) }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_is_forgotten_only_a_while_after_it_left() {
        let counters = Counters::new();
        counters.set_routed(false);
        tokio::time::advance(KEPT_AFTER_LEAVING).await;
        counters.set_routed(false);
        assert!(!counters.may_be_forgotten());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(counters.may_be_forgotten());
        counters.set_routed(true);
        assert!(!counters.may_be_forgotten());
    }
}
