//! The lease table: who is registered, what they say, and what an operator or Troop says instead.
//!
//! Pure: `now` is an argument, and each change returns an [`Effect`] that says how it must be saved. Differences from
//! Eureka's own server, all on purpose: an override is kept until it is dropped, whatever happens to its entry; a group
//! may be overridden, and later members inherit it; a dropped override shows at once what the instance says itself; a
//! renewed lease ends after one duration, not two.

mod evict;
pub(crate) mod state;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use troop_policies::IntentId;
use troop_policies::registry_view::{Entry, RegistryView, Status};

use crate::info::{BadInstance, Info};
use crate::table::steps::Remembered;

pub(crate) use evict::TICK;

/// Entries kept. A bound on memory against a client that registers in a loop; sites of this size use another registry.
const ENTRIES_MAX: usize = 20_000;

/// Overrides kept, of instances and of groups each. They outlive their entries, so something must bound them.
const OVERRIDES_MAX: usize = 20_000;

/// An app and an instance id: what Eureka's paths name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) app: String,
    pub(crate) id: String,
}

impl Key {
    pub(crate) fn new(app: &str, id: &str) -> Self {
        Self { app: app.to_uppercase(), id: id.to_owned() }
    }
}

/// How a change must be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Save {
    /// Nothing that a restart must know.
    No,
    /// With the next tick: clients repeat it if it is lost.
    Soon,
    /// Before the answer goes out: somebody counts on it from then on.
    First,
}

/// What a change answers, and how it must be saved.
#[derive(Debug)]
#[must_use = "an effect that is not saved is lost with a restart"]
pub(crate) struct Effect<T> {
    pub(crate) answer: T,
    pub(crate) save: Save,
}

/// The last thing that happened to an entry, as Eureka's delta names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Action {
    Added,
    Modified,
    Deleted,
}

impl Action {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) info: Info,
    pub(crate) registered_at: Timestamp,
    pub(crate) renewed_at: Timestamp,
    /// When it was first shown UP.
    pub(crate) up_at: Option<Timestamp>,
    pub(crate) updated_at: Timestamp,
    pub(crate) action: Action,
}

/// An entry as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) lease: Lease,
    pub(crate) status: Status,
    pub(crate) overridden: Option<Status>,
    pub(crate) duration_secs: i64,
    pub(crate) gone_at: Option<Timestamp>,
}

#[derive(Debug, Clone)]
struct Change {
    at: Timestamp,
    /// The entry as it was, when it is gone.
    gone: Option<Shown>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("instance `{instance}` was cancelled because it ended; it cannot register again before {until}")]
    Ended { instance: String, until: Timestamp },
    #[error("the registry is full: it keeps {ENTRIES_MAX} entries")]
    Full,
}

/// What became of a change to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    Yes,
    /// There is no such entry.
    NoEntry,
    /// The limit of what is kept is reached.
    Full,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    site_lease: SignedDuration,
    entries: BTreeMap<Key, Lease>,
    overrides: BTreeMap<Key, Status>,
    /// Groups that are OUT_OF_SERVICE.
    groups_out: BTreeSet<String>,
    /// Instance ids cancelled by a step, and until when they cannot come back.
    ended: BTreeMap<String, Timestamp>,
    steps: BTreeMap<IntentId, Remembered>,
    changes: BTreeMap<Key, Change>,
    version: u64,
    warming_until: Option<Timestamp>,
    evictions: VecDeque<Timestamp>,
    last_tick: Timestamp,
    /// Counts what must be saved, so that a writer knows whether it is behind.
    revision: u64,
}

fn after(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(if by.is_negative() { Timestamp::MIN } else { Timestamp::MAX })
}

impl Table {
    /// An empty table, which is not warming. `site_lease` serves clients that ask for no duration of their own.
    pub(crate) fn new(site_lease: SignedDuration, now: Timestamp) -> Self {
        Self {
            site_lease,
            entries: BTreeMap::new(),
            overrides: BTreeMap::new(),
            groups_out: BTreeSet::new(),
            ended: BTreeMap::new(),
            steps: BTreeMap::new(),
            changes: BTreeMap::new(),
            version: 1,
            warming_until: None,
            evictions: VecDeque::new(),
            last_tick: now,
            revision: 0,
        }
    }

    fn effect<T>(&mut self, answer: T, save: Save) -> Effect<T> {
        match save {
            Save::No => {}
            Save::Soon | Save::First => self.revision += 1,
        }
        Effect { answer, save }
    }

    /// How many changes were made that must be saved.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes an instance in, or takes in anew what it says. Its newest word counts, whatever its own clock says: this
    /// registry has no peers that could replay an old one.
    pub(crate) fn register(&mut self, mut info: Info, now: Timestamp) -> Effect<Result<(), RegisterError>> {
        if let Some((instance, until)) = self.ended.iter().find(|(id, until)| now < **until && info.belongs_to(id)) {
            let refused = RegisterError::Ended { instance: instance.clone(), until: *until };
            return self.effect(Err(refused), Save::No);
        }
        let key = Key::new(&info.app, &info.id);
        let known = self.entries.get(&key);
        if known.is_none() && self.entries.len() >= ENTRIES_MAX {
            return self.effect(Err(RegisterError::Full), Save::No);
        }
        info.last_dirty_ms = info.last_dirty_ms.or(Some(now.as_millisecond()));
        let lease = Lease {
            registered_at: known.map_or(now, |l| l.registered_at),
            up_at: known.and_then(|l| l.up_at),
            action: if known.is_some() { Action::Modified } else { Action::Added },
            renewed_at: now,
            updated_at: now,
            info,
        };
        self.entries.insert(key.clone(), lease);
        self.note_change(&key, now);
        self.effect(Ok(()), Save::Soon)
    }

    /// A heartbeat. No entry, or news that the client has not registered yet: it must register.
    pub(crate) fn renew(&mut self, key: &Key, last_dirty_ms: Option<i64>, now: Timestamp) -> Effect<Changed> {
        let answer = match self.entries.get_mut(key) {
            Some(lease) if last_dirty_ms <= lease.info.last_dirty_ms => {
                lease.renewed_at = now;
                Changed::Yes
            }
            Some(_) | None => Changed::NoEntry,
        };
        self.effect(answer, Save::No)
    }

    /// The client says goodbye. Its overrides stay.
    pub(crate) fn cancel(&mut self, key: &Key, now: Timestamp) -> Effect<Changed> {
        let (answer, save) =
            if self.remove(key, now) { (Changed::Yes, Save::Soon) } else { (Changed::NoEntry, Save::No) };
        self.effect(answer, save)
    }

    /// Shows `status` for an instance until the override is dropped. Kept even while there is no such entry.
    pub(crate) fn override_instance(&mut self, key: Key, status: Status, now: Timestamp) -> Effect<Changed> {
        if !self.overrides.contains_key(&key) && self.overrides.len() >= OVERRIDES_MAX {
            return self.effect(Changed::Full, Save::No);
        }
        self.overrides.insert(key.clone(), status);
        self.modified(&key, now);
        self.effect(Changed::Yes, Save::First)
    }

    /// Drops an instance's override. `interim` replaces what the instance says, until it registers anew.
    pub(crate) fn drop_override(&mut self, key: &Key, interim: Option<Status>, now: Timestamp) -> Effect<Changed> {
        let had = self.overrides.remove(key).is_some();
        if let (Some(lease), Some(status)) = (self.entries.get_mut(key), interim) {
            lease.info.status = status;
        }
        if !had && !self.entries.contains_key(key) {
            return self.effect(Changed::NoEntry, Save::No);
        }
        self.modified(key, now);
        self.effect(Changed::Yes, Save::First)
    }

    /// Takes a group out of service, or drops that. Kept even while the group has no entry; later members inherit it.
    pub(crate) fn override_group(&mut self, group: &str, out_of_service: bool, now: Timestamp) -> Effect<Changed> {
        if out_of_service && !self.groups_out.contains(group) && self.groups_out.len() >= OVERRIDES_MAX {
            return self.effect(Changed::Full, Save::No);
        }
        let changed = match out_of_service {
            true => self.groups_out.insert(group.to_owned()),
            false => self.groups_out.remove(group),
        };
        if changed {
            for key in self.members(group) {
                self.modified(&key, now);
            }
        }
        // Saved also when nothing changed: the earlier change may be in memory only, its save having failed.
        self.effect(Changed::Yes, Save::First)
    }

    /// Adds metadata to an entry.
    pub(crate) fn add_metadata(
        &mut self,
        key: &Key,
        pairs: BTreeMap<String, String>,
        now: Timestamp,
    ) -> Effect<Result<Changed, BadInstance>> {
        let answer = match self.entries.get_mut(key) {
            None => Ok(Changed::NoEntry),
            Some(lease) => lease.info.add_metadata(pairs).map(|()| Changed::Yes),
        };
        let save = if answer == Ok(Changed::Yes) {
            self.modified(key, now);
            Save::Soon
        } else {
            Save::No
        };
        self.effect(answer, save)
    }

    /// Whether an override of this instance is kept, with or without an entry.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.entries.contains_key(key) || self.overrides.contains_key(key)
    }

    fn members(&self, group: &str) -> Vec<Key> {
        let of_group = self.entries.iter().filter(|(_, l)| l.info.group.as_deref() == Some(group));
        of_group.map(|(key, _)| key.clone()).collect()
    }

    fn modified(&mut self, key: &Key, now: Timestamp) {
        if let Some(lease) = self.entries.get_mut(key) {
            lease.action = Action::Modified;
            lease.updated_at = now;
            self.note_change(key, now);
        }
    }

    fn note_change(&mut self, key: &Key, now: Timestamp) {
        let up = self.entries.get(key).is_some_and(|lease| self.status(key, lease).0 == Status::Up);
        if let Some(lease) = self.entries.get_mut(key).filter(|lease| up && lease.up_at.is_none()) {
            lease.up_at = Some(now);
        }
        self.changes.insert(key.clone(), Change { at: now, gone: None });
        self.version += 1;
    }

    fn remove(&mut self, key: &Key, now: Timestamp) -> bool {
        let Some(mut lease) = self.entries.remove(key) else { return false };
        lease.action = Action::Deleted;
        lease.updated_at = now;
        let gone = Shown { gone_at: Some(now), ..self.show(key, &lease) };
        self.changes.insert(key.clone(), Change { at: now, gone: Some(gone) });
        self.version += 1;
        true
    }

    /// What is shown, and the override in force. An instance that says it is not fit is believed. Otherwise a group out
    /// of service wins over an instance's override of UP, so that nothing in a disabled group is ever UP.
    fn status(&self, key: &Key, lease: &Lease) -> (Status, Option<Status>) {
        let group_out = lease.info.group.as_ref().is_some_and(|group| self.groups_out.contains(group));
        // One that registered after the override was set.
        let late = lease.action == Action::Added && troop_policies::sabotaged!("inheritance");
        let group_out = group_out && !late;
        let overridden = match self.overrides.get(key) {
            Some(Status::Up) | None if group_out => Some(Status::OutOfService),
            own => own.copied(),
        };
        let shown = match lease.info.status {
            said @ (Status::Down | Status::Starting | Status::Unknown) => said,
            said @ (Status::Up | Status::OutOfService) => overridden.unwrap_or(said),
        };
        (shown, overridden)
    }

    fn duration(&self, info: &Info) -> SignedDuration {
        info.duration_secs.map_or(self.site_lease, SignedDuration::from_secs)
    }

    fn show(&self, key: &Key, lease: &Lease) -> Shown {
        let (status, overridden) = self.status(key, lease);
        // A site's lease under a second must not be shown as 0, which clients read as their own default.
        let duration_secs = self.duration(&lease.info).as_secs().max(1);
        Shown { lease: lease.clone(), status, overridden, duration_secs, gone_at: None }
    }

    /// One entry.
    pub(crate) fn entry(&self, key: &Key) -> Option<Shown> {
        self.entries.get(key).map(|lease| self.show(key, lease))
    }

    /// All entries, by app and id.
    pub(crate) fn all(&self) -> Vec<Shown> {
        self.entries.iter().map(|(key, lease)| self.show(key, lease)).collect()
    }

    /// What changed within [`evict::DELTA_KEPT`], each entry once, as it is now.
    pub(crate) fn delta(&self) -> Vec<Shown> {
        let changed = self.changes.iter();
        changed.filter_map(|(key, change)| self.entry(key).or_else(|| change.gone.clone())).collect()
    }

    /// Grows with every change of what is shown.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Eureka's hash of the whole registry: each status with its count, such as `DOWN_1_UP_3_`; empty for none.
    pub(crate) fn hash(&self) -> String {
        let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (key, lease) in &self.entries {
            *counts.entry(self.status(key, lease).0.as_str()).or_default() += 1;
        }
        counts.iter().map(|(status, count)| format!("{status}_{count}_")).collect()
    }

    pub(crate) fn is_warming(&self, now: Timestamp) -> bool {
        self.warming_until.is_some_and(|until| now < until)
    }

    /// What Troop reads.
    pub(crate) fn view(&self, now: Timestamp) -> RegistryView {
        let entry = |(key, lease): (&Key, &Lease)| Entry {
            app: key.app.clone(),
            id: key.id.clone(),
            ip: lease.info.ip.parse().ok(),
            status: self.status(key, lease).0,
            data_center_instance_id: lease.info.data_center_instance_id().map(str::to_owned),
            troop_instance_id: lease.info.troop_instance_id().map(str::to_owned),
            group: lease.info.group.clone(),
        };
        RegistryView { read_at: now, warming: self.is_warming(now), entries: self.entries.iter().map(entry).collect() }
    }
}
