//! Packets of a cgroup's sockets: marked where the kernel still knows their socket, told by the mark where they leave.
//!
//! A device's hooks do not know sockets: nf_tables refuses `socket cgroupv2` in family netdev (EOPNOTSUPP), and what comes in has no
//! socket yet. So a table of family inet, owned like the other and with the same lease, sets one bit of the mark of packets that such
//! a socket sends, as the last at the output hook: routing, NAT and other people's filters of that hook have been passed. It does so
//! only towards the devices of the fault, and at those the bit is taken off again, whatever else becomes of a packet.

use std::time::Duration;

use troop_agent_core::fault::Cgroup;

use crate::nft::{At, Batch, Chain, Compare, Elements, Expressions, Family, Hook, Meta, Set};

/// The bit of the mark: not of Kubernetes (0x4000, 0x8000), Calico (0xffff0000), Tailscale (0xff0000), the CNI's portmap (0x2000), the AWS
/// VPC's CNI (0x80), nor of the mark by which the forward plane knows its own packets. One fault at a time can have it.
pub(super) const BIT: u32 = 0x1000;

/// Behind all others at the output hook: `INT_MAX`.
const LAST: u32 = i32::MAX.unsigned_abs();
const DEVICES: &str = "devices";
const OUTPUT: &str = "output";

/// The first steps of a rule at a device: packets of the cgroup only.
pub(super) fn is_marked() -> Expressions {
    Expressions::default().meta(Meta::Mark).mask(&BIT.to_ne_bytes()).compare(Compare::Equal, &BIT.to_ne_bytes())
}

/// Takes the bit off what a rule has found.
pub(super) fn unmarked(rule: Expressions) -> Expressions {
    rule.meta(Meta::Mark).mask(&(!BIT).to_ne_bytes()).save_mark()
}

/// Adds the table that marks. It is of another family, so it may have the name of the fault's own.
pub(super) fn mark(batch: &mut Batch, table: &str, cgroup: Cgroup, devices: &[u32], ttl: Duration) {
    batch.of(Family::Inet, |batch| {
        batch.new_table(table);
        batch.new_set(table, DEVICES, Set::DevicesForATime);
        batch.add_elements(table, DEVICES, &Elements::devices(devices, ttl));
        let at = At::routed(Hook::Output, LAST);
        batch.new_chain(table, Chain { name: OUTPUT, at: Some(at) });
        let rule = Expressions::default().meta(Meta::OutDevice).lookup(DEVICES);
        let rule = rule.cgroup(cgroup.level).compare(Compare::Equal, &cgroup.id.to_ne_bytes());
        let marked = rule.meta(Meta::Mark).mask_and_flip(&(!BIT).to_ne_bytes(), &BIT.to_ne_bytes()).save_mark();
        batch.new_rule(table, OUTPUT, marked);
    });
}

/// Lets it mark for another `ttl`.
pub(super) fn renew(batch: &mut Batch, table: &str, devices: &[u32], ttl: Duration) {
    batch.of(Family::Inet, |batch| {
        batch.clear(table, DEVICES);
        batch.add_elements(table, DEVICES, &Elements::devices(devices, ttl));
    });
}

pub(super) fn delete(batch: &mut Batch, table: &str) {
    batch.of(Family::Inet, |batch| batch.delete_table(table));
}
