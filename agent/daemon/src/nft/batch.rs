//! The messages of a batch: what is made and deleted in it.

use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};

use super::expression::Expressions;
use super::ranges::Ranges;
use crate::netlink::attributes::Attributes;
use crate::netlink::{NetlinkError, Raw};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`: the upper byte of a message's kind.
const NFTABLES: u16 = 10;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DELETE_ELEMENTS: u16 = 14;

/// Which packets a table sees, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `NFPROTO_INET`: both versions of IP, at the hooks around routing.
    Inet = 1,
    /// `NFPROTO_IPV4`: one version of it, for what [`Family::Inet`] does not know.
    Ip4 = 2,
    /// `NFPROTO_NETDEV`: at a device, before and after everything that routing does.
    Netdev = 5,
    /// `NFPROTO_IPV6`.
    Ip6 = 10,
}

const TABLE_OWNED: u32 = 2;
const SET_INTERVALS: u32 = 4;
const SET_TIMEOUTS: u32 = 0x10;
const APPEND: u16 = 0x800;
/// `NF_DROP`, as the policy of a chain; otherwise packets pass.
const DROP: u32 = 0;
/// For `nft list`, which takes keys for numbers in the network's order unless the set says otherwise: u8 type 0
/// (`NFTNL_UDATA_SET_KEYBYTEORDER`), u8 length, u32 1.
const SHOWN_IN_THE_MACHINES_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};
/// Elements in one message: with 80 bytes each a quarter of what its list may have.
const ELEMENTS_MAX: usize = 200;

/// Where on the way of a packet a chain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `NF_NETDEV_INGRESS`: after taps such as tcpdump, before anything else.
    Ingress,
    /// `NF_NETDEV_EGRESS` (Linux 5.16): the last before the device's qdisc; packets are as they go on the wire.
    Egress,
    /// `NF_INET_LOCAL_OUT`, in family inet: what this host's sockets send, routed already.
    Output,
    /// `NF_INET_PRE_ROUTING`: what has come in by any device, and what a bridge passes on where it is told to ask (br_netfilter).
    Arrival,
    /// The same in a chain of type route (in family inet since Linux 5.2): what gets another mark there is routed anew.
    Reroute,
}

impl Hook {
    fn number(self) -> u32 {
        match self {
            Self::Ingress | Self::Arrival => 0,
            Self::Egress => 1,
            Self::Output | Self::Reroute => 3,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Ingress | Self::Egress | Self::Output | Self::Arrival => "filter",
            Self::Reroute => "route",
        }
    }
}

/// A chain of rules: at a device's hook, or one that others jump to.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    pub name: &'a str,
    pub at: Option<At<'a>>,
}

/// Where a chain stands, and what becomes of packets that none of its rules decides about.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub hook: Hook,
    /// None in family inet: only hooks of family netdev are a device's.
    pub device: Option<&'a str>,
    /// Of the chains at a hook, packets pass the one of the smallest first; a number with a sign on the wire.
    pub priority: u32,
    pub drops: bool,
}

impl<'a> At<'a> {
    /// Where everybody's chains stand, and packets pass.
    pub fn new(hook: Hook, device: &'a str) -> Self {
        Self { hook, device: Some(device), priority: 0, drops: false }
    }

    /// Among what routing sees: not at [`Hook::Ingress`] or [`Hook::Egress`].
    pub fn routed(hook: Hook, priority: u32) -> Self {
        Self { hook, device: None, priority, drops: false }
    }
}

/// What a set holds. The type's number is for `nft list` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Numbers of devices, each until its timeout.
    DevicesForATime,
    /// EtherTypes, likewise.
    EtherTypesForATime,
    Ipv4Ranges,
    Ipv6Ranges,
    PortRanges,
}

impl Set {
    fn flags(self) -> u32 {
        match self {
            Self::DevicesForATime | Self::EtherTypesForATime => SET_TIMEOUTS,
            Self::Ipv4Ranges | Self::Ipv6Ranges | Self::PortRanges => SET_INTERVALS,
        }
    }

    fn key_bytes(self) -> u32 {
        match self {
            Self::DevicesForATime | Self::Ipv4Ranges => 4,
            Self::Ipv6Ranges => 16,
            Self::EtherTypesForATime | Self::PortRanges => 2,
        }
    }

    /// `enum datatypes` of nft's own header datatype.h.
    fn shown_as(self) -> u32 {
        match self {
            Self::EtherTypesForATime => 10,
            Self::DevicesForATime => 20,
            Self::Ipv4Ranges => 7,
            Self::Ipv6Ranges => 8,
            Self::PortRanges => 13,
        }
    }
}

/// Members of a set.
#[derive(Debug, Clone)]
pub enum Elements {
    /// These keys, for so long from now.
    ForATime(Vec<Vec<u8>>, Duration),
    Ranges(Ranges),
}

impl Elements {
    /// Numbers of devices, for so long from now.
    pub fn devices(numbers: &[u32], timeout: Duration) -> Self {
        Self::ForATime(numbers.iter().map(|number| number.to_ne_bytes().to_vec()).collect(), timeout)
    }
}

/// Changes that are made together.
#[derive(Debug)]
pub struct Batch {
    messages: Vec<Raw>,
    family: Family,
    sets: u32,
    too_long: bool,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Of tables at devices.
    pub fn new() -> Self {
        let begin = Raw { kind: BATCH_BEGIN, flags: 0, body: head(0, NFTABLES).to_vec() };
        Self { messages: vec![begin], family: Family::Netdev, sets: 0, too_long: false }
    }

    /// Of tables where packets are routed.
    pub fn inet() -> Self {
        Self { family: Family::Inet, ..Self::new() }
    }

    /// Changes to tables of this family, among those of another.
    pub fn of(&mut self, family: Family, fill: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.family, family);
        fill(self);
        self.family = before;
    }

    /// A table that dies with the connection.
    pub fn new_table(&mut self, table: &str) {
        self.message(NEW_TABLE, NLM_F_CREATE, |a| {
            a.put_text(1, table);
            a.put_be(2, TABLE_OWNED);
        });
    }

    /// A table that stays until it is deleted, for kernels that know no owners (before Linux 5.12).
    pub fn new_lasting_table(&mut self, table: &str) {
        self.message(NEW_TABLE, NLM_F_CREATE, |a| a.put_text(1, table));
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, table: &str) {
        self.message(DELETE_TABLE, 0, |a| a.put_text(1, table));
    }

    pub fn new_chain(&mut self, table: &str, chain: Chain<'_>) {
        self.message(NEW_CHAIN, NLM_F_CREATE, |a| {
            a.put_text(1, table);
            a.put_text(3, chain.name);
            let Some(at) = chain.at else { return };
            a.nest(4, |a| {
                a.put_be(1, at.hook.number());
                a.put_be(2, at.priority);
                if let Some(device) = at.device {
                    a.put_text(3, device);
                }
            });
            if at.drops {
                a.put_be(5, DROP);
            }
            a.put_text(7, at.hook.kind());
        });
    }

    pub fn new_set(&mut self, table: &str, name: &str, set: Set) {
        self.sets += 1;
        let id = self.sets;
        self.message(NEW_SET, NLM_F_CREATE, |a| {
            a.put_text(1, table);
            a.put_text(2, name);
            a.put_be(3, set.flags());
            a.put_be(4, set.shown_as());
            a.put_be(5, set.key_bytes());
            a.put_be(10, id);
            if set == Set::DevicesForATime {
                a.put(13, &SHOWN_IN_THE_MACHINES_ORDER);
            }
        });
    }

    /// Appends a rule to a chain.
    pub fn new_rule(&mut self, table: &str, chain: &str, expressions: Expressions) {
        self.message(NEW_RULE, NLM_F_CREATE | APPEND, |a| {
            a.put_text(1, table);
            a.put_text(2, chain);
            a.nest(4, |a| expressions.write(a));
        });
    }

    pub fn add_elements(&mut self, table: &str, set: &str, elements: &Elements) {
        self.elements(NEW_ELEMENTS, NLM_F_CREATE, table, set, elements);
    }

    /// Deletes elements that are there. One that is not fails the batch.
    pub fn delete_elements(&mut self, table: &str, set: &str, elements: &Elements) {
        self.elements(DELETE_ELEMENTS, 0, table, set, elements);
    }

    /// Empties a set.
    pub fn clear(&mut self, table: &str, set: &str) {
        self.message(DELETE_ELEMENTS, 0, |a| {
            a.put_text(1, table);
            a.put_text(2, set);
        });
    }

    fn elements(&mut self, kind: u16, flags: u16, table: &str, set: &str, elements: &Elements) {
        let written: Vec<Element> = match elements {
            Elements::ForATime(keys, timeout) => {
                keys.iter().map(|key| Element { key: key.clone(), end: false, timeout: Some(*timeout) }).collect()
            }
            Elements::Ranges(ranges) => {
                ranges.ends().into_iter().map(|(key, end)| Element { key, end, timeout: None }).collect()
            }
        };
        for some in written.chunks(ELEMENTS_MAX) {
            self.message(kind, flags, |a| {
                a.put_text(1, table);
                a.put_text(2, set);
                a.nest(3, |a| some.iter().for_each(|element| element.write(a)));
            });
        }
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        let mut body = head(self.family as u8, 0).to_vec();
        match attributes.finish() {
            Some(bytes) => body.extend(bytes),
            None => self.too_long = true,
        }
        self.messages.push(Raw { kind: NFTABLES << 8 | kind, flags, body });
    }

    /// All messages. Only the last change is acknowledged: refusals are answered in any case, before it.
    pub(super) fn finish(mut self) -> Result<Vec<Raw>, NetlinkError> {
        if self.too_long {
            return Err(NetlinkError::TooLong);
        }
        if let Some(last) = self.messages.last_mut() {
            last.flags |= NLM_F_ACK;
        }
        self.messages.push(Raw { kind: BATCH_END, flags: 0, body: head(0, NFTABLES).to_vec() });
        Ok(self.messages)
    }
}

/// `struct nfgenmsg`: u8 family, u8 version 0, u16 resource in the network's order.
fn head(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

#[derive(Debug)]
struct Element {
    key: Vec<u8>,
    /// The first key beyond an interval instead of the first within.
    end: bool,
    timeout: Option<Duration>,
}

impl Element {
    fn write(&self, a: &mut Attributes) {
        a.nest(1, |a| {
            a.nest(1, |a| a.put(1, &self.key));
            if self.end {
                a.put_be(3, 1);
            }
            if let Some(timeout) = self.timeout {
                // Milliseconds, and zero would be for ever.
                let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
                a.put(4, &ms.to_be_bytes());
            }
        });
    }
}
