//! The draws of plans in their printed shape, replayed: by the vectors of docs/draws.md, and by an implementation in another
//! language that shares nothing with this one.

#![expect(clippy::unwrap_used, reason = "a test: what goes wrong in a helper fails it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use jiff::Timestamp;
use jiff::civil::{Date, date};
use troop_policies::draw::SiteSecret;
use troop_policies::inventory::{Group, Inventory, TAG_TEAM};
use troop_policies::plan::DayPlan;
use troop_policies::policy::Policy;
use troop_policies::step::Size;
use troop_scheduler::calendar::Calendar;
use troop_scheduler::plan::{ByTeam, PlanInput, ScopeSeen, plan_day, scopes_of};

/// The secret of the published vectors.
const SECRET: &str = "1111111111111111111111111111111111111111111111111111111111111111";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn secret() -> SiteSecret {
    SiteSecret::parse(SECRET).unwrap()
}

/// A team of four apps with rates from every day to once in eight, over two windows of which one passes midnight.
fn policy(team: &str) -> Policy {
    let app = |(name, mean, min): (&str, u32, u32)| {
        format!(
            "[apps.{name}]\nmin_serving = 2\n[apps.{name}.chaos]\nleashed = false\nmean_workdays = {mean}\nmin_workdays = {min}\n"
        )
    };
    let apps: String = [("daily", 1, 1), ("often", 2, 1), ("some", 4, 2), ("rare", 9, 2)].map(app).concat();
    let text = format!(
        "format = 1
team = \"{team}\"
timezone = \"America/New_York\"
[[windows]]
days = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sun\"]
open = \"10:00\"
close = \"16:07\"
[[windows]]
days = [\"wed\", \"sat\"]
open = \"23:10\"
close = \"04:00\"
[holidays]
calendars = [\"us-federal\"]
{apps}"
    );
    troop_policies::file::parse_policy("t.toml", &text).unwrap().0
}

fn inventory(region: &str, team: &str) -> Inventory {
    let at = Timestamp::UNIX_EPOCH;
    let names = ["daily", "often", "some", "rare"]
        .into_iter()
        .flat_map(|app| ["api", "web", "jobs"].map(|stack| format!("{app}-{stack}-v001")));
    let group = |name: String| {
        let group = Group {
            name: name.parse().unwrap(),
            created_at: at,
            image: "ami-1".parse().unwrap(),
            version: None,
            size: Size::pinned(0),
            zones: BTreeSet::new(),
            tags: BTreeMap::from([(TAG_TEAM.to_owned(), team.to_owned())]),
            enabled: true,
            has_targets: true,
            in_rotation: true,
            registry_required: true,
            last_failed_launch: None,
            hold: None,
            members: BTreeMap::new(),
        };
        (group.name.clone(), group)
    };
    Inventory {
        account: "prod".parse().unwrap(),
        region: region.parse().unwrap(),
        zones: BTreeSet::new(),
        read_at: at,
        groups: names.map(group).collect(),
    }
}

struct Team {
    policy: Policy,
    calendar: Calendar,
    scopes: Vec<ScopeSeen>,
}

fn team(name: &str) -> Team {
    let policy = policy(name);
    let calendar = Calendar::new(&policy, &BTreeMap::new()).unwrap();
    let scopes = scopes_of(&policy, &ByTeam::of(&["us-east-1", "eu-west-1"].map(|region| inventory(region, name))));
    Team { policy, calendar, scopes }
}

fn plan(team: &Team, day: Date) -> DayPlan {
    let day_key = secret().day_key(day, &team.policy.team);
    plan_day(&PlanInput {
        policy: &team.policy,
        calendar: &team.calendar,
        day,
        day_key: &day_key,
        now: Timestamp::UNIX_EPOCH,
        site_leashed: false,
        halted: false,
        scopes: &team.scopes,
    })
}

/// The plans of 150 days of each team.
fn plans(teams: &[&str]) -> Vec<DayPlan> {
    let days: Vec<Date> = std::iter::successors(Some(date(2027, 1, 1)), |day| day.tomorrow().ok()).take(150).collect();
    teams
        .iter()
        .flat_map(|name| {
            let team = team(name);
            days.iter().map(|day| plan(&team, *day)).collect::<Vec<_>>()
        })
        .collect()
}

fn published(mut plan: DayPlan) -> DayPlan {
    plan.day_key = Some(secret().day_key(plan.day, &plan.team).to_hex());
    plan
}

fn draws_of(plans: &[DayPlan]) -> usize {
    let entries = plans.iter().flat_map(|plan| &plan.entries);
    entries.map(|e| usize::from(e.unit.is_some()) + usize::from(e.minute.is_some())).sum()
}

/// Alters a plan, most often its entry with this index.
type Change = fn(&mut DayPlan, usize);

/// A folder of this test's own, gone with the value.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One object a line.
    fn write(&self, plans: &[DayPlan]) -> PathBuf {
        let lines: String = plans.iter().map(|plan| format!("{}\n", serde_json::to_string(plan).unwrap())).collect();
        self.write_text(&lines)
    }

    fn write_text(&self, text: &str) -> PathBuf {
        let path = self.0.path().join("plans.json");
        fs::write(&path, text).unwrap();
        path
    }
}

fn replay(args: &[&str], file: &Path) -> Output {
    let script = root().join("tests/py/replay_draws.py");
    Command::new("python3").arg(script).args(args).arg(file).output().unwrap()
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8_lossy(&text).trim().to_owned())
}

#[test]
fn the_documents_vectors_are_what_is_drawn() {
    let docs = fs::read_to_string(root().join("docs/draws.md")).unwrap();
    let key = secret().day_key(date(2027, 3, 15), &"shop".parse().unwrap());
    let stream = |monkey: &str| key.stream("prod/us-east-1/checkout-web", monkey);
    let mut draw = stream("chaos");
    let row = |what: &str, value: &str| {
        let row = format!("| {what} | {value} |");
        assert!(docs.lines().any(|line| line == row), "docs/draws.md lacks `{row}`");
    };
    row("day key", &format!("`{}`", key.to_hex()));
    row("MONKEY `chaos`, draw 0", &draw.clone().u64().to_string());
    row("its unit", &draw.unit().to_string());
    row("draw 1", &draw.clone().u64().to_string());
    row("`below(360)` of it", &draw.below(360).unwrap().to_string());
    let ids = ["i-0a11", "i-0b7e", "i-0c03"];
    let victim = |monkey: &str| {
        let index = usize::try_from(stream(monkey).below(3).unwrap()).unwrap();
        format!("`{}`", ids[index])
    };
    row("MONKEY `chaos/victim`, `below(3)` of `i-0a11`, `i-0b7e`, `i-0c03`", &victim("chaos/victim"));
    row("MONKEY `drill:chaos@10:30/victim`, the same three", &victim("drill:chaos@10:30/victim"));
    let demand = docs.split("MONKEY `chaos/demand/").nth(1).unwrap().split('`').next().unwrap();
    row(&format!("MONKEY `chaos/demand/{demand}`, the same three"), &victim(&format!("chaos/demand/{demand}")));

    // Which draws `below(2^63 + 1)` takes, by looking at each.
    let mut all = stream("chaos");
    let taken: Vec<_> = (0..).filter(|_| all.u64() <= 1 << 63).take(8).map(|n: u32| n.to_string()).collect();
    let sentence = format!("eight times from draw 0 on takes draws {}.", taken.join(", "));
    assert!(docs.contains(&sentence), "docs/draws.md lacks `{sentence}`");
}

#[test]
fn the_plans_to_replay_hold_more_than_ten_thousand_draws() {
    let plans = plans(&["shop", "search", "ads"]);
    assert!(draws_of(&plans) >= 10_000, "{}", draws_of(&plans));
    assert!(plans.iter().all(|plan| plan.day_key.is_none()));
    assert_eq!(plans, self::plans(&["shop", "search", "ads"]), "planned twice, differently");
}

#[test]
#[ignore = "needs python3"]
fn python_agrees_on_ten_thousand_draws() {
    let scratch = Scratch::new();
    let plans = plans(&["shop", "search", "ads"]);
    let count = draws_of(&plans);
    assert!(count >= 10_000, "{count}");
    let all: Vec<_> = plans.iter().cloned().map(published).collect();
    assert_eq!(told(&replay(&[], &scratch.write(&all))), (Some(0), format!("{count} draws agree")));
    // Not published yet: whoever runs the site can check by the secret, nobody else.
    assert_eq!(told(&replay(&["--secret", SECRET], &scratch.write(&plans))), (Some(0), format!("{count} draws agree")));
    assert_eq!(told(&replay(&[], &scratch.write(&plans))).0, Some(1));
    // As a list, as one object over many lines.
    let list = serde_json::to_string(&all).unwrap();
    assert_eq!(told(&replay(&[], &scratch.write_text(&list))), (Some(0), format!("{count} draws agree")));
    let pretty = serde_json::to_string_pretty(&all[3]).unwrap();
    assert_eq!(
        told(&replay(&["--secret", SECRET], &scratch.write_text(&pretty))),
        (Some(0), format!("{} draws agree", draws_of(&all[3..4])))
    );
}

#[test]
#[ignore = "needs python3"]
fn python_finds_whatever_was_altered() {
    let scratch = Scratch::new();
    let team = team("shop");
    let good = published(plan(&team, date(2027, 3, 15)));
    let chosen = good.entries.iter().position(|e| e.minute.is_some()).unwrap();
    let alter = |change: Change| {
        let mut plan = good.clone();
        change(&mut plan, chosen);
        told(&replay(&["--secret", SECRET], &scratch.write(&[plan])))
    };
    assert_eq!(alter(|_, _| {}).0, Some(0));
    let altered: [(&str, Change); 10] = [
        ("unit is", |plan, i| plan.entries[i].unit = Some(f64::from_bits(plan.entries[i].unit.unwrap().to_bits() + 1))),
        ("fell is", |plan, i| plan.entries[i].fell = Some(false)),
        ("fell is", |plan, i| plan.entries[i].odds = Some(0.0)),
        ("minute is", |plan, i| plan.entries[i].minute = Some(plan.entries[i].minute.unwrap() + 1)),
        ("minute is", |plan, i| plan.entries[i].minute = None),
        ("minute is", |plan, i| plan.entries[i].unit = None),
        ("unit is", |plan, i| plan.entries[i].draw_key.push('x')),
        ("the published day key is", |plan, _| plan.day_key = Some("00".repeat(32))),
        ("cannot be replayed", |plan, i| plan.entries[i].odds = None),
        ("cannot be replayed", |plan, i| plan.entries[i].window_minutes = 0),
    ];
    for (what, change) in altered {
        let (code, text) = alter(change);
        assert_eq!(code, Some(1), "{what}: {text}");
        assert!(text.contains(what), "{what} is not in {text}");
    }
    assert_eq!(told(&replay(&[], &scratch.write_text("no plan"))).0, Some(1));
    assert_eq!(told(&replay(&[], &scratch.0.path().join("missing"))).0, Some(1));
}

#[test]
#[ignore = "needs python3"]
fn the_documents_example_prints_its_vectors() {
    let docs = fs::read_to_string(root().join("docs/draws.md")).unwrap();
    let example = docs.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let output = Command::new("python3").args(["-c", example]).output().unwrap();
    let (code, text) = told(&output);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[0], "2988723037258b474cf790fc3fda4af0bb92e362787fa1f1c48580833feaac24");
    assert_eq!(lines[1], "0.8274821819976536 359");
    for line in lines {
        let values: Vec<_> = line.split(' ').collect();
        assert!(values.iter().all(|value| docs.contains(value)), "{line}");
    }
}
