//! The pair of devices of a detour: what goes into one end comes to the forwarder at the other.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::attributes::Attributes;
use crate::netlink::{Netlink, NetlinkError};

/// The most that a veth takes; offloaded frames may be longer anyway.
const MTU_MAX: u32 = 65_535;

/// What has to be known of a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::plane) struct Known {
    pub index: u32,
    pub mtu: u32,
    pub address: Vec<u8>,
    pub is_loopback: bool,
    pub sent_packets: u64,
    /// On their way out of it.
    pub dropped_packets: u64,
}

impl Known {
    /// Whether it has a hardware address of Ethernet's; that of `lo` is all zero, which no other device may have.
    pub(in crate::plane) fn has_address(&self) -> bool {
        self.address.len() == 6 && self.address.iter().any(|byte| *byte != 0)
    }
}

/// Reads a device.
///
/// # Errors
/// [`NetlinkError`]: ENODEV when there is none of this name.
pub(in crate::plane) fn find(net: &mut Netlink, name: &str) -> Result<Known, NetlinkError> {
    let link = read(net, name)?;
    let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
    let mut known = Known { index: link.header.index, mtu: 1_500, is_loopback, ..Known::default() };
    for attribute in link.attributes {
        if let LinkAttribute::Mtu(mtu) = attribute {
            known.mtu = mtu;
        } else if let LinkAttribute::Address(address) = attribute {
            known.address = address;
        } else if let LinkAttribute::Stats64(stats) = attribute {
            (known.sent_packets, known.dropped_packets) = (stats.tx_packets, stats.tx_dropped);
        }
    }
    Ok(known)
}

/// All that the kernel says of a device.
///
/// # Errors
/// As [`find`].
pub(in crate::plane) fn read(net: &mut Netlink, name: &str) -> Result<LinkMessage, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let answers = net.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
    let found = answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewLink(link) = answer else { return None };
        Some(link)
    });
    found.ok_or_else(|| NetlinkError::Answer(format!("nothing about device {name}")))
}

/// Makes a pair and sets both ends up, without addresses of any kind. The first end has the hardware address of `like`: packets that
/// come back by it are then for this host, as they were when they came.
///
/// # Errors
/// [`NetlinkError`]: EEXIST when a name is taken.
pub(in crate::plane) fn pair(
    net: &mut Netlink,
    [first, second]: [&str; 2],
    like: &Known,
) -> Result<[u32; 2], NetlinkError> {
    make_pair(net, [first, second], like, None)?;
    let indexes = [find(net, first)?.index, find(net, second)?.index];
    // The first sends at once because its other end was up before it; else it would drop all until the kernel has heard of its carrier.
    for index in indexes.into_iter().rev() {
        set_up(net, index)?;
    }
    Ok(indexes)
}

/// Makes a pair whose second end is in the network namespace `elsewhere`. Both are down. Returns the number of the first.
///
/// # Errors
/// [`NetlinkError`]: EEXIST when a name is taken.
pub(in crate::plane) fn pair_apart(
    net: &mut Netlink,
    ends: [&str; 2],
    like: &Known,
    elsewhere: BorrowedFd<'_>,
) -> Result<u32, NetlinkError> {
    make_pair(net, ends, like, Some(elsewhere))?;
    Ok(find(net, ends[0])?.index)
}

fn make_pair(
    net: &mut Netlink,
    [first, second]: [&str; 2],
    like: &Known,
    elsewhere: Option<BorrowedFd<'_>>,
) -> Result<(), NetlinkError> {
    let mtu = LinkAttribute::Mtu(like.mtu.min(MTU_MAX));
    let mut peer = LinkMessage::default();
    peer.attributes = vec![LinkAttribute::IfName(second.to_owned()), mtu.clone()];
    peer.attributes.extend(elsewhere.map(|space| LinkAttribute::NetNsFd(space.as_raw_fd())));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(first.to_owned()),
        mtu,
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    if like.has_address() {
        message.attributes.push(LinkAttribute::Address(like.address.clone()));
    }
    net.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Sets a device up that gets no address by itself and sends nothing by itself.
///
/// # Errors
/// [`NetlinkError`].
pub(in crate::plane) fn set_up(net: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let quiet = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
    // Where it is refused there is no IPv6, and nothing to keep quiet.
    drop(net.change(set(index, Some(quiet), false), 0));
    net.change(set(index, None, true), 0)
}

/// Makes room for so many packets that wait for a device.
///
/// # Errors
/// [`NetlinkError`].
pub(in crate::plane) fn set_queue(net: &mut Netlink, index: u32, packets: u32) -> Result<(), NetlinkError> {
    net.change(set(index, Some(LinkAttribute::TxQueueLen(packets)), false), 0)
}

fn set(index: u32, attribute: Option<LinkAttribute>, up: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message.attributes.extend(attribute);
    RouteNetlinkMessage::SetLink(message)
}

/// Lets all that comes in at `from` come in at `to` instead: clsact, and a u32 filter without a condition (linux/pkt_cls.h,
/// linux/tc_act/tc_mirred.h). Both are gone with the device `from`.
///
/// # Errors
/// [`NetlinkError`]: ENOENT where the kernel has no clsact, no u32 or no mirred.
pub(in crate::plane) fn lead_in(net: &mut Netlink, from: u32, to: u32) -> Result<(), NetlinkError> {
    const TCA_OPTIONS: u16 = 2;
    const ETH_P_ALL: u16 = 3;
    let new = NLM_F_CREATE | NLM_F_EXCL;
    let mut qdisc = at(from, TcHandle::CLSACT);
    qdisc.header.handle = TcHandle { major: 0xffff, minor: 0 };
    qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    net.change(RouteNetlinkMessage::NewQueueDiscipline(qdisc), new)?;

    let mut filter = at(from, TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS });
    filter.header.info = 1 << 16 | u32::from(ETH_P_ALL.to_be());
    filter.attributes.push(TcAttribute::Kind("u32".to_owned()));
    let options = netlink_packet_core::DefaultNla::new(TCA_OPTIONS, redirect(to));
    filter.attributes.push(TcAttribute::Other(options));
    net.change(RouteNetlinkMessage::NewTrafficFilter(filter), new)
}

/// The options of a u32 filter with one key that everything matches and one action.
fn redirect(to: u32) -> Vec<u8> {
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TC_U32_TERMINAL: u8 = 1;
    const TCA_MIRRED_PARMS: u16 = 2;
    const TC_ACT_STOLEN: u32 = 4;
    const TCA_INGRESS_REDIR: u32 = 3;
    // tc_u32_sel: u8 flags, offshift, nkeys; be16 offmask; u16 off; s16 offoff, hoff; be32 hmask; then tc_u32_key: be32 mask, val; s32 off,
    // offmask. All zero but the flags and the number of keys.
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    // tc_mirred: u32 index, capab; s32 action, refcnt, bindcnt, eaction; u32 ifindex.
    let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_INGRESS_REDIR, to].map(u32::to_ne_bytes).concat();
    let mut options = Attributes::default();
    options.put(TCA_U32_SEL, &selector);
    options.nest(TCA_U32_ACT, |a| {
        a.nest(1, |a| {
            a.put_text(1, "mirred");
            a.nest(2, |a| a.put(TCA_MIRRED_PARMS, &parameters));
        });
    });
    // A hundred bytes: they fit.
    options.finish().unwrap_or_default()
}

fn at(index: u32, parent: TcHandle) -> TcMessage {
    // The kernel's own numbers of devices are positive.
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.family = AddressFamily::Unspec;
    message.header.parent = parent;
    message
}
