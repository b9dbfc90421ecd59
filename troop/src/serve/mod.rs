//! The control plane: plans, kills, watches what heals, drives pushes, keeps the registry clean, tells teams, answers the
//! API.
//!
//! One look at the world a tick is shared by the parts that only watch; whoever is about to harm looks again for
//! itself. Nothing is kept only in memory that a restart would need.

pub mod act;
pub mod control;
pub mod core;
mod demand;
pub mod faults;
pub mod halt;
pub mod healer;
pub mod holds;
pub mod host;
pub mod janitor;
pub mod ledger_seen;
pub mod look;
pub mod notices;
pub mod planner;
pub mod policy_store;
pub mod process;
pub mod pushes;
pub mod ready;
pub mod resolver;
mod sightings;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use troop_ledger::LedgerError;

use self::core::Core;
use self::policy_store::Policies;
use crate::records::Record;
use crate::world::chain;

/// How often the world is looked at while a kill heals, or the calendar is the demo's: what comes due then, and how long
/// a heal took, is told by it. The embedded cloud answers in a millisecond.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is looked at while nothing heals. A look reads and parses all of the inventory and the registry, which is
/// nearly all that an idle control plane costs; a drawn minute and a corpse's entry can wait a second.
const LOOK_EVERY_IDLE: Duration = Duration::from_secs(1);
/// How often the policies directory is read.
const POLICIES_EVERY: Duration = Duration::from_secs(1);
/// How often intents left open are asked about.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);

/// How often it is made sure that the ledger's file is still the one that was opened.
const LEDGER_EVERY: Duration = Duration::from_secs(1);

/// Why the control plane ended without having been told to. Whoever started it starts it again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// None does but by a bug of ours. Half a control plane is none.
    #[error("a part of the control plane ended by itself")]
    PartEnded,
    /// The next one looks at what is there now, and waits until it is the right one.
    #[error("the control plane cannot go on with its ledger")]
    Ledger(#[source] LedgerError),
}

/// Runs every part until `stop`. Acts that have begun are finished by their own tasks.
///
/// # Errors
/// [`RunError`].
pub async fn run(core: Arc<Core>, stop: CancellationToken) -> Result<(), RunError> {
    // What a crash left open is asked about before anything new is begun.
    resolver::tick(&core, true).await;
    reload(&core).await;
    let mut parts = JoinSet::new();
    parts.spawn(halt::watch(Arc::clone(&core)));
    parts.spawn(watch_policies(Arc::clone(&core)));
    parts.spawn(watch_world(Arc::clone(&core)));
    parts.spawn(resolve(Arc::clone(&core)));
    parts.spawn(pushes::drive_all(Arc::clone(&core)));
    parts.spawn(ready::watch(Arc::clone(&core)));
    if !core.site.channels.is_empty() {
        parts.spawn(notices::run(Arc::clone(&core)));
    }
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = parts.join_next() => {
            tracing::error!(?ended, "a part of the control plane ended by itself");
            Err(RunError::PartEnded)
        }
        why = ledger_is_lost(&core) => Err(RunError::Ledger(why)),
    };
    parts.shutdown().await;
    ended
}

async fn watch_world(core: Arc<Core>) {
    let mut planner = planner::Planner::default();
    let mut janitor = janitor::Janitor::default();
    let mut faults = faults::Follower::default();
    loop {
        let seen = look::look(&core).await;
        let healing = healer::tick(&core, &mut faults, &seen).await;
        planner::tick(&core, &mut planner, &seen).await;
        janitor.tick(&core, &seen).await;
        core.trouble("clock", core.clock().err());
        let pause = if healing || !core.calendar.is_real() { LOOK_EVERY } else { LOOK_EVERY_IDLE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.struck.notified() => {}
        }
    }
}

async fn resolve(core: Arc<Core>) {
    let mut every = tokio::time::interval(RESOLVE_EVERY);
    loop {
        every.tick().await;
        resolver::tick(&core, false).await;
    }
}

async fn ledger_is_lost(core: &Core) -> LedgerError {
    let mut every = tokio::time::interval(LEDGER_EVERY);
    loop {
        every.tick().await;
        if let Err(why) = core.ledger.is_in_place() {
            return why;
        }
    }
}

async fn watch_policies(core: Arc<Core>) {
    let mut every = tokio::time::interval(POLICIES_EVERY);
    loop {
        every.tick().await;
        reload(&core).await;
    }
}

/// Reads the policies directory and takes up what changed. A file that turned bad spares its team from now on.
pub async fn reload(core: &Core) {
    let directory = core.policies_dir.clone();
    let fresh = match tokio::task::spawn_blocking(move || policy_store::load(&directory)).await {
        Ok(fresh) => fresh,
        Err(e) => {
            let problem = Some(format!("the policies could not be read: {e}"));
            Policies { files: Vec::new(), problem }
        }
    };
    take_up(core, fresh).await;
}

/// Takes up policies that were read, and records what changed.
pub async fn take_up(core: &Core, fresh: Policies) {
    let old = core.policies.load_full();
    if fresh.same_as(&old) {
        return;
    }
    core.trouble("policies", fresh.problem.clone());
    notices::note_unknown(core, &fresh);
    for file in &fresh.files {
        let before = old.files.iter().find(|f| f.file == file.file);
        let record = match &file.result {
            Ok(team) if !before.is_some_and(|b| b.result.is_ok() && b.same_text(file)) => {
                Record::PolicyTaken { file: file.file.clone(), team: team.policy.team.clone() }
            }
            Err(why) if before.and_then(|b| b.result.as_ref().err()) != Some(why) => {
                tracing::warn!(file = file.file, why, "policy is bad: its team is spared");
                let team = file.team.clone().or_else(|| before.and_then(|b| b.team.clone()));
                Record::PolicyBad { file: file.file.clone(), team, why: why.clone() }
            }
            Ok(_) | Err(_) => continue,
        };
        let written = core.record(&record, None).await;
        core.trouble("ledger", written.err().map(|e| chain(&e)));
    }
    core.policies.store(Arc::new(fresh));
}
