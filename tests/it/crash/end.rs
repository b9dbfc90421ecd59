//! The state in which a story ends: the same text, whoever was killed on the way.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use troop_ledger::{IntentFilter, IntentRow, Ledger};

/// What a ledger says, read as any reader reads it.
pub(crate) fn intents(state: &Path) -> Vec<IntentRow> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::open_read_only(&state.join("ledger.db")).await.unwrap();
        let intents = ledger.intents(&IntentFilter::default()).await.unwrap();
        let locks = Arc::new(ledger.locks().await.unwrap());
        assert!(locks.len() <= 1, "two hold the one cluster: {locks:?}");
        ledger.close().await;
        intents
    })
}

/// A kill's row, by the reason that was typed.
pub(crate) fn kill(rows: &[IntentRow], mark: &str) -> Option<IntentRow> {
    let mut found = rows.iter().filter(|row| row.body["intent"]["cause"]["reason"] == mark);
    let first = found.next().cloned();
    assert!(found.next().is_none(), "one command killed twice: {mark}");
    first
}

/// Pushes, groups and the steps that took effect, one a line.
pub(crate) fn describe(pushes: &[Value], instances: &[Value], rows: &[IntentRow]) -> String {
    let mut lines = Vec::new();
    let mut pushes: Vec<&Value> = pushes.iter().collect();
    pushes.sort_by_key(|push| push["push"].as_u64());
    for push in &pushes {
        let steps = steps_of(push["push"].as_u64().unwrap(), rows);
        lines.push(format!(
            "push of {}: {}, {}; {steps}",
            text(push, "version"),
            text(push, "phase"),
            push["result"].as_str().unwrap_or("-")
        ));
    }
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for i in instances {
        let (group, version) = (text(i, "group"), text(i, "version"));
        // A group that never became healthy is kept for a look, and its instances are replaced now and then.
        let health = if text(i, "health").starts_with("unhealthy") { "unhealthy" } else { text(i, "health") };
        let line = format!(
            "{group} {version} {}: {} {health} {}",
            text(i, "traffic"),
            text(i, "lifecycle"),
            text(i, "registry")
        );
        *groups.entry(line).or_default() += 1;
    }
    lines.extend(groups.into_iter().map(|(line, count)| format!("{line} x {count}")));
    lines.join("\n")
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or("-")
}

/// How often each step of a push took effect, or may have.
fn steps_of(push: u64, rows: &[IntentRow]) -> String {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.body["intent"]["cause"]["push"] == push) {
        if row.outcome.as_deref() != Some("refused") {
            *counts.entry(&row.kind).or_default() += 1;
        }
    }
    counts.into_iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}
