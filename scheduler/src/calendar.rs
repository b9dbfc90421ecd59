//! A team's calendar: its workdays and windows, in the policy's zone. The one definition of a window, which serves the
//! odds, the minutes of a draw and the gate at the act.
//!
//! **A window's ends** are civil times and become instants one by one, never by adding 24 hours. An end that a change of
//! the clocks skips moves on by what was skipped; one that comes twice means the first. What is left empty does not open.
//! An overnight window belongs to the day on which it opens.
//!
//! **A holiday** opens no window, and spares besides every minute of its own date: an overnight window that reaches into a
//! holiday shuts at its midnight. **Blackouts** take no minute out of the union that a drawn minute indexes: they come and
//! go with incidents, and a plan's `window_minutes` should be what the windows say. The gate spares inside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousTimestamp, TimeZone};
use jiff::{Span, Timestamp};
use troop_policies::plan::WindowSpan;
use troop_policies::policy::{Blackout, Policy, Window};
use troop_policies::situation::WindowSeen;

use crate::holidays::BuiltIn;
use crate::ics;

/// How far ahead the next opening and the next holiday are looked for. More than a year, so that whatever comes every year
/// is found; a team that is shut for longer is told that nothing opens.
const LOOK_AHEAD_DAYS: u32 = 400;
/// Most workdays counted since a kill, about ten years of them. More would be told apart by no policy, and counting is
/// repeated at every look.
pub const WORKDAYS_COUNTED_MAX: u32 = 2_600;
/// Most days walked back while they are counted, where hardly any is a workday: the same ten years.
const DAYS_COUNTED_MAX: u32 = 3_660;
/// How many civil days back a window that is still open can have begun: yesterday, or the day before where the zone skipped
/// yesterday altogether.
const OPEN_SINCE_DAYS: i32 = 2;

/// Why a policy has no calendar. Its whole team is then spared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    #[error("the calendar file `{}` was not read", file.display())]
    NotRead { file: PathBuf },
    #[error("the calendar file `{}` cannot be used: {why}", file.display())]
    File { file: PathBuf, why: String },
    #[error("there is no built-in calendar `{name}`")]
    NoBuiltIn { name: String },
}

/// A policy's workdays and windows.
#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
    windows: Vec<Window>,
    built_in: Vec<BuiltIn>,
    files: Vec<ics::Holidays>,
    dates: BTreeSet<Date>,
    /// In order of their beginning.
    blackouts: Vec<Dark>,
}

/// A blackout as instants.
#[derive(Debug, Clone)]
struct Dark {
    from: Timestamp,
    until: Timestamp,
    reason: String,
}

impl Calendar {
    /// Builds the calendar of a policy. `ics` holds the text of each of its `holidays.files`.
    ///
    /// # Errors
    /// [`CalendarError`] names the file that is missing or cannot be used: a holiday overlooked would be a workday.
    pub fn new(policy: &Policy, ics: &BTreeMap<PathBuf, String>) -> Result<Self, CalendarError> {
        let built_in = policy
            .holidays
            .calendars
            .iter()
            .map(|name| BuiltIn::from_name(name).ok_or_else(|| CalendarError::NoBuiltIn { name: name.clone() }));
        let files = policy.holidays.files.iter().map(|file| {
            let text = ics.get(file).ok_or_else(|| CalendarError::NotRead { file: file.clone() })?;
            ics::read(text, &policy.time_zone).map_err(|why| CalendarError::File { file: file.clone(), why })
        });
        let mut blackouts: Vec<_> = policy.blackouts.iter().map(|b| Dark::new(b, &policy.time_zone)).collect();
        blackouts.sort_by_key(|dark| dark.from);
        Ok(Self {
            zone: policy.time_zone.clone(),
            windows: policy.windows.clone(),
            built_in: built_in.collect::<Result<_, _>>()?,
            files: files.collect::<Result<_, _>>()?,
            dates: policy.holidays.dates.iter().copied().collect(),
            blackouts,
        })
    }

    /// The date in the policy's zone.
    pub fn civil_day(&self, now: Timestamp) -> Date {
        self.zone.to_datetime(now).date()
    }

    /// The days whose plan may be made or may still fire: today, preceded by a day whose overnight window is still open.
    pub fn planning_days(&self, now: Timestamp) -> Vec<Date> {
        let today = self.civil_day(now);
        let still_open = |day: &Date| *day == today || self.last_close(*day).is_some_and(|close| now < close);
        days_until(today).filter(still_open).collect()
    }

    /// Whether `day` is a workday: a date on which a window opens and which is no holiday and not wholly blacked out.
    ///
    /// # Errors
    /// Why it is none: `holiday: NAME`, `no window opens` or `blacked out: REASON`.
    pub fn is_workday(&self, day: Date) -> Result<(), String> {
        if !self.opens_on(day) {
            return Err("no window opens".to_owned());
        }
        if let Some(name) = self.holiday(day) {
            return Err(format!("holiday: {name}"));
        }
        let windows = self.resolve(day);
        if minutes(&windows) == 0 {
            return Err("no window opens".to_owned());
        }
        self.wholly_dark(&windows).map_or(Ok(()), |reason| Err(format!("blacked out: {reason}")))
    }

    /// The day's windows as instants, joined where they overlap or touch, in order of opening. None on a holiday.
    pub fn windows(&self, day: Date) -> Vec<WindowSpan> {
        if !self.opens_on(day) || self.holiday(day).is_some() { Vec::new() } else { self.resolve(day) }
    }

    /// Minutes in the union of the day's windows, in real elapsed time.
    pub fn window_minutes(&self, day: Date) -> u32 {
        minutes(&self.windows(day))
    }

    /// The instant at which the `minute`th minute of the day's windows begins. `None` past the last.
    pub fn instant_of_minute(&self, day: Date, minute: u32) -> Option<Timestamp> {
        instant_of(&self.windows(day), minute)
    }

    /// When the day's last window shuts. `None` where none opens.
    pub fn last_close(&self, day: Date) -> Option<Timestamp> {
        self.windows(day).last().map(|window| window.shuts)
    }

    /// Whether anything may happen now, and if not, why and when again.
    pub fn at(&self, now: Timestamp) -> WindowSeen {
        let today = self.civil_day(now);
        let inside = days_until(today).find_map(|day| {
            let within = |w: &WindowSpan| w.opens <= now && now < w.shuts;
            self.windows(day).into_iter().find(within).map(|window| (day, window))
        });
        match (inside, self.shut_now(now)) {
            (Some((day, window)), None) => {
                let shuts = self.end_of(now, window.shuts);
                WindowSeen::Open { day, shuts, shuts_in: span_text(now, shuts), next_holiday: self.next_holiday(today) }
            }
            (_, why) => {
                let opens = self.next_opening(now);
                let why = why.unwrap_or_else(|| "no window is open".to_owned());
                let next = opens.map_or_else(
                    || format!("none opens within {LOOK_AHEAD_DAYS} days"),
                    |at| format!("the next opens {}", self.text(at)),
                );
                WindowSeen::Shut { why: format!("{why}; {next}"), opens }
            }
        }
    }

    /// The number of workdays after `after` up to and including `until`: 1 for a kill on Monday, asked on Tuesday. Counts no
    /// further than [`WORKDAYS_COUNTED_MAX`]; a policy whose minimum is above that is spared for good after its first kill.
    pub fn workdays_between(&self, after: Date, until: Date) -> u32 {
        let back = std::iter::successors(Some(until), |day| day.yesterday().ok());
        let since = back.take_while(|day| *day > after).zip(0..DAYS_COUNTED_MAX).map(|(day, _)| day);
        let workdays = since.filter(|day| self.is_workday(*day).is_ok()).zip(0..WORKDAYS_COUNTED_MAX);
        u32::try_from(workdays.count()).unwrap_or(WORKDAYS_COUNTED_MAX)
    }

    /// The workdays among the `days` days from `from` on, in order.
    pub fn workdays(&self, from: Date, days: u32) -> impl Iterator<Item = Date> + '_ {
        days_from(from, days).filter(|day| self.is_workday(*day).is_ok())
    }

    /// Whether a window names this weekday, which is asked first because most days off answer it.
    fn opens_on(&self, day: Date) -> bool {
        self.windows.iter().any(|window| window.days.contains(&day.weekday()))
    }

    fn holiday(&self, day: Date) -> Option<String> {
        if troop_policies::sabotaged!("holiday") {
            return None;
        }
        if let Some(name) = self.files.iter().find_map(|file| file.on(day)) {
            return Some(name.to_owned());
        }
        if self.dates.contains(&day) {
            return Some("listed in `dates`".to_owned());
        }
        self.built_in.iter().find_map(|calendar| calendar.on(day))
    }

    /// The windows that open on `day` by its weekday, holiday or not.
    fn resolve(&self, day: Date) -> Vec<WindowSpan> {
        // A day that the zone never had (Pacific/Apia, 2011-12-30) would resolve to the next one and open its windows twice.
        if self.zone.to_datetime(self.start_of(day)).date() != day {
            return Vec::new();
        }
        let of_day = self.windows.iter().filter(|window| window.days.contains(&day.weekday()));
        let mut spans: Vec<_> = of_day
            .filter_map(|window| {
                let close_day = if window.close <= window.open { day.tomorrow().ok()? } else { day };
                let (opens, shuts) = (self.instant(day, window.open), self.instant(close_day, window.close));
                (opens < shuts).then_some(WindowSpan { opens, shuts })
            })
            .collect();
        spans.sort_by_key(|span| (span.opens, span.shuts));
        let mut joined: Vec<WindowSpan> = Vec::with_capacity(spans.len());
        for span in spans {
            match joined.last_mut() {
                Some(last) if span.opens <= last.shuts => last.shuts = last.shuts.max(span.shuts),
                Some(_) | None => joined.push(span),
            }
        }
        joined
    }

    fn instant(&self, day: Date, time: Time) -> Timestamp {
        compatible(self.zone.to_ambiguous_timestamp(DateTime::from_parts(day, time)))
    }

    fn start_of(&self, day: Date) -> Timestamp {
        self.instant(day, Time::midnight())
    }

    /// The reasons of the blackouts that leave no instant of these windows, if they do.
    fn wholly_dark(&self, windows: &[WindowSpan]) -> Option<String> {
        let mut reasons: Vec<&str> = Vec::new();
        for window in windows {
            let mut at = window.opens;
            while at < window.shuts {
                let dark = self.dark_at(at)?;
                if !reasons.contains(&dark.reason.as_str()) {
                    reasons.push(&dark.reason);
                }
                at = dark.until;
            }
        }
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }

    fn dark_at(&self, at: Timestamp) -> Option<&Dark> {
        if troop_policies::sabotaged!("blackout") {
            return None;
        }
        self.blackouts.iter().find(|dark| dark.from <= at && at < dark.until)
    }

    /// Why nothing may happen at this instant, whatever windows say.
    fn shut_now(&self, at: Timestamp) -> Option<String> {
        let holiday = self.holiday(self.civil_day(at)).map(|name| format!("holiday: {name}"));
        holiday.or_else(|| self.dark_at(at).map(|dark| format!("blacked out: {}", dark.reason)))
    }

    /// When a window that is open at `now` and shuts at `shuts` really ends: a blackout or a holiday may come first.
    fn end_of(&self, now: Timestamp, shuts: Timestamp) -> Timestamp {
        let dark = self.blackouts.iter().map(|dark| dark.from).filter(|from| now < *from);
        let today = self.civil_day(now);
        let later_days = days_from(today, OPEN_SINCE_DAYS.unsigned_abs() + 1).filter(|day| *day != today);
        let holidays = later_days.filter(|day| self.holiday(*day).is_some()).map(|day| self.start_of(day));
        dark.chain(holidays).fold(shuts, Timestamp::min)
    }

    /// The first instant after `now` at which a window is open.
    fn next_opening(&self, now: Timestamp) -> Option<Timestamp> {
        let today = self.civil_day(now);
        let first = days_until(today).next()?;
        let mut spans = days_from(first, LOOK_AHEAD_DAYS).flat_map(|day| self.windows(day));
        spans.find_map(|span| self.first_open(span.opens.max(now), span.shuts))
    }

    /// The first instant from `at` on, before `shuts`, that is neither in a blackout nor on a holiday.
    fn first_open(&self, mut at: Timestamp, shuts: Timestamp) -> Option<Timestamp> {
        // Each turn leaves one blackout or one holiday behind, so it ends.
        while at < shuts {
            if let Some(dark) = self.dark_at(at) {
                at = dark.until;
            } else if self.holiday(self.civil_day(at)).is_some() {
                at = self.start_of(self.civil_day(at).tomorrow().ok()?);
            } else {
                return Some(at);
            }
        }
        None
    }

    /// `Tue 2026-12-01 10:00 EST (15:00Z)`; the second part only where it differs.
    fn text(&self, at: Timestamp) -> String {
        let local = at.to_zoned_datetime(self.zone.clone());
        let utc = at.to_zoned_datetime(TimeZone::UTC);
        let text = local.strftime("%a %Y-%m-%d %H:%M %Z").to_string();
        if local.offset() == utc.offset() { text } else { format!("{text} ({}Z)", utc.strftime("%H:%M")) }
    }

    /// `Thu 2026-11-26 Thanksgiving Day`.
    fn next_holiday(&self, today: Date) -> Option<String> {
        let later = days_from(today, LOOK_AHEAD_DAYS).skip(1);
        later.filter_map(|day| self.holiday(day).map(|name| format!("{} {name}", day.strftime("%a %Y-%m-%d")))).next()
    }
}

impl Dark {
    /// Of two readings of an end in a change of the clocks the wider is taken.
    fn new(blackout: &Blackout, zone: &TimeZone) -> Self {
        let (from, until) = (zone.to_ambiguous_timestamp(blackout.from), zone.to_ambiguous_timestamp(blackout.until));
        Self {
            from: from.earlier().unwrap_or(Timestamp::MIN),
            until: until.later().unwrap_or(Timestamp::MAX),
            reason: blackout.reason.clone(),
        }
    }
}

/// Beyond year 9999 time stands still, in place of a panic: no plan is made there.
fn compatible(civil: AmbiguousTimestamp) -> Timestamp {
    let late = civil.datetime().year().is_positive();
    civil.compatible().unwrap_or(if late { Timestamp::MAX } else { Timestamp::MIN })
}

fn seconds(span: &WindowSpan) -> i64 {
    span.shuts.as_second().saturating_sub(span.opens.as_second()).max(0)
}

/// Whole minutes in these spans together.
pub(crate) fn minutes(spans: &[WindowSpan]) -> u32 {
    u32::try_from(spans.iter().map(seconds).sum::<i64>() / 60).unwrap_or(u32::MAX)
}

/// The instant at which a minute of the union begins.
pub(crate) fn instant_of(spans: &[WindowSpan], minute: u32) -> Option<Timestamp> {
    if minute >= minutes(spans) {
        return None;
    }
    let mut left = i64::from(minute) * 60;
    for span in spans {
        if left < seconds(span) {
            return span.opens.checked_add(Span::new().seconds(left)).ok();
        }
        left -= seconds(span);
    }
    None
}

/// The days from which a window may still be open, and `today`, in order.
fn days_until(today: Date) -> impl Iterator<Item = Date> {
    (0..=OPEN_SINCE_DAYS).rev().filter_map(move |back| today.checked_sub(Span::new().days(back)).ok())
}

fn days_from(from: Date, days: u32) -> impl Iterator<Item = Date> {
    std::iter::successors(Some(from), |day| day.tomorrow().ok()).zip(0..days).map(|(day, _)| day)
}

/// `4h 58m`, `58m`, `30s`.
fn span_text(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h {minutes}m"),
    }
}

#[cfg(test)]
mod tests;
