//! The Debian packages: `packaging/build-deb` and `packaging/check`.

#![expect(clippy::unwrap_used, reason = "these are tests, and so are their helpers")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn said(command: &mut Command) -> String {
    let done = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{}\n{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

/// Makes a package of `program` and checks it. It is not compressed, which would take as long as everything else together.
fn check(name: &str, program: &Path, exposure_max: u32) {
    let out = tempfile::tempdir().unwrap();
    let mut build = Command::new(root().join("packaging/build-deb"));
    build.args([name.as_ref(), program.as_os_str(), out.path().as_os_str()]).env("COMPRESS", "none");
    let package = said(&mut build);
    let mut check = Command::new(root().join("packaging/check"));
    check.arg(package.trim()).env("EXPOSURE_MAX", exposure_max.to_string());
    assert!(said(&mut check).ends_with("good\n"));
}

#[test]
#[ignore = "needs root"]
fn the_agents_package_is_whole_and_its_unit_names_nothing_that_is_not_in_it() {
    // systemd counts tenths: root with four capabilities cannot come down to where an ordinary user is.
    check("troop-agent", Path::new(env!("CARGO_BIN_EXE_troop-agent")), 45);
}

#[test]
#[ignore = "needs root"]
fn the_control_planes_package_is_whole_and_its_unit_names_nothing_that_is_not_in_it() {
    let troop = Path::new(env!("CARGO_BIN_EXE_troop-agent")).with_file_name("troop");
    assert!(troop.exists(), "cargo build -p troop, as the tests of the whole workspace do");
    check("troop", &troop, 20);
}
