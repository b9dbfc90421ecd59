//! Policy files given on the command line: read, parsed, and shown with every mistake.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use troop_policies::TeamName;
use troop_policies::file::{self, Diagnostic};
use troop_policies::policy::Policy;
use troop_scheduler::calendar::Calendar;

use crate::exit::{CliError, Code};
use crate::policy_text::{self, Unreadable};
use crate::ui;

/// One file.
#[derive(Debug)]
pub(super) struct PolicyFile {
    /// As it was given: `policies/shop.toml`.
    pub(super) name: String,
    /// Known where the file could be understood that far.
    pub(super) team: Option<TeamName>,
    pub(super) text: String,
    pub(super) result: Result<(Policy, Calendar), Bad>,
    pub(super) warnings: Vec<Diagnostic>,
}

/// Why a file does not count.
#[derive(Debug)]
pub(super) enum Bad {
    /// The file could not be read.
    Unreadable(Unreadable),
    Mistakes(Vec<Diagnostic>),
    /// The file is right, and a calendar it names is not.
    Calendar(Unreadable),
}

/// Reads a file, or every `*.toml` of a folder.
///
/// # Errors
/// When there is nothing to read. What is wrong inside a file is in its result.
pub(super) fn read(path: &Path) -> Result<Vec<PolicyFile>, CliError> {
    let shown = path.display();
    let meta = fs::metadata(path).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            return CliError::new(Code::Input, format!("there is no file or folder `{shown}`"))
                .hint("`troop policy init --team T > T.toml` writes a policy to begin with");
        }
        CliError::new(Code::Input, format!("could not read `{shown}`: {e}"))
    })?;
    if !meta.is_dir() {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return Ok(vec![read_one(folder, path)]);
    }
    is_no_source_code(path)?;
    let entries = fs::read_dir(path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| CliError::new(Code::Input, format!("could not read `{shown}`: {e}")))?;
    let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    if paths.is_empty() {
        return Err(CliError::new(Code::Input, format!("there is no policy (*.toml) in `{shown}`")).hint(format!(
            "`troop policy init --team T > {}/T.toml` writes one",
            shown.to_string().trim_end_matches('/')
        )));
    }
    Ok(paths.iter().map(|file| read_one(path, file)).collect())
}

/// A checkout of Troop has a folder `policies`, which is a crate: the first thing a newcomer would name by mistake.
pub(super) fn is_no_source_code(folder: &Path) -> Result<(), CliError> {
    if !folder.join("Cargo.toml").exists() {
        return Ok(());
    }
    let what = format!("`{}` is a folder of source code, not of policies", folder.display());
    Err(CliError::new(Code::Input, what).hint("name another folder; `policies/examples` holds some to look at"))
}

fn read_one(folder: &Path, path: &Path) -> PolicyFile {
    let name = path.display().to_string();
    let mut file = PolicyFile {
        name,
        team: None,
        text: String::new(),
        result: Err(Bad::Mistakes(Vec::new())),
        warnings: Vec::new(),
    };
    let bytes = match policy_text::read(folder, path) {
        Ok(bytes) => bytes,
        Err(unreadable) => return PolicyFile { result: Err(Bad::Unreadable(unreadable)), ..file },
    };
    file.text = String::from_utf8_lossy(&bytes).into_owned();
    file.team = file::team_of(&file.text);
    let parsed = file::text_of(&file.name, &bytes).and_then(|text| file::parse_policy(&file.name, text));
    match parsed {
        Err(mistakes) => file.result = Err(Bad::Mistakes(mistakes)),
        Ok((policy, warnings)) => {
            file.warnings = warnings;
            file.result = match calendar(folder, &policy) {
                Ok(calendar) => Ok((policy, calendar)),
                Err(why) => Err(Bad::Calendar(why)),
            };
        }
    }
    file
}

fn calendar(folder: &Path, policy: &Policy) -> Result<Calendar, Unreadable> {
    let mut texts = BTreeMap::new();
    for file in &policy.holidays.files {
        texts.insert(file.clone(), policy_text::calendar(folder, file)?);
    }
    Calendar::new(policy, &texts).map_err(|e| policy_text::unusable(&e))
}

impl PolicyFile {
    pub(super) fn is_bad(&self) -> bool {
        self.result.is_err()
    }

    /// Every mistake or warning as a person is shown it.
    pub(super) fn shown(&self) -> Vec<String> {
        match &self.result {
            Ok(_) => self.warnings.iter().map(|d| d.render(&self.text)).collect(),
            Err(Bad::Mistakes(mistakes)) => mistakes.iter().map(|d| d.render(&self.text)).collect(),
            Err(Bad::Unreadable(Unreadable { why, hint }) | Bad::Calendar(Unreadable { why, hint })) => {
                vec![format!("error: {why}\n --> {}\n  = help: {hint}", self.name)]
            }
        }
    }

    /// The mistakes, or the warnings of a file that is right; none of a file that could not be read.
    pub(super) fn diagnostics(&self) -> &[Diagnostic] {
        match &self.result {
            Ok(_) => &self.warnings,
            Err(Bad::Mistakes(mistakes)) => mistakes,
            Err(Bad::Unreadable(_) | Bad::Calendar(_)) => &[],
        }
    }

    /// Why it does not count, where no diagnostic says so.
    pub(super) fn problem(&self) -> Option<&str> {
        match &self.result {
            Ok(_) | Err(Bad::Mistakes(_)) => None,
            Err(Bad::Unreadable(unreadable) | Bad::Calendar(unreadable)) => Some(&unreadable.why),
        }
    }
}

/// Tells what is wrong with each file, on stderr, and returns how many are bad.
pub(super) fn tell(files: &[PolicyFile]) -> usize {
    for file in files {
        // A blank line between two, as compilers do: each has several lines.
        file.shown().iter().for_each(|text| ui::note(&format!("{text}\n")));
    }
    files.iter().filter(|f| f.is_bad()).count()
}

/// The error that ends a command over bad files: whom they spare.
pub(super) fn bad(files: &[PolicyFile]) -> CliError {
    let bad: Vec<_> = files.iter().filter(|f| f.is_bad()).collect();
    let whom = |f: &&PolicyFile| {
        f.team.as_ref().map_or_else(|| "a team that cannot be read".to_owned(), |t| format!("team `{t}`"))
    };
    let mut teams: Vec<_> = bad.iter().map(whom).collect();
    teams.dedup();
    let names: Vec<_> = bad.iter().map(|f| f.name.as_str()).collect();
    let verb = if bad.len() == 1 { "does" } else { "do" };
    let spared = if teams.len() == 1 { "is spared as a whole" } else { "are spared as a whole" };
    CliError::new(Code::Input, format!("{} {verb} not count: {} {spared}", names.join(" and "), teams.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/examples/minimal.toml");

    #[test]
    fn a_folder_is_read_file_by_file_and_a_bad_file_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("good.toml"), GOOD).unwrap();
        fs::write(dir.path().join("bad.toml"), "format = 1\nteam = \"shop\"\nwindow = 3\n").unwrap();
        fs::write(dir.path().join("notes.txt"), "no policy").unwrap();
        let files = read(dir.path()).unwrap();
        assert_eq!(files.iter().map(PolicyFile::is_bad).collect::<Vec<_>>(), [true, false]);
        let error = bad(&files);
        assert_eq!(error.code, Code::Input);
        assert!(error.what.ends_with("bad.toml does not count: team `shop` is spared as a whole"), "{error}");
        assert!(files[0].shown().iter().any(|d| d.contains("window")), "{:?}", files[0].shown());
    }

    #[test]
    fn nothing_to_read_is_an_error_that_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("none.toml")] {
            let error = read(&path).unwrap_err();
            assert!(error.hint.unwrap().contains("troop policy init"));
        }
    }

    #[test]
    fn a_calendar_that_is_missing_is_a_mistake_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        fs::write(&path, format!("{GOOD}\n[holidays]\nfiles = [\"none.ics\"]\n")).unwrap();
        let files = read(&path).unwrap();
        assert!(files[0].problem().unwrap().contains("none.ics"));
    }
}
