use proptest::prelude::*;

use super::*;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

fn frame(ethertypes: &[&[u8]], packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xaa; MACS_BYTES];
    frame.extend(ethertypes.concat());
    frame.extend(packet);
    frame
}

/// From 10.0.0.1 port 40000 to 10.0.0.2 port 80.
fn packet4(protocol: u8, options: usize, offset: u16) -> Vec<u8> {
    let mut packet = vec![0x45 + u8::try_from(options).unwrap(), 0, 0, 0, 0, 0];
    packet.extend(offset.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(vec![1; options * 4]);
    packet.extend([0x9c, 0x40, 0, 80, 1, 2, 3, 4]);
    packet
}

/// From fd00::1 to fd00::2, the headers given each with the number of the next already in them.
fn packet6(next: u8, extensions: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    for last in [1, 2] {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(extensions);
    packet.extend([0x9c, 0x40, 0, 80, 1, 2, 3, 4]);
    packet
}

fn ports_of(frame: &[u8]) -> Option<(u16, u16)> {
    flow(frame, Way::Out).unwrap().ports.map(|ports| (ports.local, ports.remote))
}

#[test]
fn a_flow_is_the_same_in_both_directions() {
    let out = flow(&frame(&[&IPV4], &packet4(protocol::TCP, 0, 0)), Way::Out).unwrap();
    let ports = Ports { local: 40_000, remote: 80 };
    let expected =
        Flow { protocol: protocol::TCP, local: [10, 0, 0, 1].into(), peer: [10, 0, 0, 2].into(), ports: Some(ports) };
    assert_eq!(out, expected);
    let came = flow(&frame(&[&IPV4], &packet4(protocol::TCP, 0, 0)), Way::In).unwrap();
    assert_eq!((came.local, came.peer), (expected.peer, expected.local));
    assert_eq!(came.ports, Some(Ports { local: 80, remote: 40_000 }));
}

#[test]
fn a_packet_without_a_frame_has_the_same_flow() {
    for (kind, packet) in [(IPV4, packet4(protocol::TCP, 2, 0)), (IPV6, packet6(protocol::UDP, &[]))] {
        let whole = flow(&frame(&[&kind], &packet), Way::Out).unwrap();
        assert_eq!(flow_of_ip(&packet, Way::Out), Some(whole));
        let head_bytes = if kind == IPV4 { 28 } else { 40 };
        assert_eq!(ends_of_ip(&packet), Some((whole.local, whole.peer, head_bytes)));
    }
    assert_eq!((flow_of_ip(&[0; 60], Way::Out), ends_of_ip(&[0; 60])), (None, None));
}

#[test]
fn options_and_tags_do_not_hide_the_ports() {
    assert_eq!(ports_of(&frame(&[&IPV4], &packet4(protocol::UDP, 10, 0))), Some((40_000, 80)));
    let tags: [&[u8]; 3] = [&[0x88, 0xa8, 0, 5], &[0x81, 0, 0, 7], &IPV6];
    assert_eq!(ports_of(&frame(&tags, &packet6(protocol::UDP, &[]))), Some((40_000, 80)));
    let third: [&[u8]; 4] = [&[0x81, 0, 0, 5], &[0x81, 0, 0, 7], &[0x81, 0, 0, 8], &IPV4];
    assert_eq!(flow(&frame(&third, &packet4(protocol::UDP, 0, 0)), Way::Out), None);
}

#[test]
fn only_the_first_fragment_has_ports() {
    let more_fragments = 0x2000;
    assert_eq!(ports_of(&frame(&[&IPV4], &packet4(protocol::UDP, 0, more_fragments))), Some((40_000, 80)));
    assert_eq!(ports_of(&frame(&[&IPV4], &packet4(protocol::UDP, 0, 185))), None);
    let first = packet6(44, &[protocol::UDP, 0, 0, 1, 0, 0, 0, 9]);
    assert_eq!(ports_of(&frame(&[&IPV6], &first)), Some((40_000, 80)));
    let later = packet6(44, &[protocol::UDP, 0, 0x05, 0xa8, 0, 0, 0, 9]);
    assert_eq!(ports_of(&frame(&[&IPV6], &later)), None);
    assert_eq!(flow(&frame(&[&IPV6], &later), Way::Out).unwrap().protocol, protocol::UDP);
}

#[test]
fn finds_the_protocol_behind_extension_headers() {
    let chain = [
        [60, 0, 1, 4, 0, 0, 0, 0].as_slice(),
        &[51, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // An authentication header of 16 bytes: (2 + 2) words.
        &[protocol::TCP, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(ports_of(&frame(&[&IPV6], &packet6(0, &chain))), Some((40_000, 80)));
    let endless = [60, 0, 1, 4, 0, 0, 0, 0].repeat(EXTENSIONS_MAX + 1);
    assert_eq!(flow(&frame(&[&IPV6], &packet6(60, &endless)), Way::Out), None);
}

#[test]
fn what_is_not_ip_has_no_flow() {
    for other in [[0x08, 0x06], [0x88, 0xcc], [0x00, 0x26]] {
        assert_eq!(flow(&frame(&[&other], &packet4(protocol::TCP, 0, 0)), Way::Out), None);
    }
}

#[test]
fn a_protocol_without_ports_has_a_flow_without_ports() {
    assert_eq!(ports_of(&frame(&[&IPV4], &packet4(protocol::ICMP, 0, 0))), None);
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3_usize) {
        let kinds: [&[u8]; 3] = [&IPV4, &IPV6, &[0x81, 0, 0, 1]];
        for way in [Way::In, Way::Out] {
            let _ = flow(&bytes, way);
            let _ = flow(&frame(&[kinds[kind]], &bytes), way);
            let _ = flow_of_ip(&bytes, way);
        }
        let _ = ends_of_ip(&bytes);
    }

    #[test]
    fn cut_short_it_has_no_flow_or_the_same(cut in 0..120_usize, six in any::<bool>()) {
        let whole = if six {
            frame(&[&IPV6], &packet6(0, &[protocol::TCP, 0, 1, 4, 0, 0, 0, 0]))
        } else {
            frame(&[&IPV4], &packet4(protocol::TCP, 2, 0))
        };
        let cut = cut.min(whole.len());
        let found = flow(&whole[..cut], Way::Out);
        prop_assert!(found.is_none() || found == flow(&whole, Way::Out));
    }
}
