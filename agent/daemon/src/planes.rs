//! Which planes this host has, and on which devices they work.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};

use troop_agent_core::fault::Direction;

use crate::config::HostPolicy;
use crate::netlink::{Netlink, NetlinkError};
use crate::plane::forward::{self, ForwardPlane};
use crate::plane::hold::{self, HoldPlane};
use crate::plane::kernel::{self, Kernel};
use crate::plane::tun::{self, TunPlane};
use crate::plane::{By, Device, Plane, PlaneError};
use troop_policies::chain;

/// What was found by trying.
#[derive(Debug)]
pub struct Available {
    /// In the order in which they are preferred.
    pub planes: Vec<Box<dyn Plane>>,
    /// Why there is not more, for people.
    pub lacks: Vec<String>,
}

/// Tries each plane, the best first, and leaves out those that the host's policy does not let be used.
pub fn available(policy: &HostPolicy) -> Available {
    let mut found = Available { planes: Vec::new(), lacks: Vec::new() };
    for tried in every() {
        match tried {
            Ok(plane) => {
                let backing = plane.backing();
                if [backing.on_death, backing.on_hang].contains(&By::Guardian) && !policy.allow_unbacked_undo {
                    let why = "only its guardian undoes it, and agent.toml does not say allow_unbacked_undo = true";
                    found.lacks.push(format!("plane {}: {why}", plane.name()));
                } else {
                    found.planes.push(plane);
                }
            }
            Err(why) => found.lacks.push(why),
        }
    }
    found
}

fn every() -> Vec<Result<Box<dyn Plane>, String>> {
    let kernel = Kernel::new(&kernel::probe()).map(boxed);
    // Only where the best is not: it can do less than that one, at a little more cost.
    let hold = kernel.is_err().then(|| hold::probe().and_then(HoldPlane::open).map(boxed));
    let forward = forward::probe(Direction::Both).and_then(|()| ForwardPlane::open()).map(boxed);
    // It can do nothing that the one before it cannot.
    let tun = forward.is_err().then(|| tun::probe().and_then(TunPlane::open).map(boxed));
    let said = |name: &'static str| move |e: PlaneError| format!("plane {name}: {}", chain(&e));
    let mut every = vec![kernel.map_err(said("kernel"))];
    every.extend(hold.map(|hold| hold.map_err(said("hold"))));
    every.push(forward.map_err(said("forward")));
    every.extend(tun.map(|tun| tun.map_err(said("tun"))));
    every
}

fn boxed(plane: impl Plane + 'static) -> Box<dyn Plane> {
    Box::new(plane)
}

/// The devices that faults are put on: those that the policy names, else every Ethernet device that is up.
///
/// # Errors
/// The kernel's.
pub fn devices(policy: &HostPolicy) -> Result<Vec<Device>, NetlinkError> {
    let links = Netlink::route()?.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let mut devices: Vec<Device> = Vec::new();
    for link in links {
        let RouteNetlinkMessage::NewLink(link) = link else { continue };
        let name = link.attributes.iter().find_map(|a| if let LinkAttribute::IfName(n) = a { Some(n) } else { None });
        let Some(name) = name else { continue };
        let ethernet = link.header.link_layer_type == LinkLayerType::Ether;
        let up = link.header.flags.contains(LinkFlags::Up);
        // A bridge's or a bond's member carries what its master has sent already.
        let member = link.attributes.iter().any(|a| matches!(a, LinkAttribute::Controller(_)));
        let ours = is_ours(name);
        let wanted =
            if policy.devices.is_empty() { ethernet && up && !member && !ours } else { policy.devices.contains(name) };
        if wanted {
            devices.push(Device { name: name.clone(), index: link.header.index });
        }
    }
    devices.sort();
    Ok(devices)
}

/// Whether a device is one that a plane has made: `tr`, eight hexadecimal digits, a number and an end.
fn is_ours(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("tr") else { return false };
    let (digits, end) = rest.split_at_checked(8).unwrap_or_default();
    digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit()) && end.ends_with(['a', 'b', 't'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planes_own_devices_are_told_by_their_names() {
        assert!(is_ours("tr0123abcd0a") && is_ours("trffffffff12b") && is_ours("tr0123abcd0t"));
        for other in ["tr", "eth0", "trunk0", "tr0123abcd0", "tr0123abcx0a", "trünk0123456a"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
