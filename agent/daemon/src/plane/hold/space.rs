//! A network namespace with a bridge in it, where packets wait that are on their way out.
//!
//! ```text
//! host's namespace    device ── nft egress: dup ──> a        b ── nft ingress: mark, fwd ──> device
//! ours                                     bridge port ──> bridge ──> bridge port
//!                                          at its first hook (br_netfilter): nfnetlink_queue
//! ```
//!
//! Packets in the host's own namespace can wait only where their socket still counts them as unsent, which stops it (measured: rate = buffer
//! / delay); and a bridge there would ask the host's own firewall. The namespace is gone with its last descriptor, which is ours.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    LinkAttribute, LinkInfo, LinkMessage,
};
use nix::sched::{CloneFlags, unshare};

use super::port::Queue;
use crate::clock;
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::{At, Batch, Chain, Expressions, Family, Hook, Nft, QueueBy};
use crate::plane::PlaneError;
use crate::plane::detour::links::{self, Known};
use crate::plane::detour::{kernel, system};

/// Names in a namespace in which nobody else is.
const ENTRANCE: &str = "in";
const EXIT: &str = "out";
const PORTS: [&str; 2] = [ENTRANCE, EXIT];
const UNUSED: &str = "unused";
const BRIDGE: &str = "bridge";
const TABLE: &str = "hold";
const NUMBER: u16 = 0;
/// The kernel tells of a carrier at once, or within a second when many change.
const FORWARDS_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The ends of its pairs of devices that are in the host's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    /// Into it packets go.
    pub(super) into: String,
    /// Out of it they come again.
    pub(super) out_of: String,
    /// Down for ever: what goes there is dropped.
    pub(super) sink: String,
}

impl Ends {
    pub(super) fn names(&self) -> [&String; 3] {
        [&self.into, &self.out_of, &self.sink]
    }
}

/// See the module. It lives as long as this.
#[derive(Debug)]
pub(super) struct Space {
    net: Netlink,
    nft: Nft,
    itself: File,
}

impl Space {
    /// Makes one, and takes a queue in it.
    ///
    /// # Errors
    /// [`PlaneError`]: EPERM without CAP_SYS_ADMIN.
    pub(super) fn make(packets_max: u32) -> Result<(Self, Queue), PlaneError> {
        // A thread of its own leaves for it; sockets stay where they were opened.
        let made = std::thread::Builder::new().name("space".to_owned()).spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| system("make a network namespace")(errno.into()))?;
            // Else the bridge lets packets with a VLAN's tag pass unasked; where it may not be said, it does.
            drop(std::fs::write("/proc/sys/net/bridge/bridge-nf-filter-vlan-tagged", "1"));
            let itself = File::open("/proc/thread-self/ns/net").map_err(system("keep a network namespace"))?;
            let net = Netlink::route().map_err(kernel("open rtnetlink"))?;
            let nft = Nft::open().map_err(kernel("open nf_tables"))?;
            let queue = Queue::open(NUMBER, packets_max, None).map_err(kernel("open a queue for packets"))?;
            Ok((Self { net, nft, itself }, queue))
        });
        let made = made.map_err(system("start a thread"))?.join();
        made.unwrap_or_else(|_| Err(system("make a network namespace")(io::Error::other("its thread died"))))
    }

    /// Builds everything between the ends, which are made in the namespace of `host`. Returns the numbers of the first and the third.
    ///
    /// # Errors
    /// [`PlaneError`].
    pub(super) fn furnish(
        &mut self,
        host: &mut Netlink,
        ends: &Ends,
        like: &Known,
        number: u16,
        by: QueueBy,
    ) -> Result<[u32; 2], PlaneError> {
        let pair = |host: &mut Netlink, end: &str, inside| {
            let made = links::pair_apart(host, [end, inside], like, self.itself.as_fd());
            made.map_err(kernel(&format!("make the devices {end}")))
        };
        let into = pair(host, &ends.into, ENTRANCE)?;
        let out_of = pair(host, &ends.out_of, EXIT)?;
        let sink = pair(host, &ends.sink, UNUSED)?;
        // A device sends at once when its other end was up before it; else only when the kernel has heard of its carrier.
        let up = |net: &mut Netlink, index| links::set_up(net, index).map_err(kernel("set a device up"));
        up(host, out_of)?;
        for port in PORTS {
            let index = links::find(&mut self.net, port).map_err(kernel(&format!("find {port}")))?.index;
            up(&mut self.net, index)?;
        }
        up(host, into)?;
        self.bridge().map_err(kernel("make a bridge"))?;
        self.nft.commit(asked(number, by)).map_err(kernel("lead a bridge's packets to a queue"))?;
        self.await_forwarding()?;
        Ok([into, sink])
    }

    fn bridge(&mut self) -> Result<(), NetlinkError> {
        let net = &mut self.net;
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(BRIDGE.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::StpState(BridgeStpState::Disabled),
                    InfoBridge::MulticastSnooping(false),
                    InfoBridge::NfCallIpTables(true),
                    InfoBridge::NfCallIp6Tables(true),
                ])),
            ]),
        ];
        net.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        let bridge = links::find(net, BRIDGE)?.index;
        links::set_up(net, bridge)?;
        for port in PORTS {
            let index = links::find(net, port)?.index;
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::Controller(bridge)];
            net.change(RouteNetlinkMessage::SetLink(message), 0)?;
            // It knows nobody, and so sends everything to the other port.
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Learning(false)])),
            ])];
            net.change(RouteNetlinkMessage::SetLink(message), 0)?;
        }
        Ok(())
    }

    /// A bridge drops what comes before it has heard, in its own time, that its ports have a carrier.
    fn await_forwarding(&mut self) -> Result<(), PlaneError> {
        let until = clock::now().after(FORWARDS_WITHIN);
        for port in PORTS {
            while !forwards(&mut self.net, port).map_err(kernel("look at a bridge's port"))? {
                if clock::now() >= until {
                    return Err(system("wait for a bridge")(io::ErrorKind::TimedOut.into()));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }
}

fn forwards(net: &mut Netlink, port: &str) -> Result<bool, NetlinkError> {
    let forwards = InfoBridgePort::State(BridgePortState::Forwarding);
    let is_so = |info: &LinkInfo| matches!(info, LinkInfo::PortData(InfoPortData::BridgePort(port)) if port.contains(&forwards));
    let link = links::read(net, port)?;
    Ok(link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(infos) if infos.iter().any(is_so))))
}

/// Every packet of IP that the bridge passes on waits in the queue of this number.
fn asked(number: u16, by: QueueBy) -> Batch {
    let mut batch = Batch::new();
    for family in [Family::Ip4, Family::Ip6] {
        batch.of(family, |batch| {
            batch.new_table(TABLE);
            batch.new_chain(TABLE, Chain { name: TABLE, at: Some(At::routed(Hook::Arrival, 0)) });
            batch.new_rule(TABLE, TABLE, Expressions::default().queue(number, by));
        });
    }
    batch
}
