//! What an outcome means to a push: how often a step is tried, when again, and what comes after it is given up.

use std::time::Duration;

use jiff::SignedDuration;
use troop_policies::intent::Outcome;
use troop_policies::step::Step;

use super::stage::{Driver, World, begin, cluster, group};
use crate::outcome::{ATTEMPTS_MAX, settled};
use crate::push::{Phase, Push};

const TOOK: Duration = Duration::from_millis(5);

/// A push in this phase, at its second step, which was tried so often already and is in flight.
fn trying(world: &World, phase: Phase, attempts: u32) -> Push {
    let step = Step::Flip { cluster: cluster(), to: group(1) };
    Push { phase, index: 1, attempts, in_flight: Some(world.intent(step)), ..begin(world, "ami-1") }
}

#[test]
fn a_refused_step_is_tried_again_six_times_where_it_may_be_given_up() {
    let world = World::new(3);
    let no = Outcome::refused("busy");
    // The phase after one refusal, and after the last; what is never given up stays at its step.
    let rows = [
        (Phase::Create, "create", "cancel", 0),
        (Phase::Flip, "ready", "cancel", 0),
        (Phase::Disable, "disable old", "disable old", 2),
        (Phase::BackEnable, "back: enable", "stuck", 0),
        (Phase::BackFlip, "back: ready", "stuck", 0),
        (Phase::BackDisable, "back: disable", "back: disable", 2),
        (Phase::Cancel, "cancel", "cancel", 2),
        (Phase::Destroy, "destroy old", "destroy old", 1),
        (Phase::Reap, "reap", "reap", 1),
    ];
    for (phase, once, at_last, index) in rows {
        let told = phase.name();
        for attempts in [0, ATTEMPTS_MAX - 2] {
            let again = settled(&trying(&world, phase, attempts), &no, TOOK, world.now);
            assert_eq!((again.phase.name(), again.attempts), (once, attempts + 1), "{told}");
            let pause = SignedDuration::from_secs(2 * i64::from(attempts + 1));
            assert_eq!(again.retry_at, Some(world.now.checked_add(pause).unwrap()), "{told}");
            assert!(again.in_flight.is_none() && again.note.contains("busy"), "{told}: {}", again.note);
        }
        let last = settled(&trying(&world, phase, ATTEMPTS_MAX - 1), &no, TOOK, world.now);
        assert_eq!((last.phase.name(), last.index), (at_last, index), "{told}");
        assert_eq!(last.attempts, if index == 1 { ATTEMPTS_MAX } else { 0 }, "{told}: what comes next begins anew");
        assert!(last.note.contains("refused, 6 times: busy"), "{told}: {}", last.note);
        assert_eq!(last.retry_at.is_some(), last.phase == phase, "{told}: another phase begins at once");
    }
    let patient = settled(&trying(&world, Phase::Destroy, 99), &no, TOOK, world.now);
    assert_eq!(patient.retry_at, Some(world.now.checked_add(SignedDuration::from_secs(30)).unwrap()));
}

#[test]
fn a_step_that_was_done_leaves_no_attempts_behind() {
    let world = World::new(3);
    let retry_at = Some(world.now);
    for phase in [Phase::Create, Phase::Disable, Phase::Destroy, Phase::BackEnable, Phase::BackDisable, Phase::Reap] {
        let push = Push { retry_at, ..trying(&world, phase, 3) };
        let done = settled(&push, &Outcome::done("ok"), TOOK, world.now);
        assert_eq!((done.phase, done.index, done.attempts, done.retry_at), (phase, 2, 0, None), "{}", phase.name());
        assert!(done.in_flight.is_none());
    }
    let flipped = settled(&trying(&world, Phase::Flip, 0), &Outcome::done("ok"), TOOK, world.now);
    assert_eq!((flipped.phase, flipped.flipped_at, flipped.flip_ms), (Phase::Disable, Some(world.now), Some(5.0)));
}

#[test]
fn an_outcome_that_nobody_knows_leaves_the_step_in_flight() {
    let world = World::new(3);
    let push = trying(&world, Phase::Flip, 0);
    let unknown = settled(&push, &Outcome::unknown("timed out"), TOOK, world.now);
    assert!(unknown.note.starts_with("nobody can say yet") && unknown.note.ends_with("timed out"), "{}", unknown.note);
    assert_eq!(Push { note: push.note.clone(), ..unknown }, push);
}

#[test]
fn a_refused_step_waits_for_its_time() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    world.refuses.insert("create_group");
    driver.step(&mut world);
    let at = driver.push.retry_at.unwrap();
    assert_eq!(driver.push.attempts, 1);
    while world.now < at {
        assert_eq!(driver.look(&world).act, None);
        world.tick();
    }
    assert_eq!(world.now, at);
    let again = driver.look(&world);
    assert_eq!(again.push.note, again.act.unwrap().step.to_string(), "what is done now is said");
    world.tick();
    assert!(driver.look(&world).act.is_some(), "it is not forgotten after its time");
}

#[test]
fn refused_upkeep_is_tried_again_after_its_pause_and_holds_up_no_verdict() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.refuses.insert("resize");
    world.group_mut(1).size.desired = 4;
    driver.run(&mut world, |push| push.retry_at.is_some());
    let at = driver.push.retry_at.unwrap();
    while world.now < at {
        assert_eq!(driver.look(&world).act, None);
        world.tick();
    }
    assert!(matches!(driver.look(&world).act.unwrap().step, Step::Resize { .. }));
    driver.push.retry_at = Some(world.now.checked_add(SignedDuration::from_hours(1)).unwrap());
    world.errors.insert(group(1), 100);
    for _ in 0..8 {
        driver.step(&mut world);
    }
    assert!(driver.push.phase.is_going_back(), "{}", driver.push.note);
}
