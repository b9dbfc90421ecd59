//! What a monkey would do to an instance, and what its policy has to say about that.

use std::time::Duration;

use crate::fault::{ALL_PPM, FaultSpec, Peer, in_words};
use crate::policy::{AppPolicy, ChaosPolicy, DnsFault, KillStyle, LatencyPolicy, Rate};
use crate::spared::Spared;
use crate::step::How;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm<'a> {
    /// The end of an instance: the chaos monkey's.
    Kill,
    /// A fault on its network for a while: the latency monkey's. `None`: any of the policy's menu, as long as none has been
    /// chosen.
    Fault(Option<(&'a FaultSpec, Duration)>),
}

/// What a team's policy says about a monkey, whichever it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MonkeyPolicy {
    pub(crate) leashed: bool,
    pub(crate) rate: Rate,
    pub(crate) during_push: bool,
}

/// What an answer of the gates allows to be done to its candidates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Allowed {
    Kill(How),
    /// Whatever the menu allows.
    Fault(Box<LatencyPolicy>),
}

impl Harm<'_> {
    /// What the app's policy says about it.
    ///
    /// # Errors
    /// [`Spared`] where the policy does not name the monkey, or the fault is not on its menu.
    pub(crate) fn policy(self, app: &AppPolicy) -> Result<(MonkeyPolicy, Allowed), Spared> {
        let unnamed =
            |what: &str| Spared::NotNamed { team: "this".to_owned(), what: format!("{what} for `{}`", app.app) };
        match self {
            Self::Kill => {
                let chaos = app.chaos.as_ref().ok_or_else(|| unnamed("chaos"))?;
                let ChaosPolicy { leashed, rate, during_push, .. } = *chaos;
                Ok((MonkeyPolicy { leashed, rate, during_push }, Allowed::Kill(how(chaos))))
            }
            Self::Fault(fault) => {
                let latency = app.latency.as_ref().ok_or_else(|| unnamed("latency"))?;
                if let Some((fault, lasts)) = fault {
                    latency.allows(fault, lasts).map_err(|why| Spared::NotOnMenu { why })?;
                }
                let LatencyPolicy { leashed, rate, during_push, .. } = *latency;
                Ok((MonkeyPolicy { leashed, rate, during_push }, Allowed::Fault(Box::new(latency.clone()))))
            }
        }
    }
}

fn how(chaos: &ChaosPolicy) -> How {
    match chaos.kill {
        KillStyle::Crash => How::Crash,
        KillStyle::Drain => How::Drain { delay: chaos.drain.max(Duration::ZERO) },
    }
}

impl LatencyPolicy {
    /// Whether the menu has this fault: to these applications, no slower, no longer, and nothing besides.
    ///
    /// # Errors
    /// What is not on it, for people.
    pub fn allows(&self, fault: &FaultSpec, lasts: Duration) -> Result<(), String> {
        let place = &self.place;
        let of_dns = fault.is_of_dns();
        let unnamed = fault.to.iter().find(|peer| **peer == Peer::Everything || !self.to.contains(&peer.to_string()));
        if let Some(peer) = unnamed.filter(|_| !of_dns) {
            return Err(format!("`to` at {place} does not list {peer}"));
        }
        if fault.to.is_empty() {
            return Err("the fault names no peer".to_owned());
        }
        let fails_dns = of_dns && fault.loss.is_some_and(|loss| loss.ppm >= ALL_PPM);
        let dns = [(of_dns && fault.delay.is_some(), DnsFault::Slow), (fails_dns, DnsFault::Fail)];
        if let Some((_, kind)) = dns.into_iter().find(|(asked, kind)| *asked && !self.dns.contains(kind)) {
            return Err(format!("`dns` at {place} does not list \"{}\"", kind.name()));
        }
        if of_dns && self.dns.is_empty() {
            return Err(format!("{place} has no `dns`"));
        }
        if let Some(of) = self.of.as_ref().filter(|of| fault.of.as_ref() != Some(*of)) {
            return Err(format!("{place} is about {of} alone, so the fault has to name it"));
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(delay) = &fault.delay {
            let (longest, most) = (delay.longest_us(), micros(self.delay_max()));
            if longest > most {
                let (asked, most) = (in_words(longest), in_words(most));
                return Err(format!("a delay of up to {asked} is more than {place} allows, {most}"));
            }
        }
        if let Some(loss) = fault.loss.filter(|_| !fails_dns) {
            let most = self.loss_percent.map_or(0.0, |(_, most)| most);
            if f64::from(loss.ppm) / 1e4 > most {
                return Err(format!(
                    "a loss of {} is more than {place} allows, {most} %",
                    crate::fault::percent(loss.ppm)
                ));
            }
        }
        let FaultSpec { bursts, duplicate, corrupt, reorder, rate_bytes_per_second, .. } = fault;
        let others = [
            (bursts.is_some(), "loss in bursts"),
            (duplicate.is_some(), "duplication"),
            (corrupt.is_some(), "corruption"),
            (reorder.is_some(), "reordering"),
            (rate_bytes_per_second.is_some(), "a rate"),
        ];
        if let Some((_, what)) = others.into_iter().find(|(asked, _)| *asked) {
            return Err(format!("{what} is not on the menu of {place}"));
        }
        if lasts > self.lasts {
            let (asked, most) = (in_words(micros(lasts)), in_words(micros(self.lasts)));
            return Err(format!("{asked} is longer than {place} allows, {most}"));
        }
        Ok(())
    }

    /// The longest delay that a packet may see, jitter included.
    fn delay_max(&self) -> Duration {
        self.delay.1 + self.jitter.map_or(Duration::ZERO, |(_, most)| most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ChanceSpec, ReorderSpec, Shape, ShapeTable};
    use crate::policy::Place;

    fn menu() -> LatencyPolicy {
        LatencyPolicy {
            place: Place { file: "shop.toml".to_owned(), line: 7 },
            leashed: false,
            rate: Rate { mean_workdays: 5, min_workdays: 1 },
            delay: (Duration::from_millis(50), Duration::from_millis(300)),
            jitter: None,
            loss_percent: None,
            lasts: Duration::from_secs(60),
            instances: 1,
            to: vec!["app:pricing".to_owned()],
            of: None,
            dns: Vec::new(),
            abort_when: None,
            during_push: false,
        }
    }

    fn delay(ms: u64) -> FaultSpec {
        FaultSpec::delay(Duration::from_millis(ms), vec!["app:pricing".parse().unwrap()])
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_on_the_menu_is_allowed_up_to_its_limits() {
        assert_eq!(menu().allows(&delay(300), MINUTE), Ok(()));
        let lossy = LatencyPolicy { loss_percent: Some((1.0, 2.0)), ..menu() };
        let loss = |ppm| FaultSpec { loss: Some(ChanceSpec { ppm, correlation_ppm: 0 }), ..delay(50) };
        assert_eq!(lossy.allows(&loss(20_000), MINUTE), Ok(()));
        let why = lossy.allows(&loss(20_001), MINUTE).unwrap_err();
        assert_eq!(why, "a loss of 2.0001 % is more than shop.toml:7 allows, 2 %");
    }

    #[test]
    fn what_is_not_on_it_is_refused_in_words() {
        let mut jittered = delay(300);
        jittered.delay.iter_mut().for_each(|delay| delay.jitter_us = 1);
        let other = FaultSpec { to: vec!["app:search".parse().unwrap()], ..delay(50) };
        let range = FaultSpec { to: vec!["10.0.0.0/8".parse().unwrap()], ..delay(50) };
        let reorder = Some(ReorderSpec { ppm: 1, correlation_ppm: 0, gap: 1 });
        let rows = [
            (delay(301), MINUTE, "a delay of up to 301 ms is more than shop.toml:7 allows, 300 ms"),
            (jittered, MINUTE, "a delay of up to 300.001 ms is more"),
            (delay(50), Duration::from_secs(61), "61 s is longer than shop.toml:7 allows, 60 s"),
            (other, MINUTE, "`to` at shop.toml:7 does not list app:search"),
            (range, MINUTE, "does not list 10.0.0.0/8"),
            (FaultSpec { to: Vec::new(), ..delay(50) }, MINUTE, "names no peer"),
            (FaultSpec { reorder, ..delay(50) }, MINUTE, "reordering is not on the menu"),
            (FaultSpec { loss: Some(ChanceSpec { ppm: 1, correlation_ppm: 0 }), ..delay(50) }, MINUTE, "a loss of"),
        ];
        for (fault, lasts, expected) in rows {
            let why = menu().allows(&fault, lasts).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn a_measured_shape_counts_with_its_own_longest() {
        let mut measured = delay(200);
        let shape = Shape::Table(ShapeTable::new(vec![0, 8_192 * 2]).unwrap());
        measured.delay.iter_mut().for_each(|delay| (delay.jitter_us, delay.shape) = (50_000, shape.clone()));
        assert_eq!(menu().allows(&measured, MINUTE), Ok(()));
        measured.delay.iter_mut().for_each(|delay| delay.jitter_us = 60_000);
        let why = menu().allows(&measured, MINUTE).unwrap_err();
        assert!(why.contains("a delay of up to 320 ms is more"), "{why}");
    }

    #[test]
    fn addresses_and_host_names_are_taken_as_they_are_written_and_everything_never() {
        let to = |peer: &str| FaultSpec { to: vec![peer.parse().unwrap()], ..delay(50) };
        let menu = LatencyPolicy { to: vec!["host:db.local".to_owned(), "10.0.0.0/24".to_owned()], ..menu() };
        assert_eq!(menu.allows(&to("host:db.local"), MINUTE), Ok(()));
        assert_eq!(menu.allows(&to("10.0.0.0/24"), MINUTE), Ok(()));
        assert!(menu.allows(&to("10.0.0.7"), MINUTE).is_err());
        let all = LatencyPolicy { to: vec!["everything".to_owned()], ..menu };
        assert_eq!(all.allows(&to("everything"), MINUTE).unwrap_err(), "`to` at shop.toml:7 does not list everything");
    }

    #[test]
    fn a_menu_of_a_unit_is_of_that_unit_alone() {
        let of = |unit: &str| FaultSpec { of: Some(unit.parse().unwrap()), ..delay(50) };
        let units = LatencyPolicy { of: Some("unit:web.service".parse().unwrap()), ..menu() };
        assert_eq!(units.allows(&of("unit:web.service"), MINUTE), Ok(()));
        for other in [delay(50), of("unit:db.service")] {
            let why = units.allows(&other, MINUTE).unwrap_err();
            assert_eq!(why, "shop.toml:7 is about unit:web.service alone, so the fault has to name it");
        }
        // One that names nobody lets a fault concern less than it might.
        assert_eq!(menu().allows(&of("unit:web.service"), MINUTE), Ok(()));
    }

    #[test]
    fn name_resolution_is_touched_as_far_as_the_menu_says_so() {
        let slow = FaultSpec::slow_dns(Duration::from_millis(300));
        let fails = FaultSpec::no_dns();
        assert_eq!(menu().allows(&slow, MINUTE).unwrap_err(), "`dns` at shop.toml:7 does not list \"slow\"");
        let slows = LatencyPolicy { dns: vec![DnsFault::Slow], ..menu() };
        assert_eq!(slows.allows(&slow, MINUTE), Ok(()));
        assert_eq!(slows.allows(&fails, MINUTE).unwrap_err(), "`dns` at shop.toml:7 does not list \"fail\"");
        let slower = FaultSpec::slow_dns(Duration::from_millis(301));
        assert!(slows.allows(&slower, MINUTE).unwrap_err().contains("a delay of up to 301 ms"));
        let both = LatencyPolicy { dns: vec![DnsFault::Slow, DnsFault::Fail], ..menu() };
        assert_eq!(both.allows(&fails, MINUTE), Ok(()));
        // All the traffic there is, but for its port.
        let web = FaultSpec { remote_ports: Vec::new(), ..fails };
        assert!(both.allows(&web, MINUTE).is_err());
    }
}
