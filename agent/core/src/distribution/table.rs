//! Tables of a distribution, and how they are made.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// One standard deviation in a table (`NETEM_DIST_SCALE`, linux/pkt_sched.h).
pub const SCALE: i64 = 8192;
/// Most entries that the kernel takes (`NETEM_DIST_MAX`).
pub const ENTRIES_MAX: usize = 16_384;
/// Entries of the tables made here, as of iproute2's.
const ENTRIES: u32 = 4096;
/// [`ENTRIES`], where it counts things in memory.
const ENTRY_COUNT: usize = ENTRIES as usize;

/// Why something is no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    #[error("a table of {entries} entries is not between 1 and {ENTRIES_MAX}")]
    Size { entries: usize },
    #[error("{samples} samples do not make a distribution")]
    TooFew { samples: usize },
    #[error("all samples are {value:?}")]
    NoSpread { value: Duration },
}

impl BadTable {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Size { .. } => "iproute2's tables have 4096 entries",
            Self::TooFew { .. } => "measure at least 100 delays",
            Self::NoSpread { .. } => "a delay that never varies needs no distribution",
        }
    }
}

/// Fewest samples: below, the tails would be the invention of two or three of them.
pub const SAMPLES_MIN: usize = 100;

/// The inverse of a distribution function in equal steps of probability, in [`SCALE`]ths of a deviation from the mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table(Arc<[i16]>);

impl Table {
    /// # Errors
    /// [`BadTable::Size`] for no entry or more than [`ENTRIES_MAX`].
    pub fn new(entries: impl Into<Arc<[i16]>>) -> Result<Self, BadTable> {
        let entries = entries.into();
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            return Err(BadTable::Size { entries: entries.len() });
        }
        Ok(Self(entries))
    }

    pub fn entries(&self) -> &[i16] {
        &self.0
    }

    /// The normal distribution.
    ///
    /// Entry j is the quantile at (4j + 1/2) / 16384: iproute2's netem/normal.c looks up every fourth of 16,384 values,
    /// each of which is the greatest whose probability rounds to it.
    pub fn normal() -> Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| made(normal_quantiles().iter().map(|x| x * SCALE_F)));
        TABLE.clone()
    }

    /// The Pareto distribution of exponent 3, moved and scaled to mean 0 and (nominal) deviation 1: its mean is 3/2 and
    /// its deviation the root of 3/4, of which iproute2's netem/pareto.c makes 3/4.
    pub fn pareto() -> Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| made((0..ENTRIES).map(pareto_value)));
        TABLE.clone()
    }

    /// A quarter of the normal and three quarters of the Pareto distribution (netem/paretonormal.c), which is what
    /// delays measured on networks look like. The Pareto part is cut to 16 bits before they are mixed, as there.
    pub fn pareto_normal() -> Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| {
            let normal = normal_quantiles();
            made((0..ENTRIES).zip(normal).map(|(j, x)| {
                let sum =
                    (x * SCALE_F).round_ties_even() + 3.0 * pareto_value(j).round_ties_even().min(f64::from(i16::MAX));
                (sum / 4.0).trunc()
            }))
        });
        TABLE.clone()
    }
}

/// [`SCALE`] for reals.
const SCALE_F: f64 = SCALE as f64;

/// The whole numbers nearest to `values`, within 16 bits.
fn made(values: impl Iterator<Item = f64>) -> Table {
    // A cast of a real saturates, which is the clamping that is wanted.
    #[expect(clippy::cast_possible_truncation, reason = "saturates at the ends of 16 bits")]
    let entries: Vec<i16> = values.map(|value| value.round_ties_even() as i16).collect();
    Table(entries.into())
}

/// The quantile at 1 - j/4096 of the Pareto distribution, normalised and scaled.
fn pareto_value(j: u32) -> f64 {
    let tail = f64::from(ENTRIES - j) / f64::from(ENTRIES);
    ((1.0 / tail).cbrt() - 1.5) * (4.0 / 3.0) * SCALE_F
}

/// The quantiles of the standard normal distribution at (4j + 1/2) / 16384.
///
/// Each by Newton's method from the one before. It converges: below 0 the distribution function is convex, so that the
/// first step lands beyond the quantile and the next ones come back to it; above 0 it is concave and every step falls
/// short of it.
fn normal_quantiles() -> [f64; ENTRY_COUNT] {
    let mut quantiles = [0.0; ENTRY_COUNT];
    // Left of the first quantile.
    let mut x = -4.1;
    for (j, quantile) in (0..ENTRIES).zip(&mut quantiles) {
        let p = (f64::from(4 * j) + 0.5) / f64::from(4 * ENTRIES);
        for _ in 0..64 {
            let step = (normal_distribution(x) - p) / normal_density(x);
            x -= step;
            if step.abs() < 1e-9 {
                break;
            }
        }
        *quantile = x;
    }
    quantiles
}

fn normal_density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// 1/2 + density * (x + x^3/3 + x^5/(3*5) + ...): Abramowitz and Stegun 26.2.11. All terms have one sign, so nothing
/// cancels.
fn normal_distribution(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    let mut odd = 1.0;
    while term.abs() > sum.abs() * 1e-16 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + normal_density(x) * sum
}

/// What was measured: a distribution with the mean and deviation by which its table is scaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub table: Table,
    pub mean: Duration,
    pub deviation: Duration,
}

impl Measured {
    /// Makes a distribution of measured delays, as iproute2's `maketable` does: normalised by mean and deviation, then
    /// inverted, with straight lines between samples. Unlike there the two ends are the extreme samples: `maketable`
    /// leaves 32,767 in the last entry whatever was measured. The table has so many `entries`, from 1 to [`ENTRIES_MAX`].
    ///
    /// # Errors
    /// [`BadTable::TooFew`] below [`SAMPLES_MIN`]; [`BadTable::NoSpread`] when all are the same; [`BadTable::Size`].
    pub fn from_samples(samples: &[Duration], entries: usize) -> Result<Self, BadTable> {
        let size = u32::try_from(entries).ok().filter(|_| (1..=ENTRIES_MAX).contains(&entries));
        let size = size.ok_or(BadTable::Size { entries })?;
        if samples.len() < SAMPLES_MIN {
            return Err(BadTable::TooFew { samples: samples.len() });
        }
        let mut sorted: Vec<f64> = samples.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        // Exact up to 2^53 samples, which no memory holds.
        let count = sorted.len() as f64;
        let mean = sorted.iter().sum::<f64>() / count;
        let variance = sorted.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let deviation = Duration::from_secs_f64(variance.sqrt());
        if deviation.is_zero() {
            return Err(BadTable::NoSpread { value: samples[0] });
        }
        let quantiles = (0..size).map(|j| quantile(&sorted, (f64::from(j) + 0.5) / f64::from(size)));
        let table = made(quantiles.map(|q| (q - mean) / variance.sqrt() * SCALE_F));
        Ok(Self { table, mean: Duration::from_secs_f64(mean), deviation })
    }
}

/// The value below which the part `p` of `sorted` lies; the k-th of n samples stands for the middle of its n-th part.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let last = sorted.len() - 1;
    let place = (p * sorted.len() as f64 - 0.5).clamp(0.0, last as f64);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the last index")]
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of one of Debian's tables, if iproute2 is installed.
    fn debians(name: &str) -> Option<Vec<i16>> {
        let folders = ["/usr/lib/tc", "/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/aarch64-linux-gnu/tc"];
        let text = folders.iter().find_map(|f| std::fs::read_to_string(format!("{f}/{name}.dist")).ok())?;
        let numbers = text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
        Some(numbers.map(|number| number.parse().unwrap()).collect())
    }

    #[test]
    fn tables_are_those_of_iproute2_within_one_step() {
        for (name, ours) in
            [("normal", Table::normal()), ("pareto", Table::pareto()), ("paretonormal", Table::pareto_normal())]
        {
            let Some(theirs) = debians(name) else { continue };
            assert_eq!(ours.entries().len(), theirs.len(), "{name}");
            for (j, (a, b)) in ours.entries().iter().zip(&theirs).enumerate() {
                // One step of 8192 in a deviation: theirs is searched on a grid of 0.41 steps, then rounded.
                assert!(a.abs_diff(*b) <= 1, "{name}[{j}]: {a}, not {b}");
            }
        }
    }

    fn mean_and_deviation(table: &Table) -> (f64, f64) {
        let values: Vec<f64> = table.entries().iter().map(|e| f64::from(*e) / SCALE_F).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn the_normal_table_has_mean_0_and_deviation_1() {
        let (mean, deviation) = mean_and_deviation(&Table::normal());
        assert!(mean.abs() < 1e-3 && (deviation - 1.0).abs() < 1e-2, "{mean} {deviation}");
        // Known quantiles, at the entries nearest to 2.5 %, 50 % and 97.5 %.
        for (j, quantile) in [(102, -1.96), (2048, 0.0), (3994, 1.96)] {
            assert!((f64::from(Table::normal().entries()[j]) / SCALE_F - quantile).abs() < 5e-3, "{j}");
        }
    }

    #[test]
    fn tables_never_fall() {
        for table in [Table::normal(), Table::pareto(), Table::pareto_normal()] {
            assert!(table.entries().is_sorted());
        }
    }

    #[test]
    fn the_pareto_tail_is_long_and_on_the_right() {
        let pareto = Table::pareto();
        assert_eq!((pareto.entries()[0], pareto.entries()[4095]), (-5461, i16::MAX));
    }

    #[test]
    fn samples_of_a_normal_distribution_give_the_normal_table() {
        let quantiles = normal_quantiles();
        let samples: Vec<Duration> = quantiles.iter().map(|x| Duration::from_secs_f64(0.1 + 0.01 * x)).collect();
        let measured = Measured::from_samples(&samples, ENTRY_COUNT).unwrap();
        assert!(measured.mean.abs_diff(Duration::from_millis(100)) < Duration::from_micros(10), "{measured:?}");
        assert!(measured.deviation.abs_diff(Duration::from_millis(10)) < Duration::from_micros(100));
        for (j, (a, b)) in measured.table.entries().iter().zip(Table::normal().entries()).enumerate() {
            // A hundredth of a deviation, and a percent in the tails, where the deviation of the samples shows.
            assert!(f64::from(a.abs_diff(*b)) < 82.0 + f64::from(b.unsigned_abs()) / 100.0, "[{j}]: {a}, not {b}");
        }
    }

    #[test]
    fn two_values_give_two_steps_and_their_own_ends() {
        let samples: Vec<Duration> = [10, 30].repeat(100).into_iter().map(Duration::from_millis).collect();
        let measured = Measured::from_samples(&samples, ENTRY_COUNT).unwrap();
        let entries = measured.table.entries();
        assert_eq!(measured.mean, Duration::from_millis(20));
        assert!((-8192..-8100).contains(&entries[0]) && (8100..8192).contains(&entries[4095]), "{entries:?}");
    }

    #[test]
    fn refuses_what_is_no_distribution() {
        let same = [Duration::from_millis(5); SAMPLES_MIN];
        assert!(matches!(Measured::from_samples(&same, ENTRY_COUNT), Err(BadTable::NoSpread { .. })));
        assert!(matches!(Measured::from_samples(&same[1..], ENTRY_COUNT), Err(BadTable::TooFew { .. })));
        let spread: Vec<Duration> = (0..200).map(Duration::from_millis).collect();
        assert_eq!(Measured::from_samples(&spread, 8).unwrap().table.entries().len(), 8);
        assert_eq!(Measured::from_samples(&spread, 0), Err(BadTable::Size { entries: 0 }));
        assert!(Table::new(vec![0; ENTRIES_MAX]).is_ok());
        assert_eq!(Table::new(vec![0; ENTRIES_MAX + 1]), Err(BadTable::Size { entries: ENTRIES_MAX + 1 }));
        assert_eq!(Table::new(vec![]), Err(BadTable::Size { entries: 0 }));
    }
}
