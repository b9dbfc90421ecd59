//! What an agent makes of what it is asked for: whose packets, by what they are measured, and what it does not understand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use troop_agent_core::protocol::{Answered, Chapter, MeasuredBy, Story, ToAgent};
use troop_policies::fault::{Direction, Owner};

use crate::control::{Asked, ControlPlane};
use crate::group::Group;
use crate::host::Host;
use crate::probe::TARGETED;
use crate::world::{PEER, connect, in_namespaces, ms, round_trip};

const ASKED: Asked =
    Asked { delay: ms_of(100), direction: Direction::Egress, port: TARGETED, ttl: Duration::from_secs(5) };

const fn ms_of(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A grant that names no peer whom the agent could ask.
fn unprobed(lease: &str, of: Option<Owner>) -> ToAgent {
    let ToAgent::Grant(mut grant) = ASKED.grant(0, lease) else { panic!("no grant") };
    grant.probes.clear();
    grant.fault.of = of;
    ToAgent::Grant(grant)
}

fn measured_by_connections(story: &Story) {
    let [baseline, applied] = [&story.baseline, &story.applied].map(|found| found.clone().unwrap());
    assert_eq!((baseline.by, applied.by), (MeasuredBy::Sockets, MeasuredBy::Sockets), "{story:?}");
    assert!(applied.median_us.unwrap() >= baseline.median_us.unwrap() + 50_000, "{story:?}");
}

#[test]
#[ignore = "needs user namespaces"]
fn where_nobody_can_be_asked_the_hosts_own_connections_show_it_and_that_it_is_gone() {
    let name = "order::where_nobody_can_be_asked_the_hosts_own_connections_show_it_and_that_it_is_gone";
    in_namespaces(name, |world| {
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        let stop = Arc::new(AtomicBool::new(false));
        let talking = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut stream = connect(PEER, TARGETED);
                while !stop.load(Ordering::Relaxed) {
                    round_trip(&mut stream);
                    std::thread::sleep(ms(10));
                }
            }
        });
        std::thread::sleep(ms(200));
        control.grant_message(&unprobed("asked", None));
        control.wait_until_up("asked");
        measured_by_connections(&control.wait_for_story("asked", |story| story.at == Chapter::Up));
        control.end("asked");
        let over = control.wait_for_story("asked", |story| story.at == Chapter::Over);
        stop.store(true, Ordering::Relaxed);
        talking.join().unwrap();
        println!("{:?} -> {:?} -> {:?}", over.baseline, over.applied, over.healed);
        let healed = over.healed.unwrap();
        assert_eq!(healed.by, MeasuredBy::Sockets);
        assert!(over.trouble.is_empty() && healed.median_us.unwrap() < over.applied.unwrap().median_us.unwrap());
        host.end();
        host.await_nothing_left();
    });
}

#[test]
#[ignore = "needs root"]
fn a_fault_on_a_process_is_measured_by_its_own_connections_and_ends_with_it() {
    let name = "order::a_fault_on_a_process_is_measured_by_its_own_connections_and_ends_with_it";
    in_namespaces(name, |world| {
        let Some(group) = Group::make() else {
            return println!("skipped: no cgroup can be made here");
        };
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        let mut others = connect(PEER, TARGETED);
        let mut talking = group.talks(TARGETED);
        std::thread::sleep(ms(300));
        control.grant_message(&unprobed("asked", Some(Owner::Pid(talking.id()))));
        control.wait_until_up("asked");
        measured_by_connections(&control.wait_for_story("asked", |story| story.at == Chapter::Up));
        assert!(round_trip(&mut others) < ms(50));

        for (lease, of, expected) in [
            ("second", Owner::Cgroup(group.path()), "one at a time can be"),
            ("third", Owner::Unit("nobody.service".to_owned()), "is not on this host"),
        ] {
            let said = control.said();
            control.grant_message(&unprobed(lease, Some(of)));
            control.wait_for("the refusal", said, |line| line.contains("refused") && line.contains(expected));
        }
        talking.kill().unwrap();
        talking.wait().unwrap();
        let over = control.wait_for_story("asked", |story| story.at == Chapter::Over);
        assert!(over.trouble.ends_with("is not on this host"), "{over:?}");
        host.end();
        host.await_nothing_left();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn a_part_of_a_later_release_is_refused_by_itself_and_the_connection_goes_on() {
    let name = "order::a_part_of_a_later_release_is_refused_by_itself_and_the_connection_goes_on";
    in_namespaces(name, |world| {
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        control.grant("known", &ASKED);
        control.wait_until_up("known");
        let said = control.said();
        let later = serde_json::to_string(&ASKED.grant(1_000, "later")).unwrap();
        control.line(&later.replacen("\"fault\":{", "\"fault\":{\"explode\":true,", 1));
        let Answered::Refused { why } = control.answer_to(1_000) else { panic!("{:?}", control.all()) };
        assert!(why.contains("unknown field `explode`"), "{why}");
        control.raw(&ToAgent::End { number: 1_001, lease: "known".to_owned() });
        assert!(matches!(control.answer_to(1_001), Answered::Gone { .. }));
        assert!(!control.all()[said..].iter().any(|line| line.starts_with("connected ")), "it came anew");
        host.end();
        host.await_nothing_left();
    });
}
