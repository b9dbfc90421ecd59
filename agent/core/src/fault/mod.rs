//! A fault on a host: in which direction, for which packets, and what befalls them.
//!
//! Every type checks itself, so that whoever holds a [`Fault`] holds one that is possible and spares what none may
//! touch. What a host allows, and how long a fault lives, is decided elsewhere.

mod cidr;
mod effect;
mod flow;
mod probability;
mod ramp;
mod target;

pub use cidr::{BadRange, Cidr, PortRange};
pub use effect::{
    BadEffect, DELAY_MAX, Delay, Effect, GilbertElliott, JITTER_MAX, Loss, Order, Parts, RATE_MAX, RATE_MIN, Rate,
    Reorder,
};
pub use flow::{Flow, FlowHash, FlowShare, Ports, protocol};
pub use probability::{BadPercent, Chance, Probability};
pub use ramp::{BadRamp, RAMP_MAX, Ramp, Share};
pub use target::{
    BadTarget, Cgroup, LINK_LOCAL, OffLimits, PEERS_MAX, PORTS_MAX, Protocol, SSH_PORT, Selectors, TO_MANY, Target,
};

/// Which of a host's packets are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Those that leave the host.
    Egress,
    /// Those that come to it.
    Ingress,
    Both,
}

impl Direction {
    pub fn has_egress(self) -> bool {
        self != Self::Ingress
    }

    pub fn has_ingress(self) -> bool {
        self != Self::Egress
    }
}

/// A fault, as a host is asked for it. With [`Direction::Both`] each direction has the whole effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub direction: Direction,
    pub target: Target,
    pub effect: Effect,
    pub ramp: Ramp,
    pub flows: FlowShare,
}
