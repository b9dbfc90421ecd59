//! `troop-agent bench` at a size that takes a moment: it runs as an ordinary user, its JSON has the fields that docs/performance.md names, and
//! what it says cannot be otherwise. No speed is asserted.

use std::process::Command;

use serde_json::Value;

fn number(value: &Value, field: &str) -> f64 {
    value[field].as_f64().unwrap_or_else(|| panic!("`{field}` is no number in {value}"))
}

fn rows<'a>(report: &'a Value, table: &str) -> &'a Vec<Value> {
    report[table].as_array().unwrap_or_else(|| panic!("`{table}` is no list"))
}

#[test]
#[ignore = "needs user namespaces"]
fn every_part_of_the_bench_measures_packets_that_really_pass_the_plane() {
    let exe = env!("CARGO_BIN_EXE_troop-agent");
    let options = ["--rounds", "1", "--round", "100ms", "--flows", "1", "--format", "json"];
    let output = Command::new(exe)
        .arg("bench")
        .args(options)
        .env("TOXIPROXY", "/no/such/program")
        .env_remove("MM_DELAY")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["schema"], &report["bench"], &report["rounds"]), (&1.into(), &"agent".into(), &1.into()));
    assert!(number(&report["machine"], "cores") >= 1.0 && number(&report["machine"], "load_before") >= 0.0);

    let delays = rows(&report, "delay");
    assert_eq!(delays.iter().map(|row| number(row, "delay_ms")).collect::<Vec<_>>(), [0.0, 1.0, 10.0, 100.0, 500.0]);
    for row in delays {
        assert!(number(row, "earliest_us") >= 0.0, "early: {row}");
        let p50 = number(&row["p50_us"], "median");
        assert!(number(row, "trips") > 10.0 && 0.0 < p50 && p50 <= number(row, "max_us"), "{row}");
        // Not by another way.
        assert!(number(row, "delay_ms") == 0.0 || number(row, "passed_packets") >= number(row, "trips"), "{row}");
    }
    for row in rows(&report, "rtt").iter().filter(|row| row["way"] != "veth") {
        assert!(number(row, "trips") > 10.0 && number(row, "passed_packets") >= number(row, "trips"), "{row}");
    }
    for row in rows(&report, "packets") {
        assert!(number(&row["packets_per_s"], "median") > 0.0, "{row}");
        assert!(row["way"] == "veth" || number(row, "passed_packets") > 10.0, "{row}");
    }
    let throughput = rows(&report, "throughput");
    assert_eq!(throughput.len(), 9, "raw, and two delays four ways");
    for row in throughput {
        let absent = row["absent"].as_str();
        match row["way"].as_str().unwrap() {
            "veth" => assert_eq!(number(&row["ratio_to_veth"], "median"), 1.0),
            "egress" | "ingress" => {
                assert!(number(row, "passed_packets") > 10.0 && absent.is_none(), "{row}");
                assert!(row["rounds_full"] == 1 || number(&row["gbit_per_s"], "median") > 0.0, "{row}");
            }
            "mm_delay" => assert_eq!(absent, Some("absent: MM_DELAY names no program")),
            "toxiproxy" => assert!(absent.is_some_and(|why| why.starts_with("failed: ")), "{row}"),
            other => panic!("{other} is no way"),
        }
    }
    for row in rows(&report, "memory") {
        // More cannot be held, and what is held lies somewhere: by the plane `hold` in the kernel.
        let (held, rss) = (number(row, "held_mib"), number(row, "rss_mib"));
        assert!(held > 1.0 && held <= 65.0 && (rss >= held || report["plane"] == "hold"), "{row}");
    }
    assert!(number(&report["idle"], "rss_mib") > 0.0 && number(&report["idle"], "threads") >= 1.0);
    let goals = rows(&report, "goals");
    assert_eq!(goals.len(), 2 + 2 + 8 + 2, "{goals:?}");
    assert!(
        goals
            .iter()
            .all(|goal| goal["met"].is_boolean() && (goal["at_least"].is_number() || goal["at_most"].is_number()))
    );
}

#[test]
fn a_round_or_a_number_of_flows_that_cannot_be_is_an_error() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_troop-agent")).arg("bench").args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = run(&["--round", "1h"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("a round lasts 50ms to 10s"), "{stderr}");
    let (code, _) = run(&["--flows", "0"]);
    assert_eq!(code, Some(2));
}
