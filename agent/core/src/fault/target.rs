//! Whom a fault concerns, and what none may ever touch.
//!
//! What is off limits is part of every target: no target matches it, and a list for the kernel's filters says the same.
//! A selector that means nothing but something off limits is an error, so that nobody believes to have hurt it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cidr::{Cidr, PortRange};
use super::flow::{Flow, Ports, protocol};

/// Most peers of a target: a whole application resolved, and a set that the kernel takes in one message.
pub const PEERS_MAX: usize = 4096;
/// Most port ranges of one side.
pub const PORTS_MAX: usize = 64;
/// Where the host is administered from.
pub const SSH_PORT: u16 = 22;
/// Link-local addresses: the cloud's metadata service, neighbours and routers.
pub const LINK_LOCAL: [Cidr; 2] = [
    Cidr::fixed(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    Cidr::fixed(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
];

/// What is sent to many: multicast and, in IPv4, all beyond it, the broadcast included (RFC 5771, RFC 4291).
pub const TO_MANY: [Cidr; 2] = [
    Cidr::fixed(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    Cidr::fixed(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// A protocol a target may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    /// Of both families.
    Icmp,
}

impl Protocol {
    pub fn is(self, number: u8) -> bool {
        match self {
            Self::Tcp => number == protocol::TCP,
            Self::Udp => number == protocol::UDP,
            Self::Icmp => matches!(number, protocol::ICMP | protocol::ICMPV6),
        }
    }

    fn has_ports(self) -> bool {
        match self {
            Self::Tcp | Self::Udp => true,
            Self::Icmp => false,
        }
    }
}

/// A control group of version 2, as the kernel names it, with all that are within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cgroup {
    /// How far below the root it is; never 0, for that is everything.
    pub level: u32,
    /// Its number, which is its folder's inode too and never given again.
    pub id: u64,
}

/// What was asked for. Every kind that is named must match; within a kind, one of its members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selectors {
    /// Everything that is not off limits. Alone, and in so many words: an empty list never means all.
    pub everything: bool,
    pub peers: Vec<Cidr>,
    pub protocol: Option<Protocol>,
    pub local_ports: Vec<PortRange>,
    pub remote_ports: Vec<PortRange>,
    /// Whose sockets on this host. Only what such a socket sends is concerned: what comes in has none yet where it is met.
    pub cgroup: Option<Cgroup>,
}

impl Selectors {
    fn selects(&self) -> bool {
        !self.peers.is_empty() || self.protocol.is_some() || self.has_ports() || self.cgroup.is_some()
    }

    fn has_ports(&self) -> bool {
        !self.local_ports.is_empty() || !self.remote_ports.is_empty()
    }

    /// Whether TCP is among what is selected.
    fn takes_tcp(&self) -> bool {
        self.protocol.is_none_or(|p| p == Protocol::Tcp)
    }
}

/// Something no fault touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OffLimits {
    /// TCP to this host's port 22.
    Ssh,
    /// Peers in [`LINK_LOCAL`].
    LinkLocal,
    /// TCP to an end of the agent's own connection.
    Channel(SocketAddr),
}

impl OffLimits {
    /// Whether it covers this flow. Where the ports of a TCP packet are unknown, it does: in doubt a packet is spared.
    pub fn covers(&self, flow: &Flow) -> bool {
        let tcp = |ends: &dyn Fn(Ports) -> bool| flow.protocol == protocol::TCP && flow.ports.is_none_or(ends);
        match self {
            Self::Ssh => tcp(&|ports| ports.local == SSH_PORT),
            Self::LinkLocal => LINK_LOCAL.iter().any(|range| range.contains(flow.peer)),
            Self::Channel(end) => {
                end.ip().to_canonical() == flow.peer.to_canonical() && tcp(&|ports| ports.remote == end.port())
            }
        }
    }
}

impl fmt::Display for OffLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ssh => write!(f, "SSH to this host"),
            Self::LinkLocal => write!(f, "link-local addresses"),
            Self::Channel(end) => write!(f, "the agent's own connection to {end}"),
        }
    }
}

/// Why a target is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    #[error("the fault names no target")]
    Nothing,
    #[error("the fault names everything and something besides")]
    EverythingAndMore,
    #[error("`{asked}` is off limits: no fault touches {what}")]
    OffLimits { asked: String, what: OffLimits },
    #[error("ICMP has no ports")]
    PortsOfIcmp,
    #[error("the root of all cgroups is everything")]
    RootCgroup,
    #[error("{count} {what} are more than {max}")]
    TooMany { what: &'static str, count: usize, max: usize },
}

impl BadTarget {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Nothing => "name a peer, a protocol or a port, or say `everything`",
            Self::EverythingAndMore => "leave out `everything`, or all the others",
            Self::OffLimits { .. } => "leave it out; within a wider range it is spared without being named",
            Self::RootCgroup => "name one below it, or say `everything`",
            Self::PortsOfIcmp => "leave out the ports, or name TCP or UDP",
            Self::TooMany { .. } => "write ranges instead of single ones",
        }
    }
}

/// Whom a fault concerns. Cannot match what is off limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    selectors: Selectors,
    off_limits: Vec<OffLimits>,
}

impl Target {
    /// `channel`: the other ends of the agent's own connections; none where it has no connection over IP.
    ///
    /// # Errors
    /// [`BadTarget`] when nothing is selected, or something that is off limits is selected by itself.
    pub fn new(selectors: Selectors, channel: &[SocketAddr]) -> Result<Self, BadTarget> {
        match (selectors.everything, selectors.selects()) {
            (false, false) => return Err(BadTarget::Nothing),
            (true, true) => return Err(BadTarget::EverythingAndMore),
            (true, false) | (false, true) => {}
        }
        if selectors.has_ports() && selectors.protocol.is_some_and(|p| !p.has_ports()) {
            return Err(BadTarget::PortsOfIcmp);
        }
        if selectors.cgroup.is_some_and(|cgroup| cgroup.level == 0) {
            return Err(BadTarget::RootCgroup);
        }
        let counts = [
            ("peers", selectors.peers.len(), PEERS_MAX),
            ("local ports", selectors.local_ports.len(), PORTS_MAX),
            ("remote ports", selectors.remote_ports.len(), PORTS_MAX),
        ];
        if let Some((what, count, max)) = counts.into_iter().find(|(_, count, max)| count > max) {
            return Err(BadTarget::TooMany { what, count, max });
        }
        if let Some((asked, what)) = asks_for_off_limits(&selectors, channel) {
            return Err(BadTarget::OffLimits { asked, what });
        }
        let channel = channel.iter().copied().map(OffLimits::Channel);
        let off_limits = [OffLimits::Ssh, OffLimits::LinkLocal].into_iter().chain(channel).collect();
        Ok(Self { selectors, off_limits })
    }

    pub fn selectors(&self) -> &Selectors {
        &self.selectors
    }

    /// What filters in the kernel must let pass before they look at the selectors.
    pub fn off_limits(&self) -> &[OffLimits] {
        &self.off_limits
    }

    /// Whether the fault concerns this flow, as far as packets tell: whose socket sends them is the kernel's to see. A packet without
    /// ports matches no selector of ports.
    pub fn matches(&self, flow: &Flow) -> bool {
        let Selectors { everything: _, peers, protocol, local_ports, remote_ports, cgroup: _ } = &self.selectors;
        let in_ports = |ranges: &[PortRange], of: fn(Ports) -> u16| {
            ranges.is_empty() || flow.ports.is_some_and(|ports| ranges.iter().any(|r| r.contains(of(ports))))
        };
        !self.off_limits.iter().any(|what| what.covers(flow))
            && (peers.is_empty() || peers.iter().any(|range| range.contains(flow.peer)))
            && protocol.is_none_or(|p| p.is(flow.protocol))
            && in_ports(local_ports, |ports| ports.local)
            && in_ports(remote_ports, |ports| ports.remote)
    }
}

/// The first selector that means nothing but something off limits.
fn asks_for_off_limits(selectors: &Selectors, channel: &[SocketAddr]) -> Option<(String, OffLimits)> {
    for peer in &selectors.peers {
        if LINK_LOCAL.iter().any(|range| peer.within(range)) {
            return Some((peer.to_string(), OffLimits::LinkLocal));
        }
    }
    if !selectors.takes_tcp() {
        return None;
    }
    if selectors.local_ports.iter().any(|range| range.is_only(SSH_PORT)) {
        return Some((format!("local port {SSH_PORT}"), OffLimits::Ssh));
    }
    // With several peers or ports the others are meant; with one of each, the connection itself is.
    let ([peer], [port]) = (&selectors.peers[..], &selectors.remote_ports[..]) else { return None };
    let own = channel.iter().find(|end| *peer == Cidr::host(end.ip()) && port.is_only(end.port()))?;
    Some((format!("{peer} port {port}"), OffLimits::Channel(*own)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: &str = "10.9.9.9:7443";

    fn peers(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn port(port: u16) -> PortRange {
        PortRange::one(port).unwrap()
    }

    fn target(selectors: Selectors) -> Result<Target, BadTarget> {
        Target::new(selectors, &[CHANNEL.parse().unwrap()])
    }

    fn everything() -> Target {
        target(Selectors { everything: true, ..Selectors::default() }).unwrap()
    }

    fn flow(protocol: u8, peer: &str, ports: Option<(u16, u16)>) -> Flow {
        let ports = ports.map(|(local, remote)| Ports { local, remote });
        Flow { protocol, local: [10, 0, 0, 1].into(), peer: peer.parse().unwrap(), ports }
    }

    #[test]
    fn no_selector_is_an_error_and_everything_must_be_said() {
        assert_eq!(target(Selectors::default()), Err(BadTarget::Nothing));
        let both = Selectors { everything: true, peers: peers(&["10.0.0.0/8"]), ..Selectors::default() };
        assert_eq!(target(both), Err(BadTarget::EverythingAndMore));
        assert!(everything().matches(&flow(protocol::UDP, "10.0.0.2", Some((1, 2)))));
    }

    #[test]
    fn everything_spares_what_is_off_limits() {
        let spared = [
            flow(protocol::TCP, "10.0.0.2", Some((22, 50_000))),
            flow(protocol::TCP, "169.254.169.254", Some((50_000, 80))),
            flow(protocol::UDP, "fe80::1", Some((1, 2))),
            flow(protocol::ICMPV6, "fe80::1", None),
            flow(protocol::TCP, "10.9.9.9", Some((50_000, 7443))),
            flow(protocol::TCP, "::ffff:10.9.9.9", Some((50_000, 7443))),
            flow(protocol::TCP, "::ffff:169.254.169.254", Some((50_000, 80))),
        ];
        for flow in spared {
            assert!(!everything().matches(&flow), "{flow:?}");
        }
        let hurt = [
            flow(protocol::UDP, "10.0.0.2", Some((22, 50_000))),
            flow(protocol::TCP, "10.0.0.2", Some((50_000, 22))),
            flow(protocol::TCP, "10.9.9.9", Some((50_000, 7444))),
            flow(protocol::UDP, "10.9.9.9", Some((50_000, 7443))),
            flow(protocol::TCP, "10.9.9.8", Some((50_000, 7443))),
        ];
        for flow in hurt {
            assert!(everything().matches(&flow), "{flow:?}");
        }
    }

    #[test]
    fn a_fragment_of_tcp_without_ports_is_spared_since_it_may_be_of_ssh() {
        assert!(!everything().matches(&flow(protocol::TCP, "10.0.0.2", None)));
        assert!(everything().matches(&flow(protocol::UDP, "10.0.0.2", None)));
    }

    #[test]
    fn every_kind_must_match_and_one_member_of_each() {
        let selectors = Selectors {
            peers: peers(&["10.0.0.0/24", "fd00::/64"]),
            protocol: Some(Protocol::Tcp),
            local_ports: vec![PortRange::new(20, 30).unwrap(), port(80)],
            ..Selectors::default()
        };
        let target = target(selectors).unwrap();
        let rows = [
            (flow(protocol::TCP, "10.0.0.2", Some((80, 5))), true),
            (flow(protocol::TCP, "fd00::2", Some((25, 5))), true),
            (flow(protocol::TCP, "10.0.0.2", Some((22, 5))), false),
            (flow(protocol::TCP, "10.0.1.2", Some((80, 5))), false),
            (flow(protocol::UDP, "10.0.0.2", Some((80, 5))), false),
            (flow(protocol::TCP, "10.0.0.2", Some((81, 80))), false),
            (flow(protocol::TCP, "10.0.0.2", None), false),
        ];
        for (flow, concerned) in rows {
            assert_eq!(target.matches(&flow), concerned, "{flow:?}");
        }
    }

    #[test]
    fn asking_for_something_off_limits_is_an_error_that_says_so() {
        let own: SocketAddr = CHANNEL.parse().unwrap();
        let default = Selectors::default;
        let rows = [
            (Selectors { local_ports: vec![port(22)], ..default() }, OffLimits::Ssh),
            (
                Selectors { local_ports: vec![port(80), port(22)], protocol: Some(Protocol::Tcp), ..default() },
                OffLimits::Ssh,
            ),
            (Selectors { peers: peers(&["169.254.169.254"]), ..default() }, OffLimits::LinkLocal),
            (Selectors { peers: peers(&["10.0.0.1", "fe80::/10"]), ..default() }, OffLimits::LinkLocal),
            (Selectors { peers: peers(&["::ffff:169.254.0.0/112"]), ..default() }, OffLimits::LinkLocal),
            (
                Selectors { peers: peers(&["10.9.9.9"]), remote_ports: vec![port(7443)], ..default() },
                OffLimits::Channel(own),
            ),
        ];
        for (selectors, expected) in rows {
            match target(selectors.clone()) {
                Err(BadTarget::OffLimits { what, .. }) => assert_eq!(what, expected),
                other => panic!("{selectors:?}: {other:?}"),
            }
        }
        let said = target(Selectors { peers: peers(&["169.254.169.254"]), ..default() }).unwrap_err();
        assert_eq!(said.to_string(), "`169.254.169.254/32` is off limits: no fault touches link-local addresses");
    }

    #[test]
    fn a_wider_range_is_taken_and_spares_what_is_off_limits_in_it() {
        let udp_22 = Selectors { protocol: Some(Protocol::Udp), local_ports: vec![port(22)], ..Selectors::default() };
        assert!(target(udp_22).is_ok());
        let wide = target(Selectors { peers: peers(&["169.0.0.0/8"]), ..Selectors::default() }).unwrap();
        assert!(wide.matches(&flow(protocol::UDP, "169.253.0.1", Some((1, 2)))));
        assert!(!wide.matches(&flow(protocol::UDP, "169.254.0.1", Some((1, 2)))));
    }

    #[test]
    fn refuses_what_cannot_be_or_is_too_much() {
        let root = Selectors { cgroup: Some(Cgroup { level: 0, id: 1 }), ..Selectors::default() };
        assert_eq!(target(root), Err(BadTarget::RootCgroup));
        let icmp = Selectors { protocol: Some(Protocol::Icmp), remote_ports: vec![port(80)], ..Selectors::default() };
        assert_eq!(target(icmp), Err(BadTarget::PortsOfIcmp));
        let many = Selectors { peers: vec![Cidr::host([10, 0, 0, 1].into()); PEERS_MAX + 1], ..Selectors::default() };
        assert!(matches!(target(many), Err(BadTarget::TooMany { what: "peers", .. })));
    }
}
