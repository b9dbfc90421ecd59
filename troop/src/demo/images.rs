//! The demo's images: the bundled sample service in four versions, a quiet one, and one to be called.

use std::io;
use std::path::{Path, PathBuf};

/// The folders of the images.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) v0: PathBuf,
    pub(super) v1: PathBuf,
    /// Its health check answers 503.
    pub(super) never_ready: PathBuf,
    /// Healthy, and 31 % of its answers are errors.
    pub(super) bad: PathBuf,
    pub(super) quiet: PathBuf,
    /// What the latency chapter delays packets to.
    pub(super) pricing: PathBuf,
}

/// Share of v003's answers that are errors: far above the 5 % that flip back, and plainly not all.
const BAD_ERROR_RATE: &str = "0.31";

pub(super) fn write(folder: &Path) -> io::Result<Images> {
    let image = |dir: &str, name: &str, version: &str, app: &str| -> io::Result<PathBuf> {
        let path = folder.join("images").join(dir);
        std::fs::create_dir_all(&path)?;
        std::fs::write(path.join("troop-image.toml"), manifest(name, version))?;
        std::fs::write(path.join("app.toml"), app)?;
        Ok(path)
    };
    Ok(Images {
        v0: image("hello-1.0.0", "hello", "1.0.0", "greeting = \"hello\"\n")?,
        v1: image("hello-1.1.0", "hello", "1.1.0", "greeting = \"hello again\"\n")?,
        never_ready: image("hello-1.2.0", "hello", "1.2.0", "greeting = \"hello?\"\nhealth_status = 503\n")?,
        bad: image("hello-1.3.0", "hello", "1.3.0", &format!("greeting = \"hell\"\nerror_rate = {BAD_ERROR_RATE}\n"))?,
        quiet: image("quiet-1.0.0", "quiet", "1.0.0", "greeting = \"shh\"\n")?,
        pricing: image("pricing-1.0.0", "pricing", "1.0.0", "greeting = \"3.50\"\n")?,
    })
}

fn manifest(name: &str, version: &str) -> String {
    format!(
        "name        = \"{name}\"\nversion     = \"{version}\"\n\
         command     = [\"troop\", \"sample-app\"]\nport        = 8080\nhealth_path = \"/health\"\nregistry    = \"required\"\n"
    )
}
