//! Delays on demand and by draw, against agents in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use troop_agent_core::protocol::{Answered, Capabilities, Chapter, End, Measured, MeasuredBy, Story};
use troop_policies::fault::FaultSpec;

use super::*;
use crate::agents::{AgentSeen, Agents, HostName, NoAnswer, Order, Standing};
use crate::api::types::LatencyRequest;
use crate::records::Record;

/// What the agents of every host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Everything, at once.
    All,
    Refuses,
    IsAway,
    /// It takes the grant, and finds no effect.
    ShowsNothing,
    /// It takes the grant, and nothing is heard of it any more.
    FallsSilent,
}

#[derive(Debug)]
struct Hosts {
    does: Mutex<Does>,
    stories: Mutex<BTreeMap<String, Story>>,
    orders: Mutex<Vec<String>>,
    /// Of the grant, and of each renewal that named some.
    peers: Mutex<Vec<Vec<String>>>,
}

impl Hosts {
    fn that(does: Does) -> Arc<Self> {
        Arc::new(Self {
            does: Mutex::new(does),
            stories: Mutex::default(),
            orders: Mutex::default(),
            peers: Mutex::default(),
        })
    }

    fn count(&self, word: &str) -> usize {
        self.orders.lock().unwrap().iter().filter(|order| *order == word).count()
    }

    fn set(&self, lease: &str, change: impl FnOnce(&mut Story)) {
        if let Some(story) = self.stories.lock().unwrap().get_mut(lease) {
            change(story);
        }
    }
}

fn rtt(us: u64) -> Option<Measured> {
    Some(Measured { median_us: Some(us), sent: 5, back: 5, by: MeasuredBy::Handshake })
}

#[async_trait]
impl Agents for Hosts {
    fn seen(&self) -> Vec<AgentSeen> {
        vec![AgentSeen {
            host: HostName::parse("local/r1/i-1").unwrap(),
            release: "0.1.0".to_owned(),
            capabilities: Capabilities::default(),
            standing: Standing::Token,
            since: None,
            live: Vec::new(),
        }]
    }

    async fn order(&self, host: &HostName, order: Order) -> Result<Answered, NoAnswer> {
        let does = *self.does.lock().unwrap();
        let word = match &order {
            Order::Grant(_) => "grant",
            Order::Renew { .. } => "renew",
            Order::End { .. } => "end",
        };
        self.orders.lock().unwrap().push(word.to_owned());
        let peers = match &order {
            Order::Grant(grant) => Some(grant.peers.clone()),
            Order::Renew { peers, .. } => peers.clone(),
            Order::End { .. } => None,
        };
        self.peers.lock().unwrap().extend(peers);
        if does == Does::IsAway {
            return Err(NoAnswer::NotConnected(host.clone()));
        }
        match order {
            Order::Grant(grant) => {
                assert!(!grant.peers.is_empty() && grant.life_ms >= grant.ttl_ms, "{grant:?}");
                if does == Does::Refuses {
                    return Ok(Answered::Refused { why: "agent.toml allows no delay".to_owned() });
                }
                let mut story = Story {
                    lease: grant.lease.clone(),
                    at: Chapter::Up,
                    plane: "forward".to_owned(),
                    baseline: rtt(300),
                    applied: rtt(200_300),
                    healed: None,
                    end: None,
                    trouble: String::new(),
                };
                if does == Does::ShowsNothing {
                    story.at = Chapter::Over;
                    (story.applied, story.end) = (rtt(310), Some(End::GivenUp));
                    story.trouble = "its effect could not be shown".to_owned();
                }
                if does != Does::FallsSilent {
                    self.stories.lock().unwrap().insert(grant.lease.clone(), story);
                }
                Ok(Answered::Granted)
            }
            Order::Renew { lease, .. } => match self.story(host, &lease) {
                Some(_) => Ok(Answered::Renewed),
                None => Err(NoAnswer::Silent(host.clone())),
            },
            Order::End { lease } => {
                self.set(&lease, |story| {
                    (story.at, story.healed, story.end) = (Chapter::Over, rtt(320), Some(End::Ended));
                });
                Ok(Answered::Gone { why: Some(End::Ended) })
            }
        }
    }

    fn story(&self, _: &HostName, lease: &str) -> Option<Story> {
        self.stories.lock().unwrap().get(lease).cloned()
    }

    async fn changed(&self, _: Duration) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    fn set_halted(&self, halted: bool) {
        if halted {
            let leases: Vec<String> = self.stories.lock().unwrap().keys().cloned().collect();
            for lease in leases {
                self.set(&lease, |story| (story.at, story.end) = (Chapter::Over, Some(End::Halted)));
            }
        }
    }
}

/// A policy whose menu has a delay to the app's own instances, the only ones there are.
fn policy() -> String {
    POLICY.replace("app:pricing", "app:hello")
}

fn latency(lasts_ms: u64) -> LatencyRequest {
    LatencyRequest {
        target: "hello-web".to_owned(),
        instance: None,
        fault: FaultSpec::delay(Duration::from_millis(200), vec!["app:hello".parse().unwrap()]),
        lasts: Duration::from_millis(lasts_ms),
        reason: "test".to_owned(),
        outside_window: false,
        plan: false,
    }
}

async fn stage(does: Does) -> (Home, Arc<Fake>, Arc<Hosts>, Arc<Core>) {
    let (home, world, hosts) = (Home::new(), Fake::new(), Hosts::that(does));
    home.write_policy(&policy());
    let core = home.control_plane_with(&world, Arc::clone(&hosts) as Arc<dyn Agents>, IN_WINDOW).await;
    (home, world, hosts, core)
}

/// Looks until nothing is watched any more.
async fn until_over(core: &Arc<Core>) {
    let mut faults = Follower::default();
    until("it is over", async || {
        let seen = look(core).await;
        healer::tick(core, &mut faults, &seen).await;
        core.ledger.marks(MARK_HEALING).await.unwrap().is_empty()
    })
    .await;
}

async fn ends(core: &Core) -> Vec<String> {
    let events = core.ledger.events(&EventFilter::default()).await.unwrap();
    let records = events.into_iter().filter_map(|e| serde_json::from_value::<Record>(e.body).ok());
    records.filter_map(|r| if let Record::FaultEnded { how, .. } = r { Some(how) } else { None }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_on_demand_is_granted_measured_renewed_ended_and_told() {
    let (_home, _world, hosts, core) = stage(Does::All).await;
    let answer = Control(Arc::clone(&core)).latency(latency(3_000), ana()).await.unwrap();
    assert_eq!(answer.outcome, "done");
    assert_eq!(answer.detail, "round trip 0.3 ms -> 200.3 ms, measured on the wire");
    // While it is there it is capacity lost, and no second act is judged beside it.
    let second = Control(Arc::clone(&core)).kill(kill("x"), ana()).await.unwrap_err();
    assert!(second.message.contains("have not healed"), "{second:?}");
    until_over(&core).await;
    assert!(hosts.count("grant") == 1 && hosts.count("renew") >= 1 && hosts.count("end") == 1);
    let told = ends(&core).await;
    assert_eq!(told, ["its time was over: round trip 0.3 ms -> 200.3 ms -> 0.3 ms, measured on the wire"]);
    core.ledger.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_name_is_resolved_for_the_grant_and_again_for_each_renewal() {
    let (home, world, hosts) = (Home::new(), Fake::new(), Hosts::that(Does::All));
    home.write_policy(&POLICY.replace("app:pricing", "host:localhost"));
    let core = home.control_plane_with(&world, Arc::clone(&hosts) as Arc<dyn Agents>, IN_WINDOW).await;
    let to = vec!["host:localhost".parse().unwrap()];
    let asked = LatencyRequest { fault: FaultSpec::delay(Duration::from_millis(200), to), ..latency(3_000) };
    assert_eq!(Control(Arc::clone(&core)).latency(asked, ana()).await.unwrap().outcome, "done");
    until_over(&core).await;
    let told = hosts.peers.lock().unwrap().clone();
    assert!(told.len() >= 2, "{told:?}");
    let is_local = |peer: &String| peer.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    assert!(told.iter().all(|peers| !peers.is_empty() && peers.iter().all(is_local)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_refuses_or_cannot_show_harms_nobody_and_says_why() {
    for (does, why) in [
        (Does::Refuses, "agent.toml allows no delay"),
        (Does::IsAway, "no agent of `local/r1/"),
        (Does::ShowsNothing, "its effect could not be shown"),
    ] {
        let (_home, _world, _hosts, core) = stage(does).await;
        let answer = Control(Arc::clone(&core)).latency(latency(1_000), ana()).await.unwrap();
        assert_eq!(answer.outcome, "refused", "{does:?}");
        assert!(answer.detail.contains(why), "{answer:?}");
        assert!(core.ledger.marks(MARK_HEALING).await.unwrap().is_empty(), "{does:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_on_the_menu_is_spared_before_any_host_is_asked() {
    let (_home, _world, hosts, core) = stage(Does::All).await;
    let control = Control(Arc::clone(&core));
    let longer = FaultSpec::delay(Duration::from_millis(201), vec!["app:hello".parse().unwrap()]);
    let others = FaultSpec::delay(Duration::from_millis(1), vec!["app:quiet".parse().unwrap()]);
    for (request, why) in [
        (LatencyRequest { fault: longer, ..latency(1_000) }, "a delay of up to 201 ms is more than"),
        (LatencyRequest { fault: others, ..latency(1_000) }, "does not list app:quiet"),
        (latency(11_000), "11 s is longer than"),
    ] {
        let refused = control.latency(request, ana()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Refused);
        assert!(refused.message.starts_with("spared (policy)") && refused.message.contains(why), "{refused:?}");
    }
    assert_eq!(hosts.count("grant"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_asks_the_gates_of_each_monkey_that_the_policy_names() {
    let (_home, _world, _hosts, core) = stage(Does::All).await;
    let control = Control(core);
    let verdicts = async || {
        let views = control.explain("hello-web").await.unwrap();
        views.into_iter().map(|view| (view.monkey, view.verdict)).collect::<Vec<_>>()
    };
    let eligible = |monkey: &str, done: &str| {
        (monkey.to_owned(), format!("eligible: one of 3 would be {done} if a draw fell now"))
    };
    assert_eq!(verdicts().await, [eligible("chaos", "hurt"), eligible("latency", "made slow")]);
    control.latency(latency(10_000), ana()).await.unwrap();
    let [(_, chaos), (_, latency)] = verdicts().await.try_into().unwrap();
    assert!(chaos.starts_with("spared (") && latency.starts_with("spared ("), "{chaos}; {latency}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_of_a_delay_says_its_steps_and_changes_nothing() {
    let (_home, _world, hosts, core) = stage(Does::All).await;
    let planned = LatencyRequest { plan: true, ..latency(6_000) };
    let answer = Control(core).latency(planned, ana()).await.unwrap();
    let first = "+200 ms to app:hello on one of 3 eligible instances of hello-web-v000, drawn at the act";
    assert_eq!((answer.outcome.as_str(), answer.steps[0].as_str()), ("planned", first));
    assert_eq!(hosts.count("grant"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_ends_what_is_there_and_lets_nothing_begin() {
    let (_home, _world, hosts, core) = stage(Does::All).await;
    let control = Control(Arc::clone(&core));
    control.latency(latency(10_000), ana()).await.unwrap();
    halt::halt(&core, "ana", "stop").await.unwrap();
    core.agents.set_halted(true);
    until_over(&core).await;
    assert!(ends(&core).await[0].starts_with("halted: "));
    let refused = control.latency(latency(1_000), ana()).await.unwrap_err();
    assert!(refused.message.contains("halted since"), "{refused:?}");
    assert_eq!(hosts.count("grant"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_ends_takes_its_fault_along() {
    let (_home, world, _hosts, core) = stage(Does::All).await;
    let answer = Control(Arc::clone(&core)).latency(latency(10_000), ana()).await.unwrap();
    let victim = answer.victim.unwrap();
    world.lock().groups.values_mut().for_each(|group| drop(group.members.remove(&victim)));
    until_over(&core).await;
    assert_eq!(ends(&core).await, ["the instance is gone, and the fault with it"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leashed_app_delays_nobody_and_a_missing_table_neither() {
    let (home, _world, hosts, core) = stage(Does::All).await;
    let control = Control(Arc::clone(&core));
    for (text, why) in [
        (
            policy().replace("[apps.hello.latency]\nleashed       = false", "[apps.hello.latency]\nleashed = true"),
            "leashed (policy)",
        ),
        (POLICY.split("# Only on demand").next().unwrap().to_owned(), "latency for `hello`"),
    ] {
        home.write_policy(&text);
        super::super::reload(&core).await;
        let refused = control.latency(latency(1_000), ana()).await.unwrap_err();
        assert!(refused.message.contains(why), "{refused:?}");
    }
    assert_eq!(hosts.count("grant"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delay_that_is_drawn_comes_at_its_minute_from_the_menu_and_once() {
    let (home, world, hosts) = (Home::new(), Fake::new(), Hosts::that(Does::All));
    // Odds of one for the latency monkey alone.
    let chaos = "[apps.hello.chaos]\nleashed       = false\nmean_workdays = 1\nmin_workdays  = 1\n";
    assert!(POLICY.contains(chaos));
    home.write_policy(&policy().replace(chaos, "").replace("10000", "1"));
    let agents = || Arc::clone(&hosts) as Arc<dyn Agents>;
    let core = home.control_plane_with(&world, agents(), "2026-11-24T00:05:00Z").await;
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let plan = core.ledger.plan("2026-11-24", "demo").await.unwrap().unwrap();
    let plan: DayPlan = serde_json::from_value(plan.body).unwrap();
    assert_eq!((plan.entries.len(), plan.entries[0].monkey.as_str()), (1, "latency"));
    let minute = plan.entries[0].at.unwrap().to_string();
    let core = home.control_plane_with(&world, agents(), &minute).await;
    let mut planner = planner::Planner::default();
    plan_and_fire(&core, &mut planner).await;
    until("it was granted", async || hosts.count("grant") == 1).await;
    until("it is settled", async || core.ledger.open_intents().await.unwrap().is_empty()).await;
    for _ in 0..3 {
        plan_and_fire(&core, &mut planner::Planner::default()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(hosts.count("grant"), 1, "once a day");
    let faults = IntentFilter { kind: Some("fault".to_owned()), ..IntentFilter::default() };
    let row = core.ledger.intents(&faults).await.unwrap().pop().unwrap();
    assert!(row.body.to_string().contains("\"mean_us\":200000"), "{}", row.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_which_nothing_is_heard_stays_unknown_until_it_must_have_lapsed() {
    let (_home, _world, hosts, core) = stage(Does::FallsSilent).await;
    let answer = Control(Arc::clone(&core)).latency(latency(50), ana()).await.unwrap();
    assert_eq!(answer.outcome, "unknown");
    assert_eq!(core.ledger.marks(MARK_HEALING).await.unwrap().len(), 1, "it counts as capacity lost");
    // Its host is heard again, and says that it has lapsed.
    let lease = answer.intent.unwrap();
    let story = Story {
        lease: lease.clone(),
        at: Chapter::Over,
        plane: "forward".to_owned(),
        baseline: rtt(300),
        applied: rtt(200_300),
        healed: rtt(310),
        end: Some(End::Lapsed),
        trouble: String::new(),
    };
    hosts.stories.lock().unwrap().insert(lease, story);
    until_over(&core).await;
    assert!(ends(&core).await[0].starts_with("its lease lapsed: "));
}
