//! Commands that ask AWS themselves, without a control plane.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use troop::demo::aws::front::changing;
use troop_cloud::aws::Credentials;

use super::{DEMO, Leashed, REGION};

/// Policies of an app that runs, with an exception that holds nowhere, and of one that does not run.
fn policies(folder: &Path) {
    let nowhere = "[[apps.hello.exceptions]]\naccount = \"*\"\nregion = \"*\"\nstack = \"pci\"\ndetail = \"*\"\n\
                   reason = \"audited\"\n";
    std::fs::write(folder.join("demo.toml"), format!("{DEMO}{nowhere}")).unwrap();
    let ghost = include_str!("../../policies/examples/minimal.toml").replace("apps.search", "apps.ghost");
    std::fs::write(folder.join("search.toml"), ghost).unwrap();
}

fn troop(keys: &Credentials, args: &[&str]) -> Output {
    let Credentials::Static { key_id, secret } = keys else { panic!("a test's own keys") };
    let mut troop = Command::new(env!("CARGO_BIN_EXE_troop"));
    troop.args(args).env("AWS_ACCESS_KEY_ID", key_id).env("AWS_SECRET_ACCESS_KEY", secret);
    troop.output().unwrap()
}

fn warnings(app: &Value) -> Vec<&str> {
    app["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3 with moto"]
async fn policies_are_checked_against_the_groups_of_every_account() {
    let leashed = Leashed::new().await;
    let before = leashed.front.calls();
    let keys = leashed.may_only_read().await;
    let folder = leashed.folder.path();
    policies(&folder.join("policies"));
    let site = folder.join("troop.toml");
    let written = |regions: &str| {
        let endpoint = &leashed.front.url;
        let text = format!(
            "site = \"acme\"\n[aws]\nendpoint = \"{endpoint}\"\n[[accounts]]\nname = \"prod\"\nregions = [{regions}]\n"
        );
        std::fs::write(&site, text).unwrap();
    };
    let (dir, site_arg) = (folder.join("policies"), site.to_str().unwrap().to_owned());
    let check = ["policy", "check", dir.to_str().unwrap(), "--against", "aws", "--site", &site_arg];
    let check_json = [&check[..], &["--format", "json"]].concat();

    // The second region has no group, and an exception that holds in neither is told once.
    written(&format!("\"{REGION}\", \"eu-west-1\""));
    let checked = troop(&keys, &check_json);
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert_eq!(checked.status.code(), Some(0), "{told}");
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let apps = report["apps"].as_array().unwrap();
    let [hello, ghost] = &apps[..] else { panic!("{report:#}") };
    assert_eq!((&hello["groups"], &hello["instances"]), (&Value::from(1), &Value::from(3)), "{report:#}");
    let [exception] = &warnings(hello)[..] else { panic!("{report:#}") };
    assert!(exception.starts_with("exception at ") && exception.ends_with(" matches nothing"), "{exception}");
    assert_eq!(ghost["groups"], 0, "{report:#}");
    assert_eq!(report["unknown_groups"], Value::Array(Vec::new()), "{report:#}");
    assert_eq!(warnings(ghost), ["matches nothing: no group of this app runs"], "{report:#}");
    let table = troop(&keys, &check);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.lines().any(|line| line.starts_with("hello  1       3")), "{text}");

    // Only reads left.
    let calls = leashed.front.calls();
    assert_eq!(changing(&calls), changing(&before));
    assert!(calls["autoscaling:DescribeAutoScalingGroups"] > before["autoscaling:DescribeAutoScalingGroups"]);

    // Who may not look is told what to allow, and never that nothing matches.
    let nobody = Credentials::Static { key_id: "AKIANOBODYNOBODY".to_owned(), secret: "secret".to_owned() };
    let denied = troop(&nobody, &check);
    let told = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert_eq!((denied.status.code(), denied.stdout.len()), (Some(4), 0), "{told}");
    assert!(
        told.contains("the cloud of account `prod` refused to answer") && told.contains("hint: `troop aws doctor`"),
        "{told}"
    );

    // Without an account there is nobody to ask.
    std::fs::write(&site, "site = \"acme\"\n").unwrap();
    let empty = troop(&keys, &check);
    let told = String::from_utf8_lossy(&empty.stderr).into_owned();
    assert_eq!(empty.status.code(), Some(1), "{told}");
    assert!(told.contains("names no account"), "{told}");
}
