//! Where what is logged goes: standard error, which is a terminal for a person's commands and a file of STATE/logs for
//! the processes that a supervisor starts.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Logs what is worth waking somebody, for commands of a person, whose terminal this is. `RUST_LOG` says otherwise.
pub fn for_a_person() {
    begin(LevelFilter::WARN, io::stderr().is_terminal());
}

/// Logs every change of the world, for a process with a log of its own. `RUST_LOG` says otherwise.
pub fn for_a_log() {
    begin(LevelFilter::INFO, false);
}

fn begin(level: LevelFilter, colours: bool) {
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Whoever was first stands; a second beginning is a test's.
    let _already = subscriber.try_init();
}
