//! Troop on AWS, against moto (a double of AWS from PyPI, a process of its own) through a proxy of ours.
//!
//! `TROOP_TEST_MOTO` names moto's `moto_server`; without it, one on the path is taken.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

mod contract;
mod faults;
mod inventory;
mod moto;
mod names;
mod permissions;
mod planned;
mod proxy;
mod stage;
mod user;
