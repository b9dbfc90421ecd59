//! Where the sample service learns who it is (the environment) and how to behave (`app.toml` of its image).

use std::io;
use std::num::NonZeroU16;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::SampleError;

/// Who this instance is, as the cloud told it by the environment of an image's command.
///
/// It is also the JSON body of `/version`. What the environment does not name is an empty text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    pub(super) app: String,
    pub(super) version: String,
    pub(super) cluster: String,
    pub(super) group: String,
    pub(super) instance: String,
    pub(super) account: String,
    pub(super) region: String,
    pub(super) zone: String,
    pub(super) image: String,
    #[serde(skip)]
    pub(super) host: String,
    #[serde(skip)]
    pub(super) port: u16,
    /// Base of the registry's operations without a slash at its end; absent: the service registers nowhere.
    #[serde(skip)]
    pub(super) eureka: Option<String>,
}

impl Identity {
    /// Reads the variables of the contract of an image through `var`.
    ///
    /// # Errors
    /// HOST or PORT is missing, or PORT is no port.
    pub(super) fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, SampleError> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let needed = |name: &'static str| set(name).ok_or(SampleError::Missing { name });
        let host = needed("HOST")?;
        let port = needed("PORT")?;
        let port: NonZeroU16 = port.parse().map_err(|source| SampleError::Port { text: port, source })?;
        let text = |name: &str| set(name).unwrap_or_default();
        Ok(Self {
            app: set("TROOP_APP").unwrap_or_else(|| "sample".to_owned()),
            version: text("TROOP_VERSION"),
            cluster: text("TROOP_CLUSTER"),
            group: text("TROOP_GROUP"),
            instance: set("TROOP_INSTANCE_ID").unwrap_or_else(|| format!("{host}:{port}")),
            account: text("TROOP_ACCOUNT"),
            region: text("TROOP_REGION"),
            zone: text("TROOP_ZONE"),
            image: text("TROOP_IMAGE"),
            eureka: set("EUREKA_URL").map(|url| url.trim_end_matches('/').to_owned()),
            host,
            port: port.get(),
        })
    }
}

/// `app.toml`: how this version of the service behaves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Behaviour {
    /// First line of `/`.
    pub(super) greeting: String,
    /// Status of `/health`.
    pub(super) health_status: u16,
    /// Share of the answers to `/` that are 500, from 0 to 1.
    pub(super) error_rate: f64,
    /// Base URL of the service that `/downstream` calls when its query names no app.
    pub(super) downstream: Option<String>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { greeting: "hello".to_owned(), health_status: 200, error_rate: 0.0, downstream: None }
    }
}

impl Behaviour {
    /// Reads the file; an absent one means the defaults.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has an unknown key, or a value that means nothing.
    pub(super) fn read(path: &Path) -> Result<Self, SampleError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SampleError::Unreadable { path: path.to_owned(), source }),
        };
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, SampleError> {
        let read: Self =
            toml::from_str(text).map_err(|source| SampleError::Malformed { path: path.to_owned(), source })?;
        let bad = |what: String| Err(SampleError::Value { path: path.to_owned(), what });
        if !(0.0..=1.0).contains(&read.error_rate) {
            return bad(format!("error_rate is {}; write a share from 0 to 1, such as 0.31", read.error_rate));
        }
        if !(200..=599).contains(&read.health_status) {
            return bad(format!("health_status is {}; write an HTTP status from 200 to 599", read.health_status));
        }
        Ok(read)
    }
}

/// Whether answer number `n` (from 0) is one of the errors when their share is `rate`.
///
/// The errors are spread evenly and not drawn: over any run of answers their number is within one of the share, so a
/// short demo shows the share that its image names.
pub(super) fn is_error(n: u32, rate: f64) -> bool {
    let before = (f64::from(n) * rate).floor();
    let after = ((f64::from(n) + 1.0) * rate).floor();
    after > before
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Result<Identity, SampleError> {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Identity::from_env(|name| map.get(name).cloned())
    }

    fn parse(text: &str) -> Result<Behaviour, SampleError> {
        Behaviour::parse(text, Path::new("app.toml"))
    }

    #[test]
    fn the_environment_of_an_instance_is_read() {
        let id = env(&[
            ("HOST", "10.77.1.2"),
            ("PORT", "8080"),
            ("TROOP_INSTANCE_ID", "i-4f21"),
            ("TROOP_GROUP", "hello-web-v000"),
            ("EUREKA_URL", "http://10.77.0.1:8761/eureka/v2/"),
        ])
        .unwrap();
        assert_eq!((id.host.as_str(), id.port), ("10.77.1.2", 8080));
        assert_eq!((id.instance.as_str(), id.group.as_str()), ("i-4f21", "hello-web-v000"));
        assert_eq!(id.eureka.as_deref(), Some("http://10.77.0.1:8761/eureka/v2"));
    }

    #[test]
    fn by_hand_only_an_address_is_needed_and_an_empty_registry_is_none() {
        let id = env(&[("HOST", "127.0.0.1"), ("PORT", "80"), ("EUREKA_URL", "")]).unwrap();
        assert_eq!((id.app.as_str(), id.instance.as_str(), id.eureka), ("sample", "127.0.0.1:80", None));
    }

    #[test]
    fn a_missing_or_wrong_address_is_said_by_name() {
        assert!(env(&[("PORT", "80")]).unwrap_err().to_string().contains("HOST is not set"));
        assert!(env(&[("HOST", "127.0.0.1")]).unwrap_err().to_string().contains("PORT is not set"));
        assert!(env(&[("HOST", "a"), ("PORT", "70000")]).unwrap_err().to_string().contains("`70000`"));
        assert!(env(&[("HOST", "a"), ("PORT", "0")]).unwrap_err().to_string().contains("`0`"));
    }

    #[test]
    fn an_absent_file_means_a_healthy_service() {
        let folder = tempfile::tempdir().unwrap();
        let read = Behaviour::read(&folder.path().join("app.toml")).unwrap();
        assert_eq!(read, Behaviour::default());
        assert_eq!((read.health_status, read.error_rate), (200, 0.0));
    }

    #[test]
    fn the_keys_of_the_file_are_read_and_unknown_ones_refused() {
        let read = parse("greeting = \"hell\"\nhealth_status = 503\nerror_rate = 0.31\n").unwrap();
        assert_eq!((read.greeting.as_str(), read.health_status, read.error_rate), ("hell", 503, 0.31));
        assert!(matches!(parse("error_rat = 0.31\n"), Err(SampleError::Malformed { .. })));
        assert!(matches!(parse("error_rate = 1.5\n"), Err(SampleError::Value { .. })));
        assert!(matches!(parse("error_rate = nan\n"), Err(SampleError::Value { .. })));
        assert!(matches!(parse("health_status = 42\n"), Err(SampleError::Value { .. })));
    }

    #[test]
    fn errors_are_spread_evenly_at_every_length() {
        for rate in [0.0, 0.05, 0.31, 0.5, 1.0] {
            let mut errors = 0_u32;
            for n in 0..10_000 {
                errors += u32::from(is_error(n, rate));
                let due = (f64::from(n) + 1.0) * rate;
                assert!((f64::from(errors) - due).abs() <= 1.0, "{errors} errors in {} answers at {rate}", n + 1);
            }
        }
    }
}
