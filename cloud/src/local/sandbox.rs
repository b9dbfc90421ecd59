//! The sandbox as its supervisor sees it: start it, put roles into it, and do without one where this machine refuses it.
//!
//! Nothing here enters a namespace itself: the kernel refuses a user namespace to a process with threads. The given
//! executable is started again with hidden arguments ([`super::internal_main`] runs them), as a single-threaded helper:
//!
//! ```text
//! supervisor ── helper (unshares, waits) ── first process of the sandbox = the cloud process
//!           └── helper (joins, waits)    ── a role: balancer, registry, serve
//! ```
//!
//! Whoever of these dies takes what hangs below it along. The first process dies with its helper by
//! `PR_SET_PDEATHSIG`; the helper sees the end of a pipe when the supervisor dies (a death signal would also come when
//! the *thread* that started it ends, which a runtime's threads do); roles and instances die with the first process
//! because it is that of their pid namespace. So a kill -9 anywhere leaves nothing. Without namespaces the helpers are
//! those of `reaper`, which come as near to that as plain processes can.
//!
//! ```no_run
//! use std::os::fd::AsFd as _;
//! use std::time::Duration;
//! use troop_cloud::local::sandbox::{Isolation, SandboxSpec, start};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let web = std::net::TcpListener::bind("127.0.0.1:8080")?;
//! let mut sandbox = start(&SandboxSpec {
//!     exe: "/proc/self/exe".into(),
//!     state_dir: "/tmp/state".into(),
//!     isolation: Isolation::Auto,
//!     boot_delay: Duration::from_secs(1),
//!     grace: Duration::from_secs(30),
//!     registry_port: 8761,
//!     agents: false,
//! })?;
//! let mut entered = sandbox.enter(&["internal", "balancer"], &[("web", web.as_fd())])?;
//! let mut balancer = entered.command.spawn()?; // keep `entered.line`: the role sees its end when we are gone
//! drop(entered.command);
//! balancer.wait()?;
//! # Ok(())
//! # }
//! ```

use std::ffi::OsStr;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::network::{self, Claim, Network};
use super::reaper::PlainSpec;
pub use super::refusal::SandboxError;
use super::role::{HELPER_PID, send_fds};
use super::steps::{Report, own_exe};
use super::{family, mounts, processes};

/// How long the whole set-up may take. It takes some tens of milliseconds; a machine under a full build some seconds.
const START_MAX: Duration = Duration::from_secs(20);
/// How long a probe may take: a start without the cloud process.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// Longest path of a unix socket: `sun_path` is 108 bytes with its ending zero (unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;
/// The log of the sandbox's helpers and of its first process is begun anew beyond this size.
const LOG_MAX_BYTES: u64 = 8 << 20;

/// What plain processes do without.
const LEFT_OUT: &str =
    "instances have no network, files or process numbers of their own, so there are no network monkeys";

/// How instances are kept apart: `--isolation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Each instance in its own network, mount, pid and host name namespaces.
    Namespaces,
    /// Plain processes, each with its own address of the loopback, 127.x.y.z.
    Processes,
    /// Namespaces where the machine allows them, else plain processes.
    Auto,
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "namespaces" => Ok(Self::Namespaces),
            "processes" => Ok(Self::Processes),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is no isolation: give `namespaces`, `processes` or `auto`")),
        }
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "namespaces",
            Self::Processes => "processes",
            Self::Auto => "auto",
        })
    }
}

/// What a sandbox is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The executable that runs [`super::internal_main`]; `/proc/self/exe` in the binary itself.
    pub exe: PathBuf,
    /// STATE; made when it is missing.
    pub state_dir: PathBuf,
    pub isolation: Isolation,
    /// How long an instance boots before its command starts.
    pub boot_delay: Duration,
    /// How long a young instance may be unhealthy before it is replaced.
    pub grace: Duration,
    /// Where the registry will listen, at [`Sandbox::roles_address`].
    pub registry_port: u16,
    /// Whether each instance has an agent beside it. Only where there are namespaces, and `exe` knows [`super::agents::AGENT`].
    pub agents: bool,
}

/// A running sandbox, or what stands for one. Dropping it ends everything inside.
#[derive(Debug)]
pub struct Sandbox {
    /// As the spec has it, looked up at each use: a rebuild may take its path away.
    exe: PathBuf,
    state_dir: PathBuf,
    /// The cloud process, which is the sandbox's first one, as the supervisor's pid namespace numbers it.
    pub init_pid: u32,
    /// The isolation in force: never `Auto`.
    pub isolation: Isolation,
    /// What that leaves out, in one line, and why it is so.
    pub left_out: Option<String>,
    helper: Child,
    /// The helper ends everything when this is closed.
    alive: Option<ChildStdin>,
    /// The addresses of plain processes.
    claim: Option<Claim>,
}

/// A command that runs a role inside the sandbox.
#[derive(Debug)]
pub struct Entered {
    /// Add what else the role needs (environment, standard output), spawn it, then drop it.
    pub command: Command,
    /// The line to the role; keep it as long as the role should live.
    pub line: UnixStream,
}

/// Starts a sandbox and returns when the cloud process inside listens on STATE/run/cloud.sock. Blocks; from async code
/// call it on a blocking thread (the thread may end, the sandbox does not mind). What an earlier start on this STATE has
/// left running is ended first.
///
/// # Errors
/// [`SandboxError`]; nothing is left running then.
pub fn start(spec: &SandboxSpec) -> Result<Sandbox, SandboxError> {
    let state = |source| SandboxError::State { path: spec.state_dir.clone(), source };
    for part in ["cloud", "run", "logs"] {
        std::fs::create_dir_all(spec.state_dir.join(part)).map_err(state)?;
    }
    let state_dir = spec.state_dir.canonicalize().map_err(state)?;
    let socket = state_dir.join("run").join("cloud.sock");
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_MAX_BYTES {
        return Err(SandboxError::PathTooLong { path: socket, length });
    }
    end_recorded(&state_dir);
    let log = log(&state_dir).map_err(state)?;
    let inside = SandboxSpec { state_dir, ..spec.clone() };
    let namespaces = |log: File| run_helper(&inside, "sandbox", &inside, log.into(), START_MAX);
    match spec.isolation {
        Isolation::Namespaces => namespaces(log),
        Isolation::Processes => start_plain(&inside, log, None),
        Isolation::Auto => match namespaces(log.try_clone().map_err(state)?) {
            // Whatever step it was, also one at which the kernel ended the helper (seccomp): there is no sandbox here.
            Err(refused @ (SandboxError::Step { .. } | SandboxError::Silent)) => {
                start_plain(&inside, log, Some(&refused))
            }
            started => started,
        },
    }
}

fn start_plain(inside: &SandboxSpec, log: File, refused: Option<&SandboxError>) -> Result<Sandbox, SandboxError> {
    let port = inside.registry_port;
    let claim = network::claim(&inside.state_dir, port).map_err(|source| SandboxError::NoLoopback { port, source })?;
    let spec = PlainSpec { sandbox: inside.clone(), network: claim.network, parent: std::process::id() };
    let started = run_helper(inside, "processes", &spec, log.into(), START_MAX);
    let mut sandbox = started.map_err(SandboxError::without_hint)?;
    sandbox.isolation = Isolation::Processes;
    sandbox.claim = Some(claim);
    sandbox.left_out = Some(match refused {
        Some(refused) => format!("{LEFT_OUT}; {refused}"),
        None => format!("{LEFT_OUT}; `--isolation namespaces` has them"),
    });
    Ok(sandbox)
}

fn end_recorded(state_dir: &Path) {
    let ended = family::end_recorded(state_dir);
    if ended > 0 {
        tracing::warn!(ended, "processes of instances had outlived an earlier start and were ended");
    }
}

/// Lets a STATE folder whose supervisor is dead be removed: ends what outlived it, and gives the folders of images back
/// to their owner. Does nothing with a folder of somebody else's, whatever lies in it.
pub fn release(state_dir: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let is_ours = |at: std::fs::Metadata| at.is_dir() && at.uid() == nix::unistd::geteuid().as_raw();
    if std::fs::symlink_metadata(state_dir).is_ok_and(is_ours) {
        end_recorded(state_dir);
        processes::unseal_images(state_dir);
    }
}

/// Tries the whole set-up in a child that ends at once, as `--isolation auto` needs to know.
///
/// # Errors
/// [`SandboxError::Step`] with the first step that was refused. Whatever fails, there is no sandbox here.
pub fn probe(exe: &Path) -> Result<(), SandboxError> {
    let spec = SandboxSpec {
        exe: exe.to_owned(),
        state_dir: PathBuf::new(),
        isolation: Isolation::Namespaces,
        boot_delay: Duration::ZERO,
        grace: Duration::ZERO,
        registry_port: 0,
        agents: false,
    };
    run_helper(&spec, "probe", &spec, Stdio::null(), PROBE_MAX).map(drop)
}

fn resolve(exe: &Path) -> Result<PathBuf, SandboxError> {
    // Following the kernel's link to a rebuilt binary gives the path of another one.
    if exe == Path::new("/proc/self/exe") {
        return Ok(own_exe());
    }
    exe.canonicalize().map_err(|source| SandboxError::Spawn { exe: exe.to_owned(), source })
}

/// STATE/logs/cloud.log, for what the helpers and the cloud process write to standard error.
fn log(state_dir: &Path) -> std::io::Result<File> {
    let path = state_dir.join("logs").join("cloud.log");
    let log = OpenOptions::new().create(true).append(true).open(path)?;
    if log.metadata()?.len() > LOG_MAX_BYTES {
        log.set_len(0)?;
    }
    Ok(log)
}

/// Starts the helper `what` with its own spec, and waits until it is ready.
fn run_helper(
    spec: &SandboxSpec,
    what: &str,
    told: &impl Serialize,
    log: Stdio,
    limit: Duration,
) -> Result<Sandbox, SandboxError> {
    let spawn = |source| SandboxError::Spawn { exe: spec.exe.clone(), source };
    let text = serde_json::to_string(told).map_err(|e| spawn(e.into()))?;
    let mut helper = Command::new(resolve(&spec.exe)?)
        .arg0("troop")
        .args([super::INTERNAL, what, &text])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        // A Ctrl-C at the terminal is for the supervisor, which then ends the rest in order.
        .process_group(0)
        .spawn()
        .map_err(spawn)?;
    let (alive, reports) = (helper.stdin.take(), helper.stdout.take());
    let mut sandbox = Sandbox {
        exe: spec.exe.clone(),
        state_dir: spec.state_dir.clone(),
        init_pid: 0,
        isolation: Isolation::Namespaces,
        left_out: None,
        helper,
        alive,
        claim: None,
    };
    let (tell, told) = std::sync::mpsc::channel();
    if let Some(reports) = reports {
        std::thread::spawn(move || {
            for line in BufReader::new(reports).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
    }
    // Two processes report, in no certain order.
    let mut ready = false;
    while !ready || sandbox.init_pid == 0 {
        match told.recv_timeout(limit) {
            Ok(line) => match serde_json::from_str::<Report>(&line) {
                Ok(Report::Init { pid }) => sandbox.init_pid = u32::try_from(pid).unwrap_or(0),
                Ok(Report::Ready) => ready = true,
                Ok(Report::Failed(failed)) => return Err(failed.into()),
                Ok(Report::Made) | Err(_) => return Err(SandboxError::Silent),
            },
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return Err(SandboxError::TooSlow { limit }),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Err(SandboxError::Silent),
        }
    }
    Ok(sandbox)
}

impl Sandbox {
    /// A command that runs the executable with `role_args` inside the sandbox. The role begins with
    /// [`super::role::begin_role`], which gives it `fds` by name. SIGTERM, SIGINT and SIGHUP to the command reach the
    /// role, and its exit status (128 and the signal where one ended it) becomes the command's.
    ///
    /// # Errors
    /// [`SandboxError::Hand`] when the descriptors cannot be handed over, [`SandboxError::Spawn`] when the executable
    /// is gone.
    pub fn enter<S: AsRef<OsStr>>(
        &self,
        role_args: &[S],
        fds: &[(&str, BorrowedFd<'_>)],
    ) -> Result<Entered, SandboxError> {
        let (line, theirs) = UnixStream::pair().map_err(SandboxError::Hand)?;
        let named: Vec<_> = fds.iter().map(|(name, fd)| ((*name).to_owned(), fd.as_fd())).collect();
        send_fds(&line, &named).map_err(SandboxError::Hand)?;
        let mut command = Command::new(resolve(&self.exe)?);
        let (how, of, number, exe) = match self.isolation {
            Isolation::Namespaces | Isolation::Auto => {
                ("enter", "--pid", self.init_pid, mounts::kept_exe(&self.state_dir))
            }
            Isolation::Processes => ("attend", "--parent", std::process::id(), processes::kept_exe(&self.state_dir)),
        };
        command
            .arg0("troop")
            .args([super::INTERNAL, how, of, &number.to_string(), "--exe"])
            .arg(exe)
            .arg("--")
            .env_remove(HELPER_PID)
            .args(role_args)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0);
        Ok(Entered { command, line })
    }

    /// The address under which instances of every zone reach what a role listens on.
    #[must_use]
    pub fn roles_address(&self) -> Ipv4Addr {
        self.claim.as_ref().map_or(Network::SANDBOX, |claim| claim.network).roles()
    }

    /// The helper's pid: it made the sandbox and ends it when this process dies.
    #[must_use]
    pub fn helper_pid(&self) -> u32 {
        self.helper.id()
    }

    /// Whether it still runs; `Some` with the first process's exit code once it has ended.
    ///
    /// # Errors
    /// When the helper cannot be asked.
    pub fn try_wait(&mut self) -> std::io::Result<Option<i32>> {
        Ok(self.helper.try_wait()?.map(|status| i32::from(super::steps::exit_code(status))))
    }

    /// Waits until the sandbox has ended and returns the first process's exit code.
    ///
    /// # Errors
    /// When the helper cannot be waited for.
    pub fn wait(&mut self) -> std::io::Result<i32> {
        // `Child::wait` would close a standard input it still held; ours was taken out, so the sandbox lives on.
        Ok(i32::from(super::steps::exit_code(self.helper.wait()?)))
    }

    /// Ends everything inside at once and returns when it is gone. For an end in order ask the cloud process first
    /// ([`super::client::LocalCloud::shutdown`]).
    ///
    /// # Errors
    /// When the helper cannot be waited for.
    pub fn end(&mut self) -> std::io::Result<i32> {
        drop(self.alive.take());
        let ended = self.wait();
        // A reaper that was killed has left to us what it would have ended. The folders of images are given back here
        // and not by the cloud process, which is not waited for once it has answered its last request.
        if self.isolation == Isolation::Processes {
            end_recorded(&self.state_dir);
            processes::unseal_images(&self.state_dir);
        }
        ended
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_only_points_to_a_state_is_not_released() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let image = state.join("cloud/images/ami-1");
        std::fs::create_dir_all(&image).unwrap();
        std::fs::set_permissions(&image, std::fs::Permissions::from_mode(0o555)).unwrap();
        let mode = || std::fs::metadata(&image).unwrap().permissions().mode() & 0o777;
        symlink(&state, dir.path().join("link")).unwrap();
        release(&dir.path().join("link"));
        assert_eq!(mode(), 0o555);
        release(&state);
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn isolation_is_read_as_it_is_written() {
        for isolation in [Isolation::Namespaces, Isolation::Processes, Isolation::Auto] {
            assert_eq!(isolation.to_string().parse::<Isolation>(), Ok(isolation));
        }
        assert!("docker".parse::<Isolation>().is_err());
    }
}
