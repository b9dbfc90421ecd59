//! rtnetlink without a runtime: one request, its answer, no task in between.
//!
//! Undo runs in a guardian and in `heal`, which have no runtime, and every plane waits for the kernel's word before its
//! next step; so this is a blocking socket. Messages are those of `netlink-packet-route`.
//!
//! A socket belongs for ever to the network namespace in which it was opened.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("the kernel refused it")]
    Refused(#[source] io::Error),
    #[error("netlink could not be reached")]
    Socket(#[source] io::Error),
    #[error("the kernel's answer was not understood: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(source) => source.raw_os_error(),
            Self::Socket(_) | Self::Answer(_) => None,
        }
    }
}

/// The largest answer the kernel puts into one datagram is 32 KB; some room beyond.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// A connection to one netlink family in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens rtnetlink in the namespace that this thread is in.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn route() -> Result<Self, NetlinkError> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// Opens another family.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(NetlinkError::Socket)?;
        socket.bind_auto().map_err(NetlinkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a change and waits until it is made.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.ask(message, NLM_F_ACK | flags).map(|_| ())
    }

    /// Everything of a kind.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.ask(message, NLM_F_DUMP)
    }

    /// Sends one request and gathers its answers until the kernel has said the last.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn ask<M>(&mut self, message: M, flags: u16) -> Result<Vec<M>, NetlinkError>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
        NetlinkMessage<M>: From<M>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.send(&bytes)?;
        let mut answers = Vec::new();
        loop {
            let datagram = self.receive()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<M>::deserialize(rest).map_err(|error| NetlinkError::Answer(error.to_string()))?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                rest = rest.get(length.max(16)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(_) => return Err(NetlinkError::Refused(error.to_io())),
                    },
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Noop | NetlinkPayload::Overrun(_) => {}
                    _ => return Err(NetlinkError::Answer("a payload of an unknown kind".into())),
                }
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let sent = self.socket.send(bytes, 0).map_err(NetlinkError::Socket)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(NetlinkError::Socket(io::Error::other(format!("{sent} of {} bytes were sent", bytes.len()))))
        }
    }

    /// The next datagram.
    pub(crate) fn receive(&mut self) -> Result<Vec<u8>, NetlinkError> {
        let mut buffer = Vec::with_capacity(ANSWER_MAX_BYTES);
        self.socket.recv(&mut buffer, 0).map_err(NetlinkError::Socket)?;
        Ok(buffer)
    }
}
