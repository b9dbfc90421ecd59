//! What this kernel can do for the plane, found out by doing it in a network namespace that is thrown away.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use nix::sched::CloneFlags;
use troop_agent_core::netem::{Options, Prio};

use super::lane::Lane;
use super::{filters, lane, rules};
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::Nft;
use crate::plane::Device;

/// Something that the kernel lacks, and what it said when asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {what} ({said})")]
pub struct Missing {
    pub what: &'static str,
    pub said: String,
}

/// What the kernel has of what the plane can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// IFB devices with netem: without it there is no kernel plane.
    pub netem: Result<(), Missing>,
    /// nftables at devices, in both directions, with owned tables, timeouts and `fwd`.
    pub table: Result<(), Missing>,
    /// Hashes in it, for a percentage of flows.
    pub hashing: Result<(), Missing>,
    /// clsact, flower and mirred, where there is no table.
    pub filters: Result<(), Missing>,
    /// prio, which the plane does not need; reports name it.
    pub prio: Result<(), Missing>,
}

impl Capability {
    fn none(said: &str) -> Self {
        let missing = |what| Err(Missing { what, said: said.to_owned() });
        Self {
            netem: missing(NETEM),
            table: missing(TABLE),
            hashing: missing(HASHING),
            filters: missing(FILTERS),
            prio: missing(PRIO),
        }
    }
}

const NETEM: &str = "netem on an IFB";
const TABLE: &str = "nftables at devices with `fwd`, Linux 5.18";
const HASHING: &str = "nft_hash";
const FILTERS: &str = "clsact with flower and mirred";
const PRIO: &str = "prio";

/// Finds out what the kernel can do. Needs the right to make network namespaces and to administer them; leaves nothing but the
/// modules that the kernel has loaded.
pub fn probe() -> Capability {
    // A thread of its own, since a namespace is a thread's: both end together.
    std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(CloneFlags::CLONE_NEWNET) {
            return Capability::none(&format!("no network namespace to try in: {errno}"));
        }
        match Netlink::route() {
            Ok(mut net) => try_all(&mut net),
            Err(error) => Capability::none(&error.to_string()),
        }
    })
    .join()
    .unwrap_or_else(|_| Capability::none("the probe failed"))
}

fn try_all(net: &mut Netlink) -> Capability {
    let lane = Lane::make(net, "troop-probe", &Options { limit: 1, ..Options::default() });
    let index = lane.as_ref().map_or(0, Lane::index);
    let loopback = Device { name: "lo".into(), index: lane::kind_of(net, "lo").ok().flatten().map_or(1, |(lo, _)| lo) };
    // nftables takes hooks of devices that are down, but the flower filters want queues.
    let mut up = LinkMessage::default();
    up.attributes.push(LinkAttribute::IfName(loopback.name.clone()));
    (up.header.flags, up.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    net.change(RouteNetlinkMessage::SetLink(up), 0).ok();
    let try_table = |hashing| Nft::open().and_then(|mut nft| rules::try_out(&mut nft, &loopback, index, hashing));
    Capability {
        netem: lane.map(|_| ()).map_err(missing(NETEM)),
        table: try_table(false).map_err(missing(TABLE)),
        hashing: try_table(true).map_err(missing(HASHING)),
        filters: filters::try_out(net, &loopback, index).map_err(missing(FILTERS)),
        prio: prio(net, &loopback).map_err(missing(PRIO)),
    }
}

fn prio(net: &mut Netlink, device: &Device) -> Result<(), NetlinkError> {
    let mut message = TcMessage::with_index(i32::try_from(device.index).unwrap_or(i32::MAX));
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("prio".into()));
    let options = Prio::WITH_A_BAND_FOR_NETEM.to_bytes().to_vec();
    message.attributes.push(TcAttribute::Other(DefaultNla::new(lane::TCA_OPTIONS, options)));
    net.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn missing(what: &'static str) -> impl FnOnce(NetlinkError) -> Missing {
    move |error| {
        let source = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        Missing { what, said: format!("{error}{source}") }
    }
}
