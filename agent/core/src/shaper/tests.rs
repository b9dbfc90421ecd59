use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;
use crate::distribution::Distribution;
use crate::fault::{Chance, Delay, GilbertElliott, Loss, Parts, Probability, Rate, Reorder};

const MS: u64 = 1_000_000;
const ROOMY: Bound = Bound { packets: 1 << 20, bytes: 1 << 30 };

/// A packet with a number and a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbered {
    number: u64,
    bytes: usize,
}

impl Packet for Numbered {
    fn bytes(&self) -> usize {
        self.bytes
    }
}

type Tested = Shaper<Numbered, Xoshiro256PlusPlus>;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn percent(percent: f64) -> Probability {
    Probability::from_percent(percent).unwrap()
}

fn delay(ms: u64) -> Delay {
    Delay::fixed(Duration::from_millis(ms)).unwrap()
}

fn jittered(ms: u64, jitter_ms: u64, order: Order) -> Delay {
    let jitter = Duration::from_millis(jitter_ms);
    delay(ms).varied(jitter, Probability::NEVER, Distribution::Normal, order).unwrap()
}

fn of_delay(delay: Delay) -> Parts {
    Parts { delay: Some(delay), ..Parts::default() }
}

fn setup(parts: Parts) -> Setup {
    Setup { effect: Effect::new(parts).unwrap(), ramp: Ramp::NONE, flows: FlowShare::ALL, bound: ROOMY }
}

fn shaper(setup: Setup) -> Tested {
    Shaper::new(setup, Xoshiro256PlusPlus::seed_from_u64(5), at(0))
}

fn shaping(parts: Parts) -> Tested {
    shaper(setup(parts))
}

fn numbered(number: u64) -> Numbered {
    Numbered { number, bytes: 1_000 }
}

fn give(shaper: &mut Tested, number: u64, now: Moment) -> Handled<Numbered> {
    shaper.handle_packet(numbered(number), FlowHash(0), now)
}

/// Numbers of all that is due.
fn take(shaper: &mut Tested, now: Moment) -> Vec<u64> {
    std::iter::from_fn(|| shaper.poll_packet(now)).map(|leaving| leaving.packet.number).collect()
}

/// Gives `count` packets a millisecond apart and takes everything: each one's number, when it came and when it left.
fn through(shaper: &mut Tested, count: u64) -> Vec<(u64, Moment, Moment)> {
    let mut left = Vec::new();
    for number in 0..count {
        drop(give(shaper, number, at(number)));
    }
    while let Some(due) = shaper.poll_timeout() {
        while let Some(leaving) = shaper.poll_packet(due) {
            left.push((leaving.packet.number, leaving.came, due));
        }
    }
    left
}

#[test]
fn a_packet_leaves_when_its_delay_is_over_and_not_before() {
    let mut shaper = shaping(of_delay(delay(100)));
    assert_eq!(give(&mut shaper, 1, at(5)), Handled::Taken);
    assert_eq!(shaper.poll_timeout(), Some(at(105)));
    assert!(take(&mut shaper, Moment::from_nanos(105 * MS - 1)).is_empty());
    assert_eq!(take(&mut shaper, at(105)), [1]);
    assert_eq!(shaper.poll_timeout(), None);
}

#[test]
fn jitter_reorders_only_where_it_may() {
    let left = |order| {
        let mut shaper = shaping(of_delay(jittered(50, 10, order)));
        through(&mut shaper, 1_000).into_iter().map(|(number, ..)| number).collect::<Vec<_>>()
    };
    assert!(left(Order::Kept).is_sorted());
    assert!(!left(Order::ByTime).is_sorted());
}

#[test]
fn a_flow_does_not_wait_for_the_order_of_another() {
    let uniform = Distribution::Uniform;
    let wide = delay(1_000).varied(Duration::from_secs(1), Probability::NEVER, uniform, Order::Kept).unwrap();
    let mut shaper = shaping(of_delay(wide));
    for number in 0..1_000 {
        let flow = FlowHash(number % 100);
        drop(shaper.handle_packet(numbered(number), flow, at(0)));
    }
    let first: Vec<u64> = take(&mut shaper, at(100));
    assert!(!first.is_sorted(), "flows in step: {first:?}");
}

#[test]
fn a_black_hole_gives_every_packet_back_as_lost() {
    let mut shaper = shaping(Parts { loss: Some(Loss::ALL), ..Parts::default() });
    assert!((0..1_000).all(|n| give(&mut shaper, n, at(n)) == Handled::Lost(numbered(n))));
    assert_eq!((shaper.counters().lost, shaper.held()), (1_000, Held::default()));
}

#[test]
fn bursts_of_loss_are_as_long_as_asked_for() {
    let model = GilbertElliott {
        to_bad: percent(1.0),
        to_good: percent(20.0),
        loss_when_bad: Probability::ALWAYS,
        loss_when_good: Probability::NEVER,
    };
    let mut shaper = shaping(Parts { loss: Some(Loss::GilbertElliott(model)), ..Parts::default() });
    let lost: Vec<bool> = (0..50_000).map(|n| give(&mut shaper, n, at(n)) != Handled::Taken).collect();
    let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count();
    let length = lost.iter().filter(|l| **l).count() as f64 / bursts as f64;
    assert!((length - 5.0).abs() < 0.7, "{length}");
}

#[test]
fn a_certain_duplicate_leaves_twice() {
    let duplicate = Some(Chance::of(Probability::ALWAYS));
    let mut shaper = shaping(Parts { duplicate, ..of_delay(delay(10)) });
    drop(give(&mut shaper, 1, at(0)));
    drop(give(&mut shaper, 2, at(1)));
    assert_eq!(take(&mut shaper, at(11)), [1, 1, 2, 2]);
    assert_eq!(shaper.counters().duplicated, 2);
}

#[test]
fn of_a_duplicate_and_a_loss_one_packet_is_left() {
    let duplicate = Some(Chance::of(Probability::ALWAYS));
    let mut shaper = shaping(Parts { duplicate, loss: Some(Loss::ALL), ..Parts::default() });
    drop(give(&mut shaper, 1, at(0)));
    assert_eq!(take(&mut shaper, at(0)), [1]);
    let Counters { lost, duplicated, .. } = shaper.counters();
    assert_eq!((lost, duplicated), (1, 1));
}

#[test]
fn corruption_names_a_bit_of_the_packet() {
    let corrupt = Some(Chance::of(Probability::ALWAYS));
    let mut shaper = shaping(Parts { corrupt, ..Parts::default() });
    let mut bytes_hit = [0_u32; 4];
    for number in 0..4_000 {
        drop(shaper.handle_packet(Numbered { number, bytes: 4 }, FlowHash(0), at(number)));
        let flip = shaper.poll_packet(at(number)).unwrap().flip.unwrap();
        assert_eq!(flip.mask.count_ones(), 1);
        bytes_hit[flip.byte] += 1;
    }
    // Five standard deviations of a binomial of 4,000 and a quarter are 137.
    assert!(bytes_hit.iter().all(|hits| (863..=1_137).contains(hits)), "{bytes_hit:?}");
}

#[test]
fn an_empty_packet_has_no_bit_to_corrupt() {
    let mut shaper = shaping(Parts { corrupt: Some(Chance::of(Probability::ALWAYS)), ..Parts::default() });
    drop(shaper.handle_packet(Numbered { number: 1, bytes: 0 }, FlowHash(0), at(0)));
    assert_eq!(shaper.poll_packet(at(0)).unwrap().flip, None);
}

#[test]
fn every_fifth_packet_overtakes_with_a_gap_of_five() {
    let reorder = Reorder::new(Chance::of(Probability::ALWAYS), 5).unwrap();
    let mut shaper = shaping(Parts { reorder: Some(reorder), ..of_delay(delay(1_000)) });
    for number in 1..=10 {
        drop(give(&mut shaper, number, at(number)));
    }
    assert_eq!(take(&mut shaper, at(10)), [5, 10]);
    assert_eq!(take(&mut shaper, at(2_000)), [1, 2, 3, 4, 6, 7, 8, 9]);
}

#[test]
fn overtaking_by_chance_is_as_frequent_as_asked_for() {
    let reorder = Reorder::new(Chance::of(percent(25.0)), 1).unwrap();
    let mut shaper = shaping(Parts { reorder: Some(reorder), ..of_delay(delay(10)) });
    through(&mut shaper, 10_000);
    // Five standard deviations of a binomial of 10,000 and a quarter are 217.
    assert!((2_283..=2_717).contains(&shaper.counters().overtook), "{:?}", shaper.counters());
}

#[test]
fn a_rate_spaces_packets_out_and_loses_none() {
    // A packet of 1000 bytes takes 10 ms.
    let rate = Some(Rate::bytes_per_second(100_000).unwrap());
    let mut shaper = shaping(Parts { rate, ..of_delay(delay(50)) });
    for number in 0..100 {
        assert_eq!(give(&mut shaper, number, at(0)), Handled::Taken);
    }
    let mut left = Vec::new();
    while let Some(due) = shaper.poll_timeout() {
        left.extend(take(&mut shaper, due).into_iter().map(|number| (number, due)));
    }
    let expected: Vec<_> = (0..100).map(|n| (n, at(50 + 10 * (n + 1)))).collect();
    assert_eq!(left, expected);
    // After a rest the wire is free again.
    drop(give(&mut shaper, 100, at(5_000)));
    assert_eq!(shaper.poll_timeout(), Some(at(5_060)));
}

#[test]
fn a_ramp_lets_the_delay_grow() {
    let ramp = Ramp::new(Duration::from_secs(10)).unwrap();
    let mut shaper = shaper(Setup { ramp, ..setup(of_delay(delay(200))) });
    for (now, delay) in [(0, 0), (2_500, 50), (5_000, 100), (10_000, 200), (60_000, 200)] {
        drop(give(&mut shaper, now, at(now)));
        assert_eq!(shaper.poll_timeout(), Some(at(now + delay)));
        assert_eq!(take(&mut shaper, at(now + delay)), [now]);
    }
}

#[test]
fn flows_that_are_not_picked_pass_at_once_and_always() {
    let flows = FlowShare::from_percent(50.0).unwrap();
    let mut shaper = shaper(Setup { flows, ..setup(of_delay(delay(100))) });
    let picked = FlowHash(1);
    let other = FlowHash(u64::MAX - 1);
    assert!(flows.picks(picked) && !flows.picks(other));
    for number in 0..10 {
        drop(shaper.handle_packet(numbered(2 * number), picked, at(number)));
        drop(shaper.handle_packet(numbered(2 * number + 1), other, at(number)));
        assert_eq!(take(&mut shaper, at(number)), [2 * number + 1]);
    }
}

#[test]
fn at_the_bound_it_says_full_once_and_gives_everything_up_in_order() {
    for bound in [Bound { packets: 3, bytes: usize::MAX }, Bound { packets: usize::MAX, bytes: 3_999 }] {
        let mut shaper = shaper(Setup { bound, ..setup(of_delay(jittered(1_000, 300, Order::ByTime))) });
        for number in 0..3 {
            assert_eq!(give(&mut shaper, number, at(0)), Handled::Taken);
        }
        assert_eq!(give(&mut shaper, 3, at(1)), Handled::Full);
        assert!(shaper.is_over());
        assert_eq!(give(&mut shaper, 4, at(2)), Handled::Taken);
        assert!(shaper.poll_timeout().unwrap() <= at(2));
        assert_eq!(take(&mut shaper, at(2)), [0, 1, 2, 3, 4]);
        assert_eq!(give(&mut shaper, 5, at(3)), Handled::Taken);
        assert_eq!(take(&mut shaper, at(3)), [5]);
    }
}

#[test]
fn draining_lets_everything_out_now_in_order() {
    let mut shaper = shaping(of_delay(jittered(5_000, 1_000, Order::ByTime)));
    for number in 0..100 {
        drop(give(&mut shaper, number, at(number)));
    }
    assert!(take(&mut shaper, at(100)).is_empty());
    shaper.drain();
    assert_eq!(take(&mut shaper, at(100)), (0..100).collect::<Vec<_>>());
    assert_eq!(shaper.held(), Held::default());
}

#[test]
fn a_clock_that_goes_back_lets_no_packet_out_early() {
    let mut shaper = shaping(of_delay(delay(100)));
    drop(give(&mut shaper, 1, at(1_000)));
    drop(give(&mut shaper, 2, at(10)));
    assert!(take(&mut shaper, at(1_099)).is_empty());
    assert_eq!(take(&mut shaper, at(1_100)), [1, 2]);
}

#[test]
fn a_steady_load_allocates_nothing() {
    let mut shaper = shaping(of_delay(jittered(500, 50, Order::Kept)));
    let mut run = |from: u64, to: u64| {
        for number in from..to {
            drop(give(&mut shaper, number, at(number)));
            while shaper.poll_packet(at(number)).is_some() {}
        }
        shaper.queue.capacity()
    };
    let warm = run(0, 5_000);
    assert_eq!(run(5_000, 20_000), warm);
}

#[test]
fn the_same_seed_replays_the_same_run() {
    let run = || {
        let parts =
            Parts { loss: Some(Loss::Random(Chance::of(percent(20.0)))), ..of_delay(jittered(50, 20, Order::ByTime)) };
        through(&mut shaping(parts), 500)
    };
    assert_eq!(run(), run());
}

/// Something that happens to a shaper.
#[derive(Debug, Clone)]
enum Event {
    Give { flow: u8, bytes: usize },
    Wait { micros: u64 },
    Take,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0_u8..8, 0_usize..3_000).prop_map(|(flow, bytes)| Event::Give { flow, bytes }),
        3 => (0_u64..60_000).prop_map(|micros| Event::Wait { micros }),
        2 => Just(Event::Take),
    ];
    proptest::collection::vec(event, 0..200)
}

fn chances() -> impl Strategy<Value = Option<Chance>> {
    let bits = || any::<u32>().prop_map(Probability::from_bits);
    proptest::option::of((bits(), bits()).prop_map(|(probability, correlation)| Chance { probability, correlation }))
}

fn delays(order: Order) -> impl Strategy<Value = Delay> {
    let shape = prop_oneof![
        Just(Distribution::Uniform),
        Just(Distribution::Normal),
        Just(Distribution::Pareto),
        Just(Distribution::ParetoNormal)
    ];
    (0_u64..200, 1_u64..100, shape).prop_map(move |(ms, jitter, shape)| {
        delay(ms).varied(Duration::from_millis(jitter), percent(25.0), shape, order).unwrap()
    })
}

/// Effects of every kind; overtaking only where the caller allows it.
fn effects(order: Order, overtaking: bool) -> impl Strategy<Value = Effect> {
    let rate = proptest::option::of((10_000_u64..10_000_000).prop_map(|r| Rate::bytes_per_second(r).unwrap()));
    let loss = chances().prop_map(|chance| chance.map(Loss::Random));
    (delays(order), loss, chances(), chances(), rate, 1_u32..6).prop_map(
        move |(delay, loss, duplicate, corrupt, rate, gap)| {
            let possible = overtaking && !delay.mean().is_zero();
            let reorder = possible.then(|| Reorder::new(Chance::of(percent(40.0)), gap).unwrap());
            Effect::new(Parts { delay: Some(delay), loss, duplicate, reorder, corrupt, rate }).unwrap()
        },
    )
}

/// What a run showed: every packet with its flow, in the order of leaving, and when.
#[derive(Debug, Default)]
struct Run {
    left: Vec<(u64, u8, Moment, Moment)>,
    lost: u64,
    full: u64,
    given: u64,
}

/// Plays events, and checks after each what must hold at every moment. Takes what is left in the end by its timeouts.
fn play(shaper: &mut Tested, events: &[Event], bound: Bound) -> Run {
    let mut run = Run::default();
    let mut now = at(1);
    let mut flows = BTreeMap::new();
    let taken = |shaper: &mut Tested, run: &mut Run, flows: &BTreeMap<u64, u8>, now| {
        let due = shaper.poll_timeout();
        let before = run.left.len();
        while let Some(leaving) = shaper.poll_packet(now) {
            run.left.push((leaving.packet.number, flows[&leaving.packet.number], leaving.came, now));
        }
        assert_eq!(run.left.len() > before, due.is_some_and(|due| due <= now), "the timeout was wrong");
    };
    for event in events {
        match event {
            Event::Wait { micros } => now = now.after_nanos(micros * 1_000),
            Event::Take => taken(shaper, &mut run, &flows, now),
            Event::Give { flow, bytes } => {
                let packet = Numbered { number: run.given, bytes: *bytes };
                flows.insert(run.given, *flow);
                run.given += 1;
                match shaper.handle_packet(packet, FlowHash(u64::from(*flow)), now) {
                    Handled::Taken => {}
                    Handled::Lost(lost) => {
                        assert_eq!(lost, packet);
                        run.lost += 1;
                    }
                    Handled::Full => run.full += 1,
                }
            }
        }
        let (counters, held) = (shaper.counters(), shaper.held());
        let inside = u64::try_from(held.packets).unwrap();
        assert_eq!(counters.came + counters.duplicated, counters.left + counters.lost + inside);
        assert!(shaper.is_over() || held.packets <= bound.packets && held.bytes <= bound.bytes);
    }
    while let Some(due) = shaper.poll_timeout() {
        now = now.max(due);
        taken(shaper, &mut run, &flows, now);
    }
    run
}

fn made(effect: Effect, bound: Bound, seed: u64) -> Tested {
    let setup = Setup { effect, ramp: Ramp::NONE, flows: FlowShare::ALL, bound };
    Shaper::new(setup, Xoshiro256PlusPlus::seed_from_u64(seed), at(0))
}

proptest! {
    #[test]
    fn nothing_is_lost_or_made_but_by_the_fault(
        effect in effects(Order::ByTime, true), events in events(), seed in any::<u64>(),
    ) {
        let mut shaper = made(effect, ROOMY, seed);
        let run = play(&mut shaper, &events, ROOMY);
        let counters = shaper.counters();
        prop_assert_eq!(shaper.held(), Held::default());
        prop_assert_eq!(counters.came, run.given);
        prop_assert_eq!(counters.left, u64::try_from(run.left.len()).unwrap());
        prop_assert_eq!(counters.left + counters.lost, counters.came + counters.duplicated);
        let mut times = BTreeMap::new();
        for (number, ..) in &run.left {
            *times.entry(*number).or_insert(0_u32) += 1;
        }
        prop_assert!(times.values().all(|t| *t <= 2));
        // Every packet left or was given back.
        prop_assert_eq!(u64::try_from(times.len()).unwrap() + run.lost, run.given);
    }

    #[test]
    fn no_packet_overtakes_one_of_its_own_flow(
        effect in effects(Order::Kept, false), events in events(), seed in any::<u64>(),
    ) {
        let run = play(&mut made(effect, ROOMY, seed), &events, ROOMY);
        let mut last = BTreeMap::new();
        for (number, flow, ..) in run.left {
            let before = last.insert(flow, number);
            prop_assert!(before <= Some(number), "{number} after {before:?}");
        }
    }

    #[test]
    fn none_leaves_before_the_least_delay(
        mean in 0_u64..200, jitter in 0_u64..100, kept in any::<bool>(), events in events(), seed in any::<u64>(),
    ) {
        let order = if kept { Order::Kept } else { Order::ByTime };
        let jitter_ms = Duration::from_millis(jitter);
        let delay = delay(mean).varied(jitter_ms, Probability::NEVER, Distribution::Uniform, order).unwrap();
        let parts = Parts { duplicate: Some(Chance::of(percent(10.0))), ..of_delay(delay) };
        let run = play(&mut made(Effect::new(parts).unwrap(), ROOMY, seed), &events, ROOMY);
        let least = Duration::from_millis(mean.saturating_sub(jitter));
        for (_, _, came, left) in run.left {
            prop_assert!(left.since(came) >= least);
        }
    }

    #[test]
    fn a_rate_is_never_exceeded_and_loses_nothing(
        rate in 10_000_u64..1_000_000, events in events(), seed in any::<u64>(),
    ) {
        let rate_part = Some(Rate::bytes_per_second(rate).unwrap());
        let mut shaper = made(Effect::new(Parts { rate: rate_part, ..Parts::default() }).unwrap(), ROOMY, seed);
        let run = play(&mut shaper, &events, ROOMY);
        prop_assert_eq!(u64::try_from(run.left.len()).unwrap(), run.given);
        let lengths: Vec<u64> = events
            .iter()
            .filter_map(|event| match event {
                Event::Give { bytes, .. } => Some(u64::try_from(*bytes).unwrap()),
                Event::Wait { .. } | Event::Take => None,
            })
            .collect();
        // All that left by then needed at least this time since the first came; a nanosecond a packet is rounding.
        let mut sent = 0;
        for (number, _, _, left) in &run.left {
            sent += lengths[usize::try_from(*number).unwrap()];
            let needed = u128::from(sent) * 1_000_000_000 / u128::from(rate);
            let took = left.since(run.left[0].2).as_nanos();
            prop_assert!(took + u128::from(run.given) >= needed, "{took} for {needed}");
        }
    }

    #[test]
    fn the_bound_holds_and_costs_no_packet(
        effect in effects(Order::ByTime, true), events in events(), seed in any::<u64>(),
        packets in 0_usize..20, bytes in 0_usize..20_000,
    ) {
        let bound = Bound { packets, bytes };
        let mut shaper = made(effect, bound, seed);
        let run = play(&mut shaper, &events, bound);
        prop_assert!(run.full <= 1);
        prop_assert_eq!(run.full == 1, shaper.is_over());
        let counters = shaper.counters();
        prop_assert_eq!(counters.left + counters.lost, counters.came + counters.duplicated);
    }

    #[test]
    fn a_drain_empties_it_at_once_in_the_order_of_coming(
        effect in effects(Order::ByTime, true), events in events(), seed in any::<u64>(),
    ) {
        let mut shaper = made(effect, ROOMY, seed);
        let mut now = at(1);
        for (number, event) in (0..).zip(&events) {
            match event {
                Event::Wait { micros } => now = now.after_nanos(micros * 1_000),
                Event::Take => while shaper.poll_packet(now).is_some() {},
                Event::Give { flow, bytes } => {
                    drop(shaper.handle_packet(Numbered { number, bytes: *bytes }, FlowHash(u64::from(*flow)), now));
                }
            }
        }
        let held = shaper.held().packets;
        shaper.drain();
        let left = take(&mut shaper, now);
        prop_assert_eq!(left.len(), held);
        prop_assert!(left.is_sorted());
        prop_assert_eq!(shaper.poll_timeout(), None);
    }
}
