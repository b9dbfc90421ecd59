//! What a policy will mean: kills over a span of days, and the gaps between them.
//!
//! A gap is drawn whole: the minimum, and then as many workdays as the coin of each took to fall. A span begins past the
//! minimum, as a scope that was never killed does. Nothing here is promised to the bit but that one build gives the same
//! forecast for the same seed; what is promised draws by `troop_policies::draw`.

use std::collections::BTreeMap;

use jiff::civil::Date;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use troop_policies::AppName;
use troop_policies::policy::{AppPolicy, Policy, Rate};

use crate::calendar::Calendar;
use crate::plan::{CHAOS, LATENCY, ScopeSeen};

/// Complete gaps behind `mean_gap_workdays`. The standard error of a geometric gap's mean is then at most 0.22 %, so being
/// 1 % off would take more than four of them.
pub const GAPS: u32 = 200_000;
/// Spans of days that are played through: enough for a 95th percentile that two seeds agree on.
pub const SPANS: u32 = 2_000;
/// Longest span played. Beyond ten years no policy stands, and the calendars are read no further.
pub const DAYS_MAX: u32 = 3_660;
/// What every forecast leaves out, for whoever prints one.
pub const NOTE: &str = "drawn kills alone: caps, halts and whatever else spares at the minute are ignored, and so are drills and kills on demand";

/// One scope and monkey.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForecastRow {
    /// The draw key, or the app's name where no inventory was read: then the row stands for each of its scopes.
    pub scope: String,
    pub app: AppName,
    pub monkey: String,
    /// By app or monkey. A leashed monkey draws as any other, and its acts would only be noted.
    pub leashed: bool,
    pub asked_mean_workdays: f64,
    /// Over [`GAPS`] complete gaps, whatever the span of days is.
    pub mean_gap_workdays: f64,
    pub min_workdays: u32,
    /// The span of days, and the workdays in it.
    pub days: u32,
    pub workdays: u32,
    pub kills_mean: f64,
    pub kills_p5: u32,
    pub kills_p95: u32,
    /// 95 % of spans have no longer stretch of workdays between two kills, or between a kill and an end of the span.
    pub longest_gap_p95: u32,
    /// Every month that the span touches.
    pub months: Vec<MonthRow>,
    /// Complete gaps between two kills of one span, over all [`SPANS`].
    pub histogram: Vec<GapCount>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MonthRow {
    /// `2026-11`.
    pub month: String,
    pub kills_mean: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct GapCount {
    pub gap_workdays: u32,
    pub count: u32,
}

/// Forecasts each monkey of the policy from `from` on for `days` days, at most [`DAYS_MAX`].
///
/// With `scopes` a row stands for each scope that the policy does not exempt, without for each app; leashed or not.
pub fn forecast(
    policy: &Policy,
    calendar: &Calendar,
    scopes: &[ScopeSeen],
    from: Date,
    days: u32,
    seed: u64,
) -> Vec<ForecastRow> {
    let days = days.min(DAYS_MAX);
    let span = Span::new(calendar, from, days);
    let named: Vec<(String, &AppPolicy)> = if scopes.is_empty() {
        policy.apps.values().map(|app| (app.app.to_string(), app)).collect()
    } else {
        let open = scopes.iter().filter(|scope| scope.exempt.is_none());
        open.filter_map(|scope| Some((scope.draw_key.clone(), policy.apps.get(&scope.app)?))).collect()
    };
    let mut rows = Vec::new();
    for (scope, app) in named {
        let chaos = app.chaos.as_ref().map(|chaos| (CHAOS, chaos.leashed, chaos.rate));
        let latency = app.latency.as_ref().map(|latency| (LATENCY, latency.leashed, latency.rate));
        for (monkey, leashed, rate) in chaos.into_iter().chain(latency) {
            // A stream for each row, so that a new app changes no other's forecast.
            let rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ hash(&format!("{scope}|{monkey}")));
            let row = Row { scope: &scope, app: &app.app, monkey, leashed, rate };
            rows.push(row.play(&span, rng));
        }
    }
    rows
}

/// FNV-1a: tells rows apart, the same in every build.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The workdays of the span, each with the place of its month.
struct Span {
    days: u32,
    workdays: u32,
    month_of: Vec<usize>,
    months: Vec<String>,
}

impl Span {
    fn new(calendar: &Calendar, from: Date, days: u32) -> Self {
        let month = |day: Date| day.strftime("%Y-%m").to_string();
        let mut months: Vec<String> = Vec::new();
        let all = std::iter::successors(Some(from), |day| day.tomorrow().ok()).zip(0..days);
        for (day, _) in all {
            let month = month(day);
            if months.last() != Some(&month) {
                months.push(month);
            }
        }
        let of = |day: Date| months.binary_search(&month(day)).unwrap_or(0);
        let month_of: Vec<_> = calendar.workdays(from, days).map(of).collect();
        Self { days, workdays: u32::try_from(month_of.len()).unwrap_or(DAYS_MAX), month_of, months }
    }
}

#[derive(Clone, Copy)]
struct Row<'a> {
    scope: &'a str,
    app: &'a AppName,
    monkey: &'a str,
    leashed: bool,
    rate: Rate,
}

impl Row<'_> {
    fn play(&self, span: &Span, mut rng: Xoshiro256PlusPlus) -> ForecastRow {
        let gaps: u64 = (0..GAPS).map(|_| u64::from(gap(self.rate, &mut rng))).sum();
        let mut kills = Vec::new();
        let mut longest = Vec::new();
        let mut by_month = vec![0_u32; span.months.len()];
        let mut histogram: BTreeMap<u32, u32> = BTreeMap::new();
        for _ in 0..SPANS {
            let played = play_once(self.rate, span.workdays, &mut rng);
            for pair in played.windows(2) {
                if let [a, b] = pair {
                    *histogram.entry(b - a).or_default() += 1;
                }
            }
            for kill in &played {
                let month = usize::try_from(*kill).ok().and_then(|kill| span.month_of.get(kill));
                if let Some(count) = month.and_then(|month| by_month.get_mut(*month)) {
                    *count += 1;
                }
            }
            longest.push(longest_stretch(&played, span.workdays));
            kills.push(u32::try_from(played.len()).unwrap_or(u32::MAX));
        }
        let mean = |count: u64| count as f64 / f64::from(SPANS);
        let month =
            |(month, count): (&String, &u32)| MonthRow { month: month.clone(), kills_mean: mean(u64::from(*count)) };
        ForecastRow {
            scope: self.scope.to_owned(),
            app: self.app.clone(),
            monkey: self.monkey.to_owned(),
            leashed: self.leashed,
            asked_mean_workdays: f64::from(self.rate.mean_workdays),
            mean_gap_workdays: gaps as f64 / f64::from(GAPS),
            min_workdays: self.rate.min_workdays,
            days: span.days,
            workdays: span.workdays,
            kills_mean: mean(kills.iter().map(|kills| u64::from(*kills)).sum()),
            kills_p5: percentile(&mut kills, 5),
            kills_p95: percentile(&mut kills, 95),
            longest_gap_p95: percentile(&mut longest, 95),
            months: span.months.iter().zip(&by_month).map(month).collect(),
            histogram: histogram.into_iter().map(|(gap_workdays, count)| GapCount { gap_workdays, count }).collect(),
        }
    }
}

/// The places of the kills among the span's workdays.
fn play_once(rate: Rate, workdays: u32, rng: &mut Xoshiro256PlusPlus) -> Vec<u32> {
    let mut kills = Vec::new();
    let mut at = failures(rate, rng);
    while at < workdays {
        kills.push(at);
        at = at.saturating_add(gap(rate, rng));
    }
    kills
}

/// Workdays from one kill to the next.
fn gap(rate: Rate, rng: &mut Xoshiro256PlusPlus) -> u32 {
    // At least 1, as the policy's reader demands: a gap of 0 would never leave its day.
    rate.min_workdays.max(1).saturating_add(failures(rate, rng))
}

/// How many coins did not fall before one did, drawn at once: the inverse of the geometric distribution.
fn failures(rate: Rate, rng: &mut Xoshiro256PlusPlus) -> u32 {
    let odds = rate.odds();
    let unit: f64 = rng.random();
    if odds >= 1.0 {
        return 0;
    }
    let failures = ((-unit).ln_1p() / (-odds).ln_1p()).floor();
    // `unit` is below 1, so this is finite and not negative; whatever is more than 32 bits is far past every span.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` from f64 saturates, as it should"
    )]
    let failures = failures as u32;
    failures
}

/// The longest stretch without a kill, the ends of the span counted as kills.
fn longest_stretch(kills: &[u32], workdays: u32) -> u32 {
    let ends = kills.iter().copied().chain([workdays]);
    let mut from = 0;
    let mut longest = 0;
    for end in ends {
        longest = longest.max(end - from);
        from = end;
    }
    longest
}

/// By nearest rank. 0 of nothing.
fn percentile(values: &mut [u32], percent: usize) -> u32 {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;
    use crate::fixture::{calendar, inventory, policy, policy_with, windows};
    use crate::plan::{ByTeam, scopes_of};

    const LATENCY_TABLE: &str = "[apps.checkout.latency]
mean_workdays = 10
min_workdays = 3
delay = \"50ms\"
lasts = \"5m\"
to = [\"app:payments\"]
";

    fn one(days: u32, seed: u64) -> ForecastRow {
        let policy = policy("");
        forecast(&policy, &calendar(&policy), &[], date(2026, 11, 24), days, seed).remove(0)
    }

    #[test]
    fn without_an_inventory_a_row_stands_for_each_app_and_monkey_leashed_or_not() {
        let policy = policy(LATENCY_TABLE);
        let rows = forecast(&policy, &calendar(&policy), &[], date(2026, 11, 24), 30, 1);
        let named: Vec<_> = rows.iter().map(|r| (r.scope.as_str(), r.monkey.as_str(), r.leashed)).collect();
        assert_eq!(named, [("checkout", "chaos", false), ("checkout", "latency", true)]);
    }

    #[test]
    fn with_an_inventory_a_row_stands_for_each_scope_that_is_not_exempt() {
        let policy = policy("");
        let scopes =
            scopes_of(&policy, &ByTeam::of(&[inventory("us-east-1", &["checkout-web-v001", "checkout-pci-v001"])]));
        let rows = forecast(&policy, &calendar(&policy), &scopes, date(2026, 11, 24), 30, 1);
        assert_eq!(rows.iter().map(|r| r.scope.as_str()).collect::<Vec<_>>(), ["prod/us-east-1/checkout-web"]);
    }

    #[test]
    fn the_mean_gap_is_the_mean_asked_for_whatever_the_span_and_the_seed() {
        for (days, seed) in [(1, 0), (30, 7), (365, u64::MAX)] {
            let row = one(days, seed);
            assert!((row.mean_gap_workdays / row.asked_mean_workdays - 1.0).abs() < 0.01, "{row:?}");
        }
        for (mean, min) in [(1, 1), (2, 1), (2, 2), (5, 1), (5, 5), (20, 3), (250, 10)] {
            let mut policy = policy("");
            let app = policy.apps.values_mut().next().unwrap();
            app.chaos.as_mut().unwrap().rate = Rate { mean_workdays: mean, min_workdays: min };
            let row = forecast(&policy, &calendar(&policy), &[], date(2026, 11, 24), 30, 1).remove(0);
            assert!((row.mean_gap_workdays / f64::from(mean) - 1.0).abs() < 0.01, "{mean} {min} {row:?}");
        }
    }

    #[test]
    fn a_year_has_as_many_kills_as_its_workdays_allow() {
        let row = one(365, 1);
        assert_eq!((row.days, row.workdays), (365, 261));
        let expected = f64::from(row.workdays) / 5.0;
        assert!((row.kills_mean / expected - 1.0).abs() < 0.05, "{row:?}");
        assert!(row.kills_p5 < row.kills_p95 && f64::from(row.kills_p5) < row.kills_mean, "{row:?}");
        assert!(row.longest_gap_p95 > 10 && row.longest_gap_p95 < 40, "{row:?}");
        let by_month: f64 = row.months.iter().map(|m| m.kills_mean).sum();
        assert!((by_month - row.kills_mean).abs() < 1e-9);
        assert_eq!(row.months.first().map(|m| m.month.as_str()), Some("2026-11"));
        assert_eq!(row.months.len(), 13);
        assert!(row.histogram.iter().all(|g| g.gap_workdays >= row.min_workdays));
        let gaps: u32 = row.histogram.iter().map(|g| g.count).sum();
        assert!(f64::from(gaps) > f64::from(SPANS) * (row.kills_mean - 1.5), "{gaps}");
    }

    #[test]
    fn the_same_seed_gives_the_same_forecast_and_another_seed_another() {
        assert_eq!(one(90, 5), one(90, 5));
        assert_ne!(one(90, 5).histogram, one(90, 6).histogram);
    }

    #[test]
    fn odds_of_one_kill_on_every_workday() {
        let mut policy = policy("");
        let app = policy.apps.values_mut().next().unwrap();
        app.chaos.as_mut().unwrap().rate = Rate { mean_workdays: 1, min_workdays: 1 };
        let row = forecast(&policy, &calendar(&policy), &[], date(2026, 11, 23), 7, 1).remove(0);
        assert_eq!((row.workdays, row.kills_p5, row.kills_p95, row.longest_gap_p95), (5, 5, 5, 1));
        assert_eq!(row.histogram, [GapCount { gap_workdays: 1, count: 4 * SPANS }]);
    }

    #[test]
    fn a_span_without_workdays_has_no_kills() {
        let policy = policy_with("UTC", &windows("mon", "10:00", "12:00"), "");
        let row = forecast(&policy, &calendar(&policy), &[], date(2026, 11, 24), 3, 1).remove(0);
        assert_eq!((row.workdays, row.kills_p95, row.longest_gap_p95), (0, 0, 0));
        assert_eq!(forecast(&policy, &calendar(&policy), &[], Date::MAX, u32::MAX, 1).len(), 1);
        assert_eq!(forecast(&policy, &calendar(&policy), &[], date(2026, 11, 24), 0, 1)[0].months, []);
    }

    #[test]
    fn a_row_is_json_in_snake_case() {
        let json = serde_json::to_value(one(10, 1)).unwrap();
        for key in ["asked_mean_workdays", "mean_gap_workdays", "kills_p5", "longest_gap_p95", "months", "histogram"] {
            assert!(!json[key].is_null(), "{key}");
        }
    }
}
