//! What every process that holds a control plane does: opens the ledger and its secret, receives agents, and runs the
//! parts beside the API until one of them ends.

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use troop_cloud::local::agents;
use troop_ledger::{Ledger, Stamp};
use troop_policies::draw::SiteSecret;
use troop_policies::policy::Site;

use super::RunError;
use super::control::Control;
use super::core::{Core, Parts};
use super::sightings::Seen;
use crate::agents::identity::Identity;
use crate::agents::proof::{Keys, Prover};
use crate::agents::token::AgentsSecret;
use crate::agents::{Agents, Hub, Reception};
use crate::api::peer::serve_direct;
use crate::api::router::router;
use crate::clock::{self, Calendar};
use crate::outside::Dial;
use crate::state::{self, StateDir};
use crate::supervisor::Seat;
use crate::world::{World, chain};

/// Two for the API and the ticks, which both wait more than they work; the machine's cores are the instances' too.
pub const THREADS: usize = 2;
/// What closing the ledger may take; a ledger that was not closed loses nothing.
const LEDGER_CLOSES_WITHIN: Duration = Duration::from_millis(200);
/// The ledger's word for [`SiteSecret::fingerprint`] of the secret it was begun with.
const META_FINGERPRINT: &str = "site_secret_fingerprint";

/// A runtime with so many threads beside the caller's; none: on that one alone.
///
/// # Errors
/// When the machine gives no thread.
pub fn runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build()
}

/// What a control plane is opened with.
#[derive(Debug)]
pub struct Opening {
    pub state: StateDir,
    pub site: Site,
    pub policies_dir: PathBuf,
    pub world: World,
    pub agents: Arc<dyn Agents>,
    pub calendar: Calendar,
}

/// Opens the ledger and the site's secret. `dial` is how hold signals and channels are reached.
///
/// # Errors
/// Why there is no control plane, as a person is told.
pub async fn open(opening: Opening, dial: Dial) -> Result<Arc<Core>, String> {
    let Opening { state, site, policies_dir, world, agents, calendar } = opening;
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
    Ok(Core::new(Parts { state, site, policies_dir, ledger, world, agents, calendar, secret }, dial))
}

/// A control plane without a supervisor: it has the state folder for itself, and is asked on its own socket.
#[derive(Debug)]
pub struct Alone {
    pub core: Arc<Core>,
    seat: Seat,
    hub: Arc<Hub>,
}

impl Alone {
    /// Opens one on a folder that was taken for it.
    ///
    /// # Errors
    /// As [`open`].
    pub async fn open(
        seat: Seat,
        state: StateDir,
        site: Site,
        world: World,
        calendar: Calendar,
    ) -> Result<Self, String> {
        let hub = Arc::new(Hub::default());
        let (policies_dir, agents) = (site.policies.clone(), Arc::clone(&hub) as Arc<dyn Agents>);
        let opening = Opening { state, site, policies_dir, world, agents, calendar };
        Ok(Self { core: open(opening, Dial::Direct).await?, seat, hub })
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// Why it ended by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), String> {
        let Self { core, seat: Seat { control, agents, taken }, hub } = self;
        let api = serve_direct(control, router(Arc::new(Control(Arc::clone(&core)))), stop.clone());
        let (served, ran) = run(core, api, (hub, agents), stop).await;
        drop(taken);
        served.map_err(|e| format!("could not answer on the control socket: {e}"))?;
        ran.map_err(|e| chain(&e))
    }
}

/// Runs the control plane beside `api`, which answers for it, until `stop`. Whichever ends by itself takes the other along:
/// half a control plane is none.
pub async fn run(
    core: Arc<Core>,
    api: impl Future<Output = io::Result<()>>,
    (hub, agents): (Arc<Hub>, Option<TcpListener>),
    stop: CancellationToken,
) -> (io::Result<()>, Result<(), RunError>) {
    tracing::info!(pid = std::process::id(), site = core.site.name, "the control plane serves");
    let _received = AbortOnDropHandle::new(tokio::spawn(receive_agents(Arc::clone(&core), hub, agents, stop.clone())));
    let ended = tokio::join!(
        async {
            let served = api.await;
            stop.cancel();
            served
        },
        async {
            let ran = super::run(Arc::clone(&core), stop.clone()).await;
            stop.cancel();
            ran
        }
    );
    let closing = core.ledger.clone().close();
    if tokio::time::timeout(LEDGER_CLOSES_WITHIN, closing).await.is_err() {
        tracing::info!("the ledger was not closed in time; nothing is lost by that");
    }
    ended
}

/// Receives agents: those of the embedded cloud, and where the site has a listener for them those of other machines. Without any,
/// everything goes on but the latency monkey, which spares for want of an agent.
async fn receive_agents(core: Arc<Core>, hub: Arc<Hub>, listener: Option<TcpListener>, stop: CancellationToken) {
    let state = core.state.path();
    let secret = match AgentsSecret::keep(&agents::secret_file(state)) {
        Ok(secret) => secret,
        Err(error) => return tracing::error!(%error, "no agents are received: their secret cannot be kept"),
    };
    // Of accounts, what an agent says of its host is held against the picture of them, and where it can be against EC2's signature.
    let prover = (!core.site.accounts.is_empty())
        .then(|| Prover::new(core.site.aws.identity_certs.clone(), Keys::of(state), Arc::new(Seen(Arc::clone(&core)))));
    let reception = Reception::new(hub, secret, prover, stop);
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
}
