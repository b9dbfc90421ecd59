//! The thread of one detour: reads what comes, holds it as the fault wants, and sends it on.
//!
//! It sleeps until a packet comes or is due, and at the end of a wait looks at the clock instead: a wake-up is late by 50 us and more.
//! It ends when its [`Line`] is finished or dropped; what it held until then leaves first.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as Commands, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use troop_agent_core::fault::Target;

use super::engine::{Engine, Setup};
use super::port::{Port, Sink as _, Source as _};
use crate::clock;
use crate::plane::Seen;

/// The last part of a wait is spent looking at the clock: it took the median of the error from 0.12-0.18 ms to 0.06-0.09 ms.
/// Longer only burns the processor.
const SPIN: Duration = Duration::from_micros(50);

/// ppoll may be late by a thousandth of its wait, a two-hundredth for a process of positive niceness, whatever the timer slack is
/// (`select_estimate_accuracy` in fs/select.c): 0.5 ms of 500. So a wait ends early by more, and what is left is waited for again.
const SLACK_PART: u32 = 100;

/// What a thread tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::plane) struct Told {
    pub seen: Seen,
    /// All frames that have come to its end of the pair, those it had no room for included.
    pub came: u64,
    /// All that it was to send has been handed to the kernel.
    pub is_idle: bool,
}

enum Command {
    Tell(SyncSender<Told>),
    Retarget(Option<Target>),
    /// The fault is over: everything passes.
    LetGo,
}

/// A running thread.
#[derive(Debug)]
pub(in crate::plane) struct Line {
    /// Before `wake`, which is dropped after it: then the thread finds that there is nobody.
    commands: Commands<Command>,
    wake: Wake,
    finished: Receiver<()>,
}

#[derive(Debug)]
struct Wake(Arc<OwnedFd>);

/// Longest wait for a thread's answer: it gives one between two bursts, however little of a processor it gets.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// Longest wait for a thread to end: it gives itself [`super::engine::FINISH_MAX`].
const FINISHED_MAX: Duration = Duration::from_millis(200);

impl Line {
    /// # Errors
    /// When no thread or no descriptor can be had.
    pub(in crate::plane) fn start<P: Port>(name: &str, setup: Setup<P>) -> io::Result<Self> {
        let wake = Wake(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let (commands, received) = channel();
        let woken = Arc::clone(&wake.0);
        let (finish, finished) = sync_channel(1);
        let run = move || {
            let mut engine = Engine::new(setup, clock::now());
            run(&mut engine, &received, &woken);
            // Nobody waits where the line was dropped.
            let _ = finish.send(());
        };
        // It is not joined: closing its sockets takes it 20 ms each, in which the kernel waits for all its processors.
        drop(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(Self { commands, wake, finished })
    }

    /// What it has done so far. `None` when it is gone or stuck, which only a bug makes it.
    pub(in crate::plane) fn ask(&self) -> Option<Told> {
        let (answer, told) = sync_channel(1);
        self.send(Command::Tell(answer));
        told.recv_timeout(ANSWER_MAX).ok()
    }

    /// `None`: nobody.
    pub(in crate::plane) fn retarget(&self, target: Option<Target>) {
        self.send(Command::Retarget(target));
    }

    /// Ends the fault here: what is held leaves in order, what comes passes.
    pub(in crate::plane) fn let_go(&self) {
        self.send(Command::LetGo);
    }

    /// Ends the thread, and returns when it has sent all that it had.
    pub(in crate::plane) fn finish(self) {
        let Self { commands, wake, finished } = self;
        drop(commands);
        drop(wake);
        // Too late or gone: there is nothing more to be done about it.
        let _ = finished.recv_timeout(FINISHED_MAX);
    }

    fn send(&self, command: Command) {
        // Whoever needs to know that the thread is gone asks it something.
        drop(self.commands.send(command));
        stir(&self.wake.0);
    }
}

/// Without it a thread that sleeps until a packet comes would not notice that its line was dropped.
impl Drop for Wake {
    fn drop(&mut self) {
        stir(&self.0);
    }
}

fn stir(wake: &OwnedFd) {
    // The counter cannot overflow before the thread reads it, and a full one wakes it as well.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

fn run<P: Port>(engine: &mut Engine<P>, commands: &Receiver<Command>, wake: &OwnedFd) {
    // Without it the kernel may add 50 us to every wait. Where it is refused, it does.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    // Where it is refused the thread has the usual share.
    let _ = rustix::process::setpriority_process(None, P::NICE);
    loop {
        if !obey(engine, commands) {
            break;
        }
        let busy = engine.take();
        engine.give(clock::now());
        if !busy {
            wait(engine, wake);
        }
    }
    engine.let_go();
    engine.finish();
}

/// Carries out what has been said; `false` once nobody is there to say more.
fn obey<P: Port>(engine: &mut Engine<P>, commands: &Receiver<Command>) -> bool {
    loop {
        match commands.try_recv() {
            // Who does not wait for the answer has given up.
            Ok(Command::Tell(answer)) => drop(answer.send(engine.told())),
            Ok(Command::Retarget(target)) => engine.retarget(target),
            Ok(Command::LetGo) => engine.let_go(),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

fn wait<P: Port>(engine: &Engine<P>, wake: &OwnedFd) {
    let timeout = match engine.next(clock::now()) {
        None => None,
        Some(left) if left <= SPIN => return std::hint::spin_loop(),
        Some(left) => Some((left - SPIN).saturating_sub(left / SLACK_PART)),
    };
    sleep(engine, Some(wake), timeout);
}

/// Sleeps until a frame comes, one can be sent that could not, or the time is over.
pub(super) fn sleep<P: Port>(engine: &Engine<P>, wake: Option<&OwnedFd>, timeout: Option<Duration>) {
    let mut fds = Vec::with_capacity(4);
    // While nothing can be sent, nothing more is taken.
    match engine.blocked() {
        Some(sink) => fds.extend(sink.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT))),
        None => fds.extend(engine.source.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))),
    }
    fds.extend(wake.map(|wake| PollFd::new(wake, PollFlags::IN)));
    let timeout = timeout.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    });
    // Interrupted or not: the loop looks at everything again.
    let _ = poll(&mut fds, timeout.as_ref());
    for fd in fds.iter().filter(|fd| fd.revents().contains(PollFlags::ERR)) {
        // That the device went down or away. Unread it would end every sleep at once; sending says the same again.
        let _ = rustix::net::sockopt::socket_error(fd);
    }
    if let Some(wake) = wake
        && fds.last().is_some_and(|last| last.revents().contains(PollFlags::IN))
    {
        // It is there to end the sleep only; empty is as good.
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
}
