//! Watches every kill until its group is whole again or its time is over.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use troop_ledger::LedgerError;
use troop_monkeys::chaos::healing::{Healing, Kill, judge};
use troop_policies::situation::UnhealedMark;
use troop_policies::step::Step;

use super::core::{Core, body, event};
use super::faults::Follower;
use super::look::Look;
use crate::records::{HealingBody, MARK_HEALING, MARK_UNHEALED, Record, intent_key};
use crate::world::chain;

/// How long a control plane that has just begun looks before it calls a kill not healed.
const LATE_LOOKS_FOR: SignedDuration = SignedDuration::from_secs(15);

/// Judges every watched kill by one look. Called several times a second while there are any. Returns whether there are.
pub async fn tick(core: &Arc<Core>, faults: &mut Follower, seen: &Look) -> bool {
    let watched = match core.ledger.marks(MARK_HEALING).await {
        Ok(marks) => marks,
        Err(e) => {
            core.trouble("ledger", Some(chain(&e)));
            return true;
        }
    };
    let any = !watched.is_empty();
    for mark in watched {
        let Ok(kill) = serde_json::from_value::<HealingBody>(mark.body) else {
            core.trouble("healing", Some(format!("the mark of intent {} cannot be read; it stays", mark.key)));
            continue;
        };
        // Until the act itself is settled there is nothing to heal; an intent left open is the resolver's.
        if core.is_in_hand(&kill.intent.id) {
            continue;
        }
        let looked_after = if kill.intent.step.is_for_agent() {
            faults.look_after(core, &kill, seen).await
        } else {
            look_after(core, &kill, seen).await
        };
        if let Err(e) = looked_after {
            core.trouble("ledger", Some(chain(&e)));
        }
    }
    any
}

async fn look_after(core: &Core, kill: &HealingBody, seen: &Look) -> Result<(), LedgerError> {
    let Step::Terminate { group, instance, .. } = &kill.intent.step else { return Ok(()) };
    // A registry that has just begun lists only some of what runs: nothing is judged by it, also not late.
    if matches!(&seen.registry, Ok(view) if view.warming) {
        return Ok(());
    }
    let inventory = seen.inventory(&kill.intent.location()).cloned();
    let judged = judge(Kill { group, instance, deadline: deadline(core, kill) }, &inventory, &seen.registry, seen.at);
    let (intent, draw_key) = (kill.intent.id.clone(), intent_key(&kill.intent));
    let (group, instance) = (group.clone(), instance.clone());
    match judged {
        Healing::Waiting { why } => {
            tracing::debug!(%instance, why, "not healed yet");
            Ok(())
        }
        Healing::Healed => {
            let seconds = seconds_between(kill.killed_at, seen.at);
            tracing::info!(%instance, %group, seconds, "healed");
            let mut tx = core.ledger.begin().await?;
            tx.clear_mark(MARK_HEALING, intent.as_str()).await?;
            tx.append(event(&Record::Healed { intent, draw_key, group, instance, seconds }, None)).await?;
            tx.commit().await
        }
        Healing::NotHealed { why } => {
            let after_seconds = seconds_between(kill.killed_at, seen.at);
            tracing::warn!(%instance, %group, after_seconds, why, "not healed");
            let unhealed = UnhealedMark { since: kill.deadline, why: format!("after the end of {instance}: {why}") };
            let mut tx = core.ledger.begin().await?;
            tx.clear_mark(MARK_HEALING, intent.as_str()).await?;
            tx.set_mark(MARK_UNHEALED, &draw_key, body(&unhealed)).await?;
            tx.append(event(&Record::NotHealed { intent, draw_key, group, instance, after_seconds, why }, None))
                .await?;
            tx.commit().await
        }
    }
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// When a kill counts as not healed. A control plane that finds the time over when it begins looks for a while itself:
/// the group may be whole, and only nobody was there to see it.
fn deadline(core: &Core, kill: &HealingBody) -> Timestamp {
    if kill.killed_at >= core.started_at {
        return kill.deadline;
    }
    kill.deadline.max(core.started_at.checked_add(LATE_LOOKS_FOR).unwrap_or(kill.deadline))
}
