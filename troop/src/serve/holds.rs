//! Asks the hold signals, right before somebody could be hurt. Whatever cannot be asked, or answers what cannot be read,
//! is an error, and an error spares.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use serde::Deserialize;
use troop_policies::hold::{Address, HoldSignal};
use troop_policies::situation::{HoldsSeen, Reading};

use crate::ask::{Asker, Trusted};
use crate::client::BodyWanted;

/// How long one signal may take to answer. The act waits for it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// Longest answer read: a thousand alerts.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Names of alerts that are told; the rest is a number.
const ALERTS_TOLD: usize = 3;

/// Where to ask.
#[derive(Debug, Clone)]
pub struct Holds {
    pub asker: Asker,
    /// The base address of the site's Alertmanager.
    pub alertmanager: Option<String>,
}

impl Holds {
    /// Asks all of them at once. One that says nothing within three seconds cannot be asked.
    pub async fn ask(&self, signals: impl Iterator<Item = &str>) -> HoldsSeen {
        let trusted = &Trusted::new();
        let asked = signals.map(|signal| async move {
            let answer = tokio::time::timeout(ANSWERS_WITHIN, self.one(signal, trusted)).await;
            let late = || Err(format!("no answer within {} s", ANSWERS_WITHIN.as_secs()));
            (signal.to_owned(), answer.unwrap_or_else(|_| late()))
        });
        futures::future::join_all(asked).await.into_iter().collect::<BTreeMap<_, _>>()
    }

    /// What fires, or `None` where it is quiet.
    async fn one(&self, signal: &str, trusted: &Trusted) -> Reading<Option<String>> {
        match HoldSignal::parse(signal).map_err(|e| e.to_string())? {
            HoldSignal::Url(address) => {
                let (status, _) = self.get(&address, trusted).await?;
                Ok((!status.is_success()).then(|| format!("it answered {}", status.as_u16())))
            }
            HoldSignal::Alertmanager { labels } => {
                let base = self.alertmanager.as_deref();
                let base = base.ok_or("the site file names no `alertmanager` under [signals]")?;
                let base = Address::parse(base).ok_or("the site's `alertmanager` is no address")?;
                let path = format!("{}/api/v2/alerts?{}", base.path.trim_end_matches('/'), query(&labels));
                let (status, body) = self.get(&Address { path, ..base }, trusted).await?;
                if status != StatusCode::OK {
                    return Err(format!("Alertmanager answered {}", status.as_u16()));
                }
                let alerts: Vec<Alert> =
                    serde_json::from_slice(&body).map_err(|e| format!("Alertmanager's answer cannot be read: {e}"))?;
                Ok(firing(&alerts))
            }
        }
    }

    async fn get(&self, address: &Address, trusted: &Trusted) -> Reading<(StatusCode, Bytes)> {
        let request = Request::get("/").header(header::ACCEPT, "application/json, */*");
        let wanted = BodyWanted::Whole { bytes_max: ANSWER_BYTES_MAX };
        let answer = self.asker.ask(address, request, Bytes::new(), wanted, trusted).await?;
        let (head, body) = answer.into_parts();
        Ok((head.status, body))
    }
}

/// Alertmanager's `GET /api/v2/alerts`: active, not silenced, not inhibited, and every label as asked.
fn query(labels: &[(String, String)]) -> String {
    let mut query = "active=true&silenced=false&inhibited=false".to_owned();
    for (key, value) in labels {
        query.push_str("&filter=");
        query.push_str(&crate::client::query_value(&format!("{key}=\"{value}\"")));
    }
    query
}

#[derive(Debug, Deserialize)]
struct Alert {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn firing(alerts: &[Alert]) -> Option<String> {
    let (told, more) = (alerts.iter().take(ALERTS_TOLD), alerts.len().saturating_sub(ALERTS_TOLD));
    let names: Vec<&str> =
        told.map(|a| a.labels.get("alertname").map_or("an alert without a name", String::as_str)).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| format!("{}{more}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use axum::Router;
    use axum::extract::RawQuery;
    use axum::routing::get;
    use http_body_util::Full;
    use tokio::net::TcpListener;

    use super::*;
    use crate::outside::Dial;

    async fn serve(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    async fn ask(holds: &Holds, signal: &str) -> Reading<Option<String>> {
        holds.ask(std::iter::once(signal)).await.remove(signal).unwrap()
    }

    fn direct(alertmanager: Option<String>) -> Holds {
        Holds { asker: Asker { dial: Dial::Direct, ca_file: None }, alertmanager }
    }

    #[tokio::test]
    async fn an_address_is_quiet_only_with_2xx() {
        let router = Router::new()
            .route("/ok", get(async || "fine"))
            .route("/no", get(async || StatusCode::SERVICE_UNAVAILABLE))
            .route("/elsewhere", get(async || axum::response::Redirect::temporary("/ok")));
        let address = serve(router).await;
        let holds = direct(None);
        assert_eq!(ask(&holds, &format!("http://{address}/ok")).await, Ok(None));
        assert_eq!(ask(&holds, &format!("http://{address}/no")).await, Ok(Some("it answered 503".to_owned())));
        assert_eq!(ask(&holds, &format!("http://{address}/elsewhere")).await, Ok(Some("it answered 307".to_owned())));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(ask(&holds, &format!("http://{closed}/")).await.is_err());
        assert!(ask(&holds, "nonsense").await.is_err());
    }

    #[tokio::test]
    async fn alerts_are_asked_with_every_label_and_told_by_name() {
        let asked = async |RawQuery(query): RawQuery| {
            let query = query.unwrap_or_default();
            assert!(query.starts_with("active=true&silenced=false&inhibited=false"), "{query}");
            match query.contains("filter=team%3D%22shop%22") {
                true => r#"[{"labels":{"alertname":"CartsDown","team":"shop"}}]"#,
                false => "[]",
            }
        };
        let address = serve(Router::new().route("/base/api/v2/alerts", get(asked))).await;
        let holds = direct(Some(format!("http://{address}/base/")));
        assert_eq!(ask(&holds, "alertmanager:team=shop").await, Ok(Some("CartsDown".to_owned())));
        assert_eq!(ask(&holds, "alertmanager:team=blog,severity=page").await, Ok(None));
        assert!(ask(&direct(None), "alertmanager:team=shop").await.unwrap_err().contains("[signals]"));
    }

    /// Answers every request with 200 and no alerts, by https.
    async fn serve_tls(acceptor: tokio_rustls::TlsAcceptor) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // A client that does not trust us leaves in the middle.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let quiet = hyper::service::service_fn(async |_| {
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"[]"))))
                    });
                    let io = hyper_util::rt::TokioIo::new(stream);
                    let served = hyper::server::conn::http1::Builder::new().serve_connection(io, quiet).await;
                    drop(served);
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn https_is_quiet_only_with_a_trusted_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        let (authority, other) = (crate::tls::tests::Authority::new(), crate::tls::tests::Authority::new());
        let address = serve_tls(authority.acceptor("127.0.0.1")).await;
        let url = format!("https://{address}/up");
        let by = |ca_file: Option<&PathBuf>| Holds {
            asker: Asker { dial: Dial::Direct, ca_file: ca_file.cloned() },
            alertmanager: Some(format!("https://{address}")),
        };
        std::fs::write(&ca_file, authority.pem()).unwrap();
        assert_eq!(ask(&by(Some(&ca_file)), &url).await, Ok(None));
        assert_eq!(ask(&by(Some(&ca_file)), "alertmanager:team=shop").await, Ok(None));
        // Through the supervisor as well: TLS ends here, not there.
        let socket = dir.path().join("outside.sock");
        tokio::spawn(crate::outside::serve(tokio::net::UnixListener::bind(&socket).unwrap()));
        let mut through = by(Some(&ca_file));
        through.asker.dial = Dial::Through(socket);
        assert_eq!(ask(&through, &url).await, Ok(None));

        let why = ask(&by(None), &url).await.unwrap_err();
        // A machine without any authority says so first.
        assert!(why.contains("signed by nobody") || why.contains("trusts no authority"), "{why}");
        std::fs::write(&ca_file, other.pem()).unwrap();
        let why = ask(&by(Some(&ca_file)), &url).await.unwrap_err();
        assert!(
            why.starts_with("127.0.0.1:") && why.contains("signed by nobody whom this machine or `ca_file`"),
            "{why}"
        );
        std::fs::write(&ca_file, "").unwrap();
        assert!(ask(&by(Some(&ca_file)), &url).await.unwrap_err().contains("holds no certificate"));
        // Who speaks no TLS at all is not quiet either.
        let plain = serve(Router::new()).await;
        std::fs::write(&ca_file, authority.pem()).unwrap();
        let why = ask(&by(Some(&ca_file)), &format!("https://{plain}/")).await.unwrap_err();
        assert!(why.contains("the TLS handshake failed"), "{why}");
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_never_quiet() {
        let router = Router::new().route("/api/v2/alerts", get(async || "<html>"));
        let holds = direct(Some(format!("http://{}", serve(router).await)));
        assert!(ask(&holds, "alertmanager:a=b").await.unwrap_err().contains("cannot be read"));
        let holds = direct(Some(format!("http://{}", serve(Router::new()).await)));
        assert!(ask(&holds, "alertmanager:a=b").await.unwrap_err().contains("404"));
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        assert!(ask(&direct(None), &url).await.unwrap_err().contains("no answer within 3 s"));
        let _held = silent;
    }
}
