//! Where the bench runs: this very binary once more, as a process of its own with one thread, in namespaces that are thrown away.
//!
//! The kernel gives a user namespace to no process with threads. Root needs none; an ordinary user is root within one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::CapabilitySet;

/// With all of these no user namespace is needed. Containers sometimes grant a part; then one is.
const ENOUGH: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::NET_RAW);

/// The word after which the binary is a part of a bench.
pub(super) const PART: &str = "bench-part";

/// This binary, and what stands before a command of the agent's on its command line.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) exe: PathBuf,
    pub(super) before: Vec<String>,
}

impl Own {
    pub(super) fn find(before: &[&str]) -> io::Result<Self> {
        Ok(Self { exe: std::env::current_exe()?, before: before.iter().copied().map(str::to_owned).collect() })
    }

    /// A command of the agent's.
    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(&self.before).args(words);
        command
    }

    /// A command that is killed when the thread that starts it ends, however that comes: by way of [`become_attached`].
    pub(super) fn attached(&self, program: impl Into<OsString>) -> Command {
        let mut command = self.command(&[PART, "attached", "--parent", &std::process::id().to_string(), "--"]);
        command.arg(program.into());
        command
    }
}

/// Dies with the parent from now on. `false`: it has died already.
pub(super) fn die_with(parent: u32) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(getppid().is_some_and(|now| now.as_raw_nonzero().get().unsigned_abs() == parent))
}

/// Becomes another program that dies with the parent; returns only when it cannot.
pub(super) fn become_attached(parent: u32, words: &[OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    match die_with(parent) {
        Ok(true) => Command::new(program).args(arguments).exec(),
        Ok(false) => io::Error::other("who asked for it is gone"),
        Err(error) => error,
    }
}

/// Leaves for namespaces of its own. Whether it is root of the machine there.
pub(super) fn leave() -> io::Result<bool> {
    let own = rustix::thread::capabilities(None)?;
    if own.effective.contains(ENOUGH) {
        unshare(CloneFlags::CLONE_NEWNET)?;
        return Ok(geteuid().is_root());
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUSER)?;
    let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
    // Without this the kernel refuses the group map to the unprivileged (user_namespaces(7)).
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1"))?;
    write("gid_map", format!("0 {group} 1"))?;
    Ok(false)
}
