//! Packets waiting: by the time at which each leaves, or, once the fault has ended, in the order in which they came.
//!
//! As in netem, those that leave after all that came before stand in a line, which costs nothing to keep; only the others
//! need a heap.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use super::{Held, Leaving};
use crate::moment::Moment;

/// Room made in advance. More is taken as it is needed, and kept: a steady load allocates nothing.
const CAPACITY: usize = 1024;

#[derive(Debug)]
pub(super) struct Queue<P> {
    /// In the order of leaving.
    line: VecDeque<Entry<P>>,
    /// Those that leave before the last of the line, as it was when they came.
    heap: BinaryHeap<Entry<P>>,
    over: bool,
    next: u64,
    bytes: usize,
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
        let (line, heap) = (VecDeque::with_capacity(CAPACITY), BinaryHeap::with_capacity(CAPACITY));
        Self { line, heap, over: false, next: 0, bytes: 0 }
    }

    pub(super) fn held(&self) -> Held {
        Held { packets: self.line.len() + self.heap.len(), bytes: self.bytes }
    }

    pub(super) fn push(&mut self, leaving: Leaving<P>, bytes: usize, due: Moment) {
        let due = if self.over { Moment::default() } else { due };
        let entry = Entry { due, number: self.next, bytes, leaving };
        self.next += 1;
        self.bytes += bytes;
        if self.line.back().is_none_or(|last| last.due <= due) {
            self.line.push_back(entry);
        } else {
            self.heap.push(entry);
        }
    }

    /// From now on packets leave in the order in which they came, and at once.
    pub(super) fn give_up(&mut self) {
        self.over = true;
        self.line.extend(self.heap.drain());
        self.line.make_contiguous().sort_unstable_by_key(|entry| entry.number);
        for entry in &mut self.line {
            entry.due = Moment::default();
        }
    }

    /// When the next packet is due. Always in the past once the fault has ended.
    pub(super) fn next_due(&self) -> Option<Moment> {
        let due = |entry: &Entry<P>| entry.due;
        self.line.front().map(due).into_iter().chain(self.heap.peek().map(due)).min()
    }

    pub(super) fn pop(&mut self, now: Moment) -> Option<Leaving<P>> {
        if self.next_due()? > now {
            return None;
        }
        let line_first = match (self.line.front(), self.heap.peek()) {
            (Some(line), Some(heap)) => line.rank() < heap.rank(),
            (line, None | Some(_)) => line.is_some(),
        };
        let entry = if line_first { self.line.pop_front()? } else { self.heap.pop()? };
        self.bytes -= entry.bytes;
        Some(entry.leaving)
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.line.capacity() + self.heap.capacity()
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
