//! What befalls the packets: each part by itself, and which of them make sense together.

use std::time::Duration;

use super::{Chance, Probability, Share};
use crate::distribution::Distribution;

/// Longest delay. TCP tries a handshake again for about a minute, so more differs in nothing from a black hole but in what
/// it takes to hold.
pub const DELAY_MAX: Duration = Duration::from_secs(60);
/// Most jitter: netem keeps it in 31 bits of nanoseconds and silently takes less for more.
pub const JITTER_MAX: Duration = Duration::from_nanos(i32::MAX as u64);
/// Slowest rate, in bytes per second: one offloaded packet of 64 KB takes a minute.
pub const RATE_MIN: u64 = 1_024;
/// Fastest rate: a terabyte per second, beyond any device; more would be no limit.
pub const RATE_MAX: u64 = 1 << 40;

/// Why an effect is impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadEffect {
    #[error("the fault has no effect")]
    Nothing,
    #[error("a delay of {asked:?} is longer than {DELAY_MAX:?}")]
    DelayTooLong { asked: Duration },
    #[error("a jitter of {asked:?} is more than {JITTER_MAX:?}")]
    JitterTooLarge { asked: Duration },
    #[error("the delay has a {what} and no jitter")]
    NeedsJitter { what: &'static str },
    #[error("packets cannot overtake others that are not delayed")]
    ReorderWithoutDelay,
    #[error("packets reorder with a probability of 0 or a gap of 0")]
    ReorderNever,
    #[error("{asked} bytes per second are not between {RATE_MIN} and {RATE_MAX}")]
    Rate { asked: u64 },
}

impl BadEffect {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nothing => "ask for a delay, loss, duplication, reordering, corruption or a rate",
            Self::DelayTooLong { .. } => "a black hole is loss of 100 %",
            Self::JitterTooLarge { .. } => "jitter beyond two seconds is better two faults of different delay",
            Self::NeedsJitter { .. } => "add a jitter, or leave it out",
            Self::ReorderWithoutDelay => "add a delay: those that are reordered leave at once and the others after it",
            Self::ReorderNever => "leave the reordering out, or give it a percentage above 0 and a gap of 1 or more",
            Self::Rate { .. } => "a black hole is loss of 100 %",
        }
    }
}

/// Whether jitter may let packets of one flow overtake each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// A packet never leaves before an earlier one of its flow: jitter alone must not look like reordering.
    #[default]
    Kept,
    /// Each leaves when its own delay is over, as netem does it.
    ByTime,
}

/// How long packets are held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Delay {
    mean: Duration,
    jitter: Duration,
    correlation: Probability,
    distribution: Distribution,
    order: Order,
}

impl Delay {
    /// A delay of always the same length.
    ///
    /// # Errors
    /// [`BadEffect::DelayTooLong`] beyond [`DELAY_MAX`].
    pub fn fixed(mean: Duration) -> Result<Self, BadEffect> {
        if mean > DELAY_MAX {
            return Err(BadEffect::DelayTooLong { asked: mean });
        }
        Ok(Self { mean, ..Self::default() })
    }

    /// Lets the delay vary by `jitter`: evenly up to it in both directions, or with it as the deviation of a
    /// distribution. Where the mean is less, draws below zero count as zero, as in netem.
    ///
    /// # Errors
    /// [`BadEffect::JitterTooLarge`] beyond [`JITTER_MAX`]; [`BadEffect::NeedsJitter`] when it is zero and a
    /// correlation or distribution is not.
    pub fn varied(
        self,
        jitter: Duration,
        correlation: Probability,
        distribution: Distribution,
        order: Order,
    ) -> Result<Self, BadEffect> {
        if jitter > JITTER_MAX {
            return Err(BadEffect::JitterTooLarge { asked: jitter });
        }
        if jitter.is_zero() && !correlation.is_never() {
            return Err(BadEffect::NeedsJitter { what: "correlation" });
        }
        if jitter.is_zero() && distribution != Distribution::Uniform {
            return Err(BadEffect::NeedsJitter { what: "distribution" });
        }
        Ok(Self { jitter, correlation, distribution, order, ..self })
    }

    pub fn mean(&self) -> Duration {
        self.mean
    }

    pub fn jitter(&self) -> Duration {
        self.jitter
    }

    pub fn correlation(&self) -> Probability {
        self.correlation
    }

    pub fn distribution(&self) -> &Distribution {
        &self.distribution
    }

    pub fn order(&self) -> Order {
        self.order
    }

    fn is_nothing(&self) -> bool {
        self.mean.is_zero() && self.jitter.is_zero()
    }

    fn scaled(&self, share: Share) -> Self {
        Self { mean: scaled(self.mean, share), jitter: scaled(self.jitter, share), ..self.clone() }
    }
}

fn scaled(whole: Duration, share: Share) -> Duration {
    // Both limits are far below the 584 years of 64 bits.
    Duration::from_nanos(share.of(u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX)))
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Random(Chance),
    GilbertElliott(GilbertElliott),
}

impl Loss {
    /// Every packet: a black hole, or a partition from the peers that are targeted.
    pub const ALL: Self = Self::Random(Chance::of(Probability::ALWAYS));

    fn is_nothing(self) -> bool {
        match self {
            Self::Random(chance) => chance.probability.is_never(),
            Self::GilbertElliott(model) => {
                model.loss_when_good.is_never() && (model.to_bad.is_never() || model.loss_when_bad.is_never())
            }
        }
    }

    /// While a ramp lasts, the bad state is entered less often and the good one loses less; how bad the bad one is and
    /// how long it lasts stay as they are.
    fn scaled(self, share: Share) -> Self {
        match self {
            Self::Random(chance) => Self::Random(chance.scaled(share)),
            Self::GilbertElliott(model) => Self::GilbertElliott(GilbertElliott {
                to_bad: model.to_bad.scaled(share),
                loss_when_good: model.loss_when_good.scaled(share),
                ..model
            }),
        }
    }
}

/// Loss in bursts: a chain of a good and a bad state, each with its own loss (Gilbert 1960, Elliott 1963; the names in
/// brackets are those of `tc`'s `loss gemodel`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GilbertElliott {
    /// From good to bad, at each packet (p).
    pub to_bad: Probability,
    /// From bad to good (r).
    pub to_good: Probability,
    /// Loss in the bad state (1-h).
    pub loss_when_bad: Probability,
    /// Loss in the good state (1-k).
    pub loss_when_good: Probability,
}

/// Packets that overtake those being delayed, by leaving at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reorder {
    chance: Chance,
    gap: u32,
}

impl Reorder {
    /// After each one that overtook, `gap` - 1 packets are delayed for certain, and from then on each overtakes by
    /// chance. A gap of 1 leaves it to chance alone.
    ///
    /// # Errors
    /// [`BadEffect::ReorderNever`] for a probability or a gap of 0.
    pub fn new(chance: Chance, gap: u32) -> Result<Self, BadEffect> {
        if chance.probability.is_never() || gap == 0 { Err(BadEffect::ReorderNever) } else { Ok(Self { chance, gap }) }
    }

    pub fn chance(&self) -> Chance {
        self.chance
    }

    pub fn gap(&self) -> u32 {
        self.gap
    }
}

/// A speed limit: packets queue for the wire, none is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// # Errors
    /// [`BadEffect::Rate`] unless from [`RATE_MIN`] to [`RATE_MAX`].
    pub fn bytes_per_second(asked: u64) -> Result<Self, BadEffect> {
        if (RATE_MIN..=RATE_MAX).contains(&asked) { Ok(Self(asked)) } else { Err(BadEffect::Rate { asked }) }
    }

    pub fn get(self) -> u64 {
        self.0
    }

    fn scaled(self, share: Share) -> Option<Self> {
        share.divide(self.0).filter(|rate| *rate <= RATE_MAX).map(Self)
    }
}

/// The parts of an effect, each of which may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    pub delay: Option<Delay>,
    pub loss: Option<Loss>,
    pub duplicate: Option<Chance>,
    pub reorder: Option<Reorder>,
    pub corrupt: Option<Chance>,
    pub rate: Option<Rate>,
}

/// What befalls packets, checked to be possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect(Parts);

impl Effect {
    /// # Errors
    /// [`BadEffect::Nothing`] when nothing would happen, [`BadEffect::ReorderWithoutDelay`].
    pub fn new(parts: Parts) -> Result<Self, BadEffect> {
        let Parts { delay, loss, duplicate, reorder, corrupt, rate } = &parts;
        let delayed = delay.as_ref().is_some_and(|d| !d.is_nothing());
        let likely = |chance: &Option<Chance>| chance.is_some_and(|c| !c.probability.is_never());
        if reorder.is_some() && delay.as_ref().is_none_or(|d| d.mean.is_zero()) {
            return Err(BadEffect::ReorderWithoutDelay);
        }
        let lossy = loss.is_some_and(|l| !l.is_nothing());
        if !(delayed || lossy || likely(duplicate) || likely(corrupt) || rate.is_some()) {
            return Err(BadEffect::Nothing);
        }
        Ok(Self(parts))
    }

    pub fn parts(&self) -> &Parts {
        &self.0
    }

    /// The parts at a point of a ramp. Times and probabilities grow from 0, a rate falls from no limit. Correlations and
    /// distributions stay, and so does how often packets overtake: by how much depends on the delay, which grows.
    pub fn at(&self, share: Share) -> Parts {
        let Parts { delay, loss, duplicate, reorder, corrupt, rate } = &self.0;
        Parts {
            delay: delay.as_ref().map(|d| d.scaled(share)),
            loss: loss.map(|l| l.scaled(share)),
            duplicate: duplicate.map(|c| c.scaled(share)),
            reorder: *reorder,
            corrupt: corrupt.map(|c| c.scaled(share)),
            rate: rate.and_then(|r| r.scaled(share)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ramp;
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn percent(percent: f64) -> Probability {
        Probability::from_percent(percent).unwrap()
    }

    fn delay(ms: u32) -> Delay {
        Delay::fixed(MS * ms).unwrap()
    }

    #[test]
    fn refuses_an_effect_that_does_nothing() {
        let nothing = [
            Parts::default(),
            Parts { delay: Some(delay(0)), ..Parts::default() },
            Parts { loss: Some(Loss::Random(Chance::default())), ..Parts::default() },
            Parts { duplicate: Some(Chance::default()), corrupt: Some(Chance::default()), ..Parts::default() },
        ];
        for parts in nothing {
            assert_eq!(Effect::new(parts), Err(BadEffect::Nothing));
        }
    }

    #[test]
    fn refuses_reordering_without_a_delay() {
        let reorder = Some(Reorder::new(Chance::of(percent(25.0)), 5).unwrap());
        let loss = Some(Loss::ALL);
        let refused = Effect::new(Parts { reorder, loss, ..Parts::default() });
        assert_eq!(refused, Err(BadEffect::ReorderWithoutDelay));
        assert!(Effect::new(Parts { reorder, delay: Some(delay(10)), ..Parts::default() }).is_ok());
        assert_eq!(Reorder::new(Chance::of(percent(25.0)), 0), Err(BadEffect::ReorderNever));
    }

    #[test]
    fn takes_the_greatest_values_and_nothing_beyond() {
        assert!(Delay::fixed(DELAY_MAX).is_ok());
        assert!(Delay::fixed(DELAY_MAX + MS).is_err());
        let varied = |jitter| delay(1).varied(jitter, Probability::NEVER, Distribution::Uniform, Order::Kept);
        assert!(varied(JITTER_MAX).is_ok());
        assert!(varied(JITTER_MAX + MS).is_err());
        assert!(Rate::bytes_per_second(RATE_MAX).is_ok());
        assert!(Rate::bytes_per_second(RATE_MAX + 1).is_err());
        assert!(Rate::bytes_per_second(RATE_MIN - 1).is_err());
    }

    #[test]
    fn correlation_and_distribution_need_jitter() {
        let zero = Duration::ZERO;
        let correlated = delay(5).varied(zero, percent(25.0), Distribution::Uniform, Order::Kept);
        assert_eq!(correlated, Err(BadEffect::NeedsJitter { what: "correlation" }));
        let normal = delay(5).varied(zero, Probability::NEVER, Distribution::Normal, Order::Kept);
        assert_eq!(normal, Err(BadEffect::NeedsJitter { what: "distribution" }));
    }

    #[test]
    fn jitter_above_the_delay_is_allowed() {
        assert!(delay(5).varied(MS * 50, Probability::NEVER, Distribution::Normal, Order::ByTime).is_ok());
    }

    #[test]
    fn a_ramp_grows_times_and_chances_and_lowers_the_rate() {
        let effect = Effect::new(Parts {
            delay: Some(delay(200)),
            loss: Some(Loss::ALL),
            rate: Some(Rate::bytes_per_second(1 << 20).unwrap()),
            ..Parts::default()
        })
        .unwrap();
        let ramp = Ramp::new(MS * 1_000).unwrap();
        let half = effect.at(ramp.at(MS * 500));
        assert_eq!(half.delay.unwrap().mean(), MS * 100);
        assert_eq!(half.loss, Some(Loss::Random(Chance::of(Probability::from_bits(u32::MAX / 2)))));
        assert_eq!(half.rate.unwrap().get(), 1 << 21);
        assert_eq!(effect.at(Share::NONE).rate, None);
        assert_eq!(&effect.at(Share::ALL), effect.parts());
    }
}
