//! What an agent costs that has no fault: `run` of this very binary in a process of its own, connected to a control plane that is played.
//!
//! What is counted is the kernel's: voluntary context switches of all its threads, resident memory, time on a processor.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixListener;

use super::figures::{as_f64, ratio, rounded};
use super::report::Idle;
use super::under::Bench;
use super::{BenchError, process, progress};
use crate::clock;

/// How long the agent may take to begin: it tries every plane first.
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);
/// How long it is left alone before it is watched: what begins has ended then.
const SETTLES_FOR: Duration = Duration::from_secs(1);
/// It is watched for as long as two rounds of everything else take, and for this at least.
const WATCHED_MIN: Duration = Duration::from_secs(1);
const READS: &str = "read the kernel's counts of the agent";

pub(super) fn measure(bench: &Bench) -> Result<Idle, BenchError> {
    progress("an idle agent");
    let socket = bench.folder.join("agents.sock");
    let connected = play(&socket)?;
    let agent = Agent::start(bench, &socket)?;
    connected.recv_timeout(CONNECTS_WITHIN).map_err(|_| BenchError::Ended("the agent that was to be watched"))?;
    std::thread::sleep(SETTLES_FOR);
    let lasts = (bench.options.round() * bench.options.rounds * 2).max(WATCHED_MIN);
    let began = clock::now();
    let before = agent.read()?;
    std::thread::sleep(lasts);
    let after = agent.read()?;
    let seconds = clock::now().since(began).as_secs_f64();
    Ok(Idle {
        seconds: rounded(seconds),
        rss_mib: rounded(as_f64(after.rss_kib) / 1_024.0),
        wakeups_per_s: rounded(ratio(as_f64(after.waits.saturating_sub(before.waits)), seconds)),
        cpu_percent: rounded(100.0 * ratio(after.cpu.saturating_sub(before.cpu).as_secs_f64(), seconds)),
        threads: after.threads,
    })
}

/// The process that is watched. Dropped, it is killed.
#[derive(Debug)]
struct Agent(Child);

impl Agent {
    fn start(bench: &Bench, socket: &Path) -> Result<Self, BenchError> {
        let io = BenchError::io("start an agent");
        let token = bench.folder.join("token");
        std::fs::write(&token, "none").map_err(&io)?;
        std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).map_err(&io)?;
        let mut command = bench.own.attached(&bench.own.exe);
        command.args(&bench.own.before).args(["run", "--instance", "bench/here/i-0", "--to"]);
        command.arg(format!("unix:{}", socket.display())).arg("--token-file").arg(token);
        command.arg("--state").arg(bench.folder.join("agent")).arg("--config").arg(bench.folder.join("agent.toml"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(&io)?;
        Ok(Self(child))
    }

    fn read(&self) -> Result<process::Reading, BenchError> {
        process::read(self.0.id()).map_err(BenchError::io(READS))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Receives agents on a thread of its own and says nothing to them, for as long as this process lives. Tells of each.
fn play(socket: &Path) -> Result<Receiver<()>, BenchError> {
    let io = BenchError::io("open a socket for the agent");
    let listener = std::os::unix::net::UnixListener::bind(socket).map_err(&io)?;
    listener.set_nonblocking(true).map_err(&io)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(&io)?;
    let (tell, told) = channel();
    let serve = move || {
        runtime.block_on(async {
            let Ok(listener) = UnixListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                let hear = service_fn(move |request: Request<Incoming>| {
                    // Nobody waits any more after the first.
                    let _ = tell.send(());
                    tokio::spawn(async move { drop(request.into_body().collect().await) });
                    let nothing = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Infallible>>());
                    async { Ok::<_, Infallible>(Response::new(nothing)) }
                });
                let mut server = http2::Builder::new(TokioExecutor::new());
                let served = server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), hear);
                tokio::spawn(async move { drop(served.await) });
            }
        });
    };
    drop(std::thread::Builder::new().name("control-plane".to_owned()).spawn(serve).map_err(&io)?);
    Ok(told)
}
