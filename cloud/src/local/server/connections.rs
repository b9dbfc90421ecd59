//! Both sides of STATE/run/cloud.sock that talk: clients, one request after the other, and workers of the balancer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Message;
use crate::local::controller::Event;
use crate::local::protocol::{
    Frames, FromWorker, Hello, PROTOCOL_VERSION, Request, Response, Routes, frames, receive, send,
};

/// How long a peer may take to say who it is. It says so with its first bytes.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Pause after a failed accept: the process is out of descriptors, and trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections until `stop`, then lets those that are writing finish.
pub(super) async fn accept(
    listener: UnixListener,
    messages: mpsc::Sender<Message>,
    routes: watch::Receiver<Arc<Routes>>,
    stop: CancellationToken,
) {
    let mut open = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    number += 1;
                    let talk = talk(stream, number, messages.clone(), routes.clone(), stop.clone());
                    open.spawn(async move {
                        if let Err(error) = talk.await {
                            tracing::debug!(%error, "a connection to the cloud ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    while open.join_next().await.is_some() {}
}

async fn talk(
    stream: UnixStream,
    connection: u64,
    messages: mpsc::Sender<Message>,
    routes: watch::Receiver<Arc<Routes>>,
    stop: CancellationToken,
) -> io::Result<()> {
    // A worker's process: one that was started again has another, and begins its counts anew.
    let life = stream.peer_cred()?.pid();
    let mut peer = frames(stream);
    let Some(hello) = tokio::time::timeout(HELLO_WITHIN, receive(&mut peer)).await?? else { return Ok(()) };
    let (Hello::Client { version } | Hello::Balancer { version, .. }) = hello;
    if version != PROTOCOL_VERSION {
        let why = format!("you speak version {version} of the protocol, the cloud {PROTOCOL_VERSION}");
        return send(&mut peer, &Response::Error(why)).await;
    }
    match hello {
        Hello::Client { .. } => serve_client(peer, messages, stop).await,
        Hello::Balancer { worker, .. } => {
            let join = Event::WorkerJoined { worker, connection, life };
            tell(&messages, join).await?;
            let served = serve_worker(peer, worker, connection, &messages, routes, stop).await;
            tell(&messages, Event::WorkerLeft { worker, connection }).await?;
            served
        }
    }
}

async fn serve_client(mut peer: Frames, messages: mpsc::Sender<Message>, stop: CancellationToken) -> io::Result<()> {
    loop {
        let request: Option<Request> = tokio::select! {
            request = receive(&mut peer) => match request {
                Ok(request) => request,
                // A frame that is no request: answered, and then the connection ends, since what follows is not sure.
                Err(e) => return send(&mut peer, &Response::Error(format!("no request: {e}"))).await,
            },
            () = stop.cancelled() => return Ok(()),
        };
        let Some(request) = request else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        messages.send(Message::Request { request, reply }).await.map_err(io::Error::other)?;
        // Without an answer the cloud is ending, and so does the connection.
        let Ok(answer) = answer.await else { return Ok(()) };
        send(&mut peer, &answer).await?;
    }
}

async fn serve_worker(
    peer: Frames,
    worker: u32,
    connection: u64,
    messages: &mpsc::Sender<Message>,
    mut routes: watch::Receiver<Arc<Routes>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let (mut to, mut from) = peer.split();
    let push = async {
        loop {
            // Only the newest matters: a worker that is slow skips what came between.
            let newest = Arc::clone(&routes.borrow_and_update());
            send(&mut to, &*newest).await?;
            if routes.changed().await.is_err() {
                return Ok(());
            }
        }
    };
    let listen = async {
        while let Some(said) = receive::<_, FromWorker>(&mut from).await? {
            let event = match said {
                FromWorker::Applied { version } => Event::Applied { worker, connection, version },
                FromWorker::Report { health, traffic, in_flight } => {
                    Event::Report { worker, connection, health, traffic, in_flight }
                }
            };
            tell(messages, event).await?;
        }
        Ok(())
    };
    tokio::select! {
        pushed = push => pushed,
        listened = listen => listened,
        () = stop.cancelled() => Ok(()),
    }
}

async fn tell(messages: &mpsc::Sender<Message>, event: Event) -> io::Result<()> {
    messages.send(Message::Event(event)).await.map_err(io::Error::other)
}
