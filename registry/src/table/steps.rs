//! Steps of Troop's plans: carried out once, remembered by intent, and never carried out after they were given up.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use troop_policies::IntentId;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::step::Step;

use super::{Changed, Effect, Key, Save, Table, after};

/// How long an intent's outcome is remembered. Troop resolves what is in doubt within minutes of coming back.
pub(crate) const STEPS_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// Most steps remembered. A push has about ten, so these are two thousand pushes a day; whoever can reach the registry can
/// make it remember one.
pub(crate) const STEPS_MAX: usize = 20_000;

/// What became of an intent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) at: Timestamp,
    /// `None` when the intent was given up before it came.
    pub(crate) step: Option<Step>,
    pub(crate) outcome: Outcome,
}

impl Table {
    /// Carries a step out, once: the same intent again gets the same answer and changes nothing.
    pub(crate) fn perform(&mut self, intent: &Intent, now: Timestamp) -> Effect<Outcome> {
        if let Some(known) = self.steps.get(&intent.id) {
            if known.step.as_ref().is_some_and(|step| *step != intent.step) {
                let why = format!("the intent {} was for another step; nothing was done for this one", intent.id);
                return self.effect(Outcome::refused(why), Save::No);
            }
            let outcome = known.outcome.clone();
            // Its first save may have failed, and the asker counts on what is answered now.
            return self.effect(outcome, Save::First);
        }
        if self.steps.len() >= STEPS_MAX {
            let why = format!("the registry remembers {STEPS_MAX} steps of the last day and no more; nothing was done");
            return self.effect(Outcome::refused(why), Save::No);
        }
        let outcome = match &intent.step {
            Step::OverrideGroup { group, out_of_service } => {
                self.perform_override(group.as_str(), *out_of_service, now)
            }
            Step::CancelEntry { instance, .. } => self.cancel_ended(instance.as_str(), now),
            Step::Terminate { .. }
            | Step::CreateGroup { .. }
            | Step::Resize { .. }
            | Step::Flip { .. }
            | Step::Enable { .. }
            | Step::Disable { .. }
            | Step::Fault { .. }
            | Step::Destroy { .. } => {
                let why = format!("the service registry does not carry out `{}`; send it to the cloud", intent.step);
                return self.effect(Outcome::refused(why), Save::No);
            }
        };
        let remembered = Remembered { at: now, step: Some(intent.step.clone()), outcome: outcome.clone() };
        self.steps.insert(intent.id.clone(), remembered);
        self.effect(outcome, Save::First)
    }

    fn perform_override(&mut self, group: &str, out_of_service: bool, now: Timestamp) -> Outcome {
        match self.override_group(group, out_of_service, now).answer {
            Changed::Full => Outcome::refused("the registry keeps no more overrides of groups; drop some"),
            Changed::Yes | Changed::NoEntry => {
                let members = self.members(group).len();
                let what = if out_of_service { "is OUT_OF_SERVICE" } else { "has no override" };
                Outcome::done(format!("{group} {what}; it has {members} entries now"))
            }
        }
    }

    /// Removes all entries of an instance that has ended, and keeps it out for one lease: the last heartbeat of a dying
    /// process, or its last registration, must not bring it back.
    fn cancel_ended(&mut self, instance: &str, now: Timestamp) -> Outcome {
        let of_instance = self.entries.iter().filter(|(_, lease)| lease.info.belongs_to(instance));
        let keys: Vec<Key> = of_instance.map(|(key, _)| key.clone()).collect();
        let leases = keys.iter().filter_map(|key| self.entries.get(key)).map(|lease| self.duration(&lease.info));
        let lease = leases.max().unwrap_or_default().max(self.site_lease);
        for key in &keys {
            self.remove(key, now);
        }
        self.ended.insert(instance.to_owned(), after(now, lease));
        match keys.as_slice() {
            [] => Outcome::done("no entry"),
            [one] => Outcome::done(format!("cancelled {}/{}", one.app, one.id)),
            more => Outcome::done(format!("cancelled {} entries", more.len())),
        }
    }

    /// What became of an intent, if it is remembered.
    pub(crate) fn outcome(&self, id: &IntentId) -> Option<&Outcome> {
        self.steps.get(id).map(|known| &known.outcome)
    }

    /// Ends all doubt about an intent: it was carried out, or it never will be.
    pub(crate) fn resolve(&mut self, id: &IntentId, now: Timestamp) -> Effect<Outcome> {
        let never = || Outcome::refused("the registry never saw it");
        if self.steps.len() >= STEPS_MAX && !self.steps.contains_key(id) {
            // Nothing would keep it from being carried out later.
            let why = "the registry never saw it, and has no room to remember that it is given up";
            return self.effect(Outcome::unknown(why), Save::No);
        }
        let known =
            self.steps.entry(id.clone()).or_insert_with(|| Remembered { at: now, step: None, outcome: never() });
        let outcome = known.outcome.clone();
        self.effect(outcome, Save::First)
    }
}
