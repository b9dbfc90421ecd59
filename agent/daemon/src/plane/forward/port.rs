//! The port of this plane: an end of the pair to receive from, and a device to send out of.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use troop_agent_core::fault::Flow;

use crate::packet::{self, Way};
use crate::plane::detour::{Port, Sink, Source};
use crate::sys::{Frame, Rings, Sender, Sent, Tag, VNET_HEAD_BYTES};

#[derive(Debug)]
pub(super) struct Pair {
    pub rings: Rings,
    pub sender: Sender,
}

impl Port for Pair {
    const HEAD_BYTES: usize = VNET_HEAD_BYTES;

    type Source = Rings;
    type Sink = Sender;

    fn split(self) -> (Rings, Sender) {
        (self.rings, self.sender)
    }

    fn flow(wire: &[u8], way: Way) -> Option<Flow> {
        packet::flow(wire, way)
    }
}

impl Source for Rings {
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        self.take(take)
    }

    fn has_come(&self) -> bool {
        self.has_some()
    }

    fn is_crowded(&self) -> bool {
        self.are_crowded()
    }

    fn dropped(&mut self) -> io::Result<u64> {
        self.dropped()
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds().into_iter()
    }
}

impl Sink for Sender {
    fn send(&self, frame: &[u8], tag: Option<Tag>) -> Sent {
        let Some((head, frame)) = frame.split_first_chunk::<VNET_HEAD_BYTES>() else { return Sent::Gone };
        self.send(head, frame, tag)
    }

    fn on_the_way(&self) -> io::Result<usize> {
        self.on_the_way()
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.as_fd())
    }
}
