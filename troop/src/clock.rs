//! The one place that reads the wall clock.
//!
//! Two times run side by side: real time, which boots, heals, leases, health and every limit use, and the calendar,
//! which only the scheduler uses. They are the same everywhere but in `demo`, whose calendar stands until it is let go
//! and then runs fast.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// Real time, now.
#[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
pub fn real_now() -> Timestamp {
    Timestamp::now()
}

/// Milliseconds since boot, suspended time included. Steps of the wall clock do not move it.
pub fn boot_ms() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
}

/// The scheduler's calendar over real time.
#[derive(Debug, Clone)]
pub struct Calendar(Arc<Mutex<Pace>>);

#[derive(Debug, Clone, Copy)]
enum Pace {
    Real,
    Standing { at: Timestamp },
    Fast { from: Timestamp, since: Timestamp, factor: i32 },
}

impl Calendar {
    /// The calendar that everyone but the demo uses.
    pub fn real() -> Self {
        Self(Arc::new(Mutex::new(Pace::Real)))
    }

    /// A calendar that stands at `at` until [`Calendar::run`].
    pub fn standing(at: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(Pace::Standing { at })))
    }

    /// Lets a standing calendar run, `factor` times as fast as real time. Does nothing to any other.
    pub fn run(&self, factor: i32, now: Timestamp) {
        let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Pace::Standing { at } = *pace {
            *pace = Pace::Fast { from: at, since: now, factor };
        }
    }

    /// Where the calendar is at the real time `now`.
    pub fn at(&self, now: Timestamp) -> Timestamp {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Pace::Real => now,
            Pace::Standing { at } => at,
            Pace::Fast { from, since, factor } => {
                let elapsed: SignedDuration = now.duration_since(since);
                from.checked_add(elapsed.saturating_mul(factor)).unwrap_or(Timestamp::MAX)
            }
        }
    }

    pub fn is_real(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Pace::Real)
    }
}

/// The demo's calendar as a file, so that a control plane that is started again finds it where it was.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CalendarFile {
    /// Where the calendar stands, or where it stood when it was let go.
    pub at: Timestamp,
    /// The real time at which it was let go.
    pub running_since: Option<Timestamp>,
    pub factor: i32,
}

impl CalendarFile {
    /// # Errors
    /// [`crate::state::StateError`].
    pub fn save(&self, path: &std::path::Path) -> Result<(), crate::state::StateError> {
        crate::state::write_whole(path, &serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads it back. `None` while it is not there or cannot be read, which leaves a calendar standing.
    pub fn read(path: &std::path::Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Where the calendar is at the real time `now`.
    pub fn calendar(&self) -> Calendar {
        let calendar = Calendar::standing(self.at);
        if let Some(since) = self.running_since {
            calendar.run(self.factor, since);
        }
        calendar
    }
}

/// A step of the wall clock against the boot clock greater than this spares everything.
pub const CLOCK_JUMP_MS: i64 = 30_000;

/// Notices when the wall clock was set while we ran.
#[derive(Debug)]
pub struct JumpWatch {
    offset_ms: i64,
}

impl JumpWatch {
    pub fn new(real: Timestamp, boot_ms: i64) -> Self {
        Self { offset_ms: real.as_millisecond() - boot_ms }
    }

    /// How far the wall clock has moved against the boot clock since the watch began.
    pub fn jumped_by_ms(&self, real: Timestamp, boot_ms: i64) -> i64 {
        real.as_millisecond() - boot_ms - self.offset_ms
    }

    /// # Errors
    /// What the clock gate says, when the wall clock has jumped by more than [`CLOCK_JUMP_MS`].
    pub fn check(&self, real: Timestamp, boot_ms: i64) -> Result<(), String> {
        let by_ms = self.jumped_by_ms(real, boot_ms);
        if by_ms.abs() > CLOCK_JUMP_MS {
            return Err(format!(
                "it was set by {} s while Troop ran; restart `troop serve` to accept it",
                by_ms / 1_000
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_calendar_waits_and_then_runs_fast() {
        let start: Timestamp = "2026-11-24T09:55:00Z".parse().unwrap();
        let real: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let calendar = Calendar::standing(start);
        assert_eq!(calendar.at(real), start);
        calendar.run(600, real);
        calendar.run(1, real);
        let later = real.checked_add(SignedDuration::from_secs(6)).unwrap();
        assert_eq!(calendar.at(later).to_string(), "2026-11-24T10:55:00Z");
    }

    #[test]
    fn a_clock_that_was_set_is_not_trusted() {
        let real: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let watch = JumpWatch::new(real, 1_000);
        let later = real.checked_add(SignedDuration::from_secs(100)).unwrap();
        assert_eq!(watch.check(later, 101_000), Ok(()));
        assert!(watch.check(later, 60_000).is_err());
        assert!(watch.check(real, 60_000).is_err());
    }
}
