//! One control plane's connection to the cloud: what it sees, how its calls fare, and where it crashes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::Notify;
use troop::serve::host::Host as _;
use troop::world::{Registry, chain};
use troop_cloud::{Cloud, CloudError, Image, Traffic};
use troop_ledger::Ledger;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::{Inventory, TAG_MARK};
use troop_policies::leash::Permit;
use troop_policies::registry_view::RegistryView;
use troop_policies::{AccountName, ClusterName, GroupName, RegionName};

use super::State;
use crate::check::{Ask, Book, Turn};
use crate::host::{Halt, Signals, SimHost, Time};

/// What all control planes share: the cloud, the checker's book, the site's halt.
pub struct Site {
    pub state: Mutex<State>,
    pub book: Mutex<Book>,
    pub time: Time,
    pub halt: Halt,
    pub signals: Signals,
    /// A control plane has crashed.
    pub crashed: Notify,
    account: AccountName,
    regions: Vec<RegionName>,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

impl Site {
    pub fn new(state: State, book: Book, time: Time, halt: Halt) -> Arc<Self> {
        let (account, regions) = (state.account.clone(), vec![state.region.clone()]);
        Arc::new(Self {
            state: Mutex::new(state),
            book: Mutex::new(book),
            time,
            halt,
            signals: Signals::default(),
            crashed: Notify::new(),
            account,
            regions,
        })
    }

    /// The state as it is now, after everything that was due.
    pub fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        // One after the other, so that the book sees each moment.
        let now = self.time.now();
        loop {
            let next = state.next_at().filter(|at| *at <= now);
            for intent in state.advance(next.unwrap_or(now)) {
                book.before(&state, &intent);
                let outcome = state.perform(&intent);
                book.after(&state, &intent, &outcome);
            }
            for (at, group) in std::mem::take(&mut state.flipped_by_hand) {
                book.by_hand(group.cluster(), at);
                book.turns.entry(group.cluster().clone()).or_default().push(Turn { at, group, push: None });
            }
            book.note(&state);
            if next.is_none() {
                break;
            }
        }
        drop(book);
        state
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct Connection {
    pub site: Arc<Site>,
    pub host: Arc<SimHost>,
    pub plane: usize,
    pub ledger: Ledger,
    /// How many calls from now the control plane crashes; none where it is 0 or less.
    pub fuse: AtomicI64,
    pub dead: AtomicBool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("plane", &self.plane).finish_non_exhaustive()
    }
}

impl Connection {
    /// A place at which the control plane may crash: from here on it never moves again.
    async fn point(&self) {
        if self.fuse.load(Ordering::Relaxed) > 0 && self.fuse.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.dead.store(true, Ordering::Relaxed);
            self.site.crashed.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn away(&self, why: &str) -> CloudError {
        CloudError::Refused { account: self.site.account.clone(), why: why.to_owned() }
    }

    /// Carries it out now, with the book looking on.
    fn do_it(&self, intent: &Intent) -> Outcome {
        let mut state = self.site.now();
        let mut book = self.site.book();
        book.before(&state, intent);
        let outcome = state.perform(intent);
        book.after(&state, intent, &outcome);
        book.note(&state);
        outcome
    }
}

/// How a call fares.
enum Fare {
    Well,
    Throttled,
    /// It never arrives.
    Lost,
    /// It arrives after the answer was given up.
    Late(i64),
    /// It takes effect, and the answer is lost.
    Unanswered,
    /// It takes effect, and the cloud forgets what became of it.
    Forgotten,
}

fn fare(state: &mut State) -> Fare {
    let (now, troubles) = (state.now, state.troubles);
    if now < troubles.throttled && state.rng.percent(40) {
        return Fare::Throttled;
    }
    if now < troubles.answers_lost && state.rng.percent(60) {
        return match state.rng.below(3) {
            0 => Fare::Lost,
            1 => Fare::Late(state.rng.between(1, 25)),
            _ => Fare::Unanswered,
        };
    }
    if now < troubles.forgetful && state.rng.percent(60) { Fare::Forgotten } else { Fare::Well }
}

#[async_trait]
impl Registry for Connection {
    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        Cloud::perform(self, intent, permit, now).await
    }

    async fn resolve(&self, intent: &Intent) -> Outcome {
        Cloud::resolve(self, intent).await.unwrap_or_else(|e| Outcome::unknown(chain(&e)))
    }

    async fn view(&self) -> Result<RegistryView, String> {
        let state = self.site.now();
        if state.now < state.troubles.registry_away {
            return Err(chain(&self.away("the registry does not answer")));
        }
        Ok(state.registry.view(self.host.now()))
    }
}

#[async_trait]
impl Cloud for Connection {
    fn account(&self) -> &AccountName {
        &self.site.account
    }

    fn regions(&self) -> &[RegionName] {
        &self.site.regions
    }

    async fn inventory(&self, _: &RegionName) -> Result<Inventory, CloudError> {
        let state = self.site.now();
        if state.now < state.troubles.inventory_away {
            return Err(self.away("the inventory does not answer"));
        }
        let (inventory, flaws) = state.inventory(self.host.now());
        self.site.book().shown(self.plane, state.now, flaws);
        Ok(inventory)
    }

    async fn images(&self, _: &RegionName) -> Result<Vec<Image>, CloudError> {
        let state = self.site.now();
        let image = |id: &troop_policies::ImageId| Image {
            id: id.clone(),
            name: "app".to_owned(),
            version: id.to_string(),
            created_at: Timestamp::UNIX_EPOCH,
            registry_required: true,
        };
        Ok(state.images.keys().map(image).collect())
    }

    async fn traffic(&self, _: &RegionName, cluster: &ClusterName) -> Result<BTreeMap<GroupName, Traffic>, CloudError> {
        let mut state = self.site.now();
        if state.now < state.troubles.traffic_away {
            return Err(self.away("the balancer counts nothing"));
        }
        self.site.book().counted(cluster, state.now);
        Ok(state.traffic(cluster))
    }

    async fn perform(&self, intent: &Intent, permit: Permit<'_>, now: Timestamp) -> Outcome {
        self.point().await;
        if let Err(why) = permit.check(&intent.step, now) {
            return Outcome::refused(why.to_string());
        }
        let ask = Ask::new(self, intent).await;
        let fare = {
            let mut state = self.site.now();
            self.site.book().asked(&state, &ask);
            fare(&mut state)
        };
        let outcome = match fare {
            Fare::Well => self.do_it(intent),
            Fare::Throttled => Outcome::refused("throttled"),
            Fare::Lost => {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Outcome::unknown("no answer")
            }
            Fare::Late(seconds) => {
                self.site.now().send(intent, seconds);
                tokio::time::sleep(Duration::from_secs(10)).await;
                Outcome::unknown("no answer")
            }
            Fare::Unanswered => {
                self.do_it(intent);
                tokio::time::sleep(Duration::from_secs(10)).await;
                Outcome::unknown("the answer was lost")
            }
            Fare::Forgotten => {
                self.do_it(intent);
                let forgotten = Outcome::unknown("forgotten");
                self.site.now().answered.insert(intent.id.clone(), forgotten.clone());
                forgotten
            }
        };
        self.point().await;
        tokio::time::sleep(Duration::from_millis(120)).await;
        let now = self.site.time.now();
        let mut book = self.site.book();
        book.answered(intent, &outcome);
        book.told(self.plane, intent, &outcome, now);
        outcome
    }

    async fn resolve(&self, intent: &Intent) -> Result<Outcome, CloudError> {
        self.point().await;
        let mut state = self.site.now();
        let outcome = state.resolve(intent);
        self.site.book().answered(intent, &outcome);
        Ok(outcome)
    }

    async fn mark(&self, intent: &Intent, mark: &str) -> Result<(), CloudError> {
        self.point().await;
        let mut state = self.site.now();
        match state.groups.get_mut(intent.step.group()) {
            Some(group) => {
                group.tags.insert(TAG_MARK.to_owned(), mark.to_owned());
                self.site.book().foreign.remove(intent.step.group());
                Ok(())
            }
            None => Err(self.away("there is no such group")),
        }
    }

    async fn import_image(&self, _: &Path) -> Result<Image, CloudError> {
        Err(self.away("not here"))
    }
}
