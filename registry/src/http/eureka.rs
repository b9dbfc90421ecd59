//! Eureka's operations.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use troop_policies::registry_view::Status;

use super::answer::{bad, bare, document, line, unsaved};
use super::{shape, xml};
use crate::info::Info;
use crate::saved::SavedError;
use crate::shared::Shared;
use crate::table::{Changed, Effect, Key, RegisterError, Shown, Table};

type Parameters = Query<BTreeMap<String, String>>;
type Entry = Path<(String, String)>;

/// Longest group name, as AWS has it.
const GROUP_BYTES_MAX: usize = 255;

pub(super) async fn register(State(shared): State<Arc<Shared>>, Path(app): Path<String>, body: Bytes) -> Response {
    let value = match read(&body) {
        Ok(value) => value,
        Err(why) => return bad(format!("cannot read the registration: {why}")),
    };
    let info = match Info::from_body(&value, &app) {
        Ok(info) => info,
        Err(why) => return bad(why),
    };
    match shared.change(|table, now| table.register(info, now)).await {
        Ok(Ok(())) => bare(StatusCode::NO_CONTENT),
        Ok(Err(why @ RegisterError::Ended { .. })) => line(StatusCode::CONFLICT, why),
        Ok(Err(why @ RegisterError::Full)) => line(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(e) => unsaved(&e),
    }
}

/// JSON or XML, whatever the content type says: clients send wrong ones, and the first byte never lies.
pub(crate) fn read(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.is_empty() {
        return Err("the body is empty".to_owned());
    }
    if text.starts_with('<') {
        xml::read(text).map_err(|e| e.to_string())
    } else {
        serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))
    }
}

pub(super) async fn renew(
    State(shared): State<Arc<Shared>>,
    Path((app, id)): Entry,
    Query(parameters): Parameters,
) -> Response {
    let dirty = match parameters.get("lastDirtyTimestamp").filter(|t| !t.is_empty()).map(|t| t.parse()).transpose() {
        Ok(dirty) => dirty,
        Err(_) => return bad("`lastDirtyTimestamp` is no whole number of milliseconds"),
    };
    changed(shared.change(|table, now| table.renew(&Key::new(&app, &id), dirty, now)).await)
}

pub(super) async fn cancel(State(shared): State<Arc<Shared>>, Path((app, id)): Entry) -> Response {
    changed(shared.change(|table, now| table.cancel(&Key::new(&app, &id), now)).await)
}

pub(super) async fn set_status(
    State(shared): State<Arc<Shared>>,
    Path((app, id)): Entry,
    Query(parameters): Parameters,
) -> Response {
    let status = match status(&parameters) {
        Ok(Some(status)) => status,
        Ok(None) => return bad("`value` is missing; say PUT .../status?value=OUT_OF_SERVICE"),
        Err(why) => return bad(why),
    };
    let key = Key::new(&app, &id);
    let set = |table: &mut Table, now| {
        // An override of what never was is a slip of the pen; of what is away, it is kept.
        if table.knows(&key) { table.override_instance(key, status, now) } else { no_entry() }
    };
    changed(shared.change(set).await)
}

fn no_entry() -> Effect<Changed> {
    Effect { answer: Changed::NoEntry, save: crate::table::Save::No }
}

pub(super) async fn drop_status(
    State(shared): State<Arc<Shared>>,
    Path((app, id)): Entry,
    Query(parameters): Parameters,
) -> Response {
    let interim = match status(&parameters) {
        Ok(interim) => interim,
        Err(why) => return bad(why),
    };
    changed(shared.change(|table, now| table.drop_override(&Key::new(&app, &id), interim, now)).await)
}

/// The parameter `value`, which must be a status that Eureka knows.
fn status(parameters: &BTreeMap<String, String>) -> Result<Option<Status>, String> {
    let Some(text) = parameters.get("value") else { return Ok(None) };
    match Status::parse(text) {
        Status::Unknown if text != "UNKNOWN" => {
            Err("`value` must be UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN".to_owned())
        }
        status @ (Status::Up | Status::Down | Status::Starting | Status::OutOfService | Status::Unknown) => {
            Ok(Some(status))
        }
    }
}

pub(super) async fn metadata(
    State(shared): State<Arc<Shared>>,
    Path((app, id)): Entry,
    Query(pairs): Parameters,
) -> Response {
    match shared.change(|table, now| table.add_metadata(&Key::new(&app, &id), pairs, now)).await {
        Ok(Ok(answer)) => changed(Ok(answer)),
        Ok(Err(why)) => bad(why),
        Err(e) => unsaved(&e),
    }
}

/// Overrides a group: `DISABLED` takes it out of service, `ENABLED` drops that. Taken for groups without entries too.
pub(super) async fn group_status(
    State(shared): State<Arc<Shared>>,
    Path(group): Path<String>,
    Query(parameters): Parameters,
) -> Response {
    let out_of_service = match parameters.get("value").map(String::as_str) {
        Some("DISABLED") => true,
        Some("ENABLED") => false,
        Some(_) | None => return bad("`value` must be ENABLED or DISABLED"),
    };
    if group.trim().is_empty() || group.len() > GROUP_BYTES_MAX || group.chars().any(char::is_control) {
        return bad("the group's name must have 1 to 255 bytes and no control character");
    }
    changed(shared.change(|table, now| table.override_group(group.trim(), out_of_service, now)).await)
}

fn changed(answer: Result<Changed, SavedError>) -> Response {
    match answer {
        Ok(Changed::Yes) => bare(StatusCode::OK),
        Ok(Changed::NoEntry) => bare(StatusCode::NOT_FOUND),
        Ok(Changed::Full) => {
            line(StatusCode::SERVICE_UNAVAILABLE, "the registry keeps no more overrides; drop some that are not needed")
        }
        Err(e) => unsaved(&e),
    }
}

pub(super) async fn applications(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    list(&shared, &headers, Table::all)
}

pub(super) async fn delta(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    list(&shared, &headers, Table::delta)
}

fn list(shared: &Shared, headers: &HeaderMap, of: impl FnOnce(&Table) -> Vec<Shown>) -> Response {
    let (version, hash, entries) = shared.read(|table, _| (table.version(), table.hash(), of(table)));
    document(headers, "applications", shape::applications(version, &hash, &entries))
}

pub(super) async fn application(
    State(shared): State<Arc<Shared>>,
    Path(app): Path<String>,
    headers: HeaderMap,
) -> Response {
    let name = app.to_uppercase();
    let entries = entries(&shared, |entry| entry.lease.info.app == name);
    if entries.is_empty() {
        return bare(StatusCode::NOT_FOUND);
    }
    document(&headers, "application", shape::application(&name, &entries))
}

pub(super) async fn instance(
    State(shared): State<Arc<Shared>>,
    Path((app, id)): Entry,
    headers: HeaderMap,
) -> Response {
    one(&headers, shared.read(|table, _| table.entry(&Key::new(&app, &id))))
}

pub(super) async fn instance_by_id(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    one(&headers, entries(&shared, |entry| entry.lease.info.id == id).into_iter().next())
}

fn one(headers: &HeaderMap, entry: Option<Shown>) -> Response {
    entry.map_or_else(|| bare(StatusCode::NOT_FOUND), |entry| document(headers, "instance", shape::instance(&entry)))
}

pub(super) async fn vip(
    State(shared): State<Arc<Shared>>,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Response {
    by_address(&shared, &headers, "vipAddress", &address)
}

pub(super) async fn secure_vip(
    State(shared): State<Arc<Shared>>,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Response {
    by_address(&shared, &headers, "secureVipAddress", &address)
}

/// Entries that name `address` in the list `field`.
fn by_address(shared: &Shared, headers: &HeaderMap, field: &str, address: &str) -> Response {
    let named = |list: &String| list.split(',').any(|one| one.trim() == address);
    let found = entries(shared, |entry| entry.lease.info.texts.get(field).is_some_and(named));
    if found.is_empty() {
        return bare(StatusCode::NOT_FOUND);
    }
    let (version, hash) = shared.read(|table, _| (table.version(), table.hash()));
    document(headers, "applications", shape::applications(version, &hash, &found))
}

fn entries(shared: &Shared, wanted: impl Fn(&Shown) -> bool) -> Vec<Shown> {
    let mut all = shared.read(|table, _| table.all());
    all.retain(wanted);
    all
}
