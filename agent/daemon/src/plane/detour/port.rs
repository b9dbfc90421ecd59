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

    /// Hands the frame that came first to `take`. `None` when none has come.
    fn take<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T>;

    /// Whether there is one to take.
    fn has_come(&self) -> bool;

    /// How many frames the kernel has had no room for since the last call.
    ///
    /// # Errors
    /// Any of the kernel.
    fn dropped(&mut self) -> io::Result<u64>;

    /// The flow of a frame, from its first byte on the wire. `None`: none that is understood.
    fn flow(wire: &[u8], way: Way) -> Option<Flow>;

    /// Sends a frame that was taken, its head included.
    fn send(&self, frame: &[u8], tag: Option<Tag>) -> Sent;

    /// In which byte a bit is turned that chance has put in `byte`.
    fn corrupts(_wire: &[u8], byte: usize) -> usize {
        byte
    }

    /// How many bytes of memory the frames take that have been sent and have not come anywhere yet.
    ///
    /// # Errors
    /// Any of the kernel.
    fn on_the_way(&self) -> io::Result<usize>;

    /// To wait for what comes.
    fn comes(&self) -> impl Iterator<Item = BorrowedFd<'_>>;

    /// To wait until something can be sent again.
    fn goes(&self) -> impl Iterator<Item = BorrowedFd<'_>>;
}
