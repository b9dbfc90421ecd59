//! A cgroup of a test's own, and processes in it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use troop_agent_core::fault::{Cgroup, Selectors};

use crate::world::median;

/// A cgroup that the test makes and takes away.
pub(crate) struct Group(PathBuf);

impl Group {
    /// `None` where this user may make none.
    pub(crate) fn make() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let group = Path::new(&mount).join(format!("troop-test-{}", std::process::id()));
        std::fs::create_dir_all(group.join("within")).ok()?;
        Some(Self(group))
    }

    /// Its path below the root of all cgroups.
    pub(crate) fn path(&self) -> String {
        self.0.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// A process in it that talks to this port of the peer until it is killed.
    pub(crate) fn talks(&self, port: u16) -> Child {
        let script = r#"echo $$ > "$0/cgroup.procs" || exit 1
            exec 3<>"/dev/tcp/10.0.0.2/$1"
            while printf ping >&3 && IFS= read -r -N 4 -u 3 _; do sleep 0.01; done"#;
        Command::new("bash").args(["-c", script]).arg(&self.0).arg(port.to_string()).spawn().unwrap()
    }

    pub(crate) fn selected(&self) -> Selectors {
        let id = std::fs::metadata(&self.0).unwrap().ino();
        Selectors { cgroup: Some(Cgroup { level: 1, id }), ..Selectors::default() }
    }

    /// The median round trip of a connection that a process of this part of it has made.
    pub(crate) fn round_trip(&self, part: &str) -> Duration {
        let script = r#"echo $$ > "$0/cgroup.procs" || exit 1
            exec 3<>/dev/tcp/10.0.0.2/80
            for _ in 1 2 3; do
                begun=${EPOCHREALTIME/./}; printf ping >&3; IFS= read -r -N 4 -u 3 _; ended=${EPOCHREALTIME/./}
                echo $((ended - begun))
            done"#;
        let folder = self.0.join(part);
        let output = Command::new("bash").args(["-c", script]).arg(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        median(text.lines().map(|line| Duration::from_micros(line.parse().unwrap())).collect())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel refuses while somebody is within, and then the test has failed already.
        std::fs::remove_dir(self.0.join("within")).ok();
        std::fs::remove_dir(&self.0).ok();
    }
}
