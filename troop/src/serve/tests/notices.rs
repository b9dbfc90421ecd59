//! Teams are told: over real connections, from a real ledger.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use troop_policies::policy::{Channel, ChannelKind, Site};
use troop_policies::spared::Gate;

use super::stage::{Fake, Home, IN_WINDOW, POLICY};
use super::*;
use crate::api::types::NotifyRequest;
use crate::records::{MARK_NOTICES, NoticesBody, Record};
use crate::serve::notices;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// A part of each address that must be seen nowhere else.
const HIDDEN: &str = "hidden-part";

/// One request as it arrived.
#[derive(Debug, Clone)]
struct Arrived {
    id: String,
    timestamp: String,
    signature: String,
    body: String,
}

impl Arrived {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A channel's other end: keeps what arrives, and answers as told, then 200.
#[derive(Debug, Default)]
struct Receiver {
    arrived: Mutex<Vec<Arrived>>,
    answers: Mutex<VecDeque<(StatusCode, &'static str)>>,
}

impl Receiver {
    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    fn answer(&self, answers: &[(StatusCode, &'static str)]) {
        self.answers.lock().unwrap().extend(answers);
    }

    async fn begin() -> (Arc<Self>, SocketAddr) {
        let receiver = Arc::new(Self::default());
        let router = Router::new().fallback(take).with_state(Arc::clone(&receiver));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (receiver, address)
    }
}

async fn take(State(receiver): State<Arc<Receiver>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    receiver.arrived.lock().unwrap().push(Arrived { id, timestamp, signature: header("webhook-signature"), body });
    let answer = receiver.answers.lock().unwrap().pop_front();
    answer.unwrap_or((StatusCode::OK, "ok")).into_response()
}

/// A site whose channels lead to these addresses; those named `slack…` are of that kind.
fn site(home: &Home, channels: &[(&str, SocketAddr)]) -> Site {
    let file = |name: String, text: String| -> PathBuf {
        let path = home.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let one = |(name, address): &(&str, SocketAddr)| {
        let url_file = file(format!("{name}.url"), format!("http://{address}/{HIDDEN}\n"));
        let secret_file = file(format!("{name}.secret"), SECRET.to_owned());
        let is_slack = name.starts_with("slack");
        let kind = if is_slack { ChannelKind::Slack } else { ChannelKind::Webhook { secret_file } };
        ((*name).to_owned(), Channel { kind, url_file })
    };
    Site { channels: channels.iter().map(one).collect::<BTreeMap<_, _>>(), ..Site::embedded_default() }
}

fn policy(keys: &str) -> String {
    POLICY.replacen("timezone", &format!("{keys}\ntimezone"), 1)
}

/// A control plane that tells, until it is dropped.
struct Telling {
    core: Arc<Core>,
    part: AbortHandle,
}

impl Drop for Telling {
    fn drop(&mut self) {
        self.part.abort();
    }
}

impl Telling {
    /// Begins it, and waits until every recipient knows where it stands.
    async fn begin(home: &Home, site: Site, recipients: usize) -> Self {
        let core = home.control_plane_of(site, &Fake::new(), IN_WINDOW).await;
        let part = tokio::spawn(notices::run(Arc::clone(&core))).abort_handle();
        let telling = Self { core, part };
        until("every recipient has a mark", async || telling.marks().await.len() == recipients).await;
        telling
    }

    async fn marks(&self) -> Vec<NoticesBody> {
        let marks = self.core.ledger.marks(MARK_NOTICES).await.unwrap();
        marks.into_iter().map(|mark| serde_json::from_value(mark.body).unwrap()).collect()
    }

    async fn spare(&self, why: &str) {
        let record = Record::SparedAtAct {
            team: "demo".parse().unwrap(),
            draw_key: "local/r1/hello-web".to_owned(),
            monkey: "chaos".to_owned(),
            day: jiff::civil::date(2026, 11, 24),
            gate: Gate::Floor,
            why: why.to_owned(),
            demand: false,
        };
        self.core.record(&record, None).await.unwrap();
    }

    async fn ledger_text(&self) -> String {
        let events = self.core.ledger.events(&EventFilter::default()).await.unwrap();
        let marks = self.core.ledger.marks(MARK_NOTICES).await.unwrap();
        format!("{events:?} {marks:?}")
    }
}

async fn arrive(receiver: &Receiver, count: usize) -> Vec<Arrived> {
    until("it arrives", async || receiver.arrived().len() >= count).await;
    receiver.arrived()
}

/// HMAC-SHA256 as RFC 2104 writes it down, without the crate that signs.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

#[tokio::test]
async fn a_notice_is_signed_and_tried_again_with_the_same_id_until_it_is_taken() {
    let home = Home::new();
    home.write_policy(&policy("notify = [\"desk:room\"]"));
    let (receiver, address) = Receiver::begin().await;
    receiver.answer(&[(StatusCode::INTERNAL_SERVER_ERROR, "")]);
    let telling = Telling::begin(&home, site(&home, &[("desk", address)]), 1).await;
    telling.spare("first").await;
    arrive(&receiver, 1).await;
    until("it is told who fails", async || telling.core.troubles().iter().any(|t| t.contains("answered 500"))).await;
    telling.spare("second").await;
    let arrived = arrive(&receiver, 3).await;
    until("nobody fails", async || telling.core.troubles().is_empty()).await;
    let texts: Vec<_> = arrived.iter().map(|a| a.json()["text"].as_str().unwrap().to_owned()).collect();
    assert!(texts[0].contains("first") && texts[0] == texts[1] && texts[2].contains("second"), "{texts:?}");
    assert!(arrived[0].id == arrived[1].id && arrived[1].id != arrived[2].id, "{arrived:?}");
    for one in &arrived {
        let signed = format!("{}.{}.{}", one.id, one.timestamp, one.body);
        let key = STANDARD.decode(&SECRET["whsec_".len()..]).unwrap();
        assert_eq!(one.signature, format!("v1,{}", STANDARD.encode(hmac(&key, signed.as_bytes()))));
    }
    let body = arrived[2].json();
    for (field, value) in
        [("kind", "spared_at_act"), ("team", "demo"), ("target", "room"), ("draw_key", "local/r1/hello-web")]
    {
        assert_eq!(body[field], value, "{body}");
    }
    assert_eq!((&body["schema"], &body["record"]["why"]), (&1.into(), &"second".into()));
    body["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
}

#[tokio::test]
async fn a_restart_tells_what_came_meanwhile_and_nothing_twice() {
    let home = Home::new();
    home.write_policy(&policy("notify = [\"slack:room\"]"));
    let (receiver, address) = Receiver::begin().await;
    let telling = Telling::begin(&home, site(&home, &[("slack", address)]), 1).await;
    let start = telling.marks().await[0].cursor;
    telling.spare("before <b> & after").await;
    let arrived = arrive(&receiver, 1).await;
    assert_eq!(arrived[0].json()["channel"], "room");
    assert!(arrived[0].json()["text"].as_str().unwrap().contains("before &lt;b&gt; &amp; after"), "{arrived:?}");
    until("it is settled", async || telling.marks().await[0].cursor > start).await;
    telling.part.abort();
    telling.spare("meanwhile").await;
    drop(telling);
    let again = Telling::begin(&home, site(&home, &[("slack", address)]), 1).await;
    let arrived = arrive(&receiver, 2).await;
    again.spare("afterwards").await;
    let last = arrive(&receiver, 3).await.pop().unwrap();
    assert!(arrived[1].body.contains("meanwhile") && last.body.contains("afterwards"), "{arrived:?} {last:?}");
    assert_eq!(receiver.arrived().len(), 3);
}

/// Collects what is logged on this thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_refused_is_recorded_at_once_and_no_secret_is_seen_anywhere() {
    let log = Log::default();
    // With a single one there are, whether a line is wanted is asked once and for all of whichever thread comes first, and other
    // tests' threads want none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    let _logged = tracing::subscriber::set_default(subscriber.finish());
    let home = Home::new();
    home.write_policy(&policy("notify = [\"desk:room\"]"));
    let (receiver, address) = Receiver::begin().await;
    receiver.answer(&[(StatusCode::NOT_FOUND, "Cannot POST /hidden-part")]);
    let telling = Telling::begin(&home, site(&home, &[("desk", address)]), 1).await;
    telling.spare("never taken").await;
    until("it is given up", async || telling.ledger_text().await.contains("notice_failed")).await;
    let events = telling.core.ledger.events(&EventFilter::default()).await.unwrap();
    let Some(Ok(Record::NoticeFailed { recipient, of, why, .. })) =
        events.iter().find(|e| e.kind == "notice_failed").map(|e| serde_json::from_value(e.body.clone()))
    else {
        panic!("{events:?}")
    };
    assert_eq!(
        (recipient.as_str(), of.as_str(), why.as_str()),
        ("desk:room", "spared_at_act", "127.0.0.1 answered 404")
    );
    until("status tells", async || telling.core.troubles().iter().any(|t| t.contains("answered 404"))).await;
    assert_eq!(receiver.arrived().len(), 1);
    let told = format!("{:?} {:?} {}", telling.core, telling.core.troubles(), telling.ledger_text().await);
    let answer = Control(Arc::clone(&telling.core)).notify(test_notice(), ana()).await.unwrap();
    assert!(answer.told[0].ok && answer.told[0].recipient == "desk:room", "{answer:?}");
    until("the channel works again", async || telling.core.troubles().is_empty()).await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("a notice was given up"), "{log}");
    for text in [told, log, serde_json::to_string(&answer).unwrap()] {
        assert!(!text.contains(HIDDEN) && !text.contains(&SECRET[6..]), "{text}");
    }
}

fn test_notice() -> NotifyRequest {
    NotifyRequest { team: "demo".parse().unwrap(), message: Some("hello".to_owned()) }
}

#[tokio::test]
async fn a_channel_that_hangs_holds_up_no_other() {
    let home = Home::new();
    home.write_policy(&policy("notify = [\"desk:a\", \"desk:b\", \"desk:c\", \"desk:d\", \"slack:room\"]"));
    let (receiver, address) = Receiver::begin().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channels = [("desk", silent.local_addr().unwrap()), ("slack", address)];
    let telling = Telling::begin(&home, site(&home, &channels), 5).await;
    let start = telling.marks().await[0].cursor;
    let told = async {
        for n in 1..=3 {
            telling.spare("told").await;
            arrive(&receiver, n).await;
        }
    };
    // One after the other the four would have taken five seconds each before the first.
    tokio::time::timeout(Duration::from_secs(15), told).await.unwrap();
    let behind = telling.marks().await.into_iter().filter(|mark| mark.cursor == start).count();
    assert!(behind >= 4, "{:?}", telling.marks().await);
}

#[tokio::test]
async fn a_test_notice_says_what_each_channel_answered() {
    let home = Home::new();
    home.write_policy(&policy("notify = [\"slack:room\", \"pager:ana\", \"desk:room\"]"));
    let (receiver, address) = Receiver::begin().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let core =
        home.control_plane_of(site(&home, &[("slack", address), ("desk", closed)]), &Fake::new(), IN_WINDOW).await;
    assert!(
        core.troubles().iter().any(|t| t.contains("the site file has no channel `pager`")),
        "{:?}",
        core.troubles()
    );
    let control = Control(core);
    let answer = control.notify(test_notice(), ana()).await.unwrap();
    let told: Vec<_> = answer.told.iter().map(|t| (t.recipient.as_str(), t.ok)).collect();
    assert_eq!(told, [("slack:room", true), ("pager:ana", false), ("desk:room", false)]);
    let text = receiver.arrived()[0].json()["text"].as_str().unwrap().to_owned();
    assert_eq!(text, "[embedded] test notice of team demo, sent by ana: hello");
    let unknown = NotifyRequest { team: "demos".parse().unwrap(), message: None };
    let error = control.notify(unknown, ana()).await.unwrap_err();
    assert_eq!((error.kind, error.hint.as_deref()), (ErrorKind::NotFound, Some("did you mean `demo`?")));
}

#[tokio::test]
async fn a_team_that_wants_to_be_told_is_spared_until_it_was_and_while_it_cannot_be() {
    let home = Home::new();
    home.write_policy(&policy("notify = [\"slack:room\"]\nno_notice = \"spare\""));
    let (receiver, address) = Receiver::begin().await;
    let telling = Telling::begin(&home, site(&home, &[("slack", address)]), 1).await;
    let control = Control(Arc::clone(&telling.core));
    let spared = control.kill(kill("before the plan"), ana()).await.unwrap_err();
    assert_eq!(spared.kind, ErrorKind::Refused);
    assert!(spared.message.contains("(hold)") && spared.message.contains("told to nobody yet"), "{spared:?}");
    plan_and_fire(&telling.core, &mut planner::Planner::default()).await;
    until("the plan is told", async || !telling.marks().await[0].plans_told.is_empty()).await;
    let plan = receiver.arrived().into_iter().find(|a| a.body.contains("the plan of 2026-11-24")).unwrap();
    assert!(plan.body.contains("chaos local/r1/hello-web"), "{plan:?}");
    receiver.answer(&[(StatusCode::GONE, "")]);
    telling.spare("not taken").await;
    until("the channel fails", async || telling.marks().await[0].failing.is_some()).await;
    let spared = control.kill(kill("while it fails"), ana()).await.unwrap_err();
    assert!(spared.message.contains("`slack:room` cannot be told: 127.0.0.1 answered 410"), "{spared:?}");
    // The refusal is told as well, and taken: from then on the team can be told again.
    until("the channel works", async || telling.marks().await[0].failing.is_none()).await;
    control.kill(kill("told"), ana()).await.unwrap();
    until("act and outcome are told", async || {
        let all: String = receiver.arrived().into_iter().map(|a| a.body).collect();
        all.contains("about to terminate") && all.contains("done: terminate")
    })
    .await;
}
