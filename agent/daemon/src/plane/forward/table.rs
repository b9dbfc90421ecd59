//! The table of a fault at its devices, which leads packets into the pairs.
//!
//! Nothing of it outlives the agent: the table goes with its socket. Nothing of it outlives the lease: the first rule asks for an element with a
//! timeout, which only a renewal replaces.

use std::time::Duration;

use troop_agent_core::fault::{Cidr, Target};

use crate::nft::{At, Batch, Chain, Elements, Hook, Meta, Set};
use crate::packet::Way;
use crate::plane::detour::filter::{self, is_marked};
use crate::plane::detour::step::{Step, expressions};

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

/// All the rest of the filter of a fault.
pub(super) fn put_up(table: &str, target: &Target, detours: &[Detour<'_>]) -> Batch {
    let mut batch = Batch::new();
    filter::define(&mut batch, table, target);
    for (number, detour) in detours.iter().enumerate() {
        let sink = format!("sink{number}");
        let at = At { drops: true, ..At::new(Hook::Ingress, detour.out_of) };
        batch.new_chain(table, Chain { name: &sink, at: Some(at) });
        let [chain, last] = ["detour", "last"].map(|name| format!("{name}{number}"));
        let hook = match detour.way {
            Way::Out => Hook::Egress,
            Way::In => Hook::Ingress,
        };
        let at = At { priority: DETOURS, ..At::new(hook, detour.device) };
        batch.new_chain(table, Chain { name: &chain, at: Some(at) });
        for rule in rules(target, detour) {
            batch.new_rule(table, &chain, expressions(&rule));
        }
        batch.new_chain(table, Chain { name: &last, at: Some(At { priority: LAST, ..at }) });
        batch.new_rule(table, &last, expressions(&[is_marked(), vec![Step::SetMark(0)]].concat()));
    }
    batch
}

pub(super) fn take_down(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.delete_table(table);
    batch
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, ttl: Duration) -> Batch {
    let mut batch = Batch::new();
    filter::replace(&mut batch, table, ALIVE, &alive(ttl));
    batch
}

pub(super) fn retargeted(table: &str, new: &[Cidr]) -> Batch {
    let mut batch = Batch::new();
    filter::retarget(&mut batch, table, new);
    batch
}

fn alive(ttl: Duration) -> Elements {
    Elements::ForATime(vec![filter::IPV4.to_vec(), filter::IPV6.to_vec()], ttl)
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, detour: &Detour<'_>) -> Vec<Vec<Step>> {
    let mut rules = vec![
        [is_marked(), vec![Step::Accept]].concat(),
        vec![Step::Load(Meta::Protocol), Step::NotIn(ALIVE), Step::Accept],
    ];
    rules.extend(filter::spared(target, detour.way));
    for concerned in filter::concerned(target.selectors(), detour.way) {
        rules.push([concerned, vec![Step::Forward(detour.into)]].concat());
    }
    rules
}
