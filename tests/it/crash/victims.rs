//! Who is killed, and what must hold after: whoever lives on is the same process as before; or nothing of ours is left.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Dice;
use super::processes::{self, Process};
use crate::stage::{Up, interfaces, left_over, until};

/// A killed role is back after its pause of 100 ms; the rest is a busy machine's.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// By when nothing is left; the kernel takes some time to end a namespace.
const GONE_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Nobody,
    Serve,
    Supervisor,
    FirstProcess,
    Instance,
    BalancerWorker,
    Registry,
    AllAtOnce,
}

pub(crate) const VICTIMS: [Victim; 8] = [
    Victim::Nobody,
    Victim::Serve,
    Victim::Supervisor,
    Victim::FirstProcess,
    Victim::Instance,
    Victim::BalancerWorker,
    Victim::Registry,
    Victim::AllAtOnce,
];

impl Victim {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Serve => "serve",
            Self::Supervisor => "supervisor",
            Self::FirstProcess => "first process",
            Self::Instance => "instance",
            Self::BalancerWorker => "balancer worker",
            Self::Registry => "registry",
            Self::AllAtOnce => "all at once",
        }
    }

    /// Whether everything of ours ends with it.
    pub(crate) fn takes_all_along(self) -> bool {
        match self {
            Self::Supervisor | Self::FirstProcess | Self::AllAtOnce => true,
            Self::Nobody | Self::Serve | Self::Instance | Self::BalancerWorker | Self::Registry => false,
        }
    }

    /// Whether requests may fail at the moment of its end, because they were in its hands.
    pub(crate) fn holds_requests(self) -> bool {
        match self {
            Self::Instance | Self::BalancerWorker | Self::Supervisor | Self::FirstProcess | Self::AllAtOnce => true,
            Self::Nobody | Self::Serve | Self::Registry => false,
        }
    }
}

const ROLES: [&str; 3] = ["serve", "registry", "balancer"];

fn role(up: &Up, role: &str) -> BTreeSet<Process> {
    up.role_pids(role).into_iter().filter_map(processes::find).collect()
}

/// The first processes of instances: by their ids, which their arguments hold.
pub(crate) fn instance_processes(up: &Up) -> Vec<Process> {
    let is_one = |process: &Process| process.args.iter().any(|word| word == "instance-init" || word == "keeper");
    processes::tree(up.pid()).into_iter().filter(is_one).collect()
}

/// Kills one whose end others outlive; returns once it is replaced. Everybody else must be who they were.
///
/// The answer says whom, for the table.
pub(crate) fn kill_one(up: &mut Up, victim: Victim, dice: &mut Dice) -> String {
    let first = i32::try_from(up.info()["cloud_pid"].as_i64().unwrap()).unwrap();
    let first = processes::find(first).unwrap();
    let of = match victim {
        Victim::Serve => "serve",
        Victim::Registry => "registry",
        Victim::BalancerWorker => "balancer",
        Victim::Instance => "",
        Victim::Nobody | Victim::Supervisor | Victim::FirstProcess | Victim::AllAtOnce => {
            panic!("{victim:?} is killed elsewhere, or not at all")
        }
    };
    let before = ROLES.map(|name| role(up, name));
    assert!(before.iter().all(|all| !all.is_empty()), "{before:?}");
    let whom: Vec<Process> = if of.is_empty() { instance_processes(up) } else { role(up, of).into_iter().collect() };
    let mut whom = whom[dice.below(whom.len())].clone();
    if of.is_empty() && dice.below(2) == 0 {
        // Its command instead, where it has booted: the instance ends by itself.
        let children = processes::tree(whom.pid);
        whom = children.into_iter().find(|p| p.parent == whom.pid).unwrap_or(whom);
    }
    let what = format!("pid {} `{}`", whom.pid, whom.args.iter().take(3).cloned().collect::<Vec<_>>().join(" "));
    whom.signal(Signal::SIGKILL);
    until(&format!("{what} is gone"), BACK_WITHIN, || (!whom.lives()).then_some(()));
    if !of.is_empty() {
        until(&format!("{of} is there again"), BACK_WITHIN, || {
            let now = role(up, of);
            (now.len() == role_count(of) && !now.contains(&whom)).then_some(())
        });
    }
    for (name, old) in ROLES.into_iter().zip(before) {
        let lost: Vec<&Process> = old.iter().filter(|process| **process != whom && !process.lives()).collect();
        assert!(lost.is_empty(), "{what} was killed, and {name} died of it: {lost:?}");
    }
    assert!(first.lives(), "{what} was killed, and the sandbox's first process died of it");
    assert_eq!(up.child.try_wait().unwrap(), None, "{what} was killed, and the supervisor died of it");
    what
}

fn role_count(role: &str) -> usize {
    if role == "balancer" { 2 } else { 1 }
}

/// Kills one who takes everything along, or all of it; returns once nothing of ours is left on this machine but the command
/// `typed`, which may wait for the control plane to come back.
pub(crate) fn kill_all(up: &mut Up, victim: Victim, host: &BTreeSet<String>, typed: &Child) {
    let tree = processes::tree(up.pid());
    let spaces = processes::own_spaces(&tree);
    let first = up.info()["cloud_pid"].as_i64().unwrap();
    match victim {
        Victim::Supervisor => signal(&tree, Signal::SIGKILL, |process| process.pid == up.pid()),
        Victim::FirstProcess => signal(&tree, Signal::SIGKILL, |process| i64::from(process.pid) == first),
        Victim::AllAtOnce => {
            // Nobody shall be quick enough to end what another leaves.
            signal(&tree, Signal::SIGSTOP, |_| true);
            signal(&tree, Signal::SIGKILL, |_| true);
        }
        Victim::Nobody | Victim::Serve | Victim::Instance | Victim::BalancerWorker | Victim::Registry => {
            panic!("{victim:?} does not take everything along")
        }
    }
    let status = until("the supervisor is gone", GONE_WITHIN, || up.child.try_wait().unwrap());
    assert!(!status.success(), "{victim:?} was killed: {status}");
    if victim == Victim::FirstProcess {
        let log = std::fs::read_to_string(up.state.join("up.log")).unwrap();
        assert!(log.contains("the sandbox's first process ended"), "{log}");
    }
    nothing_lives(&up.state, &tree, &spaces, host, Some(typed.id()));
}

fn signal(tree: &BTreeSet<Process>, signal: Signal, which: impl Fn(&Process) -> bool) {
    tree.iter().filter(|process| which(process)).for_each(|process| process.signal(signal));
}

/// Waits until no process but `except`, no namespace, mount or interface of ours is left.
pub(crate) fn nothing_lives(
    state: &Path,
    tree: &BTreeSet<Process>,
    spaces: &BTreeSet<String>,
    host: &BTreeSet<String>,
    except: Option<u32>,
) {
    let except = except.map(|pid| format!("process {pid}:"));
    let now = processes::ticks() + 1;
    let mut left = Vec::new();
    let began = tokio::time::Instant::now();
    loop {
        left.clear();
        let alive = tree.iter().filter(|process| process.lives());
        left.extend(alive.map(|process| format!("process {} `{}`", process.pid, process.args.join(" "))));
        let is_other = |line: &String| except.as_ref().is_none_or(|except| !line.starts_with(except));
        left.extend(left_over(state).into_iter().filter(is_other));
        left.extend(processes::holders(spaces, now));
        left.extend(interfaces().difference(host).map(|name| format!("interface {name}")));
        if left.is_empty() {
            return;
        }
        assert!(began.elapsed() < GONE_WITHIN, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
