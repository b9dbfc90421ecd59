//! The helpers on the outside of the sandbox: one makes the namespaces and guards them, one joins them for a role.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getegid, geteuid};
use rustix::thread::CapabilitySet;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::sandbox::SandboxSpec;
use super::steps::{Report, Step as _, StepFailed, exit_code, own_exe, own_stdin, report_up, reports_end};
use super::{INTERNAL, mounts};

/// What a sandbox has of its own.
const SPACES: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// With all of these no user namespace is needed. Containers sometimes grant a part; then one is.
const ENOUGH: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP);

/// Makes the namespaces, starts their first process (`internal INIT SPEC`) and waits: for its end, or for the end of
/// standard input, which means that the supervisor is gone. Returns the first process's exit code.
pub(crate) fn sandbox(spec: &SandboxSpec, init: &str) -> Result<u8, StepFailed> {
    let text = serde_json::to_string(spec).map_err(std::io::Error::from).step("write the spec")?;
    let exe = own_exe();
    make_spaces()?;
    mounts::cut_off()?;
    // Held open by this process alone: its reading end tells the first process whether we had died before it asked to
    // be killed with us.
    let (theirs, _ours) = std::io::pipe().step("pipe")?;
    let mut command = Command::new(exe);
    command.args([INTERNAL, init, &text]).stdin(theirs);
    let mut child = command.spawn().step("start the sandbox's first process")?;
    drop(command);
    report_up(&Report::Init { pid: i32::try_from(child.id()).unwrap_or(0) });
    reports_end();
    let ended = runtime()?.block_on(guard(&mut child));
    if ended.is_err() {
        drop(child.kill());
        drop(child.wait());
    }
    ended
}

async fn guard(child: &mut Child) -> Result<u8, StepFailed> {
    let mut line = pipe::Receiver::from_owned_fd(own_stdin().step("own stdin")?).step("watch the supervisor")?;
    let mut ended = signal(SignalKind::child()).step("watch for SIGCHLD")?;
    let mut told = signals()?;
    let mut byte = [0];
    loop {
        if let Some(status) = child.try_wait().step("wait(first process)")? {
            return Ok(exit_code(status));
        }
        tokio::select! {
            _ = ended.recv() => {}
            read = line.read(&mut byte) => {
                // Nothing is ever written there; the end, or an error, means that nobody holds the other side.
                if matches!(read, Ok(0) | Err(_)) {
                    child.kill().step("kill(first process)")?;
                    return Ok(exit_code(child.wait().step("wait(first process)")?));
                }
            }
            told = told.next() => pass_on(child, told),
        }
    }
}

/// Joins the namespaces of `pid`, the sandbox's first process, starts `exe` there with `args`, passes signals on and
/// returns its exit code.
pub(crate) fn enter(pid: i32, exe: &OsStr, args: &[&OsStr]) -> Result<u8, StepFailed> {
    let folder = std::env::current_dir();
    let target = rustix::process::Pid::from_raw(pid).ok_or_else(|| gone(pid))?;
    let target = rustix::process::pidfd_open(target, rustix::process::PidfdFlags::empty()).step("pidfd_open")?;
    // Asked after the pidfd was opened: a number that was given to another process meanwhile is noticed.
    let mut spaces = SPACES;
    if !is_first_process(pid) {
        return Err(gone(pid));
    }
    let user = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/user"));
    if user("self").step("read the own user namespace")? != user(&pid.to_string()).step("read the sandbox's")? {
        spaces |= CloneFlags::CLONE_NEWUSER;
    }
    setns(&target, spaces).step("setns(sandbox)")?;
    // Joining a mount namespace moves to its root. Paths on the role's command line may be relative.
    if let Ok(folder) = folder {
        drop(std::env::set_current_dir(folder));
    }
    runtime()?.block_on(async {
        let mut ended = signal(SignalKind::child()).step("watch for SIGCHLD")?;
        let mut told = signals()?;
        let mut child = Command::new(exe).arg0("troop").args(args).spawn().step("start the role")?;
        loop {
            if let Some(status) = child.try_wait().step("wait(role)")? {
                return Ok(exit_code(status));
            }
            tokio::select! {
                _ = ended.recv() => {}
                told = told.next() => pass_on(&child, told),
            }
        }
    })
}

fn gone(pid: i32) -> StepFailed {
    StepFailed { step: "find the sandbox".into(), errno: 0, detail: format!("process {pid} is no sandbox's first one") }
}

/// Whether a process is number 1 in the innermost of several pid namespaces (`NSpid` in proc_pid_status(5)).
fn is_first_process(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    numbers.split_whitespace().count() > 1 && numbers.split_whitespace().last() == Some("1")
}

fn make_spaces() -> Result<(), StepFailed> {
    let own = rustix::thread::capabilities(None).step("read the own capabilities")?;
    if own.effective.contains(ENOUGH) {
        return unshare(SPACES).step("unshare(net, mount, pid)");
    }
    let (user, group) = (geteuid(), getegid());
    unshare(SPACES | CloneFlags::CLONE_NEWUSER).step("unshare(user, net, mount, pid)")?;
    let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text).step(file);
    // Without this the kernel refuses the group map to the unprivileged (user_namespaces(7)).
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1"))?;
    write("gid_map", format!("0 {group} 1"))
}

/// A runtime that adds no thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, StepFailed> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().step("start a runtime")
}

/// Signals that ask for an end, or for a second look (HUP), and are passed on.
pub(crate) struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

pub(crate) fn signals() -> Result<Signals, StepFailed> {
    let on = |kind| signal(kind).step("watch for signals");
    Ok(Signals {
        term: on(SignalKind::terminate())?,
        int: on(SignalKind::interrupt())?,
        hup: on(SignalKind::hangup())?,
    })
}

impl Signals {
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::SIGTERM,
            _ = self.int.recv() => Signal::SIGINT,
            _ = self.hup.recv() => Signal::SIGHUP,
        }
    }
}

/// The child has not been waited for when this is called, so its number is still its own.
pub(crate) fn pass_on(child: &Child, what: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _gone = kill(Pid::from_raw(pid), what);
    }
}
