//! What stands over an instance without namespaces: its keeper, and the last of Troop before the image's command.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::unistd::Pid;
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use super::INTERNAL;
use super::helper::runtime;
use super::instance::{Log, NOT_STARTED, limit, live, search_path, split};
use super::reaper::adopt_orphans;
use super::steps::{Step as _, StepFailed, die_with, own_exe};

/// An instance, as its keeper and its command's starter are told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct KeeperSpec {
    /// Whoever starts the reader of this.
    pub(crate) parent: u32,
    pub(crate) image_root: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) env: std::collections::BTreeMap<String, String>,
    pub(crate) boot_delay: Duration,
    pub(crate) log: PathBuf,
    /// The instance's own folder.
    pub(crate) tmp: PathBuf,
    /// The folder in which this executable is called `troop`.
    pub(crate) bin: PathBuf,
}

/// Boots, runs the command, logs, passes SIGTERM on, reaps, and returns the command's exit code. What the command leaves
/// behind is adopted by the cloud process when this ends, and killed there.
pub(crate) fn keep(spec: &KeeperSpec) -> Result<u8, StepFailed> {
    die_with(spec.parent)?;
    adopt_orphans()?;
    let mut log = Log::open(&spec.log).step("open the instance's log")?;
    drop(fs::read_dir(&spec.image_root).step("look at the image")?);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&spec.tmp).step("make the instance's TMPDIR")?;
    runtime()?.block_on(live(&mut log, spec.boot_delay, |output| start(spec, output)))
}

/// The command asks to die with its keeper, which it can do only by itself: what a parent could do between fork and exec
/// is not safe Rust.
fn start(spec: &KeeperSpec, output: io::PipeWriter) -> Result<Pid, StepFailed> {
    let spec = KeeperSpec { parent: std::process::id(), ..spec.clone() };
    let text = serde_json::to_string(&spec).map_err(io::Error::from).step("write the instance's spec")?;
    let child = Command::new(own_exe())
        .arg0("troop")
        .args([INTERNAL, "command", &text])
        .stdin(Stdio::null())
        .stdout(output.try_clone().step("pipe")?)
        .stderr(output)
        .spawn()
        .step("start the command's starter")?;
    Ok(Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)))
}

/// Gives up what the command does not need and becomes it. Returns only when it cannot be started.
pub(crate) fn become_command(spec: &KeeperSpec) -> Result<u8, StepFailed> {
    // Survives the exec: with no new privileges no program is one that the kernel would take it from.
    die_with(spec.parent)?;
    // A session of its own: signals to its process group, and a terminal's, are for the command alone.
    nix::unistd::setsid().step("setsid")?;
    let (program, args) = split(&spec.command)?;
    restrict()?;
    let error = Command::new(program)
        .args(args)
        .env_clear()
        .envs(&spec.env)
        .env("PATH", search_path(&spec.bin))
        .envs([("HOME", &spec.tmp), ("TMPDIR", &spec.tmp)])
        .current_dir(&spec.image_root)
        .exec();
    drop(writeln!(io::stderr(), "[troop] start the command `{program}`: {error}"));
    Ok(NOT_STARTED)
}

/// As in the sandbox, as far as this process may: a user without capabilities has none to give up.
fn restrict() -> Result<(), StepFailed> {
    rustix::thread::set_no_new_privs(true).step("prctl(PR_SET_NO_NEW_PRIVS)")?;
    rustix::thread::clear_ambient_capability_set().step("clear the ambient capabilities")?;
    for bit in 0..u64::BITS {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else { continue };
        // Refused without CAP_SETPCAP. Then it is the empty sets below, with no new privileges, that keep root without.
        let _or_not = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).step("capset")?;
    limit()
}
