//! The way back: when the old group may have the traffic again, and what becomes of a push that cannot go back.

use jiff::{SignedDuration, Timestamp};
use troop_policies::registry_view::Status;
use troop_policies::step::Step;

use super::stage::{Driver, World, begin, group};
use crate::machine::{Newer, Right};
use crate::push::{Phase, PushResult};
use crate::rollback::{self, Answer};

/// A push that was watched and is asked back.
fn asked_back() -> (World, Driver) {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "fire", world.now) else { panic!() };
    driver.push = push;
    (world, driver)
}

/// Leaves so many of a group's three UP, until the next tick.
fn leave_up(world: &mut World, n: u32, up: usize) {
    let down: Vec<_> = world.group_mut(n).members.keys().skip(up).cloned().collect();
    world.statuses.extend(down.into_iter().map(|id| (id, Status::Down)));
}

#[test]
fn the_old_group_gets_the_traffic_once_it_is_whole_or_after_a_while_serves_more() {
    // Seconds since it is looked at, how many of the old and of the new group serve, and what comes of it.
    let rows = [
        (1, 3, 3, "back: flip"),
        (1, 2, 1, "back: ready"),
        (9, 2, 1, "back: ready"),
        (10, 2, 1, "back: flip"),
        (10, 2, 2, "back: ready"),
        (10, 1, 2, "back: ready"),
        (19, 2, 2, "back: ready"),
        (20, 2, 2, "stuck"),
        (20, 2, 1, "back: flip"),
    ];
    for (seconds, old, new, expected) in rows {
        let (mut world, mut driver) = asked_back();
        driver.run(&mut world, |push| matches!(push.phase, Phase::BackReady { .. }));
        let waited = world.now.duration_since(driver.push.phase_since);
        world.pass(SignedDuration::from_secs(seconds) - waited);
        leave_up(&mut world, 0, old);
        leave_up(&mut world, 1, new);
        let next = driver.look(&world);
        assert_eq!(next.push.phase.name(), expected, "after {seconds} s, {old} to {new}: {}", next.push.note);
        let acts = next.act.map(|act| (act.step.kind(), act.right));
        assert_eq!(acts, (expected == "back: flip").then_some(("flip", Right::Undo)));
    }
}

#[test]
fn a_flip_back_that_is_refused_is_given_up_and_the_new_group_keeps_serving() {
    let (mut world, mut driver) = asked_back();
    world.refuses.insert("flip");
    driver.run(&mut world, |push| push.phase == Phase::Stuck);
    assert!(driver.push.note.contains("refused, 6 times"), "{}", driver.push.note);
    assert_eq!((world.serving_group().unwrap().as_str(), world.serving_now()), ("hello-web-v001", 3));
}

#[test]
fn an_old_group_that_is_gone_leaves_the_new_one_serving() {
    let (mut world, mut driver) = asked_back();
    world.inventory.groups.remove(&group(0));
    driver.run(&mut world, |push| push.phase == Phase::Stuck);
    assert!(driver.push.note.contains("hello-web-v000 is gone"), "{}", driver.push.note);
    assert_eq!(world.serving_group().unwrap(), "hello-web-v001");
}

#[test]
fn what_still_has_its_old_group_enabled_goes_back_without_enabling_it() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.phase == Phase::Disable);
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "fire", world.now) else { panic!() };
    driver.push = push;
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
    assert!(!world.done.iter().any(|step| matches!(step, Step::Enable { .. })));
}

#[test]
fn a_first_version_that_is_bad_keeps_serving() {
    let mut world = World::new(0);
    world.errors.insert(group(0), 31);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::KeptServing));
    assert_eq!((world.serving_group().unwrap().as_str(), world.serving_now()), ("hello-web-v000", 3));
}

#[test]
fn a_soak_without_data_goes_back_ten_minutes_after_its_end_and_a_watch_never_does() {
    let after = |at: Timestamp, seconds| at.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Soak { .. }));
    let Phase::Soak { until } = driver.push.phase else { panic!() };
    let counters = world.traffic.remove(&group(1)).unwrap();
    for (seconds, expected) in [(0, "soak"), (599, "soak"), (600, "back: enable")] {
        let truth = std::mem::replace(&mut world.now, after(until, seconds));
        let next = driver.look(&world);
        assert_eq!(next.push.phase.name(), expected, "{seconds} s: {}", next.push.note);
        world.now = truth;
    }
    world.traffic.insert(group(1), counters);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.traffic.remove(&group(1));
    world.now = after(world.now, 3_600);
    let next = driver.look(&world);
    assert!(next.push.phase.name() == "watch" && next.push.note.starts_with("no verdict"), "{}", next.push.note);
}
