//! Instances in namespaces of their own: the [`Runtime`] of the cloud process.
//!
//! An instance comes about in three processes. The cloud process starts a maker (`internal instance`), which unshares;
//! the cloud process puts a link into the new network; the maker configures it and starts the instance's first process
//! (`internal instance-init`) as the first of a new pid namespace. The maker ends, and the first process is adopted by
//! the cloud process, as every orphan of the sandbox is: so the one who may end it is also the one who reaps it, and
//! its number cannot be another's meanwhile.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
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
use troop_policies::InstanceId;

use super::agents::Agents;
use super::instance::InstanceSpec;
use super::runtime::{EndBy, Exit, Launch, Runtime};
use super::steps::{Report, Step as _, StepFailed, complain, in_words};
use super::{INTERNAL, mounts, netlink};

/// How long an instance's set-up may take, without its boot. It takes some tens of milliseconds; with two cores shared
/// by a build and thirty launches at once, a second or two.
pub(super) const LAUNCH_MAX: Duration = Duration::from_secs(10);

/// How long after its end an agent is started again: one that cannot run must not keep the machine busy.
const AGENT_AGAIN: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Into the sandbox's own network.
    net: rtnetlink::Handle,
    state_dir: PathBuf,
    exits: UnboundedSender<Exit>,
    /// `None`: instances have none.
    agents: Option<Agents>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next_link: u64,
    links: BTreeMap<InstanceId, String>,
    /// Instances whose first process has not been reaped, by that process.
    running: BTreeMap<i32, Running>,
    /// Agents that have not been reaped, by their process: each with its instance and that one's first process.
    agents: BTreeMap<i32, (InstanceId, i32)>,
}

#[derive(Debug)]
struct Running {
    instance: InstanceId,
    /// Whether its launch was answered with `Ok`, so that its end is an [`Exit`].
    launched: bool,
}

impl Namespaces {
    pub(crate) fn new(
        net: rtnetlink::Handle,
        state_dir: PathBuf,
        exits: UnboundedSender<Exit>,
        agents: Option<Agents>,
    ) -> Self {
        Self { net, state_dir, exits, agents, table: Mutex::default() }
    }

    /// Reaps every child and orphan of the sandbox, for ever. To be spawned once, before anything is launched.
    pub(crate) async fn reap(self: Arc<Self>) {
        let mut ended = match signal(SignalKind::child()).step("watch for SIGCHLD") {
            Ok(ended) => ended,
            Err(failed) => return complain("cloud", &failed),
        };
        loop {
            for (instance, first) in self.reap_now() {
                let this = Arc::clone(&self);
                tokio::spawn(async move {
                    tokio::time::sleep(AGENT_AGAIN).await;
                    this.start_agent(&instance, first);
                });
            }
            if ended.recv().await.is_none() {
                return;
            }
        }
    }

    /// Starts the agent of an instance, if it still runs. One that cannot be started is tried again by its end, or by nobody: an instance
    /// without an agent is only one that the latency monkey spares.
    fn start_agent(&self, instance: &InstanceId, first: i32) {
        let Some(agents) = &self.agents else { return };
        // Under the lock, so that its end cannot be reaped before it is known, nor its instance's.
        let mut table = self.table();
        if table.running.get(&first).is_none_or(|running| running.instance != *instance) {
            return;
        }
        match agents.start(instance, first) {
            Ok(pid) => drop(table.agents.insert(pid.as_raw(), (instance.clone(), first))),
            Err(failed) => complain("cloud", &failed),
        }
    }

    /// Reaps all that ended. Returns the instances whose agents ended, with their first processes.
    fn reap_now(&self) -> Vec<(InstanceId, i32)> {
        let mut lost = Vec::new();
        loop {
            // Under the lock, so that nobody signals a number between its reaping and its removal.
            let mut table = self.table();
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, in_words(u8::try_from(code).unwrap_or(1))),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {}", signal as i32)),
                Err(Errno::EINTR) => continue,
                // Stops and continuations are not asked for; nothing else is a process's end.
                Ok(_) | Err(_) => return lost,
            };
            lost.extend(table.agents.remove(&pid.as_raw()));
            let agents: Vec<i32> =
                table.agents.iter().filter(|(_, (_, first))| *first == pid.as_raw()).map(|(agent, _)| *agent).collect();
            for agent in agents {
                // Its instance is gone, and the network goes with it.
                let _gone = kill(Pid::from_raw(agent), Signal::SIGKILL);
            }
            if let Some(gone) = table.running.remove(&pid.as_raw())
                && gone.launched
            {
                // Without a listener the cloud process is ending, and the instance with it.
                drop(self.exits.send(Exit { instance: gone.instance, status }));
            }
        }
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

    async fn bring_up(&self, launch: &Launch, making: &mut Making<'_>) -> Result<u32, StepFailed> {
        let spec = InstanceSpec {
            instance: launch.instance.clone(),
            zone: launch.zone,
            address: launch.address,
            root: mounts::instance_root(&self.state_dir),
            image_root: launch.image_root.clone(),
            command: launch.command.clone(),
            env: launch.env.clone(),
            boot_delay: launch.boot_delay,
            log: launch.log.clone(),
        };
        let text = serde_json::to_string(&spec).map_err(std::io::Error::from).step("write the instance's spec")?;
        let mut maker = Command::new(mounts::kept_exe(&self.state_dir))
            .arg0("troop")
            .args([INTERNAL, "instance", &text])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .step("start an instance's maker")?;
        let maker_pid = maker.id();
        let mut go = maker.stdin.take().ok_or_else(|| odd("the maker has no standard input"))?;
        let reports = maker.stdout.take().ok_or_else(|| odd("the maker has no standard output"))?;
        let reports = pipe::Receiver::from_owned_fd(reports.into()).step("read the maker's reports")?;
        let mut reports = BufReader::new(reports).lines();

        let Report::Made = next(&mut reports).await? else { return Err(odd("the maker made nothing")) };
        let netns = File::open(format!("/proc/{maker_pid}/ns/net")).step("open the instance's network")?;
        let link = self.new_link(&launch.instance);
        netlink::make_pair(&self.net, &link, launch.zone, netns).await?;
        go_on(&mut go)?;

        let Report::Init { pid } = next(&mut reports).await? else { return Err(odd("no first process was started")) };
        let running = Running { instance: launch.instance.clone(), launched: false };
        self.table().running.insert(pid, running);
        making.pid = Some(pid);
        go_on(&mut go)?;

        let Report::Ready = next(&mut reports).await? else { return Err(odd("its first process is not ready")) };
        match self.table().running.get_mut(&pid) {
            Some(running) => running.launched = true,
            None => return Err(odd("its first process died at once")),
        }
        making.pid = None;
        self.start_agent(&launch.instance, pid);
        u32::try_from(pid).map_err(|_| odd("its first process has no number"))
    }

    /// Short names, never used twice while the sandbox lives: the kernel allows 15 characters.
    fn new_link(&self, instance: &InstanceId) -> String {
        let mut table = self.table();
        table.next_link += 1;
        let link = format!("i{}", table.next_link);
        table.links.insert(instance.clone(), link.clone());
        link
    }
}

/// A launch under way: whatever ends it early, the instance's first process does not stay.
struct Making<'a> {
    of: &'a Namespaces,
    pid: Option<i32>,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let table = self.of.table();
        if let Some(pid) = self.pid.filter(|pid| table.running.contains_key(pid)) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[async_trait]
impl Runtime for Namespaces {
    async fn launch(&self, launch: Launch) -> Result<u32, StepFailed> {
        let mut making = Making { of: self, pid: None };
        let launched = tokio::time::timeout(LAUNCH_MAX, self.bring_up(&launch, &mut making)).await;
        // The maker and the first process see their standard input end, and end; what had begun is killed.
        drop(making);
        let launched = launched.unwrap_or_else(|_| Err(odd("it was not set up within 10 s")));
        if launched.is_err() {
            self.clean(&launch.instance).await;
        }
        launched
    }

    fn end(&self, instance: &InstanceId, by: EndBy) {
        self.signal(instance, by.signal());
    }

    async fn clean(&self, instance: &InstanceId) {
        if let Some(agents) = &self.agents {
            agents.clean(instance);
        }
        let link = self.table().links.remove(instance);
        if let Some(link) = link
            && let Err(failed) = netlink::remove(&self.net, &link).await
        {
            tracing::warn!(%instance, link, ?failed, "could not remove an instance's link");
        }
    }
}

pub(super) async fn next(reports: &mut Lines<BufReader<pipe::Receiver>>) -> Result<Report, StepFailed> {
    let Some(line) = reports.next_line().await.step("read a report")? else {
        return Err(odd("its helper ended without a word"));
    };
    match serde_json::from_str(&line) {
        Ok(Report::Failed(failed)) => Err(failed),
        Ok(report) => Ok(report),
        Err(e) => Err(odd(&format!("its helper's report cannot be read: {e}"))),
    }
}

fn go_on(go: &mut ChildStdin) -> Result<(), StepFailed> {
    go.write_all(b"g").step("tell the instance to go on")
}

pub(super) fn odd(why: &str) -> StepFailed {
    StepFailed { step: "launch an instance".into(), errno: 0, detail: why.to_owned() }
}
