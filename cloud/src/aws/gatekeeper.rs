//! The last look at a request before it leaves: is it a call of ours, and where it changes anything, is it one that a
//! permitted act makes, still in time?
//!
//! It runs after the request was signed. A signature is good for 5 minutes, so a request that was signed in time and then
//! held back (by a stopped process, a lost network) is refused by AWS, and one signed late is refused here. That is what
//! lets [`super::journal`] say for certain, some time later, that nothing will come of an act any more.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use jiff::{SignedDuration, Timestamp};

use super::calls::Call;
use super::config::Clock;

/// How long an act may go on changing things after it entered the journal. Its longest, making a group, is some ten calls
/// of a second each.
pub(crate) const ACT_MAX: Duration = Duration::from_secs(60);

tokio::task_local! {
    /// The act that the running task carries out, by the time after which it may change nothing any more.
    static ACT: Cell<Timestamp>;
}

/// Lets `act` change things until `until`.
pub(crate) async fn within<T>(until: Timestamp, act: impl Future<Output = T>) -> T {
    ACT.scope(Cell::new(until), act).await
}

/// Counts and checks every request.
#[derive(Clone)]
pub(crate) struct Gatekeeper {
    clock: Clock,
    sent: Arc<Mutex<BTreeMap<Call, u64>>>,
    /// How far AWS's clock was ahead of ours at its last answer.
    offset: Arc<Mutex<Option<SignedDuration>>>,
}

impl std::fmt::Debug for Gatekeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gatekeeper").field("sent", &self.sent()).finish_non_exhaustive()
    }
}

/// Why a request was not let out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotSent {
    #[error("`{service}` `{operation}` is not in the list of calls that Troop makes")]
    NotOurs { service: String, operation: String },
    #[error("{call} changes something, and no act is under way")]
    NoAct { call: Call },
    #[error("{call} comes too late: its act had to be over {late_ms} ms ago")]
    Late { call: Call, late_ms: i64 },
}

impl Gatekeeper {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, sent: Arc::default(), offset: Arc::default() }
    }

    /// How many requests of each kind were let out.
    pub(crate) fn sent(&self) -> BTreeMap<Call, u64> {
        self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// How far AWS's clock was ahead of ours at its last answer, to the second and the answer's way.
    pub(crate) fn clock_offset(&self) -> Option<SignedDuration> {
        *self.offset.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether a call may leave now.
    ///
    /// # Errors
    /// [`NotSent`].
    pub(crate) fn may_leave(&self, call: Call) -> Result<(), NotSent> {
        if !call.mutates() {
            return Ok(());
        }
        let until = ACT.try_with(Cell::get).map_err(|_| NotSent::NoAct { call })?;
        let late_ms = (self.clock)().as_millisecond().saturating_sub(until.as_millisecond());
        if late_ms > 0 { Err(NotSent::Late { call, late_ms }) } else { Ok(()) }
    }
}

#[dyn_dispatch_hint]
impl Intercept for Gatekeeper {
    fn name(&self) -> &'static str {
        "troop's gatekeeper"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let (service, operation) =
            config.load::<Metadata>().map_or(("", ""), |metadata| (metadata.service(), metadata.name()));
        let unknown = || NotSent::NotOurs { service: service.to_owned(), operation: operation.to_owned() };
        let call = Call::of(service, operation).ok_or_else(unknown)?;
        if !is_dry_run(context.request().body().bytes()) {
            self.may_leave(call)?;
        }
        *self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(call).or_default() += 1;
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(theirs) = context.response().headers().get("date").and_then(http_date) {
            let ahead = theirs.duration_since((self.clock)());
            *self.offset.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(ahead);
        }
        Ok(())
    }
}

/// Whether a form says that nothing is to be done.
fn is_dry_run(form: Option<&[u8]>) -> bool {
    form.is_some_and(|form| form.split(|byte| *byte == b'&').any(|field| field == b"DryRun=true"))
}

/// A date as HTTP writes it (RFC 9110, section 5.6.7, the fixed form).
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_clock_of_an_answer_is_read() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:01:40 GMT"), Some(at(100)));
        assert_eq!((http_date("yesterday"), http_date("")), (None, None));
    }

    #[test]
    fn a_dry_run_says_so_in_a_field_of_its_own() {
        assert!(is_dry_run(Some(b"Action=TerminateInstances&DryRun=true&InstanceId.1=i-1")));
        for form in ["Action=TerminateInstances&Name=x%26DryRun=true", "DryRun=false", "NotDryRun=true", ""] {
            assert!(!is_dry_run(Some(form.as_bytes())), "{form}");
        }
        assert!(!is_dry_run(None));
    }

    #[tokio::test]
    async fn a_change_leaves_only_within_an_act_and_only_in_time() {
        let keeper = Gatekeeper::new(Arc::new(|| at(100)));
        let (look, kill) = (Call::DescribeInstances, Call::TerminateInstances);
        assert_eq!(keeper.may_leave(look), Ok(()));
        assert_eq!(keeper.may_leave(kill), Err(NotSent::NoAct { call: kill }));
        within(at(100), async { assert_eq!(keeper.may_leave(kill), Ok(())) }).await;
        within(at(99), async {
            assert_eq!(keeper.may_leave(kill), Err(NotSent::Late { call: kill, late_ms: 1_000 }));
            assert_eq!(keeper.may_leave(look), Ok(()));
        })
        .await;
    }
}
