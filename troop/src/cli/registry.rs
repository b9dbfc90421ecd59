//! `troop registry`: the service registry alone, for whoever wants Eureka's protocol without the rest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use troop_registry::server;

use super::args;
use super::context::{self, Context};
use crate::exit::{CliError, Code};
use crate::supervisor::stop;
use crate::{clock, logging, ui};

/// Run a service registry that speaks Eureka's protocol
///
/// `troop up` runs one of its own; this one stands alone. Its table is kept in registry.json of the state folder.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Where clients reach it
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8761")]
    listen: SocketAddr,
    /// How long an entry lives without a heartbeat, where its client does not say
    #[arg(long, value_name = "DURATION", value_parser = args::span, default_value = "90s")]
    lease: Duration,
}

pub(super) fn run(cx: &Context, args: &RegistryArgs) -> Result<Code, CliError> {
    let state = cx.state()?;
    state.create()?;
    logging::for_a_person();
    context::block_on(async {
        let stop = stop::on_signals()
            .map_err(|e| CliError::new(Code::Unavailable, format!("could not watch for signals: {e}")))?;
        let listener = tokio::net::TcpListener::bind(args.listen).await.map_err(|e| {
            CliError::new(Code::Unavailable, format!("could not listen on {}: {e}", args.listen))
                .hint("name another address with `--listen ADDRESS:PORT`; port 0 takes any free one")
        })?;
        let address = listener.local_addr().unwrap_or(args.listen);
        ui::line(&format!("registry  http://{address}/eureka/v2, lease {} s", args.lease.as_secs()));
        ui::line(&format!("table     {}", state.registry_table().display()));
        let served = server::serve(listener, state.registry_table(), args.lease, Arc::new(clock::real_now), stop).await;
        served.map_err(|e| CliError::of(Code::Unavailable, &e))?;
        Ok(Code::Ok)
    })
}
