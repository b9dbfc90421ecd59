//! The kernel plane on a real netem. Needs a kernel that has one: `tests/vm/run` runs this in UML, where the plane has filters
//! only, and in QEMU, where it has nftables. Anywhere else every test here says that it was skipped, and passes.
//!
//! Times are of virtual machines on a busy host: what is asserted has slack, and only medians are looked at.

#![expect(clippy::disallowed_methods, reason = "these are measurements")]
#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]
#![expect(clippy::print_stderr, reason = "what was measured is the result")]

mod effects;
mod endings;
mod orders;
mod reach;
mod stage;

use std::sync::{Mutex, MutexGuard, OnceLock};

use orders::ordered;
use stage::{Stage, assert_same};
use troop_agent::plane::Plane as _;
use troop_agent::plane::kernel::{Capability, Kernel, probe};
use troop_agent::undo::{Journal, Place};

/// Which virtual machine this is, if it is one.
fn machine() -> Option<&'static str> {
    static MACHINE: OnceLock<Option<String>> = OnceLock::new();
    MACHINE.get_or_init(|| std::env::var("TROOP_VM").ok()).as_deref()
}

/// What a test needs, or `None` where it cannot run, which is said. One at a time: they measure.
fn ready(test: &str) -> Option<(MutexGuard<'static, ()>, Capability)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    static CAPABILITY: OnceLock<Capability> = OnceLock::new();
    let Some(machine) = machine() else {
        eprintln!("skipped: {test} needs a kernel with netem; `tests/vm/run` has two");
        return None;
    };
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let capability = CAPABILITY.get_or_init(probe).clone();
    assert_eq!(capability.netem, Ok(()), "{machine} was to have a netem");
    Some((guard, capability))
}

fn has_table(capability: &Capability) -> bool {
    capability.table.is_ok()
}

/// A plane and its journal, in the stage's namespace.
fn plane(stage: &Stage, capability: &Capability) -> (Kernel, Journal) {
    let journal = Journal::open(&stage.journal_folder(), Place::here().unwrap()).unwrap();
    (Kernel::new(capability).unwrap(), journal)
}

/// Sees the end of what healing has left.
fn tend(kernel: &mut Kernel, journal: &mut Journal) {
    while kernel.tend(journal).unwrap() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn the_machines_have_what_their_names_promise() {
    let Some((_guard, capability)) = ready("the probe") else { return };
    eprintln!("{}: {capability:?}", machine().unwrap());
    assert_eq!(capability.filters, Ok(()));
    assert_eq!(capability.prio, Ok(()));
    if machine() == Some("qemu") {
        assert_eq!(capability.table, Ok(()));
        assert_eq!(capability.hashing, Ok(()));
    } else {
        assert!(capability.table.is_err());
    }
}

#[test]
fn probing_leaves_nothing() {
    let Some((_guard, _)) = ready("the probe") else { return };
    let stage = Stage::new("probe");
    let before = stage.state();
    assert_eq!(probe().netem, Ok(()));
    assert_same(&stage.state(), &before);
}

#[test]
fn says_who_ends_a_fault() {
    use troop_agent::plane::By;
    let Some((_guard, capability)) = ready("the backing") else { return };
    let stage = Stage::new("back");
    let (kernel, _) = plane(&stage, &capability);
    let by = if has_table(&capability) { By::Kernel } else { By::Guardian };
    assert_eq!((kernel.backing().on_death, kernel.backing().on_hang), (by, by));
    assert!(kernel.can(&ordered("x").fault).is_ok());
}
