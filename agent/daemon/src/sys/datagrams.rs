//! Receiving many datagrams in one call (recvmmsg(2)).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::libc;

/// Datagrams of one call.
pub(crate) const DATAGRAMS_MAX: usize = 32;
/// The longest that is taken whole.
pub(crate) const DATAGRAM_MAX_BYTES: usize = 1_024;

/// Datagrams that were received together.
#[derive(Debug)]
pub(crate) struct Datagrams {
    buffers: Box<[[u8; DATAGRAM_MAX_BYTES]]>,
    lengths: [usize; DATAGRAMS_MAX],
    came: usize,
}

impl Datagrams {
    pub(crate) fn new() -> Self {
        let buffers = vec![[0; DATAGRAM_MAX_BYTES]; DATAGRAMS_MAX].into();
        Self { buffers, lengths: [0; DATAGRAMS_MAX], came: 0 }
    }

    /// Receives what has come, without waiting, in place of those from before.
    ///
    /// # Errors
    /// Any of the kernel: EAGAIN when none has come.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.came = 0;
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; DATAGRAMS_MAX];
        // SAFETY: of this structure of integers and pointers, zeros are a value: a message without a name, parts or control messages.
        let mut messages: [libc::mmsghdr; DATAGRAMS_MAX] = unsafe { mem::zeroed() };
        for ((part, message), buffer) in parts.iter_mut().zip(&mut messages).zip(&mut self.buffers) {
            *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            message.msg_hdr.msg_iov = std::ptr::from_mut(part);
            message.msg_hdr.msg_iovlen = 1;
        }
        let count = libc::c_uint::try_from(DATAGRAMS_MAX).map_err(io::Error::other)?;
        // SAFETY: there are as many messages as is said, each with one part that lies in a buffer of its own of that length; all live until the
        // call is over, and no timeout is passed.
        let came = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        let came = usize::try_from(came).map_err(|_| io::Error::last_os_error())?;
        for (length, message) in self.lengths.iter_mut().zip(&messages) {
            *length = usize::try_from(message.msg_len).unwrap_or(0).min(DATAGRAM_MAX_BYTES);
        }
        self.came = came.min(DATAGRAMS_MAX);
        Ok(self.came)
    }

    /// How many came last.
    pub(crate) fn len(&self) -> usize {
        self.came
    }

    /// The one of this number, from zero, of those that came last.
    pub(crate) fn get(&self, number: usize) -> Option<&[u8]> {
        if number >= self.came {
            return None;
        }
        self.buffers.get(number)?.get(..*self.lengths.get(number)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn datagrams_come_in_their_order_and_the_longest_are_cut() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut datagrams = Datagrams::new();
        let none = datagrams.receive(ours.as_fd()).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        for length in [1, 0, DATAGRAM_MAX_BYTES, DATAGRAM_MAX_BYTES + 1] {
            theirs.send(&vec![7; length]).unwrap();
        }
        assert_eq!(datagrams.receive(ours.as_fd()).unwrap(), 4);
        let lengths: Vec<_> = (0..5).map(|number| datagrams.get(number).map(<[u8]>::len)).collect();
        assert_eq!(lengths, [Some(1), Some(0), Some(DATAGRAM_MAX_BYTES), Some(DATAGRAM_MAX_BYTES), None]);
        assert!(datagrams.get(2).unwrap().iter().all(|byte| *byte == 7));
    }

    #[test]
    fn more_than_one_call_takes_come_with_the_next() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let sent = (0..=u8::MAX).take_while(|number| theirs.send(&[*number]).is_ok()).count();
        let mut datagrams = Datagrams::new();
        let mut came = Vec::new();
        while let Ok(count) = datagrams.receive(ours.as_fd()) {
            came.extend((0..count).map(|number| datagrams.get(number).unwrap()[0]));
        }
        assert_eq!(came.len(), sent);
        assert!(came.iter().enumerate().all(|(place, number)| usize::from(*number) == place));
    }
}
