//! Points in time, on a clock that only whoever calls reads.

use std::time::Duration;

/// Nanoseconds on CLOCK_BOOTTIME, which goes on while the host sleeps and cannot be set. 584 years are the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `later` after this one; the last there is when it would be beyond.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        self.after_nanos(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX))
    }

    #[must_use]
    pub const fn after_nanos(self, later: u64) -> Self {
        Self(self.0.saturating_add(later))
    }

    /// How long ago `earlier` was; zero when it is yet to come.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
