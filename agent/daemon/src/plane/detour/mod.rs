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
use std::time::Duration;

use nix::errno::Errno;
use troop_agent_core::fault::{BadTarget, Cidr, Direction, Fault, OffLimits, Selectors, Target};
use troop_agent_core::lease::LeaseId;
use troop_agent_core::shaper::{self, Bound};

use super::{Device, Order, PlaneError, Seen, fingerprint};
use crate::clock;
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::{Batch, Nft};
use crate::packet::Way;
use crate::undo::{Journal, Report};

/// Memory for held packets of one fault: 64 MB are 500 ms of a gigabit per second, and no instance is so small that it misses them.
pub(super) const HELD_MAX_BYTES: usize = 64 << 20;
/// Threads of one fault. In the forward plane each has 16 MB of rings besides, and all together up to 32 MB of large frames that wait for them (64 MB
/// for more than four).
pub(super) const LINES_MAX: usize = 8;
/// Longest wait for packets that left their way just before the fault ended.
const DRAIN_MAX: Duration = Duration::from_millis(50);
/// How often it is looked whether they have come.
const DRAIN_LOOK: Duration = Duration::from_micros(200);

/// The devices and directions in which a fault holds packets, each of which has a thread.
///
/// # Errors
/// What is wrong with how many there are.
pub(super) fn roads(order: &Order) -> Result<Vec<(&Device, Way)>, String> {
    let ways = ways(order.fault.direction);
    let roads: Vec<_> = order.devices.iter().flat_map(|device| ways.iter().map(move |way| (device, *way))).collect();
    match roads.len() {
        1..=LINES_MAX => Ok(roads),
        count => Err(format!("{count} devices and directions; 1 to {LINES_MAX} it can")),
    }
}

pub(super) fn ways(direction: Direction) -> Vec<Way> {
    let egress = direction.has_egress().then_some(Way::Out);
    let ingress = direction.has_ingress().then_some(Way::In);
    egress.into_iter().chain(ingress).collect()
}

/// Nothing but the memory that it takes bounds what is held.
pub(super) const UNBOUND: Bound = Bound { packets: usize::MAX, bytes: usize::MAX };

/// What a line does for a fault. `budget`: the memory for what this process keeps of held packets; `bound`: how much is held, wherever.
///
/// # Errors
/// When no number can be drawn.
pub(super) fn setup<P>(fault: &Fault, way: Way, budget: Budget, bound: Bound, port: P) -> io::Result<Setup<P>> {
    let Fault { target, effect, ramp, flows, .. } = fault;
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

/// The name of a fault's table.
pub(super) fn table_of(lease: &LeaseId) -> String {
    format!("troop-{:08x}", fingerprint(lease))
}

/// Takes a table down. One that is gone already is down.
///
/// # Errors
/// [`PlaneError::Kernel`].
pub(super) fn take_down(nft: &mut Nft, batch: Batch, doing: &str) -> Result<(), PlaneError> {
    match nft.commit(batch) {
        Err(error) if error.errno() != Some(Errno::ENOENT as i32) => Err(kernel(doing)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Waits until all that took the detour has come and left; the table is gone already. `None`: nobody can say any more.
pub(super) fn await_rest(mut is_done: impl FnMut() -> Option<bool>) {
    let until = clock::now().after(DRAIN_MAX);
    let mut was_done = false;
    while clock::now() < until {
        let Some(done) = is_done() else { return };
        // Twice: another processor may have been within the table when it went.
        if done && was_done {
            return;
        }
        was_done = done;
        std::thread::sleep(DRAIN_LOOK);
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
