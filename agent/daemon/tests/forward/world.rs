//! A host and a peer, each a network namespace, joined by a pair of devices named eth0; made anew for each test by an ordinary user.
//!
//! A test runs itself again under `unshare`, as the only one of a process. There the test's thread is the host, and a thread that
//! has left for a namespace of its own is the peer. A socket stays where it was opened, so both ends can be used from anywhere.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use troop_agent::plane::forward::ForwardPlane;
use troop_agent::plane::{Device, Order, Plane};
use troop_agent::undo::{Journal, Place};
use troop_agent_core::fault::{Delay, Direction, Effect, Fault, FlowShare, Parts, PortRange, Ramp, Selectors, Target};
use troop_agent_core::lease::{LeaseId, Ttl};

pub(crate) const PEER: &str = "10.0.0.2";
/// Another address of the peer.
pub(crate) const OTHER: &str = "10.0.0.3";
pub(crate) const HOST: &str = "10.0.0.1";
pub(crate) const HOST_6: &str = "fd00::1";
pub(crate) const PEER_6: &str = "fd00::2";

const INSIDE: &str = "TROOP_TEST_INSIDE";

/// Runs `test`, whose name is that of the calling test, within namespaces of its own. With TROOP_TRIALS_AS_ROOT that is no user namespace, and the
/// planes are those of the machine's root.
pub(crate) fn in_namespaces(name: &str, test: impl FnOnce(World)) {
    let namespaces = if std::env::var_os("TROOP_TRIALS_AS_ROOT").is_some() { "-n" } else { "-Urn" };
    within(namespaces, name, test);
}

/// The same in a network namespace only, for what root of the machine may do and root of a user namespace may not.
pub(crate) fn as_root_in_a_namespace(name: &str, test: impl FnOnce(World)) {
    within("-n", name, test);
}

fn within(namespaces: &str, name: &str, test: impl FnOnce(World)) {
    if std::env::var_os(INSIDE).is_some() {
        return test(World::make());
    }
    let trial = Command::new("unshare").args([namespaces, "true"]).output();
    if !trial.as_ref().is_ok_and(|trial| trial.status.success()) {
        let reason = trial.map_or_else(|e| e.to_string(), |t| String::from_utf8_lossy(&t.stderr).into_owned());
        assert!(std::env::var_os("CI").is_none(), "no namespaces: {reason}");
        println!("skipped: no namespaces: {reason}");
        return;
    }
    let me = std::env::current_exe().unwrap();
    let status = Command::new("unshare")
        .args([namespaces, "--kill-child"])
        .arg(me)
        .args(["--include-ignored", "--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status();
    assert!(status.unwrap().success());
}

type Errand = Box<dyn FnOnce() + Send>;

pub(crate) struct World {
    peer: Sender<Errand>,
    pub(crate) folder: TempDir,
}

impl World {
    fn make() -> Self {
        let (peer, errands) = channel::<Errand>();
        let (number, numbers) = channel();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            number.send(nix::unistd::gettid()).unwrap();
            errands.into_iter().for_each(|errand| errand());
        });
        let number = numbers.recv().unwrap().to_string();
        let world = Self { peer, folder: TempDir::new().unwrap() };
        ip(&format!("link add eth0 type veth peer name eth0 netns {number}"));
        for command in [
            "addr add 10.0.0.1/24 dev eth0",
            "addr add fd00::1/64 dev eth0 nodad",
            "link set eth0 addrgenmode none",
            "link set lo up",
            "link set eth0 up",
        ] {
            ip(command);
        }
        for command in [
            "addr add 10.0.0.2/24 dev eth0",
            "addr add 10.0.0.3/24 dev eth0",
            "addr add fd00::2/64 dev eth0 nodad",
            "link set lo up",
            "link set eth0 up",
        ] {
            world.at_peer(move || ip(command));
        }
        wait_until("the link", || ip("link show dev eth0").contains("state UP"));
        // Neighbours are known from here on: a lost question costs a second.
        ip(&format!("neigh replace {PEER} dev eth0 lladdr {} nud permanent", world.at_peer(|| address_of("eth0"))));
        world
    }

    pub(crate) fn at_peer<T: Send + 'static>(&self, errand: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.peer.send(Box::new(move || done.send(errand()).unwrap())).unwrap();
        result.recv().unwrap()
    }

    /// A server of the peer's that gives back what it gets.
    pub(crate) fn echoes(&self, address: &str, port: u16) {
        let address: IpAddr = address.parse().unwrap();
        let listener = self.at_peer(move || TcpListener::bind((address, port)).unwrap());
        serve(listener);
    }

    pub(crate) fn peer_socket(&self, address: &str, port: u16) -> UdpSocket {
        let address: IpAddr = address.parse().unwrap();
        self.at_peer(move || UdpSocket::bind((address, port)).unwrap())
    }

    /// A connection of the peer's to this host.
    pub(crate) fn peer_connects(&self, address: &'static str, port: u16) -> TcpStream {
        self.at_peer(move || connect(address, port))
    }

    /// How many packets have come to the peer, whoever reads them.
    pub(crate) fn came(&self) -> u64 {
        self.at_peer(|| {
            let counts = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let line = counts.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        })
    }

    pub(crate) fn journal(&self) -> Journal {
        Journal::open(&self.folder.path().join("undo"), Place::here().unwrap()).unwrap()
    }
}

pub(crate) fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let mut buffer = vec![0; 1 << 16];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..bytes]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A connection on which the peer gives back all it gets; `true` when every byte came back in order.
pub(crate) fn bulk(world: &World, bytes: usize) -> JoinHandle<bool> {
    world.echoes(PEER, 90);
    let stream = connect(PEER, 90);
    let mut reader = stream.try_clone().unwrap();
    let mut writer = stream;
    std::thread::spawn(move || {
        let block: Vec<u8> = (0..65_521_u32).map(|n| u8::try_from(n % 256).unwrap()).collect();
        let reading = std::thread::spawn({
            let block = block.clone();
            move || {
                let mut buffer = vec![0; block.len()];
                (0..bytes / block.len()).all(|_| reader.read_exact(&mut buffer).is_ok() && buffer == block)
            }
        });
        let written = (0..bytes / block.len()).all(|_| writer.write_all(&block).is_ok());
        written && reading.join().unwrap()
    })
}

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn address_of(device: &str) -> String {
    let text = ip(&format!("link show dev {device}"));
    text.split_once("link/ether ").unwrap().1.split(' ').next().unwrap().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a test measures")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(crate) fn connect(address: &str, port: u16) -> TcpStream {
    let address: IpAddr = address.parse().unwrap();
    let stream = TcpStream::connect((address, port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

pub(crate) fn round_trip(stream: &mut TcpStream) -> Duration {
    let begun = now();
    stream.write_all(b"ping").unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    begun.elapsed()
}

/// The median of so many round trips.
pub(crate) fn median_round_trip(stream: &mut TcpStream, count: usize) -> Duration {
    median((0..count).map(|_| round_trip(stream)).collect())
}

pub(crate) fn median(durations: Vec<Duration>) -> Duration {
    quantile(durations, 0.5)
}

pub(crate) fn quantile(mut durations: Vec<Duration>, share: f64) -> Duration {
    durations.sort_unstable();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "small")]
    let at = ((durations.len() - 1) as f64 * share).round() as usize;
    durations[at]
}

pub(crate) fn lease() -> LeaseId {
    LeaseId::new("tested").unwrap()
}

pub(crate) fn delayed(delay: u64) -> Parts {
    Parts { delay: Some(Delay::fixed(ms(delay)).unwrap()), ..Parts::default() }
}

pub(crate) fn to(peer: &str) -> Selectors {
    Selectors { peers: vec![peer.parse().unwrap()], ..Selectors::default() }
}

pub(crate) fn port(port: u16) -> Vec<PortRange> {
    vec![PortRange::one(port).unwrap()]
}

pub(crate) fn fault(direction: Direction, selectors: Selectors, parts: Parts) -> Fault {
    let target = Target::new(selectors, &[]).unwrap();
    Fault { direction, target, effect: Effect::new(parts).unwrap(), ramp: Ramp::NONE, flows: FlowShare::ALL }
}

pub(crate) fn device(name: &str) -> Device {
    Device { name: name.into(), index: nix::net::if_::if_nametoindex(name).unwrap() }
}

pub(crate) fn order(fault: Fault) -> Order {
    Order { lease: lease(), fault, devices: vec![device("eth0")], ttl: Ttl::new(Duration::from_secs(30)).unwrap() }
}

/// Sends so many numbered datagrams to port 5000 of the peer, not faster than a busy machine can hold.
pub(crate) fn send_numbered(packets: u32, bytes: usize) {
    let sender = UdpSocket::bind((HOST, 0)).unwrap();
    let mut payload = vec![0; bytes];
    for number in 0..packets {
        payload[..4].copy_from_slice(&number.to_be_bytes());
        sender.send_to(&payload, (PEER, 5_000)).unwrap();
        if number % 10 == 0 {
            std::thread::sleep(ms(1));
        }
    }
}

/// Waits until it is so, but not for ever.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(ms(1));
    }
}

/// A fault that is up.
pub(crate) struct Applied<P> {
    pub(crate) plane: P,
    pub(crate) journal: Journal,
}

impl Applied<ForwardPlane> {
    pub(crate) fn new(world: &World, fault: Fault) -> Self {
        Self::of(world, &order(fault))
    }

    pub(crate) fn of(world: &World, order: &Order) -> Self {
        Self::by(ForwardPlane::open().unwrap(), world, order)
    }
}

impl<P: Plane> Applied<P> {
    pub(crate) fn by(mut plane: P, world: &World, order: &Order) -> Self {
        let mut journal = world.journal();
        plane.apply(order, &mut journal).unwrap();
        Self { plane, journal }
    }

    pub(crate) fn heal(&mut self) {
        self.plane.heal(&lease(), &mut self.journal).unwrap();
    }

    /// And waits until nothing of it is left.
    pub(crate) fn heal_to_the_end(&mut self) {
        self.heal();
        self.tend_to_the_end();
    }

    pub(crate) fn tend_to_the_end(&mut self) {
        wait_until("the end of what healing leaves", || !self.plane.tend(&mut self.journal).unwrap());
    }
}

/// What the tools see of the host's network, without counters and ages.
pub(crate) fn state() -> String {
    let ip = ["-d link show", "addr show", "rule show", "route show table all", "-6 route show table all"].map(ip);
    let tc = ["qdisc show", "filter show dev eth0 ingress", "filter show dev eth0 egress"].map(|what| run("tc", what));
    ip.join("\n") + &tc.join("\n")
}
