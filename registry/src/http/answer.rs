//! Answers in the form that was asked for: XML unless `Accept` says json, gzip where it is accepted, one line for errors.

use std::io::Write as _;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::xml;
use crate::saved::SavedError;

/// Smaller bodies fit one packet anyway.
const GZIP_FROM_BYTES: usize = 1_024;

/// `value` as the document `root`.
pub(crate) fn document(headers: &HeaderMap, root: &str, value: Value) -> Response {
    let accepts_json = says(headers, header::ACCEPT).any(|part| part.contains("json"));
    let (kind, body) = if accepts_json {
        let document = Value::Object(serde_json::Map::from_iter([(root.to_owned(), value)]));
        ("application/json", document.to_string())
    } else {
        ("application/xml", xml::write(root, &value))
    };
    let mut response = packed(headers, body.into_bytes());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept, accept-encoding"));
    response
}

fn packed(headers: &HeaderMap, body: Vec<u8>) -> Response {
    if body.len() >= GZIP_FROM_BYTES && says(headers, header::ACCEPT_ENCODING).any(|part| accepts_gzip(&part)) {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        if let Ok(packed) = encoder.write_all(&body).and_then(|()| encoder.finish()) {
            return ([(header::CONTENT_ENCODING, "gzip")], packed).into_response();
        }
    }
    body.into_response()
}

/// The parts of a header that may come in several lines and is a list in each.
fn says(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = String> {
    let lines = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|part| part.trim().to_ascii_lowercase())
}

fn accepts_gzip(part: &str) -> bool {
    let mut pieces = part.split(';').map(str::trim);
    let named = matches!(pieces.next(), Some("gzip" | "x-gzip"));
    let refused = pieces.filter_map(|p| p.strip_prefix("q=")).any(|q| q.parse::<f32>().is_ok_and(|q| q <= 0.0));
    named && !refused
}

/// An error as one line of text.
pub(crate) fn line(status: StatusCode, why: impl std::fmt::Display) -> Response {
    let why = why.to_string().replace(['\n', '\r'], " ");
    (status, format!("{why}\n")).into_response()
}

pub(crate) fn bad(why: impl std::fmt::Display) -> Response {
    line(StatusCode::BAD_REQUEST, why)
}

/// A status without a body: Eureka's Java clients take any body of a heartbeat's answer for an instance.
pub(crate) fn bare(status: StatusCode) -> Response {
    status.into_response()
}

/// The change is in memory and not on disk. Whoever asked must not count on it.
pub(crate) fn unsaved(error: &SavedError) -> Response {
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    line(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}{cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_where_it_is_accepted() {
        for (accept, expected) in [
            ("gzip", true),
            ("gzip;q=0.5", true),
            ("gzip; q=0", false),
            ("gzip;q=0.000", false),
            ("br", false),
            ("*", false),
        ] {
            assert_eq!(accepts_gzip(accept), expected, "{accept}");
        }
    }
}
