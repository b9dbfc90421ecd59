//! The token that harm needs, and the right to undo.
//!
//! [`Unleashed`] can be made only here, by [`Unleashed::for_step`], from an answer of the gates or from a push that was
//! recorded; it names the one step it allows and dies after [`UNLEASHED_MAX_AGE_MS`]. [`Undo`] restores and is never
//! blocked by leash, halt or expiry, but it covers only steps that restore.

use jiff::Timestamp;

use crate::intent::{Cause, Intent};
use crate::step::Step;

/// How old a token may be when used. Long enough for one slow call, short enough that a paused process cannot act on
/// what was true before its pause.
pub const UNLEASHED_MAX_AGE_MS: i64 = 30_000;

/// Why a call was not permitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPermitted {
    #[error("the permission is for another step: it allows `{allowed}`, not `{asked}`")]
    OtherStep { allowed: String, asked: String },
    #[error("the permission is {age_ms} ms old; 30,000 ms is the limit")]
    Expired { age_ms: i64 },
    #[error("`{step}` does not restore anything, so it is no undo")]
    NoUndo { step: String },
    #[error("leashed ({by}): nothing is changed")]
    Leashed { by: &'static str },
    #[error("halted: nothing new starts")]
    Halted,
}

/// On whose word a step may harm.
#[derive(Debug, Clone, Copy)]
pub enum Warrant<'a> {
    /// Every gate answered ok for a monkey's act. Holding an [`crate::gates::Eligible`] is the proof.
    Gates(&'a crate::gates::Eligible),
    /// A recorded push. The site's leash refuses new pushes, before they are recorded; a push in flight carries on,
    /// and `halted` holds it while it has not flipped.
    Push { halted_before_flip: bool },
}

/// Permission for one step, made at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Unleashed {
    step: Step,
    made_at: Timestamp,
}

impl Unleashed {
    /// The one place where permission to harm is made.
    ///
    /// # Errors
    /// [`NotPermitted`] when the intent's cause and the warrant do not belong together, a gate's answer is stale, or a
    /// push that has not flipped stands still because of a halt.
    pub fn for_step(intent: &Intent, warrant: Warrant<'_>, now: Timestamp) -> Result<Self, NotPermitted> {
        let permitted = Self { step: intent.step.clone(), made_at: now };
        match (&intent.cause, warrant) {
            (Cause::Draw { .. } | Cause::Drill { .. } | Cause::Demand { .. }, Warrant::Gates(eligible)) => {
                let age_ms = age_ms(eligible.checked_at(), now);
                if !(0..=UNLEASHED_MAX_AGE_MS).contains(&age_ms) {
                    return Err(NotPermitted::Expired { age_ms });
                }
                if !eligible.covers(&intent.step) {
                    return Err(NotPermitted::OtherStep {
                        allowed: eligible.describe(),
                        asked: intent.step.to_string(),
                    });
                }
                Ok(permitted)
            }
            (Cause::Push { .. }, Warrant::Push { halted_before_flip: false }) => Ok(permitted),
            (Cause::Push { .. }, Warrant::Push { halted_before_flip: true }) => Err(NotPermitted::Halted),
            (Cause::Draw { .. } | Cause::Drill { .. } | Cause::Demand { .. }, Warrant::Push { .. })
            | (Cause::Push { .. } | Cause::Upkeep { .. }, Warrant::Gates(_))
            | (Cause::Upkeep { .. }, Warrant::Push { .. }) => {
                Err(NotPermitted::Leashed { by: "cause and warrant differ" })
            }
        }
    }
}

/// The right to restore what we changed. Read from the journal of a push or a fault; never blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undo(());

impl Undo {
    /// # Errors
    /// [`NotPermitted::NoUndo`] for a step that takes capacity away other than by disabling the group a rollback leaves.
    pub fn for_step(step: &Step) -> Result<Self, NotPermitted> {
        match step {
            Step::Enable { .. }
            | Step::Resize { .. }
            | Step::Flip { .. }
            | Step::Disable { .. }
            | Step::OverrideGroup { .. }
            | Step::CancelEntry { .. } => Ok(Self(())),
            Step::Terminate { .. } | Step::CreateGroup { .. } | Step::Destroy { .. } => {
                Err(NotPermitted::NoUndo { step: step.to_string() })
            }
        }
    }
}

/// What a changing call must be handed.
#[derive(Debug, Clone, Copy)]
pub enum Permit<'a> {
    Unleashed(&'a Unleashed),
    Undo(Undo),
}

impl Permit<'_> {
    /// Checks the permit against the step about to be taken. Whoever carries a step out calls this first.
    ///
    /// # Errors
    /// [`NotPermitted`] when it is for another step, too old, or an undo for a step that restores nothing.
    pub fn check(&self, step: &Step, now: Timestamp) -> Result<(), NotPermitted> {
        match self {
            Self::Undo(_) => Undo::for_step(step).map(|_| ()),
            Self::Unleashed(unleashed) => {
                if unleashed.step != *step {
                    let (allowed, asked) = (unleashed.step.to_string(), step.to_string());
                    return Err(NotPermitted::OtherStep { allowed, asked });
                }
                let age_ms = age_ms(unleashed.made_at, now);
                // A clock that stepped back makes the age unknowable: refuse, as for one too old.
                if !(0..=UNLEASHED_MAX_AGE_MS).contains(&age_ms) {
                    return Err(NotPermitted::Expired { age_ms });
                }
                Ok(())
            }
        }
    }
}

fn age_ms(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond().saturating_sub(from.as_millisecond())
}
