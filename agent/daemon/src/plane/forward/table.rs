//! The table of a fault at its devices, which leads the packets that it concerns into the pairs, and no other.
//!
//! Nothing of it outlives the agent: the table goes with its socket. Nothing of it outlives the lease: the first rule asks for an element with a
//! timeout, which only a renewal replaces.

use std::time::Duration;

use troop_agent_core::fault::Target;

use crate::nft::{At, Batch, Chain, Elements, Expressions, Hook, Meta, Set};
use crate::packet::Way;
use crate::plane::detour::mark::is_marked;
use crate::plane::{cgroup, concern};

/// Priorities of chains: the mark must be there until the filters of all faults have looked at it, or two of them would send a packet
/// to each other for ever.
const DETOURS: u32 = 0;
const LAST: u32 = 1;

const ALIVE: &str = "alive";

/// Where packets that a fault concerns leave their way, and by which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Detour<'a> {
    pub way: Way,
    pub device: &'a str,
    /// The device's number.
    pub index: u32,
    /// The end of the pair into which they go.
    pub into: u32,
    /// The other end, where nothing may come out but into the forwarder.
    pub out_of: &'a str,
}

/// The table of a fault, with its lease and no rule yet.
pub(super) fn leased(table: &str, ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    batch.new_table(table);
    batch.new_set(table, ALIVE, Set::EtherTypesForATime);
    batch.add_elements(table, ALIVE, &alive(ttl));
    batch
}

/// All the rest of the filter of a fault. `ttl`: what is left of its lease.
pub(super) fn put_up(table: &str, target: &Target, detours: &[Detour<'_>], ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    concern::new_sets(&mut batch, table, target.selectors());
    for (number, detour) in detours.iter().enumerate() {
        let sink = format!("sink{number}");
        let at = At { drops: true, ..At::new(Hook::Ingress, detour.out_of) };
        batch.new_chain(table, Chain { name: &sink, at: Some(at) });
        let [chain, last] = ["detour", "last"].map(|name| format!("{name}{number}"));
        let at = At { priority: DETOURS, ..At::new(concern::hook(detour.way), detour.device) };
        batch.new_chain(table, Chain { name: &chain, at: Some(at) });
        for rule in rules(target, detour) {
            batch.new_rule(table, &chain, rule);
        }
        batch.new_chain(table, Chain { name: &last, at: Some(At { priority: LAST, ..at }) });
        batch.new_rule(table, &last, is_marked().set_mark(0));
        if target.selectors().cgroup.is_some() {
            batch.new_rule(table, &last, cgroup::unmarked(cgroup::is_marked()));
        }
    }
    if let Some(cgroup) = target.selectors().cgroup {
        cgroup::mark(&mut batch, table, cgroup, &devices(detours), ttl);
    }
    batch
}

fn devices(detours: &[Detour<'_>]) -> Vec<u32> {
    detours.iter().map(|detour| detour.index).collect()
}

pub(super) fn take_down(table: &str, target: &Target) -> Batch {
    let mut batch = Batch::new();
    batch.delete_table(table);
    if target.selectors().cgroup.is_some() {
        cgroup::delete(&mut batch, table);
    }
    batch
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, target: &Target, detours: &[Detour<'_>], ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    batch.clear(table, ALIVE);
    batch.add_elements(table, ALIVE, &alive(ttl));
    if target.selectors().cgroup.is_some() {
        cgroup::renew(&mut batch, table, &devices(detours), ttl);
    }
    batch
}

fn alive(ttl: Duration) -> Elements {
    Elements::ForATime(vec![concern::IPV4.to_vec(), concern::IPV6.to_vec()], ttl)
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, detour: &Detour<'_>) -> Vec<Expressions> {
    let mut rules = vec![is_marked().accept(), Expressions::default().meta(Meta::Protocol).lookup_not(ALIVE).accept()];
    rules.extend(concern::spared(target, detour.way).into_iter().map(Expressions::accept));
    for concerned in concern::concerned(target.selectors(), detour.way, None) {
        rules.push(match target.selectors().cgroup {
            None => concerned.forward_to(detour.into),
            Some(_) => cgroup::is_marked().then(concerned).forward_to(detour.into),
        });
    }
    rules
}
