//! What a fault names is delayed, and nothing else.

use troop_agent::plane::Plane as _;
use troop_agent_core::fault::{Direction, Selectors};

use crate::world::*;

#[test]
fn delays_one_port_of_one_peer_and_leaves_nothing() {
    in_namespaces("delay::delays_one_port_of_one_peer_and_leaves_nothing", |world| {
        for (peer, port) in [(PEER, 80), (PEER, 81), (OTHER, 80)] {
            world.echoes(peer, port);
        }
        let mut targeted = connect(PEER, 80);
        let mut spared = [connect(PEER, 81), connect(OTHER, 80)];
        let raw = median_round_trip(&mut targeted, 50);
        let before = state();

        let selectors = Selectors { remote_ports: port(80), ..to(PEER) };
        let mut up = Applied::new(&world, fault(Direction::Egress, selectors, delayed(200)));
        let delayed = median_round_trip(&mut targeted, 5);
        for other in &mut spared {
            assert!(median_round_trip(other, 50) < ms(20));
        }
        let begun = now();
        let mut fresh = connect(PEER, 80);
        let handshake = begun.elapsed();
        let fresh = round_trip(&mut fresh);
        let seen = up.plane.seen(&lease()).unwrap();
        up.heal();
        let healed = median_round_trip(&mut targeted, 50);

        println!(
            "raw {raw:?}, delayed {delayed:?}, handshake {handshake:?}, fresh {fresh:?}, healed {healed:?}, {seen:?}"
        );
        for slow in [delayed, handshake, fresh] {
            assert!((ms(200)..ms(250)).contains(&slow), "{slow:?}");
        }
        assert!(healed < ms(20));
        assert_eq!(state(), before);
        assert_eq!(up.journal.leases().unwrap(), Vec::<String>::new());
    });
}
