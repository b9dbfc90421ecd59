//! The embedded cloud where namespaces are forbidden: found out by itself, the same main job, and nothing left of it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod stage;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stage::{Machine, Up, image, image_that_runs, interfaces, left_over, new_state, nothing_is_left, text, until};

/// The command of an image whose instances start a daemon: forked twice, in a session of its own, nobody's child.
const WITH_A_DAEMON: [&str; 3] = ["sh", "-c", "(setsid sleep 3600 &); exec troop sample-app"];

fn deploy(up: &Up) {
    let path = image_that_runs(&up.state, "1.0.0", "greeting = \"hello\"\n", &WITH_A_DAEMON, 8080);
    deploy_image(up, &path, "1s");
}

fn deploy_image(up: &Up, path: &Path, soak: &str) {
    let path = path.display().to_string();
    let times = ["--soak", soak, "--watch", "10m", "--drain", "1s"];
    up.ok(&[&["deploy", "hello-web", "--image", &path, "--team", "demo"], &times[..]].concat());
}

/// Pids of the daemons that instances of this state started, once there are so many.
fn daemons(state: &Path, count: usize) -> BTreeSet<i32> {
    let found = || {
        let all: Vec<String> = left_over(state).into_iter().filter(|line| line.contains(": sleep 3600")).collect();
        let pid = |line: &String| line.split([' ', ':']).nth(1).unwrap().parse().unwrap();
        all.iter().map(pid).collect::<BTreeSet<i32>>()
    };
    until("every instance has its daemon", Duration::from_secs(10), || Some(found()).filter(|all| all.len() == count))
}

/// Pids of this state's processes that have all of these words among their arguments.
fn pids(state: &Path, words: &[&str]) -> Vec<i32> {
    let state = state.display().to_string();
    let mut found = Vec::new();
    for (pid, arguments) in stage::processes() {
        let has = |word: &&str| arguments.iter().any(|argument| argument == word);
        if words.iter().all(has) && arguments.iter().any(|argument| argument.contains(&state)) {
            found.push(pid);
        }
    }
    found
}

fn kill_9(pid: i32) {
    // One that died by another's end meanwhile is no error.
    let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

/// Once what was forked off a second ago has been written down.
fn is_written_down(state: &Path, wanted: &BTreeSet<i32>) {
    until("the daemons are written down", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(state.join("cloud/processes.json")).ok()?;
        let record: serde_json::Value = serde_json::from_str(&text).ok()?;
        let listed: BTreeSet<i64> = record["processes"].as_array()?.iter().filter_map(|p| p["pid"].as_i64()).collect();
        wanted.iter().all(|pid| listed.contains(&i64::from(*pid))).then_some(())
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn where_namespaces_are_forbidden_up_says_so_in_one_line_and_does_the_main_job() {
    let before = interfaces();
    let dir = new_state();
    let mut up = Up::start_on_in(Machine::Container, dir.path());
    assert_eq!(up.info()["isolation"], "processes");
    let log = || std::fs::read_to_string(dir.path().join("up.log")).unwrap();
    until("the line that says so", Duration::from_secs(10), || {
        let log = log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(Machine::setting())).collect();
        let whole = |line: &&str| line.starts_with("isolation processes: ") && line.contains("no network monkeys");
        (lines.len() == 1 && lines.iter().all(whole)).then_some(())
    });

    deploy(&up);
    let rows = up.json(&["ps"]);
    let addresses: BTreeSet<&str> = rows.iter().map(|row| row["address"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 3);
    assert!(addresses.iter().all(|a| a.starts_with("127.") && a.ends_with(":8080")), "{addresses:?}");
    assert!(up.ok(&["curl", "hello-web", "/"]).contains("1.0.0"));

    let images = dir.path().join("cloud/images");
    let root = std::fs::read_dir(images).unwrap().next().unwrap().unwrap().path().join("root");
    let mode = || std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&root).unwrap().permissions()) & 0o777;
    assert_eq!(mode(), 0o555, "an instance cannot add to its image by accident");
    let daemons = daemons(dir.path(), 3);
    let old = up.instances("hello-web");
    up.ok(&["kill", "hello-web", "--reason", "test"]);
    let new = up.instances("hello-web");
    assert_eq!(new.len(), 3);
    assert_eq!(new.keys().filter(|id| old.contains_key(*id)).count(), 2, "{old:?} {new:?}");
    let of_old = daemons.intersection(&self::daemons(dir.path(), 3)).count();
    assert_eq!(of_old, 2, "an instance's daemon ends with it");

    deploy_image(&up, &image(&up.state, "1.1.0", "greeting = \"next\"\n"), "1s");
    assert!(up.ok(&["curl", "hello-web", "/"]).contains("1.1.0"));
    up.ok(&["rollback", "hello-web", "--reason", "test"]);
    until("traffic is back", Duration::from_secs(20), || {
        up.ok(&["curl", "hello-web", "/"]).contains("1.0.0").then_some(())
    });

    let took = up.end(Signal::SIGTERM);
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    nothing_is_left(dir.path(), &before);
    assert_eq!(std::fs::read_dir(dir.path().join("cloud/tmp")).unwrap().count(), 0, "TMPDIRs are removed");
    assert_eq!(mode(), 0o755, "its owner can remove it again");
}

#[test]
#[ignore = "needs user namespaces"]
fn where_namespaces_are_forbidden_asking_for_them_is_an_error_that_names_the_setting() {
    let dir = new_state();
    let mut command = Machine::Container.command(dir.path());
    command.args(["up", "--port", "0", "--isolation", "namespaces", "--state"]).arg(dir.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(Machine::setting()) && said.contains("--isolation processes"), "{said}");
    assert!(left_over(dir.path()).is_empty());
}

#[test]
#[ignore = "needs user namespaces"]
fn the_demo_keeps_its_promises_where_namespaces_are_forbidden() {
    let tmp = tempfile::tempdir().unwrap();
    let summary = tmp.path().join("summary.json");
    let mut command = Machine::Container.command(tmp.path());
    command.arg("demo").arg("--summary").arg(&summary).env("TMPDIR", tmp.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.contains(Machine::setting())).count(), 1, "{said}");
    let summary: serde_json::Value = serde_json::from_slice(&std::fs::read(summary).unwrap()).unwrap();
    assert_eq!((&summary["isolation"], &summary["left_over"]), (&"processes".into(), &0.into()));
    assert!(left_over(tmp.path()).is_empty(), "{:?}", left_over(tmp.path()));
}

#[test]
#[ignore = "needs user namespaces"]
fn whoever_is_killed_nothing_is_left_and_the_next_start_begins_anew() {
    let before = interfaces();
    let dir = new_state();
    for who in ["supervisor", "cloud", "processes", "keepers"] {
        let mut up = Up::start_on_in(Machine::Container, dir.path());
        if who == "supervisor" {
            deploy(&up);
        }
        until("three instances", Duration::from_secs(30), || {
            let all = up.json(&["ps"]);
            (all.len() == 3 && all.iter().all(|i| i["health"] == "healthy")).then_some(())
        });
        let daemons = daemons(dir.path(), 3);
        is_written_down(dir.path(), &daemons);
        match who {
            "supervisor" => drop(up.end(Signal::SIGKILL)),
            "keepers" => {
                pids(dir.path(), &["keeper"]).into_iter().for_each(kill_9);
                // Instances die, the cloud lives and begins others.
                until("three others", Duration::from_secs(30), || {
                    let now = self::daemons(dir.path(), 3);
                    (now.is_disjoint(&daemons) && up.json(&["ps"]).len() == 3).then_some(())
                });
                up.end(Signal::SIGTERM);
            }
            helper => {
                let found = pids(dir.path(), &["internal", helper]);
                assert_eq!(found.len(), 1, "{helper}: {found:?}");
                kill_9(found[0]);
                let status = until("the supervisor ends", Duration::from_secs(15), || up.child.try_wait().unwrap());
                assert!(!status.success(), "{helper}");
            }
        }
        nothing_is_left(dir.path(), &before);
    }
}

#[test]
#[ignore = "needs user namespaces"]
fn told_or_killed_at_any_moment_of_its_start_it_leaves_nothing() {
    let before = interfaces();
    let dir = new_state();
    // From the second start on there are groups, so instances are being launched as well.
    let mut up = Up::start_on_in(Machine::Container, dir.path());
    deploy(&up);
    up.end(Signal::SIGTERM);
    for (delay_ms, signal) in [
        (0, Signal::SIGTERM),
        (20, Signal::SIGKILL),
        (60, Signal::SIGINT),
        (90, Signal::SIGKILL),
        (150, Signal::SIGKILL),
        (250, Signal::SIGTERM),
        (400, Signal::SIGKILL),
        (700, Signal::SIGKILL),
        (1_500, Signal::SIGINT),
    ] {
        let mut up = Up::spawn_on(Machine::Container, dir.path());
        std::thread::sleep(Duration::from_millis(delay_ms));
        let took = up.end(signal);
        assert!(took < Duration::from_secs(5), "told after {delay_ms} ms it took {took:?}");
        nothing_is_left(dir.path(), &before);
    }
}

#[test]
#[ignore = "needs user namespaces"]
fn roles_or_their_attendants_killed_all_at_once_are_started_again_and_instances_live_on() {
    let up = Up::start_on(Machine::Container);
    deploy(&up);
    let old = up.instances("hello-web");
    let roles = || ["serve", "registry", "balancer"].map(|role| up.role_pids(role)).concat();
    for attendants in [false, true] {
        let were: BTreeSet<i32> = roles().into_iter().collect();
        assert_eq!(were.len(), 4);
        let victims = if attendants { pids(&up.state, &["attend"]) } else { were.iter().copied().collect() };
        assert_eq!(victims.len(), 4);
        victims.into_iter().for_each(kill_9);
        until("all are there again", Duration::from_secs(20), || {
            let now = roles();
            (now.len() == 4 && now.iter().all(|pid| !were.contains(pid))).then_some(())
        });
        until("all UP and healthy", Duration::from_secs(20), || {
            let output = up.run(&["ps", "--format", "json"]);
            let printed = text(&output.stdout);
            (printed.matches("\"UP\"").count() == 3 && printed.matches("\"healthy\"").count() == 3).then_some(())
        });
    }
    assert_eq!(up.instances("hello-web"), old);
}

#[test]
#[ignore = "needs user namespaces"]
fn what_outlives_everything_killed_at_once_is_ended_by_the_next_start_and_nothing_else_is() {
    let before = interfaces();
    let dir = new_state();
    let mut up = Up::start_on_in(Machine::Container, dir.path());
    deploy(&up);
    let daemons = daemons(dir.path(), 3);
    is_written_down(dir.path(), &daemons);
    let ours = |line: &String| !line.contains(": sleep 3600");
    let all: Vec<i32> = left_over(dir.path())
        .iter()
        .filter(|line| ours(line))
        .map(|line| line.split([' ', ':']).nth(1).unwrap().parse().unwrap())
        .collect();
    // Nobody shall be quick enough to end what another leaves.
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for pid in &all {
            let _gone = kill(Pid::from_raw(*pid), signal);
        }
    }
    until("the supervisor is gone", Duration::from_secs(5), || up.child.try_wait().unwrap());
    until("only daemons are left", Duration::from_secs(5), || (!left_over(dir.path()).iter().any(ours)).then_some(()));
    assert_eq!(self::daemons(dir.path(), 3), daemons, "forked off and orphaned, they live on");

    let mut up = Up::start_on_in(Machine::Container, dir.path());
    let left = left_over(dir.path());
    let outlived = |pid: &i32| left.iter().any(|line| line.starts_with(&format!("process {pid}:")));
    assert!(!daemons.iter().any(outlived), "{left:?}");
    let log = std::fs::read_to_string(dir.path().join("up.log")).unwrap();
    assert!(log.contains("outlived an earlier start"), "{log}");
    up.end(Signal::SIGTERM);
    nothing_is_left(dir.path(), &before);
}

#[test]
#[ignore = "needs user namespaces"]
fn two_at_a_time_share_no_address_and_a_port_that_is_not_for_instances_is_refused() {
    let (one, other) = (Up::start_on(Machine::Plain), Up::start_on(Machine::Container));
    deploy(&one);
    deploy(&other);
    let networks = |up: &Up| {
        let rows = up.json(&["ps"]);
        let network = |row: &serde_json::Value| row["address"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
        rows.iter().map(network).collect::<BTreeSet<String>>()
    };
    assert_eq!((networks(&one).len(), networks(&other).len()), (1, 1));
    assert_ne!(networks(&one), networks(&other));

    let path = image_that_runs(&one.state, "1.2.0", "greeting = \"low\"\n", &["troop", "sample-app"], 80);
    let refused = one.run(&["deploy", "hello-web", "--image", &path.display().to_string()]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("listens on port 80") && said.contains("1024"), "{said}");
}
