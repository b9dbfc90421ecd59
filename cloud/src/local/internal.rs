//! The hidden half of the binary: the copies of itself that it starts to enter namespaces, before any runtime.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use super::init::{self, Body, Clock};
use super::sandbox::SandboxSpec;
use super::steps::{Report, StepFailed, complain, report_up};
use super::{agents, helper, instance, keeper, reaper};

/// The first argument of a helper. The binary hands everything after it to [`internal_main`], first thing in `main`.
pub const INTERNAL: &str = "internal";

/// Runs one of the sandbox's helpers. `args` is what follows [`INTERNAL`]; `clock` becomes the cloud process's.
///
/// - `sandbox SPEC`, `probe SPEC`: makes the namespaces and starts their first process, which is
/// - `init SPEC`, `init-probe SPEC`: the cloud process.
/// - `enter --pid N --exe PATH -- ARGS`: starts PATH, the executable the sandbox keeps, with ARGS inside the namespaces
///   of process N.
/// - `instance SPEC`, `instance-init SPEC`: makes an instance, and is its first process.
/// - `agent-of N -- ARGS`: joins the network of process N, an instance's first one, and becomes this executable with ARGS.
///
/// Without a sandbox:
/// - `processes SPEC`: starts the cloud process, which is `cloud SPEC`, and ends what that leaves.
/// - `attend --parent N --exe PATH -- ARGS`: starts PATH with ARGS and ends it with process N, its own parent.
/// - `keeper SPEC`, `command SPEC`: keeps an instance, and becomes its command.
///
/// Call it from the main thread, before any other exists: the kernel refuses a user namespace to a process with threads.
#[must_use]
pub fn internal_main(args: &[OsString], clock: Clock) -> ExitCode {
    dispatch(args, Body::Cloud(clock))
}

/// As [`internal_main`], but the first process runs what STATE/trial.json lists instead of a cloud: for this crate's own
/// tests of the sandbox.
#[doc(hidden)]
#[must_use]
pub fn trial_main(args: &[OsString]) -> ExitCode {
    dispatch(args, Body::Trial)
}

fn dispatch(args: &[OsString], body: Body) -> ExitCode {
    let words: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    let ended = match words.as_slice() {
        [what, spec] if *what == "sandbox" => read(spec).and_then(|spec| helper::sandbox(&spec, "init")),
        [what, spec] if *what == "probe" => read(spec).and_then(|spec| helper::sandbox(&spec, "init-probe")),
        [what, spec] if *what == "init" => read(spec).and_then(|spec| init::run(&spec, body)),
        [what, spec] if *what == "init-probe" => read::<SandboxSpec>(spec).and_then(|_| init::probe()),
        [what, spec] if *what == "instance" => read(spec).and_then(|spec| instance::make(&spec)),
        [what, spec] if *what == "instance-init" => read(spec).and_then(|spec| instance::first(&spec)),
        [what, spec] if *what == "processes" => read(spec).and_then(|spec| reaper::run(&spec)),
        [what, spec] if *what == "cloud" => read(spec).and_then(|spec| init::run_plain(&spec, body)),
        [what, spec] if *what == "keeper" => read(spec).and_then(|spec| keeper::keep(&spec)),
        [what, spec] if *what == "command" => read(spec).and_then(|spec| keeper::become_command(&spec)),
        [what, first, dashes, rest @ ..] if *what == "agent-of" && *dashes == "--" => {
            return of_role("agent", number(first).and_then(|first| Err(agents::become_agent(first, rest))));
        }
        [what, parent_flag, parent, exe_flag, exe, dashes, rest @ ..]
            if *what == "attend" && *parent_flag == "--parent" && *exe_flag == "--exe" && *dashes == "--" =>
        {
            return of_role("attend", number(parent).and_then(|parent| reaper::attend(parent, exe, rest)));
        }
        [what, pid_flag, pid, exe_flag, exe, dashes, rest @ ..]
            if *what == "enter" && *pid_flag == "--pid" && *exe_flag == "--exe" && *dashes == "--" =>
        {
            return of_role("enter", number(pid).and_then(|pid| helper::enter(pid, exe, rest)));
        }
        _ => Err(unreadable("these arguments are none that Troop gives itself")),
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            complain("sandbox", &failed);
            report_up(&Report::Failed(failed));
            ExitCode::FAILURE
        }
    }
}

/// A role's output is its own; nobody reads reports there.
fn of_role(who: &str, ended: Result<u8, StepFailed>) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            complain(who, &failed);
            ExitCode::FAILURE
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(spec: &OsStr) -> Result<T, StepFailed> {
    serde_json::from_slice(spec.as_encoded_bytes()).map_err(|e| unreadable(&e.to_string()))
}

fn number<T: std::str::FromStr>(text: &OsStr) -> Result<T, StepFailed> {
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| unreadable("the pid is no number"))
}

fn unreadable(why: &str) -> StepFailed {
    StepFailed { step: "read the helper's arguments".into(), errno: 0, detail: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_nobody_gives_are_refused() {
        for args in [
            &[][..],
            &["frobnicate"][..],
            &["enter", "--pid", "x", "--exe", "x", "--", "y"][..],
            &["attend", "--parent", "-1", "--exe", "x", "--", "y"][..],
            &["instance", "{}"][..],
            &["keeper", "{}"][..],
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(format!("{:?}", trial_main(&args)), format!("{:?}", ExitCode::FAILURE));
        }
    }
}
