//! `troop aws doctor`: what was found out, one thing a line.

use serde::Serialize;

use crate::ui;

/// Everything that was found out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DoctorView {
    pub schema: u32,
    pub site: String,
    pub leashed: bool,
    pub findings: Vec<Finding>,
}

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// It keeps the site from what its file says that it does.
    Missing,
    /// Nobody can know, or it is wanted only once the site is unleashed.
    Note,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// `account/region`, an account, or the site.
    pub at: String,
    pub check: &'static str,
    pub verdict: Verdict,
    pub text: String,
}

impl DoctorView {
    /// Whether nothing is missing.
    pub fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Missing)
    }
}

/// As a person is shown it.
pub fn table(view: &DoctorView) -> String {
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Missing => "MISSING",
        Verdict::Note => "-",
    };
    let row = |f: &Finding| vec![f.at.clone(), f.check.to_owned(), word(f.verdict).to_owned(), f.text.clone()];
    let rows: Vec<_> = view.findings.iter().map(row).collect();
    ui::table(&["WHERE", "CHECK", "", "FOUND"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_stands_out_and_a_note_does_not_fail() {
        let finding = |check, verdict, text: &str| Finding {
            at: "prod/us-east-1".to_owned(),
            check,
            verdict,
            text: text.to_owned(),
        };
        let note = finding("writes", Verdict::Note, "none asked for: the site is leashed");
        let view = |findings| DoctorView { schema: 1, site: "acme".to_owned(), leashed: true, findings };
        assert!(view(vec![finding("clock", Verdict::Ok, "+0.2 s"), note.clone()]).is_well());
        let bad = view(vec![finding("reads", Verdict::Missing, "ec2:DescribeImages is denied"), note]);
        assert!(!bad.is_well());
        assert_eq!(
            table(&bad),
            "WHERE           CHECK            FOUND\n\
             prod/us-east-1  reads   MISSING  ec2:DescribeImages is denied\n\
             prod/us-east-1  writes  -        none asked for: the site is leashed"
        );
    }
}
