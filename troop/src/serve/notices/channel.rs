//! A channel of the site file as it is on disk: where it posts, how a notice is put for it, and what an answer means.
//!
//! Address and signing secret are secrets. They are read anew for every notice, since one that was exchanged must not need a
//! restart, and stand in no error, log line or record.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use serde::Serialize;
use sha2::Sha256;
use troop_policies::hold::Address;
use troop_policies::policy::{Channel, ChannelKind, Recipient};
use troop_policies::situation::Reading;

use super::words::Notice;
use crate::ask::{Post, Posted};

/// The version of a webhook's body.
const SCHEMA: u32 = 1;
/// Largest secret file taken: an address has some hundred bytes, a secret fewer.
const FILE_BYTES_MAX: u64 = 4_096;
/// What a signing secret begins with, and how many bytes it holds, as the Standard Webhooks specification wants it.
const SECRET_PREFIX: &str = "whsec_";
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Longest word of a refusal that is told, such as Slack's `channel_not_found`.
const WORD_BYTES_MAX: usize = 40;

/// Why a channel cannot be used. None says more of a file than its path.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("could not read `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is no text of at most {FILE_BYTES_MAX} bytes", path.display())]
    NoText { path: PathBuf },
    #[error("`{}` holds no address such as https://HOST/PATH", path.display())]
    NoAddress { path: PathBuf },
    #[error("`{}` holds no signing secret: `whsec_` and 24 to 64 bytes in base64", path.display())]
    NoSecret { path: PathBuf },
}

/// A channel that was read.
pub struct Open {
    to: Address,
    way: Way,
}

enum Way {
    Slack,
    Webhook { secret: Vec<u8> },
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("host", &self.to.host).finish_non_exhaustive()
    }
}

/// Reads a channel's files.
///
/// # Errors
/// [`ChannelError`].
pub fn read(channel: &Channel) -> Result<Open, ChannelError> {
    let path = &channel.url_file;
    let to = Address::parse(&text(path)?).ok_or_else(|| ChannelError::NoAddress { path: path.clone() })?;
    let way = match &channel.kind {
        ChannelKind::Slack => Way::Slack,
        ChannelKind::Webhook { secret_file } => {
            let none = || ChannelError::NoSecret { path: secret_file.clone() };
            Way::Webhook { secret: secret(&text(secret_file)?).ok_or_else(none)? }
        }
    };
    Ok(Open { to, way })
}

fn text(path: &Path) -> Result<String, ChannelError> {
    let failed = |source| ChannelError::Io { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    let fits = u64::try_from(text.len()).is_ok_and(|len| len <= FILE_BYTES_MAX);
    let text = String::from_utf8(text).ok().filter(|_| fits);
    text.map(|text| text.trim().to_owned()).ok_or_else(|| ChannelError::NoText { path: path.to_owned() })
}

fn secret(text: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
    SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

/// A webhook's body.
#[derive(Serialize)]
struct Body<'a> {
    schema: u32,
    /// The ledger's event that is told; null in a test notice.
    event: Option<i64>,
    kind: &'a str,
    team: &'a str,
    target: &'a str,
    draw_key: Option<&'a str>,
    at: Timestamp,
    text: &'a str,
    record: &'a serde_json::Value,
}

/// Slack's form of an incoming webhook, which others understand as well.
#[derive(Serialize)]
struct SlackBody<'a> {
    channel: &'a str,
    text: String,
}

impl Open {
    /// The notice as it is posted now. `id` stays the same for each try.
    ///
    /// # Errors
    /// Never, as notices are made.
    pub(super) fn put(&self, notice: &Notice, to: &Recipient, id: &str, now: Timestamp) -> Reading<Post> {
        let in_words = |e: serde_json::Error| format!("the notice cannot be written: {e}");
        let (body, headers) = match &self.way {
            Way::Slack => {
                let body = SlackBody { channel: &to.target, text: for_slack(&notice.text) };
                (serde_json::to_string(&body).map_err(in_words)?, Vec::new())
            }
            Way::Webhook { secret } => {
                let body = Body {
                    schema: SCHEMA,
                    event: notice.event,
                    kind: &notice.kind,
                    team: notice.team.as_str(),
                    target: &to.target,
                    draw_key: notice.draw_key.as_deref(),
                    at: notice.at,
                    text: &notice.text,
                    record: &notice.record,
                };
                let body = serde_json::to_string(&body).map_err(in_words)?;
                let headers = vec![
                    ("webhook-id", id.to_owned()),
                    ("webhook-timestamp", now.as_second().to_string()),
                    ("webhook-signature", signature(secret, id, now.as_second(), &body)),
                ];
                (body, headers)
            }
        };
        Ok(Post { to: self.to.clone(), headers, body })
    }

    /// What an answer comes to.
    pub(super) fn meaning(&self, answer: &Posted, now: Timestamp) -> Sent {
        let status = answer.status;
        let word = self.word(&answer.body).map(|word| format!(" ({word})")).unwrap_or_default();
        let why = format!("{} answered {status}{word}", self.to.host);
        match status {
            200..300 => Sent::Taken { status },
            400..500 if !matches!(status, 408 | 429) => Sent::Refused { why },
            _ => Sent::NotNow { why, after: answer.retry_after.as_deref().and_then(|text| retry_after(text, now)) },
        }
    }

    /// The word by which a channel such as Slack says why it refuses. Anything else may repeat the address.
    fn word<'b>(&self, body: &'b str) -> Option<&'b str> {
        let word = body.trim();
        let is_word = (1..=WORD_BYTES_MAX).contains(&word.len())
            && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            && !self.to.path.contains(word);
        is_word.then_some(word)
    }
}

/// What became of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sent {
    Taken {
        status: u16,
    },
    /// Worth another try, where the channel says so after that time.
    NotNow {
        why: String,
        after: Option<Duration>,
    },
    /// It will say no again.
    Refused {
        why: String,
    },
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`, as the Standard Webhooks specification has it.
fn signature(secret: &[u8], id: &str, seconds: i64, body: &str) -> String {
    // HMAC takes keys of any length (RFC 2104); an unsigned notice would be the only other way.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { unreachable!("HMAC accepts every key length") };
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// The header `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Slack's escapes, without which a name in angle brackets would call people.
fn for_slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slack(path: &str) -> Open {
        Open { to: Address::parse(&format!("https://hooks.test{path}")).unwrap(), way: Way::Slack }
    }

    fn posted(status: u16, retry_after: Option<&str>, body: &str) -> Posted {
        Posted { status, retry_after: retry_after.map(str::to_owned), body: body.to_owned() }
    }

    fn now() -> Timestamp {
        "2026-11-24T10:30:00Z".parse().unwrap()
    }

    /// The example of Svix's manual, whose scheme the specification is; computed anew by another implementation of HMAC.
    #[test]
    fn the_signature_is_that_of_the_published_example() {
        // Shorter than what the specification wants by now.
        let secret = STANDARD.decode("plJ3nmyCDGBKInavdOK15jsl").unwrap();
        let body = r#"{"event_type":"ping","data":{"success":true}}"#;
        let signed = signature(&secret, "msg_loFOjxBNrRLzqYUf", 1_731_705_121, body);
        assert_eq!(signed, "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for text in [
            "",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_",
            "whsec_c2hvcnQ=",
            "whsec_?",
            &format!("whsec_{}", "A".repeat(96)),
        ] {
            assert_eq!(secret(text), None, "{text}");
        }
    }

    #[test]
    fn an_answer_is_taken_tried_again_or_final() {
        let channel = slack("/services/T/B/x");
        assert_eq!(channel.meaning(&posted(204, None, ""), now()), Sent::Taken { status: 204 });
        for status in [408, 429, 500, 503, 302] {
            assert!(matches!(channel.meaning(&posted(status, None, ""), now()), Sent::NotNow { after: None, .. }));
        }
        for (text, seconds) in [("7", 7), ("Tue, 24 Nov 2026 10:30:09 GMT", 9), ("Tue, 24 Nov 2026 10:00:00 GMT", 0)] {
            let Sent::NotNow { after, .. } = channel.meaning(&posted(429, Some(text), ""), now()) else {
                panic!("{text}")
            };
            assert_eq!(after, Some(Duration::from_secs(seconds)), "{text}");
        }
        assert!(matches!(channel.meaning(&posted(429, Some("soon"), ""), now()), Sent::NotNow { after: None, .. }));
        let refused = channel.meaning(&posted(404, None, "channel_not_found\n"), now());
        assert_eq!(refused, Sent::Refused { why: "hooks.test answered 404 (channel_not_found)".to_owned() });
    }

    #[test]
    fn no_answer_gives_the_address_away() {
        let channel = slack("/services/secret");
        for body in ["Cannot POST /services/secret", "secret", "<html>"] {
            let Sent::Refused { why } = channel.meaning(&posted(404, None, body), now()) else { panic!("{body}") };
            assert_eq!(why, "hooks.test answered 404");
        }
        assert!(!format!("{channel:?}").contains("secret"));
    }

    #[test]
    fn files_that_cannot_be_used_are_told_without_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let (url_file, secret_file) = (dir.path().join("url"), dir.path().join("key"));
        let webhook =
            Channel { kind: ChannelKind::Webhook { secret_file: secret_file.clone() }, url_file: url_file.clone() };
        assert!(matches!(read(&webhook), Err(ChannelError::Io { .. })));
        std::fs::write(&url_file, "hooks.test/hidden").unwrap();
        let error = read(&webhook).unwrap_err();
        assert!(matches!(error, ChannelError::NoAddress { .. }) && !error.to_string().contains("hidden"));
        std::fs::write(&url_file, "https://hooks.test/hidden\n").unwrap();
        std::fs::write(&secret_file, "whsec_hidden").unwrap();
        let error = read(&webhook).unwrap_err();
        assert!(matches!(error, ChannelError::NoSecret { .. }) && !error.to_string().contains("hidden"));
        std::fs::write(&secret_file, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        read(&webhook).unwrap();
        std::fs::write(&url_file, vec![b'a'; 5_000]).unwrap();
        assert!(matches!(read(&webhook), Err(ChannelError::NoText { .. })));
    }
}
