//! `troop bench inventory` at a size that takes a moment: what it reads, and the calls that this takes. No time is asserted.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

#[path = "../../cloud/tests/aws/moto.rs"]
#[expect(dead_code, reason = "shared with the tests of the library, which need more of it")]
mod moto;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use self::moto::Moto;

fn bench(args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troop"));
    let output =
        command.args(["bench", "inventory", "--cloud", "aws", "--format", "json"]).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}: {stderr}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["schema"], &report["bench"]), (&1.into(), &"inventory".into()));
    report
}

fn calls(look: &Value) -> BTreeMap<String, u64> {
    serde_json::from_value(look["calls_by_kind"].clone()).unwrap()
}

fn expected<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(call, count)| (call.to_owned(), count)).into()
}

#[test]
fn an_account_that_is_made_up_is_read_whole_by_pages_and_never_by_instance() {
    let fleet = ["--regions", "us-east-1,eu-west-1", "--groups", "230", "--instances", "2300", "--in-play", "8"];
    let report = bench(&[&fleet[..], &["--looks", "2", "--pause", "0s"]].concat());
    assert_eq!((&report["groups"], &report["instances"], &report["in_play"]), (&230.into(), &2300.into(), &8.into()));
    // Of each region, 115 groups with 1,150 instances: two pages of each. Zones and images are asked for once. The balancer's
    // side costs a call for each of the four groups in play.
    let every_time = [
        ("autoscaling:DescribeAutoScalingGroups", 4),
        ("autoscaling:DescribeScalingActivities", 2),
        ("ec2:DescribeInstances", 4),
        ("elasticloadbalancing:DescribeListeners", 2),
        ("elasticloadbalancing:DescribeRules", 2),
        ("elasticloadbalancing:DescribeTargetGroups", 2),
        ("elasticloadbalancing:DescribeTargetHealth", 8),
    ];
    let mut first = expected(every_time);
    first.extend(expected([("ec2:DescribeImages", 2)]));
    assert_eq!((calls(&report["looks"][0]), calls(&report["looks"][1])), (first, expected(every_time)));
    assert_eq!((&report["looks"][0]["calls"], &report["looks"][1]["calls"]), (&26.into(), &24.into()));
    assert_eq!(report["answering"]["throttled"], 0, "Troop keeps below what AWS takes");
    for figure in ["peak_mib", "before_mib"] {
        assert!(report[figure].as_u64().unwrap() > 0, "{figure}");
    }
    for region in ["us-east-1", "eu-west-1"] {
        assert!(report["looks"][0]["regions_ms"][region].as_f64().unwrap() > 0.0, "{region}");
    }
}

#[tokio::test]
#[ignore = "needs python3 with moto"]
async fn an_account_at_moto_is_read_by_the_same_calls() {
    let moto = Moto::start().await;
    let fleet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/aws/fleet.py");
    let made = Command::new(moto::python())
        .arg(fleet)
        .args([&moto.url, "--groups", "24", "--instances", "240"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let report = bench(&["--endpoint", &moto.url, "--looks", "1"]);
    assert_eq!((&report["groups"], &report["instances"], &report["in_play"]), (&24.into(), &240.into(), &8.into()));
    assert_eq!(report["answering"], Value::Null);
    let four_regions = [
        ("autoscaling:DescribeAutoScalingGroups", 4),
        ("autoscaling:DescribeScalingActivities", 4),
        ("ec2:DescribeImages", 4),
        ("ec2:DescribeInstances", 4),
        ("elasticloadbalancing:DescribeListeners", 4),
        ("elasticloadbalancing:DescribeRules", 4),
        ("elasticloadbalancing:DescribeTargetGroups", 4),
        ("elasticloadbalancing:DescribeTargetHealth", 8),
    ];
    // No less, and of no other kind; more where a busy moto took too long and was asked again.
    let (calls, expected) = (calls(&report["looks"][0]), expected(four_regions));
    assert_eq!(calls.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(expected.iter().all(|(call, count)| calls[call] >= *count && calls[call] <= count * 4), "{calls:?}");
}
