//! Entries in the shape of Eureka's JSON, from which its XML follows (see [`super::xml`]).
//!
//! Source: Eureka's `LegacyJacksonJson` codec. Its readers are strict in odd places, so: ports are objects with
//! `@enabled` as text, timestamps of the entry are texts and those of the lease numbers, empty metadata names a Java
//! class, `application` and `instance` are always lists, and what is unset is left out.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use troop_policies::registry_view::Status;

use crate::info::{Port, TEXTS};
use crate::table::Shown;

/// Eureka's default between renewals, in seconds, shown for those who did not say theirs.
const RENEWAL_SECS: i64 = 30;

/// `{"versions__delta": ..., "apps__hashcode": ..., "application": [...]}`.
pub(crate) fn applications(version: u64, hash: &str, entries: &[Shown]) -> Value {
    let mut apps: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for entry in entries {
        apps.entry(&entry.lease.info.app).or_default().push(instance(entry));
    }
    let list: Vec<Value> = apps.into_iter().map(|(name, instances)| named(name, instances)).collect();
    json!({"versions__delta": version.to_string(), "apps__hashcode": hash, "application": list})
}

/// `{"name": ..., "instance": [...]}`.
pub(crate) fn application(name: &str, entries: &[Shown]) -> Value {
    named(name, entries.iter().map(instance).collect())
}

fn named(name: &str, instances: Vec<Value>) -> Value {
    json!({"name": name, "instance": instances})
}

/// One entry.
pub(crate) fn instance(shown: &Shown) -> Value {
    let lease = &shown.lease;
    let info = &lease.info;
    let mut value = Map::new();
    let mut set = |name: &str, of: Value| value.insert(name.to_owned(), of);
    set("instanceId", json!(info.id));
    set("hostName", json!(info.host_name));
    set("app", json!(info.app));
    set("ipAddr", json!(info.ip));
    set("status", json!(shown.status.as_str()));
    set("overriddenstatus", json!(shown.overridden.unwrap_or(Status::Unknown).as_str()));
    set("port", port(&info.port));
    set("securePort", port(&info.secure_port));
    set("countryId", json!(info.country_id));
    let mut data_center = json!({"@class": info.data_center.class, "name": info.data_center.name});
    if !info.data_center.metadata.is_empty() {
        data_center["metadata"] = json!(info.data_center.metadata);
    }
    set("dataCenterInfo", data_center);
    set(
        "leaseInfo",
        json!({
            "renewalIntervalInSecs": info.renewal_secs.unwrap_or(RENEWAL_SECS),
            "durationInSecs": shown.duration_secs,
            "registrationTimestamp": ms(Some(lease.registered_at)),
            "lastRenewalTimestamp": ms(Some(lease.renewed_at)),
            "evictionTimestamp": ms(shown.gone_at),
            "serviceUpTimestamp": ms(lease.up_at),
        }),
    );
    let metadata = if info.metadata.is_empty() {
        json!({"@class": "java.util.Collections$EmptyMap"})
    } else {
        json!(info.metadata)
    };
    set("metadata", metadata);
    for name in TEXTS {
        if let Some(text) = info.texts.get(name) {
            set(name, json!(text));
        }
    }
    set("isCoordinatingDiscoveryServer", json!("false"));
    set("lastUpdatedTimestamp", json!(ms(Some(lease.updated_at)).to_string()));
    set("lastDirtyTimestamp", json!(info.last_dirty_ms.unwrap_or(0).to_string()));
    set("actionType", json!(lease.action.as_str()));
    if let Some(group) = &info.group {
        set("asgName", json!(group));
    }
    Value::Object(value)
}

fn port(port: &Port) -> Value {
    json!({"$": port.number, "@enabled": port.enabled.to_string()})
}

/// Milliseconds since the epoch; Eureka writes 0 for never.
fn ms(at: Option<Timestamp>) -> i64 {
    at.map_or(0, Timestamp::as_millisecond)
}
