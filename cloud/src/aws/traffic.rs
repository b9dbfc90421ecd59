//! What the balancers counted, by CloudWatch.
//!
//! CloudWatch has a sum for each minute, some minutes late; [`Traffic`] wants counts that only grow. So each group's minutes
//! are added up from where this process began to watch it, and each minute is added once, when it is [`LATE`] old. A judgment
//! of traffic here needs at least ten minutes, and counts that begin anew after a restart.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use aws_sdk_cloudwatch::types::{Dimension, Metric, MetricDataQuery, MetricStat};
use jiff::{SignedDuration, Timestamp};
use troop_policies::{ClusterName, GroupName};

use super::calls::Call;
use super::fault::Fault;
use super::inventory::Snapshot;
use super::wire::Wire;
use crate::{Timed, Traffic};

/// After this long a minute's sum does not grow any more, as a rule.
const LATE: SignedDuration = SignedDuration::from_mins(3);
/// How far back a group is counted that this process sees for the first time.
const FIRST_LOOK: SignedDuration = SignedDuration::from_mins(15);
const MINUTE_S: i64 = 60;
/// What is asked of one target group, by an id of our own, a metric and a statistic: all answers, those of 500 to 599, connections
/// that failed; then how many answers were timed, and the sum of their times in seconds, of which a mean over any number of
/// minutes can be made, which of the means of minutes it cannot.
const METRICS: [(&str, &str, &str); 5] = [
    ("answers", "RequestCount", "Sum"),
    ("errors", "HTTPCode_Target_5XX_Count", "Sum"),
    ("failed", "TargetConnectionErrorCount", "Sum"),
    ("timed", "TargetResponseTime", "SampleCount"),
    ("took", "TargetResponseTime", "Sum"),
];

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
    fn add(&mut self, sums: &BTreeMap<&'static str, f64>) {
        let sum = |id: &str| sums.get(id).map_or(0, |sum| whole(*sum));
        self.traffic.answers += sum("answers");
        self.traffic.server_errors += sum("errors");
        self.traffic.failed += sum("failed");
        let took = sums.get("took").and_then(|seconds| Duration::try_from_secs_f64(*seconds).ok());
        if let Some(took) = took.filter(|_| sum("timed") > 0) {
            self.traffic.timed.get_or_insert_default().add(Timed { answers: sum("timed"), took });
        }
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
) -> Result<BTreeMap<&'static str, f64>, Fault> {
    let query = |(id, metric, stat): (&str, &str, &str)| {
        let metric = Metric::builder()
            .namespace("AWS/ApplicationELB")
            .metric_name(metric)
            .set_dimensions(Some(dimensions.to_vec()))
            .build();
        let period = i32::try_from(MINUTE_S).unwrap_or(i32::MAX);
        let stat = MetricStat::builder().metric(metric).period(period).stat(stat).build();
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
            let Some((id, ..)) = METRICS.iter().find(|(id, ..)| result.id() == Some(*id)) else { continue };
            let sound = result.values().iter().filter(|value| value.is_finite() && **value > 0.0);
            *sums.entry(*id).or_default() += sound.sum::<f64>();
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
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::aws::fault::tests::wire;

    /// What CloudWatch's protocol, CBOR over HTTP, is made of here.
    enum Cbor {
        Text(&'static str),
        Float(f64),
        List(Vec<Cbor>),
        Map(Vec<(&'static str, Cbor)>),
    }

    impl Cbor {
        fn write(&self, out: &mut Vec<u8>) {
            let head = |major: u8, length: usize| [major << 5 | 24, u8::try_from(length).unwrap()];
            match self {
                Self::Text(text) => {
                    out.extend(head(3, text.len()));
                    out.extend(text.as_bytes());
                }
                Self::Float(value) => {
                    out.push(0xfb);
                    out.extend(value.to_be_bytes());
                }
                Self::List(items) => {
                    out.extend(head(4, items.len()));
                    items.iter().for_each(|item| item.write(out));
                }
                Self::Map(fields) => {
                    out.extend(head(5, fields.len()));
                    for (key, value) in fields {
                        Self::Text(key).write(out);
                        value.write(out);
                    }
                }
            }
        }
    }

    /// One page of an answer: the values of each id, and the token of the next.
    fn page(results: &[(&'static str, &[f64])], next: Option<&'static str>) -> Vec<u8> {
        let result = |(id, values): &(&'static str, &[f64])| {
            let values = Cbor::List(values.iter().map(|value| Cbor::Float(*value)).collect());
            Cbor::Map(vec![("Id", Cbor::Text(id)), ("StatusCode", Cbor::Text("Complete")), ("Values", values)])
        };
        let results = ("MetricDataResults", Cbor::List(results.iter().map(result).collect()));
        let next = next.map(|token| ("NextToken", Cbor::Text(token)));
        let mut out = Vec::new();
        Cbor::Map(std::iter::once(results).chain(next).collect()).write(&mut out);
        out
    }

    /// Answers with these pages, one a connection, and keeps what it was asked.
    async fn cloudwatch(pages: Vec<Vec<u8>>) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = asked.clone();
        tokio::spawn(async move {
            for page in pages {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mut request, mut some) = (Vec::new(), [0; 4_096]);
                while !is_whole(&request) {
                    let read = stream.read(&mut some).await.unwrap();
                    request.extend(&some[..read]);
                }
                kept.lock().unwrap().push(request);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/cbor\r\nsmithy-protocol: rpc-v2-cbor\r\n\
                     content-length: {}\r\nconnection: close\r\n\r\n",
                    page.len()
                );
                stream.write_all(&[head.as_bytes(), &page].concat()).await.unwrap();
            }
        });
        (url, asked)
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request).to_lowercase();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
        let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        request.len() >= head.len() + 4 + length.parse::<usize>().unwrap()
    }

    #[tokio::test]
    async fn counts_and_times_are_asked_for_at_once_and_added_up_over_pages() {
        let pages = vec![
            page(&[("answers", &[60.0, 40.0]), ("errors", &[1.0]), ("timed", &[60.0])], Some("more")),
            page(&[("timed", &[36.0]), ("took", &[0.9, 0.3]), ("failed", &[]), ("theirs", &[7.0])], None),
        ];
        let (url, asked) = cloudwatch(pages).await;
        let wire = wire(url).await;
        let dimension = Dimension::builder().name("TargetGroup").value("targetgroup/web/1").build();
        let sums = sums(&wire, &[dimension], 1_800_000_000, 1_800_000_120).await.unwrap();
        let mut counted = Counted::default();
        counted.add(&sums);
        let Traffic { answers, server_errors, failed, timed, .. } = counted.traffic;
        assert_eq!((answers, server_errors, failed), (100, 1, 0));
        assert_eq!(timed.map(|timed| timed.answers), Some(96));
        assert_eq!(timed.unwrap().mean_since(Timed::default()), Some(Duration::from_micros(12_500)));

        let asked = asked.lock().unwrap();
        let [first, second] = &asked[..] else { panic!("{} requests", asked.len()) };
        let first = String::from_utf8_lossy(first);
        assert!(first.starts_with("POST /service/GraniteServiceVersion20100801/operation/GetMetricData "), "{first}");
        for word in ["RequestCount", "HTTPCode_Target_5XX_Count", "TargetConnectionErrorCount", "targetgroup/web/1"] {
            assert!(first.contains(word), "{word}: {first}");
        }
        // Its sum and how many it is the sum of; a mean of means would weigh a quiet minute like a busy one.
        assert_eq!(first.matches("TargetResponseTime").count(), 2, "{first}");
        assert_eq!((first.matches("SampleCount").count(), first.matches("Sum").count()), (1, 4), "{first}");
        assert!(String::from_utf8_lossy(second).contains("more"));
    }

    #[test]
    fn minutes_are_whole_and_sums_only_grow() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!((whole_minute(at(119)), whole_minute(at(120))), (60, 120));
        let mut counted = Counted::default();
        counted.add(&BTreeMap::from([("answers", 10.0), ("errors", 1.0)]));
        assert_eq!(counted.traffic.timed, None, "nothing was timed yet");
        counted.add(&BTreeMap::from([("answers", 5.0), ("failed", 2.0), ("timed", 4.0), ("took", 0.5)]));
        let Traffic { answers, server_errors, failed, timed, .. } = counted.traffic;
        assert_eq!((answers, server_errors, failed), (15, 1, 2));
        assert_eq!(timed.unwrap().mean_since(Timed::default()), Some(Duration::from_millis(125)));
        assert_eq!((whole(3.6), whole(-1.0), whole(f64::NAN)), (4, 0, 0));
    }
}
