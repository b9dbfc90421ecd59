//! What the control plane takes from the process around it: time, chance, tasks, the halt, the word of hold signals,
//! and the way to channels.
//!
//! There is one of it in the binary, [`Process`]. A simulation brings another, in which time is virtual, chance is
//! seeded, and a crash takes every task along.

use std::fmt;
use std::path::PathBuf;

use futures::future::BoxFuture;
use jiff::Timestamp;
use troop_policies::situation::{Halted, HoldsSeen, Reading};

use super::holds::Holds;
use crate::ask::{Asker, Post, Posted};
use crate::clock;
use crate::state::{self, StateError};

/// See the module.
pub trait Host: Send + Sync + fmt::Debug {
    /// Real time.
    fn now(&self) -> Timestamp;

    /// Milliseconds since boot, which no step of the wall clock moves.
    fn boot_ms(&self) -> i64;

    /// 128 random bits.
    ///
    /// # Errors
    /// When there are none to be had; then nothing may be done.
    fn random(&self) -> Result<[u8; 16], String>;

    /// Runs a task that goes on when whoever asked for it goes away.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Asks hold signals. One that cannot be asked says why, which spares.
    fn ask_holds(&self, signals: Vec<String>) -> BoxFuture<'_, HoldsSeen>;

    /// Posts a notice to a channel. Whatever is answered is an answer; the error is why there is none.
    fn post(&self, post: Post) -> BoxFuture<'_, Reading<Posted>>;

    /// The halt, read anew. Present or unreadable means halted.
    ///
    /// # Errors
    /// Why it cannot be read, which is a halt as well.
    fn halt(&self) -> Result<Option<Halted>, String>;

    /// # Errors
    /// When it cannot be kept: then nothing is halted.
    fn set_halt(&self, halted: &Halted) -> Result<(), StateError>;

    /// # Errors
    /// When it cannot be ended: then it stands.
    fn end_halt(&self) -> Result<(), StateError>;
}

/// The process that the binary runs in.
#[derive(Debug)]
pub struct Process {
    pub halt_file: PathBuf,
    pub holds: Holds,
    /// How channels are reached.
    pub asker: Asker,
}

/// 128 random bits of the system's.
///
/// # Errors
/// When it has none.
pub fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(|e| e.to_string())?;
    Ok(bytes)
}

impl Host for Process {
    fn now(&self) -> Timestamp {
        clock::real_now()
    }

    fn boot_ms(&self) -> i64 {
        clock::boot_ms()
    }

    fn random(&self) -> Result<[u8; 16], String> {
        random()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn ask_holds(&self, signals: Vec<String>) -> BoxFuture<'_, HoldsSeen> {
        Box::pin(async move { self.holds.ask(signals.iter().map(String::as_str)).await })
    }

    fn post(&self, post: Post) -> BoxFuture<'_, Reading<Posted>> {
        Box::pin(self.asker.post(post))
    }

    fn halt(&self) -> Result<Option<Halted>, String> {
        state::read_halt(&self.halt_file)
    }

    fn set_halt(&self, halted: &Halted) -> Result<(), StateError> {
        state::write_halt(&self.halt_file, halted)
    }

    fn end_halt(&self) -> Result<(), StateError> {
        state::remove_halt(&self.halt_file)
    }
}
