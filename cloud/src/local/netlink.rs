//! Links, addresses and routes of the sandbox and of its instances, over rtnetlink.
//!
//! A netlink socket belongs for ever to the network namespace in which it was opened; that is how one thread can work
//! on two namespaces without going back and forth.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd as _};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};

use super::network::Network;
use super::steps::{Step as _, StepFailed};

/// Prefix length of a zone's network, 10.77.Z.0/24.
pub(crate) const ZONE_PREFIX: u8 = 24;

/// Zones of the embedded region: r1a, r1b, r1c.
pub(crate) const ZONES: u8 = 3;

/// The bridge of the zone with this index.
pub(crate) fn bridge_name(zone: u8) -> String {
    format!("zone{zone}")
}

/// The sandbox's own address in a zone: the gateway of the zone's instances.
pub(crate) const fn gateway(zone: u8) -> Ipv4Addr {
    Network::SANDBOX.address(zone, 1)
}

/// A netlink connection into the namespace this thread is in now.
pub(crate) fn open() -> Result<Handle, StepFailed> {
    let (connection, handle, _) = new_connection().step("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index_of(net: &Handle, name: &str) -> Result<u32, StepFailed> {
    let mut links = net.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await.step("look up a link")? {
        Some(link) => Ok(link.header.index),
        None => Err(StepFailed { step: "look up a link".into(), errno: 0, detail: format!("there is no `{name}`") }),
    }
}

pub(crate) async fn loopback_up(net: &Handle) -> Result<(), StepFailed> {
    net.link().set(LinkUnspec::new_with_name("lo").up().build()).execute().await.step("bring up lo")
}

/// Makes the bridge of a zone, gives it the zone's gateway address and brings it up.
pub(crate) async fn make_zone(net: &Handle, zone: u8) -> Result<(), StepFailed> {
    let name = bridge_name(zone);
    net.link().add(LinkBridge::new(&name).up().build()).execute().await.step("make a zone's bridge")?;
    let index = index_of(net, &name).await?;
    let address = IpAddr::V4(gateway(zone));
    net.address().add(index, address, ZONE_PREFIX).execute().await.step("give a bridge its address")
}

/// Name of the link inside an instance.
const INNER: &str = "eth0";

/// Makes a pair of virtual links: `outer` on the zone's bridge in `root`'s namespace, `eth0` in the namespace `netns`.
/// The inner one is born where it belongs: moving it there would wait for the kernel's grace period.
pub(crate) async fn make_pair(root: &Handle, outer: &str, zone: u8, netns: impl AsFd) -> Result<(), StepFailed> {
    let bridge = index_of(root, &bridge_name(zone)).await?;
    let peer = LinkUnspec::new_with_name(INNER).setns_by_fd(netns.as_fd().as_raw_fd()).build();
    let pair =
        LinkVeth::new(outer, INNER).controller(bridge).up().set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
    root.link().add(pair).execute().await.step("make a pair of links")
}

/// Removes a link. One that is gone, as it is when the instance's namespace went first, is no error.
pub(crate) async fn remove(root: &Handle, name: &str) -> Result<(), StepFailed> {
    let gone = |failed: &StepFailed| failed.errno == 0 || failed.errno == nix::errno::Errno::ENODEV as i32;
    let index = match index_of(root, name).await {
        Ok(index) => index,
        Err(failed) if gone(&failed) => return Ok(()),
        Err(failed) => return Err(failed),
    };
    match root.link().del(index).execute().await.step("remove an instance's link") {
        Err(failed) if !gone(&failed) => Err(failed),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Configures an instance's network from within: `eth0` gets `address`, routed over the zone's gateway.
pub(crate) async fn configure(net: &Handle, address: Ipv4Addr, zone: u8) -> Result<(), StepFailed> {
    loopback_up(net).await?;
    let index = index_of(net, INNER).await?;
    net.address().add(index, IpAddr::V4(address), ZONE_PREFIX).execute().await.step("give the instance its address")?;
    net.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.step("bring up eth0")?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway(zone)).build();
    net.route().add(route).execute().await.step("set the default route")
}
