//! The table of a fault at its devices, which leads the packets that it concerns into the pairs, and no other.
//!
//! Nothing of it outlives the agent: the table goes with its socket. Nothing of it outlives the lease: the first rule asks for an element with a
//! timeout, which only a renewal replaces.

use std::time::Duration;

use troop_agent_core::fault::Target;

use crate::nft::{At, Batch, Chain, Elements, Expressions, Hook, Meta, Set};
use crate::packet::Way;
use crate::plane::detour::mark::{MARK, is_marked};
use crate::plane::{cgroup, concern};

/// Priorities of chains: the mark must be there until the filters of all faults have looked at it, or two of them would send a packet
/// to each other for ever.
const DETOURS: u32 = 0;
const LAST: u32 = 1;

const ALIVE: &str = "alive";

/// Where packets that a fault concerns leave their way, and by which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::plane) struct Detour<'a> {
    pub way: Way,
    pub device: &'a str,
    /// The device's number.
    pub index: u32,
    pub into: Into,
    /// Where nothing may come out that this host would take for its own.
    pub out_of: &'a str,
}

/// How packets get into a detour, and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plane) enum Into {
    /// They go into this device, and a thread of ours sends them on by itself.
    Device(u32),
    /// A copy that no socket waits for goes into the first; what it was copied from goes where it is dropped, so that its sender takes it for sent.
    /// What comes out again is marked and sent by the device itself, see [`way_back`].
    Copied { into: u32, sink: u32 },
}

impl Into {
    fn lead(self, concerned: Expressions) -> Expressions {
        match self {
            Self::Device(device) => concerned.forward_to(device),
            Self::Copied { into, sink } => concerned.copy_to(into).forward_to(sink),
        }
    }
}

/// The table of a fault, with its lease and no rule yet.
pub(in crate::plane) fn leased(table: &str, ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    batch.new_table(table);
    batch.new_set(table, ALIVE, Set::EtherTypesForATime);
    batch.add_elements(table, ALIVE, &alive(ttl));
    batch
}

/// The table by which packets come back from detours that are [`Into::Copied`]. It stays until the last has come.
pub(in crate::plane) fn way_back(table: &str, detours: &[Detour<'_>]) -> Batch {
    let mut batch = Batch::new();
    batch.new_table(table);
    for (number, detour) in detours.iter().enumerate() {
        let back = format!("back{number}");
        let at = At { drops: true, ..At::new(Hook::Ingress, detour.out_of) };
        batch.new_chain(table, Chain { name: &back, at: Some(at) });
        batch.new_rule(table, &back, Expressions::default().set_mark(MARK).forward_to(detour.index));
    }
    batch
}

/// All the rest of the filter of a fault. `ttl`: what is left of its lease.
pub(in crate::plane) fn put_up(table: &str, target: &Target, detours: &[Detour<'_>], ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    concern::new_sets(&mut batch, table, target.selectors());
    for (number, detour) in detours.iter().enumerate() {
        if let Into::Device(_) = detour.into {
            let sink = format!("sink{number}");
            let at = At { drops: true, ..At::new(Hook::Ingress, detour.out_of) };
            batch.new_chain(table, Chain { name: &sink, at: Some(at) });
        }
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

pub(in crate::plane) fn take_down(table: &str, target: &Target) -> Batch {
    let mut batch = Batch::new();
    batch.delete_table(table);
    if target.selectors().cgroup.is_some() {
        cgroup::delete(&mut batch, table);
    }
    batch
}

/// Lets it live for another `ttl`.
pub(in crate::plane) fn renewed(table: &str, target: &Target, detours: &[Detour<'_>], ttl: Duration) -> Batch {
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
            None => detour.into.lead(concerned),
            Some(_) => detour.into.lead(cgroup::is_marked().then(concerned)),
        });
    }
    rules
}
