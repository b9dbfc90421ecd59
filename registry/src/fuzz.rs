//! What must hold of any registration: a target of `tests/fuzz/run`, whose corpus a test replays as well.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use troop_policies::intent::Intent;

use crate::http::{read, shape, xml};
use crate::info::Info;
use crate::table::{Key, Shown, Table};

/// A body sent to the registry, JSON or XML.
///
/// What registers is told to others in both forms, and from both it is read back as it was; the list with it in it stays
/// readable, whatever one client says of itself. An intent that is read is carried out once.
///
/// # Panics
/// When it does not hold.
pub fn eureka(data: &[u8]) {
    let Ok(body) = read(data) else { return };
    let mut table = Table::new(SignedDuration::from_secs(90), Timestamp::UNIX_EPOCH);
    if let Ok(intent) = serde_json::from_value::<Intent>(body.clone()) {
        carried_out(&mut table, &intent);
    }
    let app = &body["instance"]["app"];
    let app = app.as_str().or_else(|| app.get("$")?.as_str()).unwrap_or_default().trim();
    let Ok(info) = Info::from_body(&body, app) else { return };
    assert!(!info.id.is_empty() && !info.app.is_empty() && info.app == info.app.to_uppercase());
    let registered = table.register(info.clone(), Timestamp::UNIX_EPOCH);
    assert!(registered.answer.is_ok());
    let shown = table.entry(&Key::new(&info.app, &info.id)).expect("it is there");
    let expected = as_told(&shown);
    assert_eq!((&expected.id, &expected.app, &expected.metadata), (&info.id, &info.app, &info.metadata));

    let list = json!({"instance": shape::instance(&shown)});
    let back = read(list.to_string().as_bytes()).expect("our own JSON");
    assert_eq!(Info::from_body(&back, &expected.app).as_ref(), Ok(&expected), "JSON {list}");
    let text = xml::write("instance", &list["instance"]);
    let back = read(text.as_bytes()).unwrap_or_else(|why| panic!("our own XML: {why}\n{text}"));
    let mut expected = expected;
    expected.metadata = bent(&expected.metadata);
    expected.data_center.metadata = bent(&expected.data_center.metadata);
    let mut seen = Info::from_body(&back, &expected.app).unwrap_or_else(|why| panic!("XML {why}\n{text}"));
    for (name, metadata) in [("metadata", &mut seen.metadata), ("dc", &mut seen.data_center.metadata)] {
        let wanted = if name == "dc" { &expected.data_center.metadata } else { &expected.metadata };
        // Two names may be bent into one; XML cannot tell them apart.
        if metadata.len() < wanted.len() {
            continue;
        }
        assert_eq!(metadata, wanted, "XML {text}");
    }
    seen.metadata.clone_from(&expected.metadata);
    seen.data_center.metadata.clone_from(&expected.data_center.metadata);
    assert_eq!(seen, expected, "XML {text}");
    let all = shape::applications(table.version(), &table.hash(), &table.all());
    assert!(read(xml::write("applications", &all).as_bytes()).is_ok(), "the list {all}");
}

fn carried_out(table: &mut Table, intent: &Intent) {
    let once = table.perform(intent, Timestamp::UNIX_EPOCH).answer;
    let revision = table.state();
    assert_eq!(table.perform(intent, Timestamp::UNIX_EPOCH).answer, once);
    assert_eq!(table.state(), revision, "the second time changes nothing");
    let text = serde_json::to_vec(intent).expect("an intent can be written");
    assert_eq!(serde_json::from_slice::<Intent>(&text).expect("and read"), *intent);
}

/// What others are told of an entry: what was not said has its default.
fn as_told(shown: &Shown) -> Info {
    let mut info = shown.lease.info.clone();
    info.renewal_secs = info.renewal_secs.or(Some(30));
    info.duration_secs = Some(shown.duration_secs);
    info.last_dirty_ms = info.last_dirty_ms.filter(|ms| *ms > 0);
    info
}

/// Names of metadata as XML has them.
fn bent(pairs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (xml::element_name(name), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_holds() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/eureka");
        let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() >= 10);
        inputs.iter().for_each(|path| super::eureka(&std::fs::read(path).unwrap()));
    }
}
