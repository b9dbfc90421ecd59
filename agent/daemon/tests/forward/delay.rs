//! What a fault names is delayed, and nothing else.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use troop_agent::plane::Plane;
use troop_agent::plane::forward::ForwardPlane;
use troop_agent_core::distribution::Distribution;
use troop_agent_core::fault::{Delay, Direction, FlowShare, Order, Parts, Probability, Selectors};

use crate::world::*;

fn everything() -> Selectors {
    Selectors { everything: true, ..Selectors::default() }
}

/// At least so long, and not so much longer that it would be another fault.
fn is_about(measured: Duration, asked: Duration) -> bool {
    (asked..asked + ms(60)).contains(&measured)
}

#[test]
#[ignore = "needs user namespaces"]
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

        println!("raw {raw:?}, delayed {delayed:?}, handshake {handshake:?}, fresh {fresh:?}, healed {healed:?}");
        assert!([delayed, handshake, fresh].into_iter().all(|slow| is_about(slow, ms(200))));
        assert!(is_about(seen.held_for.unwrap(), ms(200)), "{seen:?}");
        assert!(healed < ms(20));
        assert_eq!(state(), before);
        assert_eq!(up.journal.leases().unwrap(), Vec::<String>::new());
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn delays_what_comes_in_to_sockets_bound_to_the_device_under_strict_source_checks() {
    let name = "delay::delays_what_comes_in_to_sockets_bound_to_the_device_under_strict_source_checks";
    in_namespaces(name, |world| {
        for of in ["all", "eth0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"), "1").unwrap();
        }
        for port in [9_000, 9_001] {
            let listener = TcpListener::bind((HOST, port)).unwrap();
            nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::BindToDevice, &"eth0".into()).unwrap();
            serve(listener);
        }
        let mut before = world.peer_connects(HOST, 9_000);
        let mut other = world.peer_connects(HOST, 9_001);
        let was = state();

        let selectors = Selectors { local_ports: port(9_000), ..to("10.0.0.0/24") };
        let mut up = Applied::new(&world, fault(Direction::Ingress, selectors, delayed(150)));
        let old = median_round_trip(&mut before, 5);
        let new = median_round_trip(&mut world.peer_connects(HOST, 9_000), 5);
        let spared = median_round_trip(&mut other, 50);
        up.heal();
        let healed = median_round_trip(&mut before, 50);

        println!("old {old:?}, new {new:?}, spared {spared:?}, healed {healed:?}");
        assert!(is_about(old, ms(150)) && is_about(new, ms(150)));
        assert!(spared < ms(20) && healed < ms(20));
        assert_eq!(state(), was);
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn delays_both_ways_each_by_the_whole_in_both_families() {
    in_namespaces("delay::delays_both_ways_each_by_the_whole_in_both_families", |world| {
        both_ways_in_both_families(&world, ForwardPlane::open().unwrap())
    });
}

pub(crate) fn both_ways_in_both_families<P: Plane>(world: &World, plane: P) {
    for peer in [PEER, PEER_6] {
        world.echoes(peer, 80);
    }
    let mut four = connect(PEER, 80);
    let mut up = Applied::by(plane, world, &order(fault(Direction::Both, to("fd00::/64"), delayed(50))));
    let six = median_round_trip(&mut connect(PEER_6, 80), 5);
    let spared = median_round_trip(&mut four, 50);
    up.plane.retarget(&lease(), &[PEER.parse().unwrap()]).unwrap();
    let retargeted = median_round_trip(&mut four, 5);
    let not_any_more = median_round_trip(&mut connect(PEER_6, 80), 50);
    up.plane.retarget(&lease(), &[]).unwrap();
    let nobody = median_round_trip(&mut four, 50);
    up.heal_to_the_end();

    println!("IPv6 {six:?}, IPv4 {spared:?}, then {retargeted:?} and {not_any_more:?}, nobody {nobody:?}");
    assert!(is_about(six, ms(100)) && is_about(retargeted, ms(100)));
    assert!([spared, not_any_more, nobody].into_iter().all(|fast| fast < ms(20)));
}

#[test]
#[ignore = "needs user namespaces"]
fn what_is_off_limits_is_never_delayed_and_neighbours_are_found() {
    in_namespaces("delay::what_is_off_limits_is_never_delayed_and_neighbours_are_found", |world| {
        off_limits(&world, ForwardPlane::open().unwrap())
    });
}

pub(crate) fn off_limits<P: Plane>(world: &World, plane: P) {
    ip("addr add 169.254.7.1/16 dev eth0");
    world.at_peer(|| ip("addr add 169.254.7.2/16 dev eth0"));
    world.echoes("169.254.7.2", 80);
    world.echoes(PEER, 22);
    serve(TcpListener::bind((HOST, 22)).unwrap());
    let mut ssh_to_us = world.peer_connects(HOST, 22);
    let mut up = Applied::by(plane, world, &order(fault(Direction::Both, everything(), delayed(200))));
    ip("neigh flush dev eth0");

    let link_local = median_round_trip(&mut connect("169.254.7.2", 80), 50);
    let ssh = median_round_trip(&mut ssh_to_us, 50);
    let begun = now();
    let ssh_of_ours = round_trip(&mut connect(PEER, 22));
    // Two round trips, and no second of asking again for the neighbour.
    let with_neighbour = begun.elapsed();
    world.echoes(PEER_6, 80);
    let begun = now();
    let _six = connect(PEER_6, 80);
    let six = begun.elapsed();
    up.heal_to_the_end();

    println!("link-local {link_local:?}, ssh {ssh:?}, ssh to elsewhere {ssh_of_ours:?}, IPv6 handshake {six:?}");
    assert!(link_local < ms(20) && ssh < ms(20));
    assert!(is_about(ssh_of_ours, ms(400)) && with_neighbour < ms(950), "{with_neighbour:?}");
    assert!(is_about(six, ms(400)));
}

#[test]
#[ignore = "needs user namespaces"]
fn fragments_of_a_datagram_are_delayed_together() {
    in_namespaces("delay::fragments_of_a_datagram_are_delayed_together", |world| {
        for (host, peer) in [(HOST, PEER), (HOST_6, PEER_6)] {
            let receiver = world.peer_socket(peer, 5_000);
            let sender = UdpSocket::bind((host, 0)).unwrap();
            let mut up = Applied::new(&world, fault(Direction::Egress, to(peer), delayed(100)));
            let payload: Vec<u8> = (0..10_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut buffer = vec![0; 20_000];
            for _ in 0..5 {
                let begun = now();
                sender.send_to(&payload, (peer, 5_000)).unwrap();
                let bytes = receiver.recv(&mut buffer).unwrap();
                assert!(is_about(begun.elapsed(), ms(100)));
                assert_eq!(&buffer[..bytes], payload);
            }
            up.heal();
        }
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn of_two_faults_for_a_packet_the_last_has_it() {
    in_namespaces("delay::of_two_faults_for_a_packet_the_last_has_it", |world| {
        world.echoes(PEER, 80);
        world.echoes(PEER, 81);
        let mut both = connect(PEER, 80);
        let mut first_only = connect(PEER, 81);
        let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), delayed(120)));
        let last = Selectors { remote_ports: port(80), ..to(PEER) };
        let mut order = order(fault(Direction::Egress, last, delayed(60)));
        order.lease = troop_agent_core::lease::LeaseId::new("last").unwrap();
        up.plane.apply(&order, &mut up.journal).unwrap();
        let trips = [&mut both, &mut first_only].map(|flow| median_round_trip(flow, 3));
        up.plane.heal(&order.lease, &mut up.journal).unwrap();
        let after = median_round_trip(&mut both, 3);
        up.heal();
        let healed = median_round_trip(&mut both, 20);
        println!("{trips:?}, then {after:?}, then {healed:?}");
        assert!(is_about(trips[0], ms(60)) && is_about(trips[1], ms(120)) && is_about(after, ms(120)));
        assert!(healed < ms(20));
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_device_that_is_not_ethernet_is_refused_and_nothing_is_left() {
    in_namespaces("delay::a_device_that_is_not_ethernet_is_refused_and_nothing_is_left", |world| {
        let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), delayed(70)));
        let before = state();
        let mut order = order(fault(Direction::Both, to("127.0.0.1"), delayed(70)));
        order.lease = troop_agent_core::lease::LeaseId::new("refused").unwrap();
        // The first device would do, and is undone.
        order.devices = vec![device("eth0"), device("lo")];
        let refused = up.plane.apply(&order, &mut up.journal).unwrap_err().to_string();
        assert_eq!(refused, "the forward plane cannot do lo: it is no Ethernet device");
        assert_eq!(state(), before);
        assert_eq!(up.journal.leases().unwrap(), [lease().to_string()]);
        up.heal();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn the_probe_finds_that_this_host_can_and_leaves_nothing() {
    in_namespaces("delay::the_probe_finds_that_this_host_can_and_leaves_nothing", |_world| {
        let before = state();
        for direction in [Direction::Egress, Direction::Ingress, Direction::Both] {
            troop_agent::plane::forward::probe(direction).unwrap();
            assert_eq!(state(), before);
        }
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn jitter_does_not_change_the_order_of_a_flow() {
    in_namespaces("delay::jitter_does_not_change_the_order_of_a_flow", |world| {
        let receiver = world.peer_socket(PEER, 5_000);
        let sender = UdpSocket::bind((HOST, 0)).unwrap();
        let delay = Delay::fixed(ms(20)).unwrap();
        let delay = delay.varied(ms(20), Probability::NEVER, Distribution::Normal, Order::Kept).unwrap();
        let parts = Parts { delay: Some(delay), ..Parts::default() };
        let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), parts));
        receiver.set_read_timeout(Some(ms(5_000))).unwrap();
        let reading = std::thread::spawn(move || {
            for number in 0..1_000_u32 {
                let mut bytes = [0; 4];
                receiver.recv(&mut bytes).unwrap();
                assert_eq!(u32::from_be_bytes(bytes), number);
            }
        });
        for number in 0..1_000_u32 {
            sender.send_to(&number.to_be_bytes(), (PEER, 5_000)).unwrap();
            if number % 2 == 0 {
                std::thread::sleep(ms(1));
            }
        }
        reading.join().unwrap();
        up.heal();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_share_of_the_flows_is_delayed_and_the_others_are_not() {
    in_namespaces("delay::a_share_of_the_flows_is_delayed_and_the_others_are_not", |world| {
        world.echoes(PEER, 80);
        let mut flows: Vec<_> = (0..60).map(|_| connect(PEER, 80)).collect();
        let mut order = order(fault(Direction::Egress, to(PEER), delayed(60)));
        order.fault.flows = FlowShare::from_percent(30.0).unwrap();
        let mut up = Applied::of(&world, &order);
        let trips: Vec<_> = flows.iter_mut().map(|flow| median_round_trip(flow, 3)).collect();
        up.heal();
        let slow = trips.iter().filter(|trip| **trip >= ms(60)).count();
        let fast: Vec<_> = trips.into_iter().filter(|trip| *trip < ms(60)).collect();
        let (count, worst) = (fast.len(), fast.iter().max().copied());
        println!("{slow} slow; {count} fast, median {:?}, worst {worst:?}", median(fast));
        // Five standard deviations of a binomial of 60 and 0.3 are 17.7.
        assert!((1..=35).contains(&slow));
        assert!(worst.unwrap() < ms(30));
    });
}
