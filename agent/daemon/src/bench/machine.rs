//! On what a figure was measured. Without it a figure means nothing to anybody else.

use std::fs;

use serde::Serialize;

/// The machine and the build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    pub cpu: String,
    pub memory_mib: u64,
    pub kernel: String,
    /// `release`, or `debug`: then no figure says anything about what people run.
    pub profile: &'static str,
    pub troop: &'static str,
    /// Runnable processes, averaged over the minute before the bench began: others' work, which slows ours.
    pub load_before: f64,
}

impl Machine {
    /// This one, now. What it does not tell is left empty or 0.
    pub fn read() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field(&info, "model name").unwrap_or_default().to_owned(),
            memory_mib: field(&memory, "MemTotal").and_then(kib).unwrap_or(0) / 1_024,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            troop: env!("CARGO_PKG_VERSION"),
            load_before: load.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0),
        }
    }

    /// One line for people.
    pub fn text(&self) -> String {
        let Self { cores, cpu, memory_mib, kernel, profile, troop, load_before } = self;
        format!(
            "machine  {cores} cores, {cpu}, {memory_mib} MiB, Linux {kernel}; troop {troop}, {profile} build; load before {load_before}"
        )
    }
}

/// The value of the first line `NAME: value`.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let named =
        |line: &'a str| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    text.lines().find_map(named)
}

/// The number in `123 kB`.
pub fn kib(value: &str) -> Option<u64> {
    value.strip_suffix("kB").and_then(|number| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells_what_it_is() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_mib > 0, "{machine:?}");
        assert!(!machine.kernel.is_empty());
        assert!(machine.text().contains(&machine.kernel));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmHWMx:\t 7 kB\nVmHWM:\t  1234 kB\n";
        assert_eq!(field(text, "VmHWM").and_then(kib), Some(1_234));
        assert_eq!(field(text, "VmRSS"), None);
        assert_eq!(kib("12"), None);
    }
}
