//! `policy check` and `policy init`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use troop_cloud::Cloud as _;
#[cfg(feature = "aws")]
use troop_cloud::CloudError;
use troop_cloud::local::client::LocalCloud;
use troop_policies::inventory::{Group, Instance, Inventory, TAG_SPARE};
use troop_policies::policy::{AppPolicy, Policy, Site};
use troop_policies::{TeamName, file};
use troop_scheduler::drills;

use super::args::Output;
use super::aws;
use super::context::{self, Context};
use super::policy_files::{self, PolicyFile};
use crate::exit::{CliError, Code};
use crate::state::StateDir;
use crate::views::policy::{self, AppRow, DrillRow, DrillRun};
use crate::{clock, site, ui};

/// Runs of each drill that are told: enough to see a month's first Tuesday, or a change of the clocks, come by.
const RUNS_TOLD: usize = 5;

/// The name of the site file, which is checked as one wherever it is named.
const SITE_FILE: &str = "troop.toml";

/// Write and check policy files
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    Check(CheckArgs),
    Init(InitArgs),
}

/// A cloud that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The embedded cloud of `troop up`
    Local,
    /// Every account and region of the site file; only reads leave
    Aws,
}

/// Check policy files: every mistake with its line, what they opt in, and when their drills run next
///
/// Without --against only the text is read, and no network. A file named troop.toml is checked as the site file. Exit 1
/// when a file does not count: its whole team is then spared, and no other team is affected.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A file, or a folder of *.toml
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Also ask a running cloud what the policies match
    #[arg(long, value_enum, value_name = "CLOUD")]
    against: Option<Against>,
    /// Also check what the policies name of this site file, troop.toml; for aws [default: /etc/troop/troop.toml]
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Write a commented policy for a team to stdout; it is leashed and opts nothing in
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// As in the tag troop:team of its groups
    #[arg(long, value_name = "TEAM")]
    team: TeamName,
}

/// What `policy check` says as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    files: Vec<FileReport<'a>>,
    apps: &'a [AppRow],
    drills: &'a [DrillRow],
    /// Groups of the cloud that are not known though they could be, and why.
    unknown_groups: &'a [String],
}

#[derive(Debug, Serialize)]
struct FileReport<'a> {
    file: &'a str,
    team: Option<&'a TeamName>,
    ok: bool,
    /// Why it does not count, where no diagnostic says so.
    problem: Option<&'a str>,
    diagnostics: &'a [file::Diagnostic],
}

pub(super) fn run(cx: &Context, command: PolicyCommand) -> Result<Code, CliError> {
    match command {
        PolicyCommand::Init(args) => {
            ui::data(file::template(&args.team));
            Ok(Code::Ok)
        }
        PolicyCommand::Check(args) if is_site_file(&args.path) => check_site(&args),
        PolicyCommand::Check(args) => check(cx, &args),
    }
}

fn is_site_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == SITE_FILE)
}

fn check_site(args: &CheckArgs) -> Result<Code, CliError> {
    if args.against.is_some() {
        return Err(
            CliError::new(Code::Input, "a site file is not checked against a cloud").hint("leave --against out")
        );
    }
    match site::read(Some(&args.path)) {
        Ok(read) => {
            read.warnings.iter().for_each(|warning| ui::note(warning));
            let leash = if read.site.leashed { "leashed: it plans and changes nothing" } else { "unleashed" };
            if args.output.is_json() {
                ui::json(
                    &serde_json::json!({ "schema": 1, "site": read.site.name, "leashed": read.site.leashed, "warnings": read.warnings }),
                );
            } else {
                ui::line(&format!(
                    "site {}: ok, {leash}; policies in {}",
                    read.site.name,
                    read.site.policies.display()
                ));
            }
            Ok(Code::Ok)
        }
        Err(e) => Err(CliError::of(Code::Input, &e)),
    }
}

fn check(cx: &Context, args: &CheckArgs) -> Result<Code, CliError> {
    let mut files = policy_files::read(&args.path)?;
    let path = match args.against {
        Some(Against::Aws) if !cfg!(feature = "aws") => return Err(context::no_aws()),
        Some(Against::Aws) => Some(args.site.as_deref().unwrap_or(Path::new(aws::SITE_FILE))),
        Some(Against::Local) | None => args.site.as_deref(),
    };
    let site = path.map(|path| site::read(Some(path)).map(|read| (path, read.site))).transpose()?;
    let (inventories, unknown) = match (args.against, &site) {
        (Some(Against::Local), _) => (Some(context::block_on(ask(&cx.state()?))?), Vec::new()),
        (Some(Against::Aws), Some((path, site))) => {
            let (inventories, unknown): (Vec<_>, Vec<_>) = ask_aws(path, site)?.into_iter().unzip();
            (Some(inventories), unknown.concat())
        }
        (Some(Against::Aws) | None, _) => (None, Vec::new()),
    };
    if let Some((_, site)) = &site {
        for file in &mut files {
            file.warnings.extend(file::unknown_channels(&file.name, &file.text, &site.channels));
        }
    }
    let refused = refuse(&mut files);
    let rows = rows(&files, inventories.as_deref());
    let drills = drill_rows(&files, clock::real_now());
    let bad = policy_files::tell(&files);
    if args.output.is_json() {
        let reports = files.iter().map(report).collect();
        ui::json(&Report { schema: 1, files: reports, apps: &rows, drills: &drills, unknown_groups: &unknown });
    } else if rows.is_empty() && bad == 0 {
        ui::note("no app stands in these policies: nothing is opted in");
    } else if !rows.is_empty() {
        ui::line(&policy::text(&rows));
        if !drills.is_empty() {
            ui::line(&policy::drills(&drills));
        }
    }
    unknown.iter().for_each(|note| ui::note(note));
    refused.iter().for_each(|why| ui::note(&format!("error: {why}")));
    if bad > 0 {
        return Err(policy_files::bad(&files));
    }
    Ok(if refused.is_empty() { Code::Ok } else { Code::Input })
}

fn report(file: &PolicyFile) -> FileReport<'_> {
    FileReport {
        file: &file.name,
        team: file.team.as_ref(),
        ok: !file.is_bad(),
        problem: file.problem(),
        diagnostics: file.diagnostics(),
    }
}

/// Refuses what two files claim, as the control plane will, and returns the reasons.
fn refuse(files: &mut [PolicyFile]) -> Vec<String> {
    let bad: Vec<_> =
        files.iter().filter(|f| f.is_bad()).filter_map(|f| Some((f.team.clone()?, f.name.clone()))).collect();
    let mut policies: Vec<Policy> =
        files.iter().filter_map(|f| f.result.as_ref().ok().map(|(p, _)| p.clone())).collect();
    let reasons = file::conflicts(&mut policies);
    for (team, name) in &bad {
        file::spare_team(&mut policies, team, name);
    }
    let good = files.iter_mut().filter_map(|f| f.result.as_mut().ok());
    for ((policy, _), refused) in good.zip(policies) {
        *policy = refused;
    }
    reasons
}

/// Every region of the embedded cloud that runs.
async fn ask(state: &StateDir) -> Result<Vec<Inventory>, CliError> {
    let cloud = LocalCloud::new(state.path());
    let mut inventories = Vec::new();
    for region in cloud.regions().to_vec() {
        let inventory = cloud.inventory(&region).await.map_err(|e| {
            CliError::of(Code::Unavailable, &e)
                .hint("start it with `troop up`, name its folder with `--state DIR`, or leave --against out")
        })?;
        inventories.push(inventory);
    }
    Ok(inventories)
}

/// Every region of every account of the site, and what of its groups is not known. All of them, or none: what cannot be seen is not
/// "matches nothing".
#[cfg(feature = "aws")]
fn ask_aws(path: &Path, site: &Site) -> Result<Vec<(Inventory, Vec<String>)>, CliError> {
    aws::has_accounts(path, site)?;
    context::block_on(async {
        let clouds = crate::accounts::aws_clouds(site).await;
        let clouds = clouds.map_err(|why| CliError::new(Code::Unavailable, why))?;
        let places = clouds.iter().flat_map(|cloud| cloud.regions().iter().map(move |region| (cloud, region)));
        let asked = places.map(|(cloud, region)| async move {
            let inventory = cloud.inventory(region).await?;
            let doubts = cloud.groups_in_doubt(region).await.into_iter();
            Ok((inventory, doubts.map(|doubt| format!("{}/{region}: {doubt}", cloud.account())).collect()))
        });
        let all: Result<Vec<_>, CloudError> = futures::future::join_all(asked).await.into_iter().collect();
        all.map_err(|e| CliError::of(Code::Unavailable, &e).hint("`troop aws doctor` says what is missing"))
    })
}

#[cfg(not(feature = "aws"))]
fn ask_aws(_path: &Path, _site: &Site) -> Result<Vec<(Inventory, Vec<String>)>, CliError> {
    Err(context::no_aws())
}

fn rows(files: &[PolicyFile], inventories: Option<&[Inventory]>) -> Vec<AppRow> {
    let policies = files.iter().filter_map(|f| f.result.as_ref().ok().map(|(policy, _)| (f, policy)));
    let apps = policies.flat_map(|(f, policy)| policy.apps.values().map(move |app| (f, policy, app)));
    apps.map(|(f, policy, app)| row(f, policy, app, inventories)).collect()
}

fn drill_rows(files: &[PolicyFile], now: Timestamp) -> Vec<DrillRow> {
    let good = files.iter().filter_map(|f| f.result.as_ref().ok());
    good.flat_map(|(policy, calendar)| {
        drills::upcoming(policy, calendar, now, RUNS_TOLD).into_iter().map(move |upcoming| {
            let (runs, problem) = match upcoming.runs {
                Ok(runs) => (runs, None),
                Err(bad) => (Vec::new(), Some(bad.to_string())),
            };
            DrillRow {
                app: upcoming.app.to_string(),
                team: policy.team.to_string(),
                place: upcoming.drill.place.to_string(),
                monkey: upcoming.drill.monkey.clone(),
                cron: upcoming.drill.cron.clone(),
                time_zone: policy.time_zone_name.clone(),
                next: runs.into_iter().map(|run| DrillRun::new(run.at, &policy.time_zone, run.shut)).collect(),
                problem,
            }
        })
    })
    .collect()
}

fn row(file: &PolicyFile, policy: &Policy, app: &AppPolicy, inventories: Option<&[Inventory]>) -> AppRow {
    let mut warnings: Vec<String> = app.refused.iter().cloned().collect();
    if app.chaos.is_none() && app.latency.is_none() {
        warnings.push("names no monkey: nothing happens to it".to_owned());
    }
    let mut row = AppRow {
        app: app.app.to_string(),
        team: policy.team.to_string(),
        file: file.name.clone(),
        groups: None,
        instances: None,
        opted_in: policy::opted_in(app),
        warnings: Vec::new(),
    };
    match inventories {
        Some(inventories) => {
            let (groups, instances, found) = matches(policy, app, inventories);
            row.groups = Some(groups);
            row.instances = Some(instances);
            warnings.extend(found);
        }
        None => {
            let list = |e: &troop_policies::policy::Exception| format!("exception, {}", e.place);
            warnings.extend(app.exceptions.iter().map(list));
        }
    }
    row.warnings = warnings;
    row
}

/// How many groups and instances an app's policy matches, and what of it is not as its author may think.
fn matches(policy: &Policy, app: &AppPolicy, inventories: &[Inventory]) -> (usize, usize, Vec<String>) {
    let mut warnings = BTreeSet::new();
    let (mut groups, mut instances, mut others) = (0, 0, 0);
    for inventory in inventories {
        for group in inventory.groups.values().filter(|g| g.name.app() == &app.app) {
            if !policy.owns(group) {
                others += 1;
                let tag =
                    group.team().map_or_else(|| "carries no tag troop:team".to_owned(), |t| format!("is team `{t}`'s"));
                warnings.insert(format!("{} {tag}: not matched", group.name));
                continue;
            }
            groups += 1;
            instances += group.members.len();
            match app.exempt(&inventory.account, &inventory.region, group.cluster()) {
                Some(_) if app.refused.is_some() => {}
                Some(why) => drop(warnings.insert(format!("{}: {why}", group.cluster()))),
                None => warnings.extend(left_alone(app, group)),
            }
        }
    }
    for exception in &app.exceptions {
        let hits = |inventory: &Inventory| {
            let mut clusters = inventory.clusters().into_iter();
            clusters.any(|c| c.app() == &app.app && exception.matches(&inventory.account, &inventory.region, c))
        };
        if !inventories.iter().any(hits) {
            warnings.insert(format!("exception at {} matches nothing", exception.place));
        }
    }
    if groups == 0 && others == 0 {
        warnings.insert("matches nothing: no group of this app runs".to_owned());
    }
    (groups, instances, warnings.into_iter().collect())
}

/// Why nothing of a group that the policy names would be hurt, as it is now.
fn left_alone(app: &AppPolicy, group: &Group) -> Vec<String> {
    let name = &group.name;
    let mut why = Vec::new();
    let running = u32::try_from(group.members.len()).unwrap_or(u32::MAX);
    if group.in_rotation && running <= app.min_serving {
        let floor = app.min_serving;
        why.push(format!("{name}: {running} instances and min_serving {floor}: always at its floor, never hurt"));
    }
    why.extend(group.hold.iter().map(|hold| format!("{name}: {hold}")));
    let of_members = |so: fn(&Instance) -> bool| group.members.values().filter(|member| so(member)).count();
    let (spared, protected) = (of_members(|member| member.spare), of_members(|member| member.protected));
    if spared > 0 {
        why.push(format!("{name}: {spared} of {running} spared by the tag {TAG_SPARE}"));
    }
    if protected > 0 {
        why.push(format!("{name}: {protected} of {running} protected by the cloud"));
    }
    why
}

#[cfg(test)]
mod tests {
    use std::fs;

    use troop_policies::inventory::{Lifecycle, TAG_TEAM};
    use troop_policies::step::Size;

    #[cfg(not(feature = "aws"))]
    use super::super::args::Format;
    use super::*;

    fn files(texts: &[(&str, String)]) -> (tempfile::TempDir, Vec<PolicyFile>) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in texts {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let files = policy_files::read(dir.path()).unwrap();
        (dir, files)
    }

    fn policy(team: &str, app: &str) -> String {
        include_str!("../../../policies/examples/minimal.toml")
            .replace("\"search\"", &format!("\"{team}\""))
            .replace("apps.search", &format!("apps.{app}"))
    }

    #[test]
    fn an_app_that_two_files_claim_is_refused_in_both() {
        let (_dir, mut files) = files(&[("a.toml", policy("one", "search")), ("b.toml", policy("two", "search"))]);
        let reasons = refuse(&mut files);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        let rows = rows(&files, None);
        assert!(rows.iter().all(|r| r.warnings.iter().any(|w| w.contains("claimed by 2 policy files"))), "{rows:?}");
    }

    #[test]
    fn a_bad_file_of_a_team_spares_its_good_one_too() {
        let (_dir, mut files) =
            files(&[("a.toml", policy("one", "search")), ("b.toml", "format = 1\nteam = \"one\"\n".to_owned())]);
        assert_eq!(refuse(&mut files), Vec::<String>::new());
        let rows = rows(&files, None);
        assert!(rows[0].warnings[0].contains("has a file with mistakes"), "{rows:?}");
    }

    /// A region in which one group of the app `search` serves, of team `one`, with two instances that nobody may hurt.
    fn inventory(region: &str) -> Inventory {
        let at: Timestamp = "2026-11-24T10:00:00Z".parse().unwrap();
        let instance = |id: &str, spare, protected| {
            let instance = Instance {
                id: id.parse().unwrap(),
                zone: "a".parse().unwrap(),
                image: "ami-1".parse().unwrap(),
                lifecycle: Lifecycle::InService,
                launched_at: at,
                address: None,
                port: 80,
                protected,
                spare,
                target: None,
            };
            (instance.id.clone(), instance)
        };
        let group = Group {
            name: "search-web-v001".parse().unwrap(),
            created_at: at,
            image: "ami-1".parse().unwrap(),
            version: None,
            size: Size::pinned(4),
            zones: BTreeSet::new(),
            tags: [(TAG_TEAM.to_owned(), "one".to_owned())].into(),
            enabled: true,
            has_targets: true,
            in_rotation: true,
            registry_required: false,
            last_failed_launch: None,
            hold: Some("Launch suspended".to_owned()),
            members: [("i-1", true, false), ("i-2", false, true), ("i-3", false, false), ("i-4", false, false)]
                .map(|(id, spare, protected)| instance(id, spare, protected))
                .into(),
        };
        Inventory {
            account: "prod".parse().unwrap(),
            region: region.parse().unwrap(),
            zones: BTreeSet::new(),
            read_at: at,
            groups: [(group.name.clone(), group)].into(),
        }
    }

    #[test]
    fn what_of_a_group_is_left_alone_is_told_with_its_reason() {
        let (_dir, files) = files(&[("a.toml", policy("one", "search"))]);
        let row = &rows(&files, Some(&[inventory("r1")]))[0];
        assert_eq!((row.groups, row.instances), (Some(1), Some(4)));
        let told = [
            "search-web-v001: 1 of 4 protected by the cloud",
            "search-web-v001: 1 of 4 spared by the tag troop:spare",
            "search-web-v001: Launch suspended",
        ];
        assert_eq!(row.warnings, told);
    }

    #[cfg(not(feature = "aws"))]
    #[test]
    fn without_aws_nobody_there_is_asked_and_the_error_is_that_of_every_such_command() {
        let (dir, _files) = files(&[("a.toml", policy("one", "search"))]);
        let path = dir.path().to_owned();
        let args = CheckArgs { path, against: Some(Against::Aws), site: None, output: Output { format: Format::Text } };
        let error = check(&Context::new(None), &args).unwrap_err();
        assert_eq!((error.code, error.what.as_str()), (Code::Unavailable, context::no_aws().what.as_str()));
        assert!(error.hint.unwrap().contains("--features aws"));
    }

    #[test]
    fn an_exception_matches_nothing_only_if_it_does_so_everywhere() {
        let text = format!(
            "{}\n[[apps.search.exceptions]]\naccount = \"*\"\nregion = \"r2\"\nstack = \"*\"\ndetail = \"*\"\nreason = \"x\"\n",
            policy("one", "search")
        );
        let (_dir, files) = files(&[("a.toml", text)]);
        let (here, there) = (inventory("r1"), inventory("r2"));
        let told = |inventories: &[Inventory]| rows(&files, Some(inventories))[0].warnings.join("; ");
        assert!(told(std::slice::from_ref(&here)).contains("matches nothing"));
        let both = told(&[here, there]);
        assert!(!both.contains("matches nothing") && both.contains("search-web: exception at"), "{both}");
    }

    #[test]
    fn what_matches_nothing_is_said() {
        let (_dir, files) = files(&[("a.toml", policy("one", "search"))]);
        let rows = rows(&files, Some(&[]));
        assert_eq!((rows[0].groups, rows[0].instances), (Some(0), Some(0)));
        assert!(rows[0].warnings[0].starts_with("matches nothing"), "{rows:?}");
    }

    #[test]
    fn the_next_runs_of_drills_are_told_for_each_file() {
        let drill = "[[apps.search.drills]]\ncron = \"30 10 1-7 * tue\"\nmonkey = \"chaos\"\n";
        let (_dir, files) =
            files(&[("a.toml", format!("{}{drill}", policy("one", "search"))), ("b.toml", policy("two", "blog"))]);
        let rows = drill_rows(&files, "2026-11-24T12:00:00Z".parse().unwrap());
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.app.as_str(), row.next.len(), &row.problem), ("search", RUNS_TOLD, &None));
        assert!(row.next[0].local.starts_with("Tue 2026-12-01 10:30 "), "{row:?}");
    }

    #[test]
    fn the_template_passes_the_check() {
        let (_dir, files) = files(&[("new.toml", file::template(&"shop".parse().unwrap()))]);
        assert!(!files[0].is_bad(), "{:?}", files[0].shown());
    }
}
