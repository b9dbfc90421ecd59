//! The table of a fault where this host's packets are sent: it gives those that the fault concerns a mark, by which they are routed anew.
//!
//! It looks at an element with a timeout, which is the lease: when nobody renews, packets are not marked any more. Where the kernel knows
//! owners it goes with the socket that made it; where not, it stays, and marks for nothing once the TUN is gone.

use std::time::Duration;

use troop_agent_core::fault::{Cidr, TO_MANY, Target};

use super::Owners;
use crate::nft::{At, Batch, Chain, Compare, Elements, Expressions, Hook, Meta, Set};
use crate::packet::Way;
use crate::plane::concern;

/// Behind all that others have there (`enum nf_ip_hook_priorities` ends at 300): addresses are those on the wire, and a firewall has let
/// the packet pass as it went out of its device.
const PRIORITY: u32 = 300;

const ALIVE: &str = "alive";
const CHAIN: &str = "output";

/// Which packets get which mark: those that leave by this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lead {
    pub device: u32,
    pub mark: u32,
}

/// The table, with its lease and no rule yet.
pub(super) fn leased(table: &str, owners: Owners, leads: &[Lead], ttl: Duration) -> Batch {
    let mut batch = Batch::inet();
    match owners {
        Owners::Known => batch.new_table(table),
        Owners::Unknown => batch.new_lasting_table(table),
    }
    batch.new_set(table, ALIVE, Set::DevicesForATime);
    batch.add_elements(table, ALIVE, &alive(leads, ttl));
    batch
}

/// All the rest of it. `translates`: addresses may be translated here, and connections are looked at.
pub(super) fn put_up(table: &str, target: &Target, leads: &[Lead], translates: bool) -> Batch {
    let mut batch = Batch::inet();
    concern::new_sets(&mut batch, table, target.selectors());
    batch.new_chain(table, Chain { name: CHAIN, at: Some(At::routed(Hook::Reroute, PRIORITY)) });
    for rule in rules(target, leads, translates) {
        batch.new_rule(table, CHAIN, rule);
    }
    batch
}

pub(super) fn take_down(table: &str) -> Batch {
    let mut batch = Batch::inet();
    batch.delete_table(table);
    batch
}

/// Lets it live for another `ttl`.
pub(super) fn renewed(table: &str, leads: &[Lead], ttl: Duration) -> Batch {
    let mut batch = Batch::inet();
    batch.clear(table, ALIVE);
    batch.add_elements(table, ALIVE, &alive(leads, ttl));
    batch
}

pub(super) fn retargeted(table: &str, new: &[Cidr]) -> Batch {
    concern::retargeted(Batch::inet(), table, new)
}

fn alive(leads: &[Lead], ttl: Duration) -> Elements {
    let devices: Vec<u32> = leads.iter().map(|lead| lead.device).collect();
    Elements::devices(&devices, ttl)
}

/// In the order in which the kernel asks them.
fn rules(target: &Target, leads: &[Lead], translates: bool) -> Vec<Expressions> {
    let rule = Expressions::default;
    let mut rules = vec![
        // What a line has sent, or another fault has marked; and somebody else's mark is his way of routing, which ours would replace.
        rule().meta(Meta::Mark).compare(Compare::Unequal, &[0; 4]).accept(),
        rule().meta(Meta::OutDevice).lookup_not(ALIVE).accept(),
    ];
    // This host may be among the receivers, and would get it twice.
    rules.extend(TO_MANY.iter().map(|range| concern::peer_within(range, Way::Out).accept()));
    if translates {
        // A connection whose addresses are translated would be taken for another one the second time.
        rules.push(rule().translation().compare(Compare::Unequal, &[0; 4]).accept());
    }
    rules.extend(concern::spared(target, Way::Out).into_iter().map(Expressions::accept));
    for lead in leads {
        for concerned in concern::concerned(target.selectors(), Way::Out, None) {
            let here = concerned.meta(Meta::OutDevice).compare(Compare::Equal, &lead.device.to_ne_bytes());
            rules.push(here.set_mark(lead.mark).accept());
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use troop_agent_core::fault::Selectors;

    use super::*;

    #[test]
    fn what_is_spared_is_asked_before_what_is_marked() {
        let target = Target::new(Selectors { everything: true, ..Selectors::default() }, &[]).unwrap();
        let leads = [Lead { device: 2, mark: 7 }, Lead { device: 3, mark: 8 }];
        let rules = rules(&target, &leads, true);
        let last_spared = concern::spared(&target, Way::Out).pop().unwrap().accept();
        let first = rules.iter().position(|rule| *rule == last_spared).unwrap() + 1;
        let marks = rule_that_marks(&target, leads[0]);
        assert_eq!(rules[first], marks);
        // Of two devices, in two families, TCP and the others.
        assert_eq!(rules.len() - first, 8);
    }

    fn rule_that_marks(target: &Target, lead: Lead) -> Expressions {
        let concerned = concern::concerned(target.selectors(), Way::Out, None).remove(0);
        let here = concerned.meta(Meta::OutDevice).compare(Compare::Equal, &lead.device.to_ne_bytes());
        here.set_mark(lead.mark).accept()
    }
}
