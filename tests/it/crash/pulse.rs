//! How long this machine stood still: a health check that takes a second on a machine shared with builds says nothing about
//! what was killed.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Instances get a second to answer, in which four processes take turns. A machine that needs longer than this for one
/// turn of the same kind is not judged.
pub(crate) const STOOD_STILL: Duration = Duration::from_millis(300);
const EVERY: Duration = Duration::from_millis(100);

/// Writes a file to the disk and sends a byte to and fro, again and again.
#[derive(Debug)]
pub(crate) struct Pulse {
    worst_ms: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Pulse {
    pub(crate) fn start() -> Self {
        let (worst_ms, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (worst, end) = (Arc::clone(&worst_ms), Arc::clone(&over));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut there = listener.accept().unwrap().0;
        std::thread::spawn(move || {
            let mut byte = [0];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        std::thread::spawn(move || {
            let mut file = tempfile::tempfile().unwrap();
            let mut byte = [1];
            while !end.load(Ordering::Relaxed) {
                let began = Instant::now();
                std::thread::sleep(EVERY);
                file.write_all(&byte).unwrap();
                file.sync_data().unwrap();
                here.write_all(&byte).unwrap();
                here.read_exact(&mut byte).unwrap();
                let late = began.elapsed().saturating_sub(EVERY);
                worst.fetch_max(u64::try_from(late.as_millis()).unwrap(), Ordering::Relaxed);
            }
        });
        Self { worst_ms, over }
    }

    /// The longest turn so far.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_millis(self.worst_ms.load(Ordering::Relaxed))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
