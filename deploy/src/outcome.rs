//! What an outcome means for a push: the next step, another attempt, or giving up.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use troop_policies::intent::Outcome;
use troop_policies::step::Step;

use crate::machine::{cancelled, soaking, stuck};
use crate::push::{Phase, Push};

/// A step that was refused this often is given up: what refuses for half a minute will go on refusing.
pub const ATTEMPTS_MAX: u32 = 6;
/// Pause after a refused step, times the number of attempts so far.
const RETRY_AFTER: SignedDuration = SignedDuration::from_secs(2);
/// Longest pause between attempts of what is never given up.
const RETRY_AFTER_MAX: SignedDuration = SignedDuration::from_secs(30);

/// Takes in what became of the step in flight. `took` is how long it took.
///
/// An unknown outcome leaves the step in flight: it is asked about, never repeated.
#[must_use]
pub fn settled(push: &Push, outcome: &Outcome, took: Duration, now: Timestamp) -> Push {
    let Some(intent) = &push.in_flight else { return push.clone() };
    let at_rest = Push { in_flight: None, ..push.clone() };
    match outcome {
        Outcome::Unknown { why } => {
            Push { note: format!("nobody can say yet what became of `{}`: {why}", intent.step), ..push.clone() }
        }
        Outcome::Done { .. } => {
            let takes_out =
                matches!(intent.step, Step::Disable { .. } | Step::OverrideGroup { out_of_service: true, .. });
            let taken_out_at = if takes_out { Some(now) } else { push.taken_out_at };
            done(Push { taken_out_at, ..at_rest }, took, now)
        }
        Outcome::Refused { why } => refused(at_rest, &intent.step, why, now),
    }
}

fn done(push: Push, took: Duration, now: Timestamp) -> Push {
    let push = Push { attempts: 0, retry_at: None, ..push };
    match push.phase {
        Phase::Flip => {
            let flipped = Push { flipped_at: Some(now), flip_ms: Some(took.as_secs_f64() * 1_000.0), ..push };
            if flipped.previous.is_none() {
                return soaking(flipped, now);
            }
            flipped.into_phase(Phase::Disable, now, "flipped")
        }
        Phase::BackFlip => push.into_phase(Phase::BackDisable, now, "the traffic is back"),
        Phase::Soak { .. } | Phase::Watch { .. } => push,
        Phase::Create
        | Phase::Disable
        | Phase::Destroy
        | Phase::BackEnable
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Reap => Push { index: push.index + 1, ..push },
        Phase::Ready { .. } | Phase::BackReady { .. } | Phase::Keep { .. } | Phase::Stuck | Phase::Ended => push,
    }
}

fn refused(push: Push, step: &Step, why: &str, now: Timestamp) -> Push {
    let attempts = push.attempts.saturating_add(1);
    let pause = RETRY_AFTER.saturating_mul(i32::try_from(attempts).unwrap_or(i32::MAX)).min(RETRY_AFTER_MAX);
    let note = format!("`{step}` was refused, {attempts} times: {why}");
    let given_up = attempts >= ATTEMPTS_MAX;
    let again = Push { attempts, retry_at: now.checked_add(pause).ok(), note: note.clone(), ..push };
    match again.phase {
        Phase::Create if given_up => cancelled(again, note, now),
        Phase::Flip if given_up => cancelled(again, note, now),
        // Nothing moved; the checks are asked anew before it is tried again.
        Phase::Flip => {
            let deadline = Push::after(now, again.settings.ready_within);
            let (attempts, retry_at) = (again.attempts, again.retry_at);
            Push { attempts, retry_at, ..again.into_phase(Phase::Ready { deadline }, now, note) }
        }
        Phase::BackFlip if given_up => stuck(again, &note, now),
        Phase::BackFlip => {
            let deadline = Push::after(now, again.settings.ready_within);
            let (attempts, retry_at) = (again.attempts, again.retry_at);
            Push { attempts, retry_at, ..again.into_phase(Phase::BackReady { deadline }, now, note) }
        }
        Phase::BackEnable if given_up => stuck(again, &note, now),
        // An old group that stays enabled gets no traffic, and what cannot be disabled must not hold the lock for ever.
        Phase::Disable if given_up => Push { index: again.index + 1, attempts: 0, ..again },
        Phase::BackDisable | Phase::Cancel if given_up => Push { index: again.index + 1, attempts: 0, ..again },
        Phase::Create
        | Phase::Disable
        | Phase::BackEnable
        | Phase::BackDisable
        | Phase::Cancel
        | Phase::Destroy
        | Phase::Reap
        | Phase::Ready { .. }
        | Phase::Soak { .. }
        | Phase::Watch { .. }
        | Phase::BackReady { .. }
        | Phase::Keep { .. }
        | Phase::Stuck
        | Phase::Ended => again,
    }
}
