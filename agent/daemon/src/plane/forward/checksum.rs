//! Checksums that were left to the device (`struct virtio_net_hdr` in linux/virtio_net.h).

use crate::sys::VNET_HEAD_BYTES;

const NEEDS_CHECKSUM: u8 = 1;
const FLAGS_AT: usize = 0;
const SEGMENTATION_AT: usize = 1;
const START_AT: usize = 6;
const OFFSET_AT: usize = 8;

/// Fills in the checksum that is missing, and says in the header that none is. An offloaded frame has one for each of its packets, which
/// only whoever cuts it knows: that stays as it is.
pub(super) fn fill_in(head: &mut [u8; VNET_HEAD_BYTES], frame: &mut [u8]) {
    if head[FLAGS_AT] & NEEDS_CHECKSUM == 0 || head[SEGMENTATION_AT] != 0 {
        return;
    }
    let number = |at: usize| usize::from(u16::from_ne_bytes([head[at], head[at + 1]]));
    let (start, offset) = (number(START_AT), number(OFFSET_AT));
    let Some(covered) = frame.get(start..).filter(|covered| covered.len() >= offset + 2) else { return };
    // The field holds the sum of the pseudo header, as it should while the rest is summed.
    let sum = match !folded(covered) {
        // RFC 768: in UDP zero would say that there is none; in TCP the two are the same.
        0 => 0xffff_u16,
        sum => sum,
    };
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    head[FLAGS_AT] &= !NEEDS_CHECKSUM;
}

/// The sum of RFC 1071.
fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_in_checksum_adds_up_to_all_ones() {
        let mut head = [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, 2, 0, 4, 0];
        let mut frame = [0xee, 0xee, 1, 2, 3, 4, 0x12, 0x34, 9];
        fill_in(&mut head, &mut frame);
        assert_eq!(head[0], 0);
        // With the pseudo header's sum that stood in the field.
        let sum = u32::from(folded(&frame[2..])) + 0x1234;
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    #[test]
    fn a_header_that_lies_changes_nothing() {
        let mut head = [NEEDS_CHECKSUM, 0, 0, 0, 0, 0, 200, 0, 16, 0];
        let mut frame = [1; 20];
        fill_in(&mut head, &mut frame);
        assert_eq!((head[0], frame), (NEEDS_CHECKSUM, [1; 20]));
    }
}
