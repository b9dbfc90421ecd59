//! The embedded cloud: groups, instances and a balancer made of real processes on this machine.
//!
//! Parts, each a process of its own (started by a supervisor that `troop` provides):
//! - `server`: the cloud itself, the first process of the sandbox. Owns groups, instances, images and STATE/cloud.
//! - [`balancer`]: a worker of the reverse proxy. Several share one listener.
//! - [`client`]: the implementation of [`crate::Cloud`], over the unix socket on which the cloud process listens.
//!
//! [`sandbox`] sets up the namespaces and `instance` is what runs as first process of each instance. Both run in a
//! re-executed, single-threaded copy of the binary, before any runtime starts. Where a machine refuses namespaces,
//! instances are plain processes on the loopback: `reaper` says who ends whom then, `processes` starts them, `keeper` is
//! what each has over it, and `family` finds what they left.

pub mod agents;
pub mod balancer;
pub mod client;
mod controller;
mod family;
mod helper;
mod image;
mod init;
mod instance;
mod internal;
mod keeper;
mod logs;
mod mounts;
mod namespaces;
mod netlink;
mod network;
mod processes;
pub mod protocol;
mod reaper;
mod refusal;
pub mod role;
mod runtime;
pub mod sandbox;
mod server;
mod state;
mod steps;
mod trial;

/// Targets of `tests/fuzz/run`.
#[cfg(feature = "fuzzing")]
pub mod fuzz {
    /// See the image's own module.
    pub fn manifest(data: &[u8]) {
        super::image::fuzz::manifest(data);
    }

    /// See the image's own module.
    pub fn tarball(data: &[u8]) {
        super::image::fuzz::tarball(data);
    }
}

pub use init::Clock;
pub use internal::{INTERNAL, internal_main, trial_main};
