//! A fault of the network, as it is asked for, recorded and sent to a host: whom it concerns, by name, and what befalls
//! the packets.
//!
//! Numbers are whole, in microseconds and millionths, so that what is recorded is what is applied. The agent on the host checks it
//! all again; an agent that does not know a part refuses the whole.

mod owner;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::AppName;
pub use owner::{BadOwner, Owner};

/// Which of the host's packets are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Those that leave it: one delay in a round trip.
    #[default]
    Egress,
    /// Those that come to it.
    Ingress,
    Both,
}

/// A protocol that a fault may be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

/// Whom the packets go to or come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// Every live instance of an application, as the control plane resolves it, anew with every renewal.
    App(AppName),
    /// A host name, resolved likewise.
    Host(String),
    /// One address, or a range of them.
    Range(IpAddr, u8),
    /// Whatever is not off limits. Alone, and never meant by leaving something out.
    Everything,
}

/// Why a text is no peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no peer")]
pub struct BadPeer {
    pub text: String,
}

impl BadPeer {
    pub fn hint(&self) -> &'static str {
        "write app:NAME, host:NAME, an address or a range such as 10.0.0.0/24, or the word everything"
    }
}

/// Longest host name (RFC 1035).
const HOST_MAX_BYTES: usize = 253;

impl FromStr for Peer {
    type Err = BadPeer;

    fn from_str(text: &str) -> Result<Self, BadPeer> {
        let bad = || BadPeer { text: text.chars().take(HOST_MAX_BYTES).collect() };
        if text == "everything" {
            return Ok(Self::Everything);
        }
        if let Some(app) = text.strip_prefix("app:") {
            return AppName::new(app).map(Self::App).map_err(|_| bad());
        }
        if let Some(host) = text.strip_prefix("host:") {
            let plain = |label: &str| {
                let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                inner && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
            };
            let known = host.len() <= HOST_MAX_BYTES && host.trim_end_matches('.').split('.').all(plain);
            return if known { Ok(Self::Host(host.to_owned())) } else { Err(bad()) };
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None => most,
        };
        if prefix > most { Err(bad()) } else { Ok(Self::Range(address, prefix)) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(app) => write!(f, "app:{app}"),
            Self::Host(host) => write!(f, "host:{host}"),
            Self::Range(address, prefix) if *prefix == if address.is_ipv4() { 32 } else { 128 } => {
                write!(f, "{address}")
            }
            Self::Range(address, prefix) => write!(f, "{address}/{prefix}"),
            Self::Everything => f.write_str("everything"),
        }
    }
}

impl TryFrom<String> for Peer {
    type Error = BadPeer;

    fn try_from(text: String) -> Result<Self, BadPeer> {
        text.parse()
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.to_string()
    }
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpan {
    pub first: u16,
    pub last: u16,
}

impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// How a delay varies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    #[default]
    Uniform,
    Normal,
    Pareto,
    ParetoNormal,
    /// As it was measured.
    Table(ShapeTable),
}

/// The inverse of a measured distribution function in equal steps of probability, each in 8,192ths of the jitter from the mean: what netem
/// calls a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<i16>")]
pub struct ShapeTable(Vec<i16>);

/// Why numbers are no [`ShapeTable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a table of {entries} entries is not of 1 to {SHAPE_ENTRIES_MAX}")]
pub struct BadShapeTable {
    pub entries: usize,
}

/// Most entries of a table that travels and is recorded: they tell a tail of a thousandth, in 7 KB.
pub const SHAPE_ENTRIES_MAX: usize = 1_024;
/// One jitter in a table's entries.
const SHAPE_SCALE: u64 = 8_192;

impl ShapeTable {
    /// # Errors
    /// [`BadShapeTable`] for no entry or more than [`SHAPE_ENTRIES_MAX`].
    pub fn new(entries: Vec<i16>) -> Result<Self, BadShapeTable> {
        let sound = (1..=SHAPE_ENTRIES_MAX).contains(&entries.len());
        if sound { Ok(Self(entries)) } else { Err(BadShapeTable { entries: entries.len() }) }
    }

    pub fn entries(&self) -> &[i16] {
        &self.0
    }
}

impl TryFrom<Vec<i16>> for ShapeTable {
    type Error = BadShapeTable;

    fn try_from(entries: Vec<i16>) -> Result<Self, BadShapeTable> {
        Self::new(entries)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelaySpec {
    pub mean_us: u64,
    #[serde(default)]
    pub jitter_us: u64,
    #[serde(default)]
    pub correlation_ppm: u32,
    #[serde(default)]
    pub shape: Shape,
    /// Whether jitter may let packets of a flow overtake each other.
    #[serde(default)]
    pub reorders: bool,
}

impl DelaySpec {
    /// The longest that it is meant to be: with its jitter, or with as much of it as a measured table goes beyond the mean. The tails of the
    /// named shapes go further, up to four times the jitter.
    pub fn longest_us(&self) -> u64 {
        let beyond = match &self.shape {
            Shape::Uniform | Shape::Normal | Shape::Pareto | Shape::ParetoNormal => self.jitter_us,
            Shape::Table(table) => {
                let most =
                    table.entries().iter().copied().max().map_or(0, |most| u64::from(most.max(0).unsigned_abs()));
                self.jitter_us.saturating_mul(most).div_ceil(SHAPE_SCALE)
            }
        };
        self.mean_us.saturating_add(beyond)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChanceSpec {
    pub ppm: u32,
    #[serde(default)]
    pub correlation_ppm: u32,
}

/// Packets that overtake others by leaving at once; `gap` as in `tc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReorderSpec {
    pub ppm: u32,
    #[serde(default)]
    pub correlation_ppm: u32,
    pub gap: u32,
}

/// Loss in bursts, as Gilbert and Elliott have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BurstSpec {
    pub to_bad_ppm: u32,
    pub to_good_ppm: u32,
    pub loss_when_bad_ppm: u32,
    #[serde(default)]
    pub loss_when_good_ppm: u32,
}

/// A whole fault.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    #[serde(default)]
    pub direction: Direction,
    /// Never empty in a fault that is applied: a missing selector means none.
    pub to: Vec<Peer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<PortSpan>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<PortSpan>,
    /// Only what a socket of it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelaySpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<ChanceSpec>,
    /// Instead of `loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bursts: Option<BurstSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<ChanceSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<ChanceSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reorder: Option<ReorderSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<u64>,
    /// How many of the flows are concerned; all of them where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_ppm: Option<u32>,
    /// How long it takes to grow to its full strength.
    #[serde(default)]
    pub ramp_us: u64,
}

/// Where resolvers are asked (RFC 1035).
const DNS_PORT: PortSpan = PortSpan { first: 53, last: 53 };

/// All of it, in millionths.
pub const ALL_PPM: u32 = 1_000_000;

/// A time as people write it: `200 ms`, `1.5 s`.
pub fn in_words(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000_000.. if us.is_multiple_of(1_000_000) => format!("{} s", us / 1_000_000),
        1_000..10_000_000 if us.is_multiple_of(1_000) => format!("{} ms", us / 1_000),
        1_000..10_000_000 => format!("{}.{:03} ms", us / 1_000, us % 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// A share as people write it: `2 %`, `0.5 %`.
pub fn percent(ppm: u32) -> String {
    let (whole, rest) = (ppm / 10_000, ppm % 10_000);
    if rest == 0 { format!("{whole} %") } else { format!("{whole}.{rest:04}").trim_end_matches('0').to_owned() + " %" }
}

impl FaultSpec {
    /// A delay of always the same length towards some peers: what is asked for most.
    pub fn delay(mean: Duration, to: Vec<Peer>) -> Self {
        let mean_us = u64::try_from(mean.as_micros()).unwrap_or(u64::MAX);
        let delay = DelaySpec { mean_us, jitter_us: 0, correlation_ppm: 0, shape: Shape::Uniform, reorders: false };
        Self { to, delay: Some(delay), ..Self::default() }
    }

    /// Slow name resolution: a delay of whatever goes to port 53 of anybody. By TCP as well as UDP, for long answers come by TCP.
    pub fn slow_dns(mean: Duration) -> Self {
        Self { remote_ports: vec![DNS_PORT], ..Self::delay(mean, vec![Peer::Everything]) }
    }

    /// Failing name resolution: no question arrives. A resolver that answers SERVFAIL would be another fault; one that is not there is what
    /// a host meets when its resolver or the way to it is down.
    pub fn no_dns() -> Self {
        let all = ChanceSpec { ppm: ALL_PPM, correlation_ppm: 0 };
        Self { to: vec![Peer::Everything], remote_ports: vec![DNS_PORT], loss: Some(all), ..Self::default() }
    }

    /// Whether it concerns name resolution, whomever this host asks, and nothing besides.
    pub fn is_of_dns(&self) -> bool {
        self.to == [Peer::Everything] && self.remote_ports == [DNS_PORT] && self.protocol != Some(Protocol::Icmp)
    }

    /// By how much the median of a round trip to a peer must grow for the fault to count as shown: half of the delay, so
    /// that jitter and a busy host do not hide what is there. `None` where no delay was asked for.
    pub fn least_shown(&self) -> Option<Duration> {
        let directions = if self.direction == Direction::Both { 2 } else { 1 };
        self.delay.as_ref().map(|delay| Duration::from_micros(delay.mean_us * directions / 2))
    }

    fn effects(&self) -> Vec<String> {
        let mut parts = Vec::new();
        if let Some(delay) = &self.delay {
            let mut text = format!("+{}", in_words(delay.mean_us));
            if delay.jitter_us > 0 {
                text.push_str(&format!(" jitter {}", in_words(delay.jitter_us)));
            }
            if matches!(delay.shape, Shape::Table(_)) {
                text.push_str(" as measured");
            }
            parts.push(text);
        }
        parts.extend(self.loss.map(|loss| format!("loss {}", percent(loss.ppm))));
        parts.extend(self.bursts.map(|burst| format!("bursts of {} loss", percent(burst.loss_when_bad_ppm))));
        parts.extend(self.duplicate.map(|chance| format!("duplicates {}", percent(chance.ppm))));
        parts.extend(self.corrupt.map(|chance| format!("corrupts {}", percent(chance.ppm))));
        parts.extend(self.reorder.map(|reorder| format!("reorders {}", percent(reorder.ppm))));
        parts.extend(self.rate_bytes_per_second.map(|rate| format!("at most {rate} bytes/s")));
        parts
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.effects().join(", "))?;
        let word = match self.direction {
            Direction::Egress => "to",
            Direction::Ingress => "from",
            Direction::Both => "to and from",
        };
        let peers: Vec<String> = self.to.iter().map(Peer::to_string).collect();
        let ports = |spans: &[PortSpan]| spans.iter().map(PortSpan::to_string).collect::<Vec<_>>().join(", ");
        if self.is_of_dns() {
            write!(f, " {word} DNS, whoever is asked")?;
        } else {
            write!(f, " {word} {}", peers.join(", "))?;
        }
        if !self.remote_ports.is_empty() && !self.is_of_dns() {
            write!(f, " port {}", ports(&self.remote_ports))?;
        }
        if !self.local_ports.is_empty() {
            write!(f, " from port {}", ports(&self.local_ports))?;
        }
        if let Some(of) = &self.of {
            write!(f, " of {of}")?;
        }
        match self.flows_ppm {
            Some(share) => write!(f, " ({} of the flows)", percent(share)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_reads_as_it_is_written() {
        for text in ["app:pricing", "host:db.example.com", "10.0.0.7", "10.0.0.0/24", "fd00::/64", "everything"] {
            assert_eq!(peer(text).to_string(), text);
        }
        assert_eq!(peer("10.0.0.7/32").to_string(), "10.0.0.7");
    }

    #[test]
    fn what_names_nobody_is_no_peer() {
        let long = format!("host:{}", "a".repeat(254));
        for text in [
            "",
            "pricing",
            "app:",
            "app:a|b",
            "host:",
            "host:a..b",
            "host:-a",
            "10.0.0.0/33",
            "10.0.0.0/+1",
            "10.0",
            &long,
        ] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_fault_is_said_in_a_line() {
        let mut spec = FaultSpec::delay(Duration::from_millis(200), vec![peer("app:pricing")]);
        assert_eq!(spec.to_string(), "+200 ms to app:pricing");
        spec.delay.iter_mut().for_each(|delay| delay.jitter_us = 1_500);
        spec.loss = Some(ChanceSpec { ppm: 5_000, correlation_ppm: 0 });
        spec.remote_ports = vec![PortSpan { first: 80, last: 80 }];
        spec.flows_ppm = Some(300_000);
        let said = "+200 ms jitter 1.500 ms, loss 0.5 % to app:pricing port 80 (30 % of the flows)";
        assert_eq!(spec.to_string(), said);
        spec.of = Some("unit:web.service".parse().unwrap());
        spec.flows_ppm = None;
        assert_eq!(spec.to_string(), "+200 ms jitter 1.500 ms, loss 0.5 % to app:pricing port 80 of unit:web.service");
    }

    #[test]
    fn slow_and_failing_names_are_delay_and_loss_at_port_53() {
        let (slow, fails) = (FaultSpec::slow_dns(Duration::from_secs(2)), FaultSpec::no_dns());
        assert_eq!(slow.to_string(), "+2 s to DNS, whoever is asked");
        assert_eq!(fails.to_string(), "loss 100 % to DNS, whoever is asked");
        let one = FaultSpec { to: vec![peer("10.0.0.2")], ..slow };
        assert_eq!(one.to_string(), "+2 s to 10.0.0.2 port 53");
        assert!(!one.is_of_dns());
    }

    #[test]
    fn a_measured_shape_has_a_bound_of_its_own_and_a_limit() {
        let measured = |entries| Shape::Table(ShapeTable::new(entries).unwrap());
        let mut spec = FaultSpec::delay(Duration::from_millis(100), vec![peer("app:a")]);
        let delay = spec.delay.as_mut().unwrap();
        delay.jitter_us = 10_000;
        assert_eq!(delay.longest_us(), 110_000);
        delay.shape = measured(vec![-8_192, 0, 16_384]);
        assert_eq!(delay.longest_us(), 120_000);
        assert_eq!(spec.to_string(), "+100 ms jitter 10 ms as measured to app:a");
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains(r#""shape":{"table":[-8192,0,16384]}"#), "{text}");
        assert_eq!(serde_json::from_str::<FaultSpec>(&text).unwrap(), spec);
        for entries in [Vec::new(), vec![0; SHAPE_ENTRIES_MAX + 1]] {
            let bad = text.replace("[-8192,0,16384]", &serde_json::to_string(&entries).unwrap());
            assert!(serde_json::from_str::<FaultSpec>(&bad).is_err());
        }
    }

    #[test]
    fn goes_through_json_whole_and_an_unknown_part_is_refused() {
        let spec = FaultSpec::delay(Duration::from_millis(50), vec![peer("10.0.0.0/8")]);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<FaultSpec>(&text).unwrap(), spec);
        let unknown = text.replacen('{', r#"{"explode":1,"#, 1);
        assert!(serde_json::from_str::<FaultSpec>(&unknown).is_err());
    }

    #[test]
    fn a_delay_is_shown_by_half_of_it_on_every_way_it_takes() {
        let mut spec = FaultSpec::delay(Duration::from_millis(200), vec![peer("app:pricing")]);
        assert_eq!(spec.least_shown(), Some(Duration::from_millis(100)));
        spec.direction = Direction::Both;
        assert_eq!(spec.least_shown(), Some(Duration::from_millis(200)));
        spec.delay = None;
        assert_eq!(spec.least_shown(), None);
    }
}
