//! All fuzz targets in one binary, by plain libFuzzer; `tests/fuzz/run` builds it and says which target is meant.
//!
//! What must hold of an input stands beside the code that reads it, in the `fuzz` module of its crate; that crate's own
//! tests replay the corpus. Here is only the list.

#![cfg_attr(feature = "fuzzing", no_main)]

#[cfg(feature = "fuzzing")]
mod targets {
    use std::sync::LazyLock;

    use libfuzzer_sys::fuzz_target;

    /// Names the target that runs, one of [`TARGETS`].
    const CHOICE: &str = "TROOP_FUZZ_TARGET";

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 12] = [
        ("policy", troop_policies::fuzz::policy),
        ("values", troop_policies::fuzz::values),
        ("names", troop_policies::fuzz::names),
        ("icalendar", troop_scheduler::fuzz::icalendar),
        ("eureka", troop_registry::fuzz::eureka),
        ("manifest", troop_cloud::local::fuzz::manifest),
        ("tarball", troop_cloud::local::fuzz::tarball),
        ("api", troop::api::fuzz::api),
        ("frames", troop_agent_core::fuzz::frames),
        ("netem", troop_agent_core::fuzz::netem),
        ("packets", troop_agent::fuzz::packets),
        ("hostpolicy", troop_agent::fuzz::hostpolicy),
    ];

    static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var(CHOICE).unwrap_or_default();
        let known = || TARGETS.map(|(name, _)| name).join(", ");
        let found = TARGETS.iter().find(|(target, _)| *target == name);
        found.unwrap_or_else(|| panic!("{CHOICE} is `{name}`; say one of {}", known())).1
    });

    fuzz_target!(init: { LazyLock::force(&CHOSEN); }, |data: &[u8]| (*CHOSEN)(data));
}

#[cfg(not(feature = "fuzzing"))]
fn main() -> std::process::ExitCode {
    // Built with the workspace to see that it is whole; it fuzzes only as tests/fuzz/run builds it.
    std::process::ExitCode::from(2)
}
