//! What a fault loses, and what it must not.

use troop_agent::plane::{Plane as _, Seen};
use troop_agent_core::fault::{Chance, Direction, Loss, Parts, Probability, Protocol, Selectors};

use crate::world::*;

const PACKETS: u32 = 5_000;
const BYTES: usize = 300;

fn percent(percent: f64) -> Chance {
    Chance::of(Probability::from_percent(percent).unwrap())
}

fn udp(peer: &str) -> Selectors {
    Selectors { protocol: Some(Protocol::Udp), ..to(peer) }
}

/// What came of [`PACKETS`] that were sent to the peer under a fault.
struct Counted {
    /// To its device.
    came: u64,
    /// To the program that waits for them.
    read: u32,
    seen: Seen,
}

fn count(world: &World, parts: Parts) -> Counted {
    let socket = world.peer_socket(PEER, 5_000);
    socket.set_read_timeout(Some(ms(1_000))).unwrap();
    // Checksums are looked at when somebody reads.
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 2_000];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok()).fold(0, |count, _| count + 1)
    });
    let mut up = Applied::new(world, fault(Direction::Egress, udp(PEER), parts));
    let before = world.came();
    send_numbered(PACKETS, BYTES);
    let mut seen = Seen::default();
    wait_until("the last packet", || {
        seen = up.plane.seen(&lease()).unwrap();
        assert!(!seen.full, "{seen:?}");
        seen.concerned == u64::from(PACKETS) && seen.held_packets == 0
    });
    up.heal();
    Counted { came: world.came() - before, read: reading.join().unwrap(), seen }
}

#[test]
#[ignore = "needs user namespaces"]
fn loses_and_doubles_as_many_as_it_should() {
    in_namespaces("loss::loses_and_doubles_as_many_as_it_should", |world| {
        let loss = Some(Loss::Random(percent(10.0)));
        let Counted { came, seen, .. } = count(&world, Parts { loss, ..Parts::default() });
        println!("{came} of {PACKETS} came under a loss of 10 %: {seen:?}");
        // Five standard deviations of a binomial of 5,000 and 0.1 are 106. The peer may hear of a neighbour or two besides.
        assert!((4_394..=4_611).contains(&came));
        assert!((394..=606).contains(&seen.lost));
        let Counted { came, .. } = count(&world, Parts { duplicate: Some(percent(20.0)), ..Parts::default() });
        println!("{came} of {PACKETS} came when 20 % were doubled");
        // Of 0.2 they are 141.
        assert!((5_859..=6_146).contains(&came));
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_black_hole_takes_all_of_one_peer_and_nothing_of_another() {
    in_namespaces("loss::a_black_hole_takes_all_of_one_peer_and_nothing_of_another", |world| {
        world.echoes(OTHER, 80);
        let socket = world.peer_socket(PEER, 5_000);
        let mut up = Applied::new(&world, fault(Direction::Egress, udp(PEER), black_hole()));
        let mut spared = connect(OTHER, 80);
        send_numbered(200, 100);
        assert!(median_round_trip(&mut spared, 20) < ms(20));
        // Its thread may not have come to the last of them yet.
        let seen = (0..100)
            .map(|_| {
                std::thread::sleep(ms(10));
                up.plane.seen(&lease()).unwrap()
            })
            .find(|seen| seen.concerned >= 200);
        let seen = seen.unwrap_or_else(|| up.plane.seen(&lease()).unwrap());
        up.heal();
        send_numbered(1, 101);
        assert_eq!(socket.recv(&mut [0; 200]).unwrap(), 101, "the first to come is the first that was sent after it");
        assert_eq!((seen.concerned, seen.lost, seen.held_packets), (200, 200, 0));
    });
}

fn black_hole() -> Parts {
    Parts { loss: Some(Loss::ALL), ..Parts::default() }
}

#[test]
#[ignore = "needs user namespaces"]
fn a_corrupted_packet_is_noticed_by_its_checksum() {
    in_namespaces("loss::a_corrupted_packet_is_noticed_by_its_checksum", |world| {
        let parts = Parts { corrupt: Some(percent(100.0)), ..Parts::default() };
        let Counted { came, read, .. } = count(&world, parts);
        println!("{came} of {PACKETS} came, {read} passed for right");
        // The source's MAC address is covered by nothing: 48 bits of 2,736, so 88 of 5,000; five standard deviations are 47.
        assert!(read < 135);
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_stream_is_right_in_spite_of_corrupted_packets() {
    in_namespaces("loss::a_stream_is_right_in_spite_of_corrupted_packets", |world| {
        let connection = bulk(&world, 4 << 20);
        let parts = Parts { corrupt: Some(percent(1.0)), ..Parts::default() };
        let mut up = Applied::new(&world, fault(Direction::Both, to(PEER), parts));
        assert!(connection.join().unwrap(), "every byte came, in order");
        up.heal();
    });
}
