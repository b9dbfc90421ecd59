//! Whether this host can do it: by doing it, in a network namespace that is thrown away.

use std::time::Duration;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use troop_agent_core::fault::{Cidr, Selectors, Target};

use super::queue::{self, Out};
use super::routes::{self, Rule};
use super::table::{self, Lead};
use super::{MARKS, cannot, has_ipv6, set_up};
use crate::netlink::{Netlink, NetlinkError};
use crate::nft::Nft;
use crate::plane::PlaneError;
use crate::plane::detour::{kernel, mark, system};

const TUN: &str = "trprobe-t";
const TABLE: &str = "troop-probe";

/// Whether tables of nf_tables have owners (Linux 5.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    Known,
    /// Tables stay when the process ends.
    Unknown,
}

/// Goes through every step of a fault. Needs the right to make a network namespace.
///
/// # Errors
/// [`PlaneError`] of the first step that fails: ENOENT without /dev/net/tun, EACCES or EPERM without the right to it.
pub fn probe() -> Result<Owners, PlaneError> {
    // A thread of its own, since a namespace is a thread's: both end together.
    let tried = std::thread::spawn(|| {
        let left = nix::sched::unshare(CloneFlags::CLONE_NEWNET);
        left.map_err(|errno| system("make a network namespace to try in")(errno.into()))?;
        try_all()
    });
    tried.join().unwrap_or_else(|_| Err(cannot("anything: the probe failed".to_owned())))
}

fn try_all() -> Result<Owners, PlaneError> {
    let mut nft = Nft::open().map_err(kernel("open nf_tables"))?;
    let mut net = Netlink::route().map_err(kernel("open rtnetlink"))?;
    let _queues = queue::open(TUN, 1_500, 2).map_err(system("make a TUN with two queues"))?;
    let index = set_up(&mut net, TUN).map_err(kernel("set a TUN up"))?;
    for is_ipv6 in [Some(false), has_ipv6(TUN).then_some(true)].into_iter().flatten() {
        let rule = Rule { is_ipv6, priority: routes::PRIORITY, mark: MARKS, table: MARKS };
        rule.lead_into(&mut net, index).map_err(kernel("make a route into a TUN"))?;
        rule.make(&mut net).map_err(kernel("make a rule of routing"))?;
    }
    Out::open(index, mark::MARK, has_ipv6(TUN)).map_err(system("send packets"))?;
    // An address for documentation (RFC 5737), which nobody has.
    let nobody = Selectors { peers: vec![Cidr::host([192, 0, 2, 1].into())], ..Selectors::default() };
    let target = Target::new(nobody, &[]).map_err(|error| cannot(error.to_string()))?;
    let leads = [Lead { device: index, mark: MARKS }];
    let mut put_up = |owners| {
        nft.commit(table::leased(TABLE, owners, &leads, Duration::from_secs(1)))?;
        // As where connections are followed: here there are none.
        nft.commit(table::put_up(TABLE, &target, &leads, true))?;
        nft.commit(table::take_down(TABLE))
    };
    // A flag that the kernel does not know is an invalid argument.
    let is_unknown = |error: &NetlinkError| error.errno() == Some(Errno::EINVAL as i32);
    match put_up(Owners::Known) {
        Ok(()) => Ok(Owners::Known),
        Err(error) if is_unknown(&error) => {
            put_up(Owners::Unknown).map_err(kernel("put a table up")).map(|()| Owners::Unknown)
        }
        Err(error) => Err(kernel("put a table up")(error)),
    }
}
