//! Killing, and every other recorded act: record first, act second, settle third; at most once.
//!
//! [`strike`] is the only way by which a monkey harms. It asks every gate on a fresh look, draws the victim, asks every
//! gate again inside the transaction that writes the intent (so that what another control plane just wrote is seen),
//! and only then makes the token that the cloud wants. [`carry_out`] is shared with pushes and upkeep.

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;
use troop_ledger::{LedgerError, NewIntent, Tx};
use troop_monkeys::chaos::{self, Strike};
use troop_monkeys::latency;
use troop_policies::fault::FaultSpec;
use troop_policies::gates::{self, Eligible, Purpose, Scope, Verdict};
use troop_policies::harm::Harm;
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::leash::{Permit, Undo, Unleashed, Warrant};
use troop_policies::situation::{LedgerSeen, Reading, Situation, WindowSeen};
use troop_policies::spared::Spared;
use troop_policies::step::Step;
use troop_policies::{AccountName, IntentId, RegionName, ZoneName};

use super::core::{Core, body, event, new_intent_id};
use super::faults;
use super::ledger_seen::{self, About, Acts, mark_text};
use super::look::{Look, look};
use super::policy_store::TeamPolicy;
use crate::records::{HealingBody, IntentBody, MARK_HEALING, Record, intent_key};
use crate::world::chain;

/// How often, and how long apart, an unknown outcome is resolved before it is left to the resolver.
const RESOLVE_TRIES: u32 = 5;
const RESOLVE_EVERY: Duration = Duration::from_millis(200);

/// Who wants a kill, and of what.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub team: Arc<TeamPolicy>,
    pub scope: Scope,
    pub purpose: Purpose,
    pub day: Date,
    /// For a demand: who asked, and why.
    pub demand: Option<(String, String)>,
    /// The fault that is wanted, and for how long; `None`: a kill.
    pub fault: Option<(FaultSpec, Duration)>,
}

impl Wanted {
    pub fn harm(&self) -> Harm<'_> {
        self.fault.as_ref().map_or(Harm::Kill, |(fault, lasts)| Harm::Fault(Some((fault, *lasts))))
    }

    /// The monkey that would act.
    pub fn monkey(&self) -> &'static str {
        if self.fault.is_some() { latency::MONKEY } else { chaos::MONKEY }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Struck {
    Spared(Spared),
    /// Recorded and carried out, with this outcome.
    Acted {
        intent: Box<Intent>,
        zone: ZoneName,
        outcome: Outcome,
    },
    /// The ledger or the random numbers could not be had; nothing was done.
    CouldNot {
        why: String,
    },
}

/// The situation of a scope as the gates want it.
pub fn situation<'a>(
    core: &Core,
    wanted: &'a Wanted,
    seen: &'a Look,
    ledger: Reading<LedgerSeen>,
    now: Timestamp,
) -> Situation<'a> {
    let window: Reading<WindowSeen> = Ok(wanted.team.calendar.at(core.calendar.at(now)));
    Situation {
        now,
        policy: current_policy(core, wanted),
        site_leash: Ok(core.leash()),
        site_caps: core.site.caps.clone(),
        site_hold_while: core.site.hold_while.clone(),
        holds: seen.holds.clone(),
        site_channels: core.site.channels.keys().cloned().collect(),
        halt: core.halt(),
        clock: core.clock(),
        inventories: seen.seen(),
        registry: seen.registry.as_ref().map_err(Clone::clone),
        window,
        ledger,
    }
}

/// The policy a kill was wanted by, unless the file has changed or turned bad since.
fn current_policy<'a>(core: &Core, wanted: &'a Wanted) -> Reading<&'a troop_policies::policy::Policy> {
    let team = &wanted.team.policy.team;
    match core.policies.load().team(team) {
        Some(now) if Arc::ptr_eq(now, &wanted.team) || now.policy == wanted.team.policy => Ok(&wanted.team.policy),
        Some(_) => Err(format!("the policy of team `{team}` changed a moment ago; ask again")),
        None => Err(format!("the policy of team `{team}` is gone or has turned bad")),
    }
}

fn about<'a>(core: &Core, wanted: &'a Wanted, harm: Harm<'_>, now: Timestamp) -> About<'a> {
    About {
        team: &wanted.team,
        draw_key: &wanted.scope.draw_key,
        calendar_now: core.calendar.at(now),
        day: wanted.day,
        acts: match harm {
            Harm::Kill => Acts::Kills,
            Harm::Fault(_) => Acts::Faults,
        },
    }
}

/// Asks every gate on a fresh look, and returns the look with the answers.
pub async fn ask(core: &Core, wanted: &Wanted) -> (Look, Verdict) {
    let seen = look_for(core, wanted).await;
    let verdict = ask_about(core, wanted, wanted.harm(), &seen).await;
    (seen, verdict)
}

/// A fresh look, with the hold signals that are asked about the app.
pub async fn look_for(core: &Core, wanted: &Wanted) -> Look {
    // The signals first: they take longest, and nothing else may grow old meanwhile.
    let app = wanted.team.policy.apps.get(&wanted.scope.app);
    let signals = core.site.hold_while.iter().chain(app.iter().flat_map(|app| &app.hold_while));
    let holds = core.host.ask_holds(signals.cloned().collect()).await;
    Look { holds, ..look(core).await }
}

/// Asks every gate about a harm, which for whoever only explains need not be the one that is wanted.
pub async fn ask_about(core: &Core, wanted: &Wanted, harm: Harm<'_>, seen: &Look) -> Verdict {
    let ledger = match core.ledger.begin().await {
        Ok(mut tx) => ledger_seen::read(&mut tx, about(core, wanted, harm, seen.at), seen.inventories()).await,
        Err(e) => Err(e),
    };
    core.trouble("ledger", ledger.as_ref().err().map(|e| chain(e)));
    let situation = situation(core, wanted, seen, ledger.map_err(|e| chain(&e)), seen.at);
    gates::ask_about(&situation, &wanted.scope, &wanted.purpose, harm)
}

/// Kills one instance of the scope, if every gate agrees.
pub async fn strike(core: &Arc<Core>, wanted: Wanted) -> Struck {
    let secret = match &core.secret {
        Ok(secret) => secret.clone(),
        Err(why) => return Struck::CouldNot { why: why.clone() },
    };
    let (seen, verdict) = ask(core, &wanted).await;
    let eligible = match verdict.result {
        Ok(eligible) => eligible,
        Err(spared) => return Struck::Spared(spared),
    };
    let id = match new_intent_id(core) {
        Ok(id) => id,
        Err(why) => return Struck::CouldNot { why },
    };
    let label = match &wanted.purpose {
        Purpose::Drawn if wanted.fault.is_some() => latency::VICTIM_LABEL.to_owned(),
        Purpose::Drawn => chaos::VICTIM_LABEL.to_owned(),
        Purpose::Drill { entry } => drill_label(entry),
        Purpose::Demand { .. } => format!("{}/demand/{id}", wanted.monkey()),
    };
    let day_key = secret.day_key(wanted.day, &wanted.team.policy.team);
    let chosen = match &wanted.fault {
        None => chaos::choose(&eligible, &day_key, &wanted.scope.draw_key, &label),
        Some((fault, lasts)) => latency::choose(&eligible, (fault, *lasts), &day_key, &wanted.scope.draw_key, &label),
    };
    let Some(strike) = chosen else {
        return Struck::CouldNot { why: "nobody was drawn".to_owned() };
    };
    let intent = match intent_of(core, &wanted, &strike, id, seen.at) {
        Ok(intent) => intent,
        Err(why) => return Struck::CouldNot { why },
    };
    let hand = core.take_in_hand(intent.id.clone());
    // The act goes on when the caller goes away, so that an intent is never left behind by an impatient client.
    let (answer, answered) = oneshot::channel();
    core.host.spawn(Box::pin({
        let core = Arc::clone(core);
        async move {
            let struck = record_and_act(&core, &wanted, &seen, intent, strike).await;
            drop(hand);
            // Nobody need be there to hear it.
            drop(answer.send(struck));
        }
    }));
    answered.await.unwrap_or_else(|_| Struck::CouldNot { why: "the act's task ended".to_owned() })
}

/// The stream from which a drill's victim is drawn: one of its own, by its entry's name.
pub(super) fn drill_label(entry: &str) -> String {
    format!("{entry}/victim")
}

fn intent_of(core: &Core, wanted: &Wanted, strike: &Strike, id: IntentId, now: Timestamp) -> Result<Intent, String> {
    let (team, draw_key) = (wanted.team.policy.team.clone(), wanted.scope.draw_key.clone());
    let monkey = wanted.monkey().to_owned();
    let cause = match (&wanted.purpose, &wanted.demand) {
        (Purpose::Drawn, None) => Cause::Draw { team, draw_key, monkey, day: wanted.day },
        (Purpose::Drill { entry }, None) => Cause::Drill { team, draw_key, monkey: entry.clone(), day: wanted.day },
        (Purpose::Demand { outside_window, .. }, Some((actor, reason))) => Cause::Demand {
            team,
            draw_key,
            monkey,
            actor: actor.clone(),
            reason: reason.clone(),
            outside_window: *outside_window,
        },
        (Purpose::Drawn | Purpose::Drill { .. }, Some(_)) | (Purpose::Demand { .. }, None) => {
            return Err("a demand needs an actor and a reason, and nothing else has them".to_owned());
        }
    };
    Ok(Intent {
        id,
        account: strike.candidate.account.clone(),
        region: strike.candidate.region.clone(),
        step: strike.step.clone(),
        cause,
        at: core.calendar.at(now),
    })
}

async fn record_and_act(core: &Arc<Core>, wanted: &Wanted, seen: &Look, intent: Intent, strike: Strike) -> Struck {
    let zone = strike.candidate.zone.clone();
    let eligible = match intend(core, wanted, seen, &intent, &strike).await {
        Ok(Ok(eligible)) => eligible,
        Ok(Err(spared)) => return Struck::Spared(spared),
        Err(e) => return Struck::CouldNot { why: chain(&e) },
    };
    let now = core.now();
    // Read once more after the commit: a halt that came meanwhile wins.
    let permit = if core.is_halted() && !troop_policies::sabotaged!("halt_recheck") {
        Err("halted between record and act".to_owned())
    } else {
        Unleashed::for_step(&intent, Warrant::Gates(&eligible), now).map_err(|e| e.to_string())
    };
    let outcome = match permit {
        Ok(unleashed) => carry_out(core, &intent, Permit::Unleashed(&unleashed)).await,
        Err(why) => Outcome::refused(why),
    };
    let kills = wanted.fault.is_none();
    if outcome.may_have_happened() && kills {
        core.ended_by_us([strike.victim.clone()]);
    }
    settle(core, &intent, &outcome).await;
    core.struck.notify_one();
    if outcome.is_done() && kills {
        cancel_entry(core, &intent).await;
    }
    Struck::Acted { intent: Box::new(intent), zone, outcome }
}

/// Writes the intent in one transaction with the gates' second answer.
async fn intend(
    core: &Core,
    wanted: &Wanted,
    seen: &Look,
    intent: &Intent,
    strike: &Strike,
) -> Result<Result<Eligible, Spared>, LedgerError> {
    let now = core.now();
    let mut tx = core.ledger.begin().await?;
    let ledger = ledger_seen::read(&mut tx, about(core, wanted, wanted.harm(), now), seen.inventories()).await?;
    #[cfg(troop_sabotage)]
    let ledger = if troop_policies::sabotaged!("second_ask") {
        LedgerSeen { marks: ledger.marks, ..LedgerSeen::default() }
    } else {
        ledger
    };
    let situation = situation(core, wanted, seen, Ok(ledger), now);
    let verdict = gates::ask_about(&situation, &wanted.scope, &wanted.purpose, wanted.harm());
    let eligible = match verdict.result {
        Ok(eligible) => eligible,
        Err(spared) => return Ok(Err(spared)),
    };
    if !eligible.covers(&intent.step) {
        let why = "it is no longer eligible".to_owned();
        return Ok(Err(Spared::ThisInstance { instance: strike.victim.clone(), why }));
    }
    let zone = Some(strike.candidate.zone.clone());
    insert(&mut tx, intent, zone.clone()).await?;
    let heals_within = wanted.team.policy.apps.get(&wanted.scope.app).map_or(Duration::ZERO, |app| app.heals_within);
    let heals_within = SignedDuration::try_from(heals_within).unwrap_or(SignedDuration::ZERO);
    let healing = HealingBody {
        intent: intent.clone(),
        zone,
        killed_at: now,
        deadline: match &wanted.fault {
            None => now.checked_add(heals_within).unwrap_or(now),
            Some((fault, lasts)) => faults::deadline(fault, *lasts, now),
        },
    };
    tx.set_mark(MARK_HEALING, intent.id.as_str(), body(&healing)).await?;
    tx.commit().await?;
    Ok(Ok(eligible))
}

/// Writes an intent's row and event. Part of the transaction that checked guard and fence.
///
/// # Errors
/// The ledger's.
pub async fn insert(tx: &mut Tx, intent: &Intent, zone: Option<ZoneName>) -> Result<(), LedgerError> {
    if troop_policies::sabotaged!("intent_first") && matches!(intent.step, Step::Terminate { .. }) {
        return Ok(());
    }
    let row = NewIntent {
        id: intent.id.to_string(),
        kind: intent.step.kind().to_owned(),
        key: intent_key(intent),
        team: intent.cause.team().map(ToString::to_string),
        body: body(&IntentBody { intent: intent.clone(), zone: zone.clone() }),
    };
    tx.insert_intent(row).await?;
    tx.append(event(&Record::Intended { intent: intent.clone(), zone }, None)).await?;
    Ok(())
}

/// Performs a recorded intent and, while nobody can say what became of it, asks. Never performs twice.
pub async fn carry_out(core: &Core, intent: &Intent, permit: Permit<'_>) -> Outcome {
    if intent.step.is_for_agent() {
        return faults::put_up(core, intent, permit).await;
    }
    let mut outcome = core.world.perform(intent, permit, core.now()).await;
    for _ in 0..RESOLVE_TRIES {
        if !matches!(outcome, Outcome::Unknown { .. }) {
            break;
        }
        tokio::time::sleep(RESOLVE_EVERY).await;
        if troop_policies::sabotaged!("resolve") {
            outcome = core.world.perform(intent, permit, core.now()).await;
            continue;
        }
        match core.world.resolve(intent).await {
            Ok(resolved) => outcome = resolved,
            Err(e) => outcome = Outcome::unknown(chain(&e)),
        }
    }
    outcome
}

/// Settles an intent and marks its group. An intent that cannot be settled stays open, and the resolver comes to it.
pub async fn settle(core: &Core, intent: &Intent, outcome: &Outcome) {
    let settled = async {
        let mut tx = core.ledger.begin().await?;
        let id = settle_in(&mut tx, intent, outcome).await?;
        let at = tx.event(id).await?.map(|e| e.real_at);
        tx.commit().await?;
        Ok::<_, LedgerError>(at.map(|at| mark_text(id, at)))
    };
    match settled.await {
        Ok(mark) => {
            core.trouble("ledger", None);
            if let Some(mark) = mark.filter(|_| outcome.is_done()) {
                write_mark(core, intent, &mark).await;
            }
        }
        Err(e) => core.trouble("ledger", Some(chain(&e))),
    }
}

/// The settling part, for callers that save more in the same transaction.
///
/// # Errors
/// The ledger's.
pub async fn settle_in(tx: &mut Tx, intent: &Intent, outcome: &Outcome) -> Result<troop_ledger::EventId, LedgerError> {
    let word = match outcome {
        Outcome::Done { .. } => "done",
        Outcome::Refused { .. } => "refused",
        Outcome::Unknown { .. } => "unknown",
    };
    tx.settle_intent(intent.id.as_str(), word, body(outcome)).await?;
    if matches!(outcome, Outcome::Refused { .. }) {
        tx.clear_mark(MARK_HEALING, intent.id.as_str()).await?;
    }
    tx.append(event(&Record::Settled { intent: intent.clone(), outcome: outcome.clone() }, None)).await
}

/// Writes `troop:mark` on the group, so that another ledger in front of this cloud is noticed.
pub async fn write_mark(core: &Core, intent: &Intent, mark: &str) {
    // A destroyed group carries no tags, and a registry's step may be about one that is gone.
    if matches!(intent.step, Step::Destroy { .. }) || intent.step.is_for_registry() {
        return;
    }
    let written = core.world.mark(intent, mark).await;
    if written.is_err() && has_lost_its_group(core, intent).await {
        return core.trouble("mark", None);
    }
    core.trouble("mark", written.err().map(|e| chain(&e)));
}

/// Whether the intent's group is certainly gone: entries of the registry are cancelled after the end of their group too.
async fn has_lost_its_group(core: &Core, intent: &Intent) -> bool {
    let inventory = core.world.inventory(&intent.location()).await;
    inventory.is_ok_and(|inventory| !inventory.groups.contains_key(intent.step.group()))
}

/// Whoever terminates cancels: the victim's registry entry goes at once. The janitor comes again to what is left.
async fn cancel_entry(core: &Arc<Core>, kill: &Intent) {
    if !core.world.has_registry() || troop_policies::sabotaged!("cancel_entry") {
        return;
    }
    let Step::Terminate { group, instance, .. } = &kill.step else { return };
    let step = Step::CancelEntry { group: group.clone(), instance: instance.clone() };
    upkeep(core, &kill.account, &kill.region, step, "whoever terminates cancels").await;
}

/// Records and carries out a step that only restores.
pub async fn upkeep(core: &Arc<Core>, account: &AccountName, region: &RegionName, step: Step, reason: &str) {
    let (Ok(id), Ok(undo)) = (new_intent_id(core), Undo::for_step(&step)) else { return };
    let intent = Intent {
        id,
        account: account.clone(),
        region: region.clone(),
        step,
        cause: Cause::Upkeep { reason: reason.to_owned() },
        at: core.calendar_now(),
    };
    let hand = core.take_in_hand(intent.id.clone());
    let recorded = async {
        let mut tx = core.ledger.begin().await?;
        insert(&mut tx, &intent, None).await?;
        tx.commit().await
    };
    match recorded.await {
        Ok(()) => {
            let outcome = carry_out(core, &intent, Permit::Undo(undo)).await;
            settle(core, &intent, &outcome).await;
        }
        Err(e) => core.trouble("ledger", Some(chain(&e))),
    }
    drop(hand);
}
