//! What must hold of any packets, and of any agent.toml: targets of `tests/fuzz/run`, whose corpora a test replays as well.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use troop_agent_core::fault::{Cidr, FlowHash, Order};
use troop_agent_core::moment::Moment;
use troop_agent_core::protocol::{Found, fault_of};
use troop_agent_core::shaper::{Bound, Handled, Leaving, Packet, Setup, Shaper};
use troop_policies::fault::{ChanceSpec, DelaySpec, FaultSpec, Peer, PortSpan, ReorderSpec, Shape, ShapeTable};

use crate::config::HostPolicy;
use crate::packet::{self, Way};
use crate::plane::hold;

/// A packet in the shaper: the how-manieth it was, of which flow, and how long.
#[derive(Debug, Clone, PartialEq)]
struct Handle {
    number: u64,
    flow: FlowHash,
    bytes: usize,
}

impl Packet for Handle {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// First the same bytes as what the kernel says of a packet that waits. Then a fault, and frames, each after a pause. Whatever they are: a flow is the same from both sides; none leaves before its time; those of a
/// flow leave in order where the order is kept; none is lost but by the fault; when the fault is over all leave, in order.
///
/// # Panics
/// When it does not hold.
pub fn packets(data: &[u8]) {
    waiting(data);
    let Some((head, mut rest)) = data.split_first_chunk::<16>() else { return };
    let Ok(fault) = fault_of(&spec(head), Found { peers: &peers(head), ..Found::default() }) else { return };
    let delay = fault.effect.parts().delay.as_ref();
    let keeps_order = delay.is_none_or(|delay| delay.order() == Order::Kept) && head[9] == 0;
    // No jitter, rate, overtaking, share of the flows or ramp.
    let is_fixed = [2, 8, 9, 10, 14].iter().all(|part| head[*part] == 0);
    let least = delay.filter(|_| is_fixed).map_or(Duration::ZERO, |delay| delay.mean());
    let bound = Bound { packets: usize::from(head[12]) * 4 + 1, bytes: 1 << 20 };
    let setup = Setup { effect: fault.effect.clone(), ramp: fault.ramp, flows: fault.flows, bound };
    let mut now = Moment::from_millis(1);
    let mut shaper = Shaper::new(setup, Xoshiro256PlusPlus::seed_from_u64(u64::from(head[13])), now);
    let mut last = BTreeMap::new();
    let mut left = |leaving: Leaving<Handle>, now: Moment, over: bool| {
        assert!(leaving.came <= now && (over || now.since(leaving.came) >= least), "too early");
        assert!(leaving.flip.is_none_or(|flip| flip.byte < leaving.packet.bytes && flip.mask.is_power_of_two()));
        if keeps_order {
            let before = last.insert(leaving.packet.flow, leaving.packet.number);
            assert!(before.is_none_or(|before| before <= leaving.packet.number), "out of order");
        }
    };
    let mut number = 0;
    while let Some(([pause, low, high], more)) = rest.split_first_chunk::<3>() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (frame, more) = more.split_at(length);
        rest = more;
        now = now.after_nanos(u64::from(*pause) * 1_000_000);
        let flow = same_from_both_sides(frame).filter(|flow| fault.target.matches(flow));
        if let Some(flow) = flow {
            number += 1;
            let handle = Handle { number, flow: flow.hash(7), bytes: frame.len() };
            match shaper.handle_packet(handle.clone(), handle.flow, now) {
                Handled::Taken | Handled::Full => {}
                Handled::Lost(lost) => assert_eq!(lost, handle),
            }
        }
        // Every second time only, so that some wait for longer than they should.
        if number % 2 == 0 {
            while let Some(leaving) = shaper.poll_packet(now) {
                left(leaving, now, shaper.is_over());
            }
            assert!(shaper.poll_timeout().is_none_or(|due| due > now));
        }
        let (held, counters) = (shaper.held(), shaper.counters());
        let there = counters.left + counters.lost + u64::try_from(held.packets).expect("few");
        assert_eq!(counters.came + counters.duplicated, there, "{counters:?}, {held:?}");
    }
    shaper.drain();
    let mut came = Moment::default();
    while let Some(leaving) = shaper.poll_packet(now) {
        assert!(leaving.came >= came, "out of order at the end");
        came = leaving.came;
        left(leaving, now, true);
    }
    assert_eq!((shaper.held().packets, shaper.held().bytes), (0, 0));
}

/// Whatever is said, no more is read than there is, and of an IP packet both sides see the same.
fn waiting(data: &[u8]) {
    let Some(waiting) = hold::waiting(data) else { return };
    assert!(waiting.start.len() + 20 <= data.len());
    let [out, come] = [Way::Out, Way::In].map(|way| packet::flow_of_ip(waiting.start, way));
    assert_eq!(out.map(|flow| (flow.local, flow.peer)), come.map(|flow| (flow.peer, flow.local)));
}

fn same_from_both_sides(frame: &[u8]) -> Option<troop_agent_core::fault::Flow> {
    let (out, come) = (packet::flow(frame, Way::Out), packet::flow(frame, Way::In));
    match (&out, &come) {
        (Some(out), Some(come)) => {
            assert_eq!((out.local, out.peer, out.protocol), (come.peer, come.local, come.protocol));
            let turned = come.ports.map(|ports| (ports.remote, ports.local));
            assert_eq!(out.ports.map(|ports| (ports.local, ports.remote)), turned);
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => panic!("a flow from one side only"),
    }
    out
}

/// A fault of the first bytes: most of them turn one part on.
fn spec(head: &[u8; 16]) -> FaultSpec {
    let chance = |byte: u8| (byte > 0).then(|| ChanceSpec { ppm: u32::from(byte) * 3_921, correlation_ppm: 0 });
    let measured = ShapeTable::new(vec![-8_192, -100, 0, i16::from(head[4]) * 100]).expect("four entries");
    let shapes = [Shape::Uniform, Shape::Normal, Shape::Pareto, Shape::ParetoNormal, Shape::Table(measured)];
    let mean_us = u64::from(u16::from_le_bytes([head[0], head[1]])) * 10;
    let delay = DelaySpec {
        mean_us,
        jitter_us: mean_us * u64::from(head[2]) / 255,
        correlation_ppm: u32::from(head[3]) * 3_921,
        shape: shapes[usize::from((head[4] >> 3) % 5)].clone(),
        reorders: head[4] & 4 != 0,
    };
    FaultSpec {
        to: vec![if head[15] & 1 == 0 { Peer::Everything } else { Peer::Range([10, 0, 0, 0].into(), 8) }],
        remote_ports: if head[15] & 2 == 0 { Vec::new() } else { vec![PortSpan { first: 80, last: 443 }] },
        delay: (mean_us > 0).then_some(delay),
        loss: chance(head[5]),
        duplicate: chance(head[6]),
        corrupt: chance(head[7]),
        rate_bytes_per_second: (head[8] > 0).then(|| u64::from(head[8]) * 10_000),
        reorder: (head[9] > 0).then(|| ReorderSpec { ppm: u32::from(head[9]) * 3_921, correlation_ppm: 0, gap: 2 }),
        flows_ppm: (head[10] > 0).then(|| u32::from(head[10]) * 3_921),
        ramp_us: u64::from(head[14]) * 10_000,
        ..FaultSpec::default()
    }
}

fn peers(head: &[u8; 16]) -> Vec<Cidr> {
    if head[15] & 1 == 0 { Vec::new() } else { vec!["10.0.0.0/8".parse().expect("a range")] }
}

/// An agent.toml. Refused: the reason is there. Taken: line ends and the way it is laid out change nothing, and what it does not name is
/// not allowed.
///
/// # Panics
/// When it does not hold.
pub fn hostpolicy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let policy = match HostPolicy::parse(text) {
        Ok(policy) => policy,
        Err(why) => return assert!(!why.is_empty()),
    };
    if !text.contains('\r') {
        assert_eq!(HostPolicy::parse(&text.replace('\n', "\r\n")).as_ref(), Ok(&policy), "with other line ends");
    }
    // A table has no numbers beyond 63 bits, which a policy may have.
    let Ok(tree) = toml::from_str::<toml::Table>(text) else { return };
    let printed = toml::to_string(&tree).expect("it can be written");
    assert_eq!(HostPolicy::parse(&printed).as_ref(), Ok(&policy), "printed:\n{printed}");
    assert!((0.0..=100.0).contains(&policy.share_max_percent) && !policy.in_words().is_empty());
    let delay = FaultSpec::delay(policy.delay_max, vec![Peer::Everything]);
    let longer = FaultSpec::delay(policy.delay_max + Duration::from_micros(1), vec![Peer::Everything]);
    let peer: Vec<Cidr> = vec!["192.0.2.1".parse().expect("an address")];
    let allowed = policy.check(&delay, &peer, policy.lasts_max).is_ok();
    let is_named = policy.faults.iter().any(|kind| format!("{kind:?}") == "Delay");
    assert!(!allowed || (is_named && policy.spares(&peer).is_ok()));
    // What a fault says in microseconds ends at 64 bits.
    assert!(policy.check(&longer, &peer, Duration::ZERO).is_err() || policy.delay_max.as_micros() >= u64::MAX.into());
    assert!(policy.check(&delay, &peer, policy.lasts_max + Duration::from_nanos(1)).is_err());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    #[test]
    fn the_corpora_hold() {
        let targets: [(&str, Target); 2] = [("packets", super::packets), ("hostpolicy", super::hostpolicy)];
        for (name, target) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(name);
            let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(inputs.len() >= 5, "{name}");
            inputs.iter().for_each(|path| target(&std::fs::read(path).unwrap()));
        }
    }
}
