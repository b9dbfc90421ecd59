//! Which packets take the detour, as rules of nf_tables: exactly those that the fault concerns, so that no other ever leaves its way.
//!
//! Nothing of it outlives the agent: the table goes with its socket. Nothing of it outlives the lease: the first rule asks for an element with a
//! timeout, which only a renewal replaces.

use std::net::IpAddr;
use std::time::Duration;

use troop_agent_core::fault::{
    Cidr, LINK_LOCAL, OffLimits, PortRange, Protocol, SSH_PORT, Selectors, Target, protocol,
};

use super::nft::{Base, Batch, Compare, Elements, Hook, Key, Step, Verdict};
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
    let mut batch = Batch::default();
    batch.table(table);
    batch.set(table, ALIVE, 1, 2, &alive(ttl));
    batch
}

/// All the rest of the filter of a fault.
pub(super) fn put_up(table: &str, target: &Target, detours: &[Detour<'_>]) -> Batch {
    let mut batch = Batch::default();
    let selectors = target.selectors();
    let [peers_4, peers_6] = peers(&selectors.peers);
    batch.set(table, PEERS_4, 2, 4, &peers_4);
    batch.set(table, PEERS_6, 3, 16, &peers_6);
    batch.set(table, LOCAL_PORTS, 4, 2, &ports(&selectors.local_ports));
    batch.set(table, REMOTE_PORTS, 5, 2, &ports(&selectors.remote_ports));
    for (number, detour) in detours.iter().enumerate() {
        batch.chain(table, &format!("sink{number}"), (Hook::Ingress, DETOURS), detour.out_of, Verdict::Drop);
        let [chain, last] = ["detour", "last"].map(|name| format!("{name}{number}"));
        let hook = match detour.way {
            Way::Out => Hook::Egress,
            Way::In => Hook::Ingress,
        };
        batch.chain(table, &chain, (hook, DETOURS), detour.device, Verdict::Accept);
        for rule in rules(target, detour) {
            batch.rule(table, &chain, &rule);
        }
        batch.chain(table, &last, (hook, LAST), detour.device, Verdict::Accept);
        batch.rule(table, &last, &[is_marked(), vec![Step::SetMark(0)]].concat());
    }
    batch
}

pub(super) fn take_down(table: &str) -> Batch {
    let mut batch = Batch::default();
    batch.delete_table(table);
    batch
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, ttl: Duration) -> Batch {
    let mut batch = Batch::default();
    batch.replace(table, ALIVE, &alive(ttl));
    batch
}

pub(super) fn retargeted(table: &str, new: &[Cidr]) -> Batch {
    let mut batch = Batch::default();
    let [peers_4, peers_6] = peers(new);
    batch.replace(table, PEERS_4, &peers_4);
    batch.replace(table, PEERS_6, &peers_6);
    batch
}

fn alive(ttl: Duration) -> Elements {
    Elements::Leased {
        keys: vec![IPV4.to_vec(), IPV6.to_vec()],
        timeout_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
    }
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, detour: &Detour<'_>) -> Vec<Vec<Step>> {
    let accept = Step::Verdict(Verdict::Accept);
    let mut rules = vec![
        [is_marked(), vec![accept.clone()]].concat(),
        vec![Step::Load(Key::Protocol), Step::NotIn(ALIVE), accept.clone()],
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
    vec![Step::Load(Key::Mark), Step::Is(Compare::Equal, MARK.to_ne_bytes().to_vec())]
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
    vec![Step::Load(Key::Protocol), Step::Is(Compare::Equal, if is_4 { IPV4 } else { IPV6 }.to_vec())]
}

fn l4(number: u8) -> Vec<Step> {
    vec![Step::Load(Key::L4Protocol), Step::Is(Compare::Equal, vec![number])]
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

/// The peers of each family as ranges that do not touch.
fn peers(all: &[Cidr]) -> [Elements; 2] {
    let of = |is_4: bool, bytes: usize| {
        let ranges = all.iter().filter(|cidr| cidr.first().is_ipv4() == is_4).map(|cidr| {
            let first = match cidr.first() {
                IpAddr::V4(v4) => u128::from(v4.to_bits()),
                IpAddr::V6(v6) => v6.to_bits(),
            };
            let free = u32::try_from(bytes * 8).unwrap_or(0) - u32::from(cidr.prefix());
            (first, first | 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1))
        });
        elements(ranges.collect(), bytes)
    };
    [of(true, 4), of(false, 16)]
}

fn ports(ranges: &[PortRange]) -> Elements {
    elements(ranges.iter().map(|range| (u128::from(range.first()), u128::from(range.last()))).collect(), 2)
}

/// Ranges from the first to the last, both included, for keys of so many bytes.
fn elements(mut ranges: Vec<(u128, u128)>, bytes: usize) -> Elements {
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    let key = |number: u128| number.to_be_bytes()[16 - bytes..].to_vec();
    let greatest = u128::MAX >> (128 - 8 * bytes);
    Elements::Ranges(
        merged.into_iter().map(|(first, last)| (key(first), (last < greatest).then(|| key(last + 1)))).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_that_touch_become_one_and_the_last_address_has_no_end() {
        let [four, six] = peers(&cidrs(&["10.0.0.128/25", "10.0.0.0/25", "10.0.0.7", "255.0.0.0/8", "::/0"]));
        let expected = vec![(vec![10, 0, 0, 0], Some(vec![10, 0, 1, 0])), (vec![255, 0, 0, 0], None)];
        assert_eq!(four, Elements::Ranges(expected));
        assert_eq!(six, Elements::Ranges(vec![(vec![0; 16], None)]));
    }

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
