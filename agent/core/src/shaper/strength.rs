//! A fault's parts in the numbers that every packet needs, at one point of its ramp.

use crate::distribution::Table;
use crate::fault::{Effect, Loss, Order, Parts, Probability, Share};

/// What befalls a packet that comes now.
#[derive(Debug, Clone)]
pub(super) struct Strength {
    pub(super) share: Share,
    pub(super) mean_ns: i64,
    pub(super) jitter_ns: i32,
    pub(super) table: Option<Table>,
    pub(super) order: Order,
    pub(super) loss: Option<Loss>,
    pub(super) duplicate: Probability,
    /// 0: none overtakes.
    pub(super) gap: u32,
    pub(super) overtake: Probability,
    pub(super) corrupt: Probability,
    pub(super) bytes_per_second: Option<u64>,
}

impl Strength {
    pub(super) fn of(effect: &Effect, share: Share) -> Self {
        let Parts { delay, loss, duplicate, reorder, corrupt, rate } = effect.at(share);
        let delay = delay.unwrap_or_default();
        Self {
            share,
            // A minute and two seconds are the most of a checked delay and jitter.
            mean_ns: i64::try_from(delay.mean().as_nanos()).unwrap_or(i64::MAX),
            jitter_ns: i32::try_from(delay.jitter().as_nanos()).unwrap_or(i32::MAX),
            table: delay.distribution().table(),
            order: delay.order(),
            loss,
            duplicate: duplicate.unwrap_or_default().probability,
            gap: reorder.map_or(0, |r| r.gap()),
            overtake: reorder.map_or(Probability::NEVER, |r| r.chance().probability),
            corrupt: corrupt.unwrap_or_default().probability,
            bytes_per_second: rate.map(crate::fault::Rate::get),
        }
    }
}
