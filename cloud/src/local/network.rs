//! Which addresses the embedded cloud gives out: its own networks in the sandbox, a part of the loopback without one.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A /16 with a /24 for each zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    first: u8,
    second: u8,
}

impl Network {
    /// Of the sandbox, which has all addresses to itself.
    pub(crate) const SANDBOX: Self = Self { first: 10, second: 77 };

    /// The one in zone 0 under which instances of every zone reach what a role listens on.
    pub(crate) const fn roles(self) -> Ipv4Addr {
        self.address(0, 1)
    }

    pub(crate) const fn address(self, zone: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.first, self.second, zone, host)
    }

    const fn loopback(second: u8) -> Self {
        Self { first: 127, second }
    }
}

/// The second numbers of 127.x.0.0/16 that are given out. 127.0 and 127.1 are what people and distributions use.
const SECONDS: std::ops::RangeInclusive<u8> = 2..=254;

/// A part of the loopback that no other embedded cloud of this machine uses, whoever's it is. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) network: Network,
    /// Bound for as long as the claim holds: the kernel gives an address and port once, and takes it back from the dead.
    _held: UdpSocket,
}

/// Claims a /16 of the loopback: the one that belongs to this STATE, so that addresses stay the same over restarts, or
/// the next free one.
///
/// # Errors
/// Why the last one that was tried is not to be had.
pub(crate) fn claim(state_dir: &Path, registry_port: u16) -> io::Result<Claim> {
    let first = usize::from(Sha256::digest(state_dir.as_os_str().as_encoded_bytes())[0]);
    let all: Vec<u8> = SECONDS.collect();
    let mut last = io::Error::other("no address of the loopback is left");
    for turn in 0..all.len() {
        let network = Network::loopback(all[(first + turn) % all.len()]);
        match hold(network, registry_port) {
            Ok(held) => return Ok(Claim { network, _held: held }),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn hold(network: Network, registry_port: u16) -> io::Result<UdpSocket> {
    let at = (network.roles(), registry_port);
    // The registry comes later and by itself; a port that somebody else has would keep it from ever starting.
    drop(TcpListener::bind(at)?);
    UdpSocket::bind(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that the kernel just had free; for the registries of these tests alone.
    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn two_clouds_never_share_their_addresses_and_one_finds_its_own_again() {
        let port = free_port();
        let state = Path::new("/home/somebody/state");
        let first = claim(state, port).unwrap();
        let second = claim(state, port).unwrap();
        assert_ne!(first.network, second.network);
        let had = first.network;
        drop(first);
        assert_eq!(claim(state, port).unwrap().network, had);
    }

    #[test]
    fn addresses_on_which_the_registrys_port_is_taken_are_passed_over() {
        let port = free_port();
        let state = Path::new("/home/somebody/state");
        let network = claim(state, port).unwrap().network;
        let _taken = TcpListener::bind((network.roles(), port)).unwrap();
        assert_ne!(claim(state, port).unwrap().network, network);
    }

    #[test]
    fn a_port_that_is_taken_everywhere_is_an_error() {
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        assert_eq!(claim(Path::new("/s"), port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
