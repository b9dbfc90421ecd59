//! The day's plans: made once a day and team, stored whole, joined by scopes that appear, fired at their minute.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use troop_ledger::{EventId, LedgerError};
use troop_monkeys::latency;
use troop_policies::TeamName;
use troop_policies::draw::DayKey;
use troop_policies::fault::FaultSpec;
use troop_policies::gates::{Purpose, Scope};
use troop_policies::plan::{DayPlan, PLAN_SCHEMA, PlanEntry, PlanVerdict};
use troop_policies::spared::Spared;
use troop_scheduler::drills;
use troop_scheduler::plan::{self, ByTeam, PlanInput, ScopeSeen};

use super::act::{self, Struck, Wanted};
use super::core::{Core, body, event};
use super::ledger_seen::{self, About, Acts};
use super::look::Look;
use super::policy_store::TeamPolicy;
use crate::records::{RECORD_VERSION, Record};
use crate::world::chain;

/// What the planner remembers between ticks: nothing that the ledger does not also know.
#[derive(Debug, Default)]
pub struct Planner {
    standing: Standing,
    /// Entries already handed out in this process, so that a spared one is not asked about again each tick.
    fired: BTreeMap<(Date, String), ()>,
    /// Days whose key this process has seen published.
    published: BTreeMap<(Date, String), ()>,
}

/// The stored plans as they were read, for as long as nobody writes to the ledger: they are asked for several times a
/// second, and hundreds of entries are read from text each time.
#[derive(Debug, Default)]
struct Standing {
    /// The newest event when they were read. Whoever makes, joins or publishes a plan writes one.
    newest: Option<EventId>,
    plans: BTreeMap<(Date, TeamName), Option<Arc<DayPlan>>>,
}

impl Standing {
    /// Forgets all of them if anything was written since.
    async fn refresh(&mut self, core: &Core) -> Result<(), LedgerError> {
        let newest = core.ledger.newest_id().await?;
        if newest != self.newest {
            self.plans.clear();
            self.newest = newest;
        }
        Ok(())
    }

    async fn plan(&mut self, core: &Core, day: Date, team: &TeamName) -> Result<Option<Arc<DayPlan>>, String> {
        let key = (day, team.clone());
        if let Some(plan) = self.plans.get(&key) {
            return Ok(plan.clone());
        }
        let stored = core.ledger.plan(&day.to_string(), team.as_str()).await.map_err(|e| chain(&e))?;
        let plan = stored.map(|s| serde_json::from_value::<DayPlan>(s.body)).transpose();
        let plan = plan.map_err(|e| format!("the stored plan of {day} cannot be read: {e}"))?.map(Arc::new);
        self.plans.insert(key, plan.clone());
        Ok(plan)
    }
}

/// Makes, joins, fires and publishes what is due for every team with a good policy.
pub async fn tick(core: &Arc<Core>, planner: &mut Planner, seen: &Look) {
    let now = core.calendar_now();
    let policies = core.policies.load_full();
    if let Err(e) = planner.standing.refresh(core).await {
        return core.trouble("planner", Some(chain(&e)));
    }
    let groups = ByTeam::of(seen.inventories());
    for team in policies.good() {
        for day in team.calendar.planning_days(now) {
            match plan_of(core, &mut planner.standing, team, day, (seen, &groups), now).await {
                Ok(Some(plan)) => {
                    core.trouble("planner", None);
                    fire(core, planner, team, &plan, now);
                }
                Ok(None) => {}
                Err(why) => core.trouble("planner", Some(format!("team {}: {why}", team.policy.team))),
            }
        }
        if let Err(e) = publish(core, planner, team, now).await {
            core.trouble("ledger", Some(chain(&e)));
        }
    }
}

/// The stored plan of the day, made or joined first where that is due. `None` while the world cannot be read: a plan
/// made of half an inventory, or of an old one, would stand for the whole day.
async fn plan_of(
    core: &Core,
    standing: &mut Standing,
    team: &TeamPolicy,
    day: Date,
    (seen, groups): (&Look, &ByTeam<'_>),
    now: Timestamp,
) -> Result<Option<Arc<DayPlan>>, String> {
    let secret = core.secret.as_ref().map_err(Clone::clone)?;
    let stored = standing.plan(core, day, &team.policy.team).await?;
    let readable = seen.regions.iter().all(|(at, _, _)| seen.believed(at).is_ok());
    if !readable {
        return Ok(stored);
    }
    let mut scopes = plan::scopes_of(&team.policy, groups);
    // What stands never changes, so that without a new scope or monkey nothing more of the ledger is asked.
    if let Some(old) = stored.as_ref().filter(|old| plan::is_whole(old, &team.policy, &scopes)) {
        return Ok(Some(Arc::clone(old)));
    }
    remember(core, team, day, &mut scopes).await.map_err(|e| chain(&e))?;
    let day_key = secret.day_key(day, &team.policy.team);
    let input = input(core, team, day, &day_key, now, &scopes);
    let Some(old) = stored else {
        let plan = plan::plan_day(&input);
        return store(core, team, &plan).await.map(|stored| Some(Arc::new(stored)));
    };
    let joined = plan::join(&old, &input);
    if joined.entries.len() == old.entries.len() {
        return Ok(Some(old));
    }
    let fresh: Vec<String> = joined.entries.iter().skip(old.entries.len()).map(|e| e.draw_key.clone()).collect();
    let record = Record::PlanJoined { day, team: team.policy.team.clone(), draw_keys: fresh };
    let (day_text, team_name) = (day.to_string(), team.policy.team.as_str());
    let replaced =
        core.ledger.replace_plan_body(&day_text, team_name, &body(&*old), &body(&joined), event(&record, None)).await;
    match replaced {
        Ok(()) => Ok(Some(Arc::new(joined))),
        // Another planner joined first; its plan is read at the next tick.
        Err(LedgerError::Conflict { .. }) => Ok(Some(old)),
        Err(e) => Err(chain(&e)),
    }
}

async fn store(core: &Core, team: &TeamPolicy, plan: &DayPlan) -> Result<DayPlan, String> {
    let count =
        |verdict| u32::try_from(plan.entries.iter().filter(|e| e.verdict == verdict).count()).unwrap_or(u32::MAX);
    let (chosen, spared) = (count(PlanVerdict::Chosen), count(PlanVerdict::Spared));
    let team = &team.policy.team;
    let record = Record::PlanMade { day: plan.day, team: team.clone(), chosen, spared, late: plan.late };
    let day = plan.day.to_string();
    let stored = core
        .ledger
        .store_plan_once(&day, team.as_str(), RECORD_VERSION, &body(plan), event(&record, None))
        .await
        .map_err(|e| chain(&e))?;
    if stored.fresh {
        tracing::info!(%team, day, chosen, spared, late = plan.late, "plan made");
    }
    serde_json::from_value(stored.body).map_err(|e| format!("the stored plan of {day} cannot be read: {e}"))
}

fn input<'a>(
    core: &Core,
    team: &'a TeamPolicy,
    day: Date,
    day_key: &'a DayKey,
    now: Timestamp,
    scopes: &'a [ScopeSeen],
) -> PlanInput<'a> {
    PlanInput {
        policy: &team.policy,
        calendar: &team.calendar,
        day,
        day_key,
        now,
        site_leashed: core.leash() != troop_policies::situation::SiteLeash::Off,
        halted: core.is_halted(),
        scopes,
    }
}

/// Adds what the ledger knows of each scope.
async fn remember(core: &Core, team: &TeamPolicy, day: Date, scopes: &mut [ScopeSeen]) -> Result<(), LedgerError> {
    if scopes.is_empty() {
        return Ok(());
    }
    let mut tx = core.ledger.begin().await?;
    for scope in scopes {
        let calendar_now = core.calendar_now();
        let about = About { team, draw_key: &scope.draw_key, calendar_now, day, acts: Acts::Kills };
        let known = ledger_seen::history(&mut tx, about).await?;
        // A kill of this very day came after the plan, or would have: it does not unmake what was drawn.
        scope.last_kill_day = known.last_kill.map(|kill| kill.day);
        if team.policy.apps.get(&scope.app).is_some_and(|app| app.latency.is_some()) {
            let faults = ledger_seen::history(&mut tx, About { acts: Acts::Faults, ..about }).await?;
            scope.last_fault_day = faults.last_kill.map(|fault| fault.day);
        }
        scope.unhealed = known.unhealed.map(|mark| mark.why);
    }
    Ok(())
}

/// Starts what has come due. Each entry once: what is spared at its minute stays spared.
fn fire(core: &Arc<Core>, planner: &mut Planner, team: &Arc<TeamPolicy>, plan: &DayPlan, now: Timestamp) {
    if plan.schema != PLAN_SCHEMA {
        return;
    }
    for entry in plan::due(plan, now) {
        let key = (plan.day, format!("{} {}", entry.draw_key, entry.monkey));
        if planner.fired.insert(key, ()).is_some() {
            continue;
        }
        let (core, team, entry) = (Arc::clone(core), Arc::clone(team), entry.clone());
        let host = Arc::clone(&core.host);
        host.spawn(Box::pin(async move { fire_one(&core, &team, &entry).await }));
    }
}

async fn fire_one(core: &Arc<Core>, team: &Arc<TeamPolicy>, entry: &PlanEntry) {
    let wanted = Wanted {
        team: Arc::clone(team),
        scope: Scope { app: entry.app.clone(), draw_key: entry.draw_key.clone() },
        purpose: match drills::drilled(&entry.monkey) {
            None => Purpose::Drawn,
            Some(_) => Purpose::Drill { entry: entry.monkey.clone() },
        },
        day: entry.day,
        demand: None,
        fault: match drawn_fault(core, team, entry) {
            Ok(fault) => fault,
            Err(why) => return core.trouble("act", Some(format!("{}: {why}", entry.draw_key))),
        },
    };
    let is_drill = wanted.purpose != Purpose::Drawn;
    if is_drill && !drills::stands(&team.policy, entry) {
        let what = format!("`{}` any more", entry.monkey);
        return note_spared(core, &wanted, entry, &Spared::NotNamed { team: entry.team.to_string(), what }).await;
    }
    match act::strike(core, wanted.clone()).await {
        Struck::Acted { intent, outcome, .. } => {
            tracing::info!(draw_key = entry.draw_key, monkey = entry.monkey, step = %intent.step, ?outcome, "struck");
        }
        // Another control plane on this ledger was first; its record is the record.
        Struck::Spared(Spared::DrawnToday | Spared::DrilledToday { .. }) => {}
        Struck::Spared(spared) => note_spared(core, &wanted, entry, &spared).await,
        Struck::CouldNot { why } => core.trouble("act", Some(format!("{}: {why}", entry.draw_key))),
    }
}

/// The fault that an entry of the latency monkey draws from the menu as it is now; `None` for the chaos monkey's.
fn drawn_fault(
    core: &Core,
    team: &TeamPolicy,
    entry: &PlanEntry,
) -> Result<Option<(FaultSpec, std::time::Duration)>, String> {
    if monkey_of(entry) != plan::LATENCY {
        return Ok(None);
    }
    let menu = team.policy.apps.get(&entry.app).and_then(|app| app.latency.as_ref());
    let menu = menu.ok_or_else(|| format!("the policy has no latency for `{}` any more", entry.app))?;
    let day_key = core.secret.as_ref().map_err(Clone::clone)?.day_key(entry.day, &entry.team);
    let label = match drills::drilled(&entry.monkey) {
        None => latency::FAULT_LABEL.to_owned(),
        Some(_) => format!("{}/fault", entry.monkey),
    };
    let drawn = latency::draw_fault(menu, &day_key, &entry.draw_key, &label);
    drawn.map(Some).ok_or_else(|| "nothing was drawn from the menu".to_owned())
}

fn monkey_of(entry: &PlanEntry) -> &str {
    drills::drilled(&entry.monkey).unwrap_or(&entry.monkey)
}

async fn note_spared(core: &Arc<Core>, wanted: &Wanted, entry: &PlanEntry, spared: &Spared) {
    let (team, draw_key, monkey) = (entry.team.clone(), entry.draw_key.clone(), entry.monkey.clone());
    let (_, verdict) = act::ask(core, wanted).await;
    // Carried out before a restart, or by another control plane: that is what became of it, whatever spares now.
    let is_over = |s: &Spared| matches!(s, Spared::DrawnToday | Spared::DrilledToday { .. });
    if verdict.answers.iter().filter_map(|a| a.result.as_ref().err()).any(is_over) {
        return;
    }
    let record = if let Spared::Leashed { by } = spared {
        match verdict.only_leashed_by() {
            Some(_) => Record::WouldHave {
                team,
                draw_key,
                monkey,
                day: entry.day,
                victim: would_be_victim(core, entry, &verdict.candidates),
                eligible: u32::try_from(verdict.candidates.len()).unwrap_or(u32::MAX),
                leashed_by: (*by).to_owned(),
            },
            // Leashed, and something else would have spared it too: say the something else.
            None => {
                let mut others = verdict.answers.iter().filter_map(|a| a.result.as_ref().err());
                let other = others.find(|s| !matches!(s, Spared::Leashed { .. })).unwrap_or(spared);
                spared_record(entry, other)
            }
        }
    } else {
        spared_record(entry, spared)
    };
    tracing::info!(draw_key = entry.draw_key, %spared, "spared at its minute");
    let written = core.record(&record, None).await;
    core.trouble("ledger", written.err().map(|e| chain(&e)));
}

fn spared_record(entry: &PlanEntry, spared: &Spared) -> Record {
    Record::SparedAtAct {
        team: entry.team.clone(),
        draw_key: entry.draw_key.clone(),
        monkey: entry.monkey.clone(),
        day: entry.day,
        gate: spared.gate(),
        why: spared.to_string(),
        demand: false,
    }
}

fn would_be_victim(
    core: &Core,
    entry: &PlanEntry,
    candidates: &[troop_policies::InstanceId],
) -> Option<troop_policies::InstanceId> {
    let key = core.secret.as_ref().ok()?.day_key(entry.day, &entry.team);
    let label = match drills::drilled(&entry.monkey) {
        None if monkey_of(entry) == plan::LATENCY => latency::VICTIM_LABEL.to_owned(),
        None => troop_monkeys::chaos::VICTIM_LABEL.to_owned(),
        Some(_) => act::drill_label(&entry.monkey),
    };
    troop_monkeys::chaos::draw(candidates, &key, &entry.draw_key, &label).cloned()
}

/// Publishes the keys of days whose last window has closed, so that anyone can verify them.
async fn publish(core: &Core, planner: &mut Planner, team: &TeamPolicy, now: Timestamp) -> Result<(), LedgerError> {
    let Ok(secret) = &core.secret else { return Ok(()) };
    let today = team.calendar.civil_day(now);
    // Days since the control plane last ran are few; a fortnight covers a long holiday.
    for back in 0..15_i64 {
        let Ok(day) = today.checked_sub(jiff::Span::new().days(back)) else { break };
        let memory = (day, team.policy.team.to_string());
        if planner.published.contains_key(&memory) {
            continue;
        }
        // One that cannot be read is told by whoever plans that day; its key stays secret.
        let Ok(stored) = planner.standing.plan(core, day, &team.policy.team).await else { continue };
        if !is_over(team, day, stored.as_deref(), today, now) {
            continue;
        }
        if stored.is_some_and(|plan| plan.day_key.is_none()) {
            let key = secret.day_key(day, &team.policy.team).to_hex();
            let record = Record::DayKeyPublished { day, team: team.policy.team.clone() };
            let (day, team) = (day.to_string(), team.policy.team.as_str());
            core.ledger.publish_day_key(&day, team, &key, event(&record, None)).await?;
        }
        planner.published.insert(memory, ());
    }
    Ok(())
}

/// Whether the day's last window has closed: by the policy as it is now, and by the plan as it was made, because a file
/// that is edited during the day must not give away minutes that are still to come.
fn is_over(team: &TeamPolicy, day: Date, stored: Option<&DayPlan>, today: Date, now: Timestamp) -> bool {
    let planned = stored.iter().flat_map(|p| {
        let shuts = p.windows.iter().map(|w| w.shuts);
        shuts.chain(p.entries.iter().filter_map(|e| e.at))
    });
    let last = planned.chain(team.calendar.last_close(day)).max();
    last.map_or(day < today, |last| now >= last)
}
