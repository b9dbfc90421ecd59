//! What an instance says of itself when it registers, checked once at the edge.
//!
//! The source of the format is Eureka's: the JSON of `InstanceInfo`. XML arrives here too, turned into the same shape
//! (`@name` for attributes, `$` for the text beside them), so there is one reader for both. It is lenient as Eureka is:
//! numbers may be texts, booleans may be texts, ports may be bare.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use troop_policies::registry_view::Status;

/// Metadata pairs kept of one instance; more than any client is known to send, and `PUT metadata` must not grow for ever.
pub(crate) const METADATA_PAIRS_MAX: usize = 256;

/// Longest text kept in any field, in bytes. Health URLs are the longest that clients send.
const TEXT_BYTES_MAX: usize = 4_096;

/// Longest lease a client may ask for, in seconds: what nobody has renewed for a day is not alive.
const DURATION_SECS_MAX: i64 = 86_400;

/// Optional texts that are only handed on, in the order in which Eureka writes them.
pub(crate) const TEXTS: [&str; 7] = [
    "appGroupName",
    "homePageUrl",
    "statusPageUrl",
    "healthCheckUrl",
    "secureHealthCheckUrl",
    "vipAddress",
    "secureVipAddress",
];

/// Why a registration was refused. One line for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadInstance {
    #[error("there is no `instance` in the body; send {{\"instance\": {{...}}}} or <instance>...</instance>")]
    NoInstance,
    #[error("`{field}` is missing; every registration must have it")]
    Missing { field: &'static str },
    #[error("`{field}` is wrong: {why}")]
    Wrong { field: String, why: &'static str },
    #[error("the path names app `{path}` and the body app `{body}`; they must be the same")]
    OtherApp { path: String, body: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) enabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataCenter {
    /// Eureka's Java class, which its own clients need to read the rest.
    pub(crate) class: String,
    pub(crate) name: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) id: String,
    /// Upper case.
    pub(crate) app: String,
    pub(crate) host_name: String,
    pub(crate) ip: String,
    /// What it says itself. What is shown may be overridden.
    pub(crate) status: Status,
    pub(crate) port: Port,
    pub(crate) secure_port: Port,
    pub(crate) country_id: i64,
    pub(crate) data_center: DataCenter,
    pub(crate) renewal_secs: Option<i64>,
    /// The lease it asked for; `None` takes the site's.
    pub(crate) duration_secs: Option<i64>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The values of [`TEXTS`] that it sent.
    pub(crate) texts: BTreeMap<String, String>,
    /// `asgName`.
    pub(crate) group: Option<String>,
    pub(crate) last_dirty_ms: Option<i64>,
}

impl Info {
    /// Reads the body `{"instance": {...}}` of a registration for the app that the path names.
    pub(crate) fn from_body(body: &Value, path_app: &str) -> Result<Self, BadInstance> {
        let value = body.get("instance").filter(|v| v.is_object()).ok_or(BadInstance::NoInstance)?;
        let app = text(value, "app")?.ok_or(BadInstance::Missing { field: "app" })?.to_uppercase();
        let path_app = path_app.to_uppercase();
        if app != path_app {
            return Err(BadInstance::OtherApp { path: path_app, body: app });
        }
        let host_name = text(value, "hostName")?.ok_or(BadInstance::Missing { field: "hostName" })?;
        let ip = text(value, "ipAddr")?.ok_or(BadInstance::Missing { field: "ipAddr" })?;
        let data_center = data_center(value)?;
        // As Eureka's own getId: clients that send no id renew by their data centre's id, else by their host name.
        let id = text(value, "instanceId")?
            .or_else(|| data_center.metadata.get("instance-id").cloned())
            .unwrap_or_else(|| host_name.clone());
        let lease = value.get("leaseInfo").unwrap_or(&Value::Null);
        let positive = |secs: Option<i64>| secs.filter(|s| *s > 0).map(|s| s.min(DURATION_SECS_MAX));
        let mut texts = BTreeMap::new();
        for name in TEXTS {
            if let Some(found) = text(value, name)? {
                texts.insert(name.to_owned(), found);
            }
        }
        Ok(Self {
            id,
            app,
            host_name,
            ip,
            status: text(value, "status")?.map_or(Status::Up, |s| Status::parse(&s)),
            port: port(value, "port", 7_001, true)?,
            secure_port: port(value, "securePort", 7_002, false)?,
            country_id: number(value, "countryId")?.unwrap_or(1),
            data_center,
            renewal_secs: positive(number(lease, "renewalIntervalInSecs")?),
            duration_secs: positive(number(lease, "durationInSecs")?),
            metadata: pairs(value, "metadata")?,
            texts,
            group: text(value, "asgName")?,
            last_dirty_ms: number(value, "lastDirtyTimestamp")?.filter(|ms| *ms > 0),
        })
    }

    /// Whether the entry belongs to the instance `id` of the cloud.
    pub(crate) fn belongs_to(&self, id: &str) -> bool {
        self.data_center_instance_id() == Some(id) || self.troop_instance_id() == Some(id) || self.id == id
    }

    pub(crate) fn data_center_instance_id(&self) -> Option<&str> {
        self.data_center.metadata.get("instance-id").map(String::as_str)
    }

    pub(crate) fn troop_instance_id(&self) -> Option<&str> {
        self.metadata.get("troop.instance-id").map(String::as_str)
    }

    /// Adds pairs to the metadata, replacing those of the same name.
    pub(crate) fn add_metadata(&mut self, more: BTreeMap<String, String>) -> Result<(), BadInstance> {
        for (key, value) in &more {
            check_text(key, key)?;
            check_text(key, value)?;
        }
        let mut all = self.metadata.clone();
        all.extend(more.into_iter().filter(|(key, _)| is_pair(key)));
        check_count(&all)?;
        self.metadata = all;
        Ok(())
    }
}

fn wrong(field: &str, why: &'static str) -> BadInstance {
    BadInstance::Wrong { field: field.chars().filter(|c| !c.is_control()).take(64).collect(), why }
}

fn check_text(field: &str, text: &str) -> Result<(), BadInstance> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(wrong(field, "it is longer than 4,096 bytes"));
    }
    // XML 1.0 has no way to write these, so the readers of the list could not read any of it.
    if text
        .chars()
        .any(|c| (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{fffe}' | '\u{ffff}'))
    {
        return Err(wrong(field, "it holds a control character"));
    }
    Ok(())
}

/// A scalar as text; an element with attributes gives the text beside them. Empty is as if it were not there.
fn scalar(field: &str, value: &Value) -> Result<Option<String>, BadInstance> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Object(object) => return object.get("$").map_or(Ok(None), |inner| scalar(field, inner)),
        Value::Array(_) => return Err(wrong(field, "it is a list, not a text")),
    };
    check_text(field, &text)?;
    Ok(Some(text).filter(|t| !t.is_empty()))
}

fn text(parent: &Value, field: &str) -> Result<Option<String>, BadInstance> {
    parent.get(field).map_or(Ok(None), |value| scalar(field, value))
}

fn number(parent: &Value, field: &str) -> Result<Option<i64>, BadInstance> {
    text(parent, field)?.map(|t| t.parse().map_err(|_| wrong(field, "it is no whole number"))).transpose()
}

fn port(parent: &Value, field: &'static str, default: u16, enabled: bool) -> Result<Port, BadInstance> {
    let number = match number(parent, field)? {
        None => default,
        // Clients without a port send 0 or -1.
        Some(-1) => 0,
        Some(number) => u16::try_from(number).map_err(|_| wrong(field, "a port is 0 to 65535"))?,
    };
    let said = parent.get(field).and_then(|v| v.get("@enabled")).map_or(Ok(None), |v| scalar(field, v))?;
    Ok(Port { number, enabled: said.map_or(enabled, |s| s.eq_ignore_ascii_case("true")) })
}

/// `@class` and its like are Java's, not pairs.
fn is_pair(key: &str) -> bool {
    !key.is_empty() && !key.starts_with('@') && key != "$"
}

fn check_count(pairs: &BTreeMap<String, String>) -> Result<(), BadInstance> {
    if pairs.len() > METADATA_PAIRS_MAX {
        return Err(wrong("metadata", "it has more than 256 pairs"));
    }
    Ok(())
}

fn pairs(parent: &Value, field: &'static str) -> Result<BTreeMap<String, String>, BadInstance> {
    let mut pairs = BTreeMap::new();
    match parent.get(field) {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.trim().is_empty() => {}
        Some(Value::Object(object)) => {
            for (key, value) in object.iter().filter(|(key, _)| is_pair(key)) {
                check_text(field, key)?;
                pairs.insert(key.clone(), scalar(key, value)?.unwrap_or_default());
            }
        }
        Some(Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_)) => {
            return Err(wrong(field, "it must be pairs of names and texts"));
        }
    }
    check_count(&pairs)?;
    Ok(pairs)
}

fn data_center(parent: &Value) -> Result<DataCenter, BadInstance> {
    let value = parent.get("dataCenterInfo").filter(|v| v.is_object());
    let value = value.ok_or(BadInstance::Missing { field: "dataCenterInfo" })?;
    let name = text(value, "name")?.ok_or(BadInstance::Missing { field: "dataCenterInfo.name" })?;
    let class = match name.as_str() {
        "MyOwn" | "Netflix" => "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
        "Amazon" => "com.netflix.appinfo.AmazonInfo",
        _ => return Err(wrong("dataCenterInfo.name", "it must be Netflix, Amazon or MyOwn")),
    };
    let class = text(value, "@class")?.unwrap_or_else(|| class.to_owned());
    Ok(DataCenter { class, name, metadata: pairs(value, "metadata")? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body() -> Value {
        json!({"instance": {"instanceId": "shop-1", "app": "shop", "hostName": "h", "ipAddr": "10.0.0.1",
            "dataCenterInfo": {"name": "MyOwn"}}})
    }

    fn with(field: &str, value: Value) -> Value {
        let mut body = body();
        body["instance"][field] = value;
        body
    }

    #[test]
    fn what_is_missing_takes_eurekas_defaults() {
        let info = Info::from_body(&body(), "Shop").unwrap();
        assert_eq!((info.app.as_str(), info.status, info.country_id), ("SHOP", Status::Up, 1));
        assert_eq!(info.port, Port { number: 7_001, enabled: true });
        assert_eq!(info.secure_port, Port { number: 7_002, enabled: false });
        assert_eq!((info.duration_secs, info.group), (None, None));
    }

    #[test]
    fn numbers_and_flags_may_be_texts() {
        let info = Info::from_body(&with("port", json!({"$": "8080", "@enabled": "false"})), "SHOP").unwrap();
        assert_eq!(info.port, Port { number: 8_080, enabled: false });
        let info = Info::from_body(&with("port", json!(9_090)), "SHOP").unwrap();
        assert_eq!(info.port, Port { number: 9_090, enabled: true });
        let info = Info::from_body(&with("leaseInfo", json!({"durationInSecs": "6"})), "SHOP").unwrap();
        assert_eq!(info.duration_secs, Some(6));
        let info = Info::from_body(&with("leaseInfo", json!({"durationInSecs": 0})), "SHOP").unwrap();
        assert_eq!(info.duration_secs, None);
    }

    #[test]
    fn every_required_field_is_named_when_it_is_missing() {
        for field in ["app", "hostName", "ipAddr", "dataCenterInfo"] {
            let error = Info::from_body(&with(field, Value::Null), "SHOP").unwrap_err();
            assert_eq!(error, BadInstance::Missing { field }, "{field}");
        }
        let error = Info::from_body(&with("dataCenterInfo", json!({"name": "Moon"})), "SHOP").unwrap_err();
        assert_eq!(error.to_string(), "`dataCenterInfo.name` is wrong: it must be Netflix, Amazon or MyOwn");
    }

    #[test]
    fn an_entry_without_an_id_is_known_by_its_data_centre_or_its_host() {
        let info = Info::from_body(&with("instanceId", Value::Null), "SHOP").unwrap();
        assert_eq!(info.id, "h");
        let mut amazon = with("instanceId", Value::Null);
        amazon["instance"]["dataCenterInfo"] = json!({"name": "Amazon", "metadata": {"instance-id": "i-1"}});
        assert_eq!(Info::from_body(&amazon, "SHOP").unwrap().id, "i-1");
    }

    #[test]
    fn text_that_xml_cannot_carry_is_refused() {
        let error = Info::from_body(&with("homePageUrl", json!("a\u{1}b")), "SHOP").unwrap_err();
        assert_eq!(error.to_string(), "`homePageUrl` is wrong: it holds a control character");
        let error = Info::from_body(&with("metadata", json!({"a\u{0}": "b"})), "SHOP").unwrap_err();
        assert_eq!(error.to_string(), "`metadata` is wrong: it holds a control character");
    }

    #[test]
    fn javas_class_is_no_metadata() {
        let info = Info::from_body(&with("metadata", json!({"@class": "java.util.Map", "a": 1})), "SHOP").unwrap();
        assert_eq!(info.metadata, BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    }
}
