//! Packets of a cgroup are delayed, and nobody else's.

use std::time::Duration;

use troop_agent::plane::Plane as _;
use troop_agent_core::fault::Direction;
use troop_agent_core::lease::Ttl;

use crate::group::Group;
use crate::world::*;

#[test]
#[ignore = "needs root"]
fn delays_what_a_cgroup_and_those_within_it_send_and_nothing_else() {
    in_namespaces("owner::delays_what_a_cgroup_and_those_within_it_send_and_nothing_else", |world| {
        let Some(group) = Group::make() else {
            return println!("skipped: no cgroup can be made here");
        };
        world.echoes(PEER, 80);
        let mut others = connect(PEER, 80);
        let raw = group.round_trip(".");
        let was = state();

        let mut up = Applied::new(&world, fault(Direction::Egress, group.selected(), delayed(150)));
        let [own, within] = [".", "within"].map(|part| group.round_trip(part));
        let spared = median_round_trip(&mut others, 20);
        let fresh = median_round_trip(&mut connect(PEER, 80), 20);
        up.heal();
        let healed = group.round_trip(".");

        println!("raw {raw:?}, own {own:?}, within {within:?}, spared {spared:?} and {fresh:?}, healed {healed:?}");
        assert!([own, within].into_iter().all(|slow| (ms(150)..ms(210)).contains(&slow)));
        assert!([raw, spared, fresh, healed].into_iter().all(|fast| fast < ms(20)));
        assert_eq!(state(), was);

        // Nobody renews: then nothing is marked and nothing held, with the tables still there.
        let mut order = order(fault(Direction::Egress, group.selected(), delayed(150)));
        order.ttl = Ttl::new(ms(700)).unwrap();
        let mut up = Applied::of(&world, &order);
        let held = group.round_trip(".");
        std::thread::sleep(ms(300));
        let lapsed = group.round_trip(".");
        up.plane.renew(&lease(), Ttl::new(Duration::from_secs(5)).unwrap(), ms(900)).unwrap();
        let renewed = group.round_trip(".");
        up.heal();
        println!("held {held:?}, lapsed {lapsed:?}, renewed {renewed:?}");
        assert!([held, renewed].into_iter().all(|slow| slow >= ms(150)) && lapsed < ms(20));
    });
}
