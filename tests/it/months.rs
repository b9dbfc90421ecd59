//! A few simulated months in every `cargo test`. `tests/run` runs more.

use troop_tests::month::{Options, run};

/// One takes some ten seconds in an unoptimised build.
const MONTHS: u64 = 1;

#[test]
fn simulated_months_keep_every_invariant() {
    for seed in 1..=MONTHS {
        let report = run(&Options { seed, ..Options::default() }).unwrap();
        assert_eq!(report.violations, [], "cargo run --release -p troop-tests --bin sim -- --months 1 --seed {seed}");
        assert!(report.effects > 0, "seed {seed}: nothing happened at all");
    }
}
