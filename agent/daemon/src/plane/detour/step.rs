//! A rule of the filter as data, so that it can be looked at before it is sent.

use crate::nft::{Base, Compare, Expressions, Meta, Register};

/// One step of a rule. All work on one register; a rule goes on while its steps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::plane) enum Step {
    Load(Meta),
    Payload {
        base: Base,
        offset: u32,
        bytes: u32,
    },
    /// Keeps the bits of the mask.
    And(Vec<u8>),
    Is(Compare, Vec<u8>),
    In(&'static str),
    NotIn(&'static str),
    /// Loads whether the connection's addresses are translated: zero where they are not.
    Translation,
    SetMark(u32),
    Accept,
    /// Sends it out of the device with this index, and ends.
    Forward(u32),
}

/// The steps of a rule as nftables takes them.
pub(in crate::plane) fn expressions(steps: &[Step]) -> Expressions {
    steps.iter().fold(Expressions::default(), |rule, step| match step {
        Step::Load(what) => rule.meta(*what),
        Step::Payload { base, offset, bytes } => rule.payload(Register::FIRST, *base, *offset, *bytes),
        Step::And(mask) => rule.mask(mask),
        Step::Is(how, with) => rule.compare(*how, with),
        Step::In(set) => rule.lookup(set),
        Step::NotIn(set) => rule.lookup_not(set),
        Step::Translation => rule.translation(),
        Step::SetMark(mark) => rule.set_mark(*mark),
        Step::Accept => rule.accept(),
        Step::Forward(device) => rule.forward_to(*device),
    })
}
