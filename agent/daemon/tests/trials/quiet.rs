//! What must have no effect: a command that comes again, a connection that comes and goes, an agent with nothing to do.

use std::time::Duration;

use troop_agent_core::protocol::{Answered, Chapter, FromAgent, ToAgent};
use troop_policies::fault::Direction;

use crate::control::{Asked, ControlPlane, heard};
use crate::host::Host;
use crate::probe::{Probes, TARGETED, nanos};
use crate::table::number;
use crate::world::{PEER, in_namespaces, ms, wait_until};

/// Files and sockets that may be open beyond those of the first connection, for a moment.
const OPEN_MORE_MAX: usize = 4;

fn asked() -> Asked {
    Asked { delay: ms(120), direction: Direction::Egress, port: TARGETED, ttl: Duration::from_secs(3) }
}

#[test]
#[ignore = "needs user namespaces"]
fn commands_that_come_twice_or_after_a_restart_have_no_effect() {
    in_namespaces("quiet::commands_that_come_twice_or_after_a_restart_have_no_effect", |world| {
        world.echoes(PEER, TARGETED);
        let mut control = ControlPlane::start(world.folder.path(), true);
        let mut host = Host::start(&world, &control);
        let probes = Probes::start(&world);
        control.grant("one", &asked());
        let (_, granted) = control.wait_for("its own grant", 0, |line| line.starts_with("granted "));
        let granted: u64 = granted.strip_prefix("granted ").unwrap().parse().unwrap();
        control.wait_until_up("one");
        std::thread::sleep(ms(1_500));
        let ended = control.end("one");
        control.wait_for_story("one", |story| story.at == Chapter::Over);
        // The same again, and under another name; then what an agent without memory would take for news.
        control.raw(&asked().grant(granted, "one"));
        control.raw(&asked().grant(granted, "other"));
        std::thread::sleep(ms(500));
        let said = control.said();
        host.kill();
        host.restart();
        control.wait_for("the agent again", said, |line| line.starts_with("connected "));
        let restarted = control.said();
        for lease in ["one", "other", "third"] {
            control.raw(&asked().grant(granted, lease));
        }
        control.raw(&ToAgent::Renew { number: granted + 1, lease: "one".to_owned(), ttl_ms: 1_000, peers: None });
        std::thread::sleep(ms(700));
        let probes = probes.stop();

        let lines = control.all();
        let stories = |lease: &str| {
            let of = |line: &String| match heard(line) {
                Some(FromAgent::Story(story)) if story.lease == lease => Some(story.at),
                _ => None,
            };
            lines.iter().filter_map(of).collect::<Vec<_>>()
        };
        // In the second of the connections nothing is known of it any more.
        assert_eq!(stories("one"), [Chapter::Applying, Chapter::Up, Chapter::Over]);
        assert_eq!((stories("other"), stories("third")), (vec![], vec![]));
        assert_eq!(control.answer_to(granted), Answered::Granted);
        let refusals = lines[restarted..].iter().filter_map(|line| match heard(line) {
            Some(FromAgent::Answer { answer: Answered::Refused { why }, .. }) => Some(why),
            _ => None,
        });
        let refusals: Vec<String> = refusals.collect();
        // Four commands, each sent twice.
        assert_eq!(refusals, vec!["the command is older than those that are remembered"; 8]);
        let is_slow = |probe: &&crate::probe::Probe| probe.is_slow(asked().longer());
        assert!(probes.iter().filter(|probe| probe.sent < ended).filter(is_slow).count() > 100);
        let late = ended + 500_000_000;
        assert_eq!(probes.iter().filter(|probe| probe.sent > late).filter(is_slow).count(), 0);
        host.end();
        host.await_nothing_left();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn connections_that_come_and_go_leak_nothing() {
    in_namespaces("quiet::connections_that_come_and_go_leak_nothing", |world| {
        let mut control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        std::thread::sleep(ms(200));
        let (open, tasks, memory) = (host.open_files(), host.tasks(), host.resident_kb());
        // The agent waits for a quarter of a second before it dials again, so 1,000 take five minutes.
        let times = number("TROOP_RECONNECTS", 20);
        for _ in 0..times {
            let said = control.said();
            control.hang_up();
            control.wait_for("the agent again", said, |line| line.starts_with("connected "));
        }
        wait_until("closed connections", || host.open_files() <= open + OPEN_MORE_MAX);
        let (open_then, tasks_then, memory_then) = (host.open_files(), host.tasks(), host.resident_kb());
        println!(
            "{times} connections: {open} then {open_then} open files, {tasks} then {tasks_then} threads, {memory} then {memory_then} KB"
        );
        assert!(tasks_then <= tasks);
        assert!(memory_then < memory + 2_000);
        host.end();
    });
}

#[test]
#[ignore = "needs user namespaces"]
fn an_idle_agent_costs_nothing_worth_measuring() {
    in_namespaces("quiet::an_idle_agent_costs_nothing_worth_measuring", |world| {
        let control = ControlPlane::start(world.folder.path(), false);
        let mut host = Host::start(&world, &control);
        // What it does once, after it has connected.
        std::thread::sleep(ms(500));
        let (before, began) = (host.wake_ups(), nanos());
        std::thread::sleep(Duration::from_secs(10));
        let wake_ups = host.wake_ups() - before;
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let per_second = wake_ups as f64 * 1e9 / (nanos() - began) as f64;
        let (memory, tasks) = (host.resident_kb(), host.tasks());
        println!("idle for 10 s, connected: {per_second:.2} wake-ups/s, {memory} KB resident, {tasks} threads");
        assert!(per_second < 1.0, "{per_second} wake-ups/s");
        // An unoptimised program is half as large again.
        let is_release = !cfg!(debug_assertions) || std::env::var_os("TROOP_TRIALS_AGENT").is_some();
        assert!(!is_release || memory < 8 * 1_024, "{memory} KB");
        host.end();
    });
}
