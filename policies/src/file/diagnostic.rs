//! What is wrong with a file, where, and what to type instead.

use std::collections::BTreeSet;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::policy::Place;

/// Most diagnostics told of one file. Whoever sees a hundred has fed the wrong file; a million would fill a terminal and a log.
pub const DIAGNOSTICS_MAX: usize = 100;
/// Longest text of a file's own that is repeated inside a message.
const SHOWN_CHARS_MAX: usize = 60;
/// A longer line is not shown: nobody finds carets in it, and rendering it once a diagnostic would cost seconds.
const LINE_SHOWN_BYTES_MAX: usize = 2_000;

/// How much a diagnostic matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file does not count: its team is spared as a whole.
    Error,
    /// The file counts; this part of it does less than its author may think.
    Warning,
}

/// One thing to repair or to know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    /// The file's path, as it was given to the parser.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    pub hint: Option<String>,
    /// In bytes of the source.
    #[serde(skip)]
    span: Range<usize>,
}

impl Diagnostic {
    /// Returns the diagnostic as text, with the line of `source` (the text that was parsed) and carets under the place.
    ///
    /// Plain text without colour; it ends without a newline.
    pub fn render(&self, source: &str) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let lines = Lines::new(source);
        let (start, line) = lines.line_at(source, self.span.start);
        if line.len() > LINE_SHOWN_BYTES_MAX {
            let hint = self.hint.as_ref().map(|h| format!("\n  = help: {h}")).unwrap_or_default();
            let level = match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            return format!("{level}: {}\n --> {}:{}:{}{hint}", self.message, self.file, self.line, self.column);
        }
        // Only the first line of what is marked is shown, so that an array over fifty lines stays one line of message.
        let from = floor_char(line, self.span.start.saturating_sub(start));
        let to = floor_char(line, self.span.end.saturating_sub(start)).max(from);
        let snippet = Snippet::source(line)
            .line_start(self.line)
            .path(self.file.as_str())
            .annotation(AnnotationKind::Primary.span(from..to));
        let mut group = level.primary_title(self.message.as_str()).element(snippet);
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        Renderer::plain().render(&[group])
    }
}

/// Collects what is found in one file, in any order.
#[derive(Debug)]
pub(crate) struct Findings<'a> {
    file: &'a str,
    source: &'a str,
    lines: Lines,
    found: Vec<Finding>,
}

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    severity: Severity,
    span: Range<usize>,
    message: String,
    hint: Option<String>,
}

impl<'a> Findings<'a> {
    pub(crate) fn new(file: &'a str, source: &'a str) -> Self {
        Self { file, source, lines: Lines::new(source), found: Vec::new() }
    }

    pub(crate) fn error(&mut self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.found.push(Finding { severity: Severity::Error, span, message: message.into(), hint });
    }

    pub(crate) fn warning(&mut self, span: Range<usize>, message: impl Into<String>, hint: Option<String>) {
        self.found.push(Finding { severity: Severity::Warning, span, message: message.into(), hint });
    }

    /// Where `offset` lies, for reasons that operators read: the file without its folders, and the line.
    pub(crate) fn place(&self, offset: usize) -> Place {
        let file = self.file.rsplit('/').next().unwrap_or(self.file).to_owned();
        Place { file, line: self.lines.number_at(offset) }
    }

    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    /// Whether what was found last begins on the line of `offset`.
    pub(crate) fn ends_on_line_of(&self, offset: usize) -> bool {
        let line = |offset| self.lines.number_at(offset);
        self.found.last().is_some_and(|last| line(last.span.start) == line(offset))
    }

    /// Drops what was found after the first `count` on one of their lines.
    pub(crate) fn keep_apart_from_first(&mut self, count: usize) {
        let later = self.found.split_off(count.min(self.found.len()));
        let lines: BTreeSet<_> = self.found.iter().map(|f| self.lines.number_at(f.span.start)).collect();
        let lines_of = &self.lines;
        self.found.extend(later.into_iter().filter(|f| !lines.contains(&lines_of.number_at(f.span.start))));
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(|f| f.severity == Severity::Error)
    }

    /// The diagnostics in the order of the file: the errors alone where there are any, else the warnings.
    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        let wanted = if self.has_errors() { Severity::Error } else { Severity::Warning };
        self.found.retain(|f| f.severity == wanted);
        self.found.sort_by(|a, b| (a.span.start, a.span.end, &a.message).cmp(&(b.span.start, b.span.end, &b.message)));
        self.found.dedup();
        let more = self.found.len().saturating_sub(DIAGNOSTICS_MAX);
        self.found.truncate(DIAGNOSTICS_MAX);
        let mut told: Vec<_> = self.found.iter().map(|f| self.told(f)).collect();
        if let Some(last) = told.last_mut().filter(|_| more > 0) {
            last.hint = Some(format!("{more} more of this file are not shown"));
        }
        told
    }

    /// Columns are counted here, for the few that are told, because counting reads the line from its start.
    fn told(&self, finding: &Finding) -> Diagnostic {
        let span = finding.span.clone();
        let (start, line) = self.lines.line_at(self.source, span.start);
        Diagnostic {
            severity: finding.severity,
            message: harmless(&finding.message),
            file: self.file.to_owned(),
            line: self.lines.number_at(span.start),
            column: line[..floor_char(line, span.start.saturating_sub(start))].chars().count() + 1,
            hint: finding.hint.as_deref().map(harmless),
            span,
        }
    }
}

/// Text of the file, shortened to what fits into a message.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    harmless(&short)
}

/// Whether a character may be shown on a terminal: neither a control character nor one that turns the direction of reading.
pub(crate) fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

fn harmless(text: &str) -> String {
    text.chars().flat_map(|c| if is_harmless(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}

/// The greatest character boundary of `text` that is not past `at`.
fn floor_char(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

/// Where the lines of a text begin.
#[derive(Debug)]
struct Lines(Vec<usize>);

impl Lines {
    fn new(source: &str) -> Self {
        Self(std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    /// 1-based.
    fn number_at(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset).max(1)
    }

    /// The line's start and its text without the line end.
    fn line_at<'s>(&self, source: &'s str, offset: usize) -> (usize, &'s str) {
        let number = self.number_at(offset);
        let start = self.0.get(number - 1).copied().unwrap_or(0);
        let end = self.0.get(number).map_or(source.len(), |next| next - 1);
        let line = source.get(start..end).unwrap_or("");
        (start, line.strip_suffix('\r').unwrap_or(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_at_characters_not_bytes() {
        let source = "a = 1\r\nüü = \"x\"\n";
        let mut findings = Findings::new("dir/f.toml", source);
        findings.error(12..15, "bad", Some("good".to_owned()));
        let found = findings.into_sorted();
        assert_eq!((found[0].line, found[0].column), (2, 4));
        insta::assert_snapshot!(found[0].render(source), @r#"
        error: bad
         --> dir/f.toml:2:4
          |
        2 | üü = "x"
          |    ^^^
          |
          = help: good
        "#);
    }

    #[test]
    fn shows_no_control_characters_of_the_file() {
        let mut findings = Findings::new("f", "x");
        findings.error(0..1, "key \u{1b}[31m\u{202e}", None);
        assert_eq!(findings.into_sorted()[0].message, "key \\u{1b}[31m\\u{202e}");
    }

    #[test]
    fn survives_spans_outside_of_the_text() {
        for source in ["", "\n", "é"] {
            let mut findings = Findings::new("f", source);
            findings.error(1..9, "past the end", None);
            findings.error(40..41, "far past", None);
            let found = findings.into_sorted();
            assert!(found.iter().all(|d| d.render(source).contains("past") && !d.render("").is_empty()));
        }
    }

    #[test]
    fn tells_how_many_are_not_shown() {
        let source = "x".repeat(500);
        let mut findings = Findings::new("f", &source);
        (0..300).for_each(|i| findings.error(i..i + 1, "no", None));
        let found = findings.into_sorted();
        assert_eq!(found.len(), DIAGNOSTICS_MAX);
        assert_eq!(found[99].hint.as_deref(), Some("200 more of this file are not shown"));
    }
}
