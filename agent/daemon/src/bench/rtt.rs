//! What the plane adds to a round trip when it holds nothing.

use std::collections::BTreeMap;

use troop_agent_core::fault::Direction;

use super::figures::{Rounds, rounded};
use super::pings::{Echo, Trips};
use super::report::{Rtt, Way};
use super::under::{Bench, PASSING};
use super::{BenchError, progress};
use std::time::Duration;

#[derive(Debug, Default)]
struct Cell {
    trips: u64,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    added_us: Vec<f64>,
    max_us: f64,
    passed: u64,
}

pub(super) fn measure(bench: &mut Bench) -> Result<Vec<Rtt>, BenchError> {
    let mut cells: BTreeMap<Way, Cell> = BTreeMap::new();
    let lasts = bench.options.round();
    for number in 1..=bench.options.rounds {
        progress(&format!("round trips, round {number}"));
        let mut raw_us = 0.0;
        for way in [Way::Veth, Way::Egress, Way::Ingress] {
            let (trips, passed) = match way {
                Way::Egress | Way::Ingress => {
                    let direction = if way == Way::Egress { Direction::Egress } else { Direction::Ingress };
                    let (trips, seen) = bench.under(direction, PASSING, |up| Echo::start(up.stage)?.in_turn(lasts))?;
                    (trips, seen.concerned)
                }
                Way::Veth | Way::Toxiproxy | Way::MmDelay => (Echo::start(&bench.stage)?.in_turn(lasts)?, 0),
            };
            let [p50, p99, max] = figures(&trips, Duration::ZERO)?;
            if way == Way::Veth {
                raw_us = p50;
            } else if passed < trips.count() {
                let what = format!("{passed} of {} datagrams passed the plane", trips.count());
                return Err(BenchError::Meaningless(what));
            }
            let cell = cells.entry(way).or_default();
            cell.trips += trips.count();
            cell.p50_us.push(p50);
            cell.p99_us.push(p99);
            cell.added_us.push(p50 - raw_us);
            cell.max_us = cell.max_us.max(max);
            cell.passed += passed;
        }
    }
    let row = |(way, cell): (Way, Cell)| Rtt {
        way,
        trips: cell.trips,
        p50_us: Rounds::of(cell.p50_us),
        p99_us: Rounds::of(cell.p99_us),
        max_us: rounded(cell.max_us),
        added_p50_us: Rounds::of(cell.added_us).filter(|_| way != Way::Veth),
        passed_packets: cell.passed,
    };
    Ok(cells.into_iter().map(row).collect())
}

/// The median, the 99th of a hundred and the greatest, in microseconds beyond the delay.
pub(super) fn figures(trips: &Trips, delay: Duration) -> Result<[f64; 3], BenchError> {
    let at = |share| trips.at(share, delay);
    match (at(0.5), at(0.99), at(1.0)) {
        (Some(p50), Some(p99), Some(max)) => Ok([p50, p99, max]),
        (None, _, _) | (_, None, _) | (_, _, None) => Err(BenchError::Meaningless("no datagram came back".to_owned())),
    }
}
