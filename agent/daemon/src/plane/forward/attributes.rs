//! Netlink attributes, written one after the other (`struct nlattr` in linux/netlink.h: u16 length, u16 type, value, padding to 4).

/// The type says that the value is made of attributes (NLA_F_NESTED).
const NESTED: u16 = 1 << 15;
const HEAD_BYTES: usize = 4;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Whoever writes more than fits into one attribute splits it before: see ELEMENTS_MAX of the sets.
        let length = u16::try_from(HEAD_BYTES + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(NESTED | kind, &inner.0)
    }

    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        self.bytes(kind, &[text.as_bytes(), b"\0"].concat())
    }

    /// In network order, as all numbers of nf_tables are.
    pub(super) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_padded_to_four_and_lengths_are_not() {
        let written = Attributes::new().text(1, "ab").be32(2, 7).into_bytes();
        let text = [&7_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"ab\0\0"].concat();
        let number = [&8_u16.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0, 0, 0, 7]].concat();
        assert_eq!(written, [text, number].concat());
    }
}
