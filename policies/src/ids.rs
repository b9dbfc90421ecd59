//! Identifiers, parsed once at the edge. A value of these types has been checked and needs no second look. Their text is
//! shared, because inventories are copied often.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is no identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind}: {why}")]
pub struct BadId {
    pub kind: &'static str,
    pub text: String,
    pub why: &'static str,
}

/// Longest identifier taken. AWS tag values end at 256 and group names at 255; 128 keeps tables readable.
const ID_MAX_CHARS: usize = 128;

/// Letters, digits, `.`, `_` and `-`: safe in a path, a tag, a draw key (no `|`) and a URL.
fn plain(kind: &'static str, text: &str) -> Result<(), BadId> {
    let bad = |why| Err(BadId { kind, text: text.chars().take(ID_MAX_CHARS).collect(), why });
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > ID_MAX_CHARS {
        return bad("it is longer than 128 characters");
    }
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return bad("only letters, digits, `.`, `_` and `-` are allowed");
    }
    if text.starts_with(['.', '-']) {
        return bad("it must start with a letter, a digit or `_`");
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`BadId`] when it is empty, too long, or holds a character outside letters, digits, `.`, `_`, `-`.
            pub fn new(text: impl Into<String>) -> Result<Self, BadId> {
                let text = text.into();
                plain($kind, &text)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
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
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
    };
}

text_id!(
    /// A team: the value of the tag `troop:team` and the `team` of a policy file.
    TeamName, "team name");
text_id!(
    /// A cloud account; the embedded cloud's is `local`.
    AccountName, "account name");
text_id!(
    /// A region, such as `us-east-1`; the embedded cloud's is `r1`.
    RegionName, "region name");
text_id!(
    /// A zone of a region, such as `us-east-1a`; the embedded cloud has `r1a` to `r1c`.
    ZoneName, "zone name");
text_id!(
    /// An instance id, `i-` and hexadecimal digits at AWS and in the embedded cloud.
    InstanceId, "instance id");
text_id!(
    /// An image id, `ami-` and hexadecimal digits.
    ImageId, "image id");
text_id!(
    /// An intent's id, which is also the client token of the call: 32 hexadecimal digits.
    IntentId, "intent id");

/// Where in the clouds something is: a region of an account. Groups of two locations may share a name. Printed as
/// `account/region`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    pub account: AccountName,
    pub region: RegionName,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.account, self.region)
    }
}

impl FromStr for Location {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { kind: "location", text: text.to_owned(), why: "it is written ACCOUNT/REGION" };
        let (account, region) = text.split_once('/').ok_or_else(bad)?;
        Ok(Self { account: AccountName::new(account)?, region: RegionName::new(region)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_would_break_a_draw_key_or_a_path() {
        for bad in ["", "a|b", "a/b", "a b", "é", "-a", "..", "a\n"] {
            assert!(TeamName::new(bad).is_err(), "{bad:?} was taken");
        }
        assert!(TeamName::new("x".repeat(129)).is_err());
        assert_eq!(InstanceId::new("i-0b7e").unwrap().as_str(), "i-0b7e");
    }

    #[test]
    fn deserialising_checks_too() {
        assert!(serde_json::from_str::<ZoneName>("\"a|b\"").is_err());
        assert_eq!(serde_json::from_str::<ZoneName>("\"r1a\"").unwrap().as_str(), "r1a");
    }
}
