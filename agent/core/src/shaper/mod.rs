//! The delay line of the planes in user space: packets go in, and come out when and as the fault will have it.
//!
//! It does no IO and reads no clock. Whoever drives it hands every packet in with [`Shaper::handle_packet`], waits until
//! [`Shaper::poll_timeout`], and takes what is due with [`Shaper::poll_packet`]. It works on handles, which should be small:
//! they move within a heap. Chance comes from the generator that is passed in, so a seed replays a run.
//!
//! A packet costs at most O(log n) for n that wait, O(1) where none overtakes, and no allocation under a steady load. None leaves before its time. None is
//! lost but by the fault's own loss: at the [`Bound`] the fault ends, and everything held leaves at once.
//!
//! The steps are those of netem (`netem_enqueue` in net/sched/sch_netem.c), in its order: duplicate, lose, corrupt, overtake
//! or delay, queue for the rate. Unlike netem it keeps the order of a flow under jitter if asked to, without limiting a rate.

mod chance;
mod queue;
mod strength;
#[cfg(test)]
mod tests;

use rand::Rng;

use crate::fault::{Effect, FlowHash, FlowShare, Order, Ramp};
use crate::moment::Moment;
use chance::Chances;
use queue::Queue;
use strength::Strength;

/// Flows are sorted into so many buckets, and those of one bucket keep their order together: nothing is then kept for a
/// flow by itself. 32 KB.
const BUCKETS: usize = 4096;

/// A handle of a packet.
pub trait Packet: Clone {
    /// How long it is on the wire.
    fn bytes(&self) -> usize;
}

/// How much may be held. A packet that would exceed it ends the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    pub packets: usize,
    pub bytes: usize,
}

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    pub packets: usize,
    pub bytes: usize,
}

/// What a shaper does.
#[derive(Debug, Clone)]
pub struct Setup {
    pub effect: Effect,
    pub ramp: Ramp,
    pub flows: FlowShare,
    pub bound: Bound,
}

/// What became of a packet that was handed in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Handled<P> {
    /// It comes out by [`Shaper::poll_packet`], perhaps at once.
    Taken,
    /// The fault lost it.
    Lost(P),
    /// It was taken, and with it the bound would be exceeded: the fault is over. Said once.
    Full,
}

/// A packet that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving<P> {
    pub packet: P,
    pub came: Moment,
    /// The bit to turn over before it is sent.
    pub flip: Option<BitFlip>,
}

/// One bit of a packet, counted from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitFlip {
    pub byte: usize,
    /// The byte with this bit set only.
    pub mask: u8,
}

/// Packets so far: `came` + `duplicated` is `left` + `lost` + those held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub came: u64,
    pub left: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub overtook: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Shaper<P, R> {
    setup: Setup,
    began: Moment,
    /// The latest moment told: time does not run backwards here, whatever the caller's does.
    now: Moment,
    over: bool,
    strength: Strength,
    chances: Chances<R>,
    queue: Queue<P>,
    counters: Counters,
    /// Packets delayed since the last one that overtook.
    since_overtaking: u32,
    /// When the rate's wire has sent all that it was given.
    wire_free: Moment,
    /// When the last packet of each bucket of flows leaves.
    last: Box<[Moment]>,
}

impl<P: Packet, R: Rng> Shaper<P, R> {
    /// Begins the fault, and its ramp, `now`.
    pub fn new(setup: Setup, rng: R, now: Moment) -> Self {
        let share = setup.ramp.at(now.since(now));
        Self {
            began: now,
            now,
            over: false,
            strength: Strength::of(&setup.effect, share),
            chances: Chances::new(&setup.effect, rng),
            queue: Queue::new(),
            counters: Counters::default(),
            since_overtaking: 0,
            wire_free: Moment::default(),
            last: vec![Moment::default(); BUCKETS].into(),
            setup,
        }
    }

    /// Takes a packet of a flow.
    pub fn handle_packet(&mut self, packet: P, flow: FlowHash, now: Moment) -> Handled<P> {
        let now = self.at(now);
        self.counters.came += 1;
        if self.over || !self.setup.flows.picks(flow) {
            return handled(self.hold(Leaving { packet, came: now, flip: None }, now));
        }
        self.grow(now);
        let duplicated = self.chances.duplicates(&self.strength);
        let lost = self.chances.loses(&self.strength);
        self.counters.duplicated += u64::from(duplicated);
        self.counters.lost += u64::from(lost);
        if lost && !duplicated {
            return Handled::Lost(packet);
        }
        let flip = self.corrupt(packet.bytes());
        // A duplicate goes the whole way by itself, but is not duplicated again. One of two that is lost leaves one.
        let copy = if duplicated && !lost { self.copy(&packet, flow, now) } else { None };
        let full = copy.is_some_and(|(copy, due)| self.hold(copy, due));
        let due = self.due(packet.bytes(), flow, now);
        handled(self.hold(Leaving { packet, came: now, flip }, due) || full)
    }

    /// When [`Shaper::poll_packet`] has something next; a moment already past means now.
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.queue.next_due()
    }

    /// The next packet that is due. To be asked until there is none.
    pub fn poll_packet(&mut self, now: Moment) -> Option<Leaving<P>> {
        let now = self.at(now);
        let leaving = self.queue.pop(now)?;
        self.counters.left += 1;
        Some(leaving)
    }

    /// Ends the fault. Everything held is due now, in the order in which it came, and what comes passes behind it.
    pub fn drain(&mut self) {
        self.over = true;
        self.queue.give_up();
    }

    /// Whether the fault has ended, by [`Shaper::drain`] or at the bound.
    pub fn is_over(&self) -> bool {
        self.over
    }

    pub fn held(&self) -> Held {
        self.queue.held()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn at(&mut self, now: Moment) -> Moment {
        self.now = self.now.max(now);
        self.now
    }

    /// Brings the strength to where the ramp is.
    fn grow(&mut self, now: Moment) {
        let share = self.setup.ramp.at(now.since(self.began));
        if share != self.strength.share {
            self.strength = Strength::of(&self.setup.effect, share);
        }
    }

    fn corrupt(&mut self, bytes: usize) -> Option<BitFlip> {
        let flip = self.chances.corrupts(&self.strength, bytes);
        self.counters.corrupted += u64::from(flip.is_some());
        flip
    }

    /// A duplicate and when it leaves, unless it is lost.
    fn copy(&mut self, packet: &P, flow: FlowHash, now: Moment) -> Option<(Leaving<P>, Moment)> {
        if self.chances.loses(&self.strength) {
            self.counters.lost += 1;
            return None;
        }
        let flip = self.corrupt(packet.bytes());
        let due = self.due(packet.bytes(), flow, now);
        Some((Leaving { packet: packet.clone(), came: now, flip }, due))
    }

    /// When a packet leaves that comes now.
    fn due(&mut self, bytes: usize, flow: FlowHash, now: Moment) -> Moment {
        let gap = self.strength.gap;
        if gap > 0 && self.since_overtaking >= gap - 1 && self.chances.overtakes(&self.strength) {
            self.since_overtaking = 0;
            self.counters.overtook += 1;
            return now;
        }
        self.since_overtaking = self.since_overtaking.saturating_add(1);
        let mut due = now.after_nanos(self.chances.delay_ns(&self.strength));
        if let Some(rate) = self.strength.bytes_per_second {
            due = due.max(self.wire_free).after_nanos(wire_ns(bytes, rate));
            self.wire_free = due;
        }
        if self.strength.order == Order::Kept {
            // Below the number of buckets, which fits.
            let bucket = usize::try_from(flow.low()).unwrap_or(0) % BUCKETS;
            due = due.max(self.last[bucket]);
            self.last[bucket] = due;
        }
        due
    }

    /// Holds a packet, and says whether that has ended the fault.
    fn hold(&mut self, leaving: Leaving<P>, due: Moment) -> bool {
        let bytes = leaving.packet.bytes();
        self.queue.push(leaving, bytes, due);
        let (held, bound) = (self.queue.held(), self.setup.bound);
        let ends = !self.over && (held.packets > bound.packets || held.bytes > bound.bytes);
        if ends {
            self.drain();
        }
        ends
    }
}

fn handled<P>(full: bool) -> Handled<P> {
    if full { Handled::Full } else { Handled::Taken }
}

/// How long a wire of this speed is busy with so many bytes.
fn wire_ns(bytes: usize, bytes_per_second: u64) -> u64 {
    let byte_ns = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000);
    // A rate is at least 1 KB per second.
    u64::try_from(byte_ns / u128::from(bytes_per_second.max(1))).unwrap_or(u64::MAX)
}
