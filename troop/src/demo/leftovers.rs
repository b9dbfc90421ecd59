//! The demo's folders, and what of ours is still there after the end: counted, not assumed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use troop_cloud::local::sandbox::release;

/// Folders of demos are named `troop-demo-` and six characters.
const PREFIX: &str = "troop-demo-";
/// In a folder that shall stay, so that the next demo does not take it for a dead one's.
const KEPT: &str = "kept";
/// What a process may have of its own.
const NAMESPACES: [&str; 6] = ["net", "pid", "mnt", "user", "uts", "ipc"];

/// The folder of one demo.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    /// Whether it was there before, so that only what is in it is ours.
    was_there: bool,
}

impl Folder {
    /// The folder that was asked for, if it is new or empty; else a new one, readable by nobody else.
    pub(super) fn new(asked: Option<&Path>) -> io::Result<Self> {
        let Some(path) = asked else {
            let path = tempfile::Builder::new().prefix(PREFIX).rand_bytes(6).tempdir()?.keep();
            return Ok(Self { path, was_there: false });
        };
        let path = std::path::absolute(path)?;
        let was_there = path.try_exists()?;
        if was_there && fs::read_dir(&path)?.next().is_some() {
            let why = format!("`{}` is not empty, and a demo removes its folder: name a new one", path.display());
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, why));
        }
        Ok(Self { path, was_there })
    }

    /// Marks it as one that stays.
    pub(super) fn keep(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        fs::write(self.path.join(KEPT), "")
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        release(&self.path);
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        if self.was_there { fs::create_dir(&self.path) } else { Ok(()) }
    }
}

/// Removes what demos that were killed left behind: folders whose lock nobody holds.
pub(super) fn sweep_dead_demos() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && entry.file_type().is_ok_and(|t| t.is_dir()) && is_dead(&entry.path()) {
            // An instance that outlived its demo is known by what lies in there alone.
            release(&entry.path());
            // Another user's folder stays; that is not ours to say anything about.
            let _removed = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_dead(folder: &Path) -> bool {
    if folder.join(KEPT).exists() {
        return false;
    }
    let Ok(file) = fs::File::open(folder.join("run/lock")) else { return false };
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok()
}

/// Everything that hangs below this process while the demo runs, to be looked for after its end.
#[derive(Debug, Default)]
pub(super) struct Family {
    /// By pid and time of start, so that a number that was given away is not taken for ours.
    processes: BTreeSet<(u32, u64)>,
    /// As /proc shows them; not the ones that this process is in.
    namespaces: BTreeSet<PathBuf>,
}

impl Family {
    pub(super) fn now() -> Self {
        let all = processes();
        let mut family = vec![std::process::id()];
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            family.extend(all.iter().filter(|(_, process)| process.parent == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        let children = family.iter().skip(1);
        Self {
            processes: children.clone().filter_map(|pid| all.get(pid).map(|process| (*pid, process.began))).collect(),
            namespaces: children.flat_map(|pid| namespaces(*pid)).filter(|space| !own().contains(space)).collect(),
        }
    }

    /// How much of it is there now: processes, namespaces that anybody is in, mounts below `folder`, and interfaces of
    /// the host that are named as the sandbox's are.
    pub(super) fn left(&self, folder: &Path) -> usize {
        let all = processes();
        let began = |(pid, began): &&(u32, u64)| all.get(pid).is_some_and(|process| process.began == *began);
        let alive = self.processes.iter().filter(began).count();
        let in_use: BTreeSet<PathBuf> = all.keys().flat_map(|pid| namespaces(*pid)).collect();
        let spaces = self.namespaces.intersection(&in_use).count();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = folder.display().to_string();
        let mounts = mounts.lines().filter(|line| line.contains(&below)).count();
        alive + spaces + mounts + interfaces()
    }
}

#[derive(Debug)]
struct Process {
    parent: u32,
    began: u64,
}

/// Living processes (proc_pid_stat(5)). Dead ones that nobody has reaped yet hold nothing.
fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in brackets may hold blanks and brackets.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let is_dead = matches!(*fields.first()?, "Z" | "X");
        let process = Process { parent: fields.get(1)?.parse().ok()?, began: fields.get(19)?.parse().ok()? };
        (!is_dead).then_some((pid, process))
    };
    entries.filter_map(read).collect()
}

fn namespaces(pid: u32) -> Vec<PathBuf> {
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
    NAMESPACES.iter().filter_map(|name| link(name)).collect()
}

fn own() -> Vec<PathBuf> {
    namespaces(std::process::id())
}

/// Interfaces of this network that are named as the sandbox's bridges and links: `zone0`, `i1`.
fn interfaces() -> usize {
    let is_ours = |name: &str| {
        let number = name.strip_prefix("zone").or_else(|| name.strip_prefix('i'));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.filter(|entry| is_ours(&entry.file_name().to_string_lossy())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_holds_something_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis"), "").unwrap();
        let refused = Folder::new(Some(dir.path())).unwrap_err();
        assert!(refused.to_string().contains("is not empty"), "{refused}");
        assert!(dir.path().join("thesis").exists());
    }

    #[test]
    fn a_folder_is_left_as_it_was_found() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("new"), dir.path().join("there")] {
            let was_there = path.ends_with("there");
            if was_there {
                fs::create_dir(&path).unwrap();
            }
            let folder = Folder::new(Some(&path)).unwrap();
            fs::create_dir_all(path.join("cloud")).unwrap();
            folder.remove().unwrap();
            assert_eq!((path.exists(), path.join("cloud").exists()), (was_there, false));
        }
    }

    #[test]
    fn a_dead_demo_is_one_whose_lock_is_free_and_that_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_dead(dir.path()), "it may be starting");
        fs::create_dir(dir.path().join("run")).unwrap();
        let lock = fs::File::create(dir.path().join("run/lock")).unwrap();
        let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
        assert!(!is_dead(dir.path()));
        drop(held);
        assert!(is_dead(dir.path()));
        Folder::new(Some(&dir.path().join("x"))).unwrap().keep().unwrap();
        fs::write(dir.path().join(KEPT), "").unwrap();
        assert!(!is_dead(dir.path()));
    }

    #[test]
    fn a_child_is_counted_while_it_lives() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let family = Family::now();
        let has = family.processes.iter().any(|(pid, _)| *pid == child.id());
        let mut only = Family::default();
        only.processes.extend(family.processes.iter().filter(|(pid, _)| *pid == child.id()).copied());
        let nowhere = Path::new("/nonexistent/demo");
        let others = Family::default().left(nowhere);
        let alive = only.left(nowhere);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has);
        assert_eq!((alive, only.left(nowhere)), (others + 1, others));
    }
}
