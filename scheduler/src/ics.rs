//! Holidays out of an iCalendar file (RFC 5545).
//!
//! All-day events are civil dates of the policy's zone, whatever zone the file was written in; an event with times covers
//! every civil date of the policy's zone that it touches. `DTEND` is the first day outside. What is not understood
//! refuses the whole file, because a holiday overlooked would be a workday: of recurrences only `FREQ=YEARLY` of an all-day
//! event is taken, with `UNTIL` or `COUNT` and with what merely repeats the event's own date.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use icalendar::parser::{Component, Property, read_components, unfold};
use jiff::civil::{Date, DateTime};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, ZonedDateTime};

/// Deepest nesting of components taken. A calendar, an event and its alarm are three; the parser calls itself once a level.
const DEPTH_MAX: usize = 8;
/// Longest event taken. A shutdown of a year is no holiday but a mistake in `DTEND`.
const EVENT_DAYS_MAX: i32 = 366;
/// Most days off taken of one file: half a century in which no day is a workday. A megabyte of events could name millions.
const DATES_MAX: usize = 20_000;
/// Characters of an event's name kept: it stands in tables and logs.
const NAME_MAX_CHARS: usize = 80;

/// The bundled database, not the host's, as for policies.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// What one file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holidays {
    /// Days off, with their names.
    pub(crate) dates: BTreeMap<Date, String>,
    /// Those that come back each year.
    pub(crate) yearly: Vec<Yearly>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Yearly {
    pub(crate) name: String,
    pub(crate) first: Date,
    pub(crate) days: i32,
    /// The last day on which one may start.
    pub(crate) until: Option<Date>,
}

impl Holidays {
    pub(crate) fn on(&self, day: Date) -> Option<&str> {
        let single = self.dates.get(&day).map(String::as_str);
        single.or_else(|| self.yearly.iter().find(|y| y.covers(day)).map(|y| y.name.as_str()))
    }
}

impl Yearly {
    /// The year's occurrence. None for 29 February in other years than leap years, as RFC 5545 has it.
    fn start(&self, year: i16) -> Option<Date> {
        let start = Date::new(year, self.first.month(), self.first.day()).ok()?;
        (start >= self.first && self.until.is_none_or(|until| start <= until)).then_some(start)
    }

    fn covers(&self, day: Date) -> bool {
        // At most 366 days long, so it began this year or the one before.
        let years = [Some(day.year()), day.year().checked_sub(1)];
        years.into_iter().flatten().filter_map(|year| self.start(year)).any(|start| {
            let since = days_between(start, day);
            0 <= since && since < self.days
        })
    }
}

fn days_between(a: Date, b: Date) -> i32 {
    // Dates span four million days at most.
    i32::try_from(a.duration_until(b).as_hours() / 24).unwrap_or(i32::MAX)
}

/// Reads a file's text.
///
/// # Errors
/// What is wrong, or not understood, as a fragment for people.
pub(crate) fn read(text: &str, zone: &TimeZone) -> Result<Holidays, String> {
    // One kind of line end: the parser looks for the next CRLF first and would swallow lines of a mixed file.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = event_lines(&text)?.into_iter();
    let text = unfold(&text);
    let roots = read_components(text.trim()).map_err(|e| parse_error(&e))?;
    let mut holidays = Holidays::default();
    for root in &roots {
        if !root.name.as_str().eq_ignore_ascii_case("VCALENDAR") {
            return Err(plain(&format!("it begins with `{}` in place of VCALENDAR", root.name.as_str())));
        }
        for event in root.components.iter().filter(|c| c.name.as_str().eq_ignore_ascii_case("VEVENT")) {
            let line = lines.next().map(|line| format!("line {line}: ")).unwrap_or_default();
            let name = name(event).map_err(|why| format!("{line}an event: {why}"))?;
            let added = add(&mut holidays, event, &name, zone);
            added.map_err(|why| plain(&format!("{line}event `{name}`: {why}")))?;
        }
    }
    Ok(holidays)
}

/// A reason that quotes the file, without what would spoil a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The lines on which the calendar's events begin; refuses what is nested too deep for the parser.
fn event_lines(text: &str) -> Result<Vec<usize>, String> {
    let mut lines = Vec::new();
    let mut open = 0_usize;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(what) = line.get(..6).filter(|s| s.eq_ignore_ascii_case("BEGIN:")).map(|_| &line[6..]) {
            if open == 1 && what.eq_ignore_ascii_case("VEVENT") {
                lines.push(number + 1);
            }
            open += 1;
        } else if line.get(..4).is_some_and(|s| s.eq_ignore_ascii_case("END:")) {
            open = open.saturating_sub(1);
        }
        if open > DEPTH_MAX {
            return Err(format!("line {}: its components are nested more than {DEPTH_MAX} deep", number + 1));
        }
    }
    Ok(lines)
}

/// The parser's own message repeats the text over many lines; the first names the place.
fn parse_error(error: &str) -> String {
    let line = error.lines().find(|l| l.contains("at line")).unwrap_or("it cannot be parsed");
    let line: String = line.trim().chars().take(120).collect();
    plain(&format!("it is no iCalendar text: {line}"))
}

/// The one property of this name. iCalendar allows none of those asked for here twice.
fn one<'c>(event: &'c Component<'_>, name: &str) -> Result<Option<&'c Property<'c>>, String> {
    let mut found = event.properties.iter().filter(|p| p.name.as_str().eq_ignore_ascii_case(name));
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(format!("{name} stands twice")),
    }
}

fn name(event: &Component<'_>) -> Result<String, String> {
    let text = one(event, "SUMMARY")?.map_or("unnamed", |p| p.val.as_str());
    // Unescaped already; what was several lines becomes one.
    let line = text.replace('\n', " ");
    let clean: String = line.chars().filter(|c| !c.is_control()).take(NAME_MAX_CHARS).collect();
    Ok(if clean.trim().is_empty() { "unnamed".to_owned() } else { clean.trim().to_owned() })
}

fn add(holidays: &mut Holidays, event: &Component<'_>, name: &str, zone: &TimeZone) -> Result<(), String> {
    if one(event, "STATUS")?.is_some_and(|p| p.val.as_str().trim().eq_ignore_ascii_case("CANCELLED")) {
        return Ok(());
    }
    for unknown in ["RDATE", "EXRULE", "EXDATE", "RECURRENCE-ID"] {
        if event.properties.iter().any(|p| p.name.as_str().eq_ignore_ascii_case(unknown)) {
            return Err(format!("{unknown} is not understood; write each day as an event of its own"));
        }
    }
    let start = one(event, "DTSTART")?.ok_or("it has no DTSTART")?;
    let start = moment(start, zone)?;
    let end = one(event, "DTEND")?.map(|p| moment(p, zone)).transpose()?;
    let duration = one(event, "DURATION")?.map(|p| span(p.val.as_str())).transpose()?;
    let (first, days) = covered(&start, end.as_ref(), duration)?;
    let rule = one(event, "RRULE")?;
    match (rule, &start) {
        (None, _) => {
            for offset in 0..days {
                let day = first.checked_add(Span::new().days(offset)).map_err(|e| e.to_string())?;
                holidays.dates.entry(day).or_insert_with(|| name.to_owned());
            }
            if holidays.dates.len() > DATES_MAX {
                return Err(format!("with it the file names more than {DATES_MAX} days"));
            }
        }
        (Some(rule), Moment::Day(_)) => {
            let until = recurrence(rule.val.as_str(), first)?;
            holidays.yearly.push(Yearly { name: name.to_owned(), first, days, until });
        }
        (Some(_), Moment::Instant(_)) => return Err("a recurring event must be all-day (VALUE=DATE)".to_owned()),
    }
    Ok(())
}

#[derive(Debug)]
enum Moment {
    Day(Date),
    /// In the policy's zone.
    Instant(ZonedDateTime),
}

/// `20261225`, `20261225T090000`, `20261225T090000Z`, the second perhaps with a TZID.
fn moment(property: &Property<'_>, zone: &TimeZone) -> Result<Moment, String> {
    let param = |key: &str| {
        let found = property.params.iter().find(|p| p.key.as_str().eq_ignore_ascii_case(key));
        found.and_then(|p| p.val.as_ref()).map(|v| v.as_str().trim_matches('"'))
    };
    let (text, key) = (property.val.as_str().trim(), property.name.as_str());
    let bad = || format!("{key} `{}` is no date", text.chars().take(32).collect::<String>());
    if param("VALUE").is_some_and(|v| v.eq_ignore_ascii_case("DATE")) || !text.contains('T') {
        return digits_date(text).map(Moment::Day).ok_or_else(bad);
    }
    let (local, utc) = text.strip_suffix('Z').map_or((text, false), |local| (local, true));
    let civil = digits_date_time(local).ok_or_else(bad)?;
    let its_zone = match (utc, param("TZID")) {
        (true, _) => TimeZone::UTC,
        (false, None) => zone.clone(),
        (false, Some(name)) => ZONES.get(name).map_err(|_| {
            format!("its time zone `{name}` is no name of the IANA database; write it in UTC or all-day")
        })?,
    };
    let instant = its_zone.to_ambiguous_timestamp(civil).compatible().map_err(|_| bad())?;
    Ok(Moment::Instant(instant.to_zoned_datetime(zone.clone())))
}

fn digits_date(text: &str) -> Option<Date> {
    if text.len() != 8 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Date::new(text[..4].parse().ok()?, text[4..6].parse().ok()?, text[6..].parse().ok()?).ok()
}

fn digits_date_time(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once('T')?;
    if time.len() != 6 || !time.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // A leap second is the last second of its minute here.
    let second = time[4..].parse::<i8>().ok()?.min(59);
    let time = jiff::civil::Time::new(time[..2].parse().ok()?, time[2..4].parse().ok()?, second, 0).ok()?;
    Some(DateTime::from_parts(digits_date(date)?, time))
}

/// `P1D`, `P2W`, `PT8H30M`.
fn span(text: &str) -> Result<Span, String> {
    let bad = || format!("DURATION `{}` is none", text.chars().take(32).collect::<String>());
    let span: Span = text.trim().parse().map_err(|_| bad())?;
    if span.is_negative() { Err(bad()) } else { Ok(span) }
}

/// The first civil date and how many it covers.
fn covered(start: &Moment, end: Option<&Moment>, duration: Option<Span>) -> Result<(Date, i32), String> {
    let (first, last) = match (start, end, duration) {
        (_, Some(_), Some(_)) => return Err("it has both DTEND and DURATION".to_owned()),
        (Moment::Day(first), None, None) => (*first, *first),
        (Moment::Day(first), Some(Moment::Day(end)), None) => (*first, last_day(*first, *end)?),
        (Moment::Day(first), None, Some(span)) => {
            let end = first.checked_add(span).map_err(|_| "its DURATION leaves the calendar")?;
            (*first, last_day(*first, end)?)
        }
        (Moment::Instant(start), None, None) => (start.date(), start.date()),
        (Moment::Instant(start), Some(Moment::Instant(end)), None) => (start.date(), last_touched(start, end)?),
        (Moment::Instant(start), None, Some(span)) => {
            let end = start.checked_add(span).map_err(|_| "its DURATION leaves the calendar")?;
            (start.date(), last_touched(start, &end)?)
        }
        (Moment::Day(_), Some(Moment::Instant(_)), None) | (Moment::Instant(_), Some(Moment::Day(_)), None) => {
            return Err("DTSTART and DTEND are of two kinds".to_owned());
        }
    };
    let days = days_between(first, last) + 1;
    if days > EVENT_DAYS_MAX {
        return Err(format!("it lasts {days} days; {EVENT_DAYS_MAX} are the most"));
    }
    Ok((first, days))
}

/// The day before `end`. Some programs write one day as an end equal to the start.
fn last_day(first: Date, end: Date) -> Result<Date, String> {
    match end.cmp(&first) {
        std::cmp::Ordering::Less => Err("it ends before it begins".to_owned()),
        std::cmp::Ordering::Equal => Ok(first),
        std::cmp::Ordering::Greater => end.yesterday().map_err(|e| e.to_string()),
    }
}

fn last_touched(start: &ZonedDateTime, end: &ZonedDateTime) -> Result<Date, String> {
    if end < start {
        return Err("it ends before it begins".to_owned());
    }
    if end == start {
        return Ok(start.date());
    }
    let last = end.checked_sub(Span::new().nanoseconds(1)).map_err(|e| e.to_string())?;
    Ok(last.date())
}

/// The last day on which the yearly event may begin, if its rule names one.
fn recurrence(rule: &str, first: Date) -> Result<Option<Date>, String> {
    let refuse = || {
        let rule: String = rule.chars().take(64).collect();
        format!(
            "RRULE `{rule}` is not understood: only FREQ=YEARLY on the event's own date is; write each day as an event"
        )
    };
    let mut yearly = false;
    let mut until = None;
    for part in rule.trim().split(';').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(refuse)?;
        let is = |number: i8| value.parse() == Ok(number);
        match key.to_ascii_uppercase().as_str() {
            "FREQ" if value.eq_ignore_ascii_case("YEARLY") => yearly = true,
            "INTERVAL" if value == "1" => {}
            "BYMONTH" if is(first.month()) => {}
            "BYMONTHDAY" if is(first.day()) => {}
            "WKST" => {}
            "UNTIL" if until.is_none() => {
                let day = value.get(..8).and_then(digits_date).ok_or_else(refuse)?;
                // With a time it is one of UTC, where it may still be the day before. A doubt spares.
                let day = if value.len() > 8 { day.tomorrow().unwrap_or(day) } else { day };
                // The event itself is an occurrence (RFC 5545, section 3.8.5.3), wherever its rule ends.
                until = Some(day.max(first));
            }
            "COUNT" if until.is_none() => {
                until = Some(nth(first, value.parse().map_err(|_| refuse())?).ok_or_else(refuse)?)
            }
            _ => return Err(refuse()),
        }
    }
    if yearly { Ok(until) } else { Err(refuse()) }
}

/// The date of the `count`th occurrence. `None` for 0 and for more than the calendar holds.
fn nth(first: Date, count: u16) -> Option<Date> {
    let years = first.year()..=Date::MAX.year();
    let mut occurrences = years.filter_map(|year| Date::new(year, first.month(), first.day()).ok());
    occurrences.nth(usize::from(count.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn new_york() -> TimeZone {
        TimeZone::get("America/New_York").unwrap()
    }

    fn calendar(events: &[&str]) -> String {
        let events: String = events.iter().map(|e| format!("BEGIN:VEVENT\r\n{e}\r\nEND:VEVENT\r\n")).collect();
        format!("BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//acme//EN\r\n{events}END:VCALENDAR\r\n")
    }

    fn dates(event: &str) -> Vec<String> {
        let holidays = read(&calendar(&[event]), &new_york()).unwrap();
        holidays.dates.iter().map(|(day, name)| format!("{day} {name}")).collect()
    }

    fn refused(event: &str) -> String {
        read(&calendar(&[event]), &new_york()).unwrap_err()
    }

    #[test]
    fn an_all_day_event_is_its_civil_date() {
        assert_eq!(dates("SUMMARY:Founders' Day\r\nDTSTART;VALUE=DATE:20261120"), ["2026-11-20 Founders' Day"]);
        assert_eq!(dates("DTSTART:20261120"), ["2026-11-20 unnamed"]);
        assert_eq!(
            dates("SUMMARY:A\\, B\r\nDTSTART;VALUE=DATE:20261120\r\nDTEND;VALUE=DATE:20261120"),
            ["2026-11-20 A, B"]
        );
        assert_eq!(
            dates("SUMMARY:C:\\\\new\\; D\\nE \\x\\\r\nDTSTART;VALUE=DATE:20261120"),
            ["2026-11-20 C:\\new; D E \\x\\"]
        );
    }

    #[test]
    fn the_end_of_an_all_day_event_is_outside() {
        let shutdown = "SUMMARY:Shutdown\r\nDTSTART;VALUE=DATE:20261230\r\nDTEND;VALUE=DATE:20270102";
        assert_eq!(dates(shutdown), ["2026-12-30 Shutdown", "2026-12-31 Shutdown", "2027-01-01 Shutdown"]);
        let by_duration = "SUMMARY:Shutdown\r\nDTSTART;VALUE=DATE:20261230\r\nDURATION:P3D";
        assert_eq!(dates(by_duration), dates(shutdown));
    }

    #[test]
    fn an_event_with_times_covers_the_dates_it_touches_in_the_policys_zone() {
        // 03:00 UTC is the evening before in New York; an event that ends at midnight does not touch the day after.
        assert_eq!(dates("DTSTART:20261120T030000Z\r\nDTEND:20261120T050000Z"), ["2026-11-19 unnamed"]);
        assert_eq!(
            dates("DTSTART;TZID=Europe/Berlin:20261120T030000\r\nDTEND;TZID=Europe/Berlin:20261120T230000"),
            ["2026-11-19 unnamed", "2026-11-20 unnamed"]
        );
        assert_eq!(dates("DTSTART:20261120T230000\r\nDURATION:PT2H").len(), 2);
        assert_eq!(dates("DTSTART:20261120T230000").len(), 1);
    }

    #[test]
    fn a_yearly_event_comes_back() {
        let text = calendar(&[
            "SUMMARY:Gone\r\nDTSTART;VALUE=DATE:20200704\r\nRRULE:FREQ=YEARLY;UNTIL=20240704",
            "SUMMARY:Days\r\nDTSTART;VALUE=DATE:20251231\r\nDTEND;VALUE=DATE:20260103\r\nRRULE:FREQ=YEARLY;INTERVAL=1;BYMONTH=12",
            "SUMMARY:Leap\r\nDTSTART;VALUE=DATE:20240229\r\nRRULE:FREQ=YEARLY;COUNT=2",
            "SUMMARY:Once\r\nDTSTART;VALUE=DATE:20360501\r\nRRULE:FREQ=YEARLY;UNTIL=20300101",
            "SUMMARY:Tokyo\r\nDTSTART;VALUE=DATE:20200811\r\nRRULE:FREQ=YEARLY;UNTIL=20240810T150000Z",
        ]);
        let holidays = read(&text, &new_york()).unwrap();
        let on = |y, m, d| holidays.on(date(y, m, d));
        assert_eq!(on(2024, 7, 4), Some("Gone"));
        assert_eq!(on(2025, 7, 4), None);
        assert_eq!(on(2019, 7, 4), None);
        assert_eq!(on(2024, 12, 31), None);
        for year in 2026..2040 {
            assert_eq!(on(year - 1, 12, 31), Some("Days"));
            assert_eq!(on(year, 1, 2), Some("Days"));
            assert_eq!(on(year, 1, 3), None);
        }
        assert_eq!((on(2024, 2, 29), on(2028, 2, 29)), (Some("Leap"), Some("Leap")));
        assert_eq!((on(2025, 2, 28), on(2025, 3, 1), on(2032, 2, 29)), (None, None, None));
        assert_eq!((on(2036, 5, 1), on(2037, 5, 1)), (Some("Once"), None));
        assert_eq!((on(2024, 8, 11), on(2025, 8, 11)), (Some("Tokyo"), None));
    }

    #[test]
    fn a_recurrence_that_is_not_understood_refuses_the_file() {
        let day = "SUMMARY:Xmas\r\nDTSTART;VALUE=DATE:20261225\r\n";
        for rule in [
            "RRULE:FREQ=WEEKLY",
            "RRULE:FREQ=YEARLY;BYMONTH=11;BYDAY=4TH",
            "RRULE:FREQ=YEARLY;INTERVAL=2",
            "RRULE:FREQ=YEARLY;BYMONTHDAY=24",
            "RRULE:FREQ=YEARLY;COUNT=0",
            "RRULE:COUNT=3",
            "RDATE;VALUE=DATE:20261226",
            "EXDATE;VALUE=DATE:20271225",
            "RECURRENCE-ID;VALUE=DATE:20261225",
        ] {
            let why = refused(&format!("{day}{rule}"));
            assert!(why.starts_with("line 4: event `Xmas`: "), "{rule}: {why}");
            assert!(why.contains("not understood"), "{rule}: {why}");
        }
        assert!(refused("DTSTART:20261225T000000Z\r\nRRULE:FREQ=YEARLY").contains("must be all-day"));
    }

    #[test]
    fn what_makes_no_sense_refuses_the_file() {
        for (event, why) in [
            ("SUMMARY:x", "it has no DTSTART"),
            ("DTSTART:tomorrow", "is no date"),
            ("DTSTART;VALUE=DATE:20261325", "is no date"),
            ("DTSTART;VALUE=DATE:20261225\r\nDTEND;VALUE=DATE:20261224", "ends before it begins"),
            ("DTSTART;VALUE=DATE:20261225\r\nDTEND:20261226T000000Z", "two kinds"),
            ("DTSTART;VALUE=DATE:20261225\r\nDTEND;VALUE=DATE:20361226", "366 are the most"),
            ("DTSTART;VALUE=DATE:20261225\r\nDTSTART;VALUE=DATE:20261226", "stands twice"),
            ("DTSTART;TZID=Eastern Standard Time:20261225T000000", "no name of the IANA database"),
            ("DTSTART;VALUE=DATE:20261225\r\nDURATION:-P1D", "is none"),
        ] {
            let told = refused(event);
            assert!(told.contains(why), "{event}: {told}");
        }
        assert!(refused("SUMMARY:x").starts_with("line 4: event `x`: "), "{}", refused("SUMMARY:x"));
        for text in ["", "hello", "BEGIN:VCALENDAR\n", "BEGIN:VEVENT\nDTSTART:20261225\nEND:VEVENT\n"] {
            assert!(read(text, &new_york()).is_err(), "{text:?} was taken");
        }
        let nested = "BEGIN:VCALENDAR\n".repeat(100_000);
        assert!(read(&nested, &new_york()).unwrap_err().contains("deep"));
    }

    #[test]
    fn a_file_that_names_every_day_for_centuries_is_refused() {
        let years = (1..=60).map(|n| {
            let (from, until) = (1970 + n, 1971 + n);
            format!("DTSTART;VALUE=DATE:{from}0101\r\nDTEND;VALUE=DATE:{until}0101")
        });
        let events: Vec<String> = years.collect();
        let all: Vec<&str> = events.iter().map(String::as_str).collect();
        assert_eq!(read(&calendar(&all[..54]), &new_york()).unwrap().dates.len(), 54 * 365 + 14);
        let why = read(&calendar(&all), &new_york()).unwrap_err();
        assert!(why.contains("more than 20000 days") && why.starts_with("line 220: "), "{why}");
    }

    #[test]
    fn line_ends_may_be_mixed_and_lines_folded() {
        let text = "\u{feff}BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:Long \n name\nDTSTART;VALUE=DATE:20261225\n\
                    RRULE:FREQ=WEEKLY\nDESCRIPTION:x\r\nEND:VEVENT\nEND:VCALENDAR\n";
        let why = read(text, &new_york()).unwrap_err();
        assert!(why.contains("Long name") && why.contains("RRULE"), "{why}");
    }

    #[test]
    fn a_cancelled_event_and_other_components_are_no_holidays() {
        assert_eq!(dates("DTSTART;VALUE=DATE:20261225\r\nSTATUS:CANCELLED"), Vec::<String>::new());
        let text = "BEGIN:VCALENDAR\nBEGIN:VTIMEZONE\nTZID:X\nBEGIN:STANDARD\nDTSTART:19700101T000000\n\
                    RRULE:FREQ=YEARLY;BYDAY=1SU;BYMONTH=11\nEND:STANDARD\nEND:VTIMEZONE\nEND:VCALENDAR";
        assert_eq!(read(text, &new_york()), Ok(Holidays::default()));
    }
}
