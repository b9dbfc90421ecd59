//! Receiving large frames by a socket's own queue (packet(7)).
//!
//! A ring's slots come round, so that the memory of the next one lies in no cache of a processor any more, neither when the kernel copies a frame
//! into it nor when the frame is sent from there. Here all frames are copied into one place, when they are taken. With one to eight
//! connections that cost a tenth less time on processors for each gigabit; and memory is taken only while frames wait. The queue may be long
//! enough with CAP_NET_ADMIN over the machine only. Small frames stay with their ring, which needs no call for each.

use std::io;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{VNET_HEAD_BYTES, bind, set, socket, waiting};
use super::ring::{FRAME_MAX_BYTES, Frame, Tag, only, tag_of};

/// `struct tpacket_auxdata` (linux/if_packet.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Auxiliary {
    status: u32,
    length: u32,
    captured: u32,
    mac: u16,
    net: u16,
    tag: u16,
    tag_kind: u16,
}

/// What the kernel says beside a frame: room for its time, its tag, and the count of those that were lost.
const CONTROL_WORDS: usize = 16;

/// A frame that was received and not taken yet.
#[derive(Debug, Clone, Copy)]
struct Next {
    bytes: usize,
    tag: Option<Tag>,
    came: (u32, u32),
    is_cut: bool,
    is_losing: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
    /// One place for all frames, one at a time: it stays in the processor's cache.
    buffer: Box<[u8]>,
    next: Option<Next>,
    /// Memory that frames may take which wait.
    room_bytes: usize,
    /// Frames lost so far, as they were told with the last one.
    lost: u32,
}

impl Queue {
    /// `lengths`: those frames only, of all that come in from the device.
    ///
    /// # Errors
    /// Any of the kernel: EPERM where this process may not have a queue of so many bytes.
    pub(super) fn open(device: u32, room_bytes: usize, lengths: (u32, u32)) -> io::Result<Self> {
        let fd = socket()?;
        // The kernel doubles it, for what it takes besides.
        let half = i32::try_from(room_bytes / 2).map_err(io::Error::other)?;
        set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &half)?;
        set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1_i32)?;
        set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1_i32)?;
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
            set(fd.as_fd(), libc::SOL_PACKET, option, &1_i32)?;
        }
        only(fd.as_fd(), lengths)?;
        bind(fd.as_fd(), device, u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?)?;
        let buffer = vec![0; VNET_HEAD_BYTES + FRAME_MAX_BYTES].into();
        Ok(Self { fd, buffer, next: None, room_bytes, lost: 0 })
    }

    /// When the next frame came, by the kernel's clock; `None` when there is none.
    pub(super) fn time(&mut self) -> Option<(u32, u32)> {
        if self.next.is_none() {
            self.next = self.receive();
        }
        self.next.map(|next| next.came)
    }

    /// After [`Self::time`] has said that there is one.
    pub(super) fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        let Next { bytes, tag, came, is_cut, is_losing } = self.next.take()?;
        let came_nanos = u64::from(came.0) * 1_000_000_000 + u64::from(came.1);
        Some(take(Frame { bytes: &self.buffer[..bytes], tag, came_nanos, is_cut, is_losing }))
    }

    pub(super) fn has_some(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.next.is_some() || (poll(&mut fds, Some(&at_once)).is_ok() && fds[0].revents().contains(PollFlags::IN))
    }

    /// Whether three quarters and more of the room are taken. Where the kernel does not say, they are.
    pub(super) fn is_crowded(&self) -> bool {
        waiting(self.fd.as_fd()).is_none_or(|waiting| waiting / 3 >= self.room_bytes / 4)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next frame into the buffer.
    fn receive(&mut self) -> Option<Next> {
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        let mut control = [0_u64; CONTROL_WORDS];
        let mut message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: &raw mut part,
            msg_iovlen: 1,
            msg_control: control.as_mut_ptr().cast(),
            msg_controllen: mem::size_of_val(&control),
            msg_flags: 0,
        };
        // SAFETY: the message and all that it points to live until the call is over, and have the lengths that stand there.
        let received = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(bytes) = usize::try_from(received) else {
            // A frame that is offloaded in a way which the virtio header does not know is gone with this error (`packet_rcv_vnet` in
            // net/packet/af_packet.c); all others say that there is none.
            let is_gone = io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL);
            return is_gone.then_some(Next { bytes: 0, tag: None, came: (0, 0), is_cut: true, is_losing: true });
        };
        let is_cut = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        let mut next =
            Next { bytes, tag: None, came: (0, 0), is_cut: is_cut || bytes < VNET_HEAD_BYTES, is_losing: false };
        // SAFETY: the kernel has written the control messages, whose length stands in the message, into memory that lives.
        let mut head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        while !head.is_null() {
            // SAFETY: it is not null, and so it is a header within that memory.
            let libc::cmsghdr { cmsg_level, cmsg_type, .. } = unsafe { head.read_unaligned() };
            // SAFETY: as before.
            let data = unsafe { libc::CMSG_DATA(head) };
            match (cmsg_level, cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                    // SAFETY: of this kind, so that its data is a timespec.
                    let time = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                    // Seconds as a ring has them; both are never negative.
                    next.came = (u32::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
                }
                (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                    // SAFETY: of this kind, so that its data is a number of 32 bits.
                    let lost = unsafe { data.cast::<u32>().read_unaligned() };
                    next.is_losing = lost != self.lost;
                    self.lost = lost;
                }
                (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                    // SAFETY: of this kind, so that its data is this.
                    let auxiliary = unsafe { data.cast::<Auxiliary>().read_unaligned() };
                    next.tag = tag_of(auxiliary.status, auxiliary.tag, auxiliary.tag_kind);
                }
                _ => {}
            }
            // SAFETY: both are of the same message.
            head = unsafe { libc::CMSG_NXTHDR(&raw const message, head) };
        }
        Some(next)
    }
}
