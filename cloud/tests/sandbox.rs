//! The sandbox for real: namespaces, mounts, links, and that nothing is left of them, whoever is killed.
//!
//! These drive the example `sandbox_host`. Cargo builds it for `cargo test -p troop-cloud`, but not where one test is
//! named: then `cargo build -p troop-cloud --examples` comes first.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// `nobody`, who has no privileges anywhere.
const NOBODY: u32 = 65_534;

/// The example beside this test: `cargo test` builds it into the same folder.
fn host_exe() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().parent().unwrap().join("examples").join("sandbox_host")
}

/// A folder with a STATE, an image and, where another user has to reach it, a copy of the executable.
struct Place {
    dir: tempfile::TempDir,
    exe: PathBuf,
    as_nobody: bool,
}

impl Place {
    fn new(as_nobody: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("state/cloud/images/ami-1/root");
        std::fs::create_dir_all(&image).unwrap();
        std::fs::write(image.join("data.txt"), "of the image").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut exe = host_exe();
        if as_nobody {
            exe = dir.path().join("host");
            std::fs::copy(host_exe(), &exe).unwrap();
            for part in ["state", "state/cloud", "state/cloud/images", "state/cloud/images/ami-1"] {
                chown(dir.path().join(part), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        Self { dir, exe, as_nobody }
    }

    /// Runs an executable that its owner alone may read.
    fn with_private_exe() -> Self {
        let mut place = Self::new(false);
        place.exe = place.dir.path().join("host");
        std::fs::copy(host_exe(), &place.exe).unwrap();
        std::fs::set_permissions(&place.exe, std::fs::Permissions::from_mode(0o700)).unwrap();
        place
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Lists an instance for the trial: id, zone, last number of its address, and what else its launch says.
    fn instance(&self, id: &str, zone: u8, host: u8, more: &Value) -> Value {
        let address = format!("10.77.{zone}.{host}");
        let mut all = json!({
            "instance": id, "zone": zone, "address": address, "image_root": self.state().join("cloud/images/ami-1/root"),
            "command": ["troop", "answer", self.state()], "env": {"HOST": address, "PORT": "80"},
            "boot_delay_ms": 0, "log": self.state().join("cloud/logs").join(format!("{id}.log")), "end_after_ms": null,
        });
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        all
    }

    fn host(&self, instances: &[Value], target: &str) -> Host {
        std::fs::write(self.state().join("trial.json"), serde_json::to_vec(instances).unwrap()).unwrap();
        let mut command = if self.as_nobody {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&self.exe);
            command
        } else {
            Command::new(&self.exe)
        };
        let mut child = command
            .args(["host".as_ref(), self.state().as_os_str(), target.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let facts = line(&mut out);
        assert!(facts.get("error").is_none(), "{facts}");
        Host { child, out, facts, state: self.state() }
    }
}

fn line(out: &mut BufReader<ChildStdout>) -> Value {
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
}

struct Host {
    child: Child,
    out: BufReader<ChildStdout>,
    facts: Value,
    state: PathBuf,
}

impl Host {
    fn pid(&self, name: &str) -> i32 {
        i32::try_from(self.facts[name].as_i64().unwrap()).unwrap()
    }

    /// Asks over the host's loopback; the role inside passes it on. Empty until the instance listens.
    fn ask(&self, path: &str) -> String {
        let port = u16::try_from(self.facts["port"].as_u64().unwrap()).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n").unwrap();
        let mut text = String::new();
        // An instance that is not there yet, or is going, breaks the connection: no answer.
        drop(stream.read_to_string(&mut text));
        text.strip_prefix("HTTP/1.1 200 OK\r\n\r\n").unwrap_or_default().to_owned()
    }

    fn ask_until_answered(&self, path: &str) -> Value {
        let answer = within(Duration::from_secs(5), || Some(self.ask(path)).filter(|text| !text.is_empty()));
        let logs = || ["trial.out", "cloud/logs/i-1.log"].map(|log| std::fs::read_to_string(self.state.join(log)));
        serde_json::from_str(&answer.unwrap_or_else(|| panic!("no answer: {:?}", logs()))).unwrap()
    }

    /// Lines of the trial that have this key.
    fn trial(&self, key: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.state.join("trial.out")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).filter(|l| l.get(key).is_some()).collect()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert_eq!(line(&mut self.out), json!({"ended": true}));
        assert!(self.child.wait().unwrap().success());
    }

    /// Every process below this host, with the time it was started, and the network namespaces of these.
    fn family(&self) -> (Vec<(u32, u64)>, Vec<PathBuf>) {
        let all = processes();
        let mut family = vec![self.child.id()];
        let mut next = 0;
        while next < family.len() {
            let parent = family[next];
            family.extend(all.iter().filter(|(_, (p, _))| *p == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        let spaces = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let nets = family.iter().filter_map(spaces).filter(|net| *net != own).collect();
        (family.iter().map(|pid| (*pid, all.get(pid).map_or(0, |(_, at)| *at))).collect(), nets)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Living processes: pid to parent and start time (proc_pid_stat(5)). Dead ones not yet reaped hold nothing.
fn processes() -> BTreeMap<u32, (u32, u64)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if !matches!(fields[0], "Z" | "X") {
            all.insert(pid, (fields[1].parse().unwrap(), fields[19].parse().unwrap()));
        }
    }
    all
}

fn within<T>(limit: Duration, mut try_it: impl FnMut() -> Option<T>) -> Option<T> {
    let step = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while waited < limit {
        if let Some(found) = try_it() {
            return Some(found);
        }
        std::thread::sleep(step);
        waited += step;
    }
    None
}

fn assert_nothing_is_left(family: &(Vec<(u32, u64)>, Vec<PathBuf>), state: &Path) {
    let (was, nets) = family;
    assert!(was.len() >= 4, "supervisor, helpers, cloud process and role were there: {was:?}");
    assert!(!nets.is_empty());
    let gone = within(Duration::from_secs(2), || {
        let all = processes();
        let alive = was.iter().any(|(pid, at)| all.get(pid).is_some_and(|(_, began)| began == at));
        let held = all
            .keys()
            .any(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| nets.contains(&net)));
        (!alive && !held).then_some(())
    });
    assert!(gone.is_some(), "left: {was:?} of {:?}", processes());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(state.to_str().unwrap()), "{mounts}");
    for link in std::fs::read_dir("/sys/class/net").unwrap() {
        assert!(!link.unwrap().file_name().to_string_lossy().starts_with("zone"));
    }
}

fn one_instance(place: &Place) -> Host {
    let host = place.host(&[place.instance("i-1", 1, 20, &json!({}))], "10.77.1.20:80");
    host.ask_until_answered("/");
    host
}

fn nothing_is_left_after_killing(who: &str) {
    let place = Place::new(false);
    let mut host = one_instance(&place);
    let family = host.family();
    let victim = if who == "supervisor" { i32::try_from(host.child.id()).unwrap() } else { host.pid(who) };
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    if who != "supervisor" {
        // The supervisor of the test waits for its standard input to end.
        drop(host.child.stdin.take());
    }
    assert_nothing_is_left(&family, &place.state());
    drop(host);
}

#[test]
#[ignore = "needs user namespaces"]
fn a_sandbox_that_is_ended_leaves_nothing() {
    let place = Place::new(false);
    let host = one_instance(&place);
    let family = host.family();
    host.end();
    assert_nothing_is_left(&family, &place.state());
}

#[test]
#[ignore = "needs user namespaces"]
fn killing_the_supervisor_leaves_nothing() {
    nothing_is_left_after_killing("supervisor");
}

#[test]
#[ignore = "needs user namespaces"]
fn killing_the_helper_leaves_nothing() {
    nothing_is_left_after_killing("helper");
}

#[test]
#[ignore = "needs user namespaces"]
fn killing_the_first_process_leaves_nothing() {
    nothing_is_left_after_killing("init");
}

#[test]
#[ignore = "needs user namespaces"]
fn killing_a_roles_helper_ends_the_role_and_nothing_else() {
    let place = Place::new(false);
    let host = one_instance(&place);
    let helper = u32::try_from(host.pid("entered")).unwrap();
    let role = processes().iter().find(|(_, (parent, _))| *parent == helper).map(|(pid, _)| *pid).unwrap();
    kill(Pid::from_raw(host.pid("entered")), Signal::SIGKILL).unwrap();
    assert!(within(Duration::from_secs(2), || (!processes().contains_key(&role)).then_some(())).is_some());
    assert!(processes().contains_key(&u32::try_from(host.pid("init")).unwrap()));
    assert!(host.trial("ended").is_empty());
    host.end();
}

fn an_instance_is_confined(place: &Place) {
    confined(place, || {});
}

/// `between` runs once the sandbox is up, before instances are asked.
fn confined(place: &Place, between: impl FnOnce()) {
    let env = json!({"env": {"HOST": "10.77.1.20", "PORT": "80", "TROOP_APP": "hello"}});
    let instances = [place.instance("i-1", 1, 20, &env), place.instance("i-2", 2, 20, &json!({}))];
    let host = place.host(&instances, "10.77.1.20:80");
    between();
    let own = host.ask_until_answered("/");
    assert_eq!(own["hostname"], "i-1");
    assert_eq!(own["cwd"], "/image");
    assert_eq!(own["image"], "of the image");
    assert_eq!(own["capabilities"], "0000000000000000");
    assert_eq!(own["bounding"], "0000000000000000");
    assert_eq!(own["no_new_privs"], "1");
    assert_eq!(own["writes_tmp"], true);
    assert_eq!(own["writes_elsewhere"], json!([]));
    assert_eq!(own["sees_of_state"], 0);
    assert_eq!(own["processes"], 2);
    assert_eq!(own["environment"], json!(["HOME", "HOST", "PATH", "PORT", "TMPDIR", "TROOP_APP"]));
    // The way to another zone leads over the sandbox.
    assert_eq!(host.ask_until_answered("/via/10.77.2.20:80")["hostname"], "i-2");
    let log = std::fs::read_to_string(place.state().join("cloud/logs/i-1.log")).unwrap();
    assert!(log.contains("listening"), "{log}");
    let family = host.family();
    host.end();
    assert_nothing_is_left(&family, &place.state());
}

#[test]
#[ignore = "needs user namespaces"]
fn an_instance_answers_and_sees_only_what_it_should() {
    an_instance_is_confined(&Place::new(false));
}

#[test]
#[ignore = "needs user namespaces"]
fn an_executable_for_its_owner_alone_that_is_then_deleted_works_too() {
    let place = Place::with_private_exe();
    let exe = place.exe.clone();
    confined(&place, || std::fs::remove_file(exe).unwrap());
}

#[test]
#[ignore = "needs root"]
fn the_same_works_for_a_user_without_privileges() {
    an_instance_is_confined(&Place::new(true));
}

#[test]
#[ignore = "needs root"]
fn nothing_is_left_of_a_killed_supervisor_without_privileges() {
    let place = Place::new(true);
    let host = one_instance(&place);
    let family = host.family();
    kill(Pid::from_raw(i32::try_from(host.child.id()).unwrap()), Signal::SIGKILL).unwrap();
    assert_nothing_is_left(&family, &place.state());
}

#[test]
#[ignore = "needs user namespaces"]
fn every_end_of_an_instance_is_told_once_and_in_words() {
    let place = Place::new(false);
    let shell = |script: &str| json!({"command": ["sh", "-c", script]});
    let with = |mut more: Value, key: &str, value: Value| {
        more[key] = value;
        more
    };
    let instances = [
        place.instance("i-exits", 0, 20, &shell("exit 3")),
        place.instance("i-crashes", 0, 21, &shell("kill -SEGV $$")),
        place.instance("i-missing", 0, 22, &json!({"command": ["no-such-command"]})),
        place.instance(
            "i-stops",
            0,
            23,
            &with(shell("trap 'exit 5' TERM; sleep 60 & wait"), "end_after_ms", json!(500)),
        ),
        place.instance(
            "i-killed",
            0,
            24,
            &with(with(shell("trap '' TERM; sleep 60"), "end_after_ms", json!(500)), "kill", json!(true)),
        ),
        place.instance("i-boots", 0, 25, &with(json!({"boot_delay_ms": 60_000}), "end_after_ms", json!(100))),
    ];
    let host = place.host(&instances, "10.77.0.20:80");
    let ends = within(Duration::from_secs(10), || Some(host.trial("ended")).filter(|ends| ends.len() >= 6));
    let ends: BTreeMap<String, String> = ends
        .unwrap_or_else(|| panic!("{:?} {:?}", host.trial("ended"), host.trial("failed")))
        .iter()
        .map(|end| (end["ended"].as_str().unwrap().to_owned(), end["status"].as_str().unwrap().to_owned()))
        .collect();
    let said = |id: &str| ends[id].as_str();
    assert_eq!(said("i-exits"), "exit code 3");
    assert_eq!(said("i-crashes"), "signal 11");
    assert_eq!(said("i-missing"), "exit code 127");
    assert_eq!(said("i-stops"), "exit code 5");
    assert_eq!(said("i-killed"), "signal 9");
    assert_eq!(said("i-boots"), "signal 15");
    let log = std::fs::read_to_string(place.state().join("cloud/logs/i-missing.log")).unwrap();
    assert!(log.contains("no-such-command"), "{log}");
    host.end();
}

#[test]
#[ignore = "needs user namespaces"]
fn a_launch_that_cannot_be_says_the_step_and_leaves_nothing() {
    let place = Place::new(false);
    let instances = [
        place.instance("i-no-image", 0, 20, &json!({"image_root": "/nonexistent"})),
        place.instance("i-no-zone", 9, 20, &json!({})),
        place.instance("i-good", 0, 21, &json!({})),
    ];
    let host = place.host(&instances, "10.77.0.21:80");
    host.ask_until_answered("/");
    let failed = host.trial("failed");
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert!(host.trial("ended").is_empty());
    let init = u32::try_from(host.pid("init")).unwrap();
    let children = || processes().values().filter(|(parent, _)| *parent == init).count();
    assert!(within(Duration::from_secs(2), || (children() == 1).then_some(())).is_some(), "the good one alone");
    host.end();
}

#[test]
#[ignore = "needs user namespaces"]
fn a_probe_succeeds_where_a_sandbox_would() {
    let status = Command::new(host_exe()).arg("probe").status().unwrap();
    assert!(status.success());
}
