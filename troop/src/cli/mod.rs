//! The command line: from words to calls, and from answers to text and exit codes.
//!
//! A command asks the control plane over its socket. What must also be known while nothing runs is read from the ledger
//! and the files in STATE. Nothing here decides what may be done; the control plane does, and says why.

mod args;
mod aws;
mod bench;
mod context;
mod curl;
mod demand;
mod demo;
mod deploy;
#[cfg(feature = "aws")]
mod doctor;
mod explain;
mod fault_args;
mod follow;
mod forecast;
mod halt;
mod help;
mod history;
mod kill;
mod latency;
mod ledger;
mod list;
mod logs;
mod notify;
mod plan;
mod policy;
mod policy_files;
mod progress;
mod registry;
mod rows;
mod sample;
mod serve;
mod status;
mod stored;
mod up;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{FromArgMatches as _, Parser, Subcommand};

use self::context::Context;
use crate::exit::{CliError, Code};

/// Make failure happen all the time, on purpose, to the services whose teams opted in
#[derive(Debug, Parser)]
#[command(name = "troop", version, max_term_width = help::WIDTH, propagate_version = false)]
struct Cli {
    /// State folder; else $TROOP_STATE, else $XDG_STATE_HOME/troop, else ~/.local/state/troop
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Up(up::UpArgs),
    Serve(serve::ServeArgs),
    Registry(registry::RegistryArgs),
    SampleApp(sample::SampleArgs),
    Status(status::StatusArgs),
    Ps(list::PsArgs),
    Logs(logs::LogsArgs),
    Curl(curl::CurlArgs),
    Images(list::ImagesArgs),
    Deploy(deploy::DeployArgs),
    Rollback(deploy::RollbackArgs),
    Pushes(list::PushesArgs),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    Forecast(forecast::ForecastArgs),
    Plan(plan::PlanArgs),
    Explain(explain::ExplainArgs),
    History(history::HistoryArgs),
    Notify(notify::NotifyArgs),
    Kill(kill::KillArgs),
    Latency(Box<latency::LatencyArgs>),
    Agents(latency::AgentsArgs),
    Halt(halt::HaltArgs),
    Resume(halt::ResumeArgs),
    Clear(halt::ClearArgs),
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    #[command(subcommand)]
    Aws(aws::AwsCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs one command line, the program's name first. Ends the process itself only where a second Ctrl-C asks for it, or
/// where whoever reads our output went away.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let parsed = help::command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => {
            // Somebody who closed the pipe does not want the rest of the help either.
            let _printed = e.print();
            return if e.use_stderr() { Code::Usage.into() } else { Code::Ok.into() };
        }
    };
    match run(cli) {
        Ok(code) => code.into(),
        Err(e) => e.report(),
    }
}

fn run(cli: Cli) -> Result<Code, CliError> {
    let cx = Context::new(cli.state);
    match cli.command {
        Command::Demo(args) => demo::run(&cx, args),
        Command::Up(args) => up::run(&cx, args),
        Command::Serve(args) => serve::run(&cx, &args),
        Command::Registry(args) => registry::run(&cx, &args),
        Command::SampleApp(args) => sample::run(&args),
        Command::Status(args) => context::block_on(status::run(&cx, &args)),
        Command::Ps(args) => context::block_on(list::ps(&cx, &args)),
        Command::Logs(args) => context::block_on(logs::run(&cx, &args)),
        Command::Curl(args) => context::block_on(curl::run(&cx, &args)),
        Command::Images(args) => context::block_on(list::images(&cx, &args)),
        Command::Deploy(args) => context::block_on(deploy::deploy(&cx, args)),
        Command::Rollback(args) => context::block_on(deploy::rollback(&cx, args)),
        Command::Pushes(args) => context::block_on(list::pushes(&cx, &args)),
        Command::Policy(command) => policy::run(&cx, command),
        Command::Forecast(args) => forecast::run(&args),
        Command::Plan(args) => context::block_on(plan::run(&cx, &args)),
        Command::Explain(args) => context::block_on(explain::run(&cx, &args)),
        Command::History(args) => context::block_on(history::run(&cx, &args)),
        Command::Notify(args) => context::block_on(notify::run(&cx, args)),
        Command::Kill(args) => context::block_on(kill::run(&cx, args)),
        Command::Latency(args) => context::block_on(latency::run(&cx, *args)),
        Command::Agents(args) => context::block_on(latency::agents(&cx, &args)),
        Command::Halt(args) => context::block_on(halt::halt(&cx, &args)),
        Command::Resume(args) => context::block_on(halt::resume(&cx, &args)),
        Command::Clear(args) => context::block_on(halt::clear(&cx, &args)),
        Command::Aws(command) => aws::run(&cx, &command),
        Command::Ledger(command) => ledger::run(&cx, command),
        Command::Bench(command) => bench::run(command),
    }
}
