//! Faults as they are asked for, checked into those that are put up.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::time::Duration;

use troop_agent::plane::forward::ForwardPlane;
use troop_agent_core::protocol::{Found, fault_of};
use troop_policies::fault::{DelaySpec, FaultSpec, Peer, Shape, ShapeTable};

use crate::world::*;

fn put_up(world: &World, spec: &FaultSpec) -> Applied<ForwardPlane> {
    let peers = [PEER.parse().unwrap()];
    let peers = if spec.to == [Peer::Everything] { &[][..] } else { &peers };
    Applied::new(world, fault_of(spec, Found { peers, ..Found::default() }).unwrap())
}

/// How long a datagram takes to this port of the peer; `None` for one that has not come after half a second.
fn question(server: &UdpSocket, port: u16) -> Option<Duration> {
    server.set_read_timeout(Some(ms(500))).unwrap();
    let begun = now();
    UdpSocket::bind((HOST, 0)).unwrap().send_to(b"who", (PEER, port)).unwrap();
    server.recv(&mut [0; 16]).ok().map(|_| begun.elapsed())
}

#[test]
#[ignore = "needs user namespaces"]
fn names_are_slow_or_unknown_by_udp_and_tcp_and_nothing_else_is() {
    in_namespaces("asked::names_are_slow_or_unknown_by_udp_and_tcp_and_nothing_else_is", |world| {
        let [resolver, other] = [53, 54].map(|port| world.peer_socket(PEER, port));
        [53, 80].into_iter().for_each(|port| world.echoes(PEER, port));
        let mut long_answers = connect(PEER, 53);
        let mut web = connect(PEER, 80);

        let mut up = put_up(&world, &FaultSpec::slow_dns(ms(120)));
        let slow = question(&resolver, 53).unwrap();
        let (by_tcp, spared) = (median_round_trip(&mut long_answers, 3), median_round_trip(&mut web, 20));
        let beside = question(&other, 54).unwrap();
        up.heal();
        println!("by UDP {slow:?}, by TCP {by_tcp:?}, the web {spared:?}, port 54 {beside:?}");
        assert!([slow, by_tcp].into_iter().all(|took| (ms(120)..ms(180)).contains(&took)));
        assert!([spared, beside].into_iter().all(|took| took < ms(20)));

        let mut up = put_up(&world, &FaultSpec::no_dns());
        assert_eq!(question(&resolver, 53), None);
        assert!(question(&other, 54).is_some());
        long_answers.set_read_timeout(Some(ms(300))).unwrap();
        long_answers.write_all(b"name").unwrap();
        assert!(long_answers.read_exact(&mut [0; 4]).is_err());
        up.heal();
        assert!(question(&resolver, 53).is_some());
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_measured_shape_delays_as_it_was_measured() {
    in_namespaces("asked::a_measured_shape_delays_as_it_was_measured", |world| {
        world.echoes(PEER, 80);
        let mut stream = connect(PEER, 80);
        // Half of them 40 ms, half 80.
        let shape = Shape::Table(ShapeTable::new(vec![-8_192, 8_192]).unwrap());
        let delay = DelaySpec { mean_us: 60_000, jitter_us: 20_000, correlation_ppm: 0, shape, reorders: false };
        let spec = FaultSpec { delay: Some(delay), ..FaultSpec::delay(ms(1), vec![PEER.parse().unwrap()]) };
        let mut up = put_up(&world, &spec);
        let took: Vec<Duration> = (0..30).map(|_| round_trip(&mut stream)).collect();
        up.heal();
        let near = |asked| took.iter().filter(|took: &&Duration| (ms(asked)..ms(asked + 25)).contains(*took)).count();
        println!("{} near 40 ms, {} near 80 ms of {took:?}", near(40), near(80));
        // Five deviations of a binomial of 30 and one half are 14.
        assert!(near(40) >= 1 && near(80) >= 1 && near(40) + near(80) >= 27);
    });
}
