//! Where held frames lie: slots that are used again, so that a steady load allocates nothing, and never more memory than was agreed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use troop_agent_core::shaper;

/// The sizes of slots. Each is at most twice what it holds beyond the first.
const SIZES: [usize; 9] = [256, 512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_600];

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
    memory: Box<[u8]>,
    /// Of the memory, those that are filled.
    bytes: usize,
    tag: Option<[u8; 4]>,
    /// How many copies of the frame are held.
    uses: u32,
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Memory that may be taken yet, by any of the arenas that share it.
#[derive(Debug, Clone)]
pub(in crate::plane) struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub(in crate::plane) fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    fn take(&self, bytes: usize) -> bool {
        // Nothing else hangs on the number.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Arena {
    slots: Vec<Slot>,
    /// Unused slots with memory, by size.
    free: [Vec<u32>; SIZES.len()],
    /// Unused slots without.
    bare: Vec<u32>,
    budget: Budget,
}

impl Arena {
    pub(super) fn new(budget: Budget) -> Self {
        Self { slots: Vec::new(), free: Default::default(), bare: Vec::new(), budget }
    }

    /// Keeps a frame, `head_bytes` of which are not on the wire.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn keep(&mut self, frame: &[u8], head_bytes: usize, tag: Option<[u8; 4]>) -> Result<Held, Full> {
        let size = SIZES.iter().position(|size| *size >= frame.len()).ok_or(Full)?;
        let number = match self.free[size].pop() {
            Some(number) => number,
            None => self.grow(size)?,
        };
        let slot = self.slot(number);
        slot.memory[..frame.len()].copy_from_slice(frame);
        (slot.bytes, slot.tag, slot.uses) = (frame.len(), tag, 1);
        let wire_bytes = u32::try_from(frame.len().saturating_sub(head_bytes)).unwrap_or(u32::MAX);
        Ok(Held { slot: number, wire_bytes })
    }

    pub(super) fn frame(&mut self, held: Held) -> (&mut [u8], Option<[u8; 4]>) {
        let slot = self.slot(held.slot);
        (&mut slot.memory[..slot.bytes], slot.tag)
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
        // Every slot with memory has one of the sizes.
        let size = SIZES.iter().position(|size| *size == memory).unwrap_or(0);
        self.free[size].push(number);
    }

    fn slot(&mut self, number: u32) -> &mut Slot {
        // Numbers come from `grow` only, and slots are never taken away.
        &mut self.slots[usize::try_from(number).unwrap_or(usize::MAX)]
    }

    fn grow(&mut self, size: usize) -> Result<u32, Full> {
        let bytes = SIZES[size];
        if !self.budget.take(bytes) {
            self.forget();
            if !self.budget.take(bytes) {
                return Err(Full);
            }
        }
        let number = match self.bare.pop() {
            Some(number) => number,
            None => {
                self.slots.push(Slot::default());
                u32::try_from(self.slots.len() - 1).map_err(|_| Full)?
            }
        };
        self.slot(number).memory = vec![0; bytes].into();
        Ok(number)
    }

    /// Gives back the memory of all unused slots, for slots of another size.
    fn forget(&mut self) {
        for (size, bytes) in SIZES.into_iter().enumerate() {
            for number in std::mem::take(&mut self.free[size]) {
                self.budget.give_back(bytes);
                self.slot(number).memory = Box::default();
                self.bare.push(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_and_uses_slots_again() {
        let mut arena = Arena::new(Budget::new(1 << 20));
        for round in 0..1_000_u32 {
            let frame = vec![u8::try_from(round % 256).unwrap(); 300];
            let held = arena.keep(&frame, 10, Some([1, 2, 3, 4])).unwrap();
            assert_eq!(shaper::Packet::bytes(&held), 290);
            assert_eq!(arena.frame(held), (&mut frame.clone()[..], Some([1, 2, 3, 4])));
            arena.let_go(held);
        }
        assert_eq!(arena.slots.len(), 1);
    }

    #[test]
    fn holds_no_more_than_was_agreed_and_turns_small_slots_into_large_ones() {
        let mut arena = Arena::new(Budget::new(66_000));
        let small: Vec<_> = (0..257).map_while(|_| arena.keep(&[0; 200], 0, None).ok()).collect();
        assert_eq!(small.len(), 257);
        assert_eq!(arena.keep(&[0; 60_000], 0, None), Err(Full));
        for held in small {
            arena.let_go(held);
        }
        assert!(arena.keep(&[0; 60_000], 0, None).is_ok());
        assert_eq!(arena.keep(&[0; 300], 0, None).map(|_| ()), Err(Full));
    }

    #[test]
    fn arenas_share_what_there_is() {
        let budget = Budget::new(600);
        let [mut one, mut other] = [Arena::new(budget.clone()), Arena::new(budget)];
        let held = one.keep(&[0; 200], 0, None).unwrap();
        assert!(other.keep(&[0; 200], 0, None).is_ok());
        assert_eq!(other.keep(&[0; 200], 0, None), Err(Full));
        one.let_go(held);
        // It stays with the one that had it until that one needs another size.
        assert!(one.keep(&[0; 200], 0, None).is_ok());
    }

    #[test]
    fn a_frame_held_twice_stays_until_both_are_gone() {
        let mut arena = Arena::new(Budget::new(1 << 20));
        let held = arena.keep(&[7; 20], 0, None).unwrap();
        arena.is_held(held, 2);
        arena.let_go(held);
        let other = arena.keep(&[8; 20], 0, None).unwrap();
        assert_eq!(arena.frame(held).0, &[7; 20]);
        arena.let_go(held);
        arena.let_go(other);
        assert_eq!(arena.slots.len(), 2);
    }
}
