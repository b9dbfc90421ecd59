//! Push and roll back: one deployment of one cluster as a saved state machine.
//!
//! Pure. [`start`] makes a [`push::Push`] from what is asked and seen; [`machine::next`] says, for one look at the world,
//! the one thing to do now; [`machine::settled`] takes the outcome in. The caller saves the push with every intent and
//! every outcome, so that a crash anywhere resumes where it was. [`ready`] holds the checks of "ready" (invariant I4),
//! [`judge`] the verdict of soak and watch.
//!
//! **Invariant:** nothing here saves, carries out, or reads the time.

pub mod judge;
pub mod machine;
pub mod push;
pub mod ready;
pub mod rollback;
pub mod script;
mod settle;
pub mod start;
#[cfg(test)]
mod tests;
