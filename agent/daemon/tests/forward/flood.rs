//! Many connections at full speed, which fill what the plane receives into while its thread waits for a processor: the fault stays up, and
//! every byte comes through in its place.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use troop_agent::plane::Plane;
use troop_agent::plane::forward::ForwardPlane;
use troop_agent_core::fault::{Delay, Direction, Parts};

use crate::world::*;

const FLOWS: usize = 16;
const LASTS: Duration = Duration::from_millis(400);
/// Bytes come in this order again and again: a prime number, so that no frame begins where another one did.
const PERIOD: usize = 251;
const READ_BYTES: usize = 1 << 18;

#[test]
#[ignore = "needs user namespaces"]
fn connections_as_fast_as_memory_do_not_end_a_fault_of_an_ordinary_user() {
    let name = "flood::connections_as_fast_as_memory_do_not_end_a_fault_of_an_ordinary_user";
    in_namespaces(name, |world| flood(&world));
}

/// Who receives large frames by a socket's queue instead of a ring.
#[test]
#[ignore = "needs root"]
fn connections_as_fast_as_memory_do_not_end_a_fault_of_root() {
    let name = "flood::connections_as_fast_as_memory_do_not_end_a_fault_of_root";
    as_root_in_a_namespace(name, |world| flood(&world));
}

fn flood(world: &World) {
    flood_through(world, || ForwardPlane::open().unwrap());
}

pub(crate) fn flood_through<P: Plane>(world: &World, plane: impl Fn() -> P) {
    for direction in [Direction::Egress, Direction::Ingress] {
        for delay in [Duration::from_nanos(1), Duration::from_millis(1)] {
            let parts = Parts { delay: Some(Delay::fixed(delay).unwrap()), ..Parts::default() };
            let mut up = Applied::by(plane(), world, &order(fault(direction, to(PEER), parts)));
            let flows: Vec<_> = (0..FLOWS).map(|_| flow(world, direction)).collect();
            let bytes: usize = flows.into_iter().map(|flow| flow.join().unwrap()).sum();
            let seen = up.plane.seen(&lease()).unwrap();
            up.heal_to_the_end();
            println!("{direction:?}, {delay:?}: {} MB, {seen:?}", bytes >> 20);
            assert!(!seen.full && seen.lost == 0, "{seen:?}");
            assert!(seen.concerned > 1_000, "{seen:?}");
        }
    }
}

/// Bytes that have come through a connection of its own.
fn flow(world: &World, direction: Direction) -> JoinHandle<usize> {
    let listener = world.at_peer(|| TcpListener::bind((PEER, 0)).unwrap());
    let here = connect(PEER, listener.local_addr().unwrap().port());
    let there = listener.accept().unwrap().0;
    let (writer, reader) = if direction == Direction::Ingress { (there, here) } else { (here, there) };
    std::thread::spawn(move || {
        let writing = std::thread::spawn(move || write(writer));
        let read = read(reader);
        assert_eq!(writing.join().unwrap(), read);
        read
    })
}

fn write(mut writer: TcpStream) -> usize {
    let block: Vec<u8> = (0..PERIOD).cycle().take(PERIOD * 512).map(|n| u8::try_from(n).unwrap()).collect();
    let (begun, mut written) = (now(), 0);
    while begun.elapsed() < LASTS {
        writer.write_all(&block).unwrap();
        written += block.len();
    }
    writer.shutdown(Shutdown::Write).unwrap();
    written
}

fn read(mut reader: TcpStream) -> usize {
    let expected: Vec<u8> = (0..PERIOD).cycle().take(PERIOD + READ_BYTES).map(|n| u8::try_from(n).unwrap()).collect();
    let (mut buffer, mut read) = (vec![0; READ_BYTES], 0);
    loop {
        let bytes = reader.read(&mut buffer).unwrap();
        if bytes == 0 {
            return read;
        }
        assert!(buffer[..bytes] == expected[read % PERIOD..][..bytes], "after {read} bytes");
        read += bytes;
    }
}
