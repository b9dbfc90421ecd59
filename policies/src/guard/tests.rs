//! The floor by numbers: who serves, what is sound, and which step of a push leaves enough behind.

use std::time::Duration;

use super::*;
use crate::fixture::{group, group_name, id, inventory, now};
use crate::step::{How, Size};

fn web() -> Group {
    group("hello-web-v000", &["i-1", "i-2", "i-3"])
}

fn seconds_ago(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() - seconds).unwrap()
}

fn up<'a>(groups: impl IntoIterator<Item = &'a Group>) -> BTreeMap<InstanceId, Status> {
    groups.into_iter().flat_map(|g| g.members.keys()).map(|id| (id.clone(), Status::Up)).collect()
}

#[test]
fn an_instance_serves_only_where_nothing_speaks_against_it() {
    type Change = fn(&mut Group, &mut Option<Status>);
    fn first(group: &mut Group) -> &mut Instance {
        group.members.values_mut().next().unwrap()
    }
    fn checked(group: &mut Group, seconds: i64) {
        first(group).target.as_mut().unwrap().checked_at = seconds_ago(seconds);
    }
    let rows: &[(Change, Result<(), &str>)] = &[
        (|_, _| {}, Ok(())),
        (|g, _| first(g).lifecycle = Lifecycle::Pending, Err("i-1 is pending")),
        (|g, _| first(g).target = None, Err("i-1 has no health verdict yet")),
        (|g, _| first(g).target.as_mut().unwrap().healthy = false, Err("i-1 is unhealthy: no reason given")),
        (|g, _| checked(g, 3), Ok(())),
        (|g, _| checked(g, 4), Err("the health verdict on i-1 is too old")),
        (|_, status| *status = None, Err("i-1 is not registered in the registry, not UP")),
        (|_, status| *status = Some(Status::Down), Err("i-1 is DOWN in the registry, not UP")),
        // Where no balancer is asked, and where the image needs no registry, neither says anything.
        (|g, _| (g.has_targets, first(g).target) = (false, None), Ok(())),
        (|g, status| (g.registry_required, *status) = (false, None), Ok(())),
    ];
    for (n, (change, expected)) in rows.iter().enumerate() {
        let (mut group, mut status) = (web(), Some(Status::Up));
        change(&mut group, &mut status);
        let found = serves(&group, first(&mut group.clone()), status, now());
        assert_eq!(found.as_ref().map_err(String::as_str).copied(), *expected, "row {n}");
    }
}

#[test]
fn a_group_of_none_is_not_whole() {
    let empty = group("hello-web-v000", &[]);
    assert_eq!(whole(&empty, &BTreeMap::new(), now()), Err("its desired size is 0".to_owned()));
}

#[test]
fn one_more_in_a_zone_is_even_and_two_more_are_not() {
    let mut group = group("hello-web-v000", &["i-1", "i-2", "i-3", "i-4"]);
    assert_eq!(sound(&group, &up([&group]), now()), Ok(()));
    group.members.get_mut(&id("i-3")).unwrap().zone = ZoneName::new("r1b").unwrap();
    let spread = "r1a 2, r1b 2, r1c 0".to_owned();
    assert_eq!(sound(&group, &up([&group]), now()), Err(Spared::Uneven { group: group.name.clone(), spread }));
}

#[test]
fn a_group_that_the_cloud_holds_is_spared_with_its_reason() {
    let why = "Launch is suspended: what dies is not replaced".to_owned();
    let held = Group { hold: Some(why.clone()), ..web() };
    assert_eq!(sound(&held, &up([&held]), now()), Err(Spared::HeldByCloud { group: held.name.clone(), why }));
}

#[test]
fn after_a_failed_launch_an_hour_must_pass() {
    for (seconds, minutes) in [(0, Some(0)), (3_599, Some(59)), (3_600, None), (7_200, None)] {
        let failed = Group { last_failed_launch: Some(seconds_ago(seconds)), ..web() };
        let spared = minutes.map(|minutes| Spared::FailedLaunch { group: failed.name.clone(), minutes });
        assert_eq!(sound(&failed, &up([&failed]), now()).err(), spared, "{seconds} s");
    }
}

#[test]
fn what_is_being_ended_counts_as_gone_once_and_the_last_one_is_never_taken() {
    let group = web();
    let take = |ended: &[&str], keep: u32| {
        let open = ended.iter().map(|text| OpenAct {
            location: crate::fixture::location(),
            team: None,
            draw_key: None,
            group: group.name.clone(),
            instance: id(text),
            zone: None,
        });
        floor(&group, &up([&group]), &open.collect::<Vec<_>>(), keep, now())
    };
    let at_floor = |open, floor| Err(Spared::AtFloor { group: group.name.clone(), serving: 3, open, floor });
    assert_eq!(take(&[], 2), Ok(2));
    assert_eq!(take(&[], 3), at_floor(0, 3));
    assert_eq!(take(&["i-1"], 1), Ok(1));
    assert_eq!(take(&["i-1", "i-1"], 1), Ok(1));
    assert_eq!(take(&["i-9"], 2), Ok(2), "one that does not serve is not lost twice");
    assert_eq!(take(&["i-1"], 2), at_floor(1, 2));
    assert_eq!(take(&["i-1", "i-2"], 0), at_floor(2, 0));
    let none_serve = floor(&group, &BTreeMap::new(), &[], 0, now());
    assert_eq!(none_serve, Err(Spared::AtFloor { group: group.name.clone(), serving: 0, open: 0, floor: 0 }));
}

/// `v000` serves with three; `v001` waits beside it, enabled, with three.
fn pair() -> Inventory {
    let next = Group { in_rotation: false, ..group("hello-web-v001", &["i-4", "i-5", "i-6"]) };
    inventory(vec![web(), next])
}

fn named<'a>(world: &'a mut Inventory, name: &str) -> &'a mut Group {
    world.groups.get_mut(&group_name(name)).unwrap()
}

fn asked(world: &Inventory, step: &Step, floor: u32) -> Result<(), Unsafe> {
    push_step(world, &up(world.groups.values()), &[], step, floor, now())
}

/// The same while acts on these instances are open.
fn asked_while(world: &Inventory, hurt: &[&str], step: &Step, floor: u32) -> Result<(), Unsafe> {
    let open = |text: &&str| OpenAct {
        location: crate::fixture::location(),
        team: None,
        draw_key: None,
        group: group_name("hello-web-v001"),
        instance: id(text),
        zone: None,
    };
    let open: Vec<_> = hurt.iter().map(open).collect();
    push_step(world, &up(world.groups.values()), &open, step, floor, now())
}

fn below(name: &str, serving: u32, floor: u32) -> Result<(), Unsafe> {
    Err(Unsafe::BelowFloor { group: group_name(name), serving, floor })
}

fn flip(to: &str) -> Step {
    Step::Flip { cluster: group_name(to).cluster().clone(), to: group_name(to) }
}

fn out(name: &str) -> Step {
    Step::OverrideGroup { group: group_name(name), out_of_service: true }
}

fn disable(name: &str) -> Step {
    Step::Disable { group: group_name(name), drain: Duration::from_secs(30) }
}

fn destroy(name: &str) -> Step {
    Step::Destroy { group: group_name(name) }
}

fn resize(name: &str, count: u32) -> Step {
    Step::Resize { group: group_name(name), size: Size::pinned(count) }
}

fn terminate(name: &str, instance: &str) -> Step {
    Step::Terminate { group: group_name(name), instance: id(instance), kill: How::Crash }
}

#[test]
fn traffic_goes_only_to_a_group_that_serves_with_the_floor() {
    let mut world = pair();
    assert_eq!(asked(&world, &flip("hello-web-v001"), 3), Ok(()));
    assert_eq!(asked(&world, &flip("hello-web-v001"), 4), below("hello-web-v001", 3, 4));
    // One that is made slow serves nobody well; one of another group is that group's business.
    assert_eq!(asked_while(&world, &["i-4"], &flip("hello-web-v001"), 3), below("hello-web-v001", 2, 3));
    assert_eq!(asked_while(&world, &["i-1"], &flip("hello-web-v001"), 3), Ok(()));
    named(&mut world, "hello-web-v001").members.values_mut().next().unwrap().lifecycle = Lifecycle::Pending;
    assert_eq!(asked(&world, &flip("hello-web-v001"), 3), below("hello-web-v001", 2, 3));
}

#[test]
fn a_group_that_gets_traffic_is_not_taken_out() {
    for step in [disable("hello-web-v000"), out("hello-web-v000"), destroy("hello-web-v000")] {
        assert_eq!(asked(&pair(), &step, 0), Err(Unsafe::InRotation { group: group_name("hello-web-v000") }), "{step}");
    }
}

#[test]
fn the_last_enabled_group_is_not_taken_out() {
    type Change = fn(&mut Inventory);
    let last = Err(Unsafe::LastEnabled { group: group_name("hello-web-v001") });
    let rows: &[(&str, Change, Result<(), Unsafe>)] = &[
        ("another is enabled", |_| {}, Ok(())),
        ("alone", |world| drop(world.groups.pop_first()), last.clone()),
        ("another is disabled", |world| named(world, "hello-web-v000").enabled = false, last.clone()),
        ("another is empty", |world| named(world, "hello-web-v000").members.clear(), last),
        (
            "already disabled",
            |world| {
                named(world, "hello-web-v000").enabled = false;
                named(world, "hello-web-v001").enabled = false;
            },
            Ok(()),
        ),
    ];
    for (what, change, expected) in rows {
        let mut world = pair();
        change(&mut world);
        for step in [disable("hello-web-v001"), out("hello-web-v001")] {
            assert_eq!(asked(&world, &step, 0), *expected, "{what}: {step}");
        }
    }
}

#[test]
fn nothing_is_taken_out_while_the_serving_group_is_below_the_floor() {
    for step in [disable("hello-web-v001"), out("hello-web-v001")] {
        assert_eq!(asked(&pair(), &step, 3), Ok(()), "{step}");
        assert_eq!(asked(&pair(), &step, 4), below("hello-web-v000", 3, 4), "{step}");
    }
}

#[test]
fn the_serving_group_shrinks_to_the_floor_and_no_further() {
    let world = pair();
    assert_eq!(asked(&world, &resize("hello-web-v000", 2), 2), Ok(()));
    assert_eq!(asked(&world, &resize("hello-web-v000", 1), 2), below("hello-web-v000", 1, 2));
    // Pinned or grown below the floor it loses nothing, and a group that does not serve may go to nothing.
    assert_eq!(asked(&world, &resize("hello-web-v000", 3), 5), Ok(()));
    assert_eq!(asked(&world, &resize("hello-web-v000", 4), 5), Ok(()));
    assert_eq!(asked(&world, &resize("hello-web-v001", 0), 5), Ok(()));
}

#[test]
fn a_group_with_instances_is_destroyed_only_once_disabled() {
    let mut world = pair();
    let name = "hello-web-v001";
    assert_eq!(asked(&world, &destroy(name), 3), Err(Unsafe::StillEnabled { group: group_name(name) }));
    named(&mut world, name).enabled = false;
    assert_eq!(asked(&world, &destroy(name), 3), Ok(()));
    let mut empty = pair();
    named(&mut empty, name).members.clear();
    assert_eq!(asked(&empty, &destroy(name), 3), Ok(()));
}

#[test]
fn one_instance_is_ended_only_above_the_floor() {
    assert_eq!(asked(&pair(), &terminate("hello-web-v000", "i-1"), 2), Ok(()));
    assert_eq!(asked(&pair(), &terminate("hello-web-v000", "i-1"), 3), below("hello-web-v000", 2, 3));
}

#[test]
fn of_a_group_that_is_gone_only_what_takes_it_out_is_done_already() {
    let gone = "hello-web-v002";
    for step in [disable(gone), out(gone), destroy(gone)] {
        assert_eq!(asked(&pair(), &step, 3), Ok(()), "{step}");
    }
    for step in [flip(gone), resize(gone, 0), terminate(gone, "i-1")] {
        assert_eq!(asked(&pair(), &step, 0), Err(Unsafe::NoGroup { group: group_name(gone) }), "{step}");
    }
}
