//! One change of the host, as a line of the journal, and its undoing.

use std::fmt;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use serde::{Deserialize, Serialize};

use crate::netlink::{Netlink, NetlinkError};
use crate::nft::{Batch, Nft};
use crate::plane::kernel::lane;
use crate::plane::tun::Rule;

/// Something that exists on the host only because a fault needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// A device that was made.
    Link { name: String },
    /// An IFB with a netem that packets were led through. It is given `drain_ms` to send on what it holds.
    Lane { name: String, drain_ms: u64 },
    /// A qdisc that was put on a device: its root, or clsact. Without it the kernel's default is there again.
    Qdisc { device: String, index: u32, parent: u32, handle: u32, kind: String },
    /// A rule of routing.
    Rule(Rule),
    /// A table of nf_tables, of family inet, that nobody owns.
    Table { name: String },
    /// The filters of one priority under a qdisc.
    Filters { device: String, index: u32, parent: u32, priority: u16, protocol: u16 },
}

/// What undoing found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undone {
    Removed,
    /// It was gone already, or had never been made.
    Absent,
    /// Something else is there in its place, and was left alone.
    NotOurs,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { name } => write!(f, "device {name}"),
            Self::Lane { name, .. } => write!(f, "lane {name}"),
            Self::Qdisc { device, kind, .. } => write!(f, "qdisc {kind} on {device}"),
            Self::Rule(Rule { is_ipv6, mark, .. }) => {
                write!(f, "rule of IPv{} for mark {mark:#x}", if *is_ipv6 { 6 } else { 4 })
            }
            Self::Table { name } => write!(f, "table {name}"),
            Self::Filters { device, priority, .. } => write!(f, "filters of priority {priority} on {device}"),
        }
    }
}

impl Change {
    /// Takes the change back.
    ///
    /// # Errors
    /// [`NetlinkError`] when the kernel refuses for another reason than that there is nothing.
    pub fn undo(&self, net: &mut Netlink) -> Result<Undone, NetlinkError> {
        match self {
            Self::Link { name } => {
                let mut message = LinkMessage::default();
                message.attributes.push(LinkAttribute::IfName(name.clone()));
                removed(net.change(RouteNetlinkMessage::DelLink(message), 0))
            }
            Self::Lane { name, drain_ms } => {
                let Some((index, ours)) = lane::kind_of(net, name)? else { return Ok(Undone::Absent) };
                if !ours {
                    return Ok(Undone::NotOurs);
                }
                lane::wait_until_empty(net, index, Duration::from_millis(*drain_ms))?;
                let mut message = LinkMessage::default();
                message.header.index = index;
                removed(net.change(RouteNetlinkMessage::DelLink(message), 0))
            }
            Self::Qdisc { index, parent, handle, kind, .. } => {
                let found = net.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
                let there = found.iter().find_map(|message| {
                    let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message else { return None };
                    let header = &qdisc.header;
                    let here = i64::from(header.index) == i64::from(*index) && u32::from(header.parent) == *parent;
                    here.then_some(qdisc)
                });
                let Some(there) = there else { return Ok(Undone::Absent) };
                let ours = u32::from(there.header.handle) == *handle
                    && there.attributes.contains(&TcAttribute::Kind(kind.clone()));
                if !ours {
                    // The kernel's default has no handle: then ours is gone. Anything else is somebody's.
                    let default = there.header.handle.major == 0;
                    return Ok(if default { Undone::Absent } else { Undone::NotOurs });
                }
                let mut message = at(*index, *parent);
                message.header.handle = TcHandle::from(*handle);
                removed(net.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0))
            }
            Self::Rule(rule) => removed(rule.delete(net)),
            Self::Table { name } => {
                let mut batch = Batch::inet();
                batch.delete_table(name);
                removed(Nft::open()?.commit(batch))
            }
            Self::Filters { index, parent, priority, protocol, .. } => {
                let mut message = at(*index, *parent);
                message.header.info = u32::from(*priority) << 16 | u32::from(protocol.to_be());
                removed(net.change(RouteNetlinkMessage::DelTrafficFilter(message), 0))
            }
        }
    }
}

fn at(index: u32, parent: u32) -> TcMessage {
    // The kernel's own numbers of devices are positive.
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::from(parent);
    message
}

fn removed(answer: Result<(), NetlinkError>) -> Result<Undone, NetlinkError> {
    let absent = [nix::errno::Errno::ENOENT, nix::errno::Errno::ENODEV, nix::errno::Errno::EINVAL];
    match answer {
        Ok(()) => Ok(Undone::Removed),
        Err(error) if error.errno().is_some_and(|errno| absent.iter().any(|a| *a as i32 == errno)) => {
            Ok(Undone::Absent)
        }
        Err(error) => Err(error),
    }
}
