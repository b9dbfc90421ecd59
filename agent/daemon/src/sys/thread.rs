//! How soon a thread that wakes up runs.

use std::{io, mem};

use nix::libc;

/// The shortest slice that the kernel grants (`sched_attr` in sched_setattr(2); EEVDF, Linux 6.12 and later).
const SLICE_NS: u64 = 100_000;

/// `struct sched_attr` in its first version (linux/sched/types.h).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Has this thread run in short slices, which it gets sooner after it wakes, at the price of losing the processor sooner. That needs no
/// privilege, and takes nothing from others: the share stays the same. Timers of this thread are exact.
///
/// # Errors
/// Any of the kernel; older ones take it and do nothing.
pub(crate) fn be_prompt() -> io::Result<()> {
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    let size = u32::try_from(mem::size_of::<Attributes>()).map_err(io::Error::other)?;
    let policy = u32::try_from(libc::SCHED_OTHER).map_err(io::Error::other)?;
    // It is set with the rest, and an ordinary user may not lower it.
    let nice = rustix::process::getpriority_process(None)?;
    let attributes =
        Attributes { size, policy, flags: 0, nice, priority: 0, runtime: SLICE_NS, deadline: 0, period: 0 };
    // SAFETY: thread 0 is this one, and the pointer is to a live structure that says its own size.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
