//! Places for connections, and whose turn it is to leave when there is none.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::lock;
use super::phase::Phase;

/// When places run out, this share of them is asked to leave at once: finding the one costs as much as finding many.
const LEAVE_SHARE: usize = 32;
/// How soon the connections are looked at again when nobody could be asked to leave, or nobody has left yet.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// As many connections as a listener serves at a time.
#[derive(Debug)]
pub struct Places {
    max: usize,
    inside: Mutex<Inside>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    phases: BTreeMap<u64, Weak<Phase>>,
}

/// One connection's right to be served, until it and its stream are gone.
#[derive(Debug)]
pub struct Place(pub(crate) Arc<Phase>);

impl Places {
    /// Places for at most `max` connections, and for one at least.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), inside: Mutex::default(), freed: Notify::new() })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        lock(&self.inside).phases.len()
    }

    /// Waits for a place, and sees to it that there is one: connections that have kept us waiting the longest are asked to
    /// leave. Only while every connection waits for us, nothing is to be done but wait too.
    pub async fn take(self: &Arc<Self>) -> Place {
        loop {
            // One may be freed between the look and the wait: the notification is kept for us.
            if let Some(place) = self.try_take() {
                return place;
            }
            self.make_room();
            drop(tokio::time::timeout(LOOK_AGAIN, self.freed.notified()).await);
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut inside = lock(&self.inside);
        if inside.phases.len() >= self.max {
            return None;
        }
        let number = inside.next;
        inside.next += 1;
        let phase = Arc::new(Phase::new((Arc::downgrade(self), number)));
        inside.phases.insert(number, Arc::downgrade(&phase));
        Some(Place(phase))
    }

    fn make_room(&self) {
        // Outside of the lock: dropping the last of a phase takes it again.
        let all: Vec<Arc<Phase>> = lock(&self.inside).phases.values().filter_map(Weak::upgrade).collect();
        if all.iter().any(|phase| phase.was_asked_to_leave()) {
            return;
        }
        let now = Instant::now();
        let mut waiting: Vec<_> = all.iter().filter_map(|phase| Some((phase.rank(now)?, phase))).collect();
        waiting.sort_by_key(|(rank, _)| *rank);
        let leaving = self.max.div_ceil(LEAVE_SHARE);
        waiting.iter().take(leaving).for_each(|(_, phase)| phase.ask_to_leave());
        tracing::debug!(places = self.max, asked = leaving.min(waiting.len()), "no place is left");
    }

    pub(crate) fn free(&self, number: u64) {
        lock(&self.inside).phases.remove(&number);
        self.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn inside(places: &Arc<Places>, count: usize) -> Vec<Place> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(places.take().await);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        all
    }

    /// Numbers of those that were asked to leave.
    fn asked(places: &[Place]) -> Vec<usize> {
        places.iter().enumerate().filter(|(_, place)| place.0.was_asked_to_leave()).map(|(number, _)| number).collect()
    }

    async fn finds_none(places: &Arc<Places>) {
        assert!(tokio::time::timeout(Duration::from_millis(10), places.take()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_never_asked_leaves_first_and_the_longest_of_them() {
        let places = Places::new(4);
        let all = inside(&places, 4).await;
        all[0].0.begin();
        all[0].0.end();
        tokio::time::advance(Duration::from_secs(2)).await;
        finds_none(&places).await;
        assert_eq!(asked(&all), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_ones_leave_before_slow_ones_and_new_ones_last() {
        let places = Places::new(4);
        let mut all = inside(&places, 3).await;
        all[0].0.heard();
        all[1].0.begin();
        all[1].0.wants_body(true);
        all[2].0.begin();
        all[2].0.end();
        tokio::time::advance(Duration::from_secs(2)).await;
        all.push(places.take().await);
        finds_none(&places).await;
        assert_eq!(asked(&all), [2], "the one that has just come is never asked");
        tokio::time::advance(Duration::from_millis(200)).await;
        for expected in [2, 0, 1, 3] {
            finds_none(&places).await;
            assert_eq!(asked(&all), [expected]);
            // It leaves, and its place goes to one that waits for us.
            drop(std::mem::replace(&mut all[expected], Places::new(1).take().await));
            all[expected] = places.take().await;
            all[expected].0.begin();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_waits_for_us_is_asked_to_leave() {
        let places = Places::new(3);
        let all = inside(&places, 3).await;
        all.iter().for_each(|place| place.0.begin());
        tokio::time::advance(Duration::from_secs(3600)).await;
        finds_none(&places).await;
        assert_eq!(asked(&all), [0usize; 0]);
        // One who does not take its answer does not wait for us.
        all[1].0.has_answer(true);
        finds_none(&places).await;
        assert_eq!(asked(&all), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_asked_at_once_and_no_more_before_they_have_left() {
        let places = Places::new(64);
        let mut all = inside(&places, 64).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        finds_none(&places).await;
        tokio::time::advance(Duration::from_secs(2)).await;
        finds_none(&places).await;
        assert_eq!(asked(&all), [0, 1]);
        all.drain(..2);
        assert_eq!(places.taken(), 62);
        drop(places.take().await);
    }
}
