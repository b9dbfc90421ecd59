//! How this agent shows which instance it runs on: what EC2 signs about it, and a key of its own.
//!
//! Both are had once, at the start, before anything is changed here; without them the agent ends, and whoever started it starts it again.

pub(crate) mod imds;
mod key;

use std::path::PathBuf;

use serde::Deserialize;
use troop_agent_core::protocol::{Ec2Identity, Identity, statement};
use troop_policies::ids::{AccountName, InstanceId, RegionName};

pub use imds::{ImdsError, STANDARD as IMDS};
pub use key::KeyError;

use imds::Patience;
use key::Key;

/// Where the agent's own key lies unless said otherwise: unlike its journal it must outlive the boot, since a second key is refused.
pub const KEY_FILE: &str = "/var/lib/troop-agent/identity.key";

/// Who this agent says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// `account/region/instance`, which only its token shows.
    Named(String),
    Ec2 {
        /// What the control plane's site file calls the account; its number, unless said.
        account: Option<String>,
        /// The metadata service, `http://HOST:PORT`.
        endpoint: String,
        key_file: PathBuf,
    },
}

/// Why an agent cannot say who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Imds(#[from] ImdsError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the instance identity document is none")]
    Document(#[source] serde_json::Error),
    #[error("the instance identity document says `{text}`, which is no {kind}")]
    Name { kind: &'static str, text: String },
}

impl IdentityError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Imds(e) => e.hint(),
            Self::Key(e) => e.hint(),
            Self::Document(_) | Self::Name { .. } => {
                "is it EC2's metadata service that answers? `[identity]` in agent.toml is for hosts on EC2 only"
            }
        }
    }
}

/// Who this is, and by what it shows it.
#[derive(Debug)]
pub(crate) struct Own {
    /// `account/region/instance`.
    pub(crate) host: String,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    document: String,
    signature: String,
    key: Key,
}

impl Own {
    /// What shows it to whoever sent this nonce.
    pub(crate) fn identity(&self, nonce: &str) -> Option<Identity> {
        let Shown { document, signature, key } = self.shown.as_ref()?;
        let proof = key.sign(&statement(nonce, &self.host, document));
        Some(Identity::Ec2(Ec2Identity {
            document: document.clone(),
            signature: signature.clone(),
            key: key.public(),
            proof,
        }))
    }
}

/// What of the document names the instance. The control plane reads the rest.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    account_id: String,
    region: String,
    instance_id: String,
}

/// Finds out who this is.
///
/// # Errors
/// [`IdentityError`].
pub(crate) async fn find(who: &Who) -> Result<Own, IdentityError> {
    find_within(who, Patience::STANDARD).await
}

async fn find_within(who: &Who, patience: Patience) -> Result<Own, IdentityError> {
    let (account, endpoint, key_file) = match who {
        Who::Named(host) => return Ok(Own { host: host.clone(), shown: None }),
        Who::Ec2 { account, endpoint, key_file } => (account, endpoint, key_file),
    };
    let (document, signature) = imds::identity(endpoint, patience).await?;
    let named: Document = serde_json::from_str(&document).map_err(IdentityError::Document)?;
    let account = account.clone().unwrap_or(named.account_id);
    let bad = |kind| move |text: String| IdentityError::Name { kind, text };
    let account = AccountName::new(account.clone()).map_err(|_| bad("account's name")(account))?;
    let region = RegionName::new(named.region.clone()).map_err(|_| bad("region")(named.region))?;
    let instance = InstanceId::new(named.instance_id.clone()).map_err(|_| bad("instance")(named.instance_id))?;
    let key = Key::keep(key_file, instance.as_str())?;
    Ok(Own { host: format!("{account}/{region}/{instance}"), shown: Some(Shown { document, signature, key }) })
}

#[cfg(test)]
pub(crate) mod tests;
