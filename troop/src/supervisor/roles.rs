//! The processes that run inside the sandbox, or beside each other without one: `troop role registry|balancer|serve`, started by [`super::Supervisor`] and
//! by nobody else.
//!
//! Each begins by taking what it was handed, and ends when it is told to, or when the line to the supervisor ends.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use troop_cloud::local::balancer::{self, BalancerError};
use troop_cloud::local::client::LocalCloud;
use troop_cloud::local::role::{Inherited, begin_role};
use troop_registry::client::RegistryClient;
use troop_registry::server::RegistryError;

use crate::agents::{Agents, Hub};
use crate::api::peer::serve_passed;
use crate::api::router::{router, unavailable};
use crate::clock::{self, Calendar, CalendarFile};
use crate::exit::Code;
use crate::logging;
use crate::outside::Dial;
use crate::serve::RunError;
use crate::serve::control::Control;
use crate::serve::core::Core;
use crate::serve::process::{self, Opening};
use crate::site::{self, SiteError};
use crate::state::{StateDir, StateError};
use crate::world::{World, chain};

/// The first argument of a role.
pub const ROLE: &str = "role";
/// Where the registry listens, at the address that the sandbox has for roles.
pub(super) const REGISTRY_PORT: u16 = 8761;
/// The name under which a worker of the balancer is handed its listener.
pub(super) const LISTENER: &str = "listener";
/// The name under which the control plane is handed its end of the pair over which connections come.
pub(crate) const CONNECTIONS: &str = "connections";
/// The name under which it is handed the listener for agents on other machines, where the site has one.
pub(super) const AGENTS: &str = "agents";

/// A control plane that cannot start says so to whoever asks, and tries again this often.
const SERVE_AGAIN: Duration = Duration::from_secs(2);
/// How often the demo's calendar is looked at, until it has been let go.
const CALENDAR_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
enum RoleError {
    #[error("`troop role` is for the supervisor, which `troop up` is: {why}")]
    Arguments { why: String },
    #[error("the role was not started by a supervisor, or that has died")]
    Begin(#[source] io::Error),
    #[error("could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the supervisor handed over no `{name}`")]
    NotHanded { name: &'static str },
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the balancer's worker failed")]
    Balancer(#[from] BalancerError),
    #[error("the registry failed")]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Serve(#[from] RunError),
}

/// Runs a role. `args` is what follows [`ROLE`]. Call it before any thread is started.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    logging::for_a_log();
    match run(args) {
        Ok(()) => Code::Ok.into(),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the role ends");
            Code::Unavailable.into()
        }
    }
}

fn run(args: &[OsString]) -> Result<(), RoleError> {
    let flags = Flags::parse(args)?;
    let mut inherited = begin_role().map_err(RoleError::Begin)?;
    let mut take = |name| inherited.fds.remove(name).ok_or(RoleError::NotHanded { name });
    let threads = match flags.role.as_str() {
        "registry" => return block_on(0, inherited, |stop| registry(flags, stop)),
        "balancer" => {
            let listener = TcpListener::from(take(LISTENER)?);
            return block_on(0, inherited, |stop| balancer(flags, listener, stop));
        }
        "serve" => process::THREADS,
        other => return Err(RoleError::Arguments { why: format!("there is no role `{other}`") }),
    };
    let connections = take(CONNECTIONS)?;
    let agents = take(AGENTS).ok().map(TcpListener::from);
    block_on(threads, inherited, |stop| serve(flags, connections, agents, stop))
}

/// The role's name and its flags.
#[derive(Debug)]
struct Flags {
    role: String,
    flags: BTreeMap<String, OsString>,
}

impl Flags {
    fn parse(args: &[OsString]) -> Result<Self, RoleError> {
        let wrong = |why: &str| RoleError::Arguments { why: why.to_owned() };
        let (role, rest) = args.split_first().ok_or_else(|| wrong("it names no role"))?;
        let mut flags = BTreeMap::new();
        for pair in rest.chunks(2) {
            let [flag, value] = pair else { return Err(wrong("a flag has no value")) };
            flags.insert(flag.to_string_lossy().into_owned(), value.clone());
        }
        Ok(Self { role: role.to_string_lossy().into_owned(), flags })
    }

    fn path(&self, flag: &str) -> Option<PathBuf> {
        self.flags.get(flag).map(PathBuf::from)
    }

    fn needed(&self, flag: &str) -> Result<&OsStr, RoleError> {
        let missing = || RoleError::Arguments { why: format!("{flag} is missing") };
        self.flags.get(flag).map(OsString::as_os_str).ok_or_else(missing)
    }

    /// Where the registry listens.
    fn registry(&self) -> Result<SocketAddr, RoleError> {
        let wrong = |e| RoleError::Arguments { why: format!("--registry: {e}") };
        self.needed("--registry")?.to_string_lossy().parse().map_err(wrong)
    }

    fn state(&self) -> Result<StateDir, RoleError> {
        Ok(StateDir::find(Some(Path::new(self.needed("--state")?)), |_| None)?)
    }
}

/// Runs `role` on a runtime with so many threads beside this one (none: on this one alone), and tells it to stop on
/// SIGTERM, SIGINT, or the end of the line to the supervisor.
fn block_on<F: Future<Output = Result<(), RoleError>>>(
    threads: usize,
    inherited: Inherited,
    role: impl FnOnce(CancellationToken) -> F,
) -> Result<(), RoleError> {
    let runtime = process::runtime(threads).map_err(|source| RoleError::Io { what: "start a runtime", source })?;
    let ended = runtime.block_on(async {
        let io = |what| move |source| RoleError::Io { what, source };
        let mut term = signal(SignalKind::terminate()).map_err(io("watch for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("watch for SIGINT"))?;
        inherited.line.set_nonblocking(true).map_err(io("watch the line to the supervisor"))?;
        let mut line =
            tokio::net::UnixStream::from_std(inherited.line).map_err(io("watch the line to the supervisor"))?;
        let stop = CancellationToken::new();
        let told = stop.clone();
        let _watcher = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                // Nothing is ever written there.
                _ = line.read_u8() => {}
            }
            told.cancel();
        }));
        role(stop).await
    });
    // What still blocks, such as the look-up of a user's name in a directory service, must not hold up the end.
    runtime.shutdown_background();
    ended
}

async fn registry(flags: Flags, stop: CancellationToken) -> Result<(), RoleError> {
    let state = flags.state()?;
    let lease = site::read(flags.path("--site").as_deref())?.site.registry_lease;
    let listener = tokio::net::TcpListener::bind(flags.registry()?).await;
    let listener = listener.map_err(|source| RoleError::Io { what: "open the registry's listener", source })?;
    let clock = Arc::new(clock::real_now);
    Ok(troop_registry::server::serve(listener, state.registry_table(), lease, clock, stop).await?)
}

async fn balancer(flags: Flags, listener: TcpListener, stop: CancellationToken) -> Result<(), RoleError> {
    let worker = flags.needed("--worker")?.to_string_lossy().parse();
    let worker = worker.map_err(|e| RoleError::Arguments { why: format!("--worker: {e}") })?;
    more_descriptors();
    let cloud = flags.state()?.cloud_socket();
    Ok(balancer::run(worker, listener, cloud, Arc::new(clock::real_now), stop).await?)
}

/// As many descriptors as this process may have: each client needs two, and the usual 1,024 are for programs that
/// use select(2).
fn more_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(
    flags: Flags,
    connections: OwnedFd,
    agents: Option<TcpListener>,
    stop: CancellationToken,
) -> Result<(), RoleError> {
    let io = |source| RoleError::Io { what: "serve the connections that are passed on", source };
    let hub = Arc::new(Hub::default());
    let core = loop {
        let why = match core(&flags, Arc::clone(&hub) as Arc<dyn Agents>).await {
            Ok(core) => break core,
            Err(why) => why,
        };
        tracing::error!(why, "the control plane cannot start; trying again");
        let pair = connections.try_clone().map_err(io)?;
        let again = stop.child_token();
        let (served, _waited) = tokio::join!(serve_passed(pair, unavailable(why), again.clone()), async {
            let _stopped = tokio::time::timeout(SERVE_AGAIN, again.cancelled()).await;
            again.cancel();
        });
        served.map_err(io)?;
        if stop.is_cancelled() {
            return Ok(());
        }
    };
    let follow = |path| AbortOnDropHandle::new(tokio::spawn(follow(core.calendar.clone(), path)));
    let _follower = flags.path("--calendar").map(follow);
    let api = router(Arc::new(Control(Arc::clone(&core))));
    let served = serve_passed(connections, api, stop.clone());
    let (served, ran) = process::run(core, served, (hub, agents), stop.clone()).await;
    served.map_err(io)?;
    Ok(ran?)
}

/// Makes what the control plane works with.
///
/// # Errors
/// Why it cannot be made, as a person is told.
async fn core(flags: &Flags, agents: Arc<dyn Agents>) -> Result<Arc<Core>, String> {
    let state = flags.state().map_err(|e| chain(&e))?;
    let policies_dir = PathBuf::from(flags.needed("--policies").map_err(|e| chain(&e))?);
    let site = site::read(flags.path("--site").as_deref()).map_err(|e| chain(&e))?;
    for warning in &site.warnings {
        tracing::warn!(warning, "the site file");
    }
    let calendar = match flags.path("--calendar") {
        None => Calendar::real(),
        Some(path) => match CalendarFile::read(&path) {
            Some(file) => file.calendar(),
            None => return Err(format!("the calendar file `{}` cannot be read", path.display())),
        },
    };
    let registry = flags.registry().map_err(|e| chain(&e))?;
    let registry = RegistryClient::new(format!("http://{registry}")).map_err(|e| chain(&e))?;
    let world = World::new(vec![Arc::new(LocalCloud::new(state.path()))], Some(Arc::new(registry)));
    let dial = Dial::Through(state.outside_socket());
    process::open(Opening { state, site: site.site, policies_dir, world, agents, calendar }, dial).await
}

/// Lets the calendar run as soon as the file says so.
async fn follow(calendar: Calendar, path: PathBuf) {
    let mut every = tokio::time::interval(CALENDAR_EVERY);
    loop {
        every.tick().await;
        if let Some(CalendarFile { running_since: Some(since), factor, .. }) = CalendarFile::read(&path) {
            calendar.run(factor, since);
            tracing::info!(%since, factor, "the calendar runs");
            return;
        }
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
    fn arguments_of_nobody_are_refused() {
        let parse = |words: &[&str]| Flags::parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(matches!(parse(&[]), Err(RoleError::Arguments { .. })));
        assert!(matches!(parse(&["serve", "--state"]), Err(RoleError::Arguments { .. })));
        let flags = parse(&["serve", "--state", "/s"]).unwrap();
        assert_eq!(flags.state().unwrap().path(), Path::new("/s"));
        assert!(matches!(flags.needed("--policies"), Err(RoleError::Arguments { .. })));
        assert!(matches!(flags.registry(), Err(RoleError::Arguments { .. })));
        assert!(matches!(
            parse(&["registry", "--registry", "here"]).unwrap().registry(),
            Err(RoleError::Arguments { .. })
        ));
    }

    #[tokio::test]
    async fn a_calendar_is_let_go_by_its_file() {
        let (dir, _) = state();
        let path = dir.path().join("calendar.json");
        let at = "2026-11-24T09:55:00Z".parse().unwrap();
        let mut file = CalendarFile { at, running_since: None, factor: 600 };
        file.save(&path).unwrap();
        let calendar = file.calendar();
        let follower = tokio::spawn(follow(calendar.clone(), path.clone()));
        assert_eq!(calendar.at(clock::real_now()), at);
        file.running_since = Some("2026-01-01T00:00:00Z".parse().unwrap());
        file.save(&path).unwrap();
        tokio::time::timeout(Duration::from_secs(10), follower).await.unwrap().unwrap();
        assert!(calendar.at(clock::real_now()) > at);
    }
}
