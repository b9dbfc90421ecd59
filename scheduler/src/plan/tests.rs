use jiff::civil::date;
use jiff::{Span, Timestamp};
use proptest::prelude::*;
use proptest::test_runner::Config;
use troop_policies::policy::Rate;

use super::*;
use crate::fixture::{calendar, day_key, inventory, policy, policy_with, secret, windows};

const WEB: &str = "prod/us-east-1/checkout-web";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A policy with its calendar and the scopes of these groups.
struct World {
    policy: Policy,
    calendar: Calendar,
    scopes: Vec<ScopeSeen>,
}

fn world(policy: Policy, groups: &[&str]) -> World {
    let scopes = scopes_of(&policy, &ByTeam::of(&[inventory("us-east-1", groups)]));
    World { calendar: calendar(&policy), policy, scopes }
}

fn shop() -> World {
    world(policy(""), &["checkout-web-v001", "checkout-pci-v000"])
}

impl World {
    fn input<'a>(&'a self, day_key: &'a DayKey, day: Date, now: Timestamp) -> PlanInput<'a> {
        let Self { policy, calendar, scopes } = self;
        PlanInput { policy, calendar, day, day_key, now, site_leashed: false, halted: false, scopes }
    }

    fn plan(&self, day: Date, now: Timestamp) -> DayPlan {
        plan_day(&self.input(&day_key(&day.to_string()), day, now))
    }

    /// The plan of the day, made at its midnight.
    fn early(&self, day: Date) -> DayPlan {
        self.plan(day, day.to_zoned_datetime(self.policy.time_zone.clone()).unwrap().timestamp())
    }

    fn rate(&mut self, mean_workdays: u32, min_workdays: u32) {
        let app = self.policy.apps.values_mut().next().unwrap();
        app.chaos.as_mut().unwrap().rate = Rate { mean_workdays, min_workdays };
    }
}

fn entry<'p>(plan: &'p DayPlan, draw_key: &str, monkey: &str) -> &'p PlanEntry {
    plan.entries.iter().find(|e| e.draw_key == draw_key && e.monkey == monkey).unwrap()
}

/// The first workday from 15 March 2027 on whose coin falls, or does not.
fn day_that(world: &World, fell: bool) -> DayPlan {
    let mut days = world.calendar.workdays(date(2027, 3, 15), 200);
    days.find_map(|day| Some(world.early(day)).filter(|p| entry(p, WEB, CHAOS).fell == Some(fell))).unwrap()
}

#[test]
fn draws_the_published_vector() {
    let mut world = shop();
    world.rate(1, 1);
    let plan = world.early(date(2027, 3, 15));
    let drawn = entry(&plan, WEB, CHAOS);
    assert_eq!(drawn.unit, Some(0.827_482_181_997_653_6));
    assert_eq!((drawn.odds, drawn.fell, drawn.window_minutes, drawn.minute), (Some(1.0), Some(true), 360, Some(359)));
    assert_eq!(drawn.at, Some(at("2027-03-15T19:59:00Z")));
    assert_eq!(drawn.verdict, PlanVerdict::Chosen);
    assert_eq!(drawn.why, "draw < odds; the victim is drawn at 15:59 from those eligible then");
    assert_eq!((plan.day_key.clone(), plan.late, plan.workday), (None, false, true));

    world.rate(5, 2);
    let plan = world.early(date(2027, 3, 15));
    let drawn = entry(&plan, WEB, CHAOS);
    assert_eq!((drawn.odds, drawn.fell, drawn.minute), (Some(0.25), Some(false), None));
    assert_eq!((drawn.verdict, drawn.why.as_str()), (PlanVerdict::Spared, "did not fall (draw >= odds)"));
}

#[test]
fn an_exception_spares_without_a_draw_and_says_where_it_stands() {
    let plan = shop().early(date(2027, 3, 15));
    let pci = entry(&plan, "prod/us-east-1/checkout-pci", CHAOS);
    assert_eq!(pci.why, "exception at shop.toml:17: card data, audited");
    assert_eq!((pci.odds, pci.unit, pci.fell, pci.minute, pci.at), (None, None, None, None, None));
    assert_eq!(
        plan.entries.iter().map(|e| e.draw_key.as_str()).collect::<Vec<_>>(),
        ["prod/us-east-1/checkout-pci", WEB]
    );
}

#[test]
fn a_kill_too_recent_spares_without_a_draw() {
    let mut world = shop();
    let told = |world: &World, day| entry(&world.early(day), WEB, CHAOS).why.clone();
    world.scopes[1].last_kill_day = Some(date(2027, 3, 12));
    // Friday's kill, asked on Monday.
    assert_eq!(told(&world, date(2027, 3, 15)), "too soon: last kill 1 workday ago, 2 is the minimum");
    assert_eq!(entry(&world.early(date(2027, 3, 15)), WEB, CHAOS).odds, None);
    assert!(!told(&world, date(2027, 3, 16)).contains("too soon"));
    world.scopes[1].last_kill_day = Some(date(2027, 3, 15));
    assert_eq!(told(&world, date(2027, 3, 15)), "too soon: last kill 0 workdays ago, 2 is the minimum");
}

#[test]
fn an_unhealed_scope_is_spared_without_a_draw_and_a_hold_is_asked_only_at_the_act() {
    let mut world = shop();
    world.scopes[1].unhealed = Some("not healed after 300 s".to_owned());
    let plan = world.early(date(2027, 3, 15));
    let spared = entry(&plan, WEB, CHAOS);
    assert_eq!(spared.unit, None);
    assert_eq!(
        spared.why,
        "unhealed: not healed after 300 s; `troop clear prod/us-east-1/checkout-web --reason …` ends this"
    );
    let world = super::tests::world(policy("hold_while = [\"alertmanager:team=shop\"]"), &["checkout-web-v001"]);
    let plan = world.early(date(2027, 3, 15));
    assert!(entry(&plan, WEB, CHAOS).unit.is_some(), "what may hold at its minute is drawn all the same");
}

#[test]
fn a_day_that_is_no_workday_is_planned_too_and_draws_nothing() {
    let policy = policy_with(
        "America/New_York",
        &format!("{}[holidays]\ncalendars = [\"us-federal\"]\n", windows("mon tue wed thu fri", "10:00", "16:00")),
        "",
    );
    let world = world(policy, &["checkout-web-v001"]);
    let plan = world.early(date(2026, 11, 26));
    assert_eq!((plan.workday, plan.not_workday_because.as_deref()), (false, Some("holiday: Thanksgiving Day")));
    assert!(plan.windows.is_empty() && !plan.late);
    let spared = entry(&plan, WEB, CHAOS);
    assert_eq!((spared.why.as_str(), spared.unit), ("no workday: holiday: Thanksgiving Day", None));
    assert_eq!(spared.window_minutes, 0);
    let sunday = world.early(date(2026, 11, 29));
    assert_eq!(entry(&sunday, WEB, CHAOS).why, "no workday: no window opens");
}

#[test]
fn a_team_without_a_scope_has_an_empty_plan() {
    let plan = world(policy(""), &[]).early(date(2027, 3, 15));
    assert!(plan.entries.is_empty() && plan.workday);
}

#[test]
fn the_latency_monkey_draws_by_its_own_odds_and_its_own_last_day() {
    let app = "[apps.checkout.latency]\nmean_workdays = 10\nmin_workdays = 3\ndelay = \"50ms\"\nlasts = \"5m\"\nto = [\"app:payments\"]\n";
    let mut world = world(policy(app), &["checkout-web-v001"]);
    let plan = world.early(date(2027, 3, 15));
    let latency = entry(&plan, WEB, LATENCY);
    assert_eq!((latency.odds, latency.leashed), (Some(0.125), true));
    assert_ne!(latency.unit, entry(&plan, WEB, CHAOS).unit, "each monkey has a stream of its own");
    assert_eq!(plan.entries.len(), 2);
    world.scopes.iter_mut().for_each(|scope| scope.last_fault_day = Some(date(2027, 3, 12)));
    let plan = world.early(date(2027, 3, 15));
    assert_eq!(entry(&plan, WEB, LATENCY).why, "too soon: last fault 1 workday ago, 3 is the minimum");
    assert!(entry(&plan, WEB, CHAOS).unit.is_some());
}

#[test]
fn a_plan_is_whole_once_each_scope_has_each_of_its_monkeys() {
    let app = "[apps.checkout.latency]\nmean_workdays = 10\nmin_workdays = 3\ndelay = \"50ms\"\nlasts = \"5m\"\nto = [\"app:payments\"]\n
[[apps.checkout.drills]]\ncron = \"30 10 * * tue\"\nmonkey = \"chaos\"\n";
    let mut world = world(policy(app), &["checkout-web-v001"]);
    let whole = |world: &World, plan: &DayPlan| is_whole(plan, &world.policy, &world.scopes);
    for (day, monkeys) in [(date(2027, 3, 15), 2), (date(2027, 3, 16), 3)] {
        let plan = world.early(day);
        assert!(whole(&world, &plan), "{day}: {:?}", plan.entries);
        assert_eq!(plan.entries.len(), monkeys, "the drill runs on Tuesdays");
        for missing in 0..monkeys {
            let mut partial = plan.clone();
            partial.entries.remove(missing);
            assert!(!whole(&world, &partial), "{day} without {}", plan.entries[missing].monkey);
        }
    }
    let app = world.policy.apps.values_mut().next().unwrap();
    (app.chaos, app.latency) = (None, None);
    app.drills.clear();
    assert!(world.early(date(2027, 3, 16)).entries.is_empty());
    assert!(whole(&world, &world.early(date(2027, 3, 16))), "nothing is missing where nothing is asked for");
}

#[test]
fn a_leashed_monkey_draws_all_the_same() {
    let mut world = shop();
    world.rate(1, 1);
    let free = world.early(date(2027, 3, 15));
    world.policy.apps.values_mut().next().unwrap().chaos.as_mut().unwrap().leashed = true;
    let leashed = world.early(date(2027, 3, 15));
    assert!(entry(&leashed, "prod/us-east-1/checkout-pci", CHAOS).leashed, "said also of what is spared");
    let (free, leashed) = (entry(&free, WEB, CHAOS), entry(&leashed, WEB, CHAOS));
    assert!(leashed.leashed && !free.leashed);
    assert_eq!((leashed.unit, leashed.minute, leashed.verdict), (free.unit, free.minute, PlanVerdict::Chosen));
    assert!(leashed.why.ends_with("; leashed: it would only be noted"), "{}", leashed.why);
}

#[test]
fn a_late_plan_misses_what_is_past_and_says_so() {
    let world = shop();
    let fell = day_that(&world, true);
    let minute = entry(&fell, WEB, CHAOS).at.unwrap();
    let after = minute.checked_add(Span::new().minutes(1)).unwrap();
    let late = world.plan(fell.day, after);
    let missed = entry(&late, WEB, CHAOS);
    assert!(late.late && missed.missed);
    assert_eq!(
        (missed.verdict, missed.minute, missed.at),
        (PlanVerdict::Chosen, entry(&fell, WEB, CHAOS).minute, Some(minute))
    );
    assert!(missed.why.contains("was past when the plan was made at"), "{}", missed.why);
    assert!(due(&late, after).is_empty());
    // Made as the first window opens, a plan is in time.
    let opens = fell.windows[0].opens;
    assert!(!world.plan(fell.day, opens).late);
    assert!(world.plan(fell.day, opens.checked_add(Span::new().seconds(1)).unwrap()).late);
    // Made at its very minute, it still fires.
    let just = world.plan(fell.day, minute);
    assert_eq!(due(&just, minute).len(), 1);
}

#[test]
fn an_entry_is_due_from_its_minute_for_ten_minutes() {
    let plan = day_that(&shop(), true);
    let minute = entry(&plan, WEB, CHAOS).at.unwrap();
    let after = |seconds: i64| minute.checked_add(Span::new().seconds(seconds)).unwrap();
    let due_at = |seconds| due(&plan, after(seconds)).len();
    assert_eq!([due_at(-1), due_at(0), due_at(150), due_at(FIRE_WITHIN_S), due_at(FIRE_WITHIN_S + 1)], [0, 1, 1, 1, 0]);
    assert!(due(&plan, minute.checked_sub(Span::new().milliseconds(1)).unwrap()).is_empty());
    assert!(due(&day_that(&shop(), false), minute).is_empty());
}

#[test]
fn the_same_day_planned_twice_is_the_same_plan_and_its_json_comes_back() {
    let world = shop();
    let (once, again) = (world.early(date(2027, 3, 15)), world.early(date(2027, 3, 15)));
    assert_eq!(once, again);
    let json = serde_json::to_string(&once).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), json);
    assert_eq!(serde_json::from_str::<DayPlan>(&json).unwrap(), once);
    assert!(!json.contains(&day_key("2027-03-15").to_hex()));
}

#[test]
fn a_new_scope_changes_nobodys_luck() {
    let few = shop();
    let many = world(policy(""), &["checkout-api-v001", "checkout-pci-v000", "checkout-web-v009", "checkout-zoo-v001"]);
    for day in few.calendar.workdays(date(2027, 3, 15), 60) {
        assert_eq!(entry(&few.early(day), WEB, CHAOS), entry(&many.early(day), WEB, CHAOS));
    }
}

#[test]
fn a_scope_that_appears_joins_by_the_same_draws_and_misses_what_is_past() {
    let world = shop();
    let plan = day_that(&world, true);
    let minute = entry(&plan, WEB, CHAOS).at.unwrap();
    let without =
        DayPlan { entries: plan.entries.iter().filter(|e| e.draw_key != WEB).cloned().collect(), ..plan.clone() };
    let key = day_key(&plan.day.to_string());
    let before = minute.checked_sub(Span::new().minutes(1)).unwrap();
    let joined = join(&without, &world.input(&key, plan.day, before));
    let expected = PlanEntry { joined_at: Some(before), ..entry(&plan, WEB, CHAOS).clone() };
    assert_eq!(joined.entries.last(), Some(&expected));
    assert_eq!(joined.made_at, plan.made_at);

    let after = minute.checked_add(Span::new().minutes(1)).unwrap();
    let joined = join(&without, &world.input(&key, plan.day, after));
    let late = joined.entries.last().unwrap();
    assert!(late.missed && late.why.contains("was past when the scope joined at"), "{}", late.why);
    assert!(due(&joined, after).is_empty());

    let other = join(&without, &world.input(&key, plan.day.tomorrow().unwrap(), after));
    assert_eq!(other, without);
}

/// I17: with nothing spared, the gap between drawn kills is geometric from the minimum on, and its mean is the mean.
#[test]
fn the_gap_between_kills_has_the_mean_that_was_asked_for() {
    for (mean, min) in [(1, 1), (3, 1), (5, 2), (6, 6), (10, 4)] {
        let mut world = world(policy(""), &["checkout-web-v001"]);
        world.rate(mean, min);
        let mut gaps: Vec<u32> = Vec::new();
        let days: Vec<_> = world.calendar.workdays(date(2027, 1, 1), 7 * 800).collect();
        let mut since: Option<u32> = None;
        for day in days {
            since = since.map(|gap| gap + 1);
            let plan = world.early(day);
            if plan.entries[0].verdict == PlanVerdict::Chosen {
                gaps.extend(since);
                since = Some(0);
                world.scopes[0].last_kill_day = Some(day);
            }
        }
        assert!(gaps.iter().all(|gap| *gap >= min), "a gap below {min}");
        let count = gaps.len() as f64;
        let found = f64::from(gaps.iter().sum::<u32>()) / count;
        let odds = Rate { mean_workdays: mean, min_workdays: min }.odds();
        // Four standard errors of a geometric gap's mean.
        let tolerance = 4.0 * (1.0 - odds).sqrt() / odds / count.sqrt() + 1e-9;
        assert!((found - f64::from(mean)).abs() <= tolerance, "mean {mean} min {min}: found {found} in {count}");
        // Geometric: of the gaps, the share `odds` is as short as it may be.
        let shortest = gaps.iter().filter(|gap| **gap == min).count() as f64 / count;
        let tolerance = 4.0 * (odds * (1.0 - odds) / count).sqrt() + 1e-9;
        assert!((shortest - odds).abs() <= tolerance, "mean {mean} min {min}: {shortest} of {count} are shortest");
    }
}

proptest! {
    #![proptest_config(Config { cases: 64, failure_persistence: None, ..Config::default() })]

    /// Whatever joins in whatever order, entries that stand never change, and none stands twice.
    #[test]
    fn joining_never_changes_an_entry(
        day in 0..800_i32,
        arrivals in proptest::collection::vec((0..8_usize, 0..1_700_i64, 1..9_u32), 1..6),
    ) {
        let names = ["a", "b", "c", "d", "e", "pci", "f", "g"].map(|stack| format!("checkout-{stack}-v001"));
        let day = date(2027, 1, 1).checked_add(Span::new().days(day)).unwrap();
        let mut world = world(policy(""), &[]);
        let mut plan = world.early(day);
        let mut present: BTreeSet<&str> = BTreeSet::new();
        for (which, minutes, mean) in arrivals {
            present.insert(&names[which]);
            let groups: Vec<_> = present.iter().copied().collect();
            world.scopes = scopes_of(&world.policy, &ByTeam::of(&[inventory("us-east-1", &groups)]));
            // The odds of the policy that is edited meanwhile hold for who joins, and for nobody else.
            world.rate(mean.max(2), 2);
            let now = plan.made_at.checked_add(Span::new().minutes(minutes)).unwrap();
            let key = day_key(&day.to_string());
            let input = world.input(&key, day, now);
            let joined = join(&plan, &input);
            prop_assert_eq!(&joined.entries[..plan.entries.len()], &plan.entries[..]);
            prop_assert_eq!(joined.entries.len(), present.len());
            prop_assert_eq!(&join(&joined, &input), &joined);
            prop_assert!(is_whole(&joined, &world.policy, &world.scopes));
            prop_assert_eq!(is_whole(&plan, &world.policy, &world.scopes), plan.entries.len() == joined.entries.len());
            for entry in &joined.entries {
                prop_assert!(entry.joined_at.is_some());
                prop_assert!(entry.at.is_none_or(|at| entry.missed == (at < entry.joined_at.unwrap())));
            }
            plan = joined;
        }
    }

    /// What is chosen lies in a window of its own day, in every zone, also when the clocks change.
    #[test]
    fn a_chosen_minute_lies_in_the_days_windows(zone in 0..4_usize, day in 0..5_000_i32, team in 0..u8::MAX) {
        let zone = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"][zone];
        let open = format!("{}{}", windows("mon tue wed thu fri sat sun", "00:30", "03:10"), windows("sat sun", "22:00", "05:00"));
        let mut world = world(policy_with(zone, &open, ""), &["checkout-web-v001"]);
        world.rate(1, 1);
        let day = date(2009, 1, 1).checked_add(Span::new().days(day)).unwrap();
        let key = secret().day_key(day, &format!("t{team}").parse().unwrap());
        let now = Timestamp::MIN;
        let plan = plan_day(&world.input(&key, day, now));
        let entry = &plan.entries[0];
        prop_assert_eq!(plan.workday, entry.verdict == PlanVerdict::Chosen);
        if let Some(at) = entry.at {
            prop_assert!(plan.windows.iter().any(|w| w.opens <= at && at < w.shuts));
            prop_assert!(entry.minute.unwrap() < entry.window_minutes);
            prop_assert_eq!(world.calendar.instant_of_minute(day, entry.minute.unwrap()), Some(at));
        }
    }
}
