//! Windows, holidays and blackouts, read from the policy anew: the checker does not ask the calendar that it checks.

use jiff::civil::{Date, DateTime};
use jiff::{Span, Timestamp};
use troop_policies::policy::{Policy, Window};

/// A civil time as an instant: one that is skipped moves on, one that comes twice means the first.
fn instant(policy: &Policy, at: DateTime) -> Option<Timestamp> {
    policy.time_zone.to_ambiguous_timestamp(at).compatible().ok()
}

fn span(policy: &Policy, window: &Window, day: Date) -> Option<(Timestamp, Timestamp)> {
    let last = if window.close <= window.open { day.tomorrow().ok()? } else { day };
    let opens = instant(policy, DateTime::from_parts(day, window.open))?;
    Some((opens, instant(policy, DateTime::from_parts(last, window.close))?))
}

pub fn civil_day(policy: &Policy, at: Timestamp) -> Date {
    policy.time_zone.to_datetime(at).date()
}

fn is_holiday(policy: &Policy, day: Date) -> bool {
    policy.holidays.dates.contains(&day)
}

fn is_dark(policy: &Policy, at: Timestamp) -> bool {
    policy.blackouts.iter().any(|dark| {
        let from = policy.time_zone.to_ambiguous_timestamp(dark.from).earlier();
        let until = policy.time_zone.to_ambiguous_timestamp(dark.until).later();
        from.is_ok_and(|from| from <= at) && until.is_ok_and(|until| at < until)
    })
}

/// Why nothing may happen now, if so.
pub fn shut(policy: &Policy, at: Timestamp) -> Option<&'static str> {
    let today = civil_day(policy, at);
    if is_holiday(policy, today) {
        return Some("a holiday");
    }
    if is_dark(policy, at) {
        return Some("a blackout");
    }
    let inside = (0..=2).filter_map(|back| today.checked_sub(Span::new().days(back)).ok()).any(|day| {
        !is_holiday(policy, day)
            && policy
                .windows
                .iter()
                .filter(|w| w.days.contains(&day.weekday()))
                .any(|window| span(policy, window, day).is_some_and(|(opens, shuts)| opens <= at && at < shuts))
    });
    (!inside).then_some("no window")
}

/// A window opens, it is no holiday, and one blackout alone does not cover all of its windows.
pub fn is_workday(policy: &Policy, day: Date) -> bool {
    if is_holiday(policy, day) {
        return false;
    }
    let of_day = policy.windows.iter().filter(|window| window.days.contains(&day.weekday()));
    of_day.filter_map(|window| span(policy, window, day)).any(|(opens, shuts)| {
        let covered = policy.blackouts.iter().any(|dark| {
            let from = policy.time_zone.to_ambiguous_timestamp(dark.from).earlier();
            let until = policy.time_zone.to_ambiguous_timestamp(dark.until).later();
            from.is_ok_and(|from| from <= opens) && until.is_ok_and(|until| shuts <= until)
        });
        opens < shuts && !covered
    })
}

/// Workdays after `after` up to and including `until`.
pub fn workdays_between(policy: &Policy, after: Date, until: Date) -> u32 {
    let mut count = 0;
    let mut day = until;
    while day > after {
        count += u32::from(is_workday(policy, day));
        let Ok(before) = day.yesterday() else { break };
        day = before;
    }
    count
}

/// When the civil day began.
pub fn start_of(policy: &Policy, day: Date) -> Timestamp {
    instant(policy, day.at(0, 0, 0, 0)).unwrap_or(Timestamp::MIN)
}
