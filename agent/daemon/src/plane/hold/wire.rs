//! The messages of nfnetlink_queue (linux/netfilter/nfnetlink_queue.h): packets that wait in the kernel, and what is to become of them.
//!
//! A message is a netlink header, `struct nfgenmsg`, and attributes. Numbers within are in the network's order.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use crate::netlink::Raw;
use crate::netlink::attributes::Attributes;

/// `NFNL_SUBSYS_QUEUE`: the upper byte of a message's kind.
const QUEUE: u16 = 3 << 8;
const PACKET: u16 = QUEUE;
const VERDICT: u16 = QUEUE | 1;
const CONFIG: u16 = QUEUE | 2;
const VERDICT_UP_TO: u16 = QUEUE | 3;

const NETLINK_HEAD_BYTES: usize = 16;
const HEAD_BYTES: usize = NETLINK_HEAD_BYTES + 4;

const CFG_CMD: u16 = 1;
const CFG_PARAMS: u16 = 2;
const CFG_QUEUE_MAXLEN: u16 = 3;
const CFG_MASK: u16 = 4;
const CFG_FLAGS: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
/// What has no room in the queue passes, and is not lost.
const FAIL_OPEN: u32 = 1;
/// Frames of 64 KB come as they are, and with their checksums yet to be written.
const OFFLOADED: u32 = 4;

const PACKET_HDR: u16 = 1;
const VERDICT_HDR: u16 = 2;
const MARK: u16 = 3;
const TIMESTAMP: u16 = 4;
const PAYLOAD: u16 = 10;
const CAPTURED_OF: u16 = 13;

/// Bytes of each packet that are looked at: IPv6 with some extension headers, and the ports.
pub(super) const CAPTURED_BYTES: usize = 120;

/// Takes the queue of this number for the socket that sends it.
pub(super) fn bind(number: u16) -> Raw {
    config(number, |a| a.put(CFG_CMD, &[COMMAND_BIND, 0, 0, 0]))
}

/// How the queue is kept: at most so many packets, of each the first bytes.
pub(super) fn set_up(number: u16, packets_max: u32) -> Raw {
    let captured = u32::try_from(CAPTURED_BYTES).unwrap_or(u32::MAX).to_be_bytes();
    config(number, |a| {
        a.put(CFG_PARAMS, &[&captured[..], &[COPY_PACKET]].concat());
        a.put_be(CFG_QUEUE_MAXLEN, packets_max);
        a.put_be(CFG_FLAGS, FAIL_OPEN | OFFLOADED);
        a.put_be(CFG_MASK, FAIL_OPEN | OFFLOADED);
    })
}

fn config(number: u16, fill: impl FnOnce(&mut Attributes)) -> Raw {
    let mut attributes = Attributes::default();
    fill(&mut attributes);
    let mut body = head(number).to_vec();
    // Some forty bytes: they fit.
    body.extend(attributes.finish().unwrap_or_default());
    Raw { kind: CONFIG, flags: NLM_F_ACK, body }
}

/// `struct nfgenmsg`: u8 family 0, u8 version 0, u16 number of the queue.
fn head(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [0, 0, high, low]
}

/// What is to become of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Lose,
    /// It goes on, with this mark if it is to have one.
    Pass {
        mark: Option<u32>,
    },
}

/// Appends a verdict to a datagram, which may hold many.
pub(super) fn put_verdict(datagram: &mut Vec<u8>, number: u16, packet: u32, verdict: Verdict) {
    put(datagram, VERDICT, number, packet, verdict);
}

/// The same for all that wait up to this packet.
pub(super) fn put_verdict_up_to(datagram: &mut Vec<u8>, number: u16, packet: u32, verdict: Verdict) {
    put(datagram, VERDICT_UP_TO, number, packet, verdict);
}

fn put(datagram: &mut Vec<u8>, kind: u16, number: u16, packet: u32, verdict: Verdict) {
    /// `NF_DROP` and `NF_ACCEPT`.
    const DROP: u32 = 0;
    const ACCEPT: u32 = 1;
    let (code, mark) = match verdict {
        Verdict::Lose => (DROP, None),
        Verdict::Pass { mark } => (ACCEPT, mark),
    };
    let mut attributes = Attributes::default();
    attributes.put(VERDICT_HDR, &[code.to_be_bytes(), packet.to_be_bytes()].concat());
    if let Some(mark) = mark {
        attributes.put_be(MARK, mark);
    }
    // Twenty bytes: they fit.
    let attributes = attributes.finish().unwrap_or_default();
    let length = u32::try_from(HEAD_BYTES + attributes.len()).unwrap_or(u32::MAX);
    datagram.extend(length.to_ne_bytes());
    datagram.extend(kind.to_ne_bytes());
    datagram.extend(NLM_F_REQUEST.to_ne_bytes());
    datagram.extend([0; 8]);
    datagram.extend(head(number));
    datagram.extend(attributes);
}

/// A packet that waits in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting<'a> {
    pub(crate) packet: u32,
    /// Its first bytes, from the header of IP on.
    pub(crate) start: &'a [u8],
    /// All its bytes.
    pub(crate) bytes: usize,
    /// When it came, in nanoseconds as [`crate::clock::real_nanos`] counts them and never before it did, if the kernel has noted it.
    pub(crate) came_nanos: Option<u64>,
}

/// The packet in a datagram. `None` where there is none, or none that makes sense.
pub(crate) fn waiting(datagram: &[u8]) -> Option<Waiting<'_>> {
    if datagram.get(4..6)? != PACKET.to_ne_bytes() {
        return None;
    }
    let length = usize::try_from(u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?)).ok()?;
    let mut rest = datagram.get(HEAD_BYTES..length)?;
    let (mut packet, mut start, mut whole, mut came_nanos) = (None, None, None, None);
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let payload = rest.get(4..length)?;
        match u16::from_ne_bytes([c, d]) {
            PACKET_HDR => packet = Some(number(payload)?),
            PAYLOAD => start = Some(payload),
            CAPTURED_OF => whole = usize::try_from(number(payload)?).ok(),
            TIMESTAMP => came_nanos = nanos(payload),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let start = start.unwrap_or_default();
    Some(Waiting { packet: packet?, start, bytes: whole.unwrap_or(start.len()), came_nanos })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// Seconds and microseconds, of which the kernel leaves the rest out: counted up, so that no delay begins before its packet came.
fn nanos(bytes: &[u8]) -> Option<u64> {
    let part = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    part(0)?.checked_mul(1_000_000)?.checked_add(part(8)?)?.checked_add(1)?.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes it.
    fn message(fill: impl FnOnce(&mut Attributes)) -> Vec<u8> {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        let attributes = attributes.finish().unwrap();
        let mut bytes = u32::try_from(HEAD_BYTES + attributes.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(PACKET.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([2, 0, 0, 7]);
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn a_packet_is_read_with_its_length_and_time() {
        let bytes = message(|a| {
            a.put(PACKET_HDR, &[0, 0, 1, 2, 8, 0, 0]);
            a.put(TIMESTAMP, &[2_u64.to_be_bytes(), 3_u64.to_be_bytes()].concat());
            a.put_be(CAPTURED_OF, 64_000);
            a.put(PAYLOAD, b"start");
        });
        let read = waiting(&bytes).unwrap();
        assert_eq!(read, Waiting { packet: 258, start: b"start", bytes: 64_000, came_nanos: Some(2_000_004_000) });
        let whole = message(|a| {
            a.put(PACKET_HDR, &[0, 0, 0, 9, 8, 0, 0]);
            a.put(PAYLOAD, b"all");
        });
        assert_eq!(waiting(&whole), Some(Waiting { packet: 9, start: b"all", bytes: 3, came_nanos: None }));
    }

    #[test]
    fn what_is_cut_short_or_lies_about_its_length_is_none() {
        let bytes = message(|a| {
            a.put(PACKET_HDR, &[0, 0, 1, 2, 8, 0, 0]);
            a.put(PAYLOAD, b"start");
        });
        for cut in 0..bytes.len() {
            assert_eq!(waiting(&bytes[..cut]), None, "{cut}");
        }
        let mut lies = bytes.clone();
        lies[HEAD_BYTES] = 3;
        assert_eq!(waiting(&lies), None);
        assert_eq!(waiting(&message(|a| a.put(PAYLOAD, b"no number"))), None);
    }

    #[test]
    fn a_verdict_says_which_packet_and_what_mark() {
        let mut datagram = Vec::new();
        put_verdict(&mut datagram, 7, 258, Verdict::Lose);
        put_verdict(&mut datagram, 7, 259, Verdict::Pass { mark: Some(5) });
        let first = [0, 0, 0, 7, 12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        let second = [0, 0, 0, 7, 12, 0, 2, 0, 0, 0, 0, 1, 0, 0, 1, 3, 8, 0, 3, 0, 0, 0, 0, 5];
        assert_eq!((datagram[0], &datagram[16..32]), (32, &first[..]));
        assert_eq!((datagram[32], &datagram[48..]), (40, &second[..]));
    }
}
