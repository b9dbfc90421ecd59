//! The agent's clock: CLOCK_BOOTTIME, which goes on while the host sleeps and which nobody can set.

use rustix::time::{ClockId, clock_gettime};
use troop_agent_core::moment::Moment;

/// Now.
pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel counts up from 0.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Moment::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
