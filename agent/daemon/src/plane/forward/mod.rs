//! The plane in user space: packets that a fault concerns take a detour through this process.
//!
//! ```text
//! egress   device ── nft egress: fwd ──> pair ──> rings ─> shaper ─> AF_PACKET, marked ──> device
//! ingress  device ── nft ingress: fwd ─> pair ──> rings ─> shaper ─> AF_PACKET, marked ──> pair ── clsact: mirred ──> device
//! ```
//!
//! No route, address, TTL or MAC changes, and an offloaded frame of 64 KB stays one. It needs CAP_NET_ADMIN and CAP_NET_RAW over the
//! network namespace only, so an ordinary user has it within a user namespace.
//!
//! **How a fault ends without us.** The filter is an owner table of nf_tables, which the kernel removes with the socket that made it:
//! killed, the agent holds nothing up from that moment. It looks at an element with a timeout: when nobody renews, packets pass by themselves.
//! Only the idle pair of devices is left for the guardian. (A filter of tc with mirred stays, and drops all once its target is gone.)
//!
//! A packet that a fault has let go carries a mark and passes the filters of all faults: of several faults for the same packet the one that
//! was put up last has it, for the kernel asks the newest of equal filters first.

mod port;
mod probe;
pub(in crate::plane) mod table;

pub use self::probe::probe;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use troop_agent_core::fault::{Cidr, Fault, Target};
use troop_agent_core::lease::{LeaseId, Ttl};
use troop_agent_core::moment::Moment;

use self::port::Pair;
use self::table::{Detour, Into};
use super::detour::links::{self, Known};
use super::detour::{self, Budget, HELD_MAX_BYTES, Line, UNBOUND, kernel, mark, system, together};
use super::{Backing, By, Device, Order, Plane, PlaneError, Seen, concern, fingerprint};
use crate::clock;
use crate::netlink::Netlink;
use crate::nft::{Batch, Nft};
use crate::packet::Way;
use crate::sys::{self, Rings, Sender};
use crate::undo::{Change, Journal};

/// For large frames that wait for the threads of a fault. 480 of 64 KB: connections as fast as memory send no more while a thread waits for a
/// processor, seen with 64 of them beside twenty other runnable threads; 240 were too few for 32, and 120 for eight.
const LARGE_BYTES: usize = 32 << 20;
/// For those of one thread at least. 120 of 64 KB.
pub(super) const LARGE_MIN_BYTES: usize = 8 << 20;

/// See the module.
#[derive(Debug)]
pub struct ForwardPlane {
    nft: Nft,
    net: Netlink,
    faults: BTreeMap<LeaseId, Up>,
}

#[derive(Debug)]
struct Up {
    table: String,
    target: Target,
    roads: Vec<Road>,
}

/// A detour that exists.
#[derive(Debug)]
struct Road {
    way: Way,
    device: Device,
    pair: [String; 2],
    index: u32,
    line: Line,
}

impl ForwardPlane {
    /// Opens it in the network namespace of this thread, from which all its calls must come.
    ///
    /// # Errors
    /// [`PlaneError::Kernel`].
    pub fn open() -> Result<Self, PlaneError> {
        let nft = Nft::open().map_err(kernel("open nf_tables"))?;
        let net = Netlink::route().map_err(kernel("open rtnetlink"))?;
        Ok(Self { nft, net, faults: BTreeMap::new() })
    }

    /// Everything but the filter: nothing is held yet.
    fn prepare(&mut self, order: &Order, journal: &mut Journal, roads: &mut Vec<Road>) -> Result<(), PlaneError> {
        let all = detour::roads(order).map_err(cannot)?;
        for (number, (device, way)) in all.iter().enumerate() {
            roads.push(self.build(order, device, *way, number, all.len(), journal)?);
        }
        Ok(())
    }

    fn build(
        &mut self,
        order: &Order,
        device: &Device,
        way: Way,
        number: usize,
        count: usize,
        journal: &mut Journal,
    ) -> Result<Road, PlaneError> {
        let name = |end| format!("tr{:08x}{number}{end}", fingerprint(&order.lease));
        let pair = [name('a'), name('b')];
        let like = links::find(&mut self.net, &device.name).map_err(kernel(&format!("find {}", device.name)))?;
        if !like.has_address() {
            // A tunnel's packets have no Ethernet header to send them by. And from `lo`, where packets know their way before they go, the
            // kernel takes those that have to ask for it as forged (no route_localnet).
            return Err(cannot(format!("{}: it is no Ethernet device", device.name)));
        }
        journal.before(&order.lease, &Change::Link { name: pair[0].clone() })?;
        let made = links::pair(&mut self.net, [&pair[0], &pair[1]], &like);
        let [index, end] = made.map_err(kernel(&format!("make the devices {}", pair[0])))?;
        if order.fault.effect.parts().corrupt.is_some() {
            // A wrong bit must be under a checksum, or nobody sees that it is wrong; and one packet has it, not 44 in one frame.
            sys::turn_off_offloads(&pair[0]).map_err(system("turn offloads off"))?;
        }
        let out_of = match way {
            Way::Out => device.index,
            Way::In => {
                links::lead_in(&mut self.net, index, device.index).map_err(kernel("lead packets back in"))?;
                end
            }
        };
        let rings = Rings::open(end, large_bytes(count)).map_err(system("receive packets"))?;
        let sender = Sender::open(out_of, mark::MARK).map_err(system("send packets"))?;
        let port = Pair { rings, sender };
        let budget = Budget::new(HELD_MAX_BYTES / count);
        let setup = detour::setup(&order.fault, way, budget, UNBOUND, port).map_err(system("draw a number"))?;
        let line = Line::start(&pair[0], setup).map_err(system("start a thread"))?;
        Ok(Road { way, device: device.clone(), pair, index, line })
    }

    /// The filter, in two steps: first the lease, whose time the kernel counts from then on, and then the rules that ask for it. However
    /// long this process stands still before, between and after them, no packet takes the detour when the lease has lapsed.
    fn put_up(&mut self, table: &str, target: &Target, roads: &[Road], until: Moment) -> Result<(), PlaneError> {
        let left = until.since(clock::now());
        self.commit("put the lease up", table::leased(table, left))?;
        if clock::now() >= until {
            return Err(cannot("what takes longer than its lease".to_owned()));
        }
        let detours: Vec<Detour<'_>> = roads.iter().map(Road::detour).collect();
        self.commit("put the filter up", table::put_up(table, target, &detours, left))
    }

    fn up(&self, lease: &LeaseId) -> Result<&Up, PlaneError> {
        self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))
    }

    fn commit(&mut self, doing: &str, batch: Batch) -> Result<(), PlaneError> {
        self.nft.commit(batch).map_err(kernel(doing))
    }
}

impl Plane for ForwardPlane {
    fn name(&self) -> &'static str {
        "forward"
    }

    fn backing(&self) -> Backing {
        Backing { on_death: By::Kernel, on_hang: By::Kernel }
    }

    fn can(&self, _fault: &Fault) -> Result<(), PlaneError> {
        Ok(())
    }

    fn apply(&mut self, order: &Order, journal: &mut Journal) -> Result<(), PlaneError> {
        detour::roads(order).map_err(cannot)?;
        if self.faults.contains_key(&order.lease) {
            return Err(cannot(format!("`{}` twice", order.lease)));
        }
        let until = clock::now().after(order.ttl.get());
        let mut roads = Vec::new();
        let table = detour::table_of(&order.lease);
        let done = self
            .prepare(order, journal, &mut roads)
            .and_then(|()| self.put_up(&table, &order.fault.target, &roads, until));
        if let Err(error) = done {
            // Whatever of it there is.
            drop(self.nft.commit(table::take_down(&table, &order.fault.target)));
            drop(roads);
            // The first error is the one to tell; what could not be undone stays in the journal.
            drop(detour::undo(&order.lease, journal, &mut self.net));
            return Err(error);
        }
        self.faults.insert(order.lease.clone(), Up { table, target: order.fault.target.clone(), roads });
        Ok(())
    }

    fn renew(&mut self, lease: &LeaseId, ttl: Ttl, _elapsed: Duration) -> Result<(), PlaneError> {
        let up = self.up(lease)?;
        if up.roads.iter().any(|road| road.line.ask().is_none()) {
            // Nobody reads there any more.
            let batch = table::take_down(&up.table, &up.target);
            self.commit("take the filter down", batch)?;
            return Err(system("reach the thread of the fault")(io::ErrorKind::BrokenPipe.into()));
        }
        let detours: Vec<Detour<'_>> = up.roads.iter().map(Road::detour).collect();
        let batch = table::renewed(&up.table, &up.target, &detours, ttl.get());
        self.commit("renew the filter", batch)
    }

    fn retarget(&mut self, lease: &LeaseId, peers: &[Cidr]) -> Result<(), PlaneError> {
        let up = self.up(lease)?;
        let target = detour::retargeted(&up.target, peers).map_err(cannot)?;
        let batch = concern::retargeted(Batch::new(), &up.table, peers);
        self.commit("change the filter's peers", batch)?;
        for road in &self.up(lease)?.roads {
            road.line.retarget(target.clone());
        }
        Ok(())
    }

    fn heal(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let up = self.up(lease)?;
        let batch = table::take_down(&up.table, &up.target);
        detour::take_down(&mut self.nft, batch, "take the filter down")?;
        if let Some(up) = self.faults.remove(lease) {
            up.roads.iter().for_each(|road| road.line.let_go());
            up.roads.iter().for_each(|road| await_rest(&mut self.net, road));
            for road in up.roads {
                road.line.finish();
                // The journal says so as well, unless somebody who took this process for dead has emptied it.
                let link = Change::Link { name: road.pair[0].clone() };
                link.undo(&mut self.net).map_err(kernel(&format!("remove {link}")))?;
            }
        }
        detour::undo(lease, journal, &mut self.net)
    }

    fn seen(&mut self, lease: &LeaseId) -> Result<Seen, PlaneError> {
        let up = self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        for Road { pair: [first, _], .. } in &up.roads {
            // Without it, whatever should take the detour is dropped, until the lease lapses.
            links::find(&mut self.net, first).map_err(kernel(&format!("find {first}, which somebody has removed")))?;
        }
        let told = up.roads.iter().filter_map(|road| road.line.ask());
        Ok(told.map(|told| told.seen).fold(Seen::default(), together))
    }
}

impl Road {
    fn detour(&self) -> Detour<'_> {
        Detour {
            way: self.way,
            device: &self.device.name,
            index: self.device.index,
            into: Into::Device(self.index),
            out_of: &self.pair[1],
        }
    }
}

/// Waits until all that went into the pair has come out of it and left.
fn await_rest(net: &mut Netlink, road: &Road) {
    detour::await_rest(|| {
        let Known { sent_packets, .. } = links::find(net, &road.pair[0]).ok()?;
        road.line.ask().map(|told| told.is_idle && told.came >= sent_packets)
    });
}

/// The memory in which large frames may wait for one of so many threads.
fn large_bytes(count: usize) -> usize {
    (LARGE_BYTES / count).max(LARGE_MIN_BYTES)
}

fn cannot(what: String) -> PlaneError {
    PlaneError::Cannot { plane: "forward", what }
}
