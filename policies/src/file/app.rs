//! What an app excludes: suffixes, exceptions and alerts. A pattern that could never match would arm what its author
//! meant to spare, so it is an error.

use super::diagnostic::{Findings, shown};
use super::policy::named;
use super::raw::RawException;
use super::scalar::Sp;
use crate::hold::HoldSignal;
use crate::ids::{AccountName, BadId, RegionName};
use crate::names::{AppName, ClusterName, GroupName};
use crate::policy::Exception;

pub(crate) fn never_suffix(suffix: &Sp<String>, out: &mut Findings<'_>) {
    let text = suffix.get();
    // A name's last characters are those of a detail, a stack or an application.
    let fits = !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-~^".contains(c))
        && GroupName::new(format!("app{text}")).is_ok_and(|name| name.sequence().is_none());
    if !fits {
        let hint =
            "write the end of a cluster's name as it stands, such as \"-canary\"; there are no wildcards".to_owned();
        out.error(suffix.span(), format!("`{}` can end no cluster's name", shown(text)), Some(hint));
    }
}

/// Checks the form of a hold signal.
pub(crate) fn hold_while(hold: &Sp<String>, out: &mut Findings<'_>) {
    if let Err(bad) = HoldSignal::parse(hold.get()) {
        out.error(hold.span(), format!("`{}` is no signal: {bad}", shown(hold.get())), Some(bad.hint.to_owned()));
    }
}

pub(crate) fn exception(raw: &Sp<RawException>, out: &mut Findings<'_>) -> Option<Exception> {
    let fields = raw.get();
    let account = one(fields.account.as_ref(), false, |t| AccountName::new(t).map(|_| ()), out);
    let region = one(fields.region.as_ref(), false, |t| RegionName::new(t).map(|_| ()), out);
    let app = AppName::new("app").ok()?;
    let stack =
        one(fields.stack.as_ref(), true, |text| part("stack", text, |t| ClusterName::build(&app, Some(t), None)), out);
    let detail = one(
        fields.detail.as_ref(),
        true,
        |text| part("detail", text, |t| ClusterName::build(&app, None, Some(t))),
        out,
    );
    let reason = fields.reason.as_ref()?.get().clone();
    let place = out.place(raw.span().start);
    Some(Exception { place, account: account?, region: region?, stack: stack?, detail: detail?, reason })
}

/// Checks a part of a cluster's name by building a name of it.
fn part(kind: &'static str, text: String, build: impl Fn(&str) -> Result<ClusterName, BadId>) -> Result<(), BadId> {
    build(&text).map(|_| ()).map_err(|bad| BadId { kind, text, why: bad.why })
}

/// One selector of an exception: `*`, an exact name, or nothing where that can be.
fn one(
    text: Option<&Sp<String>>,
    may_be_absent: bool,
    new: impl Fn(String) -> Result<(), BadId>,
    out: &mut Findings<'_>,
) -> Option<String> {
    let text = text?;
    if text.get() == "*" || (may_be_absent && text.get().is_empty()) {
        return Some(text.get().clone());
    }
    if text.get().contains(['*', '?']) {
        let hint = "`*` stands alone, for anything; else write the name as it stands".to_owned();
        out.error(text.span(), format!("`{}` would match nothing", shown(text.get())), Some(hint));
        return None;
    }
    named(Some(text), new, out)?;
    Some(text.get().clone())
}
