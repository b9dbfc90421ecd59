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
use troop_cloud::local::agents;
use troop_cloud::local::balancer::{self, BalancerError};
use troop_cloud::local::client::LocalCloud;
use troop_cloud::local::role::{Inherited, begin_role};
use troop_ledger::{Ledger, Stamp};
use troop_policies::draw::SiteSecret;
use troop_registry::client::RegistryClient;
use troop_registry::server::RegistryError;

use crate::agents::identity::Identity;
use crate::agents::token::AgentsSecret;
use crate::agents::{Agents, Hub, Reception};
use crate::api::peer::serve_passed;
use crate::api::router::{router, unavailable};
use crate::clock::{self, Calendar, CalendarFile};
use crate::exit::Code;
use crate::logging;
use crate::outside::Dial;
use crate::serve::RunError;
use crate::serve::control::Control;
use crate::serve::core::{Core, Parts};
use crate::site::{self, SiteError};
use crate::state::{self, StateDir, StateError};
use crate::world::{Joined, chain};

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

/// Two for the API and the ticks, which both wait more than they work; the machine's cores are the instances' too.
const SERVE_THREADS: usize = 2;
/// A control plane that cannot start says so to whoever asks, and tries again this often.
const SERVE_AGAIN: Duration = Duration::from_secs(2);
/// How often the demo's calendar is looked at, until it has been let go.
const CALENDAR_EVERY: Duration = Duration::from_millis(50);
/// What closing the ledger may take; a ledger that was not closed loses nothing.
const LEDGER_CLOSES_WITHIN: Duration = Duration::from_millis(200);
/// The ledger's word for [`SiteSecret::fingerprint`] of the secret it was begun with.
const META_FINGERPRINT: &str = "site_secret_fingerprint";

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
        "serve" => SERVE_THREADS,
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
    let mut builder = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build().map_err(|source| RoleError::Io { what: "start a runtime", source })?;
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
    tracing::info!(pid = std::process::id(), site = core.site.name, "the control plane serves");
    let api = router(Arc::new(Control(Arc::clone(&core))));
    let _received = AbortOnDropHandle::new(tokio::spawn(receive_agents(Arc::clone(&core), hub, agents, stop.clone())));
    // Whichever ends by itself takes the other along: half a control plane is none.
    let (served, ran) = tokio::join!(
        async {
            let served = serve_passed(connections, api, stop.clone()).await;
            stop.cancel();
            served
        },
        async {
            let ran = crate::serve::run(Arc::clone(&core), stop.clone()).await;
            stop.cancel();
            ran
        }
    );
    let closing = core.ledger.clone().close();
    if tokio::time::timeout(LEDGER_CLOSES_WITHIN, closing).await.is_err() {
        tracing::info!("the ledger was not closed in time; nothing is lost by that");
    }
    served.map_err(io)?;
    Ok(ran?)
}

/// Receives agents: those of the embedded cloud, and where the site has a listener for them those of other machines. Without any,
/// everything goes on but the latency monkey, which spares for want of an agent.
async fn receive_agents(core: Arc<Core>, hub: Arc<Hub>, listener: Option<TcpListener>, stop: CancellationToken) {
    let state = core.state.path();
    let secret = match AgentsSecret::keep(&agents::secret_file(state)) {
        Ok(secret) => secret,
        Err(error) => return tracing::error!(%error, "no agents are received: their secret cannot be kept"),
    };
    let reception = Reception::new(hub, secret, None, stop);
    let far = async {
        let Some((listener, files)) = listener.zip(core.site.agents.as_ref()) else { return };
        let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
        match (listener, Identity::read(files)) {
            (Ok(listener), Ok(identity)) => reception.clone().on_tls(listener, identity).await,
            (Err(error), _) => tracing::error!(%error, "no agents of other machines are received"),
            (_, Err(error)) => tracing::error!(error = chain(&error), "no agents of other machines are received"),
        }
    };
    let near = async {
        if let Err(error) = reception.clone().on_unix(&agents::socket(state)).await {
            tracing::error!(error = chain(&error), "no agents of this machine are received");
        }
    };
    tokio::join!(near, far);
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
    let times = calendar.clone();
    let stamp = move || {
        let real_at = clock::real_now();
        Stamp { at: times.at(real_at), real_at }
    };
    let ledger = Ledger::open(&state.ledger(), Arc::new(stamp)).await.map_err(|e| chain(&e))?;
    let secret = secret(&state, &ledger).await;
    if let Err(why) = &secret {
        tracing::error!(why, "nothing is planned or done");
    }
    let registry = flags.registry().map_err(|e| chain(&e))?;
    let registry = RegistryClient::new(format!("http://{registry}")).map_err(|e| chain(&e))?;
    let world = Arc::new(Joined { cloud: Arc::new(LocalCloud::new(state.path())), registry });
    let dial = Dial::Through(state.outside_socket());
    Ok(Core::new(Parts { state, site: site.site, policies_dir, ledger, world, agents, calendar, secret }, dial))
}

/// The site's secret, if it is the one that the ledger was begun with. One is made at the first start only.
async fn secret(state: &StateDir, ledger: &Ledger) -> Result<SiteSecret, String> {
    let path = state.secret_file();
    let shown = path.display();
    let found = state::read_secret(&path).map_err(|e| format!("{}; nothing is planned or done", chain(&e)))?;
    let known = ledger.meta(META_FINGERPRINT).await.map_err(|e| chain(&e))?;
    let secret = match (found, &known) {
        (Some(secret), _) => secret,
        (None, None) => match state::make_secret(&path) {
            Ok(secret) => secret,
            // Another control plane on this folder was first.
            Err(e) => state::read_secret(&path).ok().flatten().ok_or_else(|| chain(&e))?,
        },
        (None, Some(_)) => {
            return Err(format!(
                "`{shown}` is missing, and the ledger was begun with a secret: restore that file; until then nothing is planned or done"
            ));
        }
    };
    let stored = ledger.set_meta_once(META_FINGERPRINT, &secret.fingerprint()).await.map_err(|e| chain(&e))?;
    if stored != secret.fingerprint() {
        return Err(format!(
            "`{shown}` is not the secret that the ledger was begun with: restore that one; until then nothing is planned or done"
        ));
    }
    Ok(secret)
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

    async fn opened(state: &StateDir) -> Ledger {
        let stamp = || Stamp { at: clock::real_now(), real_at: clock::real_now() };
        Ledger::open(&state.ledger(), Arc::new(stamp)).await.unwrap()
    }

    fn state() -> (tempfile::TempDir, StateDir) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::find(Some(dir.path()), |_| None).unwrap();
        state.create().unwrap();
        (dir, state)
    }

    #[tokio::test]
    async fn a_secret_is_made_at_the_first_start_and_found_at_the_next() {
        let (_dir, state) = state();
        let ledger = opened(&state).await;
        let made = secret(&state, &ledger).await.unwrap();
        assert_eq!(state::read_secret(&state.secret_file()).unwrap(), Some(made.clone()));
        assert!(secret(&state, &ledger).await.is_ok_and(|again| again == made));
    }

    #[tokio::test]
    async fn a_secret_that_lay_there_first_is_the_ledgers() {
        let (_dir, state) = state();
        let laid = state::make_secret(&state.secret_file()).unwrap();
        let ledger = opened(&state).await;
        assert!(secret(&state, &ledger).await.is_ok_and(|found| found == laid));
        assert_eq!(ledger.meta(META_FINGERPRINT).await.unwrap(), Some(laid.fingerprint()));
    }

    #[tokio::test]
    async fn another_secret_or_none_spares_everything_and_none_is_made() {
        let (_dir, state) = state();
        let ledger = opened(&state).await;
        secret(&state, &ledger).await.unwrap();
        let path = state.secret_file();
        std::fs::remove_file(&path).unwrap();
        let why = secret(&state, &ledger).await.err().unwrap();
        assert!(why.contains("is missing"), "{why}");
        assert!(!path.exists());
        state::make_secret(&path).unwrap();
        let why = secret(&state, &ledger).await.err().unwrap();
        assert!(why.contains("is not the secret"), "{why}");
        std::fs::write(&path, "short\n").unwrap();
        let why = secret(&state, &ledger).await.err().unwrap();
        assert!(why.contains("64 hexadecimal digits"), "{why}");
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
