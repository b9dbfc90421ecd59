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

use std::time::Duration;

use nix::errno::Errno;
use troop_agent_core::fault::{Cgroup, Cidr, Fault};

use crate::netlink::NetlinkError;
use crate::nft::{At, Batch, Chain, Elements, Expressions, Meta, Nft, Set};
use crate::packet::Way;
use crate::plane::concern::{self, HASHES, Pick};
use crate::plane::{Device, Order, cgroup};

/// The lanes of a fault's directions, by number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lanes {
    pub(super) egress: Option<u32>,
    pub(super) ingress: Option<u32>,
}

impl Lanes {
    fn directions(self) -> impl Iterator<Item = (Way, u32)> {
        let egress = self.egress.map(|lane| (Way::Out, lane));
        egress.into_iter().chain(self.ingress.map(|lane| (Way::In, lane)))
    }
}

/// A fault's table, as it stands.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    devices: Vec<u32>,
    cgroup: Option<Cgroup>,
}

impl Table {
    /// Makes the table; from then on packets go to the lanes.
    ///
    /// # Errors
    /// [`NetlinkError`]; then nothing was made.
    pub(super) fn make(nft: &mut Nft, order: &Order, lanes: Lanes) -> Result<Self, NetlinkError> {
        let name = format!("troop-{}", order.lease);
        let selectors = order.fault.target.selectors();
        let table =
            Self { name, devices: order.devices.iter().map(|device| device.index).collect(), cgroup: selectors.cgroup };
        let name = &table.name;
        let mut batch = Batch::new();
        batch.new_table(name);
        batch.new_set(name, "lease", Set::DevicesForATime);
        batch.add_elements(name, "lease", &table.lease(order.ttl.get()));
        concern::new_sets(&mut batch, name, selectors);
        for (way, lane) in lanes.directions() {
            batch.new_chain(name, Chain { name: word(way), at: None });
            for rule in rules(&order.fault, way, lane, crate::plane::fingerprint(&order.lease)) {
                batch.new_rule(name, word(way), rule);
            }
            for device in &order.devices {
                let chain = format!("{}-{}", word(way), device.name);
                let at = At::new(concern::hook(way), &device.name);
                batch.new_chain(name, Chain { name: &chain, at: Some(at) });
                let leased = Expressions::default().meta(device_of(way)).lookup("lease").jump(word(way));
                batch.new_rule(name, &chain, leased);
                if table.cgroup.is_some() {
                    let last = format!("last-{}", device.name);
                    batch.new_chain(name, Chain { name: &last, at: Some(At { priority: 1, ..at }) });
                    batch.new_rule(name, &last, cgroup::unmarked(cgroup::is_marked()));
                }
            }
        }
        if let Some(cgroup) = table.cgroup {
            cgroup::mark(&mut batch, name, cgroup, &table.devices, order.ttl.get());
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
        self.mark_on(&mut batch, ttl);
        match nft.commit(batch) {
            // They have expired: there is nothing to take out.
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {
                let mut batch = Batch::new();
                batch.add_elements(&self.name, "lease", &lease);
                self.mark_on(&mut batch, ttl);
                nft.commit(batch)
            }
            answer => answer,
        }
    }

    /// # Errors
    /// [`NetlinkError`]; then those from before are in force.
    pub(super) fn retarget(&self, nft: &mut Nft, peers: &[Cidr]) -> Result<(), NetlinkError> {
        nft.commit(concern::retargeted(Batch::new(), &self.name, peers))
    }

    /// Nothing goes to the lanes any more when this returns.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub(super) fn delete(&self, nft: &mut Nft) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        batch.delete_table(&self.name);
        if self.cgroup.is_some() {
            cgroup::delete(&mut batch, &self.name);
        }
        match nft.commit(batch) {
            Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(()),
            answer => answer,
        }
    }

    fn mark_on(&self, batch: &mut Batch, ttl: Duration) {
        if self.cgroup.is_some() {
            cgroup::renew(batch, &self.name, &self.devices, ttl);
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
    for way in [Way::Out, Way::In] {
        batch.new_chain(NAME, Chain { name: word(way), at: Some(At::new(concern::hook(way), &device.name)) });
        let rule = Expressions::default().meta(device_of(way)).lookup("lease");
        let rule = if hashing { rule.hash(4, HASHES, 0) } else { rule };
        batch.new_rule(NAME, word(way), rule.forward_to(lane));
    }
    nft.commit(batch)?;
    let mut batch = Batch::new();
    batch.delete_table(NAME);
    nft.commit(batch)
}

fn word(way: Way) -> &'static str {
    match way {
        Way::Out => "egress",
        Way::In => "ingress",
    }
}

fn device_of(way: Way) -> Meta {
    match way {
        Way::Out => Meta::OutDevice,
        Way::In => Meta::InDevice,
    }
}

/// The rules of one direction: what is off limits leaves first.
fn rules(fault: &Fault, way: Way, lane: u32, seed: u32) -> Vec<Expressions> {
    let mut rules: Vec<_> = concern::spared(&fault.target, way).into_iter().map(Expressions::leave).collect();
    let selectors = fault.target.selectors();
    for concerned in concern::concerned(selectors, way, Some(Pick { share: fault.flows, seed })) {
        rules.push(match selectors.cgroup {
            None => concerned.forward_to(lane),
            Some(_) => cgroup::unmarked(cgroup::is_marked().then(concerned)).forward_to(lane),
        });
    }
    rules
}
