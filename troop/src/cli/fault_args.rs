//! What befalls whose packets, as it is typed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use troop_agent_core::distribution::Measured;
use troop_policies::fault::{
    ChanceSpec, DelaySpec, Direction, FaultSpec, Owner, Peer, PortSpan, Protocol, SHAPE_ENTRIES_MAX, Shape, ShapeTable,
};

use super::args;
use crate::exit::{CliError, Code};

/// Largest file of measured delays: a million of them.
const SAMPLES_MAX_BYTES: u64 = 16 << 20;

/// What says how packets fare, or to which port they go: `--dns` says both.
const NOT_OF_DNS: [&str; 7] = ["delay", "jitter", "shape", "shape_from", "correlation", "loss", "port"];

/// The shape, and the figures of those that are measured.
type Shaped = (Shape, Option<Measured>);

/// See [`FaultSpec`].
#[derive(Debug, Args)]
pub(super) struct FaultArgs {
    /// How long each packet is held
    #[arg(long, value_name = "TIME", value_parser = args::span)]
    delay: Option<Duration>,
    /// By how much that varies
    #[arg(long, value_name = "TIME", value_parser = args::span)]
    jitter: Option<Duration>,
    /// How it varies: evenly by the jitter, or with the jitter as its deviation
    #[arg(long, value_name = "SHAPE", value_enum, requires = "jitter", conflicts_with = "shape_from")]
    shape: Option<Named>,
    /// As these delays in milliseconds, at least 100, a line each; their mean and deviation unless --delay and --jitter say otherwise
    #[arg(long, value_name = "FILE")]
    shape_from: Option<PathBuf>,
    /// How much the delay of a packet leans on that of the one before
    #[arg(long, value_name = "PERCENT", value_parser = args::percent)]
    correlation: Option<u32>,
    /// How many packets are lost
    #[arg(long, value_name = "PERCENT", value_parser = args::percent)]
    loss: Option<u32>,
    /// Name resolution instead: slow=TIME, or fail; whomever the instance asks, unless --to says whom
    #[arg(long, value_name = "HOW", value_parser = dns, conflicts_with_all = NOT_OF_DNS)]
    dns: Option<Dns>,
    /// Whose packets: app:NAME, host:NAME, an address or a range; the policy's menu says which
    #[arg(long, value_name = "PEER", required_unless_present = "dns")]
    to: Vec<Peer>,
    /// Those that leave the instance, those that come to it, or both
    #[arg(long, value_enum, default_value_t = Way::Egress)]
    direction: Way,
    /// Only packets of this protocol
    #[arg(long, value_enum)]
    protocol: Option<Kind>,
    /// Only packets to this port of theirs
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Only packets from this port of the instance's own
    #[arg(long, value_name = "PORT")]
    local_port: Vec<u16>,
    /// Only what this systemd unit of the host sends
    #[arg(long, value_name = "NAME", value_parser = unit, group = "of")]
    unit: Option<Owner>,
    /// Only what this process and its children send: a number, or the name of the only one
    #[arg(long, value_name = "PROCESS", value_parser = process, group = "of")]
    process: Option<Owner>,
    /// Only what this control group sends: its path below the root
    #[arg(long, value_name = "PATH", value_parser = cgroup, group = "of")]
    cgroup: Option<Owner>,
    /// How many of the flows
    #[arg(long, value_name = "PERCENT", value_parser = args::percent)]
    percent: Option<u32>,
    /// How long it takes to grow to all of that
    #[arg(long, value_name = "TIME", value_parser = args::span, default_value = "0ms")]
    ramp: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Named {
    Uniform,
    Normal,
    Pareto,
    Paretonormal,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    Egress,
    Ingress,
    Both,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dns {
    Slow(Duration),
    Fail,
}

fn dns(text: &str) -> Result<Dns, String> {
    match text.split_once('=') {
        Some(("slow", time)) => args::span(time).map(Dns::Slow),
        None if text == "fail" => Ok(Dns::Fail),
        Some(_) | None => Err("write `slow=2s`, with the time that you mean, or `fail`".to_owned()),
    }
}

fn unit(text: &str) -> Result<Owner, String> {
    Owner::unit(text).map_err(|_| "write its full name, such as `web.service`".to_owned())
}

fn process(text: &str) -> Result<Owner, String> {
    Owner::process(text).map_err(|_| "write its number, or its name of 15 letters at most".to_owned())
}

fn cgroup(text: &str) -> Result<Owner, String> {
    Owner::cgroup(text).map_err(|_| "write its path below the root, such as `system.slice/web.service`".to_owned())
}

impl FaultArgs {
    /// The fault that they mean.
    ///
    /// # Errors
    /// [`CliError`] where measured delays cannot be read.
    pub(super) fn spec(&self) -> Result<FaultSpec, CliError> {
        let mut fault = match self.dns {
            None => FaultSpec { delay: self.delay()?, ..FaultSpec::default() },
            Some(Dns::Slow(time)) => FaultSpec::slow_dns(time),
            Some(Dns::Fail) => FaultSpec::no_dns(),
        };
        if !self.to.is_empty() {
            fault.to.clone_from(&self.to);
        }
        let spans = |ports: &[u16]| ports.iter().map(|port| PortSpan { first: *port, last: *port }).collect::<Vec<_>>();
        if self.dns.is_none() {
            fault.remote_ports = spans(&self.port);
            fault.loss = self.loss.map(|percent| ChanceSpec { ppm: ppm(percent), correlation_ppm: 0 });
        }
        Ok(FaultSpec {
            direction: match self.direction {
                Way::Egress => Direction::Egress,
                Way::Ingress => Direction::Ingress,
                Way::Both => Direction::Both,
            },
            protocol: self.protocol.map(|kind| match kind {
                Kind::Tcp => Protocol::Tcp,
                Kind::Udp => Protocol::Udp,
                Kind::Icmp => Protocol::Icmp,
            }),
            local_ports: spans(&self.local_port),
            of: [&self.unit, &self.process, &self.cgroup].into_iter().flatten().next().cloned(),
            flows_ppm: self.percent.map(ppm),
            ramp_us: micros(self.ramp),
            ..fault
        })
    }

    fn delay(&self) -> Result<Option<DelaySpec>, CliError> {
        let (shape, measured) = self.shape()?;
        let mean = self.delay.or(measured.as_ref().map(|measured| measured.mean)).unwrap_or_default();
        let jitter = self.jitter.or(measured.as_ref().map(|measured| measured.deviation)).unwrap_or_default();
        let delay = DelaySpec {
            mean_us: micros(mean),
            jitter_us: micros(jitter),
            correlation_ppm: self.correlation.map_or(0, ppm),
            shape,
            reorders: false,
        };
        Ok(if mean.is_zero() && jitter.is_zero() { None } else { Some(delay) })
    }

    fn shape(&self) -> Result<Shaped, CliError> {
        if let Some(path) = &self.shape_from {
            let measured = measured(path)?;
            let table = ShapeTable::new(measured.table.entries().to_vec());
            let table = table.map_err(|e| CliError::new(Code::Input, e.to_string()))?;
            return Ok((Shape::Table(table), Some(measured)));
        }
        let shape = match self.shape {
            None | Some(Named::Uniform) => Shape::Uniform,
            Some(Named::Normal) => Shape::Normal,
            Some(Named::Pareto) => Shape::Pareto,
            Some(Named::Paretonormal) => Shape::ParetoNormal,
        };
        Ok((shape, None))
    }
}

fn measured(path: &Path) -> Result<Measured, CliError> {
    let bad = |what: String| CliError::new(Code::Input, format!("`{}`: {what}", path.display()));
    let file = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
    if file.len() > SAMPLES_MAX_BYTES {
        return Err(bad(format!("it is longer than {SAMPLES_MAX_BYTES} bytes")).hint("a thousand delays tell as much"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let samples = samples(&text).map_err(|what| bad(what).hint("one number a line; # begins a comment"))?;
    Measured::from_samples(&samples, SHAPE_ENTRIES_MAX).map_err(|e| bad(e.to_string()).hint(e.hint()))
}

/// Delays in milliseconds, a line each.
fn samples(text: &str) -> Result<Vec<Duration>, String> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.split('#').next().unwrap_or_default().trim()));
    let numbers = lines.filter(|(_, line)| !line.is_empty()).map(|(number, line)| {
        let ms: Option<f64> = line.parse().ok();
        let time = ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
        time.ok_or_else(|| format!("line {number}: `{line}` is no time in milliseconds"))
    });
    numbers.collect()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn ppm(percent: u32) -> u32 {
    percent.saturating_mul(10_000)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        fault: FaultArgs,
    }

    fn said(words: &str) -> Result<String, String> {
        let typed =
            Typed::try_parse_from(std::iter::once("troop").chain(words.split(' '))).map_err(|e| e.to_string())?;
        typed.fault.spec().map(|spec| spec.to_string()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_fault_is_what_was_typed() {
        let rows = [
            ("--delay 200ms --to app:a", "+200 ms to app:a"),
            (
                "--delay 200ms --jitter 5ms --shape normal --to app:a --unit web.service",
                "+200 ms jitter 5 ms to app:a of unit:web.service",
            ),
            ("--loss 100% --to 10.0.0.7 --port 80 --direction both", "loss 100 % to and from 10.0.0.7 port 80"),
            ("--dns slow=2s", "+2 s to DNS, whoever is asked"),
            ("--dns fail --process nginx", "loss 100 % to DNS, whoever is asked of process:nginx"),
            ("--dns slow=2s --to 10.0.0.2", "+2 s to 10.0.0.2 port 53"),
        ];
        for (typed, expected) in rows {
            assert_eq!(said(typed).as_deref(), Ok(expected), "{typed}");
        }
    }

    #[test]
    fn what_makes_no_sense_together_is_told_before_anything_is_asked() {
        for typed in [
            "--delay 200ms",
            "--dns never",
            "--dns slow=2s --delay 1s",
            "--dns fail --jitter 1ms",
            "--delay 1s --shape normal --to app:a",
            "--delay 1s --to app:a --unit web.service --cgroup a/b",
            "--delay 1s --to app:a --unit web",
            "--delay 1s --to app:a --cgroup /",
        ] {
            assert!(said(typed).is_err(), "{typed}");
        }
    }

    #[test]
    fn measured_delays_bring_their_mean_deviation_and_shape() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("delays");
        let lines: Vec<String> = (0..200).map(|n| format!("{}", if n % 2 == 0 { 10.0 } else { 30.0 })).collect();
        std::fs::write(&path, format!("# from a trace\n{}\n", lines.join("\n"))).unwrap();
        let typed = ["troop", "--to", "app:a", "--shape-from", path.to_str().unwrap()];
        let spec = Typed::try_parse_from(typed).unwrap().fault.spec().unwrap();
        let delay = spec.delay.unwrap();
        assert_eq!(delay.mean_us, 20_000);
        assert!((10_000..10_050).contains(&delay.jitter_us), "{}", delay.jitter_us);
        let Shape::Table(table) = delay.shape else { panic!("no table") };
        assert_eq!(table.entries().len(), SHAPE_ENTRIES_MAX);
        std::fs::write(&path, "1\nfast\n").unwrap();
        let why = Typed::try_parse_from(typed).unwrap().fault.spec().unwrap_err().to_string();
        assert!(why.contains("line 2: `fast`"), "{why}");
    }
}
