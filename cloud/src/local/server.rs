//! The cloud process: owns groups, instances, images and STATE/cloud, and answers on STATE/run/cloud.sock.
//!
//! One loop owns the [`Controller`] and the tokens and takes one thing after the other; connections, launches and
//! imports run beside it and only send it messages. For an intent the order is: token on disk, decision, state on disk,
//! effects, result on disk, answer.

mod connections;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use troop_policies::chain;
use troop_policies::ids::BadId;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::step::Step;
use troop_policies::{AccountName, InstanceId, IntentId, RegionName, ZoneName};

use super::client::{SOCKET_PATH_MAX_BYTES, socket_path};
use super::controller::{Controller, Effect, Event, Now, Settings, TERM_TO_KILL};
use super::image::{self, ImageError, Package};
use super::init::Clock;
use super::logs;
use super::network::Network;
use super::protocol::{Request, Response, Routes};
use super::runtime::{Exit, Runtime};
use super::state::{Saved, Seen, StateError, Tokens};

/// The embedded cloud's account.
pub(crate) const ACCOUNT: &str = "local";
/// Its one region.
pub(crate) const REGION: &str = "r1";
/// The region's zones, in the order of their networks.
pub(crate) const ZONES: [&str; 3] = ["r1a", "r1b", "r1c"];

/// How often old tokens, and logs of instances that are gone, are removed.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
/// How long instances may take to be gone after SIGKILL, before the cloud process ends without having seen it.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// How long the last answers may take to be written.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);
/// Messages that wait for the loop. A client or worker that sends more waits itself.
const QUEUE: usize = 256;

/// What the cloud process is started with.
#[derive(Debug, Clone)]
pub(crate) struct ServerSpec {
    /// STATE.
    pub(crate) state_dir: PathBuf,
    pub(crate) boot_delay: Duration,
    /// How long a young instance may be unhealthy before it is replaced.
    pub(crate) grace: Duration,
    /// Handed to every instance as it is.
    pub(crate) eureka_url: String,
    /// Where instances' addresses come from.
    pub(crate) network: Network,
    /// Images with a lower port are refused.
    pub(crate) port_min: u16,
}

/// Why the cloud process could not start. (Once started, it answers errors and lives on.)
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error("could not {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the path of the socket `{path}` is longer than {SOCKET_PATH_MAX_BYTES} bytes; give a shorter --state")]
    PathTooLong { path: PathBuf },
    #[error("could not read the cloud's state")]
    State(#[source] StateError),
    #[error("could not read the stored images")]
    Images(#[source] ImageError),
    #[error("the saved state `{path}` does not fit: {why}")]
    Unfit { path: PathBuf, why: String },
    #[error("a built-in name is none")]
    Name(#[from] BadId),
}

/// What the loop is told.
#[derive(Debug)]
enum Message {
    Request { request: Request, reply: oneshot::Sender<Response> },
    Event(Event),
    Imported { result: Result<Package, ImageError>, reply: oneshot::Sender<Response> },
}

struct Server {
    controller: Controller,
    tokens: Tokens,
    saved: Saved,
    state_file: PathBuf,
    images: PathBuf,
    logs: PathBuf,
    clock: Clock,
    began: Instant,
    /// When the controller last looked at the time. Requests that only read must not put that off.
    advanced: Instant,
    runtime: Arc<dyn Runtime>,
    routes: watch::Sender<Arc<Routes>>,
    messages: mpsc::Sender<Message>,
    /// Who waits for an intent's outcome.
    waiting: BTreeMap<IntentId, Vec<oneshot::Sender<Response>>>,
    /// Who asked for the shutdown.
    last_words: Vec<oneshot::Sender<Response>>,
    closing: bool,
    /// Launches, clearings and imports under way.
    tasks: JoinSet<()>,
}

/// Runs the cloud process until `stop` or a [`Request::Shutdown`], then ends every instance in order: SIGTERM, SIGKILL
/// after 2 s. `ready` is called once the socket answers and the saved groups are being begun.
///
/// # Errors
/// [`ServerError`] when the saved state cannot be used; no instance was started then.
pub(crate) async fn run(
    spec: ServerSpec,
    runtime: Arc<dyn Runtime>,
    mut exits: mpsc::UnboundedReceiver<Exit>,
    clock: Clock,
    ready: Box<dyn FnOnce() + Send>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let (messages, mut inbox) = mpsc::channel(QUEUE);
    let mut server = Server::load(&spec, runtime, clock, messages.clone())?;
    let socket = socket_path(&spec.state_dir);
    let listener = listen(&socket)?;
    let connections = CancellationToken::new();
    let accepting =
        tokio::spawn(connections::accept(listener, messages, server.routes.subscribe(), connections.clone()));
    server.feed(Event::Tick);
    ready();

    let mut prune = tokio::time::interval(PRUNE_EVERY);
    let mut close_by = None;
    loop {
        let tick = tokio::time::sleep_until(server.advanced + server.controller.tick_in());
        tokio::select! {
            () = stop.cancelled(), if !server.closing => server.close(),
            Some(message) = inbox.recv() => server.take(message),
            Some(exit) = exits.recv() => {
                server.feed(Event::Exited { instance: exit.instance, status: exit.status });
            }
            Some(_) = server.tasks.join_next() => {}
            _ = prune.tick() => server.prune(),
            () = tick => server.feed(Event::Tick),
        }
        if server.closing {
            let close_by = *close_by.get_or_insert(Instant::now() + TERM_TO_KILL + GONE_WITHIN);
            if server.controller.is_empty() || Instant::now() >= close_by {
                break;
            }
        }
    }
    // Clearing up after the last instance, but no more of anything else.
    let clearing = async { while server.tasks.join_next().await.is_some() {} };
    let _or_not = tokio::time::timeout(LAST_WORDS_WITHIN, clearing).await;
    for reply in server.last_words.drain(..) {
        drop(reply.send(Response::Ok));
    }
    // Whoever still waits for an outcome sees the connection end, which is `Unknown`.
    server.waiting.clear();
    drop(inbox);
    connections.cancel();
    let _or_not = tokio::time::timeout(LAST_WORDS_WITHIN, accepting).await;
    drop(fs::remove_file(&socket));
    Ok(())
}

/// Opens the socket for its owner alone, in place of a stale one. Never, not even for a moment, for others.
fn listen(socket: &Path) -> Result<UnixListener, ServerError> {
    let error = |what| move |source| ServerError::Io { what, path: socket.to_owned(), source };
    let folder = socket.parent().unwrap_or(Path::new("."));
    if socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
        return Err(ServerError::PathTooLong { path: socket.to_owned() });
    }
    fs::create_dir_all(folder).map_err(error("make the folder of"))?;
    // Under a name that is no longer than the last one, so that it fits where that one does.
    let unready = folder.join(".cloud.new");
    match fs::remove_file(&unready) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error("replace the stale")(e)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&unready).map_err(error("open"))?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&unready, private).map_err(error("protect"))?;
    fs::rename(&unready, socket).map_err(error("name"))?;
    Ok(listener)
}

impl Server {
    fn load(
        spec: &ServerSpec,
        runtime: Arc<dyn Runtime>,
        clock: Clock,
        messages: mpsc::Sender<Message>,
    ) -> Result<Self, ServerError> {
        let cloud = spec.state_dir.join("cloud");
        let (images, logs) = (cloud.join("images"), cloud.join("logs"));
        fs::create_dir_all(&logs).map_err(|source| ServerError::Io { what: "make", path: logs.clone(), source })?;
        let state_file = cloud.join("state.json");
        let saved = Saved::load(&state_file).map_err(ServerError::State)?;
        let tokens = Tokens::load(&cloud.join("tokens")).map_err(ServerError::State)?;
        let packages = image::load_all(&images).map_err(ServerError::Images)?;
        let settings = Settings {
            account: AccountName::new(ACCOUNT)?,
            region: RegionName::new(REGION)?,
            zones: ZONES.iter().map(|zone| ZoneName::new(*zone)).collect::<Result<_, _>>()?,
            boot_delay: spec.boot_delay,
            grace: spec.grace,
            eureka_url: spec.eureka_url.clone(),
            network: spec.network,
            port_min: spec.port_min,
            images: images.clone(),
            logs: logs.clone(),
        };
        let unfit = |why| ServerError::Unfit { path: state_file.clone(), why };
        let controller = Controller::new(settings, packages, saved.clone()).map_err(unfit)?;
        Ok(Self {
            controller,
            tokens,
            saved,
            state_file,
            images,
            logs,
            clock,
            began: Instant::now(),
            advanced: Instant::now(),
            runtime,
            routes: watch::Sender::new(Arc::default()),
            messages,
            waiting: BTreeMap::new(),
            last_words: Vec::new(),
            closing: false,
            tasks: JoinSet::new(),
        })
    }

    fn now(&self) -> Now {
        Now { at: (self.clock)(), mono: self.began.elapsed() }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.feed(event),
            Message::Imported { result, reply } => self.imported(result, reply),
            Message::Request { request, reply } => {
                if let Some((reply, response)) = self.answer(request, reply) {
                    // A client that has gone away needs no answer.
                    drop(reply.send(response));
                }
            }
        }
    }

    /// The answer, where there is one at once.
    fn answer(
        &mut self,
        request: Request,
        reply: oneshot::Sender<Response>,
    ) -> Option<(oneshot::Sender<Response>, Response)> {
        let response = match request {
            Request::Inventory { region } => match self.other_region(&region) {
                Some(error) => error,
                None => Response::Inventory(self.controller.inventory(self.now().at)),
            },
            Request::Images => Response::Images(self.controller.images()),
            Request::Traffic { region, cluster } => match self.other_region(&region) {
                Some(error) => error,
                None => Response::Traffic(self.controller.traffic(&cluster)),
            },
            Request::Perform { intent } => return self.perform(intent, reply),
            Request::Resolve { intent } => Response::Outcome(self.resolve(&intent)),
            Request::Mark { group, mark } => self.mark(group, mark),
            Request::ImportImage { path } => {
                self.import(path, reply);
                return None;
            }
            Request::Processes => Response::Processes(self.controller.processes()),
            Request::Shutdown => {
                self.last_words.push(reply);
                self.close();
                return None;
            }
        };
        Some((reply, response))
    }

    fn other_region(&self, region: &RegionName) -> Option<Response> {
        let own = self.controller.region();
        (region != own).then(|| Response::Error(format!("there is no region `{region}` here, only `{own}`")))
    }

    fn perform(
        &mut self,
        intent: Box<Intent>,
        reply: oneshot::Sender<Response>,
    ) -> Option<(oneshot::Sender<Response>, Response)> {
        let answer = |reply, outcome| Some((reply, Response::Outcome(outcome)));
        if let Some(why) = self.not_ours(&intent) {
            return answer(reply, Outcome::refused(why));
        }
        match self.tokens.look(&intent) {
            Seen::Settled(outcome) => return answer(reply, outcome),
            Seen::Begun => {
                if let Some(waiting) = self.waiting.get_mut(&intent.id) {
                    waiting.push(reply);
                    return None;
                }
                return answer(reply, self.begun_before(&intent));
            }
            Seen::OtherStep => return answer(reply, Outcome::refused(other_step(&intent))),
            Seen::MaybeForgotten => return answer(reply, Outcome::refused(maybe_forgotten())),
            Seen::Never => {}
        }
        let now = self.now();
        if let Err(e) = self.tokens.begin(&intent, now.at) {
            return answer(
                reply,
                Outcome::refused(format!("the token could not be written, so nothing was done: {e}")),
            );
        }
        self.waiting.insert(intent.id.clone(), vec![reply]);
        let before = self.controller.clone();
        let id = intent.id.clone();
        let effects = self.controller.on(Event::Perform(intent), now, &mut random);
        match self.save() {
            Ok(()) => self.carry_out(effects),
            Err(e) => {
                // What could not be saved has not been decided.
                self.controller = before;
                self.settle(&id, Outcome::refused(format!("the state could not be written, so nothing was done: {e}")));
            }
        }
        None
    }

    /// Reads back what became of an intent. One that never came is refused from now on, so that the answer stays true.
    fn resolve(&mut self, intent: &Intent) -> Outcome {
        if let Some(why) = self.not_ours(intent) {
            return Outcome::refused(why);
        }
        match self.tokens.look(intent) {
            Seen::Settled(outcome) => outcome,
            Seen::Begun if self.waiting.contains_key(&intent.id) => Outcome::unknown("it is being carried out"),
            Seen::Begun => self.begun_before(intent),
            Seen::OtherStep => Outcome::unknown(other_step(intent)),
            Seen::MaybeForgotten => Outcome::unknown(maybe_forgotten()),
            Seen::Never => {
                let refused = Outcome::refused("never reached the cloud");
                match self.tokens.bury(intent, (self.clock)(), refused.clone()) {
                    Ok(()) => refused,
                    Err(e) => Outcome::unknown(format!("it has not come yet, and that could not be written: {e}")),
                }
            }
        }
    }

    /// What became of an intent that the process before this one began: what is saved of groups and routes shows it, and
    /// nobody is at it any more. Of a kill nothing shows it, for every instance is gone.
    fn begun_before(&mut self, intent: &Intent) -> Outcome {
        let unknown = "it was begun before the cloud was started again, and how far it came was not written";
        if matches!(intent.step, Step::Terminate { .. }) {
            return Outcome::unknown(unknown);
        }
        let outcome = match intent.step.seen_in(&self.controller.inventory((self.clock)())) {
            Some(true) => Outcome::done("seen when the cloud had been started again"),
            Some(false) => Outcome::refused("not done when the cloud was started again"),
            None => return Outcome::unknown(unknown),
        };
        // Written first: what is said once stays true, whatever others do to the group.
        match self.tokens.settle(&intent.id, outcome.clone()) {
            Ok(()) => outcome,
            Err(e) => Outcome::unknown(format!("{unknown}; what is seen now could not be written: {e}")),
        }
    }

    /// Why an intent is not for this cloud. Such a one never takes a token.
    fn not_ours(&self, intent: &Intent) -> Option<String> {
        if intent.account.as_str() != ACCOUNT || intent.region != *self.controller.region() {
            return Some(format!(
                "this is account `{ACCOUNT}`, region `{REGION}`, not `{}`, `{}`",
                intent.account, intent.region
            ));
        }
        let kind = intent.step.kind();
        intent.step.is_for_registry().then(|| format!("`{kind}` is the registry's to do, not the cloud's"))
    }

    fn mark(&mut self, group: troop_policies::GroupName, mark: String) -> Response {
        if !self.controller.has_group(&group) {
            return Response::Error(format!("there is no group `{group}` to be marked"));
        }
        let before = self.controller.clone();
        let effects = self.controller.on(Event::Mark { group, mark }, self.now(), &mut random);
        match self.save() {
            Ok(()) => {
                self.carry_out(effects);
                Response::Ok
            }
            Err(e) => {
                self.controller = before;
                Response::Error(format!("the mark could not be written: {e}"))
            }
        }
    }

    fn import(&mut self, path: PathBuf, reply: oneshot::Sender<Response>) {
        let (images, now, messages) = (self.images.clone(), (self.clock)(), self.messages.clone());
        // On a thread of its own: hashing a large image must not stop the loop.
        self.tasks.spawn(async move {
            let import = tokio::task::spawn_blocking(move || image::import(&images, &path, now)).await;
            if let Ok(result) = import {
                drop(messages.send(Message::Imported { result, reply }).await);
            }
        });
    }

    fn imported(&mut self, result: Result<Package, ImageError>, reply: oneshot::Sender<Response>) {
        let response = match result {
            Ok(package) => match self.controller.refuses(&package) {
                Some(why) => Response::Error(why),
                None => {
                    let image = package.image.clone();
                    self.feed(Event::Imported(Box::new(package)));
                    Response::Image(image)
                }
            },
            Err(error) => Response::Error(chain(&error)),
        };
        drop(reply.send(response));
    }

    fn close(&mut self) {
        self.closing = true;
        self.feed(Event::Close);
    }

    /// Tells the controller of what has happened already, and carries out what follows. What it changes in the state
    /// can be derived again, so a disk that refuses it holds nothing up; the next event tries again.
    fn feed(&mut self, event: Event) {
        let now = self.now();
        self.advanced = Instant::now();
        let effects = self.controller.on(event, now, &mut random);
        if let Err(error) = self.save() {
            tracing::error!(path = %self.state_file.display(), %error, "the cloud's state could not be written");
        }
        self.carry_out(effects);
    }

    /// Has the controller's state on disk, where it changed.
    fn save(&mut self) -> io::Result<()> {
        let saved = self.controller.saved();
        if saved != self.saved {
            saved.store(&self.state_file)?;
            self.saved = saved;
        }
        Ok(())
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish(routes) => drop(self.routes.send_replace(routes)),
                Effect::Launch(launch) => {
                    let (runtime, messages) = (Arc::clone(&self.runtime), self.messages.clone());
                    self.tasks.spawn(async move {
                        let instance = launch.instance.clone();
                        let event = match runtime.launch(*launch).await {
                            Ok(pid) => Event::Launched { instance, pid },
                            Err(failed) => {
                                let why = format!("{}: {} (errno {})", failed.step, failed.detail, failed.errno);
                                Event::LaunchFailed { instance, why }
                            }
                        };
                        drop(messages.send(Message::Event(event)).await);
                    });
                }
                Effect::End { instance, by } => self.runtime.end(&instance, by),
                Effect::Clean { instance } => {
                    let runtime = Arc::clone(&self.runtime);
                    self.tasks.spawn(async move { runtime.clean(&instance).await });
                }
                Effect::Settle { intent, outcome } => self.settle(&intent, outcome),
            }
        }
    }

    fn settle(&mut self, intent: &IntentId, outcome: Outcome) {
        if let Err(error) = self.tokens.settle(intent, outcome.clone()) {
            tracing::error!(%intent, %error, "a result could not be written; after a restart it would be unknown");
        }
        for reply in self.waiting.remove(intent).unwrap_or_default() {
            drop(reply.send(Response::Outcome(outcome.clone())));
        }
    }

    fn prune(&mut self) {
        if let Err(error) = self.tokens.prune((self.clock)()) {
            tracing::warn!(%error, "old tokens could not be removed");
        }
        let folder = self.logs.clone();
        let living: BTreeSet<InstanceId> = self.controller.processes().into_iter().map(|row| row.instance).collect();
        // On a thread of its own: a slow disk must not stop the loop.
        self.tasks.spawn(async move {
            let pruned = tokio::task::spawn_blocking(move || logs::prune(&folder, |id| living.contains(id))).await;
            if let Ok(Err(error)) = pruned {
                tracing::warn!(%error, "old logs of instances could not be removed");
            }
        });
    }
}

fn other_step(intent: &Intent) -> String {
    format!("the intent id `{}` was used for another step", intent.id)
}

fn maybe_forgotten() -> String {
    "it is older than the results that are kept".to_owned()
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator errs only where getrandom(2) is forbidden; instance ids need only to differ from each
    // other, which the controller checks.
    let _filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
