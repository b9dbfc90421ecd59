//! The cases. Each returns why the contract is broken.

use jiff::SignedDuration;
use troop_policies::intent::Outcome;
use troop_policies::leash::{Permit, UNLEASHED_MAX_AGE_MS, Undo};
use troop_policies::step::{How, NewGroup, Size, Step};
use troop_policies::{GroupName, ImageId, InstanceId, ZoneName};

use super::{Checked, Desk, Loss, TAG_MARK, same, that};

fn crash(group: &GroupName, instance: &InstanceId) -> Step {
    Step::Terminate { group: group.clone(), instance: instance.clone(), kill: How::Crash }
}

fn resize(group: &GroupName, size: Size) -> Step {
    Step::Resize { group: group.clone(), size }
}

fn disable(group: &GroupName) -> Step {
    Step::Disable { group: group.clone(), drain: std::time::Duration::ZERO }
}

fn destroy(group: &GroupName) -> Step {
    Step::Destroy { group: group.clone() }
}

pub(super) async fn the_same_intent_twice_takes_effect_once(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 3, true).await?;
    let before = desk.look(&group).await?;
    let victim = before.members.keys().next().cloned().ok_or("no member")?;
    let intent = desk.done(crash(&group, &victim)).await?;
    let healed = desk.whole(&group, 3).await?;
    let first = desk.resolve(&intent).await?;
    same("the second answer", &first, &desk.perform(&intent).await?)?;
    that(first.is_done(), "the first answer was done")?;
    let after = desk.look(&group).await?;
    let ids = |g: &troop_policies::inventory::Group| g.members.keys().cloned().collect::<Vec<_>>();
    same("the members after the second time", &ids(&healed), &ids(&after))?;
    let lost = before.members.keys().filter(|id| !after.members.contains_key(*id)).count();
    same("members lost", &1, &lost)?;
    // The id is bound to its step.
    let other = troop_policies::intent::Intent { step: resize(&group, Size::pinned(1)), ..intent };
    that(!desk.perform(&other).await?.is_done(), "an id is not taken for another step")?;
    same("the size", &Size::pinned(3), &desk.look(&group).await?.size)
}

pub(super) async fn a_refused_step_changes_nothing(desk: &Desk<'_>) -> Checked {
    let group = desk.serving(2).await?;
    let empty = desk.create(1, true).await?;
    let inventory = desk.inventory().await?;
    let none = desk.group(7);
    let unknown = InstanceId::new("i-00000000000000000").map_err(|e| e.to_string())?;
    let image = ImageId::new("ami-00000000000000000").map_err(|e| e.to_string())?;
    let nowhere = ZoneName::new("nowhere").map_err(|e| e.to_string())?;
    let new = |image: ImageId, zones: Vec<ZoneName>| Step::CreateGroup {
        group: NewGroup {
            name: none.clone(),
            image,
            zones: zones.into_iter().collect(),
            tags: [].into(),
            has_targets: true,
        },
    };
    let before = desk.shape().await?;
    for step in [
        desk.new_group(&group, &inventory, true),
        new(image, inventory.zones.iter().cloned().collect()),
        new(desk.subject.image(), vec![]),
        new(desk.subject.image(), vec![nowhere]),
        crash(&group, &unknown),
        crash(&empty, inventory.groups[&group].members.keys().next().ok_or("no member")?),
        resize(&none, Size::pinned(1)),
        resize(&group, Size { min: 3, desired: 2, max: 5 }),
        resize(&group, Size { min: 1, desired: 6, max: 5 }),
        Step::Flip { cluster: desk.cluster.clone(), to: empty.clone() },
        Step::Flip { cluster: desk.cluster.clone(), to: none.clone() },
        Step::Enable { group: none.clone() },
        disable(&none),
        destroy(&none),
    ] {
        desk.refused(step.clone()).await?;
        same(&format!("the groups after `{step}`"), &before, &desk.shape().await?)?;
    }
    Ok(())
}

pub(super) async fn without_a_valid_permit_nothing_changes(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 2, true).await?;
    let before = desk.shape().await?;
    let members: Vec<InstanceId> = desk.look(&group).await?.members.into_keys().collect();
    let [victim, other] = members.as_slice() else { return Err(format!("{} members", members.len())) };
    let zero = SignedDuration::ZERO;
    let for_other = desk.permit(&desk.intent(crash(&group, other))?, zero)?;
    let kill = desk.intent(crash(&group, victim))?;
    let expired = desk.permit(&kill, SignedDuration::from_millis(UNLEASHED_MAX_AGE_MS + 1))?;
    let early = desk.permit(&kill, SignedDuration::from_secs(-60))?;
    for (what, permit) in [("for another step", &for_other), ("expired", &expired), ("from the future", &early)] {
        let outcome = desk.cloud().perform(&kill, Permit::Unleashed(permit), desk.subject.now()).await;
        that(matches!(outcome, Outcome::Refused { .. }), &format!("a permit {what} is refused"))?;
        same(&format!("the groups after a permit {what}"), &before, &desk.shape().await?)?;
    }
    // An undo is made for what restores; nothing makes one that kills.
    let undo = Undo::for_step(&Step::Enable { group: group.clone() }).map_err(|e| e.to_string())?;
    let outcome = desk.cloud().perform(&kill, Permit::Undo(undo), desk.subject.now()).await;
    that(matches!(outcome, Outcome::Refused { .. }), "an undo that kills is refused")?;
    same("the groups after an undo that kills", &before, &desk.shape().await?)?;
    that(matches!(desk.resolve(&kill).await?, Outcome::Refused { .. }), "it resolves as refused")
}

pub(super) async fn the_group_in_rotation_is_protected(desk: &Desk<'_>) -> Checked {
    let serving = desk.serving(1).await?;
    // Also when another group could take over: that is for a flip to say.
    desk.start(1, 1, true).await?;
    let before = desk.shape().await?;
    for step in [disable(&serving), resize(&serving, Size::ZERO), destroy(&serving)] {
        desk.refused(step.clone()).await?;
        same(&format!("the groups after `{step}`"), &before, &desk.shape().await?)?;
    }
    Ok(())
}

pub(super) async fn the_last_enabled_group_is_protected(desk: &Desk<'_>) -> Checked {
    // Without targets there is no rotation that would protect it.
    let only = desk.start(0, 1, false).await?;
    let empty = desk.create(1, false).await?;
    let before = desk.shape().await?;
    for step in [disable(&only), resize(&only, Size::ZERO), destroy(&only)] {
        desk.refused(step.clone()).await?;
        same(&format!("the groups after `{step}`"), &before, &desk.shape().await?)?;
    }
    desk.done(disable(&empty)).await?;
    desk.refused(disable(&only)).await?;
    that(desk.look(&only).await?.enabled, "the last enabled group is still enabled")
}

pub(super) async fn resolving_what_never_came_never_acts(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 2, true).await?;
    let before = desk.shape().await?;
    let victim = desk.look(&group).await?.members.into_keys().next().ok_or("no member")?;
    let kill = desk.intent(crash(&group, &victim))?;
    that(matches!(desk.resolve(&kill).await?, Outcome::Refused { .. }), "it resolves as refused")?;
    same("the groups after resolving", &before, &desk.shape().await?)?;
    // The answer has to stay true, also for a request that was only slow.
    that(matches!(desk.perform(&kill).await?, Outcome::Refused { .. }), "it is refused from then on")?;
    same("the groups after performing", &before, &desk.shape().await?)
}

pub(super) async fn a_lost_request_has_no_effect(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 2, true).await?;
    let before = desk.shape().await?;
    let victim = desk.look(&group).await?.members.into_keys().next().ok_or("no member")?;
    for step in [
        crash(&group, &victim),
        resize(&group, Size::pinned(1)),
        desk.new_group(&desk.group(1), &desk.inventory().await?, true),
    ] {
        let intent = desk.intent(step)?;
        desk.subject.lose_next(Loss::Request);
        let outcome = desk.perform_by(desk.subject.losing(), &intent).await?;
        that(!outcome.is_done(), "a lost request is not taken for done")?;
        that(matches!(desk.resolve(&intent).await?, Outcome::Refused { .. }), "it resolves as refused")?;
        same(&format!("the groups after a lost `{}`", intent.step), &before, &desk.shape().await?)?;
    }
    Ok(())
}

pub(super) async fn a_lost_answer_leaves_one_effect(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 3, true).await?;
    let before = desk.look(&group).await?;
    let victim = before.members.keys().next().cloned().ok_or("no member")?;
    let new = desk.new_group(&desk.group(1), &desk.inventory().await?, true);
    for step in [crash(&group, &victim), resize(&group, Size { min: 1, desired: 3, max: 5 }), new] {
        let intent = desk.intent(step)?;
        desk.subject.lose_next(Loss::Answer);
        let outcome = desk.perform_by(desk.subject.losing(), &intent).await?;
        that(matches!(outcome, Outcome::Unknown { .. }), "a lost answer is unknown")?;
        that(desk.resolve(&intent).await?.is_done(), "it resolves as done")?;
        that(desk.perform(&intent).await?.is_done(), "performed again it answers what became of it")?;
    }
    let after = desk.whole(&group, 3).await?;
    let lost = before.members.keys().filter(|id| !after.members.contains_key(*id)).count();
    same("members lost", &1, &lost)
}

pub(super) async fn a_flip_moves_the_rotation_whole(desk: &Desk<'_>) -> Checked {
    let old = desk.serving(1).await?;
    let new = desk.start(1, 1, true).await?;
    for to in [&new, &old, &old, &new] {
        desk.flip(to).await?;
        let inventory = desk.inventory().await?;
        let serving = inventory.serving(&desk.cluster).map_err(|e| e.to_string())?;
        same("the group in rotation", to, &serving.name)?;
    }
    desk.done(disable(&old)).await?;
    desk.refused(Step::Flip { cluster: desk.cluster.clone(), to: old.clone() }).await?;
    desk.done(Step::Enable { group: old.clone() }).await?;
    desk.flip(&old).await.map(|_| ())
}

pub(super) async fn a_group_is_kept_at_its_size(desk: &Desk<'_>) -> Checked {
    let group = desk.start(0, 3, true).await?;
    let zones = |g: &troop_policies::inventory::Group| {
        g.members.values().map(|i| i.zone.clone()).collect::<std::collections::BTreeSet<_>>().len()
    };
    let zone_count = if desk.subject.spreads_over_zones() { desk.inventory().await?.zones.len().min(3) } else { 1 };
    same("zones of three instances", &zone_count, &zones(&desk.look(&group).await?))?;
    let victim = desk.look(&group).await?.members.into_keys().next().ok_or("no member")?;
    desk.done(Step::Terminate {
        group: group.clone(),
        instance: victim.clone(),
        kill: How::Drain { delay: std::time::Duration::ZERO },
    })
    .await?;
    let gone = |i: &troop_policies::inventory::Inventory| i.instance(&victim).is_none();
    desk.wait_for("the victim is gone", gone).await?;
    same("zones after healing", &zone_count, &zones(&desk.whole(&group, 3).await?))?;
    desk.done(resize(&group, Size::pinned(1))).await?;
    desk.whole(&group, 1).await.map(|_| ())
}

pub(super) async fn a_destroyed_group_goes_with_its_instances(desk: &Desk<'_>) -> Checked {
    desk.serving(1).await?;
    let spare = desk.start(1, 2, true).await?;
    desk.refused(destroy(&spare)).await?;
    desk.done(disable(&spare)).await?;
    desk.done(destroy(&spare)).await?;
    desk.wait_for("the group is gone", |inventory| !inventory.groups.contains_key(&spare)).await?;
    desk.refused(resize(&spare, Size::pinned(1))).await
}

pub(super) async fn a_mark_written_twice_is_one_mark(desk: &Desk<'_>) -> Checked {
    let group = desk.create(0, true).await?;
    let intent = desk.done(resize(&group, Size::ZERO)).await?;
    for _ in 0..2 {
        desk.cloud().mark(&intent, "7 2026-11-24T10:30:00Z").await.map_err(|e| e.to_string())?;
        let found = desk.look(&group).await?.tags.remove(TAG_MARK);
        same("the mark", &Some("7 2026-11-24T10:30:00Z".to_owned()), &found)?;
    }
    Ok(())
}
