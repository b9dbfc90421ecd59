//! The plane that has packets wait in the kernel, and learns only their first bytes: nfnetlink_queue.
//!
//! ```text
//! ingress  device ── nft prerouting: queue ··· verdict ──> as it would have gone on
//! egress   device ── nft egress: dup ──> a bridge of ours ── queue ··· verdict ──> nft ingress: mark, fwd ──> device
//! ```
//!
//! No byte is copied, so that connections as fast as memory stay nearly so; [`super::forward`] copies each twice. It takes what leaves the
//! order of packets and their bytes as they are: for jitter, duplicates and wrong bits there is the other. It is for root of the machine, for an
//! ordinary user's socket has no room for what a busy queue says.
//!
//! **How a fault ends without us.** The tables are owner tables of nf_tables, which the kernel removes with the socket that made them, and a
//! queue without its socket lets packets pass; those that wait are lost with us, as those in the memory of a process are. The tables look at an
//! element with a timeout: when nobody renews, packets pass by themselves. The bridge and its devices are in a network namespace of ours, or lead
//! into it, and are gone with it.
//!
//! Of several faults for the same packet the one that was put up last has it, as in the plane `forward`. A packet that comes in may have to wait
//! in both planes.

mod port;
mod probe;
mod space;
mod table;
mod verdicts;
mod wire;

pub use self::probe::probe;
#[cfg(any(feature = "fuzzing", test))]
pub(crate) use self::wire::waiting;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use troop_agent_core::fault::{Cidr, Fault, FlowShare, Parts, Target};
use troop_agent_core::lease::{LeaseId, Ttl};
use troop_agent_core::moment::Moment;
use troop_agent_core::shaper::Bound;

use self::port::Queue;
use self::space::{Ends, Space};
use self::table::Lead;
use super::detour::{self, Budget, HELD_MAX_BYTES, Line, kernel, links, mark, system, together};
use super::forward::table::{self as filter, Detour, Into};
use super::{Backing, By, Device, Order, Plane, PlaneError, Seen, concern, fingerprint};
use crate::clock;
use crate::netlink::Netlink;
use crate::nft::{Batch, Nft, QueueBy};
use crate::packet::Way;
use crate::undo::{Change, Journal};

/// What the kernel takes for a packet beside its bytes, and more: its own record and the queue's.
const PACKET_BYTES: usize = 512;
/// Of the packets that all of a fault holds.
const PACKETS_MAX: usize = HELD_MAX_BYTES / PACKET_BYTES;
/// From here on free numbers of queues are looked for; people and programs take small ones.
const QUEUES: u16 = 0x7400;
/// How long the devices stay after what was held has been let go: it passes them by in microseconds, later only where interrupts wait for a
/// processor.
const PASSED_WITHIN: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub struct HoldPlane {
    nft: Nft,
    net: Netlink,
    by: QueueBy,
    faults: BTreeMap<LeaseId, Up>,
    /// Whose devices let pass what was held, until then.
    leaving: BTreeMap<LeaseId, (Vec<Out>, Moment)>,
}

#[derive(Debug)]
struct Up {
    table: String,
    target: Target,
    roads: Vec<Road>,
}

/// A queue for one device and direction, which has a thread.
#[derive(Debug)]
struct Road {
    device: Device,
    line: Line,
    by: Whereabouts,
}

#[derive(Debug)]
enum Whereabouts {
    In { queue: u16 },
    Out(Out),
}

#[derive(Debug)]
struct Out {
    ends: Ends,
    into: Into,
    /// In which packets wait.
    _space: Space,
}

impl HoldPlane {
    /// Opens it in the network namespace of this thread, from which all its calls must come. `by`: as [`probe`] has found.
    ///
    /// # Errors
    /// [`PlaneError::Kernel`].
    pub fn open(by: QueueBy) -> Result<Self, PlaneError> {
        let nft = Nft::open().map_err(kernel("open nf_tables"))?;
        let net = Netlink::route().map_err(kernel("open rtnetlink"))?;
        Ok(Self { nft, net, by, faults: BTreeMap::new(), leaving: BTreeMap::new() })
    }

    /// Everything but the tables: nothing waits yet.
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
        let bound = Bound { packets: PACKETS_MAX / count, bytes: HELD_MAX_BYTES / count };
        let packets_max = u32::try_from(bound.packets).unwrap_or(u32::MAX);
        let name = |end| format!("tr{:08x}{number}{end}", fingerprint(&order.lease));
        let (queue, by) = match way {
            Way::In => {
                let queue = Queue::open(QUEUES, packets_max, Some(mark::MARK)).map_err(kernel("open a queue"))?;
                let number = queue.number;
                (queue, Whereabouts::In { queue: number })
            }
            Way::Out => {
                let like =
                    links::find(&mut self.net, &device.name).map_err(kernel(&format!("find {}", device.name)))?;
                if !like.has_address() {
                    return Err(cannot(format!("{}: it is no Ethernet device", device.name)));
                }
                let ends = Ends { into: name('a'), out_of: name('b'), sink: name('t') };
                for name in ends.names() {
                    journal.before(&order.lease, &Change::Link { name: name.clone() })?;
                }
                let (mut space, queue) = Space::make(packets_max)?;
                let [into, sink] = space.furnish(&mut self.net, &ends, &like, queue.number, self.by)?;
                (queue, Whereabouts::Out(Out { ends, into: Into::Copied { into, sink }, _space: space }))
            }
        };
        // What is kept here of a packet are its first bytes, for which there is always room.
        let budget = Budget::new(HELD_MAX_BYTES);
        let setup = detour::setup(&order.fault, way, budget, bound, queue).map_err(system("draw a number"))?;
        let line = Line::start(&name('q'), setup).map_err(system("start a thread"))?;
        Ok(Road { device: device.clone(), line, by })
    }

    /// The tables, in two steps: first the lease, whose time the kernel counts from then on, and then the rules that ask for it. However long
    /// this process stands still before, between and after them, no packet waits when the lease has lapsed.
    fn put_up(&mut self, table: &str, target: &Target, roads: &[Road], until: Moment) -> Result<(), PlaneError> {
        let (detours, leads) = (detours(roads), leads(roads));
        if !detours.is_empty() {
            let batch = filter::way_back(&back(table), &detours);
            self.nft.commit(batch).map_err(kernel("put the way back up"))?;
        }
        let left = until.since(clock::now());
        self.both("put the lease up", &detours, &leads, || filter::leased(table, left), || table::leased(table, left))?;
        if clock::now() >= until {
            return Err(cannot("what takes longer than its lease".to_owned()));
        }
        let by = self.by;
        let out = || filter::put_up(table, target, &detours, left);
        self.both("put the filter up", &detours, &leads, out, || table::put_up(table, target, &leads, by))
    }

    /// Commits what there is of both directions.
    fn both(
        &mut self,
        doing: &str,
        detours: &[Detour<'_>],
        leads: &[Lead],
        out: impl FnOnce() -> Batch,
        into: impl FnOnce() -> Batch,
    ) -> Result<(), PlaneError> {
        if !detours.is_empty() {
            self.nft.commit(out()).map_err(kernel(doing))?;
        }
        if !leads.is_empty() {
            self.nft.commit(into()).map_err(kernel(doing))?;
        }
        Ok(())
    }

    fn take_down(&mut self, table: &str, target: &Target, roads: &[Road]) -> Result<(), PlaneError> {
        const DOING: &str = "take the filter down";
        if !detours(roads).is_empty() {
            detour::take_down(&mut self.nft, filter::take_down(table, target), DOING)?;
        }
        if !leads(roads).is_empty() {
            detour::take_down(&mut self.nft, table::take_down(table), DOING)?;
        }
        Ok(())
    }

    fn remove(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let left = self.leaving.get(lease).map(|(left, _)| left.as_slice()).unwrap_or_default();
        for name in left.iter().flat_map(|left| left.ends.names()) {
            // The journal says so as well, unless somebody who took this process for dead has emptied it.
            let link = Change::Link { name: name.clone() };
            link.undo(&mut self.net).map_err(kernel(&format!("remove {link}")))?;
        }
        detour::take_down(&mut self.nft, table_gone(&back(&detour::table_of(lease))), "take the way back down")?;
        detour::undo(lease, journal, &mut self.net)?;
        self.leaving.remove(lease);
        Ok(())
    }
}

impl Plane for HoldPlane {
    fn name(&self) -> &'static str {
        "hold"
    }

    fn backing(&self) -> Backing {
        Backing { on_death: By::Kernel, on_hang: By::Kernel }
    }

    fn can(&self, fault: &Fault) -> Result<(), PlaneError> {
        able(fault)
    }

    fn apply(&mut self, order: &Order, journal: &mut Journal) -> Result<(), PlaneError> {
        self.can(&order.fault)?;
        detour::roads(order).map_err(cannot)?;
        if self.faults.contains_key(&order.lease) || self.leaving.contains_key(&order.lease) {
            return Err(cannot(format!("`{}` twice", order.lease)));
        }
        let until = clock::now().after(order.ttl.get());
        let mut roads = Vec::new();
        let table = detour::table_of(&order.lease);
        let target = &order.fault.target;
        let done = self.prepare(order, journal, &mut roads).and_then(|()| self.put_up(&table, target, &roads, until));
        if let Err(error) = done {
            // Whatever of it there is, of which nothing waits yet. The first error is the one to tell; what could not be undone stays in the journal.
            drop(self.take_down(&table, target, &roads));
            drop(self.nft.commit(table_gone(&back(&table))));
            drop(roads);
            drop(detour::undo(&order.lease, journal, &mut self.net));
            return Err(error);
        }
        self.faults.insert(order.lease.clone(), Up { table, target: target.clone(), roads });
        Ok(())
    }

    fn renew(&mut self, lease: &LeaseId, ttl: Ttl, _elapsed: Duration) -> Result<(), PlaneError> {
        let Some(up) = self.faults.remove(lease) else { return Err(PlaneError::Unknown(lease.clone())) };
        let (detours, leads) = (detours(&up.roads), leads(&up.roads));
        let done = if up.roads.iter().any(|road| road.line.ask().is_none()) {
            // Nobody reads there any more.
            self.take_down(&up.table, &up.target, &up.roads)
                .and_then(|()| Err(system("reach the thread of the fault")(io::ErrorKind::BrokenPipe.into())))
        } else {
            let out = || filter::renewed(&up.table, &up.target, &detours, ttl.get());
            self.both("renew the filter", &detours, &leads, out, || table::renewed(&up.table, ttl.get()))
        };
        drop((detours, leads));
        self.faults.insert(lease.clone(), up);
        done
    }

    fn retarget(&mut self, lease: &LeaseId, peers: &[Cidr]) -> Result<(), PlaneError> {
        let Some(up) = self.faults.remove(lease) else { return Err(PlaneError::Unknown(lease.clone())) };
        let done = detour::retargeted(&up.target, peers).map_err(cannot).and_then(|target| {
            let (detours, leads) = (detours(&up.roads), leads(&up.roads));
            let out = || concern::retargeted(Batch::new(), &up.table, peers);
            self.both("change the filter's peers", &detours, &leads, out, || table::retargeted(&up.table, peers))?;
            up.roads.iter().for_each(|road| road.line.retarget(target.clone()));
            Ok(())
        });
        self.faults.insert(lease.clone(), up);
        done
    }

    fn heal(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let Some(up) = self.faults.remove(lease) else { return Err(PlaneError::Unknown(lease.clone())) };
        if let Err(error) = self.take_down(&up.table, &up.target, &up.roads) {
            self.faults.insert(lease.clone(), up);
            return Err(error);
        }
        up.roads.iter().for_each(|road| road.line.let_go());
        up.roads.iter().for_each(|road| await_rest(&mut self.net, road));
        let mut left = Vec::new();
        for Road { line, by, .. } in up.roads {
            line.finish();
            if let Whereabouts::Out(out) = by {
                left.push(out);
            }
        }
        if left.is_empty() {
            return detour::undo(lease, journal, &mut self.net);
        }
        self.leaving.insert(lease.clone(), (left, clock::now().after(PASSED_WITHIN)));
        Ok(())
    }

    fn tend(&mut self, journal: &mut Journal) -> Result<bool, PlaneError> {
        let now = clock::now();
        let passed: Vec<LeaseId> =
            self.leaving.iter().filter(|(_, (_, until))| *until <= now).map(|(lease, _)| lease.clone()).collect();
        for lease in passed {
            self.remove(&lease, journal)?;
        }
        Ok(!self.leaving.is_empty())
    }

    fn seen(&mut self, lease: &LeaseId) -> Result<Seen, PlaneError> {
        let up = self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        for name in up.roads.iter().filter_map(Road::ends).flat_map(Ends::names) {
            // Without it, whatever should wait is dropped, until the lease lapses.
            links::find(&mut self.net, name).map_err(kernel(&format!("find {name}, which somebody has removed")))?;
        }
        let told = up.roads.iter().filter_map(|road| road.line.ask());
        Ok(told.map(|told| told.seen).fold(Seen::default(), together))
    }
}

impl Road {
    fn ends(&self) -> Option<&Ends> {
        match &self.by {
            Whereabouts::In { .. } => None,
            Whereabouts::Out(out) => Some(&out.ends),
        }
    }
}

fn able(fault: &Fault) -> Result<(), PlaneError> {
    let Parts { delay, loss: _, duplicate, reorder, corrupt, rate: _ } = fault.effect.parts();
    let unable = [
        (delay.as_ref().is_some_and(|delay| !delay.jitter().is_zero()), "jitter"),
        (duplicate.is_some(), "duplicates"),
        (reorder.is_some(), "reordering"),
        (corrupt.is_some(), "wrong bits"),
        (fault.target.selectors().cgroup.is_some(), "packets of one cgroup"),
        // Those that pass would be looked for through all that wait.
        (fault.flows != FlowShare::ALL, "a share of the flows"),
    ];
    match unable.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(cannot(what.to_owned())),
        None => Ok(()),
    }
}

/// The name of the table by which packets come back.
fn back(table: &str) -> String {
    format!("{table}-back")
}

fn table_gone(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.delete_table(table);
    batch
}

fn detours(roads: &[Road]) -> Vec<Detour<'_>> {
    roads
        .iter()
        .filter_map(|road| {
            let Whereabouts::Out(out) = &road.by else { return None };
            let Device { name, index } = &road.device;
            Some(Detour { way: Way::Out, device: name, index: *index, into: out.into, out_of: &out.ends.out_of })
        })
        .collect()
}

fn leads(roads: &[Road]) -> Vec<Lead> {
    roads
        .iter()
        .filter_map(|road| match road.by {
            Whereabouts::In { queue } => Some(Lead { device: road.device.index, queue }),
            Whereabouts::Out(_) => None,
        })
        .collect()
}

/// Waits until all that went to wait has come to the thread and left it.
fn await_rest(net: &mut Netlink, road: &Road) {
    detour::await_rest(|| {
        let told = road.line.ask()?;
        let went = match road.ends() {
            Some(ends) => links::find(net, &ends.into).ok()?.sent_packets,
            None => 0,
        };
        Some(told.is_idle && told.came >= went)
    });
}

fn cannot(what: String) -> PlaneError {
    PlaneError::Cannot { plane: "hold", what }
}

#[cfg(test)]
mod tests {
    use troop_agent_core::distribution::Distribution;
    use troop_agent_core::fault::{Delay, Direction, Effect, Order, Probability, Ramp, Rate, Selectors};

    use super::*;

    fn can(delay: Delay, rate: Option<Rate>) -> bool {
        let target = Target::new(Selectors { everything: true, ..Selectors::default() }, &[]).unwrap();
        let effect = Effect::new(Parts { delay: Some(delay), rate, ..Parts::default() }).unwrap();
        able(&Fault { direction: Direction::Both, target, effect, ramp: Ramp::NONE, flows: FlowShare::ALL }).is_ok()
    }

    #[test]
    fn what_keeps_the_order_of_packets_it_can_and_nothing_else() {
        let delay = Delay::fixed(Duration::from_millis(20)).unwrap();
        assert!(can(delay.clone(), Some(Rate::bytes_per_second(10_000).unwrap())));
        let varied = delay.varied(Duration::from_millis(5), Probability::NEVER, Distribution::Uniform, Order::Kept);
        assert!(!can(varied.unwrap(), None));
    }
}
