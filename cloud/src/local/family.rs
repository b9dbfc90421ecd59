//! Which processes hang below this one, and which of them were written down in case that nobody lives to end them.
//!
//! Without namespaces the kernel ends nothing by itself but what asked to die with its parent. What was forked from
//! that, and is nobody's child any more, is adopted by the nearest ancestor that is a subreaper, and found here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Raised when a later build could not read what this one writes.
const SCHEMA: u32 = 1;
/// How long a process may take to be gone after SIGKILL, before the start goes on without having seen it.
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// A process that lives (proc_pid_stat(5)); one that is dead and not reaped yet holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    parent: i32,
    /// In the kernel's ticks since it started.
    began: u64,
}

fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold blanks and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let is_dead = matches!(*fields.first()?, "Z" | "X");
    let process = Process { parent: fields.get(1)?.parse().ok()?, began: fields.get(19)?.parse().ok()? };
    (!is_dead).then_some(process)
}

fn processes() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    numbers.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

/// Everything below this process, at one moment or nearly so.
#[derive(Debug)]
pub(crate) struct Family {
    below: BTreeMap<i32, Process>,
    own: i32,
}

impl Family {
    pub(crate) fn now() -> Self {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let all = processes();
        let mut below = BTreeMap::new();
        let mut parents = vec![own];
        while let Some(parent) = parents.pop() {
            let children = all.iter().filter(|(pid, process)| process.parent == parent && !below.contains_key(*pid));
            let children: Vec<(i32, Process)> = children.map(|(pid, process)| (*pid, *process)).collect();
            parents.extend(children.iter().map(|(pid, _)| *pid));
            below.extend(children);
        }
        Self { below, own }
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = i32> + '_ {
        self.below.iter().filter(|(_, process)| process.parent == self.own).map(|(pid, _)| *pid)
    }

    pub(crate) fn record(&self) -> io::Result<Record> {
        let (boot, pid_namespace) = here()?;
        let processes = self.below.iter().map(|(pid, process)| Entry { pid: *pid, began: process.began }).collect();
        Ok(Record { schema: SCHEMA, boot, pid_namespace, processes })
    }
}

/// Processes that a later start may have to end, in STATE/cloud/processes.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    /// The kernel's id of this boot: after another one no number means anything.
    boot: String,
    /// A STATE may be carried from one container to the next, where the numbers are others'.
    pid_namespace: PathBuf,
    processes: BTreeSet<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Entry {
    pid: i32,
    began: u64,
}

fn here() -> io::Result<(String, PathBuf)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok((boot.trim().to_owned(), fs::read_link("/proc/self/ns/pid")?))
}

fn record_file(state_dir: &Path) -> PathBuf {
    state_dir.join("cloud").join("processes.json")
}

impl Record {
    /// Writes it whole or not at all. It need not survive the machine: with that its processes are gone as well.
    pub(crate) fn store(&self, state_dir: &Path) -> io::Result<()> {
        let path = record_file(state_dir);
        let unready = path.with_extension("json~");
        fs::write(&unready, serde_json::to_vec_pretty(self)?)?;
        fs::rename(unready, path)
    }
}

/// Ends what an earlier start on this STATE left running, and says how many processes that were. Only those whose boot,
/// number and time of start are the recorded ones; whatever cannot be compared is let live.
pub(crate) fn end_recorded(state_dir: &Path) -> usize {
    let path = record_file(state_dir);
    let Ok(text) = read_own(&path) else { return 0 };
    let record = match serde_json::from_slice::<Record>(&text) {
        Ok(record) if record.schema == SCHEMA => record,
        Ok(_) | Err(_) => {
            tracing::warn!(path = %path.display(), "this list of processes cannot be read, so none of them is ended");
            return 0;
        }
    };
    let same_place = here().is_ok_and(|(boot, space)| (boot, space) == (record.boot, record.pid_namespace));
    let ended = if same_place { record.processes.iter().filter(|entry| end(entry)).count() } else { 0 };
    let _gone = fs::remove_file(&path);
    ended
}

/// Reads a file that this user wrote: nobody else may say which of this user's processes are ended.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let mut file = fs::OpenOptions::new().read(true).custom_flags(no_link).open(path)?;
    if file.metadata()?.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// Ends one process, if it is the one that was written down.
fn end(entry: &Entry) -> bool {
    let Some(pid) = Pid::from_raw(entry.pid) else { return false };
    // First the handle, then the comparison: what the handle means cannot become another process any more.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    if process(entry.pid).is_none_or(|process| process.began != entry.began) {
        return false;
    }
    if let Err(error) = pidfd_send_signal(&handle, Signal::KILL) {
        tracing::warn!(pid = entry.pid, %error, "a process of an earlier start could not be ended");
        return false;
    }
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: GONE_WITHIN.as_secs().cast_signed(), tv_nsec: 0 };
    let _or_not = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cloud")).unwrap();
        dir
    }

    fn record_of(child: &Child) -> Record {
        let pid = i32::try_from(child.id()).unwrap();
        let (boot, pid_namespace) = here().unwrap();
        let began = process(pid).unwrap().began;
        Record { schema: SCHEMA, boot, pid_namespace, processes: [Entry { pid, began }].into() }
    }

    #[test]
    fn a_recorded_process_is_ended_once_and_only_the_recorded_one() {
        let state = state();
        let (mut ours, mut another) = (sleeper(), sleeper());
        record_of(&ours).store(state.path()).unwrap();
        assert_eq!(end_recorded(state.path()), 1);
        assert_eq!(ours.wait().unwrap().code(), None);
        assert!(another.try_wait().unwrap().is_none());
        assert_eq!(end_recorded(state.path()), 0);
        another.kill().unwrap();
        another.wait().unwrap();
    }

    #[test]
    fn a_number_of_another_boot_of_another_time_or_of_another_container_is_let_live() {
        let state = state();
        let mut child = sleeper();
        let right = record_of(&child);
        let began = right.processes.first().unwrap().clone();
        let later = Entry { began: began.began + 1, ..began };
        for wrong in [
            Record { boot: "another".into(), ..right.clone() },
            Record { pid_namespace: "pid:[1]".into(), ..right.clone() },
            Record { processes: [later].into(), ..right.clone() },
            Record { schema: SCHEMA + 1, ..right },
        ] {
            wrong.store(state.path()).unwrap();
            assert_eq!(end_recorded(state.path()), 0, "{wrong:?}");
            assert!(child.try_wait().unwrap().is_none(), "{wrong:?}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_list_that_cannot_be_read_ends_nobody_and_none_is_no_error() {
        let state = state();
        assert_eq!(end_recorded(state.path()), 0);
        fs::write(record_file(state.path()), "{").unwrap();
        assert_eq!(end_recorded(state.path()), 0);
    }

    #[test]
    fn a_child_is_in_the_family_and_a_dead_one_is_not() {
        let mut child = sleeper();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(Family::now().children().any(|child| child == pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!Family::now().children().any(|child| child == pid));
    }
}
