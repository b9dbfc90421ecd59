mod drains;
mod safety;

use std::collections::BTreeSet;

use troop_policies::intent::Cause;
use troop_policies::inventory::Lifecycle;
use troop_policies::step::{How, NewGroup, Size, Step};

use super::*;
use crate::{Image, Timed};

/// A controller with a time of its own, and whatever it asked for.
struct Bench {
    controller: Controller,
    mono: Duration,
    seed: u64,
    intents: u32,
    effects: Vec<Effect>,
    /// Instances that a worker calls ill.
    ill: BTreeSet<InstanceId>,
    /// Whether launches come up and ends are carried out.
    obedient: bool,
}

const GRACE: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(1);

fn settings() -> Settings {
    Settings {
        account: AccountName::new("local").unwrap(),
        region: RegionName::new("r1").unwrap(),
        zones: ["r1a", "r1b", "r1c"].map(|z| ZoneName::new(z).unwrap()).into(),
        boot_delay: BOOT,
        grace: GRACE,
        eureka_url: "http://10.77.0.1:8761/eureka/v2".into(),
        network: Network::SANDBOX,
        port_min: 0,
        images: "/state/cloud/images".into(),
        logs: "/state/cloud/logs".into(),
    }
}

fn package() -> Package {
    let image = Image {
        id: ImageId::new("ami-1").unwrap(),
        name: "hello".into(),
        version: "1.0.0".into(),
        created_at: "2026-11-24T10:00:00Z".parse().unwrap(),
        registry_required: true,
    };
    Package { image, command: vec!["troop".into(), "sample-app".into()], port: 8080, health_path: "/health".into() }
}

fn bench() -> Bench {
    let saved = Saved::new(None, BTreeMap::new());
    Bench::over(Controller::new(settings(), vec![package()], saved).unwrap())
}

fn name(text: &str) -> GroupName {
    GroupName::new(text).unwrap()
}

impl Bench {
    fn over(controller: Controller) -> Self {
        let (mono, ill) = (Duration::from_secs(1000), BTreeSet::new());
        Self { controller, mono, seed: 0, intents: 0, effects: Vec::new(), ill, obedient: true }
    }

    fn now(&self) -> Now {
        let began: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
        Now { at: began + self.mono, mono: self.mono }
    }

    /// Feeds an event and, when obedient, what the runtime would answer to its effects.
    fn feed(&mut self, event: Event) {
        let now = self.now();
        let seed = &mut self.seed;
        let mut random = || {
            *seed += 1;
            *seed
        };
        let effects = self.controller.on(event, now, &mut random);
        for effect in effects {
            self.effects.push(effect.clone());
            if !self.obedient {
                continue;
            }
            match effect {
                Effect::Launch(launch) => self.feed(Event::Launched { instance: launch.instance, pid: 7 }),
                Effect::End { instance, by } => {
                    let status = format!("signal {}", if by == EndBy::Kill { 9 } else { 15 });
                    self.feed(Event::Exited { instance, status });
                }
                Effect::Publish(_) | Effect::Clean { .. } | Effect::Settle { .. } => {}
            }
        }
    }

    /// Worker 0 follows the newest routes and reports.
    fn report(&mut self, in_flight: &[(&InstanceId, u64)]) {
        let version = self.controller.routes.version;
        self.feed(Event::Applied { worker: 0, connection: 1, version });
        let checked_at = self.now().at;
        let verdict = |id: &InstanceId| Verdict { healthy: !self.ill.contains(id), checked_at, reason: None };
        let checks = Arc::clone(&self.controller.routes);
        let health = checks.checks.iter().map(|c| (c.instance.clone(), verdict(&c.instance))).collect();
        let in_flight = in_flight.iter().map(|(id, count)| ((*id).clone(), *count)).collect();
        self.feed(Event::Report { worker: 0, connection: 1, health, traffic: BTreeMap::new(), in_flight });
    }

    fn join(&mut self) {
        self.feed(Event::WorkerJoined { worker: 0, connection: 1, life: Some(1) });
    }

    /// Lets time pass, with a worker that reports every 250 ms.
    fn pass(&mut self, time: Duration) {
        let until = self.mono + time;
        while self.mono < until {
            self.mono += Duration::from_millis(250);
            self.feed(Event::Tick);
            self.report(&[]);
        }
    }

    fn ask(&mut self, step: Step) -> IntentId {
        self.intents += 1;
        let id = IntentId::new(format!("{:032x}", self.intents)).unwrap();
        let intent = Intent {
            id: id.clone(),
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            step,
            cause: Cause::Push { push: 1, actor: "test".into() },
            at: self.now().at,
        };
        self.feed(Event::Perform(Box::new(intent)));
        id
    }

    fn outcome(&self, intent: &IntentId) -> Option<Outcome> {
        let settled = |effect: &Effect| match effect {
            Effect::Settle { intent: of, outcome } if of == intent => Some(outcome.clone()),
            Effect::Settle { .. }
            | Effect::Publish(_)
            | Effect::Launch(_)
            | Effect::End { .. }
            | Effect::Clean { .. } => None,
        };
        self.effects.iter().rev().find_map(settled)
    }

    fn done(&mut self, step: Step) -> String {
        let id = self.ask(step);
        self.report(&[]);
        match self.outcome(&id) {
            Some(Outcome::Done { detail }) => detail,
            other => panic!("{other:?}"),
        }
    }

    fn refused(&mut self, step: Step) -> String {
        let before = self.controller.saved();
        let id = self.ask(step);
        assert_eq!(before, self.controller.saved());
        match self.outcome(&id) {
            Some(Outcome::Refused { why }) => why,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, group: &str) {
        let zones = self.controller.settings.zones.iter().cloned().collect();
        let (name, image) = (name(group), ImageId::new("ami-1").unwrap());
        self.done(Step::CreateGroup { group: NewGroup { name, image, zones, tags: [].into(), has_targets: true } });
    }

    fn resize(&mut self, group: &str, count: u32) {
        self.done(Step::Resize { group: name(group), size: Size::pinned(count) });
    }

    /// A cluster `hello-web` whose v000 has three healthy members and is in rotation.
    fn serving(&mut self) {
        self.join();
        self.create("hello-web-v000");
        self.resize("hello-web-v000", 3);
        self.pass(BOOT * 2);
        self.flip("hello-web-v000");
        self.effects.clear();
    }

    fn flip(&mut self, to: &str) -> String {
        self.done(Step::Flip { cluster: name(to).cluster().clone(), to: name(to) })
    }

    fn ids(&self, group: &str) -> Vec<InstanceId> {
        self.group(group).members.into_keys().collect()
    }

    fn group(&self, group: &str) -> troop_policies::inventory::Group {
        self.controller.inventory(self.now().at).groups.remove(&name(group)).unwrap()
    }

    fn launches(&self) -> Vec<&Launch> {
        let mut launches = Vec::new();
        for effect in &self.effects {
            if let Effect::Launch(launch) = effect {
                launches.push(&**launch);
            }
        }
        launches
    }

    fn terminate(&self, instance: &InstanceId, kill: How) -> Step {
        Step::Terminate { group: name("hello-web-v000"), instance: instance.clone(), kill }
    }
}

#[test]
fn a_group_is_spread_over_its_zones_and_boots_before_it_serves() {
    let mut bench = bench();
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 4);
    let launches = bench.launches();
    assert_eq!(launches.iter().map(|l| l.zone).collect::<Vec<_>>(), [0, 1, 2, 0]);
    assert_eq!(launches[3].address, Ipv4Addr::new(10, 77, 0, 11));
    assert_eq!(launches[1].env["HOST"], "10.77.1.10");
    assert_eq!(launches[1].env["TROOP_ZONE"], "r1b");
    assert_eq!(launches[1].env.len(), 12);
    assert!(launches[0].image_root.ends_with("images/ami-1/root"));
    let ids: BTreeSet<_> = launches.iter().map(|l| l.instance.clone()).collect();
    assert!(ids.iter().all(|id| id.as_str().len() == 19) && ids.len() == 4, "{ids:?}");
    let lifecycles =
        |bench: &Bench| bench.group("hello-web-v000").members.values().map(|m| m.lifecycle).collect::<Vec<_>>();
    assert_eq!(lifecycles(&bench), [Lifecycle::Pending; 4]);
    assert!(bench.controller.routes.checks.is_empty(), "nobody asks one that boots for its health");
    bench.mono += BOOT;
    bench.feed(Event::Tick);
    assert_eq!(lifecycles(&bench), [Lifecycle::InService; 4]);
    assert_eq!(bench.controller.routes.checks.len(), 4);
    assert!(bench.controller.routes.clusters.is_empty(), "only a flip gives it traffic");
}

#[test]
fn scale_in_takes_the_newest_of_the_fullest_zone_out_of_the_balancer_first() {
    let mut bench = bench();
    bench.serving();
    bench.mono += Duration::from_secs(5);
    bench.resize("hello-web-v000", 4);
    let newest = bench.launches()[0].instance.clone();
    bench.pass(BOOT * 2);
    bench.effects.clear();
    bench.obedient = false;
    let targets = |bench: &Bench| bench.controller.routes.clusters.values().next().unwrap().len();
    assert_eq!(targets(&bench), 4);
    bench.ask(Step::Resize { group: name("hello-web-v000"), size: Size::pinned(3) });
    assert_eq!(targets(&bench), 3);
    bench.report(&[(&newest, 1)]);
    assert!(!bench.effects.iter().any(|e| matches!(e, Effect::End { .. })), "a request is in flight");
    bench.report(&[]);
    assert!(bench.effects.contains(&Effect::End { instance: newest.clone(), by: EndBy::Term }));
    bench.mono += TERM_TO_KILL;
    bench.feed(Event::Tick);
    assert!(bench.effects.contains(&Effect::End { instance: newest, by: EndBy::Kill }));
}

#[test]
fn a_crash_is_announced_then_kills_at_once_and_is_done_when_it_is_gone() {
    let mut bench = bench();
    bench.serving();
    bench.obedient = false;
    let victim = bench.ids("hello-web-v000")[1].clone();
    let act = bench.ask(bench.terminate(&victim, How::Crash));
    assert_eq!(bench.controller.routes.being_killed, std::slice::from_ref(&victim));
    assert_eq!(bench.controller.routes.clusters.values().next().unwrap().len(), 3, "a crash is no drain");
    let kill = Effect::End { instance: victim.clone(), by: EndBy::Kill };
    assert!(!bench.effects.contains(&kill), "the balancer has not been heard");
    bench.report(&[(&victim, 3)]);
    assert!(bench.effects.contains(&kill));
    assert_eq!(bench.outcome(&act), None);
    assert!(bench.launches().is_empty(), "the group notices when it is gone");
    bench.feed(Event::Exited { instance: victim.clone(), status: "signal 9".into() });
    assert_eq!(bench.outcome(&act), Some(Outcome::done(format!("`{victim}` ended (signal 9)"))));
    assert_eq!(bench.launches().len(), 1);
    assert_eq!(bench.controller.routes.being_killed, std::slice::from_ref(&victim), "requests may fail only now");
    assert!(bench.refused(bench.terminate(&victim, How::Crash)).contains("no instance"));
}

#[test]
fn a_crash_does_not_wait_for_a_worker_that_hangs_and_a_late_end_corrects_unknown() {
    let mut bench = bench();
    bench.serving();
    bench.obedient = false;
    let victim = bench.ids("hello-web-v000")[0].clone();
    let act = bench.ask(bench.terminate(&victim, How::Crash));
    bench.mono += Duration::from_millis(250);
    bench.feed(Event::Tick);
    assert!(bench.effects.contains(&Effect::End { instance: victim.clone(), by: EndBy::Kill }));
    assert!(bench.refused(bench.terminate(&victim, How::Crash)).contains("ending already"));
    bench.mono += Duration::from_secs(9);
    bench.feed(Event::Tick);
    assert_eq!(bench.outcome(&act), None, "a busy machine may take its time");
    bench.mono += Duration::from_secs(1);
    bench.feed(Event::Tick);
    assert!(matches!(bench.outcome(&act), Some(Outcome::Unknown { .. })));
    bench.feed(Event::Exited { instance: victim, status: "signal 9".into() });
    assert!(bench.outcome(&act).unwrap().is_done());
}

#[test]
fn a_drain_waits_for_requests_but_not_longer_than_its_delay() {
    for finishes in [true, false] {
        let mut bench = bench();
        bench.serving();
        bench.obedient = false;
        let victim = bench.ids("hello-web-v000")[0].clone();
        let act = bench.ask(bench.terminate(&victim, How::Drain { delay: Duration::from_secs(10) }));
        assert_eq!(bench.launches().len(), 1, "its place is free at once");
        let targets = &bench.controller.routes.clusters.values().next().unwrap().clone();
        assert!(targets.iter().all(|t| t.instance != victim) && targets.len() == 2);
        bench.report(&[(&victim, 1)]);
        assert!(bench.outcome(&act).unwrap().is_done(), "nothing stops its end now");
        bench.mono += Duration::from_secs(9);
        bench.report(&[(&victim, u64::from(!finishes))]);
        let term = Effect::End { instance: victim.clone(), by: EndBy::Term };
        assert_eq!(bench.effects.contains(&term), finishes);
        bench.mono += Duration::from_secs(1);
        bench.report(&[(&victim, 1)]);
        assert!(bench.effects.contains(&term));
    }
}

#[test]
fn a_flip_is_done_when_every_worker_follows_it() {
    let mut bench = bench();
    bench.serving();
    bench.create("hello-web-v001");
    bench.resize("hello-web-v001", 1);
    bench.pass(BOOT * 2);
    bench.feed(Event::WorkerJoined { worker: 1, connection: 2, life: Some(2) });
    let cluster = name("hello-web-v001").cluster().clone();
    let flip = |bench: &mut Bench| bench.ask(Step::Flip { cluster: cluster.clone(), to: name("hello-web-v001") });
    let act = flip(&mut bench);
    assert!(bench.group("hello-web-v001").in_rotation && !bench.group("hello-web-v000").in_rotation);
    let version = bench.controller.routes.version;
    bench.mono += Duration::from_millis(40);
    bench.report(&[]);
    assert_eq!(bench.outcome(&act), None, "worker 1 has not followed");
    let second = flip(&mut bench);
    assert!(matches!(bench.outcome(&second), Some(Outcome::Refused { .. })), "one flip at a time");
    bench.feed(Event::Applied { worker: 1, connection: 9, version });
    assert_eq!(bench.outcome(&act), None, "an old connection has no say");
    bench.feed(Event::Applied { worker: 1, connection: 2, version });
    let Some(Outcome::Done { detail }) = bench.outcome(&act) else { panic!() };
    assert!(detail.starts_with("flipped in 40 ms"), "{detail}");
}

#[test]
fn a_flip_that_a_worker_does_not_follow_is_unknown_by_its_name_and_may_be_seen_later() {
    let mut bench = bench();
    bench.serving();
    bench.create("hello-web-v001");
    bench.resize("hello-web-v001", 1);
    bench.pass(BOOT * 2);
    bench.feed(Event::WorkerJoined { worker: 4, connection: 2, life: Some(2) });
    let cluster = name("hello-web-v001").cluster().clone();
    let act = bench.ask(Step::Flip { cluster, to: name("hello-web-v001") });
    // It goes away without a word, and goes on serving by what it last knew.
    bench.feed(Event::WorkerLeft { worker: 4, connection: 2 });
    bench.report(&[]);
    assert_eq!(bench.outcome(&act), None);
    bench.mono += Duration::from_secs(2);
    bench.report(&[]);
    let Some(Outcome::Unknown { why }) = bench.outcome(&act) else { panic!() };
    assert!(why.contains("worker 4"), "{why}");
    bench.feed(Event::WorkerJoined { worker: 4, connection: 3, life: Some(3) });
    bench.feed(Event::Applied { worker: 4, connection: 3, version: bench.controller.routes.version });
    assert!(bench.outcome(&act).unwrap().is_done());
}

#[test]
fn a_flip_needs_a_worker_and_a_healthy_target() {
    let mut bench = bench();
    bench.create("hello-web-v000");
    let flip = Step::Flip { cluster: name("hello-web-v000").cluster().clone(), to: name("hello-web-v000") };
    bench.resize("hello-web-v000", 1);
    bench.pass(BOOT * 2);
    assert!(bench.refused(flip.clone()).contains("no healthy target"));
    bench.join();
    bench.pass(BOOT);
    bench.feed(Event::WorkerLeft { worker: 0, connection: 1 });
    assert!(bench.refused(flip.clone()).contains("no worker"));
    bench.mono += Duration::from_secs(4);
    assert!(bench.refused(flip).contains("no healthy target"), "its verdict is stale");
}

#[test]
fn the_targets_are_never_emptied_by_ill_health() {
    let mut bench = bench();
    bench.serving();
    let ids = bench.ids("hello-web-v000");
    let targets = |bench: &Bench| bench.controller.routes.clusters.values().next().unwrap().len();
    bench.ill.insert(ids[0].clone());
    bench.report(&[]);
    assert_eq!(targets(&bench), 2);
    bench.ill.extend(ids);
    bench.report(&[]);
    assert_eq!(targets(&bench), 3);
}

#[test]
fn the_worst_verdict_counts_and_an_unreported_one_goes_stale() {
    let mut bench = bench();
    bench.serving();
    bench.feed(Event::WorkerJoined { worker: 1, connection: 2, life: Some(2) });
    let id = bench.ids("hello-web-v000")[0].clone();
    let verdict = |healthy, at| Verdict { healthy, checked_at: at, reason: Some("503".into()) };
    let report = |bench: &mut Bench, healthy| {
        let health = BTreeMap::from([(id.clone(), verdict(healthy, bench.now().at))]);
        bench.feed(Event::Report { worker: 1, connection: 2, health, traffic: [].into(), in_flight: [].into() });
    };
    let target = |bench: &Bench| bench.group("hello-web-v000").members[&id].target.clone().unwrap();
    report(&mut bench, false);
    bench.report(&[]);
    assert!(!target(&bench).healthy);
    assert_eq!(target(&bench).reason.as_deref(), Some("503"));
    // A worker that is silent for 3 s has no say any more.
    bench.pass(Duration::from_secs(4));
    assert!(target(&bench).healthy);
    let last = bench.now().at;
    bench.mono += Duration::from_secs(4);
    bench.feed(Event::Tick);
    assert_eq!(target(&bench).checked_at, last);
    assert!(!target(&bench).is_good(bench.now().at));
}

#[test]
fn the_unhealthy_are_replaced_one_at_a_time_and_only_on_fresh_verdicts() {
    let mut bench = bench();
    bench.serving();
    let ids = bench.ids("hello-web-v000");
    bench.ill.extend(ids.clone());
    bench.pass(Duration::from_secs(9));
    assert!(bench.launches().is_empty(), "10 s have not passed");
    bench.obedient = false;
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.launches().len(), 1);
    let serving =
        bench.group("hello-web-v000").members.values().filter(|m| m.lifecycle == Lifecycle::InService).count();
    assert_eq!(serving, 2);

    let mut bench = self::bench();
    bench.serving();
    let ids = bench.ids("hello-web-v000");
    bench.ill.extend(ids);
    bench.report(&[]);
    bench.mono += Duration::from_secs(60);
    bench.feed(Event::Tick);
    assert!(bench.launches().is_empty(), "nobody has said for a minute that they are ill");
    bench.report(&[]);
    assert!(bench.launches().is_empty(), "what was in between is not known");
}

#[test]
fn one_that_never_becomes_healthy_is_replaced_after_the_grace() {
    let mut bench = bench();
    bench.join();
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 1);
    let id = bench.launches()[0].instance.clone();
    bench.ill.insert(id.clone());
    bench.pass(GRACE - Duration::from_secs(1));
    assert_eq!(bench.ids("hello-web-v000"), std::slice::from_ref(&id));
    bench.pass(Duration::from_secs(2));
    assert_ne!(bench.ids("hello-web-v000"), [id]);
    assert_eq!(bench.launches().len(), 2);
}

#[test]
fn a_group_in_which_nobody_becomes_healthy_is_replaced_ever_more_slowly() {
    let mut bench = bench();
    bench.join();
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 3);
    let hours = |bench: &mut Bench, hours: u64| {
        for _ in 0..hours * 720 {
            bench.ill.extend(bench.ids("hello-web-v000"));
            bench.pass(Duration::from_secs(5));
        }
    };
    hours(&mut bench, 2);
    let at_first = bench.launches().len();
    assert!((6..=14).contains(&at_first), "{at_first} launches in two hours; every 20 s it were hundreds");
    hours(&mut bench, 2);
    let later = bench.launches().len() - at_first;
    assert!((1..=7).contains(&later), "{later} launches in two more hours: each of three once an hour");

    bench.ill.clear();
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.controller.grace(&name("hello-web-v000")), GRACE, "one that is healthy shows that it is over");
}

#[test]
fn commands_that_end_early_are_failed_launches_with_growing_pauses() {
    let mut bench = bench();
    bench.join();
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 1);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let instance = bench.ids("hello-web-v000")[0].clone();
        let launched = bench.launches().len();
        bench.feed(Event::Exited { instance, status: "exit code 1".into() });
        assert_eq!(bench.group("hello-web-v000").last_failed_launch, Some(bench.now().at));
        let began = bench.mono;
        while bench.launches().len() == launched {
            bench.mono += Duration::from_millis(250);
            bench.feed(Event::Tick);
        }
        pauses.push((bench.mono - began).as_secs());
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    // One that was healthy and dies is replaced at once.
    bench.pass(BOOT * 2);
    let (instance, launched) = (bench.ids("hello-web-v000")[0].clone(), bench.launches().len());
    bench.feed(Event::Exited { instance, status: "signal 11".into() });
    assert_eq!(bench.launches().len(), launched + 1);
}

#[test]
fn a_launch_that_the_runtime_refuses_is_a_failed_one() {
    let mut bench = bench();
    bench.obedient = false;
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 3);
    let ids: Vec<_> = bench.launches().iter().map(|l| l.instance.clone()).collect();
    for instance in ids {
        bench.feed(Event::LaunchFailed { instance, why: "no".into() });
    }
    assert_eq!(bench.launches().len(), 3);
    bench.mono += Duration::from_secs(1);
    bench.feed(Event::Tick);
    assert_eq!(bench.launches().len(), 6, "three that fail together are one failure");
}

#[test]
fn an_instance_that_is_ended_while_it_is_launched_is_ended_when_it_is_there() {
    let mut bench = bench();
    bench.obedient = false;
    bench.create("hello-web-v000");
    bench.resize("hello-web-v000", 1);
    let instance = bench.launches()[0].instance.clone();
    let act = bench.ask(bench.terminate(&instance, How::Crash));
    assert!(!bench.effects.iter().any(|e| matches!(e, Effect::End { .. })));
    bench.feed(Event::Launched { instance: instance.clone(), pid: 9 });
    assert!(bench.effects.contains(&Effect::End { instance: instance.clone(), by: EndBy::Kill }));
    bench.feed(Event::Exited { instance, status: "signal 9".into() });
    assert!(bench.outcome(&act).unwrap().is_done());
}

#[test]
fn an_address_rests_for_a_minute() {
    let mut bench = bench();
    let zones = [ZoneName::new("r1b").unwrap()].into();
    let image = ImageId::new("ami-1").unwrap();
    let group = NewGroup { name: name("a-v000"), image, zones, tags: [].into(), has_targets: false };
    bench.done(Step::CreateGroup { group });
    bench.resize("a-v000", 1);
    let mut seen = BTreeSet::new();
    for _ in 0..240 {
        let instance = bench.ids("a-v000")[0].clone();
        bench.done(Step::Terminate { group: name("a-v000"), instance, kill: How::Crash });
        assert!(seen.insert(bench.launches().last().unwrap().address), "used again within a minute");
    }
    assert!(seen.iter().all(|a| a.octets()[2] == 1 && (10..=254).contains(&a.octets()[3])));
}
