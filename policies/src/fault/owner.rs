//! Whose packets on the host itself, by name: each host finds out what it means there, or refuses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whose packets on the host itself: those that a socket of it sends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    /// A control group (version 2) with all within it, by its path below the root.
    Cgroup(String),
    /// A unit of the host's systemd, by its full name.
    Unit(String),
    /// A process and its children, by its number.
    Pid(u32),
    /// The only process of this name and its children.
    Program(String),
}

/// Why a text names no owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no cgroup, unit or process")]
pub struct BadOwner {
    pub text: String,
}

impl BadOwner {
    pub fn hint(&self) -> &'static str {
        "write cgroup:system.slice/web.service, unit:web.service, process:4711 or process:nginx"
    }
}

/// Longest path of a cgroup; those of containers have some 200.
const CGROUP_MAX_BYTES: usize = 512;
/// Longest name of a unit (systemd's `UNIT_NAME_MAX`).
const UNIT_MAX_BYTES: usize = 255;
/// Longest name of a process (`TASK_COMM_LEN` without its end).
const PROGRAM_MAX_BYTES: usize = 15;

impl Owner {
    /// # Errors
    /// [`BadOwner`] unless it is a path below the root without `.` and `..`.
    pub fn cgroup(path: &str) -> Result<Self, BadOwner> {
        let path = path.trim_matches('/');
        let named = |part: &str| !matches!(part, "" | "." | "..") && !part.bytes().any(|byte| byte.is_ascii_control());
        let sound = path.len() <= CGROUP_MAX_BYTES && path.split('/').all(named);
        if sound { Ok(Self::Cgroup(path.to_owned())) } else { Err(bad_owner("cgroup", path)) }
    }

    /// # Errors
    /// [`BadOwner`] unless it is the full name of a service, a scope or a slice.
    pub fn unit(name: &str) -> Result<Self, BadOwner> {
        let known = [".service", ".scope", ".slice"].iter().any(|kind| name.len() > kind.len() && name.ends_with(kind));
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b));
        let sound = known && plain && name.len() <= UNIT_MAX_BYTES;
        if sound { Ok(Self::Unit(name.to_owned())) } else { Err(bad_owner("unit", name)) }
    }

    /// # Errors
    /// [`BadOwner`] unless it is a number above 0 or a name of 15 bytes at most, which is all of it that the kernel keeps.
    pub fn process(text: &str) -> Result<Self, BadOwner> {
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().ok().filter(|pid| *pid > 0).map(Self::Pid).ok_or_else(|| bad_owner("process", text));
        }
        let plain = !text.bytes().any(|byte| byte.is_ascii_control() || byte == b'/');
        let sound = plain && (1..=PROGRAM_MAX_BYTES).contains(&text.len());
        if sound { Ok(Self::Program(text.to_owned())) } else { Err(bad_owner("process", text)) }
    }
}

fn bad_owner(kind: &str, text: &str) -> BadOwner {
    BadOwner { text: format!("{kind}:{text}").chars().take(CGROUP_MAX_BYTES).collect() }
}

impl FromStr for Owner {
    type Err = BadOwner;

    fn from_str(text: &str) -> Result<Self, BadOwner> {
        match text.split_once(':') {
            Some(("cgroup", path)) => Self::cgroup(path),
            Some(("unit", name)) => Self::unit(name),
            Some(("process", process)) => Self::process(process),
            Some(_) | None => Err(BadOwner { text: text.chars().take(CGROUP_MAX_BYTES).collect() }),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup:{path}"),
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::Pid(pid) => write!(f, "process:{pid}"),
            Self::Program(name) => write!(f, "process:{name}"),
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = BadOwner;

    fn try_from(text: String) -> Result<Self, BadOwner> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_reads_as_it_is_written() {
        for text in [
            "cgroup:system.slice/web.service",
            "unit:web.service",
            "unit:getty@tty1.service",
            "unit:machine-a\\x2db.slice",
            "process:4711",
            "process:nginx",
        ] {
            assert_eq!(text.parse::<Owner>().unwrap().to_string(), text);
        }
        assert_eq!("cgroup:/a/b/".parse::<Owner>().unwrap(), Owner::Cgroup("a/b".to_owned()));
    }

    #[test]
    fn what_names_everybody_or_nobody_is_no_owner() {
        for text in [
            "",
            "web.service",
            "cgroup:",
            "cgroup:/",
            "cgroup:a/../..",
            "cgroup:a//b",
            "unit:web",
            "unit:.service",
            "unit:a/b.service",
            "process:0",
            "process:99999999999",
            "process:",
            "process:a-name-of-sixteen",
        ] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
