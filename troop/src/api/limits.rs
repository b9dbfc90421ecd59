//! What a request may ask for at most. The command line asks the same before it sends, so that these are told where they
//! were typed; whoever speaks to the socket directly meets them here.

use std::time::Duration;

use super::types::{ApiError, DeployRequest, ErrorKind, KillRequest, LatencyRequest, NotifyRequest, RollbackRequest};
use troop_policies::policy::FAULT_LASTS_MAX;

/// Longest duration taken: a year. What is longer was meant in another unit.
pub(crate) const SPAN_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Longest reason, as in a policy file: it stands in the ledger for ever, and in tables.
pub(crate) const REASON_CHARS_MAX: usize = 500;
/// Longest target or image: a path of Linux. Names and keys are far shorter.
const TEXT_BYTES_MAX: usize = 4_096;
/// Most peers of a fault on demand: a policy names at most as many.
const PEERS_MAX: usize = 50;
/// Most instances of a group, in a request. Each cloud has a limit of its own below this.
const SIZE_MAX: u32 = 100_000;

type Checked = Result<(), ApiError>;

fn wrong<T>(message: String, hint: &str) -> Result<T, ApiError> {
    Err(ApiError { kind: ErrorKind::Yours, message, hint: Some(hint.to_owned()) })
}

/// Whether a reason can stand in a ledger. That there is one is asked elsewhere, since a plan needs none.
pub(crate) fn reason(text: &str) -> Checked {
    let count = text.chars().count();
    if count > REASON_CHARS_MAX {
        let message = format!("the reason has {count} characters; {REASON_CHARS_MAX} is the most");
        return wrong(message, "say it in a sentence, and name the ticket or page that holds the rest");
    }
    if text.contains(char::is_control) {
        return wrong("the reason holds a control character".to_owned(), "write it on one line");
    }
    Ok(())
}

/// As much of a reason as is kept, for what must not be refused for its words.
pub(crate) fn cut_reason(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_CHARS_MAX).collect()
}

fn text(name: &str, text: &str) -> Checked {
    if text.len() > TEXT_BYTES_MAX {
        return wrong(format!("`{name}` has {} bytes; {TEXT_BYTES_MAX} is the most", text.len()), "give a shorter one");
    }
    if text.contains(char::is_control) {
        return wrong(format!("`{name}` holds a control character"), "write it without");
    }
    Ok(())
}

pub(crate) fn target(target: &str) -> Checked {
    text("target", target)
}

pub(crate) fn draw_key(key: &str) -> Checked {
    text("draw_key", key)
}

impl KillRequest {
    pub(crate) fn within_limits(&self) -> Checked {
        target(&self.target)?;
        reason(&self.reason)
    }
}

impl LatencyRequest {
    pub(crate) fn within_limits(&self) -> Checked {
        target(&self.target)?;
        reason(&self.reason)?;
        if self.fault.to.len() > PEERS_MAX {
            return wrong(format!("{} peers are more than {PEERS_MAX}", self.fault.to.len()), "name applications");
        }
        if self.lasts.is_zero() || self.lasts > FAULT_LASTS_MAX {
            return wrong("a fault lasts from a moment to eight hours".to_owned(), "for example `--for 5m`");
        }
        Ok(())
    }
}

impl NotifyRequest {
    pub(crate) fn within_limits(&self) -> Checked {
        self.message.as_deref().map_or(Ok(()), reason)
    }
}

impl RollbackRequest {
    pub(crate) fn within_limits(&self) -> Checked {
        reason(&self.reason)
    }
}

impl DeployRequest {
    pub(crate) fn within_limits(&self) -> Checked {
        text("image", &self.image)?;
        let spans =
            [("watch", self.watch), ("soak", self.soak), ("ready_within", self.ready_within), ("drain", self.drain)];
        if let Some((name, _)) = spans.iter().find(|(_, span)| span.is_some_and(|span| span > SPAN_MAX)) {
            return wrong(format!("`{name}` is more than a year"), "a duration is `secs` and `nanos`");
        }
        if let Some(percent) = self.errors_above.filter(|percent| !(1..=100).contains(percent)) {
            return wrong(format!("`errors_above` is {percent}"), "write whole percent from 1 to 100");
        }
        if let Some(size) = self.size.filter(|size| !(1..=SIZE_MAX).contains(size)) {
            return wrong(format!("`size` is {size}"), "write how many instances the group is to have, such as 3");
        }
        Ok(())
    }
}
