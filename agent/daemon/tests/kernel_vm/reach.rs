//! Whom a fault reaches, and whom it spares.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use troop_agent::plane::{Plane as _, PlaneError};
use troop_agent_core::fault::{Cgroup, Direction, Loss, PEERS_MAX, Parts, PortRange, Protocol, Selectors};

use crate::orders::{DELAY, SPARED, TARGETED, delayed, effect, ordered, target};
use crate::stage::{
    HERE, OTHER, PEER, PEER6, Stage, assert_same, assert_takes, batch, device, handshake_within, ip, numbers, output,
    send_numbered,
};
use crate::{has_table, machine, plane, ready, tend};

const MS: Duration = Duration::from_millis(1);

#[test]
fn retargeting_moves_the_fault_to_other_peers() {
    let Some((_guard, capability)) = ready("retargeting") else { return };
    let stage = Stage::new("target");
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let order = ordered("target");
    kernel.apply(&order, &mut journal).unwrap();
    kernel.retarget(&order.lease, &[OTHER.parse().unwrap()]).unwrap();
    assert_takes("the new peer", OTHER, TARGETED, DELAY);
    assert_takes("the peer from before", PEER, TARGETED, Duration::ZERO);
    kernel.retarget(&order.lease, &[]).unwrap();
    assert_takes("without peers", OTHER, TARGETED, Duration::ZERO);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn a_target_of_the_most_peers_fits_a_batch() {
    let Some((_guard, capability)) = ready("many peers") else { return };
    let stage = Stage::new("many");
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("many");
    // Every other address, so that none touches another: two keys each.
    let mut peers: Vec<_> = (1..PEERS_MAX).map(|n| format!("fd99::{:x}", n * 2).parse().unwrap()).collect();
    peers.push(PEER6.parse().unwrap());
    order.fault.target = target(Selectors { peers: peers.clone(), ..Selectors::default() });
    if !has_table(&capability) {
        assert!(matches!(kernel.apply(&order, &mut journal), Err(PlaneError::Cannot { .. })));
        return;
    }
    kernel.apply(&order, &mut journal).unwrap();
    assert_takes("one of many", PEER6, TARGETED, DELAY);
    peers.pop();
    kernel.retarget(&order.lease, &peers).unwrap();
    assert_takes("not one of many", PEER6, TARGETED, Duration::ZERO);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn a_fault_for_everything_spares_ssh_neighbours_and_the_channel() {
    let Some((_guard, capability)) = ready("what is off limits") else { return };
    let stage = Stage::new("limits");
    let _channel = stage.listen(7443);
    let _other = stage.listen(TARGETED);
    let _here = [22, 80].map(|port| TcpListener::bind((HERE, port)).unwrap());
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("limits");
    let everything = Selectors { everything: true, ..Selectors::default() };
    let channel = format!("{PEER}:7443").parse().unwrap();
    order.fault.target = troop_agent_core::fault::Target::new(everything, &[channel]).unwrap();
    order.fault.direction = Direction::Both;
    order.fault.effect = effect(Parts { loss: Some(Loss::ALL), ..Parts::default() });
    kernel.apply(&order, &mut journal).unwrap();
    let from_peer = |port| stage.at_peer(move || handshake_within(HERE, port, MS * 700).is_some());
    assert!(from_peer(22), "SSH is cut");
    assert!(!from_peer(80), "everything else is not");
    assert!(handshake_within(PEER, 7443, MS * 700).is_some(), "the channel is cut");
    assert!(handshake_within(PEER, TARGETED, MS * 700).is_none());
    let neighbour = stage.at_peer(|| output("ip", &["-6", "addr", "show", "dev", "v1", "scope", "link"]));
    let neighbour = neighbour.split_whitespace().find(|word| word.starts_with("fe80")).unwrap();
    let neighbour = format!("{}%v0", neighbour.split('/').next().unwrap());
    output("ping", &["-c", "1", "-W", "5", &neighbour]);
    kernel.heal(&order.lease, &mut journal).unwrap();
}

#[test]
fn a_cgroup_is_what_its_own_sockets_send() {
    let Some((_guard, capability)) = ready("a cgroup") else { return };
    let stage = Stage::new("group");
    let _listener = stage.listen(TARGETED);
    let folder = std::path::Path::new("/sys/fs/cgroup/troop-test");
    std::fs::create_dir_all(folder).unwrap();
    let move_to = |folder: &str| {
        let procs = std::path::Path::new(folder).join("cgroup.procs");
        std::fs::write(procs, std::process::id().to_string()).unwrap();
    };
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("group");
    let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(folder).unwrap());
    let selectors = Selectors { cgroup: Some(Cgroup { level: 1, id }), ..Selectors::default() };
    order.fault.target = target(selectors);
    if has_table(&capability) {
        let before = stage.state();
        kernel.apply(&order, &mut journal).unwrap();
        assert_takes("another's", PEER, TARGETED, Duration::ZERO);
        move_to("/sys/fs/cgroup/troop-test");
        assert_takes("its own", PEER, TARGETED, DELAY);
        assert_takes("its own, by IPv6", PEER6, TARGETED, DELAY);
        kernel.renew(&order.lease, crate::orders::ttl(30_000), Duration::from_secs(1)).unwrap();
        assert_takes("its own, renewed", PEER, TARGETED, DELAY);
        move_to("/sys/fs/cgroup");
        assert_takes("another's again", PEER, TARGETED, Duration::ZERO);
        kernel.heal(&order.lease, &mut journal).unwrap();
        tend(&mut kernel, &mut journal);
        assert_same(&stage.state(), &before);
    } else {
        assert!(matches!(kernel.apply(&order, &mut journal), Err(PlaneError::Cannot { .. })));
    }
    std::fs::remove_dir(folder).unwrap();
}

#[test]
fn names_of_protocols_and_ranges_of_ports_mean_what_they_say() {
    let Some((_guard, capability)) = ready("protocols and ports") else { return };
    let stage = Stage::new("ports");
    let _listeners = [7000, 7050, 7101].map(|port| stage.listen(port));
    let socket = stage.receive(7050);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("ports");
    let ranges = vec![PortRange::new(7001, 7100).unwrap(), PortRange::one(7050).unwrap()];
    let selectors = Selectors { protocol: Some(Protocol::Tcp), remote_ports: ranges, ..Selectors::default() };
    order.fault.target = target(selectors);
    order.fault.effect = effect(Parts { loss: Some(Loss::ALL), ..Parts::default() });
    kernel.apply(&order, &mut journal).unwrap();
    let reached = [7000, 7050, 7101].map(|port| handshake_within(PEER, port, MS * 500).is_some());
    assert_eq!(reached, [true, false, true]);
    send_numbered(PEER, 7050, 5, 4, Duration::ZERO);
    assert_eq!(numbers(&socket, MS * 300).len(), 5);
    kernel.heal(&order.lease, &mut journal).unwrap();

    let mut order = ordered("ping");
    order.fault.target = target(Selectors { protocol: Some(Protocol::Icmp), ..Selectors::default() });
    order.fault.effect = effect(delayed(DELAY));
    kernel.apply(&order, &mut journal).unwrap();
    for peer in [PEER, PEER6] {
        let said = output("ping", &["-c", "3", "-i", "0.2", "-q", peer]);
        let least: f64 = said.split("= ").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
        assert!(least >= 99.0, "{said}");
    }
    assert_takes("TCP beside ICMP", PEER, 7000, Duration::ZERO);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn works_on_the_loopback_device() {
    let Some((_guard, capability)) = ready("the loopback") else { return };
    let stage = Stage::new("lo");
    let _listener = TcpListener::bind(("127.0.0.1", TARGETED)).unwrap();
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("lo");
    let remote_ports = vec![PortRange::one(TARGETED).unwrap()];
    order.fault.target = target(Selectors { remote_ports, ..Selectors::default() });
    order.devices = vec![device("lo")];
    kernel.apply(&order, &mut journal).unwrap();
    assert_takes("loopback", "127.0.0.1", TARGETED, DELAY);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn works_on_a_vlan_device() {
    let Some((_guard, capability)) = ready("VLANs") else { return };
    let stage = Stage::new("vlan");
    let tagged = |device: &str, address: &str| {
        format!(
            "link add {device}.7 link {device} type vlan id 7\naddr add {address}/24 dev {device}.7\nlink set {device}.7 up\n"
        )
    };
    batch("ip", &[], &tagged("v0", "10.79.0.1"));
    batch("ip", &["-n", &stage.peer()], &tagged("v1", "10.79.0.2"));
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("vlan");
    let peers = vec!["10.79.0.0/24".parse().unwrap()];
    order.fault.target = target(Selectors { peers, ..Selectors::default() });
    order.fault.direction = Direction::Both;
    order.fault.effect = effect(delayed(DELAY / 2));
    order.devices = vec![device("v0.7")];
    kernel.apply(&order, &mut journal).unwrap();
    assert_takes("VLAN", "10.79.0.2", TARGETED, DELAY);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn a_datagram_in_fragments_is_reached_by_the_table_and_spared_by_filters() {
    let Some((_guard, capability)) = ready("fragments") else { return };
    let stage = Stage::new("parts");
    let socket = stage.receive(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let order = ordered("parts");
    kernel.apply(&order, &mut journal).unwrap();
    for peer in [PEER, PEER6] {
        let sent = Instant::now();
        send_numbered(peer, TARGETED, 1, 5_000, Duration::ZERO);
        let arrived = numbers(&socket, MS * 500);
        let [(0, when)] = arrived[..] else { panic!("{peer}: {arrived:?}") };
        // flower sees no ports in a fragment, not even in the first.
        assert_eq!(when - sent >= DELAY, has_table(&capability), "{peer}: {:?}", when - sent);
    }
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn a_stream_comes_through_whole_and_in_large_packets() {
    let Some((_guard, capability)) = ready("a stream") else { return };
    const BYTES: usize = 4 << 20;
    let stage = Stage::new("stream");
    let listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("stream");
    order.fault.direction = Direction::Both;
    order.fault.effect = effect(delayed(MS * 10));
    kernel.apply(&order, &mut journal).unwrap();
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let began = Instant::now();
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect((PEER, TARGETED)).unwrap();
        stream.write_all(&vec![7; BYTES]).unwrap();
    });
    let mut largest = 0;
    while !receiver.is_finished() {
        let seen = kernel.seen(&order.lease).unwrap();
        largest = largest.max(seen.held_bytes.checked_div(seen.held_packets).unwrap_or(0));
    }
    eprintln!("{}: 4 MB at 20 ms in {:?}, packets of up to {largest} bytes", machine().unwrap(), began.elapsed());
    sender.join().unwrap();
    assert_eq!(receiver.join().unwrap(), BYTES as u64);
    assert_eq!(kernel.seen(&order.lease).unwrap().lost, 0);
    assert!(largest > 2_000, "the lane had packets of {largest} bytes only");
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}

#[test]
fn two_faults_on_a_device_keep_apart() {
    let Some((_guard, capability)) = ready("two faults") else { return };
    let stage = Stage::new("two");
    let _listeners = [TARGETED, SPARED].map(|port| stage.listen(port));
    let before = stage.state();
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let (one, mut two) = (ordered("one"), ordered("two"));
    let remote_ports = vec![PortRange::one(SPARED).unwrap()];
    two.fault.target = target(Selectors { remote_ports, ..Selectors::default() });
    two.fault.effect = effect(delayed(DELAY * 2));
    kernel.apply(&one, &mut journal).unwrap();
    kernel.apply(&two, &mut journal).unwrap();
    assert_takes("one", PEER, TARGETED, DELAY);
    assert_takes("two", PEER, SPARED, DELAY * 2);
    kernel.heal(&one.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
    assert_takes("the peer from before", PEER, TARGETED, Duration::ZERO);
    assert_takes("two without one", PEER, SPARED, DELAY * 2);
    kernel.heal(&two.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
    assert_same(&stage.state(), &before);
}

#[test]
fn a_flow_outside_loses_nothing_while_faults_come_and_go() {
    let Some((_guard, capability)) = ready("the bystander") else { return };
    let stage = Stage::new("aside");
    let socket = stage.receive(SPARED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let sender = std::thread::spawn(|| send_numbered(PEER, SPARED, 4_000, 64, Duration::from_micros(200)));
    let receiver = std::thread::spawn(move || numbers(&socket, MS * 1_500));
    for _ in 0..5 {
        let order = ordered("aside");
        kernel.apply(&order, &mut journal).unwrap();
        std::thread::sleep(MS * 50);
        kernel.heal(&order.lease, &mut journal).unwrap();
        tend(&mut kernel, &mut journal);
    }
    sender.join().unwrap();
    let arrived = receiver.join().unwrap();
    let lost = 4_000 - arrived.len();
    eprintln!("{}: {lost} of 4,000 packets of another flow were lost in five faults", machine().unwrap());
    let in_order = arrived.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(in_order, "packets of another flow changed places");
    // Filters need clsact, and putting it on a device stops its queues.
    if has_table(&capability) {
        assert_eq!(lost, 0);
    }
}

#[test]
fn what_is_sent_through_this_host_is_reached_too() {
    let Some((_guard, capability)) = ready("forwarding") else { return };
    let stage = Stage::new("via");
    // A third host behind this one, which is the way from it to the peer.
    let cable = "link add v2 type veth peer name v3 netns via-behind\naddr add 10.78.0.1/24 dev v2\nlink set v2 up\n";
    ip(&["netns", "add", "via-behind"]);
    batch("ip", &[], cable);
    let behind = "addr add 10.78.0.2/24 dev v3\nlink set v3 up\nroute add default via 10.78.0.1\n";
    batch("ip", &["-n", "via-behind"], behind);
    ip(&["-n", &stage.peer(), "route", "add", "default", "via", HERE]);
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let order = ordered("via");
    let from_behind = |what: &'static str, asked| {
        let measure = move || {
            crate::stage::enter("via-behind");
            assert_takes(what, PEER, TARGETED, asked);
        };
        std::thread::spawn(measure).join().unwrap();
    };
    from_behind("through this host without a fault", Duration::ZERO);
    kernel.apply(&order, &mut journal).unwrap();
    from_behind("through this host", DELAY);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
    ip(&["netns", "del", "via-behind"]);
}

#[test]
fn what_somebody_else_has_put_on_the_device_stays() {
    let Some((_guard, capability)) = ready("foreign qdiscs") else { return };
    let stage = Stage::new("foreign");
    let _listener = stage.listen(TARGETED);
    output(
        "tc",
        &["qdisc", "add", "dev", "v0", "root", "handle", "5:", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "1s"],
    );
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let before = stage.state();
    let order = ordered("root");
    kernel.apply(&order, &mut journal).unwrap();
    assert_takes("below tbf", PEER, TARGETED, DELAY);
    assert!(output("tc", &["qdisc", "show", "dev", "v0"]).contains("tbf 5: root"));
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
    assert_same(&stage.state(), &before);

    output("tc", &["qdisc", "add", "dev", "v0", "clsact"]);
    let before = stage.state();
    let order = ordered("clsact");
    let answer = kernel.apply(&order, &mut journal);
    if has_table(&capability) {
        answer.unwrap();
        kernel.heal(&order.lease, &mut journal).unwrap();
    } else {
        assert!(matches!(answer, Err(PlaneError::Foreign { .. })), "{answer:?}");
    }
    assert_same(&stage.state(), &before);
    assert_eq!(journal.leases().unwrap(), Vec::<String>::new());
}
