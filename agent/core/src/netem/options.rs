//! What a netem qdisc can be told, as values; [`super::wire`] makes bytes of them.

use std::fmt;

use super::limit::{Line, limit_packets};
use crate::distribution::Table;
use crate::fault::{Chance, GilbertElliott, Loss, Order, Parts, Probability, RATE_MAX};

/// Why netem's options cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    #[error("netem's options of {bytes} bytes do not fit an attribute")]
    TooLarge { bytes: usize },
    #[error("netem's options of {bytes} bytes are cut short")]
    Short { bytes: usize },
    #[error("netem's attribute {kind} does not have the form the kernel gives it")]
    Attribute { kind: u16 },
}

impl BadOptions {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "use smaller tables",
            Self::Short { .. } | Self::Attribute { .. } => "this kernel speaks another netem than Linux 5.10 to 6.18",
        }
    }
}

/// Everything netem knows. The default does nothing, and holds no packet: its limit is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    pub latency_ns: u64,
    pub jitter_ns: u64,
    pub delay_correlation: Probability,
    pub table: Option<Table>,
    /// Packets held at most; those beyond are dropped.
    pub limit: u32,
    pub loss: Chance,
    /// Instead of `loss`.
    pub loss_model: Option<LossModel>,
    pub duplicate: Chance,
    /// 0: packets are not reordered on purpose.
    pub gap: u32,
    pub reorder: Chance,
    pub corrupt: Chance,
    pub rate: Option<RateOptions>,
    /// Marks instead of dropping, where the packet can be marked.
    pub ecn: bool,
    pub slot: Option<Slot>,
    pub slot_table: Option<Table>,
    /// Of the kernel's generator; Linux 6.6 or newer, ignored before.
    pub seed: Option<u64>,
}

/// Losses that depend on what went before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossModel {
    /// Salsano, Ludovici and Ordine's four states: 1 received in a gap, 2 received in a burst, 3 lost in a burst, 4 lost in
    /// a gap.
    FourStates {
        p13: Probability,
        p31: Probability,
        p32: Probability,
        p14: Probability,
        p23: Probability,
    },
    GilbertElliott(GilbertElliott),
}

/// A rate with the overheads of a link layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    pub bytes_per_second: u64,
    pub packet_overhead: i32,
    pub cell_size: u32,
    pub cell_overhead: i32,
}

impl RateOptions {
    pub fn plain(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, packet_overhead: 0, cell_size: 0, cell_overhead: 0 }
    }
}

/// Packets gather and leave together. 0 packets or bytes: without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slot {
    pub min_delay_ns: u64,
    pub max_delay_ns: u64,
    pub max_packets: u32,
    pub max_bytes: u32,
    pub delay_ns: u64,
    pub jitter_ns: u64,
}

impl Options {
    /// What netem must be told to have this effect on a device of this line.
    ///
    /// netem lets jitter reorder unless it limits the rate: then each packet leaves after the one before. So where the order
    /// is to be kept and no rate was asked for, it gets the fastest one, [`RATE_MAX`]: 64 KB take 60 ns.
    pub fn of(parts: &Parts, line: Line) -> Self {
        let Parts { delay, loss, duplicate, reorder, corrupt, rate } = parts;
        let mut options = Self {
            limit: limit_packets(parts, line),
            duplicate: duplicate.unwrap_or_default(),
            gap: reorder.map_or(0, |r| r.gap()),
            reorder: reorder.map_or(Chance::default(), |r| r.chance()),
            corrupt: corrupt.unwrap_or_default(),
            rate: rate.map(|r| RateOptions::plain(r.get())),
            ..Self::default()
        };
        if let Some(delay) = delay {
            // Checked delays are far below the 584 years of 64 bits.
            options.latency_ns = u64::try_from(delay.mean().as_nanos()).unwrap_or(u64::MAX);
            options.jitter_ns = u64::try_from(delay.jitter().as_nanos()).unwrap_or(u64::MAX);
            options.delay_correlation = delay.correlation();
            options.table = delay.distribution().table();
            if options.jitter_ns > 0 && delay.order() == Order::Kept {
                options.rate.get_or_insert(RateOptions::plain(RATE_MAX));
            }
        }
        match loss {
            None => {}
            Some(Loss::Random(chance)) => options.loss = *chance,
            Some(Loss::GilbertElliott(model)) => options.loss_model = Some(LossModel::GilbertElliott(*model)),
        }
        options
    }

    /// What of `self`, as asked for, is not so in `found`, as the kernel dumped it. Tables are never dumped, and a seed only
    /// counts where one was asked for.
    pub fn differences(&self, found: &Self) -> Vec<Difference> {
        let reorder = |o: &Self| (o.gap, if o.gap == 0 { Chance::default() } else { o.reorder });
        let loss = |o: &Self| (o.loss, o.loss_model);
        let seed = if self.seed.is_some() { found.seed } else { None };
        let mut list = Vec::new();
        differ(&mut list, "delay in ns", &self.latency_ns, &found.latency_ns);
        differ(&mut list, "jitter in ns", &self.jitter_ns, &found.jitter_ns);
        differ(&mut list, "delay correlation", &self.delay_correlation, &found.delay_correlation);
        differ(&mut list, "limit", &self.limit, &found.limit);
        differ(&mut list, "loss", &loss(self), &loss(found));
        differ(&mut list, "duplication", &self.duplicate, &found.duplicate);
        differ(&mut list, "reordering", &reorder(self), &reorder(found));
        differ(&mut list, "corruption", &self.corrupt, &found.corrupt);
        differ(&mut list, "rate", &self.rate, &found.rate);
        differ(&mut list, "ecn", &self.ecn, &found.ecn);
        differ(&mut list, "slot", &self.slot, &found.slot);
        differ(&mut list, "seed", &self.seed, &seed);
        list
    }
}

/// Something that the kernel has otherwise than it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: &'static str,
    pub asked: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: asked for {}, found {}", self.what, self.asked, self.found)
    }
}

fn differ<T: PartialEq + fmt::Debug>(list: &mut Vec<Difference>, what: &'static str, asked: &T, found: &T) {
    if asked != found {
        list.push(Difference { what, asked: format!("{asked:?}"), found: format!("{found:?}") });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::distribution::Distribution;
    use crate::fault::{Delay, Effect, Rate};

    const LINE: Line = Line { bytes_per_second: 125_000_000 };

    fn jittered(order: Order) -> Parts {
        let delay = Delay::fixed(Duration::from_millis(100)).unwrap();
        let delay = delay.varied(Duration::from_millis(10), Probability::NEVER, Distribution::Normal, order);
        Parts { delay: Some(delay.unwrap()), ..Parts::default() }
    }

    #[test]
    fn order_under_jitter_is_kept_by_a_rate_that_limits_nothing() {
        assert_eq!(Options::of(&jittered(Order::ByTime), LINE).rate, None);
        assert_eq!(Options::of(&jittered(Order::Kept), LINE).rate, Some(RateOptions::plain(RATE_MAX)));
        let rate = Some(Rate::bytes_per_second(5_000).unwrap());
        let limited = Options::of(&Parts { rate, ..jittered(Order::Kept) }, LINE);
        assert_eq!(limited.rate, Some(RateOptions::plain(5_000)));
    }

    #[test]
    fn a_black_hole_is_loss_of_everything() {
        let effect = Effect::new(Parts { loss: Some(Loss::ALL), ..Parts::default() }).unwrap();
        assert_eq!(Options::of(effect.parts(), LINE).loss.probability, Probability::ALWAYS);
    }

    #[test]
    fn says_what_differs_and_nothing_else() {
        let asked = Options::of(&jittered(Order::ByTime), LINE);
        let dumped = Options { table: None, seed: Some(99), ..asked.clone() };
        assert_eq!(asked.differences(&dumped), []);
        let other = Options { latency_ns: 5, ..dumped };
        let texts: Vec<_> = asked.differences(&other).iter().map(Difference::to_string).collect();
        assert_eq!(texts, ["delay in ns: asked for 100000000, found 5"]);
    }
}
