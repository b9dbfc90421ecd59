//! The teams of a simulated site and what they write in their policies.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// A team with its clusters.
#[derive(Debug, Clone)]
pub struct Team {
    pub name: &'static str,
    pub zone: &'static str,
    pub window: (&'static str, &'static str),
    pub days: &'static str,
    pub apps: Vec<App>,
    pub kills_per_day: Option<u64>,
    pub unhealed_at_once: u64,
    pub holidays: Vec<String>,
    pub blackout: Option<(String, String)>,
    /// A file that does not parse.
    pub bad: bool,
}

#[derive(Debug, Clone)]
pub struct App {
    pub name: &'static str,
    pub grouping: &'static str,
    pub min_serving: u64,
    pub leashed: bool,
    pub mean: u64,
    pub min: u64,
    pub drain: bool,
    pub during_push: bool,
    pub hold: bool,
    pub heals_s: u64,
    /// Cron lines at which it is drilled.
    pub drills: Vec<&'static str>,
    pub clusters: Vec<(&'static str, u32)>,
}

const WEEK: &str = r#""mon", "tue", "wed", "thu", "fri""#;
const ALL: &str = r#""mon", "tue", "wed", "thu", "fri", "sat", "sun""#;

/// Some fall into a window of every team, some into one that is skipped or comes twice when the clocks change.
const DRILLS: [&str; 4] = ["30 11 * * *", "30 2 * * *", "0 23,3 * * *", "45 10 * * tue"];

/// The teams of a seed.
pub fn teams(rng: &mut Rng) -> Vec<Team> {
    let zones = ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia"];
    let mut size = |low, high| u32::try_from(rng.between(low, high)).unwrap_or(3);
    let (web, pci, night, alt, other) = (size(4, 7), size(3, 4), size(3, 6), size(3, 4), size(3, 5));
    let app = |name, clusters: Vec<(&'static str, u32)>, rng: &mut Rng| {
        let least = clusters.iter().map(|(_, size)| *size).min().unwrap_or(3);
        let mean = 1 + rng.below(3);
        App {
            name,
            grouping: "cluster",
            // Often the floor leaves room for one; sometimes for none, and then nobody may ever be killed.
            min_serving: u64::from(least)
                .saturating_sub([0, 1, 1, 1, 2][usize::try_from(rng.below(5)).unwrap_or(1)])
                .max(1),
            leashed: false,
            mean,
            min: 1 + rng.below(mean.min(2)),
            drain: rng.percent(30),
            during_push: rng.percent(15),
            hold: false,
            heals_s: 180 + rng.below(3) * 120,
            drills: if rng.percent(40) { vec![DRILLS[usize::try_from(rng.below(4)).unwrap_or(0)]] } else { Vec::new() },
            clusters,
        }
    };
    let shop = Team {
        name: "shop",
        zone: zones[usize::try_from(rng.below(5)).unwrap_or(0)],
        window: ("09:00", "17:00"),
        days: WEEK,
        apps: vec![
            app("checkout", vec![("checkout-web", web), ("checkout-pci", pci)], rng),
            app("cart", vec![("cart", other)], rng),
        ],
        kills_per_day: if rng.percent(60) { Some(1 + rng.below(2)) } else { None },
        unhealed_at_once: 1 + u64::from(rng.percent(50)),
        holidays: Vec::new(),
        blackout: None,
        bad: false,
    };
    let mut batch = Team {
        name: "batch",
        zone: "Europe/London",
        window: ("22:00", "04:00"),
        days: ALL,
        apps: vec![app("ingest", vec![("ingest-main", night), ("ingest-alt", alt)], rng)],
        kills_per_day: if rng.percent(30) { Some(1) } else { None },
        unhealed_at_once: 1 + u64::from(rng.percent(50)),
        holidays: Vec::new(),
        blackout: None,
        bad: false,
    };
    if rng.percent(50) {
        batch.apps[0].grouping = "app";
    }
    let mut search = Team {
        name: "search",
        zone: zones[usize::try_from(rng.below(5)).unwrap_or(0)],
        window: ("00:00", "23:30"),
        days: ALL,
        apps: vec![app("search", vec![("search-idx", 3)], rng), app("hold", vec![("hold-web", 4)], rng)],
        ..shop.clone()
    };
    search.apps[0].leashed = rng.percent(50);
    search.apps[1].hold = rng.percent(70);
    vec![shop, batch, search]
}

impl Team {
    pub fn file(&self) -> String {
        format!("{}.toml", self.name)
    }

    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        if self.bad {
            return format!("format = 1\nteam = \"{}\"\ntimezone = 7\n", self.name);
        }
        let mut text = format!(
            "format = 1\nteam = \"{}\"\ntimezone = \"{}\"\n\n[[windows]]\ndays = [{}]\nopen = \"{}\"\nclose = \"{}\"\n",
            self.name, self.zone, self.days, self.window.0, self.window.1
        );
        if !self.holidays.is_empty() {
            let dates: Vec<_> = self.holidays.iter().map(|date| format!("\"{date}\"")).collect();
            let _written = write!(text, "\n[holidays]\ndates = [{}]\n", dates.join(", "));
        }
        if let Some((from, until)) = &self.blackout {
            let dark = format!("\n[[blackouts]]\nfrom = \"{from}\"\nuntil = \"{until}\"\nreason = \"sim\"\n");
            text.push_str(&dark);
        }
        let cap = self.kills_per_day.map(|cap| format!("kills_per_day = {cap}\n")).unwrap_or_default();
        let _written = write!(text, "\n[caps]\n{cap}unhealed_at_once = {}\n", self.unhealed_at_once);
        for app in &self.apps {
            text.push_str(&app.text());
        }
        text
    }
}

impl App {
    fn text(&self) -> String {
        let name = self.name;
        let hold = if self.hold { "hold_while = [\"alertmanager:team=sim\"]\n" } else { "" };
        let kill = if self.drain { "kill = \"drain\"\ndrain = \"20s\"\n" } else { "kill = \"crash\"\n" };
        let mut text = format!(
            "\n[apps.{name}]\ngrouping = \"{}\"\nmin_serving = {}\nheals_within = \"{}s\"\n{hold}\n[apps.{name}.chaos]\n\
             leashed = {}\nmean_workdays = {}\nmin_workdays = {}\nduring_push = {}\n{kill}",
            self.grouping, self.min_serving, self.heals_s, self.leashed, self.mean, self.min, self.during_push
        );
        if name == "checkout" {
            text.push_str(
                "\n[[apps.checkout.exceptions]]\naccount = \"*\"\nregion = \"*\"\nstack = \"pci\"\ndetail = \"*\"\n\
                 reason = \"card data\"\n",
            );
        }
        for line in &self.drills {
            text.push_str(&format!("\n[[apps.{name}.drills]]\ncron = \"{line}\"\nmonkey = \"chaos\"\n"));
        }
        text
    }
}

/// All files by name.
pub fn texts(teams: &[Team]) -> BTreeMap<String, String> {
    teams.iter().map(|team| (team.file(), team.text())).collect()
}
