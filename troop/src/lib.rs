//! The control plane, the command line, the embedded cloud's supervisor and the demo, behind the binary `troop`.
//!
//! This is the only crate that joins the others: it reads the wall clock ([`clock`]), saves what the pure parts decide,
//! and carries it out. Layers and arrows are in docs/architecture.md.

pub mod api;
pub mod clock;
pub mod records;
pub mod state;
