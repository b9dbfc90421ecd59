//! What it takes to hold as much as a fault may hold.

use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use troop_agent_core::fault::Direction;

use super::figures::{as_f64, ratio, rounded};
use super::pings::sockets;
use super::report::Memory;
use super::under::{Bench, Up};
use super::{BenchError, machine, progress};
use crate::clock;

/// Longer than it takes to fill it.
const DELAY: Duration = Duration::from_secs(20);
const FILLED_WITHIN: Duration = Duration::from_secs(10);
/// What the agent's planes hold of one fault at most.
const HELD_BYTES: u64 = 64 << 20;
/// The largest payload of UDP in an Ethernet frame.
const SEGMENT_BYTES: u16 = 1_472;
/// Segments that go as one frame until the device cuts it: 64,768 bytes.
const SEGMENTS: usize = 44;
/// Headers of a frame: Ethernet, IPv4, UDP.
const HEAD_BYTES: u64 = 14 + 20 + 8;

/// Datagrams that fill a frame, and those that the device has to cut.
pub(super) fn measure(bench: &mut Bench) -> Result<Vec<Memory>, BenchError> {
    let before = bench.rss_before_mib;
    [1, SEGMENTS].into_iter().map(|segments| one(bench, segments, before)).collect()
}

fn one(bench: &mut Bench, segments: usize, before_mib: f64) -> Result<Memory, BenchError> {
    progress(&format!("memory, {segments} segments a frame"));
    let payload = vec![7; segments * usize::from(SEGMENT_BYTES)];
    let ((most, mib, full), _) = bench.under(Direction::Egress, DELAY, |up| {
        let (sender, _receiver) = sockets(up.stage)?;
        if segments > 1 {
            setsockopt(&sender, UdpGsoSegment, &i32::from(SEGMENT_BYTES))
                .map_err(|errno| BenchError::io("have the device cut datagrams")(errno.into()))?;
        }
        // Far fewer than the rings have room for.
        fill(up, &sender, &payload, if segments > 1 { 32 } else { 1_000 })
    })?;
    let held_mib = as_f64(most.0) / f64::from(1 << 20);
    Ok(Memory {
        frame_bytes: u64::try_from(payload.len()).unwrap_or(0) + HEAD_BYTES,
        held_mib: rounded(held_mib),
        held_packets: most.1,
        rss_mib: rounded(mib - before_mib),
        ratio: rounded(ratio(mib - before_mib, held_mib)),
        full,
    })
}

/// The most bytes and packets that were held, the resident memory then, and whether that was all that may be.
type Filled = ((u64, u64), f64, bool);

fn fill(up: &mut Up<'_>, sender: &UdpSocket, payload: &[u8], at_once: u64) -> Result<Filled, BenchError> {
    let until = clock::now().after(FILLED_WITHIN);
    let (mut sent, mut most, mut mib) = (0, (0, 0), 0.0);
    loop {
        let seen = up.seen()?;
        if seen.held_bytes > most.0 {
            most = (seen.held_bytes, seen.held_packets);
            mib = rss_mib()?;
        }
        if seen.full || seen.held_bytes >= HELD_BYTES || clock::now() >= until {
            return Ok((most, mib, seen.full));
        }
        if sent <= seen.concerned {
            for _ in 0..at_once {
                sender.send(payload).map_err(BenchError::io("send datagrams to the peer"))?;
                sent += 1;
            }
        }
    }
}

/// Resident memory of this process.
pub(super) fn rss_mib() -> Result<f64, BenchError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(BenchError::io("read this process's memory"))?;
    Ok(as_f64(machine::field(&status, "VmRSS").and_then(machine::kib).unwrap_or(0)) / 1_024.0)
}
