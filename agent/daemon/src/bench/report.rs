//! The report's shape. Keys end in their unit; a figure of several rounds is their median, least and greatest.

use serde::{Deserialize, Serialize};

use super::figures::Rounds;
use super::machine::Machine;

/// What the bench prints as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    pub(super) bench: &'static str,
    pub(super) machine: Machine,
    pub(super) took_s: f64,
    #[serde(flatten)]
    pub(super) figures: Figures,
    /// Of what was measured only.
    pub(super) goals: Vec<Goal>,
}

/// All that was measured; what was not asked for is empty.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) plane: String,
    /// Why this host has no other planes.
    pub(super) lacks: Vec<String>,
    pub(super) rounds: u32,
    pub(super) round_s: f64,
    /// The greatest of net.ipv4.tcp_rmem and tcp_wmem was set to this.
    pub(super) tcp_buffer_max_bytes: u32,
    pub(super) idle: Option<Idle>,
    pub(super) rtt: Vec<Rtt>,
    pub(super) delay: Vec<DelayError>,
    pub(super) packets: Vec<Packets>,
    pub(super) throughput: Vec<Throughput>,
    pub(super) memory: Vec<Memory>,
}

/// By what packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// The pair of devices alone.
    Veth,
    /// Through the plane, in what goes out of the host.
    Egress,
    /// Through the plane, in what comes in.
    Ingress,
    Toxiproxy,
    MmDelay,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Veth => "raw veth",
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Toxiproxy => "toxiproxy",
            Self::MmDelay => "mm-delay",
        }
    }
}

/// What TCP carries. At a delay, the whole of it lies in one direction, in that of the data, but for mm-delay, which delays both ways: by half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Throughput {
    pub(super) way: Way,
    /// Added to a round trip.
    pub(super) delay_ms: u64,
    pub(super) flows: u32,
    /// `absent`, or why it could not be measured; then there is no figure.
    pub(super) absent: Option<String>,
    pub(super) gbit_per_s: Option<Rounds>,
    /// To raw veth without delay with as many flows in the same round.
    pub(super) ratio_to_veth: Option<Rounds>,
    /// To mm-delay at the same delay with as many flows in the same round.
    pub(super) ratio_to_mm_delay: Option<Rounds>,
    /// Time on a processor for each gigabit, of both ends and the plane: CPU per Gbit/s. Not of other programs.
    pub(super) cpu_s_per_gbit: Option<Rounds>,
    /// Of the plane's own threads alone.
    pub(super) plane_cpu_s_per_gbit: Option<Rounds>,
    /// Rounds in which the plane held as much as it may, so that the fault ended before its time.
    pub(super) rounds_full: u32,
    /// What the plane says that the fault concerned, in all rounds.
    pub(super) passed_packets: u64,
}

/// Datagrams with 64 bytes of payload, as many as arrive when a fixed number is on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Packets {
    pub(super) way: Way,
    pub(super) packets_per_s: Option<Rounds>,
    pub(super) ratio_to_veth: Option<Rounds>,
    pub(super) lost_packets: u64,
    pub(super) passed_packets: u64,
}

/// Round trips of a datagram, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rtt {
    pub(super) way: Way,
    pub(super) trips: u64,
    pub(super) p50_us: Option<Rounds>,
    pub(super) p99_us: Option<Rounds>,
    pub(super) max_us: f64,
    /// The median of a round less that of raw veth in the same round.
    pub(super) added_p50_us: Option<Rounds>,
    pub(super) passed_packets: u64,
}

/// How far round trips of datagrams, each on its own, were from the delay asked for; 0 ms is raw veth.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DelayError {
    pub(super) delay_ms: u64,
    pub(super) trips: u64,
    pub(super) lost: u64,
    /// A round trip less the delay: that of raw veth is in it.
    pub(super) p50_us: Option<Rounds>,
    pub(super) p99_us: Option<Rounds>,
    pub(super) max_us: f64,
    /// The median of a round less that of raw veth in the same round.
    pub(super) beyond_raw_p50_us: Option<Rounds>,
    /// The shortest way from sender to receiver of all, less the delay. Below zero it would be early.
    pub(super) earliest_us: f64,
    pub(super) passed_packets: u64,
}

/// What it takes to hold as much as may be held.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Memory {
    /// Of the frames held, as they go on the wire.
    pub(super) frame_bytes: u64,
    /// The most that was held before the fault ended or 64 MiB were.
    pub(super) held_mib: f64,
    pub(super) held_packets: u64,
    /// Resident memory then, less that before the first fault: rings, frames, and what keeps them in order.
    pub(super) rss_mib: f64,
    /// Memory for each byte held.
    pub(super) ratio: f64,
    /// It held as much as it may.
    pub(super) full: bool,
}

/// An agent without a fault, connected, in a process of its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Idle {
    pub(super) seconds: f64,
    pub(super) rss_mib: f64,
    /// Times a second that a thread of it woke after it had waited.
    pub(super) wakeups_per_s: f64,
    pub(super) cpu_percent: f64,
    pub(super) threads: u64,
}

/// What is aimed at, and whether this run got there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Goal {
    pub(super) name: String,
    pub(super) unit: &'static str,
    #[serde(flatten)]
    pub(super) limit: Limit,
    pub(super) measured: f64,
    pub(super) met: bool,
}

/// Up to where.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}
