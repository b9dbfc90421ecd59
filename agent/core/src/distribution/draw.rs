//! Draws as the kernel makes them (net/sched/sch_netem.c, Linux 6.18): the same fixed-point steps on the same random
//! numbers give the same delays and losses.

use rand::Rng;

use super::{SCALE, Table};
use crate::fault::{Chance, GilbertElliott, Probability};

/// Random numbers that lean on the one before (`get_crandom`).
#[derive(Debug, Clone)]
pub struct Correlated {
    correlation: Probability,
    last: u32,
}

impl Correlated {
    /// Begins at a random number, as `init_crandom` does.
    pub fn new(correlation: Probability, rng: &mut impl Rng) -> Self {
        Self { correlation, last: rng.next_u32() }
    }

    pub fn draw(&mut self, rng: &mut impl Rng) -> u32 {
        let value = u64::from(rng.next_u32());
        if self.correlation.is_never() {
            return low_half(value);
        }
        // Both weights sum to 2^32 and both numbers are below it, so the sum fits 64 bits.
        let rho = u64::from(self.correlation.bits()) + 1;
        let answer = value * ((1 << 32) - rho) + u64::from(self.last) * rho;
        self.last = low_half(answer >> 32);
        self.last
    }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// Events of a chance, each leaning on the one before.
#[derive(Debug, Clone)]
pub struct Events {
    numbers: Correlated,
}

impl Events {
    pub fn new(chance: Chance, rng: &mut impl Rng) -> Self {
        Self { numbers: Correlated::new(chance.correlation, rng) }
    }

    /// Whether it happens this time. No number is drawn for what never happens, as in the kernel. The probability is an
    /// argument because a ramp changes it.
    pub fn happens(&mut self, probability: Probability, rng: &mut impl Rng) -> bool {
        !probability.is_never() && probability.happens(self.numbers.draw(rng))
    }
}

/// A delay in nanoseconds around `mean` (`tabledist`): evenly within `deviation` without a table, else by the table. May be
/// negative; netem then sends at once.
///
/// The kernel keeps the remainder of a correlated number, which is as good as independent unless twice the deviation comes
/// near 2^32 ns: the correlation of a delay is hardly seen, here as there.
///
/// `deviation` must not be negative and `mean` not within 2^34 of the ends of 64 bits, which no checked delay is.
pub fn delay_ns(mean: i64, deviation: i32, table: Option<&Table>, numbers: &mut Correlated, rng: &mut impl Rng) -> i64 {
    if deviation == 0 {
        return mean;
    }
    let number = numbers.draw(rng);
    let Some(table) = table else {
        let width = 2 * deviation.unsigned_abs();
        return i64::from(number % width) + mean - i64::from(deviation);
    };
    let deviation = i64::from(deviation);
    let entries = table.entries();
    // A table has 1 to 16,384 entries.
    let place = usize::try_from(number).unwrap_or(0) % entries.len();
    let entry = i64::from(entries[place]);
    // Whole deviations and the rest are scaled apart, so that nothing overflows; the rest is rounded away from zero.
    let rest = (deviation % SCALE) * entry;
    let half = if rest >= 0 { SCALE / 2 } else { -SCALE / 2 };
    (rest + half) / SCALE + (deviation / SCALE) * entry + mean
}

/// The two states of a [`GilbertElliott`] chain (`loss_gilb_ell`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GilbertElliottState {
    #[default]
    Good,
    Bad,
}

impl GilbertElliottState {
    /// Steps on by one packet, and says whether it is lost. The loss is that of the state before the step.
    pub fn loses(&mut self, model: &GilbertElliott, rng: &mut impl Rng) -> bool {
        let (leaves, to) = match self {
            Self::Good => (model.to_bad, Self::Bad),
            Self::Bad => (model.to_good, Self::Good),
        };
        let was = *self;
        if rng.next_u32() < leaves.bits() {
            *self = to;
        }
        let number = rng.next_u32();
        match was {
            Self::Good => number < model.loss_when_good.bits(),
            // The kernel holds h, the chance to get through.
            Self::Bad => number > model.loss_when_bad.complement().bits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;
    use crate::distribution::Distribution;

    const DRAWS: u32 = 100_000;

    fn rng() -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(0x7a00_0000_0000_0001)
    }

    fn percent(percent: f64) -> Probability {
        Probability::from_percent(percent).unwrap()
    }

    /// Mean, deviation and correlation of neighbours.
    fn statistics(values: &[f64]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let covariance = values.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / n;
        (mean, variance.sqrt(), covariance / variance)
    }

    fn delays(deviation: i32, correlation: Probability, distribution: &Distribution) -> Vec<f64> {
        let mut rng = rng();
        let mut numbers = Correlated::new(correlation, &mut rng);
        let table = distribution.table();
        (0..DRAWS).map(|_| delay_ns(100_000_000, deviation, table.as_ref(), &mut numbers, &mut rng) as f64).collect()
    }

    #[test]
    fn uniform_delays_fill_the_range_and_nothing_else() {
        let delays = delays(10_000_000, Probability::NEVER, &Distribution::Uniform);
        assert!(delays.iter().all(|d| (90e6..110e6).contains(d)));
        let (mean, deviation, neighbours) = statistics(&delays);
        // The deviation of a range of 20 ms is 20 / sqrt(12) ms; four standard errors of the mean are 73 us.
        assert!((mean - 100e6).abs() < 73e3, "{mean}");
        assert!((deviation - 5.7735e6).abs() < 50e3, "{deviation}");
        assert!(neighbours.abs() < 0.013, "{neighbours}");
    }

    #[test]
    fn delays_of_a_table_have_its_mean_and_deviation() {
        for (distribution, expected_mean, expected_deviation) in [
            (Distribution::Normal, 100e6, 10e6),
            // Of iproute2's tables, computed from their entries; cutting the tail lowers both.
            (Distribution::Pareto, table_mean(&Distribution::Pareto), table_deviation(&Distribution::Pareto)),
            (
                Distribution::ParetoNormal,
                table_mean(&Distribution::ParetoNormal),
                table_deviation(&Distribution::ParetoNormal),
            ),
        ] {
            let (mean, deviation, _) = statistics(&delays(10_000_000, Probability::NEVER, &distribution));
            assert!((mean - expected_mean).abs() < 130e3, "{distribution:?}: {mean}");
            assert!((deviation / expected_deviation - 1.0).abs() < 0.02, "{distribution:?}: {deviation}");
        }
    }

    fn of_table(distribution: &Distribution) -> (f64, f64, f64) {
        let table = distribution.table().unwrap();
        let entries: Vec<f64> = table.entries().iter().map(|e| 100e6 + f64::from(*e) / 8192.0 * 10e6).collect();
        statistics(&entries)
    }

    fn table_mean(distribution: &Distribution) -> f64 {
        of_table(distribution).0
    }

    fn table_deviation(distribution: &Distribution) -> f64 {
        of_table(distribution).1
    }

    #[test]
    fn correlated_numbers_lean_on_their_neighbours() {
        let mut rng = rng();
        let mut numbers = Correlated::new(percent(50.0), &mut rng);
        let numbers: Vec<f64> = (0..DRAWS).map(|_| f64::from(numbers.draw(&mut rng))).collect();
        let (mean, deviation, neighbours) = statistics(&numbers);
        // x' = (1 - r) u + r x has neighbours correlated by r, and a deviation smaller by sqrt((1 - r) / (1 + r)).
        assert!((neighbours - 0.5).abs() < 0.02, "{neighbours}");
        assert!((mean / 2_f64.powi(31) - 1.0).abs() < 0.01, "{mean}");
        assert!((deviation / 2_f64.powi(32) - 1.0 / 6.0).abs() < 0.005, "{deviation}");
    }

    #[test]
    fn delays_show_a_correlation_only_at_a_jitter_of_seconds_as_in_the_kernel() {
        let neighbours = |deviation, distribution| statistics(&delays(deviation, percent(50.0), distribution)).2;
        assert!(neighbours(10_000_000, &Distribution::Uniform).abs() < 0.02);
        assert!(neighbours(10_000_000, &Distribution::Normal).abs() < 0.02);
        assert!((neighbours(i32::MAX, &Distribution::Uniform) - 0.5).abs() < 0.02);
    }

    #[test]
    fn no_deviation_takes_no_number() {
        let (mut one, mut other) = (rng(), rng());
        let mut numbers = Correlated::new(Probability::NEVER, &mut one);
        assert_eq!(delay_ns(5, 0, None, &mut numbers, &mut one), 5);
        other.next_u32();
        assert_eq!(one.next_u32(), other.next_u32());
    }

    #[test]
    fn losses_come_as_often_as_asked_for() {
        let mut rng = rng();
        let chance = Chance::of(percent(7.0));
        let mut events = Events::new(chance, &mut rng);
        let lost = (0..DRAWS).filter(|_| events.happens(chance.probability, &mut rng)).count();
        // Five standard deviations of a binomial of 100,000 and 0.07 are 403.
        assert!((6_597..=7_403).contains(&lost), "{lost}");
    }

    #[test]
    fn full_correlation_repeats_for_ever() {
        let mut rng = rng();
        let mut numbers = Correlated::new(Probability::ALWAYS, &mut rng);
        let first = numbers.draw(&mut rng);
        assert!((0..1_000).all(|_| numbers.draw(&mut rng) == first));
    }

    #[test]
    fn gilbert_elliott_loses_in_bursts_of_the_length_asked_for() {
        let model = GilbertElliott {
            to_bad: percent(1.0),
            to_good: percent(10.0),
            loss_when_bad: Probability::ALWAYS,
            loss_when_good: Probability::NEVER,
        };
        let (mut rng, mut state) = (rng(), GilbertElliottState::default());
        let lost: Vec<bool> = (0..DRAWS).map(|_| state.loses(&model, &mut rng)).collect();
        let share = lost.iter().filter(|l| **l).count() as f64 / f64::from(DRAWS);
        let bursts = lost.windows(2).filter(|w| !w[0] && w[1]).count() as f64;
        let length = share * f64::from(DRAWS) / bursts;
        // In the long run p / (p + r) of the packets meet the bad state, 1 / r of them in a row.
        assert!((share - 0.0909).abs() < 0.012, "{share}");
        assert!((length - 10.0).abs() < 1.0, "{length}");
    }

    #[test]
    fn gilbert_elliott_with_certain_states_is_exact() {
        let never = Probability::NEVER;
        let stays = GilbertElliott { to_bad: never, to_good: never, loss_when_bad: never, loss_when_good: never };
        let (mut rng, mut state) = (rng(), GilbertElliottState::Bad);
        assert!((0..1_000).all(|_| !state.loses(&stays, &mut rng)));
        assert_eq!(state, GilbertElliottState::Bad);
    }

    proptest! {
        /// Against the formula in reals: rounding apart, `tabledist` is mean + deviation * entry / 8192.
        #[test]
        fn a_draw_is_the_mean_and_so_many_deviations(
            mean in 0_i64..60_000_000_000, deviation in 1..=i32::MAX, entry in any::<i16>(), seed in any::<u64>(),
        ) {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut numbers = Correlated::new(Probability::NEVER, &mut rng);
            let table = Table::new(vec![entry]).unwrap();
            let drawn = delay_ns(mean, deviation, Some(&table), &mut numbers, &mut rng);
            let exact = i128::from(mean) * 8192 + i128::from(deviation) * i128::from(entry);
            prop_assert!((i128::from(drawn) * 8192 - exact).abs() <= 4096);
        }

        #[test]
        fn a_uniform_draw_stays_in_its_range(
            mean in 0_i64..60_000_000_000, deviation in 1..=i32::MAX, seed in any::<u64>(),
        ) {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut numbers = Correlated::new(Probability::NEVER, &mut rng);
            let drawn = delay_ns(mean, deviation, None, &mut numbers, &mut rng);
            prop_assert!((mean - i64::from(deviation)..mean + i64::from(deviation)).contains(&drawn));
        }
    }
}
