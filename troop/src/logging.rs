//! Where what is logged goes: standard error, which is a terminal for a person's commands and a file of STATE/logs for
//! the processes that a supervisor starts.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The part of AWS's SDK that looks for credentials.
const CREDENTIALS: &str = "aws_config";

/// Logs what is worth waking somebody, for commands of a person, whose terminal this is. `RUST_LOG` says otherwise.
pub fn for_a_person() {
    begin(LevelFilter::WARN, io::stderr().is_terminal());
}

/// Logs every change of the world, for a process with a log of its own. `RUST_LOG` says otherwise.
pub fn for_a_log() {
    begin(LevelFilter::INFO, false);
}

fn begin(level: LevelFilter, colours: bool) {
    let mut filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    // Without credentials it complains at every call, a thousand characters each time; the call's own error says it once, in our words.
    let is_asked_for = std::env::var(EnvFilter::DEFAULT_ENV).is_ok_and(|asked| asked.contains(CREDENTIALS));
    if let (false, Ok(quiet)) = (is_asked_for, format!("{CREDENTIALS}=error").parse()) {
        filter = filter.add_directive(quiet);
    }
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Whoever was first stands; a second beginning is a test's.
    let _already = subscriber.try_init();
}
