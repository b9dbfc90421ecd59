//! What a worker's tests stand on: a cloud that is played, instances, and clients that keep their connection.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use troop_policies::{ClusterName, GroupName, InstanceId};

use crate::Traffic;
use crate::local::balancer::{BalancerError, Clock, run};
use crate::local::protocol::{
    Check, Frames, FromWorker, Hello, PROTOCOL_VERSION, Routes, Target, Verdict, frames, receive, send,
};

/// No wait of a test lasts longer.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("within the limit")
}

pub(super) fn clock() -> Clock {
    Arc::new(|| Timestamp::from_second(1_800_000_000).unwrap())
}

pub(super) fn instance_id(number: u8) -> InstanceId {
    InstanceId::new(format!("i-{number:017x}")).unwrap()
}

pub(super) fn host(cluster: &str) -> String {
    format!("{cluster}.localhost:8080")
}

pub(super) fn member(number: u8, group: &str, address: SocketAddr) -> Target {
    Target { instance: instance_id(number), group: GroupName::new(group).unwrap(), address }
}

pub(super) fn check(instance: &InstanceId, address: SocketAddr) -> Check {
    let group = GroupName::new("web-v000").unwrap();
    Check { instance: instance.clone(), group, address, health_path: "/health".into() }
}

/// The first target's cluster is the default one.
pub(super) fn routes(version: u64, targets: &[Target]) -> Routes {
    let mut clusters: BTreeMap<ClusterName, Vec<Target>> = BTreeMap::new();
    for target in targets {
        clusters.entry(target.group.cluster().clone()).or_default().push(target.clone());
    }
    let default_cluster = targets.first().map(|target| target.group.cluster().clone());
    Routes { version, default_cluster, clusters, ..Routes::default() }
}

/// A report, with names that are easily looked up.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) health: BTreeMap<InstanceId, Verdict>,
    pub(super) traffic: BTreeMap<String, Traffic>,
    pub(super) in_flight: BTreeMap<String, u64>,
}

/// Workers that share a listener, and the cloud that they are connected to.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) address: SocketAddr,
    dir: TempDir,
    cloud: Option<UnixListener>,
    links: Vec<(SplitSink<Frames, Bytes>, SplitStream<Frames>)>,
    workers: Vec<JoinHandle<Result<(), BalancerError>>>,
    stop: CancellationToken,
}

impl Stage {
    pub(super) async fn start(workers: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stop = CancellationToken::new();
        let spawn = |worker| {
            let socket = dir.path().join("cloud.sock");
            tokio::spawn(run(worker, listener.try_clone().unwrap(), socket, clock(), stop.clone()))
        };
        let address = listener.local_addr().unwrap();
        let workers: Vec<_> = (0..workers).map(spawn).collect();
        let mut stage = Self { address, cloud: None, links: Vec::new(), workers, stop, dir };
        stage.restore_cloud().await;
        stage
    }

    /// The cloud listens (again), and all workers come.
    pub(super) async fn restore_cloud(&mut self) {
        let listener = UnixListener::bind(self.dir.path().join("cloud.sock")).unwrap();
        let mut numbers = Vec::new();
        for _ in &self.workers {
            let mut peer = frames(within(listener.accept()).await.unwrap().0);
            let hello = within(receive(&mut peer)).await.unwrap();
            let Some(Hello::Balancer { version: PROTOCOL_VERSION, worker }) = hello else { panic!("{hello:?}") };
            numbers.push(worker);
            self.links.push(peer.split());
        }
        numbers.sort_unstable();
        assert!(numbers.iter().copied().eq(0..u32::try_from(self.workers.len()).unwrap()), "{numbers:?}");
        self.cloud = Some(listener);
    }

    pub(super) fn lose_cloud(&mut self) {
        self.cloud = None;
        self.links.clear();
        std::fs::remove_file(self.dir.path().join("cloud.sock")).unwrap();
    }

    /// Sends routes and waits until all workers say that they follow them.
    pub(super) async fn push(&mut self, routes: Routes) {
        for (to, _) in &mut self.links {
            send(to, &routes).await.unwrap();
        }
        for (_, from) in &mut self.links {
            within(async {
                loop {
                    match receive(from).await.unwrap().unwrap() {
                        FromWorker::Applied { version } => break assert_eq!(version, routes.version),
                        FromWorker::Report { .. } => {}
                    }
                }
            })
            .await;
        }
    }

    /// The first worker's next report of which `when` is true.
    pub(super) async fn report(&mut self, when: impl Fn(&Report) -> bool) -> Report {
        let (_, from) = &mut self.links[0];
        within(async {
            loop {
                if let FromWorker::Report { health, traffic, in_flight } = receive(from).await.unwrap().unwrap() {
                    let traffic = traffic.into_iter().map(|(group, t)| (group.as_str().to_owned(), t)).collect();
                    let in_flight = in_flight.into_iter().map(|(id, count)| (id.as_str().to_owned(), count)).collect();
                    let report = Report { health, traffic, in_flight };
                    if when(&report) {
                        break report;
                    }
                }
            }
        })
        .await
    }

    /// Sends bytes and reads until a whole answer without a body, or the end, is there.
    pub(super) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within(async {
            while !answer.windows(4).any(|four| four == b"\r\n\r\n") && stream.read_buf(&mut answer).await.unwrap() > 0
            {
            }
        })
        .await;
        String::from_utf8(answer).unwrap()
    }

    pub(super) fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn stopped(&mut self) {
        for worker in self.workers.drain(..) {
            within(worker).await.unwrap().unwrap();
        }
    }

    pub(super) async fn stop(mut self) {
        self.ask_to_stop();
        self.stopped().await;
    }
}

/// Reads until these bytes came.
pub(super) async fn read_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut read = Vec::new();
    within(async {
        while !read.ends_with(end) {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "it ended early: {}", read.escape_ascii());
        }
    })
    .await;
    String::from_utf8(read).unwrap()
}

/// A client with one connection.
#[derive(Debug)]
pub(super) struct Client(SendRequest<UnsyncBoxBody<Bytes, Infallible>>);

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(super) async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask(Method::GET, host, path, Bytes::new()).await.unwrap()
    }

    pub(super) async fn ask(
        &mut self,
        method: Method,
        host: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, hyper::Error> {
        let request = Request::builder().method(method).uri(path).header("host", host);
        within(async {
            self.0.ready().await?;
            let response = self.0.send_request(request.body(Full::new(body).boxed_unsync()).unwrap()).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        })
        .await
    }

    /// Sends a body in pieces, each when the answer has brought back the one before.
    pub(super) async fn echo(&mut self, method: Method, host: &str, body: Bytes) -> (StatusCode, Bytes) {
        const PIECE: usize = 200_000;
        let (give, pieces) = mpsc::channel::<Bytes>(1);
        let pieces =
            futures::stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|p| (p, pieces)) });
        let stream = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync();
        let request = Request::builder().method(method).uri("/echo").header("host", host);
        let request = request.header("transfer-encoding", "chunked").body(stream).unwrap();
        within(async {
            self.0.ready().await.unwrap();
            let mut pieces = body.chunks(PIECE).map(Bytes::copy_from_slice);
            give.send(pieces.next().unwrap()).await.unwrap();
            let response = self.0.send_request(request).await.unwrap();
            let status = response.status();
            let mut back = Vec::new();
            let mut incoming = response.into_body().into_data_stream();
            let mut sent = PIECE.min(body.len());
            let mut give = Some(give);
            while let Some(piece) = incoming.try_next().await.unwrap() {
                back.extend_from_slice(&piece);
                if back.len() == sent {
                    match pieces.next() {
                        Some(piece) => {
                            sent += piece.len();
                            give.as_ref().unwrap().send(piece).await.unwrap();
                        }
                        None => give = None,
                    }
                }
            }
            (status, Bytes::from(back))
        })
        .await
    }
}

/// An instance that answers with what it was asked, `/echo` with the body alone.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    asked: watch::Sender<u64>,
    open: watch::Sender<u64>,
    ill: AtomicBool,
    /// Where given, each answer's body waits for a permit.
    gate: Option<Arc<Semaphore>>,
}

type ReplyBody = UnsyncBoxBody<Bytes, hyper::Error>;

impl Instance {
    pub(super) async fn serve() -> Self {
        Self::start(None).await
    }

    pub(super) async fn gated(gate: Arc<Semaphore>) -> Self {
        Self::start(Some(gate)).await
    }

    async fn start(gate: Option<Arc<Semaphore>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, open) = (watch::Sender::new(0), watch::Sender::new(0));
        let state = Arc::new(State { asked, open, ill: AtomicBool::new(false), gate });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    state.open.send_modify(|open| *open += 1);
                    let service = service_fn(|request| reply(Arc::clone(&state), request));
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // A client that is gone is the tests' business, not the instance's.
                    connection.await.ok();
                    state.open.send_modify(|open| *open -= 1);
                });
            }
        });
        Self { address, state }
    }

    pub(super) fn requests(&self) -> u64 {
        *self.state.asked.borrow()
    }

    pub(super) async fn asked(&self, times: u64) {
        self.state.asked.subscribe().wait_for(|asked| *asked >= times).await.unwrap();
    }

    /// Waits until nobody holds a connection.
    pub(super) async fn closed(&self) {
        self.state.open.subscribe().wait_for(|open| *open == 0).await.unwrap();
    }

    pub(super) fn be_ill(&self) {
        self.state.ill.store(true, Ordering::SeqCst);
    }
}

async fn reply(state: Arc<State>, request: Request<Incoming>) -> Result<Response<ReplyBody>, hyper::Error> {
    let whole = |text: Vec<u8>| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let response = Response::builder().header("x-troop-group", "claimed").header("x-troop-instance", "claimed");
    if request.uri().path() == "/health" {
        let ill = state.ill.load(Ordering::SeqCst);
        return Ok(response.status(if ill { 503 } else { 200 }).body(whole(Vec::new())).unwrap());
    }
    state.asked.send_modify(|asked| *asked += 1);
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/echo" {
        return Ok(response.body(body.boxed_unsync()).unwrap());
    }
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    text.push('\n');
    let mut text = text.into_bytes();
    text.extend_from_slice(&body.collect().await?.to_bytes());
    let Some(gate) = state.gate.clone() else { return Ok(response.body(whole(text)).unwrap()) };
    let late = futures::stream::once(async move {
        gate.acquire().await.unwrap().forget();
        Ok(Frame::data(Bytes::from(text)))
    });
    Ok(response.body(StreamBody::new(late).boxed_unsync()).unwrap())
}

/// An address that takes no more connections and does not say so, as long as what comes with it is kept.
pub(super) async fn vanished() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 10, "the backlog is never full");
    }
    (address, (listener, waiting))
}
