//! A part under test on a thread of its own with a runtime of its own, as a process has it, so that its time on a
//! processor can be told from that of the load.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{BenchError, process};

/// How long a part may take to begin, and to end after it was told to.
const WITHIN: Duration = Duration::from_secs(10);

/// A part that runs. Dropped, it is told to end and not waited for.
#[derive(Debug)]
pub(super) struct Part {
    folder: PathBuf,
    stop: CancellationToken,
    ended: mpsc::Receiver<Result<(), String>>,
}

impl Part {
    /// Runs `work` on one thread until it ends or is told to.
    pub(super) fn start<F>(
        name: &str,
        work: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> Result<Self, BenchError>
    where
        F: Future<Output = Result<(), String>>,
    {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let (tell_number, number) = mpsc::channel();
        let (tell_end, ended) = mpsc::channel();
        let run = move || {
            let _listened = tell_number.send(rustix::thread::gettid());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let end = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(work(token)));
            let _listened = tell_end.send(end);
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(BenchError::io("start a thread"))?;
        let late = |_| BenchError::Late { what: "a thread", within: WITHIN };
        let number = number.recv_timeout(WITHIN).map_err(late)?;
        let folder = PathBuf::from(format!("/proc/self/task/{}", number.as_raw_nonzero()));
        Ok(Self { folder, stop, ended })
    }

    /// Time on a processor so far.
    pub(super) fn cpu(&self) -> Duration {
        process::on_cpu(&self.folder).unwrap_or_default()
    }

    /// Tells it to end, and waits until it has.
    pub(super) fn end(self) -> Result<(), BenchError> {
        self.stop.cancel();
        match self.ended.recv_timeout(WITHIN) {
            Ok(end) => end.map_err(BenchError::failed("run a part under test")),
            Err(_) => Err(BenchError::Late { what: "the end of a part under test", within: WITHIN }),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_runs_until_it_is_told_to_end_and_its_time_is_seen() {
        let part = Part::start("part", |stop| async move {
            while !stop.is_cancelled() {
                tokio::task::yield_now().await;
            }
            Ok(())
        });
        let part = part.unwrap();
        while part.cpu() == Duration::ZERO {}
        part.end().unwrap();
        let failing = Part::start("failing", |_| async { Err("no".to_owned()) }).unwrap();
        assert!(failing.end().unwrap_err().to_string().ends_with("no"));
    }
}
