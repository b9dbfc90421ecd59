//! `troop aws doctor`: asks an account's services themselves what the site may do there, and changes nothing.

use troop_cloud::aws::AwsCloud;
use troop_cloud::aws::calls::Call;
use troop_cloud::aws::doctor::Right;
use troop_cloud::{Claim, Claimant, Cloud as _};
use troop_policies::inventory::{Inventory, Lifecycle};
use troop_policies::policy::Site;
use troop_policies::{Location, RegionName, chain};

use crate::accounts;
use crate::agents::proof::unproven;
use crate::serve::core::CLOCK_APART_MAX;
use crate::state::{self, StateDir};
use crate::views::doctor::{DoctorView, Finding, Verdict};

/// Calls named in a line; the rest is a number.
const NAMED: usize = 4;

/// Everything that can be found out about a site.
///
/// # Errors
/// Why there are no accounts to ask.
pub(super) async fn examine(site: &Site, state: Option<&StateDir>) -> Result<DoctorView, String> {
    let secret = state.and_then(|state| state::read_secret(&state.secret_file()).ok().flatten());
    let fingerprint = secret.map(|secret| secret.fingerprint()).unwrap_or_default();
    let claimant = Claimant { site: site.name.clone(), fingerprint };
    let mut findings = Vec::new();
    for cloud in accounts::aws_clouds(site).await? {
        for region in cloud.regions().to_vec() {
            let at = Location { account: cloud.account().clone(), region };
            findings.extend(Examined { cloud: &cloud, at: &at, site }.all(&claimant).await);
        }
    }
    findings.extend(of_site(site));
    Ok(DoctorView { schema: 1, site: site.name.clone(), leashed: site.leashed, findings })
}

/// One region of one account.
struct Examined<'a> {
    cloud: &'a AwsCloud,
    at: &'a Location,
    site: &'a Site,
}

impl Examined<'_> {
    fn finding(&self, check: &'static str, verdict: Verdict, text: impl Into<String>) -> Finding {
        Finding { at: self.at.to_string(), check, verdict, text: text.into() }
    }

    async fn all(&self, claimant: &Claimant) -> Vec<Finding> {
        let region = &self.at.region;
        let mut findings = match self.cloud.identity(region).await {
            Ok(arn) => vec![self.finding("credentials", Verdict::Ok, arn)],
            // Without them nothing else can be known.
            Err(e) => return vec![self.finding("credentials", Verdict::Missing, chain(&e))],
        };
        findings.push(self.clock());
        let before: u64 = self.cloud.calls_sent().values().sum();
        let seen = self.cloud.inventory(region).await;
        let calls = self.cloud.calls_sent().values().sum::<u64>() - before;
        let member = seen.as_ref().ok().and_then(member);
        findings.extend(self.rights(region, member.as_deref()).await);
        findings.push(match &seen {
            Ok(inventory) => {
                let (groups, instances) = (inventory.groups.len(), inventory.instance_count());
                let skipped = self.cloud.groups_skipped(region).await.unwrap_or_default();
                let text =
                    format!("{groups} groups, {instances} instances, {calls} calls; {skipped} groups have other names");
                self.finding("inventory", Verdict::Ok, text)
            }
            Err(e) => self.finding("inventory", Verdict::Missing, chain(e)),
        });
        let doubts = self.cloud.groups_in_doubt(region).await;
        findings.extend(doubts.into_iter().map(|doubt| self.finding("names", Verdict::Note, doubt)));
        findings.push(match self.cloud.groups_of_quota(region).await {
            Ok((have, most)) if have < most => self.finding("quota", Verdict::Ok, format!("{have} of {most} groups")),
            Ok((have, most)) => {
                let text = format!("{have} of {most} groups: a push needs one more");
                self.finding("quota", self.wanted(), text)
            }
            Err(e) => self.finding("quota", Verdict::Note, chain(&e)),
        });
        findings.push(match self.cloud.claimed_by(region, claimant).await {
            Ok(None) => self.finding("claim", Verdict::Ok, "nobody's; this site takes it when it is unleashed"),
            Ok(Some(Claim::Ours)) => self.finding("claim", Verdict::Ok, "this site's"),
            Ok(Some(Claim::Theirs { site, release })) => {
                self.finding("claim", self.wanted(), format!("site `{site}` has it: {release}"))
            }
            Err(e) => self.finding("claim", Verdict::Missing, chain(&e)),
        });
        findings
    }

    /// How much it matters that something is not there which only an unleashed site needs.
    fn wanted(&self) -> Verdict {
        if self.site.leashed { Verdict::Note } else { Verdict::Missing }
    }

    fn clock(&self) -> Finding {
        match self.cloud.clock_offset() {
            Some(apart) if apart.abs() <= CLOCK_APART_MAX => {
                self.finding("clock", Verdict::Ok, format!("{:+.1} s", apart.as_secs_f64()))
            }
            Some(apart) => {
                let (seconds, most) = (apart.as_secs_f64(), CLOCK_APART_MAX.as_secs());
                let text = format!("AWS's is {seconds:+.0} s from this host's; nothing is done beyond {most} s");
                self.finding("clock", Verdict::Missing, text)
            }
            None => self.finding("clock", Verdict::Missing, "AWS's answers say no time"),
        }
    }

    async fn rights(&self, region: &RegionName, member: Option<&str>) -> Vec<Finding> {
        let rights = match self.cloud.rights(region, member).await {
            Ok(rights) => rights,
            Err(e) => return vec![self.finding("reads", Verdict::Missing, chain(&e))],
        };
        let (writes, reads): (Vec<_>, Vec<_>) = rights.into_iter().partition(|(call, _)| call.mutates());
        vec![self.reads(&reads), self.writes(&writes)]
    }

    fn reads(&self, reads: &[(Call, Right)]) -> Finding {
        let allowed = reads.iter().filter(|(_, right)| *right == Right::Allowed).count();
        if allowed == reads.len() {
            return self.finding("reads", Verdict::Ok, format!("{allowed} of {allowed}"));
        }
        let denied = named(reads.iter().filter(|(_, right)| matches!(right, Right::Denied(_))));
        let unknown = named(reads.iter().filter(|(_, right)| matches!(right, Right::Unknown(_))));
        let mut text = format!("{allowed} of {}", reads.len());
        if let Some(denied) = denied {
            text.push_str(&format!("; denied: {denied}; allow what `troop aws policy` prints"));
        }
        if let Some(unknown) = unknown {
            text.push_str(&format!("; not answered: {unknown}"));
        }
        self.finding("reads", Verdict::Missing, text)
    }

    fn writes(&self, writes: &[(Call, Right)]) -> Finding {
        let count = |wanted: fn(&Right) -> bool| writes.iter().filter(|(_, right)| wanted(right)).count();
        let allowed = count(|right| *right == Right::Allowed);
        let unknown = count(|right| matches!(right, Right::Unknown(_)));
        let denied = named(writes.iter().filter(|(_, right)| matches!(right, Right::Denied(_))));
        let of = writes.len();
        match (self.site.leashed, denied) {
            (true, _) if allowed == 0 => {
                let text = format!("none of {of} by dry runs, {unknown} cannot be known; a leashed site needs none");
                self.finding("writes", Verdict::Ok, text)
            }
            (true, _) => {
                let text = format!("{allowed} of {of} by dry runs: more than a leashed site needs");
                self.finding("writes", Verdict::Note, text)
            }
            (false, None) => {
                let text = format!("{allowed} of {of} by dry runs, {unknown} have none and cannot be known");
                self.finding("writes", Verdict::Ok, text)
            }
            (false, Some(denied)) => {
                let text = format!("denied: {denied}; allow what `troop aws policy --unleashed` prints");
                self.finding("writes", Verdict::Missing, text)
            }
        }
    }
}

fn named<'a>(rights: impl Iterator<Item = &'a (Call, Right)>) -> Option<String> {
    let all: Vec<String> = rights.map(|(call, _)| call.to_string()).collect();
    let more = all.len().saturating_sub(NAMED);
    let first = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match (all.len(), more) {
        (0, _) => None,
        (_, 0) => Some(first),
        (_, more) => Some(format!("{first} and {more} more")),
    }
}

/// An instance by which it can be asked whether one may be ended.
fn member(inventory: &Inventory) -> Option<String> {
    let members = inventory.groups.values().flat_map(|group| group.members.values());
    members.into_iter().find(|i| i.lifecycle == Lifecycle::InService).map(|i| i.id.to_string())
}

/// What an unleashed site needs of its own file.
fn of_site(site: &Site) -> Vec<Finding> {
    let wanted = if site.leashed { Verdict::Note } else { Verdict::Missing };
    let finding = |check, verdict, text: String| Finding { at: format!("site {}", site.name), check, verdict, text };
    let unset = site.caps.unset();
    let caps = if unset.is_empty() {
        finding("caps", Verdict::Ok, "acts an hour, unhealed an account and a zone".to_owned())
    } else {
        finding("caps", wanted, format!("`{}` not set: an unleashed site needs them", unset.join("`, `")))
    };
    let channels = match site.channels.len() {
        0 => finding("channels", wanted, "none: an unleashed site needs one, and a team that it reaches".to_owned()),
        count => finding("channels", Verdict::Ok, format!("{count}; `troop notify TEAM` says whether one works")),
    };
    let mut findings = vec![caps, channels];
    let unproven = unproven(&site.accounts, &site.aws.identity_certs).join(", ");
    if site.agents.is_some() && !unproven.is_empty() {
        let text = format!("of {unproven} known by their token and that their instance runs: no `aws.identity_certs`");
        findings.push(finding("agents", Verdict::Note, text));
    }
    findings
}
