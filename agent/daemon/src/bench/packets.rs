//! How many small packets a second come through.
//!
//! A fixed number is on its way at a time, so that nothing is lost where a queue is short and every way is asked for the same: sent as fast
//! as can be, packets beyond what a fault's thread takes would end the fault, as they are meant to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use troop_agent_core::fault::Direction;

use super::figures::{Rounds, as_f64, ratio};
use super::pings::sockets;
use super::report::{Packets, Way};
use super::stage::Stage;
use super::under::{Bench, PASSING};
use super::{BenchError, progress};
use crate::clock;

const PAYLOAD_BYTES: usize = 64;
/// Two thirds of what a socket's usual receive buffer takes (net.core.rmem_default, at 768 bytes each).
const ON_THE_WAY: u64 = 192;
/// Nothing has come for so long: those on their way are lost.
const LOST_AFTER: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Cell {
    per_s: Vec<f64>,
    to_veth: Vec<f64>,
    lost: u64,
    passed: u64,
}

pub(super) fn measure(bench: &mut Bench) -> Result<Vec<Packets>, BenchError> {
    let mut cells: BTreeMap<Way, Cell> = BTreeMap::new();
    let lasts = bench.options.round();
    for number in 1..=bench.options.rounds {
        progress(&format!("packets, round {number}"));
        let mut raw = 0.0;
        for way in [Way::Veth, Way::Egress, Way::Ingress] {
            let (seen, passed) = match way {
                Way::Egress => {
                    let seen = bench.under(Direction::Egress, PASSING, |up| stream(up.stage, true, lasts))?;
                    (seen.0, seen.1.concerned)
                }
                Way::Ingress => {
                    let seen = bench.under(Direction::Ingress, PASSING, |up| stream(up.stage, false, lasts))?;
                    (seen.0, seen.1.concerned)
                }
                Way::Veth | Way::Toxiproxy | Way::MmDelay => (stream(&bench.stage, true, lasts)?, 0),
            };
            if way == Way::Veth {
                raw = seen.per_s;
            } else if passed < seen.came {
                let what = format!("{passed} of {} packets passed the plane", seen.came);
                return Err(BenchError::Meaningless(what));
            }
            let cell = cells.entry(way).or_default();
            cell.per_s.push(seen.per_s.round());
            cell.to_veth.push(ratio(seen.per_s, raw));
            cell.lost += seen.lost;
            cell.passed += passed;
        }
    }
    let row = |(way, cell): (Way, Cell)| Packets {
        way,
        packets_per_s: Rounds::of(cell.per_s),
        ratio_to_veth: Rounds::of(cell.to_veth),
        lost_packets: cell.lost,
        passed_packets: cell.passed,
    };
    Ok(cells.into_iter().map(row).collect())
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    per_s: f64,
    came: u64,
    lost: u64,
}

fn stream(stage: &Stage, is_out: bool, lasts: Duration) -> Result<Seen, BenchError> {
    let (here, there) = sockets(stage)?;
    let (sender, receiver) = if is_out { (here, there) } else { (there, here) };
    let io = BenchError::io("send packets");
    receiver.set_read_timeout(Some(LOST_AFTER)).map_err(&io)?;
    let came = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let (counted, ended) = (Arc::clone(&came), Arc::clone(&over));
    let sending = std::thread::current();
    let receive = move || {
        let mut bytes = [0; PAYLOAD_BYTES];
        loop {
            match receiver.recv(&mut bytes) {
                // Woken when half of them are through, so that neither waits for the other all the time.
                Ok(_) if counted.fetch_add(1, Ordering::Release).is_multiple_of(ON_THE_WAY / 2) => sending.unpark(),
                Ok(_) => {}
                Err(_) if ended.load(Ordering::Relaxed) => return,
                Err(_) => sending.unpark(),
            }
        }
    };
    let receiving = std::thread::Builder::new().name("receiver".to_owned()).spawn(receive).map_err(&io)?;
    let began = clock::now();
    let until = began.after(lasts);
    let (mut sent, mut lost) = (0_u64, 0_u64);
    let mut last = (0, began);
    loop {
        let now = clock::now();
        if now >= until {
            break;
        }
        let here = came.load(Ordering::Acquire);
        if here != last.0 {
            last = (here, now);
        }
        if sent.saturating_sub(lost + here) < ON_THE_WAY {
            for _ in 0..16 {
                sender.send(&[0; PAYLOAD_BYTES]).map_err(&io)?;
                sent += 1;
            }
        } else if now.since(last.1) > LOST_AFTER {
            lost = sent.saturating_sub(here);
        } else {
            std::thread::park_timeout(LOST_AFTER);
        }
    }
    let took = clock::now().since(began);
    let through = came.load(Ordering::Acquire);
    over.store(true, Ordering::Relaxed);
    drop(receiving.join());
    Ok(Seen { per_s: ratio(as_f64(through), took.as_secs_f64()), came: came.load(Ordering::Acquire), lost })
}
