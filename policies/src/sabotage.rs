//! Saboteurs: each takes away exactly one guard, so that the simulation can show that the guard is needed.
//!
//! They exist only in a build with `--cfg troop_sabotage`, where one is chosen by name for the present thread. In every
//! other build [`sabotaged!`](crate::sabotaged) is `false` before anything is compiled, and no name is left in a binary.

#[cfg(troop_sabotage)]
mod chosen {
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Lets one saboteur loose on this thread, or none.
    pub fn choose(name: Option<&'static str>) {
        CHOSEN.set(name);
    }

    /// Whether this saboteur is at work here.
    pub fn is(name: &str) -> bool {
        CHOSEN.get() == Some(name)
    }
}

#[cfg(troop_sabotage)]
pub use chosen::{choose, is};

/// Whether the saboteur of this name is at work. Always `false` but in a build for sabotage.
#[macro_export]
macro_rules! sabotaged {
    ($name:literal) => {{
        #[cfg(troop_sabotage)]
        let at_work = $crate::sabotage::is($name);
        #[cfg(not(troop_sabotage))]
        let at_work = false;
        at_work
    }};
}
