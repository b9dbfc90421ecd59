//! Instances as plain processes on the loopback: the [`Runtime`] of the cloud process where namespaces are refused.
//!
//! The cloud process has no children but its instances' keepers. Any other is one that an instance forked and whose
//! keeper is gone, so it is killed at sight; and the end of an instance is told only once nothing of it is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use troop_policies::InstanceId;

use super::INTERNAL;
use super::family::{Family, Record};
use super::keeper::KeeperSpec;
use super::namespaces::{LAUNCH_MAX, next, odd};
use super::runtime::{EndBy, Exit, Launch, Runtime};
use super::steps::{Report, Step as _, StepFailed, complain, in_words, own_exe};

/// The lowest port of an image: on the loopback of a machine those below are root's, as ports of the machine.
pub(crate) const PORT_MIN: u16 = 1024;

/// How often what hangs below is written down, so that a later start could end it: what was forked off since the last
/// time is all that could stay if everything of Troop were killed at once.
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked again for what has not died yet.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long an instance's address may be taken still: by one of a start before this one, which is dying.
const TAKEN_MAX: Duration = Duration::from_secs(1);
/// How long an end is held back for what has not died yet. It was sent SIGKILL, so it hangs in the kernel.
const HELD_MAX: Duration = Duration::from_secs(1);

/// Why an image is not for this isolation.
pub(crate) fn port_too_low(image: &str, port: u16) -> String {
    format!(
        "the image `{image}` listens on port {port}, and under the isolation `processes` ports below {PORT_MIN} are not \
         for instances: give it a port of {PORT_MIN} or above in its manifest, or start with `--isolation namespaces`"
    )
}

/// The folder on an instance's PATH that holds this executable as `troop`.
fn bin(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("processes").join("bin")
}

/// This executable, at a path that a rebuild does not touch.
pub(crate) fn kept_exe(state_dir: &Path) -> PathBuf {
    bin(state_dir).join("troop")
}

/// Folders of instances that are gone.
fn scratch(state_dir: &Path) -> PathBuf {
    state_dir.join("cloud").join("tmp")
}

/// Makes the folders that instances need, without what an earlier start left in them.
pub(crate) fn make_scene(state_dir: &Path) -> Result<(), StepFailed> {
    remove(&scratch(state_dir)).step("empty STATE/cloud/tmp")?;
    fs::create_dir_all(scratch(state_dir)).step("make STATE/cloud/tmp")?;
    fs::create_dir_all(bin(state_dir)).step("make STATE/run/processes")?;
    keep_exe(&kept_exe(state_dir)).step("keep the executable")
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn keep_exe(to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let exe = own_exe();
    if fs::hard_link(&exe, to).is_ok() {
        return Ok(());
    }
    fs::copy("/proc/self/exe", to)?;
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    // Nothing may be executed where STATE is; better one that a rebuild replaces than none.
    if rustix::fs::access(to, rustix::fs::Access::EXEC_OK).is_err() {
        fs::remove_file(to)?;
        symlink(exe, to)?;
    }
    Ok(())
}

/// Gives every folder below `root`, and itself, this mode. Files have theirs from the import.
fn set_folders(root: &Path, mode: u32) -> io::Result<()> {
    // Writable first: what is below cannot be looked up otherwise by someone who is not root.
    fs::set_permissions(root, Permissions::from_mode(mode | 0o500))?;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            set_folders(&entry.path(), mode)?;
        }
    }
    Ok(())
}

/// Lets the folders of images be removed again by their owner.
pub(crate) fn unseal_images(state_dir: &Path) {
    for image in fs::read_dir(state_dir.join("cloud").join("images")).into_iter().flatten().flatten() {
        // Another user's stay as they are, and are not ours to remove.
        if image.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _or_not = set_folders(&image.path(), 0o755);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Processes {
    state_dir: PathBuf,
    exits: UnboundedSender<Exit>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Instances whose keeper has not been reaped, by that process.
    running: BTreeMap<i32, Running>,
    /// Ends that are not told yet, and since when.
    held: Vec<(Exit, Instant)>,
    recorded: Option<Record>,
    /// Images whose folders are read-only.
    sealed: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Running {
    instance: InstanceId,
    /// Whether its launch was answered with `Ok`, so that its end is an [`Exit`].
    launched: bool,
}

impl Processes {
    pub(crate) fn new(state_dir: PathBuf, exits: UnboundedSender<Exit>) -> Self {
        Self { state_dir, exits, table: Mutex::default() }
    }

    /// Reaps, ends what is orphaned and writes down what there is, for ever. To be spawned once, before anything is
    /// launched.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut ended = match signal(SignalKind::child()).step("watch for SIGCHLD") {
            Ok(ended) => ended,
            Err(failed) => return complain("cloud", &failed),
        };
        loop {
            let pause = if self.look() { RECORD_EVERY } else { LOOK_EVERY };
            tokio::select! {
                told = ended.recv() => if told.is_none() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Returns whether everything that has ended is gone.
    fn look(&self) -> bool {
        // Under the lock, so that nobody signals a number between its reaping and its removal.
        let mut table = self.table();
        table.reap();
        let family = Family::now();
        let orphans: Vec<i32> = family.children().filter(|pid| !table.running.contains_key(pid)).collect();
        for orphan in &orphans {
            let _gone = kill(Pid::from_raw(*orphan), Signal::SIGKILL);
        }
        let all_gone = orphans.is_empty();
        let held = std::mem::take(&mut table.held);
        for (exit, since) in held {
            if all_gone || since.elapsed() > HELD_MAX {
                // Without a listener the cloud process is ending, and the instance with it.
                drop(self.exits.send(exit));
            } else {
                table.held.push((exit, since));
            }
        }
        match family.record() {
            Ok(record) if table.recorded.as_ref() == Some(&record) => {}
            Ok(record) => match record.store(&self.state_dir) {
                Ok(()) => table.recorded = Some(record),
                Err(error) => tracing::warn!(%error, "the list of instances' processes could not be written"),
            },
            Err(error) => tracing::warn!(%error, "instances' processes could not be listed"),
        }
        all_gone
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is one statement; a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, instance: &InstanceId, signal: Signal) {
        let table = self.table();
        for (pid, _) in table.running.iter().filter(|(_, running)| running.instance == *instance) {
            let _gone = kill(Pid::from_raw(*pid), signal);
        }
    }

    fn tmp(&self, instance: &InstanceId) -> PathBuf {
        scratch(&self.state_dir).join(instance.as_str())
    }

    /// What would keep the command from listening, said before it is started.
    async fn look_at_port(launch: &Launch) -> Result<(), StepFailed> {
        let Some(port) = launch.env.get("PORT").and_then(|port| port.parse().ok()) else { return Ok(()) };
        if port < PORT_MIN {
            let image = launch.env.get("TROOP_IMAGE").map_or("?", String::as_str);
            return Err(odd(&port_too_low(image, port)));
        }
        let began = Instant::now();
        loop {
            match TcpListener::bind((launch.address, port)) {
                Ok(_free) => return Ok(()),
                Err(error) if began.elapsed() > TAKEN_MAX => {
                    let (address, errno) = (launch.address, error.raw_os_error().unwrap_or(0));
                    let detail =
                        format!("{error}; whatever listens on port {port} of every address has that of this one too");
                    return Err(StepFailed { step: format!("take {address}:{port}"), errno, detail });
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    fn seal(&self, image_root: &Path) {
        if self.table().sealed.insert(image_root.to_owned())
            && let Err(error) = set_folders(image_root, 0o555)
        {
            tracing::warn!(path = %image_root.display(), %error, "an image's folders are not read-only");
        }
    }

    /// Starts the keeper and has it in the table before anything else looks at this process's children.
    fn start_keeper(&self, launch: &Launch) -> Result<(i32, Lines<BufReader<pipe::Receiver>>), StepFailed> {
        let spec = KeeperSpec {
            parent: std::process::id(),
            image_root: launch.image_root.clone(),
            command: launch.command.clone(),
            env: launch.env.clone(),
            boot_delay: launch.boot_delay,
            log: launch.log.clone(),
            tmp: self.tmp(&launch.instance),
            bin: bin(&self.state_dir),
        };
        let text = serde_json::to_string(&spec).map_err(io::Error::from).step("write the instance's spec")?;
        let mut table = self.table();
        let mut keeper = Command::new(kept_exe(&self.state_dir))
            .arg0("troop")
            .args([INTERNAL, "keeper", &text])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .step("start an instance's keeper")?;
        let pid = i32::try_from(keeper.id()).unwrap_or(0);
        table.running.insert(pid, Running { instance: launch.instance.clone(), launched: false });
        drop(table);
        let reports = keeper.stdout.take().ok_or_else(|| odd("the keeper has no standard output"))?;
        let reports = pipe::Receiver::from_owned_fd(reports.into()).step("read the keeper's reports")?;
        Ok((pid, BufReader::new(reports).lines()))
    }

    async fn bring_up(&self, launch: &Launch) -> Result<u32, StepFailed> {
        Self::look_at_port(launch).await?;
        self.seal(&launch.image_root);
        let (pid, mut reports) = self.start_keeper(launch)?;
        let Report::Ready = next(&mut reports).await? else { return Err(odd("its keeper is not ready")) };
        match self.table().running.get_mut(&pid) {
            Some(running) => running.launched = true,
            None => return Err(odd("its keeper died at once")),
        }
        u32::try_from(pid).map_err(|_| odd("its keeper has no number"))
    }
}

impl Table {
    fn reap(&mut self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, in_words(u8::try_from(code).unwrap_or(1))),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {}", signal as i32)),
                Err(Errno::EINTR) => continue,
                // Stops and continuations are not asked for; nothing else is a process's end.
                Ok(_) | Err(_) => return,
            };
            if let Some(gone) = self.running.remove(&pid.as_raw())
                && gone.launched
            {
                self.held.push((Exit { instance: gone.instance, status }, Instant::now()));
            }
        }
    }
}

#[async_trait]
impl Runtime for Processes {
    async fn launch(&self, launch: Launch) -> Result<u32, StepFailed> {
        let launched = tokio::time::timeout(LAUNCH_MAX, self.bring_up(&launch)).await;
        let launched = launched.unwrap_or_else(|_| Err(odd("it was not set up within 10 s")));
        if launched.is_err() {
            self.end(&launch.instance, EndBy::Kill);
            self.clean(&launch.instance).await;
        }
        launched
    }

    /// SIGKILL to the keeper is the command's as well, which asked for that.
    fn end(&self, instance: &InstanceId, by: EndBy) {
        self.signal(instance, by.signal());
    }

    async fn clean(&self, instance: &InstanceId) {
        if let Err(error) = remove(&self.tmp(instance)) {
            tracing::warn!(%instance, %error, "could not remove an instance's folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_folders_are_sealed_and_unsealed_whole() {
        let state = tempfile::tempdir().unwrap();
        let root = state.path().join("cloud/images/ami-1/root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        set_folders(&root, 0o555).unwrap();
        assert_eq!((mode(&root), mode(&root.join("a")), mode(&root.join("a/b"))), (0o555, 0o555, 0o555));
        unseal_images(state.path());
        assert_eq!((mode(&root), mode(&root.join("a/b"))), (0o755, 0o755));
    }

    #[test]
    fn the_executable_is_kept_in_place_of_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("troop");
        for _ in 0..2 {
            keep_exe(&to).unwrap();
            assert_eq!(fs::metadata(&to).unwrap().len(), fs::metadata("/proc/self/exe").unwrap().len());
        }
    }
}
