//! The policies directory, read again whenever it changed. A file that is bad, or turns bad, spares its team from that
//! moment; the last good text does not stay armed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use troop_policies::TeamName;
use troop_policies::file::{self, Diagnostic};
use troop_policies::policy::Policy;
use troop_scheduler::calendar::Calendar;

use crate::policy_text;

/// Most policy files in one directory: ten times the teams of a large company.
const FILES_MAX: usize = 2_000;

/// One file as it is now.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub file: String,
    /// Known where the file could be parsed that far.
    pub team: Option<TeamName>,
    /// The policy with its calendar, or why the team is spared. Operators read it.
    pub result: Result<Arc<TeamPolicy>, String>,
    /// What was read: the file itself and the calendars that it names, so that a change of either is noticed.
    texts: BTreeMap<PathBuf, String>,
}

impl Loaded {
    /// Whether it was made from the same bytes.
    pub fn same_text(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

/// A policy that parsed, with the calendar built from it.
#[derive(Debug)]
pub struct TeamPolicy {
    pub policy: Policy,
    pub calendar: Calendar,
}

/// Everything that was found at one moment.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    pub files: Vec<Loaded>,
    /// Why the directory itself could not be read.
    pub problem: Option<String>,
}

impl Policies {
    pub fn good(&self) -> impl Iterator<Item = &Arc<TeamPolicy>> {
        self.files.iter().filter_map(|f| f.result.as_ref().ok())
    }

    pub fn team(&self, team: &TeamName) -> Option<&Arc<TeamPolicy>> {
        self.good().find(|p| p.policy.team == *team)
    }

    /// Whether nothing differs, so that changes can be noticed without comparing calendars.
    pub fn same_as(&self, other: &Self) -> bool {
        let key = |p: &Self| {
            let files = p.files.iter().map(|f| (f.file.clone(), f.texts.clone(), f.result.as_ref().err().cloned()));
            (p.problem.clone(), files.collect::<Vec<_>>())
        };
        key(self) == key(other)
    }
}

/// Reads the directory. Never fails: what cannot be read is in the result and spares.
pub fn load(directory: &Path) -> Policies {
    let read_one = |path: &Path| policy_text::read(directory, path).map_err(|why| why.to_string());
    let paths = match list(directory) {
        Ok(paths) => paths,
        Err(e) => {
            let problem = Some(format!("the policies directory {} cannot be read: {e}", directory.display()));
            return Policies { files: Vec::new(), problem };
        }
    };
    together(directory, paths, &read_one)
}

/// Policies from texts by file name, as [`load`] makes them of files: for whoever has no directory, and no calendars.
pub fn from_texts(texts: &BTreeMap<String, String>) -> Policies {
    let read_one = |path: &Path| {
        let name = path.to_string_lossy();
        texts.get(name.as_ref()).map(|text| text.clone().into_bytes()).ok_or_else(|| format!("{name} is not there"))
    };
    let paths = texts.keys().map(PathBuf::from).filter(|path| path.extension().is_some_and(|e| e == "toml"));
    together(Path::new(""), paths.collect(), &read_one)
}

/// Reads one file, or says why it cannot be read.
type ReadOne<'a> = &'a dyn Fn(&Path) -> Result<Vec<u8>, String>;

fn together(directory: &Path, paths: Vec<PathBuf>, read_one: ReadOne<'_>) -> Policies {
    let mut files: Vec<Loading> = paths.into_iter().map(|path| read(&path, read_one)).collect();
    // Two files claiming one app, or one team, are refused for what both claim; a team that also has a bad file is spared.
    let (at, mut good): (Vec<usize>, Vec<Policy>) = files
        .iter_mut()
        .enumerate()
        .filter_map(|(at, loading)| loading.policy.as_ref().ok().map(|policy| (at, policy.clone())))
        .unzip();
    file::conflicts(&mut good);
    for bad in files.iter().filter(|loading| loading.policy.is_err()) {
        if let Some(team) = &bad.team {
            file::spare_team(&mut good, team, &bad.file);
        }
    }
    for (at, policy) in at.into_iter().zip(good) {
        files[at].policy = Ok(policy);
    }
    Policies { files: files.into_iter().map(|loading| with_calendar(directory, loading)).collect(), problem: None }
}

/// A file on its way to [`Loaded`].
struct Loading {
    file: String,
    team: Option<TeamName>,
    policy: Result<Policy, String>,
    texts: BTreeMap<PathBuf, String>,
}

fn read(path: &Path, read_one: ReadOne<'_>) -> Loading {
    let file = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let bytes = match read_one(path) {
        Ok(bytes) => bytes,
        Err(why) => return Loading { file, team: None, policy: Err(why), texts: BTreeMap::new() },
    };
    // Of a file that is not text all through, whose it is may still be readable: whom to spare.
    let lossy = String::from_utf8_lossy(&bytes).into_owned();
    let parsed = file::text_of(&file, &bytes).and_then(|text| file::parse_policy(&file, text));
    let policy = parsed.map(|(policy, _warnings)| policy).map_err(|found| in_words(&found));
    Loading { file, team: file::team_of(&lossy), policy, texts: BTreeMap::from([(path.to_owned(), lossy)]) }
}

/// Diagnostics in one line; `troop policy check` shows them with their place in the text.
fn in_words(found: &[Diagnostic]) -> String {
    let line = |d: &Diagnostic| {
        let hint = d.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("{}:{}:{}: {}{hint}", d.file, d.line, d.column, d.message)
    };
    let errors = found.iter().filter(|d| d.severity == file::Severity::Error);
    errors.map(line).collect::<Vec<_>>().join("; ")
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            return Err(io::Error::other(format!("it holds more than {FILES_MAX} policy files")));
        }
    }
    paths.sort();
    Ok(paths)
}

fn with_calendar(directory: &Path, loading: Loading) -> Loaded {
    let Loading { file, team, policy, mut texts } = loading;
    let result = policy.and_then(|policy| {
        let mut ics = BTreeMap::new();
        for file in &policy.holidays.files {
            let text = policy_text::calendar(directory, file).map_err(|why| why.to_string())?;
            texts.insert(directory.join(file), text.clone());
            ics.insert(file.clone(), text);
        }
        let calendar = Calendar::new(&policy, &ics).map_err(|e| policy_text::unusable(&e).to_string())?;
        Ok(Arc::new(TeamPolicy { policy, calendar }))
    });
    Loaded { file, team, result, texts }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/examples/minimal.toml");

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_bad_file_spares_its_team_and_no_other() {
        let other = GOOD.replace("search", "mail");
        let folder = folder(&[("a.toml", GOOD), ("b.toml", &other), ("c.toml", "team = \"search\"\nformat = 2\n")]);
        let policies = load(folder.path());
        assert_eq!(policies.problem, None);
        let apps = |team: &str| {
            policies.team(&team.parse().unwrap()).unwrap().policy.apps.values().cloned().collect::<Vec<_>>()
        };
        assert!(apps("search").iter().all(|app| app.refused.as_ref().is_some_and(|why| why.contains("c.toml"))));
        assert!(apps("mail").iter().all(|app| app.refused.is_none()));
        let bad = &policies.files[2];
        assert_eq!(bad.team.as_ref().map(TeamName::as_str), Some("search"));
        assert!(bad.result.as_ref().unwrap_err().starts_with("c.toml:"), "{:?}", bad.result);
    }

    #[test]
    fn a_file_that_is_not_text_all_through_spares_its_team_too() {
        let folder = folder(&[("a.toml", GOOD)]);
        fs::write(folder.path().join("b.toml"), b"team = \"search\"\nowner = \"caf\xe9\"\n").unwrap();
        let policies = load(folder.path());
        let bad = &policies.files[1];
        assert_eq!(bad.team.as_ref().map(TeamName::as_str), Some("search"));
        assert!(bad.result.as_ref().unwrap_err().starts_with("b.toml:2:13: from here on"), "{:?}", bad.result);
        let good = policies.good().next().unwrap();
        assert!(good.policy.apps.values().all(|app| app.refused.as_ref().is_some_and(|why| why.contains("b.toml"))));
    }

    #[test]
    fn a_directory_that_vanishes_opts_nothing_in_any_more() {
        let folder = folder(&[("a.toml", GOOD)]);
        let policies = folder.path().join("policies");
        fs::create_dir(&policies).unwrap();
        fs::rename(folder.path().join("a.toml"), policies.join("a.toml")).unwrap();
        let before = load(&policies);
        assert_eq!(before.good().count(), 1);
        fs::rename(&policies, folder.path().join("elsewhere")).unwrap();
        let after = load(&policies);
        assert!(!after.same_as(&before) && after.good().next().is_none());
        assert!(after.problem.is_some_and(|why| why.contains("cannot be read")));
    }

    #[test]
    fn an_app_that_two_files_claim_is_refused_in_both() {
        let folder =
            folder(&[("a.toml", GOOD), ("b.toml", &GOOD.replace("team     = \"search\"", "team     = \"mail\""))]);
        let policies = load(folder.path());
        let refused = policies.good().flat_map(|p| p.policy.apps.values()).filter(|app| app.refused.is_some()).count();
        assert_eq!((policies.good().count(), refused), (2, 2));
    }

    #[test]
    fn a_changed_holiday_calendar_is_a_change() {
        let ics = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n";
        let policy = GOOD.to_owned() + "\n[holidays]\nfiles = [\"days.ics\"]\n";
        let folder = folder(&[("a.toml", &policy), ("days.ics", ics)]);
        let before = load(folder.path());
        assert!(before.same_as(&load(folder.path())));
        fs::write(folder.path().join("days.ics"), ics.replace("PRODID:x", "PRODID:y")).unwrap();
        assert!(!before.same_as(&load(folder.path())));
    }

    #[test]
    fn what_lies_outside_or_is_missing_is_said() {
        let elsewhere = folder(&[("a.toml", GOOD)]);
        let folder = folder(&[]);
        std::os::unix::fs::symlink(elsewhere.path().join("a.toml"), folder.path().join("link.toml")).unwrap();
        let why = load(folder.path()).files[0].result.as_ref().unwrap_err().clone();
        assert!(why.contains("leads out of the policies directory"), "{why}");
        assert!(load(&folder.path().join("nowhere")).problem.unwrap().contains("cannot be read"));
    }
}
