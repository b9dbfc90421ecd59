//! How a command ends: the exit codes that scripts rely on, and the one shape of an error.

use std::process::ExitCode;

use troop_cloud::local::sandbox::SandboxError;

use crate::api::types::{ApiError, ErrorKind};
use crate::client::ClientError;
use crate::site::SiteError;
use crate::state::StateError;
use crate::supervisor::UpError;
use crate::{ui, world};

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Ok,
    /// The input is wrong: a name, a file, a number.
    Input,
    /// The command line itself is wrong; clap ends with this by itself.
    Usage,
    /// A safety rule refuses.
    Refused,
    /// Somebody could not be asked, or is not there.
    Unavailable,
    /// Everything worked, and what was asked about is not so: a deploy that went back, a chain that does not verify.
    CheckFalse,
    /// Something was left behind, or left undone.
    LeftBehind,
    /// A mistake of Troop's own.
    Bug,
}

impl Code {
    pub fn number(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Input => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unavailable => 4,
            Self::CheckFalse => 5,
            Self::LeftBehind => 6,
            // EX_SOFTWARE of sysexits.h.
            Self::Bug => 70,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.number())
    }
}

/// Why a command failed: what, on which thing, why; what to type next; and the exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct CliError {
    pub what: String,
    pub hint: Option<String>,
    pub code: Code,
}

impl CliError {
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, code }
    }

    /// Adds what to type next.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// An error with all its causes in one line.
    pub fn of(code: Code, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(code, world::chain(error))
    }

    /// Prints `error: …` and `hint: …`, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        ui::error(&self.what, self.hint.as_deref());
        self.code.into()
    }
}

impl From<ApiError> for CliError {
    fn from(error: ApiError) -> Self {
        let code = match error.kind {
            ErrorKind::Yours | ErrorKind::NotFound => Code::Input,
            ErrorKind::Refused => Code::Refused,
            ErrorKind::CouldNotAsk => Code::Unavailable,
            ErrorKind::Bug => Code::Bug,
        };
        Self { what: error.message, hint: error.hint, code }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => error.into(),
            ClientError::NotRunning { .. } => Self::of(Code::Unavailable, &error)
                .hint("start it with `troop up`, or name its folder with `--state DIR`"),
            ClientError::Forbidden { .. } => {
                Self::of(Code::Unavailable, &error).hint("run this as the user who runs `troop up`")
            }
            ClientError::TimedOut { .. } | ClientError::Broken { .. } | ClientError::Garbled { .. } => {
                let hint = "`troop status` tells how it is; `troop history` tells what was done";
                Self::of(Code::Unavailable, &error).hint(hint)
            }
            ClientError::Connect { .. } => Self::of(Code::Unavailable, &error),
        }
    }
}

impl From<StateError> for CliError {
    fn from(error: StateError) -> Self {
        let code = match &error {
            StateError::Nowhere => Code::Input,
            StateError::Io { .. } | StateError::BadSecret { .. } => Code::Unavailable,
        };
        let hint = match &error {
            StateError::Nowhere => Some("name one with `--state DIR`".to_owned()),
            StateError::Io { .. } | StateError::BadSecret { .. } => None,
        };
        Self { hint, ..Self::of(code, &error) }
    }
}

impl From<SiteError> for CliError {
    fn from(error: SiteError) -> Self {
        let hint = match &error {
            SiteError::Io { .. } | SiteError::Bad { .. } => None,
            SiteError::CaFile { .. } => {
                Some("write an authority's certificate into it as PEM, or leave it out".to_owned())
            }
            SiteError::Channel { .. } => Some(
                "write the address, and for a webhook the secret, into files of their own, which only Troop reads"
                    .to_owned(),
            ),
            SiteError::Agents { .. } => {
                Some("write the certificate, its issuers' after it, and its private key as PEM".to_owned())
            }
            SiteError::IdentityCerts { .. } => Some(
                "write the region's RSA-2048 certificate as PEM; the EC2 user guide has them (\"regions-certs\")"
                    .to_owned(),
            ),
        };
        Self { hint, ..Self::of(Code::Input, &error) }
    }
}

impl From<UpError> for CliError {
    fn from(error: UpError) -> Self {
        match error {
            UpError::State(error) => error.into(),
            UpError::Site(error) => error.into(),
            UpError::Taken { .. } => Self::of(Code::Refused, &error)
                .hint("use that one, end it first, or name another folder with `--state DIR`"),
            UpError::Listen { .. } => Self::of(Code::Unavailable, &error).hint("`--port 0` takes any free port"),
            UpError::Interrupted => Self::of(Code::Refused, &error),
            UpError::Sandbox(SandboxError::PathTooLong { .. }) => Self::of(Code::Input, &error),
            UpError::Sandbox(SandboxError::Step { .. } | SandboxError::Silent) => {
                Self::of(Code::Unavailable, &error).hint("`--isolation processes` does without a sandbox")
            }
            UpError::Sandbox(_) | UpError::Io { .. } => Self::of(Code::Unavailable, &error),
            UpError::CloudEnded { .. } => {
                Self::of(Code::Unavailable, &error).hint("`troop up` again begins its groups anew, with the same sizes")
            }
        }
    }
}

impl From<troop_ledger::LedgerError> for CliError {
    fn from(error: troop_ledger::LedgerError) -> Self {
        Self::of(Code::Unavailable, &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_number() {
        let all = [
            (Code::Ok, 0),
            (Code::Input, 1),
            (Code::Usage, 2),
            (Code::Refused, 3),
            (Code::Unavailable, 4),
            (Code::CheckFalse, 5),
            (Code::LeftBehind, 6),
            (Code::Bug, 70),
        ];
        for (code, number) in all {
            assert_eq!(code.number(), number);
        }
    }

    #[test]
    fn a_refusal_by_the_control_plane_is_exit_3_and_keeps_its_hint() {
        let error = ApiError { kind: ErrorKind::Refused, message: "no".to_owned(), hint: Some("later".to_owned()) };
        let error = CliError::from(error);
        assert_eq!((error.code, error.hint.as_deref()), (Code::Refused, Some("later")));
    }
}
