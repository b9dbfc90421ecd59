//! Troop's own operations: the whole view in one reading, and steps that are carried out once.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use troop_policies::IntentId;
use troop_policies::intent::{Intent, Outcome};

use super::answer::{bad, line, unsaved};
use crate::saved::SavedError;
use crate::shared::Shared;
use crate::table::Table;

/// A [`troop_policies::registry_view::RegistryView`].
pub(super) async fn registry(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.read(Table::view)).into_response()
}

/// Carries an [`Intent`]'s step out and answers its [`Outcome`], once both are on disk.
pub(super) async fn perform(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let intent: Intent = match serde_json::from_slice(&body) {
        Ok(intent) => intent,
        Err(e) => return bad(format!("the body is no intent: {e}")),
    };
    answer(&intent.id, shared.change(|table, now| table.perform(&intent, now)).await)
}

/// What became of an intent; 404 when it is not remembered.
pub(super) async fn outcome(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let id = match IntentId::new(id) {
        Ok(id) => id,
        Err(why) => return bad(why),
    };
    match shared.read(|table, _| table.outcome(&id).cloned()) {
        Some(outcome) => Json(outcome).into_response(),
        None => line(StatusCode::NOT_FOUND, format!("no intent {id} is remembered")),
    }
}

/// What became of an intent; one that never came is given up for good.
pub(super) async fn resolve(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    let id = match IntentId::new(id) {
        Ok(id) => id,
        Err(why) => return bad(why),
    };
    answer(&id, shared.change(|table, now| table.resolve(&id, now)).await)
}

fn answer(id: &IntentId, outcome: Result<Outcome, SavedError>) -> Response {
    match outcome {
        Ok(outcome) => {
            tracing::info!(intent = %id, ?outcome, "a step of the registry");
            Json(outcome).into_response()
        }
        Err(e) => unsaved(&e),
    }
}
