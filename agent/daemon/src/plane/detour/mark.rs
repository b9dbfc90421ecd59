//! The mark of packets that a line has let go.

use crate::nft::{Compare, Expressions, Meta};

/// What the packets carry that a line sends: they are not held again, by any fault. Taken off when they have passed all
/// filters; those that leave when the last fault has been taken down keep it, and nobody asks for it. Unlike the marks of Kubernetes (0x4000,
/// 0x8000) and of the usual VPNs.
pub(in crate::plane) const MARK: u32 = 0x7472_6f70;

pub(in crate::plane) fn is_marked() -> Expressions {
    Expressions::default().meta(Meta::Mark).compare(Compare::Equal, &MARK.to_ne_bytes())
}
