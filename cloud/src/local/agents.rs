//! The agents of the embedded cloud: one process beside each instance, in the instance's own network and outside of everything else
//! that is its.
//!
//! An agent is started by a helper that joins the network and becomes the agent (`internal agent-of`), as a child of the cloud process: it ends with the
//! sandbox, an instance cannot touch it, and when it dies while its instance lives it is started again at once.
//! What it may do is said by an agent.toml that is written here: everything, for the embedded cloud only hurts what it started,
//! and with `allow_unbacked_undo`, since whatever the agent's guardian should miss ends with the instance's network.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hmac::{Hmac, KeyInit as _, Mac as _};
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use sha2::Sha256;
use troop_policies::InstanceId;

use super::steps::{Step as _, StepFailed};
use super::{INTERNAL, mounts};

/// The word after which the binary is an agent. It hands everything after it to the agent's own command line.
pub const AGENT: &str = "agent";
/// What a token is made from, in front of the host's name.
const TOKEN_LABEL: &str = "troop/agent/1|";

/// Where agents find their control plane.
pub fn socket(state_dir: &Path) -> PathBuf {
    state_dir.join("run").join("agents.sock")
}

/// The secret from which every agent's token is made, in STATE/cloud: 64 hexadecimal digits and a line end, mode 0600.
pub fn secret_file(state_dir: &Path) -> PathBuf {
    state_dir.join("cloud").join("agents-secret")
}

fn mac(secret: &[u8; 32], host: &str) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { unreachable!("HMAC accepts every key length") };
    mac.update(TOKEN_LABEL.as_bytes());
    mac.update(host.as_bytes());
    mac
}

/// Whether these bytes are the token of the host `account/region/instance`. Takes as long for wrong ones as for the right.
pub fn verify(secret: &[u8; 32], host: &str, token: &[u8; 32]) -> bool {
    mac(secret, host).verify_slice(token).is_ok()
}

/// The token of a host, in hexadecimal: what its agent shows.
pub fn token(secret: &[u8; 32], host: &str) -> String {
    hex::encode(mac(secret, host).finalize().into_bytes())
}

/// Reads the agents' secret; where there is none yet, makes one.
///
/// # Errors
/// When it can neither be read nor made, or what stands there is none.
pub fn keep_secret(path: &Path) -> io::Result<[u8; 32]> {
    let mut secret = [0; 32];
    match fs::read_to_string(path) {
        Ok(text) => {
            hex::decode_to_slice(text.trim_end(), &mut secret)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            Ok(secret)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
            let fresh = path.with_extension(std::process::id().to_string());
            private(&fresh, format!("{}\n", hex::encode(secret)).as_bytes())?;
            // Whoever was first has made it for all.
            let made = fs::hard_link(&fresh, path);
            fs::remove_file(&fresh)?;
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => keep_secret(path),
                made => made.map(|()| secret),
            }
        }
        Err(error) => Err(error),
    }
}

/// How agents are started.
#[derive(Debug)]
pub(crate) struct Agents {
    state_dir: PathBuf,
    /// `account/region`.
    place: String,
    secret: [u8; 32],
}

impl Agents {
    /// Reads the agents' secret, or makes it, and writes what agents may do here.
    pub(crate) fn prepare(state_dir: &Path, place: String) -> Result<Self, StepFailed> {
        let secret = keep_secret(&secret_file(state_dir)).step("keep the agents' secret")?;
        let agents = Self { state_dir: state_dir.into(), place, secret };
        fs::create_dir_all(agents.folder()).step("make the agents' folder")?;
        fs::write(agents.config(), allowed(state_dir)).step("write the agents' policy")?;
        Ok(agents)
    }

    /// Starts the agent of an instance whose first process is `first`. Returns its pid.
    pub(crate) fn start(&self, instance: &InstanceId, first: i32) -> Result<Pid, StepFailed> {
        let own = self.folder().join(instance.as_str());
        fs::create_dir_all(&own).step("make an agent's folder")?;
        let host = format!("{}/{instance}", self.place);
        let token = token(&self.secret, &host);
        let token_file = own.join("token");
        private(&token_file, token.as_bytes()).step("write an agent's token")?;
        let logs = self.state_dir.join("cloud").join("logs");
        fs::create_dir_all(&logs).step("make the logs' folder")?;
        let log = OpenOptions::new().create(true).append(true).open(logs.join(format!("{instance}.agent.log")));
        let to = format!("unix:{}", socket(&self.state_dir).display());
        let agent = Command::new(mounts::kept_exe(&self.state_dir))
            .arg0("troop")
            .args([INTERNAL, "agent-of", &first.to_string(), "--", AGENT, "run", "--to", &to, "--instance", &host])
            .arg("--token-file")
            .arg(token_file)
            .arg("--state")
            .arg(own)
            .arg("--config")
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.step("open an agent's log")?)
            .spawn()
            .step("start an agent")?;
        Ok(Pid::from_raw(i32::try_from(agent.id()).unwrap_or(0)))
    }

    /// Removes what is kept of an instance's agent.
    pub(crate) fn clean(&self, instance: &InstanceId) {
        drop(fs::remove_dir_all(self.folder().join(instance.as_str())));
    }

    /// Within the scene, which is in memory: writing there costs an agent nothing, and it is gone with the sandbox.
    fn folder(&self) -> PathBuf {
        mounts::scene(&self.state_dir).join("agents")
    }

    fn config(&self) -> PathBuf {
        self.folder().join("agent.toml")
    }
}

/// The helper: joins the network of an instance's first process, and becomes `args` of this executable.
pub(crate) fn become_agent(first: i32, args: &[&OsStr]) -> StepFailed {
    let joined = File::open(format!("/proc/{first}/ns/net"))
        .step("open the instance's network")
        .and_then(|net| setns(net, CloneFlags::CLONE_NEWNET).step("setns(the instance's network)"));
    match joined {
        Err(failed) => failed,
        Ok(()) => {
            let error = Command::new("/proc/self/exe").arg0("troop").args(args).exec();
            StepFailed { step: "become the agent".into(), errno: 0, detail: error.to_string() }
        }
    }
}

fn allowed(state_dir: &Path) -> String {
    let halt = state_dir.join("halt").display().to_string();
    let kinds = "'delay', 'loss', 'black_hole', 'duplicate', 'corrupt', 'reorder', 'rate'";
    let halt = toml::Value::String(halt);
    format!(
        "# Written by the embedded cloud at its start.\nfaults = [{kinds}]\ndelay_max_ms = 60000\nshare_max_percent = 100.0\n\
         lasts_max_s = 86400\ndevices = ['eth0']\nallow_unbacked_undo = true\nhalt_file = {halt}\n"
    )
}

fn private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_host_and_one_secret() {
        let mut token = [0; 32];
        hex::decode_to_slice(super::token(&[1; 32], "local/r1/i-1"), &mut token).unwrap();
        assert!(verify(&[1; 32], "local/r1/i-1", &token));
        assert!(!verify(&[1; 32], "local/r1/i-2", &token));
        assert!(!verify(&[2; 32], "local/r1/i-1", &token));
    }

    #[test]
    fn the_secret_is_made_once_and_read_by_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents-secret");
        let made = keep_secret(&path).unwrap();
        assert_eq!(keep_secret(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        assert!(keep_secret(&path).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
