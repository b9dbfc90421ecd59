//! Draws that anyone can replay, in any language, and nobody can read ahead of time.
//!
//! ```text
//! day key  = HMAC-SHA256(site secret, "troop/1|DAY|TEAM")
//! draw n   = first 8 bytes, big endian, of HMAC-SHA256(day key, "DRAW_KEY|MONKEY|n"), n = 0, 1, … in decimal
//! unit     = (draw >> 11) * 2^-53                       coin(p) = unit < p
//! below(k) = draw mod k, after skipping every draw >= 2^64 - (2^64 mod k)
//! ```
//! docs/draws.md holds the same with test vectors. Generators of the `rand` crate are not used here: their streams may
//! change between releases.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::civil::Date;
use sha2::{Digest as _, Sha256};

use crate::ids::TeamName;

fn hmac_sha256(key: &[u8], message: &str) -> [u8; 32] {
    // HMAC takes keys of any length (RFC 2104), so `new_from_slice` cannot fail; an empty MAC would be the only other way.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { unreachable!("HMAC accepts every key length") };
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().into()
}

/// Why a text is no site secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    #[error("the site secret must be 64 hexadecimal digits and a newline")]
    Shape,
}

/// The site's secret: 32 bytes from which every day key is derived. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SiteSecret([u8; 32]);

impl SiteSecret {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads the text of STATE/site-secret.
    ///
    /// # Errors
    /// [`BadSecret::Shape`] unless it is 64 hexadecimal digits and at most one newline.
    pub fn parse(text: &str) -> Result<Self, BadSecret> {
        let digits = text.strip_suffix('\n').unwrap_or(text);
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadSecret::Shape)?;
        Ok(Self(bytes))
    }

    /// The text of STATE/site-secret.
    pub fn to_text(&self) -> String {
        format!("{}\n", hex::encode(self.0))
    }

    /// What the ledger keeps, so that a control plane with another secret is noticed: SHA-256 over a label and the secret.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"troop/1|fingerprint|");
        hash.update(self.0);
        hex::encode(hash.finalize())
    }

    /// The key of one day of one team. Secret until the team's last window of that day has closed.
    pub fn day_key(&self, day: Date, team: &TeamName) -> DayKey {
        DayKey(hmac_sha256(&self.0, &format!("troop/1|{day}|{team}")))
    }
}

impl fmt::Debug for SiteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SiteSecret(..)")
    }
}

/// The key from which a team's draws of one day come.
#[derive(Clone, PartialEq, Eq)]
pub struct DayKey([u8; 32]);

impl DayKey {
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Reads a published day key back.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The stream of draws of one draw key and label. The label is a monkey (`chaos`) or a use of it (`chaos/victim`).
    pub fn stream(&self, draw_key: &str, label: &str) -> Draw {
        Draw { key: self.clone(), prefix: format!("{draw_key}|{label}"), next: 0 }
    }
}

impl fmt::Debug for DayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DayKey(..)")
    }
}

/// A stream of draws: each call takes the next one.
#[derive(Debug, Clone)]
pub struct Draw {
    key: DayKey,
    prefix: String,
    next: u64,
}

impl Draw {
    pub fn u64(&mut self) -> u64 {
        let mac = hmac_sha256(&self.key.0, &format!("{}|{}", self.prefix, self.next));
        self.next += 1;
        let mut first = [0; 8];
        first.copy_from_slice(&mac[..8]);
        u64::from_be_bytes(first)
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        // Exact: the shifted draw is below 2^53, which an f64 holds without rounding.
        (self.u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in 0..bound, each equally likely. `None` when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> Option<u64> {
        if bound == 0 {
            return None;
        }
        // 2^64 - (2^64 mod bound) - 1, the greatest draw taken, without leaving 64 bits.
        let greatest = u64::MAX - (u64::MAX % bound + 1) % bound;
        loop {
            let draw = self.u64();
            if draw <= greatest {
                return Some(draw % bound);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector() -> Draw {
        let secret = SiteSecret::parse(&"1".repeat(64)).unwrap();
        let key = secret.day_key(jiff::civil::date(2027, 3, 15), &TeamName::new("shop").unwrap());
        assert_eq!(key.to_hex(), "2988723037258b474cf790fc3fda4af0bb92e362787fa1f1c48580833feaac24");
        key.stream("prod/us-east-1/checkout-web", "chaos")
    }

    #[test]
    fn agrees_with_the_published_vectors() {
        let mut draw = vector();
        assert_eq!(draw.clone().u64(), 15_264_352_036_865_465_287);
        assert_eq!(draw.unit().to_bits(), 0.827_482_181_997_653_6_f64.to_bits());
        assert_eq!(draw.clone().u64(), 10_498_548_952_640_235_239);
        assert_eq!(draw.below(360), Some(359));
    }

    #[test]
    fn below_skips_what_would_bias() {
        // 2^64 mod (2^63 + 1) = 2^63 - 1, so nearly half of the draws are skipped and no result repeats a low one.
        let bound = (1_u64 << 63) + 1;
        let mut draw = vector();
        for _ in 0..100 {
            assert!(draw.below(bound).unwrap() < bound);
        }
        assert!(draw.next > 120, "no draw was skipped: {}", draw.next);
        assert_eq!(draw.below(0), None);
        assert_eq!(draw.below(1), Some(0));
    }

    #[test]
    fn below_skips_nothing_where_2_64_is_a_multiple() {
        let mut draw = vector();
        for _ in 0..100 {
            assert!(draw.below(1 << 63).unwrap() < 1 << 63);
        }
        assert_eq!(draw.next, 100);
    }

    #[test]
    fn a_secret_is_never_printed() {
        assert_eq!(format!("{:?}", SiteSecret::from_bytes([7; 32])), "SiteSecret(..)");
        assert_eq!(SiteSecret::parse("abc"), Err(BadSecret::Shape));
        let secret = SiteSecret::from_bytes([7; 32]);
        assert_eq!(SiteSecret::parse(&secret.to_text()), Ok(secret));
        assert_eq!(format!("{:?}", DayKey([7; 32])), "DayKey(..)");
    }

    #[test]
    fn a_fingerprint_is_the_hash_of_label_and_secret() {
        // By hand: sha256 of `troop/1|fingerprint|` and 32 bytes 0x11.
        let secret = SiteSecret::from_bytes([0x11; 32]);
        assert_eq!(secret.fingerprint(), "8c4599143d581fd473580e1471ee1fd7ed955c4f2331da604665afce89acafde");
    }

    #[test]
    fn a_published_day_key_is_read_back() {
        let key = DayKey([7; 32]);
        assert_eq!(DayKey::from_hex(&key.to_hex()), Some(key));
        assert_eq!(DayKey::from_hex("07"), None);
    }
}
