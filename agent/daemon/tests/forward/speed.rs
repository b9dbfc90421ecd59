//! How fast and how exact it is: figures to look at, with limits only where something would be broken.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use troop_agent_core::fault::{Delay, Direction, Parts};

use crate::world::*;

const ROUND: Duration = Duration::from_millis(1_500);

/// Takes the detour and is not held.
fn passing() -> Parts {
    Parts { delay: Some(Delay::fixed(Duration::from_nanos(1)).unwrap()), ..Parts::default() }
}

/// Gbit/s of one connection, from where it is written to where it is read.
fn rate(mut writer: TcpStream, mut reader: TcpStream) -> f64 {
    let begun = now();
    let writing = std::thread::spawn(move || {
        let block = vec![7; 1 << 17];
        while begun.elapsed() < ROUND && writer.write_all(&block).is_ok() {}
    });
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0_u32;
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        // In units of 64 bytes, to keep a few seconds of it within 32 bits.
        bytes += u32::try_from(read / 64).unwrap();
    }
    writing.join().unwrap();
    f64::from(bytes) * 64.0 * 8.0 / 1e9 / begun.elapsed().as_secs_f64()
}

/// A connection's end at the host, and the one at the peer.
fn connected(world: &World) -> (TcpStream, TcpStream) {
    let listener = world.at_peer(|| TcpListener::bind((PEER, 0)).unwrap());
    let here = connect(PEER, listener.local_addr().unwrap().port());
    (here, listener.accept().unwrap().0)
}

#[test]
#[ignore = "needs user namespaces"]
fn carries_offloaded_frames_whole() {
    in_namespaces("speed::carries_offloaded_frames_whole", |world| {
        let mut rows = Vec::new();
        for _ in 0..3 {
            let (here, there) = connected(&world);
            let raw = rate(here, there);
            let (here, there) = connected(&world);
            let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), passing()));
            let egress = rate(here, there);
            up.heal();
            let (here, there) = connected(&world);
            let mut up = Applied::new(&world, fault(Direction::Ingress, to(PEER), passing()));
            let ingress = rate(there, here);
            up.heal();
            println!(
                "raw {raw:.2} Gbit/s, egress {egress:.2} ({:.2}), ingress {ingress:.2} ({:.2})",
                egress / raw,
                ingress / raw
            );
            rows.push((egress / raw, ingress / raw));
        }
        // One packet at a time would give 0.3; that is not far above what a machine in use gives.
        assert!(rows.iter().any(|row| row.0 > 0.2) && rows.iter().any(|row| row.1 > 0.2));
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn is_never_early_and_hardly_late() {
    in_namespaces("speed::is_never_early_and_hardly_late", |world| {
        world.echoes(PEER, 80);
        let mut flow = connect(PEER, 80);
        let mut trips = |count: usize| (0..count).map(|_| round_trip(&mut flow)).collect::<Vec<_>>();
        let say = |what: &str, trips: &[Duration], asked: Duration| {
            let least = *trips.iter().min().unwrap();
            let over: Vec<_> = trips.iter().map(|trip| trip.saturating_sub(asked)).collect();
            let [p50, p99] = [0.5, 0.99].map(|share| quantile(over.clone(), share));
            println!("{what}: beyond the delay: p50 {p50:?}, p99 {p99:?}, max {:?}", over.iter().max().unwrap());
            assert!(least >= asked, "{least:?} is early");
        };
        say("raw", &trips(2_000), Duration::ZERO);
        let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), passing()));
        say("passing", &trips(2_000), Duration::ZERO);
        up.heal();
        for (delay, count) in [(1, 500), (10, 200), (100, 30), (500, 6)] {
            let mut up = Applied::new(&world, fault(Direction::Egress, to(PEER), delayed(delay)));
            say(&format!("{delay} ms"), &trips(count), ms(delay));
            up.heal();
        }
        let idle = |_| {
            std::thread::sleep(ms(100));
            round_trip(&mut flow)
        };
        say("raw after 100 ms of sleep", &(0..30).map(idle).collect::<Vec<_>>(), Duration::ZERO);
        let mut trips = |count: usize| (0..count).map(|_| round_trip(&mut flow)).collect::<Vec<_>>();
        say("raw again", &trips(2_000), Duration::ZERO);
    });
}
