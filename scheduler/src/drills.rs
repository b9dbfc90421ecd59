//! Drills: acts at the times of a cron line, beside the drawn ones.
//!
//! A drill draws no coin. Its entry of the day's plan is named by its monkey and its time, `drill:chaos@10:30`, so that each
//! run is one entry, and the ledger can tell by the name whether it was carried out today. The victim is drawn at the act.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use troop_policies::AppName;
use troop_policies::plan::{PlanEntry, PlanVerdict};
use troop_policies::policy::{AppPolicy, Drill, Policy};
use troop_policies::situation::WindowSeen;

use crate::calendar::Calendar;
use crate::cron_line::{BadCron, CronLine};
use crate::plan::{CHAOS, DRILL_PREFIX, Day, ScopeSeen, clock, spared, with_leash};

/// The monkey of a drill's entry: `chaos` of `drill:chaos@10:30`. `None` for an entry that is no drill's.
pub fn drilled(entry: &str) -> Option<&str> {
    let name = entry.strip_prefix(DRILL_PREFIX)?;
    Some(name.split_once('@').map_or(name, |(monkey, _)| monkey))
}

/// Whether the policy still has a drill that runs at the entry's instant. One that was taken out must not act.
pub fn stands(policy: &Policy, entry: &PlanEntry) -> bool {
    let (Some(monkey), Some(at), Some(app)) = (drilled(&entry.monkey), entry.at, policy.apps.get(&entry.app)) else {
        return false;
    };
    let day = policy.time_zone.to_datetime(at).date();
    let lines = app.drills.iter().filter(|drill| drill.monkey == monkey);
    lines
        .filter_map(|drill| CronLine::parse(&drill.cron, &policy.time_zone).ok())
        .any(|line| line.on(day).contains(&at))
}

/// One drill and when it runs next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upcoming<'a> {
    pub app: &'a AppName,
    pub drill: &'a Drill,
    pub runs: Result<Vec<NextRun>, BadCron>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextRun {
    pub at: Timestamp,
    /// Why it will be spared: no window is open then, by the policy as it is now.
    pub shut: Option<String>,
}

/// The first `count` runs of each drill after an instant.
pub fn upcoming<'a>(policy: &'a Policy, calendar: &Calendar, after: Timestamp, count: usize) -> Vec<Upcoming<'a>> {
    let run = |at| NextRun { at, shut: shut(calendar, at) };
    let drills = policy.apps.values().flat_map(|app| app.drills.iter().map(move |drill| (&app.app, drill)));
    let next = |drill: &Drill| {
        let line = CronLine::parse(&drill.cron, &policy.time_zone)?;
        Ok(line.next(after, count).into_iter().map(run).collect())
    };
    drills.map(|(app, drill)| Upcoming { app, drill, runs: next(drill) }).collect()
}

fn shut(calendar: &Calendar, at: Timestamp) -> Option<String> {
    match calendar.at(at) {
        WindowSeen::Open { .. } => None,
        WindowSeen::Shut { why, .. } => Some(why),
    }
}

/// What an app drills on one day, by the names of its entries.
pub(crate) type DrillsOfDay<'a> = BTreeMap<String, Run<'a>>;

/// One run: the lines that name its minute, which are two where somebody wrote it twice.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    monkey: &'a str,
    when: Result<Timestamp, BadCron>,
    lines: Vec<&'a Drill>,
}

/// The drills of an app on a day. A line that cannot be read is one run without a time.
pub(crate) fn of_day<'a>(app: &'a AppPolicy, zone: &TimeZone, day: Date) -> DrillsOfDay<'a> {
    let mut runs = DrillsOfDay::new();
    for drill in &app.drills {
        let monkey = drill.monkey.as_str();
        let mut add = |name: String, when: Result<Timestamp, BadCron>| {
            runs.entry(name).or_insert_with(|| Run { monkey, when, lines: Vec::new() }).lines.push(drill);
        };
        match CronLine::parse(&drill.cron, zone) {
            Ok(line) => line.on(day).into_iter().for_each(|at| add(entry_name(monkey, at, zone), Ok(at))),
            Err(bad) => add(format!("{DRILL_PREFIX}{monkey}"), Err(bad)),
        }
    }
    runs
}

/// `drill:chaos@10:30`; of an hour that comes twice, with the offset: `drill:chaos@01:30-05`.
fn entry_name(monkey: &str, at: Timestamp, zone: &TimeZone) -> String {
    let local = at.to_zoned_datetime(zone.clone());
    let comes_twice = zone.to_ambiguous_timestamp(local.datetime()).is_ambiguous();
    let clock = local.strftime(if comes_twice { "%H:%M%:::z" } else { "%H:%M" });
    format!("{DRILL_PREFIX}{monkey}@{clock}")
}

/// The entries of a scope's drills that are not known yet.
pub(crate) fn entries(
    day: &Day<'_>,
    scope: &ScopeSeen,
    app: &AppPolicy,
    runs: &DrillsOfDay<'_>,
    is_new: impl Fn(&str) -> bool,
) -> Vec<PlanEntry> {
    let new = runs.iter().filter(|(name, _)| is_new(name));
    new.map(|(name, run)| entry(day, scope, app, name, run)).collect()
}

fn entry(day: &Day<'_>, scope: &ScopeSeen, app: &AppPolicy, name: &str, run: &Run<'_>) -> PlanEntry {
    let lines: Vec<_> = run.lines.iter().map(|drill| format!("`{}` at {}", drill.cron, drill.place)).collect();
    let lines = format!("drill {}", lines.join(" and "));
    let leashed = if run.monkey == CHAOS {
        app.chaos.as_ref().is_some_and(|chaos| chaos.leashed)
    } else {
        app.latency.as_ref().is_some_and(|latency| latency.leashed)
    };
    let spared = |why: String| PlanEntry { leashed, ..spared(day, scope, name, format!("{lines}: {why}")) };
    let at = match &run.when {
        Ok(at) => *at,
        Err(bad) => return spared(bad.to_string()),
    };
    if let Some(why) = without_asking(day, scope, at) {
        return PlanEntry { at: Some(at), ..spared(why) };
    }
    // Its whole minute is its time: a plan is made a moment after midnight, and a drill may be at midnight.
    let missed = at.as_second().div_euclid(60) < day.input.now.as_second().div_euclid(60);
    let (then, made) = (clock(day, at), clock(day, day.input.now));
    let why = match (missed, day.joined_at) {
        (false, _) => format!("{lines}; the victim is drawn at {then} from those eligible then"),
        (true, None) => format!("{lines}, but {then} was past when the plan was made at {made}: it never runs"),
        (true, Some(_)) => format!("{lines}, but {then} was past when it joined at {made}: it never runs"),
    };
    PlanEntry {
        verdict: PlanVerdict::Chosen,
        at: Some(at),
        missed,
        leashed,
        ..self::spared(day, scope, name, with_leash(why, leashed))
    }
}

/// The first reason that spares a run already when the plan is made: what the policy alone says. The rest is asked at its
/// minute.
fn without_asking(day: &Day<'_>, scope: &ScopeSeen, at: Timestamp) -> Option<String> {
    scope.exempt.clone().or_else(|| shut(day.input.calendar, at))
}

#[cfg(test)]
mod tests;
