//! AF_PACKET sockets (packet(7), linux/if_packet.h), those that send; see [`super::ring`] for those that receive.

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use nix::libc;

/// `struct virtio_net_hdr` before each frame: which checksum is yet to be filled in, and how an offloaded frame is to be cut.
pub(crate) const VNET_HEAD_BYTES: usize = 10;

/// Where the tag of 802.1Q stands in a frame.
const TAG_AT_BYTES: usize = 12;
/// `hdr_len` and `csum_start` in the virtio header, which count from the frame's first byte. Numbers there are in the host's order, for
/// packet sockets know nothing of VIRTIO_NET_F_VERSION_1.
const VNET_HDR_LEN_AT: usize = 2;
const VNET_CSUM_START_AT: usize = 6;

/// A socket of family packet that receives nothing yet.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `T` must be what the option takes, of plain bytes.
pub(super) fn set<T: Copy>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live value of the length that is said.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `T` must be what the option gives, of plain bytes.
pub(super) fn get<T: Copy>(fd: BorrowedFd<'_>, level: i32, option: i32, value: &mut T) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: both pointers are to live values, and the length is that of the first.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, std::ptr::from_mut(value).cast(), &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `protocol`: 0 to receive nothing.
pub(super) fn bind(fd: BorrowedFd<'_>, device: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: protocol.to_be(),
        sll_ifindex: i32::try_from(device).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(mem::size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live address of the length that is said.
    let done = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many bytes of memory the packets take that a socket has sent and that have not come anywhere yet.
///
/// # Errors
/// Any of the kernel.
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int, to which the pointer is.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(bytes).unwrap_or(0)) }
}

/// Where `SO_MEMINFO` has the memory of what waits (`SK_MEMINFO_RMEM_ALLOC` in linux/sock_diag.h), and how many numbers it has.
const WAITING_AT: usize = 0;
const MEMORY_NUMBERS: usize = 9;

/// How many bytes of memory that takes which has come to a socket and was not received yet. `None` where the kernel does not say.
pub(crate) fn waiting(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut memory = [0_u32; MEMORY_NUMBERS];
    get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut memory).ok()?;
    usize::try_from(memory[WAITING_AT]).ok()
}

/// What became of a frame that was to be sent.
#[derive(Debug)]
pub(crate) enum Sent {
    Gone,
    /// There is no room: once the socket can be written to, there is.
    Later,
    /// The device would not have it: it is down, or its queue is full, as it happens to any packet.
    Refused,
}

/// Sends whole frames out of a device.
#[derive(Debug)]
pub(crate) struct Sender(OwnedFd);

impl Sender {
    /// `mark`: what the frames carry inside this host.
    ///
    /// # Errors
    /// Any of the kernel: EPERM without CAP_NET_RAW and CAP_NET_ADMIN in the namespace.
    pub(crate) fn open(device: u32, mark: u32) -> io::Result<Self> {
        let fd = socket()?;
        set(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1_i32)?;
        set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark)?;
        // As much as an ordinary user may: the kernel lowers it to net.core.wmem_max. More only saves wake-ups.
        set(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, &(8_i32 << 20))?;
        bind(fd.as_fd(), device, 0)?;
        Ok(Self(fd))
    }

    /// `head`: the virtio header that the frame came with. `tag`: put in behind the MAC addresses.
    pub(crate) fn send(&self, head: &[u8; VNET_HEAD_BYTES], frame: &[u8], tag: Option<[u8; 4]>) -> Sent {
        match tag {
            None => self.write(&[IoSlice::new(head), IoSlice::new(frame)]),
            Some(tag) => {
                let (macs, rest) = frame.split_at(TAG_AT_BYTES.min(frame.len()));
                let head = moved(head, 4);
                self.write(&[IoSlice::new(&head), IoSlice::new(macs), IoSlice::new(&tag), IoSlice::new(rest)])
            }
        }
    }

    /// How many bytes of memory the frames take that have been sent and have not come anywhere yet.
    ///
    /// # Errors
    /// Any of the kernel.
    pub(crate) fn on_the_way(&self) -> io::Result<usize> {
        unsent(self.0.as_fd())
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> Sent {
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            // IoSlice has the layout of iovec, and sendmsg writes to neither.
            msg_iov: parts.as_ptr().cast_mut().cast(),
            msg_iovlen: parts.len(),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        // SAFETY: the message and all that it points to live until the call is over.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent >= 0 {
            return Sent::Gone;
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Sent::Later } else { Sent::Refused }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The header of a frame that has become longer at its beginning.
fn moved(head: &[u8; VNET_HEAD_BYTES], bytes: u16) -> [u8; VNET_HEAD_BYTES] {
    let mut head = *head;
    for at in [VNET_HDR_LEN_AT, VNET_CSUM_START_AT] {
        let count = u16::from_ne_bytes([head[at], head[at + 1]]);
        if count != 0 {
            head[at..at + 2].copy_from_slice(&count.saturating_add(bytes).to_ne_bytes());
        }
    }
    head
}
