//! How many packets netem must hold so that it drops none.

use std::time::Duration;

use crate::distribution::Distribution;
use crate::fault::{Delay, Parts};

/// What the device can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    pub bytes_per_second: u64,
}

/// Fewest packets: a burst of small ones must fit however slow the line is said to be.
const LIMIT_MIN: u32 = 10_000;
/// Most packets. One costs the kernel about 2 KB with what surrounds it, so this is what may take 2 GB at the very worst.
const LIMIT_MAX: u32 = 1_000_000;
/// Bytes of a packet, less than the average of any traffic that fills a line: many small ones must fit.
const PACKET_BYTES: u64 = 256;
/// How long what arrives at line speed may queue for a slow rate. Senders that heed anything have slowed down by then.
const RATE_QUEUE: Duration = Duration::from_secs(1);
/// Entries of a table reach four deviations to either side (32,767 / 8,192).
const TABLE_DEVIATIONS: u32 = 4;

/// What may arrive while a packet is held for the longest time, in packets; the kernel's own default of 1000 would drop at
/// 12 ms of a gigabit line.
pub fn limit_packets(parts: &Parts, line: Line) -> u32 {
    let queue = if parts.rate.is_some() { RATE_QUEUE } else { Duration::ZERO };
    let held = parts.delay.as_ref().map_or(Duration::ZERO, longest) + queue;
    let bytes = u128::from(line.bytes_per_second) * held.as_nanos() / 1_000_000_000;
    let packets = bytes.div_ceil(u128::from(PACKET_BYTES));
    u32::try_from(packets).unwrap_or(u32::MAX).clamp(LIMIT_MIN, LIMIT_MAX)
}

fn longest(delay: &Delay) -> Duration {
    let deviations = if *delay.distribution() == Distribution::Uniform { 1 } else { TABLE_DEVIATIONS };
    delay.mean() + delay.jitter() * deviations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Order, Probability, Rate};

    const GIGABIT: Line = Line { bytes_per_second: 125_000_000 };

    fn delayed(ms: u64, jitter_ms: u64, distribution: Distribution) -> Parts {
        let delay = Delay::fixed(Duration::from_millis(ms)).unwrap();
        let jitter = Duration::from_millis(jitter_ms);
        let delay = delay.varied(jitter, Probability::NEVER, distribution, Order::Kept).unwrap();
        Parts { delay: Some(delay), ..Parts::default() }
    }

    #[test]
    fn holds_what_arrives_during_the_longest_delay() {
        // 125 MB/s for 200 ms are 25 MB, in packets of 256 bytes.
        assert_eq!(limit_packets(&delayed(200, 0, Distribution::Uniform), GIGABIT), 97_657);
        assert_eq!(limit_packets(&delayed(100, 100, Distribution::Uniform), GIGABIT), 97_657);
        assert_eq!(limit_packets(&delayed(100, 25, Distribution::Normal), GIGABIT), 97_657);
    }

    #[test]
    fn a_rate_has_room_for_a_second_of_the_line() {
        let rate = Some(Rate::bytes_per_second(125_000).unwrap());
        assert_eq!(limit_packets(&Parts { rate, ..Parts::default() }, GIGABIT), 488_282);
    }

    #[test]
    fn is_never_the_kernels_default_nor_without_bound() {
        assert_eq!(limit_packets(&Parts::default(), Line { bytes_per_second: 0 }), LIMIT_MIN);
        let fast = Line { bytes_per_second: u64::MAX };
        assert_eq!(limit_packets(&delayed(60_000, 2_000, Distribution::Pareto), fast), LIMIT_MAX);
    }
}
