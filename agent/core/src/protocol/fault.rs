//! From the fault as it was asked for to the one that is put up, checked part by part.

use std::net::SocketAddr;
use std::time::Duration;

use troop_policies::fault as asked;
use troop_policies::fault::FaultSpec;

use crate::distribution::{BadTable, Distribution, Table};
use crate::fault::{
    BadEffect, BadPercent, BadRamp, BadRange, BadTarget, Cgroup, Chance, Cidr, Delay, Direction, Effect, Fault,
    FlowShare, GilbertElliott, Loss, Order, Parts, PortRange, Probability, Protocol, Ramp, Rate, Reorder, Selectors,
    Target,
};

/// Why a fault is refused before anything is changed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadFault {
    #[error("`{name}` was not resolved to any address")]
    Unresolved { name: String },
    #[error("`{of}` was not found on this host")]
    OwnerUnknown { of: String },
    #[error("what comes in to `{of}` cannot be told from what comes in to others")]
    OwnerOfIngress { of: String },
    #[error("`everything` stands beside other peers")]
    EverythingAndMore,
    #[error("{ppm} millionths are more than all")]
    TooManyPpm { ppm: u32 },
    #[error(transparent)]
    Effect(#[from] BadEffect),
    #[error(transparent)]
    Target(#[from] BadTarget),
    #[error(transparent)]
    Range(#[from] BadRange),
    #[error(transparent)]
    Percent(#[from] BadPercent),
    #[error(transparent)]
    Ramp(#[from] BadRamp),
    #[error(transparent)]
    Table(#[from] BadTable),
}

impl BadFault {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unresolved { .. } => "is it deployed, and does the name resolve where the control plane runs?",
            Self::OwnerUnknown { .. } => "`systemd-cgls` lists units and cgroups; is it running there?",
            Self::OwnerOfIngress { .. } => {
                "leave the direction at egress, which slows its round trips as well, or name its local ports instead"
            }
            Self::EverythingAndMore => "leave out `everything`, or all the others",
            Self::TooManyPpm { .. } => "1,000,000 millionths are 100 %",
            Self::Effect(e) => e.hint(),
            Self::Target(e) => e.hint(),
            Self::Range(e) => e.hint(),
            Self::Percent(e) => e.hint(),
            Self::Ramp(e) => e.hint(),
            Self::Table(e) => e.hint(),
        }
    }
}

/// What of a fault only names something, looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found<'a> {
    /// `spec.to` as addresses.
    pub peers: &'a [Cidr],
    /// `spec.of` on this host.
    pub cgroup: Option<Cgroup>,
    /// The other ends of the agent's own connections.
    pub channel: &'a [SocketAddr],
}

/// Checks a fault.
///
/// # Errors
/// [`BadFault`].
pub fn fault_of(spec: &FaultSpec, found: Found<'_>) -> Result<Fault, BadFault> {
    let Found { peers, cgroup, channel } = found;
    let everything = spec.to.contains(&asked::Peer::Everything);
    match (everything, spec.to.as_slice(), peers) {
        (true, [_], []) | (false, [_, ..], [_, ..]) | (false, [], []) => {}
        (true, _, _) => return Err(BadFault::EverythingAndMore),
        (false, names, _) => {
            let name = names.first().map_or_else(|| "no name".to_owned(), ToString::to_string);
            return Err(BadFault::Unresolved { name });
        }
    }
    if let Some(of) = &spec.of {
        if spec.direction != asked::Direction::Egress {
            return Err(BadFault::OwnerOfIngress { of: of.to_string() });
        }
        if cgroup.is_none() {
            return Err(BadFault::OwnerUnknown { of: of.to_string() });
        }
    }
    let selectors = Selectors {
        everything,
        peers: peers.to_vec(),
        protocol: spec.protocol.map(|protocol| match protocol {
            asked::Protocol::Tcp => Protocol::Tcp,
            asked::Protocol::Udp => Protocol::Udp,
            asked::Protocol::Icmp => Protocol::Icmp,
        }),
        local_ports: ports(&spec.local_ports)?,
        remote_ports: ports(&spec.remote_ports)?,
        cgroup: spec.of.as_ref().and(cgroup),
    };
    // Ports, a protocol or a cgroup by themselves bound `everything`: what is selected is then no longer all.
    let selectors =
        if everything && (selectors.protocol.is_some() || selectors.cgroup.is_some() || has_ports(&selectors)) {
            Selectors { everything: false, ..selectors }
        } else {
            selectors
        };
    Ok(Fault {
        direction: match spec.direction {
            asked::Direction::Egress => Direction::Egress,
            asked::Direction::Ingress => Direction::Ingress,
            asked::Direction::Both => Direction::Both,
        },
        target: Target::new(selectors, channel)?,
        effect: Effect::new(parts(spec)?)?,
        ramp: Ramp::new(Duration::from_micros(spec.ramp_us))?,
        flows: match spec.flows_ppm {
            None => FlowShare::ALL,
            Some(ppm) => FlowShare::from_percent(percent(ppm)?)?,
        },
    })
}

fn has_ports(selectors: &Selectors) -> bool {
    !selectors.local_ports.is_empty() || !selectors.remote_ports.is_empty()
}

fn ports(spans: &[asked::PortSpan]) -> Result<Vec<PortRange>, BadRange> {
    spans.iter().map(|span| PortRange::new(span.first, span.last)).collect()
}

fn parts(spec: &FaultSpec) -> Result<Parts, BadFault> {
    let delay = spec.delay.as_ref().map(delay).transpose()?;
    let bursts = spec.bursts.map(|burst| {
        Ok::<_, BadFault>(Loss::GilbertElliott(GilbertElliott {
            to_bad: probability(burst.to_bad_ppm)?,
            to_good: probability(burst.to_good_ppm)?,
            loss_when_bad: probability(burst.loss_when_bad_ppm)?,
            loss_when_good: probability(burst.loss_when_good_ppm)?,
        }))
    });
    let loss = spec.loss.map(|loss| chance(loss).map(Loss::Random));
    let reorder = spec.reorder.map(|r| {
        let chance = chance(asked::ChanceSpec { ppm: r.ppm, correlation_ppm: r.correlation_ppm })?;
        Ok::<_, BadFault>(Reorder::new(chance, r.gap)?)
    });
    Ok(Parts {
        delay,
        loss: bursts.transpose()?.or(loss.transpose()?),
        duplicate: spec.duplicate.map(chance).transpose()?,
        reorder: reorder.transpose()?,
        corrupt: spec.corrupt.map(chance).transpose()?,
        rate: spec.rate_bytes_per_second.map(Rate::bytes_per_second).transpose()?,
    })
}

fn delay(asked: &asked::DelaySpec) -> Result<Delay, BadFault> {
    let shape = match &asked.shape {
        asked::Shape::Uniform => Distribution::Uniform,
        asked::Shape::Normal => Distribution::Normal,
        asked::Shape::Pareto => Distribution::Pareto,
        asked::Shape::ParetoNormal => Distribution::ParetoNormal,
        asked::Shape::Table(table) => Distribution::Table(Table::new(table.entries())?),
    };
    let order = if asked.reorders { Order::ByTime } else { Order::Kept };
    let jitter = Duration::from_micros(asked.jitter_us);
    let fixed = Delay::fixed(Duration::from_micros(asked.mean_us))?;
    Ok(fixed.varied(jitter, probability(asked.correlation_ppm)?, shape, order)?)
}

fn chance(asked: asked::ChanceSpec) -> Result<Chance, BadFault> {
    Ok(Chance { probability: probability(asked.ppm)?, correlation: probability(asked.correlation_ppm)? })
}

fn probability(ppm: u32) -> Result<Probability, BadFault> {
    Ok(Probability::from_percent(percent(ppm)?)?)
}

fn percent(ppm: u32) -> Result<f64, BadFault> {
    if ppm > asked::ALL_PPM { Err(BadFault::TooManyPpm { ppm }) } else { Ok(f64::from(ppm) / 1e4) }
}
