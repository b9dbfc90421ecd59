//! Datagrams that the peer gives back, and how long they took.
//!
//! Host and peer are on one machine and read one clock, so that also the way there can be told by itself.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::BenchError;
use super::figures::{as_f64, quantile};
use super::stage::{HOST, PEER, Stage};
use crate::clock;

/// In a datagram: when it was sent, and when the peer had it, in nanoseconds.
const BYTES: usize = 16;
/// A datagram that is later than this beyond its delay is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// How often the peer looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Trips {
    pub(super) lost: u64,
    /// Sorted, in nanoseconds.
    round: Vec<u64>,
    there: Vec<u64>,
}

impl Trips {
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.round.len()).unwrap_or(u64::MAX)
    }

    /// The round trip at this share of all, less `delay`, in microseconds.
    pub(super) fn at(&self, share: f64, delay: Duration) -> Option<f64> {
        quantile(&self.round, share).map(|nanos| beyond_us(nanos, delay))
    }

    /// The shortest way there, less `delay`, in microseconds.
    pub(super) fn earliest(&self, delay: Duration) -> Option<f64> {
        self.there.iter().min().map(|nanos| beyond_us(*nanos, delay))
    }

    fn add(&mut self, bytes: [u8; BYTES]) {
        let now = clock::now().as_nanos();
        let (sent, came) = stamps(bytes);
        self.round.push(now.saturating_sub(sent));
        self.there.push(came.saturating_sub(sent));
    }

    fn sorted(mut self) -> Self {
        self.round.sort_unstable();
        self
    }
}

fn beyond_us(nanos: u64, delay: Duration) -> f64 {
    (as_f64(nanos) - delay.as_secs_f64() * 1e9) / 1e3
}

fn stamps(bytes: [u8; BYTES]) -> (u64, u64) {
    let both = u128::from_ne_bytes(bytes);
    let [sent, came] = [both >> 64, both & u128::from(u64::MAX)].map(|part| u64::try_from(part).unwrap_or(0));
    (sent, came)
}

fn stamped(sent: u64, came: u64) -> [u8; BYTES] {
    (u128::from(sent) << 64 | u128::from(came)).to_ne_bytes()
}

/// Two sockets, of which the peer's gives back what it gets.
#[derive(Debug)]
pub(super) struct Echo {
    socket: UdpSocket,
    over: Arc<AtomicBool>,
    answers: Option<JoinHandle<()>>,
}

impl Echo {
    pub(super) fn start(stage: &Stage) -> Result<Self, BenchError> {
        let (socket, peer) = sockets(stage)?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let io = BenchError::io("start the peer's echo");
        peer.set_read_timeout(Some(LOOK_EVERY)).map_err(&io)?;
        let answer = move || {
            let mut bytes = [0; BYTES];
            while !seen.load(Ordering::Relaxed) {
                if let Ok(BYTES) = peer.recv(&mut bytes) {
                    // One that cannot be sent is lost, as any is.
                    drop(peer.send(&stamped(stamps(bytes).0, clock::now().as_nanos())));
                }
            }
        };
        let answers = std::thread::Builder::new().name("echo".to_owned()).spawn(answer).map_err(&io)?;
        Ok(Self { socket, over, answers: Some(answers) })
    }

    /// One after the other, for so long.
    pub(super) fn in_turn(&self, lasts: Duration) -> Result<Trips, BenchError> {
        self.turns(lasts).map_err(BenchError::io("send datagrams to the peer"))
    }

    fn turns(&self, lasts: Duration) -> io::Result<Trips> {
        self.socket.set_read_timeout(Some(LOST_AFTER))?;
        let mut trips = Trips::default();
        let until = clock::now().after(lasts);
        while clock::now() < until {
            self.socket.send(&stamped(clock::now().as_nanos(), 0))?;
            let mut bytes = [0; BYTES];
            match self.socket.recv(&mut bytes) {
                Ok(BYTES) => trips.add(bytes),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => trips.lost += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(trips.sorted())
    }

    /// One every so often for so long, however many are on their way, which takes each about `delay`.
    pub(super) fn paced(&self, every: Duration, lasts: Duration, delay: Duration) -> Result<Trips, BenchError> {
        self.pace(every, lasts, delay).map_err(BenchError::io("send datagrams to the peer"))
    }

    fn pace(&self, every: Duration, lasts: Duration, delay: Duration) -> io::Result<Trips> {
        let sender = self.socket.try_clone()?;
        let sending = std::thread::Builder::new().name("pings".to_owned()).spawn(move || -> io::Result<u64> {
            let (mut sent, mut next) = (0, clock::now());
            let until = next.after(lasts);
            while next < until {
                sender.send(&stamped(clock::now().as_nanos(), 0))?;
                sent += 1;
                next = next.after(every);
                std::thread::sleep(next.since(clock::now()));
            }
            Ok(sent)
        })?;
        self.socket.set_read_timeout(Some(delay + LOST_AFTER))?;
        let mut trips = Trips::default();
        let until = clock::now().after(lasts + delay + LOST_AFTER);
        let mut sending = Some(sending);
        let mut sent = u64::MAX;
        while trips.count() < sent && clock::now() < until {
            let mut bytes = [0; BYTES];
            match self.socket.recv(&mut bytes) {
                Ok(BYTES) => trips.add(bytes),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if let Some(done) = sending.take_if(|sending| sending.is_finished()) {
                sent = done.join().map_err(|_| io::Error::other("a thread failed"))??;
            }
        }
        if let Some(done) = sending {
            sent = done.join().map_err(|_| io::Error::other("a thread failed"))??;
        }
        trips.lost = sent.saturating_sub(trips.count());
        Ok(trips.sorted())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(answers) = self.answers.take() {
            drop(answers.join());
        }
    }
}

/// A socket of the host's and one of the peer's, connected to each other.
pub(super) fn sockets(stage: &Stage) -> Result<(UdpSocket, UdpSocket), BenchError> {
    let io = BenchError::io("open sockets at host and peer");
    let here = UdpSocket::bind((HOST, 0)).map_err(&io)?;
    let there = stage.at_peer(|| UdpSocket::bind((PEER, 0)))?.map_err(&io)?;
    here.connect(there.local_addr().map_err(&io)?).map_err(&io)?;
    there.connect(here.local_addr().map_err(&io)?).map_err(&io)?;
    Ok((here, there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_is_told_beyond_its_delay() {
        assert_eq!(stamps(stamped(7, u64::MAX)), (7, u64::MAX));
        let trips = Trips { round: vec![1_000_500, 1_002_000], there: vec![1_000_200, 1_000_100], lost: 0 };
        let delay = Duration::from_millis(1);
        assert_eq!((trips.at(0.0, delay), trips.at(1.0, delay)), (Some(0.5), Some(2.0)));
        assert_eq!(trips.earliest(delay), Some(0.1));
        assert_eq!(Trips::default().at(0.5, delay), None);
    }
}
