//! Round trips as this host's own connections have them: the kernel's smoothed time of each, asked for by sock_diag(7).
//!
//! A smoothed time follows slowly: each answer moves it by an eighth of the way (RFC 6298), so that half of a change shows after six. And a
//! connection that says nothing keeps the time it had: so only those count that have heard from their peer lately.

use std::time::Duration;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use troop_agent_core::fault::{Flow, Ports, protocol};

use crate::netlink::{Netlink, NetlinkError};

/// `INET_DIAG_CGROUP_ID` of linux/inet_diag.h (Linux 5.8): u64 in the machine's order.
const CGROUP_ID: u16 = 21;
/// Where `struct tcp_info` (linux/tcp.h) has milliseconds since the peer was last heard, and the round trip in microseconds. Its first
/// fields never move.
const LAST_HEARD_AT: usize = 56;
const ROUND_TRIP_AT: usize = 68;

/// A connection of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) flow: Flow,
    /// Where the kernel says so.
    pub(crate) cgroup: Option<u64>,
    pub(crate) round_trip: Duration,
    /// How long ago its peer was heard.
    pub(crate) heard_ago: Duration,
}

/// All connections that are established, in the network namespace of this thread.
///
/// # Errors
/// [`NetlinkError`], also where the kernel has no sock_diag.
pub(crate) fn connections() -> Result<Vec<Connection>, NetlinkError> {
    let mut net = Netlink::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::INFO,
            states: StateFlags::ESTABLISHED,
            socket_id,
        };
        for answer in net.ask(SockDiagMessage::InetRequest(request), NLM_F_DUMP)? {
            if let SockDiagMessage::InetResponse(answer) = answer {
                found.extend(connection(&answer));
            }
        }
    }
    Ok(found)
}

/// `None` for one whose round trip was never measured.
fn connection(answer: &InetResponse) -> Option<Connection> {
    let mut info = None;
    let mut cgroup = None;
    for attribute in &answer.nlas {
        if let Nla::TcpInfo(bytes) = attribute {
            info = Some(bytes);
        } else if let Nla::Other(other) = attribute {
            cgroup = cgroup.or(number(other));
        }
    }
    let word = |at: usize| {
        let bytes = info?.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let round_trip = word(ROUND_TRIP_AT).filter(|us| *us > 0)?;
    let ends = &answer.header.socket_id;
    let ports = Ports { local: ends.source_port, remote: ends.destination_port };
    Some(Connection {
        flow: Flow {
            protocol: protocol::TCP,
            local: ends.source_address.to_canonical(),
            peer: ends.destination_address.to_canonical(),
            ports: Some(ports),
        },
        cgroup,
        round_trip: Duration::from_micros(u64::from(round_trip)),
        heard_ago: Duration::from_millis(u64::from(word(LAST_HEARD_AT)?)),
    })
}

/// The number of a cgroup, if it is one.
fn number(attribute: &netlink_packet_core::DefaultNla) -> Option<u64> {
    use netlink_packet_core::Nla as _;
    let mut bytes = [0; 8];
    if attribute.kind() != CGROUP_ID || attribute.value_len() != bytes.len() {
        return None;
    }
    attribute.emit_value(&mut bytes);
    Some(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_seen_from_both_its_ends_with_its_round_trip() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        for _ in 0..3 {
            client.write_all(b"ping").unwrap();
            server.read_exact(&mut [0; 4]).unwrap();
            server.write_all(b"pong").unwrap();
            client.read_exact(&mut [0; 4]).unwrap();
        }
        let seen = connections().unwrap();
        let ours = |local: bool| {
            let mut all =
                seen.iter().filter(|c| c.flow.ports.is_some_and(|p| port == if local { p.local } else { p.remote }));
            (all.next().copied(), all.count())
        };
        for local in [true, false] {
            let (Some(one), 0) = ours(local) else { panic!("{seen:?}") };
            assert!(one.flow.peer.is_loopback() && one.flow.local.is_loopback());
            assert!(one.round_trip < Duration::from_secs(5) && one.heard_ago < Duration::from_secs(30), "{one:?}");
        }
    }
}
