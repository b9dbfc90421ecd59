//! A fault's table in nftables: which packets it hands to the lanes, and for how long.
//!
//! ```text
//! table netdev troop-LEASE                     owned: it dies with this process
//!   set lease  { devices, timeout TTL }        a process that stands still lets them expire
//!   set peers4, peers6, local, remote          whom it concerns
//!   chain egress-DEVICE  { egress hook;  oif @lease jump egress }
//!   chain ingress-DEVICE { ingress hook; iif @lease jump ingress }
//!   chain egress, ingress { off limits return; selectors fwd to LANE }
//! ```
//!
//! Renewing takes the devices out of the set and puts them in again, in one batch: only Linux 6.12 and newer give an element
//! that is there a new timeout.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use troop_agent_core::fault::{Cidr, Fault, FlowShare, OffLimits, Protocol, SSH_PORT, protocol};

use crate::netlink::NetlinkError;
use crate::nft::{At, Base, Batch, Chain, Compare, Elements, Expressions, Hook, Meta, Nft, Ranges, Register, Set};
use crate::plane::{Device, Order};

/// Neighbours and routers are found by these ICMPv6 types (RFC 4861, section 4): router solicitation to redirect. A fault that
/// held them would hurt every peer on the link.
pub(super) const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Flows are picked by hashes below this.
const HASHES: u32 = 1 << 16;

/// The lanes of a fault's directions, by number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lanes {
    pub(super) egress: Option<u32>,
    pub(super) ingress: Option<u32>,
}

impl Lanes {
    fn directions(self) -> impl Iterator<Item = (Way, u32)> {
        let egress = self.egress.map(|lane| (Way::Egress, lane));
        egress.into_iter().chain(self.ingress.map(|lane| (Way::Ingress, lane)))
    }
}

/// A fault's table, as it stands.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    devices: Vec<u32>,
    has_peers: bool,
}

impl Table {
    /// Makes the table; from then on packets go to the lanes.
    ///
    /// # Errors
    /// [`NetlinkError`]; then nothing was made.
    pub(super) fn make(nft: &mut Nft, order: &Order, lanes: Lanes) -> Result<Self, NetlinkError> {
        let name = format!("troop-{}", order.lease);
        let selectors = order.fault.target.selectors();
        let table = Self {
            name,
            devices: order.devices.iter().map(|device| device.index).collect(),
            has_peers: !selectors.peers.is_empty(),
        };
        let name = &table.name;
        let mut batch = Batch::new();
        batch.new_table(name);
        batch.new_set(name, "lease", Set::DevicesForATime);
        batch.add_elements(name, "lease", &table.lease(order.ttl.get()));
        for (set, ports) in [("local", &selectors.local_ports), ("remote", &selectors.remote_ports)] {
            if !ports.is_empty() {
                batch.new_set(name, set, Set::PortRanges);
                batch.add_elements(name, set, &Elements::Ranges(Ranges::ports(ports)));
            }
        }
        if table.has_peers {
            batch.new_set(name, "peers4", Set::Ipv4Ranges);
            batch.new_set(name, "peers6", Set::Ipv6Ranges);
            table.add_peers(&mut batch, &selectors.peers);
        }
        for (way, lane) in lanes.directions() {
            batch.new_chain(name, Chain { name: way.name(), at: None });
            for rule in rules(&order.fault, way, lane, super::number_of(&order.lease)) {
                batch.new_rule(name, way.name(), rule);
            }
            for device in &order.devices {
                let chain = format!("{}-{}", way.name(), device.name);
                batch.new_chain(name, Chain { name: &chain, at: Some(At::new(way.hook(), &device.name)) });
                let leased = Expressions::default().meta(way.device()).lookup("lease").jump(way.name());
                batch.new_rule(name, &chain, leased);
            }
        }
        nft.commit(batch)?;
        Ok(table)
    }

    /// Lets the kernel keep it up for so long from now.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(super) fn renew(&self, nft: &mut Nft, ttl: Duration) -> Result<(), NetlinkError> {
        let lease = self.lease(ttl);
        let mut batch = Batch::new();
        batch.delete_elements(&self.name, "lease", &lease);
        batch.add_elements(&self.name, "lease", &lease);
        match nft.commit(batch) {
            // They have expired: there is nothing to take out.
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {
                let mut batch = Batch::new();
                batch.add_elements(&self.name, "lease", &lease);
                nft.commit(batch)
            }
            answer => answer,
        }
    }

    /// # Errors
    /// [`NetlinkError`]; then those from before are in force.
    pub(super) fn retarget(&self, nft: &mut Nft, peers: &[Cidr]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        batch.clear(&self.name, "peers4");
        batch.clear(&self.name, "peers6");
        self.add_peers(&mut batch, peers);
        nft.commit(batch)
    }

    /// Nothing goes to the lanes any more when this returns.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(super) fn delete(&self, nft: &mut Nft) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        batch.delete_table(&self.name);
        match nft.commit(batch) {
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(()),
            answer => answer,
        }
    }

    fn add_peers(&self, batch: &mut Batch, peers: &[Cidr]) {
        for (set, ranges) in [("peers4", Ranges::ipv4(peers)), ("peers6", Ranges::ipv6(peers))] {
            if !ranges.is_empty() {
                batch.add_elements(&self.name, set, &Elements::Ranges(ranges));
            }
        }
    }

    fn lease(&self, ttl: Duration) -> Elements {
        Elements::devices(&self.devices, ttl)
    }
}

/// Asks the kernel for a table with everything in it that a fault may need, on this device, and takes it away again.
pub(super) fn try_out(nft: &mut Nft, device: &Device, lane: u32, hashing: bool) -> Result<(), NetlinkError> {
    const NAME: &str = "troop-probe";
    let mut batch = Batch::new();
    batch.new_table(NAME);
    batch.new_set(NAME, "lease", Set::DevicesForATime);
    batch.new_set(NAME, "peers4", Set::Ipv4Ranges);
    batch.new_set(NAME, "peers6", Set::Ipv6Ranges);
    for way in [Way::Egress, Way::Ingress] {
        batch.new_chain(NAME, Chain { name: way.name(), at: Some(At::new(way.hook(), &device.name)) });
        let rule = Expressions::default().meta(way.device()).lookup("lease");
        let rule = if hashing { rule.hash(4, HASHES, 0) } else { rule };
        batch.new_rule(NAME, way.name(), rule.forward_to(lane));
    }
    nft.commit(batch)?;
    let mut batch = Batch::new();
    batch.delete_table(NAME);
    nft.commit(batch)
}

/// In which direction packets go, and thus which end of them is this host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Egress,
    Ingress,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    fn hook(self) -> Hook {
        match self {
            Self::Egress => Hook::Egress,
            Self::Ingress => Hook::Ingress,
        }
    }

    fn device(self) -> Meta {
        match self {
            Self::Egress => Meta::OutDevice,
            Self::Ingress => Meta::InDevice,
        }
    }

    /// Where in the transport header the local port is; the other two bytes of the first four are the remote one.
    fn local_port(self) -> u32 {
        match self {
            Self::Egress => 0,
            Self::Ingress => 2,
        }
    }

    fn remote_port(self) -> u32 {
        2 - self.local_port()
    }

    /// Where in the IP header the peer's address is, and how long it is.
    fn peer(self, family: Family) -> (u32, u32) {
        let (source, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        match self {
            Self::Egress => (source + length, length),
            Self::Ingress => (source, length),
        }
    }

    fn local(self, family: Family) -> (u32, u32) {
        match self {
            Self::Egress => Self::Ingress.peer(family),
            Self::Ingress => Self::Egress.peer(family),
        }
    }
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
            Self::V4 => "peers4",
            Self::V6 => "peers6",
        }
    }
}

/// What lies above IP, as far as the rules tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Is(u8),
    IsNot(u8),
    /// UDP and TCP excluded.
    WithoutPorts,
}

/// The rules of one direction: what is off limits leaves first.
fn rules(fault: &Fault, way: Way, lane: u32, seed: u32) -> Vec<Expressions> {
    let mut rules: Vec<_> = fault.target.off_limits().iter().flat_map(|what| spare(*what, way)).collect();
    let discovery = transport(family(Family::V6), Above::Is(protocol::ICMPV6));
    for kind in NEIGHBOUR_DISCOVERY {
        let rule = discovery.clone().payload(Register::FIRST, Base::Transport, 0, 1);
        rules.push(rule.compare(Compare::Equal, &[kind]).leave());
    }
    for version in [Family::V4, Family::V6] {
        for above in kinds(fault, version) {
            rules.push(concern(fault, way, version, above, seed).forward_to(lane));
        }
    }
    rules
}

/// Rules after which a packet is spared.
fn spare(what: OffLimits, way: Way) -> Vec<Expressions> {
    let tcp_port = |rule: Expressions, offset, port: u16| {
        let rule = transport(rule, Above::Is(protocol::TCP)).payload(Register::FIRST, Base::Transport, offset, 2);
        rule.compare(Compare::Equal, &port.to_be_bytes()).leave()
    };
    match what {
        OffLimits::Ssh => vec![tcp_port(Expressions::default(), way.local_port(), SSH_PORT)],
        OffLimits::LinkLocal => {
            troop_agent_core::fault::LINK_LOCAL.iter().map(|range| peer_within(range, way).leave()).collect()
        }
        OffLimits::Channel(end) => {
            vec![tcp_port(peer_within(&Cidr::host(end.ip()), way), way.remote_port(), end.port())]
        }
    }
}

/// Packets of whose protocol there must be a rule of its own. Rules that know TCP load its ports, so that a fragment without
/// any, which may be of something that is off limits, ends there.
fn kinds(fault: &Fault, version: Family) -> Vec<Above> {
    let selectors = fault.target.selectors();
    let has_ports = !selectors.local_ports.is_empty() || !selectors.remote_ports.is_empty();
    let picks = fault.flows != FlowShare::ALL;
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
fn concern(fault: &Fault, way: Way, version: Family, above: Above, seed: u32) -> Expressions {
    let selectors = fault.target.selectors();
    let with_ports = matches!(above, Above::Is(protocol::TCP | protocol::UDP));
    let mut rule = transport(family(version), above);
    if with_ports {
        let ports = [
            ("local", way.local_port(), &selectors.local_ports),
            ("remote", way.remote_port(), &selectors.remote_ports),
        ];
        for (set, offset, ranges) in ports {
            if !ranges.is_empty() {
                rule = rule.payload(Register::FIRST, Base::Transport, offset, 2).lookup(set);
            }
        }
        if above == Above::Is(protocol::TCP) {
            rule = rule.payload(Register::FIRST, Base::Transport, 0, 4);
        }
    }
    if !selectors.peers.is_empty() {
        let (offset, length) = way.peer(version);
        rule = rule.payload(Register::FIRST, Base::Network, offset, length).lookup(version.peers());
    }
    if fault.flows == FlowShare::ALL { rule } else { pick(rule, fault.flows, way, version, with_ports, seed) }
}

/// Picks flows by a hash of what tells them apart, in the same order in both directions. `seed`: so that two faults do not
/// concern the same flows.
fn pick(rule: Expressions, flows: FlowShare, way: Way, version: Family, with_ports: bool, seed: u32) -> Expressions {
    let mut length = 0;
    let mut rule = rule;
    for (offset, bytes) in [way.local(version), way.peer(version)] {
        rule = rule.payload(Register::FIRST.after(length / 4), Base::Network, offset, bytes);
        length += bytes;
    }
    if with_ports {
        // A register takes four bytes; the two that a port leaves are zero.
        for offset in [way.local_port(), way.remote_port()] {
            rule = rule.payload(Register::FIRST.after(length / 4), Base::Transport, offset, 2);
            length += 4;
        }
    }
    let share = u64::from(flows.probability().bits()) * u64::from(HASHES) / u64::from(u32::MAX);
    let share = u32::try_from(share).unwrap_or(HASHES).max(1);
    rule.hash(length, HASHES, seed).compare(Compare::Less, &share.to_be_bytes())
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

fn peer_within(range: &Cidr, way: Way) -> Expressions {
    let version = Family::of(range.first());
    let (offset, length) = way.peer(version);
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
    use super::*;

    #[test]
    fn a_mask_has_as_many_ones_as_the_prefix() {
        assert_eq!(mask(0, 4), [0; 4]);
        assert_eq!(mask(20, 4), [0xff, 0xff, 0xf0, 0]);
        assert_eq!(mask(128, 16), [0xff; 16]);
    }

    #[test]
    fn the_ends_of_a_packet_change_places_with_its_direction() {
        assert_eq!(Way::Egress.peer(Family::V4), (16, 4));
        assert_eq!(Way::Ingress.peer(Family::V4), (12, 4));
        assert_eq!(Way::Egress.local(Family::V6), Way::Ingress.peer(Family::V6));
        assert_eq!((Way::Ingress.local_port(), Way::Ingress.remote_port()), (2, 0));
    }
}
