//! The binary: one file for the sandbox's helpers, the roles in it, and the command line.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use troop::supervisor::roles::{self, ROLE};
use troop::{cli, clock, logging};
use troop_cloud::local::agents::AGENT;
use troop_cloud::local::{INTERNAL, internal_main};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before any runtime and any thread: the kernel gives a user namespace to no process with threads.
    match args.get(1).and_then(|first| first.to_str()) {
        Some(INTERNAL) => {
            logging::for_a_log();
            internal_main(&args[2..], Arc::new(clock::real_now))
        }
        Some(ROLE) => roles::main(&args[2..]),
        Some(AGENT) => {
            logging::for_a_log();
            troop_agent::cli::main(args.into_iter().skip(2), &[AGENT])
        }
        Some(_) | None => cli::main(args.into_iter()),
    }
}
