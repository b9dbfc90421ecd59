//! The descriptor of a TUN's queue, which tokio-tun gives as a bare number.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use tokio_tun::Tun;

/// To wait for.
pub(crate) fn descriptor(queue: &Tun) -> BorrowedFd<'_> {
    // SAFETY: a queue owns its descriptor and closes it when it is dropped, which it cannot be while it is borrowed.
    unsafe { BorrowedFd::borrow_raw(queue.as_raw_fd()) }
}
