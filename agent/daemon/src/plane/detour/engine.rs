//! What the thread of a detour does between two looks at the clock.

use std::collections::VecDeque;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use troop_agent_core::fault::Target;
use troop_agent_core::moment::Moment;
use troop_agent_core::shaper::{self, BitFlip, Handled, Shaper};

use super::arena::{Arena, Budget, Held};
use super::line::{Told, sleep};
use super::port::Port;
use crate::clock;
use crate::packet::Way;
use crate::plane::Seen;
use crate::sys::{Frame, Sent, Tag};

/// Frames taken before those that are due are looked at again: at a microsecond each, 30 us.
const BURST: usize = 32;
/// A frame has waited for this thread at most so long: what is beyond is taken for a clock that was set, and it would leave too early.
const WAITED_MAX_NS: u64 = 20_000_000;
/// Of so many packets the median hold time is told.
const HOLDS: usize = 63;
/// Longest time that leaving packets wait for a device at the end: what it has not sent then it will not send soon.
pub(super) const FINISH_MAX: Duration = Duration::from_millis(50);

/// What an engine works with.
#[derive(Debug)]
pub(in crate::plane) struct Setup<P> {
    pub way: Way,
    pub target: Target,
    pub shaper: shaper::Setup,
    pub seed: u64,
    pub budget: Budget,
    pub port: P,
}

#[derive(Debug)]
pub(super) struct Engine<P> {
    way: Way,
    target: Option<Target>,
    seed: u64,
    shaper: Shaper<Held, Xoshiro256PlusPlus>,
    arena: Arena,
    pub(super) port: P,
    /// Leaving, in this order.
    outbox: VecDeque<(Held, Option<BitFlip>)>,
    /// The frame that had no room, behind all the others.
    spilled: Option<(Vec<u8>, Option<Tag>)>,
    blocked: bool,
    /// It has held as much as it may, or packets came faster than it could take them: the fault is over.
    full: bool,
    came: u64,
    concerned: u64,
    /// How long the latest packets were held, in nanoseconds; the oldest is written over.
    holds: Vec<u64>,
    holds_next: usize,
}

impl<P: Port> Engine<P> {
    pub(super) fn new(setup: Setup<P>, now: Moment) -> Self {
        let Setup { way, target, shaper, seed, budget, port } = setup;
        Self {
            way,
            target: Some(target),
            seed,
            shaper: Shaper::new(shaper, Xoshiro256PlusPlus::seed_from_u64(seed), now),
            arena: Arena::new(budget),
            port,
            outbox: VecDeque::new(),
            spilled: None,
            blocked: false,
            full: false,
            came: 0,
            concerned: 0,
            holds: Vec::with_capacity(HOLDS),
            holds_next: 0,
        }
    }

    pub(super) fn retarget(&mut self, target: Option<Target>) {
        self.target = target;
    }

    pub(super) fn let_go(&mut self) {
        self.shaper.drain();
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// How long until something is due. Zero: now. `None`: nothing is held, or nothing can be sent anyway.
    pub(super) fn next(&self, now: Moment) -> Option<Duration> {
        if self.blocked { None } else { self.shaper.poll_timeout().map(|due| due.since(now)) }
    }

    /// Takes what has come, up to a burst; `true` when there may be more.
    ///
    /// Its delay begins when the kernel had it, not when this thread woke up for it: that is 60 us later, and on a busy machine some ms.
    pub(super) fn take(&mut self, now: Moment) -> bool {
        let real_nanos = clock::real_nanos();
        for _ in 0..BURST {
            if self.blocked || self.spilled.is_some() {
                return false;
            }
            let Self { way, target, seed, shaper, arena, port, outbox, spilled, full, came: count, concerned, .. } =
                self;
            let taken = port.take(|frame| {
                *count += 1;
                let Frame { bytes, tag, came_nanos, is_cut, is_losing } = frame;
                *full |= is_cut || is_losing;
                if is_cut {
                    return;
                }
                let Ok(held) = arena.keep(bytes, P::HEAD_BYTES, tag) else {
                    *spilled = Some((bytes.to_vec(), tag));
                    return;
                };
                let flow = P::flow(bytes.get(P::HEAD_BYTES..).unwrap_or_default(), *way);
                let flow = flow.filter(|flow| target.as_ref().is_some_and(|target| target.matches(flow)));
                let Some(flow) = flow else {
                    outbox.push_back((held, None));
                    return;
                };
                *concerned += 1;
                let before = shaper.held().packets;
                let waited_ns = real_nanos.saturating_sub(came_nanos).min(WAITED_MAX_NS);
                // Or it came within this burst.
                let after_ns = came_nanos.saturating_sub(real_nanos).min(WAITED_MAX_NS);
                let came = Moment::from_nanos(now.as_nanos().saturating_sub(waited_ns)).after_nanos(after_ns);
                match shaper.handle_packet(held, flow.hash(*seed), came) {
                    Handled::Lost(_) => arena.is_held(held, 0),
                    // One, or two where it was duplicated, or none where the copy was all that was left and got lost.
                    Handled::Taken | Handled::Full => {
                        arena.is_held(held, u32::try_from(shaper.held().packets - before).unwrap_or(u32::MAX));
                    }
                }
            });
            if taken.is_none() {
                return false;
            }
            self.full |= self.spilled.is_some();
            if self.full && !self.shaper.is_over() {
                self.shaper.drain();
                return true;
            }
        }
        true
    }

    /// Sends what is due.
    pub(super) fn give(&mut self, now: Moment) {
        while let Some(leaving) = self.shaper.poll_packet(now) {
            self.note(now.since(leaving.came));
            self.outbox.push_back((leaving.packet, leaving.flip));
        }
        self.blocked = false;
        while let Some((held, flip)) = self.outbox.front().copied() {
            let (frame, tag) = self.arena.frame(held);
            if matches!(send(&self.port, frame, tag, flip), Sent::Later) {
                self.blocked = true;
                return;
            }
            self.outbox.pop_front();
            self.arena.let_go(held);
        }
        if let Some((mut frame, tag)) = self.spilled.take()
            && matches!(send(&self.port, &mut frame, tag, None), Sent::Later)
        {
            self.blocked = true;
            self.spilled = Some((frame, tag));
        }
    }

    /// Sends everything that is left and waits until it has come out at the other end, but not for ever.
    pub(super) fn finish(&mut self) {
        let until = clock::now().after(FINISH_MAX);
        loop {
            let now = clock::now();
            let more = self.take(now);
            self.give(now);
            let gone = !more && !self.blocked && self.port.on_the_way().is_ok_and(|bytes| bytes == 0);
            if gone || now >= until {
                return;
            }
            sleep(self, None, Some(Duration::from_micros(200)));
        }
    }

    pub(super) fn told(&mut self) -> Told {
        // Where the kernel does not say, none was dropped as far as is known.
        let dropped = self.port.dropped().unwrap_or(0);
        self.came += dropped;
        if dropped > 0 {
            self.full = true;
            self.shaper.drain();
        }
        let held = self.shaper.held();
        let mut holds = self.holds.clone();
        holds.sort_unstable();
        let seen = Seen {
            concerned: self.concerned,
            lost: self.shaper.counters().lost,
            held_packets: u64::try_from(held.packets).unwrap_or(u64::MAX),
            held_bytes: u64::try_from(held.bytes).unwrap_or(u64::MAX),
            held_for: holds.get(holds.len() / 2).copied().map(Duration::from_nanos),
            full: self.full,
        };
        let is_idle = held.packets == 0 && self.outbox.is_empty() && self.spilled.is_none() && !self.port.has_come();
        Told { seen, came: self.came, is_idle }
    }

    fn note(&mut self, held: Duration) {
        let nanos = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        match self.holds.get_mut(self.holds_next) {
            Some(hold) => *hold = nanos,
            None => self.holds.push(nanos),
        }
        self.holds_next = (self.holds_next + 1) % HOLDS;
    }
}

fn send<P: Port>(port: &P, frame: &mut [u8], tag: Option<Tag>, flip: Option<BitFlip>) -> Sent {
    turn::<P>(frame, flip);
    let sent = port.send(frame, tag);
    // Copies of the frame lie in the same place.
    turn::<P>(frame, flip);
    sent
}

fn turn<P: Port>(frame: &mut [u8], flip: Option<BitFlip>) {
    if let Some(flip) = flip
        && let Some(wire) = frame.get_mut(P::HEAD_BYTES..)
        && let Some(byte) = wire.get_mut(P::corrupts(wire, flip.byte))
    {
        *byte ^= flip.mask;
    }
}
