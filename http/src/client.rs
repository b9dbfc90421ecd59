//! One client's connection, over whatever stream it came.
//!
//! hyper has one limit for both an idle connection and a head that is slow to come; a browser's idle connection may
//! last, a head that trickles in may not. So both are watched here.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::phase::Phase;
use super::places::Place;

/// Most fields that hyper takes by itself, on its stack; any other number costs it an allocation a request.
const FIELDS_OF_HYPER: usize = 100;

/// How a connection ended, for a log.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// By us: why.
    #[error("closed: {0}")]
    Closed(&'static str),
    #[error("broken off")]
    Broken(#[source] hyper::Error),
}

/// Serves one client until it leaves, exceeds a limit, or must leave for others; on `stop` the request in flight is finished.
///
/// Each request carries its connection's `Arc<Phase>` as an extension: whoever reads the body of a request says there
/// when it waits for the client. A client that closes its sending side counts as gone, since one that vanished looks the
/// same.
///
/// # Errors
/// [`Ended`], when the connection did not end by itself.
pub async fn serve<IO, S, B>(
    stream: IO,
    service: S,
    place: Place,
    limits: &Limits,
    stop: CancellationToken,
) -> Result<(), Ended>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: std::error::Error + Send + Sync + 'static,
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Place(phase) = place;
    phase.arrives();
    let watched = Watched { stream, phase: Arc::clone(&phase) };
    let service = service_fn(|mut request: Request<Incoming>| {
        phase.begin();
        request.extensions_mut().insert(Arc::clone(&phase));
        let answer = service.call(request);
        let phase = Arc::clone(&phase);
        async move { Ok::<_, S::Error>(answer.await?.map(|body| Ending { body, phase })) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(limits.head_bytes_max);
    if limits.fields_max != FIELDS_OF_HYPER {
        builder.max_headers(limits.fields_max);
    }
    let connection = builder.serve_connection(TokioIo::new(watched), service).with_upgrades();
    let mut connection = pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Ended::Broken),
            why = phase.over(limits) => return Err(Ended::Closed(why)),
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The client's stream, which tells the phase what comes and what does not go.
#[derive(Debug)]
struct Watched<IO> {
    stream: IO,
    phase: Arc<Phase>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.phase.count(buf.filled().len() - before);
            self.phase.heard();
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> Watched<IO> {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        how: impl FnOnce(Pin<&mut IO>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let polled = how(Pin::new(&mut self.stream), cx);
        self.phase.has_answer(polled.is_pending());
        if let Poll::Ready(Ok(bytes)) = polled {
            self.phase.count(bytes);
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer's body; with its end the connection is idle again.
struct Ending<B> {
    body: B,
    phase: Arc<Phase>,
}

impl<B> Drop for Ending<B> {
    fn drop(&mut self) {
        self.phase.end();
    }
}

impl<B: Body + Unpin> Body for Ending<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
