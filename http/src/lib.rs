//! How Troop's listeners bear with clients: how many may stay, for how long, and who leaves when somebody else comes.
//!
//! The balancer, the registry and the API serve HTTP/1.1 to programs that nobody here wrote. A client that says nothing,
//! whose head or body trickles in, or who does not take its answer, costs a place and does no work; ten thousand of
//! them must cost nobody else anything. So:
//! - every wait for a client has a limit ([`Limits`]), and
//! - when no place is left, those that have kept us waiting the longest are closed ([`Places`]). One that waits for
//!   *us* never is.
//!
//! [`serve`] is one connection under these rules, [`buffered`] gives a service small bodies whole.
//!
//! **Invariant:** this crate knows no path, no answer and no peer: what is said to a client is the service's business.

mod buffered;
mod client;
mod phase;
mod places;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use buffered::{Refused, buffered};
pub use client::{Ended, serve};
pub use phase::Phase;
pub use places::{Place, Places};

/// What one connection may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte of a request's head to its end.
    pub head_within: Duration,
    /// Most bytes of a head: request line and fields; one read more may pass. At least 8192, which is hyper's own least.
    pub head_bytes_max: usize,
    /// Most fields of a head.
    pub fields_max: usize,
    /// How long a connection may stay without a request.
    pub idle_for: Duration,
    /// How long a client may give nothing of a request's body, or take nothing of its answer.
    pub silent_for: Duration,
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
