//! What the control plane does with real ledgers and policies, on a cloud in memory: draws, demands, pushes, and two of
//! it on one ledger.

mod accounts;
mod drills;
mod faults;
mod notices;
mod stage;

use std::sync::Arc;
use std::time::Duration;

use troop_ledger::{EventFilter, IntentFilter};
use troop_policies::plan::DayPlan;

use super::control::Control;
use super::core::Core;
use super::look::look;
use super::{halt, healer, planner, pushes, resolver};
use crate::api::types::{Actor, ControlPlane as _, DeployRequest, ErrorKind, KillRequest, RollbackRequest};
use crate::records::{MARK_HEALING, MARK_UNHEALED};
use crate::serve::faults::Follower;
use stage::{Fake, Home, IN_WINDOW, POLICY};

/// The whole day's plan has come due by its end.
const LAST_MINUTE: &str = "2026-11-24T11:59:30Z";

fn ana() -> Actor {
    Actor { uid: 1000, name: "ana".to_owned() }
}

fn kill(reason: &str) -> KillRequest {
    KillRequest {
        target: "hello-web".to_owned(),
        instance: None,
        reason: reason.to_owned(),
        outside_window: false,
        plan: false,
    }
}

fn deploy(image: &str) -> DeployRequest {
    DeployRequest {
        cluster: "hello-web".parse().unwrap(),
        image: image.to_owned(),
        location: None,
        team: None,
        size: None,
        watch: Some(Duration::from_secs(600)),
        soak: Some(Duration::ZERO),
        ready_within: Some(Duration::from_secs(20)),
        errors_above: None,
        drain: Some(Duration::ZERO),
        plan: false,
    }
}

fn rollback(push: Option<u64>) -> RollbackRequest {
    RollbackRequest { cluster: "hello-web".parse().unwrap(), push, reason: "test".to_owned(), plan: false }
}

async fn plan_and_fire(core: &Arc<Core>, planner: &mut planner::Planner) {
    let seen = look(core).await;
    healer::tick(core, &mut Follower::default(), &seen).await;
    planner::tick(core, planner, &seen).await;
}

/// Waits on a level, with a limit.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..2_400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}

/// The minute that the plan drew, as a calendar for a control plane that starts then.
async fn drawn_minute(home: &Home, world: &Arc<Fake>) -> String {
    let core = home.control_plane(world, "2026-11-24T00:05:00Z").await;
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let plan = core.ledger.plan("2026-11-24", "demo").await.unwrap().unwrap();
    let plan: DayPlan = serde_json::from_value(plan.body).unwrap();
    assert_eq!(world.count("terminate"), 0, "its minute has not come");
    plan.entries[0].at.unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drawn_kill_is_recorded_done_cancelled_and_healed_and_happens_once() {
    let (home, world) = (Home::new(), Fake::new());
    let minute = drawn_minute(&home, &world).await;
    let core = home.control_plane(&world, &minute).await;
    let mut planner = planner::Planner::default();
    plan_and_fire(&core, &mut planner).await;
    until("killed and healed", async || {
        plan_and_fire(&core, &mut planner).await;
        world.count("cancel_entry") == 1 && core.ledger.marks(MARK_HEALING).await.unwrap().is_empty()
    })
    .await;
    for _ in 0..5 {
        plan_and_fire(&core, &mut planner::Planner::default()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.count("terminate"), 1);
    let kinds: Vec<_> =
        core.ledger.events(&EventFilter::default()).await.unwrap().into_iter().map(|e| e.kind).collect();
    let at = |kind: &str| kinds.iter().position(|k| k == kind).unwrap();
    assert!(at("intended") < at("settled") && at("settled") < at("healed"), "{kinds:?}");
    core.ledger.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_control_planes_on_one_ledger_never_act_twice() {
    for _ in 0..5 {
        let (home, world) = (Home::new(), Fake::new());
        let minute = drawn_minute(&home, &world).await;
        let (a, b) = (home.control_plane(&world, &minute).await, home.control_plane(&world, &minute).await);
        let both = async |core: Arc<Core>| {
            let mut planner = planner::Planner::default();
            for _ in 0..8 {
                plan_and_fire(&core, &mut planner).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::join!(both(Arc::clone(&a)), both(Arc::clone(&b)));
        until("the kill is settled", async || a.ledger.open_intents().await.unwrap().is_empty()).await;
        assert_eq!(world.count("terminate"), 1);
        // Two demands at once: the second finds the first unhealed.
        let (one, two) = (Control(Arc::clone(&a)), Control(Arc::clone(&b)));
        let (first, second) = tokio::join!(one.kill(kill("a"), ana()), two.kill(kill("b"), ana()));
        assert!(!(first.is_ok() && second.is_ok()), "two kills were judged on one inventory (I15)");
        a.ledger.verify().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_day_planned_from_two_states_with_one_secret_is_the_same_plan() {
    let mut plans = Vec::new();
    for made_at in ["2026-11-24T00:05:00Z", "2026-11-24T00:06:00Z"] {
        let (home, world) = (Home::new(), Fake::new());
        let core = home.control_plane(&world, made_at).await;
        plan_and_fire(&core, &mut planner::Planner::default()).await;
        let mut plan = core.ledger.plan("2026-11-24", "demo").await.unwrap().unwrap().body;
        plan["made_at"] = serde_json::Value::Null;
        plans.push(plan);
    }
    assert_eq!(plans[0], plans[1]);
    assert!(plans[0]["entries"][0]["minute"].is_u64(), "{}", plans[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_hurt_while_halted_and_the_file_alone_decides() {
    let (home, world) = (Home::new(), Fake::new());
    let minute = drawn_minute(&home, &world).await;
    let core = home.control_plane(&world, &minute).await;
    halt::halt(&core, "ana", "fire").await.unwrap();
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let refused = Control(Arc::clone(&core)).kill(kill("x"), ana()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.message.contains("halted since"), "{}", refused.message);
    let refused = Control(Arc::clone(&core)).deploy(deploy("ami-1"), ana()).await.unwrap_err();
    assert!(refused.message.starts_with("halted"), "{}", refused.message);
    // A file that cannot be read halts as well.
    halt::resume(&core, "ana", "over").await.unwrap();
    std::fs::write(home.state().halt_file(), "{").unwrap();
    assert!(Control(Arc::clone(&core)).kill(kill("x"), ana()).await.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.count("terminate"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_turns_bad_spares_its_team_from_that_moment() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    let control = Control(Arc::clone(&core));
    home.write_policy(&POLICY.replace("leashed       = false", "leashed       = \"no\""));
    super::reload(&core).await;
    let refused = control.kill(kill("x"), ana()).await.unwrap_err();
    assert!(refused.message.contains("demo.toml cannot be used"), "{}", refused.message);
    home.write_policy(POLICY);
    super::reload(&core).await;
    control.kill(kill("x"), ana()).await.unwrap();
    assert_eq!(world.count("terminate"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_nobody_can_say_counts_as_a_kill_and_is_not_repeated() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    (world.lock().lose_answer_of, world.lock().forgets) = (Some("terminate"), true);
    let answer = Control(Arc::clone(&core)).kill(kill("x"), ana()).await.unwrap();
    assert_eq!(answer.outcome, "unknown");
    resolver::tick(&core, true).await;
    resolver::tick(&core, true).await;
    assert_eq!(world.count("terminate"), 1);
    let rows =
        core.ledger.intents(&IntentFilter { kind: Some("terminate".to_owned()), ..IntentFilter::default() }).await;
    assert_eq!(rows.unwrap()[0].outcome.as_deref(), Some("unknown"));
    let refused = Control(Arc::clone(&core)).kill(kill("again"), ana()).await.unwrap_err();
    assert!(refused.message.contains("has not healed"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_kill_is_settled_so_and_stops_nothing_else() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    world.lock().refuse = Some("terminate");
    let control = Control(Arc::clone(&core));
    assert_eq!(control.kill(kill("x"), ana()).await.unwrap().outcome, "refused");
    assert_eq!(control.kill(kill("y"), ana()).await.unwrap().outcome, "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_heal_in_time_is_spared_until_cleared() {
    let (home, world) = (Home::new(), Fake::new());
    home.write_policy(&POLICY.replace("heals_within = \"60s\"", "heals_within = \"1s\""));
    let core = home.control_plane(&world, IN_WINDOW).await;
    let control = Control(Arc::clone(&core));
    world.lock().no_launches = true;
    control.kill(kill("x"), ana()).await.unwrap();
    until("not healed", async || {
        let seen = look(&core).await;
        healer::tick(&core, &mut Follower::default(), &seen).await;
        !core.ledger.marks(MARK_UNHEALED).await.unwrap().is_empty()
    })
    .await;
    world.lock().no_launches = false;
    let refused = control.kill(kill("y"), ana()).await.unwrap_err();
    assert!(refused.message.contains("troop clear local/r1/hello-web"), "{}", refused.message);
    control.clear("local/r1/hello-web".to_owned(), "looked at".to_owned(), ana()).await.unwrap();
    control.kill(kill("z"), ana()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_is_not_the_clouds_spares_and_refuses_pushes() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    Control(core).kill(kill("x"), ana()).await.unwrap();
    let elsewhere = Home::new();
    let other = elsewhere.control_plane(&world, IN_WINDOW).await;
    let control = Control(Arc::clone(&other));
    let refused = control.kill(kill("y"), ana()).await.unwrap_err();
    assert!(refused.message.contains("carries mark"), "{}", refused.message);
    let refused = control.deploy(deploy("ami-1"), ana()).await.unwrap_err();
    assert!(refused.message.contains("carries mark"), "{}", refused.message);
    assert_eq!(world.count("terminate"), 1);
    let adopted = control.adopt("the old host is gone".to_owned(), ana()).await.unwrap();
    assert_eq!(adopted.len(), 1);
    control.kill(kill("z"), ana()).await.unwrap();
    assert_eq!(control.adopt("again".to_owned(), ana()).await.unwrap_err().kind, ErrorKind::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policies_directory_that_vanishes_spares_until_it_is_back() {
    let (home, world) = (Home::new(), Fake::new());
    let minute = drawn_minute(&home, &world).await;
    let core = home.control_plane(&world, &minute).await;
    let (policies, elsewhere) = (home.dir.path().join("policies"), home.dir.path().join("elsewhere"));
    std::fs::rename(&policies, &elsewhere).unwrap();
    super::reload(&core).await;
    let mut planner = planner::Planner::default();
    for _ in 0..3 {
        plan_and_fire(&core, &mut planner).await;
    }
    let control = Control(Arc::clone(&core));
    assert!(control.kill(kill("x"), ana()).await.is_err());
    assert_eq!(world.count("terminate"), 0);
    assert!(core.troubles().iter().any(|t| t.starts_with("policies: ") && t.contains("cannot be read")));
    std::fs::rename(&elsewhere, &policies).unwrap();
    super::reload(&core).await;
    until("killed", async || {
        plan_and_fire(&core, &mut planner).await;
        world.count("terminate") == 1
    })
    .await;
    assert!(!core.troubles().iter().any(|t| t.starts_with("policies: ")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_outside_the_window_needs_to_be_said_and_is_recorded() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, "2026-11-24T18:00:00Z").await;
    let control = Control(Arc::clone(&core));
    let refused = control.kill(kill("x"), ana()).await.unwrap_err();
    assert!(refused.message.starts_with("spared (window)"), "{}", refused.message);
    control.kill(KillRequest { outside_window: true, ..kill("game day") }, ana()).await.unwrap();
    let rows =
        core.ledger.intents(&IntentFilter { kind: Some("terminate".to_owned()), ..IntentFilter::default() }).await;
    assert_eq!(rows.unwrap()[0].body["intent"]["cause"]["outside_window"], true);
}

/// Two control planes drive; the push must end as with one, and no step may run twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_push_driven_by_two_control_planes_takes_each_step_once() {
    let (home, world) = (Home::new(), Fake::new());
    let (a, b) = (home.control_plane(&world, IN_WINDOW).await, home.control_plane(&world, IN_WINDOW).await);
    let drivers = [tokio::spawn(pushes::drive_all(Arc::clone(&a))), tokio::spawn(pushes::drive_all(b))];
    let control = Control(Arc::clone(&a));
    let answer = control.deploy(deploy("ami-1"), ana()).await.unwrap();
    assert_eq!((answer.push, answer.group.as_str()), (Some(1), "hello-web-v001"));
    let second = control.deploy(deploy("ami-1"), ana()).await;
    assert!(second.is_err_and(|e| e.message.contains("push 1 holds `hello-web`")), "one operation a cluster (I9)");
    until("watched", async || control.pushes().await.unwrap()[0].phase == "watch").await;
    for kind in ["create_group", "flip", "disable"] {
        assert_eq!(world.count(kind), 1, "{kind}");
    }
    let back = control.rollback(rollback(None), ana()).await.unwrap();
    assert_eq!(back.effect, "traffic goes back to hello-web-v000");
    until("rolled back", async || control.pushes().await.unwrap()[0].result.as_deref() == Some("rolled_back")).await;
    assert_eq!((world.count("flip"), world.count("enable")), (2, 1));
    assert!(a.ledger.locks().await.unwrap().is_empty(), "the lock is released");
    let refused = control.rollback(rollback(None), ana()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    for driver in drivers {
        driver.abort();
    }
    a.ledger.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_push_supersedes_the_watched_one_and_its_old_group_goes() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    let driver = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
    let control = Control(Arc::clone(&core));
    control.deploy(deploy("ami-1"), ana()).await.unwrap();
    until("watched", async || control.pushes().await.unwrap()[0].phase == "watch").await;
    let answer = control.deploy(deploy("ami-0"), ana()).await.unwrap();
    assert_eq!(answer.group.as_str(), "hello-web-v002");
    until("superseded", async || {
        let pushes = control.pushes().await.unwrap();
        pushes[1].result.as_deref() == Some("superseded") && pushes[1].phase == "ended" && pushes[0].phase == "watch"
    })
    .await;
    let left: Vec<String> = world.lock().groups.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["hello-web-v001", "hello-web-v002"]);
    driver.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_back_first_gives_up_a_newer_push_that_has_not_flipped() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    let driver = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
    let control = Control(Arc::clone(&core));
    control.deploy(deploy("ami-1"), ana()).await.unwrap();
    until("watched", async || control.pushes().await.unwrap()[0].phase == "watch").await;
    world.lock().no_launches = true;
    control.deploy(deploy("ami-0"), ana()).await.unwrap();
    until("booting", async || control.pushes().await.unwrap()[0].phase == "ready").await;
    let newest = control.rollback(RollbackRequest { plan: true, ..rollback(None) }, ana()).await.unwrap();
    assert_eq!(
        (newest.push, newest.effect.as_str()),
        (2, "cancelled, no traffic moves; `--push 1` would leave hello-web-v001 too")
    );
    control.rollback(rollback(Some(1)), ana()).await.unwrap();
    until("both ended", async || {
        let results: Vec<_> = control.pushes().await.unwrap().into_iter().map(|p| p.result).collect();
        results == [Some("cancelled".to_owned()), Some("rolled_back".to_owned())]
    })
    .await;
    let serving = world.lock().groups.values().find(|g| g.in_rotation).map(|g| g.name.to_string());
    assert_eq!(serving.as_deref(), Some("hello-web-v000"));
    driver.abort();
}

/// The control plane dies between a step's record and its outcome, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_dies_at_any_moment_leaves_a_push_that_goes_on() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, IN_WINDOW).await;
    Control(Arc::clone(&core)).deploy(deploy("ami-1"), ana()).await.unwrap();
    for ms in (1..200).step_by(7) {
        let core = home.control_plane(&world, IN_WINDOW).await;
        let driver = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
        tokio::time::sleep(Duration::from_millis(ms)).await;
        driver.abort();
        let _ended = driver.await.is_err();
    }
    let core = home.control_plane(&world, IN_WINDOW).await;
    let driver = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
    let control = Control(Arc::clone(&core));
    until("watched", async || control.pushes().await.unwrap()[0].phase == "watch").await;
    for kind in ["create_group", "flip", "disable"] {
        assert_eq!(world.count(kind), 1, "{kind}");
    }
    driver.abort();
    core.ledger.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_made_late_fires_nothing_that_is_past() {
    let (home, world) = (Home::new(), Fake::new());
    let core = home.control_plane(&world, LAST_MINUTE).await;
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let plan = core.ledger.plan("2026-11-24", "demo").await.unwrap().unwrap().body;
    assert_eq!((&plan["late"], &plan["entries"][0]["missed"]), (&true.into(), &true.into()), "{plan}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.count("terminate"), 0);
}

/// A page that says whether it is well, and what it was asked.
async fn page(status: http::StatusCode) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/up", axum::routing::get(async move || status));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}/up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_signal_is_asked_at_the_act_and_what_is_not_quiet_spares() {
    let (home, world) = (Home::new(), Fake::new());
    let with = |url: &str| POLICY.replace("min_serving  = 2", &format!("min_serving = 2\nhold_while = [\"{url}\"]"));
    let (well, ill) = (page(http::StatusCode::OK).await, page(http::StatusCode::INTERNAL_SERVER_ERROR).await);
    for (url, expected) in [(ill.as_str(), "it answered 500"), ("http://127.0.0.1:1/up", "cannot be asked")] {
        home.write_policy(&with(url));
        let control = Control(home.control_plane(&world, IN_WINDOW).await);
        let refused = control.kill(kill("x"), ana()).await.unwrap_err();
        assert!(
            refused.message.starts_with("spared (hold)") && refused.message.contains(expected),
            "{}",
            refused.message
        );
    }
    home.write_policy(&with(&well));
    Control(home.control_plane(&world, IN_WINDOW).await).kill(kill("x"), ana()).await.unwrap();
    assert_eq!(world.count("terminate"), 1);
}
