//! Whom an agent dials and who it says it is: the tables `control_plane` and `identity` of agent.toml, over which the command line goes.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::channel::Endpoint;
use crate::identity::{IMDS, KEY_FILE, Who};
use crate::parameter::{self, ParameterError};
use crate::secret::{self, SecretError};

/// Where the token lies unless said otherwise.
const TOKEN_FILE: &str = "/etc/troop/token";

/// What agent.toml or the command line says of it, each part where it does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Join {
    /// `unix:PATH` or `https://HOST:PORT`.
    pub url: Option<String>,
    pub ca_file: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    /// The name of the parameter of AWS Systems Manager that holds the token instead.
    pub token_ssm: Option<String>,
    /// What the control plane's site file calls this host's account.
    pub account: Option<String>,
    /// `account/region/instance`.
    pub instance: Option<String>,
    pub identity: Option<RawIdentity>,
}

/// The table `control_plane`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawControlPlane {
    url: Option<String>,
    ca_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
    token_ssm: Option<Spanned<String>>,
    account: Option<String>,
    instance: Option<String>,
}

impl RawControlPlane {
    /// What cannot be, where in the file it stands, for people.
    pub(crate) fn mistake(&self) -> Option<(usize, String)> {
        let name = self.token_ssm.as_ref()?;
        let what = match (name.get_ref().as_str(), &self.token_file) {
            (_, Some(_)) => {
                "`token_ssm` and `token_file` both say where the token is: leave one of them out".to_owned()
            }
            (text, None) if !parameter::is_name(text) => {
                format!("`token_ssm`: `{}` is no name of a parameter, such as \"/troop/join\"", text.escape_debug())
            }
            (_, None) => return None,
        };
        Some((name.span().start, what))
    }
}

/// The table `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawIdentity {
    pub kind: RawKind,
    pub endpoint: Option<String>,
    pub key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawKind {
    Ec2,
}

/// Why nobody can be dialled.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("nothing says where the control plane is")]
    NoUrl,
    #[error("`{url}` is neither unix:PATH nor https://HOST:PORT")]
    Url { url: String },
    #[error("nothing says which instance this is")]
    NoInstance,
    #[error("the instance `{instance}` is named, and `[identity]` finds it out")]
    Twice { instance: String },
    #[error("the parameter `{parameter}` is read with the role of an EC2 instance, and nothing says that this is one")]
    NoRole { parameter: String },
    #[error(transparent)]
    Token(#[from] SecretError),
}

impl JoinError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoUrl | Self::Url { .. } => {
                "write `url = \"https://HOST:PORT\"` in [control_plane] of agent.toml, or say `--to`"
            }
            Self::NoInstance => {
                "on EC2 write `[identity]` with `kind = \"ec2\"` in agent.toml; elsewhere `instance` in [control_plane], or say `--instance`"
            }
            Self::Twice { .. } => "leave one of them out",
            Self::NoRole { .. } => {
                "write `[identity]` with `kind = \"ec2\"` in agent.toml, or `token_file` instead of `token_ssm`"
            }
            Self::Token(e) => e.hint(),
        }
    }
}

/// Whom to dial, by which token, as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    pub to: Endpoint,
    pub token: Token,
    pub who: Who,
}

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// It was in a file.
    Here(String),
    /// In a parameter of this name, for the role of the instance whose metadata service this is.
    Parameter { name: String, imds: String },
}

impl Token {
    /// The token itself.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub(crate) async fn read(self) -> Result<String, ParameterError> {
        match self {
            Self::Here(token) => Ok(token),
            Self::Parameter { name, imds } => parameter::token(&name, &imds).await,
        }
    }
}

impl Join {
    pub(crate) fn of(control_plane: Option<RawControlPlane>, identity: Option<RawIdentity>) -> Self {
        let none = Self { identity, ..Self::default() };
        let Some(RawControlPlane { url, ca_file, token_file, token_ssm, account, instance }) = control_plane else {
            return none;
        };
        Self { url, ca_file, token_file, token_ssm: token_ssm.map(Spanned::into_inner), account, instance, ..none }
    }

    /// What `over` says goes over this.
    #[must_use]
    pub fn under(self, over: Self) -> Self {
        Self {
            url: over.url.or(self.url),
            ca_file: over.ca_file.or(self.ca_file),
            // A file that is named goes over a parameter.
            token_ssm: over.token_ssm.or(self.token_ssm.filter(|_| over.token_file.is_none())),
            token_file: over.token_file.or(self.token_file),
            account: over.account.or(self.account),
            instance: over.instance.or(self.instance),
            identity: over.identity.or(self.identity),
        }
    }

    /// Checks it, and reads the token.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn complete(self) -> Result<Joining, JoinError> {
        let url = self.url.ok_or(JoinError::NoUrl)?;
        let to = endpoint(&url, self.ca_file).ok_or(JoinError::Url { url })?;
        let who = match (self.instance, self.identity) {
            (Some(instance), None) => Who::Named(instance),
            (None, Some(RawIdentity { kind: RawKind::Ec2, endpoint, key_file })) => Who::Ec2 {
                account: self.account,
                endpoint: endpoint.unwrap_or_else(|| IMDS.to_owned()),
                key_file: key_file.unwrap_or_else(|| KEY_FILE.into()),
            },
            (Some(instance), Some(_)) => return Err(JoinError::Twice { instance }),
            (None, None) => return Err(JoinError::NoInstance),
        };
        let token = match (self.token_ssm, &who) {
            (None, _) => Token::Here(secret::token(self.token_file.as_deref().unwrap_or(Path::new(TOKEN_FILE)))?),
            (Some(name), Who::Ec2 { endpoint, .. }) => Token::Parameter { name, imds: endpoint.clone() },
            (Some(parameter), Who::Named(_)) => return Err(JoinError::NoRole { parameter }),
        };
        Ok(Joining { to, token, who })
    }
}

fn endpoint(url: &str, ca_file: Option<PathBuf>) -> Option<Endpoint> {
    if let Some(path) = url.strip_prefix("unix:") {
        return Some(Endpoint::Unix(path.into()));
    }
    let (host, port) = url.strip_prefix("https://")?.trim_end_matches('/').rsplit_once(':')?;
    Some(Endpoint::Tls { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()?, ca_file })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn told(url: &str, token_file: &Path) -> Join {
        Join { url: Some(url.to_owned()), token_file: Some(token_file.to_owned()), ..Join::default() }
    }

    fn ec2() -> RawIdentity {
        RawIdentity { kind: RawKind::Ec2, endpoint: None, key_file: None }
    }

    #[test]
    fn what_is_needed_is_asked_for_and_the_command_line_goes_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, "ab12\n").unwrap();
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let file = Join { identity: Some(ec2()), ..told("https://[::1]:7443", &token_file) };
        let joining = file.clone().complete().unwrap();
        assert_eq!(joining.to, Endpoint::Tls { host: "::1".to_owned(), port: 7443, ca_file: None });
        assert_eq!(joining.token, Token::Here("ab12".to_owned()));
        let Who::Ec2 { account, endpoint, key_file } = joining.who else { panic!("not EC2") };
        assert_eq!((account, endpoint.as_str(), key_file.as_path()), (None, IMDS, Path::new(KEY_FILE)));

        let over = Join { url: Some("unix:/run/a.sock".to_owned()), ..Join::default() };
        assert_eq!(file.clone().under(over).complete().unwrap().to, Endpoint::Unix("/run/a.sock".into()));
        let named = Join { instance: Some("a/b/i-1".to_owned()), ..Join::default() };
        assert!(matches!(file.under(named.clone()).complete(), Err(JoinError::Twice { .. })));
        let url = || told("https://a.test:1", &token_file);
        assert_eq!(url().under(named).complete().unwrap().who, Who::Named("a/b/i-1".to_owned()));
        assert!(matches!(url().complete(), Err(JoinError::NoInstance)));
        assert!(matches!(Join::default().complete(), Err(JoinError::NoUrl)));

        let in_ssm = Join {
            token_file: None,
            token_ssm: Some("/troop/join".to_owned()),
            ..told("https://a.test:1", &token_file)
        };
        let on_ec2 = Join { identity: Some(ec2()), ..in_ssm.clone() };
        let token = on_ec2.clone().complete().unwrap().token;
        assert_eq!(token, Token::Parameter { name: "/troop/join".to_owned(), imds: IMDS.to_owned() });
        let over = Join { token_file: Some(token_file.clone()), ..Join::default() };
        assert_eq!(on_ec2.under(over).complete().unwrap().token, Token::Here("ab12".to_owned()));
        let elsewhere = Join { instance: Some("a/b/i-1".to_owned()), ..in_ssm };
        let error = elsewhere.complete().unwrap_err();
        assert!(matches!(&error, JoinError::NoRole { parameter } if parameter == "/troop/join"), "{error}");
        for wrong in ["http://a.test:1", "https://a.test", "https://a.test:x", "a.test:1"] {
            let join = Join { identity: Some(ec2()), ..told(wrong, &token_file) };
            assert!(matches!(join.complete(), Err(JoinError::Url { .. })), "{wrong}");
        }
    }
}
