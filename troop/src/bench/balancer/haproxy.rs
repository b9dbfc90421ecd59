//! HAProxy before the same instances, where this machine has it: what a proxy that is only that can do here.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use super::super::{BenchError, process};

/// Where Debian installs it; a user's PATH may not name that folder.
const DEBIANS: &str = "/usr/sbin/haproxy";
/// How long it may take to listen.
const WITHIN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(20);

/// One that runs. Dropped, it is ended.
#[derive(Debug)]
pub(super) struct HaProxy {
    pub(super) version: String,
    pub(super) address: SocketAddr,
    child: Child,
    _dir: tempfile::TempDir,
}

impl HaProxy {
    /// Starts it over these instances, with as many threads as the balancer has workers. `None` where it is not installed.
    pub(super) async fn start(instances: &[SocketAddr]) -> Result<Option<Self>, BenchError> {
        let Some((program, version)) = find() else { return Ok(None) };
        let io = BenchError::io("start haproxy");
        let dir = tempfile::tempdir().map_err(&io)?;
        // Free a moment ago. Whoever takes it meanwhile makes haproxy end, which is said.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(&io)?;
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, configuration(address, instances)).map_err(&io)?;
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut haproxy = Self { version, address, child: command.spawn().map_err(&io)?, _dir: dir };
        let listens = async {
            while TcpStream::connect(address).await.is_err() {
                if let Ok(Some(status)) = haproxy.child.try_wait() {
                    return Err(BenchError::Failed { what: "start haproxy", why: format!("it ended: {status}") });
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            Ok(())
        };
        match tokio::time::timeout(WITHIN, listens).await {
            Ok(listens) => listens?,
            Err(_late) => return Err(BenchError::Late { what: "haproxy", within: WITHIN }),
        }
        Ok(Some(haproxy))
    }

    /// Time of all its threads on a processor so far.
    pub(super) fn cpu(&self) -> Duration {
        process::read(self.child.id()).map(|reading| reading.cpu).unwrap_or_default()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The program and its version.
fn find() -> Option<(PathBuf, String)> {
    ["haproxy", DEBIANS].into_iter().find_map(|program| {
        let said = Command::new(program).arg("-v").stdin(Stdio::null()).output().ok().filter(|o| o.status.success())?;
        // `HAProxy version 2.6.12-1+deb12u3 2025/10/03 - https://haproxy.org/`
        let first = String::from_utf8_lossy(&said.stdout).lines().next()?.to_owned();
        let version = first.split(' ').nth(2).unwrap_or("unknown").to_owned();
        Some((PathBuf::from(program), version))
    })
}

/// What the balancer does, in its words: connections kept on both sides, the same fields added, checks each second, no
/// request sent twice.
fn configuration(address: SocketAddr, instances: &[SocketAddr]) -> String {
    let mut text = format!(
        "global\n  nbthread 2\n  maxconn 4096\n\
         defaults\n  mode http\n  option http-keep-alive\n  option forwardfor\n  http-reuse always\n  retries 0\n\
         \x20 timeout connect 250ms\n  timeout client 75s\n  timeout server 30s\n\
         frontend web\n  bind {address}\n  default_backend web\n\
         backend web\n  balance roundrobin\n  option httpchk GET /health\n  http-request set-header x-forwarded-proto http\n\
         \x20 http-response set-header x-troop-group web-v000\n"
    );
    for (number, instance) in instances.iter().enumerate() {
        // Writing to a String cannot fail.
        let _written = writeln!(text, "  server i{number} {instance} check inter 1s rise 2 fall 2");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_instance_and_the_address() {
        let [a, b, c] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|a| a.parse::<SocketAddr>().unwrap());
        let text = configuration(a, &[b, c]);
        assert!(text.contains("  bind 127.0.0.1:1\n"), "{text}");
        assert!(
            text.contains("  server i0 127.0.0.1:2 check") && text.contains("  server i1 127.0.0.1:3 check"),
            "{text}"
        );
        assert!(text.contains("\n  timeout connect 250ms\n"), "{text}");
    }
}
