//! Measuring a fault on the wire: how long a TCP handshake with a targeted peer takes, or else what the connections that there are have to
//! say.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use troop_agent_core::protocol::{Measured, MeasuredBy};

/// Probes of a measurement: the median of five bears two that met something else.
const PROBES: u32 = 5;
/// How far apart they begin: far enough not to queue behind each other, and all within a tenth of a second.
const APART: Duration = Duration::from_millis(20);

/// The median of connections' round trips; `None` where there are none.
pub(crate) fn of_connections(mut round_trips: Vec<Duration>) -> Option<Measured> {
    round_trips.sort();
    let count = u32::try_from(round_trips.len()).unwrap_or(u32::MAX);
    let median_us = u64::try_from(median(&round_trips)?.as_micros()).unwrap_or(u64::MAX);
    Some(Measured { median_us: Some(median_us), sent: count, back: count, by: MeasuredBy::Sockets })
}

/// The first of these peers that accepts a connection within `patience`.
pub(crate) async fn reachable(peers: &[SocketAddr], patience: Duration) -> Option<SocketAddr> {
    for peer in peers {
        if handshake(*peer, patience).await.is_some() {
            return Some(*peer);
        }
    }
    None
}

/// Five handshakes with a peer.
pub(crate) async fn handshakes(peer: SocketAddr, patience: Duration) -> Measured {
    let mut probes = JoinSet::new();
    for n in 0..PROBES {
        probes.spawn(async move {
            sleep(APART * n).await;
            handshake(peer, patience).await
        });
    }
    let mut times: Vec<Duration> = probes.join_all().await.into_iter().flatten().collect();
    times.sort();
    Measured {
        median_us: median(&times).map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        sent: PROBES,
        back: u32::try_from(times.len()).unwrap_or(PROBES),
        by: MeasuredBy::Handshake,
    }
}

/// From SYN to the connection being there: one round trip, and not the peer's own business. `None`: refused, or not in time.
async fn handshake(peer: SocketAddr, patience: Duration) -> Option<Duration> {
    let began = Instant::now();
    let connected = timeout(patience, TcpStream::connect(peer)).await;
    let took = began.elapsed();
    connected.ok()?.ok().map(|_closed_at_once| took)
}

/// The middle one of sorted times; the lower of two.
fn median(times: &[Duration]) -> Option<Duration> {
    times.get(times.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_accepts_is_measured_and_one_that_does_not_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let second = Duration::from_secs(1);
        assert_eq!(reachable(&[closed, open], second).await, Some(open));
        let found = handshakes(open, second).await;
        assert_eq!((found.sent, found.back), (5, 5));
        assert!(found.median_us.is_some_and(|us| us < 1_000_000));
        let silent = handshakes(closed, second).await;
        assert_eq!((silent.sent, silent.back, silent.median_us), (5, 0, None));
    }

    #[test]
    fn the_median_bears_two_strays() {
        let ms = |list: &[u64]| list.iter().map(|ms| Duration::from_millis(*ms)).collect::<Vec<_>>();
        assert_eq!(median(&ms(&[1, 2, 3, 900, 901])), Some(Duration::from_millis(3)));
        assert_eq!(median(&ms(&[1, 2])), Some(Duration::from_millis(1)));
        assert_eq!(median(&[]), None);
    }
}
