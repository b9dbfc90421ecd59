//! The demo's chapter of the latency monkey: the packets of one instance to another application are delayed, measured
//! before, during and after.

use std::time::Duration;

use troop_agent_core::protocol::{Measured, Story as Told};
use troop_policies::fault::FaultSpec;

use super::DemoError;
use super::report::Latency;
use super::watch::{Watch, Written, failed};
use crate::api::types::{AgentView, KillAnswer, LatencyRequest};
use crate::records::Record;

const CHAPTER: &str = "latency";
/// Whose packets: an application that nobody calls in the demo, so that no request of the load is any slower.
pub(super) const PEER: &str = "pricing";
/// As the demo's policy says.
const DELAY: Duration = Duration::from_millis(200);
/// Long enough to be renewed twice.
const LASTS: Duration = Duration::from_secs(4);
/// From the end of its time: told, healed, measured and written, on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

/// What came of it.
pub(super) enum Came {
    Measured(Latency),
    /// It cannot be shown here, for this reason.
    LeftOut(String),
}

/// Delays one instance of `cluster`, and waits until that is known to be gone.
pub(super) async fn delay(watch: &mut Watch, cluster: &str) -> Result<Came, DemoError> {
    let agents: Vec<AgentView> = watch.get(CHAPTER, "agents").await?;
    let able = agents.iter().any(|agent| agent.since.is_some() && !agent.planes.is_empty());
    if !able {
        let why = agents.iter().flat_map(|agent| &agent.lacks).next();
        let none = "no agent runs here: it needs network namespaces";
        return Ok(Came::LeftOut(why.map_or_else(|| none.to_owned(), Clone::clone)));
    }
    let to =
        format!("app:{PEER}").parse().map_err(|e: troop_policies::fault::BadPeer| failed(CHAPTER, e.to_string()))?;
    let request = LatencyRequest {
        target: cluster.to_owned(),
        instance: None,
        fault: FaultSpec::delay(DELAY, vec![to]),
        lasts: LASTS,
        reason: "demo".to_owned(),
        outside_window: true,
        plan: false,
    };
    let answer: KillAnswer = watch.post(CHAPTER, "latency", &request).await?;
    let (Some(victim), Some(id)) = (&answer.victim, &answer.intent) else {
        return Err(failed(CHAPTER, format!("nobody was delayed: {}", answer.detail)));
    };
    if answer.outcome != "done" {
        return Err(failed(CHAPTER, format!("{victim}: {}: {}", answer.outcome, answer.detail)));
    }
    let ended = |(_, record): &Written| {
        if let Record::FaultEnded { intent, story, how, .. } = record {
            return (intent.as_str() == id).then(|| story.as_deref().cloned().ok_or_else(|| how.clone()));
        }
        let Record::NotHealed { intent, why, .. } = record else { return None };
        (intent.as_str() == id).then(|| Err(why.clone()))
    };
    let kinds = ["fault_ended", "not_healed"];
    let told = watch.record(CHAPTER, "the delay is gone", LASTS + ENDS_WITHIN, &kinds, ended).await?;
    let told: Told = told.map_err(|why| failed(CHAPTER, why))?;
    let ms = |measured: &Option<Measured>| measured.as_ref().and_then(|m| m.median_us).map(millis);
    Ok(Came::Measured(Latency {
        instance: victim.to_string(),
        to: format!("app:{PEER}"),
        delay_ms: u64::try_from(DELAY.as_millis()).unwrap_or(u64::MAX),
        lasts_seconds: LASTS.as_secs(),
        plane: told.plane.clone(),
        before_ms: ms(&told.baseline),
        during_ms: ms(&told.applied),
        after_ms: ms(&told.healed),
    }))
}

fn millis(us: u64) -> f64 {
    // Round trips are far below the 2^53 microseconds that an f64 holds exactly.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    let us = us as f64;
    us / 1e3
}
