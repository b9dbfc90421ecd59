//! The thin binary: everything is in the library, which `troop` links too.

use std::process::ExitCode;

fn main() -> ExitCode {
    troop_agent::cli::main(std::env::args_os().skip(1), &[])
}
