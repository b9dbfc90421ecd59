//! What the cloud does when it is asked, by Troop or by hand.

use troop_policies::GroupName;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Lifecycle;
use troop_policies::step::{How, NewGroup, Size, Step};

use super::{Coming, State};

impl State {
    /// Carries an intent out, once, and remembers what became of it.
    pub fn perform(&mut self, intent: &Intent) -> Outcome {
        if let Some(answered) = self.answered.get(&intent.id) {
            return answered.clone();
        }
        let outcome = if intent.step.is_for_registry() {
            let outcome = self.registry.perform(intent, self.now);
            self.note_serving();
            outcome
        } else {
            match self.act(&intent.step) {
                Ok(detail) => Outcome::done(detail),
                Err(why) => Outcome::refused(why),
            }
        };
        self.answered.insert(intent.id.clone(), outcome.clone());
        outcome
    }

    /// A call is on its way and will arrive in so many seconds, unless it is resolved before.
    pub fn send(&mut self, intent: &Intent, seconds: i64) {
        self.arriving.insert(intent.id.clone(), intent.clone());
        self.in_seconds(seconds, Coming::Arrive(intent.id.clone()));
    }

    /// What became of an intent. One that has not arrived never will.
    pub fn resolve(&mut self, intent: &Intent) -> Outcome {
        let never = || Outcome::refused("it never came, and is refused from now on");
        self.answered.entry(intent.id.clone()).or_insert_with(never).clone()
    }

    /// Carries a step out. An `Err` has changed nothing.
    pub fn act(&mut self, step: &Step) -> Result<String, String> {
        let now = self.now;
        let done = match step {
            Step::Terminate { group, instance, kill } => {
                let member = self.groups.get_mut(group).and_then(|g| g.members.get_mut(instance));
                let Some(member) = member.filter(|m| m.lifecycle != Lifecycle::Terminating) else {
                    return Err(format!("{instance} is no member of {group}"));
                };
                member.lifecycle = Lifecycle::Terminating;
                if let Some(life) = self.lives.get_mut(instance) {
                    life.ended_by_troop = true;
                }
                let takes = match kill {
                    How::Crash => 0,
                    How::Drain { delay } => i64::try_from(delay.as_secs()).unwrap_or(0),
                };
                if takes == 0 {
                    self.end(instance);
                } else {
                    self.in_seconds(takes, Coming::Ended(instance.clone()));
                }
                "terminated".to_owned()
            }
            Step::CreateGroup { group } => self.create(group)?,
            Step::Resize { group, size } => self.resize(group, *size)?,
            Step::Flip { to, .. } => {
                if !self.groups.contains_key(to) || self.ending.contains(to) {
                    return Err(format!("{to} does not exist"));
                }
                self.rotate(to);
                "flipped".to_owned()
            }
            Step::Enable { group } => {
                let group = self.groups.get_mut(group).ok_or("it does not exist")?;
                group.enabled = true;
                "enabled".to_owned()
            }
            Step::Disable { group, .. } => {
                let last = self.is_last_enabled(group);
                let found = self.groups.get_mut(group).ok_or("it does not exist")?;
                if found.in_rotation || last {
                    return Err("it is in rotation, or the last enabled group".to_owned());
                }
                found.enabled = false;
                "disabled".to_owned()
            }
            Step::Destroy { group } => {
                let last = self.is_last_enabled(group);
                let found = self.groups.get_mut(group).ok_or("it does not exist")?;
                if found.in_rotation || last {
                    return Err("it is in rotation, or the last enabled group".to_owned());
                }
                found.size = Size::ZERO;
                let members: Vec<_> = found.members.keys().cloned().collect();
                self.ending.insert(group.clone());
                for id in members {
                    if let Some(life) = self.lives.get_mut(&id) {
                        life.ended_by_troop = true;
                    }
                    let takes = self.rng.between(1, 20);
                    self.in_seconds(takes, Coming::Ended(id));
                }
                self.in_seconds(1, Coming::GroupGone(group.clone()));
                "being destroyed".to_owned()
            }
            Step::OverrideGroup { .. } | Step::CancelEntry { .. } | Step::Fault { .. } => {
                return Err(format!("at {now}: the cloud keeps no registry and no agents"));
            }
        };
        self.note_serving();
        Ok(done)
    }

    fn create(&mut self, new: &NewGroup) -> Result<String, String> {
        if self.groups.contains_key(&new.name) {
            return Err(format!("{} exists already", new.name));
        }
        self.add_group(&new.name, &new.image, Size::ZERO, new.tags.clone());
        if let Some(group) = self.groups.get_mut(&new.name) {
            group.zones.clone_from(&new.zones);
            group.has_targets = new.has_targets;
        }
        Ok("created".to_owned())
    }

    fn resize(&mut self, name: &GroupName, size: Size) -> Result<String, String> {
        if self.ending.contains(name) {
            return Err(format!("{name} is being destroyed"));
        }
        let group = self.groups.get_mut(name).ok_or_else(|| format!("{name} does not exist"))?;
        group.size = size;
        let notices = self.rng.between(1, 5);
        self.in_seconds(notices, Coming::Keep(name.clone()));
        Ok(format!("resized to {size}"))
    }

    /// Whether no other group of the cluster is enabled and has members.
    pub fn is_last_enabled(&self, name: &GroupName) -> bool {
        let others = self.groups.values().filter(|g| g.cluster() == name.cluster() && g.name != *name);
        self.groups.get(name).is_some_and(|g| g.enabled && !g.members.is_empty())
            && !others.into_iter().any(|g| g.enabled && !g.members.is_empty())
    }
}
