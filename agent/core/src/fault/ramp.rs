//! How a fault grows: from nothing to all of it over a time, so that what breaks shows at which strength it broke.

use std::time::Duration;

/// Longest ramp: a fault must reach what was asked for within the hour of a game day.
pub const RAMP_MAX: Duration = Duration::from_secs(3600);

/// Why a ramp is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a ramp of {asked:?} is longer than {RAMP_MAX:?}")]
pub struct BadRamp {
    pub asked: Duration,
}

impl BadRamp {
    pub fn hint(&self) -> &'static str {
        "write a shorter ramp, or several faults one after the other"
    }
}

/// The time in which a fault grows evenly to its full strength. Zero: at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ramp(Duration);

impl Ramp {
    pub const NONE: Self = Self(Duration::ZERO);

    /// # Errors
    /// [`BadRamp`] beyond [`RAMP_MAX`].
    pub fn new(over: Duration) -> Result<Self, BadRamp> {
        if over > RAMP_MAX { Err(BadRamp { asked: over }) } else { Ok(Self(over)) }
    }

    pub fn over(self) -> Duration {
        self.0
    }

    /// How much of the fault there is `elapsed` after it began.
    pub fn at(self, elapsed: Duration) -> Share {
        if elapsed >= self.0 {
            return Share::ALL;
        }
        // Below 1, for elapsed is less than the ramp, and neither is above an hour: no overflow of 128 bits.
        let parts = elapsed.as_nanos() * u128::from(Share::ALL.0) / self.0.as_nanos();
        Share(u32::try_from(parts).unwrap_or(Share::ALL.0))
    }
}

/// How much of a fault there is: 65,536ths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(1 << 16);

    /// This share of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        let share = u128::from(whole) * u128::from(self.0) / u128::from(Self::ALL.0);
        // A share is at most all, hence never more than `whole`.
        u64::try_from(share).unwrap_or(whole)
    }

    /// The number of which `part` is this share. `None` for no share: it would be without limit.
    pub fn divide(self, part: u64) -> Option<u64> {
        let whole = (u128::from(part) * u128::from(Self::ALL.0)).checked_div(u128::from(self.0))?;
        Some(u64::try_from(whole).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_evenly_and_stays_at_all() {
        let ramp = Ramp::new(Duration::from_secs(10)).unwrap();
        let delay_at = |ms| ramp.at(Duration::from_millis(ms)).of(200_000);
        assert_eq!([0, 2_500, 5_000, 10_000, 60_000].map(delay_at), [0, 50_000, 100_000, 200_000, 200_000]);
    }

    #[test]
    fn no_ramp_is_everything_at_once() {
        assert_eq!(Ramp::NONE.at(Duration::ZERO), Share::ALL);
        assert_eq!(Share::ALL.of(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_limit_falls_to_its_full_strength_from_none() {
        let ramp = Ramp::new(Duration::from_secs(4)).unwrap();
        let limit_at = |secs| ramp.at(Duration::from_secs(secs)).divide(1_000);
        assert_eq!([0, 1, 2, 4].map(limit_at), [None, Some(4_000), Some(2_000), Some(1_000)]);
    }

    #[test]
    fn refuses_a_ramp_beyond_the_hour() {
        assert!(Ramp::new(RAMP_MAX).is_ok());
        assert!(Ramp::new(RAMP_MAX + Duration::from_nanos(1)).is_err());
    }
}
