//! The kernel plane: netem on devices of our own, and packets led there.
//!
//! Each direction of a fault has a lane (`lane`): an IFB with netem, which sends packets on to where they came from. What leads
//! them there is a table of nftables that dies with this process and whose elements expire (`rules`), or, where the kernel has
//! none, filters that the guardian must undo (`filters`).
//!
//! **Why not a prio qdisc at the device's root**, with netem in a band of its own: putting it there and taking it away stops every
//! queue of the device, and whatever is sent meanwhile is lost, of flows too that no fault concerns; and all of the device's
//! traffic would pass one queue as long as the fault lasts. Hooks of nftables change nothing at the device, so it does not
//! matter either what qdisc it has.
//!
//! Known limits: netem counts an offloaded packet of up to 64 KB as one, so loss hits bursts of a flow rather than segments; with
//! [`Direction::Both`] each direction has its own lane and thus its own rate. IPv6's neighbour discovery is
//! spared, whatever is asked for. Where a datagram is cut into fragments, the table reaches the first only, without which the
//! others are of no use.
//!
//! [`Direction::Both`]: troop_agent_core::fault::Direction::Both

mod filters;
pub(crate) mod lane;
mod probe;
mod rules;

use std::collections::BTreeMap;
use std::time::Duration;

use troop_agent_core::distribution::Distribution;
use troop_agent_core::fault::{Cidr, Fault, Loss, Parts, Share};
use troop_agent_core::lease::{LeaseId, Ttl};
use troop_agent_core::netem::{Line, Options, Write};

use super::{Backing, By, Order, Plane, PlaneError, Seen, fingerprint};
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::Nft;
use crate::undo::{Change, Journal, Report};
use filters::Slot;
use lane::Lane;
pub use probe::{Capability, Missing, probe};
use rules::{Lanes, Table};

/// Longest time that healing waits for packets which are held; what takes longer is left to [`Plane::tend`]. The agent's other
/// leases wait meanwhile.
const HEAL_WAITS: Duration = Duration::from_millis(50);
/// What packets may queue for a rate beyond their delay; see `netem::limit_packets`.
const RATE_DRAINS: Duration = Duration::from_secs(10);
/// Speed of a line that does not say its own: what a cloud's instance has at most for a flow or two.
const SPEED_UNKNOWN_BYTES: u64 = 1_250_000_000;
/// A lane this full, in quarters of its limit, ends its fault: at the limit netem drops.
const FULL_QUARTERS: u64 = 3;

/// See the module above.
#[derive(Debug)]
pub struct Kernel {
    net: Netlink,
    leads: Leads,
    hashing: bool,
    faults: BTreeMap<LeaseId, Up>,
    /// Healed, and holding packets still.
    draining: Vec<(LeaseId, Vec<Lane>)>,
}

/// What leads packets to lanes.
#[derive(Debug)]
enum Leads {
    Table(Nft),
    Filters,
}

/// A fault that is up.
#[derive(Debug)]
struct Up {
    order: Order,
    egress: Option<Lane>,
    ingress: Option<Lane>,
    share: Share,
    limit: u32,
    path: Path,
}

#[derive(Debug)]
enum Path {
    Table(Table),
    Filters(Slot),
}

impl Up {
    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.egress.iter().chain(&self.ingress)
    }
}

impl Kernel {
    /// The plane for a kernel that can do so much, in the network namespace that this thread is in.
    ///
    /// # Errors
    /// [`PlaneError::Cannot`] where the kernel lacks what every fault needs.
    pub fn new(capability: &Capability) -> Result<Self, PlaneError> {
        let cannot = |missing: &Missing| PlaneError::Cannot { plane: NAME, what: format!("anything: {missing}") };
        if let Err(missing) = &capability.netem {
            return Err(cannot(missing));
        }
        let open = |source| PlaneError::Kernel { doing: "reach the kernel by netlink".into(), source };
        let leads = match (&capability.table, &capability.filters) {
            (Ok(()), _) => Leads::Table(Nft::open().map_err(open)?),
            (Err(_), Ok(())) => Leads::Filters,
            (Err(missing), Err(_)) => return Err(cannot(missing)),
        };
        let hashing = capability.hashing.is_ok();
        let net = Netlink::route().map_err(open)?;
        Ok(Self { net, leads, hashing, faults: BTreeMap::new(), draining: Vec::new() })
    }

    fn make_lane(&mut self, order: &Order, way: char, journal: &mut Journal) -> Result<Lane, PlaneError> {
        let name = format!("troop-{:08x}{way}", fingerprint(&order.lease));
        let kernel = |doing: &str| {
            let doing = format!("{doing} {name}");
            move |source| PlaneError::Kernel { doing, source }
        };
        // A device of this name that is there before us is not ours to undo.
        if lane::kind_of(&mut self.net, &name).map_err(kernel("look for"))?.is_some() {
            return Err(PlaneError::Foreign { device: name, found: "been there before".into() });
        }
        let drain_ms = u64::try_from(drain(order.fault.effect.parts()).as_millis()).unwrap_or(u64::MAX);
        journal.before(&order.lease, &Change::Lane { name: name.clone(), drain_ms })?;
        let options = options(order, order.fault.ramp.at(Duration::ZERO));
        let lane = Lane::make(&mut self.net, &name, &options).map_err(kernel("make"))?;
        let found = lane.look(&mut self.net).map_err(kernel("read"))?.options;
        let differences = found.map(|found| options.differences(&found));
        match differences.as_deref() {
            Some([]) => Ok(lane),
            Some([first, ..]) => Err(kernel("make")(NetlinkError::Answer(first.to_string()))),
            None => Err(kernel("read")(NetlinkError::Answer("netem said nothing of itself".into()))),
        }
    }

    fn put_up(&mut self, order: &Order, journal: &mut Journal) -> Result<Up, PlaneError> {
        let direction = order.fault.direction;
        let egress = direction.has_egress().then(|| self.make_lane(order, 'e', journal)).transpose()?;
        let ingress = direction.has_ingress().then(|| self.make_lane(order, 'i', journal)).transpose()?;
        let lanes = Lanes { egress: egress.as_ref().map(Lane::index), ingress: ingress.as_ref().map(Lane::index) };
        let path = match &mut self.leads {
            Leads::Table(nft) => {
                let doing = || format!("make the table of `{}`", order.lease);
                let table = Table::make(nft, order, lanes);
                Path::Table(table.map_err(|source| PlaneError::Kernel { doing: doing(), source })?)
            }
            Leads::Filters => {
                let slot = free_slot(&self.faults);
                filters::apply(&mut self.net, journal, order, lanes, slot)?;
                Path::Filters(slot)
            }
        };
        let share = order.fault.ramp.at(Duration::ZERO);
        let limit = options(order, share).limit;
        Ok(Up { order: order.clone(), egress, ingress, share, limit, path })
    }

    fn undo(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let mut report = Report::default();
        journal.undo(&lease.to_string(), &mut self.net, &mut report)?;
        match report.failed.into_iter().next() {
            None => Ok(()),
            Some((_, change, source)) => Err(PlaneError::Kernel { doing: format!("take away {change}"), source }),
        }
    }
}

const NAME: &str = "kernel";

impl Plane for Kernel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn backing(&self) -> Backing {
        match self.leads {
            Leads::Table(_) => Backing { on_death: By::Kernel, on_hang: By::Kernel },
            Leads::Filters => Backing { on_death: By::Guardian, on_hang: By::Guardian },
        }
    }

    fn can(&self, fault: &Fault) -> Result<(), PlaneError> {
        let cannot = |what| Err(PlaneError::Cannot { plane: NAME, what });
        match self.leads {
            Leads::Table(_) if !self.hashing && fault.flows != troop_agent_core::fault::FlowShare::ALL => {
                cannot("a percentage of flows without nft_hash".into())
            }
            Leads::Table(_) => Ok(()),
            Leads::Filters => filters::can(fault).or_else(cannot),
        }
    }

    fn apply(&mut self, order: &Order, journal: &mut Journal) -> Result<(), PlaneError> {
        self.can(&order.fault)?;
        let used =
            self.faults.contains_key(&order.lease) || self.draining.iter().any(|(lease, _)| *lease == order.lease);
        if used || order.devices.is_empty() {
            let what = if used { "a lease's fault twice" } else { "a fault on no device" };
            return Err(PlaneError::Cannot { plane: NAME, what: what.into() });
        }
        match self.put_up(order, journal) {
            Ok(up) => {
                self.faults.insert(order.lease.clone(), up);
                Ok(())
            }
            Err(error) => {
                // What cannot be undone now stands in the journal, for the next one; the first error says more.
                self.undo(&order.lease, journal).ok();
                Err(error)
            }
        }
    }

    fn renew(&mut self, lease: &LeaseId, ttl: Ttl, elapsed: Duration) -> Result<(), PlaneError> {
        let up = self.faults.get_mut(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        let kernel = |doing: &str| {
            let doing = format!("{doing} `{lease}`");
            |source| PlaneError::Kernel { doing, source }
        };
        if let (Path::Table(table), Leads::Table(nft)) = (&up.path, &mut self.leads) {
            table.renew(nft, ttl.get()).map_err(kernel("renew"))?;
        }
        let share = up.order.fault.ramp.at(elapsed);
        if share != up.share {
            let options = options(&up.order, share);
            for lane in up.egress.iter().chain(&up.ingress) {
                lane.write(&mut self.net, &options, Write::Change).map_err(kernel("move on the ramp of"))?;
            }
            up.share = share;
        }
        Ok(())
    }

    fn retarget(&mut self, lease: &LeaseId, peers: &[Cidr]) -> Result<(), PlaneError> {
        let up = self.faults.get_mut(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        if up.order.fault.target.selectors().peers.is_empty() {
            return Err(PlaneError::Cannot { plane: NAME, what: "give peers to a fault that names none".into() });
        }
        let kernel = |source| PlaneError::Kernel { doing: format!("change whom `{lease}` concerns"), source };
        match (&up.path, &mut self.leads) {
            (Path::Table(table), Leads::Table(nft)) => table.retarget(nft, peers).map_err(kernel),
            (Path::Filters(slot), _) => {
                let lanes = Lanes {
                    egress: up.egress.as_ref().map(Lane::index),
                    ingress: up.ingress.as_ref().map(Lane::index),
                };
                filters::retarget(&mut self.net, &up.order, lanes, *slot, peers).map_err(kernel)
            }
            (Path::Table(_), Leads::Filters) => Ok(()),
        }
    }

    fn heal(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let up = self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        let kernel = |source| PlaneError::Kernel { doing: format!("end `{lease}`"), source };
        match (&up.path, &mut self.leads) {
            (Path::Table(table), Leads::Table(nft)) => table.delete(nft).map_err(kernel)?,
            (Path::Filters(slot), _) => {
                filters::stop(&mut self.net, &up.order, up.egress.is_some(), up.ingress.is_some(), *slot)
                    .map_err(kernel)?;
            }
            (Path::Table(_), Leads::Filters) => {}
        }
        let lanes: Vec<_> = up.lanes().cloned().collect();
        self.faults.remove(lease);
        for lane in &lanes {
            if !lane::wait_until_empty(&mut self.net, lane.index(), HEAL_WAITS).map_err(kernel)? {
                self.draining.push((lease.clone(), lanes));
                return Ok(());
            }
        }
        self.undo(lease, journal)
    }

    fn tend(&mut self, journal: &mut Journal) -> Result<bool, PlaneError> {
        let kernel = |source| PlaneError::Kernel { doing: "see what lanes hold".into(), source };
        for (lease, lanes) in std::mem::take(&mut self.draining) {
            let mut empty = true;
            for lane in &lanes {
                empty &= lane.look(&mut self.net).map_err(kernel)?.held_packets == 0;
            }
            if empty {
                self.undo(&lease, journal)?;
            } else {
                self.draining.push((lease, lanes));
            }
        }
        Ok(!self.draining.is_empty())
    }

    fn seen(&mut self, lease: &LeaseId) -> Result<Seen, PlaneError> {
        let up = self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        let kernel = |source| PlaneError::Kernel { doing: format!("see what `{lease}` does"), source };
        let mut seen = Seen::default();
        for lane in up.egress.iter().chain(&up.ingress) {
            let look = lane.look(&mut self.net).map_err(kernel)?;
            seen.concerned += look.sent + look.dropped + look.held_packets;
            seen.lost += look.dropped;
            seen.held_packets += look.held_packets;
            seen.held_bytes += look.held_bytes;
            seen.full |= look.held_packets * 4 >= u64::from(up.limit) * FULL_QUARTERS;
        }
        Ok(seen)
    }
}

/// What netem is told at this point of the ramp. The limit is that of the whole fault from the start.
fn options(order: &Order, share: Share) -> Options {
    let line = line(order);
    let whole = Options::of(order.fault.effect.parts(), line);
    Options { limit: whole.limit, ..Options::of(&order.fault.effect.at(share), line) }
}

/// All of a fault's packets share a lane, so the fastest device counts.
fn line(order: &Order) -> Line {
    let speed = |device: &super::Device| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{}/speed", device.name)).ok()?;
        // Megabits per second; -1 where it is unknown.
        text.trim().parse::<u64>().ok().map(|megabits| megabits * 125_000)
    };
    let fastest = order.devices.iter().map(|device| speed(device).unwrap_or(SPEED_UNKNOWN_BYTES)).max();
    Line { bytes_per_second: fastest.unwrap_or(SPEED_UNKNOWN_BYTES) }
}

/// How long packets may take to leave when no more come.
fn drain(parts: &Parts) -> Duration {
    let delay = parts.delay.as_ref().map_or(Duration::ZERO, |delay| {
        let deviations = if *delay.distribution() == Distribution::Uniform { 1 } else { 4 };
        delay.mean() + delay.jitter() * deviations
    });
    let holds_nothing = parts.loss == Some(Loss::ALL);
    let rate = if parts.rate.is_some() && !holds_nothing { RATE_DRAINS } else { Duration::ZERO };
    delay + rate + HEAL_WAITS
}

fn free_slot(faults: &BTreeMap<LeaseId, Up>) -> Slot {
    let taken = |slot: &Slot| faults.values().any(|up| matches!(&up.path, Path::Filters(used) if used == slot));
    // There are at most LEASES_MAX faults, so one of the first numbers is free.
    (0..=u16::MAX / 4 - 1).map(Slot).find(|slot| !taken(slot)).unwrap_or(Slot(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_have_names_that_a_device_can_have() {
        let lease = LeaseId::new(&"x".repeat(64)).unwrap();
        let name = format!("troop-{:08x}e", fingerprint(&lease));
        assert!(name.len() <= 15, "{name}");
    }

    #[test]
    fn a_lane_is_given_its_longest_delay_to_empty() {
        use troop_agent_core::fault::Delay;
        let delay = Some(Delay::fixed(Duration::from_secs(3)).unwrap());
        assert_eq!(drain(&Parts { delay, ..Parts::default() }), Duration::from_secs(3) + HEAL_WAITS);
        assert_eq!(drain(&Parts { loss: Some(Loss::ALL), ..Parts::default() }), HEAL_WAITS);
    }
}
