//! One test a gate: in a situation in which everything is well, the one thing that is not spares, and says which gate.

use super::*;
use crate::fixture::{self, group, id, now, policy, scope, situation};
use crate::inventory::{TAG_MARK, TAG_TEAM};
use crate::registry_view::RegistryView;
use crate::situation::{Halted, LastKill, MarkSeen, OpenAct, Shrunk, UnhealedMark};

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
fn every_doubt_spares() {
    let why = || "cannot be read".to_owned();
    assert_eq!(spared_with(|s| s.policy = Err(why())), Gate::Policy);
    assert_eq!(spared_with(|s| s.site_leashed = Err(why())), Gate::Leash);
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
    assert_eq!(spared_with(|s| s.site_leashed = Ok(true)), Gate::Leash);
    let shut = WindowSeen::Shut { why: "shut".to_owned(), opens: None };
    assert_eq!(spared_with(|s| s.window = Ok(shut)), Gate::Window);
    let mut leashed = world();
    leashed.chaos().leashed = true;
    assert_eq!(sparing(&leashed.ask()), Gate::Leash);
    assert_eq!(leashed.ask().only_leashed_by(), Some("policy"));
    assert_eq!(leashed.ask().candidates.len(), 3);
}

#[test]
fn inventories_that_are_old_or_implausible_spare() {
    let mut old = world();
    old.inventory.read_at = "2026-11-24T10:29:29Z".parse().unwrap();
    assert_eq!(sparing(&old.ask()), Gate::Inventory);
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
    let exception = crate::policy::Exception {
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
    situation.ledger.as_mut().unwrap().marks.insert(name.clone(), seen(false));
    assert_eq!(sparing(&ask(&situation, &scope(), &Purpose::Drawn)), Gate::Ledger);
    situation.ledger.as_mut().unwrap().marks.insert(name, seen(true));
    assert!(ask(&situation, &scope(), &Purpose::Drawn).result.is_ok());
}

#[test]
fn a_push_spares_unless_the_policy_allows_it() {
    let mut world = world();
    let cluster = fixture::group_name("hello-web-v000").cluster().clone();
    let lock = |s: &mut Situation<'_>| {
        s.ledger.as_mut().unwrap().locks.insert(cluster.clone(), "push 7".to_owned());
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
    let kill = |workdays_ago, still_healing| LastKill {
        day: jiff::civil::date(2026, 11, 23),
        workdays_ago,
        text: "i-0".to_owned(),
        still_healing,
    };
    assert_eq!(ledger_with(|l| l.history.last_kill = Some(kill(1, false))), Gate::History);
    assert_eq!(ledger_with(|l| l.history.last_kill = Some(kill(9, true))), Gate::History);
    assert_eq!(ledger_with(|l| l.history.drawn_today = true), Gate::History);
    let mark = UnhealedMark { since: now(), why: "2 of 3 members".to_owned() };
    assert_eq!(ledger_with(|l| l.history.unhealed = Some(mark.clone())), Gate::History);

    let world = world();
    let mut situation = world.situation();
    let ledger = situation.ledger.as_mut().unwrap();
    ledger.history.last_kill = Some(kill(0, false));
    ledger.history.drawn_today = true;
    let demand = Purpose::Demand { outside_window: false, instance: None };
    assert!(ask(&situation, &scope(), &demand).result.is_ok());
    situation.ledger.as_mut().unwrap().history.unhealed = Some(mark);
    assert_eq!(sparing(&ask(&situation, &scope(), &demand)), Gate::History);
}

#[test]
fn caps_spare() {
    let open = |zone: &str, team: &str| OpenAct {
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

    // Another team's unhealed act takes out its zone, and only that.
    let world = world();
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
fn the_floor_holds_and_open_intents_count_as_lost() {
    let mut world = world();
    world.policy.apps.values_mut().next().unwrap().min_serving = 3;
    assert_eq!(sparing(&world.ask()), Gate::Floor);
    let act = OpenAct {
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

#[test]
fn policies_without_the_monkey_spare() {
    let mut no_chaos = world();
    no_chaos.policy.apps.values_mut().next().unwrap().chaos = None;
    assert_eq!(sparing(&no_chaos.ask()), Gate::Policy);
    let mut refused = world();
    refused.policy.apps.values_mut().next().unwrap().refused = Some("two files claim it".to_owned());
    assert_eq!(sparing(&refused.ask()), Gate::Policy);
}
