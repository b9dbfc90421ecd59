//! rtnetlink without a runtime: one request, its answer, no task in between.
//!
//! Undo runs in a guardian and in `heal`, which have no runtime, and every plane waits for the kernel's word before its
//! next step; so this is a blocking socket. Messages are those of `netlink-packet-route`.
//!
//! A socket belongs for ever to the network namespace in which it was opened.

pub(crate) mod attributes;

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
    /// One part of several that are made together; then none is.
    #[error("the kernel refused part {part} of it")]
    RefusedPart {
        part: usize,
        #[source]
        source: io::Error,
    },
    #[error("it does not fit a message")]
    TooLong,
    #[error("netlink could not be reached")]
    Socket(#[source] io::Error),
    #[error("the kernel's answer was not understood: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(source) | Self::RefusedPart { source, .. } => source.raw_os_error(),
            Self::TooLong | Self::Socket(_) | Self::Answer(_) => None,
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

    /// Sends messages in one datagram, numbered in their order, and waits until the kernel has answered the last one that
    /// asks for it. A part is refused by its number in `messages`.
    ///
    /// # Errors
    /// [`NetlinkError`]; of several refusals the first.
    pub(crate) fn batch(&mut self, messages: &[Raw]) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut last = None;
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            if message.flags & NLM_F_ACK != 0 {
                last = Some(self.sequence);
            }
            let length = u32::try_from(HEAD_BYTES + message.body.len()).map_err(|_| NetlinkError::TooLong)?;
            bytes.extend(length.to_ne_bytes());
            bytes.extend(message.kind.to_ne_bytes());
            bytes.extend((NLM_F_REQUEST | message.flags).to_ne_bytes());
            bytes.extend(self.sequence.to_ne_bytes());
            bytes.extend(0_u32.to_ne_bytes());
            bytes.extend(&message.body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.send(&bytes)?;
        let mut refused = None;
        loop {
            for answer in answers(&self.receive()?)? {
                let part = usize::try_from(answer.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if part >= messages.len() {
                    continue;
                }
                if answer.error != 0 {
                    let source = io::Error::from_raw_os_error(-answer.error);
                    refused.get_or_insert(NetlinkError::RefusedPart { part, source });
                }
                // What is refused as a whole is answered at the first message only.
                if Some(answer.sequence) == last || part == 0 {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Makes room for datagrams of this size, as root may beyond the system's maximum.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub(crate) fn send_up_to(&mut self, bytes: usize) -> Result<(), NetlinkError> {
        nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::SndBufForce, &bytes)
            .map_err(|errno| NetlinkError::Socket(errno.into()))
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

/// The head of a message: u32 length, u16 kind, u16 flags, u32 sequence number, u32 port (linux/netlink.h).
const HEAD_BYTES: usize = 16;
/// The kind of an answer that says whether it went well: i32 negative error number, 0 for none.
const NLMSG_ERROR: u16 = 2;

/// A message as bytes, for families that `netlink-packet-route` does not know.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    error: i32,
}

/// The verdicts in a datagram; messages of other kinds are left out.
fn answers(datagram: &[u8]) -> Result<Vec<Answer>, NetlinkError> {
    let short = || NetlinkError::Answer(format!("{} bytes are cut short", datagram.len()));
    let word = |bytes: &[u8], at: usize| -> Result<[u8; 4], NetlinkError> {
        bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).ok_or_else(short)
    };
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let length = usize::try_from(u32::from_ne_bytes(word(rest, 0)?)).unwrap_or(usize::MAX);
        let message = rest.get(..length).filter(|_| length >= HEAD_BYTES).ok_or_else(short)?;
        let [a, b, _, _] = word(message, 4)?;
        if u16::from_ne_bytes([a, b]) == NLMSG_ERROR {
            let sequence = u32::from_ne_bytes(word(message, 8)?);
            found.push(Answer { sequence, error: i32::from_ne_bytes(word(message, HEAD_BYTES)?) });
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(sequence: u32, error: i32) -> Vec<u8> {
        let mut bytes = 36_u32.to_ne_bytes().to_vec();
        bytes.extend(NLMSG_ERROR.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(error.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn reads_every_verdict_of_a_datagram() {
        let datagram = [verdict(3, -2), verdict(4, 0)].concat();
        let expected = [Answer { sequence: 3, error: -2 }, Answer { sequence: 4, error: 0 }];
        assert_eq!(answers(&datagram).unwrap(), expected);
    }

    #[test]
    fn an_answer_that_is_cut_short_or_lies_about_its_length_is_an_error() {
        let whole = verdict(3, -2);
        for cut in 1..whole.len() {
            assert!(answers(&whole[..cut]).is_err(), "{cut}");
        }
        assert!(answers(&[0; 16]).is_err());
    }
}
