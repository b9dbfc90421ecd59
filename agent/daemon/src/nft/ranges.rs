//! Ranges as a set of intervals wants them: in order, none overlapping or touching another.

use std::net::IpAddr;

use troop_agent_core::fault::{Cidr, PortRange};

/// Ranges of numbers of one width.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// First and last, both within.
    ranges: Vec<(u128, u128)>,
    bytes: usize,
}

impl Ranges {
    /// The addresses of IPv4.
    pub fn ipv4(cidrs: &[Cidr]) -> Self {
        Self::of(cidrs.iter().filter(|c| c.first().is_ipv4()).map(range), 4)
    }

    /// The addresses of IPv6.
    pub fn ipv6(cidrs: &[Cidr]) -> Self {
        Self::of(cidrs.iter().filter(|c| c.first().is_ipv6()).map(range), 16)
    }

    pub fn ports(ports: &[PortRange]) -> Self {
        Self::of(ports.iter().map(|range| (u128::from(range.first()), u128::from(range.last()))), 2)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    fn of(ranges: impl Iterator<Item = (u128, u128)>, bytes: usize) -> Self {
        let mut all: Vec<_> = ranges.collect();
        all.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                Some(_) | None => merged.push((first, last)),
            }
        }
        Self { ranges: merged, bytes }
    }

    /// The keys at which intervals begin (`false`) and behind which they have ended (`true`), in order. One that reaches the
    /// greatest number has no end.
    pub(super) fn ends(&self) -> Vec<(Vec<u8>, bool)> {
        let greatest = u128::MAX >> (128 - 8 * self.bytes);
        let key = |number: u128| number.to_be_bytes()[16 - self.bytes..].to_vec();
        let mut ends = Vec::with_capacity(self.ranges.len() * 2);
        for (first, last) in &self.ranges {
            ends.push((key(*first), false));
            if *last < greatest {
                ends.push((key(last + 1), true));
            }
        }
        ends
    }
}

fn range(cidr: &Cidr) -> (u128, u128) {
    let (first, width) = match cidr.first() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let free = u32::from(width - cidr.prefix());
    // A shift by the whole width would overflow: then every bit is free.
    let rest = 1_u128.checked_shl(free).map_or(u128::MAX, |beyond| beyond - 1);
    (first, first | rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        let all = cidrs(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.7", "10.0.3.0/24", "fd00::/64"]);
        let ends = Ranges::ipv4(&all).ends();
        let expected = [([10, 0, 0, 0], false), ([10, 0, 2, 0], true), ([10, 0, 3, 0], false), ([10, 0, 4, 0], true)];
        assert_eq!(ends, expected.map(|(key, end)| (key.to_vec(), end)));
    }

    #[test]
    fn what_reaches_the_greatest_number_has_no_end() {
        assert_eq!(Ranges::ipv4(&cidrs(&["0.0.0.0/0"])).ends(), [(vec![0; 4], false)]);
        assert_eq!(Ranges::ipv6(&cidrs(&["::/0"])).ends(), [(vec![0; 16], false)]);
        let ports = [PortRange::new(80, 81).unwrap(), PortRange::new(60_000, 65_535).unwrap()];
        let expected = [(vec![0, 80], false), (vec![0, 82], true), (vec![0xea, 0x60], false)];
        assert_eq!(Ranges::ports(&ports).ends(), expected);
    }

    #[test]
    fn ranges_that_touch_become_one_and_the_last_address_has_no_end() {
        let all = cidrs(&["10.0.0.128/25", "10.0.0.0/25", "10.0.0.7", "255.0.0.0/8", "::/0"]);
        let expected = [(vec![10, 0, 0, 0], false), (vec![10, 0, 1, 0], true), (vec![255, 0, 0, 0], false)];
        assert_eq!(Ranges::ipv4(&all).ends(), expected);
        assert_eq!(Ranges::ipv6(&all).ends(), [(vec![0; 16], false)]);
    }

    #[test]
    fn a_family_that_is_not_named_has_none() {
        assert!(Ranges::ipv6(&cidrs(&["10.0.0.0/8"])).is_empty());
    }
}
