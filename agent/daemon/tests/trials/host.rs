//! The agent as a real process, beside whoever tests it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control::ControlPlane;
use crate::probe::TARGETED;
use crate::world::{PEER, World, connect, ms, run, state, wait_until};

/// The agent that was built with the tests, unless another is named: one of a release, say.
fn program() -> OsString {
    std::env::var_os("TROOP_TRIALS_AGENT").unwrap_or_else(|| env!("CARGO_BIN_EXE_troop-agent").into())
}

/// A host's agent, its folder and its policy.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) agent: Child,
    folder: PathBuf,
    to: Vec<OsString>,
    before: String,
}

impl Host {
    /// Starts the agent and waits until it has reached the control plane.
    pub(crate) fn start(world: &World, control: &ControlPlane) -> Self {
        let folder = world.folder.path().to_owned();
        let halt = folder.join("halt");
        let policy = format!(
            "faults = ['delay']\ndelay_max_ms = 10000\ndevices = ['eth0']\nallow_unbacked_undo = true\nhalt_file = '{}'\n",
            halt.display()
        );
        std::fs::write(folder.join("agent.toml"), policy).unwrap();
        std::fs::write(folder.join("token"), "token").unwrap();
        std::fs::set_permissions(folder.join("token"), std::fs::Permissions::from_mode(0o600)).unwrap();
        // The kernel adds it a little after the address.
        wait_until("the last route", || run("ip", "-6 route show table local").contains("fd00::1"));
        let (before, to) = (everything(), control.to.clone());
        let agent = spawn(&folder, &to);
        control.wait_for("the agent", 0, |line| line.starts_with("connected "));
        Self { agent, folder, to, before }
    }

    /// Another one after its end.
    pub(crate) fn restart(&mut self) {
        self.agent = spawn(&self.folder, &self.to);
    }

    pub(crate) fn pid(&self) -> Pid {
        pid(&self.agent)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.agent.kill().unwrap();
        self.agent.wait().unwrap();
    }

    /// Tells it to end, and waits until it has.
    pub(crate) fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        self.await_end();
    }

    pub(crate) fn await_end(&mut self) {
        let mut status: Option<ExitStatus> = None;
        wait_until("the agent's end", || {
            status = self.agent.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        assert!(status.success(), "{status}, signal {:?}", status.signal());
    }

    /// Its guardian, where there is one.
    pub(crate) fn guardian(&self) -> Option<Pid> {
        let agent = self.agent.id().to_string();
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let guardian = numbers.find(|number| {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{number}/{file}")).unwrap_or_default();
            // The program's name may hold anything but ends with the last bracket.
            let is_child =
                read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1).map(str::to_owned));
            is_child.as_deref() == Some(&agent) && read("cmdline").contains("\0guardian\0")
        });
        guardian.map(Pid::from_raw)
    }

    pub(crate) fn halt(&self) {
        std::fs::write(self.folder.join("halt"), "").unwrap();
    }

    /// `troop-agent heal`, by hand.
    pub(crate) fn heal(&self) -> Child {
        let mut command = Command::new(program());
        command.arg("heal").arg("--state").arg(self.folder.join("state"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn open_files(&self) -> usize {
        self.count("fd")
    }

    pub(crate) fn tasks(&self) -> usize {
        self.count("task")
    }

    pub(crate) fn resident_kb(&self) -> u64 {
        status(&format!("/proc/{}/status", self.agent.id()), "VmRSS:")
    }

    /// How often its threads have slept so far.
    pub(crate) fn wake_ups(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.agent.id())).unwrap();
        let of = |task: std::fs::DirEntry| task.path().join("status").to_str().unwrap().to_owned();
        tasks.map(|task| status(&of(task.unwrap()), "voluntary_ctxt_switches:")).sum()
    }

    fn count(&self, what: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{what}", self.agent.id())).unwrap().count()
    }

    /// Waits until everything is as it was before the agent came.
    pub(crate) fn await_nothing_left(&self) {
        let mut more = Vec::new();
        for _ in 0..60 {
            let now = everything();
            if now == self.before {
                return;
            }
            more = now.lines().filter(|line| !self.before.contains(line)).map(str::to_owned).collect();
            std::thread::sleep(ms(50));
        }
        panic!("left behind: {more:#?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Frozen ones die as well. Its guardian sees that, undoes what there is, and ends.
        drop(self.agent.kill());
        drop(self.agent.wait());
    }
}

fn spawn(folder: &std::path::Path, to: &[OsString]) -> Child {
    let mut command = Command::new(program());
    command.arg("run").args(to).args(["--instance", "local/r1/i-1"]);
    for (argument, file) in [("--token-file", "token"), ("--state", "state"), ("--config", "agent.toml")] {
        command.arg(argument).arg(folder.join(file));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn status(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.split_whitespace().next().unwrap().parse().unwrap()
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// What the tools see of this host's network, its tables of nftables included.
fn everything() -> String {
    state() + &run("nft", "list tables")
}

/// An established connection to the targeted port, on which the peer gives back what it gets.
#[derive(Debug)]
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<bool>,
}

impl Stream {
    pub(crate) fn start() -> Self {
        let mut writer = connect(PEER, TARGETED);
        let mut reader = writer.try_clone().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let reading = std::thread::spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all)
            });
            let mut sent = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let block: Vec<u8> = (sent.len()..sent.len() + 500).map(|n| u8::try_from(n % 251).unwrap()).collect();
                if writer.write_all(&block).is_err() {
                    return false;
                }
                sent.extend(block);
                std::thread::sleep(ms(20));
            }
            writer.shutdown(Shutdown::Write).is_ok() && reading.join().unwrap().is_ok_and(|all| all == sent)
        });
        Self { stop, thread }
    }

    /// Whether every byte came back, in order.
    pub(crate) fn stop(self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
