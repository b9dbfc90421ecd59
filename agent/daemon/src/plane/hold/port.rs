//! The port of this plane: packets wait in the kernel, their first bytes come here, and a verdict lets each go on.

use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use troop_agent_core::fault::Flow;

use super::verdicts::Pending;
use super::wire::{self, CAPTURED_BYTES};
use crate::clock;
use crate::netlink::{Netlink, NetlinkError};
use crate::packet::{self, Way};
use crate::plane::detour::{Port, Sink, Source};
use crate::sys::{self, Datagrams, Frame, Sent, Tag};

/// `NETLINK_NETFILTER` of linux/netlink.h.
const NETLINK_NETFILTER: isize = 12;
/// For what is said of packets that wait for the thread: 768 bytes each in the kernel, so that 20,000 may come before it has a processor.
const SOCKET_BYTES: usize = 16 << 20;
/// Verdicts in one call: some sixty, where each has a message of its own.
const VERDICTS_BYTES: usize = 2_048;
/// How many numbers are tried when others have taken theirs.
const NUMBERS_TRIED: u16 = 256;
/// Of Ethernet, which a fault counts as other planes do.
const ETHERNET_BYTES: usize = 14;
/// Before a frame: the packet's number, and how long all of it is.
const HEAD_BYTES: usize = 8;

/// A queue of this network namespace that is ours.
#[derive(Debug)]
pub(super) struct Queue {
    net: Arc<Netlink>,
    pub(super) number: u16,
    /// As long as it is open, the kernel notes when packets come.
    times: UdpSocket,
    mark: Option<u32>,
}

impl Queue {
    /// Takes the first free number from `first` on, in the network namespace of this thread. `mark`: what packets carry that have passed.
    ///
    /// # Errors
    /// [`NetlinkError`]: EPERM for whoever is not root of the machine, or where all numbers are taken.
    pub(super) fn open(first: u16, packets_max: u32, mark: Option<u32>) -> Result<Self, NetlinkError> {
        let mut net = Netlink::open(NETLINK_NETFILTER)?;
        let socket = |errno: Errno| NetlinkError::Socket(errno.into());
        // Two hundred packets are what an ordinary user's socket has room for: too few at any speed.
        setsockopt(&net, sockopt::RcvBufForce, &SOCKET_BYTES).map_err(socket)?;
        let times = UdpSocket::bind(("0.0.0.0", 0)).map_err(NetlinkError::Socket)?;
        setsockopt(&times, sockopt::ReceiveTimestampns, &true).map_err(socket)?;
        let mut taken = None;
        for number in (0..NUMBERS_TRIED).map(|more| first.wrapping_add(more)) {
            match net.batch(&[wire::bind(number)]) {
                Ok(()) => {
                    net.batch(&[wire::set_up(number, packets_max)])?;
                    return Ok(Self { net: Arc::new(net), number, times, mark });
                }
                Err(error) => taken = Some(error),
            }
        }
        Err(taken.unwrap_or(NetlinkError::TooLong))
    }
}

impl Port for Queue {
    const HEAD_BYTES: usize = HEAD_BYTES;

    /// Packets lie well in the kernel meanwhile, and many verdicts at once cost less: 0.87 of what bare devices carry instead of 0.75, seen with eight
    /// connections on two processors.
    const NICE: i32 = 0;

    type Source = Reader;
    type Sink = Verdicts;

    fn split(self) -> (Reader, Verdicts) {
        let Self { net, number, times, mark } = self;
        let reader = Reader {
            net: Arc::clone(&net),
            _times: times,
            datagrams: Datagrams::new(),
            next: 0,
            frame: Vec::with_capacity(HEAD_BYTES + CAPTURED_BYTES),
            is_losing: false,
        };
        (reader, Verdicts { net, pending: RefCell::new(Pending::new(number, mark)) })
    }

    fn wire_bytes(frame: &[u8]) -> usize {
        let bytes = frame.get(4..HEAD_BYTES).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn flow(wire: &[u8], way: Way) -> Option<Flow> {
        packet::flow_of_ip(wire, way)
    }
}

#[derive(Debug)]
pub(super) struct Reader {
    net: Arc<Netlink>,
    _times: UdpSocket,
    datagrams: Datagrams,
    /// The first of them that was not taken.
    next: usize,
    /// A head, and the packet's first bytes.
    frame: Vec<u8>,
    /// There was no room for what was said of some packet, which has passed.
    is_losing: bool,
}

impl Reader {
    /// More of what has come; `None` when nothing has.
    fn receive(&mut self) -> Option<()> {
        self.next = 0;
        loop {
            match self.datagrams.receive(self.net.as_fd()) {
                Ok(_) => return Some(()),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOBUFS) => self.is_losing = true,
                    Some(Errno::EINTR) => {}
                    Some(_) | None => return None,
                },
            }
        }
    }
}

impl Source for Reader {
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        let waiting = loop {
            while self.next < self.datagrams.len() && self.datagrams.get(self.next).and_then(wire::waiting).is_none() {
                // An answer to a verdict for a packet that is gone with its device.
                self.next += 1;
            }
            if let Some(waiting) = self.datagrams.get(self.next).and_then(wire::waiting) {
                self.next += 1;
                break waiting;
            }
            self.receive()?;
        };
        self.frame.clear();
        self.frame.extend(waiting.packet.to_ne_bytes());
        self.frame.extend(u32::try_from(waiting.bytes + ETHERNET_BYTES).unwrap_or(u32::MAX).to_ne_bytes());
        self.frame.extend(waiting.start);
        let came_nanos = waiting.came_nanos.unwrap_or_else(clock::real_nanos);
        let is_losing = std::mem::take(&mut self.is_losing);
        Some(take(Frame { bytes: &self.frame, tag: None, came_nanos, is_cut: false, is_losing }))
    }

    fn has_come(&self) -> bool {
        self.next < self.datagrams.len() || sys::waiting(self.net.as_fd()).is_some_and(|bytes| bytes > 0)
    }

    /// A verdict takes no longer than reading what waits for one.
    fn is_crowded(&self) -> bool {
        false
    }

    /// None: what finds no room passes, and reading says so.
    fn dropped(&mut self) -> io::Result<u64> {
        Ok(0)
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.net.as_fd())
    }
}

/// Verdicts, of which many go to the kernel in one call.
#[derive(Debug)]
pub(super) struct Verdicts {
    net: Arc<Netlink>,
    pending: RefCell<Pending>,
}

impl Verdicts {
    fn put(&self, frame: &[u8], is_lost: bool) {
        let Some(packet) = frame.first_chunk().map(|four| u32::from_ne_bytes(*four)) else { return };
        let mut pending = self.pending.borrow_mut();
        if is_lost {
            pending.lose(packet)
        } else {
            pending.pass(packet)
        }
        if pending.datagram.len() >= VERDICTS_BYTES {
            pending.hand_over(&self.net);
        }
    }
}

impl Sink for Verdicts {
    fn send(&self, frame: &[u8], _tag: Option<Tag>) -> Sent {
        self.put(frame, false);
        Sent::Gone
    }

    fn lose(&self, frame: &[u8]) {
        self.put(frame, true);
    }

    fn flush(&self) {
        self.pending.borrow_mut().hand_over(&self.net);
    }

    fn on_the_way(&self) -> io::Result<usize> {
        Ok(self.pending.borrow().datagram.len())
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.net.as_fd())
    }
}
