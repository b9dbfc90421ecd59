//! The guardian: a process beside the agent that undoes what the kernel does not take back by itself.
//!
//! It lives while a fault does. Over its standard input the agent tells it until when each lease lives; when the agent
//! dies (its pidfd says so), or a lease has run out and the agent has not healed it in 0.4 s (it stands still), the
//! guardian undoes what the journal says. It changes nothing else and speaks to nobody.
//!
//! Not PR_SET_PDEATHSIG: that signal comes when the thread ends that started the process.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};
use serde::{Deserialize, Serialize};
use troop_agent_core::lease::LeaseId;
use troop_agent_core::moment::Moment;

use crate::clock;
use crate::netlink::Netlink;
use crate::undo::{Journal, Place, Report};

/// How long after its lease's end a fault may still be there before the guardian steps in: the agent heals within
/// milliseconds when it is not standing still, and a fault may outlive its lease by a second at most.
const GRACE: Duration = Duration::from_millis(400);
/// How often an undo that failed is tried again, and for how long: the kernel's refusals pass.
const AGAIN: Duration = Duration::from_millis(200);
const TRIES_MAX: u32 = 50;

/// What the agent tells its guardian, a line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// The lease lives until this moment (nanoseconds of CLOCK_BOOTTIME), unless another word comes.
    Until { lease: String, nanos: u64 },
    /// Nothing of it is left.
    Gone { lease: String },
}

/// The agent's end of it.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    words: ChildStdin,
}

impl Guardian {
    /// Starts one: `program` with `args`, which end in [`run`] with this process's number.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, args: &[String]) -> io::Result<Self> {
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let words = child.stdin.take().ok_or_else(|| io::Error::other("the guardian has no standard input"))?;
        // A guardian that stands still must not make the agent wait.
        fcntl_setfl(&words, fcntl_getfl(&words)? | OFlags::NONBLOCK)?;
        Ok(Self { child, words })
    }

    /// Says until when a lease lives.
    ///
    /// # Errors
    /// When the guardian is gone or does not listen; then another must be started.
    pub fn until(&mut self, lease: &LeaseId, until: Moment) -> io::Result<()> {
        self.tell(&Word::Until { lease: lease.to_string(), nanos: until.as_nanos() })
    }

    /// Says that nothing is left of a lease.
    ///
    /// # Errors
    /// As [`Guardian::until`].
    pub fn gone(&mut self, lease: &LeaseId) -> io::Result<()> {
        self.tell(&Word::Gone { lease: lease.to_string() })
    }

    /// Whether it still runs.
    pub fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go: with nothing to guard it ends by itself.
    pub fn dismiss(mut self) {
        drop(self.words);
        // It ends at the end of its input; should it stand still, it is of no use.
        for _ in 0..50 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }

    fn tell(&mut self, word: &Word) -> io::Result<()> {
        let mut line = serde_json::to_vec(word)?;
        line.push(b'\n');
        // Far shorter than PIPE_BUF: it is written whole or not at all.
        self.words.write_all(&line)
    }
}

/// What a guardian does, from its start to its end.
///
/// # Errors
/// When it cannot guard: no pidfd, no netlink, no journal.
pub fn run(agent: i32, journal: &Path) -> io::Result<()> {
    let place = Place::here()?;
    let mut net = Netlink::route().map_err(io::Error::other)?;
    let mut journal = Journal::open(journal, place).map_err(io::Error::other)?;
    let agent = Pid::from_raw(agent).ok_or_else(|| io::Error::other("no number of a process"))?;
    let pidfd = pidfd_open(agent, PidfdFlags::empty());
    // Its number may be another's by now; our parent is what it was, or it is dead.
    let dead = getppid() != Some(agent) || pidfd.is_err();
    let stdin = io::stdin();
    let mut leases = BTreeMap::new();
    if let (false, Ok(pidfd)) = (dead, pidfd) {
        watch(&pidfd, stdin.as_fd(), &mut leases, &mut journal, &mut net)?;
    }
    for _ in 0..TRIES_MAX {
        match journal.undo_all(&mut net) {
            Ok(report) if report.failed.is_empty() => return Ok(()),
            Ok(_) | Err(_) => std::thread::sleep(AGAIN),
        }
    }
    Err(io::Error::other("what the agent left could not all be undone"))
}

/// Until the agent is dead, or has let us go.
fn watch(
    pidfd: &OwnedFd,
    stdin: BorrowedFd<'_>,
    leases: &mut BTreeMap<String, Moment>,
    journal: &mut Journal,
    net: &mut Netlink,
) -> io::Result<()> {
    let words = stdin.try_clone_to_owned()?;
    fcntl_setfl(&words, fcntl_getfl(&words)? | OFlags::NONBLOCK)?;
    let mut words = BufReader::new(std::fs::File::from(words));
    let mut line = String::new();
    loop {
        let wait = leases.values().min().map(|until| until.after(GRACE).since(clock::now()));
        let timeout = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        });
        let mut fds = [PollFd::new(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            return Ok(());
        }
        if !fds[1].revents().is_empty() {
            loop {
                match words.read_line(&mut line) {
                    // Let go: everything is healed, or the agent is dying and its pidfd will say so.
                    Ok(0) => return Ok(()),
                    Ok(_) if line.ends_with('\n') => {
                        hear(&line, leases);
                        line.clear();
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        let now = clock::now();
        let late: Vec<String> =
            leases.iter().filter(|(_, until)| until.after(GRACE) <= now).map(|(lease, _)| lease.clone()).collect();
        for lease in late {
            let mut report = Report::default();
            let undone = journal.undo(&lease, net, &mut report);
            if undone.is_ok() && report.failed.is_empty() {
                leases.remove(&lease);
            } else {
                leases.insert(lease, now.after(AGAIN));
            }
        }
    }
}

fn hear(line: &str, leases: &mut BTreeMap<String, Moment>) {
    match serde_json::from_str(line) {
        Ok(Word::Until { lease, nanos }) => drop(leases.insert(lease, Moment::from_nanos(nanos))),
        Ok(Word::Gone { lease }) => drop(leases.remove(&lease)),
        // Only the agent writes here, and it is of this very release.
        Err(_) => {}
    }
}
