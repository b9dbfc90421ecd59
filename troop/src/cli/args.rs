//! Arguments that several commands share, and how their values are read.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::api::limits::{self, SPAN_MAX};

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// The option of every command that reads.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// How to print the answer; json is one object, or one object a line
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text, help_heading = "Everywhere")]
    pub(super) format: Format,
}

impl Output {
    pub(super) fn is_json(self) -> bool {
        self.format == Format::Json
    }
}

/// Reads a duration such as `500ms`, `30s`, `5m`, `1h30m`, `14d`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let hint = "write a number and a unit, such as `500ms`, `30s`, `5m`, `1h30m` or `14d`";
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(hint.to_owned());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().map_err(|_| hint.to_owned())?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 7 * 86_400_000,
            "" => return Err(format!("`{number}` has no unit; {hint}")),
            other => return Err(format!("`{other}` is no unit; {hint}")),
        };
        total = total.saturating_add(Duration::from_millis(number.saturating_mul(millis)));
        rest = after;
    }
    if total > SPAN_MAX {
        return Err("that is more than a year".to_owned());
    }
    Ok(total)
}

/// Reads whole percent, from 1 to 100, with or without the sign.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    let number = text.trim().trim_end_matches('%').trim();
    match number.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        Ok(_) | Err(_) => Err("write whole percent from 1% to 100%, such as `5%`".to_owned()),
    }
}

/// Reads a reason: some words, which stand in the ledger for ever.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("say why in some words; it is kept in the ledger".to_owned());
    }
    limits::reason(text).map_err(|e| e.message)?;
    Ok(text.to_owned())
}

/// Reads the reason of a halt, of which only so much is kept: stopping is never refused for its words.
pub(super) fn reason_to_stop(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => reason(text),
        text => Ok(limits::cut_reason(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("5min", 300_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("2d", 172_800_000),
        ] {
            assert_eq!(span(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "5", "m", "5x", "5 m", "-5m", "1.5h", "999999999999d", "18446744073709551615w"] {
            assert!(span(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_reason_is_some_words_and_stopping_is_not_refused_for_them() {
        let long = "é".repeat(limits::REASON_CHARS_MAX);
        assert_eq!(reason(&format!(" {long} ")), Ok(long.clone()));
        for bad in ["", " ", "a\nb", &format!("{long}x")] {
            assert!(reason(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(reason_to_stop(&format!("{long}x")), Ok(long));
        assert_eq!(reason_to_stop("a\nb"), Ok("a b".to_owned()));
        assert!(reason_to_stop(" ").is_err());
    }

    #[test]
    fn percent_is_whole_and_never_nothing() {
        assert_eq!((percent("5%"), percent("5"), percent("100 %")), (Ok(5), Ok(5), Ok(100)));
        for bad in ["", "0%", "101", "5.5%", "-1", "five"] {
            assert!(percent(bad).is_err(), "{bad} was taken");
        }
    }
}
