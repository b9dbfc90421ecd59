//! The day's plan: for each scope and monkey a verdict, its odds, its draw and why. Made once a day, joined by scopes that
//! appear, and never changed where it stands.
//!
//! Draws come from the day's key, the scope's draw key and the monkey's name alone, in a stream of their own, so a new scope
//! changes nobody's luck and the same day planned twice is the same plan. What spares without a draw (no workday, an
//! exception, too soon) is said in the plan; every other gate is asked at the minute.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff::civil::Date;
use troop_policies::draw::DayKey;
use troop_policies::plan::{DayPlan, PLAN_SCHEMA, PlanEntry, PlanVerdict, WindowSpan};
use troop_policies::policy::{Policy, Rate};

use crate::calendar::{Calendar, instant_of, minutes};
use crate::drills;
pub use crate::scopes::{ByTeam, ScopeSeen, scopes_of};

/// The name of the chaos monkey in draws and plans.
pub const CHAOS: &str = "chaos";
/// The name of the latency monkey.
pub const LATENCY: &str = "latency";
/// What stands before a drill's monkey in the `monkey` of a plan's entry. A drill draws nothing.
pub const DRILL_PREFIX: &str = "drill:";

/// For how long past its minute an entry may still fire. A control plane that was down at the minute must not kill hours
/// later, when nobody expects it. Ten minutes cover a restart, a ledger that was busy, and the demo, whose calendar moves by
/// two and a half minutes between two looks.
pub const FIRE_WITHIN_S: i64 = 600;

/// Everything a plan is made of.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    pub policy: &'a Policy,
    /// Built from `policy`.
    pub calendar: &'a Calendar,
    pub day: Date,
    pub day_key: &'a DayKey,
    /// On the scheduler's calendar.
    pub now: Timestamp,
    pub site_leashed: bool,
    pub halted: bool,
    /// From [`scopes_of`], with what the ledger knows of each.
    pub scopes: &'a [ScopeSeen],
}

/// Makes the plan of a day. It holds no key until that is published.
pub fn plan_day(input: &PlanInput<'_>) -> DayPlan {
    let windows = input.calendar.windows(input.day);
    let workday = input.calendar.is_workday(input.day);
    DayPlan {
        schema: PLAN_SCHEMA,
        team: input.policy.team.clone(),
        day: input.day,
        time_zone: input.policy.time_zone_name.clone(),
        workday: workday.is_ok(),
        not_workday_because: workday.err(),
        late: windows.first().is_some_and(|first| first.opens < input.now),
        windows,
        made_at: input.now,
        site_leashed: input.site_leashed,
        halted: input.halted,
        day_key: None,
        entries: entries(input, &BTreeSet::new(), None),
        team_spared_because: None,
    }
}

/// The plan with entries for what it does not name yet, appended: scopes that appeared and monkeys that were added to the
/// policy. Entries that stand never change. A plan of another day or team is returned as it is.
pub fn join(old: &DayPlan, input: &PlanInput<'_>) -> DayPlan {
    let mut plan = old.clone();
    if old.day != input.day || old.team != input.policy.team {
        return plan;
    }
    let known = old.entries.iter().map(|entry| (entry.draw_key.as_str(), entry.monkey.as_str())).collect();
    plan.entries.extend(entries(input, &known, Some(input.now)));
    plan
}

/// Whether the plan has an entry for everything that there is: [`join`] would add none. It is asked at every look.
pub fn is_whole(plan: &DayPlan, policy: &Policy, scopes: &[ScopeSeen]) -> bool {
    let known: BTreeSet<(&str, &str)> =
        plan.entries.iter().map(|entry| (entry.draw_key.as_str(), entry.monkey.as_str())).collect();
    let of_day = |app| drills::of_day(app, &policy.time_zone, plan.day);
    let drilled: BTreeMap<_, _> = policy.apps.values().map(|app| (&app.app, of_day(app))).collect();
    scopes.iter().all(|scope| {
        let has = |monkey: &str| known.contains(&(scope.draw_key.as_str(), monkey));
        policy.apps.get(&scope.app).is_none_or(|app| {
            (app.chaos.is_none() || has(CHAOS))
                && (app.latency.is_none() || has(LATENCY))
                && drilled.get(&scope.app).is_none_or(|runs| runs.keys().all(|name| has(name)))
        })
    })
}

/// The entries whose minute has come and is at most [`FIRE_WITHIN_S`] past.
pub fn due(plan: &DayPlan, now: Timestamp) -> Vec<&PlanEntry> {
    let has_come =
        |at: Timestamp| (0..=FIRE_WITHIN_S).contains(&now.as_second().saturating_sub(at.as_second())) && at <= now;
    let due =
        |entry: &&PlanEntry| entry.verdict == PlanVerdict::Chosen && !entry.missed && entry.at.is_some_and(has_come);
    plan.entries.iter().filter(due).collect()
}

/// What is the same for every entry of the day.
pub(crate) struct Day<'a> {
    pub(crate) input: &'a PlanInput<'a>,
    windows: Vec<WindowSpan>,
    workday: Result<(), String>,
    pub(crate) joined_at: Option<Timestamp>,
}

/// Entries by draw key, then chaos, latency, drills. `known` are left out.
fn entries(input: &PlanInput<'_>, known: &BTreeSet<(&str, &str)>, joined_at: Option<Timestamp>) -> Vec<PlanEntry> {
    let day = Day {
        input,
        windows: input.calendar.windows(input.day),
        workday: input.calendar.is_workday(input.day),
        joined_at,
    };
    let mut scopes: Vec<_> = input.scopes.iter().collect();
    scopes.sort_by(|a, b| a.draw_key.cmp(&b.draw_key));
    let mut entries = Vec::new();
    // Once an app, however many scopes it has.
    let mut drilled = BTreeMap::new();
    for scope in scopes {
        let Some(app) = input.policy.apps.get(&scope.app) else { continue };
        let is_new = |monkey: &str| !known.contains(&(scope.draw_key.as_str(), monkey));
        if let Some(chaos) = app.chaos.as_ref().filter(|_| is_new(CHAOS)) {
            let monkey =
                Monkey { name: CHAOS, leashed: chaos.leashed, rate: chaos.rate, last_day: scope.last_kill_day };
            entries.push(monkey_entry(&day, scope, monkey));
        }
        if let Some(latency) = app.latency.as_ref().filter(|_| is_new(LATENCY)) {
            let (leashed, rate) = (latency.leashed, latency.rate);
            let monkey = Monkey { name: LATENCY, leashed, rate, last_day: scope.last_fault_day };
            entries.push(monkey_entry(&day, scope, monkey));
        }
        let runs = drilled.entry(&scope.app).or_insert_with(|| drills::of_day(app, &input.policy.time_zone, input.day));
        entries.extend(drills::entries(&day, scope, app, runs, is_new));
    }
    entries
}

/// A monkey that draws, as a scope's policy has it.
#[derive(Clone, Copy)]
struct Monkey {
    name: &'static str,
    leashed: bool,
    rate: Rate,
    /// The day of its last act on the scope.
    last_day: Option<Date>,
}

fn monkey_entry(day: &Day<'_>, scope: &ScopeSeen, monkey: Monkey) -> PlanEntry {
    let Monkey { name, leashed, rate, .. } = monkey;
    if let Some(why) = spared_without_draw(day, scope, monkey) {
        return PlanEntry { leashed, ..spared(day, scope, name, why) };
    }
    let odds = rate.odds();
    let mut draw = day.input.day_key.stream(&scope.draw_key, name);
    let unit = draw.unit();
    let fell = unit < odds;
    let drawn = PlanEntry {
        leashed,
        odds: Some(odds),
        unit: Some(unit),
        fell: Some(fell),
        ..spared(day, scope, name, String::new())
    };
    if !fell {
        return PlanEntry { why: with_leash("did not fall (draw >= odds)".to_owned(), leashed), ..drawn };
    }
    let minute = draw.below(u64::from(drawn.window_minutes)).and_then(|minute| u32::try_from(minute).ok());
    let Some((minute, at)) = minute.and_then(|minute| Some((minute, instant_of(&day.windows, minute)?))) else {
        // A workday has at least one minute, so this is a calendar that contradicts itself; it spares.
        return PlanEntry { why: "fell, but the day's windows have no minute".to_owned(), ..drawn };
    };
    let missed = at < day.input.now;
    let (clock, made) = (clock(day, at), clock(day, day.input.now));
    let why = match (missed, day.joined_at) {
        (false, _) => format!("draw < odds; the victim is drawn at {clock} from those eligible then"),
        (true, None) => format!("draw < odds, but {clock} was past when the plan was made at {made}: it never fires"),
        (true, Some(_)) => format!("draw < odds, but {clock} was past when the scope joined at {made}: it never fires"),
    };
    PlanEntry {
        verdict: PlanVerdict::Chosen,
        minute: Some(minute),
        at: Some(at),
        missed,
        why: with_leash(why, leashed),
        ..drawn
    }
}

/// The first reason to spare the scope before anything is drawn.
fn spared_without_draw(day: &Day<'_>, scope: &ScopeSeen, monkey: Monkey) -> Option<String> {
    if let Err(why) = &day.workday {
        return Some(format!("no workday: {why}"));
    }
    if let Some(why) = &scope.exempt {
        return Some(why.clone());
    }
    if let Some(why) = scope.unhealed.as_ref().filter(|_| !troop_policies::sabotaged!("unhealed")) {
        return Some(format!("unhealed: {why}; `troop clear {} --reason …` ends this", scope.draw_key));
    }
    let since = day.input.calendar.workdays_between(monkey.last_day?, day.input.day);
    let min = monkey.rate.min_workdays;
    let workdays = if since == 1 { "workday" } else { "workdays" };
    (since < min && !troop_policies::sabotaged!("min_workdays")).then(|| {
        format!(
            "too soon: last {} {since} {workdays} ago, {min} is the minimum",
            if monkey.name == CHAOS { "kill" } else { "fault" }
        )
    })
}

pub(crate) fn spared(day: &Day<'_>, scope: &ScopeSeen, monkey: &str, why: String) -> PlanEntry {
    PlanEntry {
        day: day.input.day,
        team: day.input.policy.team.clone(),
        app: scope.app.clone(),
        draw_key: scope.draw_key.clone(),
        monkey: monkey.to_owned(),
        verdict: PlanVerdict::Spared,
        odds: None,
        unit: None,
        fell: None,
        window_minutes: minutes(&day.windows),
        minute: None,
        at: None,
        missed: false,
        leashed: false,
        why,
        joined_at: day.joined_at,
    }
}

pub(crate) fn with_leash(why: String, leashed: bool) -> String {
    if leashed { format!("{why}; leashed: it would only be noted") } else { why }
}

pub(crate) fn clock(day: &Day<'_>, at: Timestamp) -> String {
    at.to_zoned_datetime(day.input.policy.time_zone.clone()).strftime("%H:%M").to_string()
}

#[cfg(test)]
mod tests;
