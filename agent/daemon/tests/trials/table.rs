//! Many trials, some at a time, and the table of what they found.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cause::{Cause, Drawn};
use crate::probe::nanos;
use crate::trial::{Found, GONE_MAX, MARK, SEED};
use crate::world::quantile;

const TRIALS: &str = "TROOP_TRIALS";
const AT_ONCE: &str = "TROOP_TRIALS_AT_ONCE";
/// No trial begins later.
const SECONDS: &str = "TROOP_TRIALS_SECONDS";
const FIRST_SEED: &str = "TROOP_TRIALS_SEED";
/// The last lines of a trial that failed.
const TOLD_LINES: usize = 12;

pub(crate) fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[derive(Debug)]
enum Outcome {
    Found(Found),
    Skipped(String),
    Failed(String),
}

#[test]
#[ignore = "needs user namespaces"]
fn a_fault_is_gone_within_its_lease_and_a_second_whatever_dies_or_stands_still() {
    let (trials, at_once, first) = (number(TRIALS, 20), number(AT_ONCE, 4), number(FIRST_SEED, 1));
    let until = nanos().saturating_add(number(SECONDS, 1_000_000).saturating_mul(1_000_000_000));
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(trials) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= trials || nanos() >= until {
                        return;
                    }
                    let outcome = run(first + number);
                    if let Outcome::Failed(why) = &outcome {
                        println!("seed {}: {why}", first + number);
                    }
                    outcomes.lock().unwrap().push((first + number, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|(seed, _)| *seed);
    if let Some((_, Outcome::Skipped(why))) = outcomes.iter().find(|(_, o)| matches!(o, Outcome::Skipped(_))) {
        println!("{why}");
        return;
    }
    println!("{}", table(&outcomes));
    let not_up = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Found(found) if found.phase == "NotUp")).count();
    assert!(not_up * 2 < outcomes.len().max(1), "{not_up} trials of {} had no fault", outcomes.len());
    let failed: Vec<u64> = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Failed(_))).map(|(s, _)| *s).collect();
    for seed in &failed {
        println!(
            "replay: {FIRST_SEED}={seed} {TRIALS}=1 cargo test -p troop-agent --test lease_trials -- --ignored a_fault_is_gone"
        );
    }
    assert_eq!(failed, Vec::<u64>::new(), "seeds of trials that failed");
}

fn run(seed: u64) -> Outcome {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--include-ignored", "--exact", "trial::one_trial", "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let found =
        said.lines().find_map(|line| line.split_once(MARK)).map(|(_, json)| serde_json::from_str(json).unwrap());
    let skipped = said.lines().find_map(|line| line.find("skipped: ").map(|at| line[at..].to_owned()));
    match (output.status.success(), found, skipped) {
        (true, Some(found), _) => Outcome::Found(found),
        (true, None, Some(why)) => Outcome::Skipped(why),
        (true | false, _, _) => {
            let all = said + &String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n  ");
            Outcome::Failed(format!("{:?}\n  {last}", Drawn::of(seed)))
        }
    }
}

/// By cause: how many, and how long the fault was still seen.
fn table(outcomes: &[(u64, Outcome)]) -> String {
    let mut rows = vec![format!(
        "{:<22}{:>7}{:>8}{:>8}{:>10}{:>10}{:>10}   limit {GONE_MAX:?}",
        "cause", "trials", "failed", "was up", "p50", "p99", "worst"
    )];
    let mut untouched = Vec::new();
    let mut guardians = 0;
    for cause in Cause::ALL {
        let of: Vec<&Outcome> =
            outcomes.iter().filter(|(seed, _)| Drawn::of(*seed).cause == cause).map(|(_, o)| o).collect();
        let found: Vec<&Found> = of
            .iter()
            .filter_map(|outcome| if let Outcome::Found(found) = outcome { Some(found) } else { None })
            .collect();
        untouched.extend(found.iter().map(|found| Duration::from_micros(found.longest_untouched_us)));
        guardians += found.iter().filter(|found| found.had_guardian).count();
        let times: Vec<Duration> =
            found.iter().filter(|found| found.was_up).map(|found| Duration::from_micros(found.gone_us)).collect();
        let at = |share: f64| match times.len() {
            0 => "-".to_owned(),
            _ => format!("{:.1} ms", quantile(times.clone(), share).as_secs_f64() * 1e3),
        };
        let (trials, failed, up) = (of.len(), of.len() - found.len(), times.len());
        rows.push(format!(
            "{:<22}{trials:>7}{failed:>8}{up:>8}{:>10}{:>10}{:>10}",
            cause.to_string(),
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
    let phases = ["BeforeGrant", "Baseline", "Applying", "Up", "Healing", "NotUp"].map(|phase| {
        let is_of = |(_, outcome): &&(u64, Outcome)| matches!(outcome, Outcome::Found(found) if found.phase == phase);
        format!("{phase} {}", outcomes.iter().filter(is_of).count())
    });
    rows.push(format!("at: {}", phases.join(", ")));
    rows.push(match guardians {
        0 => "no guardian: the plane needs none, so those trials are the agent's".to_owned(),
        some => format!("{some} trials had a guardian"),
    });
    if !untouched.is_empty() {
        rows.push(format!(
            "the other port's longest round trip, beyond this machine's own: p50 {:?}, worst {:?}",
            quantile(untouched.clone(), 0.5),
            quantile(untouched, 1.0)
        ));
    }
    rows.join("\n")
}
