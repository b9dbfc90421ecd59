//! TOML's syntax errors in words for people who do not write TOML every day.

use super::diagnostic::is_harmless;

/// What the file looks like, where nothing more can be said.
const FORM: &str = "each line is NAME = VALUE, [TABLE] or [[LIST]]; texts stand in quotes, comments begin with #";

/// Parts of the parser's messages, and what to do about them.
const HINTS: [(&str, &str); 18] = [
    ("duplicate key", "each key and each [table] stands once; only [[lists]] repeat"),
    ("string values must be quoted", "put it into quotes; only numbers, true and false stand without"),
    ("unquoted key", "a key is letters, digits, `_` and `-`; else it stands in quotes, and a comment begins with #"),
    ("date", "write year, month and day, such as 2026-12-23"),
    ("time", "write hours and minutes of 24 hours in quotes, such as \"10:00\""),
    ("escape", "in \"…\" a backslash is written twice; '…' takes it as it is"),
    ("unicode", "in \"…\" a backslash is written twice; '…' takes it as it is"),
    ("string", "a text ends on its line, with the quote that began it"),
    ("quote", "a text ends on its line, with the quote that began it"),
    ("unclosed table", "close the header: [name]"),
    ("unclosed array table", "close the header: [[name]]"),
    ("inline table", "write { name = value, name = value }"),
    ("array", "write [value, value]"),
    ("carriage return", "save the file with line ends of one kind"),
    ("leading zero", "a number does not begin with 0; times and dates stand in quotes"),
    ("radix", "write a plain number, such as 8"),
    ("number", "write a plain number, such as 8; what has a unit stands in quotes, such as \"5m\""),
    ("assignment", "write NAME = VALUE"),
];

/// What a word processor or a web page leaves in a text, and nobody sees.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{feff}' | '\u{a0}' | '\u{200b}'..='\u{200d}' | '\u{2060}')
}

/// The message and the hint for a syntax error. `marked` is what it points at.
pub(super) fn in_words(message: &str, marked: &str) -> (String, &'static str) {
    if message.contains("string values must be quoted") && marked.trim().is_empty() {
        return ("the value is missing".to_owned(), "write it after the `=`, or remove the line");
    }
    if message.contains("keys cannot be empty") {
        return ("the key is missing".to_owned(), "write NAME = VALUE");
    }
    if message.contains("recurs") {
        return ("it is nested too deep".to_owned(), "nothing in these files is nested more than a few deep");
    }
    match marked.chars().next() {
        Some(c) if !is_harmless(c) && !c.is_ascii_whitespace() || is_invisible(c) => {
            let message = format!("the character {} has no place here", c.escape_unicode());
            return (message, "remove it; an editor for programs shows such characters");
        }
        Some('“' | '”' | '„' | '‘' | '’' | '«' | '»') => {
            return ("these quotes are none of TOML's".to_owned(), "write straight ones, as in \"shop\"");
        }
        Some(_) | None => {}
    }
    let hint = HINTS.iter().find(|(part, _)| message.contains(part)).map_or(FORM, |(_, hint)| hint);
    (message.to_owned(), hint)
}
