//! What the cloud process keeps on disk: its groups (STATE/cloud/state.json) and its client tokens
//! (STATE/cloud/tokens, one file each).
//!
//! A token is on disk before its effect and its result after, so that an intent takes effect at most once over any
//! crash. Tokens are kept for a day. What was forgotten is remembered by its newest date, so that an old intent is never
//! taken for one that did not come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use troop_policies::intent::{Intent, Outcome};
use troop_policies::step::{Size, Step};
use troop_policies::{ClusterName, GroupName, ImageId, IntentId, ZoneName};

/// Raised when a later build could not read what this one writes.
const SCHEMA: u32 = 1;
/// How long tokens are kept: longer than any push or kill is open, and a person's night.
const TOKEN_KEPT_MS: i64 = 24 * 3600 * 1000;
/// What was pruned from the tokens.
const FORGOTTEN: &str = "forgotten.json";

/// Why what is on disk cannot be used. Nothing is started then: groups begun from half a file would be an outage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("could not {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` cannot be read: {why}; restore it, or remove it and what it held is forgotten")]
    Unreadable { path: PathBuf, why: String },
    #[error("`{path}` was written by another build (schema {schema}, this one reads {SCHEMA})")]
    Schema { path: PathBuf, schema: u32 },
}

/// A group as it is saved: all but its instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedGroup {
    pub(crate) created_at: Timestamp,
    pub(crate) image: ImageId,
    pub(crate) zones: BTreeSet<ZoneName>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) has_targets: bool,
    pub(crate) size: Size,
    pub(crate) enabled: bool,
    pub(crate) in_rotation: bool,
    /// Its instances are being ended; it is removed with the last one.
    pub(crate) destroying: bool,
    pub(crate) last_failed_launch: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    schema: u32,
    pub(crate) default_cluster: Option<ClusterName>,
    pub(crate) groups: BTreeMap<GroupName, SavedGroup>,
}

impl Saved {
    pub(crate) fn new(default_cluster: Option<ClusterName>, groups: BTreeMap<GroupName, SavedGroup>) -> Self {
        Self { schema: SCHEMA, default_cluster, groups }
    }

    /// An empty cloud where there is no file yet.
    pub(crate) fn load(path: &Path) -> Result<Self, StateError> {
        let Some(saved) = read::<Self>(path)? else { return Ok(Self::new(None, BTreeMap::new())) };
        if saved.schema != SCHEMA {
            return Err(StateError::Schema { path: path.to_owned(), schema: saved.schema });
        }
        Ok(saved)
    }

    pub(crate) fn store(&self, path: &Path) -> io::Result<()> {
        write_whole(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// One intent as this cloud has seen it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Token {
    step: Step,
    /// On the intent's calendar, which may be another than ours.
    intent_at: Timestamp,
    begun_at: Timestamp,
    /// Absent while it is carried out, and for ever when we died meanwhile.
    result: Option<Outcome>,
}

/// What is known of an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Never,
    Begun,
    Settled(Outcome),
    /// Its id was another step's.
    OtherStep,
    /// It is as old as tokens that were pruned: it may have been among them.
    MaybeForgotten,
}

#[derive(Debug)]
pub(crate) struct Tokens {
    folder: PathBuf,
    known: BTreeMap<IntentId, Token>,
    /// The newest date of an intent whose token was pruned.
    forgotten: Option<Timestamp>,
}

impl Tokens {
    pub(crate) fn load(folder: &Path) -> Result<Self, StateError> {
        let io = |what: &'static str| move |source| StateError::Io { what, path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(io("make"))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(io("read"))? {
            let path = entry.map_err(io("read"))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == FORGOTTEN {
                continue;
            }
            if let Some(id) = name.strip_suffix(".json").and_then(|id| IntentId::new(id).ok())
                && let Some(token) = read(&path)?
            {
                known.insert(id, token);
            } else {
                // Half-written: the rename never came, so nothing was begun because of it.
                fs::remove_file(&path).map_err(io("clean"))?;
            }
        }
        Ok(Self { folder: folder.to_owned(), known, forgotten: read(&folder.join(FORGOTTEN))? })
    }

    pub(crate) fn look(&self, intent: &Intent) -> Seen {
        match self.known.get(&intent.id) {
            Some(token) if token.step != intent.step => Seen::OtherStep,
            Some(Token { result: Some(outcome), .. }) => Seen::Settled(outcome.clone()),
            Some(Token { result: None, .. }) => Seen::Begun,
            None if self.forgotten.is_some_and(|forgotten| intent.at <= forgotten) => Seen::MaybeForgotten,
            None => Seen::Never,
        }
    }

    /// Puts the token on disk. Only after this may anything be done for the intent.
    pub(crate) fn begin(&mut self, intent: &Intent, now: Timestamp) -> io::Result<()> {
        self.put(intent, now, None)
    }

    /// Notes that an intent that never came is refused from now on.
    pub(crate) fn bury(&mut self, intent: &Intent, now: Timestamp, refused: Outcome) -> io::Result<()> {
        self.put(intent, now, Some(refused))
    }

    fn put(&mut self, intent: &Intent, now: Timestamp, result: Option<Outcome>) -> io::Result<()> {
        let token = Token { step: intent.step.clone(), intent_at: intent.at, begun_at: now, result };
        self.write(&intent.id, &token)?;
        self.known.insert(intent.id.clone(), token);
        Ok(())
    }

    /// Notes what became of an intent. Answers even when the disk refuses it: after a restart it would be unknown.
    pub(crate) fn settle(&mut self, id: &IntentId, outcome: Outcome) -> io::Result<()> {
        let Some(token) = self.known.get_mut(id) else { return Ok(()) };
        token.result = Some(outcome);
        let token = token.clone();
        self.write(id, &token)
    }

    /// Forgets what is older than a day, but for the newest date among it.
    pub(crate) fn prune(&mut self, now: Timestamp) -> io::Result<()> {
        let is_old = |token: &Token| now.as_millisecond() - token.begun_at.as_millisecond() > TOKEN_KEPT_MS;
        let old: Vec<(IntentId, Timestamp)> =
            self.known.iter().filter(|(_, t)| is_old(t)).map(|(id, t)| (id.clone(), t.intent_at)).collect();
        let Some(newest) = old.iter().map(|(_, at)| *at).max() else { return Ok(()) };
        let forgotten = self.forgotten.map_or(newest, |before| before.max(newest));
        // First the date, then the tokens: the other way round a crash would forget that anything was forgotten.
        write_whole(&self.folder.join(FORGOTTEN), &serde_json::to_vec(&forgotten)?)?;
        self.forgotten = Some(forgotten);
        for (id, _) in old {
            fs::remove_file(self.path(&id))?;
            self.known.remove(&id);
        }
        Ok(())
    }

    fn write(&self, id: &IntentId, token: &Token) -> io::Result<()> {
        write_whole(&self.path(id), &serde_json::to_vec(token)?)
    }

    fn path(&self, id: &IntentId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }
}

/// `None` where there is no file.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { what: "read", path: path.to_owned(), source }),
    };
    let unreadable = |e: serde_json::Error| StateError::Unreadable { path: path.to_owned(), why: e.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(unreadable)
}

/// Writes a file whole or not at all, and has it on disk when it returns.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push("~");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use troop_policies::intent::Cause;
    use troop_policies::{AccountName, RegionName};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn intent(id: &str, when: &str) -> Intent {
        Intent {
            id: IntentId::new(id).unwrap(),
            account: AccountName::new("local").unwrap(),
            region: RegionName::new("r1").unwrap(),
            step: Step::Enable { group: GroupName::new("hello-web-v000").unwrap() },
            cause: Cause::Upkeep { reason: "test".into() },
            at: at(when),
        }
    }

    const MONDAY: &str = "2026-11-23T10:00:00Z";
    const TUESDAY: &str = "2026-11-24T11:00:00Z";

    #[test]
    fn a_token_says_after_a_restart_what_it_said_before() {
        let dir = tempfile::tempdir().unwrap();
        let (open, done) = (intent("0a", MONDAY), intent("0b", MONDAY));
        let mut tokens = Tokens::load(dir.path()).unwrap();
        assert_eq!(tokens.look(&open), Seen::Never);
        tokens.begin(&open, at(MONDAY)).unwrap();
        tokens.begin(&done, at(MONDAY)).unwrap();
        tokens.settle(&done.id, Outcome::done("enabled")).unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        assert_eq!(tokens.look(&open), Seen::Begun);
        assert_eq!(tokens.look(&done), Seen::Settled(Outcome::done("enabled")));
        assert_eq!(tokens.look(&intent("0c", MONDAY)), Seen::Never);
        let other = Intent { step: Step::Destroy { group: GroupName::new("x").unwrap() }, ..done };
        assert_eq!(tokens.look(&other), Seen::OtherStep);
    }

    #[test]
    fn an_intent_as_old_as_a_forgotten_one_is_never_taken_for_new() {
        let dir = tempfile::tempdir().unwrap();
        let old = intent("0a", MONDAY);
        let mut tokens = Tokens::load(dir.path()).unwrap();
        tokens.begin(&old, at(MONDAY)).unwrap();
        tokens.prune(at("2026-11-24T09:59:00Z")).unwrap();
        assert_eq!(tokens.look(&old), Seen::Begun, "kept for 24 h");
        tokens.prune(at(TUESDAY)).unwrap();
        for tokens in [tokens, Tokens::load(dir.path()).unwrap()] {
            assert_eq!(tokens.look(&old), Seen::MaybeForgotten);
            assert_eq!(tokens.look(&intent("0b", TUESDAY)), Seen::Never);
        }
        assert!(!dir.path().join("0a.json").exists());
    }

    #[test]
    fn a_clock_that_stepped_back_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut tokens = Tokens::load(dir.path()).unwrap();
        tokens.begin(&intent("0a", MONDAY), at(TUESDAY)).unwrap();
        tokens.prune(at(MONDAY)).unwrap();
        assert_eq!(tokens.look(&intent("0a", MONDAY)), Seen::Begun);
    }

    #[test]
    fn a_half_written_token_was_never_begun_and_a_broken_one_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0a.json~"), "{").unwrap();
        let tokens = Tokens::load(dir.path()).unwrap();
        assert_eq!(tokens.look(&intent("0a", MONDAY)), Seen::Never);
        assert!(!dir.path().join("0a.json~").exists());
        fs::write(dir.path().join("0b.json"), "{").unwrap();
        assert!(Tokens::load(dir.path()).unwrap_err().to_string().contains("0b.json"));
    }

    #[test]
    fn a_state_that_cannot_be_read_is_an_error_and_no_empty_cloud() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        assert!(Saved::load(&path).unwrap().groups.is_empty());
        let saved = Saved::new(Some(ClusterName::new("hello-web").unwrap()), BTreeMap::new());
        saved.store(&path).unwrap();
        assert_eq!(Saved::load(&path).unwrap(), saved);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
        assert!(Saved::load(&path).unwrap_err().to_string().contains("another build"));
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(Saved::load(&path).unwrap_err().to_string().contains("cannot be read"));
    }
}
