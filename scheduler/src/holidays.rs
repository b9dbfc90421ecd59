//! The built-in holiday calendars, computed for any year by the rules in force today.
//!
//! A holiday on a weekend stays one, also where the day off moves: a team whose window opens on Saturdays is spared on
//! both days. Days declared once, by proclamation, stand in tables of exceptions as far as they are known; a new one goes
//! into the policy's `dates` until a release has it.

use jiff::Span;
use jiff::civil::{Date, Weekday};

/// A calendar that a policy may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuiltIn {
    /// The legal holidays of 5 U.S.C. 6103: on a Saturday also observed the Friday before, on a Sunday the Monday after.
    UsFederal,
    /// The bank holidays of England and Wales with their substitute days.
    EnglandWales,
    /// What is a holiday in every German state.
    DeFederal,
    /// The eleven national holidays of metropolitan France.
    Fr,
}

impl BuiltIn {
    pub const ALL: [Self; 4] = [Self::UsFederal, Self::EnglandWales, Self::DeFederal, Self::Fr];

    /// The name by which policies call it, as in `troop_policies::file::KNOWN_CALENDARS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UsFederal => "us-federal",
            Self::EnglandWales => "england-wales",
            Self::DeFederal => "de-federal",
            Self::Fr => "fr",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|calendar| calendar.name() == name)
    }

    /// What is celebrated on `day`, if anything is.
    pub fn on(self, day: Date) -> Option<String> {
        match self {
            Self::UsFederal => us_federal(day),
            Self::EnglandWales => england_wales(day),
            Self::DeFederal => plain(&DE_FEDERAL, day),
            Self::Fr => plain(&FR, day),
        }
    }
}

/// One holiday of each year, or of a single year.
#[derive(Debug, Clone, Copy)]
struct Rule {
    name: &'static str,
    when: When,
    since: i16,
}

#[derive(Debug, Clone, Copy)]
enum When {
    /// Month and day.
    Fixed(i8, i8),
    /// The nth weekday of a month; -1 is the last.
    Nth(i8, Weekday, i8),
    /// Days after Easter Sunday.
    Easter(i32),
    /// Once.
    Only(i16, i8, i8),
}

/// Before any year that a plan is made for.
const ALWAYS: i16 = i16::MIN;

const fn rule(name: &'static str, when: When) -> Rule {
    Rule { name, when, since: ALWAYS }
}

impl Rule {
    fn in_year(&self, year: i16) -> Option<Date> {
        if year < self.since {
            return None;
        }
        match self.when {
            When::Fixed(month, day) => Date::new(year, month, day).ok(),
            When::Nth(month, weekday, nth) => Date::new(year, month, 1).ok()?.nth_weekday_of_month(nth, weekday).ok(),
            When::Easter(offset) => easter(year)?.checked_add(Span::new().days(offset)).ok(),
            When::Only(only, month, day) if only == year => Date::new(only, month, day).ok(),
            When::Only(..) => None,
        }
    }
}

fn plain(rules: &[Rule], day: Date) -> Option<String> {
    rules.iter().find(|rule| rule.in_year(day.year()) == Some(day)).map(|rule| rule.name.to_owned())
}

/// Easter Sunday by the anonymous Gregorian algorithm (Meeus, Jones, Butcher). `None` where there is no such date.
fn easter(year: i16) -> Option<Date> {
    let y = i32::from(year);
    let a = y.rem_euclid(19);
    let (b, c) = (y.div_euclid(100), y.rem_euclid(100));
    let (d, e) = (b.div_euclid(4), b.rem_euclid(4));
    let f = (b + 8).div_euclid(25);
    let g = (b - f + 1).div_euclid(3);
    let h = (19 * a + b - d - g + 15).rem_euclid(30);
    let (i, k) = (c / 4, c % 4);
    let l = (32 + 2 * e + 2 * i - h - k).rem_euclid(7);
    let m = (a + 11 * h + 22 * l) / 451;
    let from_march = h + l - 7 * m + 114;
    let (month, day) = (from_march / 31, from_march % 31 + 1);
    Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()
}

/// The names are those of the Office of Personnel Management. Inauguration Day is left out: it is a day off in and around
/// the capital alone. So are days that a president gives once.
const US_FEDERAL: [Rule; 11] = [
    rule("New Year's Day", When::Fixed(1, 1)),
    rule("Birthday of Martin Luther King, Jr.", When::Nth(1, Weekday::Monday, 3)),
    rule("Washington's Birthday", When::Nth(2, Weekday::Monday, 3)),
    rule("Memorial Day", When::Nth(5, Weekday::Monday, -1)),
    Rule { name: "Juneteenth National Independence Day", when: When::Fixed(6, 19), since: 2021 },
    rule("Independence Day", When::Fixed(7, 4)),
    rule("Labor Day", When::Nth(9, Weekday::Monday, 1)),
    rule("Columbus Day", When::Nth(10, Weekday::Monday, 2)),
    rule("Veterans Day", When::Fixed(11, 11)),
    rule("Thanksgiving Day", When::Nth(11, Weekday::Thursday, 4)),
    rule("Christmas Day", When::Fixed(12, 25)),
];

fn us_federal(day: Date) -> Option<String> {
    if let Some(name) = plain(&US_FEDERAL, day) {
        return Some(name);
    }
    // New Year's Day on a Saturday is observed on 31 December, in the year before.
    let years = [Some(day.year()), day.year().checked_add(1)];
    let observed =
        |rule: &&Rule| years.iter().flatten().filter_map(|y| rule.in_year(*y)).any(|d| observed(d) == Some(day));
    US_FEDERAL.iter().find(observed).map(|rule| format!("{} (observed)", rule.name))
}

fn observed(day: Date) -> Option<Date> {
    match day.weekday() {
        Weekday::Saturday => day.yesterday().ok(),
        Weekday::Sunday => day.tomorrow().ok(),
        Weekday::Monday | Weekday::Tuesday | Weekday::Wednesday | Weekday::Thursday | Weekday::Friday => None,
    }
}

/// May's bank holidays are apart, in [`england_wales`]: they were moved now and then.
const ENGLAND_WALES: [Rule; 6] = [
    rule("New Year's Day", When::Fixed(1, 1)),
    rule("Good Friday", When::Easter(-2)),
    rule("Easter Monday", When::Easter(1)),
    rule("Summer bank holiday", When::Nth(8, Weekday::Monday, -1)),
    rule("Christmas Day", When::Fixed(12, 25)),
    rule("Boxing Day", When::Fixed(12, 26)),
];

/// By royal proclamation, from 2011 on.
const ENGLAND_WALES_ONCE: [Rule; 8] = [
    rule("Royal wedding", When::Only(2011, 4, 29)),
    rule("Spring bank holiday", When::Only(2012, 6, 4)),
    rule("Queen's Diamond Jubilee", When::Only(2012, 6, 5)),
    rule("Early May bank holiday (VE day)", When::Only(2020, 5, 8)),
    rule("Spring bank holiday", When::Only(2022, 6, 2)),
    rule("Platinum Jubilee bank holiday", When::Only(2022, 6, 3)),
    rule("Bank Holiday for the State Funeral of Queen Elizabeth II", When::Only(2022, 9, 19)),
    rule("Bank holiday for the coronation of King Charles III", When::Only(2023, 5, 8)),
];

const EARLY_MAY: Rule = rule("Early May bank holiday", When::Nth(5, Weekday::Monday, 1));
/// Years in which the first of May's bank holidays was another day, which [`ENGLAND_WALES_ONCE`] has.
const EARLY_MAY_MOVED: [i16; 1] = [2020];
const SPRING: Rule = rule("Spring bank holiday", When::Nth(5, Weekday::Monday, -1));
const SPRING_MOVED: [i16; 2] = [2012, 2022];

fn england_wales(day: Date) -> Option<String> {
    let year = day.year();
    if let Some(name) = plain(&ENGLAND_WALES, day).or_else(|| plain(&ENGLAND_WALES_ONCE, day)) {
        return Some(name);
    }
    for (rule, moved) in [(EARLY_MAY, EARLY_MAY_MOVED.as_slice()), (SPRING, SPRING_MOVED.as_slice())] {
        if !moved.contains(&year) && rule.in_year(year) == Some(day) {
            return Some(rule.name.to_owned());
        }
    }
    substitute(day).map(|name| format!("{name} (substitute day)"))
}

/// The holiday that falls on a weekend and is made up for on `day`.
fn substitute(day: Date) -> Option<&'static str> {
    let christmas = Date::new(day.year(), 12, 25).ok()?.weekday();
    match (day.month(), day.day(), day.weekday()) {
        (1, 2 | 3, Weekday::Monday) => Some("New Year's Day"),
        // Christmas Day on a Saturday or Sunday moves to the 27th, past Boxing Day or its own weekend.
        (12, 27, _) if matches!(christmas, Weekday::Saturday | Weekday::Sunday) => Some("Christmas Day"),
        // Boxing Day on a Saturday moves to Monday; on a Sunday to Tuesday, as Christmas Day has the Monday.
        (12, 28, _) if matches!(christmas, Weekday::Friday | Weekday::Saturday) => Some("Boxing Day"),
        _ => None,
    }
}

const DE_FEDERAL: [Rule; 10] = [
    rule("Neujahr", When::Fixed(1, 1)),
    rule("Karfreitag", When::Easter(-2)),
    rule("Ostermontag", When::Easter(1)),
    rule("Tag der Arbeit", When::Fixed(5, 1)),
    rule("Christi Himmelfahrt", When::Easter(39)),
    rule("Pfingstmontag", When::Easter(50)),
    Rule { name: "Tag der Deutschen Einheit", when: When::Fixed(10, 3), since: 1990 },
    // The Reformation's 500th year was the only one in which every state kept it.
    rule("Reformationstag", When::Only(2017, 10, 31)),
    rule("Erster Weihnachtstag", When::Fixed(12, 25)),
    rule("Zweiter Weihnachtstag", When::Fixed(12, 26)),
];

const FR: [Rule; 11] = [
    rule("Jour de l'an", When::Fixed(1, 1)),
    rule("Lundi de Pâques", When::Easter(1)),
    rule("Fête du Travail", When::Fixed(5, 1)),
    rule("Victoire 1945", When::Fixed(5, 8)),
    rule("Ascension", When::Easter(39)),
    rule("Lundi de Pentecôte", When::Easter(50)),
    rule("Fête nationale", When::Fixed(7, 14)),
    rule("Assomption", When::Fixed(8, 15)),
    rule("Toussaint", When::Fixed(11, 1)),
    rule("Armistice 1918", When::Fixed(11, 11)),
    rule("Noël", When::Fixed(12, 25)),
];

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use troop_policies::file::KNOWN_CALENDARS;

    use super::*;

    /// The year's holidays as `MM-DD name`, weekends left out unless asked for.
    fn of(calendar: BuiltIn, year: i16, weekends: bool) -> Vec<String> {
        let weekend = |d: Date| matches!(d.weekday(), Weekday::Saturday | Weekday::Sunday);
        date(year, 1, 1)
            .series(Span::new().days(1))
            .take_while(|d| d.year() == year)
            .filter(|d| weekends || !weekend(*d))
            .filter_map(|d| calendar.on(d).map(|name| format!("{} {name}", d.strftime("%m-%d"))))
            .collect()
    }

    fn days(calendar: BuiltIn, year: i16) -> String {
        let days: Vec<_> = of(calendar, year, false).iter().map(|line| line[..5].to_owned()).collect();
        days.join(" ")
    }

    #[test]
    fn computes_exactly_the_calendars_that_a_policy_may_name() {
        assert_eq!(BuiltIn::ALL.map(BuiltIn::name), KNOWN_CALENDARS);
        for name in KNOWN_CALENDARS {
            assert_eq!(BuiltIn::from_name(name).map(BuiltIn::name), Some(name));
        }
        assert_eq!(BuiltIn::from_name("mars"), None);
    }

    #[test]
    fn easter_falls_on_the_known_sundays() {
        let known = [
            date(1818, 3, 22),
            date(1943, 4, 25),
            date(2000, 4, 23),
            date(2008, 3, 23),
            date(2024, 3, 31),
            date(2025, 4, 20),
            date(2026, 4, 5),
            date(2027, 3, 28),
            date(2028, 4, 16),
            date(2029, 4, 1),
            date(2030, 4, 21),
            date(2038, 4, 25),
            date(2285, 3, 22),
        ];
        for day in known {
            assert_eq!(easter(day.year()), Some(day));
        }
        for year in 1583..=9999 {
            let day = easter(year).unwrap();
            assert_eq!(day.weekday(), Weekday::Sunday, "{day}");
            assert!(date(year, 3, 22) <= day && day <= date(year, 4, 25), "{day}");
        }
    }

    #[test]
    fn us_federal_holidays_are_those_the_government_lists() {
        let known = [
            (2024, "01-01 01-15 02-19 05-27 06-19 07-04 09-02 10-14 11-11 11-28 12-25"),
            (2025, "01-01 01-20 02-17 05-26 06-19 07-04 09-01 10-13 11-11 11-27 12-25"),
            (2026, "01-01 01-19 02-16 05-25 06-19 07-03 09-07 10-12 11-11 11-26 12-25"),
            (2027, "01-01 01-18 02-15 05-31 06-18 07-05 09-06 10-11 11-11 11-25 12-24 12-31"),
            (2028, "01-17 02-21 05-29 06-19 07-04 09-04 10-09 11-10 11-23 12-25"),
            (2029, "01-01 01-15 02-19 05-28 06-19 07-04 09-03 10-08 11-12 11-22 12-25"),
            (2030, "01-01 01-21 02-18 05-27 06-19 07-04 09-02 10-14 11-11 11-28 12-25"),
        ];
        for (year, listed) in known {
            assert_eq!(days(BuiltIn::UsFederal, year), listed, "{year}");
        }
        assert_eq!(BuiltIn::UsFederal.on(date(2026, 11, 26)).unwrap(), "Thanksgiving Day");
        assert_eq!(BuiltIn::UsFederal.on(date(2026, 7, 3)).unwrap(), "Independence Day (observed)");
        assert_eq!(BuiltIn::UsFederal.on(date(2027, 12, 31)).unwrap(), "New Year's Day (observed)");
    }

    #[test]
    fn juneteenth_is_a_holiday_since_2021() {
        assert_eq!(BuiltIn::UsFederal.on(date(2020, 6, 19)), None);
        assert_eq!(
            BuiltIn::UsFederal.on(date(2021, 6, 18)).unwrap(),
            "Juneteenth National Independence Day (observed)"
        );
    }

    #[test]
    fn england_and_wales_has_the_bank_holidays_that_were_published() {
        let known = [
            (2020, "01-01 04-10 04-13 05-08 05-25 08-31 12-25 12-28"),
            (2021, "01-01 04-02 04-05 05-03 05-31 08-30 12-27 12-28"),
            (2022, "01-03 04-15 04-18 05-02 06-02 06-03 08-29 09-19 12-26 12-27"),
            (2023, "01-02 04-07 04-10 05-01 05-08 05-29 08-28 12-25 12-26"),
            (2024, "01-01 03-29 04-01 05-06 05-27 08-26 12-25 12-26"),
            (2025, "01-01 04-18 04-21 05-05 05-26 08-25 12-25 12-26"),
            (2026, "01-01 04-03 04-06 05-04 05-25 08-31 12-25 12-28"),
            (2027, "01-01 03-26 03-29 05-03 05-31 08-30 12-27 12-28"),
            (2028, "01-03 04-14 04-17 05-01 05-29 08-28 12-25 12-26"),
        ];
        for (year, listed) in known {
            assert_eq!(days(BuiltIn::EnglandWales, year), listed, "{year}");
        }
        let name = |m, d, y| BuiltIn::EnglandWales.on(date(y, m, d)).unwrap();
        assert_eq!(name(12, 27, 2027), "Christmas Day (substitute day)");
        assert_eq!(name(12, 28, 2027), "Boxing Day (substitute day)");
        assert_eq!(name(12, 26, 2022), "Boxing Day");
        assert_eq!(name(12, 27, 2022), "Christmas Day (substitute day)");
        assert_eq!(name(1, 3, 2028), "New Year's Day (substitute day)");
    }

    #[test]
    fn german_holidays_are_those_of_every_state() {
        let known = [
            (2024, "01-01 03-29 04-01 05-01 05-09 05-20 10-03 12-25 12-26"),
            (2025, "01-01 04-18 04-21 05-01 05-29 06-09 10-03 12-25 12-26"),
            (2026, "01-01 04-03 04-06 05-01 05-14 05-25 12-25"),
            (2027, "01-01 03-26 03-29 05-06 05-17"),
        ];
        for (year, listed) in known {
            assert_eq!(days(BuiltIn::DeFederal, year), listed, "{year}");
        }
        for year in 2018..2100 {
            // Ascension Day falls on 1 May now and then.
            let count = of(BuiltIn::DeFederal, year, true).len();
            assert!(count == 9 || count == 8 && easter(year) == Some(date(year, 3, 23)), "{year}: {count}");
        }
        assert_eq!(BuiltIn::DeFederal.on(date(2017, 10, 31)).unwrap(), "Reformationstag");
    }

    #[test]
    fn france_has_eleven_national_holidays() {
        let known = [
            (2024, "01-01 04-01 05-01 05-08 05-09 05-20 08-15 11-01 11-11 12-25"),
            (2026, "01-01 04-06 05-01 05-08 05-14 05-25 07-14 11-11 12-25"),
            (2027, "01-01 03-29 05-06 05-17 07-14 11-01 11-11"),
        ];
        for (year, listed) in known {
            assert_eq!(days(BuiltIn::Fr, year), listed, "{year}");
        }
        assert_eq!(of(BuiltIn::Fr, 2026, true).len(), 11);
        assert_eq!(BuiltIn::Fr.on(date(2026, 7, 14)).unwrap(), "Fête nationale");
    }

    #[test]
    fn the_ends_of_the_calendar_are_no_holidays_and_no_panic() {
        for calendar in BuiltIn::ALL {
            for day in [Date::MIN, Date::MAX] {
                let name = calendar.on(day);
                assert!(name.is_none() || day.month() == 1 || day.month() == 12, "{name:?}");
            }
        }
    }
}
