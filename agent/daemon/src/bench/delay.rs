//! How exact a delay is, beside a raw round trip in the same round.

use std::collections::BTreeMap;
use std::time::Duration;

use troop_agent_core::fault::Direction;

use super::figures::{Rounds, rounded};
use super::pings::Echo;
use super::report::DelayError;
use super::rtt::figures;
use super::under::Bench;
use super::{BenchError, progress};

/// 0: raw veth.
const DELAYS_MS: [u64; 5] = [0, 1, 10, 100, 500];
/// Each datagram finds everybody asleep, as most do in production, and the next does not wait for it.
const EVERY: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
struct Cell {
    trips: u64,
    lost: u64,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    beyond_us: Vec<f64>,
    max_us: Option<f64>,
    earliest_us: Option<f64>,
    passed: u64,
}

pub(super) fn measure(bench: &mut Bench) -> Result<Vec<DelayError>, BenchError> {
    let mut cells: BTreeMap<u64, Cell> = BTreeMap::new();
    let lasts = bench.options.round();
    for number in 1..=bench.options.rounds {
        progress(&format!("delays, round {number}"));
        let mut raw_us = 0.0;
        for delay_ms in DELAYS_MS {
            let delay = Duration::from_millis(delay_ms);
            let (trips, passed) = if delay_ms == 0 {
                (Echo::start(&bench.stage)?.paced(EVERY, lasts, delay)?, 0)
            } else {
                let paced = |up: &mut super::under::Up<'_>| Echo::start(up.stage)?.paced(EVERY, lasts, delay);
                let (trips, seen) = bench.under(Direction::Egress, delay, paced)?;
                (trips, seen.concerned)
            };
            let [p50, p99, max] = figures(&trips, delay)?;
            if delay_ms == 0 {
                raw_us = p50;
            } else if passed < trips.count() {
                let what = format!("{passed} of {} datagrams passed the plane", trips.count());
                return Err(BenchError::Meaningless(what));
            }
            let cell = cells.entry(delay_ms).or_default();
            cell.trips += trips.count();
            cell.lost += trips.lost;
            cell.p50_us.push(p50);
            cell.p99_us.push(p99);
            cell.beyond_us.push(p50 - raw_us);
            cell.max_us = cell.max_us.into_iter().chain([max]).max_by(f64::total_cmp);
            cell.earliest_us = cell.earliest_us.into_iter().chain(trips.earliest(delay)).min_by(f64::total_cmp);
            cell.passed += passed;
        }
    }
    let row = |(delay_ms, cell): (u64, Cell)| DelayError {
        delay_ms,
        trips: cell.trips,
        lost: cell.lost,
        p50_us: Rounds::of(cell.p50_us),
        p99_us: Rounds::of(cell.p99_us),
        max_us: rounded(cell.max_us.unwrap_or_default()),
        beyond_raw_p50_us: Rounds::of(cell.beyond_us).filter(|_| delay_ms > 0),
        earliest_us: rounded(cell.earliest_us.unwrap_or_default()),
        passed_packets: cell.passed,
    };
    Ok(cells.into_iter().map(row).collect())
}
