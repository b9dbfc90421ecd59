//! One trial, in namespaces of its own: a fault, a cause, and what the traffic saw.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde::{Deserialize, Serialize};
use troop_agent_core::protocol::{Answered, Chapter};

use crate::cause::{Cause, Drawn, Phase, TTL};
use crate::control::ControlPlane;
use crate::host::{Host, Stream, pid};
use crate::probe::{Probe, Probes, TARGETED, nanos};
use crate::world::{PEER, World, in_namespaces, ms};

/// Says which trial is meant.
pub(crate) const SEED: &str = "TROOP_TEST_TRIAL";
/// Before the line that says what was found.
pub(crate) const MARK: &str = "@@ trial ";
/// A fault may outlive its lease by a second.
pub(crate) const GONE_MAX: Duration = Duration::from_secs(2);

/// Probes of the other port that may meet a machine standing still: 50 ms of them.
const STALLED_MAX: usize = 10;

/// Leases that are tried in turn: on a busy machine a fault may not come up within a second, and must then not come up at all.
const LEASES: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];

/// What a trial found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) cause: String,
    pub(crate) phase: String,
    pub(crate) had_guardian: bool,
    /// Whether the fault was seen after the cause.
    pub(crate) was_up: bool,
    /// From the cause to the first probe that went out after all delayed ones.
    pub(crate) gone_us: u64,
    pub(crate) slow_before: usize,
    pub(crate) longest_untouched_us: u64,
}

/// Not a test but what [`crate::table`] runs.
#[test]
#[ignore = "needs user namespaces"]
fn one_trial() {
    let Some(seed) = std::env::var_os(SEED) else { return };
    let drawn = Drawn::of(seed.to_str().unwrap().parse().unwrap());
    in_namespaces("trial::one_trial", move |world| {
        let found = run(&world, &drawn);
        println!("{MARK}{}", serde_json::to_string(&found).unwrap());
    });
}

fn run(world: &World, drawn: &Drawn) -> Found {
    world.echoes(PEER, TARGETED);
    let mut control = ControlPlane::start(world.folder.path(), false);
    let mut host = Host::start(world, &control);
    let stream = Stream::start();
    let probes = Probes::start(world);
    let reached = reach(drawn, &mut control);
    std::thread::sleep(drawn.after);

    let (at, had_guardian) = befall(drawn, &mut control, &mut host);
    if drawn.phase == Phase::BeforeGrant && drawn.cause == Cause::HaltFile {
        control.grant(LEASES[0], &drawn.asked);
    }
    std::thread::sleep(GONE_MAX.saturating_sub(Duration::from_nanos(nanos() - at)) + ms(200));

    let is_dead = matches!(drawn.cause, Cause::Agent | Cause::Guardian | Cause::Both);
    if is_dead && drawn.restarts {
        let said = control.said();
        host.restart();
        control.wait_for("the agent again", said, |line| line.starts_with("connected "));
    } else if is_dead {
        assert!(host.heal().wait().unwrap().success());
    }
    host.await_nothing_left();
    std::thread::sleep(ms(300));
    let probes = probes.stop();
    assert!(stream.stop(), "the established connection broke");
    if !(is_dead && !drawn.restarts || drawn.cause == Cause::Term) {
        host.end();
        host.await_nothing_left();
    }
    judge(drawn, &probes, at, reached, had_guardian)
}

/// Grants, and waits until the fault is as far as the trial wants it. `false`: none came up.
fn reach(drawn: &Drawn, control: &mut ControlPlane) -> bool {
    if drawn.phase == Phase::BeforeGrant {
        return true;
    }
    for lease in LEASES {
        let said = control.said();
        control.grant(lease, &drawn.asked);
        let (_, granted) = control.wait_for("its own grant", said, |line| line.starts_with("granted "));
        // A host that is frozen before it has heard of it would take it for news when it is thawed.
        let answer = control.answer_to(granted.strip_prefix("granted ").unwrap().parse().unwrap());
        assert_eq!(answer, Answered::Granted);
        match drawn.phase {
            Phase::BeforeGrant | Phase::Baseline => return true,
            Phase::Applying => {
                control.wait_for_story(lease, |story| story.at >= Chapter::Applying);
                return true;
            }
            Phase::Up | Phase::Healing => {}
        }
        let story = control.wait_for_story(lease, |story| matches!(story.at, Chapter::Up | Chapter::Over));
        if story.at == Chapter::Up {
            if drawn.phase == Phase::Healing {
                control.end(lease);
            }
            return true;
        }
        println!("it did not come up: {story:?}");
    }
    false
}

/// Lets it happen. When, and whether there was a guardian.
fn befall(drawn: &Drawn, control: &mut ControlPlane, host: &mut Host) -> (u64, bool) {
    let guardian = host.guardian();
    let mut at = nanos();
    // It may have been dismissed since it was seen.
    let to_guardian = |signal| guardian.map(|pid| kill(pid, signal));
    match drawn.cause {
        Cause::Agent => host.kill(),
        Cause::Guardian => {
            if to_guardian(Signal::SIGKILL).is_some() {
                std::thread::sleep(drawn.between);
                at = nanos();
            }
            host.kill();
        }
        Cause::Both => {
            to_guardian(Signal::SIGKILL);
            host.kill();
        }
        Cause::ControlPlane => {
            control.child.kill().unwrap();
            control.child.wait().unwrap();
        }
        Cause::Connection => kill(pid(&control.child), Signal::SIGSTOP).unwrap(),
        Cause::Host => {
            host.signal(Signal::SIGSTOP);
            to_guardian(Signal::SIGSTOP);
            std::thread::sleep(drawn.frozen);
            host.signal(Signal::SIGCONT);
            to_guardian(Signal::SIGCONT);
        }
        Cause::HaltFile => host.halt(),
        Cause::HandHeal => assert!(host.heal().wait().unwrap().success()),
        Cause::Term => host.end(),
    }
    (at, guardian.is_some())
}

fn judge(drawn: &Drawn, probes: &[Probe], at: u64, reached: bool, had_guardian: bool) -> Found {
    let longer = drawn.asked.longer();
    let is_slow = |probe: &&Probe| probe.is_slow(longer);
    let after: Vec<&Probe> = probes.iter().filter(|probe| probe.sent >= at).collect();
    let first_slow = after.iter().position(is_slow);
    let first_gone = after.iter().rposition(is_slow).map_or(0, |last| last + 1);
    let gone = Duration::from_nanos(after.get(first_gone).expect("probes to the end").sent - at);
    let untouched = probes.iter().map(|probe| probe.untouched().expect("none of the other port is lost"));
    let longest_untouched = untouched.max().unwrap();
    // However slow this machine is itself.
    let took_longer = |probe: &&Probe| probe.targeted().is_none_or(|took| took >= longer);
    let slow_before = probes.iter().filter(|probe| probe.sent < at).filter(took_longer).count();
    println!("{drawn:?}: gone after {gone:?}, the other port's longest {longest_untouched:?}");
    if reached && matches!(drawn.phase, Phase::Up | Phase::Healing) {
        assert!(slow_before > 0, "the fault was not seen at all");
    }
    // A machine that stands still for a tenth of a second does so to a few; a fault would have it for as long as it is up.
    let untouched_slow = probes.iter().filter(|probe| probe.untouched().is_some_and(|took| took >= longer / 2)).count();
    assert!(untouched_slow < STALLED_MAX, "the other port waited {untouched_slow} times, {longest_untouched:?}");
    assert!(gone <= TTL + Duration::from_secs(1), "gone only after {gone:?}");
    if drawn.phase == Phase::BeforeGrant {
        assert_eq!(first_slow, None, "a fault that was never granted");
    }
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap();
    Found {
        cause: drawn.cause.to_string(),
        phase: if reached { format!("{:?}", drawn.phase) } else { "NotUp".to_owned() },
        had_guardian,
        was_up: first_slow.is_some(),
        gone_us: if first_slow.is_some() { micros(gone) } else { 0 },
        slow_before,
        longest_untouched_us: micros(longest_untouched),
    }
}
