//! What a device leaves to others (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;

use super::packet::socket;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SGSO: u32 = 0x24;

/// Has all packets cut to their size and their checksums filled in before they go out of a device.
///
/// # Errors
/// Any of the kernel: ENODEV, EPERM.
pub(crate) fn turn_off_offloads(device: &str) -> io::Result<()> {
    let any = socket()?;
    for command in [ETHTOOL_STXCSUM, ETHTOOL_SGSO] {
        let mut value = Value { command, data: 0 };
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
        };
        // The last byte stays zero.
        for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(device.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: the request names a device and points to a live value of the kind that both commands read.
        let done = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
