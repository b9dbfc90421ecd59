//! Netlink attributes: u16 length with head, u16 type, payload, padded to four bytes; native endian (linux/netlink.h).

use super::BadOptions;

/// Marks an attribute that holds attributes.
pub(super) const NESTED: u16 = 1 << 15;
/// The type without the kernel's two marks (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
const HEAD_BYTES: usize = 4;

/// Appends an attribute.
///
/// # Errors
/// [`BadOptions::TooLarge`] when the payload does not fit the length's 16 bits.
pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, payload: &[u8]) -> Result<(), BadOptions> {
    let length = HEAD_BYTES + payload.len();
    let head = u16::try_from(length).map_err(|_| BadOptions::TooLarge { bytes: length })?;
    bytes.extend(head.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

/// Numbers one after the other.
pub(super) fn words<const N: usize>(numbers: [u32; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// Splits attributes, the marks taken off their types. What is left and too short for a head is padding.
///
/// # Errors
/// [`BadOptions::Attribute`] when one claims to be shorter than its head or longer than what is there.
pub(super) fn split(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, BadOptions> {
    let mut found = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<HEAD_BYTES>() {
        let [a, b, c, d] = *head;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]) & TYPE_MASK;
        let payload = bytes.get(HEAD_BYTES..length).ok_or(BadOptions::Attribute { kind })?;
        found.push((kind, payload));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(found)
}

/// Reads numbers from the front of a payload.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    kind: u16,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(kind: u16, rest: &'a [u8]) -> Self {
        Self { kind, rest }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadOptions> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(BadOptions::Attribute { kind: self.kind })?;
        self.rest = rest;
        Ok(*first)
    }

    pub(super) fn u32(&mut self) -> Result<u32, BadOptions> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, BadOptions> {
        self.take().map(i32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BadOptions> {
        self.take().map(u64::from_ne_bytes)
    }

    /// A time, which the kernel keeps signed and never lets be negative.
    pub(super) fn time_ns(&mut self) -> Result<u64, BadOptions> {
        let time = self.take().map(i64::from_ne_bytes)?;
        u64::try_from(time).map_err(|_| BadOptions::Attribute { kind: self.kind })
    }

    pub(super) fn i16s(self) -> Vec<i16> {
        self.rest.chunks_exact(2).map(|pair| i16::from_ne_bytes([pair[0], pair[1]])).collect()
    }
}
