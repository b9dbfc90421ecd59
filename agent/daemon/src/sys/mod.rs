//! What no crate wraps: sockets of packets, and the memory they share with the kernel.
//!
//! **Invariant:** this is the only `unsafe` of the whole workspace. Nothing here knows of faults, and nothing unsafe shows outside.
#![expect(
    unsafe_code,
    reason = "AF_PACKET with its options and rings is wrapped by neither nix nor rustix, nor is recvmmsg so that a thread could keep its buffers"
)]

mod datagrams;
mod offload;
mod packet;
mod queue;
mod ring;
mod tun;

pub(crate) use datagrams::Datagrams;
pub(crate) use offload::turn_off_offloads;
pub(crate) use packet::{Sender, Sent, VNET_HEAD_BYTES, unsent, waiting};
pub(crate) use ring::{Frame, Rings, Tag};
pub(crate) use tun::descriptor;
