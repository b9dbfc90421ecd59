//! Where held frames lie: slots that are used again, so that a steady load allocates nothing, and never more memory than was agreed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use troop_agent_core::shaper;

/// The sizes of memory that slots have. From 1,024 on each is at most half as much again as what it holds; an Ethernet's frame of the usual
/// length, with the virtio header before it, has one of 1,536.
const SIZES: [usize; 16] =
    [128, 256, 512, 1_024, 1_536, 2_048, 3_072, 4_096, 6_144, 8_192, 12_288, 16_384, 24_576, 32_768, 49_152, 65_600];

/// A frame in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    slot: u32,
    /// Of the frame on the wire, without the virtio header before it.
    wire_bytes: u32,
}

impl shaper::Packet for Held {
    fn bytes(&self) -> usize {
        usize::try_from(self.wire_bytes).unwrap_or(usize::MAX)
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// None as long as the frame is not kept.
    memory: Box<[u8]>,
    /// Those of the frame.
    bytes: usize,
    tag: Option<[u8; 4]>,
    /// How many copies of the frame are held.
    uses: u32,
}

/// The frame is kept, and with it more than was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) struct Over(pub(super) bool);

/// Memory that may be taken yet, by any of the arenas that share it. Below zero more is taken than was agreed.
#[derive(Debug, Clone)]
pub(in crate::plane) struct Budget(Arc<AtomicI64>);

impl Budget {
    pub(in crate::plane) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicI64::new(number(bytes))))
    }

    fn has(&self, bytes: usize) -> bool {
        // Nothing else hangs on the number.
        self.0.load(Ordering::Relaxed) >= number(bytes)
    }

    fn take(&self, bytes: usize) -> Over {
        Over(self.0.fetch_sub(number(bytes), Ordering::Relaxed) < number(bytes))
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(number(bytes), Ordering::Relaxed);
    }
}

fn number(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[derive(Debug)]
pub(super) struct Arena {
    slots: Vec<Slot>,
    /// Unused slots with memory, by size.
    free: [Vec<u32>; SIZES.len()],
    /// Unused slots without.
    bare: Vec<u32>,
    /// Memory of its slots.
    bytes: usize,
    budget: Budget,
}

/// What it has is given back with it.
impl Drop for Arena {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

impl Arena {
    pub(super) fn new(budget: Budget) -> Self {
        Self { slots: Vec::new(), free: Default::default(), bare: Vec::new(), bytes: 0, budget }
    }

    /// Enters a frame of so many bytes on the wire. It is not kept yet.
    pub(super) fn enter(&mut self, wire_bytes: usize, tag: Option<[u8; 4]>) -> Held {
        let slot = Slot { memory: Box::default(), bytes: 0, tag, uses: 1 };
        let number = match self.bare.pop() {
            Some(number) => {
                *self.slot(number) = slot;
                number
            }
            None => {
                self.slots.push(slot);
                // More than 2^32 frames do not fit into any memory.
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Held { slot: number, wire_bytes: u32::try_from(wire_bytes).unwrap_or(u32::MAX) }
    }

    /// Keeps a frame that was entered, which is copied for it. One that is kept stays as it is.
    pub(super) fn keep(&mut self, held: Held, frame: &[u8]) -> Over {
        if !self.slot(held.slot).memory.is_empty() {
            return Over(false);
        }
        let size = SIZES.iter().position(|size| *size >= frame.len());
        let (memory, over) = match size.and_then(|size| self.free[size].pop()) {
            Some(number) => {
                self.bare.push(number);
                (std::mem::take(&mut self.slot(number).memory), Over(false))
            }
            None => self.grow(size.map_or(frame.len(), |size| SIZES[size])),
        };
        let slot = self.slot(held.slot);
        (slot.memory, slot.bytes) = (memory, frame.len());
        slot.memory[..frame.len()].copy_from_slice(frame);
        over
    }

    /// Whether any copy of it is held.
    pub(super) fn has(&mut self, held: Held) -> bool {
        self.slot(held.slot).uses > 0
    }

    pub(super) fn tag(&mut self, held: Held) -> Option<[u8; 4]> {
        self.slot(held.slot).tag
    }

    /// One that is kept.
    pub(super) fn frame(&mut self, held: Held) -> (&mut [u8], Option<[u8; 4]>) {
        let slot = self.slot(held.slot);
        let bytes = slot.bytes.min(slot.memory.len());
        (&mut slot.memory[..bytes], slot.tag)
    }

    /// It is held so many times, from once.
    pub(super) fn is_held(&mut self, held: Held, times: u32) {
        self.slot(held.slot).uses = times;
        if times == 0 {
            self.free(held.slot);
        }
    }

    /// One copy of it is not held any more.
    pub(super) fn let_go(&mut self, held: Held) {
        let slot = self.slot(held.slot);
        slot.uses = slot.uses.saturating_sub(1);
        if slot.uses == 0 {
            self.free(held.slot);
        }
    }

    fn free(&mut self, number: u32) {
        let memory = self.slot(number).memory.len();
        match SIZES.iter().position(|size| *size == memory) {
            Some(size) => self.free[size].push(number),
            None => {
                self.give_back(memory);
                self.slot(number).memory = Box::default();
                self.bare.push(number);
            }
        }
    }

    fn slot(&mut self, number: u32) -> &mut Slot {
        // Numbers come from `enter` only, and slots are never taken away.
        &mut self.slots[usize::try_from(number).unwrap_or(usize::MAX)]
    }

    fn grow(&mut self, bytes: usize) -> (Box<[u8]>, Over) {
        if !self.budget.has(bytes) {
            self.forget();
        }
        self.bytes += bytes;
        (vec![0; bytes].into(), self.budget.take(bytes))
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.give_back(bytes);
    }

    /// Gives back the memory of all unused slots, for slots of another size.
    fn forget(&mut self) {
        for (size, bytes) in SIZES.into_iter().enumerate() {
            for number in std::mem::take(&mut self.free[size]) {
                self.give_back(bytes);
                self.slot(number).memory = Box::default();
                self.bare.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(arena: &mut Arena, frame: &[u8]) -> (Held, Over) {
        let held = arena.enter(frame.len(), None);
        let over = arena.keep(held, frame);
        (held, over)
    }

    #[test]
    fn gives_back_what_was_put_in_and_uses_memory_again() {
        let mut arena = Arena::new(Budget::new(1 << 20));
        for round in 0..1_000_u32 {
            let frame = vec![u8::try_from(round % 256).unwrap(); 300];
            let held = arena.enter(frame.len() - 10, Some([1, 2, 3, 4]));
            assert_eq!(arena.keep(held, &frame), Over(false));
            // It is kept already.
            assert_eq!(arena.keep(held, &[0; 300]), Over(false));
            assert_eq!(shaper::Packet::bytes(&held), 290);
            assert_eq!(arena.frame(held), (&mut frame.clone()[..], Some([1, 2, 3, 4])));
            arena.let_go(held);
            assert!(!arena.has(held));
        }
        assert_eq!((arena.slots.len(), arena.bytes), (2, 512));
    }

    #[test]
    fn what_is_not_kept_takes_no_memory() {
        let mut arena = Arena::new(Budget::new(0));
        for _ in 0..1_000 {
            let held = arena.enter(59_990, Some([1, 2, 3, 4]));
            assert_eq!((arena.has(held), arena.tag(held)), (true, Some([1, 2, 3, 4])));
            arena.let_go(held);
        }
        assert_eq!((arena.slots.len(), arena.bytes), (1, 0));
    }

    #[test]
    fn says_when_it_keeps_more_than_was_agreed_and_turns_small_slots_into_large_ones() {
        let mut arena = Arena::new(Budget::new(66_000));
        let small: Vec<_> = (0..257).map(|_| kept(&mut arena, &[0; 200])).collect();
        assert!(small.iter().all(|(_, over)| *over == Over(false)));
        let (large, over) = kept(&mut arena, &[0; 60_000]);
        assert_eq!(over, Over(true));
        arena.let_go(large);
        for (held, _) in small {
            arena.let_go(held);
        }
        let (_, over) = kept(&mut arena, &[1; 60_000]);
        assert_eq!(over, Over(false));
        let (beyond, over) = kept(&mut arena, &[2; 300]);
        assert_eq!((over, arena.frame(beyond).0.len()), (Over(true), 300));
    }

    #[test]
    fn a_frame_longer_than_any_device_sends_is_kept_and_forgotten() {
        let mut arena = Arena::new(Budget::new(1 << 20));
        let (held, _) = kept(&mut arena, &[3; 70_000]);
        assert_eq!(arena.frame(held).0.len(), 70_000);
        arena.let_go(held);
        assert_eq!(arena.bytes, 0);
    }

    #[test]
    fn arenas_share_what_there_is() {
        let budget = Budget::new(512);
        let [mut one, mut other] = [Arena::new(budget.clone()), Arena::new(budget.clone())];
        let (held, over) = kept(&mut one, &[0; 200]);
        assert_eq!((over, kept(&mut other, &[0; 200]).1), (Over(false), Over(false)));
        assert_eq!(kept(&mut other, &[0; 200]).1, Over(true));
        one.let_go(held);
        // It stays with the one that had it until that one needs another size, or is gone.
        assert_eq!(kept(&mut one, &[0; 200]).1, Over(false));
        drop(one);
        drop(other);
        assert!(budget.has(512) && !budget.has(513));
    }

    #[test]
    fn a_frame_held_twice_stays_until_both_are_gone() {
        let mut arena = Arena::new(Budget::new(1 << 20));
        let (held, _) = kept(&mut arena, &[7; 20]);
        arena.is_held(held, 2);
        arena.let_go(held);
        let (other, _) = kept(&mut arena, &[8; 20]);
        assert_eq!(arena.frame(held).0, &[7; 20]);
        arena.let_go(held);
        arena.let_go(other);
        assert_eq!(arena.slots.len(), 2);
    }
}
