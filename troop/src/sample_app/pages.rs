//! What the sample service answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::eureka::Eureka;
use super::settings::{Behaviour, Identity, is_error};
use crate::world::chain;

/// Longest `?delay_ms=`: enough to be in flight during any drain, and no way to pile up requests for hours.
const MAX_DELAY_MS: u64 = 5_000;

#[derive(Debug)]
struct App {
    identity: Arc<Identity>,
    behaviour: Behaviour,
    eureka: Option<Eureka>,
    client: reqwest::Client,
    /// Answers to `/` so far; decides which is an error.
    answers: AtomicU32,
    /// Downstream calls so far; they take turns over the instances.
    calls: AtomicUsize,
}

pub(super) fn router(
    identity: Arc<Identity>,
    behaviour: Behaviour,
    eureka: Option<Eureka>,
    client: reqwest::Client,
) -> Router {
    let app = App { identity, behaviour, eureka, client, answers: AtomicU32::new(0), calls: AtomicUsize::new(0) };
    Router::new()
        .route("/", get(home))
        .route("/version", get(version))
        .route("/health", get(health))
        .route("/downstream", get(downstream))
        .with_state(Arc::new(app))
}

#[derive(Debug, Deserialize)]
struct HomeQuery {
    delay_ms: Option<u64>,
}

async fn home(State(app): State<Arc<App>>, Query(query): Query<HomeQuery>) -> Response {
    let delay = query.delay_ms.unwrap_or(0);
    if delay > MAX_DELAY_MS {
        return (StatusCode::BAD_REQUEST, format!("delay_ms is {delay}; at most {MAX_DELAY_MS}\n")).into_response();
    }
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let id = &app.identity;
    if is_error(app.answers.fetch_add(1, Ordering::Relaxed), app.behaviour.error_rate) {
        let text = format!("an error, as this version's error_rate asks; instance {}\n", id.instance);
        return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    }
    let text = format!(
        "{}\napp {}\nversion {}\ngroup {}\ninstance {}\nzone {}\n",
        app.behaviour.greeting, id.app, id.version, id.group, id.instance, id.zone
    );
    text.into_response()
}

async fn version(State(app): State<Arc<App>>) -> Response {
    Json(&*app.identity).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    // The file was checked; were it not, a service that cannot tell its health is not healthy.
    let status = StatusCode::from_u16(app.behaviour.health_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let text = if status.is_success() { "ok\n" } else { "unhealthy, as this version's health_status asks\n" };
    (status, text).into_response()
}

#[derive(Debug, Deserialize)]
struct DownstreamQuery {
    app: Option<String>,
}

async fn downstream(State(app): State<Arc<App>>, Query(query): Query<DownstreamQuery>) -> Response {
    let base = match (&query.app, &app.behaviour.downstream) {
        (Some(name), _) => match look_up(&app, name).await {
            Ok(base) => base,
            Err(answer) => return answer,
        },
        (None, Some(base)) => base.trim_end_matches('/').to_owned(),
        (None, None) => {
            let text = "which service? /downstream?app=NAME, or `downstream = \"http://...\"` in app.toml\n";
            return (StatusCode::BAD_REQUEST, text).into_response();
        }
    };
    match call(&app.client, &base).await {
        Ok(answer) => Json(json!({ "caller": *app.identity, "url": base, "downstream": answer })).into_response(),
        Err(why) => bad_gateway(&format!("{base}/version: {why}")),
    }
}

/// An instance of the service `name` that the registry says is UP.
async fn look_up(app: &App, name: &str) -> Result<String, Response> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name == "." || name == ".." || !name.chars().all(plain) {
        let text = format!("`{}` is no name of an app\n", name.escape_debug());
        return Err((StatusCode::BAD_REQUEST, text).into_response());
    }
    let Some(eureka) = &app.eureka else {
        return Err(bad_gateway("there is no registry to ask: EUREKA_URL is not set"));
    };
    let up = eureka.up_instances(name).await.map_err(|error| bad_gateway(&chain(&error)))?;
    let turn = app.calls.fetch_add(1, Ordering::Relaxed).checked_rem(up.len()).unwrap_or(0);
    up.get(turn).cloned().ok_or_else(|| bad_gateway(&format!("the registry knows no instance of {name} that is UP")))
}

async fn call(client: &reqwest::Client, base: &str) -> Result<Value, String> {
    let response = client.get(format!("{base}/version")).send().await.map_err(|error| chain(&error))?;
    if !response.status().is_success() {
        return Err(format!("answered {}", response.status()));
    }
    response.json().await.map_err(|error| chain(&error))
}

fn bad_gateway(why: &str) -> Response {
    (StatusCode::BAD_GATEWAY, format!("{why}\n")).into_response()
}
