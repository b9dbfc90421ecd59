//! The port of this plane: an end of the pair to receive from, and a device to send out of.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use troop_agent_core::fault::Flow;

use crate::packet::{self, Way};
use crate::plane::detour::Port;
use crate::sys::{Frame, Rings, Sender, Sent, Tag, VNET_HEAD_BYTES};

#[derive(Debug)]
pub(super) struct Pair {
    pub rings: Rings,
    pub sender: Sender,
}

impl Port for Pair {
    const HEAD_BYTES: usize = VNET_HEAD_BYTES;

    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        self.rings.take(take)
    }

    fn has_come(&self) -> bool {
        self.rings.has_some()
    }

    fn dropped(&mut self) -> io::Result<u64> {
        self.rings.dropped()
    }

    fn flow(wire: &[u8], way: Way) -> Option<Flow> {
        packet::flow(wire, way)
    }

    fn send(&self, frame: &[u8], tag: Option<Tag>) -> Sent {
        let Some((head, frame)) = frame.split_first_chunk::<VNET_HEAD_BYTES>() else { return Sent::Gone };
        self.sender.send(head, frame, tag)
    }

    fn on_the_way(&self) -> io::Result<usize> {
        self.sender.on_the_way()
    }

    fn comes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.fds().into_iter()
    }

    fn goes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.sender.as_fd())
    }
}
