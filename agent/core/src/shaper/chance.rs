//! The shaper's chances: one stream of correlated numbers for each kind of event, over one generator.

use rand::Rng;

use super::BitFlip;
use super::strength::Strength;
use crate::distribution::{Correlated, Events, GilbertElliottState, delay_ns};
use crate::fault::{Chance, Effect, Loss, Probability};

#[derive(Debug)]
pub(super) struct Chances<R> {
    rng: R,
    delays: Correlated,
    losses: Events,
    state: GilbertElliottState,
    duplicates: Events,
    overtakings: Events,
    corruptions: Events,
}

impl<R: Rng> Chances<R> {
    pub(super) fn new(effect: &Effect, mut rng: R) -> Self {
        let parts = effect.parts();
        let loss = match parts.loss {
            Some(Loss::Random(chance)) => chance,
            Some(Loss::GilbertElliott(_)) | None => Chance::default(),
        };
        let delay = parts.delay.as_ref().map_or(Probability::NEVER, |d| d.correlation());
        Self {
            delays: Correlated::new(delay, &mut rng),
            losses: Events::new(loss, &mut rng),
            state: GilbertElliottState::default(),
            duplicates: Events::new(parts.duplicate.unwrap_or_default(), &mut rng),
            overtakings: Events::new(parts.reorder.map_or(Chance::default(), |r| r.chance()), &mut rng),
            corruptions: Events::new(parts.corrupt.unwrap_or_default(), &mut rng),
            rng,
        }
    }

    pub(super) fn duplicates(&mut self, strength: &Strength) -> bool {
        self.duplicates.happens(strength.duplicate, &mut self.rng)
    }

    pub(super) fn loses(&mut self, strength: &Strength) -> bool {
        match strength.loss {
            None => false,
            Some(Loss::Random(chance)) => self.losses.happens(chance.probability, &mut self.rng),
            Some(Loss::GilbertElliott(model)) => self.state.loses(&model, &mut self.rng),
        }
    }

    pub(super) fn overtakes(&mut self, strength: &Strength) -> bool {
        self.overtakings.happens(strength.overtake, &mut self.rng)
    }

    /// Which of a packet's bits is turned over, if one is; each is as likely.
    pub(super) fn corrupts(&mut self, strength: &Strength, bytes: usize) -> Option<BitFlip> {
        let bits = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(8);
        if !self.corruptions.happens(strength.corrupt, &mut self.rng) {
            return None;
        }
        // The bias of a remainder is below one in 2^44 for packets of up to 64 KB.
        let bit = self.rng.next_u64().checked_rem(bits)?;
        Some(BitFlip { byte: usize::try_from(bit / 8).ok()?, mask: 1 << (bit % 8) })
    }

    /// A delay; what would be below zero is zero, as in netem.
    pub(super) fn delay_ns(&mut self, strength: &Strength) -> u64 {
        let table = strength.table.as_ref();
        let drawn = delay_ns(strength.mean_ns, strength.jitter_ns, table, &mut self.delays, &mut self.rng);
        u64::try_from(drawn).unwrap_or(0)
    }
}
