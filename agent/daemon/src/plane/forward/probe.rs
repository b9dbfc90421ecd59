//! Whether this host can do it: by doing it, upon a device of its own that nobody uses.

use std::time::Duration;

use troop_agent_core::fault::{Cidr, Direction, Selectors, Target};

use super::table::{self, Detour, Into};
use crate::netlink::Netlink;
use crate::nft::Nft;
use crate::packet::Way;
use crate::plane::PlaneError;
use crate::plane::detour::{kernel, links, mark, system, ways};
use crate::sys::{Rings, Sender};
use crate::undo::Change;

/// Names that no fault has: those end in a number and a letter.
const PAIR: [&str; 2] = ["trprobe-a", "trprobe-b"];
const TABLE: &str = "troop-probe";
const LEASE: Duration = Duration::from_secs(1);

/// Goes through every step of a fault in this direction, in the network namespace of this thread, and leaves nothing. No packet of
/// anybody is touched.
///
/// # Errors
/// [`PlaneError`] of the first step that fails: EPERM without the capabilities, ENOENT where the kernel lacks a part.
pub fn probe(direction: Direction) -> Result<(), PlaneError> {
    let mut nft = Nft::open().map_err(kernel("open nf_tables"))?;
    let mut net = Netlink::route().map_err(kernel("open rtnetlink"))?;
    let like = links::Known { mtu: 1_500, ..links::Known::default() };
    let made = links::pair(&mut net, PAIR, &like).map_err(kernel("make a pair of devices"));
    let done = made.and_then(|[first, second]| {
        if direction.has_ingress() {
            links::lead_in(&mut net, first, second).map_err(kernel("lead packets back in"))?;
        }
        let _rings = Rings::open(second, super::LARGE_MIN_BYTES).map_err(system("receive packets"))?;
        let _sender = Sender::open(second, mark::MARK).map_err(system("send packets"))?;
        // An address for documentation (RFC 5737), which nobody has.
        let nobody = Selectors { peers: vec![Cidr::host([192, 0, 2, 1].into())], ..Selectors::default() };
        let target = Target::new(nobody, &[]).map_err(|error| super::cannot(error.to_string()))?;
        let ways = ways(direction);
        let detours: Vec<_> = ways
            .into_iter()
            .map(|way: Way| Detour { way, device: PAIR[0], index: first, into: Into::Device(first), out_of: PAIR[1] })
            .collect();
        nft.commit(table::leased(TABLE, LEASE)).map_err(kernel("put the lease up"))?;
        nft.commit(table::put_up(TABLE, &target, &detours[..], LEASE)).map_err(kernel("put the filter up"))?;
        nft.commit(table::take_down(TABLE, &target)).map_err(kernel("take the filter down"))
    });
    // Where it was not made there is nothing to remove, and what else fails is said by the step that made it.
    drop(Change::Link { name: PAIR[0].to_owned() }.undo(&mut net));
    done
}
