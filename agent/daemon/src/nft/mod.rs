//! nftables by netlink, without `nft` and its libraries: tables that live no longer than this process.
//!
//! A table is made with the flag "owner" (`NFT_TABLE_F_OWNER`, Linux 5.12): nobody else may change it, `nft flush ruleset`
//! passes it by, and the kernel deletes it when the socket that made it is closed, however the process ends. So an [`Nft`] is
//! to live as long as what its tables do.
//!
//! Changes come in batches, of which all is done or nothing. Wire format: linux/netfilter/nfnetlink.h and nf_tables.h; numbers
//! are in the network's order.

mod batch;
mod expression;
mod ranges;

pub use batch::{At, Batch, Chain, Elements, Family, Hook, Set};
pub use expression::{Base, Compare, Expressions, Meta, QueueBy, Register};
pub use ranges::Ranges;

use std::os::fd::OwnedFd;

use crate::netlink::{Netlink, NetlinkError};

/// `NETLINK_NETFILTER` of linux/netlink.h.
const NETLINK_NETFILTER: isize = 12;
/// A batch with a target of the most peers, IPv6, has some 400 KB; the system's usual limit is 208 KB.
const BATCH_MAX_BYTES: usize = 1 << 20;

/// Above all numbers of descriptors that an agent has otherwise, and below the usual limit of 1,024.
const DESCRIPTOR_MIN: i32 = 1_000;

/// A connection to nftables, and the owner of the tables made through it.
#[derive(Debug)]
pub struct Nft {
    net: Netlink,
    /// The same socket by a high number. When a process dies, Linux closes its files from the highest number down (task work
    /// runs last in, first out), and each socket of packets takes 20 ms: without this, 130 ms of packets went where nobody read any
    /// more.
    _closed_first: Option<OwnedFd>,
}

impl Nft {
    /// Connects in the namespace that this thread is in.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`], also where the kernel has no nfnetlink.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut net = Netlink::open(NETLINK_NETFILTER)?;
        // Without it the largest targets are refused by the send itself, and said so.
        net.send_up_to(BATCH_MAX_BYTES).ok();
        // Where the limit is lower, death takes longer, and that is all.
        let again = rustix::io::fcntl_dupfd_cloexec(&net, DESCRIPTOR_MIN).ok();
        Ok(Self { net, _closed_first: again })
    }

    /// Does all of a batch or nothing.
    ///
    /// # Errors
    /// [`NetlinkError`]; a refusal names the part by its place in the batch, from 1.
    pub fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        self.net.batch(&batch.finish()?)
    }
}
