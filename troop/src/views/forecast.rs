//! What policies will mean, as `troop forecast` shows it.

use std::fmt::Write as _;

use jiff::civil::Date;
use serde::Serialize;
use troop_scheduler::forecast::ForecastRow;

use crate::ui;

/// Everything that was played.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    pub schema: u32,
    pub days: u32,
    pub seed: u64,
    /// What a forecast leaves out.
    pub note: &'static str,
    pub rows: Vec<Row>,
}

/// One app and monkey of one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub team: String,
    pub file: String,
    /// The first day.
    pub from: Date,
    #[serde(flatten)]
    pub row: ForecastRow,
}

/// A table; with `detail` also the kills of each month and how often each gap came.
pub fn text(forecast: &Forecast, detail: bool) -> String {
    let kills = match forecast.days {
        365 => "KILLS/YEAR (p5-p95)".to_owned(),
        days => format!("KILLS IN {days} DAYS (p5-p95)"),
    };
    let header = ["SCOPE", "MONKEY", "ASKED MEAN", "MEAN GAP", &kills, "LONGEST GAP p95"];
    let mut lines = vec![ui::table(&header, &forecast.rows.iter().map(|r| cells(&r.row)).collect::<Vec<_>>())];
    if detail {
        lines.extend(forecast.rows.iter().map(|r| months(&r.row)));
        lines.extend(forecast.rows.iter().map(|r| gaps(&r.row)));
    }
    let workdays: std::collections::BTreeSet<_> = forecast.rows.iter().map(|r| r.row.workdays).collect();
    let workdays: Vec<_> = workdays.iter().map(ToString::to_string).collect();
    lines.push(format!(
        "gaps in workdays, of which the {} days have {}; {}",
        forecast.days,
        workdays.join(" or "),
        forecast.note
    ));
    lines.join("\n")
}

fn cells(row: &ForecastRow) -> Vec<String> {
    let leash = if row.leashed { " (leashed)" } else { "" };
    vec![
        row.scope.clone(),
        format!("{}{leash}", row.monkey),
        short(row.asked_mean_workdays),
        format!("{:.2}", row.mean_gap_workdays),
        format!("{} ({}-{})", short_kills(row.kills_mean), row.kills_p5, row.kills_p95),
        row.longest_gap_p95.to_string(),
    ]
}

/// Without zeros that say nothing: `5`, `2.5`.
fn short(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn short_kills(kills: f64) -> String {
    if kills < 10.0 { format!("{kills:.1}") } else { format!("{kills:.0}") }
}

fn months(row: &ForecastRow) -> String {
    let mut line = format!("{} {}, kills a month:", row.scope, row.monkey);
    for month in &row.months {
        // Writing to a String cannot fail.
        let _written = write!(line, " {} {:.1}", month.month, month.kills_mean);
    }
    line
}

fn gaps(row: &ForecastRow) -> String {
    let all: u64 = row.histogram.iter().map(|gap| u64::from(gap.count)).sum();
    let mut line = format!("{} {}, workdays between two kills:", row.scope, row.monkey);
    for gap in &row.histogram {
        let share = f64::from(gap.count) * 100.0 / precise(all.max(1));
        // Shares below a tenth of a percent would make the line longer than anybody reads.
        if share >= 0.1 {
            let _written = write!(line, " {} {share:.1}%", gap.gap_workdays);
        }
    }
    line
}

#[expect(clippy::cast_precision_loss, reason = "a count of played gaps, far below 2^52")]
fn precise(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use troop_scheduler::forecast::{GapCount, MonthRow};

    use super::*;

    fn forecast() -> Forecast {
        let row = ForecastRow {
            scope: "checkout".to_owned(),
            app: "checkout".parse().unwrap(),
            monkey: "chaos".to_owned(),
            leashed: false,
            asked_mean_workdays: 5.0,
            mean_gap_workdays: 4.996,
            min_workdays: 2,
            days: 365,
            workdays: 198,
            kills_mean: 39.4,
            kills_p5: 32,
            kills_p95: 47,
            longest_gap_p95: 24,
            months: vec![MonthRow { month: "2026-11".to_owned(), kills_mean: 1.24 }],
            histogram: vec![GapCount { gap_workdays: 2, count: 3 }, GapCount { gap_workdays: 3, count: 1 }],
        };
        let leashed = ForecastRow {
            monkey: "latency".to_owned(),
            leashed: true,
            asked_mean_workdays: 2.5,
            kills_mean: 7.26,
            ..row.clone()
        };
        let of = |row| Row {
            team: "shop".to_owned(),
            file: "shop.toml".to_owned(),
            from: "2026-11-24".parse().unwrap(),
            row,
        };
        Forecast { schema: 1, days: 365, seed: 1, note: "drawn kills alone", rows: vec![of(row), of(leashed)] }
    }

    #[test]
    fn each_monkey_is_one_row_and_the_note_says_what_is_left_out() {
        assert_eq!(
            text(&forecast(), false),
            "\
SCOPE     MONKEY             ASKED MEAN  MEAN GAP  KILLS/YEAR (p5-p95)  LONGEST GAP p95
checkout  chaos              5           5.00      39 (32-47)           24
checkout  latency (leashed)  2.5         5.00      7.3 (32-47)          24
gaps in workdays, of which the 365 days have 198; drawn kills alone"
        );
    }

    #[test]
    fn detail_tells_months_and_gaps() {
        let text = text(&forecast(), true);
        assert!(text.contains("checkout chaos, kills a month: 2026-11 1.2"), "{text}");
        assert!(text.contains("checkout chaos, workdays between two kills: 2 75.0% 3 25.0%"), "{text}");
    }

    #[test]
    fn json_names_team_and_file_beside_the_figures() {
        let json = serde_json::to_value(forecast()).unwrap();
        let row = &json["rows"][0];
        assert_eq!((row["team"].as_str(), row["asked_mean_workdays"].as_f64()), (Some("shop"), Some(5.0)));
        assert_eq!(row["from"].as_str(), Some("2026-11-24"));
    }
}
