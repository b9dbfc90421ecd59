//! The halt: a file first, a row in the ledger after it. The file alone decides.

use std::sync::Arc;
use std::time::Duration;

use troop_ledger::EventFilter;
use troop_policies::situation::Halted;

use super::core::Core;
use crate::records::Record;
use crate::state::StateError;
use crate::world::chain;

/// How often the file is looked at. Acts look for themselves, right before they act.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Halts, in the name of `who`.
///
/// # Errors
/// When the file cannot be written: then nothing is halted, and the caller must say so.
pub async fn halt(core: &Core, who: &str, why: &str) -> Result<(), StateError> {
    let halted = Halted { who: who.to_owned(), at: core.now(), why: why.to_owned() };
    core.host.set_halt(&halted)?;
    follow(core).await;
    Ok(())
}

/// Ends a halt, in the name of `who`, for a reason.
///
/// # Errors
/// When the file cannot be removed: then the halt stands.
pub async fn resume(core: &Core, who: &str, why: &str) -> Result<(), StateError> {
    // The halt's own row first, so that the two never stand in the wrong order.
    follow(core).await;
    core.host.end_halt()?;
    let written = core.record(&Record::Resumed { who: who.to_owned(), why: why.to_owned() }, Some(who)).await;
    core.trouble("ledger", written.err().map(|e| chain(&e)));
    // Whoever asks for a fault from now on finds agents that know it.
    core.agents.set_halted(core.is_halted());
    Ok(())
}

/// Watches the file for as long as the control plane runs, so that the ledger's row follows a halt typed without it.
pub async fn watch(core: Arc<Core>) {
    let mut was_halted = None;
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        every.tick().await;
        let halted = core.is_halted();
        // Each time, whoever may have told them otherwise meanwhile.
        core.agents.set_halted(halted);
        if was_halted != Some(halted) {
            tracing::info!(halted, "halt state");
            follow(&core).await;
            was_halted = Some(halted);
        }
    }
}

/// Writes the row of a halt that has none yet.
async fn follow(core: &Core) {
    let halted = match core.halt() {
        Ok(None) => return,
        Ok(Some(halted)) => halted,
        Err(why) => Halted { who: "unknown".to_owned(), at: core.now(), why },
    };
    let newest = EventFilter {
        kinds: vec!["halted".to_owned(), "resumed".to_owned()],
        newest_first: true,
        limit: Some(1),
        ..EventFilter::default()
    };
    let stands = match core.ledger.events(&newest).await {
        Ok(events) => events.first().is_some_and(|e| e.kind == "halted"),
        Err(e) => return core.trouble("ledger", Some(chain(&e))),
    };
    if !stands {
        let record = Record::Halted { who: halted.who.clone(), why: halted.why };
        let written = core.record(&record, Some(&halted.who)).await;
        core.trouble("ledger", written.err().map(|e| chain(&e)));
    }
}
