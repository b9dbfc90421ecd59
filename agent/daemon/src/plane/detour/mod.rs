//! What the planes in user space have in common: packets take a detour through a thread of this process, which holds them.
//!
//! A [`line::Line`] is such a thread. A [`port::Port`] is where its packets come from and where they go, which is all in which the planes
//! differ.

mod arena;
mod engine;
mod line;
pub(super) mod links;
pub(super) mod mark;
mod port;

pub(super) use self::arena::Budget;
pub(super) use self::engine::Setup;
pub(super) use self::line::Line;
pub(super) use self::port::{Port, Sink, Source};

use std::io;

use troop_agent_core::fault::{BadTarget, Cidr, Fault, OffLimits, Selectors, Target};
use troop_agent_core::lease::LeaseId;
use troop_agent_core::shaper::{self, Bound};

use super::{PlaneError, Seen};
use crate::netlink::{Netlink, NetlinkError};
use crate::packet::Way;
use crate::undo::{Journal, Report};

/// Memory for held packets of one fault: 64 MB are 500 ms of a gigabit per second, and no instance is so small that it misses them.
pub(super) const HELD_MAX_BYTES: usize = 64 << 20;
/// Threads of one fault. In the forward plane each has 24 MB of rings besides.
pub(super) const LINES_MAX: usize = 8;

/// What a line does for a fault.
///
/// # Errors
/// When no number can be drawn.
pub(super) fn setup<P>(fault: &Fault, way: Way, budget: Budget, port: P) -> io::Result<Setup<P>> {
    let Fault { target, effect, ramp, flows, .. } = fault;
    let bound = Bound { packets: usize::MAX, bytes: usize::MAX };
    let shaper = shaper::Setup { effect: effect.clone(), ramp: *ramp, flows: *flows, bound };
    Ok(Setup { way, target: target.clone(), shaper, seed: seed()?, budget, port })
}

/// The same target with other peers; `None` without any, for then it is nobody.
///
/// # Errors
/// What there is against it.
pub(super) fn retargeted(target: &Target, peers: &[Cidr]) -> Result<Option<Target>, String> {
    if target.selectors().peers.is_empty() {
        return Err("new peers for a fault that names none".to_owned());
    }
    match peers {
        [] => Ok(None),
        peers => with_peers(target, peers).map(Some).map_err(|error| error.to_string()),
    }
}

/// Undoes what the journal says of a fault.
///
/// # Errors
/// [`PlaneError`]; then it stands in the journal still.
pub(super) fn undo(lease: &LeaseId, journal: &mut Journal, net: &mut Netlink) -> Result<(), PlaneError> {
    let mut report = Report::default();
    journal.undo(&lease.to_string(), net, &mut report)?;
    match report.failed.pop() {
        Some((_, change, source)) => Err(kernel(&format!("remove {change}"))(source)),
        None => Ok(()),
    }
}

fn with_peers(target: &Target, peers: &[Cidr]) -> Result<Target, BadTarget> {
    let channel: Vec<_> = target
        .off_limits()
        .iter()
        .filter_map(|what| match what {
            OffLimits::Channel(end) => Some(*end),
            OffLimits::Ssh | OffLimits::LinkLocal => None,
        })
        .collect();
    Target::new(Selectors { peers: peers.to_vec(), ..target.selectors().clone() }, &channel)
}

pub(super) fn together(all: Seen, one: Seen) -> Seen {
    Seen {
        concerned: all.concerned + one.concerned,
        lost: all.lost + one.lost,
        held_packets: all.held_packets + one.held_packets,
        held_bytes: all.held_bytes + one.held_bytes,
        held_for: all.held_for.max(one.held_for),
        full: all.full || one.full,
    }
}

/// 32 bits of a lease's name (FNV-1a), for names of devices, which are at most 15 bytes.
pub(super) fn fingerprint(lease: &LeaseId) -> u32 {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    lease.to_string().bytes().fold(0x811c_9dc5, mix)
}

fn seed() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

pub(super) fn kernel(doing: &str) -> impl Fn(NetlinkError) -> PlaneError {
    let doing = doing.to_owned();
    move |source| PlaneError::Kernel { doing: doing.clone(), source }
}

pub(super) fn system(doing: &str) -> impl Fn(io::Error) -> PlaneError {
    let doing = doing.to_owned();
    move |source| PlaneError::System { doing: doing.clone(), source }
}
