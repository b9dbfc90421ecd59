//! What a fault does to packets, and what the kernel says that it was told.

use std::time::Duration;

use troop_agent::plane::{Plane as _, PlaneError};
use troop_agent_core::distribution::Distribution;
use troop_agent_core::fault::{
    Chance, Delay, Direction, FlowShare, GilbertElliott, Loss, Order as Keeps, Parts, Ramp, Rate, Reorder,
};

use crate::orders::{DELAY, SPARED, TARGETED, delayed, effect, ordered, percent, ttl};
use crate::stage::{OTHER, PEER, PEER6, Stage, assert_takes, handshake_within, numbers, output, send_numbered};
use crate::{has_table, machine, plane, ready, tend};

const MS: Duration = Duration::from_millis(1);

fn assert_about(what: &str, found: f64, expected: f64) {
    eprintln!("{}: {what}: {found:.2}, asked for {expected}", machine().unwrap());
    assert!((expected * 0.8..=expected * 1.2).contains(&found), "{what}: {found}, not about {expected}");
}

#[test]
fn delays_the_targeted_port_of_the_targeted_peer_and_nothing_else() {
    let Some((_guard, capability)) = ready("the delay") else { return };
    let stage = Stage::new("delay");
    let _listeners = [TARGETED, SPARED].map(|port| stage.listen(port));
    assert_takes("without a fault", PEER, TARGETED, Duration::ZERO);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let order = ordered("delay");
    kernel.apply(&order, &mut journal).unwrap();
    assert_takes("IPv4", PEER, TARGETED, DELAY);
    assert_takes("IPv6", PEER6, TARGETED, DELAY);
    assert_takes("another port", PEER, SPARED, Duration::ZERO);
    assert_takes("another peer", OTHER, TARGETED, Duration::ZERO);
    let seen = kernel.seen(&order.lease).unwrap();
    assert!(seen.concerned >= 10 && seen.lost == 0, "{seen:?}");
    kernel.heal(&order.lease, &mut journal).unwrap();
    assert_takes("healed", PEER, TARGETED, Duration::ZERO);
    tend(&mut kernel, &mut journal);
}

#[test]
fn delays_what_comes_in_and_both_ways_at_once() {
    let Some((_guard, capability)) = ready("ingress") else { return };
    let stage = Stage::new("in");
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    for (lease, direction, ways) in [("in", Direction::Ingress, 1.0), ("both", Direction::Both, 2.0)] {
        let mut order = ordered(lease);
        order.fault.direction = direction;
        order.fault.effect = effect(delayed(DELAY.div_f64(ways)));
        kernel.apply(&order, &mut journal).unwrap();
        for peer in [PEER, PEER6] {
            assert_takes(lease, peer, TARGETED, DELAY);
        }
        kernel.heal(&order.lease, &mut journal).unwrap();
        tend(&mut kernel, &mut journal);
    }
}

#[test]
fn a_black_hole_swallows_what_is_targeted_and_nothing_else() {
    let Some((_guard, capability)) = ready("the black hole") else { return };
    let stage = Stage::new("hole");
    let _listeners = [TARGETED, SPARED].map(|port| stage.listen(port));
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("hole");
    order.fault.effect = effect(Parts { loss: Some(Loss::ALL), ..Parts::default() });
    kernel.apply(&order, &mut journal).unwrap();
    assert_eq!(handshake_within(PEER, TARGETED, MS * 500), None);
    assert!(handshake_within(PEER, SPARED, MS * 500).is_some());
    kernel.heal(&order.lease, &mut journal).unwrap();
    assert!(handshake_within(PEER, TARGETED, MS * 500).is_some());
}

#[test]
fn loses_about_the_share_that_was_asked_for() {
    let Some((_guard, capability)) = ready("the loss") else { return };
    let stage = Stage::new("loss");
    let socket = stage.receive(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("loss");
    order.fault.effect = effect(Parts { loss: Some(Loss::Random(Chance::of(percent(30.0)))), ..Parts::default() });
    kernel.apply(&order, &mut journal).unwrap();
    // Seven standard deviations of a binomial of 3,000 and 0.3 are a fifth of its mean.
    send_numbered(PEER, TARGETED, 3_000, 4, Duration::ZERO);
    let lost = 3_000 - numbers(&socket, MS * 500).len();
    assert_about("packets lost of 3,000", lost as f64, 900.0);
    assert_eq!(kernel.seen(&order.lease).unwrap().lost, lost as u64);
    kernel.heal(&order.lease, &mut journal).unwrap();
}

#[test]
fn limits_the_rate() {
    let Some((_guard, capability)) = ready("the rate") else { return };
    let stage = Stage::new("rate");
    let socket = stage.receive(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("rate");
    let rate = Some(Rate::bytes_per_second(50_000).unwrap());
    order.fault.effect = effect(Parts { rate, ..Parts::default() });
    kernel.apply(&order, &mut journal).unwrap();
    // With UDP's, IP's and Ethernet's heads 1,000 bytes each. A busy machine may see the first one late: then once more.
    let mut found = Vec::new();
    let fits = (0..5).any(|_| {
        send_numbered(PEER, TARGETED, 51, 1_000 - 42, Duration::ZERO);
        let arrived = numbers(&socket, MS * 500);
        assert_eq!(arrived.len(), 51);
        found.push((arrived[50].1 - arrived[0].1).as_secs_f64());
        found.last().is_some_and(|seconds| (0.8..=1.2).contains(seconds))
    });
    eprintln!("{}: seconds for 50,000 bytes: {found:.2?}, asked for 1", machine().unwrap());
    assert!(fits);
    kernel.heal(&order.lease, &mut journal).unwrap();
}

#[test]
fn every_parameter_reads_back_as_it_was_asked_for() {
    let Some((_guard, capability)) = ready("the parameters") else { return };
    let stage = Stage::new("read");
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let chance = |of, correlation| Chance { probability: percent(of), correlation: percent(correlation) };
    let delay = Delay::fixed(MS * 100).unwrap();
    let vary = |correlation, distribution, keeps| {
        delay.clone().varied(MS * 10, percent(correlation), distribution, keeps).unwrap()
    };
    let none = Parts::default;
    let bursts = GilbertElliott {
        to_bad: percent(1.0),
        to_good: percent(10.0),
        loss_when_bad: percent(70.0),
        loss_when_good: percent(0.5),
    };
    let rows = [
        (Parts { delay: Some(Delay::fixed(MS * 100).unwrap()), ..none() }, "delay 100ms"),
        (Parts { delay: Some(vary(25.0, Distribution::Normal, Keeps::ByTime)), ..none() }, "delay 100ms  10ms 25%"),
        (Parts { delay: Some(vary(0.0, Distribution::Pareto, Keeps::Kept)), ..none() }, "delay 100ms  10ms rate"),
        (Parts { loss: Some(Loss::Random(chance(5.0, 25.0))), ..none() }, "loss 5% 25%"),
        (Parts { loss: Some(Loss::GilbertElliott(bursts)), ..none() }, "loss gemodel p 1% r 10% 1-h 70% 1-k 0.5%"),
        (Parts { duplicate: Some(chance(2.0, 10.0)), ..none() }, "duplicate 2% 10%"),
        (Parts { corrupt: Some(chance(3.0, 10.0)), ..none() }, "corrupt 3% 10%"),
        (Parts { rate: Some(Rate::bytes_per_second(125_000).unwrap()), ..none() }, "rate 1Mbit"),
        (
            Parts { delay: Some(delay.clone()), reorder: Some(Reorder::new(chance(25.0, 50.0), 5).unwrap()), ..none() },
            "delay 100ms reorder 25% 50% gap 5",
        ),
    ];
    for (parts, shown) in rows {
        let mut order = ordered("read");
        order.fault.effect = effect(parts);
        kernel.apply(&order, &mut journal).unwrap();
        let said = output("tc", &["-s", "qdisc", "show"]);
        let netem = said.lines().find(|line| line.contains("netem")).unwrap();
        assert!(netem.contains(shown), "{netem:?} does not say {shown:?}");
        kernel.heal(&order.lease, &mut journal).unwrap();
    }
}

#[test]
fn a_ramp_grows_with_each_renewal() {
    let Some((_guard, capability)) = ready("the ramp") else { return };
    let stage = Stage::new("ramp");
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("ramp");
    order.fault.ramp = Ramp::new(MS * 10_000).unwrap();
    kernel.apply(&order, &mut journal).unwrap();
    for (elapsed_ms, shown) in [(2_500, "delay 25ms"), (5_000, "delay 50ms"), (60_000, "delay 100ms")] {
        kernel.renew(&order.lease, ttl(5_000), MS * elapsed_ms).unwrap();
        let said = output("tc", &["qdisc", "show"]);
        assert!(said.contains(shown), "{said:?} does not say {shown:?}");
    }
    kernel.heal(&order.lease, &mut journal).unwrap();
}

#[test]
fn a_percentage_concerns_whole_flows() {
    let Some((_guard, capability)) = ready("the percentage") else { return };
    let stage = Stage::new("share");
    let _listener = stage.listen(TARGETED);
    let (mut kernel, mut journal) = plane(&stage, &capability);
    let mut order = ordered("share");
    order.fault.direction = Direction::Both;
    order.fault.flows = FlowShare::from_percent(50.0).unwrap();
    order.fault.effect = effect(delayed(MS * 40));
    if !has_table(&capability) {
        assert!(matches!(kernel.apply(&order, &mut journal), Err(PlaneError::Cannot { .. })));
        return;
    }
    kernel.apply(&order, &mut journal).unwrap();
    // A flow that is concerned is so both ways: 80 ms, and never 40.
    let times: Vec<_> = (0..60).map(|_| handshake_within(PEER, TARGETED, MS * 5_000).unwrap().as_millis()).collect();
    let delayed = times.iter().filter(|ms| **ms >= 80).count();
    let halves = times.iter().filter(|ms| (40..80).contains(*ms)).count();
    eprintln!("{delayed} of 60 flows are delayed both ways, {halves} look like one way: {times:?}");
    // Four standard deviations of a binomial of 60 and 0.5 are 15.5. A hiccup of the machine may look like one way.
    assert!((14..=46).contains(&delayed) && halves <= 3);
    kernel.heal(&order.lease, &mut journal).unwrap();
    tend(&mut kernel, &mut journal);
}
