//! The tables of a fault on what comes in: the packets that it concerns wait in a queue, before anything else of the host sees them.
//!
//! Nothing of them outlives the agent: they go with its socket, and a queue that nobody has lets packets pass. Nothing outlives the lease:
//! the first rule asks for an element with a timeout, which only a renewal replaces.

use std::time::Duration;

use troop_agent_core::fault::{Cidr, Target};

use crate::nft::{At, Batch, Chain, Compare, Elements, Expressions, Family, Hook, Meta, QueueBy, Set};
use crate::packet::Way;
use crate::plane::concern;
use crate::plane::detour::mark::is_marked;

/// Before fragments are put together (`NF_IP_PRI_CONNTRACK_DEFRAG`, -400) and connections are followed.
const ASKED: u32 = (-450_i32).cast_unsigned();
/// The mark must be there until all faults have asked.
const LAST: u32 = (-449_i32).cast_unsigned();
const FAMILIES: [Family; 2] = [Family::Ip4, Family::Ip6];

const ALIVE: &str = "alive";
const ASKED_CHAIN: &str = "hold";
const LAST_CHAIN: &str = "last";

/// Which queue has what comes in by which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) device: u32,
    pub(super) queue: u16,
}

/// With a lease and no rule yet.
pub(super) fn leased(table: &str, ttl: Duration) -> Batch {
    in_both(|batch| {
        batch.new_table(table);
        batch.new_set(table, ALIVE, Set::EtherTypesForATime);
        batch.add_elements(table, ALIVE, &alive(ttl));
    })
}

pub(super) fn put_up(table: &str, target: &Target, leads: &[Lead], by: QueueBy) -> Batch {
    in_both(|batch| {
        concern::new_sets(batch, table, target.selectors());
        batch.new_chain(table, Chain { name: ASKED_CHAIN, at: Some(At::routed(Hook::Arrival, ASKED)) });
        for rule in rules(target, leads, by) {
            batch.new_rule(table, ASKED_CHAIN, rule);
        }
        batch.new_chain(table, Chain { name: LAST_CHAIN, at: Some(At::routed(Hook::Arrival, LAST)) });
        batch.new_rule(table, LAST_CHAIN, is_marked().set_mark(0));
    })
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, ttl: Duration) -> Batch {
    in_both(|batch| {
        batch.clear(table, ALIVE);
        batch.add_elements(table, ALIVE, &alive(ttl));
    })
}

pub(super) fn retargeted(table: &str, peers: &[Cidr]) -> Batch {
    in_both(|batch| {
        *batch = concern::retargeted(std::mem::take(batch), table, peers);
    })
}

pub(super) fn take_down(table: &str) -> Batch {
    in_both(|batch| batch.delete_table(table))
}

fn in_both(mut fill: impl FnMut(&mut Batch)) -> Batch {
    let mut batch = Batch::new();
    FAMILIES.into_iter().for_each(|family| batch.of(family, &mut fill));
    batch
}

fn alive(ttl: Duration) -> Elements {
    Elements::ForATime(vec![concern::IPV4.to_vec(), concern::IPV6.to_vec()], ttl)
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, leads: &[Lead], by: QueueBy) -> Vec<Expressions> {
    let mut rules = vec![is_marked().accept(), Expressions::default().meta(Meta::Protocol).lookup_not(ALIVE).accept()];
    rules.extend(concern::spared(target, Way::In).into_iter().map(Expressions::accept));
    for lead in leads {
        let here = || Expressions::default().meta(Meta::InDevice).compare(Compare::Equal, &lead.device.to_ne_bytes());
        let concerned = concern::concerned(target.selectors(), Way::In, None);
        rules.extend(concerned.into_iter().map(|concerned| here().then(concerned).queue(lead.queue, by)));
    }
    rules
}

#[cfg(test)]
mod tests {
    use troop_agent_core::fault::Selectors;

    use super::*;

    #[test]
    fn what_is_spared_is_asked_before_what_waits() {
        let target = Target::new(Selectors { everything: true, ..Selectors::default() }, &[]).unwrap();
        let leads = [Lead { device: 2, queue: 7 }, Lead { device: 3, queue: 8 }];
        let rules = rules(&target, &leads, QueueBy::Target);
        let last_spared = concern::spared(&target, Way::In).pop().unwrap().accept();
        let first = rules.iter().position(|rule| *rule == last_spared).unwrap() + 1;
        let here = Expressions::default().meta(Meta::InDevice).compare(Compare::Equal, &2_u32.to_ne_bytes());
        let concerned = concern::concerned(target.selectors(), Way::In, None).remove(0);
        assert_eq!(rules[first], here.then(concerned).queue(7, QueueBy::Target));
        // Of two devices, in two families, TCP and the others.
        assert_eq!(rules.len() - first, 8);
    }
}
