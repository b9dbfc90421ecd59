//! The clock of [`Moment`].

use rustix::time::{ClockId, clock_gettime};
use troop_agent_core::moment::Moment;

/// CLOCK_BOOTTIME, as it is now.
pub(crate) fn now() -> Moment {
    let read = clock_gettime(ClockId::Boottime);
    // Neither is negative on this clock.
    let [seconds, nanos] = [read.tv_sec, read.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    Moment::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
