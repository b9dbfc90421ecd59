//! A ledger that is not what the control plane wrote, in front of a living cloud: nothing is killed, pushes hold, one
//! error says what is wrong and what to do, and all goes on once that is done.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use stage::{Up, image, new_state, text, until};
use troop_ledger::{Ledger, Stamp};

/// The control plane notices within a second, and is started again; the rest is a busy machine's.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

fn push(up: &Up, version: &str, more: &[&str]) -> std::process::Output {
    let path = image(&up.state, version, &format!("greeting = \"{version}\"\n")).display().to_string();
    let args = ["deploy", "hello-web", "--image", &path, "--team", "demo", "--soak", "1s", "--watch", "1h"];
    up.run(&[&args[..], &["--drain", "1s"], more].concat())
}

fn kill(up: &Up) -> std::process::Output {
    up.run(&["kill", "hello-web", "--reason", "test", "--outside-window"])
}

/// Kills as soon as nothing spares it: a registry that has just begun does for some seconds.
fn killed(up: &Up) {
    until("a kill is let through", Duration::from_secs(60), || {
        let output = kill(up);
        let said = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
        output.status.success().then_some(())
    });
}

/// What the balancer answers, asked without the control plane.
fn served(up: &Up) -> String {
    let mut stream = std::net::TcpStream::connect(up.balancer()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: hello-web\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    text(&answer)
}

fn all_healthy(up: &Up, count: usize) {
    until("all are healthy", Duration::from_secs(60), || {
        let output = up.run(&["ps", "--format", "json"]);
        (text(&output.stdout).matches("\"health\":\"healthy\"").count() == count).then_some(())
    });
}

/// The instances' first processes: they tell also when nobody can be asked.
fn instances(state: &Path) -> BTreeSet<i32> {
    let state = state.display().to_string();
    let is_one = |words: &[String]| {
        words.iter().any(|w| w == "instance-init" || w == "keeper") && words.iter().any(|w| w.contains(&state))
    };
    stage::processes().into_iter().filter(|(_, words)| is_one(words)).map(|(pid, _)| pid).collect()
}

/// Everything that the cloud was ever asked to do.
fn asked_of_the_cloud(state: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let tokens = state.join("cloud/tokens");
    let files = if tokens.is_dir() {
        fs::read_dir(&tokens).unwrap().map(|entry| entry.unwrap().path()).collect()
    } else {
        vec![tokens]
    };
    let mut all: Vec<_> = files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
    all.sort();
    all
}

fn beside(ledger: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", ledger.display()))
}

/// Folds the log of a ledger that nobody has open into its file, and reads that.
fn whole_file(ledger: &Path) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = || Stamp { at: troop::clock::real_now(), real_at: troop::clock::real_now() };
        Ledger::open(ledger, Arc::new(clock)).await.unwrap().close().await;
    });
    assert_eq!(fs::metadata(beside(ledger, "-wal")).map_or(0, |log| log.len()), 0);
    fs::read(ledger).unwrap()
}

#[test]
#[ignore = "needs user namespaces"]
fn a_ledger_that_is_not_todays_spares_everything_and_says_what_to_do() {
    let dir = new_state();
    let ledger = dir.path().join("ledger.db");
    let mut up = Up::start_in(dir.path());
    assert!(push(&up, "1.0.0", &[]).status.success());
    up.end(Signal::SIGTERM);
    let yesterday = whole_file(&ledger);
    let mut up = Up::start_in(dir.path());
    all_healthy(&up, 3);
    killed(&up);
    up.end(Signal::SIGTERM);
    // Folded: what lies in the log from now on belongs to this file alone.
    let today = whole_file(&ledger);
    let up = Up::start_in(dir.path());
    all_healthy(&up, 3);

    let half = today[..today.len() / 2].to_vec();
    let (old, damaged) = ("an old copy was put back. Restore the newest copy", "from a copy that verifies");
    for (put, says) in [
        (Some(&yesterday), &[old][..]),
        // The half that is left may read as an older one.
        (Some(&half), &[damaged, old]),
        (Some(&Vec::new()), &[old]),
        (None, &[old]),
    ] {
        // A push is on its way meanwhile, where none holds the cluster.
        let pushed = push(&up, "1.1.0", &["--detach"]);
        let kept = beside(&ledger, ".kept");
        fs::rename(&ledger, &kept).unwrap();
        if let Some(bytes) = put {
            fs::write(&ledger, bytes).unwrap();
        }
        assert!(matches!(pushed.status.code(), Some(0 | 3)), "{}", text(&pushed.stderr));
        until("it is noticed", NOTICED_WITHIN, || {
            text(&kill(&up).stderr).contains("the control plane cannot start").then_some(())
        });
        let asked = until("what was begun has come to its end", NOTICED_WITHIN, || {
            let asked = asked_of_the_cloud(&up.state);
            std::thread::sleep(Duration::from_millis(500));
            (asked_of_the_cloud(&up.state) == asked).then_some(asked)
        });
        let living = instances(&up.state);
        assert!(living.len() >= 3, "{living:?}");
        for refused in [kill(&up), push(&up, "1.2.0", &[]), up.run(&["status"]), up.run(&["history"])] {
            let said = format!("{}{}", text(&refused.stdout), text(&refused.stderr));
            assert_eq!(refused.status.code(), Some(4), "{said}");
            assert!(says.iter().any(|says| said.contains(says)), "{said}");
        }
        let answer = served(&up);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("1."), "traffic goes on: {answer}");
        assert!(living.is_subset(&instances(&up.state)), "nobody is killed");
        assert_eq!(asked_of_the_cloud(&up.state), asked);
        fs::rename(&kept, &ledger).unwrap();
        until("it goes on", NOTICED_WITHIN, || up.run(&["ps"]).status.success().then_some(()));
    }
    until("the push is watched", Duration::from_secs(60), || {
        up.json(&["pushes"]).iter().any(|p| p["version"] == "1.1.0" && p["phase"] == "watch").then_some(())
    });
    all_healthy(&up, 6);
    up.ok(&["ledger", "verify"]);
    up.ok(&["status"]);
}

#[test]
#[ignore = "needs user namespaces"]
fn a_new_ledger_before_a_living_cloud_spares_all_of_it_until_it_is_adopted() {
    let up = Up::start();
    let ledger = up.state.join("ledger.db");
    assert!(push(&up, "1.0.0", &[]).status.success());
    let living = instances(&up.state);
    for ending in ["", "-wal", "-shm", ".head", ".lock"] {
        let path = beside(&ledger, ending);
        assert!(fs::rename(&path, path.with_extension(format!("kept{ending}"))).is_ok(), "{}", path.display());
    }
    until("a new ledger is begun", NOTICED_WITHIN, || {
        (ledger.exists() && text(&kill(&up).stderr).contains("carries mark")).then_some(())
    });
    for refused in [kill(&up), push(&up, "1.1.0", &[])] {
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains("troop ledger adopt"), "{said}");
    }
    assert_eq!(instances(&up.state), living);
    up.ok(&["ledger", "adopt", "--reason", "test"]);
    killed(&up);
    assert!(push(&up, "1.1.0", &[]).status.success());
    up.ok(&["ledger", "verify"]);
}

/// Makes this process the one that runs in a mount namespace of its own, on this folder.
const ON_A_SMALL_DISK: &str = "TROOP_TEST_SMALL_DISK";

#[test]
#[ignore = "needs user namespaces"]
fn on_a_full_disk_nothing_is_killed_pushes_hold_and_with_room_they_go_on() {
    if let Some(folder) = std::env::var_os(ON_A_SMALL_DISK) {
        return on_a_small_disk(Path::new(&folder));
    }
    let dir = tempfile::Builder::new().prefix("tr").tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "on_a_full_disk_nothing_is_killed_pushes_hold_and_with_room_they_go_on"])
        .args(["--ignored", "--nocapture"])
        .env(ON_A_SMALL_DISK, dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

fn on_a_small_disk(folder: &Path) {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(folder).status().unwrap();
    assert!(mounted.success());
    let written = new_state();
    fs::create_dir(folder.join("policies")).unwrap();
    fs::copy(written.path().join("policies/demo.toml"), folder.join("policies/demo.toml")).unwrap();

    let up = Up::start_in(folder);
    assert!(push(&up, "1.0.0", &[]).status.success());
    let living = instances(folder);
    assert_eq!(living.len(), 3);
    let ballast = folder.join("ballast");
    let fill = || {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    fill();
    let refused = kill(&up);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("is full") && said.contains("make room"), "{said}");
    let refused = push(&up, "1.0.0", &["--detach"]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("No space left"), "{said}");
    assert_eq!(instances(folder), living, "nobody was killed");
    let status = up.run(&["status"]);
    assert!(text(&status.stdout).starts_with("nothing is broken by us right now"), "{}", text(&status.stdout));

    fs::remove_file(&ballast).unwrap();
    killed(&up);

    // In the middle of a push: whatever step it is at, nothing is lost, and what serves goes on to serve.
    assert!(push(&up, "1.1.0", &["--detach"]).status.success());
    fill();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        assert!(up.ok(&["curl", "hello-web", "/"]).contains("1."));
        fill();
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::remove_file(&ballast).unwrap();
    let end = until("the push comes to its end", Duration::from_secs(120), || {
        let pushes = up.json(&["pushes"]);
        let push = pushes.into_iter().find(|p| p["version"] == "1.1.0")?;
        (push["phase"] == "watch" || push["result"] == "cancelled").then_some(push)
    });
    let serves = if end["phase"] == "watch" { "1.1.0" } else { "1.0.0" };
    assert!(up.ok(&["curl", "hello-web", "/"]).contains(serves), "{end}");
    up.ok(&["ledger", "verify"]);
    until("nothing is broken or open", Duration::from_secs(60), || {
        let output = up.run(&["status", "--format", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let none = serde_json::Value::Array(Vec::new());
        (status["broken"] == none && status["open_steps"] == none).then_some(())
    });
}
