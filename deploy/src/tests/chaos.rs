//! Pushes under seeded trouble: instances die, answers are lost, steps are refused, halts and requests come and go.
//! Whatever happens, the cluster keeps serving, and the push comes to an end or says what it waits for.

use proptest::prelude::*;
use proptest::test_runner::Config;
use troop_policies::step::Step;

use super::stage::{Driver, World, begin, group, image};
use crate::machine::Newer;
use crate::push::Phase;
use crate::rollback::{self, Answer};

#[derive(Debug, Clone)]
enum Trouble {
    Nothing,
    LoseAnswer,
    Refuse(&'static str),
    Agree,
    Halt,
    Resume,
    AskBack,
    Errors(u64),
    Sick,
    Well,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        12 => Just(Trouble::Nothing),
        2 => Just(Trouble::LoseAnswer),
        2 => prop::sample::select(vec!["flip", "disable", "enable", "resize", "create_group", "destroy", "override_group"])
            .prop_map(Trouble::Refuse),
        3 => Just(Trouble::Agree),
        1 => Just(Trouble::Halt),
        2 => Just(Trouble::Resume),
        1 => Just(Trouble::AskBack),
        1 => (0_u64..100).prop_map(Trouble::Errors),
        1 => Just(Trouble::Sick),
        2 => Just(Trouble::Well),
    ]
}

proptest! {
    #![proptest_config(Config { cases: 64, failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_cluster_keeps_serving_whatever_happens_to_a_push(troubles in prop::collection::vec(trouble(), 1..120)) {
        let mut world = World::new(3);
        let mut driver = Driver::new(begin(&world, "ami-1"), &world);
        for trouble in troubles {
            match trouble {
                Trouble::Nothing => {}
                Trouble::LoseAnswer => world.lose_next_answer = true,
                Trouble::Refuse(kind) => {
                    world.refuses.insert(kind);
                }
                Trouble::Agree => world.refuses.clear(),
                Trouble::Halt => world.halted = true,
                Trouble::Resume => world.halted = false,
                Trouble::AskBack => {
                    if let Answer::GoesBack(push) | Answer::Cancelled(push) =
                        rollback::ask(&driver.push, Newer::None, "asked", world.now)
                    {
                        driver.push = push;
                    }
                }
                Trouble::Errors(percent) => {
                    world.errors.insert(group(1), percent);
                }
                Trouble::Sick => {
                    // A new version that falls ill after the flip takes capacity by itself, which is not our doing.
                    if driver.push.flipped_at.is_none() && driver.push.phase != Phase::Flip {
                        world.sick.insert(image("ami-1"));
                    }
                }
                Trouble::Well => world.sick.clear(),
            }
            for _ in 0..6 {
                driver.step(&mut world);
            }
        }
        // Left alone, it ends.
        world.refuses.clear();
        world.sick.clear();
        world.halted = false;
        world.errors.clear();
        driver.run(&mut world, |push| matches!(push.phase, Phase::Ended | Phase::Stuck));
        prop_assert!(world.serving_group().is_ok());
        let enabled = world.inventory.groups.values().filter(|g| g.enabled).count();
        prop_assert_eq!(enabled, if driver.push.phase == Phase::Stuck { enabled } else { 1 });
        // Both directions enable before they disable: nothing in rotation was ever disabled (asserted by the world).
        let flips = world.done.iter().filter(|step| matches!(step, Step::Flip { .. })).count();
        prop_assert!(flips <= 2 + world.done.len() / 4);
    }
}
