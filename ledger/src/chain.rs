//! The hash chain over events: what is hashed, byte by byte.
//!
//! An event's hash is SHA-256 over, in this order and with nothing between:
//!
//! 1. the 20 bytes `troop-ledger event 1` (the name of this encoding);
//! 2. the 32 bytes of the previous event's hash, all zero for the first event;
//! 3. id, at, real_at and version, each as 8 bytes, signed, big-endian; times in microseconds since 1970 in UTC;
//! 4. kind, key, team, actor and body, each as one byte, 0 for absent (and then nothing) or 1, followed by the length
//!    of its UTF-8 text in bytes as 8 bytes, unsigned, big-endian, and the text. The body is the JSON text as stored.
//!
//! Every part has a fixed length or carries its own, so no two different events share an encoding.

use sha2::{Digest as _, Sha256};

const NAME: &[u8; 20] = b"troop-ledger event 1";

/// A SHA-256 value.
pub(crate) type Hash = [u8; 32];

/// What the first event follows.
pub(crate) const GENESIS: Hash = [0; 32];

/// An event as it is stored, without its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link<'a> {
    pub(crate) id: i64,
    pub(crate) at: i64,
    pub(crate) real_at: i64,
    pub(crate) version: i64,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) team: Option<&'a str>,
    pub(crate) actor: Option<&'a str>,
    pub(crate) body: &'a str,
}

fn encode(previous: &Hash, link: &Link<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256 + link.body.len());
    bytes.extend_from_slice(NAME);
    bytes.extend_from_slice(previous);
    for number in [link.id, link.at, link.real_at, link.version] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    for text in [Some(link.kind), link.key, link.team, link.actor, Some(link.body)] {
        match text {
            None => bytes.push(0),
            Some(text) => {
                bytes.push(1);
                // A length in memory always fits 64 bits.
                bytes.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }
    bytes
}

/// The hash of an event that follows one with the hash `previous`.
pub(crate) fn hash(previous: &Hash, link: &Link<'_>) -> Hash {
    Sha256::digest(encode(previous, link)).into()
}

pub(crate) fn to_hex(hash: &Hash) -> String {
    hex::encode(hash)
}

/// Reads a hash as this crate writes it: 64 lower-case digits.
pub(crate) fn from_hex(text: &str) -> Option<Hash> {
    let hash: Hash = hex::decode(text).ok()?.try_into().ok()?;
    (to_hex(&hash) == text).then_some(hash)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (i64, i64, i64, i64, String, Option<String>, Option<String>, Option<String>, String);

    fn link(o: &Owned) -> Link<'_> {
        Link {
            id: o.0,
            at: o.1,
            real_at: o.2,
            version: o.3,
            kind: &o.4,
            key: o.5.as_deref(),
            team: o.6.as_deref(),
            actor: o.7.as_deref(),
            body: &o.8,
        }
    }

    /// Short texts over few letters, so that parts often coincide across field borders.
    fn text() -> impl Strategy<Value = String> {
        "[a\\x00\\x01]{0,3}"
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let maybe = || proptest::option::of(text());
        (0..3_i64, 0..2_i64, 0..2_i64, 0..2_i64, text(), maybe(), maybe(), maybe(), text())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn different_events_have_different_encodings(a in owned(), b in owned()) {
            let (ea, eb) = (encode(&GENESIS, &link(&a)), encode(&GENESIS, &link(&b)));
            prop_assert_eq!(a == b, ea == eb);
        }

        #[test]
        fn shifting_text_between_fields_changes_the_hash(whole in "[ab]{1,12}", i in 0..12_usize, j in 0..12_usize) {
            let split = |at: usize| {
                let at = at.min(whole.len());
                (0, 0, 0, 0, whole[..at].to_owned(), None, Some(whole[at..].to_owned()), None, "{}".to_owned())
            };
            let (a, b): (Owned, Owned) = (split(i), split(j));
            prop_assert_eq!(a == b, hash(&GENESIS, &link(&a)) == hash(&GENESIS, &link(&b)));
        }
    }

    #[test]
    fn an_absent_text_an_empty_one_and_one_moved_to_its_neighbour_all_differ() {
        let with = |key: Option<&str>, team: Option<&str>, actor: Option<&str>| -> Owned {
            let own = |t: Option<&str>| t.map(str::to_owned);
            (1, 2, 3, 1, "k".to_owned(), own(key), own(team), own(actor), "{}".to_owned())
        };
        let all = [
            with(None, None, None),
            with(Some(""), None, None),
            with(None, Some(""), None),
            with(None, None, Some("")),
            with(Some("a"), None, None),
            with(None, Some("a"), None),
            with(None, None, Some("a")),
            with(Some("a"), Some(""), None),
            with(Some(""), Some("a"), None),
        ];
        let hashes: std::collections::BTreeSet<_> = all.iter().map(|o| hash(&GENESIS, &link(o))).collect();
        assert_eq!(hashes.len(), all.len());
    }

    #[test]
    fn the_previous_hash_is_part_of_the_hash() {
        let one: Owned = (1, 2, 3, 1, "k".to_owned(), None, None, None, "{}".to_owned());
        assert_ne!(hash(&GENESIS, &link(&one)), hash(&[1; 32], &link(&one)));
    }

    #[test]
    fn the_encoding_is_the_one_that_is_written_down_above() {
        let one: Owned = (7, 1, -1, 2, "kind".to_owned(), None, Some("t".to_owned()), None, "{}".to_owned());
        let mut expected = b"troop-ledger event 1".to_vec();
        expected.extend([0; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        expected.extend([0xff; 8]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 2]);
        expected.extend(b"\x01\0\0\0\0\0\0\0\x04kind");
        expected.extend(b"\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0\x01t");
        expected.extend(b"\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0\x02{}");
        assert_eq!(encode(&GENESIS, &link(&one)), expected);
    }

    #[test]
    fn a_hash_is_read_only_as_it_is_written() {
        let hash = [0xab; 32];
        assert_eq!(from_hex(&to_hex(&hash)), Some(hash));
        assert_eq!(from_hex(&to_hex(&hash).to_uppercase()), None);
        assert_eq!(from_hex("ab"), None);
    }
}
