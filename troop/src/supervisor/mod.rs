//! `troop up`: a small supervisor that outlives what it starts.
//!
//! It stays outside the sandbox: it opens the listeners a person uses on the host's loopback, accepts the control socket
//! (so that the peer's uid is the host's), starts the sandbox, and in it the registry, the balancer's workers and the
//! control plane, and starts again what dies. When the sandbox's first process dies, everything in it is gone, and the
//! supervisor ends too. When the supervisor dies, by whatever signal, the sandbox's helper sees it and ends everything.

mod keep;
pub mod roles;
mod seat;
pub mod stop;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use troop_cloud::local::client::LocalCloud;
use troop_cloud::local::sandbox::{self, Isolation, Sandbox, SandboxError, SandboxSpec};

use self::keep::{Handed, Role};
pub use self::seat::Seat;
use self::seat::{Announced, fits, listen, listen_on, take};
use crate::clock;
use crate::site::{self, SiteError};
use crate::state::{StateDir, StateError, write_whole};

/// Two workers: one keeps serving while the other is started again.
const BALANCER_WORKERS: u32 = 2;
/// The port a person would try first; taken, any free one.
const PREFERRED_PORT: u16 = 8080;

// What the parts get to end in order before they are killed, one after the other: 4.4 s in all, so that a stop is over
// within the 5 s that are promised.
/// The control plane finishes answers in flight for 0.4 s.
const SERVE_ENDS_WITHIN: Duration = Duration::from_millis(800);
/// A worker finishes requests in flight for 1 s.
const BALANCER_ENDS_WITHIN: Duration = Duration::from_millis(1_300);
/// The registry's table is on disk after every change that matters.
const REGISTRY_ENDS_WITHIN: Duration = Duration::from_millis(300);
/// Instances have nobody left to answer, so they end at once; those that do not, get their SIGKILL a little early.
const CLOUD_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// What a start that is given up gets to come to its end, so that it can be undone here. After that the process ends,
/// and the sandbox with it.
const START_GIVEN_UP_AFTER: Duration = Duration::from_secs(4);
/// How often the sandbox is asked whether it still runs. Its end is a SIGCHLD as well; this is for one that was missed.
const SANDBOX_ASKED_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error("another `troop up`, `troop serve` or `troop demo` (pid {pid}) holds `{}`", state.display())]
    Taken { pid: String, state: PathBuf },
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("could not open a listener on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("stopped before everything was started")]
    Interrupted,
    #[error("the sandbox's first process ended ({status}), and everything in it is gone; `{}` may say why", log.display())]
    CloudEnded { status: String, log: PathBuf },
}

/// How to start.
#[derive(Debug, Clone)]
pub struct UpOptions {
    pub state: StateDir,
    pub isolation: Isolation,
    pub policies: PathBuf,
    pub site_file: Option<PathBuf>,
    /// How long an instance takes to boot before its command runs.
    pub boot_delay: Duration,
    /// How long a new instance may be unhealthy before it is replaced.
    pub grace: Duration,
    /// 0 takes any free port; `None` takes what the site file says, else prefers 8080.
    pub port: Option<u16>,
    /// The demo's calendar, as [`crate::clock::CalendarFile`]; everyone else's is the real one.
    pub calendar_file: Option<PathBuf>,
}

/// What a running supervisor says about itself in STATE/run/up.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpInfo {
    pub schema: u32,
    pub pid: u32,
    /// `127.0.0.1:8080`.
    pub balancer: String,
    /// The one in force: `namespaces` or `processes`.
    pub isolation: String,
    /// What that leaves out, and why it is so.
    #[serde(default)]
    pub left_out: Option<String>,
    /// The cloud process, the sandbox's first one, as the host sees it.
    pub cloud_pid: u32,
    pub started_at: Timestamp,
}

impl UpInfo {
    /// What the supervisor of this state folder says; `None` where none runs, or it died without a word.
    #[must_use]
    pub fn read(state: &StateDir) -> Option<Self> {
        serde_json::from_slice(&fs::read(state.up_file()).ok()?).ok()
    }
}

/// A supervisor that has started the sandbox and not yet the roles in it. Dropped, it ends the sandbox.
#[derive(Debug)]
pub struct Supervisor {
    options: UpOptions,
    pub info: UpInfo,
    sandbox: Arc<Mutex<Sandbox>>,
    balancer: TcpListener,
    /// For agents of other machines, where the site says so.
    agents: Option<TcpListener>,
    control: UnixListener,
    outside: UnixListener,
    /// Removed at the end, before STATE is given free.
    announced: Announced,
    /// Held for as long as the supervisor lives; its lock says that STATE is taken.
    taken: nix::fcntl::Flock<fs::File>,
}

impl Supervisor {
    /// Takes STATE, opens the listeners and starts the sandbox. `stop` gives the start up.
    ///
    /// # Errors
    /// [`UpError`]; nothing is left running.
    pub async fn start(options: UpOptions, stop: &CancellationToken) -> Result<Self, UpError> {
        let state = &options.state;
        let site = site::read(options.site_file.as_deref())?.site;
        let control_path = state.control_socket();
        fits(&control_path)?;
        state.create()?;
        let taken = take(state)?;
        let announced = Announced(vec![control_path.clone(), state.up_file(), state.outside_socket()]);
        let balancer = bind(options.port, site.balancer)?;
        let agents = site.agents.as_ref().map(|agents| listen_on(agents.address)).transpose()?;
        let io = |what| move |source| UpError::Io { what, source };
        let address = balancer.local_addr().map_err(io("read the listener's address"))?;
        let control = listen(&control_path).map_err(io("open the control socket"))?;
        let outside = listen(&state.outside_socket()).map_err(io("open the socket to the outside"))?;
        let sandbox = start_sandbox(spec(&options), stop).await?;
        let info = UpInfo {
            schema: 1,
            pid: std::process::id(),
            balancer: address.to_string(),
            isolation: sandbox.isolation.to_string(),
            left_out: sandbox.left_out.clone(),
            cloud_pid: sandbox.init_pid,
            started_at: clock::real_now(),
        };
        write_whole(&options.state.up_file(), &serde_json::to_vec_pretty(&info).unwrap_or_default())?;
        let sandbox = Arc::new(Mutex::new(sandbox));
        Ok(Self { options, info, sandbox, balancer, agents, control, outside, announced, taken })
    }

    /// Runs the roles until `stop`, or until the sandbox's first process ends. Everything has ended when it returns.
    ///
    /// # Errors
    /// [`UpError::CloudEnded`].
    pub async fn run(self, stop: CancellationToken) -> Result<(), UpError> {
        let Self { options, info: _, sandbox, balancer, agents, control, outside, announced, taken } = self;
        let (to_serve, passing) = watch::channel(None);
        let acceptor = AbortOnDropHandle::new(tokio::spawn(crate::api::peer::accept_and_pass(control, passing)));
        let _outside = AbortOnDropHandle::new(tokio::spawn(crate::outside::serve(outside)));
        let logs: Arc<Path> = options.state.logs().into();
        let _cutter = AbortOnDropHandle::new(tokio::spawn(keep::cut_logs(Arc::clone(&logs))));
        // In the order in which they end: first the control plane, so that nothing new begins.
        let mut running = Vec::new();
        let registry = SocketAddr::from((lock(&sandbox).roles_address(), roles::REGISTRY_PORT));
        let to_serve = Handed::Connections(to_serve, agents);
        for roles in roles(&options, registry, balancer, to_serve) {
            let end = CancellationToken::new();
            let keep = |role| tokio::spawn(keep::keep(role, Arc::clone(&sandbox), Arc::clone(&logs), end.clone()));
            running.push((roles.into_iter().map(keep).collect::<Vec<_>>(), end));
        }
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            status = ended(&sandbox) => {
                let log = options.state.logs().join("cloud.log");
                Err(UpError::CloudEnded { status, log })
            }
        };
        for (roles, end) in running {
            end.cancel();
            for role in roles {
                if let Err(error) = role.await {
                    tracing::error!(%error, "the keeper of a role ended abnormally");
                }
            }
        }
        drop(acceptor);
        if ended.is_ok() {
            let asked = LocalCloud::new(options.state.path());
            match tokio::time::timeout(CLOUD_ENDS_WITHIN, asked.shutdown()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the cloud is ended at once")
                }
                Err(_) => tracing::warn!("the cloud took too long to end and is ended at once"),
            }
        }
        let ending = tokio::task::spawn_blocking(move || lock(&sandbox).end());
        match ending.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "the sandbox's helper could not be waited for"),
            Err(error) => tracing::error!(%error, "the end of the sandbox was not seen"),
        }
        drop(announced);
        drop(taken);
        ended
    }
}

fn lock(sandbox: &Mutex<Sandbox>) -> std::sync::MutexGuard<'_, Sandbox> {
    sandbox.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spec(options: &UpOptions) -> SandboxSpec {
    SandboxSpec {
        exe: PathBuf::from("/proc/self/exe"),
        state_dir: options.state.path().to_path_buf(),
        isolation: options.isolation,
        boot_delay: options.boot_delay,
        grace: options.grace,
        registry_port: roles::REGISTRY_PORT,
        agents: true,
    }
}

/// Starts the sandbox on a thread of its own, which blocks; `stop` gives it up.
async fn start_sandbox(spec: SandboxSpec, stop: &CancellationToken) -> Result<Sandbox, UpError> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        // Whoever has given up lets the sandbox be dropped here, which ends it.
        let _given_up = tell.send(sandbox::start(&spec));
    });
    tokio::pin!(told);
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => {
            // A start that comes to its end meanwhile is dropped, and the sandbox has ended when that returns.
            let _given_up = tokio::time::timeout(START_GIVEN_UP_AFTER, &mut told).await;
            return Err(UpError::Interrupted);
        }
        started = &mut told => started,
    };
    match started {
        Ok(started) => Ok(started?),
        Err(_) => Err(SandboxError::Silent.into()),
    }
}

/// The roles, in groups that end one after the other.
fn roles(options: &UpOptions, registry: SocketAddr, listener: TcpListener, to_serve: Handed) -> [Vec<Role>; 3] {
    let flag = |name: &str, value: &OsStr| [OsString::from(name), value.to_owned()];
    let optional = |name: &str, value: &Option<PathBuf>| {
        value.iter().flat_map(|value| flag(name, value.as_os_str())).collect::<Vec<_>>()
    };
    let site = optional("--site", &options.site_file);
    let args = |role: &str, more: &[&[OsString]]| {
        let first = [OsString::from(roles::ROLE), role.into()];
        let state = flag("--state", options.state.path().as_os_str());
        first.into_iter().chain(state).chain(more.concat()).collect::<Vec<_>>()
    };
    let listener = Arc::new(listener);
    let worker = |worker: u32| Role {
        name: format!("balancer-{worker}"),
        args: args("balancer", &[&flag("--worker", worker.to_string().as_ref())]),
        handed: Handed::Listener(Arc::clone(&listener)),
        ends_within: BALANCER_ENDS_WITHIN,
    };
    let registry_at = flag("--registry", registry.to_string().as_ref());
    let policies = flag("--policies", options.policies.as_os_str());
    let calendar = optional("--calendar", &options.calendar_file);
    let serve = Role {
        name: "serve".to_owned(),
        args: args("serve", &[&registry_at, &policies, &site, &calendar]),
        handed: to_serve,
        ends_within: SERVE_ENDS_WITHIN,
    };
    let registry = Role {
        name: "registry".to_owned(),
        args: args("registry", &[&registry_at, &site]),
        handed: Handed::Nothing,
        ends_within: REGISTRY_ENDS_WITHIN,
    };
    [vec![serve], (0..BALANCER_WORKERS).map(worker).collect(), vec![registry]]
}

/// Returns once the sandbox has ended, with how.
async fn ended(sandbox: &Mutex<Sandbox>) -> String {
    let mut told = signal(SignalKind::child()).ok();
    loop {
        match lock(sandbox).try_wait() {
            Ok(None) => {}
            Ok(Some(code)) => return format!("exit code {code}"),
            Err(error) => return format!("it cannot be waited for: {error}"),
        }
        let child_ended = async {
            match &mut told {
                Some(told) => drop(told.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = child_ended => {}
            () = tokio::time::sleep(SANDBOX_ASKED_EVERY) => {}
        }
    }
}

fn bind(port: Option<u16>, site: Option<SocketAddr>) -> Result<TcpListener, UpError> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match (port, site) {
        (Some(port), _) => listen_on(local(port)),
        (None, Some(address)) => listen_on(address),
        (None, None) => listen_on(local(PREFERRED_PORT)).or_else(|_| listen_on(local(0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        state.create().unwrap();
        (dir, state)
    }

    #[test]
    fn a_state_folder_has_one_supervisor_and_the_other_is_told_its_pid() {
        let (_dir, state) = state();
        let taken = take(&state).unwrap();
        match take(&state) {
            Err(UpError::Taken { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(taken);
        take(&state).unwrap();
    }

    #[tokio::test]
    async fn a_stale_control_socket_is_replaced_and_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_dir, state) = state();
        for _ in 0..2 {
            drop(listen(&state.control_socket()).unwrap());
            let mode = fs::metadata(state.control_socket()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_port_that_is_asked_for_is_taken_or_refused_and_never_another() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert!(matches!(bind(Some(address.port()), None), Err(UpError::Listen { .. })));
        assert!(matches!(bind(None, Some(address)), Err(UpError::Listen { .. })));
        assert!(bind(Some(0), Some(address)).is_ok());
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(100));
        let options = UpOptions {
            state: StateDir::find(Some(&path), |_| None).unwrap(),
            isolation: Isolation::Auto,
            policies: PathBuf::new(),
            site_file: None,
            boot_delay: Duration::ZERO,
            grace: Duration::ZERO,
            port: Some(0),
            calendar_file: None,
        };
        let refused = Supervisor::start(options, &CancellationToken::new()).await;
        assert!(matches!(refused, Err(UpError::Sandbox(SandboxError::PathTooLong { .. }))), "{refused:?}");
        assert!(!path.exists());
    }
}
