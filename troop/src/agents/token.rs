//! What shows a control plane that an agent is one of its site's: HMAC-SHA256(the agents' secret, `troop/agent/1|SCOPE`), in hexadecimal.
//!
//! The scope is one host, `account/region/instance`, or a whole region of an account, `account/region`: the join token of instances that nobody
//! knows by name before they are there. Who has a host's cannot speak for another host; who has a region's could, and is asked
//! for more ([`super::proof`]).
//!
//! The secret is in STATE/cloud, where the embedded cloud makes it and gives each agent the token of its own instance.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use troop_cloud::local::agents;
use troop_policies::Location;

use super::HostName;

/// The agents' secret.
#[derive(Clone)]
pub struct AgentsSecret([u8; 32]);

impl fmt::Debug for AgentsSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentsSecret")
    }
}

/// For whom a token speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(String);

impl Scope {
    /// `account/region/instance`, or `account/region`; `None` for what is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let known = HostName::parse(text).is_some() || text.parse::<Location>().is_ok();
        known.then(|| Self(text.to_owned()))
    }
}

impl From<&HostName> for Scope {
    fn from(host: &HostName) -> Self {
        Self(host.as_str().to_owned())
    }
}

/// Whose token an agent has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Its own host's.
    Host,
    /// That of all of its region.
    Region,
}

impl AgentsSecret {
    /// Reads it, 64 hexadecimal digits and a line end; makes it where there is none, with the folder around it, which only the embedded cloud
    /// has made before.
    ///
    /// # Errors
    /// When it cannot be read or made, or is none.
    pub fn keep(path: &Path) -> io::Result<Self> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        agents::keep_secret(path).map(Self)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// What an agent of this scope shows.
    pub fn token_of(&self, scope: &Scope) -> String {
        agents::token(&self.0, &scope.0)
    }

    /// Whose token this is, if the agent of `host` may show it. Takes as long for a wrong one as for a right one of a region.
    pub fn whose(&self, host: &HostName, token: &str) -> Option<Shown> {
        let mut claimed = [0; 32];
        hex::decode_to_slice(token, &mut claimed).ok()?;
        if agents::verify(&self.0, host.as_str(), &claimed) {
            Some(Shown::Host)
        } else {
            agents::verify(&self.0, host.place(), &claimed).then_some(Shown::Region)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_asks_makes_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = agents::secret_file(dir.path());
        let scope = Scope::parse("prod/us-east-1").unwrap();
        let made = AgentsSecret::keep(&path).unwrap().token_of(&scope);
        assert_eq!(AgentsSecret::keep(&path).unwrap().token_of(&scope), made);
    }

    #[test]
    fn a_token_speaks_for_its_host_or_for_its_region_and_for_nobody_else() {
        let secret = AgentsSecret::from_bytes([7; 32]);
        let host = HostName::parse("prod/us-east-1/i-1").unwrap();
        let whose = |scope: &str| secret.whose(&host, &secret.token_of(&Scope::parse(scope).unwrap()));
        assert_eq!(whose("prod/us-east-1/i-1"), Some(Shown::Host));
        assert_eq!(whose("prod/us-east-1"), Some(Shown::Region));
        for other in ["prod/us-east-1/i-2", "prod/us-west-2", "test/us-east-1"] {
            assert_eq!(whose(other), None, "{other}");
        }
        let elsewhere = AgentsSecret::from_bytes([8; 32]).token_of(&Scope::from(&host));
        assert_eq!([secret.whose(&host, &elsewhere), secret.whose(&host, "ab")], [None, None]);
        for wrong in ["", "prod", "prod/", "/us-east-1", "a/b/c/d", "prod/us east"] {
            assert_eq!(Scope::parse(wrong), None, "{wrong}");
        }
    }
}
