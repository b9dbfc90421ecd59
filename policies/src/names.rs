//! Names of applications, clusters and groups by the frigga rules: `app-stack-detail-v007`.
//!
//! Source: Netflix frigga, `Names.java` and `NameConstants.java`. Two departures, both towards refusing: a name that
//! parses to nothing is an error here, and so is a text that only the push pattern accepts (`-v000`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::BadId;

/// Longest group name. Asgard's limit; AWS allows 255.
pub const GROUP_NAME_MAX_CHARS: usize = 96;
/// Sequences count from v000 to v999 and begin anew.
const SEQUENCE_COUNT: u32 = 1000;

fn name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_')
}

fn detail_char(c: char) -> bool {
    name_char(c) || matches!(c, '-' | '~' | '^')
}

/// Returns the digits of a push token (`v` and three to six digits), if `text` is one.
fn push_digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('v')?;
    ((3..=6).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())).then_some(digits)
}

/// An application: the first part of every name that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppName(Arc<str>);

impl AppName {
    /// # Errors
    /// [`BadId`] when empty, too long, or holding anything but letters, digits, `.` and `_`.
    pub fn new(text: impl Into<String>) -> Result<Self, BadId> {
        let text = text.into();
        let bad = |why| Err(BadId { kind: "application name", text: text.clone(), why });
        if text.is_empty() {
            return bad("it is empty");
        }
        if text.len() > GROUP_NAME_MAX_CHARS {
            return bad("it is longer than 96 characters");
        }
        if !text.chars().all(name_char) {
            return bad("only letters, digits, `.` and `_` are allowed; `-` parts app, stack and detail");
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// All groups whose names differ only in the sequence: `app`, `app-stack` or `app-stack-detail`. Derived, never stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(Arc<ClusterParts>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ClusterParts {
    text: String,
    app: AppName,
    stack: Option<String>,
    detail: Option<String>,
}

impl ClusterName {
    /// Parses a cluster's name as it stands; a trailing `-v007` would be a group's and is refused.
    ///
    /// # Errors
    /// [`BadId`] when a part holds a character it may not, or a stack or detail looks like a push.
    pub fn new(text: impl Into<String>) -> Result<Self, BadId> {
        let cluster = Self::parse(text.into())?;
        let bad = |why| Err(BadId { kind: "cluster name", text: cluster.as_str().to_owned(), why });
        if cluster.as_str().split('-').skip(1).any(|part| push_digits(part).is_some()) {
            return bad("stack and detail cannot contain a push version such as `v007`");
        }
        if cluster.as_str().ends_with('-') {
            return bad("it ends with `-`");
        }
        if cluster.as_str().len() + "-v000".len() > GROUP_NAME_MAX_CHARS {
            return bad("with its sequence it would be longer than 96 characters");
        }
        Ok(cluster)
    }

    /// Builds the name from its parts; an absent stack before a detail gives the double hyphen `app--detail`.
    ///
    /// # Errors
    /// [`BadId`], as [`ClusterName::new`].
    pub fn build(app: &AppName, stack: Option<&str>, detail: Option<&str>) -> Result<Self, BadId> {
        let stack = stack.unwrap_or("");
        let text = match detail.filter(|d| !d.is_empty()) {
            Some(detail) => format!("{}-{stack}-{detail}", app.0),
            None if stack.is_empty() => app.as_str().to_owned(),
            None => format!("{}-{stack}", app.0),
        };
        if stack.contains('-') {
            return Err(BadId { kind: "cluster name", text, why: "a stack cannot contain `-`" });
        }
        Self::new(text)
    }

    /// Parses what stands before the sequence in a group's name, as the field accepts it.
    fn parse(text: String) -> Result<Self, BadId> {
        let bad = |why| Err(BadId { kind: "cluster name", text: text.clone(), why });
        let mut parts = text.splitn(3, '-');
        let Ok(app) = AppName::new(parts.next().unwrap_or("")) else {
            return bad("it must start with an application name of letters, digits, `.` and `_`");
        };
        let stack = parts.next().unwrap_or("");
        if !stack.chars().all(name_char) {
            return bad("a stack may hold only letters, digits, `.` and `_`");
        }
        let detail = parts.next().unwrap_or("");
        if !detail.chars().all(detail_char) {
            return bad("a detail may hold only letters, digits, `.`, `_`, `-`, `~` and `^`");
        }
        let some = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let (stack, detail) = (some(stack), some(detail));
        Ok(Self(Arc::new(ClusterParts { text, app, stack, detail })))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn app(&self) -> &AppName {
        &self.0.app
    }

    pub fn stack(&self) -> Option<&str> {
        self.0.stack.as_deref()
    }

    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The group of this cluster with sequence `sequence` modulo 1000.
    pub fn group(&self, sequence: u32) -> GroupName {
        let sequence = sequence % SEQUENCE_COUNT;
        let text = format!("{self}-v{sequence:03}");
        GroupName(Arc::new(GroupParts { text, cluster: self.clone(), sequence: Some(sequence) }))
    }

    /// The next group's name after `newest`, skipping names in use, also across v999 to v000.
    ///
    /// `None` only when all thousand names are in use.
    pub fn next_group(&self, newest: Option<&GroupName>, in_use: &BTreeSet<GroupName>) -> Option<GroupName> {
        // A foreign name may count beyond v999; from there too it begins anew, for `group` takes this modulo 1000.
        let first = newest.and_then(GroupName::sequence).map_or(0, |s| (s + 1).min(SEQUENCE_COUNT));
        (0..SEQUENCE_COUNT)
            .map(|n| self.group(first + n))
            .find(|name| !in_use.contains(name) || crate::sabotaged!("name_reuse"))
    }
}

/// An Auto Scaling group: a cluster and, mostly, a sequence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(Arc<GroupParts>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct GroupParts {
    text: String,
    cluster: ClusterName,
    sequence: Option<u32>,
}

impl GroupName {
    /// Parses a group's name; without a sequence the whole text names the cluster.
    ///
    /// # Errors
    /// [`BadId`] when it is too long or the part before the sequence is no cluster.
    pub fn new(text: impl Into<String>) -> Result<Self, BadId> {
        let text = text.into();
        if text.len() > GROUP_NAME_MAX_CHARS {
            return Err(BadId { kind: "group name", text, why: "it is longer than 96 characters" });
        }
        if let Some((cluster, sequence)) =
            text.rsplit_once('-').and_then(|(c, last)| push_digits(last).map(|d| (c, d.parse::<u32>().ok())))
        {
            let cluster = ClusterName::parse(cluster.to_owned())?;
            return Ok(Self(Arc::new(GroupParts { text, cluster, sequence })));
        }
        let cluster = ClusterName::parse(text.clone())?;
        Ok(Self(Arc::new(GroupParts { text, cluster, sequence: None })))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    pub fn app(&self) -> &AppName {
        self.0.cluster.app()
    }

    pub fn sequence(&self) -> Option<u32> {
        self.0.sequence
    }
}

macro_rules! as_text {
    ($name:ident, $self:ident => $text:expr) => {
        impl fmt::Display for $name {
            fn fmt(&$self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad($text)
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.to_string()
            }
        }
    };
}
as_text!(AppName, self => &self.0);
as_text!(ClusterName, self => self.as_str());
as_text!(GroupName, self => self.as_str());

#[cfg(test)]
mod tests {
    use super::*;

    fn group(text: &str) -> GroupName {
        GroupName::new(text).unwrap()
    }

    #[test]
    fn parses_the_known_shapes() {
        /// Text, cluster, app, stack, detail, sequence.
        type Row = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>, Option<u32>);
        let rows: &[Row] = &[
            ("api-test-A-v406", "api-test-A", "api", Some("test"), Some("A"), Some(406)),
            ("actiondrainer--v003", "actiondrainer-", "actiondrainer", None, None, Some(3)),
            ("evcache-us-east-1d-0-v223", "evcache-us-east-1d-0", "evcache", Some("us"), Some("east-1d-0"), Some(223)),
            ("foo-v01", "foo-v01", "foo", Some("v01"), None, None),
            ("foo-v000-v001", "foo-v000", "foo", Some("v000"), None, Some(1)),
            ("foo-v1000", "foo", "foo", None, None, Some(1000)),
            ("foo-V001", "foo-V001", "foo", Some("V001"), None, None),
            ("foo-v001-", "foo-v001-", "foo", Some("v001"), None, None),
            ("foo--blue-v007", "foo--blue", "foo", None, Some("blue"), Some(7)),
            ("foo-s-a~b^c-v007", "foo-s-a~b^c", "foo", Some("s"), Some("a~b^c"), Some(7)),
            ("v000", "v000", "v000", None, None, None),
        ];
        for (text, cluster, app, stack, detail, sequence) in rows {
            let name = group(text);
            let parsed = (
                name.cluster().as_str(),
                name.app().as_str(),
                name.cluster().stack(),
                name.cluster().detail(),
                name.sequence(),
            );
            assert_eq!(parsed, (*cluster, *app, *stack, *detail, *sequence), "{text}");
        }
    }

    #[test]
    fn refuses_what_has_no_application_or_a_character_that_may_not_be() {
        for bad in ["", "-v000", "--v001", "~foo-v001", "foo-^x-v001", "api-~test-A-v004", "a b", "foo-web-a/b-v001"] {
            assert!(GroupName::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(GroupName::new("x".repeat(96)).is_ok());
        assert!(GroupName::new("x".repeat(97)).is_err());
    }

    #[test]
    fn a_cluster_typed_by_a_person_carries_no_push_version() {
        for bad in ["foo-v001", "foo-web-v001-x", "foo-", "foo-web-"] {
            assert!(ClusterName::new(bad).is_err(), "{bad:?} was taken");
        }
        // Five characters are left for the sequence.
        assert!(ClusterName::new("x".repeat(91)).is_ok());
        assert!(ClusterName::new("x".repeat(92)).is_err());
        let app = AppName::new("foo").unwrap();
        assert_eq!(ClusterName::build(&app, None, Some("blue")).unwrap().as_str(), "foo--blue");
        assert_eq!(ClusterName::build(&app, Some("web"), None).unwrap().as_str(), "foo-web");
        assert_eq!(ClusterName::build(&app, None, None).unwrap().as_str(), "foo");
        assert!(ClusterName::build(&app, Some("a-b"), None).is_err());
    }

    #[test]
    fn counts_on_and_begins_anew_after_v999() {
        let cluster = ClusterName::new("foo").unwrap();
        let none = BTreeSet::new();
        let next = |newest: Option<&str>| cluster.next_group(newest.map(group).as_ref(), &none).unwrap().to_string();
        assert_eq!(next(None), "foo-v000");
        assert_eq!(next(Some("foo-v007")), "foo-v008");
        assert_eq!(next(Some("foo-v999")), "foo-v000");
        assert_eq!(next(Some("foo-v1000")), "foo-v000");
        assert_eq!(next(Some("foo-v999999")), "foo-v000");
        assert_eq!(cluster.group(1_007), group("foo-v007"));
    }

    #[test]
    fn skips_names_in_use_also_across_the_wrap() {
        let cluster = ClusterName::new("foo").unwrap();
        let in_use: BTreeSet<_> = ["foo-v999", "foo-v000", "foo-v001"].map(group).into();
        assert_eq!(cluster.next_group(Some(&group("foo-v998")), &in_use), Some(group("foo-v002")));
        let all = (0..1000).map(|n| cluster.group(n)).collect();
        assert_eq!(cluster.next_group(Some(&group("foo-v998")), &all), None);
    }
}
