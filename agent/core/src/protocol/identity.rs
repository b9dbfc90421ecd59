//! How an agent shows which instance it runs on, beside the token that it shows anyway.
//!
//! What the cloud signs about an instance has no nonce and any process of the instance can read it, so by itself it only says that
//! somebody has been there. Therefore the agent has a key of its own, which is kept from first use: with the head of its answer the control
//! plane sends a nonce ([`NONCE_HEADER`]), and the agent signs it ([`statement`]). A control plane one release older sends none, and is shown
//! nothing; an agent one release older shows nothing, and whether that will do is the site's decision.

use serde::{Deserialize, Serialize};

use super::{BadMessage, short_of};

/// The header of the control plane's answer that holds the nonce: visible ASCII, at most 128 of it ([`is_nonce`]).
pub const NONCE_HEADER: &str = "troop-nonce";
const NONCE_MAX_BYTES: usize = 128;
/// Longest part of an identity. EC2's documents take half a kilobyte and their signatures one and a half.
pub(super) const PART_MAX_BYTES: usize = 8 * 1024;
/// What is signed begins with this, so that no signature by the key can mean anything else.
const LABEL: &str = "troop/agent/identity/1";

/// What shows which instance it is, by the cloud that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Identity {
    Ec2(Ec2Identity),
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// EC2's word, and the agent's own key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ec2Identity {
    /// `/latest/dynamic/instance-identity/document`, to the byte.
    pub document: String,
    /// `/latest/dynamic/instance-identity/rsa2048`: a PKCS #7 signature of the document, in base64.
    pub signature: String,
    /// The agent's own public key, Ed25519, in hexadecimal.
    pub key: String,
    /// The signature of [`statement`] by that key, in hexadecimal.
    pub proof: String,
}

/// What the agent of `host` signs. Neither a nonce nor a host's name can hold the zero bytes that part them.
pub fn statement(nonce: &str, host: &str, document: &str) -> Vec<u8> {
    [LABEL, nonce, host, document].join("\0").into_bytes()
}

/// Whether it is what a nonce may be.
pub fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.len() <= NONCE_MAX_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Identity {
    pub(super) fn check(&self) -> Result<(), BadMessage> {
        match self {
            Self::Ec2(Ec2Identity { document, signature, key, proof }) => [document, signature, key, proof]
                .into_iter()
                .try_for_each(|part| short_of("identity", part, PART_MAX_BYTES)),
            Self::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_claims_are_the_same_statement() {
        let claims = [("n", "a/b/i-1", "{}"), ("n", "a/b/i-2", "{}"), ("m", "a/b/i-1", "{}"), ("n", "a/b/i-1", "{ }")];
        let said: std::collections::BTreeSet<_> =
            claims.iter().map(|(nonce, host, document)| statement(nonce, host, document)).collect();
        assert_eq!(said.len(), claims.len());
        assert!(is_nonce("00ff") && !is_nonce("") && !is_nonce("a b") && !is_nonce(&"a".repeat(NONCE_MAX_BYTES + 1)));
    }
}
