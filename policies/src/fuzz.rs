//! What must hold of any text that is read here: targets of `tests/fuzz/run`, whose corpora a test replays as well.

use std::collections::BTreeSet;

use crate::file::{self, Diagnostic, fuzz::values as checked_values};
use crate::hold::HoldSignal;
use crate::policy::{Place, Policy};
use crate::{AppName, ClusterName, GroupName, InstanceId, TeamName};

/// A policy file, and the same bytes as a site file.
///
/// Refused: every diagnostic has its place in the text, and something to type instead. Taken: line ends, a byte order
/// mark and the way it is laid out change nothing, and what a policy promises its readers holds.
///
/// # Panics
/// When it does not hold.
pub fn policy(data: &[u8]) {
    let text = match file::text_of("p.toml", data) {
        Ok(text) => text,
        Err(found) => return told(&found, &String::from_utf8_lossy(data)),
    };
    match file::parse_site("s.toml", text) {
        Ok((site, warnings)) => {
            told(&warnings, text);
            assert!(!site.name.is_empty() && site.balancer.is_none_or(|b| b.ip().is_loopback()));
        }
        Err(found) => told(&found, text),
    }
    match file::parse_policy("p.toml", text) {
        Ok((policy, warnings)) => {
            told(&warnings, text);
            assert_eq!(file::team_of(text).as_ref(), Some(&policy.team));
            promises(&policy);
            same_in_other_words(&policy, text);
        }
        Err(found) => told(&found, text),
    }
}

fn told(found: &[Diagnostic], text: &str) {
    let is_shown = |c: char| c == '\n' || !c.is_control();
    let lines = text.split('\n').count();
    for told in found {
        assert!((1..=lines).contains(&told.line), "{told:?}");
        let line = text.split('\n').nth(told.line - 1).unwrap_or("");
        assert!((1..=line.chars().count() + 1).contains(&told.column), "{told:?}");
        let shown = [Some(&told.message), told.hint.as_ref()];
        assert!(shown.into_iter().flatten().all(|text| !text.is_empty() && text.chars().all(is_shown)), "{told:?}");
        assert!(told.hint.is_some() || told.severity == file::Severity::Warning, "no hint: {told:?}");
        assert!(!told.render(text).is_empty());
    }
}

fn promises(policy: &Policy) {
    for app in policy.apps.values() {
        let rates = [app.chaos.as_ref().map(|c| c.rate), app.latency.as_ref().map(|l| l.rate)];
        for rate in rates.into_iter().flatten() {
            assert!(rate.min_workdays >= 1 && rate.mean_workdays >= rate.min_workdays);
            assert!(app.min_serving >= 1 && !policy.windows.is_empty());
        }
        assert!(!app.heals_within.is_zero());
    }
    assert!(policy.windows.iter().all(|w| !w.days.is_empty() && w.open != w.close));
    assert!(policy.blackouts.iter().all(|b| b.from < b.until && !b.reason.is_empty()));
}

fn same_in_other_words(policy: &Policy, text: &str) {
    let read = |text: &str| file::parse_policy("p.toml", text).map(|(policy, _)| without_places(policy));
    let there = Ok(without_places(policy.clone()));
    let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
    assert_eq!(read(&format!("\u{feff}{bare}")), there, "with a byte order mark");
    if !text.contains('\r') {
        assert_eq!(read(&text.replace('\n', "\r\n")), there, "with other line ends");
    }
    let tree: toml::Table = toml::from_str(bare).expect("what was taken is TOML");
    let printed = toml::to_string(&tree).expect("it can be written");
    assert_eq!(read(&printed), there, "printed:\n{printed}");
}

fn without_places(mut policy: Policy) -> Policy {
    let nowhere = Place { file: String::new(), line: 0 };
    policy.place = nowhere.clone();
    policy.blackouts.iter_mut().for_each(|b| b.place = nowhere.clone());
    for app in policy.apps.values_mut() {
        app.place = nowhere.clone();
        app.chaos.iter_mut().for_each(|c| c.place = nowhere.clone());
        app.latency.iter_mut().for_each(|l| l.place = nowhere.clone());
        app.exceptions.iter_mut().for_each(|e| e.place = nowhere.clone());
        app.drills.iter_mut().for_each(|d| d.place = nowhere.clone());
    }
    policy
}

/// Single values of the files: the first byte chooses the kind. What is read can be written and is read back as the same.
///
/// # Panics
/// When it does not hold.
pub fn values(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    if let Ok(text) = std::str::from_utf8(text) {
        checked_values(*kind, text);
    }
}

/// Names, ids and hold signals: one that was read builds to itself, and holds nothing that would break a path or a draw.
///
/// # Panics
/// When it does not hold.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(group) = GroupName::new(text) {
        assert_eq!(group.to_string(), text);
        safe(text);
        assert_eq!(again(&group), group);
        let cluster = group.cluster();
        match group.sequence() {
            None => assert_eq!(cluster.as_str(), text),
            Some(sequence) => {
                let digits = text.strip_prefix(&format!("{cluster}-v")).expect("its cluster, and its push");
                assert_eq!(digits.parse(), Ok(sequence));
            }
        }
        let next = cluster.next_group(Some(&group), &BTreeSet::from([group.clone()])).expect("999 are free");
        assert!(next != group && next.cluster() == cluster);
        if next.as_str().len() <= crate::names::GROUP_NAME_MAX_CHARS {
            assert_eq!(GroupName::new(next.as_str()).as_ref(), Ok(&next));
        }
    }
    if let Ok(cluster) = ClusterName::new(text) {
        assert_eq!(cluster.to_string(), text);
        assert_eq!(again(&cluster), cluster);
        let built = ClusterName::build(cluster.app(), cluster.stack(), cluster.detail());
        assert_eq!(built.as_ref(), Ok(&cluster));
        let first = cluster.group(0);
        assert_eq!(GroupName::new(first.as_str()).as_ref(), Ok(&first), "every cluster has a first group");
        assert_eq!(first.cluster(), &cluster);
    }
    if let Ok(app) = AppName::new(text) {
        assert_eq!((app.as_str(), again(&app) == app), (text, true));
        safe(text);
    }
    if let Ok(team) = TeamName::new(text) {
        assert_eq!((team.as_str(), again(&team) == team), (text, true));
        safe(text);
        assert!(!text.starts_with(['.', '-']), "`..`, or an option");
    }
    assert_eq!(TeamName::new(text).is_ok(), InstanceId::new(text).is_ok(), "ids follow one rule");
    if let Ok(signal) = HoldSignal::parse(text) {
        assert_eq!(HoldSignal::parse(&signal.to_string()).as_ref(), Ok(&signal));
    }
}

fn safe(name: &str) {
    assert!(!name.is_empty() && name.len() <= 128);
    assert!(!name.contains(['|', '/', '\\', '"', '\'', ' ', '*', '?']) && name.chars().all(|c| c.is_ascii_graphic()));
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("a name is a text");
    serde_json::from_str(&text).expect("what was taken once is taken again")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
        std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn the_corpora_hold() {
        for (name, target) in
            [("policy", super::policy as fn(&[u8])), ("values", super::values), ("names", super::names)]
        {
            let inputs = corpus(name);
            assert!(inputs.len() >= 10, "{name}");
            inputs.iter().for_each(|input| target(input));
        }
    }
}
