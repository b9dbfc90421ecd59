//! The agent's command line: of the thin binary `troop-agent`, and of `troop agent`.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use troop_policies::chain;

use crate::agent::{self, AgentError, Setup};
use crate::bench;
use crate::config::{ConfigError, DEFAULT_PATH, HostPolicy};
use crate::guardian;
use crate::join::{Join, JoinError};
use crate::undo::Undone;

/// Where the agent keeps its journal unless said otherwise: gone with the boot, as its faults are.
const STATE: &str = "/run/troop-agent";
/// How the guardian is asked for.
const GUARDIAN: &str = "guardian";
/// Exit codes, as `troop` has them: the input is wrong; it could not be asked; something is left.
const INPUT: u8 = 1;
const UNAVAILABLE: u8 = 4;
const LEFT: u8 = 6;

/// Puts faults upon this host's packets when its control plane asks for it, and takes them away again.
#[derive(Debug, Parser)]
#[command(name = "troop-agent", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the control plane until SIGTERM
    Run(RunArgs),
    /// Undo whatever an agent has left on this host, without any control plane
    Heal {
        /// The agent's folder
        #[arg(long, default_value = STATE)]
        state: PathBuf,
    },
    /// Say what this host can do, and what its agent.toml allows
    Probe {
        /// The host's own policy
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Measure what this host's plane costs and how exact it is, in network namespaces made for it
    Bench(bench::Args),
    /// A part of a bench (started by the bench itself)
    #[command(hide = true)]
    BenchPart(bench::PartArgs),
    /// Watch an agent and undo what it leaves (started by the agent itself)
    #[command(hide = true)]
    Guardian { agent: i32, journal: PathBuf },
}

/// What is not said here stands in agent.toml, in the tables `control_plane` and `identity`.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// The control plane: unix:PATH or https://HOST:PORT
    #[arg(long)]
    to: Option<String>,
    /// account/region/instance, as the cloud names this host
    #[arg(long)]
    instance: Option<String>,
    /// A file with the token that shows who this is, which nobody else may read
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Certificates to trust beside none of this machine's
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// The agent's folder
    #[arg(long, default_value = STATE)]
    state: PathBuf,
    /// The host's own policy
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
}

/// Why an agent is not started.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("could not find this program")]
    Program(#[source] io::Error),
}

impl SetupError {
    fn hint(&self) -> &'static str {
        match self {
            Self::Config(e) => e.hint(),
            Self::Join(e) => e.hint(),
            Self::Program(_) => "is /proc mounted?",
        }
    }
}

/// Runs it. `before`: the words in front of an agent's command, such as `agent` of `troop agent`.
pub fn main(args: impl Iterator<Item = OsString>, before: &[&str]) -> ExitCode {
    let args = match Args::try_parse_from(std::iter::once(OsString::from("troop-agent")).chain(args)) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    match args.command {
        Command::Run(args) => match setup(args, before).map(run) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(error)) => complain(&chain(&error), error.hint(), UNAVAILABLE),
            Err(error) => complain(&chain(&error), error.hint(), INPUT),
        },
        Command::Heal { state } => heal(&state),
        Command::Probe { config } => probe(&config),
        Command::Bench(args) => measured(bench::run(args, before)),
        Command::BenchPart(args) => measured(bench::part(args, before)),
        Command::Guardian { agent, journal } => match guardian::run(agent, &journal) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&chain(&error), "`troop-agent heal` undoes the rest", LEFT),
        },
    }
}

fn setup(args: RunArgs, before: &[&str]) -> Result<Setup, SetupError> {
    let RunArgs { to, instance, token_file, ca_file, state, config } = args;
    let (_, join) = HostPolicy::read_with_join(&config)?;
    let over = Join { url: to, ca_file, token_file, instance, ..Join::default() };
    let joining = join.under(over).complete()?;
    let program = std::env::current_exe().map_err(SetupError::Program)?;
    let words = before.iter().copied().chain([GUARDIAN]).map(str::to_owned).collect();
    Ok(Setup { joining, state, config, guardian: (program, words) })
}

/// Logs every change of the host to standard error; `RUST_LOG` may name another level.
fn log() {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(false);
    // Whoever was first stands; a second beginning is a test's.
    let _already = subscriber.try_init();
}

fn run(setup: Setup) -> Result<(), AgentError> {
    log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| AgentError::System("start a runtime", e))?;
    runtime.block_on(agent::run(setup))
}

fn heal(state: &Path) -> ExitCode {
    let report = match agent::heal(state) {
        Ok(report) => report,
        Err(error) => return complain(&chain(&error), error.hint(), UNAVAILABLE),
    };
    for (lease, change, undone) in &report.undone {
        let word = match undone {
            Undone::Removed => "removed",
            Undone::Absent => "was gone already",
            Undone::NotOurs => "is not ours any more: left alone",
        };
        say(&format!("{lease}: {change} {word}"));
    }
    for (lease, change, error) in &report.failed {
        say(&format!("{lease}: {change} STAYS: {}", chain(error)));
    }
    match (report.undone.is_empty(), report.failed.is_empty()) {
        (_, false) => {
            complain("not everything could be undone", "run it again as root, in the agent's network namespace", LEFT)
        }
        (true, true) => {
            say("nothing to undo");
            ExitCode::SUCCESS
        }
        (false, true) => ExitCode::SUCCESS,
    }
}

fn probe(config: &Path) -> ExitCode {
    let policy = match HostPolicy::read(config) {
        Ok(policy) => policy,
        Err(error) => return complain(&chain(&error), error.hint(), INPUT),
    };
    let found = crate::planes::available(&policy);
    let capabilities = agent::capabilities(&found.planes, found.lacks, &policy);
    match serde_json::to_string_pretty(&capabilities) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error.to_string(), "this is a mistake of ours", 70),
    }
}

fn measured(done: bench::Done) -> ExitCode {
    match done {
        Ok((text, code)) => {
            text.iter().for_each(|text| say(text));
            code
        }
        Err(error) => complain(&chain(&error), error.hint(), UNAVAILABLE),
    }
}

fn say(text: &str) {
    // Nobody is left to be told that nobody reads.
    drop(writeln!(io::stdout().lock(), "{text}"));
}

fn complain(what: &str, hint: &str, code: u8) -> ExitCode {
    drop(writeln!(io::stderr().lock(), "error: {what}\nhint: {hint}"));
    ExitCode::from(code)
}
