//! By which name a group is known, and which group of AWS's is meant by a name.
//!
//! Everybody above knows a group by a name of the form `app-stack-detail-v007`. As a rule that is its own name at AWS. Where the
//! site says which tags hold app, stack and detail, a group whose own name does not end in a version, but that carries the app's
//! tag, is known by the name its tags give. This is the only place that leads from one name to the other; whoever names a group to
//! AWS asks for its [`RealName`] here, and what is read back is known by [`known_as`].
//!
//! Two groups of one name are nobody: neither is known, and while that lasts nothing of their cluster is hurt.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use aws_sdk_autoscaling::types::AutoScalingGroup;
use troop_policies::{AppName, ClusterName, GroupName};

use super::config::NameTags;
use super::groups::tag;

/// The name that AWS has for a group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RealName(String);

impl RealName {
    /// That of a group which Troop makes, or which is known by its own name.
    pub(crate) fn same(name: &GroupName) -> Self {
        Self(name.to_string())
    }

    /// A group's own.
    pub(crate) fn of(group: &AutoScalingGroup) -> Self {
        Self(group.auto_scaling_group_name().unwrap_or_default().to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RealName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a group is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Its own name is none of ours, and no tag says another.
    ItsName,
    /// What is wrong with the name its tags give.
    ItsTags(String),
}

/// By which name a group is known.
pub(crate) fn known_as(group: &AutoScalingGroup, keys: Option<&NameTags>) -> Result<GroupName, Unknown> {
    let own = group.auto_scaling_group_name().unwrap_or_default();
    let by_name = GroupName::new(own).map_err(|_| Unknown::ItsName);
    let Some(keys) = keys else { return by_name };
    let Some(app) = tag(group, &keys.app) else { return by_name };
    if by_name.as_ref().is_ok_and(|name| name.sequence().is_some()) {
        return by_name;
    }
    let part = |key: &Option<String>| key.as_ref().and_then(|key| tag(group, key)).filter(|value| !value.is_empty());
    let named = AppName::new(app).and_then(|app| {
        let cluster = ClusterName::build(&app, part(&keys.stack), part(&keys.detail))?;
        match version(own) {
            Some(version) => GroupName::new(format!("{cluster}-{version}")),
            None => GroupName::new(cluster),
        }
    });
    named.map_err(|bad| Unknown::ItsTags(bad.to_string()))
}

/// The version at the end of a name, whatever stands before it.
fn version(own: &str) -> Option<&str> {
    let (_, last) = own.rsplit_once('-')?;
    GroupName::new(format!("any-{last}")).ok()?.sequence().map(|_| last)
}

/// The names of a region's groups, as they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    real: BTreeMap<GroupName, RealName>,
    /// Names that more than one group would have.
    twice: BTreeMap<GroupName, BTreeSet<RealName>>,
    /// What people should know of groups that are not known.
    pub(crate) notes: Vec<String>,
}

impl Names {
    /// Sorts a region's groups by the names under which they are known. Those that are not are left out.
    pub(crate) fn sort(
        all: impl IntoIterator<Item = AutoScalingGroup>,
        keys: Option<&NameTags>,
    ) -> (BTreeMap<GroupName, AutoScalingGroup>, Self) {
        let (mut names, mut found) = (Self::default(), BTreeMap::<GroupName, Vec<AutoScalingGroup>>::new());
        for group in all {
            match known_as(&group, keys) {
                Ok(name) => found.entry(name).or_default().push(group),
                Err(Unknown::ItsName) => {}
                Err(Unknown::ItsTags(why)) => {
                    names.notes.push(format!("`{}` is not known: by its tags, {why}", RealName::of(&group)));
                }
            }
        }
        let mut known = BTreeMap::new();
        for (name, mut groups) in found {
            match (groups.pop(), groups.is_empty()) {
                (Some(group), true) => {
                    names.real.insert(name.clone(), RealName::of(&group));
                    known.insert(name, group);
                }
                (last, _) => {
                    let real = groups.iter().chain(&last).map(RealName::of).collect();
                    names.notes.push(several(&name, &real));
                    names.twice.insert(name, real);
                }
            }
        }
        (known, names)
    }

    /// Which group is meant by a name. One that is not there is meant by its own: Troop makes no others.
    ///
    /// # Errors
    /// Which groups would have that name.
    pub(crate) fn real(&self, name: &GroupName) -> Result<RealName, String> {
        match self.twice.get(name) {
            Some(real) => Err(several(name, real)),
            None => Ok(self.real.get(name).cloned().unwrap_or_else(|| RealName::same(name))),
        }
    }

    /// Why a cluster is not seen whole, if it is not.
    pub(crate) fn doubt(&self, cluster: &ClusterName) -> Option<String> {
        let mut of_cluster = self.twice.iter().filter(|(name, _)| name.cluster() == cluster);
        of_cluster.next().map(|(name, real)| several(name, real))
    }
}

fn several(name: &GroupName, real: &BTreeSet<RealName>) -> String {
    let list: Vec<String> = real.iter().map(|real| format!("`{real}`")).collect();
    format!("{} would each be known as `{name}`, so none of them is", list.join(" and "))
}

#[cfg(test)]
mod tests {
    use aws_sdk_autoscaling::types::TagDescription;

    use super::*;

    fn keys() -> NameTags {
        NameTags { app: "app".to_owned(), stack: Some("env".to_owned()), detail: Some("role".to_owned()) }
    }

    fn group(own: &str, tags: &[(&str, &str)]) -> AutoScalingGroup {
        let tag = |(key, value): &(&str, &str)| TagDescription::builder().key(*key).value(*value).build();
        AutoScalingGroup::builder()
            .auto_scaling_group_name(own)
            .set_tags(Some(tags.iter().map(tag).collect()))
            .min_size(0)
            .max_size(0)
            .desired_capacity(0)
            .default_cooldown(0)
            .availability_zones("us-east-1a")
            .health_check_type("EC2")
            .created_time(aws_smithy_types::DateTime::from_secs(0))
            .build()
    }

    fn name(text: &str) -> GroupName {
        GroupName::new(text).unwrap()
    }

    #[test]
    fn a_name_without_a_version_gives_way_to_the_tags() {
        /// A group's own name, its tags, and the name under which it is known.
        type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str);
        let keys = keys();
        let rows: &[Row] = &[
            ("CloudFormation-Web-1A2B3C", &[("app", "shop"), ("env", "prod"), ("role", "web")], "shop-prod-web"),
            ("CloudFormation-Web-1A2B3C", &[("app", "shop"), ("role", "web")], "shop--web"),
            ("CloudFormation-Web-1A2B3C", &[("app", "shop"), ("env", ""), ("role", "")], "shop"),
            // No name of ours at all, but for its version.
            ("the web / front-v012", &[("app", "shop"), ("env", "prod")], "shop-prod-v012"),
            ("the web / front", &[("app", "shop"), ("env", "prod")], "shop-prod"),
            // What names itself, and what says no app.
            ("shop-web-v003", &[("app", "other"), ("env", "prod")], "shop-web-v003"),
            ("shop-web", &[("env", "prod"), ("role", "web")], "shop-web"),
        ];
        for (own, tags, known) in rows {
            assert_eq!(known_as(&group(own, tags), Some(&keys)), Ok(name(known)), "{own} {tags:?}");
        }
        let plain = group("CloudFormation-Web-1A2B3C", &[("app", "shop")]);
        assert_eq!(known_as(&plain, None), Ok(name("CloudFormation-Web-1A2B3C")));
        assert_eq!(known_as(&group("the web", &[("app", "shop")]), None), Err(Unknown::ItsName));
        assert_eq!(known_as(&group("the web", &[("env", "prod")]), Some(&keys)), Err(Unknown::ItsName));
    }

    #[test]
    fn a_group_whose_tags_give_no_name_is_unknown_with_a_note_also_where_its_own_name_would_do() {
        for bad in [
            &[("app", "shop front")][..],
            &[("app", "")],
            &[("app", "shop"), ("env", "a-b")],
            &[("app", "shop"), ("role", "v001")],
            &[("app", "shop"), ("role", "a/b")],
        ] {
            let (known, names) = Names::sort([group("Web-1A2B3C", bad)], Some(&keys()));
            assert_eq!(known.len(), 0, "{bad:?}");
            let [note] = &names.notes[..] else { panic!("{names:?}") };
            assert!(note.starts_with("`Web-1A2B3C` is not known: by its tags, "), "{note}");
        }
    }

    #[test]
    fn of_two_groups_of_one_name_neither_is_known_and_their_cluster_is_in_doubt() {
        let tags = [("app", "shop"), ("env", "web")];
        let all = [group("A-1", &tags), group("B-1", &tags), group("shop-web-v001", &tags), group("shop-api", &[])];
        let (known, names) = Names::sort(all, Some(&keys()));
        assert_eq!(known.keys().collect::<Vec<_>>(), [&name("shop-api"), &name("shop-web-v001")]);
        let said = "`A-1` and `B-1` would each be known as `shop-web`, so none of them is";
        assert_eq!(names.notes, [said]);
        assert_eq!(names.real(&name("shop-web")), Err(said.to_owned()));
        assert_eq!(names.real(&name("shop-web-v001")).unwrap().as_str(), "shop-web-v001");
        assert_eq!(names.doubt(name("shop-web-v001").cluster()).as_deref(), Some(said));
        assert_eq!(names.doubt(name("shop-api").cluster()), None);
    }

    #[test]
    fn a_name_leads_to_the_group_that_has_it_and_one_that_nobody_has_to_itself() {
        let tags = [("app", "shop"), ("env", "web")];
        let (known, names) = Names::sort([group("A-1", &tags), group("B-v002", &tags)], Some(&keys()));
        assert_eq!(known[&name("shop-web")].auto_scaling_group_name(), Some("A-1"));
        let real = |text: &str| names.real(&name(text)).unwrap().to_string();
        // The second names itself.
        assert_eq!(
            (real("shop-web"), real("B-v002"), real("shop-web-v000")),
            ("A-1".to_owned(), "B-v002".to_owned(), "shop-web-v000".to_owned())
        );
    }
}
