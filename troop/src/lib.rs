//! The control plane, the command line, the embedded cloud's supervisor and the demo, behind the binary `troop`.
//!
//! This is the only crate that joins the others: it reads the wall clock ([`clock`]), saves what the pure parts decide,
//! and carries it out. Layers and arrows are in docs/architecture.md.

pub mod accounts;
pub mod agents;
pub mod api;
pub mod ask;
pub mod bench;
pub mod cli;
pub mod client;
pub mod clock;
pub mod demo;
pub mod exit;
pub mod load;
pub mod logging;
pub mod outside;
mod policy_text;
pub mod records;
pub mod sample_app;
pub mod serve;
pub mod site;
pub mod state;
pub mod supervisor;
pub mod tls;
pub mod ui;
pub mod views;
pub mod world;
