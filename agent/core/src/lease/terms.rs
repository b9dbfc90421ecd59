//! How long a fault may live: as durations, since no two machines agree on a time.

use std::time::Duration;

/// Longest lease. Nobody renews for so long when contact is lost, and the fault stays.
pub const LEASE_MAX: Duration = Duration::from_secs(60);
/// Longest life of a fault, however often it is renewed: a day, after which nobody remembers having asked for it.
pub const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why a duration is no lease or no life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {what} of {asked:?} is not above zero and at most {max:?}")]
pub struct BadTerm {
    pub what: &'static str,
    pub asked: Duration,
    pub max: Duration,
}

impl BadTerm {
    pub fn hint(&self) -> &'static str {
        "a lease is usually 5 s, renewed every third of that; a fault lives as long as its game day"
    }
}

fn checked(what: &'static str, asked: Duration, max: Duration) -> Result<Duration, BadTerm> {
    if asked.is_zero() || asked > max { Err(BadTerm { what, asked, max }) } else { Ok(asked) }
}

/// How long a fault lives unless its lease is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl(Duration);

impl Ttl {
    /// # Errors
    /// [`BadTerm`] for zero or more than [`LEASE_MAX`].
    pub fn new(asked: Duration) -> Result<Self, BadTerm> {
        checked("lease", asked, LEASE_MAX).map(Self)
    }

    pub fn get(self) -> Duration {
        self.0
    }
}

/// How long a fault lives at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life(Duration);

impl Life {
    /// # Errors
    /// [`BadTerm`] for zero or more than [`LIFE_MAX`].
    pub fn new(asked: Duration) -> Result<Self, BadTerm> {
        checked("life", asked, LIFE_MAX).map(Self)
    }

    pub fn get(self) -> Duration {
        self.0
    }
}
