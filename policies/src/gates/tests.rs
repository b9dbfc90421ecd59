//! One test a gate: in a situation in which everything is well, the one thing that is not spares, and says which gate.

use super::*;
use crate::fixture::{self, group, id, now, policy, scope, situation};
use crate::inventory::{TAG_MARK, TAG_TEAM};
use crate::policy::{ChaosPolicy, KillStyle};
use crate::policy::{Exception, Grouping, NoNotice, Recipient};
use crate::registry_view::RegistryView;
use crate::situation::{
    Halted, LastKill, MarkSeen, NoticesSeen, OpenAct, ScopeHistory, Shrunk, SiteLeash, UnhealedMark,
};
use crate::step::How;

struct World {
    policy: Policy,
    inventory: Inventory,
    registry: RegistryView,
}

fn world() -> World {
    world_of(vec![group("hello-web-v000", &["i-1", "i-2", "i-3"])])
}

fn world_of(groups: Vec<Group>) -> World {
    let inventory = fixture::inventory(groups);
    let registry = fixture::registry(&inventory);
    World { policy: policy(), inventory, registry }
}

impl World {
    fn situation(&self) -> Situation<'_> {
        situation(&self.policy, &self.inventory, &self.registry)
    }

    fn ask(&self) -> Verdict {
        ask(&self.situation(), &scope(), &Purpose::Drawn)
    }

    fn group(&mut self) -> &mut Group {
        self.inventory.groups.values_mut().next().unwrap()
    }

    fn chaos(&mut self) -> &mut ChaosPolicy {
        self.policy.apps.values_mut().next().unwrap().chaos.as_mut().unwrap()
    }
}

/// The gate that spared, after checking that it alone did.
fn sparing(verdict: &Verdict) -> Gate {
    let spared: Vec<Gate> = verdict.answers.iter().filter(|a| a.result.is_err()).map(|a| a.gate).collect();
    let reason = verdict.result.as_ref().unwrap_err();
    assert_eq!(spared.first(), Some(&reason.gate()), "{reason}");
    reason.gate()
}

fn spared_with(change: impl FnOnce(&mut Situation<'_>)) -> Gate {
    let world = world();
    let mut situation = world.situation();
    change(&mut situation);
    sparing(&ask(&situation, &scope(), &Purpose::Drawn))
}

fn seconds_ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

fn kill(workdays_ago: u32, still_healing: bool) -> LastKill {
    LastKill { day: jiff::civil::date(2026, 11, 23), workdays_ago, text: "i-0".to_owned(), still_healing }
}

fn ledger_with(change: impl FnOnce(&mut LedgerSeen)) -> Gate {
    spared_with(|s| change(s.ledger.as_mut().unwrap()))
}

#[test]
fn a_healthy_scope_is_eligible_and_every_gate_is_answered_in_order() {
    let verdict = world().ask();
    let order: Vec<Gate> = verdict.answers.iter().map(|a| a.gate).collect();
    assert_eq!(order, Gate::ALL);
    let eligible = verdict.result.unwrap();
    assert_eq!(eligible.ids(), [id("i-1"), id("i-2"), id("i-3")]);
    let (step, candidate) = eligible.step(&id("i-2")).unwrap();
    assert!(eligible.covers(&step));
    assert_eq!(candidate.zone.as_str(), "r1b");
    assert!(!eligible.covers(&Step::Destroy { group: candidate.group.clone() }));
    assert!(eligible.step(&id("i-9")).is_none());
}

#[test]
fn eligible_allows_its_candidates_alone_and_only_in_the_policys_way() {
    let terminate = |group: &str, instance: &str, kill| Step::Terminate {
        group: fixture::group_name(group),
        instance: id(instance),
        kill,
    };
    let (crash, drain) = (How::Crash, How::Drain { delay: Duration::from_secs(30) });
    let mut world = world();
    let crashes = world.ask().result.unwrap();
    assert!(crashes.covers(&terminate("hello-web-v000", "i-1", crash)));
    assert!(!crashes.covers(&terminate("hello-web-v000", "i-1", drain)));
    assert!(!crashes.covers(&terminate("hello-web-v000", "i-9", crash)));
    assert!(!crashes.covers(&terminate("hello-web-v001", "i-1", crash)));
    world.chaos().kill = KillStyle::Drain;
    let drains = world.ask().result.unwrap();
    assert_eq!(drains.step(&id("i-1")).unwrap().0, terminate("hello-web-v000", "i-1", drain));
}

#[test]
fn every_gate_says_what_it_found() {
    let said = |verdict: Verdict| verdict.answers.into_iter().map(|a| a.result.unwrap()).collect::<Vec<_>>();
    let quiet = [
        "demo.toml:7, tag agrees",
        "unleashed",
        "not halted",
        "agrees",
        "holds 0 marks of the cloud",
        "3 instances, fresh",
        "no hold signal",
        "shuts in 1h 30m",
        "none in flight, hello-web-v000 serves",
        "never killed",
        "0 today, no cap, 0 unhealed",
        "hello-web-v000 is whole with 3",
        "3 - 1 >= 2",
        "3 may be hurt",
    ];
    assert_eq!(said(world().ask()), quiet);

    let mut busy = world();
    busy.group().tags.insert(TAG_MARK.to_owned(), "17".to_owned());
    busy.chaos().during_push = true;
    busy.policy.caps.kills_per_day = Some(2);
    let name = fixture::group_name("hello-web-v000");
    let mut situation = busy.situation();
    let ledger = situation.ledger.as_mut().unwrap();
    ledger.marks.insert((fixture::location(), name.clone()), MarkSeen { mark: "17".to_owned(), known: true });
    ledger.locks.insert((fixture::location(), name.cluster().clone()), "push 7".to_owned());
    ledger.history.last_kill = Some(kill(2, false));
    ledger.team_kills_today = 1;
    for signal in ["http://a/", "http://b/"] {
        situation.site_hold_while.push(signal.to_owned());
        situation.holds.insert(signal.to_owned(), Ok(None));
    }
    let busy = said(ask(&situation, &scope(), &Purpose::Drawn));
    let changed: Vec<&str> = busy.iter().map(String::as_str).filter(|text| !quiet.contains(text)).collect();
    let expected = [
        "holds 1 marks of the cloud",
        "2 hold signals are quiet",
        "push 7, allowed by `during_push`, hello-web-v000 serves",
        "last kill 2026-11-23, i-0, 2 workdays ago",
        "1 of 2 today, 0 unhealed",
    ];
    assert_eq!(changed, expected);
}

#[test]
fn a_scope_reaches_its_own_clusters_and_no_others() {
    let mut world = world_of(vec![
        group("hello-web-v000", &["i-1", "i-2", "i-3"]),
        group("hello-api-v000", &["i-4", "i-5", "i-6"]),
    ]);
    let web = [id("i-1"), id("i-2"), id("i-3")];
    assert_eq!(world.ask().result.unwrap().ids(), web);
    let elsewhere = Scope { draw_key: "local/r2/hello-web".to_owned(), ..scope() };
    assert_eq!(sparing(&ask(&world.situation(), &elsewhere, &Purpose::Drawn)), Gate::Policy);

    let both = Scope { draw_key: "local/r1/hello".to_owned(), ..scope() };
    let app = world.policy.apps.values_mut().next().unwrap();
    app.grouping = Grouping::App;
    assert_eq!(ask(&world.situation(), &both, &Purpose::Drawn).result.unwrap().ids().len(), 6);
    world.policy.apps.values_mut().next().unwrap().never_suffixes.push("-api".to_owned());
    let verdict = ask(&world.situation(), &both, &Purpose::Drawn);
    assert_eq!(verdict.answers[0].result, Ok("1 of 2 clusters: demo.toml:7, tag agrees".to_owned()));
    assert_eq!(verdict.result.unwrap().ids(), web);
}

#[test]
fn every_doubt_spares() {
    let why = || "cannot be read".to_owned();
    assert_eq!(spared_with(|s| s.policy = Err(why())), Gate::Policy);
    assert_eq!(spared_with(|s| s.site_leash = Err(why())), Gate::Leash);
    assert_eq!(spared_with(|s| s.halt = Err(why())), Gate::Halt);
    assert_eq!(spared_with(|s| s.clock = Err(why())), Gate::Clock);
    assert_eq!(spared_with(|s| s.ledger = Err(why())), Gate::Ledger);
    assert_eq!(spared_with(|s| s.window = Err(why())), Gate::Window);
    assert_eq!(spared_with(|s| s.registry = Err(why())), Gate::Group);
    // Without its inventory the scope has no cluster, so the policy gate is the first to say no.
    assert_eq!(spared_with(|s| s.inventories[0].inventory = Err(why())), Gate::Policy);
    assert_eq!(spared_with(|s| s.inventories.clear()), Gate::Policy);
}

#[test]
fn halt_leash_window_and_clock_spare() {
    let halted = Halted { who: "ana".to_owned(), at: now(), why: "incident".to_owned() };
    assert_eq!(spared_with(|s| s.halt = Ok(Some(halted))), Gate::Halt);
    assert_eq!(spared_with(|s| s.site_leash = Ok(SiteLeash::On)), Gate::Leash);
    assert_eq!(spared_with(|s| s.site_leash = Ok(SiteLeash::NotYet { missing: "a cap".to_owned() })), Gate::Leash);
    let shut = WindowSeen::Shut { why: "shut".to_owned(), opens: None };
    assert_eq!(spared_with(|s| s.window = Ok(shut)), Gate::Window);
    let mut leashed = world();
    leashed.chaos().leashed = true;
    assert_eq!(sparing(&leashed.ask()), Gate::Leash);
    assert_eq!(leashed.ask().only_leashed_by(), Some("policy"));
    assert_eq!(leashed.ask().candidates.len(), 3);
    let mut halted = leashed.situation();
    halted.halt = Ok(Some(Halted { who: "ana".to_owned(), at: now(), why: "incident".to_owned() }));
    let verdict = ask(&halted, &scope(), &Purpose::Drawn);
    assert_eq!(verdict.only_leashed_by(), None, "the halt stands in the way too");
    let said = verdict.answers[2].result.as_ref().unwrap_err().to_string();
    assert_eq!(said, "halted since 2026-11-24 10:30:00Z by ana: incident");
}

#[test]
fn inventories_that_are_old_or_implausible_spare() {
    // A second ahead is another machine's clock; more is a clock that cannot be believed.
    for (seconds, fresh) in [(30, true), (31, false), (-1, true), (-2, false)] {
        let mut world = world();
        world.inventory.read_at = seconds_ago(seconds);
        let verdict = world.ask();
        assert_eq!(verdict.result.is_ok(), fresh, "{seconds} s");
        assert!(fresh || sparing(&verdict) == Gate::Inventory);
    }
    assert_eq!(spared_with(|s| s.inventories[0].shrunk = Some(Shrunk { from: 20, to: 3 })), Gate::Inventory);
}

#[test]
fn only_groups_whose_tag_names_the_team_are_touched() {
    let mut foreign = world();
    foreign.group().tags.insert(TAG_TEAM.to_owned(), "other".to_owned());
    assert_eq!(sparing(&foreign.ask()), Gate::Policy);
    let mut untagged = world();
    untagged.group().tags.clear();
    assert_eq!(sparing(&untagged.ask()), Gate::Policy);
    let mut half = world_of(vec![group("hello-web-v000", &["i-1", "i-2", "i-3"]), group("hello-web-v001", &[])]);
    half.inventory.groups.values_mut().last().unwrap().tags.clear();
    half.inventory.groups.values_mut().last().unwrap().in_rotation = false;
    assert_eq!(sparing(&half.ask()), Gate::Policy);
}

#[test]
fn exceptions_and_suffixes_exempt() {
    let mut world = world();
    let exception = Exception {
        place: fixture::place(42),
        account: "*".to_owned(),
        region: "*".to_owned(),
        stack: "web".to_owned(),
        detail: String::new(),
        reason: "card data".to_owned(),
    };
    world.policy.apps.values_mut().next().unwrap().exceptions.push(exception);
    let verdict = world.ask();
    assert_eq!(verdict.result.unwrap_err().to_string(), "exception at demo.toml:42: card data");
    let mut canary = world_of(vec![group("hello-web-canary-v000", &["i-1", "i-2", "i-3"])]);
    canary.registry = fixture::registry(&canary.inventory);
    let scope = Scope { draw_key: "local/r1/hello-web-canary".to_owned(), ..scope() };
    assert_eq!(sparing(&ask(&canary.situation(), &scope, &Purpose::Drawn)), Gate::Policy);
}

#[test]
fn a_mark_that_the_ledger_lacks_spares() {
    let mut world = world();
    world.group().tags.insert(TAG_MARK.to_owned(), "17 2026-11-24T09:00:00Z".to_owned());
    assert_eq!(sparing(&world.ask()), Gate::Ledger);
    let name = fixture::group_name("hello-web-v000");
    let seen = |known| MarkSeen { mark: "17 2026-11-24T09:00:00Z".to_owned(), known };
    let mut situation = world.situation();
    situation.ledger.as_mut().unwrap().marks.insert((fixture::location(), name.clone()), seen(false));
    assert_eq!(sparing(&ask(&situation, &scope(), &Purpose::Drawn)), Gate::Ledger);
    situation.ledger.as_mut().unwrap().marks.insert((fixture::location(), name), seen(true));
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok());
}

#[test]
fn a_push_spares_unless_the_policy_allows_it() {
    let mut world = world();
    let cluster = fixture::group_name("hello-web-v000").cluster().clone();
    let lock = |s: &mut Situation<'_>| {
        s.ledger.as_mut().unwrap().locks.insert((fixture::location(), cluster.clone()), "push 7".to_owned());
    };
    assert_eq!(spared_with(lock), Gate::Push);
    world.chaos().during_push = true;
    let mut situation = world.situation();
    lock(&mut situation);
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok());
}

#[test]
fn none_or_two_serving_groups_spare() {
    let mut none = world();
    none.group().in_rotation = false;
    assert_eq!(sparing(&none.ask()), Gate::Push);
    let two = world_of(vec![
        group("hello-web-v000", &["i-1", "i-2", "i-3"]),
        group("hello-web-v001", &["i-4", "i-5", "i-6"]),
    ]);
    assert_eq!(sparing(&two.ask()), Gate::Push);
}

#[test]
fn history_spares_and_a_demand_is_not_bound_by_min_or_one_a_day() {
    assert_eq!(ledger_with(|l| l.history.last_kill = Some(kill(1, false))), Gate::History);
    assert_eq!(ledger_with(|l| l.history.last_kill = Some(kill(9, true))), Gate::History);
    assert_eq!(ledger_with(|l| l.history.drawn_today = true), Gate::History);
    let mark = UnhealedMark { since: now(), why: "2 of 3 members".to_owned() };
    assert_eq!(ledger_with(|l| l.history.unhealed = Some(mark.clone())), Gate::History);

    let world = world();
    let mut situation = world.situation();
    situation.ledger.as_mut().unwrap().history.last_kill = Some(kill(2, false));
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok(), "the minimum is enough");
    let ledger = situation.ledger.as_mut().unwrap();
    ledger.history.last_kill = Some(kill(0, false));
    ledger.history.drawn_today = true;
    let demand = Purpose::Demand { outside_window: false, instance: None };
    assert!(ask(&situation, &scope(), &demand).result.is_ok());
    situation.ledger.as_mut().unwrap().history.unhealed = Some(mark);
    assert_eq!(sparing(&ask(&situation, &scope(), &demand)), Gate::History);
}

#[test]
fn a_drill_is_not_bound_by_min_or_one_a_day_but_comes_once() {
    let drill = || Purpose::Drill { entry: "drill:chaos@10:30".to_owned() };
    let world = world();
    let mut situation = world.situation();
    let ledger = situation.ledger.as_mut().unwrap();
    ledger.history.last_kill = Some(kill(0, false));
    ledger.history.drawn_today = true;
    ledger.history.drilled_today.insert("drill:chaos@09:00".to_owned());
    assert!(ask(&situation, &scope(), &drill()).result.is_ok());
    let history = &mut situation.ledger.as_mut().unwrap().history;
    history.drilled_today.insert("drill:chaos@10:30".to_owned());
    let entry = "drill:chaos@10:30".to_owned();
    assert_eq!(ask(&situation, &scope(), &drill()).result, Err(Spared::DrilledToday { entry }));
    let healing = ScopeHistory { last_kill: Some(kill(9, true)), ..ScopeHistory::default() };
    situation.ledger.as_mut().unwrap().history = healing;
    assert_eq!(sparing(&ask(&situation, &scope(), &drill())), Gate::History);
}

#[test]
fn caps_spare() {
    let open = |zone: &str, team: &str| OpenAct {
        location: fixture::location(),
        team: crate::ids::TeamName::new(team).ok(),
        draw_key: None,
        group: fixture::group_name("other-v000"),
        instance: id("i-9"),
        zone: ZoneName::new(zone).ok(),
    };
    assert_eq!(ledger_with(|l| l.unhealed.push(open("r1z", "demo"))), Gate::Caps);
    let mut capped = world();
    capped.policy.caps.kills_per_day = Some(2);
    let mut situation = capped.situation();
    situation.ledger.as_mut().unwrap().team_kills_today = 2;
    assert_eq!(sparing(&ask(&situation, &scope(), &Purpose::Drawn)), Gate::Caps);

    situation.ledger.as_mut().unwrap().team_kills_today = 1;
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok());

    let world = world();
    let mut situation = world.situation();
    situation.site_caps.kills_per_day = Some(5);
    for (kills, spared) in [(4, None), (5, Some(Gate::Caps)), (6, Some(Gate::Caps))] {
        situation.ledger.as_mut().unwrap().site_kills_today = kills;
        let result = ask(&situation, &scope(), &Purpose::Drawn).result;
        assert_eq!(result.err().map(|reason| reason.gate()), spared, "{kills} kills");
    }

    let mut situation = world.situation();
    situation.site_caps.acts_per_hour = Some(2);
    for (acts, spared) in [(1, None), (2, Some(Gate::Caps)), (3, Some(Gate::Caps))] {
        situation.ledger.as_mut().unwrap().site_acts_last_hour = acts;
        let result = ask(&situation, &scope(), &Purpose::Drawn).result;
        assert_eq!(result.err().map(|reason| reason.gate()), spared, "{acts} acts");
    }

    // Unhealed acts of another account are none of this one's, nor of its zones, which have the same names.
    let mut situation = world.situation();
    situation.site_caps.unhealed_per_account = Some(1);
    let elsewhere = OpenAct { location: "other/r1".parse().unwrap(), ..open("r1a", "other") };
    situation.ledger.as_mut().unwrap().unhealed.push(elsewhere);
    assert_eq!(ask(&situation, &scope(), &Purpose::Drawn).result.unwrap().ids().len(), 3);
    situation.ledger.as_mut().unwrap().unhealed.push(open("r1z", "other"));
    let spared = ask(&situation, &scope(), &Purpose::Drawn).result.unwrap_err();
    assert!(matches!(spared, Spared::AccountCap { open: 1, cap: 1, .. }), "{spared}");

    // Another team's unhealed act takes out its zone, and only that.
    let mut situation = world.situation();
    situation.ledger.as_mut().unwrap().unhealed.push(open("r1a", "other"));
    assert_eq!(ask(&situation, &scope(), &Purpose::Drawn).result.unwrap().ids(), [id("i-2"), id("i-3")]);
    for zone in ["r1b", "r1c"] {
        situation.ledger.as_mut().unwrap().unhealed.push(open(zone, "other"));
    }
    assert_eq!(ask(&situation, &scope(), &Purpose::Drawn).result.unwrap_err().gate(), Gate::Caps);
}

#[test]
fn a_group_that_is_not_whole_even_and_rested_spares() {
    let mut short = world();
    short.group().size.desired = 4;
    assert_eq!(sparing(&short.ask()), Gate::Group);
    let mut sick = world();
    sick.group().members.values_mut().next().unwrap().target.as_mut().unwrap().healthy = false;
    assert_eq!(sparing(&sick.ask()), Gate::Group);
    let mut stale = world();
    let checked = "2026-11-24T10:29:56Z".parse().unwrap();
    stale.group().members.values_mut().next().unwrap().target.as_mut().unwrap().checked_at = checked;
    assert_eq!(sparing(&stale.ask()), Gate::Group);
    let mut unregistered = world();
    unregistered.registry.entries.pop();
    assert_eq!(sparing(&unregistered.ask()), Gate::Group);
    let mut warming = world();
    warming.registry.warming = true;
    assert_eq!(sparing(&warming.ask()), Gate::Group);
    let mut uneven = world();
    for instance in uneven.group().members.values_mut() {
        instance.zone = ZoneName::new("r1a").unwrap();
    }
    assert_eq!(sparing(&uneven.ask()), Gate::Group);
    let mut failed = world();
    failed.group().last_failed_launch = Some("2026-11-24T09:31:00Z".parse().unwrap());
    assert_eq!(sparing(&failed.ask()), Gate::Group);
}

#[test]
fn the_registry_is_asked_only_where_an_image_needs_it() {
    let mut world = world();
    world.group().registry_required = false;
    let mut situation = world.situation();
    situation.registry = Err("cannot be read".to_owned());
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok());
}

#[test]
fn the_floor_holds_and_open_intents_count_as_lost() {
    let mut world = world();
    world.policy.apps.values_mut().next().unwrap().min_serving = 3;
    assert_eq!(sparing(&world.ask()), Gate::Floor);
    let act = OpenAct {
        location: fixture::location(),
        team: None,
        draw_key: None,
        group: fixture::group_name("hello-web-v000"),
        instance: id("i-1"),
        zone: None,
    };
    assert_eq!(ledger_with(|l| l.unhealed.push(act)), Gate::Floor);
}

#[test]
fn instances_that_opted_out_are_left_alone() {
    let mut world = world();
    let mut members = world.group().members.values_mut();
    members.next().unwrap().spare = true;
    members.next().unwrap().protected = true;
    assert_eq!(world.ask().result.unwrap().ids(), [id("i-3")]);
    world.group().tags.insert(TAG_SPARE.to_owned(), "yes".to_owned());
    assert_eq!(sparing(&world.ask()), Gate::Instance);
}

#[test]
fn a_demand_may_name_its_victim_but_not_one_that_is_spared() {
    let mut world = world();
    world.group().members.values_mut().next().unwrap().protected = true;
    let wants = |text: &str| Purpose::Demand { outside_window: false, instance: Some(id(text)) };
    assert_eq!(ask(&world.situation(), &scope(), &wants("i-2")).result.unwrap().ids(), [id("i-2")]);
    for other in ["i-1", "i-9"] {
        assert_eq!(ask(&world.situation(), &scope(), &wants(other)).result.unwrap_err().gate(), Gate::Instance);
    }
}

#[test]
fn outside_the_window_only_on_demand_and_when_asked_for() {
    let world = world();
    let mut situation = world.situation();
    situation.window = Ok(WindowSeen::Shut { why: "shut".to_owned(), opens: None });
    let demand = |outside_window| Purpose::Demand { outside_window, instance: None };
    assert_eq!(ask(&situation, &scope(), &demand(false)).result.unwrap_err().gate(), Gate::Window);
    assert!(ask(&situation, &scope(), &demand(true)).result.is_ok());
}

#[test]
fn a_hold_signal_of_site_or_app_spares_unless_it_was_asked_and_is_quiet() {
    let signal = || "alertmanager:severity=page".to_owned();
    let mut world = world();
    world.policy.apps.values_mut().next().unwrap().hold_while.push("http://h/".to_owned());
    let quiet = || BTreeMap::from([(signal(), Ok(None)), ("http://h/".to_owned(), Ok(None))]);
    let verdict = |holds| {
        let mut situation = world.situation();
        situation.site_hold_while.push(signal());
        situation.holds = holds;
        ask(&situation, &scope(), &Purpose::Drawn)
    };
    assert!(verdict(quiet()).result.is_ok());
    for name in [signal(), "http://h/".to_owned()] {
        for bad in [None, Some(Err("away".to_owned())), Some(Ok(Some("CartsDown".to_owned())))] {
            let mut holds = quiet();
            match bad {
                None => drop(holds.remove(&name)),
                Some(reading) => drop(holds.insert(name.clone(), reading)),
            }
            assert_eq!(sparing(&verdict(holds)), Gate::Hold);
        }
    }
}

/// The hold gate's word, for a team that `no_notice` spares, with these recipients, channels of the site, and readings.
fn noticed(
    notify: &[&str],
    channels: &[&str],
    seen: &[(&str, Result<NoticesSeen, String>)],
    purpose: &Purpose,
) -> Result<String, String> {
    let recipient = |text: &str| {
        let (channel, target) = text.split_once(':').unwrap();
        Recipient { channel: channel.to_owned(), target: target.to_owned() }
    };
    let mut world = world();
    world.policy.no_notice = NoNotice::Spare;
    world.policy.notify = notify.iter().map(|text| recipient(text)).collect();
    let mut situation = world.situation();
    situation.site_channels = channels.iter().map(|c| (*c).to_owned()).collect();
    situation.ledger.as_mut().unwrap().notices =
        seen.iter().map(|(text, reading)| (recipient(text), reading.clone())).collect();
    let verdict = ask(&situation, &scope(), purpose);
    if verdict.result.is_err() {
        assert_eq!(sparing(&verdict), Gate::Hold);
    }
    let answer = verdict.answers.into_iter().find(|a| a.gate == Gate::Hold).unwrap();
    answer.result.map_err(|spared| spared.to_string())
}

#[test]
fn a_team_that_wants_to_be_told_is_spared_until_it_was_and_while_a_channel_fails() {
    let told = || Ok(NoticesSeen { plan_told: true, failing: None });
    let not_yet = || Ok(NoticesSeen::default());
    let failing = || Ok(NoticesSeen { plan_told: true, failing: Some("it answered 500".to_owned()) });
    let demand = Purpose::Demand { outside_window: false, instance: None };
    let drill = Purpose::Drill { entry: "drill:chaos@10:30".to_owned() };
    let both = ["slack:a", "hook:b"];
    for purpose in [Purpose::Drawn, drill, demand] {
        let ask = |notify: &[&str], channels: &[&str], seen: &[(&str, Result<NoticesSeen, String>)]| {
            noticed(notify, channels, seen, &purpose)
        };
        let one = ask(&["slack:a"], &["slack"], &[("slack:a", told())]);
        assert_eq!(one, Ok("no hold signal, 1 of 1 were told of the plan".to_owned()));
        let either = ask(&both, &["slack", "hook"], &[("slack:a", not_yet()), ("hook:b", told())]);
        assert_eq!(either, Ok("no hold signal, 1 of 2 were told of the plan".to_owned()));
        for (notify, channels, seen, why) in [
            (&both[..1], &["slack"][..], vec![("slack:a", not_yet())], "told to nobody yet"),
            (&both[..1], &["slack"][..], vec![("slack:a", failing())], "it answered 500"),
            (&both[..1], &["slack"][..], vec![("slack:a", Err("gone".to_owned()))], "cannot be known"),
            (&both[..1], &["slack"][..], vec![], "nobody has looked up"),
            (&both[..1], &["hook"][..], vec![("slack:a", told())], "no channel `slack`"),
            (
                &both[..],
                &["slack", "hook"][..],
                vec![("slack:a", told()), ("hook:b", failing())],
                "`hook:b` cannot be told",
            ),
            (&[][..], &["slack"][..], vec![], "names nobody"),
        ] {
            let spared = ask(notify, channels, &seen).unwrap_err();
            assert!(spared.contains(why) && spared.contains("`no_notice` of team `demo` spares"), "{spared}");
        }
    }
    let mut world = world();
    world.policy.no_notice = NoNotice::Spare;
    let mut situation = world.situation();
    situation.ledger = Err("away".to_owned());
    let hold = ask(&situation, &scope(), &Purpose::Drawn).answers.into_iter().find(|a| a.gate == Gate::Hold).unwrap();
    assert_eq!(hold.result.unwrap_err().gate(), Gate::Hold);
}

#[test]
fn policies_without_the_monkey_spare() {
    let mut no_chaos = world();
    no_chaos.policy.apps.values_mut().next().unwrap().chaos = None;
    assert_eq!(sparing(&no_chaos.ask()), Gate::Policy);
    let mut refused = world();
    refused.policy.apps.values_mut().next().unwrap().refused = Some("two files claim it".to_owned());
    assert_eq!(sparing(&refused.ask()), Gate::Policy);
}
