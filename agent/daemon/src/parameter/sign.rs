//! Requests to AWS are signed by its Signature Version 4 (IAM user guide, "Create a signed AWS API request"): a digest of the request is signed with
//! a key that is derived from the secret for one day, region and service.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ring::{digest, hmac};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// By whom a request is signed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    /// Of keys that a role gives for a while.
    pub(crate) session: Option<String>,
}

/// For what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    pub(crate) at: Timestamp,
}

impl Scope<'_> {
    /// The value of the header `x-amz-date`.
    pub(crate) fn time(&self) -> String {
        self.at.to_zoned_datetime(TimeZone::UTC).strftime("%Y%m%dT%H%M%SZ").to_string()
    }

    fn name(&self) -> String {
        format!("{}/{}/{}/aws4_request", &self.time()[..8], self.region, self.service)
    }
}

/// The value of the header `authorization` for a request of the path `/` without a query. All of `headers` are signed: their names are in lower
/// case, their values without blanks at the ends, and `host` and `x-amz-date` are among them.
pub(crate) fn authorization(
    keys: &Keys,
    scope: Scope<'_>,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> String {
    let mut headers = headers.to_vec();
    headers.sort_unstable();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let request = format!("{method}\n/\n\n{lines}\n{names}\n{}", sha256(body));
    let scope_name = scope.name();
    let text = format!("{ALGORITHM}\n{}\n{scope_name}\n{}", scope.time(), sha256(request.as_bytes()));
    let mut key = format!("AWS4{}", keys.secret).into_bytes();
    for word in scope_name.split('/') {
        key = mac(&key, word);
    }
    let signature = hex::encode(mac(&key, &text));
    format!("{ALGORITHM} Credential={}/{scope_name}, SignedHeaders={names}, Signature={signature}", keys.id)
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of AWS's test suite for signatures: its keys, time, region and service.
    fn suite() -> (Keys, Scope<'static>) {
        let keys = Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned(),
            session: None,
        };
        let at = "2015-08-30T12:36:00Z".parse().unwrap();
        (keys, Scope { region: "us-east-1", service: "service", at })
    }

    const HOST: (&str, &str) = ("host", "example.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");

    #[test]
    fn signs_as_the_published_test_suite_does() {
        type Row<'a> = (&'a str, &'a str, Vec<(&'a str, &'a str)>, &'a str, &'a str);
        let session = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        let form = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e";
        let rows: [Row<'_>; 3] = [
            (
                "get-vanilla",
                "GET",
                vec![DATE, HOST],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-with-session-token",
                "GET",
                vec![("x-amz-security-token", session), HOST, DATE],
                "",
                "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                vec![
                    ("content-type", "application/x-www-form-urlencoded"),
                    HOST,
                    ("content-length", "13"),
                    DATE,
                    ("x-amz-content-sha256", form),
                ],
                "Param1=value1",
                "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
            ),
        ];
        for (name, method, headers, body, signature) in rows {
            let (keys, scope) = suite();
            let made = authorization(&keys, scope, method, &headers, body.as_bytes());
            assert!(made.ends_with(&format!("Signature={signature}")), "{name}: {made}");
        }
    }

    #[test]
    fn signs_a_question_for_a_parameter_as_amazons_own_library_does() {
        let keys = Keys { id: "ASIAEXAMPLE".to_owned(), secret: "secretsecret".to_owned(), session: None };
        let scope = Scope { region: "eu-west-1", service: "ssm", at: "2026-11-24T10:30:00Z".parse().unwrap() };
        let headers = [
            ("host", "ssm.eu-west-1.amazonaws.com"),
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", "AmazonSSM.GetParameter"),
            ("x-amz-date", "20261124T103000Z"),
            ("x-amz-security-token", "the-session-token"),
        ];
        let body = br#"{"Name":"/troop/join","WithDecryption":true}"#;
        // By botocore 1.44.8.
        let expected = "AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE/20261124/eu-west-1/ssm/aws4_request, \
                        SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, \
                        Signature=99a10576ed96451fc380f469f3b7a404ef2c4421f8ca61bdb8ad9f039f7dafaa";
        assert_eq!(authorization(&keys, scope, "POST", &headers, body), expected);
    }
}
