//! What must hold of any iCalendar text: a target of `tests/fuzz/run`, whose corpus a test replays as well.

use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::ics::{self, Holidays};

/// Refused: the reason is one line. Taken: line ends and a byte order mark change nothing, and the days off written as a
/// calendar of their own are the same days off.
///
/// # Panics
/// When it does not hold.
pub fn icalendar(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // An offset with half an hour, so that times and dates fall apart.
    let zone = TimeZone::fixed(jiff::tz::Offset::from_seconds(-12_600).expect("an offset"));
    let read = |text: &str| ics::read(text, &zone);
    match read(text) {
        Err(why) => assert!(!why.is_empty() && !why.chars().any(char::is_control), "{why:?}"),
        Ok(days) => {
            let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
            let lines = bare.replace("\r\n", "\n").replace('\r', "\n");
            assert_eq!(read(&lines.replace('\n', "\r\n")).as_ref(), Ok(&days), "with other line ends");
            assert_eq!(read(&format!("\u{feff}{bare}")).as_ref(), Ok(&days), "with a byte order mark");
            let printed = written(&days);
            assert_eq!(read(&printed).as_ref(), Ok(&days), "printed:\n{printed}");
            for day in [Date::MIN, Date::MAX].into_iter().chain(days.dates.keys().take(50).copied()) {
                assert!(days.on(day).is_some() || !days.dates.contains_key(&day));
            }
            assert!(days.yearly.iter().all(|yearly| days.on(yearly.first).is_some()));
        }
    }
}

fn written(days: &Holidays) -> String {
    let mut text = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\n".to_owned();
    let compact = |day: Date| day.strftime("%Y%m%d").to_string();
    let mut event = |name: &str, first: Date, count: i32, rule: &str| {
        let name = name.replace('\\', "\\\\").replace(',', "\\,").replace(';', "\\;");
        // One day is what an event without an end has; the calendar's last day has no day after it to end on.
        let duration = if count == 1 { String::new() } else { format!("DURATION:P{count}D\r\n") };
        let first = compact(first);
        text.push_str(&format!(
            "BEGIN:VEVENT\r\nSUMMARY:{name}\r\nDTSTART;VALUE=DATE:{first}\r\n{duration}{rule}END:VEVENT\r\n"
        ));
    };
    for (day, name) in &days.dates {
        event(name, *day, 1, "");
    }
    for yearly in &days.yearly {
        let until = yearly.until.map(|until| format!(";UNTIL={}", compact(until))).unwrap_or_default();
        event(&yearly.name, yearly.first, yearly.days, &format!("RRULE:FREQ=YEARLY{until}\r\n"));
    }
    text + "END:VCALENDAR\r\n"
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/icalendar");
        let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 10);
        inputs.iter().for_each(|path| super::icalendar(&std::fs::read(path).unwrap()));
    }
}
