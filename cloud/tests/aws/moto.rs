//! A running moto of a test's own.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long moto may take to answer its first question.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Ends with this value.
pub(crate) struct Moto {
    server: Child,
    pub(crate) url: String,
}

impl Moto {
    pub(crate) async fn start() -> Self {
        // The port is free when it is chosen, and may be taken when moto wants it.
        for _ in 0..3 {
            if let Some(moto) = Self::try_start().await {
                return moto;
            }
        }
        panic!("moto does not start: install PyPI's `moto[server]`, and name its `moto_server` in TROOP_TEST_MOTO");
    }

    async fn try_start() -> Option<Self> {
        let address = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().local_addr().unwrap();
        let program = std::env::var("TROOP_TEST_MOTO").unwrap_or_else(|_| "moto_server".to_owned());
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
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
        let _ended = self.server.kill();
        let _status = self.server.wait();
    }
}

async fn answers(address: SocketAddr) -> bool {
    let Ok(mut stream) = tokio::net::TcpStream::connect(address).await else { return false };
    let mut answer = Vec::new();
    let request = b"GET /moto-api/ HTTP/1.0\r\nhost: localhost\r\n\r\n";
    let asked = stream.write_all(request).await.is_ok() && stream.read_to_end(&mut answer).await.is_ok();
    asked && answer.starts_with(b"HTTP/1.") && answer.windows(4).any(|w| w == b" 200")
}
