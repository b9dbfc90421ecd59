//! Following an act in the ledger until it is known how it ended: the control plane writes it, and may restart meanwhile.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use troop_ledger::{EventFilter, Ledger, LedgerError};

use super::progress::Progress;
use super::status;
use crate::api::types::KillAnswer;
use crate::clock;
use crate::exit::{CliError, Code};
use crate::records::Record;
use crate::state::StateDir;

/// How often the ledger is asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long after its limit an act is still waited for: the control plane writes its verdict within a second, or within its
/// own restart.
const AFTER_LIMIT: SignedDuration = SignedDuration::from_secs(15);
/// An act whose limit cannot be read is waited for this long.
const WITHOUT_LIMIT: SignedDuration = SignedDuration::from_secs(60);

/// What is waited for, and what is said when it does not come.
pub(super) struct Wait<'a> {
    /// The kinds of records that tell.
    pub(super) kinds: [&'a str; 2],
    /// On the live line, before the limit.
    pub(super) until: &'a str,
    /// What goes on when nobody watches any more.
    pub(super) left: &'a str,
    /// When the limit has passed and the ledger does not tell, and what to type then.
    pub(super) never: (&'a str, &'a str),
    /// When the ledger cannot be read.
    pub(super) unread: &'a str,
}

/// Waits until `told` finds in one of the scope's records how the act ended.
///
/// # Errors
/// Where it cannot be known, each with [`Code::LeftBehind`].
pub(super) async fn ended<T>(
    state: &StateDir,
    answer: &KillAnswer,
    wait: &Wait<'_>,
    told: impl Fn(Record, &str) -> Option<T>,
) -> Result<T, CliError> {
    let mut progress = Progress::new();
    let watched = tokio::select! {
        watched = until_told(state, answer, wait, &mut progress, told) => watched,
        _ = tokio::signal::ctrl_c() => {
            return Err(CliError::new(Code::LeftBehind, "no longer watched").hint(wait.left));
        }
    };
    drop(progress);
    match watched {
        Ok(Some(ended)) => Ok(ended),
        Ok(None) => Err(CliError::new(Code::LeftBehind, wait.never.0).hint(wait.never.1)),
        Err(e) => {
            let what = format!("{}: {}", wait.unread, crate::world::chain(&e));
            Err(CliError::new(Code::LeftBehind, what).hint(wait.left))
        }
    }
}

async fn until_told<T>(
    state: &StateDir,
    answer: &KillAnswer,
    wait: &Wait<'_>,
    progress: &mut Progress,
    told: impl Fn(Record, &str) -> Option<T>,
) -> Result<Option<T>, LedgerError> {
    let intent = answer.intent.as_deref().unwrap_or_default();
    let ledger = Ledger::open_read_only(&state.ledger()).await?;
    let now = clock::real_now();
    let limit = status::heals_until(&ledger, intent).await?;
    let give_up = limit.map_or(after(now, WITHOUT_LIMIT), |limit| after(limit, AFTER_LIMIT));
    let at_latest =
        limit.map(|at| format!(", at the latest {}", crate::views::time::both(at, &jiff::tz::TimeZone::UTC)));
    let line = format!("{}{}", wait.until, at_latest.unwrap_or_default());
    loop {
        let filter = EventFilter {
            kinds: wait.kinds.map(str::to_owned).to_vec(),
            key: Some(answer.draw_key.clone()),
            newest_first: true,
            limit: Some(20),
            ..EventFilter::default()
        };
        let events = ledger.events(&filter).await?;
        let records = events.into_iter().filter_map(|e| serde_json::from_value::<Record>(e.body).ok());
        if let Some(ended) = records.into_iter().find_map(|record| told(record, intent)) {
            return Ok(Some(ended));
        }
        if clock::real_now() > give_up {
            return Ok(None);
        }
        progress.waiting(&line);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn after(at: Timestamp, span: SignedDuration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}
