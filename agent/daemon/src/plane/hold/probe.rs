//! Whether this host can do it: by doing it, upon devices of its own that nobody uses, with a packet that goes the whole way.

use std::time::Duration;

use troop_agent_core::fault::{Cidr, Selectors, Target};

use super::port::Queue;
use super::space::{Ends, Space};
use super::table::{self, Lead};
use crate::clock;
use crate::netlink::Netlink;
use crate::nft::{Nft, QueueBy};
use crate::packet::Way;
use crate::plane::PlaneError;
use crate::plane::detour::{Port as _, Source as _, kernel, links, mark, system};
use crate::plane::forward::table::{self as filter, Detour, Into};
use crate::sys::{Sender, VNET_HEAD_BYTES};
use crate::undo::Change;

/// Names that no fault has: those end in a number and a letter.
const ENDS: [&str; 3] = ["trprobe-c", "trprobe-d", "trprobe-e"];
const TABLE: &str = "troop-probe-hold";
const LEASE: Duration = Duration::from_secs(1);
const PACKETS_MAX: u32 = 16;
/// A packet is in a queue some microseconds after it was sent.
const COMES_WITHIN: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Goes through every step of a fault, in the network namespace of this thread, and leaves nothing. No packet of anybody is touched. Returns by
/// what of the kernel rules hand packets to a queue.
///
/// # Errors
/// [`PlaneError`] of the first step that fails: EPERM for whoever is not root of the machine, ENOENT where the kernel lacks a part.
pub fn probe() -> Result<QueueBy, PlaneError> {
    // Before anything is made: root of a user namespace stops here.
    drop(Queue::open(super::QUEUES, PACKETS_MAX, None).map_err(kernel("open a queue for packets"))?);
    tried(QueueBy::Expression).or_else(|_| tried(QueueBy::Target))
}

fn tried(by: QueueBy) -> Result<QueueBy, PlaneError> {
    let mut nft = Nft::open().map_err(kernel("open nf_tables"))?;
    let mut net = Netlink::route().map_err(kernel("open rtnetlink"))?;
    let done = with_devices(&mut nft, &mut net, by);
    for name in ENDS {
        // What was not made need not be removed, and what else fails is said by the step that made it.
        drop(Change::Link { name: name.to_owned() }.undo(&mut net));
    }
    done.map(|()| by)
}

fn with_devices(nft: &mut Nft, net: &mut Netlink, by: QueueBy) -> Result<(), PlaneError> {
    let like = links::Known { mtu: 1_500, ..links::Known::default() };
    let ends = Ends { into: ENDS[0].to_owned(), out_of: ENDS[1].to_owned(), sink: ENDS[2].to_owned() };
    let (mut space, queue) = Space::make(PACKETS_MAX)?;
    let [into, sink] = space.furnish(net, &ends, &like, queue.number, by)?;
    // An address for documentation (RFC 5737), which nobody has.
    let nobody = Selectors { peers: vec![Cidr::host([192, 0, 2, 1].into())], ..Selectors::default() };
    let target = Target::new(nobody, &[]).map_err(|error| super::cannot(error.to_string()))?;
    let (device, out_of, by_copy) = (ENDS[0], ENDS[1], Into::Copied { into, sink });
    let detours = [Detour { way: Way::Out, device, index: into, into: by_copy, out_of }];
    nft.commit(filter::leased(TABLE, LEASE)).map_err(kernel("put the lease up"))?;
    nft.commit(filter::put_up(TABLE, &target, &detours, LEASE)).map_err(kernel("put the filter up"))?;
    nft.commit(filter::take_down(TABLE, &target)).map_err(kernel("take the filter down"))?;
    let leads = [Lead { device: into, queue: super::QUEUES }];
    nft.commit(table::leased(TABLE, LEASE)).map_err(kernel("put the lease of what comes in up"))?;
    nft.commit(table::put_up(TABLE, &target, &leads, by)).map_err(kernel("put the filter of what comes in up"))?;
    nft.commit(table::take_down(TABLE)).map_err(kernel("take the filter of what comes in down"))?;

    let (mut waiting, _verdicts) = queue.split();
    let sender = Sender::open(into, mark::MARK).map_err(system("send a packet"))?;
    let _comes_or_not = sender.send(&[0; VNET_HEAD_BYTES], &frame(), None);
    let until = clock::now().after(COMES_WITHIN);
    while waiting.take(|_| ()).is_none() {
        if clock::now() >= until {
            return Err(super::cannot("what this kernel's bridge does not ask for (br_netfilter)".to_owned()));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// From one address for documentation to another: nobody's, of no protocol (59), to no station (IEEE 802.3, RFC 791, RFC 5737).
fn frame() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 1, 59, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1];
    let sum: u32 = packet.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(folded).unwrap_or_default();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    // Stations that nobody has made up but for a test (locally administered), and IPv4.
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(packet);
    frame.resize(60, 0);
    frame
}
