//! The control plane's HTTP/JSON API, `/api/v1`, on STATE/run/control.sock.

#[cfg(any(feature = "fuzzing", test))]
pub mod fuzz;
pub(crate) mod limits;
pub mod peer;
pub mod router;
#[cfg(test)]
mod strangers;
pub mod types;
