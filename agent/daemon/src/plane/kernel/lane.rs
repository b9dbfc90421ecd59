//! A lane: an IFB device of our own with netem at its root, through which the packets of one fault go in one direction.
//!
//! An IFB sends what it is handed on to where it came from: out by the device that would have sent it, or up from the device
//! that had received it. So the device under the fault keeps its qdiscs, queues and order, whatever they are; a lane that
//! nothing leads to any more gives its packets back, each when its delay is over, and then does nothing.

use std::time::Duration;

use netlink_packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2};
use troop_agent_core::netem::{Options, Write};

use crate::netlink::{Netlink, NetlinkError};

/// `TCA_OPTIONS`, which the crate has no name for outside.
pub(super) const TCA_OPTIONS: u16 = 2;
/// The handle of a lane's netem: any will do, since it is the only one there.
const HANDLE: TcHandle = TcHandle { major: 1, minor: 0 };
/// How often a lane is looked at while it empties.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A lane that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    name: String,
    index: u32,
}

/// What a lane has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) sent: u64,
    pub(crate) dropped: u64,
    pub(crate) held_packets: u64,
    pub(crate) held_bytes: u64,
    /// What its netem says it was told.
    pub(crate) options: Option<Options>,
}

impl Lane {
    /// Makes the device with its netem. What exists under this name already is somebody's, and an error.
    ///
    /// # Errors
    /// [`NetlinkError`]; then something of it may be there, to be undone by name.
    pub(crate) fn make(net: &mut Netlink, name: &str, options: &Options) -> Result<Self, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
        net.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        let index =
            find(net, name)?.ok_or_else(|| NetlinkError::Answer(format!("{name} was made and is not there")))?;
        let lane = Self { name: name.to_owned(), index };
        lane.write(net, options, Write::New)?;
        // Without an address of its own it sends nothing of its own, which would be counted as the fault's. Where there is no
        // IPv6 it has none anyway.
        let mut quiet = lane.message();
        let addresses = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        quiet.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![addresses])]));
        net.change(RouteNetlinkMessage::SetLink(quiet), 0).ok();
        let mut up = lane.message();
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        net.change(RouteNetlinkMessage::SetLink(up), 0)?;
        Ok(lane)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// Tells netem something else. Packets that it holds leave when they were to.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(crate) fn write(&self, net: &mut Netlink, options: &Options, write: Write) -> Result<(), NetlinkError> {
        let flags = match write {
            Write::New => NLM_F_CREATE | NLM_F_EXCL,
            Write::Change => 0,
        };
        let bytes = options.to_bytes(write).map_err(|_| NetlinkError::TooLong)?;
        let mut message = TcMessage::with_index(i32::try_from(self.index).unwrap_or(i32::MAX));
        message.header.parent = TcHandle::ROOT;
        message.header.handle = HANDLE;
        message.attributes.push(TcAttribute::Kind("netem".into()));
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, bytes)));
        net.change(RouteNetlinkMessage::NewQueueDiscipline(message), flags)
    }

    /// What it has done and holds. Empty when it is gone.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(crate) fn look(&self, net: &mut Netlink) -> Result<Look, NetlinkError> {
        look(net, self.index)
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message
    }
}

/// The number of the device of this name, if it is an IFB.
pub(crate) fn find(net: &mut Netlink, name: &str) -> Result<Option<u32>, NetlinkError> {
    Ok(kind_of(net, name)?.filter(|(_, ifb)| *ifb).map(|(index, _)| index))
}

/// The number of the device of this name, and whether it is an IFB.
pub(crate) fn kind_of(net: &mut Netlink, name: &str) -> Result<Option<(u32, bool)>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let found = match net.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
        Ok(found) => found,
        Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV as i32) => return Ok(None),
        Err(error) => return Err(error),
    };
    let ifb = |link: &LinkMessage| {
        link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Ifb)))
        })
    };
    Ok(found.iter().find_map(|message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return None };
        Some((link.header.index, ifb(link)))
    }))
}

/// Waits until the lane holds nothing, at most so long; says whether it came to that.
///
/// # Errors
/// [`NetlinkError`].
pub(crate) fn wait_until_empty(net: &mut Netlink, index: u32, at_most: Duration) -> Result<bool, NetlinkError> {
    let mut waited = Duration::ZERO;
    while look(net, index)?.held_packets > 0 {
        if waited >= at_most {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
        waited += LOOK_EVERY;
    }
    Ok(true)
}

fn look(net: &mut Netlink, index: u32) -> Result<Look, NetlinkError> {
    let mut look = Look::default();
    for message in net.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))? {
        let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message else { continue };
        let here = i64::from(qdisc.header.index) == i64::from(index) && qdisc.header.handle == HANDLE;
        if !here {
            continue;
        }
        for attribute in &qdisc.attributes {
            if let TcAttribute::Stats2(stats) = attribute {
                stats.iter().for_each(|stat| count(&mut look, stat));
            }
            // Options of a kind that the crate does not know come as one attribute in another.
            if let TcAttribute::Options(options) = attribute
                && let [TcOption::Other(payload)] = &options[..]
            {
                look.options = Options::from_bytes(&bytes_of(payload)).ok();
            }
        }
    }
    Ok(look)
}

fn bytes_of(attribute: &DefaultNla) -> Vec<u8> {
    use netlink_packet_core::Nla as _;
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

fn count(look: &mut Look, stat: &TcStats2) {
    if let TcStats2::Basic(basic) = stat {
        look.sent = u64::from(basic.packets);
    }
    if let TcStats2::Queue(queue) = stat {
        look.dropped = u64::from(queue.drops);
        look.held_packets = u64::from(queue.qlen);
        look.held_bytes = u64::from(queue.backlog);
    }
}
