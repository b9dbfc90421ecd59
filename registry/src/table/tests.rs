use proptest::prelude::*;
use serde_json::json;
use troop_policies::intent::{Cause, Intent, Outcome};
use troop_policies::step::{Size, Step};
use troop_policies::{AccountName, GroupName, InstanceId, RegionName};

use super::*;

const LEASE: SignedDuration = SignedDuration::from_secs(90);

fn at(secs: i64) -> Timestamp {
    after("2026-11-24T10:00:00Z".parse().unwrap(), SignedDuration::from_secs(secs))
}

fn key(id: &str) -> Key {
    Key::new("shop", id)
}

fn info(id: &str, group: Option<&str>, duration: Option<i64>, status: &str) -> Info {
    let body = json!({"instance": {"instanceId": id, "app": "shop", "hostName": "h", "ipAddr": "10.0.0.1",
        "status": status, "dataCenterInfo": {"name": "MyOwn"}, "asgName": group, "lastDirtyTimestamp": "1000",
        "leaseInfo": {"durationInSecs": duration}}});
    Info::from_body(&body, "SHOP").unwrap()
}

fn table() -> Table {
    Table::new(LEASE, at(0))
}

fn register(table: &mut Table, id: &str, now: i64) {
    let effect = table.register(info(id, Some("shop-v001"), None, "UP"), at(now));
    assert_eq!((effect.answer, effect.save), (Ok(()), Save::Soon));
}

fn renew(table: &mut Table, id: &str, now: i64) -> Changed {
    let effect = table.renew(&key(id), None, at(now));
    assert_eq!(effect.save, Save::No);
    effect.answer
}

/// Ticks every second after `from` up to `to`, and says who was evicted.
fn ticks(table: &mut Table, from: i64, to: i64) -> Vec<String> {
    (from + 1..=to).flat_map(|s| table.tick(at(s)).answer).map(|key| key.id).collect()
}

fn status(table: &Table, id: &str) -> Option<Status> {
    table.entry(&key(id)).map(|shown| shown.status)
}

fn overridden(table: &mut Table, id: &str, to: Status, now: i64) {
    let effect = table.override_instance(key(id), to, at(now));
    assert_eq!((effect.answer, effect.save), (Changed::Yes, Save::First));
}

fn group_out(table: &mut Table, out: bool, now: i64) {
    let effect = table.override_group("shop-v001", out, at(now));
    assert_eq!((effect.answer, effect.save), (Changed::Yes, Save::First));
}

fn reloaded(table: &Table, now: i64) -> Table {
    let saved = serde_json::to_vec(&table.state()).unwrap();
    Table::restored(serde_json::from_slice(&saved).unwrap(), LEASE, at(now))
}

fn intent(id: &str, step: Step) -> Intent {
    Intent {
        id: IntentId::new(id).unwrap(),
        account: AccountName::new("local").unwrap(),
        region: RegionName::new("r1").unwrap(),
        step,
        cause: Cause::Upkeep { reason: "a test".to_owned() },
        at: at(0),
    }
}

fn group() -> GroupName {
    GroupName::new("shop-v001").unwrap()
}

fn cancel_step(instance: &str) -> Step {
    Step::CancelEntry { group: group(), instance: InstanceId::new(instance).unwrap() }
}

#[test]
fn who_renews_stays_and_who_does_not_is_evicted_after_one_lease() {
    let mut table = table();
    register(&mut table, "a", 0);
    register(&mut table, "b", 0);
    assert!(ticks(&mut table, 0, 60).is_empty());
    assert_eq!(renew(&mut table, "a", 60), Changed::Yes);
    assert_eq!(ticks(&mut table, 60, 90), ["b"]);
    assert_eq!(ticks(&mut table, 90, 150), ["a"]);
    assert_eq!(renew(&mut table, "a", 151), Changed::NoEntry);
}

#[test]
fn a_clients_own_lease_is_kept() {
    let mut table = table();
    let _effect = table.register(info("short", None, Some(6), "UP"), at(0));
    let _effect = table.register(info("long", None, Some(200), "UP"), at(0));
    assert_eq!(ticks(&mut table, 0, 6), ["short"]);
    assert_eq!(ticks(&mut table, 6, 200), ["long"]);
}

#[test]
fn a_registry_of_three_heals_even_if_all_three_die() {
    let mut table = table();
    for id in ["a", "b", "c"] {
        register(&mut table, id, 0);
    }
    register(&mut table, "d", 50);
    assert_eq!(ticks(&mut table, 0, 90), ["a", "b", "c"]);
    assert_eq!(table.hash(), "UP_1_");
}

#[test]
fn a_large_registry_loses_at_most_half_within_one_lease_and_is_clean_after_a_few() {
    let mut table = table();
    for n in 0..20 {
        register(&mut table, &format!("i{n:02}"), 0);
    }
    assert_eq!(ticks(&mut table, 0, 179).len(), 10);
    assert_eq!(table.hash(), "UP_10_");
    assert_eq!(ticks(&mut table, 179, 269).len(), 5);
    assert_eq!(ticks(&mut table, 269, 360).len(), 5);
    assert_eq!(table.hash(), "");
}

#[test]
fn one_that_dies_in_a_large_registry_goes_at_once() {
    let mut table = table();
    for n in 0..20 {
        register(&mut table, &format!("i{n:02}"), 0);
    }
    for n in 1..20 {
        assert_eq!(renew(&mut table, &format!("i{n:02}"), 60), Changed::Yes);
    }
    assert_eq!(ticks(&mut table, 0, 90), ["i00"]);
}

#[test]
fn time_in_which_the_registry_did_not_run_counts_against_nobody() {
    let mut table = table();
    register(&mut table, "a", 0);
    assert!(ticks(&mut table, 0, 30).is_empty());
    assert!(table.tick(at(10_000)).answer.is_empty());
    assert_eq!(ticks(&mut table, 10_000, 10_100), ["a"]);
}

#[test]
fn a_clock_that_was_set_back_keeps_no_corpse() {
    let mut table = table();
    register(&mut table, "a", 0);
    assert!(ticks(&mut table, 0, 30).is_empty());
    assert!(table.tick(at(-5_000)).answer.is_empty());
    assert_eq!(ticks(&mut table, -5_000, -4_900), ["a"]);
}

#[test]
fn leases_end_even_where_every_tick_is_late() {
    let mut table = table();
    register(&mut table, "a", 0);
    let evicted = (1..=100).flat_map(|n| table.tick(at(n * 5)).answer).count();
    assert_eq!(evicted, 1);
}

#[test]
fn who_has_news_that_it_did_not_register_must_register() {
    let mut table = table();
    register(&mut table, "a", 0);
    assert_eq!(table.renew(&key("a"), Some(1_000), at(1)).answer, Changed::Yes);
    assert_eq!(table.renew(&key("a"), Some(999), at(1)).answer, Changed::Yes);
    assert_eq!(table.renew(&key("a"), Some(1_001), at(1)).answer, Changed::NoEntry);
}

#[test]
fn an_override_survives_cancel_eviction_registration_and_restart() {
    let mut table = table();
    register(&mut table, "a", 0);
    overridden(&mut table, "a", Status::OutOfService, 1);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
    assert_eq!(table.cancel(&key("a"), at(2)).answer, Changed::Yes);
    register(&mut table, "a", 3);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
    assert_eq!(ticks(&mut table, 3, 100), ["a"]);
    let mut table = reloaded(&table, 4_000);
    register(&mut table, "a", 4_001);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
    assert_eq!(table.drop_override(&key("a"), None, at(4_002)).answer, Changed::Yes);
    assert_eq!(status(&table, "a"), Some(Status::Up));
}

#[test]
fn later_members_inherit_what_their_group_is() {
    let mut table = table();
    group_out(&mut table, true, 0);
    register(&mut table, "a", 1);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
    let _effect = table.register(info("other", Some("shop-v002"), None, "UP"), at(1));
    assert_eq!(status(&table, "other"), Some(Status::Up));
    group_out(&mut table, false, 2);
    assert_eq!(status(&table, "a"), Some(Status::Up));
    assert_eq!(table.entry(&key("a")).unwrap().overridden, None);
}

#[test]
fn nothing_in_a_disabled_group_is_up_whatever_its_own_override_says() {
    let mut table = table();
    register(&mut table, "a", 0);
    overridden(&mut table, "a", Status::Up, 1);
    group_out(&mut table, true, 2);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
    overridden(&mut table, "a", Status::Down, 3);
    assert_eq!(status(&table, "a"), Some(Status::Down));
    assert_eq!(table.drop_override(&key("a"), Some(Status::Up), at(4)).answer, Changed::Yes);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService));
}

#[test]
fn an_instance_that_says_it_is_not_fit_is_believed() {
    for said in ["DOWN", "STARTING", "UNKNOWN"] {
        let mut table = table();
        let _effect = table.register(info("a", None, None, said), at(0));
        overridden(&mut table, "a", Status::Up, 1);
        assert_eq!(status(&table, "a"), Some(Status::parse(said)));
    }
}

#[test]
fn an_override_that_is_dropped_and_was_not_there_is_no_entry() {
    let mut table = table();
    assert_eq!(table.drop_override(&key("a"), None, at(0)).answer, Changed::NoEntry);
    overridden(&mut table, "a", Status::OutOfService, 0);
    assert!(table.knows(&key("a")));
    assert_eq!(table.drop_override(&key("a"), None, at(0)).answer, Changed::Yes);
    assert!(!table.knows(&key("a")));
}

#[test]
fn the_delta_holds_each_change_once_for_three_minutes_and_its_version_grows() {
    let mut table = table();
    register(&mut table, "a", 0);
    register(&mut table, "b", 0);
    let before = table.version();
    overridden(&mut table, "a", Status::OutOfService, 1);
    assert_eq!(table.cancel(&key("b"), at(1)).answer, Changed::Yes);
    assert!(table.version() > before);
    let seen: Vec<_> = table.delta().iter().map(|s| (s.lease.info.id.clone(), s.lease.action, s.status)).collect();
    let expected =
        [("a".to_owned(), Action::Modified, Status::OutOfService), ("b".to_owned(), Action::Deleted, Status::Up)];
    assert_eq!(seen, expected);
    let gone: Vec<_> = table.delta().iter().map(|s| s.gone_at).collect();
    assert_eq!(gone, [None, Some(at(1))]);
    assert_eq!(table.hash(), "OUT_OF_SERVICE_1_");
    // Time has passed, ticked: not lost to a pause.
    for s in 1..=181 {
        let _renewed = renew(&mut table, "a", s);
        let _effect = table.tick(at(s));
    }
    assert!(table.delta().is_empty());
    assert_eq!(table.all().len(), 1);
}

#[test]
fn each_change_grows_the_version_if_it_is_shown_and_the_revision_if_it_must_be_saved() {
    type Change = fn(&mut Table);
    /// What is done, whether others see it, and whether a restart must know it.
    type Row = (&'static str, Change, bool, bool);
    let rows: &[Row] = &[
        ("registered", |table| register(table, "a", 0), true, true),
        ("renewed", |table| assert_eq!(renew(table, "a", 1), Changed::Yes), false, false),
        ("overridden", |table| overridden(table, "a", Status::Up, 1), true, true),
        ("dropped", |table| drop(table.drop_override(&key("a"), None, at(1))), true, true),
        ("group out", |table| group_out(table, true, 1), true, true),
        ("group out again", |table| group_out(table, true, 1), false, true),
        ("metadata", |table| drop(table.add_metadata(&key("a"), BTreeMap::new(), at(1))), true, true),
        ("metadata of nobody", |table| drop(table.add_metadata(&key("b"), BTreeMap::new(), at(1))), false, false),
        ("overridden before it is there", |table| overridden(table, "b", Status::Up, 1), false, true),
        ("cancelled", |table| drop(table.cancel(&key("a"), at(1))), true, true),
        ("cancelled again", |table| drop(table.cancel(&key("a"), at(1))), false, false),
    ];
    let mut table = table();
    for (what, change, shown, saved) in rows {
        let (version, revision) = (table.version(), table.revision());
        change(&mut table);
        assert_eq!((table.version() > version, table.revision() > revision), (*shown, *saved), "{what}");
    }
}

#[test]
fn when_it_was_first_shown_up_is_kept() {
    let mut table = table();
    let said = |table: &mut Table, status, now| {
        let _effect = table.register(info("a", None, None, status), at(now));
        table.entry(&key("a")).unwrap().lease.up_at
    };
    assert_eq!(said(&mut table, "STARTING", 0), None);
    assert_eq!(said(&mut table, "UP", 5), Some(at(5)));
    overridden(&mut table, "a", Status::OutOfService, 6);
    assert_eq!(table.drop_override(&key("a"), None, at(7)).answer, Changed::Yes);
    assert_eq!(said(&mut table, "UP", 8), Some(at(5)));
}

#[test]
fn the_hash_counts_statuses_in_the_order_of_their_names() {
    let mut table = table();
    assert_eq!(table.hash(), "");
    for (id, said) in [("a", "UP"), ("b", "UP"), ("c", "DOWN"), ("d", "OUT_OF_SERVICE"), ("e", "UP")] {
        let _effect = table.register(info(id, None, None, said), at(0));
    }
    assert_eq!(table.hash(), "DOWN_1_OUT_OF_SERVICE_1_UP_3_");
}

#[test]
fn over_a_saved_table_the_registry_warms_for_two_leases_and_gives_all_a_new_one() {
    let mut first = table();
    assert!(!reloaded(&first, 0).is_warming(at(0)), "an empty table is not warming");
    register(&mut first, "a", 0);
    let mut table = reloaded(&first, 1_000);
    assert!(table.view(at(1_000)).warming);
    assert!(table.is_warming(at(1_179)));
    assert!(!table.is_warming(at(1_180)));
    assert!(ticks(&mut table, 1_000, 1_089).is_empty());
    assert_eq!(ticks(&mut table, 1_089, 1_090), ["a"]);
    assert!(table.version() > first.version(), "a client must not take the new table for the one it knows");
}

#[test]
fn a_cancelled_instance_cannot_come_back_for_one_lease_even_over_a_restart() {
    for identity in ["own", "data centre", "metadata"] {
        let mut table = table();
        let mut dying = info(if identity == "own" { "i-1" } else { "host:8080" }, Some("shop-v001"), None, "UP");
        match identity {
            "data centre" => drop(dying.data_center.metadata.insert("instance-id".to_owned(), "i-1".to_owned())),
            "metadata" => drop(dying.metadata.insert("troop.instance-id".to_owned(), "i-1".to_owned())),
            _ => {}
        }
        assert_eq!(table.register(dying.clone(), at(0)).answer, Ok(()));
        register(&mut table, "i-2", 0);
        let effect = table.perform(&intent("aa", cancel_step("i-1")), at(10));
        assert_eq!(effect.save, Save::First);
        assert_eq!(effect.answer, Outcome::done(format!("cancelled SHOP/{}", dying.id)), "{identity}");
        assert_eq!(table.all().len(), 1, "only the other one is left");
        assert_eq!(renew(&mut table, &dying.id, 11), Changed::NoEntry);
        let refused = table.register(dying.clone(), at(11));
        assert_eq!(refused.answer, Err(RegisterError::Ended { instance: "i-1".to_owned(), until: at(100) }));
        let mut table = reloaded(&table, 12);
        assert!(table.register(dying.clone(), at(99)).answer.is_err());
        assert_eq!(table.register(dying, at(100)).answer, Ok(()));
    }
}

#[test]
fn a_cancelled_instance_with_a_long_lease_of_its_own_stays_out_that_long() {
    let mut table = table();
    let _effect = table.register(info("i-1", None, Some(500), "UP"), at(0));
    let _effect = table.perform(&intent("aa", cancel_step("i-1")), at(0));
    assert!(table.register(info("i-1", None, Some(500), "UP"), at(499)).answer.is_err());
}

#[test]
fn cancelling_what_has_no_entry_is_done_and_keeps_it_out() {
    let mut table = table();
    assert_eq!(table.perform(&intent("aa", cancel_step("i-1")), at(0)).answer, Outcome::done("no entry"));
    assert!(table.register(info("i-1", None, None, "UP"), at(1)).answer.is_err());
}

#[test]
fn an_intent_is_carried_out_once_and_remembered_for_a_day() {
    let mut table = table();
    register(&mut table, "a", 0);
    let out = intent("aa", Step::OverrideGroup { group: group(), out_of_service: true });
    let first = table.perform(&out, at(1)).answer;
    assert_eq!(first, Outcome::done("shop-v001 is OUT_OF_SERVICE; it has 1 entries now"));
    group_out(&mut table, false, 2);
    let mut table = reloaded(&table, 3);
    assert_eq!(table.perform(&out, at(3)).answer, first, "the answer of the first time");
    assert_eq!(status(&table, "a"), Some(Status::Up), "and it was not done again");
    let other = intent("aa", Step::OverrideGroup { group: group(), out_of_service: false });
    assert!(!table.perform(&other, at(4)).answer.may_have_happened());
    assert_eq!(table.outcome(&out.id), Some(&first));
    for s in 4..86_403 {
        let _effect = table.tick(at(s));
    }
    assert_eq!(table.outcome(&out.id), None);
}

#[test]
fn an_intent_that_was_given_up_is_never_carried_out() {
    let mut table = table();
    let step = Step::OverrideGroup { group: group(), out_of_service: true };
    let never = Outcome::refused("the registry never saw it");
    let resolved = table.resolve(&IntentId::new("aa").unwrap(), at(0));
    assert_eq!((resolved.answer, resolved.save), (never.clone(), Save::First));
    let mut table = reloaded(&table, 1);
    assert_eq!(table.perform(&intent("aa", step.clone()), at(1)).answer, never);
    register(&mut table, "a", 2);
    assert_eq!(status(&table, "a"), Some(Status::Up));
    let done = table.perform(&intent("bb", step), at(3)).answer;
    assert_eq!(table.resolve(&IntentId::new("bb").unwrap(), at(4)).answer, done);
}

#[test]
fn steps_of_the_cloud_are_refused() {
    let mut table = table();
    let step = Step::Resize { group: group(), size: Size::ZERO };
    let effect = table.perform(&intent("aa", step), at(0));
    assert!(matches!(effect.answer, Outcome::Refused { .. }));
    assert_eq!((effect.save, table.outcome(&IntentId::new("aa").unwrap())), (Save::No, None));
}

#[test]
fn metadata_is_added_and_bounded() {
    let mut table = table();
    register(&mut table, "a", 0);
    let pairs = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(table.add_metadata(&key("a"), pairs(2), at(1)).answer, Ok(Changed::Yes));
    assert_eq!(table.add_metadata(&key("b"), pairs(2), at(1)).answer, Ok(Changed::NoEntry));
    assert!(table.add_metadata(&key("a"), pairs(257), at(1)).answer.is_err());
    assert_eq!(table.entry(&key("a")).unwrap().lease.info.metadata.len(), 2);
}

#[derive(Debug, Clone)]
enum Event {
    Register(usize, usize),
    Renew(usize),
    Cancel(usize),
    Wait(i64),
    Reload,
    Override(usize, bool),
    Drop(usize),
    Group(usize, bool),
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_usize, 0..2_usize).prop_map(|(i, g)| Event::Register(i, g)),
        3 => (0..4_usize).prop_map(Event::Renew),
        1 => (0..4_usize).prop_map(Event::Cancel),
        2 => (1..120_i64).prop_map(Event::Wait),
        1 => Just(Event::Reload),
        2 => ((0..4_usize), any::<bool>()).prop_map(|(i, up)| Event::Override(i, up)),
        1 => (0..4_usize).prop_map(Event::Drop),
        2 => ((0..2_usize), any::<bool>()).prop_map(|(g, out)| Event::Group(g, out)),
        1 => (0..4_usize).prop_map(Event::End),
    ]
}

const IDS: [&str; 4] = ["i-0", "i-1", "i-2", "i-3"];
const GROUPS: [&str; 2] = ["shop-v001", "shop-v002"];

proptest! {
    #[test]
    fn overrides_survive_whatever_happens(events in prop::collection::vec(event(), 1..60)) {
        let mut table = table();
        let mut now = 0;
        let mut instances: BTreeMap<Key, Status> = BTreeMap::new();
        let mut groups: BTreeSet<String> = BTreeSet::new();
        for (n, event) in events.into_iter().enumerate() {
            match event {
                Event::Register(i, g) => {
                    let _effect = table.register(info(IDS[i], Some(GROUPS[g]), None, "UP"), at(now));
                }
                Event::Renew(i) => drop(table.renew(&key(IDS[i]), None, at(now))),
                Event::Cancel(i) => drop(table.cancel(&key(IDS[i]), at(now))),
                Event::Wait(secs) => {
                    ticks(&mut table, now, now + secs);
                    now += secs;
                }
                Event::Reload => table = reloaded(&table, now),
                Event::Override(i, up) => {
                    let to = if up { Status::Up } else { Status::OutOfService };
                    overridden(&mut table, IDS[i], to, now);
                    instances.insert(key(IDS[i]), to);
                }
                Event::Drop(i) => {
                    let _effect = table.drop_override(&key(IDS[i]), None, at(now));
                    instances.remove(&key(IDS[i]));
                }
                Event::Group(g, out) => {
                    let _effect = table.override_group(GROUPS[g], out, at(now));
                    if out { groups.insert(GROUPS[g].to_owned()) } else { groups.remove(GROUPS[g]) };
                }
                Event::End(i) => drop(table.perform(&intent(&format!("n{n}"), cancel_step(IDS[i])), at(now))),
            }
            prop_assert_eq!(&table.overrides, &instances);
            prop_assert_eq!(&table.groups_out, &groups);
            for shown in table.all() {
                let out = groups.contains(shown.lease.info.group.as_ref().unwrap())
                    || instances.get(&key(&shown.lease.info.id)) == Some(&Status::OutOfService);
                prop_assert_eq!(shown.status, if out { Status::OutOfService } else { Status::Up });
            }
        }
    }

    #[test]
    fn a_table_that_is_saved_and_read_again_shows_the_same(events in prop::collection::vec((0..4_usize, 0..2_usize), 0..20)) {
        let mut table = table();
        for (i, g) in events {
            let _effect = table.register(info(IDS[i], Some(GROUPS[g]), None, "UP"), at(0));
        }
        let again = reloaded(&table, 0);
        prop_assert_eq!(again.all(), table.all());
        prop_assert_eq!(again.hash(), table.hash());
    }
}

#[test]
fn no_more_steps_are_remembered_than_there_is_room_for() {
    let mut table = table();
    for number in 0..steps::STEPS_MAX {
        drop(table.resolve(&IntentId::new(format!("{number:032x}")).unwrap(), at(0)));
    }
    let known = IntentId::new(format!("{:032x}", 0)).unwrap();
    let never = Outcome::refused("the registry never saw it");
    assert_eq!(table.resolve(&known, at(1)).answer, never, "what is remembered is answered still");
    let new = IntentId::new("ff").unwrap();
    assert!(matches!(table.resolve(&new, at(1)).answer, Outcome::Unknown { .. }));
    let step = Step::OverrideGroup { group: GroupName::new("shop-v001").unwrap(), out_of_service: true };
    let intent = Intent {
        id: new,
        account: AccountName::new("local").unwrap(),
        region: RegionName::new("r1").unwrap(),
        step,
        cause: Cause::Upkeep { reason: "a test".to_owned() },
        at: at(1),
    };
    assert!(matches!(table.perform(&intent, at(1)).answer, Outcome::Refused { .. }));
    assert_eq!(table.hash(), "", "and nothing was done");
}

#[test]
fn a_full_registry_takes_in_nobody_new_and_keeps_whom_it_knows() {
    let mut table = table();
    let one = info("0", None, None, "UP");
    let named = |n: usize| Info { id: n.to_string(), ..one.clone() };
    for n in 0..ENTRIES_MAX {
        assert_eq!(table.register(named(n), at(0)).answer, Ok(()));
    }
    let refused = table.register(named(ENTRIES_MAX), at(1));
    assert_eq!((refused.answer, refused.save), (Err(RegisterError::Full), Save::No));
    assert_eq!(table.register(named(0), at(1)).answer, Ok(()));
    assert_eq!(table.cancel(&key("0"), at(2)).answer, Changed::Yes);
    assert_eq!(table.register(named(ENTRIES_MAX), at(2)).answer, Ok(()));
}

#[test]
fn no_more_overrides_are_kept_than_there_is_room_for_and_those_kept_still_change() {
    let mut table = table();
    for n in 0..OVERRIDES_MAX {
        overridden(&mut table, &n.to_string(), Status::Up, 0);
        assert_eq!(table.override_group(&format!("g{n}"), true, at(0)).answer, Changed::Yes);
    }
    let full = table.override_instance(key("new"), Status::OutOfService, at(1));
    assert_eq!((full.answer, full.save, table.knows(&key("new"))), (Changed::Full, Save::No, false));
    overridden(&mut table, "0", Status::OutOfService, 1);

    let full = table.override_group("shop-v001", true, at(1));
    assert_eq!((full.answer, full.save), (Changed::Full, Save::No));
    let step = Step::OverrideGroup { group: group(), out_of_service: true };
    assert!(matches!(table.perform(&intent("aa", step), at(1)).answer, Outcome::Refused { .. }));
    register(&mut table, "a", 1);
    assert_eq!(status(&table, "a"), Some(Status::Up), "what was refused is not in force");
    for out in [true, false] {
        assert_eq!(table.override_group("g0", out, at(2)).answer, Changed::Yes);
    }
    group_out(&mut table, true, 3);
    assert_eq!(status(&table, "a"), Some(Status::OutOfService), "and the room that was made is used");
}
