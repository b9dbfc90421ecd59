//! Netlink attributes: u16 length with head, u16 type, payload, padded to four bytes (linux/netlink.h).
//!
//! rtnetlink writes numbers in the machine's order, nfnetlink in the network's; the names say which.

/// Marks an attribute that holds attributes.
const NESTED: u16 = 1 << 15;
const HEAD_BYTES: usize = 4;

/// Attributes one after the other, as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Attributes {
    pub(crate) fn put(&mut self, kind: u16, payload: &[u8]) {
        let Ok(length) = u16::try_from(HEAD_BYTES + payload.len()) else {
            self.too_long = true;
            return;
        };
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn put_be(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    /// A text, with the zero byte at its end.
    pub(crate) fn put_text(&mut self, kind: u16, text: &str) {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.put(kind, &payload);
    }

    /// An attribute that holds those which `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.too_long |= inner.too_long;
        self.put(kind | NESTED, &inner.bytes);
    }

    /// What others have written.
    pub(crate) fn append(&mut self, others: Self) {
        self.too_long |= others.too_long;
        self.bytes.extend(others.bytes);
    }

    /// What was written; `None` when a payload was longer than 64 KB, the most that an attribute says of itself.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        (!self.too_long).then_some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_length_type_and_payload_padded_to_four_bytes() {
        let mut attributes = Attributes::default();
        attributes.put(1, &[7]);
        attributes.nest(2, |inner| inner.put_text(3, "lo"));
        let head = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let expected = [head(5, 1), vec![7, 0, 0, 0], head(12, 2 | NESTED), head(7, 3), b"lo\0\0".to_vec()].concat();
        assert_eq!(attributes.finish().unwrap(), expected);
    }

    #[test]
    fn a_payload_beyond_the_lengths_16_bits_is_not_sent_cut_short() {
        let mut attributes = Attributes::default();
        attributes.nest(1, |inner| inner.put(2, &vec![0; 1 << 16]));
        assert_eq!(attributes.finish(), None);
    }
}
