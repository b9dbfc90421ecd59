//! `troop-agent bench`: what the plane that this host has costs, and how exact it is, measured on the machine in front of you.
//!
//! The plane is the one that the agent uses, set up through the same trait, between a host and a peer in network namespaces that are
//! thrown away (`stage`); a process of its own makes them (`spaces`). What is compared is measured in one run, turn by turn, and
//! told as a ratio of the same round: figures of two machines, or of two minutes on one, say little beside each other.
//! docs/performance.md says what was seen.

mod args;
mod delay;
pub mod figures;
mod flows;
mod goals;
mod idle;
pub mod machine;
mod memory;
mod packets;
mod peers;
mod pings;
pub mod process;
mod report;
mod rtt;
mod spaces;
mod stage;
mod text;
mod throughput;
mod under;

use std::io;
use std::process::{ExitCode, Stdio};

pub use args::{Args, PartArgs};
use args::{Format, Part};
use machine::Machine;
use report::{Figures, Report};
use spaces::Own;
use troop_policies::chain;
use under::Bench;

use crate::clock;
use crate::netlink::NetlinkError;
use crate::plane::PlaneError;
use crate::undo::JournalError;

/// The version of the report's shape.
const SCHEMA: u32 = 1;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error("could not {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("could not {doing}")]
    Kernel {
        doing: &'static str,
        #[source]
        source: NetlinkError,
    },
    #[error(transparent)]
    Plane(#[from] PlaneError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("there is no such plane here: {why}")]
    NoPlane { why: String },
    #[error("{0} has ended before its time")]
    Ended(&'static str),
    /// A figure that would say nothing.
    #[error("{0}")]
    Meaningless(String),
}

impl BenchError {
    fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    fn kernel(doing: &'static str) -> impl Fn(NetlinkError) -> Self {
        move |source| Self::Kernel { doing, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Kernel { .. } => {
                "it needs network namespaces: root, or user namespaces (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
            }
            Self::Plane(error) => error.hint(),
            Self::Journal(_) => "make room, or name another folder in TMPDIR",
            Self::NoPlane { .. } => "`troop-agent probe` says what this host can do",
            Self::Ended(_) => "run it again; if it ends again, this is a mistake of ours",
            Self::Meaningless(_) => "leave the machine alone meanwhile, and run it again",
        }
    }
}

/// What it ended with: what to print, or nothing where a part has said it all.
pub type Done = Result<(Option<String>, ExitCode), BenchError>;

/// Runs the bench in a process of its own. `before`: the words in front of an agent's command.
///
/// # Errors
/// [`BenchError`] when it cannot be started.
pub fn run(args: Args, before: &[&str]) -> Done {
    let Args { format, options } = args;
    let machine = Machine::read();
    let own = Own::find(before).map_err(BenchError::io("find this program"))?;
    let folder = tempfile::tempdir().map_err(BenchError::io("make a folder"))?;
    let json = |e: serde_json::Error| BenchError::io("hand over what is asked")(e.into());
    let began = clock::now();
    let words = [spaces::PART, "inside", "--parent", &std::process::id().to_string(), "--folder"].map(str::to_owned);
    let mut command = own.command(&words.each_ref().map(String::as_str));
    command.arg(folder.path()).arg("--options").arg(serde_json::to_string(&options).map_err(json)?);
    let output = command.stderr(Stdio::inherit()).output().map_err(BenchError::io("start a process for it"))?;
    if !output.status.success() {
        let code = output.status.code().and_then(|code| u8::try_from(code).ok());
        return match code {
            Some(code) => Ok((None, ExitCode::from(code))),
            None => Err(BenchError::Ended("the process that measures")),
        };
    }
    let figures: Figures = serde_json::from_slice(&output.stdout).map_err(json)?;
    let took_s = figures::rounded(clock::now().since(began).as_secs_f64());
    let report = Report { schema: SCHEMA, bench: "agent", machine, took_s, goals: goals::of(&figures), figures };
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&report).map_err(json)?,
        Format::Text => text::of(&report),
    };
    Ok((Some(text), ExitCode::SUCCESS))
}

/// Runs a part of the bench, in a process that [`run`] has started.
///
/// # Errors
/// [`BenchError`].
pub fn part(args: PartArgs, before: &[&str]) -> Done {
    match args.part {
        Part::Inside { parent, folder, options } => {
            let alive = spaces::die_with(parent).map_err(BenchError::io("end with who asked for it"))?;
            if !alive {
                return Err(BenchError::Ended("who asked for it"));
            }
            let options = serde_json::from_str(&options).map_err(|e| BenchError::io("read what is asked")(e.into()))?;
            let own = Own::find(before).map_err(BenchError::io("find this program"))?;
            let is_root = spaces::leave().map_err(BenchError::io("make namespaces"))?;
            let figures = measure(Bench::new(options, own, is_root, &folder)?)?;
            let text = serde_json::to_string(&figures).map_err(|e| BenchError::io("tell what was found")(e.into()))?;
            Ok((Some(text), ExitCode::SUCCESS))
        }
        Part::Attached { parent, words } => {
            Err(BenchError::io("start a program")(spaces::become_attached(parent, &words)))
        }
        Part::Send { to, flows, lasts_ms } => {
            let lasts = std::time::Duration::from_millis(lasts_ms);
            flows::send(to, flows, lasts).map_err(BenchError::io("send"))?;
            Ok((None, ExitCode::SUCCESS))
        }
    }
}

/// Every part that is asked for, in this order: what watches an idle agent first, while nothing else has happened.
fn measure(mut bench: Bench) -> Result<Figures, BenchError> {
    use args::Only;
    let asked = |what| bench.options.only.is_none_or(|only| only == what);
    let wanted = [Only::Idle, Only::Memory, Only::Rtt, Only::Delay, Only::Packets, Only::Throughput].map(asked);
    let [idle, memory, rtt, delay, packets, throughput] = wanted;
    Ok(Figures {
        plane: bench.plane_name().to_owned(),
        lacks: bench.lacks.clone(),
        rounds: bench.options.rounds,
        round_s: bench.options.round().as_secs_f64(),
        tcp_buffer_max_bytes: stage::TCP_BUFFER_MAX_BYTES,
        idle: idle.then(|| idle::measure(&bench)).transpose()?,
        memory: if memory { memory::measure(&mut bench)? } else { Vec::new() },
        rtt: if rtt { rtt::measure(&mut bench)? } else { Vec::new() },
        delay: if delay { delay::measure(&mut bench)? } else { Vec::new() },
        packets: if packets { packets::measure(&mut bench)? } else { Vec::new() },
        throughput: if throughput { throughput::measure(&mut bench)? } else { Vec::new() },
    })
}

/// A word to whoever waits, on a terminal only.
fn progress(what: &str) {
    use std::io::{IsTerminal as _, Write as _};
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        drop(writeln!(stderr, "{what}"));
    }
}

/// For rows: why something could not be measured.
fn why(error: &dyn std::error::Error) -> String {
    chain(error)
}
