use std::io::Read as _;
use std::path::PathBuf;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::table::Table;

const NOW: &str = "2026-11-24T10:00:00Z";

struct Site {
    router: Router,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now: Timestamp = NOW.parse().unwrap();
        let table = Table::new(SignedDuration::from_secs(90), now);
        let shared = Shared::new(table, Arc::new(move || now), folder.path().join("registry.json"));
        Self { router: router(shared), folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("registry.json")
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, to_bytes(body, usize::MAX).await.unwrap().to_vec())
    }

    async fn said(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.send(method, path, &[], body).await;
        (status.as_u16(), String::from_utf8(body).unwrap())
    }

    async fn json(&self, path: &str) -> Value {
        let (status, headers, body) = self.send("GET", path, &[("accept", "application/json")], "").await;
        assert_eq!((status, &headers["content-type"]), (StatusCode::OK, &"application/json".parse().unwrap()));
        serde_json::from_slice(&body).unwrap()
    }

    async fn registered(&self, id: &str) {
        let answer = self.said("POST", "/eureka/v2/apps/SHOP", &registration(id).to_string()).await;
        assert_eq!(answer, (204, String::new()));
    }
}

fn registration(id: &str) -> Value {
    json!({"instance": {"instanceId": id, "hostName": "h1", "app": "shop", "ipAddr": "10.0.0.1", "status": "UP",
        "port": {"$": 8080, "@enabled": "true"}, "dataCenterInfo": {"name": "MyOwn"}, "vipAddress": "shop,store",
        "lastDirtyTimestamp": "1000", "asgName": "shop-v001", "metadata": {"troop.instance-id": "i-1"}}})
}

#[tokio::test]
async fn an_empty_registry_still_has_its_lists() {
    let site = Site::new();
    for path in ["/eureka/v2/apps", "/eureka/v2/apps/", "/eureka/apps/", "/eureka/apps/delta"] {
        let expected = json!({"applications": {"versions__delta": "1", "apps__hashcode": "", "application": []}});
        assert_eq!(site.json(path).await, expected, "{path}");
        let (status, headers, body) = site.send("GET", path, &[("accept", "*/*")], "").await;
        assert_eq!((status, &headers["content-type"]), (StatusCode::OK, &"application/xml".parse().unwrap()));
        let expected =
            "<applications><versions__delta>1</versions__delta><apps__hashcode></apps__hashcode></applications>";
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }
}

#[tokio::test]
async fn json_has_eurekas_shape() {
    let site = Site::new();
    site.registered("10.0.0.1:shop:8080").await;
    let instance = json!({
        "instanceId": "10.0.0.1:shop:8080", "hostName": "h1", "app": "SHOP", "ipAddr": "10.0.0.1", "status": "UP",
        "overriddenstatus": "UNKNOWN", "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 7002, "@enabled": "false"}, "countryId": 1,
        "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
        "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90, "registrationTimestamp": 1_795_514_400_000_i64,
            "lastRenewalTimestamp": 1_795_514_400_000_i64, "evictionTimestamp": 0,
            "serviceUpTimestamp": 1_795_514_400_000_i64},
        "metadata": {"troop.instance-id": "i-1"}, "vipAddress": "shop,store",
        "isCoordinatingDiscoveryServer": "false", "lastUpdatedTimestamp": "1795514400000",
        "lastDirtyTimestamp": "1000", "actionType": "ADDED", "asgName": "shop-v001"});
    let application = json!({"name": "SHOP", "instance": [instance]});
    let all =
        json!({"applications": {"versions__delta": "2", "apps__hashcode": "UP_1_", "application": [application]}});
    for path in ["apps", "apps/delta", "vips/store"] {
        assert_eq!(site.json(&format!("/eureka/v2/{path}")).await, all, "{path}");
    }
    assert_eq!(site.json("/eureka/apps/shop").await, json!({"application": application}));
    for path in ["apps/SHOP/10.0.0.1%3Ashop%3A8080", "apps/shop/10.0.0.1:shop:8080", "instances/10.0.0.1:shop:8080"] {
        assert_eq!(site.json(&format!("/eureka/{path}")).await, json!({"instance": instance}), "{path}");
    }
    for path in ["apps/OTHER", "apps/SHOP/other", "instances/other", "vips/other", "svips/shop"] {
        assert_eq!(site.said("GET", &format!("/eureka/v2/{path}"), "").await, (404, String::new()), "{path}");
    }
}

#[tokio::test]
async fn xml_has_eurekas_shape_and_is_taken_too() {
    let site = Site::new();
    let sent = "<instance><hostName>h1</hostName><app>shop</app><ipAddr>10.0.0.1</ipAddr><status>UP</status>\
        <port enabled=\"true\">8080</port><dataCenterInfo class=\"com.netflix.appinfo.AmazonInfo\"><name>Amazon</name>\
        <metadata><instance-id>i-1</instance-id></metadata></dataCenterInfo><homePageUrl>http://h1/?a&amp;b</homePageUrl>\
        <lastDirtyTimestamp>1000</lastDirtyTimestamp></instance>";
    assert_eq!(site.said("POST", "/eureka/v2/apps/SHOP", sent).await, (204, String::new()));
    let at = "1795514400000";
    let expected = format!(
        "<instance><instanceId>i-1</instanceId><hostName>h1</hostName><app>SHOP</app><ipAddr>10.0.0.1</ipAddr>\
        <status>UP</status><overriddenstatus>UNKNOWN</overriddenstatus><port enabled=\"true\">8080</port>\
        <securePort enabled=\"false\">7002</securePort><countryId>1</countryId>\
        <dataCenterInfo class=\"com.netflix.appinfo.AmazonInfo\"><name>Amazon</name><metadata>\
        <instance-id>i-1</instance-id></metadata></dataCenterInfo><leaseInfo>\
        <renewalIntervalInSecs>30</renewalIntervalInSecs><durationInSecs>90</durationInSecs>\
        <registrationTimestamp>{at}</registrationTimestamp><lastRenewalTimestamp>{at}</lastRenewalTimestamp>\
        <evictionTimestamp>0</evictionTimestamp><serviceUpTimestamp>{at}</serviceUpTimestamp></leaseInfo>\
        <metadata class=\"java.util.Collections$EmptyMap\"></metadata><homePageUrl>http://h1/?a&amp;b</homePageUrl>\
        <isCoordinatingDiscoveryServer>false</isCoordinatingDiscoveryServer>\
        <lastUpdatedTimestamp>{at}</lastUpdatedTimestamp><lastDirtyTimestamp>1000</lastDirtyTimestamp>\
        <actionType>ADDED</actionType></instance>"
    );
    assert_eq!(site.said("GET", "/eureka/v2/apps/SHOP/i-1", "").await, (200, expected.clone()));
    let all = format!(
        "<applications><versions__delta>2</versions__delta><apps__hashcode>UP_1_</apps__hashcode>\
        <application><name>SHOP</name>{expected}</application></applications>"
    );
    assert_eq!(site.said("GET", "/eureka/v2/apps/delta", "").await, (200, all));
}

#[tokio::test]
async fn an_entry_lives_through_its_operations() {
    let site = Site::new();
    let entry = "/eureka/v2/apps/SHOP/a";
    assert_eq!(site.said("PUT", entry, "").await, (404, String::new()));
    site.registered("a").await;
    let (status, headers, body) =
        site.send("PUT", &format!("{entry}?status=UP&lastDirtyTimestamp=1000"), &[], "").await;
    assert_eq!((status, body.len(), headers.get("content-type")), (StatusCode::OK, 0, None));
    assert_eq!(site.said("PUT", &format!("{entry}?lastDirtyTimestamp=1001"), "").await.0, 404);
    assert_eq!(site.said("PUT", &format!("{entry}/metadata?zone=r1a&a%20b=c"), "").await, (200, String::new()));
    let metadata = &site.json(entry).await["instance"]["metadata"];
    assert_eq!(*metadata, json!({"a b": "c", "troop.instance-id": "i-1", "zone": "r1a"}));
    assert_eq!(site.said("DELETE", entry, "").await, (200, String::new()));
    assert_eq!(site.said("DELETE", entry, "").await, (404, String::new()));
    let delta = site.json("/eureka/v2/apps/delta").await;
    assert_eq!(delta["applications"]["application"][0]["instance"][0]["actionType"], "DELETED");
    assert_eq!(delta["applications"]["apps__hashcode"], "");
}

#[tokio::test]
async fn an_override_is_on_disk_before_it_is_answered() {
    let site = Site::new();
    site.registered("a").await;
    assert!(!site.file().exists(), "a registration may wait for the tick");
    let status = "/eureka/v2/apps/SHOP/a/status";
    assert_eq!(site.said("PUT", &format!("{status}?value=OUT_OF_SERVICE&lastDirtyTimestamp=1"), "").await.0, 200);
    let saved = std::fs::read_to_string(site.file()).unwrap();
    assert!(saved.contains(r#""overrides":[{"app":"SHOP","id":"a","status":"OUT_OF_SERVICE"}]"#), "{saved}");
    let shown = site.json("/eureka/v2/apps/SHOP/a").await;
    assert_eq!(shown["instance"]["status"], "OUT_OF_SERVICE");
    assert_eq!(shown["instance"]["overriddenstatus"], "OUT_OF_SERVICE");
    assert_eq!(shown["instance"]["actionType"], "MODIFIED");
    assert_eq!(site.said("DELETE", status, "").await.0, 200);
    assert_eq!(site.json("/eureka/v2/apps/SHOP/a").await["instance"]["status"], "UP");
    assert_eq!(site.said("PUT", "/eureka/v2/apps/SHOP/never/status?value=UP", "").await.0, 404);
    assert_eq!(site.said("PUT", "/eureka/v2/asg/shop-v001/status?value=DISABLED", "").await.0, 200);
    assert_eq!(site.json("/eureka/v2/apps/SHOP/a").await["instance"]["status"], "OUT_OF_SERVICE");
    assert!(std::fs::read_to_string(site.file()).unwrap().contains(r#""groups_out_of_service":["shop-v001"]"#));
    assert_eq!(site.said("PUT", "/eureka/v2/asg/shop-v001/status?value=ENABLED", "").await.0, 200);
    assert_eq!(site.json("/eureka/v2/apps/SHOP/a").await["instance"]["status"], "UP");
}

#[tokio::test]
async fn an_override_that_cannot_be_saved_is_an_error() {
    let site = Site::new();
    site.registered("a").await;
    std::fs::create_dir(site.file()).unwrap();
    let (status, body) = site.said("PUT", "/eureka/v2/apps/SHOP/a/status?value=OUT_OF_SERVICE", "").await;
    assert_eq!(status, 500);
    assert!(body.starts_with("cannot save the registry's table"), "{body}");
    std::fs::remove_dir(site.file()).unwrap();
    assert_eq!(site.said("PUT", "/eureka/v2/apps/SHOP/a/status?value=OUT_OF_SERVICE", "").await.0, 200);
}

#[tokio::test]
async fn bad_input_is_one_clear_line() {
    let site = Site::new();
    site.registered("a").await;
    let no_host = r#"{"instance":{"app":"SHOP","ipAddr":"1"}}"#;
    for (method, path, body, expected) in [
        ("POST", "apps/SHOP", "", "cannot read the registration: the body is empty\n"),
        (
            "POST",
            "apps/SHOP",
            "[",
            "cannot read the registration: it is not JSON: EOF while parsing a list at line 1 column 1\n",
        ),
        ("POST", "apps/SHOP", "<!DOCTYPE a><a/>", "cannot read the registration: a document type is not read\n"),
        (
            "POST",
            "apps/SHOP",
            "<other/>",
            "there is no `instance` in the body; send {\"instance\": {...}} or <instance>...</instance>\n",
        ),
        ("POST", "apps/SHOP", no_host, "`hostName` is missing; every registration must have it\n"),
        ("POST", "apps/OTHER", no_host, "the path names app `OTHER` and the body app `SHOP`; they must be the same\n"),
        ("PUT", "apps/SHOP/a?lastDirtyTimestamp=x", "", "`lastDirtyTimestamp` is no whole number of milliseconds\n"),
        ("PUT", "apps/SHOP/a/status", "", "`value` is missing; say PUT .../status?value=OUT_OF_SERVICE\n"),
        ("PUT", "apps/SHOP/a/status?value=x", "", "`value` must be UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN\n"),
        ("DELETE", "apps/SHOP/a/status?value=x", "", "`value` must be UP, DOWN, STARTING, OUT_OF_SERVICE or UNKNOWN\n"),
        ("PUT", "apps/SHOP/a/metadata?a=%01", "", "`a` is wrong: it holds a control character\n"),
        ("PUT", "asg/shop-v001/status?value=x", "", "`value` must be ENABLED or DISABLED\n"),
    ] {
        let answer = site.said(method, &format!("/eureka/v2/{path}"), body).await;
        assert_eq!(answer, (400, expected.to_owned()), "{method} {path} {body}");
    }
    let huge = "x".repeat(BODY_BYTES_MAX + 1);
    assert_eq!(site.said("POST", "/eureka/v2/apps/SHOP", &huge).await.0, 413);
    for (method, path, body) in
        [("POST", "steps", "{}"), ("GET", "steps/a%20b", ""), ("POST", "steps/a%20b/resolve", "")]
    {
        let (status, line) = site.said(method, &format!("/troop/v1/{path}"), body).await;
        assert_eq!((status, line.lines().count()), (400, 1), "{line}");
    }
}

#[tokio::test]
async fn large_answers_are_packed_where_that_is_accepted() {
    let site = Site::new();
    for n in 0..9 {
        site.registered(&format!("a{n}")).await;
    }
    let (_, headers, body) = site.send("GET", "/eureka/v2/apps", &[("accept-encoding", "deflate, gzip")], "").await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut text = String::new();
    flate2::read::GzDecoder::new(body.as_slice()).read_to_string(&mut text).unwrap();
    assert_eq!(text, site.said("GET", "/eureka/v2/apps", "").await.1);
}

#[tokio::test]
async fn troop_reads_the_view_and_its_steps_are_done_once() {
    let site = Site::new();
    site.registered("host:1").await;
    let view = site.json("/troop/v1/registry").await;
    let entry = json!({"app": "SHOP", "id": "host:1", "ip": "10.0.0.1", "status": "UP", "data_center_instance_id": null,
        "troop_instance_id": "i-1", "group": "shop-v001"});
    assert_eq!(view, json!({"read_at": NOW, "warming": false, "entries": [entry]}));
    let intent = json!({"id": "aa", "account": "local", "region": "r1", "at": NOW,
        "step": {"step": "cancel_entry", "group": "shop-v001", "instance": "i-1"},
        "cause": {"cause": "upkeep", "reason": "a test"}});
    assert_eq!(site.said("GET", "/troop/v1/steps/aa", "").await, (404, "no intent aa is remembered\n".to_owned()));
    let done = r#"{"outcome":"done","detail":"cancelled SHOP/host:1"}"#.to_owned();
    assert_eq!(site.said("POST", "/troop/v1/steps", &intent.to_string()).await, (200, done.clone()));
    assert!(std::fs::read_to_string(site.file()).unwrap().contains("cancelled SHOP/host:1"));
    assert_eq!(site.said("GET", "/troop/v1/steps/aa", "").await, (200, done.clone()));
    assert_eq!(site.said("POST", "/troop/v1/steps", &intent.to_string()).await, (200, done));
    let (status, line) = site.said("POST", "/eureka/v2/apps/SHOP", &registration("host:1").to_string()).await;
    let expected =
        "instance `i-1` was cancelled because it ended; it cannot register again before 2026-11-24T10:01:30Z\n";
    assert_eq!((status, line.as_str()), (409, expected));
}
