//! Sites of several accounts, whose clusters may have the same names.

use std::sync::Arc;

use troop_policies::plan::DayPlan;
use troop_policies::step::Step;

use super::stage::{Fake, Home, IN_WINDOW};
use super::{deploy, plan_and_fire, rollback, until};
use crate::api::types::{Actor, ControlPlane as _, DeployRequest, ErrorKind, KillRequest};
use crate::serve::control::Control;
use crate::serve::planner;
use crate::serve::pushes;

fn ana() -> Actor {
    Actor { uid: 1000, name: "ana".to_owned() }
}

/// Images of instances without a registry to be UP in.
fn needs_no_registry(cloud: &Fake) {
    for group in cloud.lock().groups.values_mut() {
        group.registry_required = false;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_account_has_scopes_and_kills_of_its_own() {
    let (home, prod, test) = (Home::new(), Fake::of("prod"), Fake::of("test"));
    needs_no_registry(&prod);
    needs_no_registry(&test);
    let core = home.control_plane_over(&[&prod, &test], "2026-11-24T00:05:00Z").await;
    plan_and_fire(&core, &mut planner::Planner::default()).await;
    let plan = core.ledger.plan("2026-11-24", "demo").await.unwrap().unwrap();
    let plan: DayPlan = serde_json::from_value(plan.body).unwrap();
    let keys: Vec<_> = plan.entries.iter().filter(|e| e.monkey == "chaos").map(|e| e.draw_key.as_str()).collect();
    assert_eq!(keys, ["prod/r1/hello-web", "test/r1/hello-web"]);

    let core = home.control_plane_over(&[&prod, &test], IN_WINDOW).await;
    let control = Control(Arc::clone(&core));
    let kill = |target: &str| KillRequest {
        target: target.to_owned(),
        instance: None,
        reason: "a test".to_owned(),
        outside_window: false,
        plan: false,
    };
    let several = control.kill(kill("hello-web"), ana()).await.unwrap_err();
    assert_eq!(several.kind, ErrorKind::Yours);
    assert!(
        several.message.contains("prod/r1/hello-web") && several.message.contains("test/r1/hello-web"),
        "{several:?}"
    );
    let answer = control.kill(kill("test/r1/hello-web"), ana()).await.unwrap();
    assert_eq!(answer.outcome, "done");
    assert_eq!((prod.count("terminate"), test.count("terminate")), (0, 1));
    // There is no registry whose entry could be cancelled, and nothing is recorded as if there were.
    assert!(!test.lock().done.iter().any(Step::is_for_registry));
    assert_eq!(core.ledger.open_intents().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_goes_to_one_account_and_says_which_it_cannot_know() {
    let (home, prod, test) = (Home::new(), Fake::of("prod"), Fake::of("test"));
    needs_no_registry(&prod);
    let core = home.control_plane_over(&[&prod, &test], IN_WINDOW).await;
    let control = Control(Arc::clone(&core));
    let several = control.deploy(deploy("ami-1"), ana()).await.unwrap_err();
    assert_eq!(several.kind, ErrorKind::Yours);
    assert!(several.hint.unwrap().contains("prod/r1, test/r1"));
    let at = |text: &str| DeployRequest { location: Some(text.parse().unwrap()), ..deploy("ami-1") };
    assert_eq!(control.deploy(at("prod/r9"), ana()).await.unwrap_err().kind, ErrorKind::NotFound);

    let answer = control.deploy(at("test/r1"), ana()).await.unwrap();
    let driven = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
    until("made in the account that was named", async || test.count("create_group") == 1).await;
    assert_eq!(prod.count("create_group"), 0);
    let other = control.deploy(at("prod/r1"), ana()).await.unwrap();
    let both = control.rollback(rollback(None), ana()).await.unwrap_err();
    assert!(both.message.contains("prod/r1/hello-web") && both.message.contains("test/r1/hello-web"), "{both:?}");
    let back = control.rollback(rollback(answer.push), ana()).await.unwrap();
    assert_eq!(Some(back.push), answer.push);
    let back = control.rollback(rollback(other.push), ana()).await.unwrap();
    assert_eq!(Some(back.push), other.push);
    driven.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_without_a_registry_goes_back_all_the_same() {
    let (home, prod) = (Home::new(), Fake::of("prod"));
    needs_no_registry(&prod);
    let core = home.control_plane_over(&[&prod], IN_WINDOW).await;
    let control = Control(Arc::clone(&core));
    let driven = tokio::spawn(pushes::drive_all(Arc::clone(&core)));
    let answer = control.deploy(deploy("ami-1"), ana()).await.unwrap();
    until("watched", async || {
        needs_no_registry(&prod);
        control.pushes().await.unwrap().iter().any(|push| push.phase == "watch")
    })
    .await;
    control.rollback(rollback(answer.push), ana()).await.unwrap();
    until("traffic is back", async || {
        control.pushes().await.unwrap().iter().any(|push| push.result.as_deref() == Some("rolled_back"))
    })
    .await;
    driven.abort();
}
