//! What shows a control plane which host an agent speaks for: HMAC-SHA256(the agents' secret, `troop/agent/1|HOST`), in hexadecimal.
//!
//! The secret is in STATE/cloud, where the embedded cloud makes it and gives each agent the token of its own instance; so
//! an agent cannot speak for another one's host.

use std::io;
use std::path::Path;

use troop_cloud::local::agents;

use super::HostName;

/// The agents' secret.
#[derive(Clone)]
pub struct AgentsSecret([u8; 32]);

impl std::fmt::Debug for AgentsSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentsSecret")
    }
}

impl AgentsSecret {
    /// Reads it, 64 hexadecimal digits and a line end; makes it where there is none.
    ///
    /// # Errors
    /// When it cannot be read or made, or is none.
    pub fn keep(path: &Path) -> io::Result<Self> {
        agents::keep_secret(path).map(Self)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What the agent of `host` shows.
    pub fn token_of(&self, host: &HostName) -> String {
        agents::token(&self.0, host.as_str())
    }

    /// Whether `token` is that of `host`. Takes as long for a wrong one as for the right one.
    pub fn is_of(&self, host: &HostName, token: &str) -> bool {
        let mut claimed = [0; 32];
        hex::decode_to_slice(token, &mut claimed).is_ok() && agents::verify(&self.0, host.as_str(), &claimed)
    }
}
