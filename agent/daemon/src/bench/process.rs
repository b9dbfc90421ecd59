//! What the kernel counts of a process: time, memory, and how often it was woken.
//!
//! Source: proc_pid_status(5), proc_pid_stat(5) and Documentation/scheduler/sched-stats.rst of the kernel.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::machine::{field, kib};

/// A reading of one process over all its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Times a thread gave the processor up to wait: each is one wake-up later.
    pub waits: u64,
    /// Times a thread was put aside for another one.
    pub preempted: u64,
    /// On a processor, over all threads that live.
    pub cpu: Duration,
    pub threads: u64,
    pub rss_kib: u64,
    /// The most that `rss_kib` ever was.
    pub peak_kib: u64,
}

/// Reads process `pid`.
///
/// # Errors
/// Any of reading its folder in /proc: it is gone.
pub fn read(pid: u32) -> io::Result<Reading> {
    let folder = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{folder}/status"))?;
    let memory = |name| field(&status, name).and_then(kib).unwrap_or(0);
    let mut reading = Reading { rss_kib: memory("VmRSS"), peak_kib: memory("VmHWM"), ..Reading::default() };
    for thread in fs::read_dir(format!("{folder}/task"))? {
        let thread = thread?.path();
        // A thread that has just ended is not waited upon any more.
        let Ok(status) = fs::read_to_string(thread.join("status")) else { continue };
        let number = |name| field(&status, name).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        reading.threads += 1;
        reading.waits += number("voluntary_ctxt_switches");
        reading.preempted += number("nonvoluntary_ctxt_switches");
        reading.cpu += on_cpu(&thread).unwrap_or_default();
    }
    Ok(reading)
}

/// Time that the thread of this folder was on a processor.
pub fn on_cpu(thread: &Path) -> Option<Duration> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// The most memory that this process ever held, in MiB.
///
/// # Errors
/// As [`read`].
pub fn own_peak_mib() -> io::Result<u64> {
    Ok(read(std::process::id())?.peak_kib / 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_with_its_threads_and_memory() {
        let before = read(std::process::id()).unwrap();
        assert!(before.threads >= 1 && before.rss_kib > 0 && before.peak_kib >= before.rss_kib, "{before:?}");
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || told.recv().is_err());
        // Until it has gone to sleep once.
        while read(std::process::id()).unwrap().threads <= 1 {}
        drop(tell);
        assert!(waiting.join().unwrap());
        assert!(read(u32::MAX).is_err());
    }
}
