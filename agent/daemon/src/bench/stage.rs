//! A host and a peer, each a network namespace, joined by a pair of devices.
//!
//! The calling thread is the host; the peer is a thread that has left for a namespace of its own. A socket stays where it was opened, so
//! both ends of a connection can be used from anywhere. All of it is gone with the process.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{Sender, channel};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};

use super::BenchError;
use crate::netlink::{Netlink, NetlinkError};
use crate::plane::Device;

pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PREFIX: u8 = 24;
/// What the device is called at either end.
const NAME: &str = "eth0";
/// Largest receive and send buffer of a TCP connection. 16 windows must stay within the 64 MB that a fault holds, or it ends: a window was seen
/// to be 0.6 of the buffer, so those are 50 MB, which at 40 ms carry 10 Gbit/s.
pub(super) const TCP_BUFFER_MAX_BYTES: u32 = 5 << 20;

type Errand = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
pub(super) struct Stage {
    peer: Sender<Errand>,
    pub(super) device: Device,
}

impl Stage {
    /// Makes both, of which the host is the namespace that this thread is in: it must be a new one.
    pub(super) fn make() -> Result<Self, BenchError> {
        let (peer, errands) = channel::<Errand>();
        let (tell, told) = channel();
        let live = move || {
            let left = unshare(CloneFlags::CLONE_NEWNET).map(|()| rustix::thread::gettid());
            let gone = left.is_err();
            if tell.send(left).is_ok() && !gone {
                errands.into_iter().for_each(|errand| errand());
            }
        };
        let io = BenchError::io("start the peer's thread");
        drop(std::thread::Builder::new().name("peer".to_owned()).spawn(live).map_err(&io)?);
        let number = told.recv().map_err(|_| BenchError::Ended("the peer's thread"))?;
        let number = number.map_err(|e| BenchError::io("make a network namespace for the peer")(e.into()))?;
        let doing = "join host and peer";
        let device = join(number.as_raw_nonzero().get().unsigned_abs()).map_err(BenchError::kernel(doing))?;
        let stage = Self { peer, device };
        stage.at_peer(|| set_up(PEER))?.map_err(BenchError::kernel(doing))?;
        for made in [set_buffers(), stage.at_peer(set_buffers)?] {
            made.map_err(BenchError::io("set net.ipv4.tcp_rmem and tcp_wmem"))?;
        }
        Ok(stage)
    }

    /// Runs it at the peer and waits.
    pub(super) fn at_peer<T: Send + 'static>(
        &self,
        errand: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BenchError> {
        let ended = BenchError::Ended("the peer's thread");
        let (done, result) = channel();
        let sent = self.peer.send(Box::new(move || drop(done.send(errand()))));
        sent.ok().and_then(|()| result.recv().ok()).ok_or(ended)
    }
}

/// Makes the pair, one end of it here and the other where the thread `peer` is, and sets this one up.
fn join(peer: u32) -> Result<Device, NetlinkError> {
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(NAME.to_owned()), LinkAttribute::NetNsPid(peer)];
    let mut message = LinkMessage::default();
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)));
    message.attributes = vec![
        LinkAttribute::IfName(NAME.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]),
    ];
    Netlink::route()?.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    set_up(HOST)
}

/// Gives the device of this thread's namespace an address, and sets it and the loopback up.
fn set_up(address: Ipv4Addr) -> Result<Device, NetlinkError> {
    let mut net = Netlink::route()?;
    let index = |name| {
        nix::net::if_::if_nametoindex(name).map_err(|errno| NetlinkError::Answer(format!("no device {name}: {errno}")))
    };
    let (device, loopback) = (index(NAME)?, index("lo")?);
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len, message.header.index) = (AddressFamily::Inet, PREFIX, device);
    let address = IpAddr::V4(address);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    net.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)?;
    for index in [loopback, device] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        net.change(RouteNetlinkMessage::SetLink(message), 0)?;
    }
    Ok(Device { name: NAME.to_owned(), index: device })
}

fn set_buffers() -> std::io::Result<()> {
    for (name, usual) in [("tcp_rmem", 131_072), ("tcp_wmem", 16_384)] {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), format!("4096 {usual} {TCP_BUFFER_MAX_BYTES}"))?;
    }
    Ok(())
}
