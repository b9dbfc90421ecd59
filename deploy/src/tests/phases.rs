//! What each phase stands for, and what a push is to others by it.

use jiff::Timestamp;
use troop_policies::step::Step;

use super::stage::{Driver, World, begin, group};
use crate::machine::{Newer, holds_lock};
use crate::push::{Phase, Push, PushResult};
use crate::rollback::{self, Answer};

#[test]
fn every_phase_knows_its_lock_and_its_side_of_the_flip() {
    let at = Timestamp::UNIX_EPOCH;
    // Whether it holds the cluster's lock, nothing has moved yet, and it goes back.
    let rows = [
        (Phase::Create, "create", (true, true, false)),
        (Phase::Ready { deadline: at }, "ready", (true, true, false)),
        (Phase::Flip, "flip", (true, true, false)),
        (Phase::Disable, "disable old", (true, false, false)),
        (Phase::Soak { until: at }, "soak", (true, false, false)),
        (Phase::Watch { until: at }, "watch", (false, false, false)),
        (Phase::Destroy, "destroy old", (true, false, false)),
        (Phase::BackEnable, "back: enable", (true, false, true)),
        (Phase::BackReady { deadline: at }, "back: ready", (true, false, true)),
        (Phase::BackFlip, "back: flip", (true, false, true)),
        (Phase::BackDisable, "back: disable", (true, false, true)),
        (Phase::Cancel, "cancel", (true, false, false)),
        (Phase::Keep { until: at }, "kept", (false, false, false)),
        (Phase::Reap, "reap", (true, false, false)),
        (Phase::Stuck, "stuck", (false, false, false)),
        (Phase::Ended, "ended", (false, false, false)),
    ];
    for (phase, name, side) in rows {
        assert_eq!(phase.name(), name);
        assert_eq!((holds_lock(phase), phase.is_before_flip(), phase.is_going_back()), side, "{name}");
        assert_eq!(phase.watched_until(), (name == "watch").then_some(at), "{name}");
    }
}

#[test]
fn a_result_reads_as_it_is_saved() {
    use PushResult::{Cancelled, KeptServing, RolledBack, Succeeded, Superseded};
    for result in [Succeeded, Superseded, RolledBack, Cancelled, KeptServing] {
        assert_eq!(serde_json::to_value(result).unwrap(), result.as_str());
    }
}

/// A push in this phase, with its flip done or not, with its step in flight or not, and with its result.
fn push(phase: Phase, flipped: bool, in_flight: bool, result: Option<PushResult>) -> Push {
    let world = World::new(3);
    let flip = || world.intent(Step::Flip { cluster: super::cluster(), to: group(1) });
    Push {
        phase,
        flipped_at: flipped.then_some(world.now),
        in_flight: in_flight.then(flip),
        result,
        ..begin(&world, "ami-1")
    }
}

#[test]
fn traffic_counts_as_asked_for_from_the_flips_intent_on() {
    let watch = Phase::Watch { until: Timestamp::UNIX_EPOCH };
    let rows = [
        (push(Phase::Create, false, false, None), false),
        (push(Phase::Create, false, true, None), false),
        (Push { attempts: 1, ..push(Phase::Create, false, false, None) }, false),
        (push(Phase::Flip, false, false, None), false),
        (push(Phase::Flip, false, true, None), true),
        (Push { attempts: 1, ..push(Phase::Flip, false, false, None) }, true),
        (push(watch, true, false, None), true),
    ];
    for (row, (push, asked)) in rows.into_iter().enumerate() {
        assert_eq!(push.flip_was_asked(), asked, "row {row}");
        let newer = if asked { Newer::Flipped { push: 2 } } else { Newer::None };
        assert_eq!(rollback::newer_of(&push, 2), newer, "row {row}");
        let over = Push { result: Some(PushResult::RolledBack), ..push.clone() };
        assert_eq!(rollback::newer_of(&over, 2), Newer::None, "row {row}");
        // Soaked once, it has superseded the older one for good.
        let soaked = Push { soaked: true, ..over };
        assert_eq!(rollback::newer_of(&soaked, 2), Newer::Soaked { push: 2 }, "row {row}");
    }
}

#[test]
fn a_push_serves_from_its_flip_until_the_traffic_is_back() {
    let (watch, over) = (Phase::Watch { until: Timestamp::UNIX_EPOCH }, Some(PushResult::Succeeded));
    let rows = [
        (push(Phase::Create, false, false, None), (false, true)),
        (push(watch, true, false, None), (true, true)),
        (push(Phase::BackFlip, true, false, None), (true, true)),
        (push(Phase::BackDisable, true, false, None), (false, true)),
        (push(Phase::Destroy, true, false, over), (false, false)),
        (push(Phase::Ended, false, false, over), (false, false)),
        (push(Phase::Ended, false, false, None), (false, false)),
    ];
    for (push, expected) in rows {
        assert_eq!((push.is_serving(), rollback::is_open(&push)), expected, "{}", push.phase.name());
    }
}

#[test]
fn a_step_in_flight_is_waited_for_by_the_push_and_by_who_asks_it_back() {
    let mut world = World::new(3);
    for phase in [Phase::Create, Phase::Flip, Phase::Disable, Phase::Stuck] {
        let push = push(phase, false, true, None);
        let mut driver = Driver::new(push.clone(), &world);
        let seen = driver.look(&world);
        assert_eq!((seen.push, seen.act), (push.clone(), None), "{}", phase.name());
        assert_eq!(rollback::ask(&push, Newer::None, "x", world.now), Answer::Later, "{}", phase.name());
    }
    world.halted = true;
    let held = Driver::new(begin(&world, "ami-1"), &world).look(&world).push;
    assert_eq!(held.held_since, Some(world.now));
    let held = Push { index: 1, ..held };
    let Answer::Cancelled(push) = rollback::ask(&held, Newer::None, "x", world.now) else { panic!("not cancelled") };
    assert_eq!((push.phase, push.held_since), (Phase::Cancel, None), "what is given up does not stand still");
}
