//! Cron lines in a zone: the one place that knows the crates `cron` and `chrono`.
//!
//! `cron` reads and steps through lines, but must never meet a change of the clocks: in a zone with daylight saving it skips
//! a day, comes twice, or goes backwards. So it is only ever asked about civil time, handed to it as if it were UTC, and each
//! civil time that it names becomes an instant here:
//! - a line that names its hours runs once on each day it names. Where the clocks skip its time, it runs as much later as
//!   they skip (02:30 becomes 03:30); where its time comes twice, it runs the first time.
//! - a line of every hour is about elapsed time. What the clocks skip is left out, what comes twice runs twice.

use std::collections::BTreeSet;

use chrono::Utc;
use cron::{Schedule, TimeUnitSpec as _};
use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Span, Timestamp};

/// More than any zone ever set its clocks by at once: a whole day, where it crossed the date line. Civil times may be so far
/// out of order as instants.
const CHANGE_MAX_HOURS: i64 = 25;

/// Why a line cannot be used. The policy's own check refuses it before, so this is a defect of one of the two; it spares.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cron line `{line}` cannot be read: {why}")]
pub struct BadCron {
    line: String,
    why: String,
}

/// A cron line in a zone.
#[derive(Debug, Clone)]
pub struct CronLine {
    schedule: Schedule,
    zone: TimeZone,
}

impl CronLine {
    /// Reads a line of five fields, with weekdays by name.
    ///
    /// # Errors
    /// [`BadCron`] where `cron` does not take it.
    pub fn parse(line: &str, zone: &TimeZone) -> Result<Self, BadCron> {
        // `cron` wants a field of seconds first.
        let schedule = format!("0 {line}").parse::<Schedule>();
        let schedule = schedule.map_err(|e| BadCron { line: line.to_owned(), why: e.to_string() })?;
        Ok(Self { schedule, zone: zone.clone() })
    }

    /// The first `count` runs after an instant, in order; fewer where the line ends, which `cron` lets all do with 2100.
    pub fn next(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        let Some(last) = count.checked_sub(1) else { return Vec::new() };
        let nth = |found: &BTreeSet<Timestamp>| found.iter().nth(last).copied();
        let runs = self.runs(after, |found| if found.len() < count { None } else { nth(found) });
        runs.into_iter().take(count).collect()
    }

    /// The runs on a date of the zone, in order.
    pub fn on(&self, day: Date) -> Vec<Timestamp> {
        let midnight = |day: Date| self.zone.to_ambiguous_timestamp(day.at(0, 0, 0, 0)).compatible().ok();
        let (Some(begins), Some(ends)) = (midnight(day), day.tomorrow().ok().and_then(midnight)) else {
            return Vec::new();
        };
        let Ok(before) = begins.checked_sub(Span::new().nanoseconds(1)) else { return Vec::new() };
        let runs = self.runs(before, |_| Some(ends));
        runs.into_iter().filter(|at| self.zone.to_datetime(*at).date() == day).collect()
    }

    /// Runs after `after`: all up to the instant that `until` names, given what was found so far, and perhaps some later.
    fn runs(&self, after: Timestamp, until: impl Fn(&BTreeSet<Timestamp>) -> Option<Timestamp>) -> BTreeSet<Timestamp> {
        let slack = Span::new().hours(CHANGE_MAX_HOURS);
        let mut found = BTreeSet::new();
        let Ok(from) = self.zone.to_datetime(after).checked_sub(slack) else { return found };
        let Some(from) = as_chrono(from) else { return found };
        for civil in self.schedule.after(&from).filter_map(as_civil) {
            let last = until(&found).map(|at| self.zone.to_datetime(at));
            // Saturating: at the end of time nothing lies beyond.
            if last.is_some_and(|last| civil > last.saturating_add(slack)) {
                break;
            }
            found.extend(self.instants(civil).into_iter().flatten().filter(|at| *at > after));
        }
        found
    }

    /// The instants at which a civil time of the line runs.
    fn instants(&self, civil: DateTime) -> [Option<Timestamp>; 2] {
        let ambiguous = self.zone.to_ambiguous_timestamp(civil);
        let every_hour = self.schedule.hours().is_all();
        match ambiguous.offset() {
            AmbiguousOffset::Gap { .. } if every_hour => [None, None],
            AmbiguousOffset::Fold { .. } if every_hour => [ambiguous.earlier().ok(), ambiguous.later().ok()],
            AmbiguousOffset::Fold { .. } => [ambiguous.earlier().ok(), None],
            AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Gap { .. } => [ambiguous.compatible().ok(), None],
        }
    }
}

/// A civil time, as if it were one of UTC.
fn as_chrono(civil: DateTime) -> Option<chrono::DateTime<Utc>> {
    let at = TimeZone::UTC.to_timestamp(civil).ok()?;
    chrono::DateTime::from_timestamp(at.as_second(), 0)
}

fn as_civil(at: chrono::DateTime<Utc>) -> Option<DateTime> {
    Some(TimeZone::UTC.to_datetime(Timestamp::from_second(at.timestamp()).ok()?))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn line(text: &str, zone: &str) -> CronLine {
        CronLine::parse(text, &TimeZone::get(zone).unwrap()).unwrap()
    }

    /// The runs of a day as clock and offset, such as `03:30-04`.
    fn on(text: &str, zone: &str, day: Date) -> Vec<String> {
        let line = line(text, zone);
        let clock = |at: &Timestamp| at.to_zoned_datetime(line.zone.clone()).strftime("%H:%M%:::z").to_string();
        line.on(day).iter().map(clock).collect()
    }

    const NEW_YORK: &str = "America/New_York";

    /// The table that was measured when the crates were compared.
    #[test]
    fn a_change_of_the_clocks_costs_no_run_and_doubles_none() {
        let (spring, fall) = (date(2027, 3, 14), date(2027, 11, 7));
        assert_eq!(on("30 2 * * *", NEW_YORK, spring), ["03:30-04"]);
        assert_eq!(on("30 2 * * *", NEW_YORK, fall), ["02:30-05"]);
        assert_eq!(on("30 1 * * *", NEW_YORK, fall), ["01:30-04"]);
        assert_eq!(on("30 1 * * *", NEW_YORK, spring), ["01:30-05"]);
        // Every hour is about elapsed time.
        let fall: Vec<_> = on("*/30 * * * *", NEW_YORK, fall);
        assert_eq!(fall.len(), 50);
        assert_eq!(fall[2..6], ["01:00-04", "01:30-04", "01:00-05", "01:30-05"]);
        let spring = on("*/30 * * * *", NEW_YORK, spring);
        assert_eq!(spring.len(), 46);
        assert_eq!(spring[3..5], ["01:30-05", "03:00-04"]);
    }

    #[test]
    fn two_lines_of_one_skipped_hour_meet_and_run_once() {
        // 02:30 moves to 03:30, where 03:30 already is.
        assert_eq!(on("30 2,3 * * *", NEW_YORK, date(2027, 3, 14)), ["03:30-04"]);
    }

    #[test]
    fn odd_zones_are_read_by_their_own_clocks() {
        // Half an hour is skipped, and comes twice.
        assert_eq!(on("15 2 * * *", "Australia/Lord_Howe", date(2027, 10, 3)), ["02:45+11"]);
        assert_eq!(on("45 1 * * *", "Australia/Lord_Howe", date(2027, 4, 4)), ["01:45+11"]);
        // Samoa had no 30 December 2011: what was to run then runs a day later, and meets that day's own run.
        let daily = line("30 10 * * *", "Pacific/Apia");
        assert!(daily.on(date(2011, 12, 30)).is_empty());
        assert_eq!(daily.on(date(2011, 12, 31)).len(), 1);
        assert_eq!(line("30 10 30 12 *", "Pacific/Apia").on(date(2011, 12, 31)).len(), 1);
        assert_eq!(on("30 10 * * *", "UTC", date(2026, 11, 24)), ["10:30+00"]);
    }

    #[test]
    fn weekdays_are_the_days_that_they_name_and_both_day_fields_must_fit() {
        let next = |text: &str| {
            let after = "2026-11-24T12:00:00Z".parse().unwrap();
            let runs = line(text, "UTC").next(after, 4);
            runs.iter().map(|at| at.to_zoned_datetime(TimeZone::UTC).strftime("%a %F").to_string()).collect::<Vec<_>>()
        };
        // The first Tuesday of a month.
        assert_eq!(next("30 10 1-7 * tue"), ["Tue 2026-12-01", "Tue 2027-01-05", "Tue 2027-02-02", "Tue 2027-03-02"]);
        assert_eq!(next("30 10 * * sun"), ["Sun 2026-11-29", "Sun 2026-12-06", "Sun 2026-12-13", "Sun 2026-12-20"]);
        assert_eq!(next("30 10 * * sat"), ["Sat 2026-11-28", "Sat 2026-12-05", "Sat 2026-12-12", "Sat 2026-12-19"]);
        assert_eq!(next("0 0 29 2 *"), ["Tue 2028-02-29", "Sun 2032-02-29", "Fri 2036-02-29", "Wed 2040-02-29"]);
    }

    #[test]
    fn the_next_runs_come_after_the_instant_and_in_order() {
        let line = line("30 10 * * *", NEW_YORK);
        let at: Timestamp = "2027-03-13T15:30:00Z".parse().unwrap();
        // At the very minute, the next is tomorrow's, an hour earlier in UTC.
        assert_eq!(line.next(at, 1)[0].to_string(), "2027-03-14T14:30:00Z");
        let just_before = at.checked_sub(Span::new().nanoseconds(1)).unwrap();
        assert_eq!(line.next(just_before, 1)[0], at);
        assert!(line.next(at, 0).is_empty());
        assert!(line.next("9000-01-01T00:00:00Z".parse().unwrap(), 3).is_empty());
        assert!(line.next(Timestamp::MIN, 1).len() <= 1);
        let every = line_every_half_hour();
        let runs = every.next("2027-11-06T00:00:00Z".parse().unwrap(), 100);
        assert!(runs.len() == 100 && runs.is_sorted());
    }

    fn line_every_half_hour() -> CronLine {
        line("*/30 * * * *", NEW_YORK)
    }

    /// What the days hold one by one is what a run through holds, in zones whose clocks change by much and by little.
    #[test]
    fn days_and_next_runs_agree_over_the_years() {
        for zone in [NEW_YORK, "Australia/Lord_Howe", "Pacific/Apia", "America/Santiago", "Asia/Kathmandu"] {
            for text in ["30 2 * * *", "0 0 * * *", "15 * * * *", "15,45 1-3 * * mon,sun"] {
                let line = line(text, zone);
                let first = date(2011, 12, 1);
                let days = std::iter::successors(Some(first), |day| day.tomorrow().ok()).take(350);
                let by_day: Vec<Timestamp> = days.flat_map(|day| line.on(day)).collect();
                let start = by_day[0].checked_sub(Span::new().seconds(1)).unwrap();
                assert_eq!(line.next(start, by_day.len()), by_day, "{text} in {zone}");
            }
        }
    }

    /// Whatever the policy's check takes, `cron` takes too.
    #[test]
    fn a_line_that_a_policy_may_hold_can_be_read() {
        for text in [
            "30 10 * * mon-thu",
            "*/15 9-16 * * *",
            "0 10 1,15 jan-jun mon,wed",
            "0-30/10 12 31 12 sun",
            "0 10 * * */2",
            "0 10 * * mon-fri/2",
            "0 10 * feb-nov/3 sun-sat",
            "59 23 31 jan,3 sat",
            "0 */23 */31 */12 */6",
        ] {
            let app = format!("[[apps.checkout.drills]]\ncron = \"{text}\"\nmonkey = \"chaos\"\n");
            let policy = crate::fixture::policy(&app);
            let drill = &policy.apps.values().next().unwrap().drills[0];
            let line = CronLine::parse(&drill.cron, &policy.time_zone).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(line.next("2026-11-24T00:00:00Z".parse().unwrap(), 1).len(), 1, "{text} never comes");
        }
        let error = CronLine::parse("0 10 * * 8-9", &TimeZone::UTC).unwrap_err();
        assert!(error.to_string().starts_with("the cron line `0 10 * * 8-9` cannot be read: "), "{error}");
    }
}
