//! The control plane's way out of the sandbox, for hold signals and notices alone: inside there is no network but the instances'.
//!
//! The supervisor, on the host, listens on STATE/run/outside.sock, which only its own user can open. A caller sends one
//! line, `HOST PORT`; the answer is a line, `ok` or why not, and after `ok` the bytes of the connection.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// How long a name may take to be found and a host to take the connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long one connection may last: an answer to a question takes a second.
const LASTS_AT_MOST: Duration = Duration::from_secs(10);
/// Connections at a time: twenty signals of a site, twenty of an app that is asked about meanwhile, and twenty notices, which
/// are never more: a slow channel must not make signals late.
const AT_ONCE: usize = 60;
/// Longest line: a name of 253 characters, a port, and room.
const LINE_BYTES_MAX: u64 = 300;

/// A connection, whichever way it was made.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// How connections are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dial {
    Direct,
    /// Through the supervisor's socket.
    Through(PathBuf),
}

impl Dial {
    /// Connects to a host, by name or address.
    ///
    /// # Errors
    /// When it cannot be found or does not take the connection within two seconds.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Direct => Ok(Box::new(connect(host, port).await?)),
            Self::Through(socket) => Ok(Box::new(through(socket, host, port).await?)),
        }
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let connecting = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect((bare, port)));
    connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn through(socket: &Path, host: &str, port: u16) -> io::Result<BufReader<UnixStream>> {
    let asking = async {
        let mut stream = BufReader::new(UnixStream::connect(socket).await?);
        stream.get_mut().write_all(format!("{host} {port}\n").as_bytes()).await?;
        let mut answer = String::new();
        (&mut stream).take(LINE_BYTES_MAX).read_line(&mut answer).await?;
        if answer.trim_end() == "ok" { Ok(stream) } else { Err(io::Error::other(answer.trim_end().to_owned())) }
    };
    let asked = tokio::time::timeout(CONNECT_WITHIN * 2, asking).await;
    asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Serves the supervisor's side. Never returns.
pub async fn serve(listener: UnixListener) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    match tokio::time::timeout(LASTS_AT_MOST, pass(stream)).await {
                        Ok(Ok(())) | Err(_) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "a connection to the outside ended badly"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept on the socket to the outside");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn pass(stream: UnixStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
    let asked = line.trim_end().split_once(' ').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let Some((host, port)) = asked else { return stream.get_mut().write_all(b"no such line\n").await };
    match connect(host, port).await {
        Ok(mut outside) => {
            stream.get_mut().write_all(b"ok\n").await?;
            tokio::io::copy_bidirectional(&mut stream, &mut outside).await.map(drop)
        }
        Err(e) => stream.get_mut().write_all(format!("{}\n", e.to_string().replace('\n', " ")).as_bytes()).await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_closed_port_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("outside.sock");
        tokio::spawn(serve(UnixListener::bind(&socket).unwrap()));
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = echo.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        });
        let dial = Dial::Through(socket);
        let mut stream = dial.connect("127.0.0.1", port).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        server.await.unwrap();
        let Err(refused) = dial.connect("127.0.0.1", port).await else { panic!("a closed port took a connection") };
        assert!(refused.to_string().contains("refused"), "{refused}");
        let gone = Dial::Through(dir.path().join("none")).connect("127.0.0.1", port).await;
        assert!(gone.is_err_and(|e| e.kind() == io::ErrorKind::NotFound));
    }
}
