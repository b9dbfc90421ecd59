//! A control plane of the tests' own, as a process, so that it can be killed and frozen: it takes one agent at a time, sends what it
//! is told on its standard input, renews what it has granted, and says what it hears.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use troop_agent_core::protocol::{self, Chapter, FromAgent, Grant, Story, ToAgent, VERSION};
use troop_policies::fault::{Direction, FaultSpec, PortSpan};

use crate::probe::nanos;
use crate::world::{PEER, ms};

const SOCKET: &str = "TROOP_TEST_CONTROL_PLANE";
const TWICE: &str = "TROOP_TEST_TWICE";
/// A folder with a certificate and its key: then agents are received over TLS.
const TLS: &str = "TROOP_TEST_TLS";
pub(crate) const TLS_PORT: u16 = 8_443;
const SOCKET_NAME: &str = "agents.sock";
/// Before each line that it says: the test harness says things, too.
const MARK: &str = "@@ ";
/// Longest wait for anything that it should hear.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a fault is like, and whom it concerns: one port of the peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) delay: Duration,
    pub(crate) direction: Direction,
    pub(crate) port: u16,
    pub(crate) ttl: Duration,
}

impl Asked {
    /// How much longer a round trip takes.
    pub(crate) fn longer(&self) -> Duration {
        if self.direction == Direction::Both { self.delay * 2 } else { self.delay }
    }

    pub(crate) fn grant(&self, number: u64, lease: &str) -> ToAgent {
        let mut fault = FaultSpec::delay(self.delay, vec![PEER.parse().unwrap()]);
        fault.direction = self.direction;
        fault.remote_ports = vec![PortSpan { first: self.port, last: self.port }];
        ToAgent::Grant(Box::new(Grant {
            number,
            lease: lease.to_owned(),
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap(),
            life_ms: 600_000,
            fault,
            peers: vec![PEER.to_owned()],
            probes: vec![format!("{PEER}:{}", self.port).parse().unwrap()],
        }))
    }
}

/// What it said, and when.
#[derive(Debug, Default)]
struct Heard {
    lines: Mutex<Vec<(u64, String)>>,
    more: Condvar,
}

/// The test's end of it.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    pub(crate) child: Child,
    words: ChildStdin,
    heard: Arc<Heard>,
    /// How an agent reaches it.
    pub(crate) to: Vec<OsString>,
}

impl ControlPlane {
    /// On a unix socket. `twice`: each message goes out two times.
    pub(crate) fn start(folder: &Path, twice: bool) -> Self {
        let to = vec!["--to".into(), format!("unix:{}", folder.join(SOCKET_NAME).display()).into()];
        Self::run(folder, to, twice.then_some((TWICE, Path::new("1"))))
    }

    /// On a port of the loopback, over TLS.
    pub(crate) fn start_tls(folder: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let to =
            [format!("--to=https://localhost:{TLS_PORT}"), format!("--ca-file={}", folder.join("cert.pem").display())];
        Self::run(folder, to.map(OsString::from).to_vec(), Some((TLS, folder)))
    }

    fn run(folder: &Path, to: Vec<OsString>, more: Option<(&str, &Path)>) -> Self {
        let socket = folder.join(SOCKET_NAME);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "control::plays_the_control_plane", "--nocapture", "--test-threads=1"]);
        command.envs(more);
        let mut child = command.env(SOCKET, &socket).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (words, lines) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let heard = Arc::new(Heard::default());
        let told = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let Some((at, text)) = line.split_once(MARK).and_then(|(_, said)| said.split_once(' ')) else {
                    continue;
                };
                told.lines.lock().unwrap().push((at.parse().unwrap(), text.to_owned()));
                told.more.notify_all();
            }
        });
        let control = Self { child, words, heard, to };
        control.wait_for("its start", 0, |line| line == "listening");
        control
    }

    /// When it first said, after `from` lines, what is meant, and its text.
    pub(crate) fn wait_for(&self, what: &str, from: usize, is_it: impl Fn(&str) -> bool) -> (u64, String) {
        let found = |lines: &Vec<(u64, String)>| lines.iter().skip(from).find(|(_, text)| is_it(text)).cloned();
        let lines = self.heard.lines.lock().unwrap();
        let (lines, waited) = self.heard.more.wait_timeout_while(lines, PATIENCE, |l| found(l).is_none()).unwrap();
        assert!(!waited.timed_out(), "the control plane does not hear of {what}; it heard {lines:#?}");
        found(&lines).unwrap()
    }

    /// How much it has said; what comes later is news.
    pub(crate) fn said(&self) -> usize {
        self.heard.lines.lock().unwrap().len()
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.heard.lines.lock().unwrap().iter().map(|(_, text)| text.clone()).collect()
    }

    pub(crate) fn wait_for_story(&self, lease: &str, is_it: impl Fn(&Story) -> bool) -> Story {
        let story = |line: &str| match heard(line) {
            Some(FromAgent::Story(story)) if story.lease == lease => Some(story),
            _ => None,
        };
        let (_, line) = self.wait_for("the story", 0, |line| story(line).is_some_and(|story| is_it(&story)));
        story(&line).unwrap()
    }

    pub(crate) fn wait_until_up(&self, lease: &str) {
        let story = self.wait_for_story(lease, |story| matches!(story.at, Chapter::Up | Chapter::Over));
        assert_eq!(story.at, Chapter::Up, "{story:?}");
    }

    /// What the agent answered to a command.
    pub(crate) fn answer_to(&self, number: u64) -> protocol::Answered {
        let answer = |line: &str| match heard(line) {
            Some(FromAgent::Answer { number: to, answer }) if to == number => Some(answer),
            _ => None,
        };
        let (_, line) = self.wait_for("the answer", 0, |line| answer(line).is_some());
        answer(&line).unwrap()
    }

    /// Grants a lease and renews it from then on.
    pub(crate) fn grant(&mut self, lease: &str, asked: &Asked) {
        self.grant_message(&asked.grant(0, lease));
    }

    /// Likewise, with a grant as it is but for its number.
    pub(crate) fn grant_message(&mut self, grant: &ToAgent) {
        self.say(&format!("grant {}", serde_json::to_string(grant).unwrap()));
    }

    /// Ends a lease; when it was sent.
    pub(crate) fn end(&mut self, lease: &str) -> u64 {
        self.say(&format!("end {lease}"));
        self.wait_for("its own end", 0, |line| line == format!("ended {lease}")).0
    }

    /// Sends a message as it is.
    pub(crate) fn raw(&mut self, message: &ToAgent) {
        self.say(&format!("raw {}", serde_json::to_string(message).unwrap()));
    }

    /// Sends a line that this release may not understand.
    pub(crate) fn line(&mut self, line: &str) {
        self.say(&format!("line {line}"));
    }

    /// Closes the agent's connection.
    pub(crate) fn hang_up(&mut self) {
        self.say("hangup");
    }

    fn say(&mut self, line: &str) {
        // A control plane that was killed hears nothing.
        drop(writeln!(self.words, "{line}"));
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The message of the agent in a line, if it is one.
pub(crate) fn heard(line: &str) -> Option<FromAgent> {
    line.strip_prefix("heard ").map(|message| serde_json::from_str(message).unwrap())
}

/// Not a test but what [`ControlPlane`] runs.
#[test]
fn plays_the_control_plane() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(Path::new(&socket)));
}

#[derive(Debug, Default)]
struct Desk {
    queue: Option<mpsc::Sender<Bytes>>,
    next: u64,
    /// How long each lease is, and how many hundredths of a second ago it was sent.
    leases: BTreeMap<String, (u64, u64)>,
    twice: bool,
}

async fn serve(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    let tls = std::env::var_os(TLS).map(|folder| acceptor(Path::new(&folder)));
    let tcp = TcpListener::bind(("127.0.0.1", if tls.is_some() { TLS_PORT } else { 0 })).await.unwrap();
    let desk = Arc::new(Mutex::new(Desk { twice: std::env::var_os(TWICE).is_some(), ..Desk::default() }));
    let (tell, mut words) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            drop(tell.send(line));
        }
    });
    say("listening");
    let mut tick = tokio::time::interval(ms(10));
    // A frozen control plane does not catch up with what it has missed.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(tokio::spawn(receive(accepted.unwrap().0, Arc::clone(&desk)))),
            accepted = tcp.accept(), if tls.is_some() => {
                let handshake = tls.clone().map(|tls| tls.accept(accepted.unwrap().0)).unwrap();
                let desk = Arc::clone(&desk);
                tokio::spawn(async move { receive(handshake.await.unwrap(), desk).await });
            }
            // Nobody is there any more who could say something.
            word = words.recv() => match word {
                Some(word) => desk.lock().unwrap().obey(&word),
                None => return,
            },
            _ = tick.tick() => desk.lock().unwrap().renew(),
        }
    }
}

fn acceptor(folder: &Path) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(folder.join("cert.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn receive(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, desk: Arc<Mutex<Desk>>) {
    let service =
        service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(request, Arc::clone(&desk)))));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    drop(connection.await);
}

fn answer(
    request: Request<Incoming>,
    desk: Arc<Mutex<Desk>>,
) -> Response<StreamBody<impl tokio_stream::Stream<Item = Result<Frame<Bytes>, Infallible>>>> {
    let (queue, waiting) = mpsc::channel::<Bytes>(256);
    tokio::spawn(async move {
        let mut body = request.into_body();
        // The desk has it alone, so that it can hang up.
        let mut queue = Some(queue);
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let message = protocol::read::<FromAgent>(&line).and_then(FromAgent::checked).unwrap();
                desk.lock().unwrap().hear(message, queue.take());
            }
        }
    });
    Response::new(StreamBody::new(ReceiverStream::new(waiting).map(|line| Ok(Frame::data(line)))))
}

impl Desk {
    fn hear(&mut self, message: FromAgent, queue: Option<mpsc::Sender<Bytes>>) {
        if let FromAgent::Hello(hello) = &message {
            self.queue = queue;
            self.next = self.next.max(hello.highest_number + 1);
            self.send(&ToAgent::Welcome { version: VERSION });
            let number = self.number();
            self.send(&ToAgent::Resume { number });
            say(&format!("connected {}", hello.highest_number));
        }
        say(&format!("heard {}", serde_json::to_string(&message).unwrap()));
    }

    fn obey(&mut self, word: &str) {
        let (verb, rest) = word.split_once(' ').unwrap_or((word, ""));
        match verb {
            "grant" => {
                let ToAgent::Grant(mut grant) = serde_json::from_str(rest).unwrap() else { panic!("{rest}") };
                grant.number = self.number();
                self.leases.insert(grant.lease.clone(), (grant.ttl_ms, 0));
                say(&format!("granted {}", grant.number));
                self.send(&ToAgent::Grant(grant));
            }
            "end" => {
                self.leases.remove(rest);
                let number = self.number();
                self.send(&ToAgent::End { number, lease: rest.to_owned() });
                say(&format!("ended {rest}"));
            }
            "raw" => self.send(&serde_json::from_str(rest).unwrap()),
            "line" => drop(self.queue.as_ref().unwrap().try_send(format!("{rest}\n").into())),
            "hangup" => self.queue = None,
            other => panic!("{other}"),
        }
    }

    /// A hundredth of a second has passed. Every third of a lease it is renewed.
    fn renew(&mut self) {
        let mut due = Vec::new();
        for (lease, (ttl_ms, since)) in &mut self.leases {
            *since += 1;
            if *since * 10 >= *ttl_ms / 3 {
                *since = 0;
                due.push((lease.clone(), *ttl_ms));
            }
        }
        for (lease, ttl_ms) in due {
            let number = self.number();
            self.send(&ToAgent::Renew { number, lease, ttl_ms, peers: None });
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn send(&mut self, message: &ToAgent) {
        let Some(queue) = &self.queue else { return };
        for _ in 0..if self.twice { 2 } else { 1 } {
            // An agent that is dead or frozen does not read.
            drop(queue.try_send(protocol::write(message).unwrap().into()));
        }
    }
}

fn say(text: &str) {
    println!("{MARK}{} {text}", nanos());
}
