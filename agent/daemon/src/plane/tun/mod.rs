//! The plane in user space for kernels without hooks of nf_tables at what leaves a device (before Linux 5.16): packets that a fault
//! concerns are routed into a TUN.
//!
//! ```text
//! socket ─> route ─> nft output: mark ─> ip rule: route anew ─> TUN ─ queues ─> shaper ─> raw socket, marked ─> route ─> device
//! ```
//!
//! It needs CAP_NET_ADMIN and CAP_NET_RAW over the network namespace, and the right to open /dev/net/tun. A TUN takes one packet at a time, cut
//! to its size and with its checksum: a bare loop over one had 0.35 of a veth's throughput, so any other plane that can do a fault is preferred.
//!
//! **How a fault ends without us.** The TUN is not persistent: the kernel removes it with our last descriptor, and its routes with it. Then the
//! rule finds nothing and the next one routes the packet as ever; so what is left, the rule and, before Linux 5.12, the table, does nothing until
//! the journal is undone. Standing still, we are passed by when the lease's element of the table has expired.
//!
//! **Why packets do not go round.** What a line sends carries a mark, and the table marks only what has none. That spares those whom somebody
//! else has marked, whose routing the new mark would change.
//!
//! What it does not reach: what comes in, which nothing could put back as if it had just come; what this host routes or bridges for others, as it does
//! for containers with a namespace of their own; sockets bound to a device; multicast and broadcast; connections whose addresses this host
//! translates. A packet is sent by a socket of ours the second time, so that firewall rules for the sender's user or cgroup see the agent; a
//! source address that a rule of translation would have given a new connection by its device is not given.

mod probe;
mod queue;
mod routes;
mod table;

pub use self::probe::{Owners, probe};
pub use self::routes::Rule;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use troop_agent_core::fault::{Cidr, Direction, Fault, Loss, Parts, Target};
use troop_agent_core::lease::{LeaseId, Ttl};
use troop_agent_core::moment::Moment;

use self::queue::{Out, Queue};
use self::table::Lead;
use super::detour::{self, Budget, HELD_MAX_BYTES, LINES_MAX, Line, UNBOUND, kernel, links, mark, system, together};
use super::{Backing, By, Device, Order, Plane, PlaneError, Seen, fingerprint};
use crate::clock;
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::{Batch, Nft};
use crate::packet::Way;
use crate::undo::{Change, Journal};

/// Marks and tables of routes of faults: these eight bits, twenty of the lease's name, and the number of the device.
const MARKS: u32 = 0x5400_0000;
/// Packets that may wait in each queue of a TUN, where one more is lost: 20 ms of 800,000 a second, twice what a TUN was seen to take.
const WAITING_MAX: u32 = 16_384;
/// The most that a TUN takes.
const MTU_MAX: u32 = 65_535;
/// Queues of one TUN: each is a thread, and no host is to give more processors to a fault.
const QUEUES_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct TunPlane {
    nft: Nft,
    net: Netlink,
    owners: Owners,
    faults: BTreeMap<LeaseId, Up>,
}

#[derive(Debug)]
struct Up {
    table: String,
    target: Target,
    roads: Vec<Road>,
}

/// A TUN for one device that exists.
#[derive(Debug)]
struct Road {
    lead: Lead,
    tun: String,
    lines: Vec<Line>,
}

impl Up {
    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.roads.iter().flat_map(|road| &road.lines)
    }
}

impl TunPlane {
    /// Opens it in the network namespace of this thread, from which all its calls must come.
    ///
    /// # Errors
    /// [`PlaneError::Kernel`].
    pub fn open(owners: Owners) -> Result<Self, PlaneError> {
        let nft = Nft::open().map_err(kernel("open nf_tables"))?;
        let net = Netlink::route().map_err(kernel("open rtnetlink"))?;
        Ok(Self { nft, net, owners, faults: BTreeMap::new() })
    }

    /// Everything but the table: no packet is led anywhere yet.
    fn prepare(&mut self, order: &Order, journal: &mut Journal, roads: &mut Vec<Road>) -> Result<(), PlaneError> {
        let budget = Budget::new(HELD_MAX_BYTES);
        let queues = queues(order.fault.effect.parts()).min(LINES_MAX / order.devices.len());
        for (number, device) in (0_u32..).zip(&order.devices) {
            let road = self.build(order, device, number, queues, &budget, journal)?;
            roads.push(road);
        }
        Ok(())
    }

    fn build(
        &mut self,
        order: &Order,
        device: &Device,
        number: u32,
        queues: usize,
        budget: &Budget,
        journal: &mut Journal,
    ) -> Result<Road, PlaneError> {
        let like = links::find(&mut self.net, &device.name).map_err(kernel(&format!("find {}", device.name)))?;
        if like.is_loopback {
            return Err(cannot(format!("{}: what this host sends to itself is not routed by marks", device.name)));
        }
        let hash = fingerprint(&order.lease);
        let mark = MARKS | (hash & 0x000f_ffff) << 4 | number;
        let tun = format!("tr{hash:08x}{number}t");
        match links::find(&mut self.net, &tun) {
            Ok(_) => return Err(PlaneError::Foreign { device: tun, found: "been there before".to_owned() }),
            Err(error) if error.errno() == Some(Errno::ENODEV as i32) => {}
            Err(error) => return Err(kernel(&format!("look for {tun}"))(error)),
        }
        let has_ipv6 = has_ipv6(&device.name);
        journal.before(&order.lease, &Change::Link { name: tun.clone() })?;
        let made = queue::open(&tun, like.mtu.min(MTU_MAX), queues).map_err(system(&format!("make the TUN {tun}")))?;
        let index = set_up(&mut self.net, &tun).map_err(kernel(&format!("set {tun} up")))?;
        for is_ipv6 in [false, true].into_iter().take(1 + usize::from(has_ipv6)) {
            let rule = Rule { is_ipv6, priority: routes::PRIORITY, mark, table: mark };
            rule.lead_into(&mut self.net, index).map_err(kernel(&format!("make a route into {tun}")))?;
            journal.before(&order.lease, &Change::Rule(rule))?;
            rule.make(&mut self.net).map_err(kernel(&format!("make the rule that leads to {tun}")))?;
        }
        let mut lines = Vec::new();
        for queue in made {
            let out = Out::open(device.index, mark::MARK, has_ipv6).map_err(system("send packets"))?;
            let port = Queue::new(queue, out);
            let setup = detour::setup(&order.fault, Way::Out, budget.clone(), UNBOUND, port);
            let line = setup.and_then(|setup| Line::start(&tun, setup)).map_err(system("start a thread"))?;
            lines.push(line);
        }
        Ok(Road { lead: Lead { device: device.index, mark }, tun, lines })
    }

    /// The table, in two steps: first the lease, whose time the kernel counts from then on, and then the rules that ask for it. However
    /// long this process stands still before, between and after them, no packet is marked when the lease has lapsed.
    fn put_up(
        &mut self,
        order: &Order,
        table: &str,
        roads: &[Road],
        until: Moment,
        journal: &mut Journal,
    ) -> Result<(), PlaneError> {
        let leads: Vec<Lead> = roads.iter().map(|road| road.lead).collect();
        if self.owners == Owners::Unknown {
            journal.before(&order.lease, &Change::Table { name: table.to_owned() })?;
        }
        let left = until.since(clock::now());
        self.commit("put the lease up", table::leased(table, self.owners, &leads, left))?;
        if clock::now() >= until {
            return Err(cannot("what takes longer than its lease".to_owned()));
        }
        self.commit("put the table up", table::put_up(table, &order.fault.target, &leads, follows_connections()))
    }

    fn up(&self, lease: &LeaseId) -> Result<&Up, PlaneError> {
        self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))
    }

    fn commit(&mut self, doing: &str, batch: Batch) -> Result<(), PlaneError> {
        self.nft.commit(batch).map_err(kernel(doing))
    }
}

impl Plane for TunPlane {
    fn name(&self) -> &'static str {
        "tun"
    }

    /// Without owners too: what is left of a killed agent leads nowhere.
    fn backing(&self) -> Backing {
        Backing { on_death: By::Kernel, on_hang: By::Kernel }
    }

    fn can(&self, fault: &Fault) -> Result<(), PlaneError> {
        if fault.target.selectors().cgroup.is_some() {
            return Err(cannot("packets of one cgroup".to_owned()));
        }
        match fault.direction {
            Direction::Egress => Ok(()),
            Direction::Ingress | Direction::Both => {
                Err(cannot("what comes in: it could not be put back as if it had just come".to_owned()))
            }
        }
    }

    fn apply(&mut self, order: &Order, journal: &mut Journal) -> Result<(), PlaneError> {
        self.can(&order.fault)?;
        let count = order.devices.len();
        if count == 0 || count > LINES_MAX {
            return Err(cannot(format!("{count} devices; 1 to {LINES_MAX} it can")));
        }
        if self.faults.contains_key(&order.lease) {
            return Err(cannot(format!("`{}` twice", order.lease)));
        }
        let until = clock::now().after(order.ttl.get());
        let mut roads = Vec::new();
        let table = detour::table_of(&order.lease);
        let done =
            self.prepare(order, journal, &mut roads).and_then(|()| self.put_up(order, &table, &roads, until, journal));
        if let Err(error) = done {
            // Whatever of it there is.
            drop(self.nft.commit(table::take_down(&table)));
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
        let table = up.table.clone();
        let leads: Vec<Lead> = up.roads.iter().map(|road| road.lead).collect();
        if up.lines().any(|line| line.ask().is_none()) {
            // Nobody reads there any more.
            self.commit("take the table down", table::take_down(&table))?;
            return Err(system("reach the thread of the fault")(io::ErrorKind::BrokenPipe.into()));
        }
        self.commit("renew the lease", table::renewed(&table, &leads, ttl.get()))
    }

    fn retarget(&mut self, lease: &LeaseId, peers: &[Cidr]) -> Result<(), PlaneError> {
        let up = self.up(lease)?;
        let target = detour::retargeted(&up.target, peers).map_err(cannot)?;
        let batch = table::retargeted(&up.table, peers);
        self.commit("change the table's peers", batch)?;
        self.up(lease)?.lines().for_each(|line| line.retarget(target.clone()));
        Ok(())
    }

    fn heal(&mut self, lease: &LeaseId, journal: &mut Journal) -> Result<(), PlaneError> {
        let batch = table::take_down(&self.up(lease)?.table);
        detour::take_down(&mut self.nft, batch, "take the table down")?;
        if let Some(up) = self.faults.remove(lease) {
            up.lines().for_each(Line::let_go);
            let is_idle = |line: &Line| line.ask().map(|told| told.is_idle);
            up.lines().for_each(|line| detour::await_rest(|| is_idle(line)));
            for road in up.roads {
                road.lines.into_iter().for_each(Line::finish);
                // The journal says so as well, unless somebody who took this process for dead has emptied it.
                let link = Change::Link { name: road.tun };
                link.undo(&mut self.net).map_err(kernel(&format!("remove {link}")))?;
            }
        }
        detour::undo(lease, journal, &mut self.net)
    }

    fn seen(&mut self, lease: &LeaseId) -> Result<Seen, PlaneError> {
        let up = self.faults.get(lease).ok_or_else(|| PlaneError::Unknown(lease.clone()))?;
        let mut full = false;
        for Road { tun, .. } in &up.roads {
            // Without it nothing is held any more.
            let known = links::find(&mut self.net, tun);
            full |= known.map_err(kernel(&format!("find {tun}, which somebody has removed")))?.dropped_packets > 0;
        }
        if full {
            up.lines().for_each(Line::let_go);
        }
        let told = up.lines().filter_map(Line::ask).map(|told| told.seen);
        Ok(told.fold(Seen { full, ..Seen::default() }, together))
    }
}

/// How many queues share the packets: as many as there are processors, or one where what befalls a packet hangs on the one before.
fn queues(parts: &Parts) -> usize {
    let Parts { delay, loss, duplicate, reorder, corrupt, rate } = parts;
    let chances = [duplicate, corrupt].into_iter().flatten();
    let correlates = chances.chain(match loss {
        Some(Loss::Random(chance)) => Some(chance),
        Some(Loss::GilbertElliott(_)) | None => None,
    });
    let remembers = rate.is_some()
        || reorder.is_some()
        || matches!(loss, Some(Loss::GilbertElliott(_)))
        || correlates.into_iter().any(|chance| !chance.correlation.is_never())
        || delay.as_ref().is_some_and(|delay| !delay.correlation().is_never());
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if remembers { 1 } else { processors.min(QUEUES_MAX) }
}

/// Sets a TUN up, and tells its number.
fn set_up(net: &mut Netlink, tun: &str) -> Result<u32, NetlinkError> {
    let index = links::find(net, tun)?.index;
    links::set_queue(net, index, WAITING_MAX)?;
    // Where new devices have no IPv6 unless somebody says so. Where it may not be said, the route will be refused.
    drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{tun}/disable_ipv6"), "0"));
    links::set_up(net, index)?;
    Ok(index)
}

fn has_ipv6(device: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6")).is_ok_and(|off| off.trim() == "0")
}

/// Whether the kernel follows connections in this namespace: then it may translate their addresses. The agent's own is one.
fn follows_connections() -> bool {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").is_ok_and(|count| count.trim() != "0")
}

fn cannot(what: String) -> PlaneError {
    PlaneError::Cannot { plane: "tun", what }
}

#[cfg(test)]
mod tests {
    use troop_agent_core::fault::{Chance, Delay, Probability, Rate};

    use super::*;

    #[test]
    fn what_remembers_the_packet_before_has_one_queue() {
        let delay = Some(Delay::fixed(Duration::from_millis(1)).unwrap());
        let some = Probability::from_percent(10.0).unwrap();
        let alone = [
            Parts { rate: Some(Rate::bytes_per_second(10_000).unwrap()), ..Parts::default() },
            Parts { loss: Some(Loss::Random(Chance { probability: some, correlation: some })), ..Parts::default() },
        ];
        assert_eq!(alone.each_ref().map(queues), [1, 1]);
        let processors = std::thread::available_parallelism().unwrap().get();
        let shared = Parts { delay, loss: Some(Loss::Random(Chance::of(some))), ..Parts::default() };
        assert_eq!(queues(&shared), processors.min(QUEUES_MAX));
    }
}
