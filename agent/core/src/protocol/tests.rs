use std::time::Duration;

use proptest::prelude::*;
use troop_policies::fault::{ChanceSpec, DelaySpec, Direction, FaultSpec, Peer, Protocol, Shape};

use super::*;
use crate::fault as checked;

fn spec(to: &str) -> FaultSpec {
    FaultSpec::delay(Duration::from_millis(200), vec![to.parse().unwrap()])
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
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
    let fault = fault_of(&asked, &cidrs(&["10.0.0.0/24"]), &[]).unwrap();
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
    assert!(matches!(fault_of(&none, &[], &[]), Err(BadFault::Target(_))));
    assert_eq!(fault_of(&none, &cidrs(&["10.0.0.1"]), &[]), Err(BadFault::Unresolved { name: "no name".to_owned() }));
    let lost = BadFault::Unresolved { name: "app:a".to_owned() };
    assert_eq!(fault_of(&spec("app:a"), &[], &[]), Err(lost));
    assert!(fault_of(&spec("everything"), &[], &[]).is_ok());
    let both = FaultSpec { to: vec![Peer::Everything, "app:a".parse().unwrap()], ..spec("app:a") };
    assert_eq!(fault_of(&both, &cidrs(&["10.0.0.1"]), &[]), Err(BadFault::EverythingAndMore));
}

#[test]
fn what_is_off_limits_is_refused_before_anything_is_changed() {
    let metadata = fault_of(&spec("169.254.169.254"), &cidrs(&["169.254.169.254"]), &[]);
    assert!(matches!(metadata, Err(BadFault::Target(checked::BadTarget::OffLimits { .. }))));
    let too_much = FaultSpec { loss: Some(ChanceSpec { ppm: 1_000_001, correlation_ppm: 0 }), ..spec("10.0.0.1") };
    assert_eq!(fault_of(&too_much, &cidrs(&["10.0.0.1"]), &[]), Err(BadFault::TooManyPpm { ppm: 1_000_001 }));
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
