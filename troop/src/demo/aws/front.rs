//! What stands before a server that stands in for AWS: it passes every call on, writes it down, and lets the members of a group
//! be spread over three zones, which such a server does not do, as it does not know instance refreshes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use troop_cloud::aws::scope::signed_for;

/// Longest call or answer passed on.
const BYTES_MAX: usize = 16 << 20;
const ZONES: [&str; 3] = ["a", "b", "c"];

/// What such a server does not know: that no instance refresh is running.
const NO_REFRESHES: &str = "<DescribeInstanceRefreshesResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
    <DescribeInstanceRefreshesResult><InstanceRefreshes/></DescribeInstanceRefreshesResult>\
    </DescribeInstanceRefreshesResponse>";

/// How often each call came, `ec2:DescribeInstances`.
pub type Calls = BTreeMap<String, u64>;

/// Of these, the calls that change something.
pub fn changing(calls: &Calls) -> Calls {
    let reads = |call: &str| call.split_once(':').is_some_and(|(_, action)| is_read(action));
    calls.iter().filter(|(call, _)| !reads(call)).map(|(call, count)| (call.clone(), *count)).collect()
}

/// By the names that these services give their actions.
fn is_read(action: &str) -> bool {
    ["Describe", "Get", "AssumeRole"].iter().any(|start| action.starts_with(start))
}

/// See the module. Ends with this value.
#[derive(Debug)]
pub struct Front {
    /// Where Troop sends its calls, `http://127.0.0.1:PORT`.
    pub url: String,
    state: Arc<Shared>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    client: reqwest::Client,
    region: String,
    calls: Mutex<Calls>,
    /// The zone of every member that was seen.
    zones: Mutex<BTreeMap<String, &'static str>>,
}

impl Front {
    /// Stands before `upstream`, such as `http://127.0.0.1:5000`.
    ///
    /// # Errors
    /// When no port can be had, or no client made.
    pub async fn start(upstream: &str, region: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let client = reqwest::Client::builder().no_proxy().build().map_err(std::io::Error::other)?;
        let state = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client,
            region: region.to_owned(),
            calls: Mutex::default(),
            zones: Mutex::default(),
        });
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&state));
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "nothing stands before the stand-in any more");
            }
        }));
        Ok(Self { url, state, _serving: serving })
    }

    /// Every call that came so far, also those that were refused.
    pub fn calls(&self) -> Calls {
        lock(&self.state.calls).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass_on(State(state): State<Arc<Shared>>, request: Request) -> Response {
    match state.passed_on(request).await {
        Ok(response) => response,
        Err(why) => (StatusCode::BAD_GATEWAY, why).into_response(),
    }
}

impl Shared {
    async fn passed_on(&self, request: Request) -> Result<Response, String> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, BYTES_MAX).await.map_err(|e| e.to_string())?;
        let service = signed_for(&parts.headers).map(|(_, service)| service.to_owned()).unwrap_or_default();
        let action = action(&parts.headers, &body).unwrap_or_default();
        *lock(&self.calls).entry(format!("{service}:{action}")).or_default() += 1;
        if action == "DescribeInstanceRefreshes" {
            let headers = [(header::CONTENT_TYPE, "text/xml")];
            return Ok((headers, NO_REFRESHES).into_response());
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = parts.headers;
        // What was signed stays, the host's name among it; what the way is made of is made anew.
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::CONNECTION);
        headers.remove(header::ACCEPT_ENCODING);
        let asked = self.client.request(parts.method, format!("{}{path}", self.upstream)).headers(headers).body(body);
        let answer = asked.send().await.map_err(|e| crate::world::chain(&e))?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONNECTION);
        let bytes = answer.bytes().await.map_err(|e| crate::world::chain(&e))?;
        let body = match std::str::from_utf8(&bytes) {
            Ok(text) if service == "autoscaling" && action.starts_with("Describe") => Body::from(self.spread(text)),
            Ok(_) | Err(_) => Body::from(bytes),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// The answer with each member in a zone of its own choosing: the one that has fewest of its group.
    fn spread(&self, text: &str) -> String {
        let mut zones = lock(&self.zones);
        let mut spread = String::with_capacity(text.len());
        // Each group's members stand in one such list; of an answer without lists all is one.
        for (number, part) in text.split("<Instances>").enumerate() {
            if number > 0 {
                spread.push_str("<Instances>");
            }
            let (list, rest) = part.split_once("</Instances>").map_or((part, None), |(list, rest)| (list, Some(rest)));
            let is_list = number > 0;
            let mut has: BTreeMap<&'static str, usize> = ZONES.into_iter().map(|zone| (zone, 0)).collect();
            for zone in ids(list).filter_map(|id| zones.get(id)) {
                *has.entry(zone).or_default() += 1;
            }
            for (index, member) in list.split("<member>").enumerate() {
                if index > 0 {
                    spread.push_str("<member>");
                }
                let Some(id) = ids(member).next() else {
                    spread.push_str(member);
                    continue;
                };
                if is_list && !zones.contains_key(id) {
                    let emptiest = has.iter().min_by_key(|(_, count)| **count).map_or("a", |(zone, _)| *zone);
                    *has.entry(emptiest).or_default() += 1;
                    zones.insert(id.to_owned(), emptiest);
                }
                match zones.get(id) {
                    Some(zone) => spread.push_str(&in_zone(member, &format!("{}{zone}", self.region))),
                    None => spread.push_str(member),
                }
            }
            if let Some(rest) = rest {
                spread.push_str("</Instances>");
                spread.push_str(rest);
            }
        }
        spread
    }
}

fn ids(text: &str) -> impl Iterator<Item = &str> {
    text.split("<InstanceId>").skip(1).filter_map(|after| after.split('<').next())
}

fn in_zone(member: &str, zone: &str) -> String {
    let moved = || {
        let (before, after) = member.split_once("<AvailabilityZone>")?;
        let (_, after) = after.split_once('<')?;
        Some(format!("{before}<AvailabilityZone>{zone}<{after}"))
    };
    moved().unwrap_or_else(|| member.to_owned())
}

/// The action: of the form, or of the header by which services without forms name it.
fn action(headers: &HeaderMap, body: &[u8]) -> Option<String> {
    if let Some(target) = headers.get("x-amz-target").and_then(|target| target.to_str().ok()) {
        return target.rsplit('.').next().map(str::to_owned);
    }
    let form = std::str::from_utf8(body).ok()?;
    form.split('&').find_map(|field| field.strip_prefix("Action=")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> String {
        format!("<member><AvailabilityZone>us-east-1a</AvailabilityZone><InstanceId>{id}</InstanceId></member>")
    }

    async fn front() -> Front {
        Front::start("http://127.0.0.1:1", "us-east-1").await.unwrap()
    }

    fn zones(text: &str) -> Vec<&str> {
        let after = text.split("<AvailabilityZone>us-east-1").skip(1);
        after.filter_map(|after| after.split('<').next()).collect()
    }

    #[tokio::test]
    async fn members_are_spread_stay_where_they_are_and_a_new_one_fills_the_gap() {
        let front = front().await;
        let list = |ids: &[&str]| {
            let members: String = ids.iter().map(|id| member(id)).collect();
            format!(
                "<AvailabilityZones><member>us-east-1a</member></AvailabilityZones><Instances>{members}</Instances>"
            )
        };
        let first = front.state.spread(&list(&["i-1", "i-2", "i-3"]));
        assert_eq!(zones(&first), ["a", "b", "c"]);
        assert!(first.starts_with("<AvailabilityZones><member>us-east-1a</member>"), "{first}");
        assert_eq!(zones(&front.state.spread(&list(&["i-3", "i-1", "i-9"]))), ["c", "a", "b"]);
        // Another group has zones of its own.
        let two = format!("{}{}", list(&["i-1", "i-3", "i-9"]), list(&["i-7", "i-8"]));
        assert_eq!(zones(&front.state.spread(&two)), ["a", "c", "b", "a", "b"]);
        assert_eq!(zones(&front.state.spread(&member("i-3"))), ["c"]);
        assert_eq!(front.state.spread("<nothing/>"), "<nothing/>");
    }

    #[tokio::test]
    async fn a_call_is_told_by_its_signature_and_its_form() {
        let mut headers = HeaderMap::new();
        let signature =
            "AWS4-HMAC-SHA256 Credential=AKIA/20261124/us-east-1/autoscaling/aws4_request, SignedHeaders=host";
        headers.insert(header::AUTHORIZATION, signature.parse().unwrap());
        assert_eq!(action(&headers, b"Action=DescribeTags&Version=1").as_deref(), Some("DescribeTags"));
        assert_eq!(action(&headers, b"Version=1"), None);
        let front = front().await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = client.post(&front.url).headers(headers).body("Action=DescribeTags").send().await.unwrap();
        assert_eq!(asked.status(), 502, "nothing listens behind it");
        assert_eq!(front.calls(), BTreeMap::from([("autoscaling:DescribeTags".to_owned(), 1)]));
        assert_eq!(changing(&front.calls()), BTreeMap::new());
        let kill = BTreeMap::from([("ec2:TerminateInstances".to_owned(), 2)]);
        assert_eq!(changing(&kill), kill);
    }
}
