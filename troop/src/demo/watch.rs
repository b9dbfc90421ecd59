//! What the demo sees of its own embedded cloud: what a user would, over the control socket and in the ledger.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use troop_ledger::{EventFilter, EventId, Ledger};
use troop_policies::IntentId;

use super::DemoError;
use crate::api::types::{DeployAnswer, DeployRequest, InstanceView, LiveView, PushView};
use crate::client::{ACT_WITHIN, Client, ClientError};
use crate::records::Record;
use crate::state::StateDir;
use crate::world::chain;

/// How often what is waited for is looked at. Times that are printed are the control plane's own, not the demo's.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The control plane answers within a second; a machine under a full build takes longer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// After a kill's own limit, how long its record may take.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Watch {
    client: Client,
    ledger: Ledger,
}

/// One record of the ledger, with the real time at which it was written.
pub(super) type Written = (Timestamp, Record);

pub(super) fn failed(chapter: &'static str, what: impl Into<String>) -> DemoError {
    DemoError::Chapter { chapter, what: what.into() }
}

/// Looks again and again until `look` has an answer. An `Err` of it is what is missing still, or why it cannot be seen.
pub(super) async fn until<T, E: Display, F: Future<Output = Result<T, E>>>(
    chapter: &'static str,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, DemoError> {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(why) if began.elapsed() >= limit => {
                return Err(failed(chapter, format!("{what}: not within {} s: {why}", limit.as_secs())));
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

impl Watch {
    /// Waits until the control plane answers.
    pub(super) async fn begin(state: &StateDir) -> Result<Self, DemoError> {
        const CHAPTER: &str = "start";
        let client = Client::new(state);
        let answers = || async { client.get::<LiveView>("live").await.map_err(|e| chain(&e)) };
        until(CHAPTER, "the control plane answers", ANSWERS_WITHIN, answers).await?;
        let ledger = Ledger::open_read_only(&state.ledger()).await.map_err(|e| failed(CHAPTER, chain(&e)))?;
        Ok(Self { client, ledger })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, chapter: &'static str, path: &str) -> Result<T, DemoError> {
        self.client.get(path).await.map_err(|e| failed(chapter, chain(&e)))
    }

    /// As [`Self::get`], where an error of the control plane is what is wanted.
    pub(super) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.client.get(path).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        chapter: &'static str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, DemoError> {
        self.client.post(path, body, ACT_WITHIN).await.map_err(|e| failed(chapter, chain(&e)))
    }

    /// Begins a push and returns its number with its group.
    pub(super) async fn deploy(
        &self,
        chapter: &'static str,
        request: &DeployRequest,
    ) -> Result<(u64, DeployAnswer), DemoError> {
        let answer: DeployAnswer = self.post(chapter, "deploy", request).await?;
        let push = answer.push.ok_or_else(|| failed(chapter, "the push was only planned"))?;
        Ok((push, answer))
    }

    /// Waits until a push has come to what `wanted` says: `Some` ends the waiting, with `Err` for what should not be.
    pub(super) async fn push(
        &self,
        chapter: &'static str,
        number: u64,
        limit: Duration,
        wanted: impl Fn(&PushView) -> Option<Result<(), String>>,
    ) -> Result<PushView, DemoError> {
        let look = || async {
            let views: Vec<PushView> = self.client.get("pushes").await.map_err(|e| chain(&e))?;
            let view = views.into_iter().find(|v| v.push == number).ok_or("it is not listed")?;
            match wanted(&view) {
                Some(verdict) => Ok((view, verdict)),
                None => Err(format!("{}: {}", view.phase, view.note)),
            }
        };
        let (view, verdict) = until(chapter, &format!("push {number}"), limit, look).await?;
        verdict.map(|()| view).map_err(|why| failed(chapter, why))
    }

    /// The instances of the groups of a cluster, or of one group.
    pub(super) async fn instances(&self, chapter: &'static str, of: &str) -> Result<Vec<InstanceView>, DemoError> {
        let views: Vec<InstanceView> = self.get(chapter, "instances").await?;
        let is_of = |v: &InstanceView| v.group.as_str() == of || v.group.cluster().as_str() == of;
        Ok(views.into_iter().filter(is_of).collect())
    }

    /// Everything of these kinds that the ledger holds, oldest first.
    pub(super) async fn records(&self, kinds: &[&str]) -> Result<Vec<Written>, String> {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let filter = EventFilter { after: Some(EventId(0)), kinds, ..EventFilter::default() };
        let events = self.ledger.events(&filter).await.map_err(|e| chain(&e))?;
        let read = |event: troop_ledger::Event| {
            let record = serde_json::from_value(event.body).map_err(|e| format!("event {}: {e}", event.id))?;
            Ok((event.real_at, record))
        };
        events.into_iter().map(read).collect()
    }

    /// The first record of these kinds that `wanted` takes.
    pub(super) async fn record<T>(
        &self,
        chapter: &'static str,
        what: &str,
        limit: Duration,
        kinds: &[&str],
        wanted: impl Fn(&Written) -> Option<T>,
    ) -> Result<T, DemoError> {
        let look = || async {
            let written = self.records(kinds).await?;
            written.iter().find_map(&wanted).ok_or_else(|| "the ledger holds no such record yet".to_owned())
        };
        until(chapter, what, limit, look).await
    }

    /// Waits until a kill has healed, or has not; returns whether, and after how many seconds.
    pub(super) async fn healed(
        &self,
        chapter: &'static str,
        kill: &IntentId,
        heals_within: Duration,
    ) -> Result<(bool, f64), DemoError> {
        let wanted = |(_, record): &Written| {
            if let Record::Healed { intent, seconds, .. } = record {
                return (intent == kill).then_some((true, *seconds));
            }
            let Record::NotHealed { intent, after_seconds, .. } = record else { return None };
            (intent == kill).then_some((false, *after_seconds))
        };
        let kinds = ["healed", "not_healed"];
        self.record(chapter, "the group is whole again", heals_within + RECORDED_WITHIN, &kinds, wanted).await
    }
}

/// What a push that should serve must not come to.
fn gone_wrong(view: &PushView) -> Option<String> {
    let ended = view.result.as_deref().filter(|result| !matches!(*result, "succeeded" | "superseded"));
    match ended {
        Some(result) => Some(format!("{} {}: {}", view.group, result.replace('_', " "), view.note)),
        None if view.phase == "stuck" || view.phase.starts_with("back") => {
            Some(format!("{} is in phase `{}`: {}", view.group, view.phase, view.note))
        }
        None => None,
    }
}

/// Whether traffic is with it.
pub(super) fn has_flipped(view: &PushView) -> Option<Result<(), String>> {
    match gone_wrong(view) {
        Some(why) => Some(Err(why)),
        None => view.flip_ms.map(|_| Ok(())),
    }
}

/// Whether its soak has ended well, and the cluster's lock is free again.
pub(super) fn is_serving(view: &PushView) -> Option<Result<(), String>> {
    match gone_wrong(view) {
        Some(why) => Some(Err(why)),
        None => (view.ended || view.phase == "watch").then_some(Ok(())),
    }
}
