//! An instance that answers at once, as little as a service can.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::super::BenchError;
use super::super::thread::Part;

/// What it says: about as long as the sample service's answer.
static BODY: Bytes = Bytes::from_static(&[b'.'; 128]);

/// Several instances, each with an address of its own, on one thread.
#[derive(Debug)]
pub(super) struct Instances {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) part: Part,
}

impl Instances {
    pub(super) fn start(count: usize) -> Result<Self, BenchError> {
        let io = BenchError::io("open an instance's listener");
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().map_err(&io)?;
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(&io)?;
        let part = Part::start("bench-instances", |stop| async move {
            let mut serving = JoinSet::new();
            for listener in listeners {
                listener.set_nonblocking(true).map_err(|e| e.to_string())?;
                let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
                serving.spawn(serve(listener));
            }
            stop.cancelled().await;
            Ok(())
        })?;
        Ok(Self { addresses, part })
    }
}

/// Serves whoever comes, for ever. Clients are cut off when this is dropped.
pub(crate) async fn serve(listener: tokio::net::TcpListener) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        clients.spawn(async move {
            // A client that is gone is its own business.
            let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    std::future::ready(Ok(Response::new(Full::new(BODY.clone())))).await
}
