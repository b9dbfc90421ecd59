//! Intents without an outcome: what a crash, or an answer that never came, left open. They are asked about, never done
//! again.

use std::sync::Arc;

use jiff::Timestamp;
use troop_ledger::{IntentFilter, IntentRow, LedgerError};
use troop_policies::intent::Outcome;
use troop_policies::leash::UNLEASHED_MAX_AGE_MS;

use super::act;
use super::core::Core;
use super::faults;
use crate::records::IntentBody;
use crate::world::chain;

/// How long after an intent was written nobody can be carrying it out any more: the token's age, and the longest call.
const ABANDONED_AFTER_MS: i64 = UNLEASHED_MAX_AGE_MS + 10_000;
/// Unknown outcomes younger than this are asked about again; older ones stay unknown and are the operator's.
const ASK_AGAIN_FOR_S: i64 = 24 * 3_600;

/// Resolves what can be resolved. `at_start` says that this process has just begun: then what it wrote before, as the
/// only control plane of an embedded cloud, cannot be in anybody's hands.
pub async fn tick(core: &Arc<Core>, at_start: bool) {
    match open(core).await {
        Ok(rows) => {
            let now = core.now();
            for row in rows {
                if at_start || abandoned(&row, now) {
                    resolve(core, row).await;
                }
            }
        }
        Err(e) => core.trouble("ledger", Some(chain(&e))),
    }
}

async fn open(core: &Core) -> Result<Vec<IntentRow>, LedgerError> {
    let mut rows = core.ledger.open_intents().await?;
    let unknown = IntentFilter { outcome: Some("unknown".to_owned()), ..IntentFilter::default() };
    rows.extend(core.ledger.intents(&unknown).await?);
    Ok(rows)
}

fn abandoned(row: &IntentRow, now: Timestamp) -> bool {
    let age_ms = now.as_millisecond() - row.real_at.as_millisecond();
    let asked_long_enough = row.outcome.is_some() && age_ms > ASK_AGAIN_FOR_S * 1_000;
    age_ms > ABANDONED_AFTER_MS && !asked_long_enough
}

async fn resolve(core: &Arc<Core>, row: IntentRow) {
    let Ok(IntentBody { intent, .. }) = serde_json::from_value::<IntentBody>(row.body) else {
        return core
            .trouble("resolver", Some(format!("intent {} cannot be read; it stays open and counts as lost", row.id)));
    };
    // An intent of a push is settled by its push, which saves its next phase with it.
    if core.is_in_hand(&intent.id) || matches!(intent.cause, troop_policies::intent::Cause::Push { .. }) {
        return;
    }
    let resolved =
        if intent.step.is_for_agent() { Ok(faults::resolve(core, &intent)) } else { core.world.resolve(&intent).await };
    match resolved {
        // Known to be unknown already: nothing new to write.
        Ok(Outcome::Unknown { .. }) if row.outcome.is_some() => {}
        Ok(outcome) => {
            tracing::info!(intent = %intent.id, ?outcome, "resolved");
            act::settle(core, &intent, &outcome).await;
        }
        Err(e) => core.trouble("resolver", Some(chain(&e))),
    }
}
