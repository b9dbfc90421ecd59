//! Arithmetic of figures: what is made of readings before they are shown.

use serde::{Deserialize, Serialize};

/// A figure to three decimals: more would be noise.
pub fn rounded(figure: f64) -> f64 {
    (figure * 1_000.0).round() / 1_000.0
}

/// `part / whole`, and 0 where there is nothing to divide by.
pub fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// A count as a figure. Counts here are far below 2^53.
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The middle one; 0 of none.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

/// A figure of several rounds: the middle one, and between what they lay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Rounds {
    /// `None` where there was no round.
    pub fn of(figures: Vec<f64>) -> Option<Self> {
        let min = figures.iter().copied().min_by(f64::total_cmp)?;
        let max = figures.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { median: rounded(median(figures)), min: rounded(min), max: rounded(max) })
    }
}

/// The value below which this share of sorted values lies; `None` of none.
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length is a length")]
    let at = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
    sorted.get(at.min(last)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_none_and_of_some() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!((median(Vec::new()), ratio(1.0, 0.0)), (0.0, 0.0));
        assert_eq!(Rounds::of(Vec::new()), None);
        assert_eq!(Rounds::of(vec![2.0, 9.0, 1.0]), Some(Rounds { median: 2.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<u64> = (1..=101).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1, 51, 100, 101].map(Some));
        assert_eq!(quantile::<u64>(&[], 0.5), None);
    }
}
