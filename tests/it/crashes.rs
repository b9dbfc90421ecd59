//! `troop up` when parts of it are killed, or it is told to end: what lives on lives on, and what is over leaves nothing.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod stage;

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stage::{Up, image, interfaces, left_over, new_state, nothing_is_left, until};
use troop::load::Load;

/// The limit for a clean end; machines in CI are busy, so what is beyond is told with its figure.
const CLEAN_END: Duration = Duration::from_secs(5);

/// Deploys `hello-web` from an image and returns when its soak is over.
fn deploy(up: &Up, version: &str) {
    let image = image(&up.state, version, &format!("greeting = \"{version}\"\n"));
    let image = image.display().to_string();
    up.ok(&[
        "deploy",
        "hello-web",
        "--image",
        &image,
        "--team",
        "demo",
        "--soak",
        "1s",
        "--watch",
        "10m",
        "--drain",
        "1s",
    ]);
}

#[test]
#[ignore = "needs user namespaces"]
fn up_ends_within_five_seconds_whenever_it_is_told_and_leaves_nothing() {
    let before = interfaces();
    for (delay_ms, signal) in [
        (0, Signal::SIGTERM),
        (30, Signal::SIGINT),
        (120, Signal::SIGTERM),
        (400, Signal::SIGINT),
        (1_500, Signal::SIGTERM),
    ] {
        let dir = new_state();
        let mut up = Up::spawn(dir.path());
        std::thread::sleep(Duration::from_millis(delay_ms));
        // Before its first instruction a process has no handler; then the kernel ends it, which is clean too.
        let took = up.end(signal);
        assert!(took < CLEAN_END, "told after {delay_ms} ms it took {took:?}");
        nothing_is_left(dir.path(), &before);
    }
}

#[test]
#[ignore = "needs user namespaces"]
fn up_with_instances_ends_within_five_seconds_and_begins_anew_with_the_same_counts() {
    let before = interfaces();
    let dir = new_state();
    let mut up = Up::start_in(dir.path());
    deploy(&up, "1.0.0");
    let old = up.instances("hello-web");
    let took = up.end(Signal::SIGTERM);
    assert!(took < CLEAN_END, "it took {took:?}");
    nothing_is_left(dir.path(), &before);
    let up = Up::start_in(dir.path());
    let new = until("three anew", Duration::from_secs(30), || Some(up.instances("hello-web")).filter(|i| i.len() == 3));
    assert!(new.keys().all(|id| !old.contains_key(id)), "{old:?} {new:?}");
}

/// The load goes on through everything; every failed request is told with its reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs user namespaces"]
async fn a_control_plane_killed_in_the_middle_of_a_push_is_restarted_and_the_push_goes_on() {
    let up = Up::start();
    deploy(&up, "1.0.0");
    let load = Load::start(up.balancer(), "hello-web".to_owned(), 50);
    load.wait_until_first_ok().await;
    for (number, pause_ms) in [(2_u64, 100), (3, 900), (4, 2_200)] {
        let old = up.instances("hello-web");
        let version = format!("1.{number}.0");
        let path = image(&up.state, &version, &format!("greeting = \"{version}\"\n")).display().to_string();
        up.ok(&[
            "deploy",
            "hello-web",
            "--image",
            &path,
            "--soak",
            "1s",
            "--watch",
            "10m",
            "--drain",
            "1s",
            "--detach",
        ]);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let pids = up.role_pids("serve");
        assert_eq!(pids.len(), 1, "{pids:?}");
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
        until("serve is restarted", Duration::from_secs(10), || {
            up.role_pids("serve").first().filter(|pid| **pid != pids[0]).copied()
        });
        until("the push is watched", Duration::from_secs(60), || {
            let output = up.run(&["pushes", "--format", "json"]);
            let printed = stage::text(&output.stdout);
            printed.contains(&format!("hello-web-v{:03}", number - 1)).then_some(())?;
            (up.push(number)["phase"] == "watch").then_some(())
        });
        let new = up.instances("hello-web");
        let kept = old.keys().filter(|id| new.contains_key(*id)).count();
        assert!(kept >= 3, "the instances that served live on: {old:?} {new:?}");
    }
    let phases = load.finish().await;
    let failed: Vec<_> = phases.iter().filter(|p| p.failed > 0).collect();
    assert!(failed.is_empty(), "requests failed: {failed:?}");
    assert!(phases.iter().map(|p| p.sent).sum::<u64>() > 200);
}

#[test]
#[ignore = "needs user namespaces"]
fn a_dead_registry_or_balancer_worker_is_started_again_and_instances_live_on() {
    let up = Up::start();
    deploy(&up, "1.0.0");
    let old = up.instances("hello-web");
    for role in ["registry", "balancer"] {
        let pids = up.role_pids(role);
        assert!(!pids.is_empty(), "{role}");
        kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
        until(role, Duration::from_secs(10), || {
            let now = up.role_pids(role);
            (now.len() == pids.len() && !now.contains(&pids[0])).then_some(())
        });
    }
    until("all UP and healthy", Duration::from_secs(20), || {
        let all = up.json(&["ps"]);
        all.iter().all(|i| i["registry"] == "UP" && i["health"] == "healthy").then_some(())
    });
    assert_eq!(up.instances("hello-web"), old);
    assert!(up.ok(&["curl", "hello-web", "/"]).contains("1.0.0"));
}

#[test]
#[ignore = "needs user namespaces"]
fn a_killed_supervisor_takes_everything_along_and_a_push_goes_on_or_holds_after_a_new_start() {
    let before = interfaces();
    let dir = new_state();
    let mut up = Up::start_in(dir.path());
    deploy(&up, "1.0.0");
    let path = image(&up.state, "1.1.0", "greeting = \"next\"\n").display().to_string();
    up.ok(&["deploy", "hello-web", "--image", &path, "--soak", "1s", "--watch", "10m", "--drain", "1s", "--detach"]);
    std::thread::sleep(Duration::from_millis(700));
    up.end(Signal::SIGKILL);
    nothing_is_left(dir.path(), &before);
    let up = Up::start_in(dir.path());
    until("the push is watched", Duration::from_secs(60), || (up.push(2)["phase"] == "watch").then_some(()));
    assert!(up.ok(&["curl", "hello-web", "/"]).contains("1.1.0"));
    assert!(up.ok(&["status"]).starts_with("nothing is broken by us right now"));
}

#[test]
#[ignore = "needs user namespaces"]
fn a_killed_first_process_ends_everything_with_an_error_that_says_so() {
    let before = interfaces();
    let dir = new_state();
    let mut up = Up::start_in(dir.path());
    deploy(&up, "1.0.0");
    let first = i32::try_from(up.info()["cloud_pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let status = until("the supervisor ends", Duration::from_secs(10), || up.child.try_wait().unwrap());
    assert!(!status.success());
    let log = std::fs::read_to_string(dir.path().join("up.log")).unwrap();
    assert!(log.contains("the sandbox's first process ended"), "{log}");
    nothing_is_left(dir.path(), &before);
    let up = Up::start_in(dir.path());
    until("three anew", Duration::from_secs(30), || Some(up.instances("hello-web")).filter(|i| i.len() == 3));
}

#[test]
#[ignore = "needs user namespaces"]
fn a_killed_demo_leaves_nothing_but_a_folder_that_the_next_demo_removes() {
    let tmp = tempfile::tempdir().unwrap();
    let before = interfaces();
    let demo = || {
        let mut command = std::process::Command::new(stage::troop());
        command.arg("demo").env("TMPDIR", tmp.path()).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let folders = || std::fs::read_dir(tmp.path()).unwrap().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let mut first = demo();
    std::thread::sleep(Duration::from_secs(4));
    kill(Pid::from_raw(i32::try_from(first.id()).unwrap()), Signal::SIGKILL).unwrap();
    let _status = first.wait().unwrap();
    nothing_is_left(tmp.path(), &before);
    let left = folders();
    assert_eq!(left.len(), 1, "{left:?}");
    for (pause_ms, signal) in [(50, Signal::SIGINT), (1_000, Signal::SIGTERM), (7_000, Signal::SIGINT)] {
        let mut next = demo();
        std::thread::sleep(Duration::from_millis(pause_ms));
        let began = tokio::time::Instant::now();
        kill(Pid::from_raw(i32::try_from(next.id()).unwrap()), signal).unwrap();
        until("the demo ends", Duration::from_secs(20), || next.try_wait().unwrap());
        let took = began.elapsed();
        assert!(took < CLEAN_END, "told after {pause_ms} ms it took {took:?}");
        assert!(left_over(tmp.path()).is_empty(), "{:?}", left_over(tmp.path()));
        assert!(pause_ms < 1_000 || folders().is_empty(), "{:?}", folders());
    }
}
