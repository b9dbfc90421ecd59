//! Other tools that delay, measured beside the plane where somebody has them.
//!
//! toxiproxy is a proxy: it ends the connection and begins another one, here from the host to the peer. mm-delay runs a program in a
//! network namespace of its own and carries its packets one by one; it wants to be started by somebody other than root, and to be root
//! itself (setuid), which nobody is in a user namespace.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::flows::{self, Flows, Round, Writer};
use super::report::Way;
use super::stage::{HOST, PEER};
use super::under::Bench;
use super::{spaces, why};
use crate::clock;

/// Names of environment variables with the tools' files.
const TOXIPROXY: &str = "TOXIPROXY";
const MM_DELAY: &str = "MM_DELAY";

/// Where toxiproxy is asked, and where it listens for the flows: in a network namespace in which nobody else is.
const ASKED_AT: u16 = 8_474;
const PROXY_AT: u16 = 8_475;
const STARTS_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Whoever starts mm-delay: nobody.
const NOBODY: u32 = 65_534;
/// How much longer than a round mm-delay's program sends: it has to start.
const ROOM: Duration = Duration::from_secs(2);

/// The tools that there are.
#[derive(Debug)]
pub(super) struct Peers {
    toxiproxy: Option<PathBuf>,
    mm_delay: Option<PathBuf>,
    is_root: bool,
}

impl Peers {
    pub(super) fn find(is_root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Self {
        Self { toxiproxy: variable(TOXIPROXY), mm_delay: variable(MM_DELAY), is_root }
    }

    /// One round with one of them, or why there is none.
    pub(super) fn round(
        &self,
        bench: &Bench,
        way: Way,
        flows: u32,
        delay_ms: u64,
        warm_up: Duration,
    ) -> Result<Round, String> {
        let (tool, variable) = match way {
            Way::Toxiproxy => (&self.toxiproxy, TOXIPROXY),
            Way::MmDelay => (&self.mm_delay, MM_DELAY),
            Way::Veth | Way::Egress | Way::Ingress => return Err("no other tool".to_owned()),
        };
        let Some(tool) = tool else { return Err(format!("absent: {variable} names no program")) };
        let seen = if way == Way::Toxiproxy {
            proxied(bench, tool, flows, delay_ms, warm_up)
        } else if self.is_root {
            shelled(bench, tool, flows, delay_ms, warm_up)
        } else {
            return Err("absent: only root can start it as somebody else".to_owned());
        };
        seen.map_err(|error| format!("failed: {}", why(&error)))
    }
}

/// A tool that runs. Dropped, it is killed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn start(mut command: Command) -> io::Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Running)
}

fn proxied(bench: &Bench, tool: &PathBuf, count: u32, delay_ms: u64, warm_up: Duration) -> io::Result<Round> {
    let mut command = bench.own.attached(tool);
    command.args(["-host", "127.0.0.1", "-port", &ASKED_AT.to_string()]);
    let mut proxy = start(command)?;
    let until = clock::now().after(STARTS_WITHIN);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, ASKED_AT)).is_err() {
        if let Some(status) = proxy.0.try_wait()? {
            return Err(io::Error::other(format!("it ended: {status}")));
        }
        if clock::now() >= until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let listener = bench.stage.at_peer(|| flows::listen(PEER)).map_err(io::Error::other)??;
    let upstream = SocketAddr::from((PEER, listener.local_addr()?.port())).to_string();
    let listens = format!("127.0.0.1:{PROXY_AT}");
    post("/proxies", &serde_json::json!({"name": "bench", "listen": listens, "upstream": upstream, "enabled": true}))?;
    if delay_ms > 0 {
        let toxic = serde_json::json!({
            "name": "delay", "type": "latency", "stream": "upstream", "attributes": {"latency": delay_ms, "jitter": 0}
        });
        post("/proxies/bench/toxics", &toxic)?;
    }
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_AT));
    let flows = Flows::start(flows::connect(count, to, &listener, Writer::Connecting)?)?;
    let seen = flows.watch(warm_up, bench.options.round(), &BTreeSet::new());
    flows.end();
    seen
}

/// Asks toxiproxy for something (its README, "HTTP API").
fn post(path: &str, body: &serde_json::Value) -> io::Result<()> {
    let body = body.to_string();
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ASKED_AT))?;
    stream.set_read_timeout(Some(STARTS_WITHIN))?;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status.starts_with('2') { Ok(()) } else { Err(io::Error::other(format!("it answered {status} to {path}"))) }
}

fn shelled(bench: &Bench, tool: &PathBuf, count: u32, delay_ms: u64, warm_up: Duration) -> io::Result<Round> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // Of all addresses: that of the shell's other end is one of mm-delay's own.
    let listener = flows::listen(Ipv4Addr::UNSPECIFIED)?;
    let lasts = warm_up + bench.options.round() + ROOM;
    let mut command = bench.own.attached(tool);
    // It delays both ways by this.
    command.arg((delay_ms / 2).to_string()).arg(&bench.own.exe).args(&bench.own.before);
    let to = SocketAddr::from((HOST, listener.local_addr()?.port()));
    command.args([spaces::PART, "send", &to.to_string(), &count.to_string(), &lasts.as_millis().to_string()]);
    command.uid(NOBODY).gid(NOBODY).env("USER", "nobody");
    let running = start(command)?;
    let readers: io::Result<Vec<_>> = (0..count).map(|_| flows::accept(&listener)).collect();
    let flows = Flows::reading(readers?)?;
    let seen = flows.watch(warm_up, bench.options.round(), &BTreeSet::new());
    flows.end();
    drop(running);
    seen
}
