//! The registry over HTTP: Eureka's paths for its clients, and our own for Troop.
//!
//! Source: Eureka's REST operations (the wiki of Netflix/eureka and its `resources` package). Netflix serves them under
//! `/eureka/v2`, Spring Cloud and py-eureka-client use `/eureka`; both work here.

mod accept;
mod answer;
mod eureka;
pub(crate) mod shape;
#[cfg(test)]
mod tests;
mod troop;
pub(crate) mod xml;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};

use crate::shared::Shared;

pub(crate) use accept::accept;
#[cfg(any(feature = "fuzzing", test))]
pub(crate) use eureka::read;

/// Largest body taken, in bytes. Registrations of real clients have two to five thousand; metadata may double that.
const BODY_BYTES_MAX: usize = 64 * 1_024;

/// All paths of the registry.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for base in ["/eureka/v2", "/eureka"] {
        let at = |path: &str| format!("{base}/{path}");
        let instance = get(eureka::instance).put(eureka::renew).delete(eureka::cancel);
        let application = get(eureka::application).post(eureka::register);
        router = router
            .route(&at("apps"), get(eureka::applications))
            .route(&at("apps/"), get(eureka::applications))
            .route(&at("apps/delta"), get(eureka::delta))
            .route(&at("apps/{app}"), application.clone())
            .route(&at("apps/{app}/"), application)
            .route(&at("apps/{app}/{id}"), instance)
            .route(&at("apps/{app}/{id}/status"), put(eureka::set_status).delete(eureka::drop_status))
            .route(&at("apps/{app}/{id}/metadata"), put(eureka::metadata))
            .route(&at("instances/{id}"), get(eureka::instance_by_id))
            .route(&at("vips/{address}"), get(eureka::vip))
            .route(&at("svips/{address}"), get(eureka::secure_vip))
            .route(&at("asg/{group}/status"), put(eureka::group_status));
    }
    router
        .route("/troop/v1/registry", get(troop::registry))
        .route("/troop/v1/steps", post(troop::perform))
        .route("/troop/v1/steps/{id}", get(troop::outcome))
        .route("/troop/v1/steps/{id}/resolve", post(troop::resolve))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shared)
}
