use jiff::Span;
use jiff::civil::date;
use troop_policies::plan::DayPlan;

use super::*;
use crate::fixture::{calendar, day_key, inventory, policy, policy_with, windows};
use crate::plan::{ByTeam, FIRE_WITHIN_S, PlanInput, due, join, plan_day, scopes_of};

const WEB: &str = "prod/us-east-1/checkout-web";
const TUESDAYS: &str = "[[apps.checkout.drills]]\ncron = \"30 10 * * tue\"\nmonkey = \"chaos\"\n";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

struct World {
    policy: Policy,
    calendar: Calendar,
    scopes: Vec<ScopeSeen>,
}

fn world(policy: Policy) -> World {
    let scopes =
        scopes_of(&policy, &ByTeam::of(&[inventory("us-east-1", &["checkout-pci-v000", "checkout-web-v001"])]));
    World { calendar: calendar(&policy), policy, scopes }
}

impl World {
    fn with<T>(&self, day: Date, now: Timestamp, use_it: impl FnOnce(&PlanInput<'_>) -> T) -> T {
        let Self { policy, calendar, scopes } = self;
        let day_key = &day_key(&day.to_string());
        use_it(&PlanInput { policy, calendar, day, day_key, now, site_leashed: false, halted: false, scopes })
    }

    fn plan(&self, day: Date, now: Timestamp) -> DayPlan {
        self.with(day, now, plan_day)
    }

    /// The plan of the day, made at its midnight.
    fn early(&self, day: Date) -> DayPlan {
        self.plan(day, day.to_zoned_datetime(self.policy.time_zone.clone()).unwrap().timestamp())
    }
}

fn drills<'p>(plan: &'p DayPlan, draw_key: &str) -> Vec<&'p PlanEntry> {
    plan.entries.iter().filter(|e| e.draw_key == draw_key && drilled(&e.monkey).is_some()).collect()
}

fn only<'p>(plan: &'p DayPlan, draw_key: &str) -> &'p PlanEntry {
    let [one] = drills(plan, draw_key)[..] else { panic!("{:?}", plan.entries) };
    one
}

#[test]
fn a_drill_enters_the_plan_of_its_day_with_its_minute_and_draws_nothing() {
    let world = world(policy(TUESDAYS));
    let plan = world.early(date(2027, 3, 16));
    let drill = only(&plan, WEB);
    assert_eq!((drill.monkey.as_str(), drill.verdict), ("drill:chaos@10:30", PlanVerdict::Chosen));
    assert_eq!(drill.at, Some(at("2027-03-16T14:30:00Z")));
    assert_eq!((drill.odds, drill.unit, drill.fell, drill.minute), (None, None, None, None));
    assert_eq!(
        drill.why,
        "drill `30 10 * * tue` at shop.toml:11; the victim is drawn at 10:30 from those eligible then"
    );
    assert!(drills(&world.early(date(2027, 3, 15)), WEB).is_empty(), "it is for Tuesdays");
}

#[test]
fn a_drill_changes_nobodys_draw() {
    let (with, without) = (world(policy(TUESDAYS)), world(policy("")));
    for day in without.calendar.workdays(date(2027, 3, 15), 30) {
        let drawn = |plan: DayPlan| -> Vec<PlanEntry> {
            let drawn = plan.entries.into_iter().filter(|e| drilled(&e.monkey).is_none());
            // Lines move by the table above them.
            drawn.map(|e| PlanEntry { why: String::new(), ..e }).collect()
        };
        assert_eq!(drawn(with.early(day)), drawn(without.early(day)));
    }
}

#[test]
fn what_the_policy_alone_spares_is_said_when_the_plan_is_made() {
    let plan = world(policy(TUESDAYS)).early(date(2027, 3, 16));
    let pci = only(&plan, "prod/us-east-1/checkout-pci");
    assert_eq!(pci.verdict, PlanVerdict::Spared);
    assert!(pci.why.ends_with("exception at shop.toml:20: card data, audited"), "{}", pci.why);

    let early = world(policy(&TUESDAYS.replace("30 10", "59 9"))).early(date(2027, 3, 16));
    let shut = only(&early, WEB);
    assert_eq!((shut.verdict, shut.at), (PlanVerdict::Spared, Some(at("2027-03-16T13:59:00Z"))));
    assert_eq!(
        shut.why,
        "drill `59 9 * * tue` at shop.toml:11: no window is open; the next opens Tue 2027-03-16 10:00 EDT (14:00Z)"
    );
    let holiday = policy_with(
        "America/New_York",
        &format!("{}[holidays]\ncalendars = [\"us-federal\"]\n", windows("mon tue wed thu fri", "10:00", "16:00")),
        &TUESDAYS.replace("tue", "thu"),
    );
    let plan = world(holiday).early(date(2026, 11, 26));
    assert!(only(&plan, WEB).why.contains("holiday: Thanksgiving Day"), "{}", only(&plan, WEB).why);
}

#[test]
fn min_workdays_and_an_unhealed_mark_are_the_minutes_business() {
    let mut world = world(policy(TUESDAYS));
    for scope in &mut world.scopes {
        scope.last_kill_day = Some(date(2027, 3, 15));
        scope.unhealed = Some("not healed after 300 s".to_owned());
    }
    assert_eq!(only(&world.early(date(2027, 3, 16)), WEB).verdict, PlanVerdict::Chosen);
}

#[test]
fn a_drill_whose_minute_is_past_when_it_is_planned_never_runs() {
    let world = world(policy(TUESDAYS));
    let day = date(2027, 3, 16);
    let minute = at("2027-03-16T14:30:00Z");
    let after = |seconds: i64| minute.checked_add(Span::new().seconds(seconds)).unwrap();
    let in_its_minute = world.plan(day, after(59));
    assert_eq!(due(&in_its_minute, after(59)).len(), 1, "{:?}", in_its_minute.entries);
    let late = world.plan(day, after(60));
    assert!(only(&late, WEB).missed && due(&late, after(60)).is_empty());
    assert!(
        only(&late, WEB).why.ends_with("but 10:30 was past when the plan was made at 10:31: it never runs"),
        "{}",
        only(&late, WEB).why
    );
}

#[test]
fn a_drill_is_due_from_its_minute_for_ten_minutes() {
    let plan = world(policy(TUESDAYS)).early(date(2027, 3, 16));
    let minute = at("2027-03-16T14:30:00Z");
    let is_due = |seconds: i64| {
        let now = minute.checked_add(Span::new().seconds(seconds)).unwrap();
        due(&plan, now).iter().filter(|e| drilled(&e.monkey) == Some(CHAOS)).count()
    };
    assert_eq!([is_due(-1), is_due(0), is_due(FIRE_WITHIN_S), is_due(FIRE_WITHIN_S + 1)], [0, 1, 1, 0]);
}

#[test]
fn each_run_is_an_entry_and_a_minute_named_twice_is_one() {
    let twice = format!("{}{}", TUESDAYS.replace("30 10", "0,30 10-11"), TUESDAYS);
    let plan = world(policy(&twice)).early(date(2027, 3, 16));
    let names: Vec<_> = drills(&plan, WEB).iter().map(|e| e.monkey.as_str()).collect();
    assert_eq!(names, ["drill:chaos@10:00", "drill:chaos@10:30", "drill:chaos@11:00", "drill:chaos@11:30"]);
    assert!(
        drills(&plan, WEB)[1]
            .why
            .starts_with("drill `0,30 10-11 * * tue` at shop.toml:11 and `30 10 * * tue` at shop.toml:14; "),
        "{:?}",
        drills(&plan, WEB)
    );
}

#[test]
fn an_hour_that_comes_twice_has_two_names() {
    let always = windows("mon tue wed thu fri sat sun", "00:00", "23:59");
    let often = TUESDAYS.replace("30 10 * * tue", "*/30 * * * *");
    let plan = world(policy_with("America/New_York", &always, &often)).early(date(2027, 11, 7));
    let entries = drills(&plan, WEB);
    let names: std::collections::BTreeSet<_> = entries.iter().map(|e| e.monkey.as_str()).collect();
    let instants: std::collections::BTreeSet<_> = entries.iter().map(|e| e.at).collect();
    assert_eq!((entries.len(), names.len(), instants.len()), (50, 50, 50));
    assert!(names.contains("drill:chaos@01:30-04") && names.contains("drill:chaos@01:30-05"), "{names:?}");
    assert!(names.contains("drill:chaos@02:30"));
}

#[test]
fn a_drill_of_latency_comes_due_and_has_its_monkeys_leash() {
    let app = "[apps.checkout.latency]\nmean_workdays = 10\nmin_workdays = 3\ndelay = \"50ms\"\nlasts = \"5m\"\nto = [\"app:payments\"]\n
[[apps.checkout.drills]]\ncron = \"30 10 * * tue\"\nmonkey = \"latency\"\n";
    let plan = world(policy(app)).early(date(2027, 3, 16));
    let drill = only(&plan, WEB);
    assert_eq!((drill.monkey.as_str(), drill.verdict), ("drill:latency@10:30", PlanVerdict::Chosen));
    assert!(drill.why.ends_with("leashed: it would only be noted") && drill.leashed, "{}", drill.why);
    assert!(due(&plan, drill.at.unwrap()).iter().any(|e| drilled(&e.monkey) == Some("latency")));
}

#[test]
fn a_leashed_drill_is_planned_and_says_so() {
    let mut world = world(policy(TUESDAYS));
    world.policy.apps.values_mut().next().unwrap().chaos.as_mut().unwrap().leashed = true;
    let plan = world.early(date(2027, 3, 16));
    let drill = only(&plan, WEB);
    assert!(drill.leashed && drill.why.ends_with("; leashed: it would only be noted"), "{}", drill.why);
}

#[test]
fn a_drill_that_is_added_joins_and_one_that_is_moved_no_longer_stands() {
    let (before, after) = (world(policy("")), world(policy(TUESDAYS)));
    let day = date(2027, 3, 16);
    let plan = before.early(day);
    let nine = at("2027-03-16T13:00:00Z");
    let joined = after.with(day, nine, |input| join(&plan, input));
    assert_eq!(joined.entries[..plan.entries.len()], plan.entries[..]);
    let drill = only(&joined, WEB);
    assert_eq!((drill.joined_at, drill.missed), (Some(nine), false));
    assert_eq!(after.with(day, nine, |input| join(&joined, input)), joined, "it joins once");

    assert!(stands(&after.policy, drill));
    assert!(!stands(&before.policy, drill));
    assert!(!stands(&policy(&TUESDAYS.replace("30 10", "45 10")), drill));
    let of_draw = joined.entries.iter().find(|e| e.monkey == CHAOS).unwrap();
    assert!(!stands(&after.policy, of_draw));
}

#[test]
fn names_tell_drills_from_draws() {
    assert_eq!(drilled("drill:chaos@10:30"), Some("chaos"));
    assert_eq!(drilled("drill:latency@01:30-05"), Some("latency"));
    assert_eq!(drilled("drill:chaos"), Some("chaos"));
    assert_eq!((drilled("chaos"), drilled("latency")), (None, None));
}

#[test]
fn the_next_runs_say_where_no_window_is_open() {
    let policy = policy(&TUESDAYS.replace("30 10 * * tue", "30 10 * * sat,mon"));
    let calendar = calendar(&policy);
    let next = upcoming(&policy, &calendar, at("2027-03-13T00:00:00Z"), 3);
    let [one] = &next[..] else { panic!("{next:?}") };
    assert_eq!((one.app.as_str(), one.drill.place.to_string().as_str()), ("checkout", "shop.toml:11"));
    let runs = one.runs.as_ref().unwrap();
    let seen: Vec<_> = runs.iter().map(|run| (run.at.to_string(), run.shut.is_some())).collect();
    let run = |text: &str, shut| (text.to_owned(), shut);
    // The clocks change between the first and the second.
    assert_eq!(
        seen,
        [run("2027-03-13T15:30:00Z", true), run("2027-03-15T14:30:00Z", false), run("2027-03-20T14:30:00Z", true)]
    );
}
