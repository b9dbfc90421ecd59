//! One request to somebody outside, over a connection of its own: dial, TLS where the address wants it, the answer.
//!
//! Hold signals and notices go this way. An address may hold a secret in its path, so that no error says more of it than
//! host and port.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header, request};
use http_body_util::Full;
use tokio::sync::OnceCell;
use troop_policies::hold::Address;
use troop_policies::situation::Reading;

use crate::client::{BodyWanted, exchange};
use crate::outside::Dial;
use crate::tls::Trust;
use crate::world::chain;

/// How long a channel may take to answer a notice. Nobody waits for it but the notices after it.
const TAKES_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer to a notice that is read: whoever refuses one says why in a word.
const POST_ANSWER_BYTES_MAX: usize = 4_096;

/// How somebody outside is asked.
#[derive(Debug, Clone)]
pub struct Asker {
    pub dial: Dial,
    /// Certificates of authorities that are trusted beside those of the machine.
    pub ca_file: Option<PathBuf>,
}

/// Whom to trust, read when the first address wants to know, once for all that are asked together.
pub(crate) type Trusted = OnceCell<Reading<Trust>>;

/// A POST of JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Post {
    pub to: Address,
    /// Besides those that every request has.
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// Without the path, and without what the headers prove.
impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Post").field("host", &self.to.host).field("body", &self.body).finish_non_exhaustive()
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    pub status: u16,
    /// The header `Retry-After`, as it was sent.
    pub retry_after: Option<String>,
    /// How the answer begins, where it is not 2xx.
    pub body: String,
}

impl Asker {
    /// Sends one request. `request` says how; where to, and the host, follow from the address.
    pub(crate) async fn ask(
        &self,
        address: &Address,
        request: request::Builder,
        body: Bytes,
        wanted: BodyWanted,
        trusted: &Trusted,
    ) -> Reading<Response<Bytes>> {
        let Address { tls, host, port, path } = address;
        let unanswered = |why: String| format!("{host}:{port}: {why}");
        let request: Request<Full<Bytes>> = request
            .uri(path)
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|e| e.to_string())?;
        if !tls {
            let stream = self.dial.connect(host, *port).await.map_err(|e| unanswered(e.to_string()))?;
            return exchange(stream, request, wanted).await.map_err(|e| chain(&e));
        }
        let trust = trusted.get_or_init(|| self.trust()).await.as_ref().map_err(Clone::clone)?;
        let stream = self.dial.connect(host, *port).await.map_err(|e| unanswered(e.to_string()))?;
        let stream = trust.connect(stream, host).await.map_err(|e| unanswered(chain(&e)))?;
        exchange(stream, request, wanted).await.map_err(|e| chain(&e))
    }

    /// Posts JSON. What is not answered within five seconds is an error; whatever is answered, also 500, is none.
    ///
    /// # Errors
    /// Why there is no answer, in words that hold nothing of the address but its host.
    pub async fn post(&self, post: Post) -> Reading<Posted> {
        let request = Request::post("/").header(header::CONTENT_TYPE, "application/json");
        let request = post.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let wanted = BodyWanted::StartOfRefusal { bytes_max: POST_ANSWER_BYTES_MAX };
        let trusted = Trusted::new();
        let asked = self.ask(&post.to, request, post.body.into(), wanted, &trusted);
        let late = |_| format!("{}:{}: no answer within {} s", post.to.host, post.to.port, TAKES_WITHIN.as_secs());
        let answer = tokio::time::timeout(TAKES_WITHIN, asked).await.map_err(late)??;
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        Ok(Posted {
            status: answer.status().as_u16(),
            retry_after: retry_after.map(str::to_owned),
            body: String::from_utf8_lossy(answer.body()).into_owned(),
        })
    }

    async fn trust(&self) -> Reading<Trust> {
        let ca_file = self.ca_file.clone();
        // The machine's store is some hundred files or one of 200 kB.
        let read = tokio::task::spawn_blocking(move || Trust::read(ca_file.as_deref())).await;
        read.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
    }
}
