//! The agent's clocks. That of [`Moment`] is CLOCK_BOOTTIME, which goes on while the host sleeps and which nobody can set.

use rustix::time::{ClockId, clock_gettime};
use troop_agent_core::moment::Moment;

/// CLOCK_BOOTTIME, as it is now.
pub(crate) fn now() -> Moment {
    Moment::from_nanos(read(ClockId::Boottime))
}

/// CLOCK_REALTIME in nanoseconds, by which the kernel says when a frame came. It may be set at any time.
pub(crate) fn real_nanos() -> u64 {
    read(ClockId::Realtime)
}

fn read(clock: ClockId) -> u64 {
    let read = clock_gettime(clock);
    // Neither is negative after 1970.
    let [seconds, nanos] = [read.tv_sec, read.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
