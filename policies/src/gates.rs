//! The gates: may this scope be hurt now? Asked when the plan is made, and again, on a fresh [`Situation`], at the act.
//!
//! Every gate is answered even when an earlier one spared, so that `troop explain` can print them all; the first that
//! spares is the reason. A scope may span several clusters: a gate about a cluster takes out only the clusters it spares,
//! and the scope is spared when none is left.

mod caps;
mod notices;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::fault::FaultSpec;
use crate::guard;
use crate::harm::{Allowed, Harm, MonkeyPolicy};
use crate::ids::{AccountName, InstanceId, RegionName, ZoneName};
use crate::inventory::{Group, Inventory, Lifecycle, TAG_SPARE};
use crate::names::{AppName, ClusterName, GroupName};
use crate::policy::{AppPolicy, LatencyPolicy, Policy};
use crate::registry_view::Status;
use crate::situation::{LedgerSeen, SiteLeash, Situation, WindowSeen};
use crate::spared::{Gate, Spared};
use crate::step::Step;

/// An inventory older than this is stale at the act. Reads take well under a second; half a minute means that the cloud
/// did not answer several times.
pub const INVENTORY_MAX_AGE_S: i64 = 30;

/// What is asked about: a scope of a team's policy, by its draw key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub app: AppName,
    pub draw_key: String,
}

/// Who asks. Every purpose passes every gate, but for what its variant names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A draw that fell. Bound by min workdays and one a day.
    Drawn,
    /// A drill's minute, by the name of its entry. Not bound by min workdays and one a day, but each comes once a day.
    Drill { entry: String },
    /// A person. Not bound by min workdays and one a day; `outside_window` needs a reason and is recorded.
    Demand { outside_window: bool, instance: Option<InstanceId> },
}

/// Every gate answered ok at `checked_at`, for any one of these instances. Only [`ask`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Eligible {
    candidates: BTreeMap<InstanceId, Candidate>,
    allowed: Allowed,
    checked_at: Timestamp,
}

/// Where an eligible instance is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub account: AccountName,
    pub region: RegionName,
    pub zone: ZoneName,
    pub group: GroupName,
    /// The floor its group must keep.
    pub floor: u32,
}

impl Eligible {
    pub fn checked_at(&self) -> Timestamp {
        self.checked_at
    }

    /// The candidates' ids, sorted by bytes, as the victim's draw wants them.
    pub fn ids(&self) -> Vec<InstanceId> {
        self.candidates.keys().cloned().collect()
    }

    /// The step that ends this candidate, and where. `None` for an id that is no candidate, and where no end was asked about.
    pub fn step(&self, victim: &InstanceId) -> Option<(Step, &Candidate)> {
        let candidate = self.candidates.get(victim)?;
        let Allowed::Kill(kill) = self.allowed else { return None };
        Some((Step::Terminate { group: candidate.group.clone(), instance: victim.clone(), kill }, candidate))
    }

    /// The step that puts a fault on this candidate, and where. `None` for an id that is no candidate, and for a fault that the
    /// policy's menu does not have.
    pub fn fault(&self, victim: &InstanceId, fault: &FaultSpec, lasts: Duration) -> Option<(Step, &Candidate)> {
        let candidate = self.candidates.get(victim)?;
        let (group, instance) = (candidate.group.clone(), victim.clone());
        let step = Step::Fault { group, instance, fault: Box::new(fault.clone()), lasts };
        self.covers(&step).then_some((step, candidate))
    }

    /// The policy's menu of faults, where faults were asked about.
    pub fn menu(&self) -> Option<&LatencyPolicy> {
        match &self.allowed {
            Allowed::Kill(_) => None,
            Allowed::Fault(menu) => Some(menu),
        }
    }

    /// Whether this answer allows that very step.
    pub fn covers(&self, step: &Step) -> bool {
        let is_candidate =
            |group: &GroupName, id: &InstanceId| self.candidates.get(id).is_some_and(|c| c.group == *group);
        match (step, &self.allowed) {
            (Step::Terminate { group, instance, kill }, Allowed::Kill(how)) => {
                kill == how && is_candidate(group, instance)
            }
            (Step::Fault { group, instance, fault, lasts }, Allowed::Fault(menu)) => {
                menu.allows(fault, *lasts).is_ok() && is_candidate(group, instance)
            }
            (Step::Terminate { .. }, Allowed::Fault(_)) | (Step::Fault { .. }, Allowed::Kill(_)) => false,
            (
                Step::CreateGroup { .. }
                | Step::Resize { .. }
                | Step::Flip { .. }
                | Step::Enable { .. }
                | Step::Disable { .. }
                | Step::Destroy { .. }
                | Step::OverrideGroup { .. }
                | Step::CancelEntry { .. },
                _,
            ) => false,
        }
    }

    pub(crate) fn describe(&self) -> String {
        let what = match self.allowed {
            Allowed::Kill(_) => "terminate",
            Allowed::Fault(_) => "put a fault on",
        };
        format!("{what} one of {} instances", self.candidates.len())
    }
}

/// One gate's answer, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub gate: Gate,
    /// What was found, or why it spares.
    pub result: Result<String, Spared>,
}

/// All answers, and what follows from them.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Verdict {
    pub answers: Vec<Answer>,
    pub result: Result<Eligible, Spared>,
    /// Who passed every gate about clusters and instances, also where another gate spares: what `explain` counts, and
    /// from whom a leashed kill would have been drawn. Sorted by bytes.
    pub candidates: Vec<InstanceId>,
    /// What would be eligible if no other gate spared. Private, so that nobody takes it for the answer.
    considered: Option<Eligible>,
}

impl Verdict {
    /// The step that would end this instance if the gate that spares did not: for whoever only says so.
    pub fn considered(&self, victim: &InstanceId) -> Option<(Step, Candidate)> {
        let (step, candidate) = self.considered.as_ref()?.step(victim)?;
        Some((step, candidate.clone()))
    }

    /// The leash that alone stands between this answer and a kill, if that is so.
    pub fn only_leashed_by(&self) -> Option<&'static str> {
        let mut spared = self.answers.iter().filter_map(|a| a.result.as_ref().err());
        match (spared.next(), spared.next()) {
            (Some(Spared::Leashed { by }), None) => Some(by),
            (Some(Spared::NotReady { .. }), None) => Some("site"),
            _ => None,
        }
    }
}

/// One cluster of the scope while the gates are asked.
struct Asked<'a> {
    inventory: &'a Inventory,
    cluster: &'a ClusterName,
    /// The first gate about this cluster that spared it.
    out: Option<Spared>,
}

/// Asks every gate about killing one instance of `scope` now.
pub fn ask(situation: &Situation<'_>, scope: &Scope, purpose: &Purpose) -> Verdict {
    ask_about(situation, scope, purpose, Harm::Kill)
}

/// Asks every gate about harming one instance of `scope` now.
pub fn ask_about(situation: &Situation<'_>, scope: &Scope, purpose: &Purpose, harm: Harm<'_>) -> Verdict {
    let mut answers = Vec::with_capacity(Gate::ALL.len());
    let policy = situation.policy.as_ref().copied().map_err(|why| Spared::NoPolicy { why: why.clone() });
    let app = policy.clone().and_then(|policy| app_of(policy, scope));
    let named = app.clone().and_then(|(_, app)| harm.policy(app));
    let monkey = named.as_ref().map(|(monkey, _)| *monkey).map_err(Clone::clone);
    let mut clusters = app.as_ref().map(|(policy, app)| clusters_of(situation, policy, app, scope)).unwrap_or_default();
    let statuses = statuses(situation, &clusters);
    let seen = ledger(situation);

    for gate in Gate::ALL {
        let result = match gate {
            Gate::Policy => app.clone().and_then(|(policy, app)| {
                monkey.clone()?;
                policy_gate(policy, app, &mut clusters, scope)
            }),
            Gate::Leash => monkey.clone().and_then(|monkey| leash_gate(situation, monkey)),
            Gate::Halt => halt_gate(situation),
            Gate::Clock if crate::sabotaged!("clock") => Ok("not asked".to_owned()),
            Gate::Clock => situation.clock.clone().map(|()| "agrees".to_owned()).map_err(|why| Spared::Clock { why }),
            Gate::Ledger => seen.clone().and_then(|seen| ledger_gate(seen, &clusters)),
            Gate::Inventory => inventory_gate(situation),
            Gate::Hold => app.clone().and_then(|(policy, app)| {
                let quiet = hold_gate(situation, app)?;
                Ok(match notices::told(situation, policy, seen.clone())? {
                    Some(told) => format!("{quiet}, {told}"),
                    None => quiet,
                })
            }),
            Gate::Window => window_gate(situation, purpose),
            Gate::Push => seen.clone().and_then(|seen| {
                let during = monkey.as_ref().is_ok_and(|m| m.during_push);
                each(&mut clusters, |asked| push_gate(seen, asked, during))
            }),
            Gate::History => seen.clone().and_then(|seen| history_gate(seen, monkey.clone()?, scope, purpose)),
            Gate::Caps => seen.clone().and_then(|seen| caps::caps_gate(situation, seen, policy.clone()?)),
            Gate::Group => statuses.clone().and_then(|statuses| {
                each(&mut clusters, |asked| {
                    let group = serving_group(asked)?;
                    guard::sound(group, &statuses, situation.now)?;
                    Ok(format!("{} is whole with {}", group.name, group.members.len()))
                })
            }),
            Gate::Floor => statuses.clone().and_then(|statuses| {
                let (_, app) = app.clone()?;
                let open = &seen.clone()?.unhealed;
                each(&mut clusters, |asked| {
                    let group = serving_group(asked)?;
                    let left = guard::floor(group, &statuses, open, app.min_serving, situation.now)?;
                    Ok(format!("{} - 1 >= {}", left + 1, app.min_serving))
                })
            }),
            // Answered last, below: it needs every cluster that is still in.
            Gate::Instance => continue,
        };
        answers.push(Answer { gate, result });
    }
    let candidates = instance_gate(situation, &app, seen.clone(), &clusters, statuses.as_ref(), purpose);
    let instance_answer = candidates.as_ref().map(|c| format!("{} may be hurt", c.len())).map_err(Clone::clone);
    answers.push(Answer { gate: Gate::Instance, result: instance_answer });

    let ids = candidates.as_ref().map(|c| c.keys().cloned().collect()).unwrap_or_default();
    let spared = answers.iter().find_map(|a| a.result.as_ref().err().cloned());
    let considered = match (candidates, named) {
        (Err(spared), _) | (Ok(_), Err(spared)) => Err(spared),
        (Ok(candidates), Ok((_, allowed))) => Ok(Eligible { candidates, allowed, checked_at: situation.now }),
    };
    let (result, considered) = match (spared, considered) {
        (Some(spared), considered) => (Err(spared), considered.ok()),
        (None, considered) => (considered, None),
    };
    Verdict { answers, result, candidates: ids, considered }
}

fn app_of<'a>(policy: &'a Policy, scope: &Scope) -> Result<(&'a Policy, &'a AppPolicy), Spared> {
    let named = policy.apps.get(&scope.app);
    named
        .map(|app| (policy, app))
        .ok_or_else(|| Spared::NotNamed { team: policy.team.to_string(), what: format!("app `{}`", scope.app) })
}

/// The clusters of the scope that the team owns, over all regions that could be read.
fn clusters_of<'a>(situation: &Situation<'a>, policy: &Policy, app: &AppPolicy, scope: &Scope) -> Vec<Asked<'a>> {
    let mut clusters = Vec::new();
    for inventory in situation.inventories.iter().filter_map(|seen| seen.inventory.as_ref().ok().copied()) {
        for cluster in inventory.clusters() {
            let of_scope = cluster.app() == &scope.app
                && app.draw_key(&inventory.account, &inventory.region, cluster) == scope.draw_key;
            let owned = || inventory.groups_of(cluster).iter().any(|g| policy.owns(g));
            if of_scope && owned() {
                clusters.push(Asked { inventory, cluster, out: None });
            }
        }
    }
    clusters
}

/// Asks one question of every cluster still in; spared when none passes. With all out already it is asked of all, so
/// that `explain` still has something to say.
fn each<'a>(
    clusters: &mut [Asked<'a>],
    mut question: impl FnMut(&Asked<'a>) -> Result<String, Spared>,
) -> Result<String, Spared> {
    let none_left = clusters.iter().all(|c| c.out.is_some());
    let total = clusters.len();
    let mut passed = Vec::new();
    let mut first_spared = None;
    for asked in clusters.iter_mut().filter(|c| none_left || c.out.is_none()) {
        match question(asked) {
            Ok(text) => passed.push(text),
            Err(spared) => {
                first_spared.get_or_insert_with(|| spared.clone());
                asked.out.get_or_insert(spared);
            }
        }
    }
    match (passed.as_slice(), first_spared) {
        ([], Some(spared)) => Err(spared),
        ([], None) => Err(Spared::Unknown { what: "the scope", why: "it has no cluster".to_owned() }),
        ([one], _) if total == 1 => Ok(one.clone()),
        (some, _) => Ok(format!("{} of {total} clusters: {}", some.len(), some.join("; "))),
    }
}

fn policy_gate(policy: &Policy, app: &AppPolicy, clusters: &mut [Asked<'_>], scope: &Scope) -> Result<String, Spared> {
    if clusters.is_empty() {
        return Err(Spared::NotTheirs { what: scope.draw_key.clone(), team: policy.team.to_string() });
    }
    each(clusters, |asked| {
        if let Some(why) = app.exempt(&asked.inventory.account, &asked.inventory.region, asked.cluster) {
            return Err(Spared::Exempt { why });
        }
        // One group with another team's tag makes the whole cluster doubtful.
        let foreign = asked.inventory.groups_of(asked.cluster).into_iter().find(|g| !policy.owns(g));
        if let Some(group) = foreign.filter(|_| !crate::sabotaged!("mixed_team")) {
            return Err(Spared::NotTheirs { what: group.name.to_string(), team: policy.team.to_string() });
        }
        Ok(format!("{}, tag agrees", app.place))
    })
}

fn leash_gate(situation: &Situation<'_>, monkey: MonkeyPolicy) -> Result<String, Spared> {
    match &situation.site_leash {
        Err(why) => Err(Spared::Unknown { what: "the leash", why: why.clone() }),
        Ok(SiteLeash::On) if !crate::sabotaged!("leash_site") => Err(Spared::Leashed { by: "site" }),
        Ok(SiteLeash::NotYet { missing }) => Err(Spared::NotReady { missing: missing.clone() }),
        Ok(_) if monkey.leashed && !crate::sabotaged!("leash_app") => Err(Spared::Leashed { by: "policy" }),
        Ok(_) => Ok("unleashed".to_owned()),
    }
}

/// A moment as people read it.
fn to_the_second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn halt_gate(situation: &Situation<'_>) -> Result<String, Spared> {
    match &situation.halt {
        Err(why) => Err(Spared::Unknown { what: "the halt state", why: why.clone() }),
        Ok(Some(_)) if crate::sabotaged!("halt_gate") => Ok("not asked".to_owned()),
        Ok(Some(h)) => Err(Spared::Halted { who: h.who.clone(), since: to_the_second(h.at), why: h.why.clone() }),
        Ok(None) => Ok("not halted".to_owned()),
    }
}

fn ledger<'a>(situation: &'a Situation<'_>) -> Result<&'a LedgerSeen, Spared> {
    situation.ledger.as_ref().map_err(|why| Spared::Unknown { what: "the ledger", why: why.clone() })
}

fn ledger_gate<'a>(seen: &LedgerSeen, clusters: &[Asked<'a>]) -> Result<String, Spared> {
    let mut marks = 0;
    let of_cluster = |asked: &Asked<'a>| {
        let (inventory, groups) = (asked.inventory, asked.inventory.groups_of(asked.cluster));
        groups.into_iter().map(|group| (inventory.location(), group))
    };
    for (at, group) in clusters.iter().flat_map(of_cluster) {
        let Some(tag) = group.tags.get(crate::inventory::TAG_MARK) else { continue };
        marks += 1;
        // A mark that was not looked up is as doubtful as one that is not there.
        let known = seen.marks.get(&(at, group.name.clone())).is_some_and(|m| m.known && m.mark == *tag);
        if !known && !crate::sabotaged!("mark") {
            return Err(Spared::ForeignMark { group: group.name.clone(), mark: tag.clone() });
        }
    }
    Ok(format!("holds {marks} marks of the cloud"))
}

fn inventory_gate(situation: &Situation<'_>) -> Result<String, Spared> {
    let mut instances = 0;
    if situation.inventories.is_empty() {
        return Err(Spared::Unknown { what: "the inventory", why: "no region was read".to_owned() });
    }
    for seen in &situation.inventories {
        let inventory = match &seen.inventory {
            Ok(inventory) => inventory,
            Err(why) => return Err(Spared::Unknown { what: "the inventory", why: why.clone() }),
        };
        let age_s = situation.now.as_second().saturating_sub(inventory.read_at.as_second());
        if !(-1..=INVENTORY_MAX_AGE_S).contains(&age_s) && !crate::sabotaged!("stale_inventory") {
            let account = inventory.account.clone();
            return Err(Spared::StaleInventory { account, age_s, limit_s: INVENTORY_MAX_AGE_S });
        }
        if let Some(shrunk) = seen.shrunk.filter(|_| !crate::sabotaged!("shrunk_inventory")) {
            return Err(Spared::Shrunk { from: shrunk.from, to: shrunk.to });
        }
        instances += inventory.instance_count();
    }
    Ok(format!("{instances} instances, fresh"))
}

fn hold_gate(situation: &Situation<'_>, app: &AppPolicy) -> Result<String, Spared> {
    if crate::sabotaged!("hold") {
        return Ok("not asked".to_owned());
    }
    let mut quiet = 0;
    for signal in situation.site_hold_while.iter().chain(&app.hold_while) {
        match situation.holds.get(signal) {
            Some(Ok(None)) => quiet += 1,
            Some(Ok(Some(what))) => return Err(Spared::Held { signal: signal.clone(), what: what.clone() }),
            Some(Err(why)) => return Err(Spared::HoldNotAsked { signal: signal.clone(), why: why.clone() }),
            None => {
                let why = "nobody has".to_owned();
                return Err(Spared::HoldNotAsked { signal: signal.clone(), why });
            }
        }
    }
    if quiet == 0 { Ok("no hold signal".to_owned()) } else { Ok(format!("{quiet} hold signals are quiet")) }
}

fn window_gate(situation: &Situation<'_>, purpose: &Purpose) -> Result<String, Spared> {
    match (&situation.window, purpose) {
        (_, Purpose::Demand { outside_window: true, .. }) => {
            Ok("not asked: outside the window by a recorded reason".to_owned())
        }
        (Err(why), _) => Err(Spared::Unknown { what: "the window", why: why.clone() }),
        (Ok(WindowSeen::Shut { .. }), _) if crate::sabotaged!("window") => Ok("not asked".to_owned()),
        (Ok(WindowSeen::Shut { why, opens }), _) => Err(Spared::WindowShut { why: why.clone(), opens: *opens }),
        (Ok(WindowSeen::Open { shuts_in, next_holiday, .. }), _) => {
            let next = next_holiday.as_ref().map(|h| format!(", next holiday {h}")).unwrap_or_default();
            Ok(format!("shuts in {shuts_in}{next}"))
        }
    }
}

fn serving_group<'a>(asked: &Asked<'a>) -> Result<&'a Group, Spared> {
    asked.inventory.serving(asked.cluster).map_err(|e| Spared::NotServing { why: e.to_string() })
}

fn push_gate(seen: &LedgerSeen, asked: &Asked<'_>, during_push: bool) -> Result<String, Spared> {
    match seen.locks.get(&(asked.inventory.location(), asked.cluster.clone())) {
        Some(holder) if !during_push && !crate::sabotaged!("push_lock") => {
            Err(Spared::PushInFlight { cluster: asked.cluster.to_string(), holder: holder.clone() })
        }
        holder => {
            let group = serving_group(asked)?;
            let push = holder.map_or("none in flight".to_owned(), |h| format!("{h}, allowed by `during_push`"));
            Ok(format!("{push}, {} serves", group.name))
        }
    }
}

fn history_gate(seen: &LedgerSeen, monkey: MonkeyPolicy, scope: &Scope, purpose: &Purpose) -> Result<String, Spared> {
    if let Some(mark) = seen.history.unhealed.as_ref().filter(|_| !crate::sabotaged!("unhealed")) {
        let (draw_key, since, why) = (scope.draw_key.clone(), to_the_second(mark.since), mark.why.clone());
        return Err(Spared::Unhealed { draw_key, since, why });
    }
    if *purpose == Purpose::Drawn && seen.history.drawn_today {
        return Err(Spared::DrawnToday);
    }
    if let Purpose::Drill { entry } = purpose
        && seen.history.drilled_today.contains(entry)
    {
        return Err(Spared::DrilledToday { entry: entry.clone() });
    }
    let Some(last) = &seen.history.last_kill else { return Ok("never killed".to_owned()) };
    if last.still_healing && !crate::sabotaged!("still_healing") {
        return Err(Spared::StillHealing { what: last.text.clone() });
    }
    let too_soon = last.workdays_ago < monkey.rate.min_workdays && !crate::sabotaged!("min_workdays");
    if *purpose == Purpose::Drawn && too_soon {
        return Err(Spared::TooSoon { workdays: last.workdays_ago, min: monkey.rate.min_workdays });
    }
    Ok(format!("last kill {}, {}, {} workdays ago", last.day, last.text, last.workdays_ago))
}

type Statuses = BTreeMap<InstanceId, Status>;

/// The registry's word on every instance of these clusters; unknown where it is warming, unless no group here needs it.
fn statuses(situation: &Situation<'_>, clusters: &[Asked<'_>]) -> Result<Statuses, Spared> {
    let inventories = || situation.inventories.iter().filter_map(|seen| seen.inventory.as_ref().ok());
    let needed = inventories().any(|i| i.groups.values().any(|g| g.registry_required));
    let unknown = |why: &str| Err(Spared::Unknown { what: "the registry", why: why.to_owned() });
    match &situation.registry {
        _ if !needed => Ok(Statuses::new()),
        Err(why) => unknown(why),
        Ok(view) if view.warming => unknown("it has just started and is warming up"),
        Ok(view) => {
            let of_one = |inventory: &Inventory| {
                let own = clusters.iter().filter(move |asked| std::ptr::eq(asked.inventory, inventory));
                view.statuses_of(own.flat_map(|asked| inventory.groups_of(asked.cluster)), inventory)
            };
            Ok(inventories().flat_map(|inventory| of_one(inventory)).collect())
        }
    }
}

fn instance_gate(
    situation: &Situation<'_>,
    app: &Result<(&Policy, &AppPolicy), Spared>,
    seen: Result<&LedgerSeen, Spared>,
    clusters: &[Asked<'_>],
    statuses: Result<&Statuses, &Spared>,
    purpose: &Purpose,
) -> Result<BTreeMap<InstanceId, Candidate>, Spared> {
    let (app, seen, statuses) = (app.clone()?.1, seen?, statuses.map_err(Clone::clone)?);
    let mut candidates = BTreeMap::new();
    let mut first_spared = None;
    for asked in clusters.iter().filter(|c| c.out.is_none()) {
        let group = serving_group(asked)?;
        for instance in group.members.values() {
            let spare = |why: String| Spared::NoInstance { group: group.name.clone(), why };
            let verdict = may_be_hurt(group, instance, statuses, situation.now)
                .map_err(spare)
                .and_then(|()| caps::site_room(situation, seen, &asked.inventory.account, &instance.zone));
            match verdict {
                Ok(()) => {
                    let candidate = Candidate {
                        account: asked.inventory.account.clone(),
                        region: asked.inventory.region.clone(),
                        zone: instance.zone.clone(),
                        group: group.name.clone(),
                        floor: app.min_serving,
                    };
                    candidates.insert(instance.id.clone(), candidate);
                }
                Err(spared) => {
                    first_spared.get_or_insert(spared);
                }
            }
        }
    }
    if let Purpose::Demand { instance: Some(wanted), .. } = purpose {
        let found = candidates.remove(wanted);
        return match found {
            Some(candidate) => Ok(BTreeMap::from([(wanted.clone(), candidate)])),
            None => {
                let why =
                    first_spared.map_or_else(|| "it is no member of the serving group".to_owned(), |s| s.to_string());
                Err(Spared::ThisInstance { instance: wanted.clone(), why })
            }
        };
    }
    if candidates.is_empty() {
        let none = || Spared::Unknown { what: "the scope", why: "no cluster of it is left".to_owned() };
        return Err(first_spared.or_else(|| clusters.iter().find_map(|c| c.out.clone())).unwrap_or_else(none));
    }
    Ok(candidates)
}

/// In service and healthy, not protected, not in standby, not opted out.
fn may_be_hurt(
    group: &Group,
    instance: &crate::inventory::Instance,
    statuses: &Statuses,
    now: Timestamp,
) -> Result<(), String> {
    if crate::sabotaged!("opt_out") {
        return guard::serves(group, instance, statuses.get(&instance.id).copied(), now);
    }
    if group.tags.contains_key(TAG_SPARE) {
        return Err(format!("{} carries the tag `{TAG_SPARE}`", group.name));
    }
    if instance.spare {
        return Err(format!("{} carries the tag `{TAG_SPARE}`", instance.id));
    }
    if instance.protected {
        return Err(format!("{} is protected", instance.id));
    }
    if instance.lifecycle == Lifecycle::Standby {
        return Err(format!("{} is in standby", instance.id));
    }
    guard::serves(group, instance, statuses.get(&instance.id).copied(), now)
}

#[cfg(test)]
mod tests;
