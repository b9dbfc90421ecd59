//! Ranges of addresses and of ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Why a text or a pair of numbers is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    #[error("`{text}` is no address and no range of addresses")]
    NoCidr { text: String },
    #[error("a prefix of {prefix} bits is longer than the address `{address}`")]
    PrefixTooLong { address: IpAddr, prefix: u8 },
    #[error("`{address}/{prefix}` has bits set beyond its prefix")]
    HostBits { address: IpAddr, prefix: u8 },
    #[error("ports {first} to {last} are no range")]
    NoPorts { first: u16, last: u16 },
}

impl BadRange {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoCidr { .. } => "write an address such as 10.0.0.7 or fd00::7, or a range such as 10.0.0.0/24",
            Self::PrefixTooLong { .. } => "a prefix has at most 32 bits in IPv4, and 128 in IPv6",
            Self::HostBits { .. } => "write the range's first address, or leave the prefix out for one address",
            Self::NoPorts { .. } => "ports run from 1 to 65535, the smaller one first",
        }
    }
}

/// A range of addresses of one family. An IPv4 address written as IPv6 (`::ffff:10.0.0.7`) is the IPv4 address, since
/// that is what its packets carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// # Errors
    /// [`BadRange`] when the prefix is longer than the address, or the address is not the range's first.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, BadRange> {
        if prefix > bits(address) {
            return Err(BadRange::PrefixTooLong { address, prefix });
        }
        let (first, prefix) = match address.to_canonical() {
            v4 @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (v4, prefix - 96),
            IpAddr::V4(_) | IpAddr::V6(_) => (address, prefix),
        };
        if masked(first, prefix) != first {
            return Err(BadRange::HostBits { address, prefix });
        }
        Ok(Self { first, prefix })
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        let first = address.to_canonical();
        Self { first, prefix: bits(first) }
    }

    pub(super) const fn fixed(first: IpAddr, prefix: u8) -> Self {
        Self { first, prefix }
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.prefix) == self.first
    }

    /// Whether every address of `self` lies in `other`.
    pub fn within(&self, other: &Self) -> bool {
        self.prefix >= other.prefix && other.contains(self.first)
    }
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let zeros = u32::from(bits(address).saturating_sub(prefix));
    match address {
        // A shift by the whole width would overflow: then nothing is left.
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(zeros).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(zeros).unwrap_or(0)).into(),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange::NoCidr { text: text.to_owned() };
        match text.split_once('/') {
            None => text.parse().map(Self::host).map_err(|_| bad()),
            Some((address, prefix)) => {
                Self::new(address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?)
            }
        }
    }
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// # Errors
    /// [`BadRange::NoPorts`] when the first is 0 or after the last.
    pub fn new(first: u16, last: u16) -> Result<Self, BadRange> {
        if first == 0 || first > last { Err(BadRange::NoPorts { first, last }) } else { Ok(Self { first, last }) }
    }

    /// # Errors
    /// [`BadRange::NoPorts`] for port 0.
    pub fn one(port: u16) -> Result<Self, BadRange> {
        Self::new(port, port)
    }

    pub fn first(&self) -> u16 {
        self.first
    }

    pub fn last(&self) -> u16 {
        self.last
    }

    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub fn is_only(&self, port: u16) -> bool {
        self.first == port && self.last == port
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn holds_the_addresses_of_its_own_family_only() {
        let rows = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("::/0", "10.0.0.1", false),
            ("fd00::/64", "fd00::ffff", true),
            ("fd00::/64", "fd00:0:0:1::", false),
            ("10.0.0.7", "::ffff:10.0.0.7", true),
        ];
        for (range, address, holds) in rows {
            assert_eq!(cidr(range).contains(address.parse().unwrap()), holds, "{range} {address}");
        }
    }

    #[test]
    fn an_ipv4_range_written_as_ipv6_is_the_ipv4_range() {
        assert_eq!(cidr("::ffff:169.254.0.0/112"), cidr("169.254.0.0/16"));
        assert_eq!(cidr("::ffff:10.0.0.7"), cidr("10.0.0.7/32"));
    }

    #[test]
    fn knows_what_lies_within() {
        assert!(cidr("10.1.0.0/16").within(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.0.0.0/8").within(&cidr("10.1.0.0/16")));
        assert!(!cidr("::/0").within(&cidr("0.0.0.0/0")));
    }

    #[test]
    fn refuses_what_is_no_range() {
        for bad in ["", "10.0.0", "10.0.0.0/33", "10.0.0.1/24", "fd00::1/64", "::/129", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?} was taken");
        }
        assert!(PortRange::new(0, 5).is_err());
        assert!(PortRange::new(6, 5).is_err());
    }

    #[test]
    fn comes_back_as_it_was_written() {
        for text in ["10.0.0.0/8", "fd00::/64", "0.0.0.0/0"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(PortRange::new(8000, 8080).unwrap().to_string(), "8000-8080");
    }
}
