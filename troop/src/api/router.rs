//! From HTTP to [`ControlPlane`] and back. It decides nothing: it checks shapes, and turns errors into statuses.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};

use super::limits;
use super::types::{
    Actor, AdoptedMark, AgentView, ApiError, ControlPlane, DeployAnswer, DeployRequest, ErrorKind, ExplainView,
    ImageView, InstanceView, KillAnswer, KillRequest, LatencyRequest, LiveView, NotifyAnswer, NotifyRequest, PushView,
    RollbackAnswer, RollbackRequest,
};
use troop_policies::plan::DayPlan;

/// Largest request taken. The longest is a kill with a reason.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// `GET explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// A cluster, instance id or draw key.
    pub target: String,
}

/// `POST halt` and `POST resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    pub reason: String,
}

/// `POST clear`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearRequest {
    pub draw_key: String,
    pub reason: String,
}

/// What an act answers that has nothing more to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneAnswer {
    pub schema: u32,
}

/// What `POST adopt` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptAnswer {
    pub schema: u32,
    pub adopted: Vec<AdoptedMark>,
}

const DONE: Json<DoneAnswer> = Json(DoneAnswer { schema: 1 });

type Control = State<Arc<dyn ControlPlane>>;
type Answer<T> = Result<Json<T>, ApiError>;
type Body<T> = Result<Json<T>, JsonRejection>;

/// The API under `/api/v1`. Every request must carry an `Extension<Actor>`, which whoever accepts the connection sets.
pub fn router(control: Arc<dyn ControlPlane>) -> Router {
    let api = Router::new()
        .route("/live", get(live))
        .route("/plans", get(plans))
        .route("/explain", get(explain))
        .route("/pushes", get(pushes))
        .route("/instances", get(instances))
        .route("/images", get(images))
        .route("/kill", post(kill))
        .route("/latency", post(latency))
        .route("/agents", get(agents))
        .route("/deploy", post(deploy))
        .route("/rollback", post(rollback))
        .route("/halt", post(halt))
        .route("/resume", post(resume))
        .route("/clear", post(clear))
        .route("/adopt", post(adopt))
        .route("/notify", post(notify))
        .method_not_allowed_fallback(async || yours("this path takes another method"));
    Router::new()
        .nest("/api/v1", api)
        .fallback(async |uri: http::Uri| not_found(&uri))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(control)
}

/// What is answered to everything while the control plane cannot start, for this reason.
pub fn unavailable(why: String) -> Router {
    let answer = ApiError {
        kind: ErrorKind::CouldNotAsk,
        message: format!("the control plane cannot start: {why}"),
        hint: Some("nothing is planned or done meanwhile; it tries again by itself".to_owned()),
    };
    Router::new().fallback(async move || answer)
}

pub(crate) fn yours(why: impl Into<String>) -> ApiError {
    ApiError { kind: ErrorKind::Yours, message: why.into(), hint: None }
}

fn not_found(uri: &http::Uri) -> ApiError {
    let hint = Some("the command line and the control plane may be of different builds".to_owned());
    ApiError { kind: ErrorKind::NotFound, message: format!("the control plane has no `{}`", uri.path()), hint }
}

/// The HTTP status of an error.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Yours => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Refused => StatusCode::CONFLICT,
        ErrorKind::CouldNotAsk => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (status(self.kind), Json(self)).into_response()
    }
}

/// Who asks. Without it nothing is done: an act without an actor must not reach the ledger.
struct Who(Actor);

impl<S: Send + Sync> FromRequestParts<S> for Who {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Actor>().cloned().map(Self).ok_or_else(|| ApiError {
            kind: ErrorKind::Bug,
            message: "the connection came without its peer's uid; nothing was done".to_owned(),
            hint: None,
        })
    }
}

fn take<T>(body: Body<T>) -> Result<T, ApiError> {
    body.map(|Json(value)| value).map_err(|e| yours(format!("the request cannot be understood: {}", e.body_text())))
}

async fn live(State(control): Control) -> Json<LiveView> {
    Json(control.live().await)
}

async fn plans(State(control): Control) -> Answer<Vec<DayPlan>> {
    control.plans().await.map(Json)
}

async fn explain(
    State(control): Control,
    query: Result<Query<ExplainQuery>, QueryRejection>,
) -> Answer<Vec<ExplainView>> {
    let Query(query) = query.map_err(|e| yours(e.body_text()))?;
    limits::target(&query.target)?;
    control.explain(&query.target).await.map(Json)
}

async fn pushes(State(control): Control) -> Answer<Vec<PushView>> {
    control.pushes().await.map(Json)
}

async fn instances(State(control): Control) -> Answer<Vec<InstanceView>> {
    control.instances().await.map(Json)
}

async fn images(State(control): Control) -> Answer<Vec<ImageView>> {
    control.images().await.map(Json)
}

async fn kill(State(control): Control, Who(actor): Who, body: Body<KillRequest>) -> Answer<KillAnswer> {
    let request = take(body)?;
    request.within_limits()?;
    control.kill(request, actor).await.map(Json)
}

async fn latency(State(control): Control, Who(actor): Who, body: Body<LatencyRequest>) -> Answer<KillAnswer> {
    let request = take(body)?;
    request.within_limits()?;
    control.latency(request, actor).await.map(Json)
}

async fn agents(State(control): Control) -> Answer<Vec<AgentView>> {
    control.agents().await.map(Json)
}

async fn deploy(State(control): Control, Who(actor): Who, body: Body<DeployRequest>) -> Answer<DeployAnswer> {
    let request = take(body)?;
    request.within_limits()?;
    control.deploy(request, actor).await.map(Json)
}

async fn rollback(State(control): Control, Who(actor): Who, body: Body<RollbackRequest>) -> Answer<RollbackAnswer> {
    let request = take(body)?;
    request.within_limits()?;
    control.rollback(request, actor).await.map(Json)
}

async fn halt(State(control): Control, Who(actor): Who, body: Body<WhyRequest>) -> Answer<DoneAnswer> {
    // Stopping is never refused for its words.
    control.halt(limits::cut_reason(&take(body)?.reason), actor).await.map(|()| DONE)
}

async fn resume(State(control): Control, Who(actor): Who, body: Body<WhyRequest>) -> Answer<DoneAnswer> {
    let WhyRequest { reason } = take(body)?;
    limits::reason(&reason)?;
    control.resume(reason, actor).await.map(|()| DONE)
}

async fn clear(State(control): Control, Who(actor): Who, body: Body<ClearRequest>) -> Answer<DoneAnswer> {
    let ClearRequest { draw_key, reason } = take(body)?;
    limits::draw_key(&draw_key)?;
    limits::reason(&reason)?;
    control.clear(draw_key, reason, actor).await.map(|()| DONE)
}

async fn adopt(State(control): Control, Who(actor): Who, body: Body<WhyRequest>) -> Answer<AdoptAnswer> {
    let WhyRequest { reason } = take(body)?;
    limits::reason(&reason)?;
    let adopted = control.adopt(reason, actor).await?;
    Ok(Json(AdoptAnswer { schema: 1, adopted }))
}

async fn notify(State(control): Control, Who(actor): Who, body: Body<NotifyRequest>) -> Answer<NotifyAnswer> {
    let request = take(body)?;
    request.within_limits()?;
    control.notify(request, actor).await.map(Json)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use axum::Extension;
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    /// Remembers who asked for what, and refuses every kill.
    #[derive(Debug, Default)]
    pub(crate) struct Remembering(pub(crate) Mutex<Vec<String>>);

    impl Remembering {
        fn note(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }
    }

    fn no(kind: ErrorKind) -> ApiError {
        ApiError { kind, message: "no".to_owned(), hint: None }
    }

    #[async_trait]
    impl ControlPlane for Remembering {
        async fn live(&self) -> LiveView {
            LiveView {
                schema: 1,
                pid: 7,
                started_at: jiff::Timestamp::UNIX_EPOCH,
                calendar: jiff::Timestamp::UNIX_EPOCH,
                site: "s".to_owned(),
                site_leashed: true,
                not_ready: Vec::new(),
                registry: "0 entries".to_owned(),
                policies: Vec::new(),
                troubles: Vec::new(),
                balancer: None,
            }
        }
        async fn plans(&self) -> Result<Vec<DayPlan>, ApiError> {
            Ok(Vec::new())
        }
        async fn explain(&self, target: &str) -> Result<Vec<ExplainView>, ApiError> {
            self.note(format!("explain {target}"));
            Err(no(ErrorKind::NotFound))
        }
        async fn kill(&self, request: KillRequest, actor: Actor) -> Result<KillAnswer, ApiError> {
            self.note(format!("kill {} by {}", request.target, actor.name));
            Err(no(ErrorKind::Refused))
        }
        async fn latency(&self, request: LatencyRequest, actor: Actor) -> Result<KillAnswer, ApiError> {
            self.note(format!("{} on {} by {}", request.fault, request.target, actor.name));
            Err(no(ErrorKind::Refused))
        }
        async fn agents(&self) -> Result<Vec<AgentView>, ApiError> {
            Ok(Vec::new())
        }
        async fn deploy(&self, _: DeployRequest, _: Actor) -> Result<DeployAnswer, ApiError> {
            Err(no(ErrorKind::CouldNotAsk))
        }
        async fn rollback(&self, _: RollbackRequest, _: Actor) -> Result<RollbackAnswer, ApiError> {
            Err(no(ErrorKind::Bug))
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
        async fn halt(&self, why: String, actor: Actor) -> Result<(), ApiError> {
            self.note(format!("halt {why} by {} {}", actor.uid, actor.name));
            Ok(())
        }
        async fn resume(&self, _: String, _: Actor) -> Result<(), ApiError> {
            Ok(())
        }
        async fn adopt(&self, _: String, _: Actor) -> Result<Vec<AdoptedMark>, ApiError> {
            Ok(Vec::new())
        }
        async fn notify(&self, request: NotifyRequest, _: Actor) -> Result<NotifyAnswer, ApiError> {
            Ok(NotifyAnswer { schema: 1, team: request.team, told: Vec::new() })
        }
        async fn clear(&self, draw_key: String, why: String, _: Actor) -> Result<(), ApiError> {
            self.note(format!("clear {draw_key} {why}"));
            Ok(())
        }
    }

    fn ana() -> Actor {
        Actor { uid: 1000, name: "ana".to_owned() }
    }

    async fn ask(router: Router, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    const KILL: &str = r#"{"target":"hello","instance":null,"reason":"x","outside_window":false,"plan":false}"#;

    #[tokio::test]
    async fn every_kind_of_error_has_its_status_and_a_body_of_ours() {
        let control = Arc::new(Remembering::default());
        let router = router(Arc::clone(&control) as Arc<dyn ControlPlane>).layer(Extension(ana()));
        let rollback = r#"{"cluster":"hello","push":null,"reason":"x","plan":false}"#;
        let deploy = r#"{"cluster":"hello","image":"x","plan":false}"#;
        for (method, path, body, status, kind) in [
            ("POST", "kill", KILL, 409, "refused"),
            ("GET", "explain?target=a%2Fb", "", 404, "not_found"),
            ("POST", "deploy", deploy, 503, "could_not_ask"),
            ("POST", "rollback", rollback, 500, "bug"),
            ("POST", "kill", "{", 400, "yours"),
            ("POST", "halt", r#"{"reason":"x","more":1}"#, 400, "yours"),
            ("GET", "explain", "", 400, "yours"),
            ("GET", "kill", "", 400, "yours"),
            ("GET", "nothing", "", 404, "not_found"),
        ] {
            let (got, answer) = ask(router.clone(), method, &format!("/api/v1/{path}"), body).await;
            assert_eq!((got, answer["kind"].as_str()), (status, Some(kind)), "{method} {path}: {answer}");
        }
        assert_eq!(*control.0.lock().unwrap(), ["kill hello by ana", "explain a/b"]);
    }

    #[tokio::test]
    async fn a_control_plane_that_cannot_start_says_why_to_whoever_asks() {
        for (method, path) in [("GET", "/api/v1/live"), ("POST", "/api/v1/kill"), ("GET", "/")] {
            let (status, answer) = ask(unavailable("the disk is full".to_owned()), method, path, KILL).await;
            assert_eq!((status, answer["kind"].as_str()), (503, Some("could_not_ask")));
            assert!(answer["message"].as_str().unwrap().contains("the disk is full"), "{answer}");
        }
    }

    #[tokio::test]
    async fn questions_and_acts_reach_the_control_plane() {
        let control = Arc::new(Remembering::default());
        let router = router(Arc::clone(&control) as Arc<dyn ControlPlane>).layer(Extension(ana()));
        let (status, live) = ask(router.clone(), "GET", "/api/v1/live", "").await;
        assert_eq!((status, &live["pid"]), (200, &serde_json::json!(7)));
        for path in ["plans", "pushes", "instances", "images"] {
            let (status, list) = ask(router.clone(), "GET", &format!("/api/v1/{path}"), "").await;
            assert_eq!((status, list), (200, serde_json::json!([])));
        }
        let (status, done) = ask(router.clone(), "POST", "/api/v1/halt", r#"{"reason":"fire"}"#).await;
        assert_eq!((status, done), (200, serde_json::json!({ "schema": 1 })));
        ask(router, "POST", "/api/v1/clear", r#"{"draw_key":"local/r1/a","reason":"b"}"#).await;
        assert_eq!(*control.0.lock().unwrap(), ["halt fire by 1000 ana", "clear local/r1/a b"]);
    }

    #[tokio::test]
    async fn nothing_is_done_for_nobody_or_for_a_body_too_large() {
        let control = Arc::new(Remembering::default());
        let plain = router(Arc::clone(&control) as Arc<dyn ControlPlane>);
        let (status, answer) = ask(plain.clone(), "POST", "/api/v1/kill", KILL).await;
        assert_eq!((status, answer["kind"].as_str()), (500, Some("bug")));
        let large = format!(r#"{{"reason":"{}"}}"#, "x".repeat(REQUEST_BYTES_MAX));
        let (status, answer) = ask(plain.layer(Extension(ana())), "POST", "/api/v1/halt", &large).await;
        assert_eq!((status, answer["kind"].as_str()), (400, Some("yours")));
        assert!(control.0.lock().unwrap().is_empty());
    }
}
