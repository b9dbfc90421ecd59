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

pub use batch::{Batch, Chain, Elements, Hook, Set};
pub use expression::{Base, Compare, Expressions, Meta, Register};
pub use ranges::Ranges;

use crate::netlink::{Netlink, NetlinkError};

/// `NETLINK_NETFILTER` of linux/netlink.h.
const NETLINK_NETFILTER: isize = 12;
/// A batch with a target of the most peers, IPv6, has some 400 KB; the system's usual limit is 208 KB.
const BATCH_MAX_BYTES: usize = 1 << 20;

/// A connection to nftables, and the owner of the tables made through it.
#[derive(Debug)]
pub struct Nft {
    net: Netlink,
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
        Ok(Self { net })
    }

    /// Does all of a batch or nothing.
    ///
    /// # Errors
    /// [`NetlinkError`]; a refusal names the part by its place in the batch, from 1.
    pub fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        self.net.batch(&batch.finish()?)
    }
}
