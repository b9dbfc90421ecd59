//! What of a message's head goes on to the other side.
//!
//! Source: RFC 9110, sections 7.2 (Host), 7.6.1 (Connection and the fields it takes along) and 7.6.3 (Via); RFC 9112,
//! sections 6.1 and 6.3 (which framing counts).

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{PathAndQuery, Uri};
use http::{Version, request, response};

use super::upstream::Upstream;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TROOP_GROUP: HeaderName = HeaderName::from_static("x-troop-group");
const TROOP_INSTANCE: HeaderName = HeaderName::from_static("x-troop-instance");
/// Marks an answer that the balancer made itself, and says why.
pub(super) const TROOP_FAILURE: HeaderName = HeaderName::from_static("x-troop-failure");

/// Fields that concern one connection, whether or not `Connection` names them.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
const OURS: HeaderValue = HeaderValue::from_static("1.1 troop");

/// What the sender wants to leave HTTP/1.1 for, where it says so in both fields. An offer of HTTP/2 may be ignored, and is.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_named = || {
        let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        named.flat_map(|value| value.split(',')).any(|name| name.trim().eq_ignore_ascii_case("upgrade"))
    };
    headers.get(UPGRADE).filter(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c") && is_named()).cloned()
}

/// Says again what to upgrade to: the fields concern one connection, and so were taken away.
pub(super) fn set_upgrade(headers: &mut HeaderMap, to: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, to);
}

/// The host a request is for: that of the target's absolute form, else the field's.
pub(super) fn host(parts: &request::Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(HOST).and_then(|host| host.to_str().ok()),
    }
}

/// Makes a client's request head into that for an instance. `bodyless`: there is certainly no body.
pub(super) fn to_upstream(parts: &mut request::Parts, peer: IpAddr, bodyless: bool) {
    let host = host(parts).and_then(|host| HeaderValue::from_str(host).ok());
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    let headers = &mut parts.headers;
    remove_hop_by_hop(headers);
    // Answered here: hyper says 100 as soon as the body is asked for.
    headers.remove(EXPECT);
    if chunked {
        // Both would be a way to smuggle a request past one of the two.
        headers.remove(CONTENT_LENGTH);
    }
    if !bodyless && !headers.contains_key(CONTENT_LENGTH) {
        // Said explicitly, since hyper would otherwise drop the body of a GET.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST, host.clone());
        headers.insert(HOST, host);
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    if let Ok(peer) = HeaderValue::from_str(&peer.to_canonical().to_string()) {
        headers.append(FORWARDED_FOR, peer);
    }
    headers.append(VIA, OURS);
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
}

/// Makes an instance's answer head into that for the client.
pub(super) fn to_client(parts: &mut response::Parts, from: &Upstream) {
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    remove_hop_by_hop(&mut parts.headers);
    if chunked {
        parts.headers.remove(CONTENT_LENGTH);
    }
    parts.headers.remove(TROOP_FAILURE);
    parts.headers.append(VIA, OURS);
    name_instance(&mut parts.headers, from);
    parts.version = Version::HTTP_11;
}

/// Says which instance a request went to. What the instance itself claimed is replaced.
pub(super) fn name_instance(headers: &mut HeaderMap, upstream: &Upstream) {
    set(headers, TROOP_GROUP, upstream.group.as_str());
    set(headers, TROOP_INSTANCE, upstream.instance.as_str());
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // These two say what the message is, on every connection.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn request(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn text<'a>(parts: &'a request::Parts, name: &str) -> Vec<&'a str> {
        parts.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn what_concerns_one_connection_stays_on_it() {
        let mut parts = request(
            "/a?b=c",
            &[
                ("host", "hello-web.localhost"),
                ("connection", "close, X-Secret, host"),
                ("x-secret", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("proxy-authorization", "x"),
                ("x-forwarded-for", "10.0.0.1"),
                ("x-forwarded-host", "forged"),
                ("accept", "*/*"),
            ],
        );
        to_upstream(&mut parts, IpAddr::from([127, 0, 0, 1]), true);
        for gone in ["connection", "x-secret", "keep-alive", "te", "expect", "proxy-authorization"] {
            assert!(text(&parts, gone).is_empty(), "{gone}");
        }
        assert_eq!(text(&parts, "accept"), ["*/*"]);
        assert_eq!(text(&parts, "host"), ["hello-web.localhost"]);
        assert_eq!(text(&parts, "x-forwarded-host"), ["hello-web.localhost"]);
        assert_eq!(text(&parts, "x-forwarded-proto"), ["http"]);
        assert_eq!(text(&parts, "x-forwarded-for"), ["10.0.0.1", "127.0.0.1"]);
        assert_eq!(text(&parts, "via"), ["1.1 troop"]);
        assert!(text(&parts, "transfer-encoding").is_empty());
        assert_eq!(parts.uri, "/a?b=c");
    }

    #[test]
    fn the_absolute_form_names_the_host_and_loses_it() {
        let mut parts = request("http://hello-web.localhost:8080", &[("host", "other")]);
        assert_eq!(host(&parts), Some("hello-web.localhost:8080"));
        to_upstream(&mut parts, IpAddr::from([127, 0, 0, 1]), true);
        assert_eq!(text(&parts, "host"), ["hello-web.localhost:8080"]);
        assert_eq!(parts.uri, "/");
    }

    #[test]
    fn a_body_has_one_framing() {
        let mut both = request("/", &[("transfer-encoding", "chunked"), ("content-length", "5")]);
        to_upstream(&mut both, IpAddr::from([127, 0, 0, 1]), false);
        assert_eq!(text(&both, "transfer-encoding"), ["chunked"]);
        assert!(text(&both, "content-length").is_empty());
        let mut length = request("/", &[("content-length", "5")]);
        to_upstream(&mut length, IpAddr::from([127, 0, 0, 1]), false);
        assert!(text(&length, "transfer-encoding").is_empty());
        assert_eq!(text(&length, "content-length"), ["5"]);
    }

    #[test]
    fn an_upgrade_is_asked_for_in_two_fields_and_an_offer_of_http_2_is_none() {
        let asks = |headers: &[(&str, &str)]| upgrade(&request("/", headers).headers);
        assert_eq!(asks(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]).unwrap(), "websocket");
        assert_eq!(asks(&[("upgrade", "websocket")]), None);
        assert_eq!(asks(&[("upgrade", "h2c"), ("connection", "upgrade, http2-settings")]), None);
        assert_eq!(asks(&[("connection", "upgrade")]), None);
    }
}
