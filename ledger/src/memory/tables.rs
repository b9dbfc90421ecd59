//! The tables: rows are shared between copies, a table's list of them is copied when it is first written to.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::chain::{self, GENESIS, Hash, Link};
use crate::db::{self, Now};
use crate::error::{Fault, LedgerError};
use crate::events::{ceil_micros, corrupt};
use crate::head::Head;
use crate::plans::Which;
use crate::types::{
    Event, EventFilter, EventId, IntentFilter, IntentRow, LockRow, MarkRow, NewEvent, NewIntent, PushRow, RequestRow,
    StoredPlan, Taken,
};

type Result<T> = std::result::Result<T, Fault>;
/// Day and team.
type PlanKey = (String, String);

#[derive(Clone)]
struct Lock {
    holder: Option<String>,
    fence: i64,
    real_at: Timestamp,
}

#[derive(Clone)]
struct Request {
    row: RequestRow,
    answered: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Tables {
    /// Whole blocks are shared, so that a chain of thousands is not copied for each event that is added.
    events: Arc<Vec<Arc<Vec<Arc<Event>>>>>,
    plans: Arc<BTreeMap<PlanKey, Arc<StoredPlan>>>,
    /// In the order in which they were written.
    intents: Arc<Vec<Arc<IntentRow>>>,
    by_id: Arc<BTreeMap<String, usize>>,
    locks: Arc<BTreeMap<String, Lock>>,
    pushes: Arc<Vec<Arc<PushRow>>>,
    requests: Arc<Vec<Arc<Request>>>,
    marks: Arc<BTreeMap<(String, String), Arc<MarkRow>>>,
    meta: Arc<BTreeMap<String, String>>,
}

/// Events a block.
const BLOCK: usize = 64;

fn at(micros: i64) -> Result<Timestamp> {
    db::time(micros, &|| "the clock".to_owned())
}

fn conflict<T>(what: String) -> Result<T> {
    Err(LedgerError::Conflict { what }.into())
}

fn owned<T: Clone>(rows: impl Iterator<Item = T>) -> Vec<T> {
    rows.collect()
}

/// Numbers in rows are of SQLite's kind and count from 1; lists count from 0.
fn index(id: i64) -> Option<usize> {
    usize::try_from(id).ok()?.checked_sub(1)
}

fn number(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1)
}

fn limited<T>(rows: impl Iterator<Item = T>, limit: Option<u32>) -> Vec<T> {
    rows.take(limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))).collect()
}

/// Events and plans.
impl Tables {
    fn all_events(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.events.iter().flat_map(|block| block.iter())
    }

    pub(crate) fn newest(&self) -> Option<&Event> {
        self.events.last()?.last().map(AsRef::as_ref)
    }

    pub(crate) fn append(&mut self, now: Now, new: NewEvent) -> Result<Head> {
        let (id, previous) = match self.newest() {
            None => (1, GENESIS),
            Some(newest) => (newest.id.0 + 1, chain::from_hex(&newest.hash).unwrap_or(GENESIS)),
        };
        let NewEvent { kind, version, key, team, actor, body } = new;
        let (at, real_at) = (at(now.at)?, at(now.real_at)?);
        let mut event =
            Event { id: EventId(id), at, real_at, kind, version, key, team, actor, body, hash: String::new() };
        let hash = chain::to_hex(&hash(&previous, &event));
        event.hash.clone_from(&hash);
        let blocks = Arc::make_mut(&mut self.events);
        match blocks.last_mut().filter(|block| block.len() < BLOCK) {
            Some(block) => Arc::make_mut(block).push(Arc::new(event)),
            None => blocks.push(Arc::new(vec![Arc::new(event)])),
        }
        Ok(Head { id, hash })
    }

    pub(crate) fn event(&self, id: EventId) -> Option<Event> {
        let index = index(id.0)?;
        self.events.get(index / BLOCK)?.get(index % BLOCK).map(|event| Event::clone(event))
    }

    pub(crate) fn events(&self, filter: &EventFilter) -> Vec<Event> {
        let after = filter.after.map_or(0, |EventId(after)| after);
        let wanted = |event: &&Arc<Event>| {
            let micros = event.at.as_microsecond();
            filter.since.is_none_or(|since| micros >= ceil_micros(since))
                && filter.until.is_none_or(|until| micros < ceil_micros(until))
                && (filter.kinds.is_empty() || filter.kinds.contains(&event.kind))
                && (filter.key.is_none() || filter.key == event.key)
                && (filter.team.is_none() || filter.team == event.team)
                && filter.key_prefix.as_ref().is_none_or(|p| event.key.as_ref().is_some_and(|k| k.starts_with(p)))
        };
        let own = |event: &Arc<Event>| Event::clone(event);
        if filter.newest_first {
            let rows = self.all_events().rev().take_while(|event| event.id.0 > after);
            return limited(rows.filter(wanted).map(own), filter.limit);
        }
        let first = usize::try_from(after).unwrap_or(0);
        let blocks = self.events.iter().skip(first / BLOCK).flat_map(|block| block.iter());
        limited(blocks.skip(first % BLOCK).filter(wanted).map(own), filter.limit)
    }

    /// Walks the whole chain.
    pub(crate) fn verify(&self) -> Result<u64> {
        let (mut previous, mut count) = (GENESIS, 0_u64);
        for event in self.all_events() {
            previous = hash(&previous, event);
            if chain::to_hex(&previous) != event.hash {
                return Err(corrupt(event.id.0, "its hash does not follow").into());
            }
            count += 1;
        }
        Ok(count)
    }

    pub(crate) fn plan(&self, which: Which<'_>) -> Option<StoredPlan> {
        self.plans.get(&key(which)).map(|plan| StoredPlan::clone(plan))
    }

    pub(crate) fn plans_of(&self, day: &str) -> Vec<StoredPlan> {
        owned(self.plans.values().filter(|plan| plan.day == day).map(|plan| StoredPlan::clone(plan)))
    }

    pub(crate) fn store_plan_once(
        &mut self,
        now: Now,
        which: Which<'_>,
        version: u32,
        body: &Value,
        event: NewEvent,
    ) -> Result<(StoredPlan, Option<Head>)> {
        if let Some(stored) = self.plan(which) {
            return Ok((stored, None));
        }
        let head = self.append(now, event)?;
        let (day, team) = key(which);
        let stored = StoredPlan {
            fresh: false,
            day,
            team,
            version,
            body: body.clone(),
            made_at: at(now.at)?,
            event: EventId(head.id),
        };
        Arc::make_mut(&mut self.plans).insert(key(which), Arc::new(stored.clone()));
        Ok((StoredPlan { fresh: true, ..stored }, Some(head)))
    }

    fn plan_or_conflict(&self, which: Which<'_>) -> Result<StoredPlan> {
        let missing = || LedgerError::conflict(format!("there is no plan of {} for team {}", which.day, which.team));
        Ok(self.plan(which).ok_or_else(missing)?)
    }

    pub(crate) fn replace_plan_body(
        &mut self,
        now: Now,
        which: Which<'_>,
        (old, new): (&Value, &Value),
        event: NewEvent,
    ) -> Result<Head> {
        let stored = self.plan_or_conflict(which)?;
        if stored.body != *old {
            return conflict(format!("the plan of {} for team {} was changed by somebody else", which.day, which.team));
        }
        let changed = StoredPlan { body: new.clone(), ..stored };
        Arc::make_mut(&mut self.plans).insert(key(which), Arc::new(changed));
        self.append(now, event)
    }

    pub(crate) fn publish_day_key(
        &mut self,
        now: Now,
        which: Which<'_>,
        day_key: &str,
        event: NewEvent,
    ) -> Result<Option<Head>> {
        let mut stored = self.plan_or_conflict(which)?;
        if !crate::plans::put_day_key(&mut stored, day_key)? {
            return Ok(None);
        }
        Arc::make_mut(&mut self.plans).insert(key(which), Arc::new(stored));
        self.append(now, event).map(Some)
    }
}

fn key(which: Which<'_>) -> PlanKey {
    (which.day.to_owned(), which.team.to_owned())
}

fn hash(previous: &Hash, event: &Event) -> Hash {
    let body = event.body.to_string();
    let link = Link {
        id: event.id.0,
        at: event.at.as_microsecond(),
        real_at: event.real_at.as_microsecond(),
        version: i64::from(event.version),
        kind: &event.kind,
        key: event.key.as_deref(),
        team: event.team.as_deref(),
        actor: event.actor.as_deref(),
        body: &body,
    };
    chain::hash(previous, &link)
}

/// Intents and locks.
impl Tables {
    pub(crate) fn open_intents(&self) -> Vec<IntentRow> {
        owned(self.intents.iter().filter(|row| row.outcome.is_none()).map(|row| IntentRow::clone(row)))
    }

    pub(crate) fn intent(&self, id: &str) -> Option<IntentRow> {
        self.intents.get(*self.by_id.get(id)?).map(|row| IntentRow::clone(row))
    }

    pub(crate) fn intents(&self, filter: &IntentFilter) -> Vec<IntentRow> {
        let wanted = |row: &&Arc<IntentRow>| {
            filter.kind.as_ref().is_none_or(|kind| row.kind == *kind)
                && filter.key.as_ref().is_none_or(|key| row.key == *key)
                && (filter.team.is_none() || filter.team == row.team)
                && (filter.outcome.is_none() || filter.outcome == row.outcome)
                && filter.since.is_none_or(|since| row.at.as_microsecond() >= ceil_micros(since))
        };
        let own = |row: &Arc<IntentRow>| IntentRow::clone(row);
        if filter.newest_first {
            return limited(self.intents.iter().rev().filter(wanted).map(own), filter.limit);
        }
        limited(self.intents.iter().filter(wanted).map(own), filter.limit)
    }

    pub(crate) fn insert_intent(&mut self, now: Now, new: NewIntent) -> Result<()> {
        let NewIntent { id, kind, key, team, body } = new;
        if self.by_id.contains_key(&id) {
            return conflict(format!("intent {id} is in the ledger already"));
        }
        Arc::make_mut(&mut self.by_id).insert(id.clone(), self.intents.len());
        let (at, real_at) = (at(now.at)?, at(now.real_at)?);
        let (outcome, outcome_body, settled_real_at) = (None, None, None);
        let row = IntentRow { id, kind, key, team, body, at, real_at, outcome, outcome_body, settled_real_at };
        Arc::make_mut(&mut self.intents).push(Arc::new(row));
        Ok(())
    }

    pub(crate) fn settle_intent(&mut self, now: Now, id: &str, outcome: &str, body: &Value) -> Result<()> {
        let Some(index) = self.by_id.get(id).copied() else {
            return conflict(format!("there is no intent {id} to settle as {outcome}"));
        };
        let settled_real_at = at(now.real_at)?;
        let rows = Arc::make_mut(&mut self.intents);
        let Some(row) = rows.get_mut(index) else { return conflict(format!("intent {id} is gone")) };
        let may = match row.outcome.as_deref() {
            None => true,
            Some("unknown") => ["done", "refused"].contains(&outcome),
            Some(_) => false,
        };
        if !may {
            let is = row.outcome.as_deref().unwrap_or("open");
            return conflict(format!("intent {id} is {is} and cannot become {outcome}"));
        }
        let row = Arc::make_mut(row);
        row.outcome = Some(outcome.to_owned());
        row.outcome_body = Some(body.clone());
        row.settled_real_at = Some(settled_real_at);
        Ok(())
    }

    pub(crate) fn locks(&self) -> Vec<LockRow> {
        let held = |(name, lock): (&String, &Lock)| {
            let holder = lock.holder.clone()?;
            Some(LockRow { name: name.clone(), holder, fence: lock.fence, real_at: lock.real_at })
        };
        self.locks.iter().filter_map(held).collect()
    }

    pub(crate) fn take_lock(&mut self, now: Now, name: &str, holder: &str) -> Result<Taken> {
        let real_at = at(now.real_at)?;
        let known = self.locks.get(name).cloned();
        let fence = match known {
            Some(Lock { holder: Some(by), fence, .. }) if by == holder => return Ok(Taken::Yes { fence }),
            Some(Lock { holder: Some(holder), .. }) => return Ok(Taken::HeldBy { holder }),
            Some(Lock { holder: None, fence, .. }) => fence + 1,
            None => 1,
        };
        let lock = Lock { holder: Some(holder.to_owned()), fence, real_at };
        Arc::make_mut(&mut self.locks).insert(name.to_owned(), lock);
        Ok(Taken::Yes { fence })
    }

    pub(crate) fn check_fence(&self, name: &str, holder: &str, fence: i64) -> Result<()> {
        let lock = self.locks.get(name);
        match lock {
            Some(lock) if lock.holder.as_deref() == Some(holder) && lock.fence == fence => Ok(()),
            Some(_) | None => {
                let holder_now = lock.and_then(|lock| lock.holder.clone());
                Err(LedgerError::Fenced { name: name.to_owned(), holder_now }.into())
            }
        }
    }

    pub(crate) fn release_lock(&mut self, name: &str, holder: &str, fence: i64) -> Result<()> {
        self.check_fence(name, holder, fence)?;
        if let Some(lock) = Arc::make_mut(&mut self.locks).get_mut(name) {
            lock.holder = None;
        }
        Ok(())
    }
}

/// Pushes, requests and marks.
impl Tables {
    pub(crate) fn insert_push(&mut self, now: Now, key: &str, body: Value) -> Result<i64> {
        let id = number(self.pushes.len());
        let (at, real_at) = (at(now.at)?, at(now.real_at)?);
        let row = PushRow { id, key: key.to_owned(), body, version: 1, ended: false, at, real_at };
        Arc::make_mut(&mut self.pushes).push(Arc::new(row));
        Ok(id)
    }

    pub(crate) fn save_push(&mut self, id: i64, expected: i64, body: Value, ended: bool) -> Result<i64> {
        let pushes = Arc::make_mut(&mut self.pushes);
        let Some(row) = index(id).and_then(|index| pushes.get_mut(index)) else {
            return conflict(format!("there is no push {id}"));
        };
        if row.version != expected {
            let version = row.version;
            return conflict(format!(
                "push {id} was saved by somebody else: it is at version {version}, not {expected}"
            ));
        }
        if row.ended && !ended {
            return conflict(format!("push {id} has ended and cannot go on"));
        }
        let row = Arc::make_mut(row);
        (row.body, row.ended, row.version) = (body, ended, expected + 1);
        Ok(row.version)
    }

    pub(crate) fn push(&self, id: i64) -> Option<PushRow> {
        self.pushes.get(index(id)?).map(|row| PushRow::clone(row))
    }

    pub(crate) fn open_pushes(&self) -> Vec<PushRow> {
        owned(self.pushes.iter().filter(|row| !row.ended).map(|row| PushRow::clone(row)))
    }

    pub(crate) fn newest_pushes(&self, limit: u32) -> Vec<PushRow> {
        limited(self.pushes.iter().rev().map(|row| PushRow::clone(row)), Some(limit))
    }

    pub(crate) fn pushes_of(&self, key: &str, limit: u32) -> Vec<PushRow> {
        let of_key = self.pushes.iter().rev().filter(|row| row.key == key);
        limited(of_key.map(|row| PushRow::clone(row)), Some(limit))
    }

    pub(crate) fn insert_request(&mut self, now: Now, kind: &str, key: &str, body: Value) -> Result<i64> {
        let id = number(self.requests.len());
        let row = RequestRow { id, kind: kind.to_owned(), key: key.to_owned(), body, real_at: at(now.real_at)? };
        Arc::make_mut(&mut self.requests).push(Arc::new(Request { row, answered: false }));
        Ok(id)
    }

    pub(crate) fn open_requests(&self, kind: &str) -> Vec<RequestRow> {
        let open = self.requests.iter().filter(|request| !request.answered && request.row.kind == kind);
        owned(open.map(|request| request.row.clone()))
    }

    /// The answer itself is read by nobody but people with the file at hand.
    pub(crate) fn close_request(&mut self, id: i64) -> Result<()> {
        let requests = Arc::make_mut(&mut self.requests);
        match index(id).and_then(|index| requests.get_mut(index)).filter(|request| !request.answered) {
            Some(request) => {
                Arc::make_mut(request).answered = true;
                Ok(())
            }
            None => conflict(format!("request {id} is answered already, or was never made")),
        }
    }

    pub(crate) fn set_mark(&mut self, now: Now, kind: &str, key: &str, body: Value) -> Result<()> {
        let row =
            MarkRow { kind: kind.to_owned(), key: key.to_owned(), body, at: at(now.at)?, real_at: at(now.real_at)? };
        Arc::make_mut(&mut self.marks).insert((kind.to_owned(), key.to_owned()), Arc::new(row));
        Ok(())
    }

    pub(crate) fn mark(&self, kind: &str, key: &str) -> Option<MarkRow> {
        self.marks.get(&(kind.to_owned(), key.to_owned())).map(|row| MarkRow::clone(row))
    }

    pub(crate) fn marks(&self, kind: &str) -> Vec<MarkRow> {
        owned(self.marks.values().filter(|row| row.kind == kind).map(|row| MarkRow::clone(row)))
    }

    pub(crate) fn clear_mark(&mut self, kind: &str, key: &str) {
        Arc::make_mut(&mut self.marks).remove(&(kind.to_owned(), key.to_owned()));
    }

    pub(crate) fn meta(&self, name: &str) -> Option<String> {
        self.meta.get(name).cloned()
    }

    pub(crate) fn set_meta_once(&mut self, name: &str, value: &str) -> String {
        Arc::make_mut(&mut self.meta).entry(name.to_owned()).or_insert_with(|| value.to_owned()).clone()
    }
}
