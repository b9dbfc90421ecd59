//! Good files, bad files, and files nobody would write.

mod any;
mod docs;
mod limits;

use super::*;
use crate::names::AppName;
use crate::policy::{ChannelKind, DnsFault, Grouping, KillStyle, NameTags, NoNotice, RegionSettings};

const SHOP: &str = include_str!("../../examples/shop.toml");
const SITE: &str = r#"site = "acme"
leashed = true
policies = "/etc/troop/policies"
[caps]
kills_per_day = 20
acts_per_hour = 4
unhealed_per_account = 2
unhealed_per_zone = 1
[registry]
lease = "90s"
url = "http://eureka.internal:8761"
[aws]
endpoint = "http://127.0.0.1:5000"
name_tags = { app = "app", stack = "env", detail = "role" }
[[accounts]]
name = "prod"
role = "arn:aws:iam::123456789012:role/troop-read"
regions = ["us-east-1", "eu-west-1"]
[accounts.region.eu-west-1]
load_balancers = ["arn:aws:elasticloadbalancing:eu-west-1:123456789012:loadbalancer/app/web/50dc6c495c0c9188"]
[accounts.region.eu-west-1.first]
launch_template = "lt-0a1b"
subnets = ["subnet-1", "subnet-2"]
port = 8080
health_path = "/health"
grace = "2m"
[listeners]
balancer = "127.0.0.1:8080"
[agents]
listen = "0.0.0.0:7443"
certificate_file = "agents.pem"
key_file = "agents.key"
[signals]
alertmanager = "https://alerts.example.com"
ca_file = "ca.pem"
hold_while = ["alertmanager:severity=page"]
[channels.slack]
kind = "slack"
url_file = "slack.url"
[channels.desk]
kind = "webhook"
url_file = "desk.url"
secret_file = "desk.secret"
[aws.identity_certs]
us-east-1 = "us-east-1.pem"
"#;

const BASE_ROOT: &str = "format = 1\nteam = \"shop\"\ntimezone = \"UTC\"\n";
const WINDOWS: &str = "[[windows]]\ndays = [\"mon\"]\nopen = \"10:00\"\nclose = \"12:00\"\n";

fn good(text: &str) -> Policy {
    match parse_policy("policies/shop.toml", text) {
        Ok((policy, _)) => policy,
        Err(found) => panic!("{}", rendered(&found, text)),
    }
}

fn rendered(found: &[Diagnostic], text: &str) -> String {
    found.iter().map(|d| d.render(text)).collect::<Vec<_>>().join("\n")
}

/// The text with one thing changed; the change must be possible exactly once.
fn with(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "`{old}` stands not once in the text");
    text.replace(old, new)
}

#[test]
fn reads_every_key_of_the_full_example() {
    let policy = good(SHOP);
    assert_eq!((policy.team.as_str(), policy.time_zone_name.as_str()), ("shop", "America/New_York"));
    let told = policy.notify.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((told, policy.no_notice), (vec!["slack:shop-chaos".to_owned()], NoNotice::Act));
    assert_eq!(policy.windows[0].days.len(), 4);
    assert_eq!(policy.windows[0].close, jiff::civil::time(16, 0, 0, 0));
    assert_eq!(policy.holidays.dates.len(), 2);
    assert_eq!(policy.blackouts[0].from, jiff::civil::date(2026, 11, 25).at(12, 0, 0, 0));
    assert_eq!(policy.caps.kills_per_day, Some(3));
    let app = &policy.apps[&AppName::new("checkout").unwrap()];
    assert_eq!((app.grouping, app.min_serving, app.regions_independent), (Grouping::Cluster, 4, true));
    assert_eq!(app.heals_within, std::time::Duration::from_secs(300));
    let chaos = app.chaos.as_ref().unwrap();
    assert!(!chaos.leashed && !chaos.during_push && chaos.kill == KillStyle::Crash);
    assert_eq!((chaos.rate.mean_workdays, chaos.rate.min_workdays), (5, 2));
    let latency = app.latency.as_ref().unwrap();
    assert!(latency.leashed, "the file's leash is inherited");
    assert_eq!(latency.delay.1, std::time::Duration::from_millis(300));
    assert_eq!(latency.abort_when.unwrap().errors_above_percent, 2.0);
    assert_eq!(app.exceptions[0].stack, "pci");
    assert_eq!(app.drills[0].cron, "30 10 1-7 * tue");
}

#[test]
fn places_point_at_the_lines_that_operators_look_for() {
    let policy = good(SHOP);
    let line = |needle: &str| SHOP.lines().position(|l| l.starts_with(needle)).unwrap() + 1;
    let app = &policy.apps[&AppName::new("checkout").unwrap()];
    assert_eq!(app.place.to_string(), format!("shop.toml:{}", line("[apps.checkout]")));
    assert_eq!(app.chaos.as_ref().unwrap().place.line, line("[apps.checkout.chaos]"));
    assert_eq!(app.latency.as_ref().unwrap().place.line, line("[apps.checkout.latency]"));
    assert_eq!(app.exceptions[0].place.line, line("[[apps.checkout.exceptions]]"));
    assert_eq!(app.drills[0].place.line, line("[[apps.checkout.drills]]"));
    assert_eq!(policy.blackouts[0].place.line, line("[[blackouts]]"));
}

#[test]
fn places_are_right_in_tables_without_headers_too() {
    let text = "format = 1\nteam = \"t\"\ntimezone = \"UTC\"\nwindows = [{ days = [\"mon\"], open = \"10:00\", close = \"11:00\" }]\n[apps]\na.min_serving = 1\na.chaos.mean_workdays = 2\na.chaos.min_workdays = 1\nb = { min_serving = 1, chaos = { mean_workdays = 2, min_workdays = 1 } }\n[apps.c.chaos]\nmean_workdays = 2\nmin_workdays = 1\n[apps.c]\nmin_serving = 1\n";
    let policy = good(text);
    let lines: Vec<_> = policy.apps.values().map(|a| (a.place.line, a.chaos.as_ref().unwrap().place.line)).collect();
    assert_eq!(lines, [(6, 7), (9, 9), (13, 10)]);
}

#[test]
fn the_full_example_warns_of_nothing() {
    let (_, warnings) = parse_policy("policies/shop.toml", SHOP).unwrap();
    assert!(warnings.is_empty(), "{}", rendered(&warnings, SHOP));
}

#[test]
fn times_may_be_written_as_toml_writes_them() {
    let text = with(SHOP, "open  = \"10:00\"", "open = 10:00:00");
    let text = with(&text, "[\"2026-12-23\", \"2026-12-24\"]", "[2026-12-23, 2026-12-24]");
    let text = with(&text, "\"2026-11-25T12:00\"", "2026-11-25T12:00:00");
    let text = with(&text, "\"2026-12-01T00:00\"", "2026-12-01");
    assert_eq!(good(&text).blackouts, good(SHOP).blackouts);
    assert_eq!(good(&text).windows, good(SHOP).windows);
    assert_eq!(good(&text).holidays, good(SHOP).holidays);
}

#[test]
fn the_nearest_leash_holds_and_nothing_said_means_leashed() {
    let leashed = |file: &str, app: &str, monkey: &str| {
        let text = format!(
            "{BASE_ROOT}{file}{WINDOWS}[apps.a]\nmin_serving = 1\n{app}[apps.a.chaos]\n{monkey}mean_workdays = 2\nmin_workdays = 1\n"
        );
        good(&text).apps.values().next().unwrap().chaos.as_ref().unwrap().leashed
    };
    let (on, off) = ("leashed = true\n", "leashed = false\n");
    assert!(leashed("", "", ""));
    assert!(!leashed(off, "", "") && !leashed(on, off, "") && !leashed(on, on, off) && !leashed("", "", off));
    assert!(leashed(off, on, "") && leashed(off, off, on) && leashed(off, "", on));
}

#[test]
fn one_value_stands_for_a_range_of_itself() {
    let text = with(
        SHOP,
        "{ from = \"50ms\", to = \"300ms\" }",
        "\"250ms\"\njitter = \"10ms\"\nloss = { from = \"0.5%\", to = \"2%\" }",
    );
    let policy = good(&text);
    let latency = policy.apps.values().next().unwrap().latency.as_ref().unwrap();
    let ms = std::time::Duration::from_millis;
    assert_eq!((latency.delay, latency.jitter), ((ms(250), ms(250)), Some((ms(10), ms(10)))));
    assert_eq!(latency.loss_percent, Some((0.5, 2.0)));
}

#[test]
fn a_menu_names_peers_of_every_kind_whose_packets_and_what_may_befall_names() {
    let kinds =
        "[\"app:payments\", \"host:db.local\", \"10.0.0.0/24\"]\nof = \"unit:web.service\"\ndns = [\"slow\", \"fail\"]";
    let policy = good(&with(SHOP, "[\"app:payments\"]", kinds));
    let latency = policy.apps.values().next().unwrap().latency.as_ref().unwrap();
    assert_eq!(latency.to, ["app:payments", "host:db.local", "10.0.0.0/24"]);
    assert_eq!(latency.of, Some("unit:web.service".parse().unwrap()));
    assert_eq!(latency.dns, [DnsFault::Slow, DnsFault::Fail]);
    for bad in [
        "[\"everything\"]",
        "[\"10.0.0.7/32\"]",
        "[\"app:payments\"]\nof = \"web.service\"",
        "[\"app:payments\"]\nof = \"process:4711\"",
        "[\"app:payments\"]\ndns = [\"explode\"]",
    ] {
        let found = parse_policy("policies/shop.toml", &with(SHOP, "[\"app:payments\"]", bad)).unwrap_err();
        assert!(found.iter().all(|d| d.severity == Severity::Error && d.hint.is_some()), "{bad}: {found:?}");
    }
}

/// Each row changes one thing of the full example; the snapshot holds everything that is then told.
fn bad_policies(rows: &[(&str, &str)]) -> String {
    let mut told = String::new();
    for (old, new) in rows {
        let text = with(SHOP, old, new);
        let Err(found) = parse_policy("policies/shop.toml", &text) else { panic!("`{new}` was taken") };
        assert!(found.iter().all(|d| d.severity == Severity::Error && d.hint.is_some()), "{found:?}");
        told += &format!(
            "### {old} -> {}\n{}\n\n",
            if new.is_empty() { "(nothing)" } else { new },
            rendered(&found, &text)
        );
    }
    told
}

#[test]
fn unknown_keys_are_errors_with_the_key_that_was_meant() {
    insta::assert_snapshot!(bad_policies(&[
        ("min_workdays  = 2", "min_workday   = 2"),
        ("leashed       = false", "leash         = false"),
        ("team     = \"shop\"", "team = \"shop\"\nteams = [\"shop\"]"),
        ("heals_within        = \"5m\"", "heals_in = \"5m\""),
        ("[apps.checkout.latency]", "[apps.checkout.latncy]"),
        ("[[blackouts]]", "[[blackout]]"),
        ("kills_per_day    = 3", "max = 3"),
        ("grouping            = \"cluster\"", "kills_per_day = 3"),
        ("during_push   = false", "min_serving = 4"),
        ("region  = \"*\"", "regin  = \"*\""),
        ("{ from = \"50ms\", to = \"300ms\" }", "{ from = \"50ms\", upto = \"300ms\" }"),
        ("kill          = \"crash\"", "zzz = \"crash\""),
    ]));
}

#[test]
fn wrong_types_are_errors_with_what_to_type_instead() {
    insta::assert_snapshot!(bad_policies(&[
        ("leashed       = false", "leashed       = \"yes\""),
        ("leashed       = false", "leashed       = \"false\""),
        ("leashed       = false", "leashed       = 0"),
        ("leashed       = false", "leashed       = \"sure\""),
        ("min_serving         = 4", "min_serving = \"4\""),
        ("min_serving         = 4", "min_serving = 4.5"),
        ("min_serving         = 4", "min_serving = \"four\""),
        ("heals_within        = \"5m\"", "heals_within = 300"),
        ("errors_above = \"2%\"", "errors_above = 2"),
        ("days  = [\"mon\", \"tue\", \"wed\", \"thu\"]", "days = \"mon\""),
        ("[[windows]]", "[windows]"),
        ("[holidays]", "[[holidays]]"),
        ("team     = \"shop\"", "team = 7"),
        ("owner    = \"shop-oncall@example.com\"", "owner = [\"a\", \"b\"]"),
        ("{ from = \"50ms\", to = \"300ms\" }", "50"),
        ("open  = \"10:00\"", "open = 10"),
        ("timezone = \"America/New_York\"", "timezone = -5"),
    ]));
}

#[test]
fn impossible_values_are_errors() {
    insta::assert_snapshot!(bad_policies(&[
        ("format   = 1", "format = 2"),
        ("mean_workdays = 5 ", "mean_workdays = 1 "),
        ("min_workdays  = 2", "min_workdays  = 0"),
        ("min_workdays  = 2", "min_workdays  = -1"),
        ("mean_workdays = 5 ", "mean_workdays = 99999999999999999999 "),
        ("min_serving         = 4", "min_serving = 0"),
        ("close = \"16:00\"", "close = \"10:00\""),
        ("close = \"16:00\"", "close = \"24:00\""),
        ("close = \"16:00\"", "close = \"25:10\""),
        ("open  = \"10:00\"", "open  = \"9:00\""),
        ("open  = \"10:00\"", "open  = \"10am\""),
        ("\"America/New_York\"", "\"America/New_Yrok\""),
        ("\"America/New_York\"", "\"New York\""),
        ("\"America/New_York\"", "\"Etc/Unknown\""),
        ("\"mon\", \"tue\"", "\"Mon\", \"tues\""),
        ("\"mon\", \"tue\"", "\"mon\", \"mon\""),
        ("days  = [\"mon\", \"tue\", \"wed\", \"thu\"]", "days = []"),
        ("\"us-federal\"", "\"us-federl\""),
        ("\"us-federal\"", "\"uk\""),
        ("\"2026-12-23\"", "\"2026-02-30\""),
        ("\"2026-12-23\"", "\"23.12.2026\""),
        ("\"holidays/company.ics\"", "\"holidays.xlsx\""),
        ("until  = \"2026-12-01T00:00\"", "until  = \"2026-11-25T12:00\""),
        ("\"2026-11-25T12:00\"", "\"2026-11-25T12:00-05:00\""),
        ("reason = \"Thanksgiving to Cyber Monday\"", "reason = \"\""),
        ("kills_per_day    = 3", "kills_per_day = 0"),
        ("heals_within        = \"5m\"", "heals_within = \"5\""),
        ("heals_within        = \"5m\"", "heals_within = \"5 minutes\""),
        ("heals_within        = \"5m\"", "heals_within = \"0s\""),
        ("kill          = \"crash\"", "kill = \"crsh\""),
        ("grouping            = \"cluster\"", "grouping = \"region\""),
        ("{ from = \"50ms\", to = \"300ms\" }", "{ from = \"300ms\", to = \"50ms\" }"),
        ("{ from = \"50ms\", to = \"300ms\" }", "{ from = \"50ms\" }"),
        ("{ from = \"50ms\", to = \"300ms\" }", "\"2m\""),
        ("errors_above = \"2%\"", "errors_above = \"100%\""),
        ("errors_above = \"2%\"", "errors_above = \"0.02\""),
        ("\"30 10 1-7 * tue\"", "\"30 10 * * 2\""),
        ("\"30 10 1-7 * tue\"", "\"@daily\""),
        ("monkey = \"chaos\"", "monkey = \"gorilla\""),
    ]));
}

#[test]
fn names_and_patterns_that_could_never_match_are_errors() {
    insta::assert_snapshot!(bad_policies(&[
        ("team     = \"shop\"", "team = \"sh|op\""),
        ("team     = \"shop\"", "team = \"\""),
        ("owner    = \"shop-oncall@example.com\"", "owner = \"a\\u001b[31mb\""),
        ("\"slack:shop-chaos\"", "\"#shop-chaos\""),
        ("\"slack:shop-chaos\"", "\"slack:shop-chaos\", \"slack:shop-chaos\""),
        ("notify   = [\"slack:shop-chaos\"] ", "no_notice = \"spare\" "),
        ("leashed  = true ", "no_notice = \"wait\"\nleashed  = true "),
        ("\"-canary\"", "\"*-canary\""),
        ("\"-canary\"", "\"\""),
        ("\"-canary\"", "\"-canary-v001\""),
        ("stack   = \"pci\"", "stack   = \"pci*\""),
        ("stack   = \"pci\"", "stack   = \"pci-prod\""),
        ("stack   = \"pci\"\n", ""),
        ("account = \"*\"", "account = \"\""),
        ("\"alertmanager:team=shop,severity=page\"", "\"paging\""),
        ("\"app:payments\"", "\"payments\""),
        ("to            = [\"app:payments\"]        #", "#"),
    ]));
}

#[test]
fn what_a_monkey_needs_is_asked_for_where_it_is_named() {
    insta::assert_snapshot!(bad_policies(&[
        ("min_serving         = 4", "# min_serving"),
        ("min_serving         = 4", "min_servng = 4"),
        ("[[windows]]", "[[window]]"),
        (
            "[[windows]]                             # a workday is a day on which a window opens and that is no holiday\ndays  = [\"mon\", \"tue\", \"wed\", \"thu\"]\nopen  = \"10:00\"\nclose = \"16:00\" ",
            "# "
        ),
        ("format   = 1", ""),
        ("timezone = \"America/New_York\"", ""),
        ("mean_workdays = 10\n", ""),
        (
            "monkey = \"chaos\"\n",
            "monkey = \"chaos\"\n[apps.other]\nmin_serving = 1\n[[apps.other.drills]]\ncron = \"0 10 * * mon\"\nmonkey = \"chaos\"\n"
        ),
        ("\n[apps.checkout]\n", "\n[apps.check-out]\nmin_serving = 1\n[apps.checkout]\n"),
    ]));
}

#[test]
fn a_bad_cron_line_is_told_with_what_to_write_instead() {
    let cron = |line: &str| format!("cron   = \"{line}\"");
    let bad = ["30 10 * * 2", "* 10 * * tue", "0 10 31 feb,apr *", "30 10 * tue", "30 25 * * tue", "5/10 10 * * tue"]
        .map(cron);
    let good = cron("30 10 1-7 * tue");
    insta::assert_snapshot!(bad_policies(&bad.each_ref().map(|bad| (good.as_str(), bad.as_str()))));
}

#[test]
fn syntax_errors_are_told_together_and_without_what_follows_from_them() {
    insta::assert_snapshot!(bad_policies(&[
        ("team     = \"shop\"", "team = shop"),
        ("team     = \"shop\"", "team = \"shop"),
        ("[holidays]", "[holidays"),
        ("[caps] ", "leashed = true\nopen = \"11:00\"\n[caps] "),
        ("kills_per_day    = 3", "kills_per_day = "),
        ("min_serving         = 4", "min_serving = 4\nmin_serving = 5"),
        ("[apps.checkout.chaos]", "[apps.checkout.chaos]\nmin_workday = \nleashed = \"no\"\n= 3"),
    ]));
}

#[test]
fn every_mistake_of_a_file_is_told_at_once() {
    let text = "format = 1\nteam = \"sh|op\"\ntimezone = \"Mars\"\nleash = true\n[[windows]]\ndays = [\"mon\", \"tag\"]\nopen = \"10:00\"\nclose = 16\n[apps.checkout]\nmin_serving = 0\n[apps.checkout.chaos]\nleashed = \"yes\"\nmean_workdays = 1\nmin_workdays = 2\n";
    insta::assert_snapshot!(rendered(&parse_policy("shop.toml", text).unwrap_err(), text));
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let text = format!("# {}", "x".repeat(FILE_BYTES_MAX));
    let found = parse_policy("big.toml", &text).unwrap_err();
    assert_eq!(found[0].message, "the file has 1048578 bytes; 1048576 is the most");
    assert_eq!(team_of(&text), None);
    let many: String = (0..1001).map(|i| format!("[apps.a{i}]\n")).collect();
    let found = parse_policy("many.toml", &format!("{BASE_ROOT}{many}")).unwrap_err();
    assert_eq!(found[0].message, "`[apps]` holds 1001 entries; 1000 is the most");
}

#[test]
fn nesting_of_any_depth_is_an_error_and_no_overflow() {
    let keys = "a.".repeat(200_000) + "a";
    let tables = "x = ".to_owned() + &"{ a = ".repeat(50_000) + "1" + &" }".repeat(50_000);
    let lists = "x = ".to_owned() + &"[".repeat(200_000) + &"]".repeat(200_000);
    for deep in [
        format!("{keys} = 1\n"),
        format!("[{keys}]\nb = 1\n"),
        format!("[[{keys}]]\nb = 1\n"),
        tables,
        lists,
        "[".repeat(200_000),
        "x = [[[[".repeat(50_000),
    ] {
        let found = parse_policy("deep.toml", &deep).unwrap_err();
        assert!(!found.is_empty() && found.iter().all(|d| d.render(&deep).len() < 5_000));
        assert_eq!(team_of(&deep), None);
    }
}

#[test]
fn a_file_of_nothing_but_mistakes_is_told_within_bounds() {
    let text = "= \n".repeat(300_000);
    let found = parse_policy("noise.toml", &text).unwrap_err();
    assert_eq!(found.len(), DIAGNOSTICS_MAX);
    assert!(found.iter().all(|d| d.render(&text).len() < 2_000));
    let pairs: String = (0..70_000).map(|i| format!("a{i} = 1, ")).collect();
    let text = format!("caps = {{ {pairs} }}\n");
    let found = parse_policy("line.toml", &text).unwrap_err();
    assert_eq!(found.len(), DIAGNOSTICS_MAX);
    assert!(found.iter().all(|d| d.render(&text).len() < 2_000), "a line of a megabyte is not shown");
}

#[test]
fn files_of_other_systems_are_read_alike() {
    let there = good(SHOP);
    assert_eq!(good(&SHOP.replace('\n', "\r\n")), there);
    assert_eq!(good(&format!("\u{feff}{SHOP}")), there);
}

#[test]
fn bytes_that_are_no_text_are_told_with_their_place() {
    let bytes = b"team = \"shop\"\nowner = \"caf\xe9\"\n";
    let found = text_of("shop.toml", bytes).unwrap_err();
    assert_eq!((found[0].line, found[0].column), (2, 13));
    insta::assert_snapshot!(rendered(&found, &String::from_utf8_lossy(bytes)));
    assert_eq!(text_of("shop.toml", SHOP.as_bytes()), Ok(SHOP));
    assert!(text_of("big.toml", &[b'#'; FILE_BYTES_MAX + 1]).is_err());
}

#[test]
fn a_bad_file_still_says_whose_it_is() {
    assert_eq!(team_of("team = \"shop\"\nleash = = 3").unwrap().as_str(), "shop");
    assert_eq!(team_of("team = 3"), None);
    assert_eq!(team_of("\u{0}"), None);
}

#[test]
fn two_files_for_one_app_or_one_team_are_refused_both() {
    let file = |name: &str, team: &str, apps: &[&str]| {
        let apps: String = apps.iter().map(|a| format!("[apps.{a}]\nmin_serving = 1\n")).collect();
        let text = format!("format = 1\nteam = \"{team}\"\ntimezone = \"UTC\"\n{WINDOWS}{apps}");
        parse_policy(name, &text).unwrap().0
    };
    let mut policies = [
        file("a.toml", "one", &["x", "y"]),
        file("b.toml", "two", &["y"]),
        file("c.toml", "three", &["z"]),
        file("d.toml", "three", &["w"]),
    ];
    let reasons = conflicts(&mut policies);
    let refused = |p: &Policy, app: &str| p.apps[&AppName::new(app).unwrap()].refused.clone();
    let both =
        Some("app `y` is claimed by 2 policy files, at a.toml:10 and b.toml:8: none of them counts for it".to_owned());
    assert_eq!(refused(&policies[0], "y"), both);
    assert_eq!(refused(&policies[1], "y"), both);
    assert_eq!(refused(&policies[0], "x"), None);
    let team = Some(
        "team `three` is claimed by 2 policy files, at c.toml:2 and d.toml:2: none of them counts for it".to_owned(),
    );
    assert_eq!((refused(&policies[2], "z"), refused(&policies[3], "w")), (team.clone(), team));
    assert_eq!(reasons.len(), 2);
    spare_team(&mut policies, &TeamName::new("one").unwrap(), "bad.toml");
    assert!(refused(&policies[0], "x").is_some_and(|why| why.contains("bad.toml")));
    assert!(refused(&policies[1], "y").is_some_and(|why| !why.contains("bad.toml")), "other teams are not affected");
    conflicts(&mut policies[..1]);
    assert_eq!(refused(&policies[0], "y"), None, "a conflict that is repaired is gone");
}

#[test]
fn the_template_parses_leashed_and_opts_nothing_in() {
    let team = TeamName::new("shop").unwrap();
    let text = template(&team);
    let (policy, warnings) = parse_policy("shop.toml", &text).unwrap();
    assert_eq!((policy.team, policy.apps.len()), (team, 0));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].message.contains("names no app"));
    // And what it shows in comments is right when it is taken in.
    let uncommented: String = text
        .lines()
        .map(|l| {
            l.strip_prefix("# ")
                .filter(|l| l.starts_with('[') || l.split_once('=').is_some_and(|(k, _)| !k.trim().contains(' ')))
                .unwrap_or(l)
                .to_owned()
                + "\n"
        })
        .collect();
    assert_ne!(uncommented, text);
    let (policy, warnings) =
        parse_policy("shop.toml", &uncommented).unwrap_or_else(|found| panic!("{}", rendered(&found, &uncommented)));
    assert!(policy.apps.values().all(|a| a.chaos.as_ref().unwrap().leashed) && policy.apps.len() == 1);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn reads_every_key_of_the_site_file() {
    let (site, warnings) = parse_site("troop.toml", SITE).unwrap_or_else(|found| panic!("{}", rendered(&found, SITE)));
    assert_eq!((site.name.as_str(), site.leashed), ("acme", true));
    assert_eq!(site.caps.kills_per_day, Some(20));
    assert_eq!(site.registry_lease.as_secs(), 90);
    assert_eq!((site.caps.acts_per_hour, site.caps.unhealed_per_account), (Some(4), Some(2)));
    assert_eq!(site.registry_url.as_deref(), Some("http://eureka.internal:8761"));
    assert_eq!(site.aws.endpoint.as_deref(), Some("http://127.0.0.1:5000"));
    let regions: Vec<_> = site.accounts[0].regions.iter().map(|(name, told)| (name.as_str(), told)).collect();
    assert_eq!(regions[1], ("us-east-1", &RegionSettings::default()));
    let ("eu-west-1", RegionSettings { load_balancers, first: Some(first) }) = regions[0] else {
        panic!("{regions:?}")
    };
    assert_eq!((load_balancers.len(), first.subnets.len(), first.health_every_s, first.grace_s), (1, 2, 10, 120));
    assert_eq!(site.balancer.unwrap().port(), 8080);
    let agents = site.agents.unwrap();
    assert_eq!((agents.address.port(), agents.key_file.as_path()), (7443, std::path::Path::new("agents.key")));
    let certificates: Vec<_> = site.aws.identity_certs.iter().map(|(r, f)| (r.as_str(), f.to_str().unwrap())).collect();
    assert_eq!(certificates, [("us-east-1", "us-east-1.pem")]);
    let some = |key: &str| Some(key.to_owned());
    let tags = NameTags { app: "app".to_owned(), stack: some("env"), detail: some("role") };
    assert_eq!(site.aws.name_tags, Some(tags));
    assert_eq!(site.alertmanager.as_deref(), Some("https://alerts.example.com"));
    assert_eq!(site.signals_ca_file.as_deref(), Some(std::path::Path::new("ca.pem")));
    assert_eq!(site.channels["slack"].kind, ChannelKind::Slack);
    let signed = ChannelKind::Webhook { secret_file: "desk.secret".into() };
    assert_eq!((&site.channels["desk"].kind, site.channels.len()), (&signed, 2));
    insta::assert_snapshot!(rendered(&warnings, SITE));
}

#[test]
fn a_site_file_is_leashed_until_it_says_otherwise_and_the_embedded_cloud_is_not() {
    assert!(parse_site("t", "site = \"a\"").unwrap().0.leashed);
    assert!(!parse_site("t", "site = \"a\"\nleashed = false").unwrap().0.leashed);
    let embedded = Site::embedded_default();
    assert!(!embedded.leashed && embedded.accounts.is_empty());
    let written = parse_site("t", "site = \"embedded\"\nleashed = false").unwrap().0;
    assert_eq!(written, embedded, "an empty file means what no file means, but for the leash");
}

#[test]
fn a_site_file_with_mistakes_is_refused() {
    let rows = [
        ("site = \"acme\"", ""),
        ("site = \"acme\"", "site = \"ac me\""),
        ("leashed = true", "leashed = \"false\""),
        ("policies = \"/etc/troop/policies\"", "policy = \"/etc/troop/policies\""),
        ("kills_per_day = 20", "kills_per_day = 0"),
        ("lease = \"90s\"", "lease = 90"),
        ("lease = \"90s\"", "lease = \"1s\""),
        ("name = \"prod\"", "name = \"pr/od\""),
        ("regions = [\"us-east-1\", \"eu-west-1\"]", "regions = []"),
        ("regions = [\"us-east-1\", \"eu-west-1\"]", "regions = [\"us-east-1\", \"us-east-1\"]"),
        ("\"arn:aws:iam::123456789012:role/troop-read\"", "\"troop-read\""),
        ("acts_per_hour = 4", "acts_per_hour = 0"),
        ("\"http://127.0.0.1:5000\"", "\"127.0.0.1:5000\""),
        ("\"http://eureka.internal:8761\"", "\"eureka\""),
        ("[accounts.region.eu-west-1]", "[accounts.region.eu-west-2]"),
        ("loadbalancer/app/web/50dc6c495c0c9188", "targetgroup/web/1"),
        ("\"lt-0a1b\"", "\"web\""),
        ("\"subnet-1\"", "\"vpc-1\""),
        ("\"/health\"", "\"health\""),
        ("port = 8080", "port = 0"),
        ("grace = \"2m\"", "grace = \"3h\""),
        ("[listeners]", "[[accounts]]\nname = \"prod\"\nregions = [\"us-west-2\"]\n[listeners]"),
        ("\"127.0.0.1:8080\"", "\"0.0.0.0:8080\""),
        ("\"127.0.0.1:8080\"", "\"8080\""),
        ("kind = \"slack\"", "kind = \"irc\""),
        ("[channels.slack]", "[channels.\"a b\"]"),
        ("secret_file = \"desk.secret\"\n", ""),
        ("url_file = \"slack.url\"", "url_file = \"slack.url\"\nsecret_file = \"x\""),
        ("us-east-1 = ", "\"us east\" = "),
        ("app = \"app\", ", ""),
        ("stack = \"env\"", "stack = \"app\""),
        ("detail = \"role\"", "detail = \"\""),
        ("detail = \"role\"", "role = \"role\""),
    ];
    let mut told = String::new();
    for (old, new) in rows {
        let text = with(SITE, old, new);
        let Err(found) = parse_site("troop.toml", &text) else { panic!("`{new}` was taken") };
        assert!(found.iter().all(|d| d.hint.is_some()), "{found:?}");
        told += &format!(
            "### {old} -> {}\n{}\n\n",
            if new.is_empty() { "(nothing)" } else { new },
            rendered(&found, &text)
        );
    }
    insta::assert_snapshot!(told);
}
