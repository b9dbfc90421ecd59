//! From a unit, a process or a path to the control group whose packets are meant.
//!
//! The kernel tells packets by the cgroup their socket was made in, and by nothing smaller: so a process is taken only while it has a
//! cgroup for itself and its children, and is known by the time it began as well as by its number. Whatever else is in doubt is refused, and
//! looked at again with each renewal. Never taken: the root, and a cgroup that holds this agent, the host's first process or an sshd.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use troop_agent_core::fault::Cgroup;
use troop_policies::fault::Owner;

/// Folders of cgroups that are looked into: a host with a thousand containers has some ten thousand.
const FOLDERS_MAX: usize = 50_000;
/// Processes of one cgroup that are looked at.
const PROCESSES_MAX: usize = 50_000;
/// Generations between a process and its child; the kernel allows 32 namespaces of them.
const GENERATIONS_MAX: usize = 64;
/// Programs that let people in: `sshd-session` since OpenSSH 9.8.
const SSHD: [&str; 3] = ["sshd", "sshd-session", "sshd-auth"];

/// Why nobody's packets are meant. For people.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    #[error("this host shows its agent no cgroups of version 2")]
    NoCgroups,
    #[error("`{of}` is not on this host")]
    Unknown { of: Owner },
    #[error("`{of}` means {count} of them: {first} and {second}")]
    Several { of: Owner, count: usize, first: String, second: String },
    #[error("`{of}` is off limits: its cgroup {path} {what}")]
    OffLimits { of: Owner, path: String, what: String },
    #[error("`{of}` shares its cgroup {path} with process {other}, whose packets cannot be told from its own")]
    Shared { of: Owner, path: String, other: u32 },
    #[error("`{of}` is no longer the one that it was")]
    Other { of: Owner },
    #[error("could not look at `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where cgroups and processes are to be seen.
#[derive(Debug, Clone)]
pub(crate) struct Seeing {
    cgroups: PathBuf,
    proc: PathBuf,
    me: u32,
}

/// A cgroup that may be meant, as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    of: Owner,
    pub(crate) cgroup: Cgroup,
    folder: PathBuf,
    process: Option<Process>,
}

/// A process that no other can be taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: u32,
    /// In clock ticks since the host's start.
    began: u64,
}

impl Seeing {
    /// # Errors
    /// [`OwnerError::NoCgroups`], also where the agent sees but a part of them, since the kernel counts levels from their root.
    pub(crate) fn here() -> Result<Self, OwnerError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = std::fs::read_to_string(path).map_err(read(path))?;
        let cgroups = mounts.lines().find_map(cgroup_mount).ok_or(OwnerError::NoCgroups)?;
        Ok(Self { cgroups, proc: PathBuf::from("/proc"), me: std::process::id() })
    }

    /// # Errors
    /// [`OwnerError`].
    pub(crate) fn find(&self, of: &Owner) -> Result<Found, OwnerError> {
        let unknown = || OwnerError::Unknown { of: of.clone() };
        let (folder, process) = match of {
            Owner::Cgroup(path) => (self.cgroups.join(path), None),
            Owner::Unit(name) => (self.unit(of, name)?, None),
            Owner::Pid(pid) => self.process(of, *pid)?,
            Owner::Program(name) => self.process(of, self.program(of, name)?)?,
        };
        let found = std::fs::metadata(&folder).ok().filter(std::fs::Metadata::is_dir).ok_or_else(unknown)?;
        let below = folder.strip_prefix(&self.cgroups).map_err(|_| unknown())?;
        let level = u32::try_from(below.components().count()).map_err(|_| unknown())?;
        let found = Found { of: of.clone(), cgroup: Cgroup { level, id: found.ino() }, folder, process };
        self.may_be_meant(&found)?;
        Ok(found)
    }

    /// Whether it is what it was. A unit that was started again has another cgroup.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub(crate) fn is_still(&self, found: &Found) -> Result<(), OwnerError> {
        let again = match found.process {
            None => self.find(&found.of)?,
            // By its number, for a program's name may fit another by now.
            Some(process) => self.find(&Owner::Pid(process.pid))?,
        };
        let same = (again.cgroup, again.process) == (found.cgroup, found.process);
        if same { Ok(()) } else { Err(OwnerError::Other { of: found.of.clone() }) }
    }

    /// The numbers of a cgroup and of all within it.
    pub(crate) fn within(&self, found: &Found) -> Result<Vec<u64>, OwnerError> {
        let folders = self.folders(&found.folder, |_| true)?;
        Ok(folders.iter().filter_map(|folder| std::fs::metadata(folder).ok()).map(|seen| seen.ino()).collect())
    }

    fn may_be_meant(&self, found: &Found) -> Result<(), OwnerError> {
        let path = found.folder.strip_prefix(&self.cgroups).unwrap_or(&found.folder).display().to_string();
        let off_limits =
            |what: &str| OwnerError::OffLimits { of: found.of.clone(), path: path.clone(), what: what.to_owned() };
        if found.cgroup.level == 0 {
            return Err(off_limits("is the root, which is everything"));
        }
        let pids = self.pids(&found.folder)?;
        // Numbered 0 by the kernel where they are of another namespace; without a name where /proc hides them (hidepid, ProtectProc), unless
        // they have ended meanwhile.
        let mut nameless = pids.iter().filter(|pid| self.name(**pid).is_none()).peekable();
        if nameless.peek().is_some() {
            let still = self.pids(&found.folder)?;
            if nameless.any(|pid| still.contains(pid)) {
                return Err(off_limits("holds processes that this agent cannot see"));
            }
        }
        if pids.contains(&self.me) {
            return Err(off_limits("holds the agent itself"));
        }
        if pids.contains(&1) {
            return Err(off_limits("holds the host's first process"));
        }
        if pids.iter().any(|pid| self.name(*pid).is_some_and(|name| SSHD.contains(&name.as_str()))) {
            return Err(off_limits("holds an sshd"));
        }
        let Some(process) = found.process else { return Ok(()) };
        match pids.into_iter().find(|pid| !self.descends(*pid, process.pid)) {
            Some(other) => Err(OwnerError::Shared { of: found.of.clone(), path, other }),
            None => Ok(()),
        }
    }

    /// Units lie in slices, and slices in slices. Those of a user's own manager lie in its service, and are not the host's.
    fn unit(&self, of: &Owner, name: &str) -> Result<PathBuf, OwnerError> {
        let is_slice = |folder: &Path| folder.extension().is_some_and(|kind| kind == "slice");
        let slices = self.folders(&self.cgroups, is_slice)?;
        let named: Vec<PathBuf> = slices.iter().map(|slice| slice.join(name)).filter(|unit| unit.is_dir()).collect();
        match named.as_slice() {
            [] => Err(OwnerError::Unknown { of: of.clone() }),
            [only] => Ok(only.clone()),
            [first, second, ..] => {
                Err(several(of, named.len(), first.display().to_string(), second.display().to_string()))
            }
        }
    }

    /// The only process of this name that is no other one's child.
    fn program(&self, of: &Owner, name: &str) -> Result<u32, OwnerError> {
        let entries = std::fs::read_dir(&self.proc).map_err(read(&self.proc))?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let named: Vec<u32> = pids.filter(|pid| self.name(*pid).as_deref() == Some(name)).collect();
        let is_child = |pid: u32| named.iter().any(|other| *other != pid && self.descends(pid, *other));
        let first: Vec<u32> = named.iter().copied().filter(|pid| !is_child(*pid)).collect();
        match first.as_slice() {
            [] => Err(OwnerError::Unknown { of: of.clone() }),
            [only] => Ok(*only),
            [one, other, ..] => Err(several(of, first.len(), one.to_string(), other.to_string())),
        }
    }

    fn process(&self, of: &Owner, pid: u32) -> Result<(PathBuf, Option<Process>), OwnerError> {
        let unknown = || OwnerError::Unknown { of: of.clone() };
        let began = self.stat(pid).ok_or_else(unknown)?.began;
        let groups = std::fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")).map_err(|_| unknown())?;
        // Version 2 is hierarchy 0 (cgroups(7)). What is beyond the root that we see begins with `/..`.
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(OwnerError::NoCgroups)?;
        if path.split('/').any(|part| part == "..") {
            return Err(OwnerError::NoCgroups);
        }
        Ok((self.cgroups.join(path), Some(Process { pid, began })))
    }

    /// This folder, and those within it that are looked into.
    fn folders(&self, top: &Path, enters: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, OwnerError> {
        let mut found = vec![top.to_path_buf()];
        let mut next = 0;
        while let Some(folder) = found.get(next).cloned() {
            next += 1;
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                // It has ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && next > 1 => continue,
                Err(source) => return Err(OwnerError::Read { path: folder, source }),
            };
            let inner = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
            found.extend(inner.map(|entry| entry.path()).filter(|path| enters(path)));
            if found.len() > FOLDERS_MAX {
                let source = io::Error::other(format!("more than {FOLDERS_MAX} cgroups"));
                return Err(OwnerError::Read { path: top.to_path_buf(), source });
            }
        }
        Ok(found)
    }

    /// All processes of a cgroup and of those within it; 0 for one of another namespace.
    fn pids(&self, folder: &Path) -> Result<Vec<u32>, OwnerError> {
        let mut pids = Vec::new();
        for folder in self.folders(folder, |_| true)? {
            let path = folder.join("cgroup.procs");
            match std::fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().map(|line| line.parse().unwrap_or(0))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A threaded cgroup (EOPNOTSUPP) or one of another's: who is in it cannot be told.
                Err(source) => return Err(OwnerError::Read { path, source }),
            }
            if pids.len() > PROCESSES_MAX {
                let source = io::Error::other(format!("more than {PROCESSES_MAX} processes"));
                return Err(OwnerError::Read { path, source });
            }
        }
        Ok(pids)
    }

    fn descends(&self, pid: u32, from: u32) -> bool {
        let mut at = pid;
        for _ in 0..GENERATIONS_MAX {
            if at == from {
                return true;
            }
            match self.stat(at) {
                Some(stat) if stat.parent > 1 => at = stat.parent,
                Some(_) | None => return false,
            }
        }
        false
    }

    fn name(&self, pid: u32) -> Option<String> {
        let text = std::fs::read_to_string(self.proc.join(pid.to_string()).join("comm")).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    }

    /// proc_pid_stat(5): the name stands in brackets and may hold any itself.
    fn stat(&self, pid: u32) -> Option<Stat> {
        let text = std::fs::read_to_string(self.proc.join(pid.to_string()).join("stat")).ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        // Fields 4 and 22, of which those before the bracket are 1 and 2.
        Some(Stat { parent: fields.get(1)?.parse().ok()?, began: fields.get(19)?.parse().ok()? })
    }
}

struct Stat {
    parent: u32,
    began: u64,
}

fn several(of: &Owner, count: usize, first: String, second: String) -> OwnerError {
    OwnerError::Several { of: of.clone(), count, first, second }
}

fn read(path: &Path) -> impl Fn(io::Error) -> OwnerError {
    let path = path.to_path_buf();
    move |source| OwnerError::Read { path: path.clone(), source }
}

/// Where the whole of cgroup2 is mounted, by a line of mountinfo (proc_pid_mountinfo(5)): number, parent, device, root, place, options,
/// optional fields, a hyphen, the kind.
fn cgroup_mount(line: &str) -> Option<PathBuf> {
    let (mount, what) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    // A blank in a place is written as \040: nobody's cgroups lie there.
    let whole = what.split(' ').next() == Some("cgroup2") && root == "/" && !place.contains('\\');
    whole.then(|| PathBuf::from(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 900;

    /// A host whose first process is 1, with this agent, and its own sshd.
    struct Host {
        folder: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let mut host = Self { folder: tempfile::tempdir().unwrap() };
            host.runs("init.scope", 1, "systemd", 0, 0);
            host.runs("system.slice/troop-agent.service", ME, "troop-agent", 1, 50);
            host.runs("system.slice/ssh.service", 20, "sshd", 1, 30);
            host.runs("system.slice/web.service", 100, "web", 1, 60);
            host.runs("system.slice/web.service/worker", 101, "web", 100, 61);
            host
        }

        fn runs(&mut self, cgroup: &str, pid: u32, name: &str, parent: u32, began: u64) {
            let folder = self.folder.path().join("cgroup").join(cgroup);
            std::fs::create_dir_all(&folder).unwrap();
            let list = folder.join("cgroup.procs");
            let before = std::fs::read_to_string(&list).unwrap_or_default();
            std::fs::write(list, format!("{before}{pid}\n")).unwrap();
            let process = self.folder.path().join("proc").join(pid.to_string());
            std::fs::create_dir_all(&process).unwrap();
            let zeros = ["0"; 17].join(" ");
            std::fs::write(process.join("stat"), format!("{pid} ({name}) S {parent} {zeros} {began} 0\n")).unwrap();
            std::fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            std::fs::write(process.join("cgroup"), format!("4:memory:/\n0::/{cgroup}\n")).unwrap();
        }

        fn seeing(&self) -> Seeing {
            let of = |name| self.folder.path().join(name);
            Seeing { cgroups: of("cgroup"), proc: of("proc"), me: ME }
        }

        fn find(&self, of: &str) -> Result<Found, OwnerError> {
            self.seeing().find(&of.parse().unwrap())
        }

        fn number(&self, cgroup: &str) -> u64 {
            std::fs::metadata(self.folder.path().join("cgroup").join(cgroup)).unwrap().ino()
        }
    }

    #[test]
    fn a_unit_a_path_and_a_process_lead_to_the_same_cgroup() {
        let host = Host::new();
        let expected = Cgroup { level: 2, id: host.number("system.slice/web.service") };
        for of in ["unit:web.service", "cgroup:system.slice/web.service", "process:100", "process:web"] {
            assert_eq!(host.find(of).unwrap().cgroup, expected, "{of}");
        }
        let found = host.find("unit:web.service").unwrap();
        let mut within = host.seeing().within(&found).unwrap();
        within.sort_unstable();
        let mut both = ["system.slice/web.service", "system.slice/web.service/worker"].map(|path| host.number(path));
        both.sort_unstable();
        assert_eq!(within, both);
    }

    #[test]
    fn the_agent_the_first_process_ssh_and_everything_are_off_limits() {
        let mut host = Host::new();
        host.runs("user.slice/user-0.slice/session-1.scope", 30, "sshd-session", 20, 70);
        host.runs("far.slice/box.service", 0, "", 0, 0);
        host.runs("far.slice/hidden.service", 500, "sshd", 1, 0);
        for hidden in ["0", "500"] {
            std::fs::remove_dir_all(host.folder.path().join("proc").join(hidden)).unwrap();
        }
        let rows = [
            ("unit:troop-agent.service", "holds the agent itself"),
            ("unit:system.slice", "holds the agent itself"),
            ("unit:ssh.service", "holds an sshd"),
            ("unit:user.slice", "holds an sshd"),
            ("unit:init.scope", "holds the host's first process"),
            ("cgroup:init.scope", "holds the host's first process"),
            ("unit:box.service", "holds processes that this agent cannot see"),
            ("unit:hidden.service", "holds processes that this agent cannot see"),
            ("unit:nobody.service", "is not on this host"),
            ("process:4000", "is not on this host"),
        ];
        for (of, expected) in rows {
            let said = host.find(of).unwrap_err().to_string();
            assert!(said.contains(expected), "{of}: {said}");
        }
    }

    #[test]
    fn a_process_that_shares_its_cgroup_cannot_be_told_from_others() {
        let mut host = Host::new();
        host.runs("system.slice/web.service", 102, "logger", 1, 62);
        assert!(matches!(host.find("process:100"), Err(OwnerError::Shared { other: 102, .. })));
        host.find("unit:web.service").unwrap();
        // Its child's cgroup is the child's alone.
        assert_eq!(host.find("process:101").unwrap().cgroup.level, 3);
    }

    #[test]
    fn a_name_of_two_processes_or_two_units_is_of_none() {
        let mut host = Host::new();
        host.runs("system.slice/other.service", 200, "web", 1, 80);
        host.runs("system.slice/a.slice/web.service", 201, "x", 1, 81);
        for of in ["process:web", "unit:web.service"] {
            assert!(matches!(host.find(of), Err(OwnerError::Several { count: 2, .. })), "{of}");
        }
    }

    #[test]
    fn a_number_that_was_given_again_is_another_process() {
        let mut host = Host::new();
        let found = host.find("process:web").unwrap();
        host.seeing().is_still(&found).unwrap();
        host.runs("system.slice/web.service", 100, "web", 1, 99);
        assert!(matches!(host.seeing().is_still(&found), Err(OwnerError::Other { .. })));
    }

    #[test]
    fn a_unit_that_was_started_again_has_another_cgroup() {
        let mut host = Host::new();
        let found = host.find("unit:web.service").unwrap();
        let path = host.folder.path().join("cgroup/system.slice");
        std::fs::rename(path.join("web.service"), host.folder.path().join("old")).unwrap();
        host.runs("system.slice/web.service", 300, "web", 1, 90);
        assert!(matches!(host.seeing().is_still(&found), Err(OwnerError::Other { .. })));
    }

    #[test]
    fn a_part_of_the_cgroups_is_not_all_of_them() {
        let mount = |text| cgroup_mount(text).map(|path| path.display().to_string());
        let whole = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(mount(whole).as_deref(), Some("/sys/fs/cgroup"));
        assert_eq!(mount("30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw"), None);
        assert_eq!(mount("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"), None);
    }
}
