//! Which packets a fault concerns, as rules of nf_tables: the same for every plane that leads packets away at a device.
//!
//! A rule made here says only what a packet must be; what becomes of it is added by the plane. What is off limits comes before what is
//! asked for, and rules that know TCP load its ports, so that a fragment without any, which may be of something off limits, ends there.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use troop_agent_core::fault::{
    Cidr, FlowShare, LINK_LOCAL, OffLimits, Protocol, SSH_PORT, Selectors, Target, protocol,
};

use crate::nft::{Base, Batch, Compare, Elements, Expressions, Hook, Meta, Ranges, Register, Set};
use crate::packet::Way;

/// Neighbours and routers are found by these ICMPv6 types (RFC 4861, section 4): router solicitation to redirect. A fault that
/// held them would hurt every peer on the link.
pub(super) const NEIGHBOUR_DISCOVERY: RangeInclusive<u8> = 133..=137;
/// Flows are picked by hashes below this.
pub(super) const HASHES: u32 = 1 << 16;

pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];

const PEERS_4: &str = "peers4";
const PEERS_6: &str = "peers6";
const LOCAL_PORTS: &str = "local";
const REMOTE_PORTS: &str = "remote";

/// Where packets of this direction are met at a device.
pub(super) fn hook(way: Way) -> Hook {
    match way {
        Way::Out => Hook::Egress,
        Way::In => Hook::Ingress,
    }
}

/// The sets that the rules ask, with what is in them at first.
pub(super) fn new_sets(batch: &mut Batch, table: &str, selectors: &Selectors) {
    let Selectors { peers, local_ports, remote_ports, .. } = selectors;
    for (name, ports) in [(LOCAL_PORTS, local_ports), (REMOTE_PORTS, remote_ports)] {
        if !ports.is_empty() {
            batch.new_set(table, name, Set::PortRanges);
            batch.add_elements(table, name, &Elements::Ranges(Ranges::ports(ports)));
        }
    }
    if !peers.is_empty() {
        batch.new_set(table, PEERS_4, Set::Ipv4Ranges);
        batch.new_set(table, PEERS_6, Set::Ipv6Ranges);
        add_peers(batch, table, peers);
    }
}

/// Puts these peers in the place of those from before, in a batch of the table's family.
pub(super) fn retargeted(mut batch: Batch, table: &str, peers: &[Cidr]) -> Batch {
    batch.clear(table, PEERS_4);
    batch.clear(table, PEERS_6);
    add_peers(&mut batch, table, peers);
    batch
}

fn add_peers(batch: &mut Batch, table: &str, peers: &[Cidr]) {
    for (set, ranges) in [(PEERS_4, Ranges::ipv4(peers)), (PEERS_6, Ranges::ipv6(peers))] {
        if !ranges.is_empty() {
            batch.add_elements(table, set, &Elements::Ranges(ranges));
        }
    }
}

/// What no fault holds, a rule each.
pub(super) fn spared(target: &Target, way: Way) -> Vec<Expressions> {
    let discovery = transport(family(Family::V6), Above::Is(protocol::ICMPV6))
        .payload(Register::FIRST, Base::Transport, 0, 1)
        .compare(Compare::AtLeast, &[*NEIGHBOUR_DISCOVERY.start()])
        .compare(Compare::AtMost, &[*NEIGHBOUR_DISCOVERY.end()]);
    let off_limits = target.off_limits().iter().flat_map(|what| spare(*what, way));
    std::iter::once(discovery).chain(off_limits).collect()
}

fn spare(what: OffLimits, way: Way) -> Vec<Expressions> {
    let tcp_port = |rule: Expressions, is_local, port: u16| {
        let rule = port_at(transport(rule, Above::Is(protocol::TCP)), way, is_local);
        rule.compare(Compare::Equal, &port.to_be_bytes())
    };
    match what {
        OffLimits::Ssh => vec![tcp_port(Expressions::default(), true, SSH_PORT)],
        OffLimits::LinkLocal => LINK_LOCAL.iter().map(|range| peer_within(range, way)).collect(),
        OffLimits::Channel(end) => vec![tcp_port(peer_within(&Cidr::host(end.ip()), way), false, end.port())],
    }
}

/// A share of the flows, picked by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub share: FlowShare,
    /// So that two faults do not concern the same flows.
    pub seed: u32,
}

/// What the selectors name, in as many rules as there are families and protocols. `pick`: only some of the flows.
pub(super) fn concerned(selectors: &Selectors, way: Way, pick: Option<Pick>) -> Vec<Expressions> {
    let pick = pick.filter(|pick| pick.share != FlowShare::ALL);
    let mut rules = Vec::new();
    for version in [Family::V4, Family::V6] {
        for above in kinds(selectors, version, pick.is_some()) {
            rules.push(concern(selectors, way, version, above, pick));
        }
    }
    rules
}

/// What lies above IP, as far as the rules tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Is(u8),
    IsNot(u8),
    /// UDP and TCP excluded.
    WithoutPorts,
}

/// Packets of whose protocol there must be a rule of its own.
fn kinds(selectors: &Selectors, version: Family, picks: bool) -> Vec<Above> {
    let has_ports = !selectors.local_ports.is_empty() || !selectors.remote_ports.is_empty();
    match selectors.protocol {
        Some(Protocol::Tcp) => vec![Above::Is(protocol::TCP)],
        Some(Protocol::Udp) => vec![Above::Is(protocol::UDP)],
        Some(Protocol::Icmp) => match version {
            Family::V4 => vec![Above::Is(protocol::ICMP)],
            Family::V6 => vec![Above::Is(protocol::ICMPV6)],
        },
        None if has_ports => vec![Above::Is(protocol::TCP), Above::Is(protocol::UDP)],
        None if picks => vec![Above::Is(protocol::TCP), Above::Is(protocol::UDP), Above::WithoutPorts],
        None => vec![Above::Is(protocol::TCP), Above::IsNot(protocol::TCP)],
    }
}

/// The packets of this family and protocol that the fault concerns.
fn concern(selectors: &Selectors, way: Way, version: Family, above: Above, pick: Option<Pick>) -> Expressions {
    let with_ports = matches!(above, Above::Is(protocol::TCP | protocol::UDP));
    let mut rule = transport(family(version), above);
    if with_ports {
        let ports = [(true, LOCAL_PORTS, &selectors.local_ports), (false, REMOTE_PORTS, &selectors.remote_ports)];
        for (is_local, set, ranges) in ports {
            if !ranges.is_empty() {
                rule = port_at(rule, way, is_local).lookup(set);
            }
        }
        if above == Above::Is(protocol::TCP) {
            rule = rule.payload(Register::FIRST, Base::Transport, 0, 4);
        }
    }
    if !selectors.peers.is_empty() {
        let (offset, length) = peer(way, version);
        rule = rule.payload(Register::FIRST, Base::Network, offset, length).lookup(version.peers());
    }
    match pick {
        None => rule,
        Some(pick) => picked(rule, pick, way, version, with_ports),
    }
}

/// Picks flows by a hash of what tells them apart, in the same order in both directions.
fn picked(rule: Expressions, pick: Pick, way: Way, version: Family, with_ports: bool) -> Expressions {
    let mut length = 0;
    let mut rule = rule;
    for (offset, bytes) in [local(way, version), peer(way, version)] {
        rule = rule.payload(Register::FIRST.after(length / 4), Base::Network, offset, bytes);
        length += bytes;
    }
    if with_ports {
        // A register takes four bytes; the two that a port leaves are zero.
        for is_local in [true, false] {
            let offset = port_offset(way, is_local);
            rule = rule.payload(Register::FIRST.after(length / 4), Base::Transport, offset, 2);
            length += 4;
        }
    }
    let share = u64::from(pick.share.probability().bits()) * u64::from(HASHES) / u64::from(u32::MAX);
    let share = u32::try_from(share).unwrap_or(HASHES).max(1);
    rule.hash(length, HASHES, pick.seed).compare(Compare::Less, &share.to_be_bytes())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn ether_type(self) -> [u8; 2] {
        match self {
            Self::V4 => IPV4,
            Self::V6 => IPV6,
        }
    }

    fn peers(self) -> &'static str {
        match self {
            Self::V4 => PEERS_4,
            Self::V6 => PEERS_6,
        }
    }
}

fn family(version: Family) -> Expressions {
    Expressions::default().meta(Meta::Protocol).compare(Compare::Equal, &version.ether_type())
}

fn transport(rule: Expressions, above: Above) -> Expressions {
    let rule = rule.meta(Meta::Transport);
    match above {
        Above::Is(number) => rule.compare(Compare::Equal, &[number]),
        Above::IsNot(number) => rule.compare(Compare::Unequal, &[number]),
        Above::WithoutPorts => {
            rule.compare(Compare::Unequal, &[protocol::TCP]).compare(Compare::Unequal, &[protocol::UDP])
        }
    }
}

/// Where in the IP header the peer's address is, and how long it is: the destination of what goes out (RFC 791 and RFC 8200).
fn peer(way: Way, version: Family) -> (u32, u32) {
    let (source, length) = match version {
        Family::V4 => (12, 4),
        Family::V6 => (8, 16),
    };
    match way {
        Way::Out => (source + length, length),
        Way::In => (source, length),
    }
}

fn local(way: Way, version: Family) -> (u32, u32) {
    match way {
        Way::Out => peer(Way::In, version),
        Way::In => peer(Way::Out, version),
    }
}

/// The source port is the host's own in what goes out.
fn port_offset(way: Way, is_local: bool) -> u32 {
    if (way == Way::Out) == is_local { 0 } else { 2 }
}

fn port_at(rule: Expressions, way: Way, is_local: bool) -> Expressions {
    rule.payload(Register::FIRST, Base::Transport, port_offset(way, is_local), 2)
}

/// Packets whose peer is within the range.
pub(super) fn peer_within(range: &Cidr, way: Way) -> Expressions {
    let version = Family::of(range.first());
    let (offset, length) = peer(way, version);
    let rule = family(version).payload(Register::FIRST, Base::Network, offset, length);
    let first = match range.first() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mask = mask(range.prefix(), first.len());
    rule.mask(&mask).compare(Compare::Equal, &first)
}

/// So many ones, then zeros.
pub(super) fn mask(prefix: u8, bytes: usize) -> Vec<u8> {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    mask.to_be_bytes()[..bytes].to_vec()
}

#[cfg(test)]
mod tests {
    use troop_agent_core::fault::PortRange;

    use super::*;

    #[test]
    fn a_mask_has_as_many_ones_as_the_prefix() {
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(20, 4), [0xff, 0xff, 0xf0, 0]);
        assert_eq!(mask(10, 16)[..3], [0xff, 0xc0, 0]);
        assert_eq!(mask(128, 16), [0xff; 16]);
    }

    #[test]
    fn the_ends_of_a_packet_change_places_with_its_direction() {
        assert_eq!(peer(Way::Out, Family::V4), (16, 4));
        assert_eq!(peer(Way::In, Family::V4), (12, 4));
        assert_eq!(local(Way::Out, Family::V6), peer(Way::In, Family::V6));
        assert_eq!([true, false].map(|is_local| port_offset(Way::In, is_local)), [2, 0]);
    }

    #[test]
    fn ports_without_a_protocol_are_asked_of_those_that_have_some() {
        let selectors = Selectors { remote_ports: vec![PortRange::one(80).unwrap()], ..Selectors::default() };
        let udp = port_at(transport(family(Family::V4), Above::Is(protocol::UDP)), Way::Out, false).lookup("remote");
        let rules = concerned(&selectors, Way::Out, None);
        assert_eq!(rules.len(), 4);
        assert!(rules.contains(&udp));
    }

    #[test]
    fn a_share_of_all_the_flows_needs_no_hash() {
        let everything = Selectors { everything: true, ..Selectors::default() };
        let all = Pick { share: FlowShare::ALL, seed: 7 };
        assert_eq!(concerned(&everything, Way::Out, Some(all)), concerned(&everything, Way::Out, None));
        let half = Pick { share: FlowShare::from_percent(50.0).unwrap(), ..all };
        assert_eq!(concerned(&everything, Way::Out, Some(half)).len(), 6);
    }
}
