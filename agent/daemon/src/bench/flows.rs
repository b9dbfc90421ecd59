//! TCP connections that carry as much as they can, and what arrives of it.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::process;
use crate::clock;

/// Longest wait for a connection, for an answer to it, and for what is on its way when it ends.
const PATIENCE: Duration = Duration::from_secs(5);
/// Each write: two of the largest frames.
const WRITE_BYTES: usize = 1 << 17;
const READ_BYTES: usize = 1 << 18;

/// The ends of connections: where it is written and where it is read.
pub(super) type Ends = (TcpStream, TcpStream);

/// Which end of a connection writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// The one that connects.
    Connecting,
    /// The one that accepts.
    Accepting,
}

/// Connects so many times to `to`, behind which `listener` is.
pub(super) fn connect(count: u32, to: SocketAddr, listener: &TcpListener, writer: Writer) -> io::Result<Vec<Ends>> {
    let connected = |_| {
        let here = TcpStream::connect_timeout(&to, PATIENCE)?;
        let there = accept(listener)?;
        Ok(match writer {
            Writer::Connecting => (here, there),
            Writer::Accepting => (there, here),
        })
    };
    (0..count).map(connected).collect()
}

/// Listens at any port of this thread's namespace.
pub(super) fn listen(at: Ipv4Addr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((at, 0))?;
    // accept() obeys it too (socket(7)).
    let patience = nix::sys::time::TimeVal::new(i64::try_from(PATIENCE.as_secs()).unwrap_or(1), 0);
    nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::ReceiveTimeout, &patience)?;
    Ok(listener)
}

/// The next connection.
pub(super) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.accept().map(|(stream, _)| stream)
}

/// What was seen of some flows in a round.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Round {
    pub(super) gbit_per_s: f64,
    /// Time on a processor for each gigabit: of both ends, and of all between them that is in this process.
    pub(super) cpu_s_per_gbit: f64,
    /// Of the plane's own threads alone.
    pub(super) plane_cpu_s_per_gbit: f64,
}

/// Flows that run.
#[derive(Debug)]
pub(super) struct Flows {
    read: Arc<AtomicU64>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Flows {
    pub(super) fn start(ends: Vec<Ends>) -> io::Result<Self> {
        let mut flows = Self::reading(Vec::new())?;
        for (mut writer, reader) in ends {
            flows.streams.push(writer.try_clone()?);
            flows.read_from(reader)?;
            let write = move || {
                let block = vec![7; WRITE_BYTES];
                while writer.write_all(&block).is_ok() {}
            };
            flows.threads.push(std::thread::Builder::new().name("writer".to_owned()).spawn(write)?);
        }
        Ok(flows)
    }

    /// What others write.
    pub(super) fn reading(readers: Vec<TcpStream>) -> io::Result<Self> {
        let mut flows = Self { read: Arc::default(), streams: Vec::new(), threads: Vec::new() };
        for reader in readers {
            flows.read_from(reader)?;
        }
        Ok(flows)
    }

    fn read_from(&mut self, mut reader: TcpStream) -> io::Result<()> {
        self.streams.push(reader.try_clone()?);
        let total = Arc::clone(&self.read);
        let read = move || {
            let mut buffer = vec![0; READ_BYTES];
            while let Ok(bytes @ 1..) = reader.read(&mut buffer) {
                total.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
            }
        };
        self.threads.push(std::thread::Builder::new().name("reader".to_owned()).spawn(read)?);
        Ok(())
    }

    /// Lets them run for `warm_up`, and then counts for `lasts`.
    pub(super) fn watch(&self, warm_up: Duration, lasts: Duration, plane: &BTreeSet<PathBuf>) -> io::Result<Round> {
        let look = || -> io::Result<_> {
            let own = plane.iter().filter_map(|thread| process::on_cpu(thread)).sum::<Duration>();
            Ok((clock::now(), self.read.load(Ordering::Relaxed), process::read(std::process::id())?.cpu, own))
        };
        std::thread::sleep(warm_up);
        let (began, bytes_before, cpu_before, plane_before) = look()?;
        std::thread::sleep(lasts);
        let (ended, bytes, cpu, plane) = look()?;
        let gbit = super::figures::as_f64(bytes.saturating_sub(bytes_before)) * 8.0 / 1e9;
        let per_gbit =
            |after: Duration, before| super::figures::ratio(after.saturating_sub(before).as_secs_f64(), gbit);
        Ok(Round {
            gbit_per_s: super::figures::ratio(gbit, ended.since(began).as_secs_f64()),
            cpu_s_per_gbit: per_gbit(cpu, cpu_before),
            plane_cpu_s_per_gbit: per_gbit(plane, plane_before),
        })
    }

    /// Ends them all, whatever is on its way.
    pub(super) fn end(self) {
        for stream in &self.streams {
            // It may be over already.
            drop(stream.shutdown(Shutdown::Both));
        }
        for thread in self.threads {
            // They end with their streams, and there is nothing that they could say.
            drop(thread.join());
        }
    }
}

/// Connects to `to` and writes for so long: what a bench has another tool run at its own end.
pub(super) fn send(to: SocketAddr, count: u32, lasts: Duration) -> io::Result<()> {
    let streams: io::Result<Vec<_>> = (0..count).map(|_| TcpStream::connect_timeout(&to, PATIENCE)).collect();
    let writing = |mut stream: TcpStream| {
        let ending = stream.try_clone();
        let thread = std::thread::spawn(move || {
            let block = vec![7; WRITE_BYTES];
            while stream.write_all(&block).is_ok() {}
        });
        (ending, thread)
    };
    let running: Vec<_> = streams?.into_iter().map(writing).collect();
    std::thread::sleep(lasts);
    for (ending, thread) in running {
        ending?.shutdown(Shutdown::Both)?;
        drop(thread.join());
    }
    Ok(())
}
