//! Processes as the kernel lists them, told apart from later ones with the same number by the time of their start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The spaces that a sandbox, or an instance in it, may have of its own.
const SPACES: [&str; 6] = ["ipc", "mnt", "net", "pid", "user", "uts"];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    /// In clock ticks since the machine's start.
    pub(crate) start: u64,
    pub(crate) args: Vec<String>,
}

fn folder(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// A process that lives: neither gone nor a zombie that only waits for its parent.
pub(crate) fn find(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(folder(pid).join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    let args = std::fs::read(folder(pid).join("cmdline")).unwrap_or_default();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        args: args.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
    })
}

pub(crate) fn all() -> Vec<Process> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| find(entry.file_name().to_string_lossy().parse().ok()?)).collect()
}

impl Process {
    pub(crate) fn lives(&self) -> bool {
        find(self.pid).is_some_and(|now| now.start == self.start)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // One that died by another's end meanwhile is no error.
        let _gone = self.lives().then(|| kill(Pid::from_raw(self.pid), signal));
    }
}

/// A process and everything that descends from it.
pub(crate) fn tree(root: i32) -> BTreeSet<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for process in all() {
        if process.pid == root {
            found.insert(process.clone());
        }
        children.entry(process.parent).or_default().push(process);
    }
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            next.push(child.pid);
            found.insert(child);
        }
    }
    found
}

fn spaces_of(pid: i32) -> BTreeSet<String> {
    let link = |space: &&str| std::fs::read_link(folder(pid).join("ns").join(space)).ok();
    SPACES.iter().filter_map(link).map(|space| space.display().to_string()).collect()
}

/// The namespaces that these have and this test has not.
pub(crate) fn own_spaces<'a>(processes: impl IntoIterator<Item = &'a Process>) -> BTreeSet<String> {
    let ours = spaces_of(i32::try_from(std::process::id()).unwrap());
    processes.into_iter().flat_map(|process| spaces_of(process.pid)).filter(|space| !ours.contains(space)).collect()
}

/// Everything below a `troop up` that this test has started and that lives.
fn of_living_runs() -> BTreeSet<Process> {
    let own = i32::try_from(std::process::id()).unwrap();
    let is_up = |process: &Process| process.args.get(1).is_some_and(|arg| arg == "up");
    tree(own).into_iter().filter(is_up).flat_map(|up| tree(up.pid)).collect()
}

/// Who still holds one of these namespaces, and began before `until`. The kernel gives their numbers to later ones: those
/// of other runs, whose processes may have begun before and entered them since.
pub(crate) fn holders(spaces: &BTreeSet<String>, until: u64) -> Vec<String> {
    let mut held = Vec::new();
    let others = of_living_runs();
    for process in all().into_iter().filter(|process| process.start < until && !others.contains(process)) {
        let of_theirs: Vec<String> =
            spaces_of(process.pid).into_iter().filter(|space| spaces.contains(space)).collect();
        if !of_theirs.is_empty() {
            held.push(format!("process {} ({}) is in {of_theirs:?}", process.pid, process.args.join(" ")));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let kept = mounts.lines().filter(|line| spaces.iter().any(|space| line.contains(space)));
    held.extend(kept.map(|line| format!("a mount keeps a namespace: {line}")));
    held
}

/// Now, in the unit of [`Process::start`].
pub(crate) fn ticks() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    // The kernel shows 100 a second on every architecture.
    std::time::Duration::from_secs_f64(seconds * 100.0).as_secs()
}
