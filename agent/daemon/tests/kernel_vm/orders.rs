//! Orders for faults, from the one that most tests want.

use std::time::Duration;

use troop_agent::plane::Order;
use troop_agent_core::fault::{
    Delay, Direction, Effect, Fault, FlowShare, Parts, PortRange, Probability, Ramp, Selectors, Target,
};
use troop_agent_core::lease::{LeaseId, Ttl};

use crate::stage;

pub(crate) const DELAY: Duration = Duration::from_millis(100);
pub(crate) const TARGETED: u16 = 7001;
pub(crate) const SPARED: u16 = 7002;

/// 100 ms for what leaves for the peer's port 7001, on the veth.
pub(crate) fn ordered(lease: &str) -> Order {
    let peers = vec![stage::PEER.parse().unwrap(), stage::PEER6.parse().unwrap()];
    let remote_ports = vec![PortRange::one(TARGETED).unwrap()];
    let selectors = Selectors { peers, remote_ports, ..Selectors::default() };
    Order {
        lease: LeaseId::new(lease).unwrap(),
        fault: Fault {
            direction: Direction::Egress,
            target: target(selectors),
            effect: effect(delayed(DELAY)),
            ramp: Ramp::NONE,
            flows: FlowShare::ALL,
        },
        devices: vec![stage::device("v0")],
        ttl: ttl(30_000),
    }
}

pub(crate) fn target(selectors: Selectors) -> Target {
    Target::new(selectors, &[]).unwrap()
}

pub(crate) fn effect(parts: Parts) -> Effect {
    Effect::new(parts).unwrap()
}

pub(crate) fn delayed(mean: Duration) -> Parts {
    Parts { delay: Some(Delay::fixed(mean).unwrap()), ..Parts::default() }
}

pub(crate) fn ttl(ms: u64) -> Ttl {
    Ttl::new(Duration::from_millis(ms)).unwrap()
}

pub(crate) fn percent(percent: f64) -> Probability {
    Probability::from_percent(percent).unwrap()
}
