//! The options of prio, the qdisc above netem: `struct tc_prio_qopt` (linux/pkt_sched.h), `{int bands; u8 priomap[16]}`.

use super::BadOptions;

/// Bands that the kernel allows.
const BANDS_MIN: u8 = 2;
const BANDS_MAX: u8 = 16;
/// Which band a packet's priority leads to by default, here as in the kernel (`prio2band`).
const MAP: [u8; 16] = [1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1];

/// Bands and the way to them. A band to which no priority leads is reached by a classifier only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prio {
    bands: u8,
    map: [u8; 16],
}

impl Prio {
    /// Three bands as the kernel's default has them, so that nothing changes, and a fourth that nothing uses: netem's.
    pub const WITH_A_BAND_FOR_NETEM: Self = Self { bands: 4, map: MAP };

    /// `None` unless there are 2 to 16 bands and the map leads to them only.
    pub fn new(bands: u8, map: [u8; 16]) -> Option<Self> {
        let possible = (BANDS_MIN..=BANDS_MAX).contains(&bands) && map.iter().all(|band| *band < bands);
        possible.then_some(Self { bands, map })
    }

    pub fn bands(&self) -> u8 {
        self.bands
    }

    pub fn map(&self) -> &[u8; 16] {
        &self.map
    }

    /// The payload of TCA_OPTIONS.
    pub fn to_bytes(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&i32::from(self.bands).to_ne_bytes());
        bytes[4..].copy_from_slice(&self.map);
        bytes
    }

    /// Reads the payload of TCA_OPTIONS. What follows the structure is skipped: `tc` appends an empty attribute.
    ///
    /// # Errors
    /// [`BadOptions`] when it is cut short or has impossible bands.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadOptions> {
        let short = BadOptions::Short { bytes: bytes.len() };
        let (bands, rest) = bytes.split_first_chunk().ok_or(short.clone())?;
        let (map, _) = rest.split_first_chunk().ok_or(short)?;
        let bands = u8::try_from(i32::from_ne_bytes(*bands)).ok();
        bands.and_then(|bands| Self::new(bands, *map)).ok_or(BadOptions::Attribute { kind: 0 })
    }
}
