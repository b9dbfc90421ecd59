//! Chances as the kernel counts them: 32 bits, where all ones is certainty.

use std::fmt;

use super::Share;

/// Why a number is no percentage.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{percent} is no percentage")]
pub struct BadPercent {
    pub percent: f64,
}

impl BadPercent {
    pub fn hint(&self) -> &'static str {
        "write a number from 0 to 100; 0.5 is half a percent"
    }
}

/// A probability, exactly as netem keeps it: 0 is never, 2^32 - 1 is always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Probability(u32);

impl Probability {
    pub const NEVER: Self = Self(0);
    pub const ALWAYS: Self = Self(u32::MAX);

    /// Rounds as iproute2 does (`set_percent` in tc/q_netem.c: divide, multiply, ties to even), so that what is sent is
    /// what `tc` would send.
    ///
    /// # Errors
    /// [`BadPercent`] unless `percent` is from 0 to 100.
    pub fn from_percent(percent: f64) -> Result<Self, BadPercent> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(BadPercent { percent });
        }
        let scaled = (percent / 100.0 * f64::from(u32::MAX)).round_ties_even();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and from 0 to 2^32 - 1")]
        Ok(Self(scaled as u32))
    }

    /// The probability with these 32 bits.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    pub fn percent(self) -> f64 {
        f64::from(self.0) / f64::from(u32::MAX) * 100.0
    }

    /// The probability that the other thing happens.
    pub const fn complement(self) -> Self {
        Self(u32::MAX - self.0)
    }

    pub fn is_never(self) -> bool {
        self == Self::NEVER
    }

    /// Whether an event of this probability happens on a uniform draw: netem's comparison, in which 0 never and all ones
    /// always does.
    pub fn happens(self, draw: u32) -> bool {
        self.0 != 0 && self.0 >= draw
    }

    pub(super) fn scaled(self, share: Share) -> Self {
        Self(u32::try_from(share.of(u64::from(self.0))).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 32 bits are good for nine digits; what was typed comes back with six.
        let rounded = (self.percent() * 1e6).round() / 1e6;
        write!(f, "{rounded} %")
    }
}

/// A probability and how much each event depends on the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chance {
    pub probability: Probability,
    /// [`Probability::NEVER`] makes the events independent.
    pub correlation: Probability,
}

impl Chance {
    /// Independent events.
    pub const fn of(probability: Probability) -> Self {
        Self { probability, correlation: Probability::NEVER }
    }

    pub(super) fn scaled(self, share: Share) -> Self {
        Self { probability: self.probability.scaled(share), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(percent: f64) -> Probability {
        Probability::from_percent(percent).unwrap()
    }

    #[test]
    fn has_the_bits_that_tc_sends() {
        let rows = [(0.0, 0), (100.0, u32::MAX), (25.0, 0x4000_0000), (7.0, 0x11eb_851f), (30.0, 0x4ccc_cccc)];
        for (typed, bits) in rows {
            assert_eq!(percent(typed).bits(), bits, "{typed}");
        }
        assert_eq!(percent(70.0).complement().bits(), 0x4ccc_cccd);
    }

    #[test]
    fn comes_back_as_it_was_typed() {
        for typed in ["0 %", "0.1 %", "7 %", "33.333333 %", "99.9 %", "100 %"] {
            let number = typed.trim_end_matches(" %").parse().unwrap();
            assert_eq!(percent(number).to_string(), typed);
        }
    }

    #[test]
    fn refuses_what_is_no_percentage() {
        for bad in [-0.1, 100.1, f64::NAN, f64::INFINITY] {
            assert!(Probability::from_percent(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn certainty_happens_on_every_draw_and_zero_on_none() {
        for draw in [0, 1, u32::MAX] {
            assert!(Probability::ALWAYS.happens(draw));
            assert!(!Probability::NEVER.happens(draw));
        }
    }
}
