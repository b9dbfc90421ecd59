//! Receiving by rings of memory that the kernel fills (Documentation/networking/packet_mmap.rst, version 2).
//!
//! A slot has one size for all, so there are two rings, for frames small and large, and the kernel's time says which frame came first.
//! Root has a [`super::queue`] for the large ones; an ordinary user may have no more than net.core.rmem_max there, which is six offloaded frames, and
//! a ring is not counted there.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::libc;

use super::packet::{VNET_HEAD_BYTES, bind, get, set, socket};
use super::queue::Queue;

/// The largest frame: 64 KB of IP, the Ethernet header and two tags.
pub(super) const FRAME_MAX_BYTES: usize = 65_536 + 14 + 8;

/// One allocation of the kernel. Large frames waste the rest of it: 15 fit.
const BLOCK_BYTES: usize = 1 << 20;
/// Holds a frame of an Ethernet with the usual MTU, its heads and some room.
const SMALL_SLOT_BYTES: usize = 2_048;
/// A multiple of 16 with room for the heads.
const LARGE_SLOT_BYTES: usize = 66_048;
/// 8,192 frames: 80 ms of 100,000 frames per second, the longest that a thread was seen to wait for a processor on a machine
/// with three times as much to do as it could.
const SMALL_BLOCKS: usize = 16;
/// Frames up to this length go to the small slots: heads take 82 bytes there (32 + 20 + 16 aligned, and the virtio header).
const SMALL_FRAME_MAX_BYTES: u32 = 1_900;

/// Small frames that are looked for at once: as many as a burst takes.
const SEEN_AT_ONCE: usize = 32;

/// Offsets in `struct tpacket2_hdr`.
const LENGTH_AT: usize = 4;
const CAPTURED_AT: usize = 8;
const MAC_AT: usize = 12;
const SECONDS_AT: usize = 16;
const NANOS_AT: usize = 20;
const TAG_AT: usize = 24;
const TAG_KIND_AT: usize = 26;

/// A VLAN tag, as it stands in a frame.
pub(crate) type Tag = [u8; 4];

/// A frame in a ring. It stays until it is let go.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    /// The virtio header, and the frame from its MAC addresses on.
    pub bytes: &'a [u8],
    pub tag: Option<Tag>,
    /// When the kernel put it there, as [`super::real_nanos`] counts.
    pub came_nanos: u64,
    /// It was longer than a slot, or than what any device sends.
    pub is_cut: bool,
    /// The kernel has had no room for some before it.
    pub is_losing: bool,
}

/// All that one device receives: small frames in a ring, large ones in another or in a queue.
#[derive(Debug)]
pub(crate) struct Rings {
    small: Ring,
    large: Large,
    /// So many of the small frames that wait came before any large one that does.
    first: usize,
}

#[derive(Debug)]
enum Large {
    Ring(Ring),
    Queue(Box<Queue>),
}

impl Rings {
    /// Begins to receive all that comes in from a device, but not what this host sends out of it. `large_bytes`: the memory in which large
    /// frames may wait.
    ///
    /// # Errors
    /// Any of the kernel: EPERM without CAP_NET_RAW in the namespace, ENOMEM.
    pub(crate) fn open(device: u32, large_bytes: usize) -> io::Result<Self> {
        let small = Ring::open(device, SMALL_SLOT_BYTES, SMALL_BLOCKS, (0, SMALL_FRAME_MAX_BYTES))?;
        let lengths = (SMALL_FRAME_MAX_BYTES + 1, u32::MAX);
        let large = match Queue::open(device, large_bytes, lengths) {
            Ok(queue) => Large::Queue(Box::new(queue)),
            Err(_) => Large::Ring(Ring::open(device, LARGE_SLOT_BYTES, large_bytes / BLOCK_BYTES, lengths)?),
        };
        Ok(Self { small, large, first: 0 })
    }

    /// Hands the frame that came first to `take`, and lets it go. `None` when there is none.
    pub(crate) fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        if self.first > 0 {
            self.first -= 1;
            return Some(self.small.take(take));
        }
        // A frame that came before one that is seen here has its place already: so what the second look finds is all. Where no large one is found,
        // that holds for every small one seen before, and for these no other look is needed, which may be a call to the kernel.
        let waiting = self.small.waiting(SEEN_AT_ONCE);
        match (self.large.time(), self.small.time()) {
            (None, _) if waiting == 0 => None,
            (None, _) => {
                self.first = waiting - 1;
                Some(self.small.take(take))
            }
            (Some(large), Some(small)) if small <= large => Some(self.small.take(take)),
            (Some(_), _) => self.large.take(take),
        }
    }

    pub(crate) fn has_some(&self) -> bool {
        let large = match &self.large {
            Large::Ring(ring) => ring.time().is_some(),
            Large::Queue(queue) => queue.has_some(),
        };
        large || self.small.time().is_some()
    }

    /// Whether three quarters and more of the room of one of them are taken: whoever takes has fallen behind.
    pub(crate) fn are_crowded(&self) -> bool {
        let large = match &self.large {
            Large::Ring(ring) => ring.is_crowded(),
            Large::Queue(queue) => queue.is_crowded(),
        };
        large || self.small.is_crowded()
    }

    /// Both to wait for.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        let large = match &self.large {
            Large::Ring(ring) => ring.fd.as_fd(),
            Large::Queue(queue) => queue.fd(),
        };
        [self.small.fd.as_fd(), large]
    }

    /// How many frames the kernel has had no room for since the last call.
    ///
    /// # Errors
    /// Any of the kernel.
    pub(crate) fn dropped(&mut self) -> io::Result<u64> {
        let [_, large] = self.fds();
        Ok(u64::from(dropped(self.small.fd.as_fd())?) + u64::from(dropped(large)?))
    }
}

impl Large {
    fn time(&mut self) -> Option<(u32, u32)> {
        match self {
            Self::Ring(ring) => ring.time(),
            Self::Queue(queue) => queue.time(),
        }
    }

    /// After [`Self::time`] has said that there is one.
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        match self {
            Self::Ring(ring) => Some(ring.take(take)),
            Self::Queue(queue) => queue.take(take),
        }
    }
}

#[derive(Debug)]
struct Ring {
    fd: OwnedFd,
    memory: NonNull<u8>,
    bytes: usize,
    slot_bytes: usize,
    slots: usize,
    next: usize,
}

// SAFETY: the memory is the ring's own, and no method gives it away beyond a borrow.
unsafe impl Send for Ring {}

impl Ring {
    /// `lengths`: those frames only, of all that come in from the device.
    fn open(device: u32, slot_bytes: usize, blocks: usize, lengths: (u32, u32)) -> io::Result<Self> {
        let fd = socket()?;
        let on = |option, value: i32| set(fd.as_fd(), libc::SOL_PACKET, option, &value);
        on(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as i32)?;
        on(libc::PACKET_VNET_HDR, 1)?;
        on(libc::PACKET_IGNORE_OUTGOING, 1)?;
        only(fd.as_fd(), lengths)?;
        let per_block = BLOCK_BYTES / slot_bytes;
        let slots = per_block * blocks;
        let count = |number: usize| u32::try_from(number).map_err(io::Error::other);
        let request = libc::tpacket_req {
            tp_block_size: count(BLOCK_BYTES)?,
            tp_block_nr: count(blocks)?,
            tp_frame_size: count(slot_bytes)?,
            tp_frame_nr: count(slots)?,
        };
        set(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let bytes = BLOCK_BYTES * blocks;
        // SAFETY: a new mapping, at no address that is in use.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        let ring = Self { fd, memory, bytes, slot_bytes, slots, next: 0 };
        bind(ring.fd.as_fd(), device, u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?)?;
        Ok(ring)
    }

    /// Where a slot begins: blocks hold a whole number of slots. `beyond`: counted from the next one.
    fn slot(&self, beyond: usize) -> NonNull<u8> {
        let number = (self.next + beyond) % self.slots;
        let per_block = BLOCK_BYTES / self.slot_bytes;
        let at = number / per_block * BLOCK_BYTES + number % per_block * self.slot_bytes;
        // SAFETY: the number is below that of slots, all of which are in the memory.
        unsafe { self.memory.add(at) }
    }

    fn status(&self, beyond: usize) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, aligned to 16, and the kernel too reads and writes it as a whole.
        unsafe { AtomicU32::from_ptr(self.slot(beyond).as_ptr().cast()) }
    }

    /// Whether there is a frame so many slots beyond the next one.
    fn is_taken(&self, beyond: usize) -> bool {
        self.status(beyond).load(Ordering::Acquire) & libc::TP_STATUS_USER != 0
    }

    /// How many frames wait, as far as it is asked for.
    fn waiting(&self, most: usize) -> usize {
        (0..most).take_while(|beyond| self.is_taken(*beyond)).count()
    }

    /// Whether three quarters and more are filled.
    fn is_crowded(&self) -> bool {
        self.is_taken(self.slots / 4 * 3)
    }

    /// The kernel's time of the next frame; `None` while it has not come.
    fn time(&self) -> Option<(u32, u32)> {
        if !self.is_taken(0) {
            return None;
        }
        Some((self.word(SECONDS_AT), self.word(NANOS_AT)))
    }

    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> T {
        let status = self.status(0).load(Ordering::Acquire);
        let size = |at: usize| usize::try_from(self.word(at)).unwrap_or(usize::MAX);
        let mac = usize::from(self.half(MAC_AT));
        let start = mac.saturating_sub(VNET_HEAD_BYTES).min(self.slot_bytes);
        let captured = size(CAPTURED_AT).min(self.slot_bytes.saturating_sub(mac));
        // SAFETY: the slot is ours until its status says otherwise, and the range was held within it.
        let bytes = unsafe { std::slice::from_raw_parts(self.slot(0).as_ptr().add(start), VNET_HEAD_BYTES + captured) };
        let tag = tag_of(status, self.half(TAG_AT), self.half(TAG_KIND_AT));
        let is_cut = captured < size(LENGTH_AT) || captured > FRAME_MAX_BYTES || mac < VNET_HEAD_BYTES;
        let is_losing = status & libc::TP_STATUS_LOSING != 0;
        let [seconds, nanos] = [SECONDS_AT, NANOS_AT].map(|at| u64::from(self.word(at)));
        let came_nanos = seconds * 1_000_000_000 + nanos;
        let taken = take(Frame { bytes, tag, came_nanos, is_cut, is_losing });
        self.status(0).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
        taken
    }

    fn word(&self, at: usize) -> u32 {
        // SAFETY: within the header of a slot, which is aligned to 16, at a multiple of 4.
        unsafe { self.slot(0).as_ptr().add(at).cast::<u32>().read_volatile() }
    }

    fn half(&self, at: usize) -> u16 {
        // SAFETY: within the header of a slot, which is aligned to 16, at a multiple of 2.
        unsafe { self.slot(0).as_ptr().add(at).cast::<u16>().read_volatile() }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and as long, and nothing borrows from it any more.
        // It cannot fail for a mapping that exists.
        let _ = unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}

/// The tag that the kernel has taken out of a frame, by the status of the frame.
pub(super) fn tag_of(status: u32, tag: u16, kind: u16) -> Option<Tag> {
    (status & libc::TP_STATUS_VLAN_VALID != 0).then(|| {
        let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        let kind = if known { kind } else { 0x8100 };
        let [[a, b], [c, d]] = [kind.to_be_bytes(), tag.to_be_bytes()];
        [a, b, c, d]
    })
}

/// How many frames a socket has had no room for since the last call.
fn dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    get(socket, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut counts)?;
    Ok(counts.tp_drops)
}

/// Lets in frames from the one to the other length only, by a classic BPF program, which needs no privilege (bpf(4), linux/filter.h).
pub(super) fn only(fd: BorrowedFd<'_>, (least, most): (u32, u32)) -> io::Result<()> {
    const LOAD_LENGTH: u16 = 0x80;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const JUMP_IF_ABOVE: u16 = 0x25;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let program = [
        step(LOAD_LENGTH, 0, 0, 0),
        step(JUMP_IF_AT_LEAST, 0, 2, least),
        step(JUMP_IF_ABOVE, 1, 0, most),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: 5, filter: program.as_ptr().cast_mut() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}
