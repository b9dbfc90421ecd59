//! One seeded crash run: a story of pushes, kills and rollbacks, told by an operator who types on until what was typed
//! is recorded; a SIGKILL at a seeded moment of it; and what must hold after.

pub(crate) mod end;
pub(crate) mod processes;
pub(crate) mod pulse;
pub(crate) mod run;
pub(crate) mod story;
pub(crate) mod victims;

/// Seeded choices: splitmix64, so that a seed means the same in every build.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap();
        usize::try_from(self.next() % limit).unwrap()
    }
}
