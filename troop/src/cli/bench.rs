//! `troop bench`: what Troop costs on this machine. Needs nothing that runs, and touches nothing that does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::args::{self, Output};
use super::context;
use crate::bench::{self, BenchError, Report, Spread, balancer, idle, ledger, plan, registry};
use crate::exit::{CliError, Code};
use crate::{logging, ui};

/// Most scopes, instances or groups: beyond that names run out, and memory before.
const COUNT_MAX: i64 = 10_000_000;

/// Measure what Troop costs on this machine
///
/// Each starts what it measures by itself, on the loopback and in a temporary folder; nothing that runs is asked or
/// touched. Leave the machine alone meanwhile. Exit 5 when a promise of docs/performance.md was not kept.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    Plan(PlanArgs),
    Balancer(BalancerArgs),
    Registry(RegistryArgs),
    Ledger(LedgerArgs),
    Idle(IdleArgs),
    Inventory(InventoryArgs),
}

/// Plan a day of a whole site, for a tenth of the size and for all of it
///
/// Also: what it takes to store the plans, what every look costs while they stand, and what asking every gate costs.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Scopes, a hundred a team
    #[arg(long, value_name = "N", default_value_t = plan::SCOPES, value_parser = count())]
    scopes: u32,
    /// Instances over all scopes
    #[arg(long, value_name = "N", default_value_t = plan::INSTANCES, value_parser = count())]
    instances: u32,
    #[command(flatten)]
    output: Output,
}

/// Send requests through the balancer, straight to the instances, and through HAProxy where it is installed
///
/// In turns, as many as each way takes and then at a fixed pace. Last come ten flips a second under full load; no request
/// may fail.
#[derive(Debug, Args)]
pub(super) struct BalancerArgs {
    /// Connections of the load
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    connections: u32,
    /// Requests a second of the paced rounds
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pace: u32,
    /// Rounds of every way
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a round lasts
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = args::span)]
    round: Duration,
    /// How long it flips
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = args::span)]
    flips_for: Duration,
    #[command(flatten)]
    output: Output,
}

/// Send heartbeats to the registry, alone and while a control plane reads all of it
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Instances that are registered; the registry keeps 20,000 at most
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    instances: u32,
    /// Connections of the load
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    connections: u32,
    /// How long a round lasts
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::span)]
    round: Duration,
    #[command(flatten)]
    output: Output,
}

/// Record acts in a new ledger, alone and eight at a time
#[derive(Debug, Args)]
pub(super) struct LedgerArgs {
    /// Folder on whose disk the ledger is made [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long a round lasts
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = args::span)]
    round: Duration,
    #[command(flatten)]
    output: Output,
}

/// Watch a control plane that has nothing to do
#[derive(Debug, Args)]
pub(super) struct IdleArgs {
    /// Groups, each in a scope of its own
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = count())]
    groups: u32,
    /// Instances over all groups; the registry keeps 20,000 at most
    #[arg(long, value_name = "N", default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    instances: u32,
    /// How long it is watched
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = args::span)]
    lasts: Duration,
    #[command(flatten)]
    output: Output,
}

/// Read a whole account at AWS, all regions at once, and count the calls
///
/// At the pace at which `troop serve` reads. An account is made up for it on the loopback, unless --endpoint names somebody who
/// answers as AWS does; requests are signed with keys that are made up too. Only in a build with the feature `aws`.
#[derive(Debug, Args)]
pub(super) struct InventoryArgs {
    /// Whose
    #[arg(long, value_enum, value_name = "CLOUD", default_value_t = BenchedCloud::Aws)]
    cloud: BenchedCloud,
    /// Regions, separated by commas
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "us-east-1,us-east-2,us-west-1,us-west-2"
    )]
    regions: Vec<String>,
    /// Who answers, such as moto; then the next three do not count
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Groups, over all regions
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = count())]
    groups: u32,
    /// Instances, over all groups
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = count())]
    instances: u32,
    /// Groups that have a team: each costs a call for its targets' health
    #[arg(long, value_name = "N", default_value_t = 100)]
    in_play: u32,
    /// How often everything is read
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    looks: u32,
    /// Between two of them
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = args::span)]
    pause: Duration,
    #[command(flatten)]
    output: Output,
}

/// A cloud whose inventory is worth measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchedCloud {
    Aws,
}

fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=COUNT_MAX)
}

pub(super) fn run(command: BenchCommand) -> Result<Code, CliError> {
    logging::for_a_person();
    if cfg!(debug_assertions) {
        ui::note("this is a debug build: its figures say nothing about what people run; build with --release");
    }
    match command {
        BenchCommand::Plan(args) => show(args.output, measure(plan::run(args.scopes, args.instances))?, plan_text),
        BenchCommand::Balancer(args) => {
            let BalancerArgs { connections, pace, rounds, round, flips_for, output } = args;
            let options = balancer::Options { connections, per_second: pace, rounds, round, flips_for };
            show(output, measure(balancer::run(options))?, balancer_text)
        }
        BenchCommand::Registry(args) => {
            let RegistryArgs { instances, connections, round, output } = args;
            let options = registry::Options { instances, connections, round };
            show(output, measure(registry::run(options))?, registry_text)
        }
        BenchCommand::Ledger(args) => {
            let dir = args.dir.unwrap_or_else(std::env::temp_dir);
            if !dir.is_dir() {
                return Err(CliError::new(Code::Input, format!("there is no folder `{}`", dir.display()))
                    .hint("name one on the disk that a ledger would lie on"));
            }
            show(args.output, measure(ledger::run(&dir, args.round))?, ledger_text)
        }
        BenchCommand::Idle(args) => {
            let IdleArgs { groups, instances, lasts, output } = args;
            let exe = std::env::current_exe();
            let exe = exe.map_err(|e| CliError::new(Code::Unavailable, format!("could not find this program: {e}")))?;
            let options = idle::Options { exe, groups, instances, lasts };
            show(output, measure(idle::run(options))?, idle_text)
        }
        BenchCommand::Inventory(args) => inventory(args),
    }
}

#[cfg(not(feature = "aws"))]
fn inventory(_args: InventoryArgs) -> Result<Code, CliError> {
    Err(CliError::new(Code::Input, "this build of Troop has no AWS in it").hint("build with `--features aws`"))
}

#[cfg(feature = "aws")]
fn inventory(args: InventoryArgs) -> Result<Code, CliError> {
    let InventoryArgs { cloud: BenchedCloud::Aws, regions, endpoint, groups, instances, in_play, looks, pause, output } =
        args;
    let named = |name: String| {
        troop_policies::RegionName::new(&name)
            .map_err(|e| CliError::new(Code::Input, format!("`{name}` is no region: {e}")))
    };
    let regions = regions.into_iter().map(named).collect::<Result<_, _>>()?;
    let options = bench::inventory::Options { regions, endpoint, groups, instances, in_play, looks, pause };
    show(output, measure(bench::inventory::run(options))?, inventory_text)
}

fn measure<F>(bench: impl Future<Output = Result<Report<F>, BenchError>>) -> Result<Report<F>, CliError> {
    context::block_on(async { bench.await.map_err(|e| CliError::of(Code::Unavailable, &e)) })
}

fn show<F: Serialize>(output: Output, report: Report<F>, text: fn(&F) -> String) -> Result<Code, CliError> {
    if output.is_json() {
        ui::json(&report);
    } else {
        ui::line(&report.machine.text());
        ui::line(&text(&report.figures));
        for bench::Target { name, unit, at_most, measured, met } in &report.targets {
            let verdict = if *met { "kept" } else { "NOT KEPT" };
            ui::line(&format!("{verdict:<8}  {name}: {measured} {unit}, promised at most {at_most}"));
        }
    }
    Ok(if report.is_kept() { Code::Ok } else { Code::CheckFalse })
}

fn plan_text(figures: &plan::Figures) -> String {
    let row = |f: &plan::Figure| {
        vec![
            f.scopes.to_string(),
            f.instances.to_string(),
            f.teams.to_string(),
            ms(f.planned_ms),
            f.peak_mib.to_string(),
            ms(f.stored_ms),
            ms(f.standing_ms),
            ms(f.gates_ms),
        ]
    };
    let header = ["SCOPES", "INSTANCES", "TEAMS", "PLANNED ms", "PEAK MiB", "STORED ms", "A LOOK ms", "GATES ms"];
    let rows: Vec<_> = figures.sizes.iter().map(row).collect();
    format!("{}\nall of it to a tenth: {} times", ui::table(&header, &rows), figures.ratio)
}

fn balancer_text(figures: &balancer::Figures) -> String {
    let row = |way: &balancer::Way| {
        let Some(m) = &way.measured else {
            let mut row = vec![way.way.to_owned(), "absent".to_owned()];
            row.resize(10, "-".to_owned());
            return row;
        };
        vec![
            way.way.to_owned(),
            format!("{:.0}", m.per_second),
            format!("{:.2}", m.ratio),
            format!("{:.2}-{:.2}", m.ratio_min, m.ratio_max),
            m.cpu_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}")),
            ms(m.full.p50_ms),
            ms(m.full.p99_ms),
            ms(m.paced.p50_ms),
            ms(m.paced.p99_ms),
            m.failed.to_string(),
        ]
    };
    let header =
        ["WAY", "REQ/s", "TO DIRECT", "RANGE", "CPU us", "p50 ms", "p99 ms", "PACED p50 ms", "PACED p99 ms", "FAILED"];
    let rows: Vec<_> = figures.ways.iter().map(row).collect();
    let f = &figures.flips;
    format!(
        "{}\nflips    {} of {} in {} s, each in force after {} ms (p99 {}); {} requests answered, {} a second; {} failed",
        ui::table(&header, &rows),
        f.flips,
        f.asked,
        f.seconds,
        ms(f.took.p50_ms),
        ms(f.took.p99_ms),
        f.answered,
        f.per_second.round(),
        f.failed
    )
}

fn registry_text(figures: &registry::Figures) -> String {
    let row = |name: &str, beats: &registry::Beats| {
        let Spread { p50_ms, p99_ms, max_ms, .. } = beats.took;
        let figures = [format!("{:.0}", beats.per_second), format!("{:.1}", beats.cpu_us), ms(p50_ms), ms(p99_ms)];
        let rest = [ms(max_ms), beats.failed.to_string()];
        [name.to_owned()].into_iter().chain(figures).chain(rest).collect()
    };
    let rows = [row("alone", &figures.alone), row("read", &figures.read), row("needed", &figures.needed)];
    let header = ["HEARTBEATS", "A SECOND", "CPU us", "p50 ms", "p99 ms", "MAX ms", "FAILED"];
    format!(
        "{} instances, registered {:.0} a second; {} heartbeats a second are needed\n{}\neverything read in {} ms (p99 {})",
        figures.instances,
        figures.registered_per_second,
        figures.needed_per_second.round(),
        ui::table(&header, &rows),
        ms(figures.view.p50_ms),
        ms(figures.view.p99_ms)
    )
}

fn ledger_text(figures: &ledger::Figures) -> String {
    let row = |round: &ledger::Round| {
        vec![
            round.at_once.to_string(),
            format!("{:.0}", round.acts_per_second),
            ms(round.intent.p50_ms),
            ms(round.intent.p99_ms),
            ms(round.settle.p50_ms),
            ms(round.settle.p99_ms),
        ]
    };
    let header = ["AT ONCE", "ACTS/s", "INTENT p50 ms", "p99 ms", "SETTLE p50 ms", "p99 ms"];
    let rows: Vec<_> = figures.rounds.iter().map(row).collect();
    let Spread { p50_ms, p99_ms, .. } = figures.sync;
    format!(
        "disk     {}; one page written and synced in {} ms (p99 {})\n{}",
        figures.filesystem,
        ms(p50_ms),
        ms(p99_ms),
        ui::table(&header, &rows)
    )
}

fn idle_text(figures: &idle::Figures) -> String {
    let idle::Figures { groups, instances, teams, seconds, .. } = figures;
    let rows = [
        ("wake-ups a second", format!("{:.1}", figures.wakeups_per_second)),
        ("CPU, % of a core", format!("{:.2}", figures.cpu_percent)),
        ("looks a second", format!("{:.2}", figures.looks_per_second)),
        ("CPU ms for each", ms(figures.cpu_ms_per_look)),
        ("memory now, MiB", format!("{:.1}", figures.rss_mib)),
        ("memory at most, MiB", format!("{:.1}", figures.peak_mib)),
        ("threads", figures.threads.to_string()),
        ("all plans stood after, ms", format!("{:.0}", figures.ready_ms)),
    ];
    let rows = rows.map(|(name, figure)| vec![name.to_owned(), figure]);
    let of = format!("{groups} groups, {instances} instances, {teams} teams, watched for {seconds} s");
    format!("{of}\n{}", ui::table(&["TROOP SERVE, IDLE", "FIGURE"], &rows))
}

#[cfg(feature = "aws")]
fn inventory_text(figures: &bench::inventory::Figures) -> String {
    let bench::inventory::Figures { groups, instances, in_play, regions, looks, .. } = figures;
    let row = |(number, look): (usize, &bench::inventory::Look)| {
        let slowest = look.regions_ms.values().copied().fold(0.0, f64::max);
        vec![(number + 1).to_string(), ms(look.took_ms), ms(slowest), look.calls.to_string()]
    };
    let rows: Vec<_> = looks.iter().enumerate().map(row).collect();
    let kinds = looks.first().map(|look| &look.calls_by_kind).into_iter().flatten();
    let kinds: Vec<_> = kinds.map(|(call, count)| vec![call.clone(), count.to_string()]).collect();
    let throttled = figures
        .answering
        .as_ref()
        .map_or_else(String::new, |answering| format!("; {} calls beyond AWS's published limits", answering.throttled));
    format!(
        "{instances} instances in {groups} groups, {in_play} in play, {} regions, answered by {}\n{}\nof the first look:\n{}\n\
         memory at most, MiB: {} ({} before){throttled}",
        regions.len(),
        figures.answered_by,
        ui::table(&["LOOK", "TOOK ms", "SLOWEST REGION ms", "CALLS"], &rows),
        ui::table(&["CALL", "COUNT"], &kinds),
        figures.peak_mib,
        figures.before_mib
    )
}

/// Three digits are enough for people.
fn ms(figure: f64) -> String {
    match figure {
        f if f < 10.0 => format!("{f:.2}"),
        f if f < 100.0 => format!("{f:.1}"),
        f => format!("{f:.0}"),
    }
}
