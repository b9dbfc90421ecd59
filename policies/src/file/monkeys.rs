//! The monkeys' own tables: chaos, latency, drills.

use std::time::Duration;

use toml::de::DeTable;

use super::cron::cron;
use super::diagnostic::{Findings, shown};
use super::policy::{bounded, read};
use super::raw::{RawAbortWhen, RawChaos, RawDns, RawDrill, RawKill, RawLatency};
use super::scalar::{DurationText, OneOrRange, PercentText, Sp, percent};
use crate::fault::{Owner, Peer};
use crate::names::AppName;
use crate::policy::{AbortWhen, ChaosPolicy, DnsFault, Drill, FAULT_LASTS_MAX, KillStyle, LatencyPolicy, Rate};

const DRAIN: Duration = Duration::from_secs(30);
/// Balancers cut connections that drain for longer.
const DRAIN_MAX: Duration = Duration::from_secs(3600);
const DELAY_MIN: Duration = Duration::from_millis(1);
/// Past this TCP's own handshake gives up more often than not: that is an outage, not latency.
const DELAY_MAX: Duration = Duration::from_secs(30);
const LASTS_MIN: Duration = Duration::from_secs(1);
const ABORT_OVER_MAX: Duration = Duration::from_secs(3600);

pub(crate) fn chaos(raw: &Sp<RawChaos>, leashed: bool, out: &mut Findings<'_>) -> Option<ChaosPolicy> {
    let fields = raw.get();
    let rate = rate(fields.mean_workdays.as_ref(), fields.min_workdays.as_ref(), out);
    let kill = match fields.kill.as_ref().map(Sp::get) {
        None | Some(RawKill::Crash) => KillStyle::Crash,
        Some(RawKill::Drain) => KillStyle::Drain,
    };
    if let (KillStyle::Crash, Some(drain)) = (kill, &fields.drain) {
        let hint = "write kill = \"drain\" if the balancer should finish requests first".to_owned();
        out.warning(drain.span(), "`drain` says nothing while `kill` is \"crash\"", Some(hint));
    }
    let drain = match &fields.drain {
        Some(text) => bounded(text, "drain", Duration::ZERO, DRAIN_MAX, out)?,
        None => DRAIN,
    };
    Some(ChaosPolicy {
        place: out.place(raw.span().start),
        leashed: fields.leashed.as_ref().map_or(leashed, |l| *l.get()),
        rate: rate?,
        kill,
        drain,
        during_push: fields.during_push.as_ref().is_some_and(|d| *d.get()),
    })
}

pub(crate) fn latency(raw: &Sp<RawLatency>, leashed: bool, out: &mut Findings<'_>) -> Option<LatencyPolicy> {
    let fields = raw.get();
    if let Some(instances) = fields.instances.as_ref().filter(|instances| *instances.get() > 1) {
        let hint = "write 1, or leave it out; more acts a day come by a smaller mean".to_owned();
        out.warning(
            instances.span(),
            "this build delays one instance at a time, however many are asked for",
            Some(hint),
        );
    }
    fields.to.iter().flatten().for_each(|to| target(to, out));
    let of = fields.of.as_ref().and_then(|of| owner(of, out));
    let rate = rate(fields.mean_workdays.as_ref(), fields.min_workdays.as_ref(), out);
    let span = |key: &'static str, text: Option<&Sp<OneOrRange<DurationText>>>, out: &mut Findings<'_>| {
        text.and_then(|t| range(t, key, |one, out| bounded(one, key, DELAY_MIN, DELAY_MAX, out), out))
    };
    let delay = span("delay", fields.delay.as_ref(), out);
    let jitter = span("jitter", fields.jitter.as_ref(), out);
    let loss_percent = fields.loss.as_ref().and_then(|t| range(t, "loss", |one, out| share(one, "loss", out), out));
    let lasts = fields.lasts.as_ref().and_then(|t| bounded(t, "lasts", LASTS_MIN, FAULT_LASTS_MAX, out));
    let abort_when = fields.abort_when.as_ref().and_then(|a| abort(a.get(), out));
    Some(LatencyPolicy {
        place: out.place(raw.span().start),
        leashed: fields.leashed.as_ref().map_or(leashed, |l| *l.get()),
        rate: rate?,
        delay: delay?,
        jitter,
        loss_percent,
        lasts: lasts?,
        instances: fields.instances.as_ref().map_or(1, |i| *i.get()),
        to: fields.to.as_ref()?.iter().map(|t| t.get().clone()).collect(),
        of,
        dns: fields.dns.iter().flatten().map(|dns| dns_fault(*dns.get())).collect(),
        abort_when,
        during_push: fields.during_push.as_ref().is_some_and(|d| *d.get()),
    })
}

/// A drill says when, not how: the monkey's own table must stand beside it, with its leash.
pub(crate) fn drill(raw: &Sp<RawDrill>, app: &AppName, keys: &DeTable<'_>, out: &mut Findings<'_>) -> Option<Drill> {
    let fields = raw.get();
    let monkey = fields.monkey.as_ref().map(|m| m.get().name());
    if let (Some(monkey), Some(text)) = (monkey, &fields.monkey)
        && !keys.contains_key(monkey)
    {
        let hint = format!("add [apps.{app}.{monkey}], which says how it acts and whether it is leashed");
        out.error(text.span(), format!("app `{app}` has no `{monkey}` to drill"), Some(hint));
    }
    let cron = fields.cron.as_ref().and_then(|line| read(line.span(), cron(&line.get().0), "cron", out));
    Some(Drill { place: out.place(raw.span().start), cron: cron?, monkey: monkey?.to_owned() })
}

fn rate(mean: Option<&Sp<u32>>, min: Option<&Sp<u32>>, out: &mut Findings<'_>) -> Option<Rate> {
    let (mean_at, min_at) = (mean?, min?);
    let rate = Rate { mean_workdays: *mean_at.get(), min_workdays: *min_at.get() };
    if rate.mean_workdays < rate.min_workdays {
        let message =
            format!("`mean_workdays` is {}, less than `min_workdays`, {}", rate.mean_workdays, rate.min_workdays);
        let hint = "an average cannot lie below the least; equal means exactly every so many workdays".to_owned();
        out.error(mean_at.span(), message, Some(hint));
        return None;
    }
    Some(rate)
}

fn range<T, V: PartialOrd + Copy>(
    text: &Sp<OneOrRange<T>>,
    key: &str,
    one: impl Fn(&Sp<T>, &mut Findings<'_>) -> Option<V>,
    out: &mut Findings<'_>,
) -> Option<(V, V)>
where
    T: Clone,
{
    match text.get() {
        OneOrRange::One(value) => {
            let value = one(&text.with(value.clone()), out)?;
            Some((value, value))
        }
        OneOrRange::Range(bounds) => {
            let from = bounds.from.as_ref().and_then(|f| one(f, out));
            let to = bounds.to.as_ref().and_then(|t| one(t, out));
            let (from, to) = (from?, to?);
            if to < from {
                out.error(text.span(), format!("`{key}`: `to` is less than `from`"), Some("exchange them".to_owned()));
                return None;
            }
            Some((from, to))
        }
    }
}

fn share(text: &Sp<PercentText>, key: &str, out: &mut Findings<'_>) -> Option<f64> {
    let value = read(text.span(), percent(&text.get().0), key, out)?;
    if value <= 0.0 {
        out.error(text.span(), format!("`{key}` must be over 0%"), Some("leave it out instead".to_owned()));
        return None;
    }
    Some(value)
}

fn abort(raw: &RawAbortWhen, out: &mut Findings<'_>) -> Option<AbortWhen> {
    let above = raw.errors_above.as_ref().and_then(|t| {
        let value = read(t.span(), percent(&t.get().0), "errors_above", out)?;
        if value >= 100.0 {
            let hint = "write the share of failed answers that you would not bear, such as \"2%\"".to_owned();
            out.error(t.span(), "`errors_above` at 100% would never abort", Some(hint));
            return None;
        }
        Some(value)
    });
    let over = raw.over.as_ref().and_then(|t| bounded(t, "over", LASTS_MIN, ABORT_OVER_MAX, out));
    Some(AbortWhen { errors_above_percent: above?, over: over? })
}

fn dns_fault(raw: RawDns) -> DnsFault {
    match raw {
        RawDns::Slow => DnsFault::Slow,
        RawDns::Fail => DnsFault::Fail,
    }
}

/// Numbers of processes change with every start: no file can know one.
fn owner(of: &Sp<String>, out: &mut Findings<'_>) -> Option<Owner> {
    let owner = of.get().parse().ok().filter(|owner| !matches!(owner, Owner::Pid(_)));
    if owner.is_none() {
        let hint = "write unit:NAME.service, process:NAME or cgroup:PATH".to_owned();
        out.error(of.span(), format!("`{}` names nothing on a host", shown(of.get())), Some(hint));
    }
    owner
}

fn target(to: &Sp<String>, out: &mut Findings<'_>) {
    // Written as it is said elsewhere, for it is compared as a text; and never everything.
    let peer = to.get().parse::<Peer>().ok().filter(|peer| *peer != Peer::Everything && peer.to_string() == *to.get());
    if peer.is_none() {
        let hint =
            "write app:NAME with the application that is called, such as \"app:payments\"; or host:NAME, an address, \
                    or a range such as 10.0.0.0/24"
                .to_owned();
        out.error(to.span(), format!("`{}` names no traffic", shown(to.get())), Some(hint));
    }
}
