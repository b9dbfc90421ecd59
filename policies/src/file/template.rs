//! What `troop policy init` writes: a file that parses, is leashed and opts nothing in until its author says so.

use crate::ids::TeamName;

const TEMPLATE: &str = include_str!("template.toml");

/// Returns a commented policy file for `team`. It parses; the only warning is that it names no app yet.
pub fn template(team: &TeamName) -> String {
    TEMPLATE.replace("TEAM", team.as_str())
}
