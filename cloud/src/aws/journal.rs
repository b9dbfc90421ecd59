//! Which intents were begun and what became of them, kept at AWS: the same intent takes effect once, from whichever machine it
//! comes, and [`resolve`](super::resolve) can tell.
//!
//! An entry is a launch template that nobody launches, `troop-intent-` and a digest, since AWS takes a name once: of all who
//! create it, one gets it and the others are told that it exists. That is the only test-and-set that these services have
//! (tags are overwritten, the weights of a rule too). Version 1 says that the intent was begun, or that it is refused from now
//! on because somebody asked what became of it before it came; the next version says what became of it. Of two that settle
//! it, the first holds.
//!
//! What it cannot do: it does not undo a request that is under way. An entry that was begun and shows no effect stays unknown
//! for [`IN_FLIGHT_MAX`], which is longer than an act may go on ([`super::gatekeeper`]) and a signature is good for.

use std::time::Duration;

use aws_sdk_ec2::types::{RequestLaunchTemplateData, ResourceType, ShutdownBehavior, Tag, TagSpecification};
use jiff::Timestamp;
use troop_policies::intent::{Intent, Outcome};

use super::calls::Call;
use super::fault::{Fault, Kind};
use super::gatekeeper::ACT_MAX;
use super::tags;
use super::wire::{Again, Wire};

/// How the names of entries begin.
pub(crate) const NAME_START: &str = "troop-intent-";

/// After an act began, nothing of it can come any more: a minute for the act, five for a signature, two for AWS to show it,
/// two for clocks that differ.
pub(crate) const IN_FLIGHT_MAX: Duration = Duration::from_secs(600);
const _: () = assert!(IN_FLIGHT_MAX.as_secs() >= ACT_MAX.as_secs() + 300 + 120 + 120);

/// Settled entries are kept for this long: whoever was away comes back within a week.
const KEPT_FOR: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 7);
/// Most entries that one sweep deletes.
const SWEPT_AT_ONCE: usize = 20;
/// AWS takes 255 characters as a version's description.
const TEXT_MAX_CHARS: usize = 200;
/// How often an entry that exists is looked for before it is said to be out of sight.
const LOOKS: u32 = 5;

/// What the journal says of an intent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// When it was begun, and the digest of the step it is bound to. `None`: it was refused before it came.
    pub(crate) begun: Option<(Timestamp, String)>,
    pub(crate) settled: Option<Outcome>,
}

/// What came of writing version 1.
#[derive(Debug)]
pub(crate) enum Entered {
    /// Nobody had.
    Ours,
    /// Somebody had before.
    Before(Entry),
}

/// What version 1 says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum First {
    Begun,
    Refused,
}

/// The digest that binds an intent to its step.
pub(crate) fn step_digest(intent: &Intent) -> String {
    let step = serde_json::to_string(&intent.step).unwrap_or_default();
    tags::digest(&step)[..32].to_owned()
}

fn name(intent: &Intent) -> String {
    let whole = format!("{}/{}/{}", intent.account, intent.region, intent.id);
    format!("{NAME_START}{}", &tags::digest(&whole)[..32])
}

/// Writes version 1, if nobody has.
///
/// # Errors
/// [`Fault`]: of one that may have happened it is not known whether the entry is there.
pub(crate) async fn enter(wire: &Wire, intent: &Intent, first: First, now: Timestamp) -> Result<Entered, Fault> {
    let (text, kind) = match first {
        First::Begun => (format!("begun {now} {}", step_digest(intent)), "intent"),
        First::Refused => (written(&never_came()), "fence"),
    };
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
    let tagging = TagSpecification::builder()
        .resource_type(ResourceType::LaunchTemplate)
        .tags(tag(tags::JOURNAL, kind))
        .tags(tag(tags::INTENT, intent.id.as_str()))
        .tags(tag(tags::GROUP, intent.step.group().as_str()))
        .build();
    let name = name(intent);
    let call = Call::CreateLaunchTemplate;
    let created = wire
        .change(call, Again::Never, || {
            wire.ec2
                .create_launch_template()
                .launch_template_name(&name)
                .version_description(&text)
                .launch_template_data(nothing())
                .tag_specifications(tagging.clone())
                .send()
        })
        .await;
    match created {
        Ok(_) => Ok(Entered::Ours),
        Err(fault) if fault.kind == Kind::Exists => {
            for _ in 0..LOOKS {
                if let Some(found) = find(wire, intent).await? {
                    return Ok(Entered::Before(found));
                }
                tokio::time::sleep(wire.patience.look_every).await;
            }
            Err(Fault::odd(Call::DescribeLaunchTemplateVersions, &format!("`{name}`, which exists")))
        }
        Err(fault) => Err(fault),
    }
}

/// What the journal says. `None` proves nothing: AWS may not show it yet.
pub(crate) async fn find(wire: &Wire, intent: &Intent) -> Result<Option<Entry>, Fault> {
    let name = name(intent);
    let call = Call::DescribeLaunchTemplateVersions;
    let read =
        wire.read(call, || wire.ec2.describe_launch_template_versions().launch_template_name(&name).send()).await;
    let answer = match read {
        Ok(answer) => answer,
        Err(fault) if fault.kind == Kind::NotFound => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let mut versions: Vec<(i64, &str)> = answer
        .launch_template_versions()
        .iter()
        .filter_map(|version| Some((version.version_number()?, version.version_description()?)))
        .collect();
    versions.sort_unstable();
    match entry(versions.into_iter().map(|(_, text)| text)) {
        Some(entry) => Ok(Some(entry)),
        None => Err(Fault::odd(call, &format!("a description of `{name}` that is Troop's"))),
    }
}

/// Reads an entry from its descriptions, oldest first.
fn entry<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Entry> {
    let mut entry = Entry::default();
    for text in texts {
        match text.split_once(' ')? {
            ("begun", rest) => {
                let (at, step) = rest.split_once(' ')?;
                entry.begun = Some((at.parse().ok()?, step.to_owned()));
            }
            ("done", detail) => {
                entry.settled.get_or_insert_with(|| Outcome::done(detail));
            }
            ("refused", why) => {
                entry.settled.get_or_insert_with(|| Outcome::refused(why));
            }
            _ => return None,
        }
    }
    (entry != Entry::default()).then_some(entry)
}

/// Writes what became of an intent that was entered. Of several the first holds.
pub(crate) async fn settle(wire: &Wire, intent: &Intent, outcome: &Outcome) -> Result<(), Fault> {
    let (name, text) = (name(intent), written(outcome));
    wire.change(Call::CreateLaunchTemplateVersion, Again::Harmless, || {
        wire.ec2
            .create_launch_template_version()
            .launch_template_name(&name)
            .version_description(&text)
            .launch_template_data(nothing())
            .send()
    })
    .await?;
    Ok(())
}

/// Deletes some settled entries that are old enough.
pub(crate) async fn sweep(wire: &Wire, now: Timestamp) -> Result<(), Fault> {
    let filter = aws_sdk_ec2::types::Filter::builder().name("tag-key").values(tags::JOURNAL).build();
    let answer = wire
        .read(Call::DescribeLaunchTemplates, || {
            wire.ec2.describe_launch_templates().filters(filter.clone()).max_results(200).send()
        })
        .await?;
    let old = answer.launch_templates().iter().filter(|template| {
        let fence = template.tags().iter().any(|t| t.key() == Some(tags::JOURNAL) && t.value() == Some("fence"));
        let settled = fence || template.latest_version_number().is_some_and(|n| n > 1);
        let made = template.create_time().and_then(|at| super::raw::time(at).ok());
        settled && made.is_some_and(|made| now.duration_since(made) > KEPT_FOR)
    });
    for id in old.filter_map(|template| template.launch_template_id()).take(SWEPT_AT_ONCE) {
        let deleting = || wire.ec2.delete_launch_template().launch_template_id(id).send();
        wire.change(Call::DeleteLaunchTemplate, Again::Harmless, deleting).await?;
    }
    Ok(())
}

/// The answer to what nobody began.
pub(crate) fn never_came() -> Outcome {
    Outcome::refused("it never reached AWS, and is refused from now on")
}

/// The outcome as the journal can hold it; the answer to whoever performs is the same, so that all hear one.
pub(crate) fn clipped(outcome: Outcome) -> Outcome {
    let clip = |text: String| text.chars().take(TEXT_MAX_CHARS).collect::<String>();
    match outcome {
        Outcome::Done { detail } => Outcome::Done { detail: clip(detail) },
        Outcome::Refused { why } => Outcome::Refused { why: clip(why) },
        Outcome::Unknown { why } => Outcome::Unknown { why },
    }
}

fn written(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done { detail } => format!("done {detail}"),
        Outcome::Refused { why } => format!("refused {why}"),
        Outcome::Unknown { why } => format!("unknown {why}"),
    }
}

/// A template must hold something; this would launch nothing, for it names no image.
fn nothing() -> RequestLaunchTemplateData {
    RequestLaunchTemplateData::builder().instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Option<Entry> {
        entry(texts.iter().copied())
    }

    #[test]
    fn what_is_written_is_read_back_and_the_first_to_settle_it_holds() {
        let at: Timestamp = "2026-11-24T10:30:00Z".parse().unwrap();
        let begun = format!("begun {at} abc");
        let entry = Entry { begun: Some((at, "abc".to_owned())), settled: None };
        assert_eq!(read(&[&begun]), Some(entry.clone()));
        let (done, refused) = (Outcome::done("`i-1` is shutting-down"), Outcome::refused("no"));
        let settled = |outcome: &Outcome| Some(Entry { settled: Some(outcome.clone()), ..entry.clone() });
        assert_eq!(read(&[&begun, &written(&done), &written(&refused)]), settled(&done));
        assert_eq!(read(&[&begun, &written(&refused), &written(&done)]), settled(&refused));
        let fence = Entry { begun: None, settled: Some(never_came()) };
        assert_eq!(read(&[&written(&never_came())]), Some(fence));
        assert_eq!((read(&["somebody else's"]), read(&[])), (None, None));
    }

    #[test]
    fn a_long_answer_is_the_same_for_whoever_performs_and_whoever_resolves() {
        let clipped = clipped(Outcome::done("é".repeat(1_000)));
        let text = written(&clipped);
        assert!(text.chars().count() <= 255);
        assert_eq!(read(&[&text]).and_then(|entry| entry.settled), Some(clipped));
    }
}
