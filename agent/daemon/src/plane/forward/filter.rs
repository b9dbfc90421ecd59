//! Which packets take the detour, as rules of nf_tables: exactly those that the fault concerns, so that no other ever leaves its way.
//!
//! Nothing of it outlives the agent: the table goes with its socket. Nothing of it outlives the lease: the first rule asks for an element with a
//! timeout, which only a renewal replaces.

use std::net::IpAddr;
use std::time::Duration;

use troop_agent_core::fault::{Cidr, LINK_LOCAL, OffLimits, Protocol, SSH_PORT, Selectors, Target, protocol};

use super::step::{Step, expressions};
use crate::nft::{At, Base, Batch, Chain, Compare, Elements, Hook, Meta, Ranges, Set};
use crate::packet::Way;

/// What the packets carry that the forwarder sends: they are not held again, by any fault. Taken off when they have passed all
/// filters; those that leave when the last fault has been taken down keep it, and nobody asks for it. Unlike the marks of Kubernetes (0x4000,
/// 0x8000) and of the usual VPNs.
pub(super) const MARK: u32 = 0x7472_6f70;

/// Priorities of chains: the mark must be there until the filters of all faults have looked at it, or two of them would send a packet
/// to each other for ever.
const DETOURS: u32 = 0;
const LAST: u32 = 1;

const ALIVE: &str = "alive";
const PEERS_4: &str = "peers4";
const PEERS_6: &str = "peers6";
const LOCAL_PORTS: &str = "local";
const REMOTE_PORTS: &str = "remote";

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Router solicitation to redirect (RFC 4861): without them there is no neighbour to send to.
const NEIGHBOUR_DISCOVERY: [u8; 2] = [133, 137];

/// Where packets that a fault concerns leave their way, and by which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detour<'a> {
    pub way: Way,
    pub device: &'a str,
    /// The end of the pair into which they go.
    pub into: u32,
    /// The other end, where nothing may come out but into the forwarder.
    pub out_of: &'a str,
}

/// The table of a fault, with its lease and no rule yet.
pub(super) fn leased(table: &str, ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    batch.new_table(table);
    batch.new_set(table, ALIVE, Set::EtherTypesForATime);
    batch.add_elements(table, ALIVE, &alive(ttl));
    batch
}

/// All the rest of the filter of a fault.
pub(super) fn put_up(table: &str, target: &Target, detours: &[Detour<'_>]) -> Batch {
    let mut batch = Batch::new();
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
    for (number, detour) in detours.iter().enumerate() {
        let sink = format!("sink{number}");
        let at = At { drops: true, ..At::new(Hook::Ingress, detour.out_of) };
        batch.new_chain(table, Chain { name: &sink, at: Some(at) });
        let [chain, last] = ["detour", "last"].map(|name| format!("{name}{number}"));
        let hook = match detour.way {
            Way::Out => Hook::Egress,
            Way::In => Hook::Ingress,
        };
        let at = At { priority: DETOURS, ..At::new(hook, detour.device) };
        batch.new_chain(table, Chain { name: &chain, at: Some(at) });
        for rule in rules(target, detour) {
            batch.new_rule(table, &chain, expressions(&rule));
        }
        batch.new_chain(table, Chain { name: &last, at: Some(At { priority: LAST, ..at }) });
        batch.new_rule(table, &last, expressions(&[is_marked(), vec![Step::SetMark(0)]].concat()));
    }
    batch
}

pub(super) fn take_down(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.delete_table(table);
    batch
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, ttl: Duration) -> Batch {
    replaced(table, [(ALIVE, alive(ttl))])
}

pub(super) fn retargeted(table: &str, new: &[Cidr]) -> Batch {
    let peers = [(PEERS_4, Ranges::ipv4(new)), (PEERS_6, Ranges::ipv6(new))];
    replaced(table, peers.map(|(set, ranges)| (set, Elements::Ranges(ranges))))
}

/// Puts these in the place of all that are in the sets.
fn replaced<const N: usize>(table: &str, sets: [(&str, Elements); N]) -> Batch {
    let mut batch = Batch::new();
    for (set, elements) in sets {
        batch.clear(table, set);
        batch.add_elements(table, set, &elements);
    }
    batch
}

fn alive(ttl: Duration) -> Elements {
    Elements::ForATime(vec![IPV4.to_vec(), IPV6.to_vec()], ttl)
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, detour: &Detour<'_>) -> Vec<Vec<Step>> {
    let accept = Step::Accept;
    let mut rules = vec![
        [is_marked(), vec![accept.clone()]].concat(),
        vec![Step::Load(Meta::Protocol), Step::NotIn(ALIVE), accept.clone()],
    ];
    let neighbours = [
        l4(protocol::ICMPV6),
        vec![
            Step::Payload { base: Base::Transport, offset: 0, bytes: 1 },
            Step::Is(Compare::AtLeast, vec![NEIGHBOUR_DISCOVERY[0]]),
            Step::Is(Compare::AtMost, vec![NEIGHBOUR_DISCOVERY[1]]),
        ],
    ];
    rules.push([&family(false)[..], &neighbours.concat(), std::slice::from_ref(&accept)].concat());
    for spared in target.off_limits().iter().flat_map(|what| off_limits(what, detour.way)) {
        rules.push([spared, vec![accept.clone()]].concat());
    }
    for concerned in concerned(target.selectors(), detour.way) {
        rules.push([concerned, vec![Step::Forward(detour.into)]].concat());
    }
    rules
}

fn is_marked() -> Vec<Step> {
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
fn concerned(selectors: &Selectors, way: Way) -> Vec<Vec<Step>> {
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

fn within(range: &Cidr, way: Way) -> Vec<Step> {
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
