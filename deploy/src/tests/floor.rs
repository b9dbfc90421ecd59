//! What holds a push where it is: the floor, a halt, traffic that somebody else moved, and time that has not passed.

use jiff::SignedDuration;
use troop_policies::situation::OpenAct;

use super::stage::{Driver, World, at, begin, group, image};
use crate::machine::Newer;
use crate::push::{Phase, Push, PushResult};
use crate::rollback::{self, Answer};

fn seconds(n: i64) -> SignedDuration {
    SignedDuration::from_secs(n)
}

#[test]
fn a_ready_group_that_serves_with_less_than_the_old_one_is_not_flipped_to() {
    let mut world = World::new(3);
    world.boot_ticks = 60;
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    for _ in 0..59 {
        driver.step(&mut world);
    }
    let instance = world.lose_instance(1);
    world.open_acts =
        vec![OpenAct { location: at(), team: None, draw_key: None, group: group(1), instance, zone: None }];
    world.tick();
    driver.step(&mut world);
    // The kill is on record, so it is ready; but two would serve where three did.
    let told = "ready, but not safe to flip: `hello-web-v001` serves with 2, and 3 must be kept";
    assert_eq!((driver.push.phase.name(), driver.push.note.as_str()), ("ready", told));
    let Phase::Ready { deadline } = driver.push.phase else { panic!() };
    driver.run(&mut world, |push| push.phase == Phase::Cancel);
    assert!(driver.push.because.as_ref().unwrap().starts_with("not safe to flip"), "{:?}", driver.push.because);
    assert_eq!((driver.push.phase_since, world.serving_group().unwrap().as_str()), (deadline, "hello-web-v000"));
}

#[test]
fn the_old_group_stays_enabled_while_the_new_one_is_below_the_floor() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.phase == Phase::Disable);
    world.boot_ticks = 1_000;
    let lost = world.lose_instance(1);
    let kill =
        |n| OpenAct { location: at(), team: None, draw_key: None, group: group(n), instance: lost.clone(), zone: None };
    for (open_acts, steps_on) in [(vec![], false), (vec![kill(0)], false), (vec![kill(1)], true)] {
        world.open_acts = open_acts;
        let next = driver.look(&world);
        assert_eq!(next.act.is_some(), steps_on, "{}", next.push.note);
    }
    world.open_acts.clear();
    // It is the death that took capacity, not the push.
    driver.floor = 2;
    let began = driver.push.phase_since;
    driver.run(&mut world, |push| push.phase == Phase::BackEnable);
    assert_eq!(driver.push.phase_since.duration_since(began), seconds(30));
    assert!(driver.push.because.as_ref().unwrap().starts_with("not safe for 30 s"), "{:?}", driver.push.because);
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!((world.serving_group().unwrap().as_str(), world.serving_now()), ("hello-web-v000", 3));
}

#[test]
fn traffic_that_somebody_else_moved_cancels_the_push() {
    for (size, told) in [(3, "hello-web-v009 serves now, not hello-web-v000"), (0, "the cluster's first push")] {
        let mut world = World::new(size);
        let mut driver = Driver::new(begin(&world, "ami-1"), &world);
        driver.floor = 0;
        driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
        world.add_group(&group(9), &image("ami-0"), &std::collections::BTreeMap::new());
        for group in world.inventory.groups.values_mut() {
            group.in_rotation = group.name == super::group(9);
        }
        driver.run(&mut world, |push| push.result.is_some());
        assert_eq!(driver.push.result, Some(PushResult::Cancelled));
        assert!(driver.push.because.as_ref().unwrap().contains(told), "{:?}", driver.push.because);
        assert_eq!(world.serving_group().unwrap(), "hello-web-v009");
    }
}

#[test]
fn a_push_given_up_once_its_group_is_made_disables_and_keeps_it() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.index == 2);
    let Answer::Cancelled(push) = rollback::ask(&driver.push, Newer::None, "ana: no", world.now) else { panic!() };
    assert_eq!(push.phase, Phase::Cancel);
    driver.push = push;
    driver.run(&mut world, |push| matches!(push.phase, Phase::Keep { .. }));
    assert!(!world.inventory.groups[&group(1)].enabled);
    let kept = driver.push.phase_since;
    driver.run(&mut world, |push| push.phase == Phase::Reap);
    assert_eq!(driver.push.phase_since.duration_since(kept), seconds(5), "it is kept for as long as was asked (I21)");
}

#[test]
fn a_deadline_moves_by_what_a_halt_took_and_only_once() {
    let mut world = World::new(3);
    world.boot_ticks = 1_000;
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    let Phase::Ready { deadline } = driver.push.phase else { panic!() };
    world.halted = true;
    let began = world.now;
    for _ in 0..12 {
        driver.step(&mut world);
    }
    assert_eq!(driver.push.held_since, Some(began));
    world.halted = false;
    for _ in 0..2 {
        driver.step(&mut world);
        let deadline = deadline.checked_add(seconds(3)).unwrap();
        assert_eq!((driver.push.phase, driver.push.held_since), (Phase::Ready { deadline }, None));
    }
    let pausing = Push { held_since: Some(began), retry_at: world.now.checked_add(seconds(1)).ok(), ..driver.push };
    let next = Driver::new(pausing, &world).look(&world);
    assert_eq!((next.act, next.push.note.as_str()), (None, "goes on after a halt"));
}

#[test]
fn a_group_without_targets_is_judged_by_its_health_alone() {
    let mut world = World::new(0);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Soak { .. }));
    (world.group_mut(0).has_targets, world.group_mut(0).in_rotation) = (false, false);
    world.traffic.clear();
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Succeeded));
}
