//! Seeded crash runs: a story of pushes, kills and rollbacks on the embedded cloud, and a SIGKILL at a seeded moment of
//! it. It must end as it does without the crash, or hold and say what to type.
//!
//! `TROOP_CRASH_RUNS` is how many (8), `TROOP_CRASH_SEED` the first seed (1), `TROOP_CRASH_LANES` how many at a time (2),
//! `TROOP_CRASH_ISOLATION` may be `processes`. A seed says who is killed, in which story and when.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod crash;
mod stage;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crash::pulse::{Pulse, STOOD_STILL};
use crash::run::{Row, run};
use stage::Machine;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|e| panic!("{name}={text}: {e}")))
}

/// A run that fails while the machine stands still is tried again so often.
const TRIES: u32 = 3;

enum Judged {
    Row(Row),
    Failed,
    /// In no try did the machine keep up.
    Not,
}

fn judged(seed: u64, machine: Machine) -> Judged {
    for _ in 0..TRIES {
        let pulse = Pulse::start();
        if let Ok(row) = std::panic::catch_unwind(|| run(seed, machine)) {
            return Judged::Row(row);
        }
        let worst = pulse.worst();
        if worst < STOOD_STILL {
            return Judged::Failed;
        }
        eprintln!("seed {seed}: the machine stood still for {worst:?} meanwhile: not judged");
    }
    Judged::Not
}

#[test]
#[ignore = "needs user namespaces"]
fn whoever_is_killed_a_story_ends_as_without_it_or_holds_and_says_what_to_type() {
    let (first, runs) = (number("TROOP_CRASH_SEED", 1), number("TROOP_CRASH_RUNS", 8));
    let plain = std::env::var("TROOP_CRASH_ISOLATION").is_ok_and(|isolation| isolation == "processes");
    let machine = if plain { Machine::Plain } else { Machine::AsItIs };
    let next = AtomicU64::new(first);
    let (rows, failed, starved) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let lane = || {
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= first + runs {
                return;
            }
            match judged(seed, machine) {
                Judged::Row(row) => {
                    eprintln!("{}", row.line());
                    rows.lock().unwrap().push(row);
                }
                Judged::Failed => failed.lock().unwrap().push(seed),
                Judged::Not => starved.lock().unwrap().push(seed),
            }
        }
    };
    eprintln!("{}", Row::HEAD);
    std::thread::scope(|scope| {
        for _ in 0..number("TROOP_CRASH_LANES", 2) {
            scope.spawn(lane);
        }
    });
    let rows = rows.into_inner().unwrap();
    let held = rows.iter().filter(|row| row.end != "the same").count();
    eprintln!("{} runs: {} ended as without a crash, {held} held and said what to type", rows.len(), rows.len() - held);
    let starved = starved.into_inner().unwrap();
    if !starved.is_empty() {
        eprintln!("not judged, since the machine stood still in each of {TRIES} tries: seeds {starved:?}");
    }
    let again: Vec<String> = failed
        .into_inner()
        .unwrap()
        .iter()
        .map(|seed| {
            format!("TROOP_CRASH_SEED={seed} TROOP_CRASH_RUNS=1 cargo test -p troop --test crash_runs -- --ignored --nocapture")
        })
        .collect();
    assert!(again.is_empty(), "these failed; to repeat them:\n{}", again.join("\n"));
    assert!(!rows.is_empty(), "the machine is too busy for any of this: run it again alone");
}
