//! `troop sample-app`: the bundled service, and an image of it to deploy.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::context;
use crate::exit::{CliError, Code};
use crate::{logging, sample_app, ui};

const MANIFEST: &str = "troop-image.toml";

/// Run the bundled sample service, or write an image of it
///
/// Without --write it is what an instance runs: it listens on $HOST:$PORT and behaves as app.toml in its folder says.
#[derive(Debug, Args)]
pub(super) struct SampleArgs {
    /// Write a folder that `troop deploy --image` takes, and end
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// The version that the image carries
    #[arg(long = "as", value_name = "VERSION", default_value = "1.0.0", requires = "write")]
    version: String,
}

pub(super) fn run(args: &SampleArgs) -> Result<Code, CliError> {
    if let Some(folder) = &args.write {
        write(folder, &args.version)?;
        ui::note(&format!(
            "edit {0}/app.toml to change how it behaves, then `troop deploy hello-web --image {0} --team T`",
            folder.display()
        ));
        return Ok(Code::Ok);
    }
    logging::for_a_log();
    context::block_on(async { sample_app::run().await.map_err(|e| CliError::of(Code::Input, &e)) })?;
    Ok(Code::Ok)
}

/// The image's two files. What is there already may be somebody's work.
fn write(folder: &Path, version: &str) -> Result<(), CliError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    if version.is_empty() || !version.chars().all(is_plain) {
        return Err(CliError::new(Code::Input, format!("`{version}` is no version")).hint("write one such as 1.0.0"));
    }
    if folder.join(MANIFEST).exists() {
        return Err(CliError::new(Code::Input, format!("there is an image in `{}` already", folder.display()))
            .hint("name a new folder, or edit that one"));
    }
    let failed =
        |e: std::io::Error| CliError::new(Code::Unavailable, format!("could not write to `{}`: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    fs::write(folder.join("app.toml"), APP).map_err(failed)?;
    fs::write(folder.join(MANIFEST), manifest(version)).map_err(failed)
}

fn manifest(version: &str) -> String {
    format!(
        "name        = \"hello\"\nversion     = \"{version}\"\ncommand     = [\"troop\", \"sample-app\"]\n\
         port        = 8080\nhealth_path = \"/health\"\nregistry    = \"required\"\n"
    )
}

const APP: &str = "\
greeting      = \"hello\"
health_status = 200                     # 503: never healthy, so a push of it never flips
error_rate    = 0.0                     # 0.31: 31 % of its answers are errors, so a push of it goes back by itself
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_written_once_and_never_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hello");
        write(&folder, "1.0.0").unwrap();
        let read = |name: &str| toml::from_str::<toml::Table>(&fs::read_to_string(folder.join(name)).unwrap()).unwrap();
        assert_eq!(read(MANIFEST)["version"].as_str(), Some("1.0.0"));
        assert_eq!(read("app.toml")["error_rate"].as_float(), Some(0.0));
        assert_eq!(write(&folder, "1.0.1").unwrap_err().code, Code::Input);
        assert_eq!(write(&dir.path().join("other"), "a \"b\"").unwrap_err().code, Code::Input);
    }
}
