use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;
use troop_policies::fault::{ChanceSpec, DelaySpec, Direction, FaultSpec, Peer, Protocol, Shape, ShapeTable};

use super::*;
use crate::fault as checked;
use crate::moment::Moment;
use crate::netem::{Line, Options, Write};
use crate::shaper::{self, Bound, Handled, Packet, Shaper};

fn spec(to: &str) -> FaultSpec {
    FaultSpec::delay(Duration::from_millis(200), vec![to.parse().unwrap()])
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn check(spec: &FaultSpec, peers: &[Cidr]) -> Result<checked::Fault, BadFault> {
    fault_of(spec, Found { peers, ..Found::default() })
}

fn grant() -> Grant {
    Grant {
        number: 7,
        lease: "aa01".to_owned(),
        ttl_ms: 5_000,
        life_ms: 60_000,
        fault: spec("app:pricing"),
        peers: vec!["10.77.1.2".to_owned()],
        probes: vec!["10.77.1.2:80".parse().unwrap()],
    }
}

#[test]
fn a_grant_arrives_as_it_was_sent() {
    let line = write(&ToAgent::Grant(Box::new(grant()))).unwrap();
    let read: ToAgent = read(&line).unwrap();
    let ordered = read.ordered().unwrap().unwrap();
    assert_eq!(ordered.number, CommandNumber(7));
    let With::Fault { spec: fault, peers, probes } = ordered.with else { panic!("no fault") };
    assert_eq!((*fault, peers), (spec("app:pricing"), cidrs(&["10.77.1.2"])));
    assert_eq!(probes, ["10.77.1.2:80".parse().unwrap()]);
}

#[test]
fn a_message_of_a_later_release_is_skipped_but_a_part_of_a_fault_is_not() {
    let later: ToAgent = read(br#"{"type":"sing","song":"la"}"#).unwrap();
    assert_eq!(later.ordered().unwrap(), None);
    let more: ToAgent = read(br#"{"type":"end","number":3,"lease":"a","more":true}"#).unwrap();
    assert!(more.ordered().unwrap().is_some());
    let line = String::from_utf8(write(&ToAgent::Grant(Box::new(grant()))).unwrap()).unwrap();
    let with_a_part = line.replace(r#""fault":{"#, r#""fault":{"explode":1,"#);
    assert!(matches!(read::<ToAgent>(with_a_part.as_bytes()), Err(BadMessage::Json(_))));
    let ordered = heard(with_a_part.as_bytes()).unwrap().ordered().unwrap().unwrap();
    assert_eq!(ordered.number, CommandNumber(7));
    assert_eq!(ordered.command, Command::End { lease: LeaseId::new("aa01").unwrap() });
    let With::Refusal(why) = ordered.with else { panic!("no refusal") };
    assert!(why.contains("another release") && why.contains("unknown field `explode`"), "{why}");
    // Whatever else cannot be read is nothing that could be answered.
    for line in [&line.replace("\"number\":7", "\"number\":-7"), "{\"type\":\"end\",\"number\":1,\"lease\":3}", "{"] {
        assert!(matches!(heard(line.as_bytes()), Err(BadMessage::Json(_))), "{line}");
    }
}

#[test]
fn releases_one_apart_find_the_version_both_speak() {
    let hello = |oldest, newest| Hello {
        newest_version: newest,
        oldest_version: oldest,
        instance: "local/r1/i-1".to_owned(),
        release: "0.2.0".to_owned(),
        highest_number: 0,
        host: Capabilities::default(),
        identity: None,
    };
    assert_eq!(common_version(&hello(1, 2)), Some(1));
    assert_eq!(common_version(&hello(1, 1)), Some(1));
    assert_eq!(common_version(&hello(2, 3)), None);
    assert_eq!(common_version(&hello(0, 0)), None);
}

#[test]
fn what_exceeds_a_limit_is_refused_by_both_sides() {
    let ordered = |change: fn(&mut Grant)| {
        let mut grant = grant();
        change(&mut grant);
        ToAgent::Grant(Box::new(grant)).ordered()
    };
    assert!(matches!(ordered(|g| g.ttl_ms = 60_001), Err(BadMessage::Term(_))));
    assert!(matches!(ordered(|g| g.ttl_ms = 0), Err(BadMessage::Term(_))));
    assert!(matches!(ordered(|g| g.life_ms = 86_400_001), Err(BadMessage::Term(_))));
    assert!(matches!(ordered(|g| g.lease = "a b".to_owned()), Err(BadMessage::Lease(_))));
    assert!(matches!(ordered(|g| g.peers = vec!["10.0.0.1/8".to_owned()]), Err(BadMessage::Range(_))));
    assert!(matches!(ordered(|g| g.peers = vec!["10.0.0.1".to_owned(); 4_097]), Err(BadMessage::TooMuch { .. })));
    let probes = |g: &mut Grant| g.probes = vec!["10.0.0.1:1".parse().unwrap(); PROBES_MAX + 1];
    assert!(matches!(ordered(probes), Err(BadMessage::TooMuch { .. })));
    assert!(matches!(read::<ToAgent>(&vec![b' '; MESSAGE_MAX_BYTES + 1]), Err(BadMessage::TooLong { .. })));
    let story = Story {
        lease: "a".to_owned(),
        at: Chapter::Up,
        plane: String::new(),
        baseline: None,
        applied: None,
        healed: None,
        end: None,
        trouble: "x".repeat(TEXT_MAX_BYTES + 1),
    };
    assert!(FromAgent::Story(story.clone()).checked().is_err());
    assert!(FromAgent::Story(Story { trouble: cut(&story.trouble), ..story }).checked().is_ok());
}

#[test]
fn a_measured_shape_is_the_table_that_both_planes_draw_from() {
    let shape = Shape::Table(ShapeTable::new(vec![-8_192, -4_096, 0, 12_288]).unwrap());
    let delay = DelaySpec { mean_us: 100_000, jitter_us: 10_000, correlation_ppm: 0, shape, reorders: true };
    let asked = FaultSpec { delay: Some(delay), ..spec("app:pricing") };
    let fault = check(&asked, &cidrs(&["10.0.0.1"])).unwrap();
    let delay = fault.effect.parts().delay.as_ref().unwrap();
    assert_eq!(delay.distribution().table().unwrap().entries(), [-8_192, -4_096, 0, 12_288]);

    // Netem's own attribute (TCA_NETEM_DELAY_DIST, 2): 16 bits each, in the machine's order.
    let options = Options::of(fault.effect.parts(), Line { bytes_per_second: 125_000_000 });
    let bytes = options.to_bytes(Write::New).unwrap();
    let entries: Vec<u8> = [-8_192_i16, -4_096, 0, 12_288].iter().flat_map(|entry| entry.to_ne_bytes()).collect();
    let attribute = [&12_u16.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &entries].concat();
    assert!(bytes.windows(attribute.len()).any(|part| part == attribute));

    // The forwarder's shaper: nothing but the four delays there are, each about as often.
    let setup = shaper::Setup {
        effect: fault.effect.clone(),
        ramp: fault.ramp,
        flows: fault.flows,
        bound: Bound { packets: usize::MAX, bytes: usize::MAX },
    };
    let mut shaper = Shaper::new(setup, Xoshiro256PlusPlus::seed_from_u64(7), Moment::default());
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for flow in 0..4_000 {
        assert_eq!(shaper.handle_packet(Byte, checked::FlowHash(flow), Moment::default()), Handled::Taken);
    }
    for ms in 0..200 {
        let now = Moment::default().after(Duration::from_millis(ms));
        while shaper.poll_packet(now).is_some() {
            *seen.entry(ms).or_default() += 1;
        }
    }
    assert_eq!(seen.keys().copied().collect::<Vec<_>>(), [90, 95, 100, 115]);
    assert!(seen.values().all(|count| (900..1_100).contains(count)), "{seen:?}");
}

/// The smallest packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Byte;

impl Packet for Byte {
    fn bytes(&self) -> usize {
        1
    }
}

#[test]
fn a_fault_with_every_part_is_checked_into_the_one_that_is_put_up() {
    let asked = FaultSpec {
        direction: Direction::Both,
        protocol: Some(Protocol::Tcp),
        delay: Some(DelaySpec {
            mean_us: 100_000,
            jitter_us: 10_000,
            correlation_ppm: 250_000,
            shape: Shape::Pareto,
            reorders: true,
        }),
        loss: Some(ChanceSpec { ppm: 20_000, correlation_ppm: 0 }),
        flows_ppm: Some(300_000),
        ramp_us: 2_000_000,
        ..spec("app:pricing")
    };
    let fault = check(&asked, &cidrs(&["10.0.0.0/24"])).unwrap();
    assert_eq!(fault.direction, checked::Direction::Both);
    let parts = fault.effect.parts();
    let delay = parts.delay.as_ref().unwrap();
    assert_eq!((delay.mean(), delay.jitter()), (Duration::from_millis(100), Duration::from_millis(10)));
    assert_eq!(delay.order(), checked::Order::ByTime);
    let loss = checked::Probability::from_percent(2.0).unwrap();
    assert_eq!(parts.loss, Some(checked::Loss::Random(checked::Chance::of(loss))));
    assert_eq!(fault.ramp.over(), Duration::from_secs(2));
    assert_eq!(fault.flows.probability(), checked::Probability::from_percent(30.0).unwrap());
}

#[test]
fn nobody_is_never_everybody() {
    let none = FaultSpec { to: Vec::new(), ..spec("app:a") };
    assert!(matches!(check(&none, &[]), Err(BadFault::Target(_))));
    assert_eq!(check(&none, &cidrs(&["10.0.0.1"])), Err(BadFault::Unresolved { name: "no name".to_owned() }));
    let lost = BadFault::Unresolved { name: "app:a".to_owned() };
    assert_eq!(check(&spec("app:a"), &[]), Err(lost));
    assert!(check(&spec("everything"), &[]).is_ok());
    let both = FaultSpec { to: vec![Peer::Everything, "app:a".parse().unwrap()], ..spec("app:a") };
    assert_eq!(check(&both, &cidrs(&["10.0.0.1"])), Err(BadFault::EverythingAndMore));
}

#[test]
fn a_process_is_only_what_it_sends_and_never_everybody() {
    let mut of_unit = FaultSpec { of: Some("unit:web.service".parse().unwrap()), ..spec("everything") };
    let cgroup = checked::Cgroup { level: 2, id: 4_711 };
    let found = Found { cgroup: Some(cgroup), ..Found::default() };
    let fault = fault_of(&of_unit, found).unwrap();
    let selectors = fault.target.selectors();
    assert_eq!((selectors.cgroup, selectors.everything), (Some(cgroup), false));
    let unknown = BadFault::OwnerUnknown { of: "unit:web.service".to_owned() };
    assert_eq!(fault_of(&of_unit, Found::default()), Err(unknown));
    of_unit.direction = Direction::Both;
    assert!(matches!(fault_of(&of_unit, found), Err(BadFault::OwnerOfIngress { .. })));
    // Not asked for: what the host found does not matter.
    assert_eq!(fault_of(&spec("everything"), found).unwrap().target.selectors().cgroup, None);
}

#[test]
fn what_is_off_limits_is_refused_before_anything_is_changed() {
    let metadata = check(&spec("169.254.169.254"), &cidrs(&["169.254.169.254"]));
    assert!(matches!(metadata, Err(BadFault::Target(checked::BadTarget::OffLimits { .. }))));
    let too_much = FaultSpec { loss: Some(ChanceSpec { ppm: 1_000_001, correlation_ppm: 0 }), ..spec("10.0.0.1") };
    assert_eq!(check(&too_much, &cidrs(&["10.0.0.1"])), Err(BadFault::TooManyPpm { ppm: 1_000_001 }));
}

#[test]
fn an_identity_of_a_later_cloud_is_heard_and_one_that_is_too_long_is_not() {
    let hello = |identity: &str| {
        let head = r#"{"type":"hello","newest_version":1,"oldest_version":1,"instance":"a/b/i-1","release":"0.2.0","highest_number":0"#;
        let host = r#""host":{"kernel":"","planes":[],"lacks":[],"allows":""}"#;
        read::<FromAgent>(format!("{head},{host}{identity}}}").as_bytes()).and_then(FromAgent::checked)
    };
    let heard = |identity| match hello(identity) {
        Ok(FromAgent::Hello(hello)) => hello.identity,
        other => panic!("{other:?}"),
    };
    assert_eq!(heard(""), None, "an agent one release older");
    assert_eq!(heard(r#","identity":{"kind":"moon","crater":4}"#), Some(Identity::Unknown));
    let parts = |document: &str| {
        format!(r#","identity":{{"kind":"ec2","document":"{document}","signature":"c2ln","key":"00","proof":"11"}}"#)
    };
    assert!(matches!(heard(&parts("x")), Some(Identity::Ec2(_))));
    let long = hello(&parts(&"x".repeat(identity::PART_MAX_BYTES + 1)));
    assert!(matches!(long, Err(BadMessage::TooMuch { field: "identity", .. })));
    // An agent that does not know the word hears nothing in it, and sees the end of the connection.
    let refused: ToAgent = read(br#"{"type":"refused","why":"no"}"#).unwrap();
    assert_eq!(refused.ordered().unwrap(), None);
}

proptest! {
    #[test]
    fn no_line_whatever_makes_a_reader_panic(line in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _any = read::<ToAgent>(&line).map(ToAgent::ordered);
        let _other = read::<FromAgent>(&line).map(FromAgent::checked);
    }

    #[test]
    fn a_cut_text_always_fits(text in "\\PC{0,3000}") {
        prop_assert!(cut(&text).len() <= TEXT_MAX_BYTES);
    }
}
