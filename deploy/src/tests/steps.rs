//! What a phase needs, step by step, and how it is told to people.

use std::time::Duration;

use jiff::SignedDuration;
use troop_policies::intent::Outcome;
use troop_policies::step::{How, Size, Step};

use super::stage::{Driver, World, begin, cluster, group};
use crate::machine::Newer;
use crate::push::{Phase, Push, Settings};
use crate::rollback::{self, Answer};
use crate::script::{self, Action, Need, Planned, need};

#[test]
fn the_way_back_is_planned_as_it_runs() {
    type Until = fn(&Push) -> bool;
    let ready: Until = |push| matches!(push.phase, Phase::Ready { .. });
    let watch: Until = |push| matches!(push.phase, Phase::Watch { .. });
    // The last one's new group has grown since the old one was pinned.
    for (until, desired) in [(ready, 3), (watch, 3), (watch, 5)] {
        let mut world = World::new(3);
        let mut driver = Driver::new(begin(&world, "ami-1"), &world);
        driver.run(&mut world, until);
        world.group_mut(1).size.desired = desired;
        let planned = script::planned_back(&driver.push, &world.inventory);
        let is_step = |planned: &&Planned| matches!(planned, Planned::Step(_));
        let planned: Vec<String> = planned.iter().filter(is_step).map(ToString::to_string).collect();
        let (Answer::GoesBack(push) | Answer::Cancelled(push)) =
            rollback::ask(&driver.push, Newer::None, "fire", world.now)
        else {
            panic!()
        };
        driver.push = push;
        world.done.clear();
        driver.run(&mut world, |push| push.result.is_some());
        let steps: Vec<String> = world.done.iter().map(ToString::to_string).collect();
        assert!(steps.len() >= 3, "{steps:?}");
        assert_eq!(steps, planned, "the plan prints exactly the steps that run (I19)");
    }
}

#[test]
fn a_plan_says_its_times_as_people_do() {
    let world = World::new(3);
    let rows = [
        (0, "0 s"),
        (250, "250 ms"),
        (60_000, "60 s"),
        (119_000, "119 s"),
        (120_000, "2 min"),
        (121_000, "121 s"),
        (3_600_000, "1 h"),
        (3_601_000, "3601 s"),
        (5_400_000, "90 min"),
        (43_200_000, "12 h"),
    ];
    for (millis, told) in rows {
        let push = begin(&world, "ami-1");
        let settings = Settings { ready_within: Duration::from_millis(millis), ..push.settings };
        let planned = script::planned(&Push { settings, ..push }, &world.inventory);
        let expected = format!("wait until hello-web-v001 is ready by 7 checks, at most {told}");
        assert!(planned.contains(&Planned::Wait(expected)), "{planned:#?}");
    }
}

#[test]
fn what_is_so_already_needs_no_step() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.phase == Phase::Disable);
    let push = driver.push;
    world.group_mut(1).size.desired = 5;
    assert_eq!(need(Action::GrowNew, &push, &world.inventory), Need::Nothing, "it is never shrunk");
    assert!(matches!(need(Action::OverrideOld, &push, &world.inventory), Need::Step(Step::OverrideGroup { .. })));
    world.group_mut(0).registry_required = false;
    assert_eq!(need(Action::OverrideOld, &push, &world.inventory), Need::Nothing, "it is in no registry");
}

#[test]
fn a_disabled_group_goes_once_it_has_drained_also_as_the_last_of_its_cluster() {
    let mut world = World::new(3);
    let push = Push { taken_out_at: Some(world.now), ..begin(&world, "ami-1") };
    let destroys = |world: &World| need(Action::DestroyOld, &push, &world.inventory);
    assert!(matches!(destroys(&world), Need::Wait(why) if why.contains("last enabled group")));
    world.group_mut(0).enabled = false;
    assert_eq!(destroys(&world), Need::Wait("hello-web-v000 drains".to_owned()));
    world.pass(SignedDuration::from_secs(1));
    assert_eq!(destroys(&world), Need::Step(Step::Destroy { group: group(0) }));
}

#[test]
fn a_steps_effect_is_seen_once_it_is_there_and_not_before() {
    let mut world = World::new(3);
    let new = begin(&world, "ami-1").new;
    let size = Size { min: 2, desired: 2, max: 6 };
    let steps = [
        Step::CreateGroup { group: new },
        Step::Resize { group: group(1), size },
        Step::Flip { cluster: cluster(), to: group(1) },
        Step::Disable { group: group(0), drain: Duration::ZERO },
        Step::Enable { group: group(0) },
        Step::Disable { group: group(0), drain: Duration::ZERO },
        Step::Destroy { group: group(0) },
    ];
    for step in steps {
        assert_eq!(step.seen_in(&world.inventory), Some(false), "{step}");
        assert!(matches!(world.perform(&step), Outcome::Done { .. }), "{step}");
        assert_eq!(step.seen_in(&world.inventory), Some(true), "{step}");
    }
    let out = Step::OverrideGroup { group: group(1), out_of_service: true };
    assert_eq!(out.seen_in(&world.inventory), None, "the world does not show it");
    world.tick();
    let instance = world.group_mut(1).members.keys().next().unwrap().clone();
    let kill = Step::Terminate { group: group(1), instance: instance.clone(), kill: How::Crash };
    assert_eq!(kill.seen_in(&world.inventory), Some(false));
    world.group_mut(1).members.remove(&instance);
    assert_eq!(kill.seen_in(&world.inventory), Some(true));
}
