//! Rules about the tree itself: which way arrows point, who inherits the lints, and that no file was forgotten.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The layer of every package. An arrow points to a lower layer only, never sideways or up (docs/architecture.md).
const LAYERS: [(&str, u32); 13] = [
    ("troop-policies", 1),
    ("troop-http", 1),
    ("troop-scheduler", 2),
    ("troop-cloud", 2),
    ("troop-registry", 2),
    ("troop-ledger", 2),
    ("troop-agent-core", 2),
    ("troop-agent", 3),
    ("troop-monkeys", 3),
    ("troop-deploy", 3),
    ("troop", 4),
    ("troop-tests", 5),
    ("troop-fuzz", 5),
];

/// A file longer than this has a second subject. Tests may be longer: they are lists.
const FILE_LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn metadata() -> cargo_metadata::Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .unwrap()
}

/// Every file of the tree that is ours, with its path from the root.
fn files(extension: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !name.starts_with("target") {
                    walk(&path, extension, found);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), extension, &mut found);
    found
}

#[test]
fn arrows_point_down() {
    let layers: BTreeMap<_, _> = LAYERS.into();
    let mut wrong = Vec::new();
    for package in metadata().packages {
        let own = *layers.get(package.name.as_str()).unwrap_or_else(|| panic!("{} has no layer", package.name));
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            if layers.get(dependency.name.as_str()).is_some_and(|other| *other >= own) {
                wrong.push(format!("{} -> {}", package.name, dependency.name));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn policies_are_pure() {
    let banned = ["tokio", "sqlx", "reqwest", "hyper", "nix", "rustix", "axum"];
    for package in metadata()
        .packages
        .iter()
        .filter(|p| ["troop-policies", "troop-scheduler", "troop-agent-core"].contains(&p.name.as_str()))
    {
        for dependency in &package.dependencies {
            assert!(!banned.contains(&dependency.name.as_str()), "{} depends on {}", package.name, dependency.name);
        }
    }
}

/// Its SDKs take longer to compile than everything else together.
#[test]
fn aws_is_built_only_where_it_is_asked_for() {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "-p", "troop", "-e", "normal,build", "--prefix", "none", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    let packages: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(packages.contains("troop-cloud"), "{packages:?}");
    let of_aws: Vec<&&str> = packages.iter().filter(|name| name.starts_with("aws-")).collect();
    assert_eq!(of_aws, Vec::<&&str>::new());
}

#[test]
fn every_crate_inherits_the_lints() {
    for package in metadata().packages {
        let manifest = fs::read_to_string(&package.manifest_path).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{} does not inherit the lints", package.name);
    }
}

#[test]
fn no_file_was_forgotten() {
    let sources = files("rs");
    let manifests: String = files("toml").into_iter().map(|(_, text)| text).collect();
    let declared: BTreeSet<String> = sources
        .iter()
        .flat_map(|(_, text)| {
            text.lines().map(str::trim).filter_map(module_name).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    for (path, _) in &sources {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let name = if stem == "mod" {
            path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned()
        } else {
            stem
        };
        let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let entry = ["lib", "main", "build"].contains(&name.as_str());
        // Cargo finds tests and examples by their folder.
        let found = ["/tests/", "/examples/"].iter().any(|folder| relative.contains(folder));
        let target = found || manifests.contains(path.file_name().unwrap().to_str().unwrap());
        assert!(entry || target || declared.contains(&name), "{relative} is part of no crate");
    }
}

/// The name in `mod name;`, `pub mod name;` or `pub(crate) mod name;`.
fn module_name(line: &str) -> Option<&str> {
    let rest = line.strip_suffix(';')?;
    let (before, name) = rest.rsplit_once("mod ")?;
    ["", "pub ", "pub(crate) ", "pub(super) "].contains(&before).then_some(name)
}

#[test]
fn files_have_one_subject() {
    for (path, text) in files("rs") {
        let lines = text.lines().count();
        let is_test = path.to_string_lossy().contains("tests");
        assert!(
            is_test || lines <= FILE_LINES_MAX,
            "{} has {lines} lines: look for its second subject",
            path.display()
        );
    }
}

#[test]
fn only_the_clock_reads_the_clock() {
    for (path, text) in files("rs") {
        // Tests bring up real parts, which share the host's clock.
        let is_test = path.to_string_lossy().contains("/tests/");
        let allowed = is_test || ["clock.rs", "tidy.rs"].iter().any(|name| path.ends_with(name));
        for (number, line) in text.lines().enumerate() {
            let reads = ["Timestamp::now()", "SystemTime::now()"].iter().any(|call| line.contains(call));
            let comment = line.trim_start().starts_with("//");
            assert!(allowed || comment || !reads, "{}:{} reads the clock", path.display(), number + 1);
        }
    }
}

#[test]
fn nothing_names_a_machine_or_a_registry_host() {
    // In parts, so that the list itself names none of them.
    let banned =
        [concat!("/", "work/"), concat!("/", "root/"), "crates.io/api", "pypi.org", "registry.npmjs", "/tmp/tgt"];
    for extension in ["rs", "toml", "md", "py", "sh", "yml"] {
        for (path, text) in files(extension) {
            if path.ends_with("tidy.rs") {
                continue;
            }
            for word in banned {
                assert!(!text.contains(word), "{} holds `{word}`", path.display());
            }
        }
    }
}

/// Names of saboteurs that are no words of anything else.
const SABOTEURS: [&str; 8] = [
    "superseded_early",
    "halt_recheck",
    "unknown_counts",
    "deadline_shift",
    "mixed_team",
    "one_a_day",
    "second_ask",
    "team_unhealed_cap",
];

#[test]
fn no_release_holds_a_saboteur() {
    let known = troop_tests::saboteurs::names();
    assert!(SABOTEURS.iter().all(|name| known.contains(name)), "{known:?}");
    // The release that `.ci/run` has just built; else one that lies beside this test, if one does.
    let built = std::env::var_os("TROOP_RELEASE").map(std::path::PathBuf::from);
    let beside = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("release/troop");
    for binary in built.clone().into_iter().chain([beside]) {
        let bytes = match fs::read(&binary) {
            Ok(bytes) => bytes,
            Err(e) if built.as_ref() == Some(&binary) => panic!("{}: {e}", binary.display()),
            Err(_) => continue,
        };
        for name in SABOTEURS {
            let found = bytes.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(!found, "{} holds the saboteur `{name}`", binary.display());
        }
    }
}

#[test]
fn nothing_but_a_stage_of_the_tests_asks_for_sabotage() {
    for extension in ["toml", "yml", "sh", "json"] {
        for (path, text) in files(extension) {
            let asks = text.lines().any(|line| line.contains("troop_sabotage") && !line.contains("check-cfg"));
            assert!(!asks, "{} asks for sabotage", path.display());
        }
    }
    for config in [".cargo/config.toml", ".cargo/config", ".ci/run", "justfile"] {
        let text = fs::read_to_string(root().join(config)).unwrap_or_default();
        assert!(!text.contains("troop_sabotage"), "{config} asks for sabotage");
    }
}
