//! Packets waiting: by the time at which each leaves, or, once the fault has ended, in the order in which they came.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use super::{Held, Leaving};
use crate::moment::Moment;

/// Room made in advance. More is taken as it is needed, and kept: a steady load allocates nothing.
const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Queue<P> {
    waiting: Waiting<P>,
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
enum Waiting<P> {
    ByTime(BinaryHeap<Entry<P>>),
    AsTheyCame(VecDeque<Entry<P>>),
}

#[derive(Debug)]
struct Entry<P> {
    due: Moment,
    /// Counts packets: among those due at the same time, the first to come leaves first.
    number: u64,
    bytes: usize,
    leaving: Leaving<P>,
}

impl<P> Queue<P> {
    pub(super) fn new() -> Self {
        Self { waiting: Waiting::ByTime(BinaryHeap::with_capacity(CAPACITY)), next: 0, bytes: 0 }
    }

    pub(super) fn held(&self) -> Held {
        let packets = match &self.waiting {
            Waiting::ByTime(heap) => heap.len(),
            Waiting::AsTheyCame(line) => line.len(),
        };
        Held { packets, bytes: self.bytes }
    }

    pub(super) fn push(&mut self, leaving: Leaving<P>, bytes: usize, due: Moment) {
        let entry = Entry { due, number: self.next, bytes, leaving };
        self.next += 1;
        self.bytes += bytes;
        match &mut self.waiting {
            Waiting::ByTime(heap) => heap.push(entry),
            Waiting::AsTheyCame(line) => line.push_back(entry),
        }
    }

    /// From now on packets leave in the order in which they came, and at once.
    pub(super) fn give_up(&mut self) {
        if let Waiting::ByTime(heap) = &mut self.waiting {
            let mut entries = std::mem::take(heap).into_vec();
            entries.sort_unstable_by_key(|entry| entry.number);
            self.waiting = Waiting::AsTheyCame(entries.into());
        }
    }

    /// When the next packet is due, of those that wait for a time.
    pub(super) fn next_due(&self) -> Option<Moment> {
        match &self.waiting {
            Waiting::ByTime(heap) => heap.peek().map(|entry| entry.due),
            Waiting::AsTheyCame(line) => line.front().map(|_| Moment::default()),
        }
    }

    pub(super) fn pop(&mut self, now: Moment) -> Option<Leaving<P>> {
        if self.next_due()? > now {
            return None;
        }
        let entry = match &mut self.waiting {
            Waiting::ByTime(heap) => heap.pop()?,
            Waiting::AsTheyCame(line) => line.pop_front()?,
        };
        self.bytes -= entry.bytes;
        Some(entry.leaving)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        match &self.waiting {
            Waiting::ByTime(heap) => heap.capacity(),
            Waiting::AsTheyCame(line) => line.capacity(),
        }
    }
}

impl<P> Entry<P> {
    fn rank(&self) -> (Moment, u64) {
        (self.due, self.number)
    }
}

/// The heap's greatest is the one that leaves first.
impl<P> Ord for Entry<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.rank().cmp(&self.rank())
    }
}

impl<P> PartialOrd for Entry<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for Entry<P> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl<P> Eq for Entry<P> {}
