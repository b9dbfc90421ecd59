//! What must hold of any request: a target of `tests/fuzz/run`, whose corpus a test replays as well.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::{Extension, Router};
use http::{Request, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;
use troop_policies::plan::DayPlan;

use super::limits::{REASON_CHARS_MAX, SPAN_MAX};
use super::router::{REQUEST_BYTES_MAX, router, status};
use super::types::{
    Actor, AdoptedMark, AgentView, ApiError, ControlPlane, DeployAnswer, DeployRequest, ErrorKind, ExplainView,
    ImageView, InstanceView, KillAnswer, KillRequest, LatencyRequest, LiveView, NotifyAnswer, NotifyRequest, PushView,
    RollbackAnswer, RollbackRequest,
};

const ACTS: [&str; 9] = ["kill", "deploy", "rollback", "halt", "resume", "clear", "adopt", "latency", "notify"];

/// A request: the first byte chooses the path, the rest is the body, or for `explain` the query.
///
/// Every answer is either done or an error in the API's own form, with the status of its kind; nothing is a bug. What
/// reaches the control plane is within its limits, and is the same when it is written and read again.
///
/// # Panics
/// When it does not hold.
pub fn api(data: &[u8]) {
    static ROUTER: LazyLock<Router> = LazyLock::new(|| {
        let actor = Actor { uid: 1000, name: "ana".to_owned() };
        router(Arc::new(Checking)).layer(Extension(actor))
    });
    let Some((which, rest)) = data.split_first() else { return };
    let act = ACTS.get(usize::from(*which) % (ACTS.len() + 1));
    let request = match act {
        Some(act) => Request::post(format!("/api/v1/{act}")).header("content-type", "application/json"),
        None => Request::get(format!("/api/v1/explain?target={}", String::from_utf8_lossy(rest))),
    };
    let Ok(request) = request.body(Body::from(rest.to_vec())) else { return };
    // The control plane below answers at once, so nothing here ever waits.
    let answer = futures::executor::block_on(async {
        let answer = ROUTER.clone().oneshot(request).await.expect("a router answers");
        let status = answer.status();
        (status, to_bytes(answer.into_body(), usize::MAX).await.expect("a whole answer"))
    });
    let (got, body) = answer;
    if got == StatusCode::OK {
        return drop(serde_json::from_slice::<serde_json::Value>(&body).expect("an answer is JSON"));
    }
    let error: ApiError = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{got} {body:?}: {e}"));
    assert_eq!(got, status(error.kind), "{error:?}");
    assert!(error.kind != ErrorKind::Bug && !error.message.is_empty() && error.message.len() < REQUEST_BYTES_MAX);
}

/// Checks what reaches it, and refuses everything that answers more than that it was done.
#[derive(Debug)]
struct Checking;

fn is_reason(text: &str) {
    assert!(text.chars().count() <= REASON_CHARS_MAX && !text.contains(char::is_control), "{text:?}");
}

fn refused<T, R: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(request: &R) -> Result<T, ApiError> {
    let text = serde_json::to_string(request).expect("a request can be written");
    assert_eq!(&serde_json::from_str::<R>(&text).expect("and read"), request);
    Err(ApiError { kind: ErrorKind::Refused, message: "no".to_owned(), hint: None })
}

#[async_trait]
impl ControlPlane for Checking {
    async fn live(&self) -> LiveView {
        unreachable!("never asked")
    }
    async fn plans(&self) -> Result<Vec<DayPlan>, ApiError> {
        Ok(Vec::new())
    }
    async fn explain(&self, target: &str) -> Result<Vec<ExplainView>, ApiError> {
        assert!(!target.contains(char::is_control));
        Ok(Vec::new())
    }
    async fn kill(&self, request: KillRequest, _: Actor) -> Result<KillAnswer, ApiError> {
        is_reason(&request.reason);
        refused(&request)
    }
    async fn latency(&self, request: LatencyRequest, _: Actor) -> Result<KillAnswer, ApiError> {
        is_reason(&request.reason);
        assert!(!request.lasts.is_zero() && request.lasts <= SPAN_MAX);
        refused(&request)
    }
    async fn agents(&self) -> Result<Vec<AgentView>, ApiError> {
        Ok(Vec::new())
    }
    async fn deploy(&self, request: DeployRequest, _: Actor) -> Result<DeployAnswer, ApiError> {
        let spans = [request.watch, request.soak, request.ready_within, request.drain];
        assert!(spans.into_iter().flatten().all(|span| span <= SPAN_MAX));
        assert!(request.errors_above.is_none_or(|percent| (1..=100).contains(&percent)));
        refused(&request)
    }
    async fn rollback(&self, request: RollbackRequest, _: Actor) -> Result<RollbackAnswer, ApiError> {
        is_reason(&request.reason);
        refused(&request)
    }
    async fn notify(&self, request: NotifyRequest, _: Actor) -> Result<NotifyAnswer, ApiError> {
        request.message.as_deref().into_iter().for_each(is_reason);
        refused(&request)
    }
    async fn pushes(&self) -> Result<Vec<PushView>, ApiError> {
        Ok(Vec::new())
    }
    async fn instances(&self) -> Result<Vec<InstanceView>, ApiError> {
        Ok(Vec::new())
    }
    async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        Ok(Vec::new())
    }
    async fn halt(&self, why: String, _: Actor) -> Result<(), ApiError> {
        is_reason(&why);
        Ok(())
    }
    async fn resume(&self, why: String, _: Actor) -> Result<(), ApiError> {
        is_reason(&why);
        Ok(())
    }
    async fn clear(&self, draw_key: String, why: String, _: Actor) -> Result<(), ApiError> {
        is_reason(&why);
        assert!(!draw_key.contains(char::is_control));
        Ok(())
    }
    async fn adopt(&self, why: String, _: Actor) -> Result<Vec<AdoptedMark>, ApiError> {
        is_reason(&why);
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/api");
        let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 10);
        inputs.iter().for_each(|path| super::api(&std::fs::read(path).unwrap()));
    }
}
