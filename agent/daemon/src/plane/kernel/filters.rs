//! The same as [`super::rules`] where nftables cannot be had: flower filters at clsact, which hand packets to the lanes.
//!
//! Nothing of this ends by itself: it is the guardian's to undo. Putting clsact on a device costs it the packets of a moment
//! (Linux 6.1 stops every queue of the device meanwhile), one more reason to prefer the table.
//!
//! Fragments, the first one too, have no ports to flower: a fault that names ports does not concern them.
//!
//! Wire format: linux/pkt_cls.h (`TCA_FLOWER_*`), linux/tc_act/tc_mirred.h and tc_gact.h.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use troop_agent_core::fault::{Cidr, Fault, LINK_LOCAL, OffLimits, PortRange, Protocol, SSH_PORT, protocol};

use super::lane::TCA_OPTIONS;
use super::rules::Lanes;
use crate::netlink::attributes::Attributes;
use crate::netlink::{Netlink, NetlinkError};
use crate::plane::concern::{NEIGHBOUR_DISCOVERY, mask};
use crate::plane::{Device, Order, PlaneError};
use crate::undo::{Change, Journal};

/// Most filters of one family and direction: packets pass them one after the other.
const FILTERS_MAX: usize = 512;
/// `TC_H_CLSACT`: where clsact sits, beside the root.
const PARENT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
/// Under clsact (`TC_H_MIN_EGRESS`, `TC_H_MIN_INGRESS`).
const EGRESS: u32 = 0xffff_fff3;
const INGRESS: u32 = 0xffff_fff2;

const ETHERNET_IPV4: u16 = 0x0800;
const ETHERNET_IPV6: u16 = 0x86dd;

/// Numbers of flower's attributes.
mod flower {
    pub(super) const ACTIONS: u16 = 3;
    pub(super) const ETHER_TYPE: u16 = 8;
    pub(super) const PROTOCOL: u16 = 9;
    /// The mask's number is one more, as with the type of ICMPv6.
    pub(super) const IPV4_SOURCE: u16 = 10;
    pub(super) const IPV4_DESTINATION: u16 = 12;
    pub(super) const IPV6_SOURCE: u16 = 14;
    pub(super) const IPV6_DESTINATION: u16 = 16;
    pub(super) const FLAGS: u16 = 47;
    pub(super) const FLAGS_MASK: u16 = 48;
    pub(super) const IS_FRAGMENT: u32 = 1;
    pub(super) const ICMPV6_TYPE: u16 = 55;
    /// The last one's number is one more.
    pub(super) const SOURCE_FIRST: u16 = 87;
    pub(super) const DESTINATION_FIRST: u16 = 89;

    /// `TCA_FLOWER_KEY_TCP_SRC` to `_UDP_DST`.
    pub(super) fn port(udp: bool, source: bool) -> u16 {
        18 + 2 * u16::from(udp) + u16::from(!source)
    }
}

/// The places of a fault's filters: four priorities for each number of a fault, of which those for what is spared come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u16);

impl Slot {
    fn priority(self, protocol: u16, spares: bool) -> u16 {
        let family = if protocol == ETHERNET_IPV4 { 0 } else { 2 };
        1 + self.0 * 4 + family + u16::from(!spares)
    }
}

/// Whether the fault can be said in filters.
///
/// # Errors
/// What cannot.
pub(super) fn can(fault: &Fault) -> Result<(), String> {
    let most =
        [ETHERNET_IPV4, ETHERNET_IPV6].map(|version| matches(fault, version, &fault.target.selectors().peers).len());
    if most.iter().any(|count| *count > FILTERS_MAX) {
        return Err(format!("more than {FILTERS_MAX} combinations of peers and ports without nftables"));
    }
    if fault.flows != troop_agent_core::fault::FlowShare::ALL {
        return Err("a percentage of flows without nftables".into());
    }
    if fault.target.selectors().cgroup.is_some() {
        return Err("a cgroup without nftables".into());
    }
    Ok(())
}

/// Puts the filters of a fault on its devices.
///
/// # Errors
/// [`PlaneError`]; what was done stands in the journal.
pub(super) fn apply(
    net: &mut Netlink,
    journal: &mut Journal,
    order: &Order,
    lanes: Lanes,
    slot: Slot,
) -> Result<(), PlaneError> {
    for device in &order.devices {
        let doing = |what: &str| format!("{what} on {}", device.name);
        let kernel = |what: &str| {
            let doing = doing(what);
            |source| PlaneError::Kernel { doing, source }
        };
        clsact(net, journal, order, device)?;
        for (parent, lane) in places(lanes) {
            for version in [ETHERNET_IPV4, ETHERNET_IPV6] {
                for spares in [true, false] {
                    let priority = slot.priority(version, spares);
                    let (device, index) = (device.name.clone(), device.index);
                    let change = Change::Filters { device, index, parent, priority, protocol: version };
                    journal.before(&order.lease, &change)?;
                }
                for spared in spared(order.fault.target.off_limits(), version) {
                    let message = spared.message(device, parent, slot.priority(version, true), version, None);
                    add(net, message).map_err(kernel("spare what is off limits"))?;
                }
                let peers = &order.fault.target.selectors().peers;
                concern(net, device, &order.fault, parent, lane, slot, version, peers).map_err(kernel("filter"))?;
            }
        }
    }
    Ok(())
}

/// Takes the filters that name peers away and puts others in their place. For a moment nobody is concerned.
///
/// # Errors
/// [`NetlinkError`].
pub(super) fn retarget(
    net: &mut Netlink,
    order: &Order,
    lanes: Lanes,
    slot: Slot,
    peers: &[Cidr],
) -> Result<(), NetlinkError> {
    for device in &order.devices {
        for (parent, lane) in places(lanes) {
            for protocol in [ETHERNET_IPV4, ETHERNET_IPV6] {
                let priority = slot.priority(protocol, false);
                let (name, index) = (device.name.clone(), device.index);
                Change::Filters { device: name, index, parent, priority, protocol }.undo(net)?;
                concern(net, device, &order.fault, parent, lane, slot, protocol, peers)?;
            }
        }
    }
    Ok(())
}

/// Takes all filters of a fault away: nothing goes to its lanes when this returns.
///
/// # Errors
/// [`NetlinkError`].
pub(super) fn stop(
    net: &mut Netlink,
    order: &Order,
    egress: bool,
    ingress: bool,
    slot: Slot,
) -> Result<(), NetlinkError> {
    for device in &order.devices {
        for (parent, _) in places(Lanes { egress: egress.then_some(0), ingress: ingress.then_some(0) }) {
            for protocol in [ETHERNET_IPV4, ETHERNET_IPV6] {
                // First those that lead to the lanes: what is spared must be so until the end.
                for spares in [false, true] {
                    let priority = slot.priority(protocol, spares);
                    let (device, index) = (device.name.clone(), device.index);
                    Change::Filters { device, index, parent, priority, protocol }.undo(net)?;
                }
            }
        }
    }
    Ok(())
}

/// Tries clsact with a filter to a lane on a device of nobody's, which is thrown away afterwards.
///
/// # Errors
/// [`NetlinkError`].
pub(super) fn try_out(net: &mut Netlink, device: &Device, lane: u32) -> Result<(), NetlinkError> {
    let mut qdisc = message(device, PARENT, "clsact");
    qdisc.header.handle = TcHandle::from(HANDLE);
    net.change(RouteNetlinkMessage::NewQueueDiscipline(qdisc), NLM_F_CREATE | NLM_F_EXCL)?;
    let ports = PortRange::new(1, 2).ok();
    let filter = Match { protocol: Some(protocol::TCP), local: ports, fragment: true, ..Match::default() };
    add(net, filter.message(device, EGRESS, 1, ETHERNET_IPV4, None))?;
    add(net, filter.message(device, INGRESS, 2, ETHERNET_IPV4, Some(lane)))
}

/// Puts clsact on the device unless another fault has. What else sits in its place is somebody's, with filters of theirs.
fn clsact(net: &mut Netlink, journal: &mut Journal, order: &Order, device: &Device) -> Result<(), PlaneError> {
    let kernel = |source| PlaneError::Kernel { doing: format!("put clsact on {}", device.name), source };
    let there = net.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())).map_err(kernel)?;
    let there = there.iter().find_map(|message| {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message else { return None };
        let here = i64::from(qdisc.header.index) == i64::from(device.index) && u32::from(qdisc.header.parent) == PARENT;
        here.then_some(qdisc)
    });
    let change = Change::Qdisc {
        device: device.name.clone(),
        index: device.index,
        parent: PARENT,
        handle: HANDLE,
        kind: "clsact".into(),
    };
    if let Some(there) = there {
        if journal.others_hold(&order.lease.to_string(), &change)? {
            // Another fault's. Whichever is healed last takes it away, so it stands with both.
            return Ok(journal.before(&order.lease, &change)?);
        }
        let kind = there.attributes.iter().find_map(|attribute| {
            let TcAttribute::Kind(kind) = attribute else { return None };
            Some(kind.clone())
        });
        return Err(PlaneError::Foreign { device: device.name.clone(), found: kind.unwrap_or_default() });
    }
    journal.before(&order.lease, &change)?;
    let mut message = message(device, PARENT, "clsact");
    message.header.handle = TcHandle::from(HANDLE);
    net.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL).map_err(kernel)
}

fn places(lanes: Lanes) -> impl Iterator<Item = (u32, u32)> {
    lanes.egress.map(|lane| (EGRESS, lane)).into_iter().chain(lanes.ingress.map(|lane| (INGRESS, lane)))
}

#[expect(clippy::too_many_arguments, reason = "a filter is said by where it is, what it matches and what it does")]
fn concern(
    net: &mut Netlink,
    device: &Device,
    fault: &Fault,
    parent: u32,
    lane: u32,
    slot: Slot,
    version: u16,
    peers: &[Cidr],
) -> Result<(), NetlinkError> {
    for concerned in matches(fault, version, peers) {
        add(net, concerned.message(device, parent, slot.priority(version, false), version, Some(lane)))?;
    }
    Ok(())
}

fn add(net: &mut Netlink, message: Option<TcMessage>) -> Result<(), NetlinkError> {
    let message = message.ok_or(NetlinkError::TooLong)?;
    net.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// What one filter matches, as seen from this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Match {
    peer: Option<Cidr>,
    protocol: Option<u8>,
    local: Option<PortRange>,
    remote: Option<PortRange>,
    fragment: bool,
    icmpv6_type: Option<u8>,
}

fn spared(off_limits: &[OffLimits], version: u16) -> Vec<Match> {
    let tcp = Match { protocol: Some(protocol::TCP), ..Match::default() };
    let mut spared = vec![Match { fragment: true, ..tcp }];
    for what in off_limits {
        match what {
            OffLimits::Ssh => spared.push(Match { local: PortRange::one(SSH_PORT).ok(), ..tcp }),
            OffLimits::LinkLocal => {
                spared.extend(LINK_LOCAL.map(|range| Match { peer: Some(range), ..Match::default() }));
            }
            OffLimits::Channel(end) => {
                spared.push(Match { peer: Some(Cidr::host(end.ip())), remote: PortRange::one(end.port()).ok(), ..tcp })
            }
        }
    }
    if version == ETHERNET_IPV6 {
        let discovery = Match { protocol: Some(protocol::ICMPV6), ..Match::default() };
        spared.extend(NEIGHBOUR_DISCOVERY.map(|kind| Match { icmpv6_type: Some(kind), ..discovery }));
    }
    spared.retain(|one| one.peer.is_none_or(|peer| of(peer) == version));
    spared
}

fn matches(fault: &Fault, version: u16, peers: &[Cidr]) -> Vec<Match> {
    let selectors = fault.target.selectors();
    let has_ports = !selectors.local_ports.is_empty() || !selectors.remote_ports.is_empty();
    let protocols: Vec<Option<u8>> = match selectors.protocol {
        Some(Protocol::Tcp) => vec![Some(protocol::TCP)],
        Some(Protocol::Udp) => vec![Some(protocol::UDP)],
        Some(Protocol::Icmp) if version == ETHERNET_IPV4 => vec![Some(protocol::ICMP)],
        Some(Protocol::Icmp) => vec![Some(protocol::ICMPV6)],
        None if has_ports => vec![Some(protocol::TCP), Some(protocol::UDP)],
        None => vec![None],
    };
    let all = selectors.peers.is_empty();
    let peers: Vec<Option<Cidr>> =
        if all { vec![None] } else { peers.iter().filter(|peer| of(**peer) == version).map(|p| Some(*p)).collect() };
    let ports = |ranges: &[PortRange]| -> Vec<Option<PortRange>> {
        if ranges.is_empty() { vec![None] } else { ranges.iter().copied().map(Some).collect() }
    };
    let mut found = Vec::new();
    for protocol in protocols {
        for peer in &peers {
            for local in ports(&selectors.local_ports) {
                for remote in ports(&selectors.remote_ports) {
                    found.push(Match { peer: *peer, protocol, local, remote, ..Match::default() });
                }
            }
        }
    }
    found
}

fn of(cidr: Cidr) -> u16 {
    if cidr.first().is_ipv4() { ETHERNET_IPV4 } else { ETHERNET_IPV6 }
}

impl Match {
    /// The filter that hands what matches to the lane, or lets it pass all others.
    fn message(
        &self,
        device: &Device,
        parent: u32,
        priority: u16,
        version: u16,
        lane: Option<u32>,
    ) -> Option<TcMessage> {
        let egress = parent == EGRESS;
        let mut a = Attributes::default();
        a.put(flower::ETHER_TYPE, &version.to_be_bytes());
        if let Some(number) = self.protocol {
            a.put(flower::PROTOCOL, &[number]);
        }
        if let Some(peer) = self.peer {
            let (source, destination, first) = match peer.first() {
                IpAddr::V4(v4) => (flower::IPV4_SOURCE, flower::IPV4_DESTINATION, v4.octets().to_vec()),
                IpAddr::V6(v6) => (flower::IPV6_SOURCE, flower::IPV6_DESTINATION, v6.octets().to_vec()),
            };
            let kind = if egress { destination } else { source };
            a.put(kind, &first);
            a.put(kind + 1, &mask(peer.prefix(), first.len()));
        }
        for (range, source) in [(self.local, egress), (self.remote, !egress)] {
            let Some(range) = range else { continue };
            // The kernel refuses a range whose last is not above its first.
            if range.is_only(range.first()) {
                let udp = self.protocol == Some(protocol::UDP);
                a.put(flower::port(udp, source), &range.first().to_be_bytes());
            } else {
                let kind = if source { flower::SOURCE_FIRST } else { flower::DESTINATION_FIRST };
                a.put(kind, &range.first().to_be_bytes());
                a.put(kind + 1, &range.last().to_be_bytes());
            }
        }
        if let Some(kind) = self.icmpv6_type {
            a.put(flower::ICMPV6_TYPE, &[kind]);
            a.put(flower::ICMPV6_TYPE + 1, &[u8::MAX]);
        }
        if self.fragment {
            a.put_be(flower::FLAGS, flower::IS_FRAGMENT);
            a.put_be(flower::FLAGS_MASK, flower::IS_FRAGMENT);
        }
        a.nest(flower::ACTIONS, |a| a.nest(1, |a| action(a, lane)));
        let mut message = message(device, parent, "flower");
        message.header.info = u32::from(priority) << 16 | u32::from(version.to_be());
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, a.finish()?)));
        Some(message)
    }
}

/// Hands the packet to a lane as if it were sent by it, or takes it past all filters.
fn action(a: &mut Attributes, lane: Option<u32>) {
    /// `TC_ACT_OK` and `TC_ACT_STOLEN`.
    const PASS: u32 = 0;
    const TAKEN: u32 = 4;
    /// `TCA_EGRESS_REDIR`.
    const REDIRECT: u32 = 1;
    // `tc_gen`: index, capabilities, action and two counts that are the kernel's.
    let general = |action: u32| [0, 0, action, 0, 0];
    let (kind, words) = match lane {
        Some(lane) => ("mirred", [&general(TAKEN)[..], &[REDIRECT, lane]].concat()),
        None => ("gact", general(PASS).to_vec()),
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    a.put_text(1, kind);
    a.nest(2, |a| a.put(2, &bytes));
}

fn message(device: &Device, parent: u32, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(i32::try_from(device.index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::from(parent);
    message.attributes.push(TcAttribute::Kind(kind.into()));
    message
}
