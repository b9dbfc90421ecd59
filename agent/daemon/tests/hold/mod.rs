//! The plane that has packets wait in the kernel, which is for root of the machine.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use troop_agent::netlink::Netlink;
use troop_agent::plane::Plane as _;
use troop_agent::plane::Seen;
use troop_agent::plane::hold::{self, HoldPlane};
use troop_agent_core::fault::{Chance, Delay, Direction, Loss, Parts, Probability, Protocol, Rate, Selectors};
use troop_agent_core::lease::Ttl;

use crate::delay::{both_ways_in_both_families, off_limits};
use crate::end::{Agent, Numbered, at_the_bound};
use crate::flood::flood_through;
use crate::world::*;

type Up = Applied<HoldPlane>;

fn plane() -> HoldPlane {
    HoldPlane::open(hold::probe().unwrap()).unwrap()
}

fn applied(world: &World, direction: Direction, selectors: Selectors, parts: Parts) -> Up {
    Up::by(plane(), world, &order(fault(direction, selectors, parts)))
}

fn to_port(number: u16) -> Selectors {
    Selectors { remote_ports: port(number), ..to(PEER) }
}

fn udp() -> Selectors {
    Selectors { protocol: Some(Protocol::Udp), ..to(PEER) }
}

/// At least so long, and not so much longer that it would be another fault.
fn is_about(measured: Duration, asked: Duration) -> bool {
    (asked..asked + ms(60)).contains(&measured)
}

/// All that the tools see of the host's network.
fn whole() -> String {
    [state(), ip("-6 rule show"), run("nft", "list ruleset"), run("ip", "netns list")].join("\n")
}

#[test]
#[ignore = "needs root"]
fn delays_one_port_of_one_peer_each_way_and_leaves_nothing() {
    as_root_in_a_namespace("hold::delays_one_port_of_one_peer_each_way_and_leaves_nothing", |world| {
        for (peer, port) in [(PEER, 80), (PEER, 81), (OTHER, 80)] {
            world.echoes(peer, port);
        }
        let mut targeted = connect(PEER, 80);
        let mut spared = [connect(PEER, 81), connect(OTHER, 80)];
        let before = whole();
        for (direction, whole_delay) in [(Direction::Egress, 200), (Direction::Ingress, 200), (Direction::Both, 400)] {
            let mut up = applied(&world, direction, to_port(80), delayed(200));
            let slow = median_round_trip(&mut targeted, 5);
            for other in &mut spared {
                assert!(median_round_trip(other, 50) < ms(20));
            }
            let begun = now();
            drop(connect(PEER, 80));
            let handshake = begun.elapsed();
            let seen = up.plane.seen(&lease()).unwrap();
            up.heal_to_the_end();
            let healed = median_round_trip(&mut targeted, 50);
            println!("{direction:?}: delayed {slow:?}, handshake {handshake:?}, healed {healed:?}, {seen:?}");
            assert!(is_about(slow, ms(whole_delay)) && is_about(handshake, ms(whole_delay)));
            assert!(is_about(seen.held_for.unwrap(), ms(200)), "{seen:?}");
            assert!(healed < ms(20));
            assert_eq!(whole(), before);
            assert_eq!(up.journal.leases().unwrap(), Vec::<String>::new());
        }
    });
}

#[test]
#[ignore = "needs root"]
fn delays_both_ways_in_both_families_and_whom_it_is_told_to() {
    as_root_in_a_namespace("hold::delays_both_ways_in_both_families_and_whom_it_is_told_to", |world| {
        both_ways_in_both_families(&world, plane())
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_off_limits_is_never_delayed_and_neighbours_are_found() {
    as_root_in_a_namespace("hold::what_is_off_limits_is_never_delayed_and_neighbours_are_found", |world| {
        off_limits(&world, plane())
    });
}

#[test]
#[ignore = "needs root"]
fn the_hosts_own_firewall_sees_what_comes_in_once_and_never_what_waits_on_its_way_out() {
    let name = "hold::the_hosts_own_firewall_sees_what_comes_in_once_and_never_what_waits_on_its_way_out";
    as_root_in_a_namespace(name, |world| {
        let socket = world.peer_socket(PEER, 5_000);
        let mine = UdpSocket::bind((HOST, 6_000)).unwrap();
        for rule in [
            "add table ip mine",
            "add chain ip mine in { type filter hook prerouting priority -300 ; }",
            "add chain ip mine through { type filter hook forward priority 0 ; policy drop ; }",
            "add chain ip mine out { type filter hook postrouting priority 0 ; }",
            "add rule ip mine in udp dport 6000 counter",
            "add rule ip mine out udp dport 5000 counter",
        ] {
            run("nft", rule);
        }
        let mut up = applied(&world, Direction::Both, to(PEER), delayed(30));
        for number in 0..20 {
            mine.send_to(&[number], (PEER, 5_000)).unwrap();
            assert_eq!(socket.recv_from(&mut [0; 9]).unwrap().0, 1);
            socket.send_to(&[number], (HOST, 6_000)).unwrap();
            assert_eq!(mine.recv_from(&mut [0; 9]).unwrap().0, 1);
        }
        up.heal_to_the_end();
        let rules = run("nft", "list table ip mine");
        assert_eq!(rules.matches("counter packets 20 ").count(), 2, "{rules}");
    });
}

#[test]
#[ignore = "needs root"]
fn loses_and_slows_as_it_should() {
    as_root_in_a_namespace("hold::loses_and_slows_as_it_should", |world| {
        let _open = world.peer_socket(PEER, 5_000);
        let count = |parts: Parts| {
            let mut up = applied(&world, Direction::Egress, udp(), parts);
            let before = world.came();
            send_numbered(5_000, 300);
            let mut seen = Seen::default();
            wait_until("the last packet", || {
                seen = up.plane.seen(&lease()).unwrap();
                assert!(!seen.full, "{seen:?}");
                seen.concerned == 5_000 && seen.held_packets == 0
            });
            up.heal_to_the_end();
            (world.came() - before, seen)
        };
        let chance = Chance::of(Probability::from_percent(10.0).unwrap());
        // Those that are lost leave the queue before others that came before them.
        let loss = Parts { loss: Some(Loss::Random(chance)), ..delayed(50) };
        let (came, seen) = count(loss);
        println!("{came} of 5000 came under a loss of 10 %: {seen:?}");
        // Five standard deviations of a binomial of 5,000 and 0.1 are 106. The peer may hear of a neighbour or two besides.
        assert!((4_394..=4_611).contains(&came) && (394..=606).contains(&seen.lost));
        let (came, seen) = count(Parts { loss: Some(Loss::ALL), ..Parts::default() });
        assert!(came < 5 && seen.lost == 5_000, "{came}, {seen:?}");

        let rate = Parts { rate: Some(Rate::bytes_per_second(100_000).unwrap()), ..Parts::default() };
        let mut up = applied(&world, Direction::Egress, udp(), rate);
        let (begun, before) = (now(), world.came());
        send_numbered(100, 958);
        wait_until("the last packet", || world.came() - before >= 100);
        let took = begun.elapsed();
        up.heal_to_the_end();
        // 100 frames of 1,000 bytes are a second of it.
        println!("100 KB at 100 KB/s took {took:?}");
        assert!((ms(1_000)..ms(1_500)).contains(&took), "{took:?}");
    });
}

#[test]
#[ignore = "needs root"]
fn fragments_wait_too_and_come_together_again() {
    as_root_in_a_namespace("hold::fragments_wait_too_and_come_together_again", |world| {
        for (host, peer) in [(HOST, PEER), (HOST_6, PEER_6)] {
            let theirs = world.peer_socket(peer, 5_000);
            let mine = UdpSocket::bind((host, 6_000)).unwrap();
            mine.set_read_timeout(Some(ms(5_000))).unwrap();
            theirs.set_read_timeout(Some(ms(5_000))).unwrap();
            let mut up = applied(&world, Direction::Both, to(peer), delayed(60));
            let begun = now();
            let mut buffer = vec![0; 60_000];
            mine.send_to(&[7; 50_000], (peer, 5_000)).unwrap();
            assert_eq!(theirs.recv_from(&mut buffer).unwrap().0, 50_000);
            theirs.send_to(&buffer[..40_000], (host, 6_000)).unwrap();
            assert_eq!(mine.recv_from(&mut buffer).unwrap().0, 40_000);
            let (took, seen) = (begun.elapsed(), up.plane.seen(&lease()).unwrap());
            up.heal_to_the_end();
            println!("{peer}: {took:?}, {seen:?}");
            assert!(is_about(took, ms(120)) && seen.concerned > 50, "{seen:?}");
        }
    });
}

#[test]
#[ignore = "needs root"]
fn connections_as_fast_as_memory_do_not_end_a_fault() {
    as_root_in_a_namespace("hold::connections_as_fast_as_memory_do_not_end_a_fault", |world| {
        flood_through(&world, plane);
    });
}

#[test]
#[ignore = "needs root"]
fn no_packet_is_lost_when_a_fault_begins_and_ends_and_others_notice_nothing() {
    let name = "hold::no_packet_is_lost_when_a_fault_begins_and_ends_and_others_notice_nothing";
    as_root_in_a_namespace(name, |world| {
        let stream = bulk(&world, 48 << 20);
        let targeted = Numbered::start(&world, 5_000, Duration::from_micros(500));
        let spared = Numbered::start(&world, 5_001, Duration::from_micros(200));
        for _ in 0..3 {
            std::thread::sleep(ms(200));
            let mut up = applied(&world, Direction::Both, to_port(5_000), delayed(100));
            std::thread::sleep(ms(400));
            up.heal_to_the_end();
        }
        let (targeted, spared) = (targeted.stop(), spared.stop());
        println!("targeted: longest way {:?}; spared: p90 {:?}", targeted.longest_way(), spared.way(0.9));
        assert_eq!((targeted.missing(), spared.missing()), (vec![], vec![]));
        assert_eq!((targeted.lost(), spared.lost()), (0, 0));
        assert!(targeted.longest_way() > ms(95));
        assert!(spared.way(0.9) < ms(10), "{:?}", spared.way(0.9));
        assert!(stream.join().unwrap(), "every byte came, in order");
    });
}

#[test]
#[ignore = "needs root"]
fn gone_within_100_ms_of_healing_under_load() {
    as_root_in_a_namespace("hold::gone_within_100_ms_of_healing_under_load", |world| {
        let connection = bulk(&world, 400 << 20);
        let mut gone = Vec::new();
        for run in 0..10_u64 {
            let flow = Numbered::start(&world, 5_000, ms(5));
            let mut up = applied(&world, Direction::Both, to(PEER), delayed(100 + run * 100));
            std::thread::sleep(ms(150 + run * 100));
            let begun = now();
            up.heal();
            std::thread::sleep(ms(50));
            let flow = flow.stop();
            up.tend_to_the_end();
            assert_eq!(flow.lost(), 0);
            let late = flow.came.iter().filter(|(number, _)| flow.sent[*number] < begun).map(|(_, came)| *came - begun);
            gone.push(late.max().unwrap());
        }
        drop(connection);
        println!("last held packet out: p50 {:?}, worst {:?}", median(gone.clone()), gone.iter().max());
        assert!(median(gone) < ms(100));
    });
}

#[test]
#[ignore = "needs root"]
fn traffic_passes_when_the_agent_is_killed_and_its_devices_are_gone_with_it() {
    let name = "hold::traffic_passes_when_the_agent_is_killed_and_its_devices_are_gone_with_it";
    as_root_in_a_namespace(name, |world| {
        let before = whole();
        let mut gaps = Vec::new();
        for _ in 0..3 {
            let flow = Numbered::start(&world, 5_000, ms(1));
            let mut agent = Agent::with("hold", &world, 100, 30_000);
            std::thread::sleep(ms(300));
            let killed = now();
            agent.die();
            std::thread::sleep(ms(200));
            let flow = flow.stop();
            gaps.push(flow.first_after(killed) - killed);
            // What waited is gone with it: a delay's worth, 100 packets.
            assert!(flow.lost() < 200, "{}", flow.lost());
            wait_until("the end of the namespace's devices", || whole() == before);
        }
        let report = world.journal().undo_all(&mut Netlink::route().unwrap()).unwrap();
        assert!(report.is_clean() && report.failed.is_empty());
        println!("first packet through after SIGKILL: {gaps:?}");
        assert!(median(gaps) < ms(100));
    });
}

#[test]
#[ignore = "needs root"]
fn traffic_passes_when_the_agent_stands_still_for_longer_than_the_lease() {
    let name = "hold::traffic_passes_when_the_agent_stands_still_for_longer_than_the_lease";
    as_root_in_a_namespace(name, |world| {
        let flow = Numbered::start(&world, 5_000, ms(3));
        let mut agent = Agent::with("hold", &world, 50, 500);
        std::thread::sleep(ms(200));
        agent.signal(Signal::SIGSTOP);
        std::thread::sleep(ms(1_500));
        agent.signal(Signal::SIGCONT);
        std::thread::sleep(ms(300));
        agent.heal();
        let flow = flow.stop();
        println!("frozen for 1.5 s under a lease of 0.5 s: longest gap {:?}, {} lost", flow.longest_gap(), flow.lost());
        assert!(flow.longest_gap() < ms(900));
        assert_eq!(flow.lost(), 0, "what waited came late, when it was thawed");
    });
}

#[test]
#[ignore = "needs root"]
fn a_fault_that_is_not_renewed_ends_by_itself_and_one_that_is_stays() {
    let name = "hold::a_fault_that_is_not_renewed_ends_by_itself_and_one_that_is_stays";
    as_root_in_a_namespace(name, |world| {
        world.echoes(PEER, 80);
        let mut flow = connect(PEER, 80);
        let mut order = order(fault(Direction::Both, to(PEER), delayed(20)));
        order.ttl = Ttl::new(ms(400)).unwrap();
        let mut up = Up::by(plane(), &world, &order);
        for _ in 0..20 {
            assert!(round_trip(&mut flow) >= ms(40));
            up.plane.renew(&lease(), order.ttl, Duration::ZERO).unwrap();
        }
        let begun = now();
        wait_until("the end of the lease", || round_trip(&mut flow) < ms(20));
        assert!(begun.elapsed() < ms(600), "{:?}", begun.elapsed());
        up.heal_to_the_end();
    });
}

#[test]
#[ignore = "needs root"]
fn at_the_bound_the_fault_ends_and_nothing_is_lost() {
    as_root_in_a_namespace("hold::at_the_bound_the_fault_ends_and_nothing_is_lost", |world| {
        at_the_bound(&world, plane(), 46_538)
    });
}

#[test]
#[ignore = "needs root"]
fn two_faults_on_one_packet_are_one() {
    as_root_in_a_namespace("hold::two_faults_on_one_packet_are_one", |world| {
        serve(TcpListener::bind((HOST, 90)).unwrap());
        let mut flow = world.peer_connects(HOST, 90);
        let mut up = applied(&world, Direction::Both, to(PEER), delayed(40));
        let mut second = order(fault(Direction::Both, to(PEER), delayed(70)));
        second.lease = troop_agent_core::lease::LeaseId::new("second").unwrap();
        up.plane.apply(&second, &mut up.journal).unwrap();
        let newest = median_round_trip(&mut flow, 5);
        up.plane.heal(&second.lease, &mut up.journal).unwrap();
        let first = median_round_trip(&mut flow, 5);
        up.heal_to_the_end();
        println!("{newest:?}, then {first:?}");
        assert!(is_about(newest, ms(140)) && is_about(first, ms(80)));
        assert!(median_round_trip(&mut flow, 20) < ms(20));
    });
}

#[test]
#[ignore = "needs root"]
fn when_somebody_removes_its_device_the_plane_says_so() {
    as_root_in_a_namespace("hold::when_somebody_removes_its_device_the_plane_says_so", |world| {
        let before = whole();
        let mut up = applied(&world, Direction::Egress, to(PEER), delayed(60));
        let links = ip("link show");
        let device = links.split([' ', '@']).find(|word| word.starts_with("tr")).unwrap().to_owned();
        ip(&format!("link del {device}"));
        let said = up.plane.seen(&lease()).unwrap_err().to_string();
        assert_eq!(said, format!("could not find {device}, which somebody has removed"));
        up.heal_to_the_end();
        assert_eq!(whole(), before);
    });
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_done_changes_nothing() {
    as_root_in_a_namespace("hold::what_cannot_be_done_changes_nothing", |world| {
        let before = whole();
        let mut plane = plane();
        let mut journal = world.journal();
        let varied = Delay::fixed(ms(20)).unwrap().varied(
            ms(5),
            Probability::NEVER,
            troop_agent_core::distribution::Distribution::Uniform,
            troop_agent_core::fault::Order::Kept,
        );
        let parts = Parts { delay: Some(varied.unwrap()), ..Parts::default() };
        let refused = plane.apply(&order(fault(Direction::Both, to(PEER), parts)), &mut journal);
        assert_eq!(refused.unwrap_err().to_string(), "the hold plane cannot do jitter");
        let mut elsewhere = order(fault(Direction::Both, to(PEER), delayed(10)));
        elsewhere.devices[0].name = "nowhere".to_owned();
        assert!(plane.apply(&elsewhere, &mut journal).is_err());
        assert_eq!(whole(), before);
        assert_eq!(journal.leases().unwrap(), Vec::<String>::new());
    });
}
