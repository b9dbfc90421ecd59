//! Where the packets of a line come from, and where they go.

use std::io;
use std::os::fd::BorrowedFd;

use troop_agent_core::fault::Flow;

use crate::packet::Way;
use crate::sys::{Frame, Sent, Tag};

/// Both ends of a detour.
pub(in crate::plane) trait Port: Send + 'static {
    /// Bytes before each frame that are not on the wire.
    const HEAD_BYTES: usize;

    /// How much sooner than others the thread gets a processor (sched(7)). Where dozens of threads want one, the usual share is too little, and
    /// frames would be lost: this is nine times as much, which is far from all of it.
    const NICE: i32 = -10;

    type Source: Source;
    type Sink: Sink;

    fn split(self) -> (Self::Source, Self::Sink);

    /// How many bytes of a frame that was taken are on the wire.
    fn wire_bytes(frame: &[u8]) -> usize {
        frame.len().saturating_sub(Self::HEAD_BYTES)
    }

    /// The flow of a frame, from its first byte on the wire. `None`: none that is understood.
    fn flow(wire: &[u8], way: Way) -> Option<Flow>;

    /// In which byte a bit is turned that chance has put in `byte`.
    fn corrupts(_wire: &[u8], byte: usize) -> usize {
        byte
    }
}

/// Where packets come from.
pub(in crate::plane) trait Source: Send + 'static {
    /// Hands the frame that came first to `take`. `None` when none has come.
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T>;

    /// Whether there is one to take.
    fn has_come(&self) -> bool;

    /// Whether so many have come that sending has to wait, or some would be lost.
    fn is_crowded(&self) -> bool;

    /// How many frames the kernel has had no room for since the last call.
    ///
    /// # Errors
    /// Any of the kernel.
    fn dropped(&mut self) -> io::Result<u64>;

    /// To wait for what comes.
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>>;
}

/// Where packets go.
pub(in crate::plane) trait Sink: Send + 'static {
    /// Sends a frame that was taken, its head included.
    fn send(&self, frame: &[u8], tag: Option<Tag>) -> Sent;

    /// Gives up a frame that was taken and is lost by the fault.
    fn lose(&self, _frame: &[u8]) {}

    /// Lets go of what [`Sink::send`] and [`Sink::lose`] have put together until here.
    fn flush(&self) {}

    /// How many bytes of memory the frames take that have been sent and have not come anywhere yet.
    ///
    /// # Errors
    /// Any of the kernel.
    fn on_the_way(&self) -> io::Result<usize>;

    /// To wait until something can be sent again.
    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>>;
}
