//! The latency monkey on real processes with real packets: measured, and gone, whatever dies meanwhile.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "these are tests, and so are their helpers")]

mod stage;

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stage::{Up, image, until};

const MENU: &str = "format = 1
team = \"demo\"
timezone = \"UTC\"
[[windows]]
days = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"]
open = \"00:00\"
close = \"23:59\"
[apps.hello]
min_serving = 2
[apps.hello.latency]
leashed = false
mean_workdays = 10000
min_workdays = 1
delay = \"200ms\"
lasts = \"30s\"
to = [\"app:pricing\"]
";

/// Two clusters, of which one may be delayed on its way to the other.
fn stage() -> Up {
    let up = Up::start();
    std::fs::create_dir_all(up.state.join("policies")).unwrap();
    std::fs::write(up.state.join("policies/demo.toml"), MENU).unwrap();
    let image = image(&up.state, "1.0.0", "greeting = \"hi\"\n").display().to_string();
    for cluster in ["pricing", "hello-web"] {
        up.ok(&["deploy", cluster, "--image", &image, "--team", "demo", "--soak", "1s", "--watch", "1s"]);
    }
    up
}

fn latency(up: &Up, instance: &str, lasts: &str) -> Child {
    Command::new(stage::troop())
        .args(["--state".as_ref(), up.state.as_os_str()])
        .args(["latency", instance, "--delay", "200ms", "--to", "app:pricing", "--for", lasts, "--format", "json"])
        .args(["--reason", "test", "--outside-window"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The agents of `instance`, as the host numbers them.
fn agents(instance: &str) -> Vec<i32> {
    let ours = |words: &Vec<String>| {
        words.iter().any(|word| word.ends_with(&format!("/{instance}"))) && words.iter().any(|word| word == "run")
    };
    stage::processes().into_iter().filter(|(_, words)| ours(words)).map(|(pid, _)| pid).collect()
}

/// Begins a delay and returns when it was measured to be there.
fn begun(up: &Up, instance: &str, lasts: &str) -> Child {
    let mut child = latency(up, instance, lasts);
    let mut first = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    // Byte by byte, so that what follows stays in the pipe.
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        first.push(char::from(byte[0]));
    }
    let first: serde_json::Value = serde_json::from_str(&first).unwrap_or_default();
    assert_eq!(first["outcome"], "done", "{first}");
    child
}

/// What `troop latency` said, and its exit code.
fn said(child: Child) -> (Vec<serde_json::Value>, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), output.status.code())
}

fn gone(up: &Up) {
    let status = up.ok(&["status"]);
    assert!(status.starts_with("nothing is broken by us"), "{status}");
}

#[test]
#[ignore = "needs user namespaces"]
fn a_delay_is_measured_before_during_and_after_and_ends_with_halt_agent_control_plane_or_instance() {
    let up = stage();
    let instances: Vec<String> = up.instances("hello-web").into_keys().collect();
    let agents_seen = until("six agents", Duration::from_secs(20), || {
        Some(up.json(&["agents"])).filter(|all| all.iter().filter(|a| !a["since"].is_null()).count() == 6)
    });
    if agents_seen.iter().all(|agent| agent["planes"] == serde_json::json!([])) {
        panic!("no plane can be used here: {}", agents_seen[0]["lacks"]);
    }

    // To its end.
    let (lines, code) = said(latency(&up, &instances[0], "2s"));
    assert_eq!((code, lines.len()), (Some(0), 2));
    assert_eq!(lines[0]["outcome"], "done");
    let text = lines[1]["text"].as_str().unwrap();
    assert!(text.starts_with("its time was over: round trip ") && text.ends_with("measured on the wire"), "{text}");
    gone(&up);

    // A halt.
    let running = begun(&up, &instances[0], "20s");
    let halted = tokio::time::Instant::now();
    up.ok(&["halt", "--reason", "test"]);
    let (lines, code) = said(running);
    assert!(halted.elapsed() < Duration::from_secs(10), "{:?}", halted.elapsed());
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(lines[0]["text"].as_str().unwrap().starts_with("halted: "), "{lines:?}");
    up.ok(&["resume", "--reason", "test"]);
    gone(&up);

    // The agent killed: another begins, and what the former one did is undone.
    let running = begun(&up, &instances[1], "20s");
    let killed = agents(&instances[1]);
    assert_eq!(killed.len(), 1, "one agent an instance");
    kill(Pid::from_raw(killed[0]), Signal::SIGKILL).unwrap();
    let (lines, code) = said(running);
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(lines[0]["text"].as_str().unwrap().starts_with("its agent has begun anew"), "{lines:?}");
    until("another agent", Duration::from_secs(10), || {
        Some(agents(&instances[1])).filter(|now| now.len() == 1 && *now != killed)
    });
    gone(&up);

    // The control plane killed: it is started again and goes on, or the lease lapses meanwhile.
    let running = begun(&up, &instances[2], "6s");
    for pid in up.role_pids("serve") {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let (lines, code) = said(running);
    assert_eq!(code, Some(0), "{lines:?}");
    gone(&up);

    // The instance killed.
    let running = begun(&up, &instances[0], "20s");
    let all = up.instances("hello-web");
    let pid = stage::processes()
        .into_iter()
        .find(|(_, words)| {
            words.iter().any(|w| w == "instance-init") && words.iter().any(|w| w.contains(&instances[0]))
        })
        .map(|(pid, _)| pid);
    kill(Pid::from_raw(pid.unwrap()), Signal::SIGKILL).unwrap();
    let (lines, code) = said(running);
    assert_eq!(code, Some(0), "{lines:?}");
    let text = lines.last().unwrap()["text"].as_str().unwrap();
    assert!(text.starts_with("the instance is gone"), "{text} {all:?}");
    until("its agent went with it", Duration::from_secs(10), || agents(&instances[0]).is_empty().then_some(()));
}
