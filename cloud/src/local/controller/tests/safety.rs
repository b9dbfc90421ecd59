//! What must hold whatever is asked, and over a restart.

use super::*;

#[test]
fn the_group_in_rotation_and_the_last_that_serves_are_protected() {
    let mut bench = bench();
    bench.serving();
    let drain = Duration::ZERO;
    let (old, new) = (name("hello-web-v000"), name("hello-web-v001"));
    let zero = |group: &GroupName| Step::Resize { group: group.clone(), size: Size::ZERO };
    assert!(bench.refused(Step::Disable { group: old.clone(), drain }).contains("in rotation"));
    assert!(bench.refused(zero(&old)).contains("in rotation"));
    assert!(bench.refused(Step::Destroy { group: old.clone() }).contains("in rotation"));
    bench.create("hello-web-v001");
    bench.resize("hello-web-v001", 1);
    bench.pass(BOOT * 2);
    assert!(bench.refused(Step::Destroy { group: new.clone() }).contains("disable it first"));
    bench.flip("hello-web-v001");
    assert!(bench.refused(Step::Disable { group: new, drain }).contains("in rotation"));
    bench.done(Step::Disable { group: old.clone(), drain });
    assert!(bench.refused(Step::Flip { cluster: old.cluster().clone(), to: old.clone() }).contains("enable it first"));
    bench.done(zero(&old));
    bench.done(Step::Destroy { group: old.clone() });
    bench.pass(Duration::from_secs(1));
    assert!(!bench.controller.has_group(&old));
}

#[test]
fn an_enabled_group_without_instances_is_no_other_group_to_rely_on() {
    let mut bench = bench();
    bench.join();
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 1);
    bench.pass(BOOT * 2);
    bench.create("quiet-v000");
    let only = Step::Disable { group: name("quiet-v000"), drain: Duration::ZERO };
    assert!(bench.refused(only).contains("last enabled"), "also while it is empty");
    bench.create("hello-web-v001");
    let (old, drain) = (name("hello-web-v000"), Duration::ZERO);
    assert!(bench.refused(Step::Disable { group: old.clone(), drain }).contains("last enabled"));
    assert!(bench.refused(Step::Resize { group: old, size: Size::ZERO }).contains("last enabled"));
}

#[test]
fn a_restart_begins_the_groups_anew_with_their_rotation_and_sizes() {
    let mut bench = bench();
    bench.serving();
    bench.create("quiet-v000");
    let (before, saved) = (bench.ids("hello-web-v000"), bench.controller.saved());
    assert_eq!(saved.default_cluster.as_ref().unwrap().as_str(), "hello-web");
    let mut again = Bench::over(Controller::new(settings(), vec![package()], saved.clone()).unwrap());
    again.seed = 1_000_000;
    again.join();
    again.pass(BOOT * 2);
    let group = again.group("hello-web-v000");
    assert_eq!((group.size, group.in_rotation, group.members.len()), (Size::pinned(3), true, 3));
    assert!(before.iter().all(|id| !group.members.contains_key(id)));
    assert_eq!(again.controller.routes.clusters.values().next().unwrap().len(), 3);
    assert_eq!(again.controller.routes.default_cluster, saved.default_cluster);
    assert!(Controller::new(settings(), vec![], saved).unwrap_err().contains("ami-1"));
}

#[test]
fn traffic_is_summed_over_workers_and_outlives_them() {
    let mut bench = bench();
    bench.serving();
    let group = name("hello-web-v000");
    let report = |bench: &mut Bench, worker, connection, answers, in_flight| {
        let timed = Some(Timed { answers, took: Duration::from_millis(answers) });
        let counts = Traffic { answers, in_flight, buckets: vec![answers], timed, ..Traffic::default() };
        let traffic = BTreeMap::from([(name("hello-web-v000"), counts)]);
        bench.feed(Event::Report { worker, connection, health: [].into(), traffic, in_flight: [].into() });
    };
    let sum = |bench: &Bench| {
        let traffic = &bench.controller.traffic(group.cluster())[&group];
        assert_eq!(traffic.buckets, [traffic.answers]);
        let took = Duration::from_millis(traffic.answers);
        assert_eq!(traffic.timed, Some(Timed { answers: traffic.answers, took }));
        (traffic.answers, traffic.in_flight)
    };
    bench.feed(Event::WorkerJoined { worker: 1, connection: 2, life: Some(2) });
    report(&mut bench, 0, 1, 10, 1);
    report(&mut bench, 1, 2, 5, 2);
    assert_eq!(sum(&bench), (15, 3));
    // The connection breaks, the process lives on and keeps its counts.
    bench.feed(Event::WorkerLeft { worker: 1, connection: 2 });
    assert_eq!(sum(&bench), (15, 1));
    bench.feed(Event::WorkerJoined { worker: 1, connection: 3, life: Some(2) });
    report(&mut bench, 1, 3, 6, 0);
    assert_eq!(sum(&bench), (16, 1));
    // A new process begins at zero, even when it is quicker than its predecessor was.
    bench.feed(Event::WorkerJoined { worker: 1, connection: 4, life: Some(3) });
    report(&mut bench, 1, 4, 50, 0);
    assert_eq!(sum(&bench), (66, 1));
    report(&mut bench, 0, 1, 2, 0);
    assert_eq!(sum(&bench), (68, 0), "counts that fell are those of a new life");
    report(&mut bench, 1, 3, 999, 0);
    assert_eq!(sum(&bench), (68, 0), "an old connection has no say");
}

#[test]
fn closing_ends_all_and_starts_none() {
    let mut bench = bench();
    bench.serving();
    bench.obedient = false;
    bench.feed(Event::Close);
    let terms = bench.effects.iter().filter(|e| matches!(e, Effect::End { by: EndBy::Term, .. })).count();
    assert_eq!(terms, 3);
    assert!(bench.refused(Step::Enable { group: name("hello-web-v000") }).contains("shutting down"));
    for instance in bench.ids("hello-web-v000") {
        bench.feed(Event::Exited { instance, status: "exit code 0".into() });
    }
    assert!(bench.controller.is_empty() && bench.launches().is_empty());
    assert_eq!(bench.controller.saved().groups[&name("hello-web-v000")].size, Size::pinned(3));
}

/// One of the things that happen, by numbers.
fn happen(bench: &mut Bench, what: u8, which: u8, count: u32) {
    let group = name(["hello-web-v000", "hello-web-v001", "hello-web-v002"][usize::from(which % 3)]);
    let zones = bench.controller.settings.zones.iter().take(1 + usize::from(which / 86)).cloned().collect();
    let image = ImageId::new("ami-1").unwrap();
    let instance = bench.controller.members.keys().nth(usize::from(which)).cloned();
    let drain = Duration::from_secs(1);
    let step = match what {
        0 | 1 => Step::CreateGroup {
            group: NewGroup { name: group, image, zones, tags: [].into(), has_targets: which < 200 },
        },
        2..=4 => Step::Resize { group, size: Size { min: 0, desired: count, max: 4 } },
        5 | 6 => Step::Flip { cluster: group.cluster().clone(), to: group },
        7 => Step::Enable { group },
        8 | 9 => Step::Disable { group, drain },
        10 => Step::Destroy { group },
        11..=13 => {
            let Some(instance) = instance else { return };
            let group = bench.controller.members[&instance].group.clone();
            let kill = if count.is_multiple_of(2) { How::Crash } else { How::Drain { delay: drain } };
            Step::Terminate { group, instance, kill }
        }
        14 | 15 => {
            let Some(instance) = instance else { return };
            return bench.feed(Event::Exited { instance, status: "exit code 1".into() });
        }
        16 => {
            bench.ill.extend(instance);
            return;
        }
        17 => return bench.feed(Event::WorkerLeft { worker: 0, connection: 1 }),
        18 => return bench.join(),
        _ => return bench.pass(Duration::from_secs(u64::from(count))),
    };
    bench.ask(step);
}

proptest::proptest! {
    #[test]
    fn nothing_that_happens_takes_the_last_that_serves(
        happenings in proptest::collection::vec((0u8..24, 0u8..=255, 0u32..5), 1..80)
    ) {
        let mut bench = bench();
        bench.join();
        for (what, which, count) in happenings {
            let served: Vec<_> = bench.controller.groups.iter().filter(|(_, g)| g.saved.in_rotation).map(|(n, _)| n.clone()).collect();
            let was_enabled = bench.controller.groups.iter().any(|(n, g)| {
                g.saved.enabled && !g.saved.destroying && bench.controller.members.values().any(|m| m.group == *n)
            });
            happen(&mut bench, what, which, count);
            let groups = &bench.controller.groups;
            let in_rotation: Vec<_> = groups.iter().filter(|(_, g)| g.saved.in_rotation).collect();
            proptest::prop_assert!(in_rotation.len() <= 1);
            proptest::prop_assert!(served.is_empty() || in_rotation.len() == 1, "the rotation was lost");
            for (_, group) in &in_rotation {
                let saved = &group.saved;
                proptest::prop_assert!(saved.enabled && !saved.destroying && saved.size.desired > 0);
            }
            let is_enabled = groups.values().any(|g| g.saved.enabled && !g.saved.destroying);
            proptest::prop_assert!(!was_enabled || is_enabled, "the last enabled group is gone");
            let mut addresses = BTreeSet::new();
            for (id, member) in &bench.controller.members {
                proptest::prop_assert!(groups.contains_key(&member.group), "{id} belongs to nobody");
                proptest::prop_assert!(addresses.insert(member.address), "two have one address");
            }
        }
        // Left alone, every group gets what it wants, and every intent an answer.
        bench.ill.clear();
        bench.join();
        bench.pass(Duration::from_secs(45));
        for (name, group) in &bench.controller.groups {
            let members = bench.controller.members.values().filter(|m| m.group == *name).count();
            proptest::prop_assert_eq!(u32::try_from(members).unwrap(), group.saved.size.desired);
        }
        for number in 1..=bench.intents {
            let id = IntentId::new(format!("{number:032x}")).unwrap();
            proptest::prop_assert!(bench.outcome(&id).is_some(), "{id} was never answered");
        }
    }
}
