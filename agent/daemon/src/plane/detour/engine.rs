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
use super::port::{Port, Sink as _, Source as _};
use crate::clock;
use crate::packet::Way;
use crate::plane::Seen;
use crate::sys::{Frame, Sent};

/// Frames sent before it is looked whether the rings fill up meanwhile: at 25 us for the largest, 0.2 ms of the 0.5 ms that 30 Gbit/s take to fill the
/// last quarter of the least room.
const SENDS: usize = 8;
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

pub(super) struct Engine<P: Port> {
    pub(super) source: P::Source,
    desk: Desk<P>,
}

/// All but where frames come from.
struct Desk<P: Port> {
    way: Way,
    target: Option<Target>,
    seed: u64,
    shaper: Shaper<Held, Xoshiro256PlusPlus>,
    arena: Arena,
    sink: P::Sink,
    /// Leaving, in this order.
    outbox: VecDeque<(Held, Option<BitFlip>)>,
    blocked: bool,
    /// There was room for what comes meanwhile when it was last looked; it is looked again when so many more are taken.
    may_send: bool,
    unlooked: usize,
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
        let (source, sink) = port.split();
        let desk = Desk {
            way,
            target: Some(target),
            seed,
            shaper: Shaper::new(shaper, Xoshiro256PlusPlus::seed_from_u64(seed), now),
            arena: Arena::new(budget),
            sink,
            outbox: VecDeque::new(),
            blocked: false,
            may_send: true,
            unlooked: 0,
            full: false,
            came: 0,
            concerned: 0,
            holds: Vec::with_capacity(HOLDS),
            holds_next: 0,
        };
        Self { source, desk }
    }

    pub(super) fn retarget(&mut self, target: Option<Target>) {
        self.desk.target = target;
    }

    pub(super) fn let_go(&mut self) {
        self.desk.shaper.drain();
    }

    /// While nothing can be sent: what to wait for.
    pub(super) fn blocked(&self) -> Option<&P::Sink> {
        self.desk.blocked.then_some(&self.desk.sink)
    }

    /// How long until something is due. Zero: now. `None`: nothing is held, or nothing can be sent anyway.
    pub(super) fn next(&self, now: Moment) -> Option<Duration> {
        if self.desk.blocked { None } else { self.desk.shaper.poll_timeout().map(|due| due.since(now)) }
    }

    /// Takes what has come, up to a burst, and sends at once what is not to be held; `true` when there may be more.
    ///
    /// Sending takes several times as long as copying. While they come too fast it has to wait, or frames would be lost.
    pub(super) fn take(&mut self) -> bool {
        let more = self.take_some();
        self.desk.sink.flush();
        more
    }

    fn take_some(&mut self) -> bool {
        let Self { source, desk } = self;
        for _ in 0..BURST {
            // Each look may be a call to the kernel; and a frame that is taken may send others, which waited.
            if desk.unlooked == 0 || !desk.outbox.is_empty() {
                desk.may_send = !source.is_crowded();
                desk.unlooked = SENDS;
            }
            desk.unlooked -= 1;
            let may_send = desk.may_send;
            if desk.blocked || source.take(|frame| desk.handle(&frame, may_send)).is_none() {
                return false;
            }
            if desk.full && !desk.shaper.is_over() {
                desk.shaper.drain();
                return true;
            }
        }
        true
    }

    /// Sends what is due.
    pub(super) fn give(&mut self, now: Moment) {
        self.desk.blocked = false;
        self.desk.call_due(now);
        let Self { source, desk } = self;
        while desk.send_some(None) && !source.is_crowded() {}
        desk.sink.flush();
    }

    /// Sends everything that is left and waits until it has come out at the other end, but not for ever.
    pub(super) fn finish(&mut self) {
        let until = clock::now().after(FINISH_MAX);
        loop {
            let now = clock::now();
            let more = self.take();
            self.give(clock::now());
            let gone =
                !more && self.desk.outbox.is_empty() && self.desk.sink.on_the_way().is_ok_and(|bytes| bytes == 0);
            if gone || now >= until {
                return;
            }
            sleep(self, None, Some(Duration::from_micros(200)));
        }
    }

    pub(super) fn told(&mut self) -> Told {
        // Where the kernel does not say, none was dropped as far as is known.
        let dropped = self.source.dropped().unwrap_or(0);
        self.desk.came += dropped;
        if dropped > 0 {
            self.desk.full = true;
            self.desk.shaper.drain();
        }
        self.desk.told(self.source.has_come())
    }
}

impl<P: Port> Desk<P> {
    /// A frame that lies where it came only until this returns. It is copied only when it is held: what leaves at once leaves from there.
    ///
    /// Its delay begins when the kernel had it, not when this thread woke up for it: that is 60 us later, and on a busy machine some ms.
    fn handle(&mut self, frame: &Frame<'_>, may_send: bool) {
        let Frame { bytes, tag, came_nanos, is_cut, is_losing } = *frame;
        self.came += 1;
        self.full |= is_cut || is_losing;
        if is_cut {
            return;
        }
        let held = self.arena.enter(P::wire_bytes(bytes), tag);
        let flow = P::flow(bytes.get(P::HEAD_BYTES..).unwrap_or_default(), self.way);
        match flow.filter(|flow| self.target.as_ref().is_some_and(|target| target.matches(flow))) {
            None => self.outbox.push_back((held, None)),
            Some(flow) => {
                // In this order: what passes between the two makes a packet late. The other way it would make it early.
                let real_nanos = clock::real_nanos();
                let now = clock::now();
                let waited_ns = real_nanos.saturating_sub(came_nanos).min(WAITED_MAX_NS);
                let came = Moment::from_nanos(now.as_nanos().saturating_sub(waited_ns));
                self.concerned += 1;
                let before = self.shaper.held().packets;
                match self.shaper.handle_packet(held, flow.hash(self.seed), came) {
                    Handled::Lost(_) => {
                        self.arena.is_held(held, 0);
                        self.sink.lose(bytes);
                    }
                    // One, or two where it was duplicated, or none where the copy was all that was left and got lost.
                    handled @ (Handled::Taken | Handled::Full) => {
                        self.full |= handled == Handled::Full;
                        let times = u32::try_from(self.shaper.held().packets - before).unwrap_or(u32::MAX);
                        self.arena.is_held(held, times);
                    }
                }
                self.call_due(clock::now());
            }
        }
        if may_send {
            self.send_some(Some((held, bytes)));
        }
        if self.arena.has(held) {
            self.full |= self.arena.keep(held, bytes).0;
        }
    }

    /// Lets those leave whose time has come.
    fn call_due(&mut self, now: Moment) {
        while let Some(leaving) = self.shaper.poll_packet(now) {
            self.note(now.since(leaving.came));
            self.outbox.push_back((leaving.packet, leaving.flip));
        }
    }

    /// Sends some of what is leaving, as far as there is room; `true` when there may be more. `fresh`: one that is not kept, and its bytes.
    fn send_some(&mut self, fresh: Option<(Held, &[u8])>) -> bool {
        for _ in 0..SENDS {
            let Some((held, flip)) = self.outbox.front().copied() else { return false };
            let fresh = fresh.filter(|(fresh, _)| *fresh == held).map(|(_, bytes)| bytes);
            let sent = match (fresh, flip) {
                (Some(bytes), None) => self.sink.send(bytes, self.arena.tag(held)),
                (fresh, flip) => {
                    if let Some(bytes) = fresh {
                        self.full |= self.arena.keep(held, bytes).0;
                    }
                    let (frame, tag) = self.arena.frame(held);
                    turn::<P>(frame, flip);
                    let sent = self.sink.send(frame, tag);
                    // Copies of the frame lie in the same place.
                    turn::<P>(frame, flip);
                    sent
                }
            };
            if matches!(sent, Sent::Later) {
                self.blocked = true;
                return false;
            }
            self.outbox.pop_front();
            self.arena.let_go(held);
        }
        true
    }

    /// `more`: something has come that was not taken yet.
    fn told(&self, more: bool) -> Told {
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
        Told { seen, came: self.came, is_idle: held.packets == 0 && self.outbox.is_empty() && !more }
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

fn turn<P: Port>(frame: &mut [u8], flip: Option<BitFlip>) {
    if let Some(flip) = flip
        && let Some(wire) = frame.get_mut(P::HEAD_BYTES..)
        && let Some(byte) = wire.get_mut(P::corrupts(wire, flip.byte))
    {
        *byte ^= flip.mask;
    }
}
