//! From the control plane's end to a fault that is gone, seen in the traffic, under load, with clients that read nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng as _, SeedableRng as _};
use troop_agent_core::protocol::Chapter;
use troop_policies::fault::Direction;

use crate::control::{Asked, ControlPlane};
use crate::host::Host;
use crate::probe::{Probe, Probes, TARGETED, nanos};
use crate::table::number;
use crate::world::{PEER, connect, in_namespaces, median, ms, quantile, wait_until};

/// Clients of the targeted port, of which the first quarter reads nothing.
const CLIENTS: usize = 8;

#[test]
#[ignore = "needs user namespaces"]
fn a_fault_is_gone_at_once_when_it_is_ended_under_load() {
    in_namespaces("stop::a_fault_is_gone_at_once_when_it_is_ended_under_load", |world| {
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS).map(|n| client(n >= CLIENTS / 4, &stop)).collect();
        let mut random = Xoshiro256PlusPlus::seed_from_u64(number("TROOP_TRIALS_SEED", 1));
        let mut below = |end: u64| random.next_u64() % end;
        let runs = number("TROOP_STOPS", 10);
        let probes = Probes::start(&world);
        let mut times = Vec::new();
        for run in 0..runs {
            // From 100 ms to 6 s, as many short ones as long ones.
            let delay = ms(100 << (below(6))).min(ms(6_000)).max(ms(100 + below(5_900)) / 2);
            let direction =
                [Direction::Egress, Direction::Ingress, Direction::Both][usize::try_from(below(3)).unwrap()];
            let asked = Asked { delay, direction, port: TARGETED, ttl: Duration::from_secs(5) };
            let lease = format!("run-{run}");
            let granted = nanos();
            control.grant(&lease, &asked);
            let story = control.wait_for_story(&lease, |story| story.at >= Chapter::Applying);
            assert_eq!(story.at, Chapter::Applying, "{story:?}");
            // Put up, though not measured yet: that takes as long as the delay.
            wait_until("the fault", || !crate::world::run("nft", "list tables").is_empty());
            std::thread::sleep(ms(300 + below(1_000)));
            let ended = control.end(&lease);
            let story = control.wait_for_story(&lease, |story| story.at == Chapter::Over);
            assert_eq!(story.trouble, "", "{story:?}");
            std::thread::sleep(ms(300));
            times.push((granted, ended, nanos(), format!("{asked:?}, {story:?}")));
        }
        let (mut gone, mut untouched) = (Vec::new(), Vec::new());
        let probes = probes.stop();
        for (granted, ended, over, what) in &times {
            let of_run: Vec<_> = probes.iter().filter(|probe| (*granted..*over).contains(&probe.sent)).collect();
            // What is held leaves with the fault's end, however much longer it was to wait: any delay counts that could be seen.
            let is_slow = |probe: &Probe| probe.is_slow(ms(100));
            let seen = of_run.iter().filter(|probe| probe.sent < *ended && is_slow(probe)).count();
            assert!(seen > 10, "{seen} probes of {} were slow: {what}", of_run.len());
            let after: Vec<_> = of_run.iter().filter(|probe| probe.sent >= *ended).collect();
            let first = after.iter().rposition(|probe| is_slow(probe)).map_or(0, |last| last + 1);
            let first = after.get(first).expect("probes to the end");
            gone.push(Duration::from_nanos(first.sent - ended) + first.targeted().unwrap());
            untouched.push(of_run.iter().map(|probe| probe.untouched().expect("none is lost")).max().unwrap());
        }
        let began = nanos();
        stop.store(true, Ordering::Relaxed);
        let bytes: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        host.end();
        host.await_nothing_left();
        let say = |what: &str, times: &[Duration]| {
            let [p99, worst] = [0.99, 1.0].map(|share| quantile(times.to_vec(), share));
            println!("{what}: p50 {:?}, p99 {p99:?}, worst {worst:?}", median(times.to_vec()));
        };
        println!("{runs} runs, {} MB by {CLIENTS} clients", bytes >> 20);
        say("from end to the first packet that is not delayed", &gone);
        say("the other port's longest round trip of a run, beyond this machine's own", &untouched);
        assert!(nanos() - began < 60_000_000_000, "the clients do not come to an end");
        assert!(quantile(gone.clone(), 1.0) < Duration::from_secs(2));
        assert!(quantile(untouched.clone(), 0.5) < ms(50), "a step that we made would be there in all runs");
        if std::env::var_os("TROOP_TRIALS_STRICT").is_some() {
            assert!(quantile(gone, 0.99) < ms(100));
        }
    });
}

/// One that writes, and reads what comes back or not. How much it wrote.
fn client(reads: bool, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let mut writer = connect(PEER, TARGETED);
    writer.set_write_timeout(Some(ms(200))).unwrap();
    let stopped = Arc::clone(stop);
    std::thread::spawn(move || {
        let reading = reads.then(|| drain(writer.try_clone().unwrap(), &stopped));
        let block = vec![5; 16 << 10];
        let mut bytes = 0;
        while !stopped.load(Ordering::Relaxed) {
            // Blocked: by the fault, or because it does not read itself.
            bytes += writer.write(&block).map_or(0, |written| u64::try_from(written).unwrap());
            std::thread::sleep(ms(5));
        }
        if let Some(reading) = reading {
            reading.join().unwrap();
        }
        bytes
    })
}

fn drain(mut reader: TcpStream, stop: &Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    reader.set_read_timeout(Some(ms(200))).unwrap();
    let stopped = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while !stopped.load(Ordering::Relaxed) {
            if let Ok(0) = reader.read(&mut buffer) {
                return;
            }
        }
    })
}
