//! The heads of packets, as far as a fault has to know them: Ethernet, VLAN tags, IPv4 and IPv6 down to the ports.
//!
//! It reads what came over a wire and believes none of it: what is cut short or makes no sense has no flow, and then no fault concerns it.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use troop_agent_core::fault::{Flow, Ports, protocol};

/// What the first two bytes after the MAC addresses, or after a VLAN tag, say (IEEE 802.3, IANA).
mod ethertype {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q and 802.1ad.
    pub(super) const VLAN: [u16; 2] = [0x8100, 0x88a8];
}

/// The extension headers of IPv6 that may stand before the protocol (IANA, "IPv6 Extension Header Types").
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
}

/// Two tags are the most that 802.1ad stacks; a third is nothing we understand.
const TAGS_MAX: usize = 2;
/// RFC 8200 names seven, each at most once but one. More is an attack on parsers.
const EXTENSIONS_MAX: usize = 8;
const MACS_BYTES: usize = 12;

/// Which way a packet goes, seen from the host: then its own address is the source or the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Out,
    In,
}

/// The flow that an Ethernet frame belongs to. `None` when it holds no IP, or is cut short.
pub fn flow(frame: &[u8], way: Way) -> Option<Flow> {
    let mut rest = frame.get(MACS_BYTES..)?;
    for _ in 0..=TAGS_MAX {
        let kind = word(rest, 0)?;
        if !ethertype::VLAN.contains(&kind) {
            let packet = rest.get(2..)?;
            let head = match kind {
                ethertype::IPV4 => ipv4(packet),
                ethertype::IPV6 => ipv6(packet),
                _ => None,
            };
            return head.map(|head| head.seen(way));
        }
        rest = rest.get(4..)?;
    }
    None
}

/// The flow of a packet of IP without anything before it.
pub fn flow_of_ip(packet: &[u8], way: Way) -> Option<Flow> {
    let head = match packet.first()? >> 4 {
        4 => ipv4(packet),
        6 => ipv6(packet),
        _ => None,
    };
    head.map(|head| head.seen(way))
}

/// From where to where a packet of IP goes, whatever is in it, and how long its header is without IPv6's extensions.
pub fn ends_of_ip(packet: &[u8]) -> Option<(IpAddr, IpAddr, usize)> {
    let first = packet.first()?;
    match first >> 4 {
        4 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            Some((address(12)?, address(16)?, usize::from(first & 0x0f) * 4))
        }
        6 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            Some((address(8)?, address(24)?, 40))
        }
        _ => None,
    }
}

/// As the packet has it: from whom to whom.
struct Head {
    protocol: u8,
    from: IpAddr,
    to: IpAddr,
    ports: Option<(u16, u16)>,
}

impl Head {
    fn seen(self, way: Way) -> Flow {
        let (local, peer) = match way {
            Way::Out => (self.from, self.to),
            Way::In => (self.to, self.from),
        };
        let ports = self.ports.map(|(from, to)| match way {
            Way::Out => Ports { local: from, remote: to },
            Way::In => Ports { local: to, remote: from },
        });
        Flow { protocol: self.protocol, local, peer, ports }
    }
}

/// RFC 791.
fn ipv4(packet: &[u8]) -> Option<Head> {
    let first = *packet.first()?;
    let length = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || length < 20 {
        return None;
    }
    let protocol = *packet.get(9)?;
    // The lower 13 bits are the fragment's offset.
    let first_fragment = word(packet, 6)? & 0x1fff == 0;
    let (from, to, _) = ends_of_ip(packet)?;
    let body = packet.get(length..)?;
    Some(Head { protocol, from, to, ports: if first_fragment { ports(protocol, body)? } else { None } })
}

/// RFC 8200.
fn ipv6(packet: &[u8]) -> Option<Head> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let (from, to, _) = ends_of_ip(packet)?;
    let mut next = *packet.get(6)?;
    let mut rest = packet.get(40..)?;
    for _ in 0..EXTENSIONS_MAX {
        let length = match next {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::MOBILITY => {
                (usize::from(*rest.get(1)?) + 1) * 8
            }
            // RFC 4302 counts this one in words of 4 bytes, less two.
            extension::AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
            extension::FRAGMENT => {
                // The upper 13 bits are the fragment's offset; what follows in a later one is no header.
                if word(rest, 2)? & 0xfff8 != 0 {
                    return Some(Head { protocol: *rest.first()?, from, to, ports: None });
                }
                8
            }
            protocol => return Some(Head { protocol, from, to, ports: ports(protocol, rest)? }),
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
    None
}

/// The ports where the protocol has some. `None` when they are cut off.
#[expect(clippy::option_option, reason = "cut short is another thing than without ports")]
fn ports(protocol: u8, body: &[u8]) -> Option<Option<(u16, u16)>> {
    match protocol {
        protocol::TCP | protocol::UDP => Some(Some((word(body, 0)?, word(body, 2)?))),
        _ => Some(None),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
