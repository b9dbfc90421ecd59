//! An instance's maker and its first process.
//!
//! The first process is a small init: it boots, moves into the instance's root, runs the image's command with nothing
//! but what that needs, writes its output to the log, passes SIGTERM on, reaps, and exits as the command did. When it
//! ends, the kernel ends everything else in the instance.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use troop_policies::InstanceId;

use super::helper::runtime;
use super::steps::{Report, Step as _, StepFailed, go_ahead, own_exe, report_up, reports_end};
use super::{INTERNAL, mounts, netlink};

/// What an instance has of its own, beside the sandbox's.
const SPACES: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);
/// Longest log of an instance; at this size the older half goes.
const LOG_MAX_BYTES: u64 = 8 << 20;
/// Open files of a command: what distributions give to services, below what any of them needs by accident.
const FILES_MAX: u64 = 16_384;
/// Commands run as this user where the sandbox has more than one: `nobody` on every distribution.
const NOBODY: u32 = 65_534;
/// Exit code of an instance whose command could not be started, as shells have it.
pub(crate) const NOT_STARTED: u8 = 127;

/// An instance, as its maker and its first process are told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InstanceSpec {
    pub(crate) instance: InstanceId,
    pub(crate) zone: u8,
    pub(crate) address: Ipv4Addr,
    /// The tree that becomes its `/`.
    pub(crate) root: PathBuf,
    pub(crate) image_root: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) boot_delay: Duration,
    pub(crate) log: PathBuf,
}

/// Makes an instance's namespaces and network, starts its first process and ends.
pub(crate) fn make(spec: &InstanceSpec) -> Result<u8, StepFailed> {
    unshare(SPACES).step("unshare(net, mount, pid)")?;
    report_up(&Report::Made);
    if !go_ahead()? {
        return Ok(1);
    }
    nix::unistd::sethostname(spec.instance.as_str()).step("sethostname")?;
    runtime()?.block_on(async { netlink::configure(&netlink::open()?, spec.address, spec.zone).await })?;
    // Commands drop every capability; this lets them use port 80 all the same, in their own network.
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").step("ip_unprivileged_port_start")?;
    let text = serde_json::to_string(spec).map_err(io::Error::from).step("write the instance's spec")?;
    let first = Command::new(own_exe())
        .arg0("troop")
        .args([INTERNAL, "instance-init", &text])
        .spawn()
        .step("start the instance's first process")?;
    report_up(&Report::Init { pid: i32::try_from(first.id()).unwrap_or(0) });
    Ok(0)
}

/// The instance's first process, from its mounts to its command's end. Returns the command's exit code.
pub(crate) fn first(spec: &InstanceSpec) -> Result<u8, StepFailed> {
    if !go_ahead()? {
        return Ok(1);
    }
    let mut log = Log::open(&spec.log).step("open the instance's log")?;
    let drop_to = other_user().then_some(NOBODY);
    if drop_to.is_some() && !mounts::open_to_all(&spec.image_root).step("look at the image")? {
        let detail = format!("`{}` may be read by its owner alone", spec.image_root.display());
        return Err(StepFailed { step: "look at the image".into(), errno: 0, detail });
    }
    mounts::move_in(&spec.root, &spec.image_root)?;
    runtime()?.block_on(live(&mut log, spec.boot_delay, |output| start(spec, drop_to, output)))
}

/// An instance's life, from the word that it is ready to its command's end. Returns the command's exit code.
pub(crate) async fn live(
    log: &mut Log,
    boot_delay: Duration,
    start: impl FnOnce(io::PipeWriter) -> Result<Pid, StepFailed>,
) -> Result<u8, StepFailed> {
    // Before the word that all is ready: from then on a SIGTERM may come, and the kernel drops signals that the first
    // process of a namespace does not handle.
    let mut term = signal(SignalKind::terminate()).step("watch for SIGTERM")?;
    let mut ended = signal(SignalKind::child()).step("watch for SIGCHLD")?;
    if let Ok(null) = File::open("/dev/null") {
        let _unchanged = nix::unistd::dup2_stdin(null);
    }
    report_up(&Report::Ready);
    reports_end();
    tokio::select! {
        () = tokio::time::sleep(boot_delay) => {}
        _ = term.recv() => return Ok(128 + 15),
    }
    let (output, to) = io::pipe().step("pipe")?;
    let output = pipe::Receiver::from_owned_fd(output.into()).step("read the command's output")?;
    let command = match start(to) {
        Ok(command) => command,
        Err(failed) => {
            log.note(&format!("{}: {}", failed.step, failed.detail));
            return Ok(NOT_STARTED);
        }
    };
    Ok(attend(command, output, log, &mut term, &mut ended).await)
}

/// Passes signals on, reaps and logs until the command has ended.
async fn attend(
    command: Pid,
    mut output: pipe::Receiver,
    log: &mut Log,
    term: &mut tokio::signal::unix::Signal,
    ended: &mut tokio::signal::unix::Signal,
) -> u8 {
    let mut buffer = vec![0; 16 << 10];
    let mut open = true;
    let code = loop {
        if let Some(code) = reap(command) {
            break code;
        }
        tokio::select! {
            _ = ended.recv() => {}
            // Not reaped yet, so the number is still the command's.
            _ = term.recv() => {
                let _gone = kill(command, Signal::SIGTERM);
            }
            read = output.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(n) => log.write(&buffer[..n]),
            },
        }
    };
    while let Ok(n @ 1..) = output.try_read(&mut buffer) {
        log.write(&buffer[..n]);
    }
    code
}

/// Reaps all that ended; the command's exit code once it has.
fn reap(command: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Some(u8::try_from(code).unwrap_or(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Some(u8::try_from(128 + signal as i32).unwrap_or(255));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::EINTR) => {}
            // Nothing more has ended.
            Ok(_) | Err(_) => return None,
        }
    }
}

/// Starts the image's command. This process has given up every capability for its children by then.
fn start(spec: &InstanceSpec, drop_to: Option<u32>, output: io::PipeWriter) -> Result<Pid, StepFailed> {
    let (program, args) = split(&spec.command)?;
    restrict()?;
    let path = search_path(Path::new(mounts::TROOP_BIN));
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&spec.env)
        .envs([("HOME", mounts::TMP), ("TMPDIR", mounts::TMP)])
        .env("PATH", path)
        .current_dir(mounts::IMAGE)
        .stdin(Stdio::null())
        .stdout(output.try_clone().step("pipe")?)
        .stderr(output);
    if let Some(nobody) = drop_to {
        command.uid(nobody).gid(nobody);
    }
    let child = command.spawn().step(&format!("start the command `{program}`"))?;
    Ok(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)))
}

/// A command's program and its arguments.
pub(crate) fn split(command: &[String]) -> Result<(&String, &[String]), StepFailed> {
    command.split_first().ok_or_else(|| StepFailed {
        step: "start the command".into(),
        errno: 0,
        detail: "the image names none".into(),
    })
}

/// PATH of a command: the folder in which this executable is called `troop`, then the usual ones.
pub(crate) fn search_path(bin: &Path) -> OsString {
    let mut path = bin.as_os_str().to_owned();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Takes from the command what it does not need: all capabilities, ways to new ones, core files, too many open files.
fn restrict() -> Result<(), StepFailed> {
    rustix::thread::set_no_new_privs(true).step("prctl(PR_SET_NO_NEW_PRIVS)")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for bit in 0..u64::BITS {
        let Some(capability) = rustix::thread::CapabilitySet::from_bits(1 << bit) else { continue };
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // An older kernel that does not know it.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(errno) => return Err(errno).step("drop a capability"),
        }
    }
    limit()
}

/// No core files, and no more open files than a service needs.
pub(crate) fn limit() -> Result<(), StepFailed> {
    let at_most = |what, most: u64| {
        let had = getrlimit(what);
        let capped = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
        setrlimit(what, Rlimit { current: capped(had.maximum), maximum: capped(had.maximum) }).step("setrlimit")
    };
    at_most(Resource::Core, 0)?;
    at_most(Resource::Nofile, FILES_MAX)
}

/// Whether there is a `nobody` here to become: not where a user namespace holds one user only.
fn other_user() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => {
                (inside..inside.saturating_add(count)).contains(&u64::from(NOBODY))
            }
            _ => false,
        }
    })
}

/// The file that takes a command's output.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    size: u64,
    max: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size, max: LOG_MAX_BYTES })
    }

    /// A log that cannot be written (a full disk) must not end the instance.
    fn write(&mut self, bytes: &[u8]) {
        if self.size.saturating_add(bytes.len() as u64) > self.max {
            drop(self.cut());
        }
        if self.file.write_all(bytes).is_ok() {
            self.size = self.size.saturating_add(bytes.len() as u64);
        }
    }

    fn note(&mut self, text: &str) {
        self.write(format!("[troop] {text}\n").as_bytes());
    }

    /// Keeps the newer half, from a line's start.
    fn cut(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.size - self.size.min(self.max / 2)))?;
        let mut kept = Vec::new();
        (&self.file).take(self.max / 2).read_to_end(&mut kept)?;
        let line = kept.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.file.set_len(0)?;
        self.size = 0;
        let note: &[u8] = b"[troop] older lines were cut off\n";
        self.file.write_all(note)?;
        self.file.write_all(&kept[line..])?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_keeps_its_newest_lines_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.log");
        let mut log = Log::open(&path).unwrap();
        log.max = 200;
        for n in 0..100 {
            log.write(format!("line {n:03}\n").as_bytes());
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 200, "{}", text.len());
        assert!(text.starts_with("[troop] older lines were cut off\nline 0"), "{text}");
        assert!(text.ends_with("line 098\nline 099\n"), "{text}");
    }

    #[test]
    fn a_log_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs").join("i.log");
        Log::open(&path).unwrap().write(b"one\n");
        Log::open(&path).unwrap().note("two");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n[troop] two\n");
    }
}
