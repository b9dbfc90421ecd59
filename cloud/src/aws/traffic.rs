//! What the balancers counted, by CloudWatch.
//!
//! CloudWatch has a sum for each minute, some minutes late; [`Traffic`] wants counts that only grow. So each group's minutes
//! are added up from where this process began to watch it, and each minute is added once, when it is [`LATE`] old. A judgment
//! of traffic here needs at least ten minutes, and counts that begin anew after a restart.

use std::collections::BTreeMap;
use std::sync::Mutex;

use aws_sdk_cloudwatch::types::{Dimension, Metric, MetricDataQuery, MetricStat};
use jiff::{SignedDuration, Timestamp};
use troop_policies::{ClusterName, GroupName};

use super::calls::Call;
use super::fault::Fault;
use super::inventory::Snapshot;
use super::wire::Wire;
use crate::Traffic;

/// After this long a minute's sum does not grow any more, as a rule.
const LATE: SignedDuration = SignedDuration::from_mins(3);
/// How far back a group is counted that this process sees for the first time.
const FIRST_LOOK: SignedDuration = SignedDuration::from_mins(15);
const MINUTE_S: i64 = 60;
/// The metrics of one target group: all answers, those of 500 to 599, and connections that failed.
const METRICS: [(&str, &str); 3] =
    [("answers", "RequestCount"), ("errors", "HTTPCode_Target_5XX_Count"), ("failed", "TargetConnectionErrorCount")];

/// What was added up so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    groups: Mutex<BTreeMap<GroupName, Counted>>,
}

#[derive(Debug, Clone, Default)]
struct Counted {
    /// Everything before this minute is in.
    until_s: i64,
    traffic: Traffic,
}

impl Counters {
    /// Adds what is new for the cluster's groups.
    pub(crate) async fn read(
        &self,
        wire: &Wire,
        snapshot: &Snapshot,
        cluster: &ClusterName,
        now: Timestamp,
    ) -> Result<BTreeMap<GroupName, Traffic>, Fault> {
        let groups =
            snapshot.inventory.groups.iter().filter(|(name, group)| name.cluster() == cluster && group.has_targets);
        let mut all = BTreeMap::new();
        for (name, group) in groups {
            let first = now.saturating_sub(FIRST_LOOK).unwrap_or(now).max(group.created_at);
            let begun = Counted { until_s: whole_minute(first), traffic: Traffic::default() };
            let mut counted = self.lock().get(name).cloned().unwrap_or(begun);
            let until_s = whole_minute(now.saturating_sub(LATE).unwrap_or(now));
            if until_s > counted.until_s {
                if let Some(dimensions) = dimensions(snapshot, name) {
                    let sums = sums(wire, &dimensions, counted.until_s, until_s).await?;
                    counted.add(&sums);
                }
                counted.until_s = until_s;
                self.lock().insert(name.clone(), counted.clone());
            }
            all.insert(name.clone(), counted.traffic);
        }
        self.lock().retain(|name, _| snapshot.inventory.groups.contains_key(name));
        Ok(all)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<GroupName, Counted>> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Counted {
    fn add(&mut self, sums: &BTreeMap<&'static str, u64>) {
        let sum = |id: &str| sums.get(id).copied().unwrap_or(0);
        self.traffic.answers += sum("answers");
        self.traffic.server_errors += sum("errors");
        self.traffic.failed += sum("failed");
    }
}

fn whole_minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(MINUTE_S) * MINUTE_S
}

/// The target group and the balancer by whose names CloudWatch keeps the metrics; the ends of their ARNs.
fn dimensions(snapshot: &Snapshot, name: &GroupName) -> Option<Vec<Dimension>> {
    let arn = snapshot.groups.get(name)?.target_group_arns().first()?;
    let balancer = snapshot.balancing.target_groups.get(arn)?.load_balancer_arns().first()?;
    let target_group = arn.split_once(":targetgroup/").map(|(_, end)| format!("targetgroup/{end}"))?;
    let (_, balancer) = balancer.split_once(":loadbalancer/")?;
    let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    Some(vec![dimension("TargetGroup", &target_group), dimension("LoadBalancer", balancer)])
}

async fn sums(
    wire: &Wire,
    dimensions: &[Dimension],
    from_s: i64,
    until_s: i64,
) -> Result<BTreeMap<&'static str, u64>, Fault> {
    let query = |(id, metric): (&str, &str)| {
        let metric = Metric::builder()
            .namespace("AWS/ApplicationELB")
            .metric_name(metric)
            .set_dimensions(Some(dimensions.to_vec()))
            .build();
        let period = i32::try_from(MINUTE_S).unwrap_or(i32::MAX);
        let stat = MetricStat::builder().metric(metric).period(period).stat("Sum").build();
        MetricDataQuery::builder().id(id).metric_stat(stat).build()
    };
    let queries: Vec<MetricDataQuery> = METRICS.into_iter().map(query).collect();
    let time = aws_smithy_types::DateTime::from_secs;
    let mut sums = BTreeMap::new();
    let mut token: Option<String> = None;
    loop {
        let ask = || {
            let request = wire.metrics.get_metric_data().start_time(time(from_s)).end_time(time(until_s));
            request.set_metric_data_queries(Some(queries.clone())).set_next_token(token.clone()).send()
        };
        let page = wire.read(Call::GetMetricData, ask).await?;
        for result in page.metric_data_results() {
            let Some((id, _)) = METRICS.iter().find(|(id, _)| result.id() == Some(*id)) else { continue };
            *sums.entry(*id).or_default() += result.values().iter().map(|value| whole(*value)).sum::<u64>();
        }
        token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
        if token.is_none() {
            return Ok(sums);
        }
    }
}

/// A sum of counts, which CloudWatch gives as a float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of requests, below 2^53 and not negative"
)]
fn whole(value: f64) -> u64 {
    if value.is_finite() && value > 0.0 { value.round() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_whole_and_sums_only_grow() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!((whole_minute(at(119)), whole_minute(at(120))), (60, 120));
        let mut counted = Counted::default();
        counted.add(&BTreeMap::from([("answers", 10), ("errors", 1)]));
        counted.add(&BTreeMap::from([("answers", 5), ("failed", 2)]));
        let Traffic { answers, server_errors, failed, .. } = counted.traffic;
        assert_eq!((answers, server_errors, failed), (15, 1, 2));
        assert_eq!((whole(3.6), whole(-1.0), whole(f64::NAN)), (4, 0, 0));
    }
}
