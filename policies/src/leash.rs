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
            // A fault ends by its lease and needs nobody's permission to.
            Step::Terminate { .. } | Step::CreateGroup { .. } | Step::Destroy { .. } | Step::Fault { .. } => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, group, group_name, id, now};
    use crate::gates::{Eligible, Purpose, ask};
    use crate::step::How;
    use crate::{AccountName, IntentId, RegionName, TeamName};

    fn eligible() -> Eligible {
        let inventory = fixture::inventory(vec![group("hello-web-v000", &["i-1", "i-2", "i-3"])]);
        let (policy, registry) = (fixture::policy(), fixture::registry(&inventory));
        let situation = fixture::situation(&policy, &inventory, &registry);
        ask(&situation, &fixture::scope(), &Purpose::Drawn).result.unwrap()
    }

    fn terminate(instance: &str) -> Step {
        Step::Terminate { group: group_name("hello-web-v000"), instance: id(instance), kill: How::Crash }
    }

    fn intent(step: Step, cause: Cause) -> Intent {
        Intent {
            id: IntentId::new("aa").unwrap(),
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            step,
            cause,
            at: now(),
        }
    }

    fn draw() -> Cause {
        Cause::Draw {
            team: TeamName::new("demo").unwrap(),
            draw_key: fixture::scope().draw_key,
            monkey: "chaos".to_owned(),
            day: jiff::civil::date(2026, 11, 24),
        }
    }

    fn push() -> Cause {
        Cause::Push { push: 7, actor: "ana".to_owned() }
    }

    /// A moment `ms` after the gates were asked.
    fn later(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(now().as_millisecond() + ms).unwrap()
    }

    #[test]
    fn a_monkey_may_act_only_on_a_fresh_answer_of_the_gates_and_on_what_it_allows() {
        let eligible = eligible();
        let ask = |step, at| Unleashed::for_step(&intent(step, draw()), Warrant::Gates(&eligible), at).map(|_| ());
        assert_eq!(ask(terminate("i-1"), later(0)), Ok(()));
        assert_eq!(ask(terminate("i-1"), later(30_000)), Ok(()));
        for age_ms in [-1, 30_001] {
            assert_eq!(ask(terminate("i-1"), later(age_ms)), Err(NotPermitted::Expired { age_ms }));
        }
        let allowed = "terminate one of 3 instances".to_owned();
        let asked = "terminate i-9 of hello-web-v000, at once".to_owned();
        assert_eq!(ask(terminate("i-9"), later(0)), Err(NotPermitted::OtherStep { allowed, asked }));
    }

    #[test]
    fn a_push_may_act_unless_it_is_halted_and_no_warrant_serves_another_cause() {
        let eligible = eligible();
        let upkeep = || Cause::Upkeep { reason: "a test".to_owned() };
        let ask = |cause, warrant| Unleashed::for_step(&intent(terminate("i-1"), cause), warrant, now()).map(|_| ());
        assert_eq!(ask(push(), Warrant::Push { halted_before_flip: false }), Ok(()));
        assert_eq!(ask(push(), Warrant::Push { halted_before_flip: true }), Err(NotPermitted::Halted));
        let differ = Err(NotPermitted::Leashed { by: "cause and warrant differ" });
        for cause in [draw(), upkeep()] {
            assert_eq!(ask(cause, Warrant::Push { halted_before_flip: false }), differ);
        }
        for cause in [push(), upkeep()] {
            assert_eq!(ask(cause, Warrant::Gates(&eligible)), differ);
        }
    }

    #[test]
    fn a_permit_is_for_one_step_and_dies() {
        let intent = intent(terminate("i-1"), push());
        let unleashed = Unleashed::for_step(&intent, Warrant::Push { halted_before_flip: false }, now()).unwrap();
        let permit = Permit::Unleashed(&unleashed);
        assert_eq!(permit.check(&terminate("i-1"), later(30_000)), Ok(()));
        assert!(matches!(permit.check(&terminate("i-2"), later(0)), Err(NotPermitted::OtherStep { .. })));
        for age_ms in [-1, 30_001] {
            assert_eq!(permit.check(&terminate("i-1"), later(age_ms)), Err(NotPermitted::Expired { age_ms }));
        }
    }

    #[test]
    fn an_undo_never_dies_and_restores_alone() {
        let enable = Step::Enable { group: group_name("hello-web-v000") };
        let undo = Permit::Undo(Undo::for_step(&enable).unwrap());
        assert_eq!(undo.check(&enable, later(86_400_000)), Ok(()));
        for step in [terminate("i-1"), Step::Destroy { group: group_name("hello-web-v000") }] {
            assert_eq!(undo.check(&step, now()), Err(NotPermitted::NoUndo { step: step.to_string() }));
        }
    }
}
