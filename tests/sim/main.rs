//! `sim`: runs simulated months and says how fast, or shows what went wrong and how to see it again.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is a command, and it answers on its streams")]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::{Parser, ValueEnum};
use troop_tests::check::Drawn;
use troop_tests::month::{Options, Report, run};
use troop_tests::saboteurs;
use troop_tests::shrink::shrink;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run simulated months of a whole site, and check every invariant after every effect.
#[derive(Debug, Parser)]
struct Args {
    /// How many months
    #[arg(long, default_value_t = 1)]
    months: u64,
    /// The seed of the first; each next one takes the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Take this guard away (only in a build with --cfg troop_sabotage)
    #[arg(long)]
    saboteur: Option<String>,
    /// Let every saboteur loose, or the one named, each for at most --months, and print who was caught by what
    #[arg(long)]
    table: bool,
    /// With --table: only those of which a seed is known that catches them, and that seed first
    #[arg(long)]
    hints: bool,
    /// Leave out events of this kind
    #[arg(long)]
    without: Vec<String>,
    /// Only so many of the events happen
    #[arg(long)]
    first: Option<usize>,
    /// Months run at the same time
    #[arg(long)]
    jobs: Option<usize>,
    /// Print every event and call of a month that broke something
    #[arg(long)]
    trace: bool,
    /// Do not make a violation small first
    #[arg(long)]
    no_shrink: bool,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// More standard deviations than this, and the coins are not what they should be: one honest run in two million.
const DEVIATIONS_MAX: f64 = 5.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let saboteur = match args.saboteur.as_deref().map(saboteurs::named) {
        None => None,
        Some(Some(name)) => Some(name),
        Some(None) => {
            eprintln!("there is no such saboteur; they are: {}", saboteurs::names().join(" "));
            return ExitCode::from(2);
        }
    };
    if saboteur.is_some() && !cfg!(troop_sabotage) {
        eprintln!("saboteurs exist only in a build with RUSTFLAGS=\"--cfg troop_sabotage\"");
        return ExitCode::from(2);
    }
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    if args.table {
        return table(&args, jobs);
    }
    let base = Options {
        seed: args.seed,
        without: args.without.iter().cloned().collect::<BTreeSet<_>>(),
        first: args.first,
        saboteur,
        trace: args.trace,
    };
    let began = tokio::time::Instant::now();
    let (reports, bad) = months(&base, &args, jobs);
    let took_s = began.elapsed().as_secs_f64();
    if let Some((options, report)) = bad {
        show(&args, &options, &report);
        return ExitCode::from(1);
    }
    let months = reports.len();
    let a_minute = f64::from(u32::try_from(months).unwrap_or(u32::MAX)) / took_s * 60.0;
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (effects, kills, flips) = (sum(|r| r.effects), sum(|r| r.kills), sum(|r| r.flips));
    let (pushes, looks) = (sum(|r| u64::try_from(r.pushes).unwrap_or(0)), sum(|r| r.looks));
    let mut drawn = Drawn::default();
    reports.iter().for_each(|r| drawn.add(r.drawn));
    let deviation = drawn.deviation().unwrap_or(0.0);
    if deviation.abs() > DEVIATIONS_MAX {
        eprintln!("I17 broken: {} of {} coins fell, {deviation:.1} standard deviations off", drawn.fell, drawn.coins);
        return ExitCode::from(1);
    }
    match args.format {
        Format::Text => println!(
            "{months} months without a violation: {effects} effects, {kills} kills, {pushes} pushes, {flips} flips, {looks} looks; \
             {} of {} coins fell ({deviation:+.1} standard deviations); {a_minute:.0} months a minute",
            drawn.fell, drawn.coins
        ),
        Format::Json => println!(
            "{}",
            serde_json::json!({
                "months": months, "first_seed": args.seed, "violations": 0, "effects": effects, "kills": kills,
                "flips": flips, "pushes": pushes, "looks": looks, "coins": drawn.coins, "fell": drawn.fell,
                "deviation": deviation, "seconds": took_s, "months_a_minute": a_minute,
            })
        ),
    }
    ExitCode::SUCCESS
}

/// Prints the table of saboteurs. Fails unless every one is caught.
fn table(args: &Args, jobs: usize) -> ExitCode {
    if !cfg!(troop_sabotage) {
        eprintln!("saboteurs exist only in a build with RUSTFLAGS=\"--cfg troop_sabotage\"");
        return ExitCode::from(2);
    }
    let rows =
        saboteurs::table(args.seed, args.months, jobs, args.saboteur.as_deref(), args.hints, |row| tell(args, row));
    let free = rows.iter().filter(|row| row.by.is_none()).count();
    if free > 0 {
        eprintln!("{free} of {} saboteurs were not caught", rows.len());
        return ExitCode::from(1);
    }
    ExitCode::SUCCESS
}

fn tell(args: &Args, row: &saboteurs::Caught) {
    match (&row.by, args.format) {
        (Some((invariant, what, months)), Format::Text) => {
            println!("{:<20} {invariant:<4} {months:>4}  {} | {what}", row.name, row.takes_away);
        }
        (None, Format::Text) => {
            println!("{:<20} NOT CAUGHT in {} months: {}", row.name, args.months, row.takes_away)
        }
        (by, Format::Json) => {
            let (invariant, what, months) =
                by.clone().map_or((None, None, None), |(i, w, m)| (Some(i), Some(w), Some(m)));
            println!(
                "{}",
                serde_json::json!({
                    "saboteur": row.name, "takes_away": row.takes_away, "invariant": invariant, "what": what,
                    "months": months,
                })
            );
        }
    }
}

/// Runs them all, or up to the first that is not right.
fn months(base: &Options, args: &Args, jobs: usize) -> (Vec<Report>, Option<(Options, Report)>) {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (reports, bad) = (Mutex::new(Vec::new()), Mutex::new(None::<(Options, Report)>));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let month = next.fetch_add(1, Ordering::Relaxed);
                    if month >= args.months {
                        break;
                    }
                    let options = Options { seed: base.seed.wrapping_add(month), ..base.clone() };
                    let report = match run(&options) {
                        Ok(report) => report,
                        Err(e) => {
                            eprintln!("seed {}: {e:#}", options.seed);
                            stop.store(true, Ordering::Relaxed);
                            break;
                        }
                    };
                    if report.violations.is_empty() {
                        if let Ok(mut reports) = reports.lock() {
                            reports.push(report);
                        }
                        continue;
                    }
                    stop.store(true, Ordering::Relaxed);
                    if let Ok(mut bad) = bad.lock() {
                        // The lowest seed, whichever thread was first.
                        if bad.as_ref().is_none_or(|(known, _)| options.seed < known.seed) {
                            *bad = Some((options, report));
                        }
                    }
                }
            });
        }
    });
    (reports.into_inner().unwrap_or_default(), bad.into_inner().unwrap_or_default())
}

fn show(args: &Args, options: &Options, report: &Report) {
    let small = if args.no_shrink { None } else { Some(shrink(options, report)) };
    let (options, report) = small.map_or_else(|| (options.clone(), report.clone()), |s| (s.options, s.report));
    let mut replay = format!("cargo run --release -p troop-tests --bin sim -- --months 1 --seed {}", options.seed);
    for kind in &options.without {
        replay.push_str(&format!(" --without {kind}"));
    }
    if let Some(first) = options.first {
        replay.push_str(&format!(" --first {first}"));
    }
    if let Some(saboteur) = options.saboteur {
        replay.push_str(&format!(" --saboteur {saboteur}"));
    }
    if args.format == Format::Json {
        let violations: Vec<_> = report
            .violations
            .iter()
            .map(|v| serde_json::json!({ "invariant": v.invariant, "at": v.at.to_string(), "what": v.what }))
            .collect();
        let months = options.seed.wrapping_sub(args.seed).wrapping_add(1);
        println!(
            "{}",
            serde_json::json!({
                "seed": options.seed, "months": months, "events": report.events, "violations": violations,
                "saboteur": options.saboteur, "replay": replay,
            })
        );
        return;
    }
    for line in &report.trace {
        println!("{line}");
    }
    for violation in &report.violations {
        println!("{} broken at {}: {}", violation.invariant, violation.at, violation.what);
    }
    println!("seed {}, {} events", options.seed, report.events);
    if let Some(last) = &report.last {
        println!("the last event before it: {} {:?}", last.at, last.what);
    }
    println!("again: {replay}");
}
