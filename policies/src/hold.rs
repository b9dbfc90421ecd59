//! Hold signals: what must be quiet before anything may be hurt. Here is what they are; asking is the control plane's.
//!
//! Two forms are known: an address that must answer with a status of 200 to 299, and alerts of the site's Alertmanager,
//! none of which may fire.

use std::fmt;

/// What a policy or the site file names in `hold_while`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldSignal {
    /// `http://HOST[:PORT]/PATH` or the same by https: holds unless it answers 2xx.
    Url(Address),
    /// `alertmanager:KEY=VALUE,…`: holds while an alert with all these labels fires, neither silenced nor inhibited.
    Alertmanager { labels: Vec<(String, String)> },
}

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// By https: the certificate must be trusted.
    pub tls: bool,
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: String,
    pub port: u16,
    /// With its query.
    pub path: String,
}

/// Why a text is no hold signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadHold {
    pub why: &'static str,
    /// What to write instead.
    pub hint: &'static str,
}

const FORMS: &str = "write an address such as \"https://health.example.com:8080/shop\", or alerts such as \
                     \"alertmanager:team=shop,severity=page\"";

impl HoldSignal {
    /// Reads a signal as it is written.
    ///
    /// # Errors
    /// [`BadHold`] when it has neither form, or an address that this build cannot ask.
    pub fn parse(text: &str) -> Result<Self, BadHold> {
        let bad = |why, hint| Err(BadHold { why, hint });
        if text.starts_with("http://") || text.starts_with("https://") {
            return Address::parse(text)
                .map_or_else(|| bad("it is no address", FORMS), |address| Ok(Self::Url(address)));
        }
        let Some(labels) = text.strip_prefix("alertmanager:") else { return bad("it has an unknown form", FORMS) };
        let labels: Option<Vec<_>> = labels.split(',').map(label).collect();
        labels.map_or_else(|| bad("its labels cannot be read", FORMS), |labels| Ok(Self::Alertmanager { labels }))
    }
}

impl Address {
    /// Reads an `http://` or `https://` address. Names and passwords in it are refused: a policy is shown to anybody.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("https://") {
            Some(rest) => parse(rest, true),
            None => parse(text.strip_prefix("http://")?, false),
        }
    }

    fn standard_port(tls: bool) -> u16 {
        if tls { 443 } else { 80 }
    }
}

fn parse(rest: &str, tls: bool) -> Option<Address> {
    if rest.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') || !rest.is_ascii() {
        return None;
    }
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('/') => (&rest[..at], rest[at..].to_owned()),
        Some(at) => (&rest[..at], format!("/{}", &rest[at..])),
        None => (rest, "/".to_owned()),
    };
    let (host, port) = match authority.rsplit_once(':') {
        // An IPv6 address stands in brackets, with its colons.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|p| *p > 0)?),
        _ => (authority, Address::standard_port(tls)),
    };
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(name),
    };
    fits.then(|| Address { tls, host: host.to_owned(), port, path })
}

fn label(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    // Prometheus' own rule for a label's name.
    let first = key.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    let named = first && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let plain = !value.is_empty() && !value.contains(['"', '\\']) && !value.chars().any(char::is_control);
    (named && plain).then(|| (key.to_owned(), value.to_owned()))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host, port, path } = self;
        let scheme = if *tls { "https" } else { "http" };
        if *port == Self::standard_port(*tls) {
            write!(f, "{scheme}://{host}{path}")
        } else {
            write!(f, "{scheme}://{host}:{port}{path}")
        }
    }
}

impl fmt::Display for HoldSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(address) => address.fmt(f),
            Self::Alertmanager { labels } => {
                let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(f, "alertmanager:{}", labels.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_written_back() {
        for text in [
            "alertmanager:team=shop,severity=page",
            "http://health.example.com/shop",
            "http://127.0.0.1:8080/up?of=shop",
            "http://[::1]:9000/",
            "https://health.example.com/shop",
            "https://health.example.com:80/",
            "http://health.example.com:443/",
        ] {
            assert_eq!(HoldSignal::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HoldSignal::parse("http://h?x=1").unwrap().to_string(), "http://h/?x=1");
        assert_eq!(
            HoldSignal::parse("http://h").unwrap(),
            HoldSignal::Url(Address { tls: false, host: "h".into(), port: 80, path: "/".into() })
        );
        assert_eq!(
            HoldSignal::parse("https://h").unwrap(),
            HoldSignal::Url(Address { tls: true, host: "h".into(), port: 443, path: "/".into() })
        );
    }

    #[test]
    fn what_could_never_be_asked_is_refused() {
        for text in [
            "",
            "x",
            "team=shop",
            "alertmanager:",
            "alertmanager:team",
            "alertmanager:team=",
            "alertmanager:1a=b",
            "alertmanager:a=b\"",
            "alertmanager:a=b,",
            "http://",
            "http:///x",
            "http://h:0/",
            "http://h:99999/",
            "http://user:word@h/",
            "http://h/a b",
            "http://h/#x",
            "https://",
            "https://user:word@h/",
            "HTTPS://h/",
            "ftp://h/",
            "http://[::1/",
            "http://é/",
        ] {
            assert!(HoldSignal::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
