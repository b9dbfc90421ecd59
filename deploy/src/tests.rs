//! Pushes driven through a small world, look by look; every look is also a crash and a restart, because the push goes on
//! from its saved form.

mod back;
mod chaos;
mod floor;
mod outcomes;
mod phases;
mod ready;
mod stage;
mod steps;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;
use troop_policies::TeamName;
use troop_policies::inventory::{TAG_MARK, TAG_TEAM};
use troop_policies::step::{Size, Step};

use crate::machine::Newer;
use crate::push::{Phase, Push, PushResult, Settings};
use crate::rollback::{self, Answer};
use crate::script::{self, Planned};
use crate::start::{Asked, NotStarted, start};
use stage::{Driver, World, at, begin, cluster, group, image, settings};

#[test]
fn a_push_takes_over_and_ends_with_the_old_group_gone() {
    let mut world = World::new(4);
    let push = begin(&world, "ami-1");
    assert_eq!((push.group(), push.size, push.floor), (&group(1), 4, 4));
    let planned = script::planned(&push, &world.inventory);
    let mut driver = Driver::new(push, &world);
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Succeeded));
    assert!(driver.push.ready_at.is_some_and(|ready| Some(ready) <= driver.push.flipped_at));
    assert!(!world.has(0) && world.serving_group().unwrap() == "hello-web-v001");
    assert!(world.overrides.is_empty(), "a destroyed group's name must come without its override");
    let steps: Vec<String> = world.done.iter().map(ToString::to_string).collect();
    let is_step = |planned: &&Planned| matches!(planned, Planned::Step(_));
    let planned: Vec<String> = planned.iter().filter(is_step).map(ToString::to_string).collect();
    assert_eq!(steps, planned, "the plan prints exactly the steps that run (I19)");
}

#[test]
fn the_first_push_of_a_cluster_serves_and_has_nothing_to_watch() {
    let mut world = World::new(0);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run_to_end(&mut world);
    assert_eq!(
        (driver.push.result, world.serving_group().unwrap().as_str()),
        (Some(PushResult::Succeeded), "hello-web-v000")
    );
    assert_eq!(world.inventory.groups[&group(0)].tags[TAG_TEAM], "demo");
    assert_eq!(world.serving_now(), 3);
}

#[test]
fn a_version_that_never_becomes_ready_is_never_flipped_to_and_is_kept_disabled() {
    let mut world = World::new(3);
    world.sick.insert(image("ami-1"));
    let before = world.inventory.groups[&group(0)].size;
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Keep { .. }));
    assert_eq!(driver.push.result, Some(PushResult::Cancelled));
    assert!(
        driver.push.because.as_ref().unwrap().contains("not ready within 20 s: health"),
        "{:?}",
        driver.push.because
    );
    assert!(!world.done.iter().any(|step| matches!(step, Step::Flip { .. })));
    let failed = &world.inventory.groups[&group(1)];
    assert!(!failed.enabled && !failed.members.is_empty(), "it stays for a look (I21)");
    assert_eq!(world.inventory.groups[&group(0)].size, before, "the old group is unpinned");
    driver.run_to_end(&mut world);
    assert!(!world.has(1) && world.has(0), "it is reaped after its time");
}

#[test]
fn errors_flip_back_to_the_recorded_group_with_its_capacity() {
    let mut world = World::new(3);
    let before = world.inventory.groups[&group(0)].size;
    world.errors.insert(group(1), 31);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(driver.push.result, Some(PushResult::RolledBack));
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
    assert!(driver.push.because.as_ref().unwrap().contains("% errors"), "{:?}", driver.push.because);
    assert_eq!(world.inventory.groups[&group(0)].size, before, "unpinned, as it was before");
    assert!(!world.inventory.groups[&group(1)].enabled && world.overrides.contains(&group(1)));
}

#[test]
fn errors_during_the_watch_flip_back_too() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    assert!(driver.push.soaked && !world.inventory.groups[&group(0)].enabled);
    world.errors.insert(group(1), 50);
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(
        (driver.push.result, world.serving_group().unwrap().as_str()),
        (Some(PushResult::RolledBack), "hello-web-v000")
    );
}

#[test]
fn the_old_group_is_pinned_and_grows_with_the_new_one() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    assert_eq!(world.inventory.groups[&group(0)].size, Size { min: 3, desired: 3, max: 6 });
    world.group_mut(1).size = Size { min: 1, desired: 5, max: 6 };
    for _ in 0..40 {
        driver.step(&mut world);
        if matches!(driver.push.phase, Phase::Watch { .. }) && world.inventory.groups[&group(0)].size.desired == 5 {
            break;
        }
    }
    assert_eq!(world.inventory.groups[&group(0)].size, Size { min: 5, desired: 5, max: 6 });
}

#[test]
fn no_data_never_promotes() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Soak { .. }));
    for _ in 0..200 {
        world.traffic.remove(&group(1));
        world.inventory.groups.get_mut(&group(1)).unwrap().in_rotation = false;
        let was = driver.push.phase;
        driver.floor = 0;
        driver.step(&mut world);
        assert_eq!(driver.push.phase, was, "{}", driver.push.note);
    }
    assert!(driver.push.note.starts_with("no verdict"), "{}", driver.push.note);
}

#[test]
fn a_request_before_the_flip_cancels_and_moves_nothing() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    let Answer::Cancelled(push) = rollback::ask(&driver.push, Newer::None, "second thoughts", world.now) else {
        panic!("not cancelled")
    };
    driver.push = push;
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(
        (driver.push.result, world.serving_group().unwrap().as_str()),
        (Some(PushResult::Cancelled), "hello-web-v000")
    );
    assert!(!world.done.iter().any(|step| matches!(step, Step::Flip { .. })));
}

#[test]
fn a_request_while_it_soaks_or_is_watched_goes_back_and_again_is_no_error() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "carts lost", world.now) else { panic!() };
    driver.push = push;
    driver.step(&mut world);
    assert!(matches!(rollback::ask(&driver.push, Newer::None, "again", world.now), Answer::Already { .. }));
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
    assert!(matches!(rollback::ask(&driver.push, Newer::None, "again", world.now), Answer::Cannot { .. }));
}

#[test]
fn a_request_on_a_first_push_or_a_superseded_one_says_why_not() {
    let mut world = World::new(0);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Soak { .. }));
    let Answer::Cannot { why } = rollback::ask(&driver.push, Newer::None, "x", world.now) else { panic!() };
    assert!(why.contains("no older group"), "{why}");
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    for (newer, word) in [(Newer::Flipped { push: 2 }, "roll that one back"), (Newer::Soaked { push: 2 }, "superseded")]
    {
        let Answer::Cannot { why } = rollback::ask(&driver.push, newer, "x", world.now) else { panic!() };
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_newer_push_suspends_the_watch_and_ends_it_once_it_has_soaked() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.newer = Newer::Flipped { push: 2 };
    world.errors.insert(group(1), 100);
    for _ in 0..100 {
        driver.step(&mut world);
    }
    assert!(matches!(driver.push.phase, Phase::Watch { .. }), "a suspended watch judges nothing");
    assert!(world.has(0), "its old group stays, also past the watch's end");
    world.errors.clear();
    world.newer = Newer::Soaked { push: 2 };
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Superseded));
    assert!(!world.has(0));
}

#[test]
fn a_watch_goes_on_when_the_newer_push_went_back() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.newer = Newer::Flipped { push: 2 };
    driver.step(&mut world);
    world.newer = Newer::None;
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Succeeded));
}

#[test]
fn a_halt_before_the_flip_holds_and_its_deadline_stands_still() {
    let mut world = World::new(3);
    world.boot_ticks = 40;
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    world.halted = true;
    for _ in 0..400 {
        driver.step(&mut world);
    }
    assert!(
        matches!(driver.push.phase, Phase::Ready { .. }) && driver.push.note.contains("halted"),
        "{}",
        driver.push.note
    );
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
    world.halted = false;
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    assert_eq!(world.serving_group().unwrap(), "hello-web-v001");
}

#[test]
fn a_halt_after_the_flip_lets_it_finish_and_only_the_destroy_waits() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.phase == Phase::Disable);
    world.halted = true;
    driver.run(&mut world, |push| push.phase == Phase::Destroy);
    for _ in 0..100 {
        driver.step(&mut world);
    }
    assert!(driver.push.phase == Phase::Destroy && world.has(0));
    world.halted = false;
    driver.run_to_end(&mut world);
    assert!(!world.has(0));
}

#[test]
fn a_rollback_is_never_held_by_a_halt() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.halted = true;
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "fire", world.now) else { panic!() };
    driver.push = push;
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
}

#[test]
fn when_the_old_group_cannot_come_back_the_new_one_keeps_serving() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.sick.insert(image("ami-0"));
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "fire", world.now) else { panic!() };
    driver.push = push;
    driver.run(&mut world, |push| push.phase == Phase::Stuck);
    assert_eq!((world.serving_group().unwrap().as_str(), world.serving_now()), ("hello-web-v001", 3));
    assert!(driver.push.note.contains("troop rollback hello-web"), "{}", driver.push.note);
    world.sick.clear();
    let Answer::GoesBack(push) = rollback::ask(&driver.push, Newer::None, "again", world.now) else { panic!() };
    driver.push = push;
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
}

#[test]
fn a_flip_away_by_somebody_else_cancels_the_push() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    world.group_mut(0).in_rotation = false;
    driver.floor = 0;
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(driver.push.result, Some(PushResult::Cancelled));
    assert!(driver.push.because.as_ref().unwrap().contains("no enabled group"), "{:?}", driver.push.because);
}

#[test]
fn an_answer_that_is_lost_is_asked_about_and_the_step_is_not_repeated() {
    for lost in 0..8 {
        let mut world = World::new(3);
        let mut driver = Driver::new(begin(&world, "ami-1"), &world);
        driver.run(&mut world, |push| push.phase == Phase::Ended || push.in_flight.is_none());
        while driver.push.phase != Phase::Ended {
            if world.done.len() == lost {
                world.lose_next_answer = true;
            }
            driver.step(&mut world);
        }
        let mut steps: Vec<String> = world.done.iter().map(ToString::to_string).collect();
        let count = steps.len();
        steps.dedup();
        assert_eq!(steps.len(), count, "answer {lost} lost: {steps:#?}");
        assert_eq!(driver.push.result, Some(PushResult::Succeeded));
    }
}

#[test]
fn a_flip_that_is_refused_is_tried_again_and_then_given_up() {
    let mut world = World::new(3);
    world.refuses.insert("flip");
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.result.is_some());
    assert_eq!(driver.push.result, Some(PushResult::Cancelled));
    assert!(driver.push.because.as_ref().unwrap().contains("refused, 6 times"), "{:?}", driver.push.because);
    assert_eq!(world.serving_group().unwrap(), "hello-web-v000");
}

#[test]
fn an_instance_lost_to_a_recorded_kill_does_not_stop_a_flip_and_one_lost_alone_does() {
    use troop_policies::situation::OpenAct;
    let mut world = World::new(3);
    world.boot_ticks = 60;
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Ready { .. }));
    for _ in 0..59 {
        world.tick();
    }
    let lost = world.lose_instance(1);
    world.group_mut(1).size.desired = 2;
    let kill = OpenAct { location: at(), team: None, draw_key: None, group: group(1), instance: lost, zone: None };
    let alone = driver.look(&world);
    assert!(alone.act.is_none() && alone.push.note.contains("not ready"), "{}", alone.push.note);
    world.tick();
    world.open_acts = vec![kill];
    driver.floor = 2;
    assert!(driver.look(&world).push.note != alone.push.note);
}

#[test]
fn what_may_not_begin_says_why() {
    let world = World::new(4);
    let (image, team, other) = (image("ami-1"), TeamName::new("demo").unwrap(), TeamName::new("shop").unwrap());
    let new = troop_policies::ClusterName::new("fresh-web").unwrap();
    let ask = |cluster: &troop_policies::ClusterName, team: Option<&TeamName>, size| {
        let asked = Asked { cluster, image: &image, version: None, team, size, settings: settings(), actor: "ana" };
        start(&asked, &world.inventory, &world.statuses, &BTreeSet::new(), world.now)
    };
    assert!(matches!(ask(&new, None, None), Err(NotStarted::NeedsTeam { .. })));
    assert!(matches!(ask(&cluster(), Some(&other), None), Err(NotStarted::OtherTeam { .. })));
    assert!(matches!(ask(&cluster(), Some(&team), Some(3)), Err(NotStarted::TooSmall { least: 4, .. })));
    assert!(matches!(ask(&new, Some(&team), Some(2)), Err(NotStarted::TooSmall { least: 3, .. })));
    assert_eq!(ask(&cluster(), None, Some(5)).unwrap().size, 5);
    let told = ask(&cluster(), None, Some(3)).unwrap_err().to_string();
    assert_eq!(told, "3 instances are too few: 4 is the least, as many as hello-web-v000 has");
    let taken = BTreeSet::from([group(1), group(2)]);
    let asked = Asked {
        cluster: &cluster(),
        image: &image,
        version: None,
        team: None,
        size: None,
        settings: settings(),
        actor: "a",
    };
    let push = start(&asked, &world.inventory, &world.statuses, &taken, world.now).unwrap();
    assert_eq!(push.group(), &group(3), "names that pushes on record speak of are skipped (I13)");
}

#[test]
fn a_push_takes_over_zones_and_tags_but_for_the_mark() {
    let mut world = World::new(3);
    let image = image("ami-1");
    let ask = |world: &World, size| {
        let (cluster, settings) = (cluster(), settings());
        let asked = Asked { cluster: &cluster, image: &image, version: None, team: None, size, settings, actor: "a" };
        start(&asked, &world.inventory, &world.statuses, &BTreeSet::new(), world.now)
    };
    world.group_mut(0).tags.extend([("cost", "7"), (TAG_MARK, "x")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    world.group_mut(0).zones.pop_last();
    let new = ask(&world, None).unwrap().new;
    assert_eq!(new.tags, [(TAG_TEAM, "demo"), ("cost", "7")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!(new.zones, world.inventory.groups[&group(0)].zones);
    assert_eq!(ask(&world, Some(2)).unwrap_err().to_string(), "2 instances are too few: 3 is the least");
    world.group_mut(0).zones.pop_last();
    assert_eq!(ask(&world, None).unwrap_err().to_string(), "`hello-web` would run in 1 zone; 2 are the least");
}

#[test]
fn a_failed_first_version_stays_until_another_serves() {
    let mut world = World::new(0);
    world.sick.insert(image("ami-1"));
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| push.phase == Phase::Reap);
    for _ in 0..20 {
        driver.step(&mut world);
    }
    assert!(driver.push.note.contains("last enabled group"), "{}", driver.push.note);
    let mut second = Driver::new(begin(&world, "ami-2"), &world);
    assert_eq!(second.push.group(), &group(1));
    second.run(&mut world, |push| push.result.is_some());
    // As long as a newer push would go back to it, it is that push's.
    world.way_back_of = Some(2);
    for _ in 0..20 {
        driver.step(&mut world);
    }
    assert!(world.has(0) && driver.push.note.contains("way back of push 2"), "{}", driver.push.note);
    world.way_back_of = None;
    driver.run_to_end(&mut world);
    assert!(!world.has(0) && world.serving_group().unwrap() == "hello-web-v001");
}

#[test]
fn the_watch_lasts_as_long_as_was_asked() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    let began = world.now;
    driver.run(&mut world, |push| push.phase == Phase::Destroy);
    let lasted = world.now.duration_since(began);
    assert!((SignedDuration::from_secs(10)..SignedDuration::from_secs(12)).contains(&lasted), "{lasted:?}");
}

#[test]
fn a_group_that_somebody_else_made_under_its_name_is_left_alone() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    world.add_group(&group(1), &image("ami-1"), &std::collections::BTreeMap::new());
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Cancelled));
    assert_eq!(world.done, [], "nothing of it, and nothing of the old group, was touched");
}

#[test]
fn a_push_given_up_before_it_made_its_group_ends_and_reaps_nothing() {
    let world = World::new(3);
    let push = begin(&world, "ami-1");
    let Answer::Cancelled(push) = rollback::ask(&push, Newer::None, "ana: no", world.now) else {
        panic!("nothing had moved")
    };
    assert_eq!((push.phase, push.result), (Phase::Ended, Some(PushResult::Cancelled)));
    assert_eq!(push.because.as_deref(), Some("ana: no"));
}

#[test]
fn what_was_taken_out_late_drains_before_its_end() {
    let mut world = World::new(3);
    let drain = Duration::from_secs(4);
    let push = begin(&world, "ami-1");
    let push = Push { settings: Settings { drain, ..push.settings }, ..push };
    let mut driver = Driver::new(push, &world);
    world.refuses.insert("disable");
    driver.run(&mut world, |push| push.phase == Phase::Destroy);
    assert!(world.inventory.groups[&group(0)].enabled, "it was given up, and serves nobody");
    world.refuses.clear();
    driver.run(&mut world, |push| push.note.contains("drains"));
    driver.run_to_end(&mut world);
    assert!(!world.has(0));
    let took = world.now.duration_since(driver.push.taken_out_at.unwrap());
    assert!(took >= SignedDuration::from_secs(4), "{took:?}");
}

#[test]
fn a_clock_that_was_set_ends_no_watch_early() {
    let mut world = World::new(3);
    let mut driver = Driver::new(begin(&world, "ami-1"), &world);
    driver.run(&mut world, |push| matches!(push.phase, Phase::Watch { .. }));
    world.clock = Err("it was set".to_owned());
    let truth = world.now;
    world.now = world.now.checked_add(SignedDuration::from_hours(1)).unwrap();
    for _ in 0..100 {
        driver.step(&mut world);
    }
    assert!(matches!(driver.push.phase, Phase::Watch { .. }), "{}", driver.push.note);
    assert!(driver.push.note.contains("clock"), "{}", driver.push.note);
    world.clock = Ok(());
    world.now = truth;
    driver.run_to_end(&mut world);
    assert_eq!(driver.push.result, Some(PushResult::Succeeded));
}
