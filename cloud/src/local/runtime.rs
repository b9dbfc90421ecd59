//! What the cloud process asks of whatever makes its instances real: namespaces, plain processes, a fake in its tests.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::Signal;
use troop_policies::InstanceId;

use super::steps::StepFailed;

/// An instance to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) instance: InstanceId,
    /// Index of its zone, 0 to 2.
    pub(crate) zone: u8,
    /// Its address in the zone's network: 10.77.Z.0/24 in the sandbox, 127.N.Z.0/24 without one.
    pub(crate) address: Ipv4Addr,
    /// The unpacked image; the instance sees it read-only.
    pub(crate) image_root: PathBuf,
    /// The image's command. The word `troop` in front stands for this executable.
    pub(crate) command: Vec<String>,
    /// The whole environment, but for PATH, HOME and TMPDIR, which the instance sets itself.
    pub(crate) env: BTreeMap<String, String>,
    /// How long it boots before its command starts.
    pub(crate) boot_delay: Duration,
    /// Where its standard output and error are appended.
    pub(crate) log: PathBuf,
}

/// An instance has ended and everything in it with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) instance: InstanceId,
    /// In words: `exit code 1`, `signal 9`.
    pub(crate) status: String,
}

/// How an instance is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndBy {
    /// SIGTERM to its command, which may finish in order.
    Term,
    /// SIGKILL to its first process: everything in it dies at once.
    Kill,
}

impl EndBy {
    pub(crate) fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::SIGTERM,
            Self::Kill => Signal::SIGKILL,
        }
    }
}

/// Starts and ends instances. Chooses nothing.
#[async_trait]
pub(crate) trait Runtime: Send + Sync + Debug {
    /// Starts it and returns the pid, as the cloud process sees it, of the instance's first process; its command runs
    /// `boot_delay` later. For each `Ok` exactly one [`Exit`] follows.
    ///
    /// # Errors
    /// The step that was refused; nothing of the instance is left then.
    async fn launch(&self, launch: Launch) -> Result<u32, StepFailed>;

    /// Ends an instance. One that is gone is no error; the end is told by its [`Exit`].
    fn end(&self, instance: &InstanceId, by: EndBy);

    /// Removes what is kept of an instance: its outer link, or its folder. Called after its [`Exit`].
    async fn clean(&self, instance: &InstanceId);
}
