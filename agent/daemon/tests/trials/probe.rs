//! Round trips every few milliseconds: to the port that a fault concerns, to one that it does not, and to nobody, over the loopback.
//! The last says how much of the others was this machine's own.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::world::{HOST, PEER, World};

pub(crate) const TARGETED: u16 = 5_000;
pub(crate) const UNTOUCHED: u16 = 6_000;
const LOOPBACK: u16 = 7_000;
const EVERY_NANOS: u64 = 5_000_000;

/// On CLOCK_MONOTONIC, which all processes read alike.
pub(crate) fn nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// One round of three probes, sent at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) sent: u64,
    targeted: Option<u64>,
    untouched: Option<u64>,
    loopback: Option<u64>,
}

impl Probe {
    /// How long the round trip to the targeted port took; `None`: lost.
    pub(crate) fn targeted(&self) -> Option<Duration> {
        self.targeted.map(|back| Duration::from_nanos(back - self.sent))
    }

    /// How long the one to the other port took beyond what this machine took for itself.
    pub(crate) fn untouched(&self) -> Option<Duration> {
        self.beyond(self.untouched)
    }

    /// Whether a fault that makes round trips longer by `longer` has it. Half of it will do: nothing else here takes so long.
    pub(crate) fn is_slow(&self, longer: Duration) -> bool {
        self.beyond(self.targeted).is_none_or(|beyond| beyond >= longer / 2)
    }

    fn beyond(&self, back: Option<u64>) -> Option<Duration> {
        let own = self.loopback.map_or(0, |back| back - self.sent);
        back.map(|back| Duration::from_nanos((back - self.sent).saturating_sub(own)))
    }
}

/// Probes on their way.
#[derive(Debug)]
pub(crate) struct Probes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Probe>>,
}

impl Probes {
    pub(crate) fn start(world: &World) -> Self {
        let echoes = [
            world.peer_socket(PEER, TARGETED),
            world.peer_socket(PEER, UNTOUCHED),
            UdpSocket::bind(("127.0.0.1", LOOPBACK)).unwrap(),
        ];
        std::thread::spawn(move || echo(&echoes));
        let sockets = [(HOST, PEER, TARGETED), (HOST, PEER, UNTOUCHED), ("127.0.0.1", "127.0.0.1", LOOPBACK)].map(
            |(from, to, port)| {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.connect((to, port)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            },
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || send(&sockets, &stopped)) }
    }

    /// What was found. Those that are on their way still get a second.
    pub(crate) fn stop(self) -> Vec<Probe> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn echo(sockets: &[UdpSocket; 3]) {
    let mut buffer = [0; 64];
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    loop {
        wait(sockets, None);
        for socket in sockets {
            while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                // What cannot be sent counts as lost.
                drop(socket.send_to(&buffer[..bytes], from));
            }
        }
    }
}

fn send(sockets: &[UdpSocket; 3], stop: &AtomicBool) -> Vec<Probe> {
    let mut probes: Vec<Probe> = Vec::new();
    let mut next = nanos();
    let mut until = None;
    loop {
        let now = nanos();
        if until.is_some_and(|until| now >= until) {
            return probes;
        }
        if until.is_none() && now >= next {
            let number = u32::try_from(probes.len()).unwrap();
            probes.push(Probe { sent: now, targeted: None, untouched: None, loopback: None });
            for socket in sockets {
                // A full queue loses it, as a fault that drops would.
                drop(socket.send(&number.to_be_bytes()));
            }
            next = (next + EVERY_NANOS).max(now);
            if stop.load(Ordering::Relaxed) {
                until = Some(now + 1_000_000_000);
            }
        }
        wait(sockets, Some(Duration::from_nanos(until.unwrap_or(next).saturating_sub(nanos()))));
        for (which, socket) in sockets.iter().enumerate() {
            let mut bytes = [0; 4];
            while socket.recv(&mut bytes).is_ok() {
                let probe = &mut probes[u32::from_be_bytes(bytes) as usize];
                let back = [&mut probe.targeted, &mut probe.untouched, &mut probe.loopback];
                let [targeted, untouched, loopback] = back;
                let back = [targeted, untouched, loopback].into_iter().nth(which).unwrap();
                *back = Some(nanos());
            }
        }
    }
}

fn wait(sockets: &[UdpSocket; 3], at_most: Option<Duration>) {
    let mut fds = sockets.each_ref().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
    let at_most = at_most.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap(),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    // Interrupted or not: whoever waits looks at everything.
    let _ = poll(&mut fds, at_most.as_ref());
}
