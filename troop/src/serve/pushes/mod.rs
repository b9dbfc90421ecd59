//! Pushes: what the API asks about them, and what drives them.
//!
//! A push is saved with every step's intent and with every outcome, in one transaction each, so that a control plane
//! that is started again goes on where the last one was. What to do is decided by `troop_deploy`; here it is recorded
//! and carried out.

mod drive;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize as _;
use tokio::task::JoinSet;
use troop_deploy::machine::Newer;
use troop_deploy::push::Push;
use troop_deploy::rollback;
use troop_ledger::{LedgerError, PushRow};
use troop_policies::GroupName;

use super::control::could_not_ask;
use super::core::Core;
use crate::api::types::{ApiError, ErrorKind, PushTraffic, PushView};
use crate::views::running::push_of;
use crate::world::chain;

pub use drive::{Driver, LOOK_EVERY, Turn, turn};
pub use request::{rollback, start};

/// How many of the newest pushes `troop pushes` shows. A busy team's day.
const SHOWN: u32 = 100;
/// How many of a cluster's newest pushes are looked at for what they mean to each other. Those that are watched,
/// suspended or kept at the same time are a handful.
const LOOKED_AT: u32 = 50;

/// Who holds a cluster's lock, in words that operators read.
fn holder(number: i64) -> String {
    format!("push {number}")
}

/// The number of the push that holds a lock, if one does.
fn number_of(holder: &str) -> Option<i64> {
    holder.strip_prefix("push ")?.parse().ok()
}

/// A cluster's key and lock: `account/region/cluster`.
fn key(push: &Push) -> String {
    format!("{}/{}", push.location(), push.cluster)
}

fn parse(row: &PushRow) -> Result<Push, String> {
    Push::deserialize(&row.body).map_err(|e| format!("push {} in the ledger cannot be read: {e}", row.id))
}

fn number(id: i64) -> u64 {
    u64::try_from(id).unwrap_or(0)
}

/// The open newer push whose way back is this group: from then on the group is that push's to keep or to destroy.
fn way_back_of(id: i64, rows: &[PushRow], group: &GroupName) -> Option<u64> {
    let newer = rows.iter().filter(|row| row.id > id && !row.ended);
    let claims = |row: &&PushRow| parse(row).is_ok_and(|push| push.previous_group() == Some(group));
    newer.into_iter().find(claims).map(|row| number(row.id))
}

/// What newer pushes of the same cluster mean for push `id`. `rows` are of that cluster.
fn newer(id: i64, rows: &[PushRow]) -> Newer {
    let mut newer = Newer::None;
    for row in rows.iter().filter(|row| row.id > id) {
        let Ok(push) = parse(row) else { continue };
        match rollback::newer_of(&push, number(row.id)) {
            soaked @ Newer::Soaked { .. } => return soaked,
            flipped @ Newer::Flipped { .. } => newer = flipped,
            Newer::None => {}
        }
    }
    newer
}

/// The newest pushes, newest first.
///
/// # Errors
/// When the ledger cannot be read, or holds a push of another build.
pub async fn views(core: &Arc<Core>) -> Result<Vec<PushView>, ApiError> {
    let rows = core.ledger.pushes(SHOWN).await.map_err(|e| could_not_ask(&e))?;
    let bug = |why: String| super::control::error(ErrorKind::Bug, why, None);
    let view = |row: &PushRow| Ok(PushView { traffic: core.so_far(row.id).map(PushTraffic::from), ..push_of(row)? });
    rows.iter().map(|row| view(row).map_err(bug)).collect()
}

/// Drives every push that has not ended, each in a task of its own. Never returns.
pub async fn drive_all(core: Arc<Core>) {
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut driven: BTreeMap<i64, tokio::task::Id> = BTreeMap::new();
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            Some(ended) = tasks.join_next_with_id() => {
                let task = match &ended {
                    Ok((task, ())) => *task,
                    Err(e) => {
                        tracing::error!(error = %e, "the driver of a push ended abnormally; another one takes over");
                        e.id()
                    }
                };
                driven.retain(|_, of| *of != task);
                continue;
            }
        }
        let open: Result<Vec<PushRow>, LedgerError> = core.ledger.open_pushes().await;
        core.trouble("pushes", open.as_ref().err().map(|e| chain(e)));
        for row in open.unwrap_or_default() {
            driven.entry(row.id).or_insert_with(|| {
                let core = Arc::clone(&core);
                tasks.spawn(async move { drive::drive(&core, row.id).await }).id()
            });
        }
    }
}
