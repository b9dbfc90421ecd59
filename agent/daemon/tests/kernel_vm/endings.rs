//! How faults end: healed, with their process, with their lease, by the journal.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use troop_agent::netlink::Netlink;
use troop_agent::plane::{Plane as _, PlaneError};
use troop_agent::undo::{Journal, Place};
use troop_agent_core::fault::{Direction, Ramp};

use crate::orders::{DELAY, SPARED, TARGETED, delayed, effect, ordered, ttl};
use crate::stage::{PEER, Stage, assert_same, assert_takes, handshake_within, numbers, output, send_numbered};
use crate::{has_table, machine, plane, ready, tend};

const MS: Duration = Duration::from_millis(1);
const HOLDER: &str = "TROOP_TEST_HOLDER";

#[test]
fn healing_leaves_the_host_as_it_was() {
    let Some((_guard, capability)) = ready("healing") else { return };
    let stage = Stage::new("heal");
    let before = stage.state();
    let (mut kernel, mut journal) = plane(&stage, &capability);
    for direction in [Direction::Egress, Direction::Ingress, Direction::Both] {
        let mut order = ordered("heal");
        order.fault.direction = direction;
        order.fault.ramp = Ramp::new(MS * 1_000).unwrap();
        kernel.apply(&order, &mut journal).unwrap();
        assert_ne!(stage.state(), before);
        kernel.renew(&order.lease, ttl(5_000), MS * 500).unwrap();
        kernel.retarget(&order.lease, &[PEER.parse().unwrap()]).unwrap();
        kernel.heal(&order.lease, &mut journal).unwrap();
        tend(&mut kernel, &mut journal);
        assert_same(&stage.state(), &before);
        assert_eq!(journal.leases().unwrap(), Vec::<String>::new());
        assert!(matches!(kernel.heal(&order.lease, &mut journal), Err(PlaneError::Unknown(_))));
    }
}

#[test]
fn what_is_held_leaves_in_order_when_a_fault_is_healed() {
    let Some((_guard, capability)) = ready("draining") else { return };
    let stage = Stage::new("drain");
    let socket = stage.receive(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("drain");
    order.fault.effect = effect(delayed(MS * 1_500));
    kernel.apply(&order, &mut journal).unwrap();
    send_numbered(PEER, TARGETED, 100, 4, Duration::ZERO);
    assert_eq!(kernel.seen(&order.lease).unwrap().held_packets, 100);
    let began = Instant::now();
    kernel.heal(&order.lease, &mut journal).unwrap();
    assert!(began.elapsed() < MS * 700, "healing waited for what is held");
    assert!(kernel.tend(&mut journal).unwrap(), "what is held was let go of");
    let arrived: Vec<_> = numbers(&socket, MS * 2_500).into_iter().map(|(number, _)| number).collect();
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
    tend(&mut kernel, &mut journal);
    assert!(!output("ip", &["link", "show"]).contains("troop-"));
}

/// Not a test by itself: a process that [`held`] starts, which puts a fault up and renews it until it is killed.
#[test]
fn holds_a_fault_for_another_test() {
    let Ok(ready) = std::env::var(HOLDER) else { return };
    let folder = PathBuf::from(&ready);
    let capability = troop_agent::plane::kernel::probe();
    let mut journal = Journal::open(&folder.join("undo"), Place::here().unwrap()).unwrap();
    let mut kernel = troop_agent::plane::kernel::Kernel::new(&capability).unwrap();
    let mut order = ordered("held");
    order.ttl = ttl(1_000);
    kernel.apply(&order, &mut journal).unwrap();
    std::fs::write(folder.join("up"), "").unwrap();
    loop {
        std::thread::sleep(MS * 300);
        kernel.renew(&order.lease, order.ttl, Duration::ZERO).unwrap();
    }
}

/// A process with a fault that is up.
fn held(stage: &Stage) -> Child {
    let folder = stage.folder.path();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "endings::holds_a_fault_for_another_test", "--nocapture"])
        .env(HOLDER, folder)
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if folder.join("up").exists() {
            return child;
        }
        std::thread::sleep(MS * 50);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("the fault did not come up");
}

/// How long after now a handshake takes less than half the delay, with how many that did not before it.
fn until_gone(at_most: Duration) -> Option<(Duration, u32)> {
    let began = Instant::now();
    let mut tries = 0;
    while began.elapsed() < at_most {
        if handshake_within(PEER, TARGETED, DELAY / 2).is_some() {
            return Some((began.elapsed(), tries));
        }
        tries += 1;
    }
    None
}

#[test]
fn a_fault_is_gone_when_its_process_is_killed() {
    let Some((_guard, capability)) = ready("SIGKILL") else { return };
    let stage = Stage::new("kill");
    let _listeners = [TARGETED, SPARED].map(|port| stage.listen(port));
    let before = stage.state();
    let mut child = held(&stage);
    // It lives beyond its ttl of a second, since it is renewed.
    for _ in 0..4 {
        std::thread::sleep(MS * 400);
        assert_takes("renewed", PEER, TARGETED, DELAY);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if has_table(&capability) {
        let (gone, tries) = until_gone(MS * 5_000).unwrap();
        eprintln!("{}: gone {gone:?} after SIGKILL, {tries} handshakes delayed", machine().unwrap());
        assert_eq!(tries, 0, "the fault outlived its process by {gone:?}");
    } else {
        assert_takes("filters, which do not go by themselves", PEER, TARGETED, DELAY);
    }
    // What is left is the journal's, which whoever finds it replays.
    let mut journal = Journal::open(&stage.journal_folder(), Place::here().unwrap()).unwrap();
    assert_eq!(journal.leases().unwrap(), ["held"]);
    let report = journal.undo_all(&mut Netlink::route().unwrap()).unwrap();
    assert!(report.is_clean() && !report.undone.is_empty(), "{report:?}");
    assert_takes("undone", PEER, TARGETED, Duration::ZERO);
    assert_same(&stage.state(), &before);
    let again = journal.undo_all(&mut Netlink::route().unwrap()).unwrap();
    assert!(again.is_clean() && again.undone.is_empty(), "{again:?}");
}

#[test]
fn a_fault_is_gone_when_its_process_stands_still_for_the_lease() {
    let Some((_guard, capability)) = ready("SIGSTOP") else { return };
    let stage = Stage::new("stop");
    let _listener = stage.listen(TARGETED);
    let mut child = held(&stage);
    let process = Pid::from_raw(child.id().try_into().unwrap());
    assert_takes("before it stands still", PEER, TARGETED, DELAY);
    kill(process, Signal::SIGSTOP).unwrap();
    let gone = until_gone(MS * 2_500);
    child.kill().unwrap();
    child.wait().unwrap();
    if has_table(&capability) {
        let (gone, tries) = gone.unwrap();
        eprintln!("{}: gone {gone:?} after SIGSTOP with a lease of 1 s", machine().unwrap());
        assert!(tries > 0, "it was gone before its lease");
        assert!(gone < MS * 2_000, "{gone:?}");
    } else {
        assert_eq!(gone, None, "filters do not go by themselves");
    }
    let mut journal = Journal::open(&stage.journal_folder(), Place::here().unwrap()).unwrap();
    assert!(journal.undo_all(&mut Netlink::route().unwrap()).unwrap().is_clean());
}

#[test]
fn a_fault_that_cannot_be_put_up_leaves_nothing() {
    let Some((_guard, capability)) = ready("failing") else { return };
    let stage = Stage::new("fail");
    let before = stage.state();
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("fail");
    order.fault.direction = Direction::Both;
    order.devices.push(troop_agent::plane::Device { name: "nowhere".into(), index: 9_999 });
    let answer = kernel.apply(&order, &mut journal);
    assert!(matches!(answer, Err(PlaneError::Kernel { .. })), "{answer:?}");
    assert_same(&stage.state(), &before);
    assert_eq!(journal.leases().unwrap(), Vec::<String>::new());
}

#[test]
fn the_table_says_to_nft_what_it_does() {
    let Some((_guard, capability)) = ready("the table") else { return };
    let stage = Stage::new("table");
    let (mut kernel, mut journal) = plane(&stage, &capability);
    if !has_table(&capability) {
        return;
    }
    let order = ordered("table");
    kernel.apply(&order, &mut journal).unwrap();
    let said = output("nft", &["list", "table", "netdev", "troop-table"]);
    eprintln!("{said}");
    let expected = [
        "flags owner",
        "type iface_index",
        "elements = { \"v0\" timeout 30s expires",
        "flags timeout",
        "elements = { 10.77.0.2 }",
        "elements = { fd77::2 }",
        "elements = { 7001 }",
        "type filter hook egress device \"v0\" priority filter; policy accept;",
        "tcp sport 22 return",
        "ip daddr 169.254.0.0/16 return",
        "ip6 daddr fe80::/10 return",
        "oif @lease jump egress",
        "ip daddr @peers4",
        "ip6 daddr @peers6",
        "dport @remote",
        "fwd to \"troop-",
    ];
    for expected in expected {
        assert!(said.contains(expected), "nft does not say {expected:?}");
    }
    kernel.heal(&order.lease, &mut journal).unwrap();
}
