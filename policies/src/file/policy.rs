//! From the raw policy file to [`Policy`]: names, values and what they must be to one another.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use toml::de::DeTable;

use super::diagnostic::{Findings, shown};
use super::raw::{Day, RawApp, RawBlackout, RawCaps, RawGrouping, RawHolidays, RawNoNotice, RawPolicy, RawWindow};
use super::scalar::{Bad, DurationText, Sp, date, date_time, duration, time, written};
use super::tree::nearest;
use super::{app, monkeys, schema, tree};
use crate::ids::TeamName;
use crate::names::AppName;
use crate::policy::{AppPolicy, Blackout, Grouping, Holidays, NoNotice, Policy, Recipient, TeamCaps, Window};

/// A group that is whole again within a second cannot be told from one that was never hurt.
const HEALS_WITHIN_MIN: Duration = Duration::from_secs(1);
/// Past a day nobody waits for the same incident any more.
const HEALS_WITHIN_MAX: Duration = Duration::from_secs(24 * 3600);
const HEALS_WITHIN: Duration = Duration::from_secs(5 * 60);

/// The bundled database, not the host's: two control planes must read one policy alike, and this crate reads no files.
static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// What the file says beside an app, which its monkeys inherit or need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Around {
    pub(crate) leashed: bool,
    /// Whether the file writes any window, be it a wrong one that has been told already.
    pub(crate) has_windows: bool,
}

/// Returns the policy, or `None` where something that it needs was told as an error.
pub(crate) fn policy(raw: &RawPolicy, written: &DeTable<'_>, out: &mut Findings<'_>) -> Option<Policy> {
    let team = named(raw.team.as_ref(), TeamName::new, out);
    let zone = raw.timezone.as_ref().and_then(|name| time_zone(name, out));
    let around = Around {
        leashed: raw.leashed.as_ref().is_none_or(|l| *l.get()),
        has_windows: tree::has_or_means(written, "windows", schema::policy(), &[])
            && written.get("windows").and_then(|w| w.get_ref().as_array()).is_none_or(|w| !w.is_empty()),
    };
    let notify = raw.notify.iter().filter_map(|text| recipient(text, out)).collect();
    let no_notice = no_notice(raw, out);
    let windows = raw.windows.iter().filter_map(|w| window(w, out)).collect();
    let holidays = raw.holidays.as_ref().map_or_else(Holidays::default, |h| holidays(h.get(), out));
    let blackouts = raw.blackouts.iter().filter_map(|b| blackout(b, out)).collect();
    let caps = raw.caps.as_ref().map_or_else(TeamCaps::default, |c| caps(c.get()));
    let apps = apps(raw, written, around, out);
    let (time_zone, time_zone_name) = zone?;
    Some(Policy {
        place: out.place(raw.team.as_ref().map_or(0, |t| t.span().start)),
        team: team?,
        owner: raw.owner.as_ref().map(|o| o.get().clone()),
        notify,
        no_notice,
        time_zone,
        time_zone_name,
        windows,
        holidays,
        blackouts,
        caps,
        apps,
    })
}

fn apps(
    raw: &RawPolicy,
    written: &DeTable<'_>,
    around: Around,
    out: &mut Findings<'_>,
) -> BTreeMap<AppName, AppPolicy> {
    if !written.contains_key("apps") {
        let hint = "add [apps.NAME] for each application that opts in".to_owned();
        out.warning(0..0, "this file names no app: nothing is opted in", Some(hint));
    }
    let all = written.get("apps").and_then(|a| a.get_ref().as_table());
    let mut apps = BTreeMap::new();
    for (key, raw_app) in &raw.apps {
        let Some(name) = named(Some(key), AppName::new, out) else { continue };
        let keys = all.and_then(|a| a.get(key.get().as_str())).and_then(|a| a.get_ref().as_table());
        let Some(keys) = keys else { continue };
        let app = one_app(&name, key, raw_app.get(), keys, around, out);
        apps.insert(name, app);
    }
    apps
}

fn one_app(
    name: &AppName,
    key: &Sp<String>,
    raw: &RawApp,
    keys: &DeTable<'_>,
    around: Around,
    out: &mut Findings<'_>,
) -> AppPolicy {
    let around = Around { leashed: raw.leashed.as_ref().map_or(around.leashed, |l| *l.get()), ..around };
    let monkey = ["chaos", "latency", "drills"].into_iter().find(|monkey| keys.contains_key(*monkey));
    if let Some(monkey) = monkey {
        needed(name, key, monkey, keys, around, out);
    }
    raw.never_suffixes.iter().for_each(|suffix| app::never_suffix(suffix, out));
    raw.hold_while.iter().for_each(|hold| app::hold_while(hold, out));
    let heals_within =
        raw.heals_within.as_ref().and_then(|d| bounded(d, "heals_within", HEALS_WITHIN_MIN, HEALS_WITHIN_MAX, out));
    AppPolicy {
        place: out.place(key.span().start),
        app: name.clone(),
        grouping: match raw.grouping.as_ref().map(Sp::get) {
            None | Some(RawGrouping::Cluster) => Grouping::Cluster,
            Some(RawGrouping::Stack) => Grouping::Stack,
            Some(RawGrouping::App) => Grouping::App,
        },
        regions_independent: raw.regions_independent.as_ref().is_none_or(|r| *r.get()),
        min_serving: raw.min_serving.as_ref().map_or(0, |m| *m.get()),
        heals_within: heals_within.unwrap_or(HEALS_WITHIN),
        never_suffixes: raw.never_suffixes.iter().map(|s| s.get().clone()).collect(),
        hold_while: raw.hold_while.iter().map(|h| h.get().clone()).collect(),
        chaos: raw.chaos.as_ref().and_then(|c| monkeys::chaos(c, around.leashed, out)),
        latency: raw.latency.as_ref().and_then(|l| monkeys::latency(l, around.leashed, out)),
        exceptions: raw.exceptions.iter().filter_map(|e| app::exception(e, out)).collect(),
        drills: raw.drills.iter().filter_map(|d| monkeys::drill(d, name, keys, out)).collect(),
        refused: None,
    }
}

/// What must stand in the file wherever a monkey is named.
fn needed(app: &AppName, key: &Sp<String>, monkey: &str, keys: &DeTable<'_>, around: Around, out: &mut Findings<'_>) {
    if !tree::has_or_means(keys, "min_serving", schema::policy(), &["apps", "*"]) {
        let message = format!("`min_serving` is missing: app `{app}` names `{monkey}`");
        let hint =
            format!("add min_serving to [apps.{app}]: how many instances of each group must keep serving, at least 1");
        out.error(key.span(), message, Some(hint));
    }
    if !around.has_windows {
        let message = format!("app `{app}` names `{monkey}`, but the file has no window in which it may act");
        let hint = "add [[windows]] with days, open and close".to_owned();
        out.error(key.span(), message, Some(hint));
    }
}

fn time_zone(name: &Sp<String>, out: &mut Findings<'_>) -> Option<(TimeZone, String)> {
    let text = name.get();
    let found = ZONES.get(text).ok().filter(|zone| !zone.is_unknown());
    let known = found.and_then(|zone| zone.iana_name().map(str::to_owned).map(|canonical| (zone.clone(), canonical)));
    if known.is_none() {
        let hint = nearest_zone(text).map_or_else(
            || "write a name of the IANA database, such as \"Europe/Berlin\" or \"UTC\"".to_owned(),
            |near| format!("did you mean \"{near}\"?"),
        );
        out.error(name.span(), format!("unknown time zone `{}`", shown(text)), Some(hint));
    }
    known
}

/// People write the city alone as often as they mistype it.
fn nearest_zone(text: &str) -> Option<String> {
    let names: Vec<String> = ZONES.available().map(|n| n.to_string()).filter(|n| n.contains('/')).collect();
    let city = text.replace(' ', "_");
    let same_city = names.iter().find(|n| n.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(&city)));
    same_city.cloned().or_else(|| nearest(&city, names.iter().map(String::as_str)).map(str::to_owned))
}

fn recipient(text: &Sp<String>, out: &mut Findings<'_>) -> Option<Recipient> {
    let plain = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-#@".contains(c));
    match text.get().split_once(':') {
        Some((channel, target)) if plain(channel) && plain(target) => {
            Some(Recipient { channel: channel.to_owned(), target: target.to_owned() })
        }
        Some(_) | None => {
            let hint = "write CHANNEL:TARGET with a channel of the site file, such as \"slack:shop-chaos\"".to_owned();
            out.error(text.span(), format!("`{}` is no channel", shown(text.get())), Some(hint));
            None
        }
    }
}

/// Who is never told would be spared for ever, and never learn why.
fn no_notice(raw: &RawPolicy, out: &mut Findings<'_>) -> NoNotice {
    let Some(written) = &raw.no_notice else { return NoNotice::default() };
    match written.get() {
        RawNoNotice::Act => NoNotice::Act,
        RawNoNotice::Spare => {
            if raw.notify.is_empty() {
                let hint =
                    "add notify = [\"CHANNEL:TARGET\"] with a channel of the site file, or write \"act\"".to_owned();
                out.error(written.span(), "`no_notice` spares, and `notify` names nobody to be told", Some(hint));
            }
            NoNotice::Spare
        }
    }
}

fn window(raw: &Sp<RawWindow>, out: &mut Findings<'_>) -> Option<Window> {
    let both =
        |text: &Sp<super::scalar::TimeText>, out: &mut Findings<'_>| read(text.span(), time(&text.get().0), "", out);
    let open = raw.get().open.as_ref().and_then(|t| both(t, out));
    let close = raw.get().close.as_ref().and_then(|t| both(t, out));
    if let (Some(open), Some(close), Some(text)) = (open, close, &raw.get().close)
        && open == close
    {
        let hint = "for all but the day's last minute write open = \"00:00\" and close = \"23:59\"".to_owned();
        out.error(text.span(), "`close` equals `open`: the window is empty, or a whole day?", Some(hint));
        return None;
    }
    let mut days: Vec<_> = raw.get().days.as_ref()?.iter().map(|d| weekday(*d.get())).collect();
    days.sort_by_key(|d| d.to_monday_zero_offset());
    Some(Window { days, open: open?, close: close? })
}

fn weekday(day: Day) -> Weekday {
    match day {
        Day::Mon => Weekday::Monday,
        Day::Tue => Weekday::Tuesday,
        Day::Wed => Weekday::Wednesday,
        Day::Thu => Weekday::Thursday,
        Day::Fri => Weekday::Friday,
        Day::Sat => Weekday::Saturday,
        Day::Sun => Weekday::Sunday,
    }
}

fn holidays(raw: &RawHolidays, out: &mut Findings<'_>) -> Holidays {
    for file in &raw.files {
        if !file.get().ends_with(".ics") {
            let hint = "export the calendar as iCalendar; the file's name ends with .ics".to_owned();
            out.error(file.span(), format!("`{}` is no iCalendar file", shown(file.get())), Some(hint));
        } else if !Path::new(file.get())
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            let hint = "put a copy beside this file, and name it by its path from here".to_owned();
            out.error(file.span(), format!("`{}` leads out of this file's folder", shown(file.get())), Some(hint));
        }
    }
    let mut dates = BTreeSet::new();
    for text in &raw.dates {
        if let Some(day) = read(text.span(), date(&text.get().0), "", out)
            && !dates.insert(day)
        {
            out.warning(text.span(), format!("{day} stands twice in `dates`"), None);
        }
    }
    Holidays {
        calendars: raw.calendars.iter().map(|c| c.get().0.clone()).collect(),
        files: raw.files.iter().map(|f| PathBuf::from(f.get())).collect(),
        dates: dates.into_iter().collect(),
    }
}

fn blackout(raw: &Sp<RawBlackout>, out: &mut Findings<'_>) -> Option<Blackout> {
    let both = |text: &Sp<super::scalar::DateTimeText>, out: &mut Findings<'_>| {
        read(text.span(), date_time(&text.get().0), "", out)
    };
    let from = raw.get().from.as_ref().and_then(|t| both(t, out));
    let until = raw.get().until.as_ref().and_then(|t| both(t, out));
    if let (Some(from), Some(until), Some(text)) = (from, until, &raw.get().until)
        && until <= from
    {
        let hint = format!("it must be later than {from}; `until` itself is outside again");
        out.error(text.span(), "the blackout ends before it begins", Some(hint));
        return None;
    }
    let reason = raw.get().reason.as_ref()?.get().clone();
    Some(Blackout { from: from?, until: until?, reason, place: out.place(raw.span().start) })
}

fn caps(raw: &RawCaps) -> TeamCaps {
    let standard = TeamCaps::default();
    TeamCaps {
        kills_per_day: raw.kills_per_day.as_ref().map(|n| *n.get()).or(standard.kills_per_day),
        unhealed_at_once: raw.unhealed_at_once.as_ref().map_or(standard.unhealed_at_once, |n| *n.get()),
    }
}

/// Reads a name by its checked constructor.
pub(crate) fn named<T>(
    text: Option<&Sp<String>>,
    new: impl Fn(String) -> Result<T, crate::ids::BadId>,
    out: &mut Findings<'_>,
) -> Option<T> {
    let text = text?;
    match new(text.get().clone()) {
        Ok(name) => Some(name),
        Err(bad) => {
            let (message, hint) = match bad.text.as_str() {
                "" => (format!("the {} is empty", bad.kind), "write it between the quotes"),
                text => (format!("`{}` is no {}", shown(text), bad.kind), bad.why),
            };
            out.error(text.span(), message, Some(hint.to_owned()));
            None
        }
    }
}

/// Tells what is wrong with a value, if anything is. `key` stands before the message where the line does not name it.
pub(crate) fn read<T>(span: Range<usize>, value: Result<T, Bad>, key: &str, out: &mut Findings<'_>) -> Option<T> {
    match value {
        Ok(value) => Some(value),
        Err(bad) => {
            let message = if key.is_empty() { bad.message } else { format!("`{key}`: {}", bad.message) };
            out.error(span, message, bad.hint);
            None
        }
    }
}

/// Reads a duration that has bounds.
pub(crate) fn bounded(
    text: &Sp<DurationText>,
    key: &str,
    least: Duration,
    most: Duration,
    out: &mut Findings<'_>,
) -> Option<Duration> {
    let value = read(text.span(), duration(&text.get().0), key, out)?;
    if (least..=most).contains(&value) {
        return Some(value);
    }
    let hint = if value < least {
        format!("write \"{}\" or more", written(least))
    } else {
        format!("write \"{}\" or less", written(most))
    };
    let (least, most) = (written(least), written(most));
    out.error(text.span(), format!("`{key}` must be between {least} and {most}"), Some(hint));
    None
}
