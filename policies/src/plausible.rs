//! Whether an inventory is too small to be believed.
//!
//! A cloud that answers with half its instances missing would make every group look as if it had to be left alone, or,
//! worse, as if what is left were all there is. A picture that is both 20 % and five instances smaller than the last
//! good one is not acted on. The same smaller picture in three reads over ten minutes becomes the good one.

use jiff::Timestamp;

use crate::situation::Shrunk;

const SHRUNK_PERCENT: usize = 20;
const SHRUNK_INSTANCES: usize = 5;
const READS_TO_ACCEPT: usize = 3;
const ACCEPT_AFTER_S: i64 = 600;

/// The memory of one region's instance counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    good: Option<usize>,
    doubted: Option<Doubted>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Doubted {
    count: usize,
    since: Timestamp,
    reads: usize,
}

/// What a reading means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Good,
    Shrunk(Shrunk),
    /// The smaller picture has stood long enough; record it.
    Accepted(Shrunk),
}

impl Memory {
    /// Takes one reading of `count` instances. `ended_by_us` is what Troop itself ended since the last good reading.
    pub fn look(&mut self, count: usize, ended_by_us: usize, now: Timestamp) -> Look {
        let Some(good) = self.good else {
            self.good = Some(count);
            return Look::Good;
        };
        let missing = good.saturating_sub(ended_by_us).saturating_sub(count);
        let implausible = missing >= SHRUNK_INSTANCES && missing * 100 >= good * SHRUNK_PERCENT;
        if !implausible {
            self.good = Some(count);
            self.doubted = None;
            return Look::Good;
        }
        let shrunk = Shrunk { from: good, to: count };
        let doubted = match self.doubted.take() {
            Some(d) if d.count == count => Doubted { reads: d.reads + 1, ..d },
            Some(_) | None => Doubted { count, since: now, reads: 1 },
        };
        if doubted.reads >= READS_TO_ACCEPT && now.as_second() - doubted.since.as_second() >= ACCEPT_AFTER_S {
            self.good = Some(count);
            return Look::Accepted(shrunk);
        }
        self.doubted = Some(doubted);
        Look::Shrunk(shrunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_small_loss_is_believed_and_a_large_one_is_not() {
        let mut memory = Memory::default();
        assert_eq!(memory.look(100, 0, at(0)), Look::Good);
        assert_eq!(memory.look(81, 0, at(1)), Look::Good, "19 % is believed");
        assert_eq!(memory.look(64, 0, at(2)), Look::Shrunk(Shrunk { from: 81, to: 64 }), "21 % is not");
        assert_eq!(memory.look(80, 0, at(3)), Look::Good);
        let mut small = Memory::default();
        assert_eq!(small.look(6, 0, at(0)), Look::Good);
        assert_eq!(small.look(2, 0, at(1)), Look::Good, "fewer than five instances are believed");
        assert_eq!(Memory::default().look(0, 0, at(0)), Look::Good);
    }

    #[test]
    fn what_troop_ended_is_not_counted() {
        let mut memory = Memory::default();
        assert_eq!(memory.look(20, 0, at(0)), Look::Good);
        assert_eq!(memory.look(14, 6, at(1)), Look::Good);
    }

    #[test]
    fn the_same_smaller_picture_becomes_the_good_one_after_ten_minutes() {
        let shrunk = Shrunk { from: 50, to: 10 };
        let mut memory = Memory::default();
        assert_eq!(memory.look(50, 0, at(0)), Look::Good);
        for second in [1, 100, 600] {
            assert_eq!(memory.look(10, 0, at(second)), Look::Shrunk(shrunk));
        }
        assert_eq!(memory.look(10, 0, at(601)), Look::Accepted(shrunk));
        assert_eq!(memory.look(10, 0, at(602)), Look::Good);
    }

    #[test]
    fn a_changing_picture_begins_anew() {
        let mut memory = Memory::default();
        assert_eq!(memory.look(50, 0, at(0)), Look::Good);
        assert!(matches!(memory.look(10, 0, at(1)), Look::Shrunk(_)));
        assert!(matches!(memory.look(11, 0, at(599)), Look::Shrunk(_)));
        assert!(matches!(memory.look(11, 0, at(601)), Look::Shrunk(_)));
        assert!(matches!(memory.look(11, 0, at(602)), Look::Shrunk(_)));
    }
}
