//! What must hold of whatever comes over the wire or from the kernel: targets of `tests/fuzz/run`, whose corpora a test replays
//! as well.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault::{Cgroup, Fault, Flow, Ports, protocol as numbers};
use crate::host::{Do, Host, Phase};
use crate::lease::{Command, CommandNumber, LEASES_MAX, Table};
use crate::moment::Moment;
use crate::netem::{Options, Write};
use crate::protocol::{
    self, BadMessage, Found, FromAgent, MESSAGE_MAX_BYTES, Measured, MeasuredBy, TEXT_MAX_BYTES, ToAgent, fault_of,
};

/// The other end of the agent's own connection.
const CHANNEL: ([u8; 4], u16) = ([10, 0, 0, 9], 8_443);

/// Lines of both directions, and a host that does what they ask for, a tenth of a second apart.
///
/// Refused: there is a reason and a hint, each one line. Taken: written and read again it is the same; a fault never concerns what is
/// off limits; no more faults live than may, none that has lapsed, and at the end all of them go.
///
/// # Panics
/// When it does not hold.
pub fn frames(data: &[u8]) {
    let mut host = Host::new(Table::new(CommandNumber::default(), BTreeSet::new(), Moment::default()));
    let mut now = Moment::default();
    for line in data.split(|byte| *byte == b'\n') {
        from_agent(line);
        now = now.after_nanos(100_000_000);
        to_agent(line, &mut host, now);
        let due = host.poll(now);
        carry_out(&mut host, due, now);
        assert!(host.table().alive().count() <= LEASES_MAX);
        assert!(host.table().alive().all(|lease| host.live(lease).is_some()), "a lease without a fault");
        assert!(host.next_deadline().is_none_or(|deadline| deadline > now), "one lives past its end");
    }
    let todo = host.give_up_all("it ends");
    carry_out(&mut host, todo, now);
    assert!(host.is_idle(), "something is left");
}

fn from_agent(line: &[u8]) {
    let Some(message) = taken::<FromAgent>(line) else { return };
    match message.checked() {
        Err(why) => told(&why, why.hint()),
        Ok(FromAgent::Story(story)) => {
            assert!(story.trouble.len() <= TEXT_MAX_BYTES && story.plane.len() <= TEXT_MAX_BYTES);
        }
        Ok(FromAgent::Hello(_) | FromAgent::Answer { .. } | FromAgent::Unknown) => {}
    }
}

fn to_agent(line: &[u8], host: &mut Host, now: Moment) {
    let heard = taken::<ToAgent>(line).or_else(|| protocol::heard(line).ok());
    let ordered = match heard.map(ToAgent::ordered) {
        Some(Ok(Some(ordered))) => ordered,
        Some(Err(why)) => return told(&why, why.hint()),
        Some(Ok(None)) | None => return,
    };
    let todo = host.handle(ordered, now, |spec, peers, command| {
        if !matches!(command, Command::Grant { .. }) {
            return Ok(());
        }
        let channel = [SocketAddr::from(CHANNEL)];
        let found = Found { peers, cgroup: spec.of.as_ref().map(|_| Cgroup { level: 2, id: 77 }), channel: &channel };
        let fault = fault_of(spec, found).map_err(|why| {
            told(&why, why.hint());
            why.to_string()
        })?;
        spares(&fault);
        Ok(())
    });
    carry_out(host, todo, now);
}

/// As an agent would whose measurements show everything at once.
fn carry_out(host: &mut Host, todo: Vec<Do>, now: Moment) {
    let rtt = |median_us| Measured { median_us: Some(median_us), sent: 5, back: 5, by: MeasuredBy::Handshake };
    let mut todo = VecDeque::from(todo);
    while let Some(next) = todo.pop_front() {
        todo.extend(match next {
            Do::Keep | Do::Answer { .. } | Do::Tell(_) | Do::Renew { .. } | Do::Retarget { .. } => Vec::new(),
            Do::Measure { lease, phase, .. } => {
                let found = if phase == Phase::Applied { rtt(u64::MAX) } else { rtt(300) };
                host.measured(&lease, phase, found, now)
            }
            Do::Apply { lease } => host.applied(&lease, Ok("forward"), now),
            Do::Heal { lease } => host.healed(&lease, Ok(()), true, now),
        });
    }
}

/// A message that was understood; then it is the same when it is written and read again.
fn taken<M: DeserializeOwned + Serialize + PartialEq + Debug>(line: &[u8]) -> Option<M> {
    let message: M = match protocol::read(line) {
        Ok(message) => message,
        Err(why) => {
            told(&why, why.hint());
            return None;
        }
    };
    match protocol::write(&message) {
        Ok(written) => {
            assert_eq!(written.iter().filter(|byte| **byte == b'\n').count(), 1);
            let again: M = protocol::read(&written).expect("what was written can be read");
            assert_eq!(again, message);
        }
        // What was left out is there in full when it is written.
        Err(BadMessage::TooLong { bytes }) => assert!(bytes > MESSAGE_MAX_BYTES),
        Err(other) => panic!("{other:?}"),
    }
    Some(message)
}

fn told(why: &dyn std::error::Error, hint: &str) {
    assert!(!why.to_string().is_empty() && !hint.is_empty());
}

/// SSH to this host, link-local peers and the agent's own connection.
fn spares(fault: &Fault) {
    let flow = |peer: IpAddr, local, remote| Flow {
        protocol: numbers::TCP,
        local: [10, 0, 0, 1].into(),
        peer,
        ports: Some(Ports { local, remote }),
    };
    assert!(!fault.target.matches(&flow(CHANNEL.0.into(), 40_000, CHANNEL.1)));
    assert!(!fault.target.matches(&flow([10, 0, 0, 2].into(), 22, 40_000)));
    assert!(!fault.target.matches(&flow([169, 254, 169, 254].into(), 40_000, 80)));
}

/// netem's settings as a kernel dumps them. Taken: written anew, or over what there is, they read back as the same.
///
/// # Panics
/// When it does not hold.
pub fn netem(data: &[u8]) {
    let options = match Options::from_bytes(data) {
        Ok(options) => options,
        Err(why) => return told(&why, why.hint()),
    };
    for write in [Write::New, Write::Change] {
        match options.to_bytes(write) {
            Ok(bytes) => {
                let again = Options::from_bytes(&bytes).expect("what was written can be read");
                assert_eq!(again, options, "{write:?}");
                assert_eq!(options.differences(&again), []);
            }
            Err(why) => told(&why, why.hint()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = fn(&[u8]);

    #[test]
    fn the_corpora_hold() {
        let targets: [(&str, Target); 2] = [("frames", super::frames), ("netem", super::netem)];
        for (name, target) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(name);
            let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(inputs.len() >= 5, "{name}");
            inputs.iter().for_each(|path| target(&std::fs::read(path).unwrap()));
        }
    }
}
