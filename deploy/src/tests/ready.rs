//! Ready, check by check: what is missing is said by the first check that misses it.

use troop_policies::inventory::{Instance, Lifecycle};
use troop_policies::registry_view::Status;
use troop_policies::situation::OpenAct;

use super::stage::{World, at, group, image};
use crate::ready::{self, Wanted, ZONES_MIN};

fn missing(world: &World, count: u32) -> Option<String> {
    let (group, image) = (group(0), image("ami-0"));
    let wanted = Wanted { group: &group, count, image: Some(&image), zones: ZONES_MIN, open: &world.open_acts };
    ready::missing(&ready::checks(wanted, &world.inventory, Some(&world.statuses), world.now))
}

fn member(world: &mut World, n: usize) -> &mut Instance {
    world.group_mut(0).members.values_mut().nth(n).unwrap()
}

fn down(world: &mut World, n: usize) {
    let id = member(world, n).id.clone();
    world.statuses.insert(id, Status::Down);
}

/// Puts the four members into zones by these letters.
fn spread(world: &mut World, zones: [char; 4]) {
    for (n, zone) in zones.into_iter().enumerate() {
        member(world, n).zone = format!("r1{zone}").parse().unwrap();
    }
}

#[test]
fn each_check_says_what_it_misses() {
    type Row = (u32, fn(&mut World), Option<&'static str>);
    let rows: [Row; 14] = [
        (4, |_| {}, None),
        (4, |w| w.inventory.groups.clear(), Some("count: hello-web-v000 does not exist")),
        (4, |w| drop(w.lose_instance(0)), Some("count: 3 of 4 members")),
        (4, |w| member(w, 1).lifecycle = Lifecycle::Pending, Some("lifecycle: 3 of 4 in service")),
        (4, |w| down(w, 1), Some("registry: 3 of 4 registered UP")),
        (4, |w| member(w, 1).target = None, Some("health: 3 of 4 healthy")),
        // Three are UP and three are healthy, but they are not the same three.
        (
            3,
            |w| {
                down(w, 1);
                member(w, 2).target = None;
            },
            Some("balancer: 2 of 3 able to serve"),
        ),
        (4, |w| spread(w, ['a', 'a', 'a', 'a']), Some("zones: 4+0+0: in 1 zones, 2 are the least")),
        (4, |w| spread(w, ['a', 'a', 'a', 'b']), Some("zones: 3+1+0: uneven")),
        (4, |w| spread(w, ['a', 'a', 'b', 'b']), Some("zones: 2+2+0: uneven")),
        (
            4,
            |w| {
                w.group_mut(0).zones.pop_last();
                spread(w, ['a', 'a', 'b', 'b']);
            },
            None,
        ),
        (
            3,
            |w| {
                spread(w, ['a', 'a', 'b', 'c']);
                member(w, 3).lifecycle = Lifecycle::Pending;
            },
            Some("zones: 2+1+0: uneven"),
        ),
        (4, |w| member(w, 1).image = image("ami-9"), Some("image: i-0001 runs ami-9, not ami-0")),
        (
            4,
            |w| {
                w.group_mut(0).registry_required = false;
                w.statuses.clear();
            },
            None,
        ),
    ];
    for (row, (count, spoil, expected)) in rows.into_iter().enumerate() {
        let mut world = World::new(4);
        spoil(&mut world);
        assert_eq!(missing(&world, count).as_deref(), expected, "row {row}");
    }
}

#[test]
fn one_that_an_act_hurts_is_excused_and_counts_for_nothing() {
    let mut world = World::new(4);
    let slow = member(&mut world, 1).id.clone();
    world.open_acts =
        vec![OpenAct { location: at(), team: None, draw_key: None, group: group(0), instance: slow, zone: None }];
    assert_eq!(missing(&world, 4), None, "three serve unhurt, and one is excused");
    // Another that is ill is not excused by it, and the slow one does not stand in for it.
    member(&mut world, 2).target = None;
    assert_eq!(missing(&world, 4).as_deref(), Some("health: 2 of 3 healthy"));
}

#[test]
fn a_recorded_kill_excuses_its_own_group_and_no_other() {
    let mut world = World::new(4);
    let killed = member(&mut world, 1).id.clone();
    world.group_mut(0).members.remove(&killed);
    let kill = |n| OpenAct {
        location: at(),
        team: None,
        draw_key: None,
        group: group(n),
        instance: killed.clone(),
        zone: None,
    };
    world.open_acts = vec![kill(1)];
    assert_eq!(missing(&world, 4).as_deref(), Some("count: 3 of 4 members"));
    // What is left, 2+0+1, is uneven by that kill alone.
    world.open_acts = vec![kill(0)];
    assert_eq!(missing(&world, 4), None);
    world.open_acts = vec![kill(0), kill(0), kill(0), kill(0)];
    world.group_mut(0).members.clear();
    assert_eq!(missing(&world, 4).as_deref(), Some("count: 0 of 1 members"), "nothing at all is never ready");
}

#[test]
fn a_registry_that_cannot_be_read_is_not_ready_where_the_image_requires_it() {
    let mut world = World::new(3);
    let unread = |world: &World| -> Vec<&'static str> {
        let wanted = Wanted { group: &group(0), count: 3, image: None, zones: 2, open: &[] };
        let checks = ready::checks(wanted, &world.inventory, None, world.now);
        let says_so = |why: &String| why == "the registry cannot be read, or is warming up";
        checks.iter().filter(|c| c.result.as_ref().is_err_and(says_so)).map(|c| c.name).collect()
    };
    assert_eq!(unread(&world), ["registry", "balancer"]);
    world.group_mut(0).registry_required = false;
    assert!(unread(&world).is_empty());
}
