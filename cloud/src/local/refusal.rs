//! Why there is no sandbox, and which setting would allow one.

use std::path::PathBuf;
use std::time::Duration;

use super::steps::{CLOUD_STEP, StepFailed};

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("this machine refuses the sandbox: {step}: {detail} (errno {errno}). {hint}")]
    Step { step: String, errno: i32, detail: String, hint: &'static str },
    #[error("could not start instances as plain processes: {step}: {detail} (errno {errno})")]
    Plain { step: String, errno: i32, detail: String },
    #[error(
        "no part of 127.0.0.0/8 is free for instances; is something listening on port {port} of every address, or is \
         the loopback down?"
    )]
    NoLoopback {
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the state folder's path is too long for a socket: `{path}` has {length} bytes, 107 are allowed; give a shorter --state"
    )]
    PathTooLong { path: PathBuf, length: usize },
    #[error("could not use the state folder `{path}`")]
    State {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not start the sandbox's helper `{exe}`")]
    Spawn {
        exe: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the sandbox's helper ended without saying why")]
    Silent,
    #[error("the sandbox was not ready within {} s", limit.as_secs())]
    TooSlow { limit: Duration },
    #[error("the embedded cloud could not start: {detail}")]
    Cloud { detail: String },
    #[error("could not hand descriptors to a role")]
    Hand(#[source] std::io::Error),
}

impl From<StepFailed> for SandboxError {
    fn from(failed: StepFailed) -> Self {
        if failed.step == CLOUD_STEP {
            return Self::Cloud { detail: failed.detail };
        }
        let hint = hint(failed.errno, &failed.step);
        Self::Step { step: failed.step, errno: failed.errno, detail: failed.detail, hint }
    }
}

impl SandboxError {
    /// The same of plain processes: settings for namespaces have no part in it.
    pub(super) fn without_hint(self) -> Self {
        let Self::Step { step, errno, detail, .. } = self else { return self };
        Self::Plain { step, errno, detail }
    }
}

/// The setting that would most likely allow the step.
fn hint(errno: i32, step: &str) -> &'static str {
    use nix::errno::Errno;
    let is = |of: &[Errno]| of.iter().any(|of| *of as i32 == errno);
    if is(&[Errno::ENOSPC]) {
        "The sysctl user.max_user_namespaces (or another user.max_*_namespaces) is 0 or used up: raise it."
    } else if is(&[Errno::EUSERS]) {
        "User namespaces are nested too deeply here: start Troop outside of the inner container."
    } else if is(&[Errno::EINVAL]) && step.starts_with("unshare") {
        "This kernel was built without these namespaces (CONFIG_USER_NS, CONFIG_NET_NS, CONFIG_PID_NS)."
    } else if is(&[Errno::EACCES]) && step.starts_with("start ") {
        "The executable lies in a folder that this user may not enter: copy it to one that all may read."
    } else if is(&[Errno::EPERM]) && step == "uid_map" && nix::unistd::geteuid().is_root() {
        "This is root without CAP_SETFCAP, for whom the kernel maps no user: start Troop as an ordinary user, or keep \
         that capability (or CAP_SYS_ADMIN) in the container."
    } else if is(&[Errno::EPERM, Errno::EACCES]) {
        "Allow unprivileged user namespaces: the sysctls kernel.unprivileged_userns_clone=1 and, on Ubuntu, \
         kernel.apparmor_restrict_unprivileged_userns=0 (or an AppArmor profile for this binary); in a container, \
         a seccomp profile that lets unshare and mount pass and an unmasked /proc; or start as root."
    } else {
        "`--isolation processes` needs none of this."
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_kernel_names_a_setting() {
        for (errno, step, word) in [
            (28, "unshare", "max_user_namespaces"),
            (1, "unshare", "unprivileged_userns_clone"),
            (87, "unshare", "nested"),
            (22, "unshare", "CONFIG_USER_NS"),
        ] {
            let failed = StepFailed { step: step.into(), errno, detail: "refused".into() };
            let text = SandboxError::from(failed).to_string();
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn of_plain_processes_no_setting_for_namespaces_is_named() {
        let failed = StepFailed { step: "keep the executable".into(), errno: 28, detail: "the disk is full".into() };
        let text = SandboxError::from(failed).without_hint().to_string();
        assert!(text.contains("the disk is full") && !text.contains("namespaces"), "{text}");
    }
}
