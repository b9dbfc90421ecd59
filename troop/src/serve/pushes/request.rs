//! What people ask: begin a push, roll one back, or only say what would be done.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use troop_cloud::{CloudError, Image};
use troop_deploy::machine::holds_lock;
use troop_deploy::push::{Phase, Push, Settings};
use troop_deploy::rollback::{Answer, ask, is_open};
use troop_deploy::script::{self, Planned};
use troop_deploy::start::{self, Asked, NotStarted};
use troop_ledger::{LedgerError, PushRow, Taken};
use troop_policies::inventory::Inventory;
use troop_policies::situation::SiteLeash;
use troop_policies::{GroupName, ImageId, Location};

use super::{LOOKED_AT, holder, key, newer, number, number_of, parse};
use crate::api::types::{
    Actor, ApiError, DeployAnswer, DeployRequest, ErrorKind, RollbackAnswer, RollbackRequest, StepCalls,
};
use crate::records::{REQUEST_ROLLBACK, Record, RollbackBody};
use crate::serve::control::{SCHEMA, could_not_ask, error};
use crate::serve::core::{Core, body, event};
use crate::serve::ledger_seen::{self, lock_name};
use crate::serve::look::{Look, look};

/// How long a new push waits for an older one's group to be destroyed: it is a matter of seconds, and nobody's choice.
const DESTROY_WAITED_FOR: Duration = Duration::from_secs(15);
const DESTROY_LOOKED_AT_EVERY: Duration = Duration::from_millis(250);

/// Begins a push, or says what it would do.
///
/// # Errors
/// [`ApiError`]: refused by a leash, a halt, another push or another team; or something could not be asked.
pub async fn start(core: &Arc<Core>, request: DeployRequest, actor: Actor) -> Result<DeployAnswer, ApiError> {
    let leashed = match off_the_leash(core) {
        Ok(()) => None,
        // A plan changes nothing; an image that is stored first would.
        Err(why) if request.plan && !is_path(&request.image) => Some(why.message),
        Err(why) => return Err(why),
    };
    may_begin(core)?;
    let at = location(&look(core).await, &request)?;
    let image = image(core, &at, &request.image).await?;
    let began = core.host.boot_ms();
    loop {
        match try_start(core, &request, &at, &image, &actor).await {
            Err(NotBegun::WhileDestroying(held)) => {
                let waited = Duration::from_millis(u64::try_from(core.host.boot_ms() - began).unwrap_or(u64::MAX));
                if waited >= DESTROY_WAITED_FOR {
                    return Err(held);
                }
                tokio::time::sleep(DESTROY_LOOKED_AT_EVERY).await;
            }
            Err(NotBegun::For(error)) => return Err(error),
            Ok(answer) => return Ok(DeployAnswer { leashed, ..answer }),
        }
    }
}

/// Whether the site's leash lets a push begin.
fn off_the_leash(core: &Core) -> Result<(), ApiError> {
    match core.leash() {
        SiteLeash::Off => Ok(()),
        SiteLeash::On => {
            let hint = Some("`leashed = false` in the site file, then a restart, unleashes it");
            Err(error(ErrorKind::Refused, "leashed (site): a push would change something", hint))
        }
        SiteLeash::NotYet { missing } => {
            let message = format!("leashed (site) until it is ready: {missing}");
            Err(error(ErrorKind::Refused, message, Some("`troop status` shows what is missing")))
        }
    }
}

/// Halt and secret: what forbids every new push, a plan of one as well.
fn may_begin(core: &Core) -> Result<(), ApiError> {
    if core.is_halted() {
        let hint = Some("`troop status` says by whom and why");
        return Err(error(ErrorKind::Refused, "halted: nothing new starts", hint));
    }
    match &core.secret {
        Ok(_) => Ok(()),
        Err(why) => Err(error(ErrorKind::Refused, why.clone(), None)),
    }
}

/// Why a push was not begun.
enum NotBegun {
    /// The lock's holder only destroys a group that is no longer needed.
    WhileDestroying(ApiError),
    For(ApiError),
}

impl From<ApiError> for NotBegun {
    fn from(error: ApiError) -> Self {
        Self::For(error)
    }
}

async fn try_start(
    core: &Arc<Core>,
    request: &DeployRequest,
    at: &Location,
    image: &Image,
    actor: &Actor,
) -> Result<DeployAnswer, NotBegun> {
    if !request.plan {
        off_the_leash(core)?;
    }
    may_begin(core)?;
    let seen = look(core).await;
    let inventory = picture(&seen, at)?;
    let mut tx = core.ledger.begin().await.map_err(|e| could_not_ask(&e))?;
    if let Some(why) = foreign_mark(&mut tx, inventory, request).await.map_err(|e| could_not_ask(&e))? {
        return Err(error(ErrorKind::Refused, why, Some("`troop ledger adopt --reason …` ends this")).into());
    }
    let lock = lock_name(inventory, &request.cluster);
    let rows = tx.pushes_of(&lock, LOOKED_AT).await.map_err(|e| could_not_ask(&e))?;
    let defaults = Settings::default();
    let asked = Asked {
        cluster: &request.cluster,
        image: &image.id,
        version: Some(image.version.clone()),
        team: request.team.as_ref(),
        size: request.size,
        settings: Settings {
            ready_within: request.ready_within.unwrap_or(defaults.ready_within),
            soak: soak(core, request, at, defaults.soak)?,
            watch: request.watch.unwrap_or(defaults.watch),
            errors_above: request.errors_above.unwrap_or(defaults.errors_above),
            drain: request.drain.unwrap_or(defaults.drain),
            keep_failed: defaults.keep_failed,
        },
        actor: &actor.name,
    };
    let push = start::start(&asked, inventory, &seen.statuses(), &spoken_of(&rows), core.now())
        .map_err(|why| not_started(&why))?;
    let planned = script::planned(&push, inventory);
    let held = tx.locks().await.map_err(|e| could_not_ask(&e))?.into_iter().find(|row| row.name == lock);
    if let Some(held) = held {
        let message = format!("{} holds `{}`: one changing operation at a time", held.holder, request.cluster);
        let hint =
            format!("`troop pushes {}` shows it; `troop rollback {}` gives it up", request.cluster, request.cluster);
        let refused = error(ErrorKind::Refused, message, Some(&hint));
        return Err(if destroys(&held.holder, &rows) { NotBegun::WhileDestroying(refused) } else { refused.into() });
    }
    let (number, calls) = if request.plan {
        // Nobody waits for the ledger while the cloud is asked.
        drop(tx);
        (None, calls(core, at, &planned).await?)
    } else {
        (Some(begin(tx, &push).await.map_err(|e| could_not_ask(&e))?), Vec::new())
    };
    Ok(DeployAnswer {
        schema: SCHEMA,
        push: number,
        cluster: push.cluster.clone(),
        group: push.group().clone(),
        previous: push.previous_group().cloned(),
        image: push.image.clone(),
        size: push.size,
        steps: planned.iter().map(ToString::to_string).collect(),
        calls,
        leashed: None,
    })
}

/// The calls that the steps of a plan will make, of those that make any. What would be refused as things are now is told in its place: an earlier
/// step may change that.
async fn calls(core: &Core, at: &Location, planned: &[Planned]) -> Result<Vec<StepCalls>, ApiError> {
    let mut all = Vec::new();
    for step in planned {
        let Planned::Step(step) = step else { continue };
        let calls = match core.world.calls_for(at, step).await {
            Ok(calls) => calls,
            Err(CloudError::Refused { why, .. }) => vec![format!("none as things are now: {why}")],
            Err(e @ (CloudError::Unreachable { .. } | CloudError::Garbled { .. })) => return Err(could_not_ask(&e)),
        };
        if !calls.is_empty() {
            all.push(StepCalls { step: step.to_string(), calls });
        }
    }
    Ok(all)
}

/// How long the push soaks: as long as it takes there to judge traffic at all, or as long as was asked for.
fn soak(core: &Core, request: &DeployRequest, at: &Location, usual: Duration) -> Result<Duration, ApiError> {
    let least = core.world.soak_min(at);
    match request.soak {
        Some(asked) if asked < least => {
            let message = format!(
                "traffic in {at} is counted by the minute and some minutes late: a soak there lasts {} s at least",
                least.as_secs()
            );
            Err(error(ErrorKind::Yours, message, Some("leave `--soak` out for the shortest that can be judged")))
        }
        Some(asked) => Ok(asked),
        None => Ok(usual.max(least)),
    }
}

/// Whether the lock's holder is a push that is over but for a group that goes.
fn destroys(holder: &str, rows: &[PushRow]) -> bool {
    let row = number_of(holder).and_then(|id| rows.iter().find(|row| row.id == id));
    let push = row.and_then(|row| parse(row).ok());
    push.is_some_and(|push| matches!(push.phase, Phase::Destroy | Phase::Reap))
}

/// Saves the push and takes the cluster's lock, in the transaction that found it free.
async fn begin(mut tx: troop_ledger::Tx, push: &Push) -> Result<u64, LedgerError> {
    let lock = key(push);
    let id = tx.insert_push(&lock, body(push)).await?;
    let fence = match tx.take_lock(&lock, &holder(id)).await? {
        Taken::Yes { fence } => fence,
        Taken::HeldBy { holder } => return Err(LedgerError::Conflict { what: format!("{holder} holds `{lock}`") }),
    };
    let push = Push { fence: Some(fence), ..push.clone() };
    tx.save_push(id, 1, body(&push), false).await?;
    let record = Record::PushStarted {
        push: number(id),
        cluster: push.cluster.clone(),
        group: push.group().clone(),
        actor: push.actor.clone(),
        image: push.image.to_string(),
    };
    tx.append(event(&record, Some(&push.actor))).await?;
    tx.commit().await?;
    tracing::info!(push = id, group = %push.group(), actor = push.actor, "push begins");
    Ok(number(id))
}

/// Where a push goes: to the location that was named, or to the one that has the cluster, or to the only one there is.
fn location(seen: &Look, request: &DeployRequest) -> Result<Location, ApiError> {
    let all: Vec<&Location> = seen.regions.iter().map(|(at, _, _)| at).collect();
    let listed = |of: &[&Location]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(named) = &request.location {
        let known = all.contains(&named);
        let unknown = || {
            error(ErrorKind::NotFound, format!("the site has no `{named}`"), Some(&format!("it has {}", listed(&all))))
        };
        return if known { Ok(named.clone()) } else { Err(unknown()) };
    }
    if let [only] = all.as_slice() {
        return Ok((*only).clone());
    }
    super::super::control::all_read(seen)?;
    let has = |at: &&Location| seen.inventory(at).is_ok_and(|i| !i.groups_of(&request.cluster).is_empty());
    let having: Vec<&Location> = all.iter().copied().filter(has).collect();
    match having.as_slice() {
        [one] => Ok((*one).clone()),
        several => {
            let (what, of) = if several.is_empty() { ("nowhere yet", all.as_slice()) } else { ("in several", several) };
            let message = format!("`{}` is {what}: say where with `--in ACCOUNT/REGION`", request.cluster);
            Err(error(ErrorKind::Yours, message, Some(&format!("one of {}", listed(of)))))
        }
    }
}

/// The picture that a push may be begun on.
fn picture<'a>(seen: &'a Look, at: &Location) -> Result<&'a Inventory, ApiError> {
    let shrunk = seen.regions.iter().find(|(known, _, _)| known == at).and_then(|(_, _, shrunk)| *shrunk);
    if let Some(shrunk) = shrunk {
        let why = format!("the inventory shrank from {} to {} instances at once", shrunk.from, shrunk.to);
        return Err(error(ErrorKind::Refused, why, Some("three such reads over ten minutes make it the good one")));
    }
    seen.believed(at)
        .map_err(|why| error(ErrorKind::CouldNotAsk, format!("the inventory of {at} cannot be used: {why}"), None))
}

fn is_path(text: &str) -> bool {
    text.contains('/') || Path::new(text).exists()
}

/// The image that was asked for: a path is stored first, an id must be stored.
async fn image(core: &Core, at: &Location, text: &str) -> Result<Image, ApiError> {
    if is_path(text) {
        return core.world.import_image(at, Path::new(text)).await.map_err(|e| {
            // What the cloud refuses it says with what to do, a full disk as well as a missing manifest.
            let kind = match &e {
                CloudError::Refused { .. } => ErrorKind::Yours,
                CloudError::Unreachable { .. } | CloudError::Garbled { .. } => ErrorKind::CouldNotAsk,
            };
            error(kind, crate::world::chain(&e), None)
        });
    }
    let id = ImageId::new(text).map_err(|e| error(ErrorKind::Yours, e.to_string(), None))?;
    let images = core.world.images(at).await.map_err(|e| could_not_ask(&e))?;
    let found = images.into_iter().find(|image| image.id == id);
    found.ok_or_else(|| {
        error(ErrorKind::NotFound, format!("there is no image `{id}`"), Some("`troop images` lists them"))
    })
}

/// Why this ledger is not the one that last changed the cluster.
async fn foreign_mark(
    tx: &mut troop_ledger::Tx,
    inventory: &Inventory,
    request: &DeployRequest,
) -> Result<Option<String>, LedgerError> {
    let marks = ledger_seen::marks(tx, std::iter::once(inventory)).await?;
    let foreign = marks.into_iter().find(|((_, group), mark)| group.cluster() == &request.cluster && !mark.known);
    Ok(foreign
        .map(|((_, group), mark)| format!("`{group}` carries mark {}, which this ledger does not hold", mark.mark)))
}

/// Groups that pushes on record still speak of: their names are not free yet.
fn spoken_of(rows: &[PushRow]) -> BTreeSet<GroupName> {
    let open = rows.iter().filter(|row| !row.ended).filter_map(|row| parse(row).ok());
    open.flat_map(|push| [Some(push.group().clone()), push.previous_group().cloned()]).flatten().collect()
}

fn not_started(why: &NotStarted) -> ApiError {
    let (kind, hint) = match why {
        NotStarted::NeedsTeam { .. } => {
            (ErrorKind::Yours, Some("say it with `--team T`: its policy may then opt it in"))
        }
        NotStarted::OtherTeam { .. } => {
            (ErrorKind::Refused, Some("only the team in the tag `troop:team` deploys here"))
        }
        NotStarted::TooSmall { .. } => (ErrorKind::Yours, Some("leave `--size` out for as many as serve now")),
        NotStarted::Several { .. } => (ErrorKind::Refused, Some("`troop ps` shows both")),
        NotStarted::TooFewZones { .. } | NotStarted::NoName { .. } => (ErrorKind::Refused, None),
    };
    error(kind, why.to_string(), hint)
}

/// Asks a push to go back, or says what that would do. It is a request on record: the push's driver takes it up.
///
/// # Errors
/// [`ApiError`]: there is no such push, or it cannot go back any more.
pub async fn rollback(core: &Arc<Core>, request: RollbackRequest, actor: Actor) -> Result<RollbackAnswer, ApiError> {
    if request.reason.trim().is_empty() && !request.plan {
        return Err(error(ErrorKind::Yours, "a rollback needs a reason", Some("--reason \"why\"")));
    }
    let seen = look(core).await;
    let mut tx = core.ledger.begin().await.map_err(|e| could_not_ask(&e))?;
    let rows = of_cluster(&mut tx, &request).await?;
    let (id, push) = wanted(&rows, &request)?;
    let inventory = seen.inventories().find(|inventory| inventory.location() == push.location());
    let effect = match ask(&push, newer(id, &rows), &request.reason, core.now()) {
        Answer::Cannot { why } => {
            return Err(error(
                ErrorKind::Refused,
                format!("push {id} cannot be rolled back: {why}"),
                Some("`troop pushes` lists them"),
            ));
        }
        Answer::Already { what } => what,
        Answer::GoesBack(_) => {
            let old = push.previous_group().map_or_else(|| "nothing".to_owned(), ToString::to_string);
            if let Some(inventory) =
                inventory.filter(|i| push.previous_group().is_some_and(|g| !i.groups.contains_key(g)))
            {
                let message = format!("push {id} cannot be rolled back: {old} is gone from {}", inventory.region);
                return Err(error(ErrorKind::Refused, message, Some("deploy the older image instead")));
            }
            format!("traffic goes back to {old}")
        }
        Answer::Cancelled(_) => cancelled(id, &rows),
        Answer::Later => {
            "as soon as the step in flight has its outcome: back if it has flipped, given up if not".to_owned()
        }
    };
    let planned = inventory.map(|inventory| script::planned_back(&push, inventory)).unwrap_or_default();
    let calls = if request.plan {
        drop(tx);
        calls(core, &push.location(), &planned).await?
    } else {
        record(tx, id, &request, &actor).await.map_err(|e| could_not_ask(&e))?;
        Vec::new()
    };
    let steps = planned.iter().map(ToString::to_string).collect();
    Ok(RollbackAnswer { schema: SCHEMA, push: number(id), effect, steps, calls })
}

/// The pushes of the cluster that is meant, newest first; none where nothing of it is open.
async fn of_cluster(tx: &mut troop_ledger::Tx, request: &RollbackRequest) -> Result<Vec<PushRow>, ApiError> {
    // A cluster's key begins with account and region, which a person does not type.
    let open = tx.open_pushes().await.map_err(|e| could_not_ask(&e))?;
    let named = |row: &&PushRow| request.push.is_none_or(|push| number(row.id) == push);
    let of_it = open.iter().filter(|row| row.key.rsplit('/').next() == Some(request.cluster.as_str()));
    let keys: BTreeSet<String> = of_it.filter(named).map(|row| row.key.clone()).collect();
    let mut keys = keys.into_iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(Vec::new()),
        (Some(key), None) => tx.pushes_of(&key, LOOKED_AT).await.map_err(|e| could_not_ask(&e)),
        (Some(one), Some(other)) => {
            let message = format!("{one} and {other} both have a push that is open");
            Err(error(ErrorKind::Yours, message, Some("name it with `--push N`; `troop pushes` lists them")))
        }
    }
}

/// The push that is meant: the one named, or the newest that has not ended.
fn wanted(rows: &[PushRow], request: &RollbackRequest) -> Result<(i64, Push), ApiError> {
    let bug = |why: String| error(ErrorKind::Bug, why, None);
    let cluster = &request.cluster;
    for row in rows {
        let push = parse(row).map_err(bug)?;
        match request.push {
            Some(wanted) if number(row.id) == wanted => return Ok((row.id, push)),
            None if is_open(&push) => return Ok((row.id, push)),
            Some(_) | None => {}
        }
    }
    let hint = Some("`troop pushes` lists them");
    match request.push {
        Some(wanted) => {
            Err(error(ErrorKind::NotFound, format!("`{cluster}` has no push {wanted} that could go back"), hint))
        }
        None => Err(error(
            ErrorKind::Refused,
            format!("no push of `{cluster}` can be rolled back: none is under way or watched"),
            hint,
        )),
    }
}

/// What giving up a push that has not flipped means, and which other push a person may have meant.
fn cancelled(id: i64, rows: &[PushRow]) -> String {
    let older = rows.iter().filter(|row| row.id < id).find_map(|row| {
        let push = parse(row).ok()?;
        (is_open(&push) && push.previous.is_some() && !holds_lock(push.phase)).then_some((row.id, push))
    });
    let also =
        older.map(|(older, push)| format!("; `--push {older}` would leave {} too", push.group())).unwrap_or_default();
    format!("cancelled, no traffic moves{also}")
}

async fn record(
    mut tx: troop_ledger::Tx,
    id: i64,
    request: &RollbackRequest,
    actor: &Actor,
) -> Result<(), LedgerError> {
    let request = RollbackBody {
        cluster: request.cluster.clone(),
        push: number(id),
        actor: actor.name.clone(),
        reason: request.reason.clone(),
        closed: None,
    };
    insert_request(&mut tx, &request).await?;
    tx.commit().await
}

/// Writes a request's row and event.
///
/// # Errors
/// The ledger's.
pub(super) async fn insert_request(tx: &mut troop_ledger::Tx, request: &RollbackBody) -> Result<(), LedgerError> {
    tx.insert_request(REQUEST_ROLLBACK, request.cluster.as_str(), body(request)).await?;
    let record = Record::RollbackRequested {
        push: Some(request.push),
        cluster: request.cluster.clone(),
        actor: request.actor.clone(),
        reason: request.reason.clone(),
    };
    tx.append(event(&record, Some(&request.actor))).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::number_of;
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_read_back() {
        assert_eq!(number_of(&holder(57)), Some(57));
        assert_eq!(number_of("ana"), None);
    }
}
