//! A fault that is up while something is measured.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use troop_agent_core::fault::{Cidr, Delay, Direction, Effect, Fault, FlowShare, Parts, Ramp, Selectors, Target};
use troop_agent_core::lease::{LeaseId, Ttl};

use super::args::Options;
use super::peers::Peers;
use super::spaces::Own;
use super::stage::{PEER, Stage};
use super::{BenchError, why};
use crate::config::HostPolicy;
use crate::plane::{Order, Plane, Seen};
use crate::undo::{Journal, Place};

/// Longest life of a fault here: longer than anything is measured under one.
const TTL: Duration = Duration::from_secs(60);
/// How often a plane is asked whether all that it held is gone.
const TEND_EVERY: Duration = Duration::from_millis(10);
/// A delay that is none: packets take the whole way through the plane, and are not held.
pub(super) const PASSING: Duration = Duration::from_nanos(1);

/// What a bench works with.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) options: Options,
    pub(super) own: Own,
    pub(super) stage: Stage,
    pub(super) peers: Peers,
    pub(super) folder: PathBuf,
    /// Why there are not more planes.
    pub(super) lacks: Vec<String>,
    pub(super) rss_before_mib: f64,
    plane: Box<dyn Plane>,
    journal: Journal,
}

/// A fault that is up.
#[derive(Debug)]
pub(super) struct Up<'a> {
    pub(super) stage: &'a Stage,
    /// The folders in /proc of the threads that came with it.
    pub(super) threads: BTreeSet<PathBuf>,
    plane: &'a mut dyn Plane,
    lease: &'a LeaseId,
}

impl Up<'_> {
    pub(super) fn seen(&mut self) -> Result<Seen, BenchError> {
        Ok(self.plane.seen(self.lease)?)
    }
}

impl Bench {
    /// In the network namespace of this thread, from which everything else is called too.
    pub(super) fn new(options: Options, own: Own, is_root: bool, folder: &Path) -> Result<Self, BenchError> {
        let stage = Stage::make()?;
        let policy = HostPolicy { allow_unbacked_undo: true, ..HostPolicy::default() };
        let found = crate::planes::available(&policy);
        let named = |plane: &dyn Plane| options.plane.as_ref().is_none_or(|name| name == plane.name());
        let plane = found.planes.into_iter().find(|plane| named(plane.as_ref()));
        let plane = plane.ok_or_else(|| BenchError::NoPlane { why: found.lacks.join("; ") })?;
        let place = Place::here().map_err(BenchError::io("see where this is"))?;
        let journal = Journal::open(&folder.join("undo"), place)?;
        let peers = Peers::find(is_root, |name| std::env::var_os(name).map(PathBuf::from));
        let (folder, lacks, rss_before_mib) = (folder.into(), found.lacks, super::memory::rss_mib()?);
        Ok(Self { options, own, stage, peers, folder, lacks, rss_before_mib, plane, journal })
    }

    pub(super) fn plane_name(&self) -> &'static str {
        self.plane.name()
    }

    /// Does `work` while everything to and from the peer in this direction is delayed, and tells what the plane saw at the end of it.
    pub(super) fn under<T>(
        &mut self,
        direction: Direction,
        delay: Duration,
        work: impl FnOnce(&mut Up<'_>) -> Result<T, BenchError>,
    ) -> Result<(T, Seen), BenchError> {
        let order = order(direction, delay, &self.stage).map_err(BenchError::Meaningless)?;
        let before = threads();
        self.plane.apply(&order, &mut self.journal)?;
        let threads = threads().difference(&before).cloned().collect();
        let mut up = Up { stage: &self.stage, threads, plane: self.plane.as_mut(), lease: &order.lease };
        let done = work(&mut up);
        let seen = up.seen();
        let healed = self.heal(&order.lease);
        let done = done?;
        healed?;
        Ok((done, seen?))
    }

    fn heal(&mut self, lease: &LeaseId) -> Result<(), BenchError> {
        self.plane.heal(lease, &mut self.journal)?;
        while self.plane.tend(&mut self.journal)? {
            std::thread::sleep(TEND_EVERY);
        }
        Ok(())
    }
}

fn order(direction: Direction, delay: Duration, stage: &Stage) -> Result<Order, String> {
    let said = |e: &dyn std::error::Error| why(e);
    let peers = Selectors { peers: vec![Cidr::host(PEER.into())], ..Selectors::default() };
    let target = Target::new(peers, &[]).map_err(|e| said(&e))?;
    let parts = Parts { delay: Some(Delay::fixed(delay).map_err(|e| said(&e))?), ..Parts::default() };
    let effect = Effect::new(parts).map_err(|e| said(&e))?;
    let fault = Fault { direction, target, effect, ramp: Ramp::NONE, flows: FlowShare::ALL };
    let lease = LeaseId::new("bench").map_err(|e| said(&e))?;
    let ttl = Ttl::new(TTL).map_err(|e| said(&e))?;
    Ok(Order { lease, fault, devices: vec![stage.device.clone()], ttl })
}

/// The folders of this process's threads; what is measured is that of the plane's among them.
fn threads() -> BTreeSet<PathBuf> {
    let Ok(folder) = fs::read_dir("/proc/self/task") else { return BTreeSet::new() };
    folder.filter_map(|thread| thread.ok().map(|thread| thread.path())).collect()
}
