//! Names, dates, zones, calendars and sizes at their limits, which are taken, and past them, which are told.

use super::*;

const APP: &str = "[apps.a]\nmin_serving = 1\n";

fn chaos(keys: &str) -> String {
    format!("{BASE_ROOT}{WINDOWS}{APP}[apps.a.chaos]\nmean_workdays = 2\nmin_workdays = 1\n{keys}")
}

fn latency(keys: &str) -> String {
    format!("{BASE_ROOT}{WINDOWS}{APP}[apps.a.latency]\nmean_workdays = 2\nmin_workdays = 1\nto = [\"app:b\"]\n{keys}")
}

fn app(keys: &str) -> String {
    format!("{BASE_ROOT}{WINDOWS}{APP}{keys}")
}

fn root(keys: &str) -> String {
    format!("{BASE_ROOT}{keys}\n")
}

fn named(team: &str) -> String {
    format!("format = 1\nteam = \"{team}\"\ntimezone = \"UTC\"\n")
}

fn zone(zone: &str) -> String {
    format!("format = 1\nteam = \"shop\"\ntimezone = \"{zone}\"\n")
}

fn times(count: usize, text: &str) -> String {
    text.repeat(count)
}

#[test]
fn what_lies_at_a_limit_is_taken() {
    let dates: String = (0..5_000).map(|n| format!("2{:03}-01-{:02}\n,", n / 28 % 1_000, n % 28 + 1)).collect();
    for text in [
        named(&"x".repeat(128)),
        named("_a.b-c"),
        zone("europe/berlin"),
        zone("Antarctica/Troll"),
        root(&format!("owner = \"{}\"", "é".repeat(200))),
        root(&format!("notify = [{}]", (0..20).map(|n| format!("\"a:b{n}\",")).collect::<String>())),
        root("[holidays]\ncalendars = [\"us-federal\", \"england-wales\", \"de-federal\", \"fr\"]"),
        root("[holidays]\ndates = [\"0000-01-01\", \"9999-12-31\", \"2028-02-29\"]"),
        root(&format!("[holidays]\ndates = [{dates}]")),
        root(&format!("[holidays]\nfiles = [{}]", (0..50).map(|n| format!("\"{n}.ics\",")).collect::<String>())),
        root("[[blackouts]]\nfrom = \"0000-01-01\"\nuntil = \"9999-12-31T23:59\"\nreason = \"never\""),
        root(&format!(
            "[[blackouts]]\nfrom = \"2026-01-01\"\nuntil = \"2026-01-01T00:01\"\nreason = \"{}\"",
            "r".repeat(500)
        )),
        root(&times(50, WINDOWS)),
        root(&times(1_000, "[[blackouts]]\nfrom = \"2026-01-01\"\nuntil = \"2026-01-02\"\nreason = \"r\"\n")),
        root("[caps]\nkills_per_day = 100_000\nunhealed_at_once = 100_000"),
        root("[[windows]]\ndays = [\"mon\"]\nopen = \"00:00\"\nclose = \"23:59\""),
        root("[[windows]]\ndays = [\"mon\"]\nopen = \"23:59\"\nclose = \"00:00\""),
        root(&format!("[apps.{}]\nmin_serving = 1", "x".repeat(96))),
        root(&(0..1_000).map(|n| format!("[apps.a{n}]\n")).collect::<String>()),
        app("heals_within = \"1s\"\n"),
        app("heals_within = \"1d\"\n"),
        app("heals_within = \"86400000ms\"\n"),
        chaos("kill = \"drain\"\ndrain = \"0s\"\n"),
        chaos("kill = \"drain\"\ndrain = \"1h\"\n"),
        latency("delay = \"1ms\"\nlasts = \"1s\"\n"),
        latency("delay = { from = \"1ms\", to = \"30s\" }\nlasts = \"8h\"\nloss = \"100%\"\ninstances = 1000\n"),
    ] {
        good(&text);
    }
    let padding = FILE_BYTES_MAX - BASE_ROOT.len() - 2;
    let largest = format!("{BASE_ROOT}# {}", "x".repeat(padding));
    assert_eq!((largest.len(), good(&largest).apps.len()), (FILE_BYTES_MAX, 0));
}

/// Each text is one step past a limit; the snapshot holds everything that is then told.
fn refused(rows: &[(&str, String)]) -> String {
    let mut told = String::new();
    for (what, text) in rows {
        let Err(found) = parse_policy("policies/shop.toml", text) else { panic!("{what} was taken") };
        assert!(found.iter().all(|d| d.hint.is_some()), "{what} has no hint: {found:?}");
        told += &format!("### {what}\n{}\n\n", rendered(&found, text));
    }
    told
}

#[test]
fn names_past_their_limits_are_told() {
    insta::assert_snapshot!(refused(&[
        ("a team's name of 129 characters", named(&"x".repeat(129))),
        ("a team's name that leads upwards", named("../shop")),
        ("a team's name with an umlaut", named("käse")),
        ("a team's name with a control character", named("a\\u0000b")),
        ("a team's name that turns the direction of reading", named("a\\u202Eb")),
        ("an owner of 201 characters", root(&format!("owner = \"{}\"", "é".repeat(201)))),
        ("an owner over two lines", root("owner = \"\"\"a\nb\"\"\"")),
        ("an app's name of 97 characters", root(&format!("[apps.{}]", "x".repeat(97)))),
        ("an app without a name", root("[apps.\"\"]")),
        ("an app's name with a blank", root("[apps.\"a b\"]")),
        ("an app that is a text", root("apps = { a = \"b\" }")),
        (
            "a stack of 97 characters",
            app(&format!(
                "[[apps.a.exceptions]]\naccount = \"*\"\nregion = \"*\"\nstack = \"{}\"\ndetail = \"*\"\nreason = \"r\"\n",
                "x".repeat(97)
            ))
        ),
        (
            "a detail that looks like a push",
            app(
                "[[apps.a.exceptions]]\naccount = \"*\"\nregion = \"*\"\nstack = \"*\"\ndetail = \"v001\"\nreason = \"r\"\n"
            )
        ),
        (
            "an account with a stroke",
            app(
                "[[apps.a.exceptions]]\naccount = \"a|b\"\nregion = \"*\"\nstack = \"*\"\ndetail = \"*\"\nreason = \"r\"\n"
            )
        ),
        ("a suffix with a blank", app("never_suffixes = [\"- canary\"]\n")),
        (
            "a reason of 501 characters",
            root(&format!(
                "[[blackouts]]\nfrom = \"2026-01-01\"\nuntil = \"2026-01-02\"\nreason = \"{}\"",
                "r".repeat(501)
            ))
        ),
        ("a hold signal with a password", app("hold_while = [\"http://user:word@h/\"]\n")),
        ("a hold signal by ftp", app("hold_while = [\"ftp://h/\"]\n")),
    ]));
}

#[test]
fn dates_zones_and_calendars_past_their_limits_are_told() {
    let dates = |date: &str| root(&format!("[holidays]\ndates = [\"{date}\"]"));
    let files = |file: &str| root(&format!("[holidays]\nfiles = [\"{file}\"]"));
    let until = |until: &str| root(&format!("[[blackouts]]\nfrom = \"2026-01-01\"\nuntil = {until}\nreason = \"r\""));
    let many: String = (0..51).map(|n| format!("\"{n}.ics\",\n")).collect();
    insta::assert_snapshot!(refused(&[
        ("29 February of another year", dates("2026-02-29")),
        ("31 April", dates("2026-04-31")),
        ("the month 0", dates("2026-00-10")),
        ("a year of five digits", dates("10000-01-01")),
        ("a date as Americans write it", dates("12/25/2026")),
        ("a week", dates("2026-W52")),
        ("a date of TOML with a time", root("[holidays]\ndates = [2026-12-25T10:00:00]")),
        ("a date that TOML does not know", root("[holidays]\ndates = [2026-02-30]")),
        ("the hour 24", until("\"2026-01-02T24:00\"")),
        ("seconds", until("\"2026-01-02T10:00:30\"")),
        ("an offset of TOML", until("2026-01-02T10:00:00+01:00")),
        ("an end before the beginning", until("\"2025-12-31\"")),
        ("no zone", zone("")),
        ("a zone by its offset", zone("UTC+2")),
        ("a zone by its abbreviation", zone("PST")),
        ("a zone of POSIX", zone("EST5EDT,M3.2.0,M11.1.0")),
        ("a zone that is a path", zone("../../etc/passwd")),
        ("the host's zone", zone("localtime")),
        ("a calendar of another country", root("[holidays]\ncalendars = [\"at-federal\"]")),
        ("a calendar that is a path", root("[holidays]\ncalendars = [\"holidays/company.ics\"]")),
        ("a calendar file outside of the folder", files("../company.ics")),
        ("a calendar file by an absolute path", files("/etc/company.ics")),
        ("a calendar file by a detour", files("a/../../company.ics")),
        ("a calendar file twice", root("[holidays]\nfiles = [\"a.ics\", \"a.ics\"]")),
        ("a calendar file that is another", files("company.ical")),
        ("51 calendar files", root(&format!("[holidays]\nfiles = [\n{many}]"))),
    ]));
}

#[test]
fn sizes_past_their_limits_are_told() {
    let hour = "[[windows]]\ndays = [\"mon\"]\nopen = \"10:00\"\nclose = ";
    let dates: String = (0..5_001).map(|n| format!("\"2{:03}-01-{:02}\",\n", n / 28, n % 28 + 1)).collect();
    insta::assert_snapshot!(refused(&[
        ("1,001 apps", root(&(0..1_001).map(|n| format!("[apps.a{n}]\n")).collect::<String>())),
        ("51 windows", root(&times(51, WINDOWS))),
        (
            "1,001 blackouts",
            root(&times(1_001, "[[blackouts]]\nfrom = \"2026-01-01\"\nuntil = \"2026-01-02\"\nreason = \"r\"\n"))
        ),
        ("5,001 dates", root(&format!("[holidays]\ndates = [\n{dates}]"))),
        ("21 channels", root(&format!("notify = [{}]", (0..21).map(|n| format!("\"a:b{n}\", ")).collect::<String>()))),
        ("a number past what can be counted", root("[caps]\nkills_per_day = 100_001")),
        ("a number past 64 bits", root("[caps]\nkills_per_day = 9223372036854775808")),
        ("a number in another form", root("[caps]\nkills_per_day = 0x1_0000_0000")),
        ("a number that begins with 0", root("[caps]\nkills_per_day = 010")),
        ("infinity", root("[caps]\nkills_per_day = inf")),
        ("no number", root("[caps]\nkills_per_day = nan")),
        ("a window of a day and more", root(&format!("{hour}\"34:00\""))),
        ("healed in no time", app("heals_within = \"999ms\"\n")),
        ("healed the day after", app("heals_within = \"1d 1s\"\n")),
        ("a duration past 64 bits", app("heals_within = \"99999999999999999999s\"\n")),
        ("a duration past what milliseconds count", app("heals_within = \"9999999999999999d\"\n")),
        ("a negative duration", app("heals_within = \"-5m\"\n")),
        ("a duration with a fraction", app("heals_within = \"1.5h\"\n")),
        ("a drain of more than an hour", chaos("kill = \"drain\"\ndrain = \"1h 1s\"\n")),
        ("a delay of less than a millisecond", latency("delay = \"0ms\"\nlasts = \"1m\"\n")),
        ("a delay of more than 30 s", latency("delay = \"30001ms\"\nlasts = \"1m\"\n")),
        ("a latency of more than a working day", latency("delay = \"1s\"\nlasts = \"8h 1s\"\n")),
        ("no loss", latency("delay = \"1s\"\nlasts = \"1m\"\nloss = \"0%\"\n")),
        ("a loss of more than all", latency("delay = \"1s\"\nlasts = \"1m\"\nloss = \"100.1%\"\n")),
        ("a mean of 10,001 workdays", chaos("").replace("mean_workdays = 2", "mean_workdays = 10001")),
        ("1,001 instances", latency("delay = \"1s\"\nlasts = \"1m\"\ninstances = 1001\n")),
        ("a file of more than 1 MiB", format!("{BASE_ROOT}# {}", "x".repeat(FILE_BYTES_MAX))),
        ("nesting", format!("{BASE_ROOT}x = {}{}\n", "[".repeat(100), "]".repeat(100))),
        ("tables in tables", format!("{BASE_ROOT}[a{}]\n", ".a".repeat(100))),
    ]));
}

#[test]
fn files_of_other_systems_and_no_text_are_told() {
    insta::assert_snapshot!(refused(&[
        ("line ends of old Macs", named("shop").replace('\n', "\r")),
        ("a byte order mark within", format!("format = 1\n\u{feff}{}", named("shop"))),
        ("a zero byte", root("owner = \"a\"\n\0")),
        ("JSON", "{ \"format\": 1, \"team\": \"shop\" }\n".to_owned()),
        ("YAML", "format: 1\nteam: shop\n".to_owned()),
        ("INI", "[team]\nname=shop\n".to_owned()),
        ("quotes of a word processor", "format = 1\nteam = “shop”\n".to_owned()),
        ("a conflict of git", format!("<<<<<<< HEAD\n{}=======\n", named("shop"))),
        ("nothing", String::new()),
        ("a backslash", root("owner = \"C:\\path\"")),
    ]));
}
