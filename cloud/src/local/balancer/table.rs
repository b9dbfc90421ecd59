//! The routes as requests look them up, and the instances they lead to.
//!
//! A table is made from [`Routes`] and replaced whole. What outlives a table (connections, counts, whose turn it is) is
//! taken over from the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use troop_policies::{GroupName, InstanceId};

use super::counters::Counters;
use super::lock;
use super::upstream::{InFlight, Upstream};
use crate::Traffic;
use crate::local::protocol::Routes;

/// The notice of a kill may come after its effect: a request that failed waits so long for it before it is counted.
const NOTICE_OF_KILL_WITHIN: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Table {
    /// Counts tables, whatever version a cloud process that was started again begins with.
    number: u64,
    default_cluster: Option<String>,
    clusters: BTreeMap<String, Cluster>,
    /// Hosts do not tell case apart, names of clusters do.
    lower_case: BTreeMap<String, String>,
    being_killed: BTreeSet<InstanceId>,
    drained: BTreeSet<InstanceId>,
}

#[derive(Debug)]
struct Cluster {
    targets: Vec<Arc<Upstream>>,
    /// Whose turn it is.
    turn: Arc<AtomicUsize>,
}

/// Why a request has nowhere to go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoTarget {
    #[error("the balancer has not heard from the cloud yet; `troop up` may still be starting")]
    NoRoutes,
    #[error("no cluster has been pushed yet; `troop deploy` does that")]
    NoCluster,
    #[error("no instance of `{cluster}` is in rotation")]
    NoInstance { cluster: String },
    #[error("no instance of `{cluster}` could be reached")]
    AllTried { cluster: String },
}

/// What all connections of a worker share.
#[derive(Debug)]
pub(super) struct Shared {
    table: ArcSwap<Table>,
    /// The number of the table in force, written after the table.
    number: AtomicU64,
    book: Mutex<Book>,
    /// The number again, for those who wait for the next table.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Book {
    /// All that are in the table, and those that left it with requests still in flight.
    upstreams: BTreeMap<(InstanceId, SocketAddr), Arc<Upstream>>,
    groups: BTreeMap<GroupName, Arc<Counters>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            table: ArcSwap::default(),
            number: AtomicU64::new(0),
            book: Mutex::new(Book::default()),
            changed: watch::Sender::new(0),
        }
    }

    /// Puts routes in force. Requests that arrive after the return follow them.
    pub(super) fn apply(&self, routes: &Routes) {
        let mut book = lock(&self.book);
        let before = self.table.load_full();
        let number = before.number + 1;
        let mut table = Table {
            number,
            default_cluster: routes.default_cluster.as_ref().map(|name| name.as_str().to_owned()),
            being_killed: routes.being_killed.iter().cloned().collect(),
            drained: routes.drained.iter().cloned().collect(),
            ..Table::default()
        };
        let mut listed = BTreeSet::new();
        for (name, targets) in &routes.clusters {
            let name = name.as_str().to_owned();
            let turn = before.clusters.get(&name).map_or_else(Arc::default, |cluster| Arc::clone(&cluster.turn));
            let targets = targets.iter().map(|target| {
                let key = (target.instance.clone(), target.address);
                listed.insert(key.clone());
                let counters = book.group(&target.group);
                let new = || Upstream::new(target.instance.clone(), target.group.clone(), target.address, counters);
                Arc::clone(book.upstreams.entry(key).or_insert_with(|| Arc::new(new())))
            });
            let cluster = Cluster { targets: targets.collect(), turn };
            table.lower_case.insert(name.to_ascii_lowercase(), name.clone());
            table.clusters.insert(name, cluster);
        }
        // Listed before the table is in force, so that no connection is dropped that is wanted again.
        for (key, upstream) in book.upstreams.iter().filter(|(key, _)| listed.contains(key)) {
            debug_assert_eq!(key.1, upstream.address);
            upstream.set_listed(true);
        }
        self.table.store(Arc::new(table));
        self.number.store(number, Ordering::SeqCst);
        for (_, upstream) in book.upstreams.iter().filter(|(key, _)| !listed.contains(key)) {
            upstream.set_listed(false);
        }
        let targets = routes.clusters.values().flatten().map(|target| &target.group);
        let routed: BTreeSet<&GroupName> = routes.checks.iter().map(|check| &check.group).chain(targets).collect();
        for group in &routed {
            book.group(group);
        }
        book.groups.iter().for_each(|(group, counters)| counters.set_routed(routed.contains(group)));
        self.changed.send_replace(number);
    }

    /// Returns once routes are in force: at once but for a worker that has just begun.
    pub(super) async fn routed(&self) {
        // The other end lives in `self`, so an error cannot come.
        let _never = self.changed.subscribe().wait_for(|number| *number > 0).await.is_err();
    }

    /// Assigns a request to the next target of the cluster that `host` names, but none of `tried`.
    pub(super) fn assign(&self, host: Option<&str>, tried: &[Arc<Upstream>]) -> Result<InFlight, NoTarget> {
        loop {
            let table = self.table.load();
            let assigned = InFlight::begin(Arc::clone(table.choose(host, tried)?));
            // Either this sees the newer table, or whoever reports after that table was in force sees the request in
            // flight: an instance is never found drained with a request on its way.
            if self.number.load(Ordering::SeqCst) <= table.number {
                return Ok(assigned);
            }
        }
    }

    /// Counts a request that had been sent to the instance and got no answer; `retried`: another one was asked then. Returns whether the instance was being
    /// ended by a recorded kill.
    pub(super) async fn count_failed(&self, upstream: &Upstream, retried: bool) -> bool {
        let listed = self.until(|table| table.being_killed.contains(&upstream.instance));
        let killed = tokio::time::timeout(NOTICE_OF_KILL_WITHIN, listed).await.is_ok();
        upstream.counters.failed(killed, retried);
        killed
    }

    /// Returns once the instance's group is disabled and its drain is over.
    pub(super) async fn drained(&self, instance: &InstanceId) {
        self.until(|table| table.drained.contains(instance)).await;
    }

    /// Returns once the table in force is as is asked.
    async fn until(&self, is_so: impl Fn(&Table) -> bool) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if is_so(&self.table.load()) {
                return;
            }
            if changed.changed().await.is_err() {
                // The other end lives in `self`, so this cannot be.
                return std::future::pending().await;
            }
        }
    }

    /// Drops what nobody needs any more.
    pub(super) fn sweep(&self) {
        let mut book = lock(&self.book);
        book.upstreams.retain(|_, upstream| upstream.is_listed() || upstream.in_flight() > 0);
        book.upstreams.values().for_each(|upstream| upstream.sweep());
        let busy: BTreeSet<&GroupName> =
            book.upstreams.values().filter(|u| u.in_flight() > 0).map(|u| &u.group).collect();
        let idle: Vec<GroupName> = book
            .groups
            .iter()
            .filter(|(group, counters)| counters.may_be_forgotten() && !busy.contains(group))
            .map(|(group, _)| group.clone())
            .collect();
        for group in idle {
            book.groups.remove(&group);
        }
    }

    /// The counts for a report: by group, and what is in flight to each instance.
    pub(super) fn report(&self) -> (BTreeMap<GroupName, Traffic>, BTreeMap<InstanceId, u64>) {
        let book = lock(&self.book);
        let mut instances: BTreeMap<InstanceId, u64> = BTreeMap::new();
        let mut groups: BTreeMap<&GroupName, u64> = BTreeMap::new();
        for upstream in book.upstreams.values() {
            let count = upstream.in_flight();
            *instances.entry(upstream.instance.clone()).or_default() += count;
            *groups.entry(&upstream.group).or_default() += count;
        }
        let in_flight = |group| groups.get(group).copied().unwrap_or(0);
        let traffic = book.groups.iter().map(|(group, c)| (group.clone(), c.report(in_flight(group)))).collect();
        (traffic, instances)
    }

    #[cfg(test)]
    pub(super) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        lock(&self.book).upstreams.values().cloned().collect()
    }
}

impl Book {
    fn group(&mut self, group: &GroupName) -> Arc<Counters> {
        Arc::clone(self.groups.entry(group.clone()).or_insert_with(|| Arc::new(Counters::new())))
    }
}

impl Table {
    fn choose(&self, host: Option<&str>, tried: &[Arc<Upstream>]) -> Result<&Arc<Upstream>, NoTarget> {
        if self.number == 0 {
            return Err(NoTarget::NoRoutes);
        }
        let named = host.and_then(|host| self.named(host));
        let name = named.or(self.default_cluster.as_deref()).ok_or(NoTarget::NoCluster)?;
        let none = || NoTarget::NoInstance { cluster: name.to_owned() };
        let cluster = self.clusters.get(name).filter(|cluster| !cluster.targets.is_empty()).ok_or_else(none)?;
        cluster.next(tried).ok_or_else(|| NoTarget::AllTried { cluster: name.to_owned() })
    }

    /// The cluster that a Host names: by the whole name, since a cluster's may hold dots, else by the first label.
    fn named(&self, host: &str) -> Option<&str> {
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name);
        let label = name.split('.').next().unwrap_or(name);
        let exact = |name: &str| self.clusters.get_key_value(name).map(|(name, _)| name.as_str());
        let any_case = |name: &str| self.lower_case.get(&name.to_ascii_lowercase()).map(String::as_str);
        exact(name).or_else(|| exact(label)).or_else(|| any_case(name)).or_else(|| any_case(label))
    }
}

impl Cluster {
    /// In turn: each gets the same share, however fast it answers. By the fewest in flight, an instance that fails at
    /// once would draw all requests to itself. Those that are passed over come last: trying them beats giving up.
    fn next(&self, tried: &[Arc<Upstream>]) -> Option<&Arc<Upstream>> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % self.targets.len().max(1);
        let in_turn = || {
            let (before, from) = self.targets.split_at(start);
            from.iter().chain(before).filter(|target| !tried.iter().any(|tried| Arc::ptr_eq(tried, target)))
        };
        in_turn().find(|target| !target.is_passed_over()).or_else(|| in_turn().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::protocol::Target;
    use troop_policies::ClusterName;

    fn target(n: u8, group: &str) -> Target {
        Target {
            instance: InstanceId::new(format!("i-{n:017x}")).unwrap(),
            group: GroupName::new(group).unwrap(),
            address: SocketAddr::from(([127, 0, 0, n], 80)),
        }
    }

    fn routes(default: Option<&str>, clusters: &[(&str, &[u8])]) -> Routes {
        let cluster = |(name, targets): &(&str, &[u8])| {
            let targets = targets.iter().map(|n| target(*n, &format!("{name}-v000"))).collect();
            (ClusterName::new(*name).unwrap(), targets)
        };
        Routes {
            version: 7,
            default_cluster: default.map(|name| ClusterName::new(name).unwrap()),
            clusters: clusters.iter().map(cluster).collect(),
            ..Routes::default()
        }
    }

    fn shared(routes: &Routes) -> Shared {
        let shared = Shared::new();
        shared.apply(routes);
        shared
    }

    fn assigned(shared: &Shared, host: &str) -> Result<u8, NoTarget> {
        let SocketAddr::V4(address) = shared.assign(Some(host), &[])?.0.address else { panic!("no v4 address") };
        Ok(address.ip().octets()[3])
    }

    #[test]
    fn the_first_label_or_the_whole_name_finds_a_cluster_and_anything_else_the_default() {
        let shared = shared(&routes(Some("hello-web"), &[("hello-web", &[1]), ("shop.v2-api", &[2]), ("Big", &[3])]));
        for (host, expected) in [
            ("hello-web.localhost:8080", 1),
            ("hello-web", 1),
            ("shop.v2-api:80", 2),
            ("BIG.localhost", 3),
            ("big:1", 3),
            ("127.0.0.1:8080", 1),
            ("[::1]:8080", 1),
            ("[::1]", 1),
            ("nobody.localhost", 1),
            ("", 1),
        ] {
            assert_eq!(assigned(&shared, host), Ok(expected), "{host}");
        }
        assert!(shared.assign(None, &[]).is_ok());
    }

    #[test]
    fn who_has_no_target_is_told_why() {
        assert_eq!(Shared::new().assign(None, &[]).unwrap_err(), NoTarget::NoRoutes);
        assert_eq!(shared(&routes(None, &[("a", &[1])])).assign(Some("b"), &[]).unwrap_err(), NoTarget::NoCluster);
        let none = Err(NoTarget::NoInstance { cluster: "a".into() });
        assert_eq!(assigned(&shared(&routes(None, &[("a", &[])])), "a"), none);
        assert_eq!(assigned(&shared(&routes(Some("a"), &[])), "x"), none);
    }

    #[tokio::test(start_paused = true)]
    async fn targets_take_turns_and_those_passed_over_come_last() {
        let shared = shared(&routes(None, &[("a", &[1, 2, 3])]));
        let turns: Vec<_> = (0..6).map(|_| assigned(&shared, "a").unwrap()).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
        let ups = shared.upstreams();
        ups[1].pass_over();
        let turns: BTreeSet<_> = (0..6).map(|_| assigned(&shared, "a").unwrap()).collect();
        assert_eq!(turns, BTreeSet::from([1, 3]));
        let last = shared.assign(Some("a"), &[Arc::clone(&ups[0]), Arc::clone(&ups[2])]).unwrap();
        assert!(Arc::ptr_eq(&last.0, &ups[1]));
        assert_eq!(shared.assign(Some("a"), &ups).unwrap_err(), NoTarget::AllTried { cluster: "a".into() });
        tokio::time::advance(Duration::from_secs(1)).await;
        let turns: BTreeSet<_> = (0..3).map(|_| assigned(&shared, "a").unwrap()).collect();
        assert_eq!(turns.len(), 3);
    }

    #[test]
    fn what_is_in_flight_is_counted_on_after_its_instance_left_the_routes() {
        let shared = shared(&routes(None, &[("a", &[1, 2])]));
        let old = shared.assign(Some("a"), &[]).unwrap();
        shared.apply(&routes(None, &[("a", &[3])]));
        assert_eq!(assigned(&shared, "a"), Ok(3));
        shared.sweep();
        let (traffic, in_flight) = shared.report();
        assert_eq!(in_flight[&old.0.instance], 1);
        assert_eq!(in_flight.len(), 2, "{in_flight:?}");
        assert_eq!(traffic[&old.0.group].in_flight, 1);
        // It comes back, and is the one it was.
        shared.apply(&routes(None, &[("a", &[1])]));
        assert!(Arc::ptr_eq(&shared.assign(Some("a"), &[]).unwrap().0, &old.0));
        let left = old.0.instance.clone();
        drop(old);
        shared.apply(&routes(None, &[("a", &[3])]));
        shared.sweep();
        assert!(!shared.report().1.contains_key(&left));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_a_kills_when_its_notice_comes_in_time() {
        let shared = shared(&routes(None, &[("a", &[1, 2])]));
        let ups = shared.upstreams();
        assert!(!shared.count_failed(&ups[0], false).await, "no notice within the time");
        let mut killing = routes(None, &[("a", &[2])]);
        killing.being_killed.push(ups[0].instance.clone());
        let late = async {
            tokio::time::sleep(NOTICE_OF_KILL_WITHIN / 2).await;
            shared.apply(&killing);
        };
        let (killed, ()) = tokio::join!(shared.count_failed(&ups[0], false), late);
        assert!(killed);
        assert!(shared.count_failed(&ups[0], false).await);
        let _zero = shared.report();
        let traffic = &shared.report().0[&ups[0].group];
        assert_eq!((traffic.failed, traffic.failed_in_flight_to_killed), (3, 2));
    }
}
