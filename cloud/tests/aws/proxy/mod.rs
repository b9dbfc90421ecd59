//! A proxy between Troop and a double of AWS. It tells calls apart as AWS does (the signature's scope names the service, the
//! form's `Action` the call), writes each one down, and can do to it what networks and services do: before it is passed on, so
//! that nothing happened, or after, so that it happened and the answer is lost.

pub(crate) mod bodies;
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use troop_cloud::aws::scope::signed_for;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Where in a call's way something is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// It is not passed on: nothing happens.
    Before,
    /// It is passed on, and its answer thrown away.
    After,
}

/// What is done to a call.
#[derive(Clone)]
pub(crate) enum Fault {
    /// This answer, with this status, instead of AWS's.
    Answer(When, u16, String),
    /// The connection is reset.
    Reset(When),
    /// Half of the answer's body, then a reset. It was passed on.
    Short,
    /// Half of the answer's body, then nothing any more.
    Stall,
    /// The call is passed on, and answered so much later.
    Late(Duration),
    /// Nothing at all.
    Hang,
    /// The answer as it was when this call was last let through.
    Stale,
    /// The call is passed on without this field of its form.
    Without(&'static str),
    /// The answer, rewritten.
    Edit(Arc<dyn Fn(&str) -> String + Send + Sync>),
}

/// Which calls something is done to.
#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) action: &'static str,
    /// Something that the call's form must hold.
    pub(crate) holding: String,
    /// So many pass first.
    pub(crate) skip: u32,
    /// So many are hit after those.
    pub(crate) times: u32,
    pub(crate) fault: Fault,
}

impl Rule {
    /// Every call of this action.
    pub(crate) fn every(action: &'static str, fault: Fault) -> Self {
        Self { action, holding: String::new(), skip: 0, times: u32::MAX, fault }
    }

    /// The next call of this action.
    pub(crate) fn next(action: &'static str, fault: Fault) -> Self {
        Self { times: 1, ..Self::every(action, fault) }
    }
}

/// A call that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) service: String,
    pub(crate) action: String,
    /// The form as it came.
    pub(crate) form: String,
    pub(crate) passed_on: bool,
    /// What was answered by those to whom it was passed on; 0 as long as they have not.
    pub(crate) status: u16,
}

impl Seen {
    /// The values of the form.
    pub(crate) fn fields(&self) -> impl Iterator<Item = String> {
        form_urlencoded::parse(self.form.as_bytes()).map(|(_, value)| value.into_owned())
    }
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    audit: Vec<Seen>,
    answers: BTreeMap<String, String>,
}

/// A running proxy; it ends with its runtime.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts one before `upstream`, `http://HOST:PORT`.
    pub(crate) async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Self { url, state: Arc::default() };
        let (state, upstream) = (proxy.state.clone(), upstream.to_owned());
        let client = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, upstream.clone(), client.clone(), state.clone()));
            }
        });
        proxy
    }

    pub(crate) fn add(&self, rule: Rule) {
        self.state.lock().unwrap().rules.push(rule);
    }

    /// Lets everything through from now on.
    pub(crate) fn heal(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// Every call so far.
    pub(crate) fn audit(&self) -> Vec<Seen> {
        self.state.lock().unwrap().audit.clone()
    }

    /// How often an action was asked for.
    pub(crate) fn count(&self, action: &str) -> usize {
        self.state.lock().unwrap().audit.iter().filter(|seen| seen.action == action).count()
    }

    pub(crate) fn forget_audit(&self) {
        self.state.lock().unwrap().audit.clear();
    }
}

async fn serve(
    stream: TcpStream,
    upstream: String,
    client: Client<HttpConnector, Full<Bytes>>,
    state: Arc<Mutex<State>>,
) {
    // A connection that is dropped is reset, as by a host that died.
    stream.set_zero_linger().unwrap();
    let service = service_fn(|request: Request<Incoming>| {
        let (upstream, client, state) = (upstream.clone(), client.clone(), state.clone());
        async move { answer(request, &upstream, &client, &state).await }
    });
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

/// Answers one call, or ends the connection.
async fn answer(
    request: Request<Incoming>,
    upstream: &str,
    client: &Client<HttpConnector, Full<Bytes>>,
    state: &Mutex<State>,
) -> Result<Response<Body>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let form = String::from_utf8_lossy(&body).into_owned();
    let service = signed_for(&parts.headers).map(|(_, service)| service.to_owned()).unwrap_or_default();
    let action = action(&form, &parts.uri);
    let (fault, number) = {
        let mut state = state.lock().unwrap();
        let fault = take_fault(&mut state.rules, &action, &form);
        let passed_on = !matches!(
            fault,
            Some(Fault::Answer(When::Before, ..) | Fault::Reset(When::Before) | Fault::Hang | Fault::Stale)
        ) && stub(&action).is_none();
        state.audit.push(Seen { service, action: action.clone(), form: form.clone(), passed_on, status: 0 });
        (fault, state.audit.len() - 1)
    };
    match &fault {
        Some(Fault::Answer(When::Before, status, text)) => return Ok(whole(*status, text)),
        Some(Fault::Reset(When::Before)) => return Err(std::io::Error::other("reset")),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Stale) => {
            let old = state.lock().unwrap().answers.get(&action).cloned();
            return Ok(whole(200, &old.expect("a call of this kind was let through before")));
        }
        _ => {}
    }
    let body = match &fault {
        Some(Fault::Without(field)) => {
            let kept = form.split('&').filter(|pair| pair.split('=').next() != Some(*field));
            Bytes::from(kept.collect::<Vec<_>>().join("&"))
        }
        _ => body,
    };
    let (status, text) = match stub(&action) {
        Some(text) => (200, text),
        None => pass_on(parts, body, upstream, client).await?,
    };
    // It may have been forgotten meanwhile.
    if let Some(seen) = state.lock().unwrap().audit.get_mut(number) {
        seen.status = status;
    }
    match fault {
        None | Some(Fault::Without(_)) => {
            if status == 200 {
                state.lock().unwrap().answers.insert(action, text.clone());
            }
            Ok(whole(status, &text))
        }
        Some(Fault::Answer(_, status, text)) => Ok(whole(status, &text)),
        Some(Fault::Short) => Ok(half(status, &text, true)),
        Some(Fault::Stall) => Ok(half(status, &text, false)),
        Some(Fault::Late(by)) => {
            tokio::time::sleep(by).await;
            Ok(whole(status, &text))
        }
        Some(Fault::Edit(edit)) => Ok(whole(status, &edit(&text))),
        Some(Fault::Reset(_) | Fault::Hang | Fault::Stale) => Err(std::io::Error::other("reset")),
    }
}

fn take_fault(rules: &mut [Rule], action: &str, form: &str) -> Option<Fault> {
    for rule in rules.iter_mut().filter(|rule| rule.action == action && form.contains(&rule.holding)) {
        if rule.skip > 0 {
            rule.skip -= 1;
        } else if rule.times > 0 {
            rule.times = rule.times.saturating_sub(u32::from(rule.times != u32::MAX));
            return Some(rule.fault.clone());
        }
    }
    None
}

/// What moto does not have, answered as AWS would where nothing is going on.
fn stub(action: &str) -> Option<String> {
    match action {
        "DescribeInstanceRefreshes" => Some(bodies::scaling_answer(action, "<InstanceRefreshes/>")),
        "DeleteLaunchTemplateVersions" => Some(bodies::deleted_versions()),
        _ => None,
    }
}

async fn pass_on(
    parts: http::request::Parts,
    body: Bytes,
    upstream: &str,
    client: &Client<HttpConnector, Full<Bytes>>,
) -> Result<(u16, String), std::io::Error> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(parts.method).uri(format!("{upstream}{path}"));
    for (name, value) in &parts.headers {
        // The host stays: it was signed. The body may be shorter than it was.
        if name != header::CONTENT_LENGTH {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::new(body)).map_err(std::io::Error::other)?;
    let response = client.request(request).await.map_err(std::io::Error::other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The form's `Action`; of protocols without a form the end of the path.
fn action(form: &str, uri: &http::Uri) -> String {
    let of_form = form.split('&').find_map(|pair| pair.strip_prefix("Action="));
    of_form.unwrap_or_else(|| uri.path().rsplit('/').next().unwrap_or_default()).to_owned()
}

fn response(status: u16, length: usize, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, "text/xml".parse().unwrap());
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

fn whole(status: u16, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|e: Infallible| match e {});
    response(status, text.len(), UnsyncBoxBody::new(body))
}

/// The first half of an answer, and then the end of the connection, or nothing.
fn half(status: u16, text: &str, ends: bool) -> Response<Body> {
    let start = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
    let first = stream::iter([Ok(Frame::data(start))]);
    let rest = stream::once(async move {
        if !ends {
            std::future::pending::<()>().await;
        }
        // What is on its way shall arrive before the reset.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("cut"))
    });
    response(status, text.len(), UnsyncBoxBody::new(StreamBody::new(futures::StreamExt::chain(first, rest))))
}
