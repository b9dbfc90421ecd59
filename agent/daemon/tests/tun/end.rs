//! How a fault of the TUN begins and ends: whatever becomes of us, packets pass.

use std::time::Duration;

use nix::sys::signal::Signal;
use troop_agent::netlink::Netlink;
use troop_agent::plane::Plane as _;

use super::*;
use crate::end::{Agent, Numbered};

#[test]
#[ignore = "needs user namespaces"]
fn a_tun_loses_nothing_when_a_fault_begins_and_ends() {
    with_tun("tun::end::a_tun_loses_nothing_when_a_fault_begins_and_ends", |world| {
        let stream = bulk(&world, 48 << 20);
        let targeted = Numbered::start(&world, 5_000, Duration::from_micros(500));
        let spared = Numbered::start(&world, 5_001, Duration::from_micros(500));
        for _ in 0..2 {
            std::thread::sleep(ms(100));
            // The stream too is slowed, and lives.
            let mut up = applied(&world, to(PEER), delayed(60));
            up.plane.retarget(&lease(), &[PEER.parse().unwrap()]).unwrap();
            std::thread::sleep(ms(150));
            up.heal();
            let mut up = applied(&world, to_port(5_000), delayed(60));
            std::thread::sleep(ms(150));
            up.heal();
        }
        let (targeted, spared) = (targeted.stop(), spared.stop());
        println!("longest ways {:?} and {:?}", targeted.longest_way(), spared.longest_way());
        assert_eq!((targeted.missing(), spared.missing()), (vec![], vec![]));
        assert_eq!((targeted.lost(), spared.lost()), (0, 0));
        assert!(stream.join().unwrap(), "every byte came, in order");
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn packets_pass_a_killed_agents_tun_at_once_and_its_journal_undoes_the_rest() {
    with_tun("tun::end::packets_pass_a_killed_agents_tun_at_once_and_its_journal_undoes_the_rest", |world| {
        let before = whole();
        let stream = bulk(&world, 64 << 20);
        for plane in ["tun", "tun, lasting"] {
            let mut gaps = Vec::new();
            for _ in 0..2 {
                let flow = Numbered::start(&world, 5_000, ms(1));
                let mut agent = Agent::with(plane, &world, 40, 30_000);
                std::thread::sleep(ms(100));
                let killed = now();
                agent.die();
                std::thread::sleep(ms(100));
                let flow = flow.stop();
                gaps.push(flow.first_after(killed) - killed);
                // What the process held is gone with it: a delay's worth, 40 packets, and those until it was dead.
                assert!(flow.lost() < 100, "{}", flow.lost());
                // Nothing in the way: no TUN, no route.
                assert!(!ip("link show").contains("POINTOPOINT"));
                assert!(!ip("route show table all").contains("dev tr"));
            }
            assert_ne!(whole(), before, "the rules are there until somebody looks into the journal");
            let report = world.journal().undo_all(&mut Netlink::route().unwrap()).unwrap();
            assert!(report.is_clean() && report.failed.is_empty());
            assert_eq!(whole(), before);
            println!("{plane}: first packet through after SIGKILL: {gaps:?}");
            assert!(*gaps.iter().min().unwrap() < ms(100));
        }
        assert!(stream.join().unwrap(), "every byte came, in order");
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn packets_pass_a_tun_whose_lease_has_lapsed_while_the_agent_stands_still() {
    with_tun("tun::end::packets_pass_a_tun_whose_lease_has_lapsed_while_the_agent_stands_still", |world| {
        let before = whole();
        let flow = Numbered::start(&world, 5_000, ms(3));
        let mut agent = Agent::with("tun", &world, 30, 600);
        std::thread::sleep(ms(150));
        agent.signal(Signal::SIGSTOP);
        std::thread::sleep(ms(1_200));
        agent.signal(Signal::SIGCONT);
        std::thread::sleep(ms(100));
        agent.heal();
        let flow = flow.stop();
        println!("still for 1.2 s under a lease of 0.6 s: longest gap {:?}, {} lost", flow.longest_gap(), flow.lost());
        assert!(flow.longest_gap() < ms(1_000));
        assert_eq!(flow.lost(), 0, "what it held came late, when it went on");
        assert_eq!(whole(), before);
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn packets_pass_when_somebody_removes_the_tun_and_the_plane_says_so() {
    with_tun("tun::end::packets_pass_when_somebody_removes_the_tun_and_the_plane_says_so", |world| {
        world.echoes(PEER, 80);
        let mut flow = connect(PEER, 80);
        let before = whole();
        let mut up = in_runtime(|| applied(&world, to(PEER), delayed(60)));
        assert!(round_trip(&mut flow) >= ms(60));
        let tun = device_of_ours();
        ip(&format!("link del {tun}"));
        assert!(median_round_trip(&mut flow, 5) < ms(20));
        let said = up.plane.seen(&lease()).unwrap_err().to_string();
        assert_eq!(said, format!("could not find {tun}, which somebody has removed"));
        in_runtime(|| up.heal());
        assert_eq!(whole(), before);
    });
}
