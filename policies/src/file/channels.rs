//! What a policy file names of the site file: told where both are known.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::diagnostic::{Diagnostic, Findings, shown};
use super::tree::nearest;
use crate::policy::Channel;

/// Warns of each entry of `notify` whose channel the site file does not have. `name` is the policy file's path as it shall be
/// shown, `text` what it holds; of a file with mistakes only what can be read is looked at.
pub fn unknown_channels(name: &str, text: &str, channels: &BTreeMap<String, Channel>) -> Vec<Diagnostic> {
    let mut out = Findings::new(name, text);
    let (table, _) = DeTable::parse_recoverable(text);
    let notify = table.get_ref().get("notify").and_then(|notify| notify.get_ref().as_array());
    for entry in notify.into_iter().flatten() {
        let Some((channel, _)) = entry.get_ref().as_str().and_then(|text| text.split_once(':')) else { continue };
        if channels.contains_key(channel) {
            continue;
        }
        let hint = nearest(channel, channels.keys().map(String::as_str)).map_or_else(
            || format!("add [channels.{}] to the site file, with kind and url_file", shown(channel)),
            |near| format!("did you mean \"{near}\"?"),
        );
        let message = format!("the site file has no channel `{}`: nobody is told there", shown(channel));
        out.warning(entry.span(), message, Some(hint));
    }
    out.into_sorted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ChannelKind;

    #[test]
    fn a_channel_that_the_site_does_not_have_is_told_with_the_nearest() {
        let slack = Channel { kind: ChannelKind::Slack, url_file: "url".into() };
        let channels = BTreeMap::from([("slack".to_owned(), slack)]);
        let text = "notify = [\"slack:a\", \"slak:b\", \"pager:c\", 3]\n";
        let found = unknown_channels("shop.toml", text, &channels);
        let told: Vec<_> = found.iter().map(|d| (d.column, d.hint.as_deref().unwrap())).collect();
        assert_eq!(
            told,
            [(22, "did you mean \"slack\"?"), (32, "add [channels.pager] to the site file, with kind and url_file"),]
        );
    }
}
