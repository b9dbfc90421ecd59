//! What the thread of a detour does between two looks at the clock.

use std::collections::VecDeque;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use troop_agent_core::fault::Target;
use troop_agent_core::moment::Moment;
use troop_agent_core::shaper::{self, BitFlip, Handled, Shaper};

use super::arena::{Arena, Held};
use super::line::{Told, sleep};
use crate::clock;
use crate::packet::{self, Way};
use crate::plane::Seen;
use crate::sys::{Frame, Rings, Sender, Sent, Tag, VNET_HEAD_BYTES};

/// Frames sent before it is looked whether the rings fill up meanwhile: at 25 us for the largest, 0.2 ms of the 6 ms they have room for.
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
pub(super) struct Setup {
    pub way: Way,
    pub target: Target,
    pub shaper: shaper::Setup,
    pub seed: u64,
    pub held_bytes_max: usize,
    pub rings: Rings,
    pub sender: Sender,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) rings: Rings,
    desk: Desk,
}

/// All but where frames come from.
#[derive(Debug)]
struct Desk {
    way: Way,
    target: Option<Target>,
    seed: u64,
    shaper: Shaper<Held, Xoshiro256PlusPlus>,
    arena: Arena,
    sender: Sender,
    /// Leaving, in this order.
    outbox: VecDeque<(Held, Option<BitFlip>)>,
    blocked: bool,
    /// It has held as much as it may, or packets came faster than it could take them: the fault is over.
    full: bool,
    came: u64,
    concerned: u64,
    /// How long the latest packets were held, in nanoseconds; the oldest is written over.
    holds: Vec<u64>,
    holds_next: usize,
}

impl Engine {
    pub(super) fn new(setup: Setup, now: Moment) -> Self {
        let Setup { way, target, shaper, seed, held_bytes_max, rings, sender } = setup;
        let desk = Desk {
            way,
            target: Some(target),
            seed,
            shaper: Shaper::new(shaper, Xoshiro256PlusPlus::seed_from_u64(seed), now),
            arena: Arena::new(held_bytes_max),
            sender,
            outbox: VecDeque::new(),
            blocked: false,
            full: false,
            came: 0,
            concerned: 0,
            holds: Vec::with_capacity(HOLDS),
            holds_next: 0,
        };
        Self { rings, desk }
    }

    pub(super) fn retarget(&mut self, target: Option<Target>) {
        self.desk.target = target;
    }

    pub(super) fn let_go(&mut self) {
        self.desk.shaper.drain();
    }

    /// While nothing can be sent: what to wait for.
    pub(super) fn blocked(&self) -> Option<&Sender> {
        self.desk.blocked.then_some(&self.desk.sender)
    }

    /// How long until something is due. Zero: now. `None`: nothing is held, or nothing can be sent anyway.
    pub(super) fn next(&self, now: Moment) -> Option<Duration> {
        if self.desk.blocked { None } else { self.desk.shaper.poll_timeout().map(|due| due.since(now)) }
    }

    /// Takes what has come, up to a burst, and sends at once what is not to be held; `true` when there may be more.
    ///
    /// Sending takes several times as long as copying. While the rings fill up it has to wait, or frames would be lost there.
    pub(super) fn take(&mut self) -> bool {
        let Self { rings, desk } = self;
        for _ in 0..BURST {
            let may_send = !rings.are_crowded();
            if desk.blocked || rings.take(|frame| desk.handle(&frame, may_send)).is_none() {
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
        let Self { rings, desk } = self;
        while desk.send_some(None) && !rings.are_crowded() {}
    }

    /// Sends everything that is left and waits until it has come out at the other end, but not for ever.
    pub(super) fn finish(&mut self) {
        let until = clock::now().after(FINISH_MAX);
        loop {
            let now = clock::now();
            let more = self.take();
            self.give(clock::now());
            let gone =
                !more && self.desk.outbox.is_empty() && self.desk.sender.on_the_way().is_ok_and(|bytes| bytes == 0);
            if gone || now >= until {
                return;
            }
            sleep(self, None, Some(Duration::from_micros(200)));
        }
    }

    pub(super) fn told(&mut self) -> Told {
        // Where the kernel does not say, none was dropped as far as is known.
        let dropped = self.rings.dropped().unwrap_or(0);
        self.desk.came += dropped;
        if dropped > 0 {
            self.desk.full = true;
            self.desk.shaper.drain();
        }
        self.desk.told()
    }
}

impl Desk {
    /// A frame that lies in a ring only until this returns. It is copied only when it is held: what leaves at once leaves from there.
    ///
    /// Its delay begins when the kernel had it, not when this thread woke up for it: that is 60 us later, and on a busy machine some ms.
    fn handle(&mut self, frame: &Frame<'_>, may_send: bool) {
        let Frame { bytes, tag, came_nanos, is_cut, is_losing } = *frame;
        self.came += 1;
        self.full |= is_cut || is_losing;
        if is_cut {
            return;
        }
        let held = self.arena.enter(bytes.len(), VNET_HEAD_BYTES, tag);
        let flow = packet::flow(bytes.get(VNET_HEAD_BYTES..).unwrap_or_default(), self.way);
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
                    Handled::Lost(_) => self.arena.is_held(held, 0),
                    // One, or two where it was duplicated, or none where the copy was all that was left and got lost.
                    Handled::Taken | Handled::Full => {
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
                (Some(bytes), None) => send(&self.sender, bytes, self.arena.tag(held)),
                (fresh, flip) => {
                    if let Some(bytes) = fresh {
                        self.full |= self.arena.keep(held, bytes).0;
                    }
                    let (frame, tag) = self.arena.frame(held);
                    turn(frame, flip);
                    let sent = send(&self.sender, frame, tag);
                    // Copies of the frame lie in the same place.
                    turn(frame, flip);
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

    fn told(&self) -> Told {
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
        Told { seen, came: self.came, is_idle: held.packets == 0 && self.outbox.is_empty() }
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

fn send(sender: &Sender, frame: &[u8], tag: Option<Tag>) -> Sent {
    match frame.split_first_chunk::<VNET_HEAD_BYTES>() {
        Some((head, frame)) => sender.send(head, frame, tag),
        None => Sent::Gone,
    }
}

/// `frame`: with the virtio header, which is not on the wire.
fn turn(frame: &mut [u8], flip: Option<BitFlip>) {
    if let Some(flip) = flip
        && let Some(byte) = frame.get_mut(VNET_HEAD_BYTES + flip.byte)
    {
        *byte ^= flip.mask;
    }
}
