//! What is kept beside the code: examples, documentation, schemas.

use std::path::{Path, PathBuf};

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[test]
fn every_example_parses() {
    let folder = root().join("policies/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let policy =
            parse_policy(path.to_str().unwrap(), &text).unwrap_or_else(|found| panic!("{}", rendered(&found, &text)));
        assert!(!policy.0.apps.is_empty());
        count += 1;
    }
    assert!(count >= 4, "{count} examples were found");
}

#[test]
fn the_packages_site_file_is_leashed() {
    let text = std::fs::read_to_string(root().join("packaging/troop/files/etc/troop/troop.toml")).unwrap();
    let (site, warnings) =
        parse_site("troop.toml", &text).unwrap_or_else(|found| panic!("{}", rendered(&found, &text)));
    assert!(site.leashed && warnings.is_empty(), "{warnings:?}");
    assert_eq!(site.state.as_deref(), Some(Path::new("/var/lib/troop")));
}

/// A fragment of the documentation as a whole file: what it leaves out is put around it.
fn whole(fragment: &str) -> String {
    let has = |line_start: &str| fragment.lines().any(|l| l.starts_with(line_start));
    let root: String =
        BASE_ROOT.lines().filter(|l| !has(l.split(' ').next().unwrap())).map(|l| format!("{l}\n")).collect();
    let windows = if has("[[windows]]") { "" } else { WINDOWS };
    let app = if has("[apps.checkout]") || !fragment.contains("[apps.checkout") {
        ""
    } else {
        "[apps.checkout]\nmin_serving = 4\n"
    };
    let chaos = if fragment.contains(".drills]]") {
        "[apps.checkout.chaos]\nmean_workdays = 5\nmin_workdays = 2\n"
    } else {
        ""
    };
    format!("{root}{fragment}\n{windows}{app}{chaos}")
}

#[test]
fn every_block_of_the_documentation_parses() {
    let docs = std::fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let (mut count, mut rest) = (0, docs.as_str());
    while let Some((_, after)) = rest.split_once("\n```toml\n") {
        let (block, after) = after.split_once("\n```").unwrap();
        rest = after;
        count += 1;
        let is_site = block.contains("site ") || block.contains("[[accounts]]") || block.contains("[ledger]");
        let failed = if is_site {
            let text = if block.contains("site ") { block.to_owned() } else { format!("site = \"a\"\n{block}") };
            parse_site("docs/policy.md", &text).err().map(|found| rendered(&found, &text))
        } else {
            let text = whole(block);
            parse_policy("docs/policy.md", &text).err().map(|found| rendered(&found, &text))
        };
        assert_eq!(failed, None, "in\n{block}");
    }
    assert!(count >= 10, "{count} blocks were found");
}

#[test]
fn every_key_is_explained_in_the_documentation() {
    fn keys(schema: &Value, into: &mut std::collections::BTreeSet<String>) {
        for (key, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            into.insert(key.clone());
            keys(inner, into);
        }
        ["items", "additionalProperties"].iter().filter_map(|k| schema.get(*k)).for_each(|inner| keys(inner, into));
    }
    let docs = std::fs::read_to_string(root().join("docs/policy.md")).unwrap();
    let mut all = std::collections::BTreeSet::new();
    keys(&policy_schema(), &mut all);
    keys(&site_schema(), &mut all);
    let missing: Vec<_> = all.iter().filter(|key| !docs.contains(&format!("`{key}`"))).collect();
    assert_eq!(missing, Vec::<&String>::new());
    let unnamed: Vec<_> = KNOWN_CALENDARS.iter().filter(|c| !docs.contains(&format!("`{c}`"))).collect();
    assert_eq!(unnamed, Vec::<&&str>::new());
}

/// `TROOP_BLESS=1 cargo test -p troop-policies` writes the schemas anew.
#[test]
fn the_schemas_in_docs_are_those_of_the_types() {
    for (name, schema) in [("policy.schema.json", policy_schema()), ("site.schema.json", site_schema())] {
        let path = root().join("docs").join(name);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("TROOP_BLESS").is_some_and(|v| v == "1") {
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == text, "docs/{name} is not what the types say; TROOP_BLESS=1 writes it anew");
    }
}
