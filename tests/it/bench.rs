//! Every bench at a size that takes a moment: it runs, keeps what does not depend on the machine, and its JSON has the
//! fields that docs/performance.md names. No time is asserted.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

use std::process::Command;

use serde_json::Value;

/// What every report says of the machine.
const MACHINE: &[&str] = &["cores", "cpu", "memory_mib", "kernel", "profile", "troop", "load_before"];
const SPREAD: &[&str] = &["count", "p50_ms", "p99_ms", "max_ms"];

/// Runs a bench, whose targets must be kept, and returns its report.
fn bench(args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_troop")).arg("bench").args(args).args(["--format", "json"]).output();
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {stderr}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["bench"], args[0]);
    has(&report["machine"], MACHINE);
    report
}

fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "`{field}` is not in {value}");
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn a_plan_is_measured_for_a_tenth_and_for_all_of_it() {
    let report = bench(&["plan", "--scopes", "300", "--instances", "1200"]);
    assert!(report["ratio"].is_number());
    assert_eq!(report["targets"], Value::Array(Vec::new()), "another size is promised nothing");
    let sizes = report["sizes"].as_array().unwrap();
    let of = |field: &str| sizes.iter().map(|size| count(&size[field])).collect::<Vec<_>>();
    assert_eq!((of("scopes"), of("instances"), of("teams")), (vec![30, 300], vec![120, 1_200], vec![1, 3]));
    assert_eq!(of("eligible"), [4, 4], "the instances of one scope");
    // A quarter is drawn; that hardly any or nearly all of 300 fall does not happen, and the draws are the same each time.
    assert!((20..200).contains(&of("chosen")[1]), "{sizes:?}");
    for size in sizes {
        has(size, &["planned_ms", "peak_mib", "stored_ms", "standing_ms", "gates_ms"]);
        assert!(count(&size["peak_mib"]) > 0);
    }
}

#[test]
fn the_balancer_is_measured_every_way_and_loses_no_request_while_it_flips() {
    let args = ["--connections", "4", "--pace", "100", "--rounds", "2", "--round", "200ms", "--flips-for", "1s"];
    let report = bench(&[&["balancer"], &args[..]].concat());
    let ways = report["ways"].as_array().unwrap();
    assert_eq!(ways.iter().map(|way| &way["way"]).collect::<Vec<_>>(), ["direct", "balancer", "haproxy"]);
    for way in ways {
        has(way, &["version"]);
        if way["version"] == "absent" {
            assert_eq!(way["way"], "haproxy");
            continue;
        }
        has(way, &["per_second", "ratio", "ratio_min", "ratio_max", "cpu_us", "paced_per_second", "reasons"]);
        has(&way["full"], SPREAD);
        has(&way["paced"], SPREAD);
        assert!(count(&way["full"]["count"]) > 0 && count(&way["paced"]["count"]) > 0, "{way}");
        assert_eq!(way["failed"], 0, "{way}");
    }
    let flips = &report["flips"];
    has(&flips["took"], SPREAD);
    has(flips, &["seconds", "per_second", "reasons"]);
    assert_eq!(flips["asked"], 10, "ten a second, for a second");
    assert!(count(&flips["flips"]) > 1 && count(&flips["answered"]) > 0, "{flips}");
    assert_eq!(flips["failed"], 0, "{flips}");
    assert_eq!(report["targets"].as_array().unwrap().len(), 2);
}

#[test]
fn the_registry_is_measured_alone_and_while_it_is_read() {
    let report = bench(&["registry", "--instances", "60", "--connections", "4", "--round", "600ms"]);
    assert_eq!(report["instances"], 60);
    has(&report, &["connections", "round_s", "registered_per_second", "needed_per_second"]);
    has(&report["view"], SPREAD);
    assert!(count(&report["view"]["count"]) > 0);
    for round in ["alone", "read", "needed"] {
        let beats = &report[round];
        has(beats, &["per_second", "cpu_us", "reasons"]);
        has(&beats["took"], SPREAD);
        assert!(count(&beats["took"]["count"]) > 0, "{round}: {beats}");
        assert_eq!(beats["failed"], 0, "{round}: {beats}");
    }
}

#[test]
fn the_ledger_is_measured_with_one_writer_and_with_eight() {
    let folder = tempfile::tempdir().unwrap();
    let report = bench(&["ledger", "--round", "300ms", "--dir", folder.path().to_str().unwrap()]);
    has(&report, &["filesystem"]);
    has(&report["sync"], SPREAD);
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.iter().map(|round| count(&round["at_once"])).collect::<Vec<_>>(), [1, 8]);
    for round in rounds {
        has(round, &["acts_per_second"]);
        for step in ["intent", "settle"] {
            has(&round[step], SPREAD);
            assert_eq!(round[step]["count"], round["acts"]);
        }
        assert!(count(&round["acts"]) >= count(&round["at_once"]), "{round}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_a_hint() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_troop")).args(["bench", "ledger", "--dir", "/no/such/folder"]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("there is no folder `/no/such/folder`") && stderr.contains("hint:"), "{stderr}");
}

#[test]
fn an_idle_control_plane_is_watched() {
    let report = bench(&["idle", "--groups", "120", "--instances", "240", "--lasts", "2s"]);
    assert_eq!((&report["groups"], &report["instances"], &report["teams"]), (&120.into(), &240.into(), &2.into()));
    has(&report, &["seconds", "cpu_percent", "peak_mib", "cpu_ms_per_look", "ready_ms"]);
    for figure in ["wakeups_per_second", "rss_mib", "looks_per_second", "threads"] {
        assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
}
