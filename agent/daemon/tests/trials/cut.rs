//! A connection over TLS that a firewall cuts: neither end is told.

use std::time::Duration;

use troop_policies::fault::Direction;

use crate::control::{Asked, ControlPlane, TLS_PORT};
use crate::host::{Host, Stream};
use crate::probe::{Probe, Probes, TARGETED, nanos};
use crate::world::{PEER, in_namespaces, ms, run};

#[test]
#[ignore = "needs user namespaces"]
fn a_fault_is_gone_within_its_lease_when_a_firewall_cuts_the_connection() {
    in_namespaces("cut::a_fault_is_gone_within_its_lease_when_a_firewall_cuts_the_connection", |world| {
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start_tls(world.folder.path());
        let mut host = Host::start(&world, &control);
        let (stream, probes) = (Stream::start(), Probes::start(&world));
        // Longer than in the other trials: a busy machine must not be taken for the firewall.
        let ttl = Duration::from_secs(5);
        let asked = Asked { delay: ms(120), direction: Direction::Both, port: TARGETED, ttl };
        control.grant("cut", &asked);
        control.wait_until_up("cut");
        std::thread::sleep(ms(2_500));
        run("nft", "add table inet cut");
        run("nft", "add chain inet cut out { type filter hook output priority 0 ; }");
        let at = nanos();
        for end in ["dport", "sport"] {
            run("nft", &format!("add rule inet cut out tcp {end} {TLS_PORT} drop"));
        }
        std::thread::sleep(ttl + ms(1_200));
        let probes = probes.stop();
        let slow = |probe: &&Probe| probe.is_slow(asked.longer());
        let last = probes.iter().rfind(slow).expect("it was seen").sent;
        assert!(last > at, "it had ended before");
        println!("gone {:?} after the connection was cut, under a lease of {ttl:?}", Duration::from_nanos(last - at));
        assert!(Duration::from_nanos(last - at) < ttl + Duration::from_secs(1));
        assert!(stream.stop(), "the established connection broke");
        run("nft", "delete table inet cut");
        host.await_nothing_left();
        host.end();
        host.await_nothing_left();
    });
}
