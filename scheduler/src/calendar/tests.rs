use jiff::civil::date;
use proptest::prelude::*;
use proptest::test_runner::Config;

use super::*;
use crate::fixture::{calendar, policy_with, windows};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn with(zone: &str, before: &str) -> Calendar {
    calendar(&policy_with(zone, before, ""))
}

/// Monday to Friday, 10:00 to 16:00 in New York, with whatever else.
fn shop(more: &str) -> Calendar {
    with("America/New_York", &format!("{}{more}", windows("mon tue wed thu fri", "10:00", "16:00")))
}

fn all_days(open: &str, close: &str) -> String {
    windows("mon tue wed thu fri sat sun", open, close)
}

fn spans(calendar: &Calendar, day: Date) -> Vec<String> {
    calendar.windows(day).iter().map(|w| format!("{} {}", w.opens, w.shuts)).collect()
}

fn open(seen: WindowSeen) -> (Date, Timestamp, String, Option<String>) {
    match seen {
        WindowSeen::Open { day, shuts, shuts_in, next_holiday } => (day, shuts, shuts_in, next_holiday),
        WindowSeen::Shut { .. } => panic!("{seen:?}"),
    }
}

fn shut(seen: WindowSeen) -> (String, Option<Timestamp>) {
    match seen {
        WindowSeen::Shut { why, opens } => (why, opens),
        WindowSeen::Open { .. } => panic!("{seen:?}"),
    }
}

#[test]
fn a_window_holds_its_first_minute_and_not_its_last() {
    let calendar = shop("");
    let day = date(2026, 11, 24);
    assert_eq!(spans(&calendar, day), ["2026-11-24T15:00:00Z 2026-11-24T21:00:00Z"]);
    assert_eq!(calendar.window_minutes(day), 360);
    assert_eq!(calendar.instant_of_minute(day, 187), Some(at("2026-11-24T18:07:00Z")));
    assert_eq!(calendar.instant_of_minute(day, 359), Some(at("2026-11-24T20:59:00Z")));
    assert_eq!(calendar.instant_of_minute(day, 360), None);
    assert_eq!(open(calendar.at(at("2026-11-24T15:00:00Z"))).0, day);
    assert_eq!(open(calendar.at(at("2026-11-24T16:02:00Z"))).2, "4h 58m");
    assert_eq!(open(calendar.at(at("2026-11-24T20:59:30Z"))).2, "30s");
    let (why, opens) = shut(calendar.at(at("2026-11-24T21:00:00Z")));
    assert_eq!(why, "no window is open; the next opens Wed 2026-11-25 10:00 EST (15:00Z)");
    assert_eq!(opens, Some(at("2026-11-25T15:00:00Z")));
    assert!(calendar.windows(date(2026, 11, 22)).is_empty());
    assert_eq!(calendar.is_workday(date(2026, 11, 22)), Err("no window opens".to_owned()));
}

#[test]
fn windows_of_a_day_are_joined_in_order_of_opening() {
    let two = format!(
        "{}{}{}{}",
        windows("tue", "14:00", "15:00"),
        windows("tue", "09:00", "10:00"),
        windows("tue", "09:30", "11:00"),
        windows("tue", "11:00", "12:00"),
    );
    let calendar = with("UTC", &two);
    let day = date(2026, 11, 24);
    assert_eq!(
        spans(&calendar, day),
        ["2026-11-24T09:00:00Z 2026-11-24T12:00:00Z", "2026-11-24T14:00:00Z 2026-11-24T15:00:00Z"]
    );
    assert_eq!(calendar.window_minutes(day), 240);
    assert_eq!(calendar.instant_of_minute(day, 180), Some(at("2026-11-24T14:00:00Z")));
    assert_eq!(calendar.last_close(day), Some(at("2026-11-24T15:00:00Z")));
}

#[test]
fn an_overnight_window_belongs_to_the_day_on_which_it_opens() {
    let calendar = with("Europe/London", &windows("mon tue wed thu", "22:00", "04:00"));
    let thursday = date(2026, 11, 26);
    assert_eq!(calendar.window_minutes(thursday), 360);
    assert_eq!(open(calendar.at(at("2026-11-27T03:59:00Z"))).0, thursday);
    assert_eq!(calendar.is_workday(date(2026, 11, 27)), Err("no window opens".to_owned()));
    assert_eq!(calendar.planning_days(at("2026-11-27T03:59:00Z")), [thursday, date(2026, 11, 27)]);
    assert_eq!(calendar.planning_days(at("2026-11-27T04:00:00Z")), [date(2026, 11, 27)]);
    assert_eq!(calendar.planning_days(at("2026-11-26T23:00:00Z")), [thursday]);
    let midnight = with("UTC", &windows("fri", "22:00", "00:00"));
    assert_eq!(midnight.last_close(date(2026, 11, 27)), Some(at("2026-11-28T00:00:00Z")));
}

#[test]
fn an_overnight_window_passes_the_end_of_the_year() {
    let calendar = with("Europe/Berlin", &all_days("23:00", "01:00"));
    let eve = date(2026, 12, 31);
    assert_eq!(spans(&calendar, eve), ["2026-12-31T22:00:00Z 2027-01-01T00:00:00Z"]);
    assert_eq!(calendar.planning_days(at("2026-12-31T23:30:00Z")), [eve, date(2027, 1, 1)]);
    assert_eq!(calendar.workdays_between(eve, date(2027, 1, 2)), 2);
}

#[test]
fn a_holiday_opens_no_window_and_cuts_an_overnight_one_short() {
    let calendar = with(
        "America/New_York",
        &format!("{}[holidays]\ncalendars = [\"us-federal\"]\n", windows("mon tue wed thu fri", "22:00", "04:00")),
    );
    let thanksgiving = date(2026, 11, 26);
    assert_eq!(calendar.is_workday(thanksgiving), Err("holiday: Thanksgiving Day".to_owned()));
    assert_eq!(calendar.windows(thanksgiving), []);
    let sunday = date(2027, 7, 4);
    assert_eq!(calendar.is_workday(sunday), Err("no window opens".to_owned()), "Independence Day or not");
    assert_eq!((calendar.window_minutes(thanksgiving), calendar.last_close(thanksgiving)), (0, None));
    // Wednesday's window is whole for draws, and shuts at the holiday's midnight for acts.
    assert_eq!(calendar.window_minutes(date(2026, 11, 25)), 360);
    let (day, shuts, left, next) = open(calendar.at(at("2026-11-26T04:00:00Z")));
    assert_eq!((day, shuts), (date(2026, 11, 25), at("2026-11-26T05:00:00Z")));
    assert_eq!((left.as_str(), next.as_deref()), ("1h 0m", Some("Thu 2026-11-26 Thanksgiving Day")));
    let (why, opens) = shut(calendar.at(at("2026-11-26T06:00:00Z")));
    assert_eq!(why, "holiday: Thanksgiving Day; the next opens Fri 2026-11-27 22:00 EST (03:00Z)");
    assert_eq!(opens, Some(at("2026-11-28T03:00:00Z")));
    // Friday after midnight would be the holiday's window.
    assert!(shut(calendar.at(at("2026-11-27T06:00:00Z"))).0.starts_with("no window is open"));
}

#[test]
fn listed_dates_and_files_are_holidays() {
    let file = "BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:Founders' Day\nDTSTART;VALUE=DATE:20261120\nEND:VEVENT\nEND:VCALENDAR\n";
    let policy = policy_with(
        "America/New_York",
        &format!(
            "{}[holidays]\nfiles = [\"holidays/company.ics\"]\ndates = [\"2026-12-23\"]\n",
            windows("mon tue wed thu fri", "10:00", "16:00")
        ),
        "",
    );
    let path = PathBuf::from("holidays/company.ics");
    let calendar = Calendar::new(&policy, &BTreeMap::from([(path.clone(), file.to_owned())])).unwrap();
    assert_eq!(calendar.is_workday(date(2026, 11, 20)), Err("holiday: Founders' Day".to_owned()));
    assert_eq!(calendar.is_workday(date(2026, 12, 23)), Err("holiday: listed in `dates`".to_owned()));

    let missing = Calendar::new(&policy, &BTreeMap::new()).unwrap_err();
    assert_eq!(missing.to_string(), "the calendar file `holidays/company.ics` was not read");
    let weekly = file.replace("END:VEVENT", "RRULE:FREQ=WEEKLY\nEND:VEVENT");
    let bad = Calendar::new(&policy, &BTreeMap::from([(path, weekly)])).unwrap_err().to_string();
    assert!(
        bad.starts_with(
            "the calendar file `holidays/company.ics` cannot be used: line 2: event `Founders' Day`: RRULE"
        ),
        "{bad}"
    );
    let mut unknown = policy;
    unknown.holidays.files.clear();
    unknown.holidays.calendars.push("mars".to_owned());
    let told = Calendar::new(&unknown, &BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(told, "there is no built-in calendar `mars`");
}

#[test]
fn a_blackout_spares_at_the_act_and_takes_no_minute_from_the_draw() {
    let calendar = shop(
        "[[blackouts]]\nfrom = \"2026-11-25T12:00\"\nuntil = \"2026-12-01T00:00\"\nreason = \"Thanksgiving to Cyber Monday\"\n",
    );
    let wednesday = date(2026, 11, 25);
    assert_eq!(calendar.is_workday(wednesday), Ok(()));
    assert_eq!(calendar.window_minutes(wednesday), 360);
    let (_, shuts, left, _) = open(calendar.at(at("2026-11-25T16:00:00Z")));
    assert_eq!((shuts, left.as_str()), (at("2026-11-25T17:00:00Z"), "1h 0m"));
    let (why, opens) = shut(calendar.at(at("2026-11-25T17:00:00Z")));
    assert_eq!(why, "blacked out: Thanksgiving to Cyber Monday; the next opens Tue 2026-12-01 10:00 EST (15:00Z)");
    assert_eq!(opens, Some(at("2026-12-01T15:00:00Z")));
    assert_eq!(calendar.is_workday(date(2026, 11, 26)), Err("blacked out: Thanksgiving to Cyber Monday".to_owned()));
}

#[test]
fn blackouts_that_meet_take_the_whole_day_and_one_minute_left_makes_a_workday() {
    let two = |until: &str| {
        shop(&format!(
            "[[blackouts]]\nfrom = \"2026-11-24T13:00\"\nuntil = \"{until}\"\nreason = \"b\"\n
             [[blackouts]]\nfrom = \"2026-11-24T08:00\"\nuntil = \"2026-11-24T13:00\"\nreason = \"a\"\n"
        ))
    };
    let day = date(2026, 11, 24);
    let whole = two("2026-11-24T16:00");
    assert_eq!(whole.is_workday(day), Err("blacked out: a, b".to_owned()));
    let next = shut(whole.at(at("2026-11-24T15:00:00Z"))).1;
    assert_eq!(next, Some(at("2026-11-25T15:00:00Z")), "a window that shuts as its blackout ends does not open");
    let left = two("2026-11-24T15:59");
    assert_eq!(left.is_workday(day), Ok(()));
    assert_eq!(shut(left.at(at("2026-11-24T15:00:00Z"))).1, Some(at("2026-11-24T20:59:00Z")));
}

#[test]
fn a_blackout_that_ends_in_a_repeated_hour_ends_at_its_second_coming() {
    let calendar = with(
        "America/New_York",
        &format!(
            "{}[[blackouts]]\nfrom = \"2027-11-07T00:00\"\nuntil = \"2027-11-07T01:30\"\nreason = \"r\"\n",
            all_days("00:00", "06:00")
        ),
    );
    assert!(shut(calendar.at(at("2027-11-07T06:29:59Z"))).0.starts_with("blacked out: r"));
    open(calendar.at(at("2027-11-07T06:30:00Z")));
}

#[test]
fn minutes_are_elapsed_ones_when_the_clocks_change() {
    let rows = [
        ("America/New_York", date(2027, 3, 14), 300),
        ("America/New_York", date(2027, 11, 7), 420),
        ("Europe/Berlin", date(2027, 3, 28), 300),
        ("Europe/Berlin", date(2027, 10, 31), 420),
        ("Australia/Lord_Howe", date(2027, 4, 4), 390),
        ("Australia/Lord_Howe", date(2027, 10, 3), 330),
        ("UTC", date(2027, 3, 14), 360),
    ];
    for (zone, day, minutes) in rows {
        let calendar = with(zone, &all_days("00:00", "06:00"));
        assert_eq!(calendar.window_minutes(day), minutes, "{zone} {day}");
        let overnight = with(zone, &all_days("22:00", "04:00"));
        assert_eq!(overnight.window_minutes(day.yesterday().unwrap()), minutes, "{zone} {day}");
    }
}

#[test]
fn a_window_in_a_skipped_hour_moves_on_and_one_that_is_swallowed_does_not_open() {
    let day = date(2027, 3, 14);
    let of = |open: &str, close: &str| spans(&with("America/New_York", &windows("sun", open, close)), day);
    assert_eq!(of("02:15", "02:45"), ["2027-03-14T07:15:00Z 2027-03-14T07:45:00Z"]);
    assert_eq!(of("02:00", "03:00"), Vec::<String>::new());
    assert_eq!(of("02:30", "03:15"), Vec::<String>::new());
    let calendar = with("America/New_York", &windows("sun", "02:00", "03:00"));
    assert_eq!(calendar.is_workday(day), Err("no window opens".to_owned()));
    // The repeated hour: its first coming.
    let fall = with("America/New_York", &windows("sun", "01:30", "02:00"));
    assert_eq!(spans(&fall, date(2027, 11, 7)), ["2027-11-07T05:30:00Z 2027-11-07T07:00:00Z"]);
}

#[test]
fn a_day_that_the_zone_skipped_is_no_day() {
    let calendar = with("Pacific/Apia", &format!("{}{}", all_days("10:00", "16:00"), windows("thu", "22:00", "04:00")));
    let (before, skipped, after) = (date(2011, 12, 29), date(2011, 12, 30), date(2011, 12, 31));
    assert_eq!(calendar.windows(skipped), []);
    assert_eq!(calendar.is_workday(skipped), Err("no window opens".to_owned()));
    assert_eq!(calendar.workdays_between(before, after), 1);
    // Thursday's overnight window ends on the Saturday that followed it at once.
    assert_eq!(calendar.window_minutes(before), 2 * 360);
    let close = calendar.last_close(before).unwrap();
    assert_eq!(calendar.civil_day(close), after);
    let night = close.checked_sub(Span::new().minutes(1)).unwrap();
    assert_eq!(calendar.planning_days(night), [before, after]);
    assert_eq!(open(calendar.at(night)).0, before);
    // And where that Saturday is a holiday, at Thursday's midnight.
    let holiday =
        with("Pacific/Apia", &format!("{}[holidays]\ndates = [\"2011-12-31\"]\n", windows("thu", "22:00", "04:00")));
    let late = at("2011-12-30T09:30:00Z");
    assert_eq!(holiday.civil_day(late), before);
    assert_eq!(open(holiday.at(late)).1, at("2011-12-30T10:00:00Z"));
}

#[test]
fn counts_workdays_since_a_kill() {
    let calendar = shop("[holidays]\ncalendars = [\"us-federal\"]\n");
    let between = |a: Date, b: Date| calendar.workdays_between(a, b);
    assert_eq!(between(date(2026, 11, 23), date(2026, 11, 24)), 1);
    assert_eq!(between(date(2026, 11, 24), date(2026, 11, 24)), 0);
    assert_eq!(between(date(2026, 11, 25), date(2026, 11, 24)), 0);
    assert_eq!(between(date(2026, 11, 25), date(2026, 11, 30)), 2);
    assert_eq!(between(date(2026, 12, 30), date(2027, 1, 4)), 2);
    assert_eq!(between(date(1900, 1, 1), date(2026, 11, 24)), 2_508);
    assert_eq!(with("UTC", &all_days("10:00", "12:00")).workdays_between(Date::MIN, Date::MAX), WORKDAYS_COUNTED_MAX);
    let year: Vec<_> = calendar.workdays(date(2026, 1, 1), 365).collect();
    assert_eq!(year.len(), 250);
    assert!(year.is_sorted());
}

#[test]
fn a_calendar_that_never_opens_says_so() {
    let never = with(
        "UTC",
        "[[windows]]\ndays = [\"mon\"]\nopen = \"10:00\"\nclose = \"11:00\"\n[[blackouts]]\nfrom = \"2020-01-01\"\nuntil = \"2040-01-01\"\nreason = \"frozen\"\n",
    );
    let (why, opens) = shut(never.at(at("2026-11-24T12:00:00Z")));
    assert_eq!((why.as_str(), opens), ("blacked out: frozen; none opens within 400 days", None));
    for edge in [Timestamp::MIN, Timestamp::MAX] {
        shut(never.at(edge));
        assert!(!never.planning_days(edge).is_empty());
    }
    assert_eq!(never.windows(Date::MAX), []);
    // Past the last instant and before the first there is no time.
    let late = with("UTC", &all_days("20:00", "23:00")).windows(date(9999, 12, 30));
    assert_eq!(late.iter().map(|w| w.shuts).collect::<Vec<_>>(), [Timestamp::MAX]);
    let early = with("UTC", &all_days("01:00", "04:00")).windows(date(-9999, 1, 2));
    assert_eq!(early.iter().map(|w| w.opens).collect::<Vec<_>>(), [Timestamp::MIN]);
}

const ZONES: [&str; 6] = [
    "America/New_York",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
    "America/Sao_Paulo",
];

proptest! {
    #![proptest_config(Config { cases: 48, failure_persistence: None, ..Config::default() })]

    /// The minutes that a draw may give are the minutes in which the gate is open, in order, each once.
    #[test]
    fn every_minute_of_a_day_lies_in_its_windows(
        zone in 0..ZONES.len(),
        offset in 0..14_000_i32,
        ends in proptest::collection::vec((0..24_u8, 0..60_u8, 0..24_u8, 0..60_u8), 1..4),
    ) {
        let day = date(2000, 1, 1).checked_add(Span::new().days(offset)).unwrap();
        let windows: String = ends
            .iter()
            .filter(|(a, b, c, d)| (a, b) != (c, d))
            .map(|(a, b, c, d)| all_days(&format!("{a:02}:{b:02}"), &format!("{c:02}:{d:02}")))
            .collect();
        prop_assume!(!windows.is_empty());
        let calendar = with(ZONES[zone], &windows);
        let total = calendar.window_minutes(day);
        let mut before: Option<Timestamp> = None;
        for minute in 0..total {
            let instant = calendar.instant_of_minute(day, minute).unwrap();
            prop_assert!(before.is_none_or(|before| instant.as_second() - before.as_second() >= 60));
            before = Some(instant);
            if minute % 37 == 0 || minute + 1 == total {
                let (open_day, shuts, _, _) = open(calendar.at(instant));
                prop_assert!(open_day <= day && instant < shuts);
                prop_assert!(calendar.planning_days(instant).contains(&day));
            }
        }
        prop_assert_eq!(calendar.instant_of_minute(day, total), None);
    }

    /// Where it is shut, the instant at which it opens is open, and the second before is not.
    #[test]
    fn the_next_opening_is_the_first_open_instant(zone in 0..ZONES.len(), hour in 0..200_000_i64) {
        let calendar = with(
            ZONES[zone],
            &format!(
                "{}{}[holidays]\ncalendars = [\"us-federal\", \"fr\"]\n
                 [[blackouts]]\nfrom = \"2010-01-04T11:00\"\nuntil = \"2010-01-05T11:00\"\nreason = \"r\"\n",
                windows("mon wed thu", "22:30", "04:00"),
                windows("tue fri sun", "01:30", "02:45"),
            ),
        );
        let now = at("2005-01-01T00:00:00Z").checked_add(Span::new().hours(hour).minutes(7)).unwrap();
        if let WindowSeen::Shut { opens, .. } = calendar.at(now) {
            let opens = opens.unwrap();
            prop_assert!(now < opens);
            open(calendar.at(opens));
            shut(calendar.at(opens.checked_sub(Span::new().seconds(1)).unwrap()));
        } else {
            let (_, shuts, _, _) = open(calendar.at(now));
            prop_assert!(now < shuts);
            open(calendar.at(shuts.checked_sub(Span::new().seconds(1)).unwrap()));
        }
    }

    #[test]
    fn workdays_add_up(a in 0..3000_i32, b in 0..400_i32, c in 0..400_i32) {
        let calendar = shop("[holidays]\ncalendars = [\"england-wales\"]\n");
        let day = |n: i32| date(2018, 1, 1).checked_add(Span::new().days(n)).unwrap();
        let (x, y, z) = (day(a), day(a + b), day(a + b + c));
        prop_assert_eq!(
            calendar.workdays_between(x, z),
            calendar.workdays_between(x, y) + calendar.workdays_between(y, z)
        );
        let listed = calendar.workdays(x.tomorrow().unwrap(), u32::try_from(b + c).unwrap()).count();
        prop_assert_eq!(usize::try_from(calendar.workdays_between(x, z)).unwrap(), listed);
    }
}
