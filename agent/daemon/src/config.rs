//! The host's own policy, `agent.toml`: what the control plane may ask of this host at most. Whom the agent dials stands there too ([`Join`]).
//!
//! It belongs to whoever owns the host. Without the file nothing is allowed; a key that is not known, or a value that cannot be, is an error,
//! and nothing is allowed either.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use troop_agent_core::fault::Cidr;
use troop_policies::fault::{FaultSpec, in_words};

use crate::join::{Join, RawControlPlane, RawIdentity};

/// Where it lies unless said otherwise.
pub const DEFAULT_PATH: &str = "/etc/troop/agent.toml";
/// Longest file; ours has a page.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// Why the host's policy cannot be had. Then nothing is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is longer than {FILE_MAX_BYTES} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("`{}`: {what}", path.display())]
    Text { path: PathBuf, what: String },
}

impl ConfigError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "may the agent's user read it?",
            Self::TooLong { .. } | Self::Text { .. } => "docs/agent.md explains every key",
        }
    }
}

/// A kind of fault that a host may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Delay,
    Loss,
    /// Loss of everything.
    BlackHole,
    Duplicate,
    Corrupt,
    Reorder,
    Rate,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::BlackHole => "black_hole",
            Self::Duplicate => "duplicate",
            Self::Corrupt => "corrupt",
            Self::Reorder => "reorder",
            Self::Rate => "rate",
        }
    }

    /// The kinds that a fault is of.
    fn of(spec: &FaultSpec) -> BTreeSet<Self> {
        let all_lost = spec.loss.is_some_and(|loss| loss.ppm >= troop_policies::fault::ALL_PPM);
        let parts = [
            (spec.delay.is_some(), Self::Delay),
            ((spec.loss.is_some() && !all_lost) || spec.bursts.is_some(), Self::Loss),
            (all_lost, Self::BlackHole),
            (spec.duplicate.is_some(), Self::Duplicate),
            (spec.corrupt.is_some(), Self::Corrupt),
            (spec.reorder.is_some(), Self::Reorder),
            (spec.rate_bytes_per_second.is_some(), Self::Rate),
        ];
        parts.into_iter().filter_map(|(there, kind)| there.then_some(kind)).collect()
    }
}

/// What a host allows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostPolicy {
    pub faults: BTreeSet<Kind>,
    /// Longest delay with its jitter.
    pub delay_max: Duration,
    /// Greatest share of packets lost, duplicated, corrupted or reordered, in percent; a black hole is a kind of its own.
    pub share_max_percent: f64,
    /// Longest life of a fault.
    pub lasts_max: Duration,
    /// Peers that no fault here ever concerns.
    pub never: Vec<Cidr>,
    /// The only devices that faults are put on; empty: every device that is up, but the loopback.
    pub devices: Vec<String>,
    /// Whether planes may be used whose faults only the guardian takes down when the agent dies.
    pub allow_unbacked_undo: bool,
    /// A file whose presence halts this host.
    pub halt_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    faults: BTreeSet<Kind>,
    delay_max_ms: Option<u64>,
    share_max_percent: Option<f64>,
    lasts_max_s: Option<u64>,
    #[serde(default)]
    never: Vec<String>,
    #[serde(default)]
    devices: Vec<String>,
    #[serde(default)]
    allow_unbacked_undo: bool,
    halt_file: Option<PathBuf>,
    control_plane: Option<RawControlPlane>,
    identity: Option<RawIdentity>,
}

/// What is allowed of each kind where the file names it and no maximum.
const DELAY_MAX_MS: u64 = 1_000;
const SHARE_MAX_PERCENT: f64 = 10.0;
const LASTS_MAX_S: u64 = 3_600;

impl HostPolicy {
    /// Reads the file. `Ok` with nothing allowed where there is none.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_with_join(path).map(|(policy, _)| policy)
    }

    /// Reads the file, and what it says of whom to dial. `Ok` with nothing allowed, and nothing said, where there is none.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read_with_join(path: &Path) -> Result<(Self, Join), ConfigError> {
        let failed = |source| ConfigError::Read { path: path.into(), source };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
            Err(error) => return Err(failed(error)),
            Ok(found) if found.len() > FILE_MAX_BYTES => return Err(ConfigError::TooLong { path: path.into() }),
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse_with_join(&text).map_err(|what| ConfigError::Text { path: path.into(), what })
    }

    #[cfg(any(feature = "fuzzing", test))]
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with_join(text).map(|(policy, _)| policy)
    }

    fn parse_with_join(text: &str) -> Result<(Self, Join), String> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or_else(String::new, |span| format!("line {}: ", line(span.start)));
            format!("{at}{}", error.message())
        })?;
        if let Some((at, what)) = raw.control_plane.as_ref().and_then(RawControlPlane::mistake) {
            return Err(format!("line {}: {what}", line(at)));
        }
        let cidr = |text: &String| text.parse::<Cidr>().map_err(|e| format!("`never`: {e}"));
        let never: Result<Vec<Cidr>, String> = raw.never.iter().map(cidr).collect();
        let share = raw.share_max_percent.unwrap_or(SHARE_MAX_PERCENT);
        if !(0.0..=100.0).contains(&share) {
            return Err("`share_max_percent` is no percentage".to_owned());
        }
        let policy = Self {
            faults: raw.faults,
            delay_max: Duration::from_millis(raw.delay_max_ms.unwrap_or(DELAY_MAX_MS)),
            share_max_percent: share,
            lasts_max: Duration::from_secs(raw.lasts_max_s.unwrap_or(LASTS_MAX_S)),
            never: never?,
            devices: raw.devices,
            allow_unbacked_undo: raw.allow_unbacked_undo,
            halt_file: raw.halt_file,
        };
        Ok((policy, Join::of(raw.control_plane, raw.identity)))
    }

    /// Whether the host is halted by its own file. One that cannot be looked at halts too.
    pub fn is_halted(&self) -> bool {
        self.halt_file.as_ref().is_some_and(|path| !matches!(path.try_exists(), Ok(false)))
    }

    /// Whether a fault is within it.
    ///
    /// # Errors
    /// What is not, for people.
    pub fn check(&self, spec: &FaultSpec, peers: &[Cidr], life: Duration) -> Result<(), String> {
        let forbidden: Vec<&str> = Kind::of(spec).difference(&self.faults).map(|kind| kind.name()).collect();
        if !forbidden.is_empty() {
            return Err(format!("this host's agent.toml does not allow {}", forbidden.join(", ")));
        }
        if let Some(delay) = &spec.delay {
            let longest = Duration::from_micros(delay.longest_us());
            if longest > self.delay_max {
                let (asked, most) = (words(longest), words(self.delay_max));
                return Err(format!("a delay of {asked} is longer than this host's agent.toml allows, {most}"));
            }
        }
        let loss = spec.loss.filter(|loss| loss.ppm < troop_policies::fault::ALL_PPM);
        let shares = [loss, spec.duplicate, spec.corrupt].into_iter().flatten().map(|chance| chance.ppm);
        let bursts = spec.bursts.iter().flat_map(|burst| [burst.loss_when_bad_ppm, burst.loss_when_good_ppm]);
        for ppm in shares.chain(bursts).chain(spec.reorder.map(|reorder| reorder.ppm)) {
            if f64::from(ppm) / 1e4 > self.share_max_percent {
                let asked = troop_policies::fault::percent(ppm);
                let most = self.share_max_percent;
                return Err(format!("a share of {asked} is more than this host's agent.toml allows, {most} %"));
            }
        }
        if life > self.lasts_max {
            let (asked, most) = (words(life), words(self.lasts_max));
            return Err(format!("{asked} is longer than this host's agent.toml lets a fault live, {most}"));
        }
        self.spares(peers)
    }

    /// Whether none of these peers is one that no fault here concerns.
    ///
    /// # Errors
    /// The first that is, for people.
    pub fn spares(&self, peers: &[Cidr]) -> Result<(), String> {
        let hit = peers.iter().find(|peer| self.never.iter().any(|never| overlap(peer, never)));
        match hit {
            Some(peer) => Err(format!("this host's agent.toml keeps faults away from `{peer}`")),
            // Everything would be among them.
            None if peers.is_empty() && !self.never.is_empty() => {
                Err("this host's agent.toml keeps faults away from some peers, so `everything` is not allowed"
                    .to_owned())
            }
            None => Ok(()),
        }
    }

    /// In a few words, for `troop agents`.
    pub fn in_words(&self) -> String {
        if self.faults.is_empty() {
            return "nothing".to_owned();
        }
        let kinds: Vec<&str> = self.faults.iter().map(|kind| kind.name()).collect();
        format!("{} up to {} for {}", kinds.join(", "), words(self.delay_max), words(self.lasts_max))
    }
}

fn words(time: Duration) -> String {
    in_words(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn overlap(one: &Cidr, other: &Cidr) -> bool {
    one.contains(other.first()) || other.contains(one.first())
}

#[cfg(test)]
mod tests {
    use troop_policies::fault::ChanceSpec;

    use super::*;

    const DELAYS: &str = "faults = ['delay', 'loss']\ndelay_max_ms = 300\nlasts_max_s = 60\nnever = ['10.9.0.0/16']\n";

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn delay(ms: u64) -> FaultSpec {
        FaultSpec::delay(Duration::from_millis(ms), vec!["app:a".parse().unwrap()])
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn without_a_file_nothing_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let none = HostPolicy::read(&dir.path().join("agent.toml")).unwrap();
        assert_eq!(none.in_words(), "nothing");
        let why = none.check(&delay(1), &cidrs(&["10.0.0.1"]), MINUTE).unwrap_err();
        assert_eq!(why, "this host's agent.toml does not allow delay");
    }

    #[test]
    fn the_control_plane_cannot_exceed_it() {
        let policy = HostPolicy::parse(DELAYS).unwrap();
        let peers = cidrs(&["10.0.0.1"]);
        assert_eq!(policy.check(&delay(300), &peers, MINUTE), Ok(()));
        let lossy = |ppm| FaultSpec { loss: Some(ChanceSpec { ppm, correlation_ppm: 0 }), ..delay(1) };
        assert_eq!(policy.check(&lossy(100_000), &peers, MINUTE), Ok(()));
        let rows = [
            (delay(301), &peers, MINUTE, "a delay of 301 ms is longer"),
            (delay(1), &peers, MINUTE + Duration::from_secs(1), "61 s is longer"),
            (lossy(100_001), &peers, MINUTE, "a share of 10.0001 %"),
            (lossy(1_000_000), &peers, MINUTE, "does not allow black_hole"),
            (FaultSpec { rate_bytes_per_second: Some(5_000), ..delay(1) }, &peers, MINUTE, "does not allow rate"),
            (delay(1), &cidrs(&["10.0.0.0/8"]), MINUTE, "keeps faults away from `10.0.0.0/8`"),
            (delay(1), &cidrs(&["10.9.3.4"]), MINUTE, "keeps faults away from `10.9.3.4"),
            (delay(1), &Vec::new(), MINUTE, "`everything` is not allowed"),
        ];
        for (spec, peers, life, expected) in rows {
            let why = policy.check(&spec, peers, life).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn the_packages_file_allows_nothing_and_what_it_shows_is_right_when_it_is_taken_in() {
        let text = include_str!("../../../packaging/troop-agent/files/etc/troop/agent.toml");
        assert_eq!(HostPolicy::parse_with_join(text).unwrap().1, Join::default());
        assert_eq!(HostPolicy::parse(text).unwrap().in_words(), "nothing");
        let is_key = |line: &str| {
            line.starts_with('[') || line.split_once('=').is_some_and(|(key, _)| !key.trim().contains(' '))
        };
        let taken_in: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| is_key(line)).collect();
        let (policy, join) = HostPolicy::parse_with_join(&taken_in.join("\n")).unwrap();
        assert_eq!(policy.in_words(), "nothing");
        assert_eq!((join.account.as_deref(), join.identity.is_some()), (Some("prod"), true));
    }

    #[test]
    fn what_is_not_understood_is_an_error_with_its_line() {
        let rows = [
            ("faults = ['delay']\ndelay_max = 3", "line 2: unknown field `delay_max`"),
            ("faults = ['explode']", "line 1: unknown variant `explode`"),
            ("faults = 'delay'", "line 1: invalid type"),
            ("never = ['10.0.0.1/8']", "`never`"),
            ("share_max_percent = 101.0", "no percentage"),
            ("allow_unbacked_undo = 'yes'", "line 1: invalid type"),
            ("[control_plane]\ntoken = 'ab'", "line 2: unknown field `token`"),
            (
                "[control_plane]\ntoken_file = '/etc/troop/token'\ntoken_ssm = '/troop/join'",
                "line 3: `token_ssm` and `token_file` both",
            ),
            ("[control_plane]\ntoken_ssm = '/troop join'", "line 2: `token_ssm`: `/troop join` is no name"),
            ("[control_plane]\ntoken_ssm = ''", "line 2: `token_ssm`: `` is no name"),
            ("[identity]\nkind = 'moon'", "line 2: unknown variant `moon`"),
            ("[identity]\nendpoint = 'http://127.0.0.1:1'", "missing field `kind`"),
        ];
        for (text, expected) in rows {
            let what = HostPolicy::parse(text).unwrap_err();
            assert!(what.contains(expected), "{what}");
        }
    }

    #[test]
    fn a_halt_file_that_is_there_or_cannot_be_looked_at_halts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("halt");
        let policy = HostPolicy { halt_file: Some(file.clone()), ..HostPolicy::default() };
        assert!(!policy.is_halted());
        std::fs::write(&file, "").unwrap();
        assert!(policy.is_halted());
        // A file where a folder should be: it cannot be looked at.
        assert!(HostPolicy { halt_file: Some(file.join("below")), ..HostPolicy::default() }.is_halted());
    }
}
