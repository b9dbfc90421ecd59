//! What the processes of a demo wrote at its end. A demo that fails removes its folder as every other does, and with it all
//! that could say why.

use std::fs;
use std::path::Path;

use crate::ui;

/// Lines shown of a log: a push is some twenty.
const LINES_MAX: usize = 25;

/// Prints the last lines of the logs of Troop's own processes.
pub(super) fn print_ends(logs: &Path) {
    for (name, lines) in ends(logs) {
        ui::note(&format!("the end of {name}:"));
        lines.iter().for_each(|line| ui::note(&format!("  {line}")));
    }
}

/// Every log with its last lines, by name; none that is empty.
fn ends(logs: &Path) -> Vec<(String, Vec<String>)> {
    let entries = fs::read_dir(logs).into_iter().flatten().flatten();
    let mut ends: Vec<_> = entries
        .filter_map(|entry| {
            let text = String::from_utf8_lossy(&fs::read(entry.path()).ok()?).into_owned();
            let mut last: Vec<String> = text.lines().rev().take(LINES_MAX).map(str::to_owned).collect();
            last.reverse();
            (!last.is_empty()).then(|| (entry.file_name().to_string_lossy().into_owned(), last))
        })
        .collect();
    ends.sort();
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_every_log_are_shown_and_no_empty_one_is() {
        let logs = tempfile::tempdir().unwrap();
        assert!(ends(&logs.path().join("none")).is_empty());
        fs::write(logs.path().join("serve.log"), (0..40).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        fs::write(logs.path().join("balancer-0.log"), "").unwrap();
        fs::write(logs.path().join("cloud.log"), b"no \xff text").unwrap();
        let ends = ends(logs.path());
        assert_eq!(ends.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["cloud.log", "serve.log"]);
        assert_eq!(ends[0].1, ["no \u{fffd} text"]);
        assert_eq!((ends[1].1.len(), ends[1].1[0].as_str(), ends[1].1[24].as_str()), (25, "line 15", "line 39"));
    }
}
