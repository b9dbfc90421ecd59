//! The agent's loop: one thread that hears the control plane, the clock, its planes and signals, and carries out what
//! `troop_agent_core::host` decides.

mod carry;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;
use troop_agent_core::protocol::{Capabilities, FromAgent, Hello, OLDEST_VERSION, PlaneSeen, ToAgent, VERSION};
use troop_policies::chain;

use crate::channel::{self, Event};
use crate::clock;
use crate::config::{ConfigError, HostPolicy};
use crate::identity::{self, IdentityError, Own};
use crate::join::Joining;
use crate::keep::{Keep, KeepError};
use crate::netlink::{Netlink, NetlinkError};
use crate::parameter::ParameterError;
use crate::plane::{By, Plane};
use crate::undo::{Journal, JournalError, Place, Report};
use carry::Agent;

/// How often the planes and the halt file are looked at while a fault is there. Never while none is.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    pub joining: Joining,
    /// The agent's own folder: the journal, and what it remembers.
    pub state: PathBuf,
    pub config: PathBuf,
    /// How a guardian is started: the program, and its arguments but for the agent's number and the journal.
    pub guardian: (PathBuf, Vec<String>),
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Token(#[from] ParameterError),
    #[error("could not open netlink")]
    Netlink(#[from] NetlinkError),
    #[error("could not {0}")]
    System(&'static str, #[source] io::Error),
    /// What was left by an earlier agent could not be taken down; the journal keeps it.
    #[error("{left} changes of an earlier agent could not be undone")]
    Left { left: usize },
}

impl AgentError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Config(e) => e.hint(),
            Self::Keep(e) => e.hint(),
            Self::Identity(e) => e.hint(),
            Self::Token(e) => e.hint(),
            Self::Journal(_) => "without a journal nothing is changed; make room, or mend its folder",
            Self::Netlink(_) | Self::System(..) => "`troop-agent probe` says what this host lacks",
            Self::Left { .. } => "`troop-agent heal` says what stands in the way",
        }
    }
}

/// What an agent has left, undone by hand: one that runs ends its faults as well, also those that it was only about to put up.
///
/// # Errors
/// [`AgentError`] when it cannot be told.
pub fn heal(state: &Path) -> Result<Report, AgentError> {
    let mark = mark_of(state);
    let mut journal = journal(state)?;
    std::fs::write(&mark, "").map_err(|e| AgentError::System("tell the agent to end its faults", e))?;
    if !journal.leases()?.is_empty() {
        // It lets go in order what it holds, which whoever takes its devices away does not.
        let until = clock::now().after(LET_GO_MAX);
        while mark.exists() && clock::now() < until {
            std::thread::sleep(LET_GO_LOOK);
        }
    }
    undo(&mut journal)
}

/// How long a running agent has for ending its faults when somebody heals by hand: it looks five times a second. One that is dead or
/// stands still makes nobody wait longer.
const LET_GO_MAX: Duration = Duration::from_millis(600);
const LET_GO_LOOK: Duration = Duration::from_millis(10);

fn journal(state: &Path) -> Result<Journal, AgentError> {
    let place = Place::here().map_err(|e| AgentError::System("see where this is", e))?;
    Ok(Journal::open(&journal_of(state), place)?)
}

/// What is left of an earlier agent, undone.
fn undo(journal: &mut Journal) -> Result<Report, AgentError> {
    let _hold = journal.hold()?;
    Ok(journal.undo_all(&mut Netlink::route()?)?)
}

/// There since somebody has healed by hand, until the agent has seen it.
fn mark_of(state: &Path) -> PathBuf {
    state.join("healed")
}

/// Where the journal is, in an agent's folder.
pub fn journal_of(state: &Path) -> PathBuf {
    state.join("undo")
}

/// What was found to be possible here.
pub fn capabilities(planes: &[Box<dyn Plane>], lacks: Vec<String>, policy: &HostPolicy) -> Capabilities {
    let by = |by| match by {
        By::Kernel => "kernel".to_owned(),
        By::Guardian => "guardian".to_owned(),
    };
    let seen = |plane: &dyn Plane| PlaneSeen {
        name: plane.name().to_owned(),
        on_death: by(plane.backing().on_death),
        on_hang: by(plane.backing().on_hang),
    };
    Capabilities {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        planes: planes.iter().map(|plane| seen(plane.as_ref())).collect(),
        lacks,
        allows: policy.in_words(),
    }
}

/// Runs until SIGTERM: then everything is healed first.
///
/// # Errors
/// [`AgentError`] when it cannot begin.
pub async fn run(setup: Setup) -> Result<(), AgentError> {
    let policy = HostPolicy::read(&setup.config)?;
    let mut keep = Keep::open(&setup.state)?;
    let mut journal = journal(&setup.state)?;
    let report = undo(&mut journal)?;
    if !report.failed.is_empty() {
        return Err(AgentError::Left { left: report.failed.len() });
    }
    let table = keep.table(clock::now());
    keep.keep(&table)?;
    let Joining { to, token, who } = setup.joining.clone();
    let own = identity::find(&who).await?;
    let token = token.read().await?;
    let found = crate::planes::available(&policy);
    let capabilities = capabilities(&found.planes, found.lacks, &policy);
    let (tell, mut told) = mpsc::channel(64);
    let mut agent = Agent::new(carry::Parts {
        table,
        keep,
        journal,
        planes: found.planes,
        policy,
        guardian: setup.guardian.clone(),
        mark: mark_of(&setup.state),
        journal_folder: journal_of(&setup.state),
        measured: tell,
    });
    let (events, mut heard) = mpsc::channel(64);
    tokio::spawn(channel::keep(to, token, events));
    let mut term = signal(SignalKind::terminate()).map_err(|e| AgentError::System("watch for SIGTERM", e))?;
    let mut int = signal(SignalKind::interrupt()).map_err(|e| AgentError::System("watch for SIGINT", e))?;
    // Why there is no connection, as it was logged last: once for every reason, and not with every attempt.
    let mut trouble = None;
    let mut refused = false;
    loop {
        let wait = agent.next_deadline().map(|deadline| deadline.since(clock::now()));
        let wait = if agent.is_idle() { wait } else { Some(wait.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)) };
        tokio::select! {
            event = heard.recv() => match event {
                Some(Event::Up { sender, ends, nonce }) => {
                    let hello = hello(&own, nonce.as_deref(), &agent, &capabilities);
                    let alive = sender.send(&FromAgent::Hello(hello));
                    agent.connected(alive.then_some(sender), ends);
                }
                Some(Event::Message(ToAgent::Welcome { .. })) => {
                    tracing::info!("the control plane has received this agent");
                    trouble = None;
                    agent.tell_everything();
                }
                Some(Event::Message(ToAgent::Refused { why })) => {
                    if trouble.as_ref() != Some(&why) {
                        tracing::warn!(why, "the control plane does not receive this agent");
                        trouble = Some(why);
                    }
                    refused = true;
                }
                Some(Event::Message(message)) => hear(&mut agent, message),
                Some(Event::Down(why)) => {
                    let why = Some(chain(&why));
                    // That the connection ends after a refusal is no news.
                    if !std::mem::take(&mut refused) && trouble != why {
                        tracing::warn!(why, "there is no connection to the control plane");
                        trouble = why;
                    }
                    agent.connected(None, Vec::new());
                }
                // It never ends while we listen.
                None => return Ok(()),
            },
            found = told.recv() => if let Some(found) = found {
                agent.measured(found);
            },
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => agent.look(),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    agent.end();
    Ok(())
}

fn hello(own: &Own, nonce: Option<&str>, agent: &Agent, capabilities: &Capabilities) -> Hello {
    Hello {
        newest_version: VERSION,
        oldest_version: OLDEST_VERSION,
        instance: own.host.clone(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        highest_number: agent.highest_number(),
        host: capabilities.clone(),
        // A control plane that sends no nonce is one release older, and could not check it.
        identity: nonce.and_then(|nonce| own.identity(nonce)),
    }
}

fn hear(agent: &mut Agent, message: ToAgent) {
    match message.ordered() {
        Ok(Some(ordered)) => agent.handle(ordered),
        Ok(None) => {}
        // Nobody can carry it out, so nothing is; its sender hears nothing and gives up.
        Err(why) => tracing::warn!(why = %chain(&why), "a command that cannot be"),
    }
}
