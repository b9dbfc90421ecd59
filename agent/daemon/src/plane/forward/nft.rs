//! As much of nf_tables as the filters need: owner tables of family netdev, sent in one transaction.
//!
//! The numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h. A transaction is made whole or not at all, and packets see
//! all of it at the same time. An owner table is gone when the socket is that made it, whatever becomes of the process.

use std::os::fd::OwnedFd;

use super::attributes::Attributes;
use crate::netlink::{Netlink, NetlinkError};

const NETLINK_NETFILTER: isize = 12;
const NFPROTO_NETDEV: u8 = 5;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const MESSAGE_HEAD_BYTES: usize = 16;
/// In one message: the list is one attribute of at most 64 KB, and an element takes at most 44 bytes.
const ELEMENTS_MAX: usize = 1_000;
/// The first register, of 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Drop = 0,
    Accept = 1,
}

/// NF_NETDEV_INGRESS, NF_NETDEV_EGRESS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Ingress = 0,
    Egress = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The ethertype: 2 bytes in network order.
    Protocol = 1,
    /// 4 bytes in the host's order.
    Mark = 3,
    /// The IP protocol, behind extension headers: 1 byte.
    L4Protocol = 16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// One step of a rule. All work on one register; a rule goes on while its steps hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Load(Key),
    Payload {
        base: Base,
        offset: u32,
        bytes: u32,
    },
    /// Keeps the bits of the mask.
    And(Vec<u8>),
    Is(Compare, Vec<u8>),
    In(&'static str),
    NotIn(&'static str),
    SetMark(u32),
    Verdict(Verdict),
    /// Sends it out of the device with this index, and ends.
    Forward(u32),
}

impl Step {
    fn write(&self, list: Attributes) -> Attributes {
        let value = |bytes: &[u8]| Attributes::new().bytes(1, bytes);
        let expression = |list: Attributes, name: &str, data: Attributes| {
            list.nest(1, Attributes::new().text(1, name).nest(2, data))
        };
        let immediate = |bytes: &[u8]| Attributes::new().be32(1, REGISTER).nest(2, value(bytes));
        match self {
            Self::Load(key) => expression(list, "meta", Attributes::new().be32(2, *key as u32).be32(1, REGISTER)),
            Self::Payload { base, offset, bytes } => {
                let data = Attributes::new().be32(1, REGISTER).be32(2, *base as u32).be32(3, *offset).be32(4, *bytes);
                expression(list, "payload", data)
            }
            Self::And(mask) => {
                let zero = vec![0; mask.len()];
                // A mask is no longer than a register.
                let bytes = u32::try_from(mask.len()).unwrap_or(0);
                let data = Attributes::new().be32(1, REGISTER).be32(2, REGISTER).be32(3, bytes);
                expression(list, "bitwise", data.nest(4, value(mask)).nest(5, value(&zero)))
            }
            Self::Is(compare, bytes) => {
                let data = Attributes::new().be32(1, REGISTER).be32(2, *compare as u32).nest(3, value(bytes));
                expression(list, "cmp", data)
            }
            Self::In(set) => expression(list, "lookup", Attributes::new().text(1, set).be32(2, REGISTER)),
            Self::NotIn(set) => expression(list, "lookup", Attributes::new().text(1, set).be32(2, REGISTER).be32(5, 1)),
            Self::SetMark(mark) => {
                let list = expression(list, "immediate", immediate(&mark.to_ne_bytes()));
                expression(list, "meta", Attributes::new().be32(2, Key::Mark as u32).be32(3, REGISTER))
            }
            Self::Verdict(verdict) => {
                let code = Attributes::new().nest(2, Attributes::new().be32(1, *verdict as u32));
                expression(list, "immediate", Attributes::new().be32(1, VERDICT_REGISTER).nest(2, code))
            }
            Self::Forward(index) => {
                let list = expression(list, "immediate", immediate(&index.to_ne_bytes()));
                expression(list, "fwd", Attributes::new().be32(1, REGISTER))
            }
        }
    }
}

/// A set's keys: single ones with a timeout each, or ranges without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Elements {
    Leased {
        keys: Vec<Vec<u8>>,
        timeout_ms: u64,
    },
    /// From the first to before the second; `None`: to the last there is. They do not touch.
    Ranges(Vec<(Vec<u8>, Option<Vec<u8>>)>),
}

/// Changes that are made together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    messages: Vec<(u16, u16, Attributes)>,
}

impl Batch {
    /// A table that belongs to the socket the batch is sent by.
    pub(super) fn table(&mut self, name: &str) {
        const NFT_TABLE_F_OWNER: u32 = 2;
        self.add(0, NLM_F_CREATE, Attributes::new().text(1, name).be32(2, NFT_TABLE_F_OWNER));
    }

    pub(super) fn delete_table(&mut self, name: &str) {
        self.add(2, 0, Attributes::new().text(1, name));
    }

    /// Of the chains at a hook, packets pass the one of the smallest priority first.
    pub(super) fn chain(&mut self, table: &str, chain: &str, hook: (Hook, u32), device: &str, policy: Verdict) {
        let hook = Attributes::new().be32(1, hook.0 as u32).be32(2, hook.1).text(3, device);
        let attributes = Attributes::new().text(1, table).text(3, chain).nest(4, hook).be32(5, policy as u32);
        self.add(3, NLM_F_CREATE, attributes.text(7, "filter"));
    }

    pub(super) fn rule(&mut self, table: &str, chain: &str, steps: &[Step]) {
        let list = steps.iter().fold(Attributes::new(), |list, step| step.write(list));
        self.add(6, NLM_F_CREATE | NLM_F_APPEND, Attributes::new().text(1, table).text(2, chain).nest(4, list));
    }

    /// `number`: any, another for each set of the batch.
    pub(super) fn set(&mut self, table: &str, set: &str, number: u32, key_bytes: u32, elements: &Elements) {
        const NFT_SET_INTERVAL: u32 = 4;
        const NFT_SET_TIMEOUT: u32 = 16;
        let flags = match elements {
            Elements::Leased { .. } => NFT_SET_TIMEOUT,
            Elements::Ranges(_) => NFT_SET_INTERVAL,
        };
        let attributes = Attributes::new().text(1, table).text(2, set).be32(3, flags).be32(5, key_bytes);
        self.add(9, NLM_F_CREATE, attributes.be32(10, number));
        self.elements(12, table, set, elements);
    }

    /// Puts these in the place of all that are in the set.
    pub(super) fn replace(&mut self, table: &str, set: &str, elements: &Elements) {
        self.add(14, 0, Attributes::new().text(1, table).text(2, set));
        self.elements(12, table, set, elements);
    }

    fn elements(&mut self, message: u16, table: &str, set: &str, elements: &Elements) {
        const INTERVAL_END: u32 = 1;
        let keyed = |key: &[u8]| Attributes::new().nest(1, Attributes::new().bytes(1, key));
        let list: Vec<Attributes> = match elements {
            Elements::Leased { keys, timeout_ms } => keys.iter().map(|k| keyed(k).be64(4, *timeout_ms)).collect(),
            Elements::Ranges(ranges) => {
                let ends = |(first, end): &(Vec<u8>, Option<Vec<u8>>)| {
                    let end = end.as_ref().map(|end| keyed(end).be32(3, INTERVAL_END));
                    [Some(keyed(first)), end].into_iter().flatten().collect::<Vec<_>>()
                };
                ranges.iter().flat_map(ends).collect()
            }
        };
        for some in list.chunks(ELEMENTS_MAX) {
            let some = some.iter().fold(Attributes::new(), |all, element| all.nest(1, element.clone()));
            self.add(message, NLM_F_CREATE, Attributes::new().text(1, table).text(2, set).nest(3, some));
        }
    }

    fn add(&mut self, message: u16, flags: u16, attributes: Attributes) {
        self.messages.push((SUBSYSTEM << 8 | message, flags, attributes));
    }
}

/// Above all numbers of descriptors that an agent has otherwise, and below the usual limit of 1,024.
const DESCRIPTOR_MIN: i32 = 1_000;

/// A socket of nf_tables: the tables made by it live as long as it does.
#[derive(Debug)]
pub(super) struct Nft {
    net: Netlink,
    /// The same socket by a high number. When a process dies, Linux closes its files from the highest number down (task work runs last in,
    /// first out), and each socket of packets takes 20 ms: without this, 130 ms of packets went where nobody read any more.
    _closed_first: Option<OwnedFd>,
    sequence: u32,
}

impl Nft {
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let net = Netlink::open(NETLINK_NETFILTER)?;
        // Where the limit is lower, death takes longer, and that is all.
        let again = rustix::io::fcntl_dupfd_cloexec(&net, DESCRIPTOR_MIN).ok();
        Ok(Self { net, _closed_first: again, sequence: 0 })
    }

    /// Makes all the changes of a batch, or none.
    ///
    /// # Errors
    /// [`NetlinkError`], the first that the kernel names.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let last = batch.messages.len();
        self.write(&mut bytes, BATCH_BEGIN, 0, 0, SUBSYSTEM, &[]);
        for (number, (kind, flags, attributes)) in batch.messages.into_iter().enumerate() {
            // Errors are answered anyway, and in order: so the last answer is that to the last message.
            let ack = if number + 1 == last { NLM_F_ACK } else { 0 };
            self.write(&mut bytes, kind, flags | ack, NFPROTO_NETDEV, 0, &attributes.into_bytes());
        }
        let last = self.sequence;
        self.write(&mut bytes, BATCH_END, 0, 0, SUBSYSTEM, &[]);
        self.net.send(&bytes)?;
        self.answer(first, last)
    }

    /// One message: `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn write(&mut self, into: &mut Vec<u8>, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(MESSAGE_HEAD_BYTES + 4 + attributes.len()).unwrap_or(u32::MAX);
        into.extend(length.to_ne_bytes());
        into.extend(kind.to_ne_bytes());
        into.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        into.extend(self.sequence.to_ne_bytes());
        into.extend(0_u32.to_ne_bytes());
        into.extend([family, 0]);
        into.extend(resource.to_be_bytes());
        into.extend(attributes);
    }

    /// Reads until the answer to the last message, or an error about the batch as a whole.
    fn answer(&mut self, first: u32, last: u32) -> Result<(), NetlinkError> {
        let mut error = None;
        loop {
            let datagram = self.net.receive()?;
            let mut rest = &datagram[..];
            while let Some((kind, sequence, code, length)) = head(rest) {
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if kind != NLMSG_ERROR || !(first..=last).contains(&sequence) {
                    continue;
                }
                if code != 0 {
                    error = error.or(Some(std::io::Error::from_raw_os_error(-code)));
                }
                if sequence == last || (sequence == first && code != 0) {
                    return error.map_or(Ok(()), |error| Err(NetlinkError::Refused(error)));
                }
            }
        }
    }
}

/// Type, sequence number, error code and length of a message.
fn head(bytes: &[u8]) -> Option<(u16, u32, i32, usize)> {
    let four = |at: usize| <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok();
    let length = usize::try_from(u32::from_ne_bytes(four(0)?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let code = four(MESSAGE_HEAD_BYTES).map_or(0, i32::from_ne_bytes);
    (length >= MESSAGE_HEAD_BYTES).then_some((kind, u32::from_ne_bytes(four(8)?), code, length))
}
