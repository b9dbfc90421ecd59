//! A running moto of a test's own, which ends with it however the test ends.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long moto may take to answer its first question.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long it may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs moto until its own standard input ends, which the kernel closes whatever becomes of the test: it may panic, or be killed.
const UNTIL_STDIN_ENDS: &str = r#"
exec 3<&0
"$0" "$@" </dev/null 3<&- & moto=$!
{ cat <&3 >/dev/null; kill "$moto" 2>/dev/null; } & watcher=$!
exec 3<&-
wait "$moto"
kill "$watcher" 2>/dev/null
"#;

/// The same server without its check of signatures, which knows forms only as boto3 writes them (a space as `+`, which every other client
/// writes as `%20`): for tests of permissions, which it looks up by the key's id.
const WITHOUT_SIGNATURES: &str = "
from moto.iam.access_control import IAMRequestBase
IAMRequestBase.check_signature = lambda self: None
from moto.server import main
main()
";

/// Ends with this value.
pub(crate) struct Moto {
    server: Child,
    pub(crate) url: String,
}

impl Moto {
    pub(crate) async fn start() -> Self {
        Self::run(&[&program()]).await
    }

    /// One that believes everybody who he says he is.
    pub(crate) async fn start_without_signatures() -> Self {
        Self::run(&[&python().to_string_lossy(), "-c", WITHOUT_SIGNATURES]).await
    }

    async fn run(command: &[&str]) -> Self {
        // The port is free when it is chosen, and may be taken when moto wants it.
        for _ in 0..3 {
            if let Some(moto) = Self::try_start(command).await {
                return moto;
            }
        }
        panic!("moto does not start: install PyPI's `moto[server]`, and name its `moto_server` in TROOP_TEST_MOTO");
    }

    async fn try_start(command: &[&str]) -> Option<Self> {
        let address = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().local_addr().unwrap();
        let server = Command::new("sh")
            .args(["-c", UNTIL_STDIN_ENDS])
            .args(command)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut moto = Self { server, url: format!("http://{address}") };
        let ready = async {
            while !answers(address).await {
                if moto.server.try_wait().unwrap().is_some() {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            true
        };
        tokio::time::timeout(READY_WITHIN, ready).await.unwrap_or(false).then_some(moto)
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        for _ in 0..ENDS_WITHIN.as_millis() / LOOK_EVERY.as_millis() {
            if !matches!(self.server.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ended = self.server.kill();
        let _status = self.server.wait();
    }
}

fn program() -> String {
    std::env::var("TROOP_TEST_MOTO").unwrap_or_else(|_| "moto_server".to_owned())
}

/// The Python in which moto is installed.
pub(crate) fn python() -> PathBuf {
    let program = program();
    let python = if program.contains('/') { "python" } else { "python3" };
    Path::new(&program).with_file_name(python)
}

async fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return false };
    let mut answer = Vec::new();
    let request = b"GET /moto-api/ HTTP/1.0\r\nhost: localhost\r\n\r\n";
    let asked = stream.write_all(request).await.is_ok() && stream.read_to_end(&mut answer).await.is_ok();
    asked && answer.starts_with(b"HTTP/1.") && answer.windows(4).any(|w| w == b" 200")
}
