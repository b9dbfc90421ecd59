//! The only printer. Data goes to stdout, everything else to stderr, and a reader that goes away ends us quietly.

use std::io::{self, IsTerminal as _, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Blanks between two columns of a table.
const COLUMN_GAP: u16 = 2;

/// One line of data, on stdout. Control characters are shown as text: a reason or a name may come from anybody.
pub fn line(text: &str) {
    write_to(io::stdout().lock(), format!("{}\n", harmless(text)).as_bytes());
}

/// Data as it stands, on stdout, without a line end of ours.
pub fn data(bytes: impl AsRef<[u8]>) {
    write_to(io::stdout().lock(), bytes.as_ref());
}

/// One value as JSON on a line of its own, on stdout.
pub fn json(value: &impl Serialize) {
    // Our answers hold only maps with text keys, so this cannot fail; were it ever to, the reader is told.
    let text = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"unrepresentable\":\"{e}\"}}"));
    write_to(io::stdout().lock(), format!("{text}\n").as_bytes());
}

/// One line for people, on stderr: progress, warnings, what to do next.
pub fn note(text: &str) {
    write_to(io::stderr().lock(), format!("{}\n", harmless(text)).as_bytes());
}

/// The first line of a state that may need somebody: red when it does, green when not, on a terminal only.
pub fn headline(text: &str, bad: bool) {
    let colour = if bad { RED } else { GREEN };
    let painted = paint(colour, &harmless(text), colours(&io::stdout()));
    write_to(io::stdout().lock(), format!("{painted}\n").as_bytes());
}

/// An error and what to type next, on stderr.
pub(crate) fn error(what: &str, hint: Option<&str>) {
    let on = colours(&io::stderr());
    let mut text = format!("{} {}\n", paint(RED, "error:", on), harmless(what));
    if let Some(hint) = hint {
        text.push_str(&format!("{} {}\n", paint(CYAN, "hint:", on), harmless(hint)));
    }
    write_to(io::stderr().lock(), text.as_bytes());
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const CYAN: u8 = 36;

fn paint(colour: u8, text: &str, on: bool) -> String {
    if on { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
}

fn colours(stream: &impl io::IsTerminal) -> bool {
    stream.is_terminal() && wants_colour(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
}

/// <https://no-color.org>: set and not empty means none.
fn wants_colour(env: impl Fn(&str) -> Option<String>) -> bool {
    env("NO_COLOR").is_none_or(|v| v.is_empty()) && env("TERM").is_none_or(|v| v != "dumb")
}

/// Whether progress may draw a live line.
pub(crate) fn is_live() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
}

fn write_to(mut stream: impl Write, bytes: &[u8]) {
    match stream.write_all(bytes).and_then(|()| stream.flush()) {
        Ok(()) => {}
        // `troop history | head` is no failure.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        // Whoever reads us would take a part for the whole. There is nowhere left to say so.
        Err(_) => std::process::exit(i32::from(crate::exit::Code::Unavailable.number())),
    }
}

/// Text without what could move a terminal's cursor or turn its direction; line ends and tabs stay.
pub(crate) fn harmless(text: &str) -> String {
    let is_bad = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if is_bad(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// A table without borders: a header in capitals, columns two blanks apart, no blanks at the end of a line.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    table.set_header(header.to_vec());
    for row in rows {
        // A line end inside a cell would break the table into pieces that no longer read as rows.
        table.add_row(row.iter().map(|cell| harmless(cell).replace(['\n', '\t'], " ")).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, COLUMN_GAP));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_blanks_at_the_end() {
        let rows = vec![vec!["a".to_owned(), "long one".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["K", "VALUE"], &rows), "K    VALUE\na    long one\nbcd  x");
    }

    #[test]
    fn a_cell_stays_on_its_line_and_moves_no_cursor() {
        let rows = vec![vec!["a\nb\u{1b}[2J".to_owned()]];
        assert_eq!(table(&["K"], &rows), "K\na b\\u{1b}[2J");
        assert_eq!(harmless("ok\n\u{202e}x"), "ok\n\\u{202e}x");
    }

    #[test]
    fn colour_is_off_when_the_user_says_so() {
        assert!(wants_colour(|_| None));
        assert!(wants_colour(|name| (name == "NO_COLOR").then(String::new)));
        assert!(!wants_colour(|name| (name == "NO_COLOR").then(|| "1".to_owned())));
        assert!(!wants_colour(|name| (name == "TERM").then(|| "dumb".to_owned())));
        assert_eq!(paint(RED, "x", false), "x");
    }
}
