//! The port of this plane: a queue of the TUN to receive from, and sockets that send packets with the headers they have.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendmsg,
    setsockopt, socket, sockopt,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio_tun::Tun;
use troop_agent_core::fault::{Flow, TO_MANY};

use crate::clock;
use crate::packet::{self, Way};
use crate::plane::detour::{Port, Sink, Source};
use crate::sys::{Frame, Sent, Tag, descriptor, unsent};

/// The longest packet of IP.
const PACKET_MAX_BYTES: usize = 65_535;

/// Makes a TUN with so many queues, which is gone when the last of them is closed. It is down and has no address.
///
/// # Errors
/// Any of the kernel: ENOENT without /dev/net/tun, EACCES or EPERM without the right to use it.
pub(super) fn open(name: &str, mtu: u32, queues: usize) -> io::Result<Vec<Tun>> {
    // tokio-tun registers each queue with a runtime. Ours only reads when `poll` says that there is something, as all lines do, whose waits
    // are finer than the milliseconds of tokio's timers; so this runtime is never run.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let made = {
        let _entered = runtime.enter();
        let mtu = i32::try_from(mtu).map_err(io::Error::other)?;
        Tun::builder().name(name).mtu(mtu).queues(queues).build()
    };
    // The agent's own runtime lets none be dropped in it that might have to be waited for.
    runtime.shutdown_background();
    made.map_err(|error| match error {
        tokio_tun::Error::NixError(errno) => errno.into(),
        tokio_tun::Error::IoError(error) => error,
    })
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue {
    source: Reader,
    out: Out,
}

impl Queue {
    pub(super) fn new(tun: Tun, out: Out) -> Self {
        Self { source: Reader { tun, buffer: vec![0; PACKET_MAX_BYTES].into(), is_gone: false }, out }
    }
}

impl Port for Queue {
    const HEAD_BYTES: usize = 0;

    type Source = Reader;
    type Sink = Out;

    fn split(self) -> (Reader, Out) {
        (self.source, self.out)
    }

    fn flow(wire: &[u8], way: Way) -> Option<Flow> {
        packet::flow_of_ip(wire, way)
    }

    /// Behind the header: the kernel writes the checksum of IPv4's anew, so that a wrong bit in it would be right, or send the packet to somebody else.
    fn corrupts(wire: &[u8], byte: usize) -> usize {
        let head_bytes = packet::ends_of_ip(wire).map_or(0, |(_, _, head_bytes)| head_bytes);
        if byte >= head_bytes {
            return byte;
        }
        head_bytes + byte % wire.len().saturating_sub(head_bytes).max(1)
    }
}

/// Takes packets out of the queue.
pub(super) struct Reader {
    tun: Tun,
    buffer: Box<[u8]>,
    /// Somebody has removed the TUN.
    is_gone: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("tun", &self.tun.name()).field("is_gone", &self.is_gone).finish_non_exhaustive()
    }
}

impl Source for Reader {
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        let length = loop {
            match self.tun.try_recv(&mut self.buffer) {
                Ok(length) if is_led_here(self.buffer.get(..length)?) => break length,
                Ok(_) => {}
                Err(error) => {
                    self.is_gone |= error.kind() != io::ErrorKind::WouldBlock;
                    return None;
                }
            }
        };
        let bytes = self.buffer.get(..length)?;
        // A TUN does not say when a packet came to it.
        let came_nanos = clock::real_nanos();
        Some(take(Frame { bytes, tag: None, came_nanos, is_cut: false, is_losing: false }))
    }

    fn has_come(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(descriptor(&self.tun), PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents() == PollFlags::IN
    }

    /// A queue does not say how full it is.
    fn is_crowded(&self) -> bool {
        false
    }

    /// The device counts them, for all its queues together.
    fn dropped(&mut self) -> io::Result<u64> {
        Ok(0)
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // That of a TUN which is gone would end every wait at once.
        (!self.is_gone).then(|| descriptor(&self.tun)).into_iter()
    }
}

impl Sink for Out {
    fn send(&self, frame: &[u8], _tag: Option<Tag>) -> Sent {
        self.packet(frame)
    }

    fn on_the_way(&self) -> io::Result<usize> {
        self.sockets().map(|socket| unsent(socket.as_fd())).sum()
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(|socket| socket.as_fd())
    }
}

/// What is sent to many is not: it is for the TUN itself, from somebody who sends out of all devices.
fn is_led_here(packet: &[u8]) -> bool {
    packet::ends_of_ip(packet).is_some_and(|(_, to, _)| !TO_MANY.iter().any(|range| range.contains(to)))
}

/// Sends packets out of one device, by the route that they would have had (raw(7), ipv6(7)).
#[derive(Debug)]
pub(super) struct Out {
    device: u32,
    four: OwnedFd,
    /// Where the kernel has IPv6.
    six: Option<OwnedFd>,
}

impl Out {
    /// `mark`: what the packets carry inside this host.
    ///
    /// # Errors
    /// Any of the kernel: EPERM without CAP_NET_RAW and CAP_NET_ADMIN in the namespace.
    pub(super) fn open(device: u32, mark: u32, has_ipv6: bool) -> io::Result<Self> {
        let open = |family| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            // With this protocol the header is the sender's business.
            let fd = socket(family, SockType::Raw, flags, SockProtocol::Raw)?;
            setsockopt(&fd, sockopt::Mark, &mark)?;
            // As much as an ordinary user may: the kernel lowers it to net.core.wmem_max. More only saves wake-ups.
            setsockopt(&fd, sockopt::SndBuf, &(8 << 20))?;
            Ok::<_, io::Error>(fd)
        };
        let four = open(AddressFamily::Inet)?;
        // To a network's broadcast address it may send what others may have sent there.
        setsockopt(&four, sockopt::Broadcast, &true)?;
        let six = has_ipv6.then(|| open(AddressFamily::Inet6)).transpose()?;
        Ok(Self { device, four, six })
    }

    fn sockets(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&self.four).chain(&self.six)
    }

    fn packet(&self, packet: &[u8]) -> Sent {
        // The source is said besides, since rules of routing may ask for it.
        let sent = match (packet::ends_of_ip(packet), &self.six) {
            (Some((IpAddr::V4(from), IpAddr::V4(to), _)), _) => {
                let from = in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
                let ipi_ifindex = i32::try_from(self.device).unwrap_or(0);
                let info = in_pktinfo { ipi_ifindex, ipi_spec_dst: from, ipi_addr: in_addr { s_addr: 0 } };
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                let info = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(self.four.as_raw_fd(), &[IoSlice::new(packet)], &info, MsgFlags::MSG_DONTWAIT, Some(&to))
            }
            (Some((IpAddr::V6(from), IpAddr::V6(to), _)), Some(six)) => {
                let ipi6_addr = in6_addr { s6_addr: from.octets() };
                let info = in6_pktinfo { ipi6_addr, ipi6_ifindex: self.device };
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                let info = [ControlMessage::Ipv6PacketInfo(&info)];
                sendmsg(six.as_raw_fd(), &[IoSlice::new(packet)], &info, MsgFlags::MSG_DONTWAIT, Some(&to))
            }
            // Nothing else is led into the TUN.
            (Some(_) | None, _) => return Sent::Refused,
        };
        match sent {
            Ok(_) => Sent::Gone,
            Err(Errno::EAGAIN) => Sent::Later,
            Err(_) => Sent::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_bit_is_never_in_the_header() {
        let mut packet = vec![0; 60];
        packet[0] = 0x45;
        assert_eq!([0, 19, 20, 59].map(|byte| Queue::corrupts(&packet, byte)), [20, 39, 20, 59]);
        packet[0] = 0x60;
        assert_eq!([0, 39, 40].map(|byte| Queue::corrupts(&packet, byte)), [40, 59, 40]);
        // Nothing but a header: there is no such byte.
        assert_eq!(Queue::corrupts(&packet[..40], 7), 40);
    }
}
