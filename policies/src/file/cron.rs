//! Cron lines of drills: which are taken, and which are well formed and still a mistake.
//!
//! Taken is what every dialect of cron reads alike; when a line comes is the scheduler's to say. Here each field becomes
//! the set of its values, which is enough to tell a line that never comes from one that comes all day long.

use super::diagnostic::shown;
use super::scalar::{Bad, bad};

/// Most runs of one line on one day: every half hour. A drill waits for the last one to heal, and what comes more often is
/// as good as always a `*` where a `0` was meant.
const RUNS_A_DAY_MAX: u32 = 48;

/// The ranges of a cron line's fields, and the names that some take.
const FIELDS: [(&str, u8, u8, &[&str]); 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of the month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("weekday", 0, 0, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// The days of each month, where February has its leap day.
const DAYS_OF_MONTH: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// The values that a field names: bit n stands for value n.
type Values = u64;

/// Checks a cron line: five fields; `*`, values, `a-b`, `/step` and lists; weekdays by name only, because cron dialects
/// number them differently. Returns it with single spaces and names in lower case.
pub(crate) fn cron(text: &str) -> Result<String, Bad> {
    let lower = text.to_ascii_lowercase();
    let fields: Vec<_> = lower.split([' ', '\t']).filter(|f| !f.is_empty()).collect();
    if fields.len() != FIELDS.len() {
        let message = format!("a cron line has five fields, this one has {}", fields.len());
        return bad(message, "minute, hour, day of the month, month, weekday, such as \"30 10 * * mon-thu\"");
    }
    let mut sets: [Values; 5] = [0; 5];
    for ((set, field), (name, least, most, names)) in sets.iter_mut().zip(&fields).zip(FIELDS) {
        for item in field.split(',') {
            *set |= values(item, name, least, most, names)?;
        }
    }
    let [minutes, hours, days, months, _] = sets;
    comes_too_often(&fields, minutes.count_ones() * hours.count_ones())?;
    comes_at_all(days, months)?;
    Ok(fields.join(" "))
}

fn comes_too_often(fields: &[&str], runs_a_day: u32) -> Result<(), Bad> {
    if runs_a_day <= RUNS_A_DAY_MAX {
        return Ok(());
    }
    let hint = match fields.split_first() {
        Some((&"*", rest)) => {
            format!("the first `*` means every minute; once an hour is \"0 {}\"", rest.join(" "))
        }
        Some(_) | None => "name fewer minutes or hours".to_owned(),
    };
    bad(format!("this line comes {runs_a_day} times a day; {RUNS_A_DAY_MAX} is the most"), &hint)
}

fn comes_at_all(days: Values, months: Values) -> Result<(), Bad> {
    let first = days.trailing_zeros();
    let longest = (1..).zip(DAYS_OF_MONTH).filter(|(month, _)| months & (1 << month) != 0).map(|(_, days)| days).max();
    if longest.is_some_and(|longest| first <= longest) {
        return Ok(());
    }
    bad(format!("this line never comes: none of its months has a day {first}"), "name another day, or another month")
}

fn values(item: &str, name: &str, least: u8, most: u8, names: &[&str]) -> Result<Values, Bad> {
    let by_name_only = most == 0;
    let last = if by_name_only { 6 } else { most };
    let range_text = if by_name_only { "sun to sat".to_owned() } else { format!("{least} to {most}") };
    let wrong = |hint: &str| bad(format!("`{}` is no {name} of a cron line", shown(item)), hint);
    let place = |text: &str| -> Option<u8> {
        if let Some(at) = names.iter().position(|n| *n == text) {
            return u8::try_from(at).ok().map(|at| at + least);
        }
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|n| digits && !by_name_only && (least..=most).contains(n))
    };
    let (base, step) = item.split_once('/').map_or((item, None), |(base, step)| (base, Some(step)));
    let mut every = 1;
    if let Some(step) = step {
        match step.parse::<u8>() {
            Ok(n) if (1..=last.max(1)).contains(&n) && !step.starts_with('+') => every = n,
            Ok(_) | Err(_) => return wrong("a step is a whole number of at least 1, such as \"*/15\""),
        }
    }
    let set = |from: u8, to: u8| (from..=to).step_by(usize::from(every)).fold(0, |set, n| set | 1 << n);
    if base == "*" {
        return Ok(set(least, last));
    }
    if by_name_only && base.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return wrong("write weekdays by name, such as \"mon-fri\": cron dialects number them differently");
    }
    let (from, to) = base.split_once('-').map_or((base, None), |(from, to)| (from, Some(to)));
    let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    match (place(from), to.map(place)) {
        (Some(one), None) if step.is_none() => Ok(set(one, one)),
        (Some(_), None) => wrong("a step needs a range, such as \"*/15\" or \"0-30/10\""),
        (Some(_), Some(Some(_))) if to.is_some_and(|to| is_number(to) != is_number(from)) => {
            wrong("write both ends of a range by name, or both as numbers")
        }
        (Some(from), Some(Some(to))) if from <= to => Ok(set(from, to)),
        (Some(_), Some(Some(_))) => wrong("the range ends before it begins; write two, separated by a comma"),
        (None, None | Some(_)) | (Some(_), Some(None)) => wrong(&format!("this field goes from {range_text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_cron_lines_that_every_dialect_reads_alike() {
        for text in [
            "30 10 * * mon-thu",
            "*/15 9-16 * * *",
            "0 10 1,15 jan-jun Mon,Wed",
            "0  9  *  *  FRI",
            "0-30/10 12 31 12 sun",
            "*/30 * 29 feb *",
        ] {
            assert!(cron(text).is_ok(), "{text}: {:?}", cron(text));
        }
        for text in [
            "",
            "@daily",
            "0 10 * *",
            "0 0 10 * * mon",
            "60 10 * * mon",
            "0 24 * * mon",
            "0 10 0 * mon",
            "0 10 * 13 mon",
            "0 10 * * 1",
            "0 10 * * 1-5",
            "0 10 * * fri-mon",
            "0 10 * * */7",
            "0 10 * jan-3 mon",
            "*/0 10 * * mon",
            "5/15 10 * * mon",
            "0 10 * * mon#1",
            "0 10 L * mon",
            "0 10 * * ,",
            "é * * * *",
            "+5 10 * * mon",
            "1- 2 * * *",
        ] {
            assert!(cron(text).is_err(), "{text:?} was taken");
        }
        assert_eq!(cron("0  9  *  *  FRI"), Ok("0 9 * * fri".to_owned()));
    }

    #[test]
    fn a_weekday_by_number_is_told_to_be_named() {
        let error = cron("0 10 * * 1-5").unwrap_err();
        assert_eq!(error.message, "`1-5` is no weekday of a cron line");
        assert!(error.hint.unwrap().starts_with("write weekdays by name, such as \"mon-fri\""));
    }

    #[test]
    fn a_line_that_comes_every_minute_is_a_mistake() {
        let error = cron("* 10 * * mon").unwrap_err();
        assert_eq!(error.message, "this line comes 60 times a day; 48 is the most");
        assert_eq!(error.hint.unwrap(), "the first `*` means every minute; once an hour is \"0 10 * * mon\"");
        assert!(cron("*/30 * * * *").is_ok());
        assert!(cron("*/29 * * * *").is_err());
        assert!(cron("*/30,1 8-23 * * *").is_ok());
    }

    #[test]
    fn a_line_that_never_comes_is_a_mistake() {
        for (text, never) in [
            ("0 10 30 2 *", true),
            ("0 10 31 feb,apr,jun,sep,nov *", true),
            ("0 10 29 2 *", false),
            ("0 10 31 2,3 *", false),
            ("0 10 30-31 4 *", false),
        ] {
            let never_comes = cron(text).is_err_and(|e| e.message.contains("never comes"));
            assert_eq!(never_comes, never, "{text}");
        }
    }
}
