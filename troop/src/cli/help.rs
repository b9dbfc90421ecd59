//! The help: commands grouped under headings, and docs/cli.md, which is recorded from it.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use super::Cli;

/// Widest line of help: wider ones are not read to their end.
pub(super) const WIDTH: usize = 110;

/// The commands, as a person looks for them. A test holds that each stands here once.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Start", &["demo", "up", "serve", "registry", "sample-app"]),
    ("Look", &["status", "ps", "agents", "logs", "curl", "images"]),
    ("Deploy", &["deploy", "rollback", "pushes"]),
    ("Policies, plans and what came of them", &["policy", "forecast", "plan", "explain", "history", "notify"]),
    ("Safety", &["kill", "latency", "halt", "resume", "clear", "ledger", "aws"]),
    ("Measure", &["bench"]),
];

const EXIT_CODES: &str = "\
Exit codes: 0 done and verified, 1 yours to fix, 2 usage, 3 refused or stopped by a safety rule, 4 could not ask,
5 the verdict is bad (rolled back, not healed), 6 acted but not verified, 70 a bug of Troop's";

/// The whole command line.
pub(super) fn command() -> clap::Command {
    let command = Cli::command();
    let width = GROUPS.iter().flat_map(|(_, names)| names.iter()).map(|n| n.len()).max().unwrap_or(0);
    let mut groups = String::new();
    for (heading, names) in GROUPS {
        // Writing to a String cannot fail.
        let _written = writeln!(groups, "{heading}:");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _written = writeln!(groups, "  {name:width$}  {about}");
        }
        groups.push('\n');
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}Options:\n{{options}}\n\n\
         `troop COMMAND --help` tells more of one command.\n{EXIT_CODES}\n"
    );
    command.subcommand_value_name("COMMAND").arg_required_else_help(true).help_template(template)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// docs/cli.md: every command's help, in the order of the overview.
    fn reference() -> String {
        let mut text = "# Commands\n\nRecorded from `--help`; `TROOP_BLESS=1 cargo test` records it anew.\n".to_owned();
        let mut command = command().term_width(WIDTH);
        command.build();
        section(&mut text, &mut command, "troop");
        for name in GROUPS.iter().flat_map(|(_, names)| names.iter()) {
            let command = command.find_subcommand_mut(name).unwrap();
            section(&mut text, command, &format!("troop {name}"));
            let inner: Vec<_> =
                command.get_subcommands().map(|c| c.get_name().to_owned()).filter(|n| n != "help").collect();
            for inner in inner {
                let command = command.find_subcommand_mut(&inner).unwrap();
                section(&mut text, command, &format!("troop {name} {inner}"));
            }
        }
        text
    }

    fn section(text: &mut String, command: &mut clap::Command, name: &str) {
        let help = command.render_long_help().to_string();
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end()).unwrap();
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_under_one_heading() {
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let command = Cli::command();
        let mut all: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
        grouped.sort_unstable();
        all.sort_unstable();
        assert_eq!(grouped, all);
    }

    #[test]
    fn first_lines_are_imperative_and_end_without_a_full_stop() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(about.starts_with(char::is_uppercase), "{}: {about:?}", command.get_name());
            assert!(!about.ends_with('.'), "{}: {about:?}", command.get_name());
        }
    }

    #[test]
    fn the_reference_in_docs_is_the_help() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
        let fresh = reference();
        if std::env::var_os("TROOP_BLESS").is_some() {
            std::fs::write(&path, &fresh).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == fresh, "docs/cli.md differs from --help; TROOP_BLESS=1 cargo test -p troop records it anew");
    }
}
