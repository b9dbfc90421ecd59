//! What TCP carries through each way, and the time on a processor that it takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use troop_agent_core::fault::Direction;

use super::figures::{Rounds, ratio};
use super::flows::{self, Ends, Flows, Round, Writer};
use super::report::{Throughput, Way};
use super::stage::{PEER, Stage};
use super::under::{Bench, PASSING};
use super::{BenchError, progress};

/// Of a round trip. The issue of a window: 40 ms of 10 Gbit/s are 50 MB.
const DELAYS_MS: [u64; 2] = [0, 40];
/// How long flows run before they are counted: 25 of those round trips, of which a slow start takes eight.
const WARM_UP: Duration = Duration::from_secs(1);
/// The same without a delay.
const WARM_UP_RAW: Duration = Duration::from_millis(100);

/// What was seen of one way at one delay with one number of flows.
#[derive(Debug, Default)]
struct Cell {
    rounds: Vec<Round>,
    to_veth: Vec<f64>,
    to_mm_delay: Vec<f64>,
    absent: Option<String>,
    rounds_full: u32,
    passed: u64,
}

type Key = (u32, u64, Way);

/// In turns: each round goes through all ways.
pub(super) fn measure(bench: &mut Bench) -> Result<Vec<Throughput>, BenchError> {
    let mut cells: BTreeMap<Key, Cell> = BTreeMap::new();
    let counts = bench.options.flows.clone();
    for number in 1..=bench.options.rounds {
        for flows in &counts {
            progress(&format!("throughput, round {number}, {flows} flows"));
            let mut round: BTreeMap<Key, f64> = BTreeMap::new();
            for (delay_ms, way) in ways() {
                let key = (*flows, delay_ms, way);
                if let Some(seen) = one(bench, key, cells.entry(key).or_default())? {
                    round.insert(key, seen);
                }
            }
            compare(&round, &mut cells);
        }
    }
    Ok(cells.into_iter().map(row).collect())
}

fn ways() -> Vec<(u64, Way)> {
    let held = [Way::Egress, Way::Ingress, Way::Toxiproxy, Way::MmDelay];
    let delayed = DELAYS_MS.into_iter().flat_map(|delay| held.map(|way| (delay, way)));
    std::iter::once((0, Way::Veth)).chain(delayed).collect()
}

/// One round of one way; `None` where it is absent.
fn one(bench: &mut Bench, (flows, delay_ms, way): Key, cell: &mut Cell) -> Result<Option<f64>, BenchError> {
    if cell.absent.is_some() {
        return Ok(None);
    }
    let lasts = bench.options.round();
    let (delay, warm_up) = match delay_ms {
        0 => (PASSING, WARM_UP_RAW),
        // A round that is too short for a figure needs none.
        ms => (Duration::from_millis(ms), WARM_UP.min(lasts * 5)),
    };
    let seen = match way {
        Way::Veth => {
            let flows = running(&bench.stage, flows, Writer::Connecting)?;
            watched(&flows, warm_up, lasts, &Default::default()).inspect(|_| flows.end())?
        }
        Way::Egress | Way::Ingress => {
            let (direction, writer) = match way {
                Way::Ingress => (Direction::Ingress, Writer::Accepting),
                Way::Veth | Way::Egress | Way::Toxiproxy | Way::MmDelay => (Direction::Egress, Writer::Connecting),
            };
            let (seen, plane) = bench
                .under(direction, delay, |up| {
                    let flows = running(up.stage, flows, writer)?;
                    let seen = watched(&flows, warm_up, lasts, &up.threads);
                    // What the plane says is that of the flows, not of their end.
                    let told = up.seen();
                    flows.end();
                    Ok((seen?, told?))
                })?
                .0;
            cell.passed += plane.concerned;
            if plane.full {
                cell.rounds_full += 1;
                return Ok(None);
            }
            seen
        }
        Way::Toxiproxy | Way::MmDelay => match bench.peers.round(bench, way, flows, delay_ms, warm_up) {
            Ok(seen) => seen,
            Err(why) => {
                cell.absent = Some(why);
                return Ok(None);
            }
        },
    };
    cell.rounds.push(seen);
    Ok(Some(seen.gbit_per_s))
}

fn running(stage: &Stage, count: u32, writer: Writer) -> Result<Flows, BenchError> {
    let connect = || -> std::io::Result<Vec<Ends>> {
        let listener = stage.at_peer(|| flows::listen(PEER)).map_err(std::io::Error::other)??;
        flows::connect(count, SocketAddr::from((PEER, listener.local_addr()?.port())), &listener, writer)
    };
    connect().and_then(Flows::start).map_err(BenchError::io("connect host and peer"))
}

fn watched(
    flows: &Flows,
    warm_up: Duration,
    lasts: Duration,
    plane: &std::collections::BTreeSet<std::path::PathBuf>,
) -> Result<Round, BenchError> {
    flows.watch(warm_up, lasts, plane).map_err(BenchError::io("read the kernel's counts of this process"))
}

/// Puts the ratios of one round where they belong.
fn compare(round: &BTreeMap<Key, f64>, cells: &mut BTreeMap<Key, Cell>) {
    for (key @ (flows, delay_ms, _), seen) in round {
        let Some(cell) = cells.get_mut(key) else { continue };
        cell.to_veth.extend(round.get(&(*flows, 0, Way::Veth)).map(|veth| ratio(*seen, *veth)));
        cell.to_mm_delay.extend(round.get(&(*flows, *delay_ms, Way::MmDelay)).map(|other| ratio(*seen, *other)));
    }
}

fn row(((flows, delay_ms, way), cell): (Key, Cell)) -> Throughput {
    let of = |figure: fn(&Round) -> f64| Rounds::of(cell.rounds.iter().map(figure).collect());
    Throughput {
        way,
        delay_ms,
        flows,
        gbit_per_s: of(|round| round.gbit_per_s),
        ratio_to_veth: Rounds::of(cell.to_veth.clone()),
        ratio_to_mm_delay: Rounds::of(cell.to_mm_delay.clone()),
        cpu_s_per_gbit: of(|round| round.cpu_s_per_gbit).filter(|_| !is_other(way)),
        plane_cpu_s_per_gbit: of(|round| round.plane_cpu_s_per_gbit).filter(|cpu| cpu.max > 0.0),
        rounds_full: cell.rounds_full,
        passed_packets: cell.passed,
        absent: cell.absent,
    }
}

/// Whether it is another program, whose time is not counted.
fn is_other(way: Way) -> bool {
    match way {
        Way::Toxiproxy | Way::MmDelay => true,
        Way::Veth | Way::Egress | Way::Ingress => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_one_round() {
        let key = |delay, way| (8, delay, way);
        let mut cells: BTreeMap<Key, Cell> = BTreeMap::new();
        for (delay, way) in ways() {
            cells.insert(key(delay, way), Cell::default());
        }
        let seen = [(0, Way::Veth, 10.0), (0, Way::Egress, 8.0), (40, Way::Egress, 6.0), (40, Way::MmDelay, 1.0)];
        compare(&seen.map(|(delay, way, gbit)| (key(delay, way), gbit)).into(), &mut cells);
        assert_eq!(cells[&key(0, Way::Egress)].to_veth, [0.8]);
        assert_eq!(cells[&key(0, Way::Egress)].to_mm_delay, Vec::<f64>::new());
        assert_eq!(cells[&key(40, Way::Egress)].to_mm_delay, [6.0]);
        let absent = row((key(0, Way::MmDelay), Cell { absent: Some("absent".to_owned()), ..Cell::default() }));
        assert_eq!((absent.gbit_per_s, absent.absent.as_deref()), (None, Some("absent")));
    }
}
