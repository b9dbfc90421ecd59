//! `troop status`: what is broken by us right now, since when, until when, by whom.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use troop_policies::intent::Cause;
use troop_policies::situation::Halted;

use super::running::answered;
use super::time;
use crate::api::types::{LiveView, PushView};

/// Everything that `status` found out.
#[derive(Debug, Clone, Serialize)]
pub struct StatusView {
    pub schema: u32,
    /// Empty when nothing is; see `unknown_because` first.
    pub broken: Vec<Broken>,
    /// Why it cannot be said what is broken.
    pub unknown_because: Option<String>,
    pub halted: Option<Halted>,
    /// Set when the halt file is there and cannot be read, which halts too.
    pub halt_unreadable: Option<String>,
    pub control_plane: Option<LiveView>,
    /// Why the control plane said nothing, where it did not.
    pub control_plane_away: Option<String>,
    pub balancer: Option<String>,
    /// Steps that are recorded and not settled.
    pub open_steps: Vec<OpenStep>,
    pub pushes: Vec<PushView>,
}

/// What we broke and nobody has seen whole again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Broken {
    pub state: BrokenState,
    pub draw_key: String,
    pub instance: Option<String>,
    pub group: Option<String>,
    pub zone: Option<String>,
    pub team: Option<String>,
    pub since: Timestamp,
    /// When it counts as not healed. Null once it does: then it ends by `troop clear`.
    pub until: Option<Timestamp>,
    pub by: String,
    pub why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokenState {
    /// Recorded, and its outcome is not known yet.
    Ending,
    Healing,
    /// A fault is on its network, or is being put there or taken away.
    Delayed,
    Unhealed,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpenStep {
    pub intent: String,
    pub step: String,
    pub by: String,
    pub since: Timestamp,
}

/// Who or what an intent is because of.
pub fn by(cause: &Cause) -> String {
    match cause {
        Cause::Draw { team, monkey, day, .. } => format!("{monkey}'s draw of {day} (team {team})"),
        Cause::Drill { team, monkey, day, .. } => format!("{monkey} of {day} (team {team})"),
        Cause::Demand { actor, reason, team, outside_window, .. } => {
            let outside = if *outside_window { ", outside the window" } else { "" };
            format!("{actor}, \"{reason}\" (team {team}{outside})")
        }
        Cause::Push { push, actor } => format!("push {push} of {actor}"),
        Cause::Upkeep { reason } => format!("upkeep: {reason}"),
    }
}

/// The zones of teams, by team name; a team that is not in it is shown in UTC.
pub type Zones = BTreeMap<String, TimeZone>;

fn zone_of<'a>(zones: &'a Zones, team: Option<&str>) -> &'a TimeZone {
    const UTC: &TimeZone = &TimeZone::UTC;
    team.and_then(|team| zones.get(team)).unwrap_or(UTC)
}

/// Whether the first line asks for somebody.
pub fn needs_somebody(view: &StatusView) -> bool {
    view.unknown_because.is_some() || !view.broken.is_empty()
}

/// The first line: what is broken by us right now, since when, until when, by whom.
pub fn headline(view: &StatusView, zones: &Zones, now: Timestamp) -> String {
    if let Some(why) = &view.unknown_because {
        return format!("what is broken by us right now cannot be known: {why}");
    }
    match view.broken.as_slice() {
        [] => "nothing is broken by us right now".to_owned(),
        [one] => format!("broken by us right now: {}", broken(one, zones, now, view.control_plane.is_some())),
        many => {
            let since = many.iter().map(|b| b.since).min().unwrap_or(now);
            let all_heal = many.iter().all(|b| b.until.is_some());
            let until = match many.iter().filter_map(|b| b.until).max() {
                Some(latest) if all_heal => {
                    format!("until healed, {} at the latest", time::both(latest, &TimeZone::UTC))
                }
                Some(_) | None => "until cleared".to_owned(),
            };
            let who: std::collections::BTreeSet<_> = many.iter().map(|b| b.by.as_str()).collect();
            let who = who.into_iter().collect::<Vec<_>>().join(" and ");
            format!(
                "broken by us right now: {} things, since {}, {until}, by {who}",
                many.len(),
                time::both(since, &TimeZone::UTC)
            )
        }
    }
}

fn broken(b: &Broken, zones: &Zones, now: Timestamp, is_watched: bool) -> String {
    let zone = zone_of(zones, b.team.as_deref());
    let place = b.zone.as_ref().map(|z| format!(" in {z}")).unwrap_or_default();
    let what = match (&b.instance, &b.group) {
        (Some(instance), Some(group)) => format!("{instance} of {group}{place}"),
        (Some(what), None) | (None, Some(what)) => format!("{what}{place}"),
        (None, None) => b.draw_key.clone(),
    };
    let since = time::both(b.since, zone);
    let until = match (b.state, b.until) {
        (BrokenState::Unhealed, _) | (BrokenState::Healing | BrokenState::Ending | BrokenState::Delayed, None) => {
            format!("until `troop clear {} --reason …`", b.draw_key)
        }
        (BrokenState::Delayed, Some(until)) => format!("until {} at the latest", time::both(until, zone)),
        (BrokenState::Healing | BrokenState::Ending, Some(until)) if until > now || is_watched => {
            format!("until healed, {} at the latest", time::both(until, zone))
        }
        (BrokenState::Healing | BrokenState::Ending, Some(until)) => {
            let until = time::both(until, zone);
            format!("until healed; its limit, {until}, has passed, and nobody watches while the control plane is away")
        }
    };
    let state = match b.state {
        BrokenState::Ending => " is being ended",
        BrokenState::Healing => " was ended and its group is not whole again",
        BrokenState::Delayed => " has a fault on its network",
        BrokenState::Unhealed => " has not healed in time",
    };
    let why = b.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{what}{state}, since {since}, {until}, by {}{why}", b.by)
}

/// Everything below the first line.
pub fn rest(view: &StatusView, zones: &Zones, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    if view.broken.len() > 1 {
        lines.extend(view.broken.iter().map(|b| format!("  {}", broken(b, zones, now, view.control_plane.is_some()))));
    }
    lines.push(match (&view.halt_unreadable, &view.halted) {
        (Some(why), _) => format!("HALTED: {why}; `troop resume --reason …` ends this"),
        (None, Some(halted)) => {
            let since = time::both(halted.at, &TimeZone::UTC);
            format!("HALTED since {since} by {}: {}; `troop resume --reason …` ends this", halted.who, halted.why)
        }
        (None, None) => "not halted".to_owned(),
    });
    match (&view.control_plane, &view.control_plane_away) {
        (Some(live), _) => lines.extend(control_plane(live, now)),
        (None, Some(why)) => lines.push(format!("control plane: {why}. Nothing is planned or killed meanwhile")),
        (None, None) => lines.push("control plane: not asked".to_owned()),
    }
    if let Some(balancer) = &view.balancer {
        lines.push(format!("balancer: http://{balancer}"));
    }
    for step in &view.open_steps {
        let since = time::both(step.since, &TimeZone::UTC);
        lines.push(format!("not settled yet: {}, since {since}, by {} (intent {})", step.step, step.by, step.intent));
    }
    for p in view.pushes.iter().filter(|p| !p.ended) {
        let answered = p.traffic.as_ref().map(|traffic| format!("; {}", answered(traffic))).unwrap_or_default();
        lines.push(format!("push {}: {}, by {}: {}: {}{answered}", p.push, p.group, p.actor, p.phase, p.note));
    }
    lines
}

fn control_plane(live: &LiveView, now: Timestamp) -> Vec<String> {
    let leash = match (live.site_leashed, live.not_ready.is_empty()) {
        (true, _) => "leashed: it plans and changes nothing",
        (false, true) => "unleashed",
        (false, false) => "leashed until it is ready, though its file unleashes it",
    };
    // Only the embedded cloud has a balancer of ours.
    let sandbox = if live.balancer.is_some() { " in its sandbox" } else { "" };
    let mut lines = vec![
        format!("control plane: runs for {}, pid {}{sandbox}", time::since(live.started_at, now), live.pid),
        format!("site {}: {leash}", live.site),
    ];
    lines.extend(live.not_ready.iter().map(|missing| format!("not ready: it needs {missing}")));
    // Only a demo's calendar is elsewhere; a second of difference is the time between two readings.
    if now.duration_since(live.calendar).as_secs().abs() > 1 {
        lines.push(format!(
            "calendar: {} (a demo's; everything else is real time)",
            time::both(live.calendar, &TimeZone::UTC)
        ));
    }
    lines.push(format!("registry: {}", live.registry));
    if live.policies.is_empty() {
        lines.push("policies: none: no monkey touches anything".to_owned());
    }
    for policy in &live.policies {
        let team = policy.team.as_ref().map_or_else(|| "team unknown".to_owned(), |t| format!("team {t}"));
        lines.push(match &policy.problem {
            None => format!("policy {}: {team}, ok", policy.file),
            Some(why) => format!("policy {}: {team}, BAD, spared as a whole: {why}", policy.file),
        });
    }
    lines.extend(live.troubles.iter().map(|trouble| format!("TROUBLE {trouble}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn nothing() -> StatusView {
        StatusView {
            schema: 1,
            broken: Vec::new(),
            unknown_because: None,
            halted: None,
            halt_unreadable: None,
            control_plane: None,
            control_plane_away: Some("does not run".to_owned()),
            balancer: None,
            open_steps: Vec::new(),
            pushes: Vec::new(),
        }
    }

    fn healing() -> Broken {
        Broken {
            state: BrokenState::Healing,
            draw_key: "local/r1/hello-web".to_owned(),
            instance: Some("i-4f21".to_owned()),
            group: Some("hello-web-v001".to_owned()),
            zone: Some("r1b".to_owned()),
            team: Some("shop".to_owned()),
            since: at("2026-11-24T18:07:00Z"),
            until: Some(at("2026-11-24T18:12:00Z")),
            by: "ana, \"drill\" (team shop)".to_owned(),
            why: None,
        }
    }

    fn zones() -> Zones {
        [("shop".to_owned(), time::zone("America/New_York"))].into()
    }

    #[test]
    fn the_first_line_says_what_since_when_until_when_and_by_whom() {
        let now = at("2026-11-24T18:08:00Z");
        assert_eq!(headline(&nothing(), &zones(), now), "nothing is broken by us right now");
        let one = StatusView { broken: vec![healing()], ..nothing() };
        assert_eq!(
            headline(&one, &zones(), now),
            "broken by us right now: i-4f21 of hello-web-v001 in r1b was ended and its group is not whole again, since Tue \
             2026-11-24 13:07:00 EST (18:07:00Z), until healed, Tue 2026-11-24 13:12:00 EST (18:12:00Z) at the latest, by \
             ana, \"drill\" (team shop)"
        );
        assert!(needs_somebody(&one) && !needs_somebody(&nothing()));
    }

    #[test]
    fn a_limit_that_passed_while_nobody_watched_is_told() {
        let view = StatusView { broken: vec![healing()], ..nothing() };
        let line = headline(&view, &zones(), at("2026-11-24T19:00:00Z"));
        assert!(line.contains("has passed, and nobody watches while the control plane is away"), "{line}");
    }

    #[test]
    fn an_unhealed_scope_says_what_to_type() {
        let unhealed =
            Broken { state: BrokenState::Unhealed, until: None, why: Some("no launch".to_owned()), ..healing() };
        let view = StatusView { broken: vec![unhealed, healing()], ..nothing() };
        let now = at("2026-11-24T18:08:00Z");
        let line = headline(&view, &zones(), now);
        assert!(
            line.starts_with("broken by us right now: 2 things, since Tue 2026-11-24 18:07:00 UTC, until cleared"),
            "{line}"
        );
        let rest = rest(&view, &zones(), now).join("\n");
        assert!(rest.contains("until `troop clear local/r1/hello-web --reason …`, by ana"), "{rest}");
        assert!(
            rest.contains("not halted\ncontrol plane: does not run. Nothing is planned or killed meanwhile"),
            "{rest}"
        );
    }

    #[test]
    fn what_cannot_be_known_is_never_told_as_nothing() {
        let view = StatusView {
            unknown_because: Some("the ledger is damaged".to_owned()),
            halt_unreadable: Some("halt is there and cannot be read".to_owned()),
            ..nothing()
        };
        let line = headline(&view, &zones(), at("2026-11-24T18:08:00Z"));
        assert_eq!(line, "what is broken by us right now cannot be known: the ledger is damaged");
        assert!(rest(&view, &zones(), at("2026-11-24T18:08:00Z"))[0].starts_with("HALTED: halt is there"));
    }
}
