//! Two hosts with a cable between them, in network namespaces of their own, and what can be measured there.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use troop_agent::plane::Device;

pub(crate) const HERE: &str = "10.77.0.1";
pub(crate) const PEER: &str = "10.77.0.2";
/// The peer's second address.
pub(crate) const OTHER: &str = "10.77.0.3";
pub(crate) const HERE6: &str = "fd77::1";
pub(crate) const PEER6: &str = "fd77::2";

/// Namespaces `NAME-here` and `NAME-peer`, gone with the value. The thread that makes it stands in the first from then on.
#[derive(Debug)]
pub(crate) struct Stage {
    name: String,
    pub(crate) folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        let stage = Self { name: name.to_owned(), folder: tempfile::tempdir().unwrap() };
        let (here, peer) = (stage.here(), stage.peer());
        // One process for each namespace: starting one takes a virtual machine long.
        let set_up = |device: &str, addresses: &[&str]| {
            let mut lines: String =
                addresses.iter().map(|address| format!("addr add {address} dev {device}\n")).collect();
            lines += &format!("link set {device} up\nlink set lo up\n");
            lines
        };
        let cable = format!("link add v0 netns {here} type veth peer name v1 netns {peer}\n");
        batch("ip", &[], &format!("netns add {here}\nnetns add {peer}\n"));
        for namespace in [&peer, &here] {
            enter(namespace);
            // Addresses that are tried out first would appear in the state some time later.
            std::fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0").unwrap();
        }
        batch("ip", &[], &cable);
        batch("ip", &["-n", &here], &set_up("v0", &[&format!("{HERE}/24"), &format!("{HERE6}/64 nodad")]));
        let peers = [format!("{PEER}/24"), format!("{OTHER}/24"), format!("{PEER6}/64 nodad")];
        batch("ip", &["-n", &peer], &set_up("v1", &peers.each_ref().map(String::as_str)));
        link_local("v0");
        for peer in [PEER, OTHER, PEER6] {
            settle(peer);
        }
        stage
    }

    fn here(&self) -> String {
        format!("{}-here", self.name)
    }

    pub(crate) fn peer(&self) -> String {
        format!("{}-peer", self.name)
    }

    pub(crate) fn journal_folder(&self) -> PathBuf {
        self.folder.path().join("undo")
    }

    /// Everything of the host that a fault could have changed, as its administrator would see it.
    pub(crate) fn state(&self) -> String {
        let here = self.here();
        let ip = "rule show\nroute show table all\nlink show\n";
        let tc = "qdisc show\nfilter show dev v0\nfilter show dev v0 egress\nfilter show dev v0 ingress\n";
        let mut all = batch("ip", &["-n", &here, "-d"], ip);
        all += &batch("ip", &["-n", &here, "-6"], "rule show\nroute show table all\n");
        all += &batch("tc", &["-n", &here], tc);
        all + &output("ip", &["netns", "exec", &here, "nft", "list", "ruleset"])
    }

    /// Runs `work` on a thread that stands in the peer's namespace.
    pub(crate) fn at_peer<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let peer = self.peer();
        let thread = std::thread::spawn(move || {
            enter(&peer);
            work()
        });
        thread.join().unwrap()
    }

    /// Listens at the peer; the kernel shakes hands by itself.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        self.at_peer(move || TcpListener::bind(("::", port)).unwrap())
    }

    pub(crate) fn receive(&self, port: u16) -> UdpSocket {
        let socket = self.at_peer(move || UdpSocket::bind(("::", port)).unwrap());
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20)).unwrap();
        socket
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for name in [self.here(), self.peer()] {
            Command::new("ip").args(["netns", "del", &name]).status().ok();
        }
    }
}

pub(crate) fn device(name: &str) -> Device {
    let index = nix::net::if_::if_nametoindex(name).unwrap();
    Device { name: name.to_owned(), index }
}

pub(crate) fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

pub(crate) fn ip(arguments: &[&str]) {
    output("ip", arguments);
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    // UML has no nftables to list.
    assert!(done.status.success() || arguments.contains(&"nft"), "{program} {arguments:?}: {said}");
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a program that reads its commands line by line.
pub(crate) fn batch(program: &str, arguments: &[&str], lines: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {lines}");
    String::from_utf8(done.stdout).unwrap()
}

/// How long a handshake takes; `None` when there is none within `at_most`.
pub(crate) fn handshake_within(address: &str, port: u16, at_most: Duration) -> Option<Duration> {
    let end = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let began = Instant::now();
    match TcpStream::connect_timeout(&end, at_most) {
        Ok(_) => Some(began.elapsed()),
        Err(error) if error.kind() == ErrorKind::TimedOut => None,
        Err(error) => panic!("{end}: {error}"),
    }
}

/// The median of five handshakes, in milliseconds.
pub(crate) fn handshake_ms(address: &str, port: u16) -> f64 {
    let mut all: Vec<_> =
        (0..5).map(|_| handshake_within(address, port, Duration::from_secs(5)).unwrap().as_secs_f64() * 1e3).collect();
    all.sort_by(f64::total_cmp);
    all[2]
}

/// What a handshake takes when nothing delays it, on a machine that is busy.
const RAW_MS: f64 = 15.0;

/// Asserts that handshakes take so long: never less, and up to a fifth more as soon as the machine is not too busy for that.
pub(crate) fn assert_takes(what: &str, address: &str, port: u16, asked: Duration) {
    let asked = asked.as_secs_f64() * 1e3;
    let mut found = Vec::new();
    for _ in 0..10 {
        let median = handshake_ms(address, port);
        assert!(median >= asked - 1.0, "{what}: {median} ms is less than {asked} ms");
        found.push(median);
        if median <= asked * 1.2 + RAW_MS {
            eprintln!("{}: {what}: {found:.2?} ms, asked for {asked} ms", crate::machine().unwrap());
            return;
        }
    }
    panic!("{what}: medians of {found:.2?} ms, asked for {asked} ms");
}

/// Waits until the device has its link-local address, which it gets when the kernel has noticed the cable.
fn link_local(device: &str) {
    for _ in 0..200 {
        let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        // Address, number, prefix, scope, flags of which 40 is tentative, and name.
        let has = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words[5] == device && words[0].starts_with("fe80") && u8::from_str_radix(words[4], 16).unwrap() & 0x40 == 0
        };
        if addresses.lines().any(has) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{device} has no link-local address");
}

/// Asserts that a state is as it was, and says otherwise which lines are not.
#[track_caller]
pub(crate) fn assert_same(after: &str, before: &str) {
    let missing = |from: &str, of: &str| -> Vec<String> {
        let there: Vec<_> = of.lines().collect();
        from.lines().filter(|line| !there.contains(line)).map(str::to_owned).collect()
    };
    let (new, gone) = (missing(after, before), missing(before, after));
    assert!(after == before, "there is {new:#?} and there is no longer {gone:#?}");
}

/// Waits until the two ends know each other's hardware addresses: a refused handshake says so.
fn settle(address: &str) {
    let end = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 1);
    for _ in 0..50 {
        match TcpStream::connect_timeout(&end, Duration::from_secs(2)) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    panic!("{address} cannot be reached");
}

/// Sends numbered datagrams of `bytes` bytes to the peer's `port`, `pause` apart.
pub(crate) fn send_numbered(address: &str, port: u16, count: u32, bytes: usize, pause: Duration) {
    let socket = UdpSocket::bind((if address.contains(':') { "::" } else { "0.0.0.0" }, 0)).unwrap();
    socket.connect((address, port)).unwrap();
    let mut datagram = vec![0; bytes.max(4)];
    for number in 0..count {
        datagram[..4].copy_from_slice(&number.to_ne_bytes());
        // A full queue of a device says so to the sender; it counts as lost, as the receiver does.
        socket.send(&datagram).ok();
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
}

/// The numbers that arrive, with their times, until nothing has for `silence`.
pub(crate) fn numbers(socket: &UdpSocket, silence: Duration) -> Vec<(u32, Instant)> {
    socket.set_read_timeout(Some(silence)).unwrap();
    let mut datagram = [0; 1 << 16];
    let mut all = Vec::new();
    while let Ok(length) = socket.recv(&mut datagram) {
        assert!(length >= 4);
        all.push((u32::from_ne_bytes(datagram[..4].try_into().unwrap()), Instant::now()));
    }
    all
}
