//! A `troop up` of its own for a test: started from the binary, asked through the command line, and looked at from
//! outside. Everything it starts is ended by pid.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::Instant;

pub(crate) fn troop() -> &'static str {
    env!("CARGO_BIN_EXE_troop")
}

/// On what kind of machine something is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    /// This one.
    AsItIs,
    /// This one, and plain processes are asked for.
    Plain,
    /// As a default container looks: user namespaces are forbidden, no capability is held, and where this test is
    /// root's, the user is nobody.
    Container,
}

impl Machine {
    /// The binary, to be run there by whoever may write to `folder`.
    pub(crate) fn command(self, folder: &Path) -> Command {
        if self != Self::Container {
            return Command::new(troop());
        }
        let mut words: Vec<PathBuf> = Vec::new();
        let mut exe = PathBuf::from(troop());
        if works(&[AS_NOBODY, "true"]) {
            // The build's folder may be root's alone.
            exe = folder.join("troop-of-nobody");
            if !exe.exists() {
                std::fs::copy(troop(), &exe).unwrap();
            }
            give_to_nobody(folder);
            words.extend(AS_NOBODY.split(' ').map(PathBuf::from));
        }
        if works(&[IN_A_SPACE, "true"]) {
            let inside = "echo 0 > /proc/sys/user/max_user_namespaces \
                          && exec setpriv --inh-caps=-all --bounding-set=-all -- \"$@\"";
            words.extend(IN_A_SPACE.split(' ').map(PathBuf::from));
            words.extend(["sh", "-c", inside, "sh"].map(PathBuf::from));
        }
        words.push(exe);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// What the line says that a container's `troop up` prints: the setting, where it was this test that set it.
    pub(crate) fn setting() -> &'static str {
        if works(&[IN_A_SPACE, "true"]) { "user.max_user_namespaces" } else { "refuses the sandbox" }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["--isolation", "processes"],
            Self::AsItIs | Self::Container => &[],
        }
    }
}

/// Loses every capability with it.
const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";
/// A user namespace in which others can be forbidden. Where they are forbidden already, nothing needs to be.
const IN_A_SPACE: &str = "unshare --user --map-root-user --mount";

fn works(words: &[&str]) -> bool {
    let words: Vec<&str> = words.iter().flat_map(|words| words.split(' ')).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn give_to_nobody(path: &Path) {
    std::os::unix::fs::lchown(path, Some(65_534), Some(65_534)).unwrap();
    if std::fs::symlink_metadata(path).unwrap().is_dir() {
        std::fs::read_dir(path).unwrap().flatten().for_each(|entry| give_to_nobody(&entry.path()));
    }
}

/// A supervisor and its state folder.
pub(crate) struct Up {
    pub(crate) state: PathBuf,
    pub(crate) child: Child,
    _dir: Option<tempfile::TempDir>,
}

/// Waits on a level, with a limit, and says what it waited for.
pub(crate) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(began.elapsed() < limit, "never within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A state folder with the demo's policy but with a window that is always open.
pub(crate) fn new_state() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("tr").tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("policies")).unwrap();
    let policy = include_str!("../../../policies/examples/demo.toml")
        .replace(
            "days  = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\"]",
            "days = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"]",
        )
        .replace("open  = \"10:00\"", "open = \"00:00\"")
        .replace("close = \"12:00\"", "close = \"00:00\"");
    // Never by a draw: with these odds a test of hundreds of days would see none.
    let policy = policy.replace("mean_workdays = 1\n", "mean_workdays = 1000\n");
    // Midnight to midnight is no window; one minute short of it is.
    let policy = policy.replace("close = \"00:00\"", "close = \"23:59\"");
    std::fs::write(dir.path().join("policies/demo.toml"), policy).unwrap();
    dir
}

/// Writes an image of the sample service.
pub(crate) fn image(folder: &Path, version: &str, app: &str) -> PathBuf {
    image_that_runs(folder, version, app, &["troop", "sample-app"], 8080)
}

pub(crate) fn image_that_runs(folder: &Path, version: &str, app: &str, command: &[&str], port: u16) -> PathBuf {
    let path = folder.join(format!("hello-{version}"));
    std::fs::create_dir_all(&path).unwrap();
    let manifest = format!(
        "name = \"hello\"\nversion = \"{version}\"\ncommand = {command:?}\nport = {port}\n\
         health_path = \"/health\"\nregistry = \"required\"\n"
    );
    std::fs::write(path.join("troop-image.toml"), manifest).unwrap();
    std::fs::write(path.join("app.toml"), app).unwrap();
    path
}

impl Up {
    /// Starts in a folder of its own and returns once the control plane answers.
    pub(crate) fn start() -> Self {
        Self::start_on(Machine::AsItIs)
    }

    pub(crate) fn start_on(machine: Machine) -> Self {
        let dir = new_state();
        let mut up = Self::spawn_on(machine, dir.path());
        up._dir = Some(dir);
        up.wait_until_it_answers();
        up
    }

    /// Starts on a state folder that was used before.
    pub(crate) fn start_in(state: &Path) -> Self {
        Self::start_on_in(Machine::AsItIs, state)
    }

    pub(crate) fn start_on_in(machine: Machine, state: &Path) -> Self {
        let mut up = Self::spawn_on(machine, state);
        up.wait_until_it_answers();
        up
    }

    pub(crate) fn spawn(state: &Path) -> Self {
        Self::spawn_on(Machine::AsItIs, state)
    }

    pub(crate) fn spawn_on(machine: Machine, state: &Path) -> Self {
        Self::spawn_from(machine.command(state), machine, state)
    }

    /// As [`Self::start_on_in`], with an environment, or whatever else the command carries, of one's own.
    pub(crate) fn start_from(command: Command, machine: Machine, state: &Path) -> Self {
        let mut up = Self::spawn_from(command, machine, state);
        up.wait_until_it_answers();
        up
    }

    fn spawn_from(mut command: Command, machine: Machine, state: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(state.join("up.log")).unwrap();
        let child = command
            .args(["up", "--port", "0", "--boot-delay", "300ms"])
            .args(machine.flags())
            .arg("--state")
            .arg(state)
            .arg("--policies")
            .arg(state.join("policies"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { state: state.to_owned(), child, _dir: None }
    }

    fn wait_until_it_answers(&mut self) {
        let began = Instant::now();
        loop {
            if self.run(&["ps"]).status.success() {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(self.state.join("up.log")).unwrap_or_default();
            assert!(ended.is_none(), "`troop up` ended: {}", log());
            assert!(began.elapsed() < Duration::from_secs(30), "the control plane never answered: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a command of the command line on this state.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        Command::new(troop()).args(args).arg("--state").arg(&self.state).stdin(Stdio::null()).output().unwrap()
    }

    /// As [`Self::run`], and it must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "troop {args:?}: {}\n{out}\n{err}", output.status);
        out
    }

    /// The objects that a reading command prints, one a line.
    pub(crate) fn json(&self, args: &[&str]) -> Vec<Value> {
        let all: Vec<&str> = args.iter().copied().chain(["--format", "json"]).collect();
        let printed = self.ok(&all);
        let objects: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        // One array where a command has it so.
        match objects.as_slice() {
            [Value::Array(all)] => all.clone(),
            _ => objects,
        }
    }

    /// What the supervisor says about itself.
    pub(crate) fn info(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.state.join("run/up.json")).unwrap()).unwrap()
    }

    pub(crate) fn balancer(&self) -> std::net::SocketAddr {
        self.info()["balancer"].as_str().unwrap().parse().unwrap()
    }

    /// Instances of a cluster with their groups.
    pub(crate) fn instances(&self, cluster: &str) -> BTreeMap<String, String> {
        let rows = self.json(&["ps"]);
        let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        let of_it = |row: &&Value| text(row, "group").starts_with(cluster);
        rows.iter().filter(of_it).map(|row| (text(row, "instance"), text(row, "group"))).collect()
    }

    pub(crate) fn push(&self, number: u64) -> Value {
        self.json(&["pushes"]).into_iter().find(|p| p["push"] == number).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends a signal and returns how long it took to end.
    pub(crate) fn end(&mut self, signal: Signal) -> Duration {
        let began = Instant::now();
        kill(Pid::from_raw(self.pid()), signal).unwrap();
        until("the supervisor ends", Duration::from_secs(20), || self.child.try_wait().unwrap());
        began.elapsed()
    }

    /// The pids, as the host sees them, of a role's processes (the helper that started it left out).
    pub(crate) fn role_pids(&self, role: &str) -> Vec<i32> {
        let needle = ["role", role];
        let mut pids = Vec::new();
        for (pid, words) in processes() {
            let ours = words.iter().any(|w| Path::new(w).starts_with(&self.state));
            let is_role = words.windows(2).any(|w| w == needle);
            let is_helper = words.iter().any(|w| w == "enter" || w == "attend");
            if ours && is_role && !is_helper {
                pids.push(pid);
            }
        }
        pids
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _gone = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
            let began = Instant::now();
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if began.elapsed() > Duration::from_secs(8) {
                    let _killed = self.child.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if std::thread::panicking() {
            for log in ["up.log", "logs/serve.log", "logs/cloud.log"] {
                let text = std::fs::read_to_string(self.state.join(log)).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(25).collect();
                for line in tail.iter().rev() {
                    eprintln!("{log}: {line}");
                }
            }
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every process of this machine with its arguments.
pub(crate) fn processes() -> Vec<(i32, Vec<String>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(bytes) = std::fs::read(entry.path().join("cmdline")) else { continue };
        all.push((pid, bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect()));
    }
    all
}

/// What of a state folder's is still there: processes that name it in arguments or environment, and mounts.
pub(crate) fn left_over(state: &Path) -> Vec<String> {
    let needle = state.display().to_string();
    let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
    let own = std::process::id().to_string();
    let mut left = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        // A zombie is whose parent has not waited yet; a container without an init keeps orphans so.
        let is_zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
        if !is_zombie && (holds(&read("cmdline")) || holds(&read("environ"))) {
            left.push(format!("process {pid}: {}", String::from_utf8_lossy(&read("cmdline")).replace('\0', " ")));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    left.extend(mounts.lines().filter(|line| line.contains(&needle)).map(|line| format!("mount {line}")));
    left
}

/// The host's interfaces by name.
pub(crate) fn interfaces() -> BTreeSet<String> {
    let all = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing of a state folder's is left, a moment after its end.
pub(crate) fn nothing_is_left(state: &Path, before: &BTreeSet<String>) {
    until("nothing is left", Duration::from_secs(5), || left_over(state).is_empty().then_some(()));
    assert_eq!(&interfaces(), before, "an interface is left");
}
