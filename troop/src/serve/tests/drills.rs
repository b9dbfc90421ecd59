//! Drills: carried out at their minute, once a day by the ledger, whoever asks and whatever died in between.

use super::*;
use crate::serve::tests::stage::Fake;
use troop_policies::plan::{PlanEntry, PlanVerdict};

/// The demo's policy with a drill on Tuesdays at 10:30, and odds so small that no draw of these days falls.
fn policy() -> String {
    let rare =
        POLICY.replace("mean_workdays = 1\n", "mean_workdays = 250\n").replace("min_workdays  = 1", "min_workdays = 2");
    format!("{rare}\n[[apps.hello.drills]]\ncron = \"30 10 * * tue\"\nmonkey = \"chaos\"\n")
}

/// A site whose plan of that Tuesday has been made.
async fn planned() -> (Home, Arc<Fake>) {
    let (home, world) = (Home::new(), Fake::new());
    home.write_policy(&policy());
    let core = home.control_plane(&world, "2026-11-24T00:05:00Z").await;
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let (drawn, drill) = (entry(&core, "2026-11-24", "chaos").await, entry(&core, "2026-11-24", DRILL).await);
    assert_eq!((drawn.verdict, drill.verdict), (PlanVerdict::Spared, PlanVerdict::Chosen), "{drawn:?} {drill:?}");
    assert_eq!(drill.at.unwrap().to_string(), IN_WINDOW);
    (home, world)
}

const DRILL: &str = "drill:chaos@10:30";

async fn entry(core: &Core, day: &str, monkey: &str) -> PlanEntry {
    let plan = core.ledger.plan(day, "demo").await.unwrap().unwrap();
    let plan: DayPlan = serde_json::from_value(plan.body).unwrap();
    plan.entries.into_iter().find(|e| e.monkey == monkey).unwrap()
}

/// Ticks until `kills` instances were killed, their entries cancelled and their group whole again.
async fn until_healed(core: &Arc<Core>, world: &Fake, kills: usize) {
    let mut planner = planner::Planner::default();
    until("killed and healed", async || {
        plan_and_fire(core, &mut planner).await;
        world.count("cancel_entry") == kills && core.ledger.marks(MARK_HEALING).await.unwrap().is_empty()
    })
    .await;
}

/// A control plane that begins anew and ticks a few times kills nobody.
async fn starts_again_without_a_kill(home: &Home, world: &Arc<Fake>, kills: usize) {
    for _ in 0..5 {
        let core = home.control_plane(world, IN_WINDOW).await;
        resolver::tick(&core, true).await;
        plan_and_fire(&core, &mut planner::Planner::default()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.count("terminate"), kills);
}

async fn causes(core: &Core) -> Vec<serde_json::Value> {
    let filter = IntentFilter { kind: Some("terminate".to_owned()), ..IntentFilter::default() };
    let rows = core.ledger.intents(&filter).await.unwrap();
    rows.into_iter().map(|row| row.body["intent"]["cause"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_carried_out_once_and_counts_as_a_kill_of_its_scope() {
    let (home, world) = planned().await;
    let core = home.control_plane(&world, IN_WINDOW).await;
    until_healed(&core, &world, 1).await;
    starts_again_without_a_kill(&home, &world, 1).await;
    let causes = causes(&core).await;
    assert_eq!((&causes[0]["cause"], &causes[0]["monkey"]), (&"drill".into(), &DRILL.into()), "{causes:?}");

    // What spares now is no news about a drill that was carried out.
    halt::halt(&core, "ana", "over").await.unwrap();
    starts_again_without_a_kill(&home, &world, 1).await;
    let events = core.ledger.events(&EventFilter::default()).await.unwrap();
    assert!(events.iter().all(|e| e.kind != "spared_at_act"), "{events:?}");
    halt::resume(&core, "ana", "on").await.unwrap();

    let tomorrow = home.control_plane(&world, "2026-11-25T00:05:00Z").await;
    plan_and_fire(&tomorrow, &mut planner::Planner::default()).await;
    let drawn = entry(&tomorrow, "2026-11-25", "chaos").await;
    assert_eq!(drawn.why, "too soon: last kill 1 workday ago, 2 is the minimum");
    core.ledger.verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_control_planes_on_one_ledger_carry_a_drill_out_once() {
    for _ in 0..3 {
        let (home, world) = planned().await;
        let (a, b) = (home.control_plane(&world, IN_WINDOW).await, home.control_plane(&world, IN_WINDOW).await);
        tokio::join!(until_healed(&a, &world, 1), until_healed(&b, &world, 1));
        starts_again_without_a_kill(&home, &world, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_of_which_nobody_can_say_what_became_is_not_repeated() {
    let (home, world) = planned().await;
    (world.lock().lose_answer_of, world.lock().forgets) = (Some("terminate"), true);
    let core = home.control_plane(&world, IN_WINDOW).await;
    let mut planner = planner::Planner::default();
    until("killed", async || {
        plan_and_fire(&core, &mut planner).await;
        world.count("terminate") == 1
    })
    .await;
    // Whatever the first control plane was doing, another one comes.
    starts_again_without_a_kill(&home, &world, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_is_not_bound_by_min_workdays() {
    let (home, world) = planned().await;
    let ten = home.control_plane(&world, "2026-11-24T10:00:00Z").await;
    Control(Arc::clone(&ten)).kill(kill("before the drill"), ana()).await.unwrap();
    until_healed(&ten, &world, 1).await;
    let core = home.control_plane(&world, IN_WINDOW).await;
    until_healed(&core, &world, 2).await;
    assert_eq!(world.count("terminate"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caps_bind_a_drill() {
    let (home, world) = planned().await;
    home.write_policy(&policy().replace("[apps.hello]\n", "[caps]\nkills_per_day = 1\n[apps.hello]\n"));
    let ten = home.control_plane(&world, "2026-11-24T10:00:00Z").await;
    Control(Arc::clone(&ten)).kill(kill("before the drill"), ana()).await.unwrap();
    until_healed(&ten, &world, 1).await;
    let core = home.control_plane(&world, IN_WINDOW).await;
    let spared = spared_at_its_minute(&core).await;
    assert_eq!((&spared["gate"], world.count("terminate")), (&"caps".into(), 1), "{spared}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_that_was_taken_out_of_the_policy_is_spared() {
    let (home, world) = planned().await;
    home.write_policy(&policy().replace("30 10 * * tue", "45 10 * * tue"));
    let core = home.control_plane(&world, IN_WINDOW).await;
    let spared = spared_at_its_minute(&core).await;
    assert_eq!((&spared["gate"], &spared["monkey"]), (&"policy".into(), &DRILL.into()), "{spared}");
    assert!(spared["why"].as_str().unwrap().ends_with("names `drill:chaos@10:30` any more"), "{spared}");
    assert_eq!(world.count("terminate"), 0);
    // Its new time has joined the plan.
    assert_eq!(entry(&core, "2026-11-24", "drill:chaos@10:45").await.verdict, PlanVerdict::Chosen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leashed_drill_is_only_noted() {
    let (home, world) = planned().await;
    home.write_policy(&policy().replace("leashed       = false", "leashed = true"));
    let core = home.control_plane(&world, IN_WINDOW).await;
    let noted = recorded(&core, "would_have").await;
    assert_eq!((&noted["monkey"], &noted["eligible"]), (&DRILL.into(), &3.into()), "{noted}");
    assert_eq!(world.count("terminate"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_shows_todays_drills_beside_the_draw() {
    let (home, world) = planned().await;
    let core = home.control_plane(&world, "2026-11-24T10:00:00Z").await;
    let views = Control(core).explain("hello-web").await.unwrap();
    assert_eq!(views[0].today.as_ref().unwrap().monkey, "chaos");
    assert_eq!(views[0].drills.iter().map(|e| e.monkey.as_str()).collect::<Vec<_>>(), [DRILL]);
}

async fn spared_at_its_minute(core: &Arc<Core>) -> serde_json::Value {
    recorded(core, "spared_at_act").await
}

/// The first event of a kind, once the planner has come to write it.
async fn recorded(core: &Arc<Core>, kind: &str) -> serde_json::Value {
    let mut planner = planner::Planner::default();
    let mut found = None;
    until(kind, async || {
        plan_and_fire(core, &mut planner).await;
        let events = core.ledger.events(&EventFilter::default()).await.unwrap();
        found = events.into_iter().find(|e| e.kind == kind).map(|e| e.body);
        found.is_some()
    })
    .await;
    found.unwrap()
}
