//! Which agents are connected, and what each has told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot};
use troop_agent_core::lease::LEASES_MAX;
use troop_agent_core::protocol::{self, Answered, Chapter, FromAgent, Hello, Story, ToAgent};

use super::{AgentSeen, Agents, HostName, LEASE, NoAnswer, Order, Standing};

/// How long a host may take to answer: it does so before it measures or changes anything.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Messages that may wait for a host that does not read. Beyond, it is cut off: its leases lapse, and it dials again.
pub(super) const WAITING_MAX: usize = 64;
/// Stories kept of one host, of leases that are over.
const STORIES_MAX: usize = LEASES_MAX * 2;
/// Hosts remembered that are not connected any more.
const GONE_MAX: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub struct Hub {
    state: Mutex<State>,
    /// Told when a story has changed.
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<HostName, Host>,
    gone: VecDeque<HostName>,
    halted: bool,
    connections: u64,
}

#[derive(Debug, Default)]
struct Host {
    release: String,
    capabilities: protocol::Capabilities,
    standing: Standing,
    stories: BTreeMap<String, Story>,
    /// Leases in the order in which they were first heard of.
    order: VecDeque<String>,
    connected: Option<Connected>,
}

#[derive(Debug)]
struct Connected {
    /// Tells this connection apart from one that replaced it.
    id: u64,
    since: Timestamp,
    queue: mpsc::Sender<Bytes>,
    next_number: u64,
    waiting: HashMap<u64, oneshot::Sender<Answered>>,
}

impl Connected {
    fn send(&self, message: &ToAgent) -> bool {
        protocol::write(message).is_ok_and(|line| self.queue.try_send(line.into()).is_ok())
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number = number.saturating_add(1);
        number
    }
}

/// One connection, as its reader holds it. Dropped: the host is no longer connected.
#[derive(Debug)]
pub(super) struct Connection {
    hub: Arc<Hub>,
    host: HostName,
    id: u64,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one statement or leaves the maps whole; a panic elsewhere does no harm to them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a host's first word. Its former connection, if it had one, is replaced.
    ///
    /// # Errors
    /// When it speaks no version that is spoken here.
    pub(super) fn connect(
        self: &Arc<Self>,
        host: HostName,
        hello: Hello,
        standing: Standing,
        queue: mpsc::Sender<Bytes>,
        now: Timestamp,
    ) -> Result<Connection, String> {
        let version = protocol::common_version(&hello).ok_or_else(|| {
            format!(
                "`{host}` speaks versions {} to {}, and this control plane {} to {}",
                hello.oldest_version,
                hello.newest_version,
                protocol::OLDEST_VERSION,
                protocol::VERSION
            )
        })?;
        let mut state = self.state();
        state.connections += 1;
        let (id, halted) = (state.connections, state.halted);
        let next_number = hello.highest_number.saturating_add(1);
        let mut connected = Connected { id, since: now, queue, next_number, waiting: HashMap::new() };
        let number = connected.number();
        let sent = connected.send(&ToAgent::Welcome { version })
            && connected.send(&if halted { ToAgent::Halt { number } } else { ToAgent::Resume { number } });
        if !sent {
            return Err(format!("`{host}` does not read"));
        }
        state.gone.retain(|gone| *gone != host);
        let entry = state.hosts.entry(host.clone()).or_default();
        entry.release = hello.release;
        entry.capabilities = hello.host;
        entry.standing = standing;
        entry.connected = Some(connected);
        tracing::info!(%host, standing = standing.in_words(), "an agent is connected");
        Ok(Connection { hub: Arc::clone(self), host, id })
    }
}

impl Connection {
    /// Takes what the host says.
    pub(super) fn hear(&self, message: FromAgent) {
        let mut state = self.hub.state();
        let Some(host) = state.hosts.get_mut(&self.host) else { return };
        match message {
            FromAgent::Answer { number, answer } => {
                let waiting =
                    host.connected.as_mut().filter(|c| c.id == self.id).and_then(|c| c.waiting.remove(&number));
                // Whoever asked may have given up.
                if let Some(waiting) = waiting {
                    drop(waiting.send(answer));
                }
            }
            FromAgent::Story(story) => {
                if !host.stories.contains_key(&story.lease) {
                    host.order.push_back(story.lease.clone());
                    if host.order.len() > STORIES_MAX
                        && let Some(oldest) = host.order.pop_front()
                    {
                        host.stories.remove(&oldest);
                    }
                }
                host.stories.insert(story.lease.clone(), story);
                drop(state);
                self.hub.news.notify_waiters();
            }
            // Said once, before this connection was.
            FromAgent::Hello(_) | FromAgent::Unknown => {}
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        let Some(host) = state.hosts.get_mut(&self.host) else { return };
        if host.connected.as_ref().is_some_and(|connected| connected.id == self.id) {
            host.connected = None;
            tracing::info!(host = %self.host, "an agent is no longer connected");
            state.gone.push_back(self.host.clone());
            if state.gone.len() > GONE_MAX
                && let Some(forgotten) = state.gone.pop_front()
            {
                state.hosts.remove(&forgotten);
            }
        }
    }
}

#[async_trait]
impl Agents for Hub {
    fn seen(&self) -> Vec<AgentSeen> {
        let is_live = |story: &&Story| !matches!(story.at, Chapter::Over | Chapter::Unknown);
        let view = |(name, host): (&HostName, &Host)| AgentSeen {
            host: name.clone(),
            release: host.release.clone(),
            capabilities: host.capabilities.clone(),
            standing: host.standing,
            since: host.connected.as_ref().map(|connected| connected.since),
            live: host.stories.values().filter(is_live).map(|story| story.lease.clone()).collect(),
        };
        self.state().hosts.iter().map(view).collect()
    }

    async fn order(&self, host: &HostName, order: Order) -> Result<Answered, NoAnswer> {
        let (tell, answer) = oneshot::channel();
        {
            let mut state = self.state();
            let connected = state.hosts.get_mut(host).and_then(|host| host.connected.as_mut());
            let connected = connected.ok_or_else(|| NoAnswer::NotConnected(host.clone()))?;
            let number = connected.number();
            let ttl_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
            let message = match order {
                Order::Grant(mut grant) => {
                    grant.number = number;
                    ToAgent::Grant(grant)
                }
                Order::Renew { lease, peers } => ToAgent::Renew { number, lease, ttl_ms, peers },
                Order::End { lease } => ToAgent::End { number, lease },
            };
            connected.waiting.retain(|_, waiting| !waiting.is_closed());
            if !connected.send(&message) {
                return Err(NoAnswer::NotConnected(host.clone()));
            }
            connected.waiting.insert(number, tell);
        }
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Silent(host.clone())),
        }
    }

    fn story(&self, host: &HostName, lease: &str) -> Option<Story> {
        self.state().hosts.get(host)?.stories.get(lease).cloned()
    }

    async fn changed(&self, patience: Duration) {
        drop(tokio::time::timeout(patience, self.news.notified()).await);
    }

    fn set_halted(&self, halted: bool) {
        let mut state = self.state();
        if state.halted == halted {
            return;
        }
        state.halted = halted;
        for host in state.hosts.values_mut() {
            let Some(connected) = &mut host.connected else { continue };
            let number = connected.number();
            let sent = connected.send(&if halted { ToAgent::Halt { number } } else { ToAgent::Resume { number } });
            if !sent {
                // Its leases lapse, and it dials again and is told then.
                host.connected = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostName {
        HostName::parse("local/r1/i-1").unwrap()
    }

    fn hello(highest_number: u64) -> Hello {
        Hello {
            newest_version: protocol::VERSION,
            oldest_version: protocol::OLDEST_VERSION,
            instance: host().to_string(),
            release: "0.1.0".to_owned(),
            highest_number,
            host: protocol::Capabilities::default(),
            identity: None,
        }
    }

    fn now() -> Timestamp {
        "2026-11-24T11:00:00Z".parse().unwrap()
    }

    fn said(line: &Bytes) -> ToAgent {
        protocol::read(line).unwrap()
    }

    fn story(at: Chapter) -> FromAgent {
        FromAgent::Story(Story {
            lease: "aa".to_owned(),
            at,
            plane: "forward".to_owned(),
            baseline: None,
            applied: None,
            healed: None,
            end: None,
            trouble: String::new(),
        })
    }

    #[tokio::test]
    async fn a_host_is_told_and_its_answer_reaches_who_asked() {
        let hub = Arc::new(Hub::default());
        let (queue, mut sent) = mpsc::channel(8);
        let connection = hub.connect(host(), hello(41), Standing::Token, queue, now()).unwrap();
        assert_eq!(said(&sent.recv().await.unwrap()), ToAgent::Welcome { version: protocol::VERSION });
        assert_eq!(said(&sent.recv().await.unwrap()), ToAgent::Resume { number: 42 });
        let asking = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.order(&host(), Order::End { lease: "aa".to_owned() }).await }
        });
        assert_eq!(said(&sent.recv().await.unwrap()), ToAgent::End { number: 43, lease: "aa".to_owned() });
        connection.hear(FromAgent::Answer { number: 43, answer: Answered::Gone { why: None } });
        assert_eq!(asking.await.unwrap(), Ok(Answered::Gone { why: None }));
    }

    #[tokio::test]
    async fn stories_outlive_their_connection() {
        let hub = Arc::new(Hub::default());
        let (queue, _sent) = mpsc::channel(8);
        let connection = hub.connect(host(), hello(0), Standing::Token, queue, now()).unwrap();
        connection.hear(story(Chapter::Up));
        assert_eq!(hub.seen()[0].live, ["aa"]);
        drop(connection);
        assert_eq!(hub.seen()[0].since, None);
        assert!(hub.story(&host(), "aa").is_some());
        let order = hub.order(&host(), Order::End { lease: "aa".to_owned() }).await;
        assert_eq!(order, Err(NoAnswer::NotConnected(host())));
    }

    #[tokio::test]
    async fn a_host_that_dials_again_replaces_itself() {
        let hub = Arc::new(Hub::default());
        let (first, _first_sent) = mpsc::channel(8);
        let old = hub.connect(host(), hello(0), Standing::Token, first, now()).unwrap();
        let (second, _second_sent) = mpsc::channel(8);
        let _new = hub.connect(host(), hello(5), Standing::Token, second, now()).unwrap();
        drop(old);
        assert_eq!(hub.seen()[0].since, Some(now()));
    }

    #[tokio::test]
    async fn a_halt_reaches_those_connected_and_those_that_dial_in_later() {
        let hub = Arc::new(Hub::default());
        let (queue, mut sent) = mpsc::channel(8);
        let _connection = hub.connect(host(), hello(0), Standing::Token, queue, now()).unwrap();
        hub.set_halted(true);
        let heard: Vec<ToAgent> = std::iter::from_fn(|| sent.try_recv().ok()).map(|line| said(&line)).collect();
        assert_eq!(heard[1..], [ToAgent::Resume { number: 1 }, ToAgent::Halt { number: 2 }]);
        let (queue, mut sent) = mpsc::channel(8);
        let _again = hub.connect(host(), hello(2), Standing::Token, queue, now()).unwrap();
        let heard: Vec<ToAgent> = std::iter::from_fn(|| sent.try_recv().ok()).map(|line| said(&line)).collect();
        assert_eq!(heard[1..], [ToAgent::Halt { number: 3 }]);
    }

    #[test]
    fn a_host_that_does_not_read_or_speaks_another_version_is_not_taken() {
        let hub = Arc::new(Hub::default());
        let (queue, _sent) = mpsc::channel(1);
        assert!(hub.connect(host(), hello(0), Standing::Token, queue, now()).unwrap_err().contains("does not read"));
        let (queue, _sent) = mpsc::channel(8);
        let later = Hello { oldest_version: 9, newest_version: 9, ..hello(0) };
        assert!(
            hub.connect(host(), later, Standing::Token, queue, now()).unwrap_err().contains("speaks versions 9 to 9")
        );
        assert_eq!(hub.seen(), []);
    }
}
