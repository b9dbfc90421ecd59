//! Each fault of the wire, provoked by the proxy, and what Troop does. A row has the number of the list that it was taken from;
//! rows of a kind share a moto, whose start takes longest.

mod reads;
mod states;
mod writes;

use troop_cloud::CloudError;
use troop_policies::GroupName;
use troop_policies::intent::{Intent, Outcome};
use troop_policies::inventory::Inventory;

use crate::proxy::{Fault, Rule, When, bodies};
use crate::stage::{Stage, region};

/// Reads the region while this fault is in the way.
async fn read_with(stage: &Stage, rules: Vec<Rule>) -> Result<Inventory, CloudError> {
    stage.proxy.forget_audit();
    rules.into_iter().for_each(|rule| stage.proxy.add(rule));
    let read = troop_cloud::Cloud::inventory(&stage.cloud, &region()).await;
    stage.proxy.heal();
    read
}

/// Performs an intent while this fault is in the way.
async fn act_with(stage: &Stage, intent: &Intent, rule: Rule) -> Outcome {
    stage.proxy.forget_audit();
    stage.proxy.add(rule);
    let outcome = stage.perform(intent).await;
    stage.proxy.heal();
    outcome
}

async fn resolve(stage: &Stage, intent: &Intent) -> Outcome {
    troop_cloud::Cloud::resolve(&stage.cloud, intent).await.unwrap()
}

fn before(status: u16, text: String) -> Fault {
    Fault::Answer(When::Before, status, text)
}

fn after(status: u16, text: String) -> Fault {
    Fault::Answer(When::After, status, text)
}

/// Whether all members that an intent would have ended are still there.
async fn unhurt(stage: &Stage, group: &GroupName, intent: &Intent) -> bool {
    let victim = intent.step.victim().unwrap();
    stage.members(group).await.contains(victim)
}

fn is_refused(outcome: &Outcome, saying: &str) {
    let Outcome::Refused { why } = outcome else { panic!("{outcome:?} is not refused") };
    assert!(why.contains(saying), "{why}");
}

fn is_unknown(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

fn is_done(outcome: &Outcome) {
    assert!(outcome.is_done(), "{outcome:?}");
}
