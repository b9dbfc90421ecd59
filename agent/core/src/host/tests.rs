use std::collections::BTreeSet;

use troop_policies::fault::ChanceSpec;

use super::*;
use crate::lease::{CommandNumber, Life};
use crate::protocol::MeasuredBy;

const MS: u64 = 1_000;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn host() -> Host {
    Host::new(Table::new(CommandNumber::default(), BTreeSet::new(), at(0)))
}

fn lease() -> LeaseId {
    LeaseId::new("aa").unwrap()
}

fn ttl() -> Ttl {
    Ttl::new(Duration::from_secs(5)).unwrap()
}

fn spec() -> FaultSpec {
    FaultSpec::delay(Duration::from_millis(200), vec!["app:pricing".parse().unwrap()])
}

fn grant(number: u64) -> Ordered {
    let life = Life::new(Duration::from_secs(60)).unwrap();
    Ordered {
        number: CommandNumber(number),
        command: Command::Grant { lease: lease(), ttl: ttl(), life },
        with: With::Fault {
            spec: Box::new(spec()),
            peers: vec!["10.0.0.1".parse().unwrap()],
            probes: vec!["10.0.0.1:80".parse().unwrap()],
        },
    }
}

fn end(number: u64) -> Ordered {
    Ordered { number: CommandNumber(number), command: Command::End { lease: lease() }, with: With::Nothing }
}

fn rtt(us: u64) -> Measured {
    Measured { median_us: Some(us), sent: 5, back: 5, by: MeasuredBy::Handshake }
}

fn allowed(_: &FaultSpec, _: &[Cidr], _: &Command) -> Result<(), String> {
    Ok(())
}

fn story(todo: &[Do]) -> Story {
    let told = todo.iter().rev().find_map(|d| if let Do::Tell(story) = d { Some(story.clone()) } else { None });
    told.unwrap_or_else(|| panic!("nothing told in {todo:?}"))
}

/// A host on which the fault is up.
fn up() -> Host {
    let mut host = host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let _applied = host.measured(&lease(), Phase::Baseline, rtt(300), at(9));
    let _measuring = host.applied(&lease(), Ok("forward"), at(10));
    let shown = host.measured(&lease(), Phase::Applied, rtt(200 * MS), at(900));
    assert_eq!(story(&shown).at, Chapter::Up);
    host
}

#[test]
fn a_lease_goes_from_its_baseline_to_the_proof_that_it_is_gone() {
    let mut host = host();
    let measure = |phase| Do::Measure { lease: lease(), phase, after: Duration::ZERO };
    let granted = Do::Answer { number: 1, answer: Answered::Granted };
    assert_eq!(host.handle(grant(1), at(0), allowed), [Do::Keep, granted, measure(Phase::Baseline)]);
    let apply = host.measured(&lease(), Phase::Baseline, rtt(300), at(9));
    assert_eq!(apply.last(), Some(&Do::Apply { lease: lease() }));
    assert_eq!(host.applied(&lease(), Ok("forward"), at(10)), [measure(Phase::Applied)]);
    assert_eq!(story(&host.measured(&lease(), Phase::Applied, rtt(200_300), at(900))).at, Chapter::Up);
    let ended = host.handle(end(2), at(1_000), allowed);
    assert_eq!(ended.last(), Some(&Do::Heal { lease: lease() }));
    assert_eq!(host.healed(&lease(), Ok(()), true, at(1_001)), [measure(Phase::Healed)]);
    let over = story(&host.measured(&lease(), Phase::Healed, rtt(310), at(1_100)));
    assert_eq!((over.at, over.end, over.trouble.as_str()), (Chapter::Over, Some(End::Ended), ""));
    assert_eq!((over.baseline, over.applied, over.healed), (Some(rtt(300)), Some(rtt(200_300)), Some(rtt(310))));
    assert!(host.is_idle());
    assert_eq!(host.stories().len(), 1);
}

#[test]
fn a_fault_without_effect_is_healed_and_said_to_have_failed() {
    let mut host = host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let _apply = host.measured(&lease(), Phase::Baseline, rtt(300), at(9));
    let _measure = host.applied(&lease(), Ok("forward"), at(10));
    assert_eq!(host.measured(&lease(), Phase::Applied, rtt(50 * MS), at(15)), [Do::Heal { lease: lease() }]);
    let _measure = host.healed(&lease(), Ok(()), true, at(20));
    let over = story(&host.measured(&lease(), Phase::Healed, rtt(300), at(1_100)));
    assert_eq!((over.at, over.end), (Chapter::Over, Some(End::GivenUp)));
    assert_eq!(over.trouble, "its effect could not be shown");
}

#[test]
fn what_could_not_be_put_up_is_taken_down_all_the_same() {
    let mut host = host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let _apply = host.measured(&lease(), Phase::Baseline, rtt(300), at(9));
    assert_eq!(host.applied(&lease(), Err("no room".to_owned()), at(1)), [Do::Heal { lease: lease() }]);
    let over = story(&host.healed(&lease(), Ok(()), false, at(2)));
    assert_eq!((over.at, over.trouble.as_str()), (Chapter::Over, "no room"));
}

#[test]
fn a_heal_that_failed_is_tried_again_until_it_is_done() {
    let mut host = up();
    let _heal = host.handle(end(2), at(1_000), allowed);
    let stuck = story(&host.healed(&lease(), Err("busy".to_owned()), true, at(1_000)));
    assert_eq!((stuck.at, stuck.trouble.as_str()), (Chapter::Stuck, "busy"));
    assert_eq!(host.next_deadline(), Some(at(2_000)));
    assert_eq!(host.poll(at(1_999)), []);
    assert_eq!(host.poll(at(2_000)), [Do::Heal { lease: lease() }]);
    assert_eq!(story(&host.healed(&lease(), Ok(()), false, at(2_001))).at, Chapter::Over);
}

#[test]
fn a_lease_that_nobody_renews_lapses() {
    let mut host = up();
    assert_eq!(host.next_deadline(), Some(at(5_000)));
    assert_eq!(host.poll(at(4_999)), []);
    assert_eq!(host.poll(at(5_000)), [Do::Heal { lease: lease() }]);
    assert_eq!(host.live(&lease()).unwrap().story().end, Some(End::Lapsed));
}

#[test]
fn a_host_that_was_frozen_while_it_measured_puts_nothing_up_whose_lease_has_lapsed() {
    let mut host = host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let over = host.measured(&lease(), Phase::Baseline, rtt(300), at(5_000));
    assert!(matches!(over.as_slice(), [Do::Tell(_)]), "{over:?}");
    assert_eq!((story(&over).at, story(&over).end), (Chapter::Over, Some(End::Lapsed)));

    let mut host = self::host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let _apply = host.measured(&lease(), Phase::Baseline, rtt(300), at(9));
    let _measure = host.applied(&lease(), Ok("forward"), at(10));
    let healed = host.measured(&lease(), Phase::Applied, rtt(200 * MS), at(5_000));
    assert_eq!(healed, [Do::Heal { lease: lease() }]);
}

#[test]
fn a_renewal_reaches_the_kernel_with_the_peers_of_now() {
    let mut host = up();
    let peers: Vec<Cidr> = vec!["10.0.0.2".parse().unwrap()];
    let renew = |number, with| Ordered {
        number: CommandNumber(number),
        command: Command::Renew { lease: lease(), ttl: ttl() },
        with,
    };
    let todo = host.handle(renew(2, With::Peers(peers.clone())), at(2_010), allowed);
    let elapsed = Duration::from_secs(2);
    let renewed = Do::Renew { lease: lease(), ttl: ttl(), elapsed };
    let answer = |number| Do::Answer { number, answer: Answered::Renewed };
    assert_eq!(todo, [Do::Keep, answer(2), Do::Retarget { lease: lease() }, renewed.clone()]);
    assert_eq!(host.live(&lease()).unwrap().peers, peers);
    assert_eq!(host.handle(renew(3, With::Peers(peers)), at(2_010), allowed), [Do::Keep, answer(3), renewed]);
}

#[test]
fn an_end_before_anything_was_changed_changes_nothing() {
    let mut host = host();
    let _begun = host.handle(grant(1), at(0), allowed);
    let ended = host.handle(end(2), at(5), allowed);
    assert!(!ended.iter().any(|d| matches!(d, Do::Heal { .. })), "{ended:?}");
    assert_eq!(story(&ended).at, Chapter::Over);
    assert_eq!(host.measured(&lease(), Phase::Baseline, rtt(300), at(9)), []);
}

#[test]
fn what_the_host_forbids_is_refused_and_its_replay_too() {
    let mut host = host();
    let refused = host.handle(grant(1), at(0), |_, _, _| Err("agent.toml allows no delay".to_owned()));
    let why = Answered::Refused { why: "agent.toml allows no delay".to_owned() };
    assert_eq!(refused, [Do::Keep, Do::Answer { number: 1, answer: why }]);
    for number in [1, 2] {
        let again = host.handle(grant(number), at(1), allowed);
        assert!(matches!(again.last(), Some(Do::Answer { answer: Answered::Refused { .. }, .. })), "{again:?}");
    }
    assert!(host.is_idle());
}

#[test]
fn a_halt_file_ends_everything_and_a_replayed_grant_has_no_effect() {
    let mut host = up();
    assert_eq!(host.halt(at(1_000)), [Do::Keep, Do::Heal { lease: lease() }]);
    let again = host.handle(grant(1), at(1_001), allowed);
    assert_eq!(again, [Do::Keep, Do::Answer { number: 1, answer: Answered::Granted }]);
    let fresh = host.handle(grant(9), at(1_002), allowed);
    assert!(matches!(&fresh[1], Do::Answer { answer: Answered::Refused { why }, .. } if why.contains("halted")));
}

#[test]
fn what_a_fault_shows_itself_by() {
    let silence = FaultSpec { delay: None, loss: Some(ChanceSpec { ppm: 1_000_000, correlation_ppm: 0 }), ..spec() };
    let some = FaultSpec { loss: Some(ChanceSpec { ppm: 20_000, correlation_ppm: 0 }), ..silence.clone() };
    let share = FaultSpec { flows_ppm: Some(300_000), ..spec() };
    let lost = Measured { median_us: None, sent: 5, back: 0, by: MeasuredBy::Handshake };
    let by_plane = |sent, back, us| Measured { median_us: us, sent, back, by: MeasuredBy::Plane };
    let rows = [
        (&silence, Some(rtt(300)), lost.clone(), true),
        (&silence, Some(rtt(300)), rtt(300), false),
        (&silence, None, lost.clone(), false),
        (&silence, None, by_plane(4, 0, None), true),
        (&some, Some(rtt(300)), rtt(300), false),
        (&some, None, by_plane(1, 1, None), true),
        (&some, None, by_plane(0, 0, None), false),
        (&share, Some(rtt(300)), rtt(300), false),
        (&share, None, by_plane(9, 9, Some(200 * MS)), true),
        (&spec(), Some(rtt(300)), rtt(100_299), false),
        (&spec(), Some(rtt(300)), rtt(100_300), true),
        (&spec(), Some(rtt(300)), lost, true),
        (&spec(), None, rtt(200 * MS), false),
        (&spec(), None, by_plane(3, 3, Some(50 * MS)), true),
        (&spec(), None, by_plane(3, 3, Some(49 * MS)), false),
        (&spec(), None, by_plane(3, 3, None), true),
        (&spec(), None, by_plane(0, 0, None), false),
    ];
    for (spec, baseline, found, expected) in rows {
        assert_eq!(is_shown(spec, baseline.as_ref(), &found), expected, "{spec} {baseline:?} {found:?}");
    }
}
