//! The simulated process around one control plane: virtual time, seeded chance, the site's halt, and tasks that a crash
//! takes along.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::task::AbortHandle;
use troop::ask::{Post, Posted};
use troop::serve::host::Host;
use troop::state::StateError;
use troop_policies::situation::{Halted, HoldsSeen, Reading};

use crate::rng::Rng;

/// Virtual time. It stands while anything runs, and leaps to the next timer when nothing does.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    base: Timestamp,
    began: tokio::time::Instant,
}

impl Time {
    /// Begins at `base`, now.
    pub fn new(base: Timestamp) -> Self {
        Self { base, began: tokio::time::Instant::now() }
    }

    pub fn now(self) -> Timestamp {
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        later(self.base, passed)
    }

    /// Sleeps until then.
    pub async fn until(self, at: Timestamp) {
        let wait = at.duration_since(self.now());
        if let Ok(wait) = std::time::Duration::try_from(wait) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// `at` and some more.
pub fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// `at` and some seconds more.
pub fn seconds_later(at: Timestamp, seconds: i64) -> Timestamp {
    later(at, SignedDuration::from_secs(seconds))
}

/// The site's halt: in the binary a file, which outlives every control plane.
#[derive(Debug, Clone, Default)]
pub struct Halt(Arc<Mutex<Option<Halted>>>);

impl Halt {
    pub fn get(&self) -> Option<Halted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, halted: Option<Halted>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = halted;
    }
}

/// The site's hold signals, all of which fire, or cannot be asked, together. Outside Troop, as the halt is.
#[derive(Debug, Clone, Default)]
pub struct Signals(Arc<Mutex<Spells>>);

/// When the signals last fired and last were away: since and until.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spells {
    pub fire: Option<(Timestamp, Timestamp)>,
    pub away: Option<(Timestamp, Timestamp)>,
}

impl Signals {
    pub fn get(&self) -> Spells {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fire(&self, since: Timestamp, until: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fire = Some((since, until));
    }

    pub fn go_away(&self, since: Timestamp, until: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).away = Some((since, until));
    }

    /// What each says now.
    fn ask(&self, signals: Vec<String>, now: Timestamp) -> HoldsSeen {
        let within =
            |spell: Option<(Timestamp, Timestamp)>| spell.is_some_and(|(since, until)| since <= now && now < until);
        let Spells { fire, away } = self.get();
        let answer = || match (within(away), within(fire)) {
            (true, _) => Err("no answer within 3 s".to_owned()),
            (false, true) => Ok(Some("SimulatedAlert".to_owned())),
            (false, false) => Ok(None),
        };
        signals.into_iter().map(|signal| (signal, answer())).collect()
    }
}

/// See the module.
pub struct SimHost {
    pub time: Time,
    /// By how much the wall clock of this host is wrong now.
    pub skew_ms: AtomicI64,
    pub halt: Halt,
    pub signals: Signals,
    rng: Mutex<Rng>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimHost").finish_non_exhaustive()
    }
}

impl SimHost {
    pub fn new(time: Time, halt: Halt, signals: Signals, rng: Rng) -> Arc<Self> {
        let (rng, tasks) = (Mutex::new(rng), Mutex::default());
        Arc::new(Self { time, skew_ms: AtomicI64::new(0), halt, signals, rng, tasks })
    }

    /// Ends every task, as the end of the process would.
    pub fn crash(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }

    /// Keeps a task among those that end with the process.
    pub fn keep(&self, task: AbortHandle) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }
}

impl Host for SimHost {
    fn now(&self) -> Timestamp {
        later(self.time.now(), SignedDuration::from_millis(self.skew_ms.load(Ordering::Relaxed)))
    }

    fn boot_ms(&self) -> i64 {
        self.time.now().as_millisecond()
    }

    fn random(&self) -> Result<[u8; 16], String> {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let (high, low) = (rng.draw(), rng.draw());
        Ok((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.keep(tokio::spawn(task).abort_handle());
    }

    fn ask_holds(&self, signals: Vec<String>) -> BoxFuture<'_, HoldsSeen> {
        Box::pin(std::future::ready(self.signals.ask(signals, self.time.now())))
    }

    /// The simulated site file names no channel.
    fn post(&self, _: Post) -> BoxFuture<'_, Reading<Posted>> {
        Box::pin(std::future::ready(Err("the simulated world has no channels".to_owned())))
    }

    fn halt(&self) -> Result<Option<Halted>, String> {
        Ok(self.halt.get())
    }

    fn set_halt(&self, halted: &Halted) -> Result<(), StateError> {
        if self.halt.get().is_none() {
            self.halt.set(Some(halted.clone()));
        }
        Ok(())
    }

    fn end_halt(&self) -> Result<(), StateError> {
        self.halt.set(None);
        Ok(())
    }
}
