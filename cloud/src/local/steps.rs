//! The small change of setting up namespaces: a step that failed, and what helpers report upwards.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// A step of a set-up that the kernel refused. Any one of them means that there is no sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepFailed {
    pub(crate) step: String,
    /// As in errno(3); 0 where the failure was not the kernel's.
    pub(crate) errno: i32,
    pub(crate) detail: String,
}

/// The step that is not the kernel's: everything was set up, and the cloud process could not use what STATE holds.
pub(crate) const CLOUD_STEP: &str = "start the cloud process";

/// Names the step an error of the kernel belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: &str) -> Result<T, StepFailed>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &str) -> Result<T, StepFailed> {
        self.map_err(|errno| StepFailed { step: step.to_owned(), errno: errno as i32, detail: errno.desc().to_owned() })
    }
}

impl<T> Step<T> for Result<T, std::io::Error> {
    fn step(self, step: &str) -> Result<T, StepFailed> {
        self.map_err(|error| StepFailed {
            step: step.to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
            detail: error.to_string(),
        })
    }
}

impl<T> Step<T> for Result<T, rustix::io::Errno> {
    fn step(self, step: &str) -> Result<T, StepFailed> {
        self.map_err(std::io::Error::from).step(step)
    }
}

impl<T> Step<T> for Result<T, rtnetlink::Error> {
    fn step(self, step: &str) -> Result<T, StepFailed> {
        self.map_err(|error| {
            let errno = if let rtnetlink::Error::NetlinkError(message) = &error { -message.raw_code() } else { 0 };
            StepFailed { step: step.to_owned(), errno, detail: error.to_string() }
        })
    }
}

/// One line of JSON from a helper to whoever started it, over a pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "report")]
pub(crate) enum Report {
    /// The instance's namespaces are made; its link may come.
    Made,
    /// The first process of the new pid namespace, by the number its parent's namespace gives it.
    Init {
        pid: i32,
    },
    /// Everything is set up; what was asked for runs.
    Ready,
    Failed(StepFailed),
}

/// Writes a report. A reader that is gone is no concern of the writer: the liveness pipe tells it soon enough.
pub(crate) fn report(to: &mut impl std::io::Write, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        // One write, so that lines of parent and child never mix (they are shorter than PIPE_BUF).
        drop(to.write_all(&line).and_then(|()| to.flush()));
    }
}

/// Reports on this process's standard output.
pub(crate) fn report_up(what: &Report) {
    report(&mut std::io::stdout().lock(), what);
}

/// Asks to be killed with the parent, then makes sure that the parent had not died before the asking: `line` is the
/// reading end of a pipe or socket whose other end only the parent holds, and it is at its end once the parent is gone.
/// (`getppid` cannot tell: a parent outside the own pid namespace always reads 0.)
pub(crate) fn die_with_parent(line: impl AsFd) -> Result<(), StepFailed> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step("prctl(PR_SET_PDEATHSIG)")?;
    if hung_up(line).step("poll(liveness pipe)")? {
        return Err(StepFailed { step: "start".into(), errno: 0, detail: "the parent died meanwhile".into() });
    }
    Ok(())
}

/// As [`die_with_parent`] where parent and child number processes alike: `parent` is the number that started this one,
/// and no longer its parent's once that has died.
pub(crate) fn die_with(parent: u32) -> Result<(), StepFailed> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step("prctl(PR_SET_PDEATHSIG)")?;
    is_child_of(parent)
}

pub(crate) fn is_child_of(parent: u32) -> Result<(), StepFailed> {
    let own = rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    if own == Some(parent) {
        return Ok(());
    }
    Err(StepFailed { step: "start".into(), errno: 0, detail: "the parent died meanwhile".into() })
}

/// Whether the other side of a pipe or stream socket is gone.
pub(crate) fn hung_up(line: impl AsFd) -> Result<bool, rustix::io::Errno> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = line.as_fd();
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR))
}

/// This process's standard input as an owned descriptor: the safe way to adopt what the parent handed over.
pub(crate) fn own_stdin() -> std::io::Result<OwnedFd> {
    std::io::stdin().as_fd().try_clone_to_owned()
}

/// Closes standard output for good, once all is reported: whoever reads it sees the end.
pub(crate) fn reports_end() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _unchanged = nix::unistd::dup2_stdout(null);
    }
}

/// The path of this very executable, for starting it again. Where that path no longer names it (a rebuild, a deleted
/// binary), the kernel's own link, which starting a child from this mount namespace follows.
pub(crate) fn own_exe() -> PathBuf {
    use std::os::unix::fs::MetadataExt as _;
    let link = PathBuf::from("/proc/self/exe");
    let same = |path: &PathBuf| match (std::fs::metadata(path), std::fs::metadata(&link)) {
        (Ok(there), Ok(own)) => (there.dev(), there.ino()) == (own.dev(), own.ino()),
        _ => false,
    };
    std::env::current_exe().ok().filter(same).unwrap_or(link)
}

/// Waits for one byte from whoever started this process; false when it is gone instead.
pub(crate) fn go_ahead() -> Result<bool, StepFailed> {
    // Unbuffered: the next byte is for the child that inherits this standard input.
    let mut byte = [0];
    loop {
        match nix::unistd::read(std::io::stdin(), &mut byte) {
            Err(Errno::EINTR) => {}
            read => return Ok(read.step("read(go-ahead)")? == 1),
        }
    }
}

/// How a process ended, as an exit code and in words.
pub(crate) fn in_words(code: u8) -> String {
    /// Signals are 1 to 64 on Linux; shells and our helpers report them as 128 and the number.
    const SIGNALS: std::ops::RangeInclusive<u8> = 129..=192;
    if SIGNALS.contains(&code) { format!("signal {}", code - 128) } else { format!("exit code {code}") }
}

/// The exit code that tells how a child ended: its own, or 128 and the signal, as shells do.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + (signal & 0x7f)).unwrap_or(255),
        (None, None) => 1,
    }
}

/// Says on standard error why a helper gives up. Helpers have no log of their own yet.
pub(crate) fn complain(who: &str, failed: &StepFailed) {
    drop(writeln!(std::io::stderr(), "troop {who}: {}: {} (errno {})", failed.step, failed.detail, failed.errno));
}
