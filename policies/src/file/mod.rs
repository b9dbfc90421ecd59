//! The policy file and the site file: from text to checked values, or to every mistake of the file at once.
//!
//! A file passes four steps: TOML with all its syntax errors; a check of the tree against the JSON Schema that the raw types
//! give (unknown keys, types, bounds), which takes out what is wrong; the raw types; and the values, with what they
//! must be to one another. Any error makes the whole file not count: a typo never arms anything.
//!
//! **Invariant:** text in, values out. No file is opened here and no clock is read, and no input makes it panic.

mod app;
mod channels;
mod conflicts;
mod cron;
mod diagnostic;
#[cfg(any(feature = "fuzzing", test))]
pub(crate) mod fuzz;
mod monkeys;
mod policy;
mod raw;
mod raw_site;
mod scalar;
mod schema;
mod site;
mod syntax;
mod template;
mod tree;

#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

pub use channels::unknown_channels;
pub use conflicts::{conflicts, spare_team};
pub use diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Severity};
pub use template::template;
pub use tree::nearest;

use crate::ids::TeamName;
use crate::policy::{Policy, Site};
use diagnostic::Findings;

/// Largest file taken. The longest policy that a person keeps by hand is a few kilobytes; a megabyte is another file.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The holiday calendars that a policy may name. The scheduler computes exactly these.
pub const KNOWN_CALENDARS: [&str; 4] = ["us-federal", "england-wales", "de-federal", "fr"];

const OUR_BUG: &str = "this is a bug of Troop: please report it, with the file";

/// Reads a team's policy file. `name` is the file's path as it shall be shown.
///
/// Returns the policy and the warnings: what the file says and this build cannot do yet, or what has no effect.
///
/// # Errors
/// Every mistake in the file, in its order. The file then does not count at all: its team is spared.
pub fn parse_policy(name: &str, text: &str) -> Result<(Policy, Vec<Diagnostic>), Vec<Diagnostic>> {
    parse(name, text, schema::policy(), |raw, written, out| policy::policy(&raw, written, out))
}

/// Reads the site file `troop.toml`. `name` is the file's path as it shall be shown.
///
/// Paths in it are kept as written; they are relative to the file.
///
/// # Errors
/// Every mistake in the file, in its order. Nothing may start on such a file.
pub fn parse_site(name: &str, text: &str) -> Result<(Site, Vec<Diagnostic>), Vec<Diagnostic>> {
    parse(name, text, schema::site(), |raw, written, out| site::site(&raw, written, out))
}

/// The text of a file, for the two functions above.
///
/// # Errors
/// One diagnostic, where the bytes stop being UTF-8 or are too many. Render it with the lossy text.
pub fn text_of<'b>(name: &str, bytes: &'b [u8]) -> Result<&'b str, Vec<Diagnostic>> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(too_large(name, bytes.len()));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let end = error.valid_up_to();
        let mut out = Findings::new(name, std::str::from_utf8(&bytes[..end]).unwrap_or(""));
        out.error(end..end + 1, "from here on the file is not UTF-8", Some("save it as UTF-8".to_owned()));
        out.into_sorted()
    })
}

/// The team that a policy file speaks of, also where the file has mistakes: whom to spare loudly.
pub fn team_of(text: &str) -> Option<TeamName> {
    if text.len() > FILE_BYTES_MAX {
        return None;
    }
    let (table, _) = DeTable::parse_recoverable(text);
    TeamName::new(table.get_ref().get("team")?.get_ref().as_str()?).ok()
}

/// The JSON Schema (draft 7) of the policy file; `docs/policy.schema.json`.
pub fn policy_schema() -> Value {
    schema::policy().clone()
}

/// The JSON Schema (draft 7) of the site file; `docs/site.schema.json`.
pub fn site_schema() -> Value {
    schema::site().clone()
}

type Parsed<T> = Result<(T, Vec<Diagnostic>), Vec<Diagnostic>>;

fn parse<Raw, T>(
    name: &str,
    text: &str,
    schema: &Value,
    lower: impl FnOnce(Raw, &DeTable<'_>, &mut Findings<'_>) -> Option<T>,
) -> Parsed<T>
where
    Raw: DeserializeOwned,
{
    if text.len() > FILE_BYTES_MAX {
        return Err(too_large(name, text.len()));
    }
    let mut out = Findings::new(name, text);
    let (mut tree, mut broken) = DeTable::parse_recoverable(text);
    broken.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in &broken {
        let span = error.span().unwrap_or(0..0);
        // The second of a line follows from the first.
        if out.ends_on_line_of(span.start) {
            continue;
        }
        let (message, hint) = syntax::in_words(error.message(), text.get(span.clone()).unwrap_or(""));
        out.error(span, message, Some(hint.to_owned()));
    }
    let syntax_errors = out.count();
    let written = tree.get_ref().clone();
    tree::check(&mut tree, tree::Check { root: schema, missing: broken.is_empty() }, &mut out);
    let span = tree.span();
    let root = toml::Spanned::new(span, DeValue::Table(tree.into_inner()));
    let lowered = match Raw::deserialize(ValueDeserializer::from(root)) {
        Ok(raw) => lower(raw, &written, &mut out),
        Err(error) => {
            // The check above lets nothing through that the types refuse; should it ever, the file does not count.
            out.error(error.span().unwrap_or(0..0), error.message().to_owned(), Some(OUR_BUG.to_owned()));
            None
        }
    };
    if lowered.is_none() && !out.has_errors() {
        out.error(0..0, "the file could not be read, and Troop cannot say why", Some(OUR_BUG.to_owned()));
    }
    let failed = out.has_errors();
    // What follows from a broken line is noise: on the lines of syntax errors only these are told.
    out.keep_apart_from_first(syntax_errors);
    match lowered {
        Some(value) if !failed => Ok((value, out.into_sorted())),
        Some(_) | None => Err(out.into_sorted()),
    }
}

fn too_large(name: &str, bytes: usize) -> Vec<Diagnostic> {
    let mut out = Findings::new(name, "");
    let hint = "a policy has some kilobytes; is this another file?".to_owned();
    out.error(0..0, format!("the file has {bytes} bytes; {FILE_BYTES_MAX} is the most"), Some(hint));
    out.into_sorted()
}
