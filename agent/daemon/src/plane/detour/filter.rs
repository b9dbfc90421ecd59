//! Which packets take the detour, as rules of nf_tables: exactly those that the fault concerns, so that no other ever leaves its way.

use std::net::IpAddr;

use troop_agent_core::fault::{Cidr, LINK_LOCAL, OffLimits, Protocol, SSH_PORT, Selectors, Target, protocol};

use super::step::Step;
use crate::nft::{Base, Batch, Compare, Elements, Meta, Ranges, Set};
use crate::packet::Way;

/// What the packets carry that the forwarder sends: they are not held again, by any fault. Taken off when they have passed all
/// filters; those that leave when the last fault has been taken down keep it, and nobody asks for it. Unlike the marks of Kubernetes (0x4000,
/// 0x8000) and of the usual VPNs.
pub(in crate::plane) const MARK: u32 = 0x7472_6f70;

const PEERS_4: &str = "peers4";
const PEERS_6: &str = "peers6";
const LOCAL_PORTS: &str = "local";
const REMOTE_PORTS: &str = "remote";

pub(in crate::plane) const IPV4: [u8; 2] = [0x08, 0x00];
pub(in crate::plane) const IPV6: [u8; 2] = [0x86, 0xdd];
/// Router solicitation to redirect (RFC 4861): without them there is no neighbour to send to.
const NEIGHBOUR_DISCOVERY: [u8; 2] = [133, 137];

/// The sets of a fault's target, for its [`concerned`] rules.
pub(in crate::plane) fn define(batch: &mut Batch, table: &str, target: &Target) {
    let Selectors { peers, local_ports, remote_ports, .. } = target.selectors();
    let sets = [
        (PEERS_4, Set::Ipv4Ranges, Ranges::ipv4(peers)),
        (PEERS_6, Set::Ipv6Ranges, Ranges::ipv6(peers)),
        (LOCAL_PORTS, Set::PortRanges, Ranges::ports(local_ports)),
        (REMOTE_PORTS, Set::PortRanges, Ranges::ports(remote_ports)),
    ];
    for (name, set, ranges) in sets {
        batch.new_set(table, name, set);
        batch.add_elements(table, name, &Elements::Ranges(ranges));
    }
}

pub(in crate::plane) fn retarget(batch: &mut Batch, table: &str, new: &[Cidr]) {
    for (set, ranges) in [(PEERS_4, Ranges::ipv4(new)), (PEERS_6, Ranges::ipv6(new))] {
        replace(batch, table, set, &Elements::Ranges(ranges));
    }
}

/// Puts these in the place of all that are in the set.
pub(in crate::plane) fn replace(batch: &mut Batch, table: &str, set: &str, elements: &Elements) {
    batch.clear(table, set);
    batch.add_elements(table, set, elements);
}

/// What the fault spares whatever it selects, in rules that let it pass.
pub(in crate::plane) fn spared(target: &Target, way: Way) -> Vec<Vec<Step>> {
    let neighbours = [
        l4(protocol::ICMPV6),
        vec![
            Step::Payload { base: Base::Transport, offset: 0, bytes: 1 },
            Step::Is(Compare::AtLeast, vec![NEIGHBOUR_DISCOVERY[0]]),
            Step::Is(Compare::AtMost, vec![NEIGHBOUR_DISCOVERY[1]]),
        ],
    ];
    let mut rules = vec![[&family(false)[..], &neighbours.concat()].concat()];
    rules.extend(target.off_limits().iter().flat_map(|what| off_limits(what, way)));
    rules.iter_mut().for_each(|rule| rule.push(Step::Accept));
    rules
}

pub(in crate::plane) fn is_marked() -> Vec<Step> {
    vec![Step::Load(Meta::Mark), Step::Is(Compare::Equal, MARK.to_ne_bytes().to_vec())]
}

/// What is spared, in as many rules as there are families.
fn off_limits(what: &OffLimits, way: Way) -> Vec<Vec<Step>> {
    match what {
        OffLimits::Ssh => vec![[l4(protocol::TCP), port(way, true, SSH_PORT)].concat()],
        OffLimits::LinkLocal => LINK_LOCAL.iter().map(|range| within(range, way)).collect(),
        OffLimits::Channel(end) => {
            vec![[within(&Cidr::host(end.ip()), way), l4(protocol::TCP), port(way, false, end.port())].concat()]
        }
    }
}

/// What the selectors name, in as many rules as there are families and protocols.
pub(in crate::plane) fn concerned(selectors: &Selectors, way: Way) -> Vec<Vec<Step>> {
    let Selectors { everything: _, peers, protocol: named, local_ports, remote_ports } = selectors;
    let ported = !local_ports.is_empty() || !remote_ports.is_empty();
    let mut rules = Vec::new();
    for is_4 in [true, false] {
        let numbers: &[Option<u8>] = match named {
            Some(Protocol::Tcp) => &[Some(protocol::TCP)],
            Some(Protocol::Udp) => &[Some(protocol::UDP)],
            Some(Protocol::Icmp) => &[Some(if is_4 { protocol::ICMP } else { protocol::ICMPV6 })],
            None if ported => &[Some(protocol::TCP), Some(protocol::UDP)],
            None => &[None],
        };
        for number in numbers {
            let mut rule = family(is_4);
            if !peers.is_empty() {
                rule.extend([peer(is_4, way), Step::In(if is_4 { PEERS_4 } else { PEERS_6 })]);
            }
            rule.extend(number.map(l4).unwrap_or_default());
            for (is_local, ranges, set) in [(true, local_ports, LOCAL_PORTS), (false, remote_ports, REMOTE_PORTS)] {
                if !ranges.is_empty() {
                    rule.extend([port_at(way, is_local), Step::In(set)]);
                }
            }
            rules.push(rule);
        }
    }
    rules
}

fn family(is_4: bool) -> Vec<Step> {
    vec![Step::Load(Meta::Protocol), Step::Is(Compare::Equal, if is_4 { IPV4 } else { IPV6 }.to_vec())]
}

fn l4(number: u8) -> Vec<Step> {
    vec![Step::Load(Meta::Transport), Step::Is(Compare::Equal, vec![number])]
}

/// The peer's address: the destination of what goes out. RFC 791 and RFC 8200.
fn peer(is_4: bool, way: Way) -> Step {
    let offset = match (is_4, way) {
        (true, Way::Out) => 16,
        (true, Way::In) => 12,
        (false, Way::Out) => 24,
        (false, Way::In) => 8,
    };
    Step::Payload { base: Base::Network, offset, bytes: if is_4 { 4 } else { 16 } }
}

pub(in crate::plane) fn within(range: &Cidr, way: Way) -> Vec<Step> {
    let (first, is_4) = match range.first() {
        IpAddr::V4(v4) => (v4.octets().to_vec(), true),
        IpAddr::V6(v6) => (v6.octets().to_vec(), false),
    };
    let ones = |byte: usize| {
        let left = usize::from(range.prefix()).saturating_sub(byte * 8).min(8);
        // Of 16 bits, those from the left of the lower byte.
        0xff_u8.checked_shl(u32::try_from(8 - left).unwrap_or(8)).unwrap_or(0)
    };
    let mask: Vec<u8> = (0..first.len()).map(ones).collect();
    [family(is_4), vec![peer(is_4, way), Step::And(mask), Step::Is(Compare::Equal, first)]].concat()
}

/// The source port is the host's own in what goes out. It fails in later fragments, and the rule with it.
fn port_at(way: Way, is_local: bool) -> Step {
    let is_source = (way == Way::Out) == is_local;
    Step::Payload { base: Base::Transport, offset: if is_source { 0 } else { 2 }, bytes: 2 }
}

fn port(way: Way, is_local: bool, number: u16) -> Vec<Step> {
    vec![port_at(way, is_local), Step::Is(Compare::Equal, number.to_be_bytes().to_vec())]
}

#[cfg(test)]
mod tests {
    use troop_agent_core::fault::PortRange;

    use super::*;

    #[test]
    fn a_range_is_compared_under_its_mask() {
        let steps = within(&"fe80::/10".parse().unwrap(), Way::In);
        let mut mask = vec![0xff, 0xc0];
        mask.resize(16, 0);
        assert!(steps.contains(&Step::And(mask)));
        assert!(steps.contains(&Step::Payload { base: Base::Network, offset: 8, bytes: 16 }));
    }

    #[test]
    fn ports_without_a_protocol_are_asked_of_those_that_have_some() {
        let selectors = Selectors { remote_ports: vec![PortRange::one(80).unwrap()], ..Selectors::default() };
        let rules = concerned(&selectors, Way::Out);
        assert_eq!(rules.len(), 4);
        assert!(
            rules.iter().all(|rule| rule.contains(&port_at(Way::Out, false)) && !rule.contains(&peer(true, Way::Out)))
        );
    }
}
