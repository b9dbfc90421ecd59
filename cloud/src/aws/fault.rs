//! What AWS answered when it did not do as asked, told apart by the code in the body: never by the status alone, and never
//! by nothing. "Cannot see" is a fault, not an empty list.

use std::fmt;
use std::io;
use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use troop_policies::{AccountName, chain};

use super::calls::{Call, Service};
use crate::CloudError;

/// A call that did not come off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub call: Call,
    pub kind: Kind,
    /// The code in the body, where there was one.
    pub code: Option<String>,
    /// What was said, for people.
    pub message: String,
}

/// What follows from a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Too many calls of everybody: all of this bucket's callers slow down.
    Throttled,
    /// Something else is going on with the thing; later it will be taken.
    Busy,
    /// It is not there, or not visible yet.
    NotFound,
    /// There is one already.
    Exists,
    /// A permission is missing, or the credentials are not good.
    Denied,
    /// AWS has no more, or the account may have no more.
    Capacity,
    /// AWS says no, for a reason of its own.
    Refused,
    /// AWS failed.
    Server,
    /// No whole answer came.
    Unanswered,
}

/// AWS's codes, by what follows. Suffixes of the SDK's types are not on the wire. Sources: the error lists of the three
/// API references.
const CODES: &[(Kind, &[&str])] = &[
    (
        Kind::Throttled,
        &[
            "RequestLimitExceeded",
            "EC2ThrottledException",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "SlowDown",
            "TooManyRequestsException",
        ],
    ),
    (
        Kind::Server,
        &[
            "InternalError",
            "InternalFailure",
            "InternalServiceFault",
            "InternalServiceError",
            "ServiceUnavailable",
            "Unavailable",
            "RequestTimeout",
            "ResourceContention",
            "HealthUnavailable",
            "ServiceLinkedRoleFailure",
        ],
    ),
    (
        Kind::Busy,
        &[
            "ScalingActivityInProgress",
            "ResourceInUse",
            "InstanceRefreshInProgress",
            "IncorrectInstanceState",
            "IncorrectState",
            "PriorityInUse",
        ],
    ),
    (
        Kind::NotFound,
        &[
            "InvalidInstanceID.NotFound",
            "InvalidAMIID.NotFound",
            "InvalidAMIID.Unavailable",
            "InvalidLaunchTemplateId.NotFound",
            "InvalidLaunchTemplateId.VersionNotFound",
            "InvalidLaunchTemplateName.NotFoundException",
            "InvalidLaunchTemplateName.NotFound",
            "InvalidGroup.NotFound",
            "InvalidSubnetID.NotFound",
            "TargetGroupNotFound",
            "RuleNotFound",
            "ListenerNotFound",
            "LoadBalancerNotFound",
        ],
    ),
    (
        Kind::Exists,
        &[
            "AlreadyExists",
            "InvalidLaunchTemplateName.AlreadyExistsException",
            "InvalidLaunchTemplateName.AlreadyExists",
            "DuplicateTargetGroupName",
        ],
    ),
    (Kind::Denied, &["UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "OptInRequired", "Blocked"]),
    (Kind::Denied, &IDENTITY_CODES),
    (
        Kind::Capacity,
        &[
            "InsufficientInstanceCapacity",
            "InstanceLimitExceeded",
            "VcpuLimitExceeded",
            // A quota at Auto Scaling, in spite of its name.
            "LimitExceeded",
        ],
    ),
];

/// Codes of [`Kind::Denied`] that are about who asks, not about what.
const IDENTITY_CODES: [&str; 8] = [
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
    "MissingAuthenticationToken",
];

impl Fault {
    /// Reads what the SDK made of an answer, or of none.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the SDK may add ways to get no answer, and they mean the same")]
    pub fn of<E>(call: Call, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let said = |text: Option<&str>| text.map(str::to_owned).filter(|text| !text.is_empty());
        match error {
            SdkError::ServiceError(service) => {
                let (meta, status) = (service.err(), service.raw().status().as_u16());
                let code = said(meta.code());
                let message = said(meta.message()).unwrap_or_else(|| format!("HTTP status {status}"));
                let kind = kind_of(call.service(), code.as_deref(), status, &message);
                Self { call, kind, code, message }
            }
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                // A whole answer cannot be read, so what it said is not known.
                let kind = if status >= 500 { Kind::Server } else { Kind::Unanswered };
                Self { call, kind, code: None, message: format!("HTTP status {status}: {}", chain(error)) }
            }
            other => Self { call, kind: Kind::Unanswered, code: None, message: chain(other) },
        }
    }

    pub(crate) fn late(call: Call, within: Duration) -> Self {
        let message = format!("no answer within {} s", within.as_secs_f64());
        Self { call, kind: Kind::Unanswered, code: None, message }
    }

    /// An answer that lacks what the API promises.
    pub(crate) fn odd(call: Call, lacks: &str) -> Self {
        Self { call, kind: Kind::Unanswered, code: None, message: format!("the answer lacks {lacks}") }
    }

    /// Whether asking again may help, where asking twice does no harm.
    pub fn may_pass(&self) -> bool {
        match self.kind {
            Kind::Throttled | Kind::Server | Kind::Unanswered => true,
            Kind::Busy | Kind::NotFound | Kind::Exists | Kind::Denied | Kind::Capacity | Kind::Refused => false,
        }
    }

    /// Whether a change that met this may have been made all the same.
    pub fn may_have_happened(&self) -> bool {
        match self.kind {
            Kind::Server | Kind::Unanswered => true,
            Kind::Throttled
            | Kind::Busy
            | Kind::NotFound
            | Kind::Exists
            | Kind::Denied
            | Kind::Capacity
            | Kind::Refused => false,
        }
    }

    /// As an answer to somebody who wanted to see something.
    pub(crate) fn into_cloud_error(self, account: &AccountName) -> CloudError {
        let account = account.clone();
        match self.kind {
            Kind::Throttled | Kind::Server | Kind::Unanswered => {
                CloudError::Unreachable { account, source: io::Error::other(self.to_string()) }
            }
            Kind::Busy | Kind::NotFound | Kind::Exists | Kind::Denied | Kind::Capacity | Kind::Refused => {
                CloudError::Refused { account, why: self.to_string() }
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.code.as_deref().map(|code| format!("{code}: ")).unwrap_or_default();
        // What to do comes first: AWS's own words may be a thousand characters, and the journal keeps two hundred.
        let hint = match self.kind {
            Kind::Denied if self.code.as_deref().is_some_and(|code| IDENTITY_CODES.contains(&code)) => {
                "check the credentials, and this machine's clock (more than 5 min off is refused): ".to_owned()
            }
            Kind::Denied => format!("allow `{}`, see `troop aws policy`: ", self.call),
            Kind::Throttled
            | Kind::Busy
            | Kind::NotFound
            | Kind::Exists
            | Kind::Capacity
            | Kind::Refused
            | Kind::Server
            | Kind::Unanswered => String::new(),
        };
        write!(f, "{}: {hint}{code}{}", self.call, self.message)
    }
}

impl std::error::Error for Fault {}

fn kind_of(service: Service, code: Option<&str>, status: u16, message: &str) -> Kind {
    let Some(code) = code else {
        return match status {
            500.. => Kind::Server,
            401 | 403 => Kind::Denied,
            _ => Kind::Unanswered,
        };
    };
    if let Some((kind, _)) = CODES.iter().find(|(_, codes)| codes.contains(&code)) {
        return *kind;
    }
    // Auto Scaling has no code of its own for what is not there.
    if service == Service::AutoScaling && code == "ValidationError" && message.to_lowercase().contains("not found") {
        return Kind::NotFound;
    }
    if service == Service::LoadBalancing && code.starts_with("TooMany") {
        return Kind::Capacity;
    }
    if status >= 500 { Kind::Server } else { Kind::Refused }
}

#[cfg(test)]
pub(crate) mod tests;
