//! The helpers of the isolation `processes`, which do what a pid namespace does in the sandbox: end all with one.
//!
//! ```text
//! supervisor ── reaper ── cloud process ── keeper ── the image's command     (one keeper an instance)
//!           └── attendant ── a role
//! ```
//!
//! Cloud process, keepers, commands and roles ask the kernel to be killed with their parent, which is the main thread of
//! a process that has no other thread that starts anything. The reaper and the attendants cannot: a supervisor starts
//! them from threads that end. They watch it by pidfd instead. A process that an instance forked off and orphaned is
//! adopted by its keeper, the cloud process or the reaper, whichever is the nearest that lives, and killed there once
//! its instance is gone.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::INTERNAL;
use super::family::Family;
use super::helper::{pass_on, runtime, signals};
use super::network::Network;
use super::role::HELPER_PID;
use super::sandbox::SandboxSpec;
use super::steps::{
    Report, Step as _, StepFailed, exit_code, hung_up, is_child_of, own_exe, own_stdin, report_up, reports_end,
};

/// How long what was adopted may take to die. It was sent SIGKILL; what does not heed that hangs in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks for what has not died yet.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the reaper and the cloud process below it are started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PlainSpec {
    pub(crate) sandbox: SandboxSpec,
    pub(crate) network: Network,
    /// Whoever starts the reader of this.
    pub(crate) parent: u32,
}

/// Starts the cloud process and waits: for its end, or for the supervisor's. Then ends everything that is left, and
/// returns the cloud process's exit code.
pub(crate) fn run(spec: &PlainSpec) -> Result<u8, StepFailed> {
    let line = own_stdin().step("own stdin")?;
    let supervisor = watch_parent(spec.parent)?;
    if hung_up(&line).step("poll(liveness pipe)")? {
        return Err(StepFailed { step: "start".into(), errno: 0, detail: "the supervisor died meanwhile".into() });
    }
    adopt_orphans()?;
    let below = PlainSpec { parent: std::process::id(), ..spec.clone() };
    let text = serde_json::to_string(&below).map_err(std::io::Error::from).step("write the spec")?;
    let child = Command::new(own_exe())
        .arg0("troop")
        .args([INTERNAL, "cloud", &text])
        .stdin(std::process::Stdio::null())
        .spawn()
        .step("start the cloud process")?;
    let cloud = i32::try_from(child.id()).unwrap_or(0);
    report_up(&Report::Init { pid: cloud });
    reports_end();
    let ended = runtime()?.block_on(guard(Pid::from_raw(cloud), supervisor, line));
    end_children();
    ended
}

/// Makes this process the parent of what its descendants orphan.
pub(crate) fn adopt_orphans() -> Result<(), StepFailed> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step("prctl(PR_SET_CHILD_SUBREAPER)")
}

/// A handle on the parent, a pidfd, that is readable once it has died.
fn watch_parent(parent: u32) -> Result<OwnedFd, StepFailed> {
    let gone =
        || StepFailed { step: "find the supervisor".into(), errno: 0, detail: format!("{parent} is no process") };
    let number = i32::try_from(parent).ok().and_then(rustix::process::Pid::from_raw).ok_or_else(gone)?;
    let handle = pidfd_open(number, PidfdFlags::empty()).step("pidfd_open(supervisor)")?;
    // Asked after the handle was made: a number that was given to another process meanwhile is noticed.
    is_child_of(parent)?;
    Ok(handle)
}

/// To wait until a pidfd is readable. Tokio's own type for any descriptor cannot be made in safe Rust; this one for pipes
/// can, and nothing is ever read.
fn readable(pidfd: OwnedFd) -> Result<pipe::Receiver, StepFailed> {
    pipe::Receiver::from_owned_fd_unchecked(pidfd).step("watch the supervisor")
}

async fn guard(cloud: Pid, supervisor: OwnedFd, line: OwnedFd) -> Result<u8, StepFailed> {
    let supervisor = readable(supervisor)?;
    let line = pipe::Receiver::from_owned_fd(line).step("watch the supervisor")?;
    let mut ended = signal(SignalKind::child()).step("watch for SIGCHLD")?;
    let mut told = signals()?;
    loop {
        if let Some(code) = reap(Some(cloud)) {
            return Ok(code);
        }
        tokio::select! {
            _ = ended.recv() => {}
            _ = supervisor.readable() => break,
            // Nothing is ever written there, so this is its end: the supervisor wants all to end, or is gone.
            _ = line.readable() => break,
            // Not reaped yet, so the number is still the cloud process's.
            told = told.next() => drop(kill(cloud, told)),
        }
    }
    let _gone = kill(cloud, Signal::SIGKILL);
    Ok(128 + 9)
}

/// Reaps every child that has ended; the exit code of `wanted`, if that is among them.
fn reap(wanted: Option<Pid>) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if Some(pid) == wanted => code = u8::try_from(status).ok().or(Some(1)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == wanted => {
                code = u8::try_from(128 + signal as i32).ok().or(Some(255));
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::EINTR) => {}
            // Nothing more has ended.
            Ok(_) | Err(_) => return code,
        }
    }
}

/// Kills every child, and what becomes one by that, until there is none. This process does nothing else by then.
fn end_children() {
    let began = Instant::now();
    loop {
        for child in Family::now().children() {
            let _gone = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        reap(None);
        let none = waitpid(None, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD);
        if none || began.elapsed() > GONE_WITHIN {
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Starts `exe` with `args` as a role, passes signals on and returns its exit code. When the supervisor dies, the role
/// is killed.
pub(crate) fn attend(parent: u32, exe: &OsStr, args: &[&OsStr]) -> Result<u8, StepFailed> {
    let supervisor = watch_parent(parent)?;
    runtime()?.block_on(async {
        let supervisor = readable(supervisor)?;
        let mut ended = signal(SignalKind::child()).step("watch for SIGCHLD")?;
        let mut told = signals()?;
        let mut child = Command::new(exe)
            .arg0("troop")
            .args(args)
            .env(HELPER_PID, std::process::id().to_string())
            .spawn()
            .step("start the role")?;
        loop {
            if let Some(status) = child.try_wait().step("wait(role)")? {
                return Ok(exit_code(status));
            }
            tokio::select! {
                _ = ended.recv() => {}
                _ = supervisor.readable() => child.kill().step("kill(role)")?,
                told = told.next() => pass_on(&child, told),
            }
        }
    })
}
