//! What travels between the command line and the control plane: HTTP/JSON under `/api/v1`.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use troop_deploy::judge::SoFar;
use troop_policies::fault::FaultSpec;
use troop_policies::plan::DayPlan;
use troop_policies::{ClusterName, GroupName, ImageId, InstanceId, Location, TeamName, ZoneName};

/// Who asks: the uid of the peer of the control socket, as the host sees it, and its name where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    pub uid: u32,
    pub name: String,
}

/// Why a request was not done. The kind decides the HTTP status and the exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    pub kind: ErrorKind,
    pub message: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// 400, exit 1: the request is wrong.
    Yours,
    /// 404, exit 1: no such thing.
    NotFound,
    /// 409, exit 3: a safety rule refuses.
    Refused,
    /// 503, exit 4: could not ask, try later.
    CouldNotAsk,
    /// 500, exit 70.
    Bug,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// A cluster, or an instance id.
    pub target: String,
    pub instance: Option<InstanceId>,
    pub reason: String,
    pub outside_window: bool,
    /// Only say what would be done.
    pub plan: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KillAnswer {
    pub schema: u32,
    pub draw_key: String,
    /// Drawn from these.
    pub eligible: Vec<InstanceId>,
    /// For `plan`: the victim is drawn at the act, so a plan names none unless one was asked for.
    pub victim: Option<InstanceId>,
    pub zone: Option<ZoneName>,
    pub group: Option<GroupName>,
    /// The exact steps, in words.
    pub steps: Vec<String>,
    /// For `plan`: the calls that the first step will make of the cloud, where those are known.
    #[serde(default)]
    pub calls: Vec<String>,
    pub intent: Option<String>,
    /// `planned`, `done`, `refused` or `unknown`.
    pub outcome: String,
    pub detail: String,
}

/// `POST latency`. What it comes to is a [`KillAnswer`] too: an act on one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyRequest {
    /// A cluster, an instance id or a draw key.
    pub target: String,
    pub instance: Option<InstanceId>,
    pub fault: FaultSpec,
    pub lasts: Duration,
    pub reason: String,
    pub outside_window: bool,
    /// Only say what would be done.
    pub plan: bool,
}

/// One agent, for `troop agents`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    pub schema: u32,
    /// `account/region/instance`.
    pub host: String,
    pub instance: String,
    pub release: String,
    pub kernel: String,
    /// The data planes that may be used there, the preferred first, each with who undoes what it does.
    pub planes: Vec<String>,
    /// What the host's own agent.toml allows.
    pub allows: String,
    /// Why it cannot do more.
    pub lacks: Vec<String>,
    /// By what it is known to be that instance's: `token`, `token, instance runs` or `proven by EC2`.
    #[serde(default)]
    pub identity: String,
    /// Since when it is connected; null: it is not.
    pub since: Option<Timestamp>,
    /// Leases whose fault is not known to be gone.
    pub live: Vec<String>,
}

/// `POST notify`: a test notice to each recipient of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifyRequest {
    pub team: TeamName,
    /// What it says, beside who sent it.
    pub message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyAnswer {
    pub schema: u32,
    pub team: TeamName,
    /// In the order of the policy's `notify`.
    pub told: Vec<RecipientView>,
}

/// What one recipient's channel answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientView {
    /// `CHANNEL:TARGET`.
    pub recipient: String,
    /// Whether it took the notice.
    pub ok: bool,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    pub cluster: ClusterName,
    /// An id, or the path of a directory or tarball on this machine.
    pub image: String,
    /// Where, if not where the cluster is.
    #[serde(default)]
    pub location: Option<Location>,
    pub team: Option<TeamName>,
    pub size: Option<u32>,
    pub watch: Option<Duration>,
    pub soak: Option<Duration>,
    pub ready_within: Option<Duration>,
    /// Percent.
    pub errors_above: Option<u32>,
    pub drain: Option<Duration>,
    pub plan: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeployAnswer {
    pub schema: u32,
    /// Absent for a plan.
    pub push: Option<u64>,
    pub cluster: ClusterName,
    pub group: GroupName,
    pub previous: Option<GroupName>,
    pub image: ImageId,
    pub size: u32,
    pub steps: Vec<String>,
    /// Of a plan, why nothing of it would be done now, where the site's leash is on.
    #[serde(default)]
    pub leashed: Option<String>,
    /// Of a plan, the cloud's API calls that its steps will make, where the cloud has such.
    #[serde(default)]
    pub calls: Vec<StepCalls>,
}

/// The calls that a step will make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCalls {
    /// As it stands among the steps.
    pub step: String,
    /// In their order, as the cloud names them.
    pub calls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    pub cluster: ClusterName,
    pub push: Option<u64>,
    pub reason: String,
    pub plan: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackAnswer {
    pub schema: u32,
    pub push: u64,
    /// What will happen: `cancelled, no traffic moves` or `traffic goes back to checkout-web-v041`.
    pub effect: String,
    pub steps: Vec<String>,
    /// As of [`DeployAnswer`].
    #[serde(default)]
    pub calls: Vec<StepCalls>,
}

/// One push, for `troop pushes` and live progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PushView {
    pub schema: u32,
    pub push: u64,
    pub cluster: ClusterName,
    pub group: GroupName,
    pub previous: Option<GroupName>,
    pub actor: String,
    pub image: ImageId,
    pub version: Option<String>,
    pub started_at: Timestamp,
    pub phase: String,
    /// What it waits for, or how it ended.
    pub note: String,
    pub ended: bool,
    /// `succeeded`, `superseded`, `rolled_back`, `cancelled`, or null while it runs.
    pub result: Option<String>,
    pub ready_seconds: Option<f64>,
    pub flip_ms: Option<f64>,
    pub watch_until: Option<Timestamp>,
    /// What the new group has answered since it is judged; null while it is not, and where no control plane was asked.
    #[serde(default)]
    pub traffic: Option<PushTraffic>,
}

/// What a new group has answered since it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PushTraffic {
    pub answers: u64,
    pub errors: u64,
    /// How long an answer took on average; null where nobody times them.
    pub mean_ms: Option<f64>,
}

impl From<SoFar> for PushTraffic {
    fn from(so_far: SoFar) -> Self {
        let mean_ms = so_far.mean.map(|mean| mean.as_secs_f64() * 1_000.0);
        Self { answers: so_far.answers, errors: so_far.errors, mean_ms }
    }
}

/// One instance, for `troop ps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceView {
    pub schema: u32,
    pub instance: InstanceId,
    pub group: GroupName,
    pub version: Option<String>,
    pub zone: ZoneName,
    pub address: Option<String>,
    pub lifecycle: String,
    pub registry: String,
    pub health: String,
    pub traffic: String,
    pub launched_at: Timestamp,
    pub log: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    pub gate: String,
    pub ok: bool,
    pub text: String,
}

/// One scope and monkey, for `troop explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainView {
    pub schema: u32,
    pub draw_key: String,
    pub monkey: String,
    pub team: Option<TeamName>,
    pub gates: Vec<GateView>,
    pub eligible: Vec<InstanceId>,
    /// `would be hurt now if a draw fell` or the reason that spares.
    pub verdict: String,
    /// Today's entry, where the plan has one.
    pub today: Option<troop_policies::plan::PlanEntry>,
    /// The entries of today's drills.
    #[serde(default)]
    pub drills: Vec<troop_policies::plan::PlanEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageView {
    pub schema: u32,
    pub image: ImageId,
    pub name: String,
    pub version: String,
    pub created_at: Timestamp,
}

/// What the control plane knows about itself, for the second part of `troop status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveView {
    pub schema: u32,
    pub pid: u32,
    pub started_at: Timestamp,
    /// The scheduler's calendar, which only `demo` moves.
    pub calendar: Timestamp,
    pub site: String,
    pub site_leashed: bool,
    /// What keeps a site leashed that is unleashed by its file.
    #[serde(default)]
    pub not_ready: Vec<String>,
    pub registry: String,
    pub policies: Vec<PolicyView>,
    /// What could not be read at the last look, in words.
    pub troubles: Vec<String>,
    pub balancer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    pub file: String,
    pub team: Option<TeamName>,
    pub ok: bool,
    pub problem: Option<String>,
}

/// A mark of another ledger that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedMark {
    pub group: GroupName,
    pub mark: String,
}

/// What the API asks of the control plane. The router turns HTTP into these calls and nothing else.
#[async_trait]
pub trait ControlPlane: Send + Sync {
    async fn live(&self) -> LiveView;
    /// Today's plans, one a team; makes none.
    async fn plans(&self) -> Result<Vec<DayPlan>, ApiError>;
    /// A cluster, instance id or draw key.
    async fn explain(&self, target: &str) -> Result<Vec<ExplainView>, ApiError>;
    async fn kill(&self, request: KillRequest, actor: Actor) -> Result<KillAnswer, ApiError>;
    async fn latency(&self, request: LatencyRequest, actor: Actor) -> Result<KillAnswer, ApiError>;
    async fn agents(&self) -> Result<Vec<AgentView>, ApiError>;
    async fn deploy(&self, request: DeployRequest, actor: Actor) -> Result<DeployAnswer, ApiError>;
    async fn rollback(&self, request: RollbackRequest, actor: Actor) -> Result<RollbackAnswer, ApiError>;
    async fn pushes(&self) -> Result<Vec<PushView>, ApiError>;
    async fn instances(&self) -> Result<Vec<InstanceView>, ApiError>;
    async fn images(&self) -> Result<Vec<ImageView>, ApiError>;
    /// Writes STATE/halt and the ledger's row.
    async fn halt(&self, why: String, actor: Actor) -> Result<(), ApiError>;
    async fn resume(&self, why: String, actor: Actor) -> Result<(), ApiError>;
    async fn clear(&self, draw_key: String, why: String, actor: Actor) -> Result<(), ApiError>;
    /// Sends a test notice to each recipient of a team, and waits for their answers.
    async fn notify(&self, request: NotifyRequest, actor: Actor) -> Result<NotifyAnswer, ApiError>;
    /// Accepts the marks that this ledger does not hold, and says which.
    async fn adopt(&self, why: String, actor: Actor) -> Result<Vec<AdoptedMark>, ApiError>;
}
