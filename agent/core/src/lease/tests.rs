use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SEC: u64 = 1_000;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn id(text: &str) -> LeaseId {
    LeaseId::new(text).unwrap()
}

fn ttl(ms: u64) -> Ttl {
    Ttl::new(Duration::from_millis(ms)).unwrap()
}

fn life(ms: u64) -> Life {
    Life::new(Duration::from_millis(ms)).unwrap()
}

fn table() -> Table {
    Table::new(CommandNumber(0), BTreeSet::new(), at(0))
}

fn grant(lease: &str, ttl_ms: u64, life_ms: u64) -> Command {
    Command::Grant { lease: id(lease), ttl: ttl(ttl_ms), life: life(life_ms) }
}

fn renew(lease: &str, ttl_ms: u64) -> Command {
    Command::Renew { lease: id(lease), ttl: ttl(ttl_ms) }
}

fn end(lease: &str) -> Command {
    Command::End { lease: id(lease) }
}

fn apply(lease: &str) -> Effect {
    Effect::Apply { lease: id(lease) }
}

fn heal(lease: &str, why: Why) -> Effect {
    Effect::Heal { lease: id(lease), why }
}

fn outcome(answer: Answer, effects: &[Effect]) -> Outcome {
    Outcome { answer, effects: effects.to_vec() }
}

/// A table with the lease `a` of 5 s and a life of a minute, granted by command 1 at 0.
fn with_a() -> Table {
    let mut table = table();
    let granted = table.handle(CommandNumber(1), grant("a", 5 * SEC, 60 * SEC), at(0));
    assert_eq!(granted, outcome(Answer::Granted, &[apply("a")]));
    table
}

#[test]
fn heals_when_the_lease_lapses() {
    let mut table = with_a();
    assert_eq!(table.next_deadline(), Some(at(5 * SEC)));
    assert_eq!(table.expire(at(5 * SEC - 1)), []);
    assert_eq!(table.expire(at(5 * SEC)), [heal("a", Why::Lapsed)]);
    assert_eq!(table.next_deadline(), None);
}

#[test]
fn lives_while_it_is_renewed_and_never_beyond_its_life() {
    let mut table = with_a();
    for second in 1..60 {
        let renewed = table.handle(CommandNumber(1 + second), renew("a", 5 * SEC), at(second * SEC));
        assert_eq!(renewed, outcome(Answer::Renewed, &[]));
        assert_eq!(table.next_deadline(), Some(at((second * SEC + 5 * SEC).min(60 * SEC))));
    }
    assert_eq!(table.expire(at(60 * SEC)), [heal("a", Why::LifeOver)]);
}

#[test]
fn a_command_that_comes_again_has_no_effect_and_the_same_answer() {
    let mut table = with_a();
    let again = |table: &mut Table, ms| table.handle(CommandNumber(1), grant("a", 5 * SEC, 60 * SEC), at(ms));
    assert_eq!(again(&mut table, 1), outcome(Answer::Granted, &[]));
    drop(table.handle(CommandNumber(2), renew("a", 2 * SEC), at(SEC)));
    // A second of renewal 2 would make the lease last longer.
    drop(table.handle(CommandNumber(2), renew("a", 2 * SEC), at(2 * SEC)));
    assert_eq!(table.next_deadline(), Some(at(3 * SEC)));
    let ended = outcome(Answer::Gone(Some(Why::Ended)), &[heal("a", Why::Ended)]);
    assert_eq!(table.handle(CommandNumber(3), end("a"), at(2 * SEC)), ended);
    assert_eq!(table.handle(CommandNumber(3), end("a"), at(2 * SEC)), outcome(ended.answer, &[]));
    assert_eq!(again(&mut table, 2 * SEC), outcome(Answer::Granted, &[]));
    assert_eq!(table.alive().count(), 0);
}

#[test]
fn a_number_is_used_for_one_command_only() {
    let mut table = with_a();
    let other = table.handle(CommandNumber(1), end("a"), at(0));
    assert_eq!(other, outcome(Answer::Refused(Refusal::NumberReused), &[]));
    assert_eq!(table.alive().count(), 1);
}

#[test]
fn a_grant_that_may_have_been_forgotten_is_refused() {
    let mut table = with_a();
    for number in 2..2_000 {
        drop(table.handle(CommandNumber(number), end("a"), at(0)));
    }
    let old = table.handle(CommandNumber(1), grant("a", 5 * SEC, 60 * SEC), at(0));
    assert_eq!(old, outcome(Answer::Refused(Refusal::Stale), &[]));
}

#[test]
fn a_restart_forgets_no_replay() {
    let used = with_a().highest_number();
    let mut table = Table::new(used, BTreeSet::new(), at(0));
    let replayed = table.handle(CommandNumber(1), grant("a", 5 * SEC, 60 * SEC), at(0));
    assert_eq!(replayed, outcome(Answer::Refused(Refusal::Stale), &[]));
    assert_eq!(table.highest_number(), used);
}

#[test]
fn a_name_is_used_once() {
    let mut table = with_a();
    let exists = outcome(Answer::Refused(Refusal::Exists), &[]);
    assert_eq!(table.handle(CommandNumber(2), grant("a", SEC, SEC), at(0)), exists);
    drop(table.handle(CommandNumber(3), end("a"), at(0)));
    assert_eq!(table.handle(CommandNumber(4), grant("a", SEC, SEC), at(0)), exists);
}

#[test]
fn a_grant_that_comes_after_its_end_has_no_effect() {
    let mut table = table();
    assert_eq!(table.handle(CommandNumber(2), end("a"), at(0)), outcome(Answer::Gone(None), &[]));
    let late = table.handle(CommandNumber(1), grant("a", SEC, SEC), at(0));
    assert_eq!(late, outcome(Answer::Refused(Refusal::Exists), &[]));
}

#[test]
fn a_renewal_that_waited_while_the_host_was_frozen_brings_nothing_back() {
    let mut table = with_a();
    let thawed = table.handle(CommandNumber(2), renew("a", 5 * SEC), at(3_600 * SEC));
    assert_eq!(thawed, outcome(Answer::Gone(Some(Why::Lapsed)), &[heal("a", Why::Lapsed)]));
}

#[test]
fn a_clock_that_stands_or_goes_back_changes_nothing() {
    let mut table = with_a();
    for _ in 0..100 {
        assert_eq!(table.expire(at(4 * SEC)), []);
    }
    assert_eq!(table.expire(at(0)), []);
    // Renewed at 1 s by a clock that went back from 4 s: it counts from 4 s, the latest that was seen.
    drop(table.handle(CommandNumber(2), renew("a", 5 * SEC), at(SEC)));
    assert_eq!(table.next_deadline(), Some(at(9 * SEC)));
}

#[test]
fn a_halt_ends_everything_and_lets_nothing_begin() {
    let mut table = with_a();
    drop(table.handle(CommandNumber(2), grant("b", 5 * SEC, 60 * SEC), at(0)));
    let halted = table.handle(CommandNumber(3), Command::Halt, at(1));
    let healed = [heal("a", Why::Halted), heal("b", Why::Halted)];
    assert_eq!(halted, outcome(Answer::Halted, &healed));
    let refused = table.handle(CommandNumber(4), grant("c", 5 * SEC, 60 * SEC), at(1));
    assert_eq!(refused, outcome(Answer::Refused(Refusal::Halted), &[]));
    assert_eq!(table.handle(CommandNumber(5), Command::Resume, at(1)).answer, Answer::Resumed);
    assert_eq!(table.handle(CommandNumber(6), grant("d", SEC, SEC), at(1)).answer, Answer::Granted);
}

#[test]
fn a_control_plane_does_not_lift_the_hosts_own_halt() {
    let mut table = with_a();
    assert_eq!(table.halt(Halter::Host, at(1)), [heal("a", Why::Halted)]);
    drop(table.handle(CommandNumber(2), Command::Resume, at(1)));
    let refused = table.handle(CommandNumber(3), grant("b", SEC, SEC), at(1));
    assert_eq!(refused.answer, Answer::Refused(Refusal::Halted));
    table.resume(Halter::Host);
    assert_eq!(table.handle(CommandNumber(4), grant("c", SEC, SEC), at(1)).answer, Answer::Granted);
}

#[test]
fn a_halt_outlives_a_restart() {
    let mut table = Table::new(CommandNumber(0), [Halter::ControlPlane].into(), at(0));
    let refused = table.handle(CommandNumber(1), grant("a", SEC, SEC), at(0));
    assert_eq!(refused.answer, Answer::Refused(Refusal::Halted));
}

#[test]
fn what_the_host_gives_up_is_gone_for_good() {
    let mut table = with_a();
    assert_eq!(table.give_up(&id("a")), Some(heal("a", Why::GivenUp)));
    assert_eq!(table.give_up(&id("a")), None);
    let renewed = table.handle(CommandNumber(2), renew("a", 5 * SEC), at(1));
    assert_eq!(renewed.answer, Answer::Gone(Some(Why::GivenUp)));
}

#[test]
fn holds_so_many_and_no_more() {
    let mut table = table();
    for number in 1..=64 {
        let granted = table.handle(CommandNumber(number), grant(&format!("l{number}"), SEC, SEC), at(0));
        assert_eq!(granted.answer, Answer::Granted);
    }
    let refused = table.handle(CommandNumber(65), grant("one-more", SEC, SEC), at(0));
    assert_eq!(refused.answer, Answer::Refused(Refusal::TooMany));
}

#[test]
fn refuses_terms_and_names_that_are_none() {
    assert!(Ttl::new(Duration::ZERO).is_err() && Ttl::new(LEASE_MAX + Duration::from_nanos(1)).is_err());
    assert!(Life::new(Duration::ZERO).is_err() && Life::new(LIFE_MAX + Duration::from_nanos(1)).is_err());
    assert!(Ttl::new(LEASE_MAX).is_ok() && Life::new(LIFE_MAX).is_ok());
    for bad in ["", "a b", "ä", &"x".repeat(65)] {
        assert!(LeaseId::new(bad).is_err(), "{bad:?} was taken");
    }
}

/// Something that happens to a table. Times may go back.
#[derive(Debug, Clone)]
enum Event {
    Command(u64, Command),
    Expire,
    HostHalts(bool),
    GiveUp(LeaseId),
}

fn commands() -> impl Strategy<Value = Command> {
    let lease = || (0_u8..6).prop_map(|n| id(&format!("l{n}")));
    let ttl = || (1_u64..8_000).prop_map(ttl);
    prop_oneof![
        4 => (lease(), ttl(), (1_u64..20_000).prop_map(life)).prop_map(|(lease, ttl, life)| Command::Grant { lease, ttl, life }),
        4 => (lease(), ttl()).prop_map(|(lease, ttl)| Command::Renew { lease, ttl }),
        1 => lease().prop_map(|lease| Command::End { lease }),
        1 => Just(Command::Halt),
        2 => Just(Command::Resume),
    ]
}

fn steps() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        8 => (1_u64..40, commands()).prop_map(|(number, command)| Event::Command(number, command)),
        3 => Just(Event::Expire),
        1 => any::<bool>().prop_map(Event::HostHalts),
        1 => (0_u8..6).prop_map(|n| Event::GiveUp(id(&format!("l{n}")))),
    ];
    // Mostly small steps, some of them none, now and then a frozen minute.
    let wait = prop_oneof![3 => Just(0_u64), 6 => 0_u64..3_000, 1 => 10_000_u64..60_000];
    proptest::collection::vec((wait, event), 0..120)
}

/// What an observer knows of a fault on the host, from effects and the commands that were carried out.
#[derive(Debug, Clone, Copy)]
struct Seen {
    until: u64,
    life_ends: u64,
}

proptest! {
    /// Driven as it is meant to be, at each deadline and for each event, the table heals every fault at the very moment its
    /// lease or its life is over, and applies none twice.
    #[test]
    fn no_fault_outlives_its_lease_or_its_life(steps in steps()) {
        let mut table = table();
        let mut seen: BTreeMap<LeaseId, Seen> = BTreeMap::new();
        let mut used = BTreeSet::new();
        let mut applied = BTreeSet::new();
        let mut now = 0;
        for (wait, event) in steps {
            let next = now + wait;
            while let Some(deadline) = table.next_deadline().filter(|d| *d <= at(next)) {
                let effects = table.expire(deadline);
                prop_assert!(!effects.is_empty(), "a deadline at which nothing is due");
                for effect in effects {
                    let Effect::Heal { lease, why } = effect else { panic!("{effect:?}") };
                    let was = seen.remove(&lease).unwrap();
                    prop_assert_eq!(at(was.until.min(was.life_ends)), deadline);
                    prop_assert_eq!(why == Why::LifeOver, was.life_ends <= was.until);
                }
            }
            now = next;
            let (command, effects) = match event {
                Event::Command(number, command) => {
                    let first = used.insert(number);
                    let outcome = table.handle(CommandNumber(number), command.clone(), at(now));
                    prop_assert!(first || outcome.effects.is_empty(), "a replay had an effect");
                    (first.then_some((command, outcome.answer)), outcome.effects)
                }
                Event::Expire => (None, table.expire(at(now))),
                Event::HostHalts(true) => (None, table.halt(Halter::Host, at(now))),
                Event::HostHalts(false) => {
                    table.resume(Halter::Host);
                    (None, Vec::new())
                }
                Event::GiveUp(lease) => (None, table.give_up(&lease).into_iter().collect()),
            };
            for effect in effects {
                match effect {
                    Effect::Apply { lease } => prop_assert!(applied.insert(lease), "applied twice"),
                    Effect::Heal { lease, .. } => prop_assert!(seen.remove(&lease).is_some(), "healed what did not live"),
                }
            }
            let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
            match command {
                Some((Command::Grant { lease, ttl, life }, Answer::Granted)) => {
                    seen.insert(lease, Seen { until: now + millis(ttl.get()), life_ends: now + millis(life.get()) });
                }
                Some((Command::Renew { lease, ttl }, Answer::Renewed)) => {
                    seen.get_mut(&lease).unwrap().until = now + millis(ttl.get());
                }
                _ => {}
            }
            prop_assert!(table.alive().eq(seen.keys()));
            prop_assert!(table.halts().is_empty() || seen.is_empty(), "a fault lives while halted");
        }
    }

    /// Whatever the clock does and however late the table is asked, after a call nothing lives that should not.
    #[test]
    fn nothing_past_its_end_survives_a_call(steps in steps(), clocks in proptest::collection::vec(0_u64..60_000, 120)) {
        let mut table = table();
        let mut latest = 0;
        for ((_, event), clock) in steps.into_iter().zip(clocks) {
            latest = latest.max(clock);
            match event {
                Event::Command(number, command) => drop(table.handle(CommandNumber(number), command, at(clock))),
                Event::Expire | Event::HostHalts(_) | Event::GiveUp(_) => drop(table.expire(at(clock))),
            }
            prop_assert!(table.next_deadline().is_none_or(|deadline| deadline > at(latest)));
        }
    }

    /// Every command sent twice, the second one at once or later, gives the same as sent once.
    #[test]
    fn commands_sent_twice_are_as_if_sent_once(steps in steps()) {
        let (mut once, mut twice) = (table(), table());
        let mut now = 0;
        let mut before: Option<(CommandNumber, Command)> = None;
        for (wait, event) in steps {
            now += wait;
            let Event::Command(number, command) = event else { continue };
            let number = CommandNumber(number);
            let expected = once.handle(number, command.clone(), at(now));
            let first = twice.handle(number, command.clone(), at(now));
            prop_assert_eq!(&first, &expected);
            let second = twice.handle(number, command.clone(), at(now));
            prop_assert_eq!(second, Outcome { answer: first.answer, effects: Vec::new() });
            if let Some((number, command)) = before.replace((number, command)) {
                prop_assert_eq!(twice.handle(number, command, at(now)).effects, []);
            }
            prop_assert_eq!(once.next_deadline(), twice.next_deadline());
            prop_assert!(once.alive().eq(twice.alive()));
        }
    }
}
