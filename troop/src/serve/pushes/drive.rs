//! One push, driven: look, decide, record, act, settle. At most once, and never on what an older look said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize as _;
use troop_cloud::Traffic;
use troop_deploy::judge::Memory;
use troop_deploy::machine::{self, Act, Move, Right, Seen, holds_lock};
use troop_deploy::outcome;
use troop_deploy::push::{Phase, Push};
use troop_deploy::rollback::{Answer, ask};
use troop_ledger::{LedgerError, PushRow, Taken, Tx};
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::inventory::Inventory;
use troop_policies::leash::{Permit, Undo, Unleashed, Warrant};
use troop_policies::step::Step;
use troop_policies::{GroupName, IntentId};

use super::request::insert_request;
use super::{LOOKED_AT, holder, key, newer, number, number_of, parse, way_back_of};
use crate::records::{REQUEST_ROLLBACK, Record, RollbackBody};
use crate::serve::act;
use crate::serve::core::{Core, body, event, new_intent_id};
use crate::serve::ledger_seen::{self, mark_text};
use crate::serve::look::{Look, look};
use crate::world::chain;

/// How often a push looks at the world while it waits. A flip back by itself takes about this long to be noticed.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often a push looks whose failed group is only kept.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// After this long an outcome that nobody can say is settled by looking at the world: no call lasts so long, and the
/// steps of a push set states, so that the world shows whether they took effect.
const SETTLE_BY_LOOK_AFTER: SignedDuration = SignedDuration::from_secs(60);
/// Another control plane's step is not asked about before nobody can be carrying it out any more.
const ABANDONED_AFTER: SignedDuration = SignedDuration::from_secs(40);

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Something changed: look again at once.
    Again,
    Later(Duration),
    Ended,
}

/// What the driver remembers between looks; a restart begins without it.
#[derive(Debug, Default)]
pub struct Driver {
    memory: Memory,
    /// Steps that this task itself sent out.
    ours: BTreeSet<IntentId>,
}

/// Drives a push until it has ended.
pub(super) async fn drive(core: &Arc<Core>, id: i64) {
    let mut driver = Driver::default();
    loop {
        match turn(core, id, &mut driver).await {
            Ok(Turn::Ended) => return core.answered(id, None),
            Ok(Turn::Again) => {}
            Ok(Turn::Later(pause)) => tokio::time::sleep(pause).await,
            // Somebody else moved it on; what is there now is what counts.
            Err(LedgerError::Conflict { what }) => {
                tracing::debug!(push = id, what, "somebody else saved it");
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(e) => {
                core.trouble("pushes", Some(format!("push {id}: {}", chain(&e))));
                tokio::time::sleep(LOOK_EVERY * 4).await;
            }
        }
    }
}

/// One look at a push and what follows from it: a decision, its record and its act.
///
/// # Errors
/// The ledger's. A conflict means that somebody else moved the push on.
pub async fn turn(core: &Arc<Core>, id: i64, driver: &mut Driver) -> Result<Turn, LedgerError> {
    let Some(row) = core.ledger.push(id).await? else { return Ok(Turn::Ended) };
    if row.ended {
        return Ok(Turn::Ended);
    }
    let push = match parse(&row) {
        Ok(push) => push,
        Err(why) => {
            core.trouble("pushes", Some(why));
            return Ok(Turn::Later(KEEP_EVERY));
        }
    };
    if let Some(intent) = push.in_flight.clone() {
        return resolve(core, id, &row, &push, &intent, driver).await;
    }
    if matches!(push.phase, Phase::Keep { until } if core.now() < until) {
        return Ok(Turn::Later(KEEP_EVERY));
    }
    let seen = look(core).await;
    let inventory = seen.believed(&push.location());
    let traffic = core.world.traffic(&push.location(), &push.cluster).await.map_err(|e| chain(&e));
    let turn = decide(core, id, driver, &seen, inventory, traffic.as_ref().map_err(String::as_str)).await;
    let judges = matches!(push.phase, Phase::Soak { .. } | Phase::Watch { .. });
    core.answered(id, driver.memory.so_far().filter(|_| judges));
    turn
}

/// One decision and its record, in one transaction with everything of the ledger that it rests on; then the act.
async fn decide(
    core: &Arc<Core>,
    id: i64,
    driver: &mut Driver,
    seen: &Look,
    inventory: Result<&Inventory, &str>,
    traffic: Result<&BTreeMap<GroupName, Traffic>, &str>,
) -> Result<Turn, LedgerError> {
    let mut tx = core.ledger.begin().await?;
    // Read anew: a request, or another control plane, may have moved it on since.
    let Some(row) = tx.push(id).await?.filter(|row| !row.ended) else { return Ok(Turn::Ended) };
    let Ok(old) = parse(&row) else { return Ok(Turn::Later(KEEP_EVERY)) };
    if old.in_flight.is_some() {
        return Ok(Turn::Again);
    }
    let rows = tx.pushes_of(&row.key, LOOKED_AT).await?;
    let newer = newer(id, &rows);
    if let Some(asked) = take_request(core, &mut tx, id, &old, newer).await? {
        save(&mut tx, &row, &old, asked).await?;
        tx.commit().await?;
        return Ok(Turn::Again);
    }
    let mut open_acts = ledger_seen::open_acts(&mut tx).await?;
    // Another account's group may have the same name, and its losses excuse nothing here.
    open_acts.retain(|act| act.location == old.location());
    let statuses = seen.statuses();
    let registry_speaks = matches!(&seen.registry, Ok(view) if !view.warming);
    let clock = core.clock();
    let Move { push, act } = machine::next(
        &old,
        &mut driver.memory,
        &Seen {
            push: number(id),
            inventory,
            statuses: registry_speaks.then_some(&statuses),
            traffic,
            open_acts: &open_acts,
            halted: core.is_halted(),
            clock: clock.as_ref().copied().map_err(String::as_str),
            newer,
            way_back_of: way_back_of(id, &rows, old.group()),
            now: seen.at,
        },
    );
    let Some(act) = act else {
        let has_moved = push.phase != old.phase;
        if push != old {
            save(&mut tx, &row, &old, push).await?;
            tx.commit().await?;
        }
        return Ok(if has_moved { Turn::Again } else { Turn::Later(LOOK_EVERY) });
    };
    let Some(push) = lock(&mut tx, id, push).await? else {
        tx.commit().await?;
        return Ok(Turn::Later(LOOK_EVERY));
    };
    let Ok(intent_id) = new_intent_id(core) else { return Ok(Turn::Later(LOOK_EVERY)) };
    let intent = Intent {
        id: intent_id,
        account: push.account.clone(),
        region: push.region.clone(),
        step: act.step.clone(),
        cause: Cause::Push { push: number(id), actor: push.actor.clone() },
        at: core.calendar.at(seen.at),
    };
    let push = Push { in_flight: Some(intent.clone()), ..push };
    act::insert(&mut tx, &intent, None).await?;
    let version = save(&mut tx, &row, &old, push.clone()).await?;
    tx.commit().await?;
    driver.ours.insert(intent.id.clone());
    perform(core, id, version, &push, &intent, &act, inventory.ok()).await?;
    Ok(Turn::Again)
}

/// Takes the cluster's lock where the phase needs it, or checks that it is still ours. `None`: somebody else has it.
async fn lock(tx: &mut Tx, id: i64, push: Push) -> Result<Option<Push>, LedgerError> {
    let name = key(&push);
    if let Some(fence) = push.fence {
        if !troop_policies::sabotaged!("fence") {
            tx.check_fence(&name, &holder(id), fence).await?;
        }
        return Ok(Some(push));
    }
    if !holds_lock(push.phase) {
        return Ok(Some(push));
    }
    match tx.take_lock(&name, &holder(id)).await? {
        Taken::Yes { fence } => Ok(Some(Push { fence: Some(fence), ..push })),
        Taken::HeldBy { holder } => {
            tracing::debug!(push = id, holder, "waits for the cluster's lock");
            if push.phase.is_going_back() {
                give_way(tx, id, &push, &holder).await?;
            }
            Ok(None)
        }
    }
}

/// A push that goes back first gives up a newer one that has not flipped: its way back must not wait for that.
async fn give_way(tx: &mut Tx, id: i64, push: &Push, held_by: &str) -> Result<(), LedgerError> {
    let Some(holder) = number_of(held_by).filter(|holder| *holder > id) else { return Ok(()) };
    let asked = tx.open_requests(REQUEST_ROLLBACK).await?;
    let is_asked = |body: &serde_json::Value| RollbackBody::deserialize(body).is_ok_and(|r| r.push == number(holder));
    let flipped = tx.push(holder).await?.and_then(|row| parse(&row).ok()).is_none_or(|p| p.flip_was_asked());
    if flipped || asked.iter().any(|row| is_asked(&row.body)) {
        return Ok(());
    }
    let because = push.because.as_deref().unwrap_or("it was asked to");
    let request = RollbackBody {
        cluster: push.cluster.clone(),
        push: number(holder),
        actor: push.actor.clone(),
        reason: format!("push {id} goes back: {because}"),
        closed: None,
    };
    insert_request(tx, &request).await
}

/// The push as the oldest open request wants it, once it can be taken up; requests that cannot be are answered.
async fn take_request(
    core: &Core,
    tx: &mut Tx,
    id: i64,
    push: &Push,
    newer: machine::Newer,
) -> Result<Option<Push>, LedgerError> {
    for row in tx.open_requests(REQUEST_ROLLBACK).await? {
        let Ok(request) = RollbackBody::deserialize(&row.body) else { continue };
        if request.push != number(id) {
            continue;
        }
        let because = format!("{}: {}", request.actor, request.reason);
        let (taken, closed) = match ask(push, newer, &because, core.now()) {
            Answer::GoesBack(push) => (Some(push), "goes back".to_owned()),
            Answer::Cancelled(push) => (Some(push), "cancelled".to_owned()),
            Answer::Already { what } => (None, what),
            Answer::Cannot { why } => (None, why),
            Answer::Later => continue,
        };
        tx.close_request(row.id, body(&RollbackBody { closed: Some(closed), ..request })).await?;
        if taken.is_some() {
            return Ok(taken);
        }
    }
    Ok(None)
}

/// Saves a push over the row that was read, with the lock and the records that follow from its phase. Returns the row's
/// new version.
async fn save(tx: &mut Tx, row: &PushRow, old: &Push, new: Push) -> Result<i64, LedgerError> {
    let mut new = new;
    if let Some(fence) = new.fence.filter(|_| !holds_lock(new.phase)) {
        tx.release_lock(&key(&new), &holder(row.id), fence).await?;
        new.fence = None;
    }
    let (push, cluster) = (number(row.id), new.cluster.clone());
    if new.phase.name() != old.phase.name() {
        let (phase, note) = (new.phase.name().to_owned(), new.note.clone());
        tracing::info!(push, phase, note, "push moves on");
        tx.append(event(&Record::PushMoved { push, cluster: cluster.clone(), phase, note }, None)).await?;
    }
    if let Some(result) = new.result.filter(|_| old.result.is_none()) {
        let note = new.because.clone().unwrap_or_else(|| new.note.clone());
        let result = result.as_str().to_owned();
        tx.append(event(&Record::PushEnded { push, cluster, result, note }, None)).await?;
    }
    tx.save_push(row.id, row.version, body(&new), new.phase == Phase::Ended).await
}

/// Carries out a recorded step and settles it, with the push's next state in the same transaction.
async fn perform(
    core: &Arc<Core>,
    id: i64,
    version: i64,
    push: &Push,
    intent: &Intent,
    act: &Act,
    inventory: Option<&Inventory>,
) -> Result<(), LedgerError> {
    let hand = core.take_in_hand(intent.id.clone());
    let began = core.host.boot_ms();
    let outcome = match act.right {
        Right::Undo => match Undo::for_step(&intent.step) {
            Ok(undo) => act::carry_out(core, intent, Permit::Undo(undo)).await,
            Err(e) => Outcome::refused(e.to_string()),
        },
        Right::Onward { before_flip } => {
            // The file again, after the record: a halt that came meanwhile wins.
            let warrant = Warrant::Push {
                halted_before_flip: before_flip
                    && core.is_halted()
                    && !troop_policies::sabotaged!("halted_before_flip"),
            };
            match Unleashed::for_step(intent, warrant, core.now()) {
                Ok(unleashed) => act::carry_out(core, intent, Permit::Unleashed(&unleashed)).await,
                Err(e) => Outcome::refused(e.to_string()),
            }
        }
    };
    if let (Step::Destroy { group }, true, Some(inventory)) = (&intent.step, outcome.may_have_happened(), inventory) {
        let members = inventory.groups.get(group).map(|g| g.members.keys().cloned().collect::<Vec<_>>());
        core.ended_by_us(members.unwrap_or_default());
    }
    let took = Duration::from_millis(u64::try_from(core.host.boot_ms() - began).unwrap_or(0));
    let settled = settle(core, id, version, push, intent, &outcome, took).await;
    drop(hand);
    settled
}

async fn settle(
    core: &Arc<Core>,
    id: i64,
    version: i64,
    push: &Push,
    intent: &Intent,
    outcome: &Outcome,
    took: Duration,
) -> Result<(), LedgerError> {
    let next = outcome::settled(push, outcome, took, core.now());
    let mut tx = core.ledger.begin().await?;
    let Some(row) = tx.push(id).await?.filter(|row| row.version == version) else {
        return Err(LedgerError::Conflict { what: format!("push {id} was moved on by somebody else") });
    };
    let settled = act::settle_in(&mut tx, intent, outcome).await?;
    let at = tx.event(settled).await?.map(|e| e.real_at);
    save(&mut tx, &row, push, next).await?;
    tx.commit().await?;
    if let (true, Some(at)) = (outcome.is_done(), at) {
        act::write_mark(core, intent, &mark_text(settled, at)).await;
    }
    Ok(())
}

/// Asks what became of a step in flight. It is never done again; what nobody can say is in the end seen in the world.
async fn resolve(
    core: &Arc<Core>,
    id: i64,
    row: &PushRow,
    push: &Push,
    intent: &Intent,
    driver: &Driver,
) -> Result<Turn, LedgerError> {
    if core.is_in_hand(&intent.id) {
        return Ok(Turn::Later(LOOK_EVERY));
    }
    let Some(recorded) = core.ledger.intent(intent.id.as_str()).await? else {
        core.trouble("pushes", Some(format!("push {id}: its step {} is not in the ledger", intent.id)));
        return Ok(Turn::Later(KEEP_EVERY));
    };
    let now = core.now();
    let age = now.duration_since(recorded.real_at);
    // Ours, or of a process that was here before us, or so old that nobody can be at it.
    let may_ask = driver.ours.contains(&intent.id) || recorded.real_at < core.started_at || age > ABANDONED_AFTER;
    if !may_ask {
        return Ok(Turn::Later(LOOK_EVERY));
    }
    let outcome = match core.world.resolve(intent).await {
        Ok(outcome @ (Outcome::Done { .. } | Outcome::Refused { .. })) => outcome,
        Ok(Outcome::Unknown { why }) if age > SETTLE_BY_LOOK_AFTER => by_look(core, push, intent, &why, now).await,
        Ok(unknown @ Outcome::Unknown { .. }) => unknown,
        Err(e) => {
            core.trouble("pushes", Some(format!("push {id}: {}", chain(&e))));
            return Ok(Turn::Later(LOOK_EVERY));
        }
    };
    core.trouble("pushes", None);
    if matches!(outcome, Outcome::Unknown { .. }) && recorded.outcome.is_some() {
        return Ok(Turn::Later(LOOK_EVERY));
    }
    tracing::info!(push = id, step = %intent.step, ?outcome, "resolved");
    let took = Duration::try_from(age).unwrap_or(Duration::ZERO);
    settle(core, id, row.version, push, intent, &outcome, took).await?;
    Ok(Turn::Again)
}

/// What the world shows of a step of which nobody can say what became of it.
async fn by_look(core: &Arc<Core>, push: &Push, intent: &Intent, why: &str, now: Timestamp) -> Outcome {
    let seen = look(core).await;
    let shown = seen.believed(&push.location()).ok().map(|inventory| intent.step.seen_in(inventory));
    match shown {
        Some(Some(true)) => Outcome::done(format!("seen in the inventory at {now}; {why}")),
        Some(Some(false)) => Outcome::refused(format!("not seen in the inventory at {now}; {why}")),
        // The registry's own state: setting it once more changes nothing.
        Some(None) => Outcome::refused(format!("the registry cannot say; {why}")),
        None => Outcome::unknown(why.to_owned()),
    }
}
